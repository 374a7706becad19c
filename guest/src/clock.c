/* clock: the sources of time and chance, judged by what they promise: time does not go back, chance differs.
 * clock raw prints the values themselves, to compare two runs. */
#include "aether.h"

struct timespec {
    i64 seconds, nanoseconds;
};

static u64 nanoseconds(int clock) {
    struct timespec now;
    i64 result = SYSCALL(clock_gettime, clock, &now);
    if (IS_ERROR(result)) FAIL("clock_gettime: %s", answer(result));
    return (u64)now.seconds * 1000000000UL + (u64)now.nanoseconds;
}

/* counter(): the CPU's own time. hardware_random(): 1 and a number, or 0 where the CPU has none. */
#if defined(__x86_64__)
static u64 counter(void) {
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}
static int hardware_random(u64 *value) {
    u32 a = 1, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    if (!(c >> 30 & 1)) return 0;
    u8 good = 0;
    for (int tries = 0; !good && tries < 10; tries++)
        __asm__ volatile("rdrand %0\n setc %1" : "=r"(*value), "=q"(good) : : "cc");
    return good;
}
#else
static u64 counter(void) {
    u64 value;
    __asm__ volatile("isb\n mrs %0, cntvct_el0" : "=r"(value));
    return value;
}
static int hardware_random(u64 *value) {
    u64 flags;
    if (!(auxiliary_value(26 /* AT_HWCAP2 */) >> 16 & 1)) return 0;
    __asm__ volatile("mrs %0, s3_3_c2_c4_0\n mrs %1, nzcv" : "=r"(*value), "=r"(flags) : : "cc");
    return !(flags >> 30 & 1); /* Z: none was to be had */
}
#endif

static int broken;

static void holds(const char *claim, int truth) {
    printf("%-58s %s\n", claim, truth ? "yes" : "NO");
    broken |= !truth;
}

int main(int argc, char **argv) {
    u64 chance[2][2] = {{0}}, hardware[2] = {0};
    u64 ticks = counter(), steady = nanoseconds(1), started_with = 0;
    int has = hardware_random(&hardware[0]) && hardware_random(&hardware[1]);
    u64 bytes = auxiliary_value(25 /* AT_RANDOM: 16 bytes */);
    if (bytes) memcpy(&started_with, (const void *)bytes, 8);
    for (int i = 0; i < 2; i++)
        if (SYSCALL(getrandom, chance[i], sizeof chance[i], 0) != sizeof chance[i])
            FAIL("getrandom fell short");
    if (argc > 1 && streq(argv[1], "raw")) {
        printf("counter %lx\nmonotonic %lu\nrealtime %lu\n", ticks, steady, nanoseconds(0));
        printf("getrandom %016lx%016lx %016lx%016lx\n", chance[0][0], chance[0][1], chance[1][0],
               chance[1][1]);
        printf("hardware %016lx %016lx\nauxv %016lx\n", hardware[0], hardware[1], started_with);
        return 0;
    }
    int counter_goes_on = 1, steady_goes_on = 1;
    for (int i = 0; i < 1000; i++) {
        u64 next = counter();
        counter_goes_on &= next >= ticks;
        ticks = next;
        next = nanoseconds(1);
        steady_goes_on &= next >= steady;
        steady = next;
    }
    holds("the CPU's counter does not go back", counter_goes_on);
    holds("CLOCK_MONOTONIC does not go back", steady_goes_on);
    u64 before = counter(), start = steady;
    for (int tries = 0; tries < 1000000 && nanoseconds(1) - start < 1000000; tries++) {}
    holds("both have gone on after a millisecond", counter() > before && nanoseconds(1) - start >= 1000000);
    holds("two calls of getrandom differ", memcmp(chance[0], chance[1], sizeof chance[0]) != 0);
    holds("the kernel gave random bytes at the start", started_with != 0);
    holds("the CPU's own random numbers, if it has any, differ", !has || hardware[0] != hardware[1]);
    return broken;
}
