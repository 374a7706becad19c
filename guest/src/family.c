/* Processes and threads: what a fork shares and what it copies, what a parent hears of its children, and what
 * becomes of those that nobody waits for. */
#include "aether.h"

enum {
    CLONE_VM = 0x100, CLONE_FS = 0x200, CLONE_FILES = 0x400, CLONE_SIGHAND = 0x800, CLONE_VFORK = 0x4000,
    CLONE_THREAD = 0x10000, CLONE_SYSVSEM = 0x40000, CLONE_PARENT_SETTID = 0x100000,
    CLONE_CHILD_CLEARTID = 0x200000,
};
enum { WNOHANG = 1, WUNTRACED = 2, WEXITED = 4, WCONTINUED = 8, WNOWAIT = 0x1000000, P_PID = 1 };
enum { SIGCONT = 18, FUTEX_WAIT = 0, ECHILD = 10 };
#define THREAD                                                                                               \
    (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_PARENT_SETTID |    \
     CLONE_CHILD_CLEARTID)

/* A task with these clone flags that runs entry(argument) on its own stack and then exits with its result. The
 * numbers go to parent_tid and child_tid, as far as the flags ask for them. */
i64 spawn(u64 flags, void *stack, i32 *parent_tid, i32 *child_tid, int (*entry)(void *), void *argument);

static u8 stacks[4][16384] __attribute__((aligned(16)));

static i64 fork(void) { return SYSCALL(clone, SIGCHLD, 0, 0, 0, 0); }

static void end(int status) {
    for (;;) SYSCALL(exit, status);
}

static i32 wait_for(i64 pid, int options) {
    i32 status = -1;
    i64 found = SYSCALL(wait4, pid, &status, options, 0);
    return found == pid ? status : (i32)found;
}

static void a_copy_for_each(void) {
    u8 *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u8 *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    page[0] = shared[0] = 1;
    i64 child = fork();
    if (!child) {
        int seen = page[0];
        page[0] = shared[0] = 2;
        end(seen * 10 + page[0]);
    }
    i32 status = wait_for(child, 0);
    printf("fork: the child saw %d and wrote %d, here is %d; in shared memory %d\n", status >> 8 & 0xff, 2, page[0],
           shared[0]);
    child = fork();
    if (!child) {
        SYSCALL(nanosleep, ((i64[]){0, 1000000}), 0);
        end(page[0]); /* the parent has written meanwhile */
    }
    page[0] = 3;
    printf("fork: the parent wrote 3, the child has %d\n", wait_for(child, 0) >> 8);
}

static void bytes_through_a_pipe(void) {
    int ends[2];
    static u8 buffer[5000];
    SYSCALL(pipe2, ends, 0);
    i64 child = fork();
    if (!child) {
        SYSCALL(close, ends[0]);
        for (int i = 0; i < 40; i++) {
            memset(buffer, i, sizeof buffer);
            SYSCALL(write, ends[1], buffer, sizeof buffer);
        }
        end(0);
    }
    SYSCALL(close, ends[1]);
    u64 total = 0, sum = 0;
    for (i64 got; (got = SYSCALL(read, ends[0], buffer, sizeof buffer)) > 0; total += (u64)got)
        for (i64 i = 0; i < got; i++) sum += buffer[i];
    SYSCALL(close, ends[0]);
    printf("pipe: %lu bytes with the sum %lu, then the end; status %x\n", total, sum, wait_for(child, 0));
}

static void ends(void) {
    i64 child = fork();
    if (!child) end(300);
    printf("end: exit(300) is %x\n", wait_for(child, 0));
    child = fork();
    if (!child) *(volatile u8 *)0 = 1;
    printf("end: a wild store is %x\n", wait_for(child, 0) & 0x7f);
    child = fork();
    if (!child)
        for (;;) SYSCALL(ppoll, 0, 0, 0, 0, 8);
    SYSCALL(kill, child, SIGKILL);
    printf("end: kill is %x, and then %ld\n", wait_for(child, 0), (long)SYSCALL(wait4, child, 0, 0, 0));
    child = fork();
    if (!child) end(5);
    i32 info[32];
    for (int i = 0; i < 2; i++) {
        memset(info, 0, sizeof info);
        i64 result = SYSCALL(waitid, P_PID, child, info, WEXITED | WNOWAIT, 0);
        printf("waitid: %ld, signal %d, code %d, the child %d, status %d\n", (long)result, info[0], info[2],
               info[4] == (i32)child, info[6]);
    }
    printf("waitid: and after it was waited for %x, %ld\n", wait_for(child, 0),
           (long)SYSCALL(waitid, P_PID, child, info, WEXITED, 0));
}

