/* picture: draws into /dev/fb0. A pattern by stores to the mapped device, of which a child draws the right half, and one row by
 * write(2); prints what fbdev says of the device and what mmap, read and write refuse. */
#include "aether.h"

#if defined(__x86_64__)
enum { SYS_pwrite64 = 18 };
#else
enum { SYS_pwrite64 = 68 };
#endif

#define FBIOGET_VSCREENINFO 0x4600
#define FBIOGET_FSCREENINFO 0x4602
#define FBIOPAN_DISPLAY 0x4606

struct variable { /* the beginning of struct fb_var_screeninfo, and room for the rest */
    u32 xres, yres, xres_virtual, yres_virtual, xoffset, yoffset, bits, grayscale;
    struct {
        u32 offset, length, msb_right;
    } red, green, blue, transparent;
    u32 rest[20];
};
struct fixed {
    char id[16];
    u64 start;
    u32 length, type, type_aux, visual;
    u16 steps[3];
    u32 line;
    u64 mmio_start;
    u32 mmio_length, accel;
    u16 capabilities, reserved[2];
};

static struct variable variable;
static struct fixed fixed;

static u32 colour(u32 x, u32 y) { return (x * 3 & 255) << 16 | (y * 5 & 255) << 8 | ((x ^ y) & 255); }

static void draw(volatile u32 *pixels, u32 from, u32 to) {
    for (u32 y = 1; y < variable.yres; y++)
        for (u32 x = from; x < to; x++) pixels[y * (fixed.line / 4) + x] = colour(x, y);
}

static void refused(const char *what, void *result) { printf("%s: %s\n", what, answer((i64)result)); }

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    static u32 row[4096];
    int fd = open("/dev/fb0", O_RDWR);
    if (IS_ERROR(fd)) FAIL("/dev/fb0: %s", answer(fd));
    if (SYSCALL(ioctl, fd, FBIOGET_VSCREENINFO, &variable)) FAIL("%s", "no mode");
    if (SYSCALL(ioctl, fd, FBIOGET_FSCREENINFO, &fixed)) FAIL("%s", "no memory");
    printf("%lux%lu, %lu bits: red %lu, green %lu, blue %lu; %lu bytes a line\n", (u64)variable.xres,
           (u64)variable.yres, (u64)variable.bits, (u64)variable.red.offset, (u64)variable.green.offset,
           (u64)variable.blue.offset, (u64)fixed.line);
    variable.xoffset = 1;
    printf("pan: %s\n", answer(SYSCALL(ioctl, fd, FBIOPAN_DISPLAY, &variable)));
    variable.xoffset = 0;
    refused("private", mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0));
    refused("too long", mmap(NULL, fixed.length + PAGE, PROT_READ, MAP_SHARED, fd, 0));
    refused("behind", mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, ROUND_UP(fixed.length, PAGE)));
    volatile u32 *pixels = mmap(NULL, fixed.length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (IS_ERROR(pixels)) FAIL("mmap: %s", answer((i64)pixels));

    i64 child = SYSCALL(clone, SIGCHLD, 0, 0, 0, 0);
    u32 half = variable.xres / 2;
    draw(pixels, child ? 0 : half, child ? half : variable.xres);
    if (!child) exit(0);
    int status;
    SYSCALL(wait4, child, &status, 0, NULL);
    for (u32 x = 0; x < variable.xres; x++) row[x] = colour(x, 0);
    printf("write: %ld of %lu\n", SYSCALL(write, fd, row, fixed.line), (u64)fixed.line);
    u64 picture = (u64)fixed.line * variable.yres;
    printf("at the end: %ld, behind it: %ld\n", SYSCALL(pwrite64, fd, row, 4, picture),
           SYSCALL(pwrite64, fd, row, 4, picture + 1));
    u32 seen = 0;
    SYSCALL(pread64, fd, &seen, 4, fixed.line * 7 + 4 * 9);
    printf("read: %s\n", seen == colour(9, 7) ? "what was stored" : "something else");
    mprotect((void *)pixels, PAGE, PROT_READ);
    mprotect((void *)pixels, PAGE, PROT_READ | PROT_WRITE);
    pixels[3] = colour(3, 0);
    u64 wrong = 0;
    for (u32 y = 0; y < variable.yres; y++)
        for (u32 x = 0; x < variable.xres; x++) wrong += pixels[y * (fixed.line / 4) + x] != colour(x, y);
    printf("wrong pixels: %lu\n", wrong);
    return 0;
}
