/* One thread takes pages away while others use them: what they still do after it has come back is wrong. */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 8, PAGES = 4, SIZE = 4096 * 16, END = 1 << 30 };

static atomic_int at, taking, taken;  // the round that is on, and how far the taking of its pages has come
static atomic_int met[MOST], late, meanwhile, stray, torn;
static char *base;
static __thread sigjmp_buf back;

static void refused(int number) {
    (void)number;
    siglongjmp(back, 1);
}

static char *place(int round) { return base + (long)round * PAGES * SIZE; }

/* Stores to the last page of the round's, as long as they go through. */
static void *use(void *given) {
    int me = (int)(long)given;
    while (!at) sched_yield();
    for (;;) {
        volatile int round = at;
        if (round == END) return 0;
        if (!sigsetjmp(back, 0)) {
            volatile long *page = (volatile long *)(place(round) + (PAGES - 1) * SIZE);
            for (;;) {
                int before = taken, begun = taking;
                page[me] = round;
                if (round % 4 == 3) {}  // these pages stay
                else if (before >= round) late++;
                else if (begun >= round) meanwhile++;
                met[me] = round;
                if (at != round) break;
            }
        }
        met[me] = round;
        while (at == round) sched_yield();
    }
}

static void wait_for(int threads, int round) {
    for (int i = 0; i < threads; i++)
        while (met[i] < round) sched_yield();
    for (volatile int i = 0; i < 50; i++) {}
}

/* Memory that was given back belongs to somebody else now. */
static void new_owner(long *page) {
    for (int i = 0; i < PAGES; i++) page[i * SIZE / 8 + 100] = 1;
    for (volatile int i = 0; i < 300; i++) {}
    for (int i = 0; i < PAGES * MOST; i++) stray += page[i / MOST * (SIZE / 8) + i % MOST] != 0;
}

static void snapshot(int round) {
    pid_t child = fork();
    if (child) {
        taken = round;
        int status;
        waitpid(child, &status, 0);
        torn += status != 0;
        return;
    }
    long first[MOST], *page = (long *)(place(round) + (PAGES - 1) * SIZE);
    memcpy(first, page, sizeof first);
    for (volatile int i = 0; i < 300; i++) {}
    _exit(memcmp(first, page, sizeof first) != 0);
}

static void take(int round) {
    char *here = place(round);
    long *fresh = mmap(0, PAGES * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    taking = round;
    switch (round % 4) {
    case 0:
        mprotect(here, PAGES * SIZE, PROT_READ);
        taken = round;
        break;
    case 1:
        munmap(here, PAGES * SIZE);
        taken = round;
        new_owner(fresh);
        break;
    case 2:
        madvise(here, PAGES * SIZE, MADV_DONTNEED);
        new_owner(fresh);
        mprotect(here, PAGES * SIZE, PROT_NONE);
        taken = round;
        break;
    default:
        taking = 0;
        snapshot(round);
        munmap(here, PAGES * SIZE);
    }
}

int main(int count, char **arguments) {
    int rounds = count > 1 ? atoi(arguments[1]) : 12, threads = sysconf(_SC_NPROCESSORS_ONLN) - 1;
    pthread_t users[MOST];
    struct sigaction action = {.sa_handler = refused, .sa_flags = SA_NODEFER};
    sigaction(SIGSEGV, &action, 0);
    if (threads > MOST) threads = MOST;
    base = mmap(0, (rounds + 1L) * PAGES * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (long i = 0; i < threads; i++) pthread_create(&users[i], 0, use, (void *)i);
    for (int round = 1; round <= rounds; round++) {
        for (int i = 0; i < PAGES; i++) place(round)[i * SIZE] = 0;
        at = round;
        wait_for(threads, round);
        take(round);
    }
    at = END;
    for (int i = 0; i < threads; i++) pthread_join(users[i], 0);
    printf("late %d, stray %d, torn %d\n", late, stray, torn);
    fprintf(stderr, "meanwhile %d\n", meanwhile);
    return late || stray || torn;
}
