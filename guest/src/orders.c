/* Two threads of a few steps each, whose end depends on the order of the steps, or must not: what trying all orders
 * is shown on. Exits 1 where an update was lost or a message was read before it was there. `polite` and `await` may
 * never end. */
#include "aether.h"

enum {
    CLONE_VM = 0x100, CLONE_FS = 0x200, CLONE_FILES = 0x400, CLONE_SIGHAND = 0x800, CLONE_THREAD = 0x10000,
    CLONE_SYSVSEM = 0x40000, CLONE_PARENT_SETTID = 0x100000, CLONE_CHILD_CLEARTID = 0x200000,
};
enum { FUTEX_WAIT = 0 };
#if defined(__x86_64__)
enum { SYS_sched_yield = 24 };
#else
enum { SYS_sched_yield = 124 };
#endif
#define THREAD                                                                                               \
    (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_PARENT_SETTID |    \
     CLONE_CHILD_CLEARTID)

i64 spawn(u64 flags, void *stack, i32 *parent_tid, i32 *child_tid, int (*entry)(void *), void *argument);

static u8 stack[16384] __attribute__((aligned(16)));
static volatile u64 counter, data, ready, seen, wants[2], turn;
static u64 rounds = 1;

static void increment(void) {
    u64 now = counter;
    __asm__ volatile("" : "+r"(now)); /* a load, an addition and a store on every ISA */
    counter = now + 1;
}

static int loses(void *me) {
    (void)me;
    for (u64 left = rounds; left; left--) increment();
    return 0;
}

/* Peterson's lock. The broken one says that it wants to enter only when it has given way. */
static int locks(void *me) {
    u64 mine = (u64)me, other = 1 - mine;
    wants[mine] = 1;
    turn = other;
    while (wants[other] && turn == other) {}
    increment();
    wants[mine] = 0;
    return 0;
}

static int breaks(void *me) {
    u64 mine = (u64)me, other = 1 - mine;
    turn = other;
    wants[mine] = 1;
    while (wants[other] && turn == other) {}
    increment();
    wants[mine] = 0;
    return 0;
}

__attribute__((noinline)) static void want(u64 mine) { wants[mine] = 1; }

/* Who finds that the other one wants to enter lets it run before giving way itself: two that do so in step never
 * end. */
static int yields(void *me) {
    u64 mine = (u64)me, other = 1 - mine;
    want(mine);
    while (wants[other]) {
        SYSCALL(sched_yield);
        wants[mine] = 0;
        want(mine);
    }
    increment();
    wants[mine] = 0;
    return 0;
}

static int passes(void *me) {
    if (me) {
        data = 42;
        ready = 1;
    } else {
        seen = 1;
        if (ready) seen = data;
    }
    return 0;
}

static void both(int (*entry)(void *)) {
    i32 running = 1;
    if (spawn(THREAD, stack + sizeof stack, &running, &running, entry, (void *)1) < 0) FAIL("no thread");
    entry(NULL);
    for (i32 tid; (tid = __atomic_load_n(&running, __ATOMIC_SEQ_CST));)
        SYSCALL(futex, &running, FUTEX_WAIT, tid, 0);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "lost";
    if (argc > 2) rounds = (u64)(argv[2][0] - '0');
    if (streq(what, "message")) {
        both(passes);
        printf(seen == 1 ? "no message yet\n" : "the message is %lu\n", seen);
        return seen != 1 && seen != 42;
    }
    int lock = streq(what, "peterson"), broken = streq(what, "broken"), polite = streq(what, "polite");
    both(lock ? locks : broken ? breaks : polite ? yields : loses);
    u64 wanted = lock || broken || polite ? 2 : 2 * rounds;
    if (streq(what, "await"))
        while (counter != wanted) {}
    printf("%lu of %lu\n", counter, wanted);
    return counter != wanted;
}