static void stops(void) {
    i64 child = fork();
    if (!child) {
        SYSCALL(kill, SYSCALL(getpid), SIGSTOP);
        end(4);
    }
    printf("stop: %x", wait_for(child, WUNTRACED));
    printf(", told once: %ld", (long)SYSCALL(wait4, child, 0, WUNTRACED | WNOHANG, 0));
    SYSCALL(kill, child, SIGCONT);
    printf(", goes on: %x", wait_for(child, WCONTINUED));
    printf(", ends: %x\n", wait_for(child, 0));
}

static volatile int children_ended;
static void on_child(int signo) {
    (void)signo;
    children_ended++;
}

static void hears_of_its_children(void) {
    u64 action[4] = {(u64)on_child, SA_RESTORER, (u64)SIGRETURN, 0};
    SYSCALL(rt_sigaction, SIGCHLD, action, 0, 8);
    i64 child = fork();
    if (!child) end(0);
    i32 status = -1;
    while (SYSCALL(wait4, child, &status, 0, 0) == -EINTR) {}
    printf("SIGCHLD: %d, status %d\n", children_ended, status);
    action[0] = (u64)SIG_IGN;
    SYSCALL(rt_sigaction, SIGCHLD, action, 0, 8);
    child = fork();
    if (!child) end(0);
    printf("SIGCHLD ignored: no zombie, %ld\n", (long)SYSCALL(wait4, child, 0, 0, 0));
    action[0] = (u64)SIG_DFL;
    SYSCALL(rt_sigaction, SIGCHLD, action, 0, 8);
}

static void orphan(void) {
    int ends[2];
    SYSCALL(pipe2, ends, 0);
    i64 child = fork();
    if (!child) {
        i64 parent = SYSCALL(getpid);
        if (!fork()) {
            while (SYSCALL(getppid) == parent) SYSCALL(nanosleep, ((i64[]){0, 1000000}), 0);
            SYSCALL(write, ends[1], "x", 1);
            end(0);
        }
        end(0);
    }
    wait_for(child, 0);
    char byte = 0;
    SYSCALL(read, ends[0], &byte, 1);
    SYSCALL(close, ends[0]), SYSCALL(close, ends[1]);
    printf("orphan: has another parent (%c), which is not here: %ld\n", byte, (long)SYSCALL(wait4, -1, 0, 0, 0));
}

static volatile int common;
static const char *self;
static int runs_itself(void *word) {
    common = 1; /* the memory is the parent's until there is another program */
    const char *arguments[] = {self, "executed", word, NULL}, *none[] = {NULL};
    i64 refused = SYSCALL(execve, "/no/such/program", arguments, none);
    common = (int)-refused;
    SYSCALL(execve, self, arguments, none);
    return 1;
}

static void executes(void) {
    i64 child = spawn(CLONE_VM | CLONE_VFORK | SIGCHLD, stacks[0] + sizeof stacks[0], 0, 0, runs_itself, "word");
    printf("vfork: the parent went on when %d was there, status %x\n", common, wait_for(child, 0));
}

static volatile int counted[3];
static int numbers[3];
static int counts(void *number) {
    for (int i = 0; i < 1000; i++) counted[(u64)number]++;
    numbers[(u64)number] = SYSCALL(gettid) != SYSCALL(getpid);
    return 0;
}

static void threads(void) {
    i32 running[3];
    for (u64 i = 0; i < 3; i++) {
        running[i] = 1;
        if (spawn(THREAD, stacks[i] + sizeof stacks[i], &running[i], &running[i], counts, (void *)i) < 0)
            printf("thread %lu did not start\n", i);
    }
    for (int i = 0; i < 3; i++)
        for (i32 tid; (tid = __atomic_load_n(&running[i], __ATOMIC_SEQ_CST));)
            SYSCALL(futex, &running[i], FUTEX_WAIT, tid, 0);
    printf("threads: %d by three with numbers of their own: %d %d %d\n", counted[0] + counted[1] + counted[2], numbers[0], numbers[1],
           numbers[2]);
}

int main(int argc, char **argv) {
    self = "/proc/self/exe";
    if (argc == 3 && streq(argv[1], "executed")) {
        printf("execve: another program, told \"%s\"\n", argv[2]);
        return 9;
    }
    a_copy_for_each();
    bytes_through_a_pipe();
    ends();
    stops();
    hears_of_its_children();
    orphan();
    executes();
    threads();
    return 0;
}
