/* POSIX threads: mutexes, condition variables, barriers, thread-local storage, cancellation; and `race N`, which
 * counts without a lock and loses what it loses. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#define COUNT 6
#define ROUNDS 200

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static __thread long own;
static long total, made, taken, queue[4], phase[COUNT], destroyed, initialised;
static volatile long plain;

static void start(pthread_t *threads, void *(*work)(void *)) {
    for (long i = 0; i < COUNT; i++) pthread_create(&threads[i], NULL, work, (void *)i);
}
static long join(pthread_t *threads) {
    long sum = 0;
    for (int i = 0; i < COUNT; i++) {
        void *result;
        pthread_join(threads[i], &result), sum += (long)result;
    }
    return sum;
}

static void *counts(void *number) {
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&lock), total++, pthread_mutex_unlock(&lock);
        own += (long)number;
    }
    return (void *)own;
}

/* A queue of four places: half of the threads make, the others take. */
static void *trades(void *number) {
    long sum = 0;
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&lock);
        if ((long)number % 2) {
            while (made - taken == 4) pthread_cond_wait(&changed, &lock);
            queue[made++ % 4] = i;
        } else {
            while (made == taken) pthread_cond_wait(&changed, &lock);
            sum += queue[taken++ % 4];
        }
        pthread_cond_broadcast(&changed), pthread_mutex_unlock(&lock);
    }
    return (void *)sum;
}

/* Nobody is a phase ahead of another. */
static void *meets(void *number) {
    long wrong = 0, serial = 0;
    for (int i = 1; i <= 20; i++) {
        phase[(long)number] = i;
        serial += pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD;
        for (int other = 0; other < COUNT; other++) wrong += phase[other] != i;
        pthread_barrier_wait(&barrier);
    }
    return (void *)(1000 * wrong + serial);
}

static void destroys(void *value) { __atomic_add_fetch(&destroyed, (long)value, __ATOMIC_SEQ_CST); }
static void initialises(void) { initialised++, pthread_key_create(&key, destroys); }
static void *keeps(void *number) {
    pthread_once(&once, initialises), pthread_setspecific(key, (void *)((long)number + 1));
    own = (long)number, sched_yield();
    return (void *)(long)(own == (long)number && pthread_getspecific(key) == (void *)((long)number + 1));
}

static void leaves(void *argument) { *(long *)argument += 1, pthread_mutex_unlock(&lock); }
static void *sleeps(void *argument) {
    pthread_mutex_lock(&lock);
    pthread_cleanup_push(leaves, argument);
    for (;;) pthread_cond_wait(&changed, &lock); /* cancelled here, with the lock */
    pthread_cleanup_pop(1);
}
static void *reads(void *argument) {
    char byte;
    read(*(int *)argument, &byte, 1);
    return NULL;
}

static void *races(void *rounds) {
    for (long i = 0; i < (long)rounds; i++) {
        long now = plain;
        __asm__ volatile("" : "+r"(now)); /* three instructions on every ISA */
        plain = now + 1;
    }
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[COUNT];
    if (argc > 2 && !strcmp(argv[1], "race")) {
        long rounds = atol(argv[2]);
        pthread_create(&threads[0], NULL, races, (void *)rounds), pthread_create(&threads[1], NULL, races, (void *)rounds);
        pthread_join(threads[0], NULL), pthread_join(threads[1], NULL);
        printf("%ld of %ld\n", plain, 2 * rounds);
        return 0;
    }
    start(threads, counts);
    printf("mutex: %ld", join(threads)), printf(", %ld\n", total);
    start(threads, trades);
    printf("condition: %ld", join(threads)), printf(", %ld, %ld\n", made, taken);
    pthread_barrier_init(&barrier, NULL, COUNT), start(threads, meets);
    printf("barrier: %ld\n", join(threads));
    start(threads, keeps);
    printf("local: %ld", join(threads)), printf(", %ld, %ld\n", destroyed, initialised);

    long left = 0;
    void *result;
    pthread_create(&threads[0], NULL, sleeps, &left), usleep(1000);
    pthread_cancel(threads[0]), pthread_join(threads[0], &result);
    printf("cancelled: %d, %ld, %d\n", result == PTHREAD_CANCELED, left, pthread_mutex_trylock(&lock));
    pthread_mutex_unlock(&lock);
    int pair[2];
    pipe(pair), pthread_create(&threads[0], NULL, reads, &pair[0]), usleep(1000);
    pthread_cancel(threads[0]), pthread_join(threads[0], &result);
    printf("cancelled in a call: %d\n", result == PTHREAD_CANCELED);
    struct timespec soon;
    clock_gettime(CLOCK_REALTIME, &soon), soon.tv_nsec = (soon.tv_nsec + 1000000) % 1000000000, soon.tv_sec += soon.tv_nsec < 1000000;
    pthread_mutex_lock(&lock);
    printf("timed out: %s\n", strerror(pthread_cond_timedwait(&changed, &lock, &soon)));
    printf("timed out: %s\n", strerror(pthread_mutex_timedlock(&lock, &soon)));
    return 0;
}
