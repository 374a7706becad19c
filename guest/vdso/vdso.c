/* The vDSO: what a program may ask of the kernel without a system call. Names, versions and answers are those
 * of Linux.
 *
 * Time is the counter of the CPU, scaled as the page of time data says, which the kernel shows VVAR bytes
 * below this image. The kernel's own clocks are the same counter, so that a system call never answers less
 * than a call here before it. The counter is read without a fence: on this machine the read itself waits for
 * what came before. All other clocks, and the coarse ones, are left to the kernel. */
typedef unsigned int u32;
typedef unsigned long u64;
typedef long i64;

struct time_data {
    u64 multiplier, shift; /* ns since the start = counter * multiplier >> shift */
    u64 epoch;             /* seconds from 1970 to the start */
    u64 resolution;        /* ns */
};
struct timespec {
    i64 seconds, nanoseconds;
};
struct timeval {
    i64 seconds, microseconds;
};
struct timezone {
    int minutes_west, dst_time;
};

enum { REALTIME = 0, MONOTONIC = 1, MONOTONIC_RAW = 4, BOOTTIME = 7, TAI = 11 };
enum { SECOND = 1000000000 };
#define OF_EPOCH (1u << REALTIME | 1u << TAI)
#define OF_START (1u << MONOTONIC | 1u << MONOTONIC_RAW | 1u << BOOTTIME)

extern const char image[] __attribute__((visibility("hidden")));
#define TIME ((const volatile struct time_data *)(image - VVAR))

#if defined(__x86_64__)
#define NAME(name) __vdso_##name
#define WEAK(name) extern __typeof__(__vdso_##name) name __attribute__((weak, alias("__vdso_" #name)))
enum { SYS_gettimeofday = 96, SYS_clock_gettime = 228, SYS_clock_getres = 229 };
static inline u64 counter(void) {
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}
static inline int ask_kernel(u64 number, u64 first, volatile void *second) {
    i64 result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(first), "S"(second)
                     : "rcx", "r11", "memory");
    return (int)result;
}
#elif defined(__aarch64__)
#define NAME(name) __kernel_##name
#define WEAK(name) _Static_assert(1, "arm64 has no second names")
enum { SYS_clock_gettime = 113, SYS_clock_getres = 114 };
static inline u64 counter(void) {
    u64 value;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(value));
    return value;
}
static inline int ask_kernel(u64 number, u64 first, volatile void *second) {
    register u64 x8 __asm__("x8") = number;
    register u64 x0 __asm__("x0") = first;
    register volatile void *x1 __asm__("x1") = second;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1) : "memory");
    return (int)x0;
}
#endif

static inline u64 since_start(void) { return counter() * TIME->multiplier >> TIME->shift; }

/* A bad pointer faults at its first word, as in Linux: hence the order of the stores, and volatile. */
int NAME(clock_gettime)(int clock, volatile struct timespec *result) {
    u32 asked = (u32)clock < 32 ? 1u << clock : 0;
    if (!(asked & (OF_EPOCH | OF_START))) return ask_kernel(SYS_clock_gettime, (u64)(i64)clock, result);
    u64 now = since_start(), seconds = now / SECOND;
    result->seconds = (i64)(asked & OF_EPOCH ? seconds + TIME->epoch : seconds);
    result->nanoseconds = (i64)(now - seconds * SECOND);
    return 0;
}
WEAK(clock_gettime);

int NAME(gettimeofday)(volatile struct timeval *result, struct timezone *zone) {
    if (result) {
        u64 now = since_start(), seconds = now / SECOND;
        result->seconds = (i64)(seconds + TIME->epoch);
        result->microseconds = (i64)((now - seconds * SECOND) / 1000);
    }
    if (zone) zone->minutes_west = zone->dst_time = 0;
    return 0;
}
WEAK(gettimeofday);

int NAME(clock_getres)(int clock, volatile struct timespec *result) {
    u32 asked = (u32)clock < 32 ? 1u << clock : 0;
    if (!(asked & (OF_EPOCH | OF_START))) return ask_kernel(SYS_clock_getres, (u64)(i64)clock, result);
    if (result) {
        result->seconds = 0;
        result->nanoseconds = (i64)TIME->resolution;
    }
    return 0;
}
WEAK(clock_getres);

#if defined(__x86_64__)
i64 NAME(time)(i64 *result) {
    i64 seconds = (i64)(since_start() / SECOND + TIME->epoch);
    if (result) *result = seconds;
    return seconds;
}
WEAK(time);

/* The limit of a descriptor that nobody else uses: the CPU's number, and its node above it. */
int NAME(getcpu)(u32 *cpu, u32 *node, void *unused) {
    (void)unused;
    u32 both;
    __asm__("lsl %1, %0" : "=r"(both) : "r"(0x7b));
    if (cpu) *cpu = both & 0xfff;
    if (node) *node = both >> 12;
    return 0;
}
WEAK(getcpu);
#else
/* Where signal handlers return to. Unwinders know the frame above by these two instructions; they look one
 * byte before the return address, hence the nop. There is no unwind table for it, as in Linux since 5.8: they
 * would believe that before what they know. */
__asm__(".text\n.p2align 2\n nop\n"
        ".globl __kernel_rt_sigreturn\n.type __kernel_rt_sigreturn, %function\n"
        "__kernel_rt_sigreturn:\n mov x8, #139\n svc #0\n"
        ".size __kernel_rt_sigreturn, . - __kernel_rt_sigreturn\n");
#endif
