/* scale KIND THREADS OPERATIONS: how quickly the kernel serves threads that all want the same of it. Each thread
 * stays on a CPU of its own and does OPERATIONS of
 *   own         a first write to a page, in memory of its own
 *   shared      likewise, in one area of all: neighbouring pages belong to different threads
 *   disjoint    mmap, a write, munmap of a page, each thread below a leaf table of its own
 *   neighbours  likewise, but all below the same leaf table
 *   fork        a child that ends at once, and the wait for it
 * Prints the operations, and the ns from the moment when all threads are ready to the end of the last. */
#include "aether.h"

#if defined(__x86_64__)
enum { SYS_sched_setaffinity = 203 };
#else
enum { SYS_sched_setaffinity = 122 };
#endif
enum { MOST = 64, STACK = 16384, FUTEX_WAIT = 0, FUTEX_WAKE = 1, ALL = 1 << 30 };
/* CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM */
enum { THREAD = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 };

i64 spawn(u64 flags, void *stack, i32 *parent_tid, i32 *child_tid, int (*entry)(void *), void *argument);

static u8 stacks[MOST][STACK] __attribute__((aligned(16)));
static u64 threads, operations, span;
static u8 *memory; /* of all kinds but fork; at the start of a leaf table */
static void (*work)(u64 thread);
static i32 ready, go, left;

static void check(i64 result, const char *what) {
    if (IS_ERROR(result)) FAIL("%s: %s", what, answer(result));
}

static void *map(void *address, u64 length, int flags) {
    void *found = mmap(address, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    check((i64)found, "mmap");
    return found;
}

static void own(u64 thread) {
    for (u64 i = 0; i < operations; i++) *(volatile u64 *)(memory + thread * span + i * PAGE) = i;
}

static void shared(u64 thread) {
    for (u64 i = 0; i < operations; i++) *(volatile u64 *)(memory + (i * threads + thread) * PAGE) = i;
}

static void map_touch_unmap(u8 *page) {
    for (u64 i = 0; i < operations; i++) {
        map(page, PAGE, MAP_FIXED);
        *(volatile u64 *)page = i;
        check(munmap(page, PAGE), "munmap");
    }
}

static void disjoint(u64 thread) { map_touch_unmap(memory + thread * span); }
static void neighbours(u64 thread) { map_touch_unmap(memory + 2 * thread * PAGE); }

static void forks(u64 thread) {
    (void)thread;
    for (u64 i = 0; i < operations; i++) {
        i64 child = SYSCALL(clone, SIGCHLD, 0, 0, 0, 0);
        if (!child)
            for (;;) SYSCALL(exit_group, 0);
        check(child, "fork");
        check(SYSCALL(wait4, child, 0, 0, 0), "wait4");
    }
}

static int thread_main(void *given) {
    u64 thread = (u64)given, mask = 1ul << thread;
    check(SYSCALL(sched_setaffinity, 0, sizeof mask, &mask), "sched_setaffinity");
    __atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
    SYSCALL(futex, &ready, FUTEX_WAKE, 1, 0);
    while (!__atomic_load_n(&go, __ATOMIC_SEQ_CST)) SYSCALL(futex, &go, FUTEX_WAIT, 0, 0);
    work(thread);
    if (!__atomic_sub_fetch(&left, 1, __ATOMIC_SEQ_CST)) SYSCALL(futex, &left, FUTEX_WAKE, 1, 0);
    for (;;) SYSCALL(exit, 0);
}

static void wait_until(i32 *word, i32 value) {
    for (i32 now; (now = __atomic_load_n(word, __ATOMIC_SEQ_CST)) != value;)
        SYSCALL(futex, word, FUTEX_WAIT, now, 0);
}

static u64 now(void) {
    i64 time[2];
    check(SYSCALL(clock_gettime, 1, time), "clock_gettime");
    return (u64)time[0] * 1000000000 + (u64)time[1];
}

/* What the kind works on, and the kind. */
static void prepare(const char *kind) {
    span = PAGE / 8 * PAGE;
    u64 length = 0;
    if (streq(kind, "own")) work = own, length = threads * span;
    else if (streq(kind, "shared")) work = shared, length = threads * operations * PAGE;
    else if (streq(kind, "disjoint")) work = disjoint, length = threads * span;
    else if (streq(kind, "neighbours")) work = neighbours, length = span;
    else if (streq(kind, "fork")) work = forks;
    else FAIL("no kind %s", kind);
    if (work == own && operations > span / PAGE) FAIL("at most %lu operations", span / PAGE);
    if (!length) return;
    u8 *found = map(NULL, length + span, 0);
    memory = (u8 *)(((u64)found + span - 1) / span * span);
    if (work == own || work == shared) {
        if (work == own) /* an area each: the last page of each span is not in it */
            for (u64 i = 0; i < threads; i++) check(munmap(memory + (i + 1) * span - PAGE, PAGE), "munmap");
        return;
    }
    check(munmap(found, length + span), "munmap");
    for (u64 i = 0; i < threads; i++) { /* neighbours keep the tables */
        u8 *beside = work == disjoint ? memory + i * span + 4 * PAGE : memory + span - PAGE;
        *(volatile u64 *)map(beside, PAGE, MAP_FIXED) = 1;
    }
}

int main(int argc, char **argv) {
    if (argc != 4) FAIL("usage: scale KIND THREADS OPERATIONS");
    threads = number(argv[2]), operations = number(argv[3]);
    if (threads < 1 || threads > MOST) FAIL("1 to %d threads", MOST);
    prepare(argv[1]);
    left = (i32)threads;
    for (u64 i = 0; i < threads; i++)
        check(spawn(THREAD, stacks[i] + STACK, 0, 0, thread_main, (void *)i), "clone");
    wait_until(&ready, (i32)threads);
    u64 begin = now();
    __atomic_store_n(&go, 1, __ATOMIC_SEQ_CST);
    SYSCALL(futex, &go, FUTEX_WAKE, ALL, 0);
    wait_until(&left, 0);
    printf("%lu operations in %lu ns\n", threads * operations, now() - begin);
    return 0;
}
