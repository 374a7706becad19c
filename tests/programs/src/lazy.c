/* lazy: threads on other CPUs sleep while the first one takes away, protects or empties pages that they have used.
 * When they wake, on a CPU that nobody interrupted, each finds what is there, or SIGSEGV. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 4, ROUNDS = 4 };
enum kind { UNMAP, PROTECT, DISCARD, KINDS };

static size_t size;                      /* of a page */
static int pages, others, call[MOST][2], answer[2];
static char *volatile shown;
static atomic_int found;                 /* pages that still had what was taken away */
static _Thread_local sigjmp_buf back;

static void refused(int number) { siglongjmp(back, number); }

static void stay(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set), CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static int used(void) {
    int values = 0;
    for (volatile int i = 0; i < pages; i++)
        if (!sigsetjmp(back, 1)) values += *(volatile char *)(shown + i * size) == 7;
    return values;
}

/* Asked twice a round: to use the pages, and to look whether they are gone. */
static void *sleeper(void *which) {
    int number = (int)(long)which;
    char asked;
    stay(number + 1);
    while (read(call[number][0], &asked, 1) == 1 && asked != 'e') {
        int values = used();
        if (asked == 'l') found += values;
        if (write(answer[1], &asked, 1) != 1) break;
    }
    return 0;
}

static void ask(char what) {
    struct timespec while_they_fall_asleep = {0, 2000000};
    char said;
    for (int i = 0; i < others; i++)
        if (write(call[i][1], &what, 1) != 1) return;
    for (int i = 0; what != 'e' && i < others; i++)
        if (read(answer[0], &said, 1) != 1) return;
    nanosleep(&while_they_fall_asleep, 0);
}

static void take_away(enum kind kind, size_t length) {
    if (kind == UNMAP) munmap(shown, length);
    if (kind == PROTECT) mprotect(shown, length, PROT_NONE);
    if (kind == DISCARD) madvise(shown, length, MADV_DONTNEED);
}

int main(void) {
    static const char *const names[] = {"unmapped", "protected", "discarded"};
    pthread_t threads[MOST];
    size = sysconf(_SC_PAGESIZE);
    others = sysconf(_SC_NPROCESSORS_ONLN) - 1;
    if (others < 1) others = 1;
    if (others > MOST) others = MOST;
    signal(SIGSEGV, refused);
    stay(0);
    if (pipe(answer)) return 2;
    for (long i = 0; i < others; i++)
        if (pipe(call[i]) || pthread_create(&threads[i], 0, sleeper, (void *)i)) return 2;
    for (enum kind kind = UNMAP; kind < KINDS; kind++) {
        found = 0;
        for (int round = 0; round < ROUNDS; round++) {
            pages = round % 2 ? 40 : 2;   /* more than are flushed one by one, and fewer */
            shown = mmap(0, pages * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            for (int i = 0; i < pages; i++) shown[i * size] = 7;
            ask('u');
            take_away(kind, pages * size);
            ask('l');
        }
        printf("%s: %d found\n", names[kind], found);
        fflush(stdout);
    }
    ask('e');
    for (int i = 0; i < others; i++) pthread_join(threads[i], 0);
    return 0;
}
