/* Threads sleep while the first one changes the pages that they have used; each then sees what is there. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 3, PAGES = 4 };

static pthread_barrier_t changed, seen;
static size_t size;
static char *pages;
static int expected, storable, over;
static atomic_int wrong;
static _Thread_local sigjmp_buf back;

static void refused(int number) { siglongjmp(back, number); }

/* Each page begins with `expected`; whether it can be stored to is as `storable` says. */
static void look(int me) {
    for (int i = 0; i < PAGES; i++) {
        volatile char *page = pages + i * size;
        volatile int stored = 0;
        wrong += page[0] != expected;
        if (!sigsetjmp(back, 1)) page[1 + me] = (char)me, stored = 1;
        wrong += stored != storable;
    }
}

static void *sleeps(void *number) {
    for (;;) {
        pthread_barrier_wait(&changed);
        if (over) return 0;
        look((int)(long)number);
        pthread_barrier_wait(&seen);
    }
}

static void let_look(const char *what, int value, int may_store) {
    expected = value, storable = may_store;
    pthread_barrier_wait(&changed);
    look(THREADS);
    pthread_barrier_wait(&seen);
    printf("%s: %d wrong\n", what, wrong);
    fflush(stdout);
}

static void fill(int value) {
    for (int i = 0; i < PAGES; i++) pages[i * size] = (char)value;
}

int main(void) {
    pthread_t threads[THREADS];
    int both = PROT_READ | PROT_WRITE, kind = MAP_PRIVATE | MAP_ANONYMOUS, status;
    size = (size_t)sysconf(_SC_PAGESIZE);
    pages = mmap(0, PAGES * size, both, kind, -1, 0);
    signal(SIGSEGV, refused);
    pthread_barrier_init(&changed, 0, THREADS + 1), pthread_barrier_init(&seen, 0, THREADS + 1);
    for (long i = 0; i < THREADS; i++) pthread_create(&threads[i], 0, sleeps, (void *)i);

    fill(1), let_look("filled", 1, 1);
    mprotect(pages, PAGES * size, PROT_READ), let_look("protected", 1, 0);
    mprotect(pages, PAGES * size, both), let_look("writable again", 1, 1);
    madvise(pages, PAGES * size, MADV_DONTNEED), let_look("discarded", 0, 1);
    munmap(pages, PAGES * size), mmap(pages, PAGES * size, both, kind | MAP_FIXED, -1, 0);
    fill(2), let_look("mapped anew", 2, 1);
    pid_t child = fork();
    if (child == 0) {
        fill(3);
        _exit(pages[0]);
    }
    fill(4), let_look("copied on write", 4, 1);
    waitpid(child, &status, 0);
    printf("the child had %d\n", WEXITSTATUS(status));

    over = 1, pthread_barrier_wait(&changed);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], 0);
    return 0;
}
