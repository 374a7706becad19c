// Control flow that leaves the beaten path: longjmp, signal handlers, an alternate stack, thread-local data.
#define _GNU_SOURCE
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static _Thread_local int counter = 41;
static _Thread_local char name[32];
static _Thread_local struct { long a, b[20]; } big = {7, {1, 2, 3}};

static jmp_buf outside;
static sigjmp_buf recovery;
static volatile sig_atomic_t seen;
static volatile uintptr_t inside_stack;
static char *wanted;

static void deep(int level) {
    if (!level)
        longjmp(outside, 99);
    deep(level - 1);
}

static void count(int number) {
    seen = seen * 10 + (number == SIGUSR1 ? 1 : 2);
    errno = EDOM;
    if (number == SIGUSR1)
        raise(SIGUSR2);
}

static void on_fault(int number, siginfo_t *info, void *context) {
    (void)context;
    int here;
    inside_stack = (uintptr_t)&here;
    printf("fault %d code %d at the address %d\n", number, info->si_code, (char *)info->si_addr == wanted);
    siglongjmp(recovery, 1);
}

static void repair(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    mprotect((void *)((uintptr_t)info->si_addr & ~(uintptr_t)4095), 4096, PROT_READ | PROT_WRITE);
    seen++;
}

static void at_end(void) { puts("at exit"); }

static void faults(void) {
    static char stack[65536];
    sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, 0);
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(SIGSEGV, &action, 0);
    sigaction(SIGBUS, &action, 0);
    char *page = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *targets[] = {page + 123, (char *)64};
    for (volatile int i = 0; i < 2; i++) {
        wanted = targets[i];
        if (!sigsetjmp(recovery, 1))
            *(volatile char *)wanted = 1;
        printf("on its stack %d\n", inside_stack >= (uintptr_t)stack && inside_stack < (uintptr_t)stack + sizeof stack);
    }
    action.sa_sigaction = repair;
    sigaction(SIGSEGV, &action, 0);
    seen = 0;
    *(volatile char *)(page + 5) = 77;
    printf("repaired %d after %d\n", page[5], (int)seen);
}

int main(void) {
    volatile int kept = 5;
    int value = setjmp(outside);
    if (!value) {
        kept = 6;
        deep(100);
    }
    printf("jumped %d %d\n", value, kept);

    strcpy(name, "thread");
    printf("tls %d %s %ld %ld\n", ++counter, name, big.a, big.b[2]);

    struct sigaction action = {.sa_handler = count};
    sigaction(SIGUSR1, &action, 0);
    sigaction(SIGUSR2, &action, 0);
    errno = 0;
    raise(SIGUSR1);
    printf("handled %d errno %d\n", (int)seen, errno == EDOM);

    sigset_t set, old;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, &old);
    seen = 0;
    kill(getpid(), SIGUSR2);
    sigpending(&set);
    printf("pending %d seen %d\n", sigismember(&set, SIGUSR2), (int)seen);
    sigprocmask(SIG_SETMASK, &old, 0);
    printf("seen %d\n", (int)seen);

    faults();
    int closed = close(77);
    printf("close %d %d\n", closed, errno == EBADF);
    atexit(at_end);
    fflush(stdout);
    signal(SIGSEGV, SIG_DFL);
    abort();
}
