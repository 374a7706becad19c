/* copier: has /dev/dma0 copy between pinned pages. Prints what it finds; no time of it is printed. */
#include "aether.h"

enum { SOURCE = 0, TARGET = 0x08, LENGTH = 0x10, START = 0x14, STATUS = 0x18, ERROR = 0x1c, COPIED = 0x20, COPIES = 0x28 };
#define DMA_PIN 0xc0204101
#define DMA_UNPIN 0x40084102

static volatile u8 *base;
static int fd;

static u64 load(u64 at) { return *(volatile u32 *)(base + at); }
static void store(u64 at, u32 value) { *(volatile u32 *)(base + at) = value; }

static i64 pin(void *at, u64 length, u64 flags, u64 *bus) {
    u64 asked[4] = {(u64)at, length, flags, 0};
    i64 result = SYSCALL(ioctl, fd, DMA_PIN, asked);
    *bus = asked[3];
    return result;
}

static void submit(u64 source, u64 target, u32 length) {
    *(volatile u64 *)(base + SOURCE) = source;
    *(volatile u64 *)(base + TARGET) = target;
    store(LENGTH, length);
    store(START, 1);
}

static void copy(const char *what, u64 source, u64 target, u32 length) {
    u64 ended = 0;
    submit(source, target, length);
    u64 status = load(STATUS);
    SYSCALL(read, fd, &ended, 8); /* sleeps */
    printf("%s: %lu, then %lu, error %lu, ended %lu\n", what, status, load(STATUS), load(ERROR), ended);
    store(STATUS, 6);
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    u64 size = 3 * PAGE, bus_from, bus_to, other;
    fd = open("/dev/dma0", O_RDWR);
    if (IS_ERROR(fd)) FAIL("/dev/dma0: %s", answer(fd));
    base = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    u8 *from = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u8 *to = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u8 *fixed = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (u64 at = 0; at < size; at++) from[at] = at * 7 + at / 251;
    printf("pin: %ld %ld\n", pin(from + 5, 2 * PAGE, 0, &bus_from), pin(to + 1000, 2 * PAGE, 1, &bus_to));
    printf("registers: %ld, read-only: %ld, nothing: %ld, flags: %ld\n", pin((void *)base, 8, 0, &other),
           pin(fixed, 8, 1, &other), pin((void *)PAGE, 8, 0, &other), pin(from, 8, 2, &other));

    copy("copy", bus_from, bus_to, 2 * PAGE);
    u64 wrong = 0;
    for (u64 at = 0; at < size; at++) wrong += to[at] != (at < 1000 || at >= 1000 + 2 * PAGE ? 0 : from[at - 995]);
    printf("wrong bytes: %lu\n", wrong);
    copy("no length", bus_from, bus_to, 0);
    copy("too long", bus_from, bus_to, 2 * PAGE + 1);
    copy("not to there", bus_to, bus_from, 8);
    copy("nowhere", 8, bus_to, 8);

    submit(bus_from, bus_to, PAGE);
    printf("busy %lu, unpin %ld\n", load(STATUS), SYSCALL(ioctl, fd, DMA_UNPIN, &bus_to));
    from[5] = 99; /* what the source has when the copy is done */
    while (load(STATUS) & 1) {}
    printf("spun: status %lu, first byte %lu\n", load(STATUS), (u64)to[1000]);
    u64 ended;
    SYSCALL(read, fd, &ended, 8);

    /* What is pinned stays where it is, though the program unmaps it, or makes it read-only for a while. */
    mprotect(to, size, PROT_READ);
    mprotect(to, size, PROT_READ | PROT_WRITE);
    to[1001] = 1;
    from[6] = 55;
    copy("again", bus_from, bus_to, 16);
    printf("its own page still: %lu\n", (u64)to[1001]);
    u8 *fresh = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u64 bus_fresh, bus_fixed, zeros = fresh[0] + fixed[0]; /* both show the page of zeros */
    printf("pin zeros: %ld %ld, ", pin(fresh, 8, 0, &bus_fresh), pin(fixed, 8, 0, &bus_fixed));
    fresh[0] = 77;
    copy("copy", bus_fresh, bus_to, 1);
    zeros += to[1000];
    mprotect(fixed, PAGE, PROT_READ | PROT_WRITE);
    fixed[0] = 78; /* its own page now; the engine has the one of zeros */
    copy("copy", bus_fixed, bus_to, 1);
    printf("bytes: %lu %lu\n", zeros, (u64)to[1000]);
    munmap(from, size);
    copy("after munmap", bus_from, bus_to, 16);
    printf("the bytes are there: %lu\n", (u64)to[1001]);
    printf("copies %lu, bytes %d\n", load(COPIES), *(volatile u64 *)(base + COPIED) == 3 * PAGE + 34);
    printf("unpin: %ld, again: %ld\n", SYSCALL(ioctl, fd, DMA_UNPIN, &bus_from), SYSCALL(ioctl, fd, DMA_UNPIN, &bus_from));
    return 0; /* the other goes with the file */
}
