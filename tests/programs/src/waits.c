/* Threads and processes that wait at words, locks and descriptors, or share memory: a word chooses the kind. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 5 };
static struct shared {
    pthread_mutex_t lock, heir;
    pthread_cond_t turn;
    int counts[8], words[8], next;
} *shared;

static void work(int rounds) {
    for (volatile int i = 0; i < rounds; i++) {}
}

static void pass(long ns) { nanosleep(&(struct timespec){0, ns}, 0); }

static int *add(int at, int by) {
    __atomic_add_fetch(&shared->counts[at], by, __ATOMIC_SEQ_CST);
    return &shared->counts[at];
}

static long futex(int *word, int how, int value, void *time, int *other, int third) {
    return syscall(SYS_futex, word, how, value, time, other, third);
}

static int reap(void) {
    int status, sum = 0;
    while (wait(&status) > 0) sum += WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
    fflush(stdout);
    return sum;
}

/* In turns by a condition, whose waiters are moved to its lock; one gives up now and then. */
static void *in_turns(void *given) {
    int me = (int)(long)given;
    for (int round = 0; round < 3; round++) {
        pthread_mutex_lock(&shared->lock);
        while (shared->next % THREADS != me) {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += 200000;
            if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
            if (me & 1) pthread_cond_timedwait(&shared->turn, &shared->lock, &until);
            else pthread_cond_wait(&shared->turn, &shared->lock);
        }
        work(30 * me), shared->next++;
        pthread_cond_broadcast(&shared->turn);
        pthread_mutex_unlock(&shared->lock);
    }
    return 0;
}

