/* registers: drives /dev/timer0 by loads and stores. Prints what it finds; no time of it is printed. */
#include "aether.h"

enum { COUNT = 0x00, COMPARE = 0x08, CONTROL = 0x10, STATUS = 0x14, FIRED = 0x18 };

struct pollfd {
    int fd;
    short events, revents;
};

static volatile u8 *base;

static u32 load(u64 at) { return *(volatile u32 *)(base + at); }
static void store(u64 at, u32 value) { *(volatile u32 *)(base + at) = value; }
static u64 load_wide(u64 at) { return *(volatile u64 *)(base + at); }
static void store_wide(u64 at, u64 value) { *(volatile u64 *)(base + at) = value; }

static u64 count(void) {
    u64 low = load(COUNT);
    return low | (u64)load(COUNT + 4) << 32;
}

static i64 ready(int fd, u64 nanoseconds) {
    struct pollfd poll = {fd, 1, 0};
    u64 time[2] = {0, nanoseconds};
    return SYSCALL(ppoll, &poll, 1, time, NULL, 8);
}

static struct outcome outcome;

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    int fd = open("/dev/timer0", O_RDWR);
    if (IS_ERROR(fd)) FAIL("/dev/timer0: %s", answer(fd));
    printf("execute: %ld\n", (i64)mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0));
    printf("two pages: %s\n", answer((i64)mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, fd, 0)));
    base = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (IS_ERROR(base)) FAIL("mmap: %s", answer((i64)base));
    printf("execute later: %s\n", answer(mprotect((void *)base, PAGE, PROT_READ | PROT_EXEC)));

    u64 before = count(), after = load_wide(COUNT);
    printf("the count goes on: %d, by less than a second: %d\n", before <= after, after - before < 1000000000);
    printf("narrow: %lx %lx\n", (u64) * (base + COUNT), (u64) * (volatile u16 *)(base + FIRED));
    *(base + CONTROL) = 1;
    printf("a narrow store arms nothing: %lu\n", (u64)load(CONTROL));

    printf("nothing is due: %ld\n", ready(fd, 1000));
    u64 due = count() + 5000000;
    store_wide(COMPARE, due);
    printf("armed %lu, compare %d, ready %ld\n", (u64)load(CONTROL), load_wide(COMPARE) == due, ready(fd, 1000));
    u64 fired = 0;
    i64 got = SYSCALL(read, fd, &fired, 8); /* sleeps */
    after = count();
    printf("read %ld: fired %lu, not early: %d, late by less than a millisecond: %d\n", got, fired, after >= due,
           after - due < 1000000);
    printf("armed %lu, status %lu, fired %lu\n", (u64)load(CONTROL), (u64)load(STATUS), (u64)load(FIRED));
    store(STATUS, 1);
    printf("status %lu\n", (u64)load(STATUS));

    due = count() + 3000000;
    store(COMPARE, (u32)due);
    store(COMPARE + 4, due >> 32);
    u64 turns = 0;
    while (!(load(STATUS) & 1)) turns++; /* spins */
    after = count();
    printf("spun: %d, not early: %d, late by less than 10 us: %d\n", turns > 10, after >= due, after - due < 10000);
    printf("ready %ld\n", ready(fd, 0));
    store_wide(COMPARE, count() + 1000000);
    store(CONTROL, 0);
    printf("stopped: armed %lu, fired %lu\n", (u64)load(CONTROL), (u64)load(FIRED));

    SYSCALL(read, fd, &fired, 8);
    printf("since the last read: %lu\n", fired);
    i64 child = SYSCALL(clone, SIGCHLD, 0, 0, 0, 0);
    if (!child) {
        store_wide(COMPARE, count() + 2000000); /* the parent waits for what the child asked for */
        exit(0);
    }
    SYSCALL(wait4, child, NULL, 0, NULL);
    SYSCALL(read, fd, &fired, 8);
    printf("with the child's: %lu, in all %lu\n", fired, (u64)load(FIRED));
    printf("longer: %s, a copy of the area: %s\n", answer((i64)mremap((void *)base, PAGE, 2 * PAGE, 1, NULL)),
           answer((i64)mremap((void *)base, PAGE, PAGE, 5, NULL)));
    printf("write of registers: %s\n", answer(SYSCALL(write, 1, base + FIRED, 4)));
    base = mremap((void *)base, PAGE, PAGE, 3, (u8 *)base - 64 * PAGE);
    printf("elsewhere: fired %lu\n", (u64)load(FIRED));
    probe_setup();
    if (probe((void (*)(void))base, 0, &outcome)) printf("executed: %s\n", signal_name(outcome.signo));
    return 0;
}
