/* Several CPUs: threads spread over them, stay where they are told to, and see each other's stores and code. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 8, ROUNDS = 4000 };

static long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000 + time.tv_nsec;
}

/* ---- spread */

static atomic_int atomically;
static int guarded, used[64];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic long latest;
static atomic_int backwards;

static void *work(void *nothing) {
    for (int i = 0; i < ROUNDS; i++) {
        atomically++;
        if (i % 100) continue;
        pthread_mutex_lock(&lock);
        guarded++, used[sched_getcpu()]++;
        pthread_mutex_unlock(&lock);
        long before = latest, here = now();
        if (here < before) backwards++;
        latest = here;
    }
    return nothing;
}

static void spread(void) {
    pthread_t threads[THREADS];
    int cpus = 0;
    long begin = now();
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], 0, work, 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], 0);
    for (int i = 0; i < 64; i++) cpus += used[i] > 0;
    printf("%ld CPUs, used %d, atomically %d, guarded %d, back in time %d\n", sysconf(_SC_NPROCESSORS_ONLN), cpus,
           atomically, guarded, backwards);
    fprintf(stderr, "%ld\n", now() - begin);
}

/* ---- pin */

static void pin(void) {
    int there = sysconf(_SC_NPROCESSORS_ONLN), right = 0;
    cpu_set_t all;
    sched_getaffinity(0, sizeof all, &all);
    for (int i = 0; i < there; i++) {
        cpu_set_t set;
        CPU_ZERO(&set), CPU_SET(i, &set);
        sched_setaffinity(0, sizeof set, &set);
        right += sched_getcpu() == i;
        int status;
        if (!fork()) {
            CPU_ZERO(&set);
            sched_getaffinity(0, sizeof set, &set);
            _exit(sched_getcpu() == i && CPU_COUNT(&set) == 1);
        }
        wait(&status);
        right += WEXITSTATUS(status);
    }
    sched_setaffinity(0, sizeof all, &all);
    printf("pinned: %d\n", right == 2 * there);
}

/* ---- code */

static unsigned char *code;
static atomic_int asked, answered;

static void put(int value) {
#if defined(__x86_64__)
    unsigned char text[] = {0xb8, value, 0, 0, 0, 0xc3};
    memcpy(code, text, sizeof text);
#else
    unsigned text[] = {0x52800000u | (unsigned)value << 5, 0xd65f03c0u};
    memcpy(code, text, sizeof text);
    __builtin___clear_cache((char *)code, (char *)code + sizeof text);
#endif
}

static void *runner(void *stale) {
    for (int i = 0; i < 50; i++) {
        while (asked <= i) sched_yield();
#if defined(__aarch64__)
        __asm__ volatile("isb" ::: "memory");
#endif
        *(int *)stale += ((int (*)(void))code)() != i + 1;
        answered = i + 1;
    }
    return 0;
}

static void change_code(void) {
    pthread_t thread;
    int stale = 0;
    code = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_create(&thread, 0, runner, &stale);
    for (int i = 0; i < 50; i++) {
        put(i + 1);
        asked = i + 1;
        while (answered <= i) sched_yield();
    }
    pthread_join(thread, 0);
    printf("stale code: %d\n", stale);
}

/* ---- unmap: a thread reads a page that another takes away, and gets either what was there or SIGSEGV */

static char *volatile page;
static atomic_int stop_reading;

static void *reader(void *seen) {
    while (!stop_reading) {
        char value = *page;
        if (value != 1 && value != 2) ++*(int *)seen;
    }
    return 0;
}

static void remap(void) {
    pthread_t thread;
    int wrong = 0;
    page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *page = 1;
    pthread_create(&thread, 0, reader, &wrong);
    for (int i = 0; i < 100; i++) {
        char *next = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        *next = 1 + i % 2;
        mremap(next, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)page);
        memset(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 9, 4096);
        if (*page != 1 + i % 2) wrong++;
    }
    stop_reading = 1;
    pthread_join(thread, 0);
    printf("what was unmapped was seen: %d\n", wrong);
}

int main(void) {
    spread();
    pin();
    change_code();
    remap();
    return 0;
}