/* A word with a bit for each, moved to another word, changed and woken; a lock that the kernel passes on. */
static void *at_words(void *given) {
    int me = (int)(long)given, *word = shared->words;
    futex(word, FUTEX_WAIT_BITSET, 0, 0, 0, 1 << me);
    add(0, 1);
    while (futex(word + 1, FUTEX_WAIT, 0, 0, 0, 0) && errno != EAGAIN) {}
    add(1, 1);
    for (int round = 0; round < 2; round++) {
        int expected = 0, id = syscall(SYS_gettid);
        if (!__atomic_compare_exchange_n(word + 3, &expected, id, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            futex(word + 3, FUTEX_LOCK_PI, 0, 0, 0, 0);
        work(40), add(2, 1);
        expected = id;
        if (!__atomic_compare_exchange_n(word + 3, &expected, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            futex(word + 3, FUTEX_UNLOCK_PI, 0, 0, 0, 0);
    }
    return 0;
}

static void futexes(void) {
    pthread_t all[THREADS];
    pthread_mutexattr_t how;
    pthread_mutexattr_init(&how), pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&shared->lock, 0);
    pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST), pthread_mutex_init(&shared->heir, &how);
    pthread_cond_init(&shared->turn, 0);
    for (long i = 0; i < THREADS; i++) pthread_create(all + i, 0, in_turns, (void *)i);
    for (int i = 0; i < THREADS; i++) pthread_join(all[i], 0);
    printf("turns: %d\n", shared->next);
    for (long i = 0; i < THREADS; i++) pthread_create(all + i, 0, at_words, (void *)i);
    while (shared->counts[0] < THREADS)
        for (int i = THREADS; i--;) futex(shared->words, FUTEX_WAKE_BITSET, 1, 0, 0, 1 << i), work(20), sched_yield();
    pass(100000);
    futex(shared->words + 1, FUTEX_CMP_REQUEUE, 1, (void *)2L, shared->words + 2, 0), work(200);
    shared->words[1] = 1;
    int change = FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_EQ, 0);
    while (shared->counts[1] < THREADS) {
        futex(shared->words + 1, FUTEX_WAKE_OP, 9, (void *)9L, shared->words + 2, change);
        shared->words[2] = 0, work(30), sched_yield();
    }
    for (int i = 0; i < THREADS; i++) pthread_join(all[i], 0);
    printf("words: %d %d %d\n", shared->counts[0], shared->counts[1], shared->counts[2]);
    fflush(stdout);
    for (int i = 0; i < 4; i++)
        if (!fork()) {
            int died = pthread_mutex_lock(&shared->heir) == EOWNERDEAD;
            if (died) pthread_mutex_consistent(&shared->heir);
            add(3, 1), add(4, died), work(200);
            if (i & 1) _exit(0);  /* with the lock */
            pthread_mutex_unlock(&shared->heir);
            _exit(0);
        }
    int sum = reap(), last = pthread_mutex_lock(&shared->heir) == EOWNERDEAD;
    printf("heirs: %d, %d, died %d\n", sum, shared->counts[3], shared->counts[4] + last);
}

static int range(int fd, int how, int kind, int start, int length) {
    struct flock wanted = {.l_type = kind, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    return fcntl(fd, how, &wanted);
}

/* Ranges, whole files, and two that would wait for each other. */
static void locks(void) {
    int file = open("/tmp/locked", O_RDWR | O_CREAT, 0600);
    for (int i = 0; i < 4; i++)
        if (!fork()) {
            int own = open("/tmp/locked", O_RDWR);
            for (int round = 0; round < 3; round++) {
                int how = i & 1 ? F_OFD_SETLKW : F_SETLKW;
                if (range(own, how, F_WRLCK, 10 * (round & 1), 15)) _exit(9);
                int before = shared->counts[5]++;
                work(60 + 20 * i);
                if (round & 1 && shared->counts[5] != before + 1) add(6, 1);
                range(own, how, F_UNLCK, 0, 0);
                flock(own, round == i ? LOCK_SH : LOCK_EX), work(40), add(7, 1), flock(own, LOCK_UN);
            }
            _exit(0);
        }
    int sum = reap();
    printf("locks: %d, %d\n", sum, shared->counts[7]);
    int line[2];
    pipe(line);
    fflush(stdout);
    for (int i = 0; i < 2; i++)
        if (!fork()) {
            range(file, F_SETLKW, F_WRLCK, 100 * i, 1);
            write(line[1], "x", 1);
            while (shared->words[7] < 1) sched_yield();
            int result = range(file, F_SETLKW, F_WRLCK, 100 * !i, 1);
            _exit(result ? errno == EDEADLK ? 3 : 9 : 1);
        }
    read(line[0], &(char){0}, 1), read(line[0], &(char){0}, 1);
    shared->words[7] = 1;
    printf("a ring: %d\n", reap());
    unlink("/tmp/locked");
}

/* Who waits for descriptors: in sets of three kinds, and in a call that counts. */
static void descriptors(void) {
    int line[2], counter = eventfd(0, EFD_SEMAPHORE), set = epoll_create1(0), sum = 0;
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), full = eventfd(0, 0);
    pipe(line);
    struct itimerspec often = {{0, 300000}, {0, 200000}};
    timerfd_settime(timer, 0, &often, 0);
    int kinds[3] = {line[0], counter, timer}, modes[3] = {EPOLLIN | EPOLLET, EPOLLIN, EPOLLIN | EPOLLONESHOT};
    for (int i = 0; i < 3; i++)
        epoll_ctl(set, EPOLL_CTL_ADD, kinds[i], &(struct epoll_event){.events = modes[i], .data.u32 = i});
    if (!fork()) {
        for (int i = 0; i < 6; i++) pass(90000), write(line[1], "line", 4), write(counter, &(long){2}, 8), work(50);
        _exit(0);
    }
    int seen[3] = {0};
    while (sum < 12 || seen[0] < 24 || !seen[2]) {
        struct epoll_event got[2];
        int count = epoll_pwait(set, got, 2, seen[0] < 24 || sum < 12 ? -1 : 1, 0);
        for (int i = 0; i < count; i++) {
            char text[64];
            int at = got[i].data.u32;
            long size = read(kinds[at], text, at ? 8 : sizeof text);
            if (at == 0) seen[0] += size;
            if (at == 1) sum++;
            if (at == 2) seen[2]++, epoll_ctl(set, EPOLL_CTL_MOD, timer, &(struct epoll_event){modes[2], {.u32 = 2}});
        }
    }
    printf("set: %d bytes, %d, timer %d; %d\n", seen[0], sum, seen[2] > 0, reap());
    fflush(stdout);
    for (int i = 0; i < 3; i++)
        if (!fork()) {
            long many = -2UL - 10, got = 0;
            if (i == 0) pass(200000), write(full, &many, 8), write(full, &(long){11}, 8);
            if (i == 1) pass(600000), read(full, &got, 8), read(full, &got, 8), got -= 11;
            if (i == 2) {
                fd_set wanted;
                FD_ZERO(&wanted);
                FD_SET(line[0], &wanted);
                struct timeval limit = {5, 0};
                got = select(line[0] + 1, &wanted, 0, 0, &limit) - 1;
            }
            _exit(got ? 9 : 0);
        }
    struct pollfd one = {full, POLLIN, 0};
    int result = ppoll(&one, 1, &(struct timespec){5, 0}, 0);
    pass(900000), write(line[1], "x", 1);
    printf("counters: %d %d\n", result, reap());
}

/* Memory that processes share and do not share, while it is changed. */
static void memory(void) {
    long page = sysconf(_SC_PAGESIZE);
    int file = memfd_create("shared", 0);
    ftruncate(file, 6 * page);
    char *seen = mmap(0, 6 * page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    char *anyone = mmap(0, 6 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *own = mmap(0, 6 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 6; i++) own[i * page] = i;
    for (int i = 0; i < 3; i++)
        if (!fork()) {
            for (int at = 0; at < 6; at++) {
                __atomic_add_fetch(seen + at * page, 1, __ATOMIC_SEQ_CST), own[at * page] += i, work(30);
                __atomic_add_fetch(anyone + at * page, own[at * page], __ATOMIC_SEQ_CST);
            }
            char *twin = mremap(anyone + 2 * page, 2 * page, 2 * page, MREMAP_MAYMOVE | MREMAP_FIXED, own);
            mprotect(own + page, page, PROT_READ), work(50), madvise(own + 4 * page, page, MADV_DONTNEED);
            while (i < 2 && !__atomic_load_n(twin + 7, __ATOMIC_SEQ_CST)) futex((int *)(seen + 8), FUTEX_WAIT, 0, 0, 0, 0);
            if (i == 2) pass(200000), twin[7] = 1, *(int *)(seen + 8) = 1, futex((int *)(seen + 8), FUTEX_WAKE, 9, 0, 0, 0);
            _exit(twin[page] + own[4 * page] > 100);
        }
    own[0] = 50, work(100);
    int sum = reap();
    printf("memory: %d;", sum);
    for (int i = 0; i < 6; i++) printf(" %d %d %d", seen[i * page], anyone[i * page], own[i * page]);
    printf(", %d\n", anyone[2 * page + 7]);
}

int main(int count, char **words) {
    setvbuf(stdout, 0, _IOFBF, 1 << 14);
    shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char kind = count > 1 ? words[1][0] : 'a';
    if (kind == 'f' || kind == 'a') futexes();
    if (kind == 'l' || kind == 'a') locks();
    if (kind == 'd' || kind == 'a') descriptors();
    if (kind == 'm' || kind == 'a') memory();
    return 0;
}
