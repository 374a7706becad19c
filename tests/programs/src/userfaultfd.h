// userfaultfd(2) and ioctl_userfaultfd(2), as Linux has them since 6.8: older headers know less.
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

struct range { uint64_t start, len; };
struct api { uint64_t api, features, ioctls; };
struct reg { struct range range; uint64_t mode, ioctls; };
struct copy { uint64_t dst, src, len, mode; int64_t copy; };
struct zero { struct range range; uint64_t mode; int64_t done; };
struct wp { struct range range; uint64_t mode; };

#define API _IOWR(0xAA, 0x3F, struct api)
#define REGISTER _IOWR(0xAA, 0, struct reg)
#define UNREGISTER _IOR(0xAA, 1, struct range)
#define WAKE _IOR(0xAA, 2, struct range)
#define COPY _IOWR(0xAA, 3, struct copy)
#define ZEROPAGE _IOWR(0xAA, 4, struct zero)
#define MOVE _IOWR(0xAA, 5, struct copy)
#define WRITEPROTECT _IOWR(0xAA, 6, struct wp)
#define CONTINUE _IOWR(0xAA, 7, struct zero)
#define POISON _IOWR(0xAA, 8, struct zero)
#define RW (PROT_READ | PROT_WRITE)
enum { MISSING = 1, WP = 2, MINOR = 4 };
