/* flushes KIND: threads on other CPUs use pages that the first one takes away, protects, moves, shares or replaces.
 * Each of them sees what is there, or SIGSEGV. KIND is one of the names below, or `all`. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 3, ROUNDS = 2, MOST = 4 };

static size_t size;                      /* of a page */
static char *volatile shown;             /* what the others use */
static volatile int stores;              /* whether they store, too */
static atomic_int round_number, seen[MOST], wrong, ended;
static int others;
static _Thread_local sigjmp_buf back;

static void refused(int number) { siglongjmp(back, number); }

static void stay(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set), CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

/* Each page has its number + 1 in its first byte, or nothing of ours: 9 is what memory of others has. */
static void *use(void *which) {
    int number = (int)(long)which, at = -1;
    stay(number + 1);
    while (!ended) {
        if (!sigsetjmp(back, 1))
            for (int i = 0; i < PAGES; i++) {
                volatile char *page = shown + i * size;
                char value = *page;
                if (value && value != i + 1) wrong++;
                if (stores && value) *page = value;
            }
        if (at != round_number) at = round_number, seen[number] = at + 1;
        sched_yield();
    }
    return 0;
}

/* The others have used what is shown now. */
static void let_use(void) {
    int now = ++round_number;
    for (int i = 0; i < others; i++)
        while (seen[i] != now + 1) sched_yield();
}

static char *fresh_at(char *there, size_t length, int fill) {
    int fixed = there ? MAP_FIXED : 0;
    char *pages = mmap(there, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);
    for (size_t at = 0; at < length; at += size) pages[at] = fill ? fill : (int)(at / size) + 1;
    return pages;
}

static char *fresh(size_t length, int fill) { return fresh_at(0, length, fill); }

static void show(int by_stores) {
    stores = by_stores;
    shown = fresh(PAGES * size, 0);
    let_use();
}

/* Somebody else gets the memory, at other addresses. */
static void reuse(void) { munmap(fresh_at((char *)(1l << 36), PAGES * size, 9), PAGES * size); }

static void unmap(void) {
    show(0);
    munmap(shown, PAGES * size);
    reuse();
}

/* Nobody else has the memory: with its last area it is gone. */
static void unmap_shared(void) {
    stores = 0;
    shown = mmap(0, PAGES * size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < PAGES; i++) shown[i * size] = i + 1;
    let_use();
    munmap(shown, PAGES * size);
    reuse();
}

static void protect(void) {
    show(1);
    mprotect(shown, PAGES * size, PROT_READ);
    let_use();
    mprotect(shown, PAGES * size, PROT_NONE);
    let_use();
    mprotect(shown, PAGES * size, PROT_READ | PROT_WRITE);
}

static void share(void) {
    int status;
    show(1);
    if (!fork()) {
        int bad = 0;
        for (int i = 0; i < 100; i++)
            for (int j = 0; j < PAGES; j++) bad += shown[j * size] != j + 1;
        _exit(bad != 0);
    }
    for (int i = 0; i < PAGES; i++) shown[i * size] = i + 1;
    let_use();
    wait(&status);
    wrong += status != 0;
}

static void move(void) {
    show(0);
    char *there = fresh(PAGES * size, 9), *here = shown;
    shown = mremap(here, PAGES * size, PAGES * size, MREMAP_MAYMOVE | MREMAP_FIXED, there);
    reuse();
    let_use();
}

static void discard(void) {
    show(0);
    madvise(shown, PAGES * size, MADV_DONTNEED);
    reuse();
    let_use();
}

/* Pages that were only read all show one page of zeros; a store gives each its own. */
static void replace(void) {
    stores = 0;
    shown = mmap(0, PAGES * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    let_use();
    for (int i = 0; i < PAGES; i++) shown[i * size] = i + 1;
    let_use();
}

/* Far from everything else: the tables go too. */
static void remove_tables(void) {
    stores = 0;
    shown = fresh_at((char *)(1l << 37), PAGES * size, 0);
    let_use();
    munmap(shown, PAGES * size);
    reuse();
}

static const struct {
    const char *name;
    void (*work)(void);
} kinds[] = {
    {"unmap", unmap},     {"protect", protect}, {"share", share},          {"move", move},
    {"discard", discard}, {"replace", replace}, {"tables", remove_tables},
    {"shared", unmap_shared},
};

int main(int count, char **arguments) {
    pthread_t threads[MOST];
    const char *wanted = count > 1 ? arguments[1] : "all";
    size = sysconf(_SC_PAGESIZE);
    others = sysconf(_SC_NPROCESSORS_ONLN) - 1;
    if (others > MOST) others = MOST;
    signal(SIGSEGV, refused);
    stay(0);
    shown = fresh(PAGES * size, 0);
    for (long i = 0; i < others; i++) pthread_create(&threads[i], 0, use, (void *)i);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(wanted, "all") && strcmp(wanted, kinds[i].name)) continue;
        for (int j = 0; j < ROUNDS; j++) kinds[i].work();
        printf("%s: %d wrong\n", kinds[i].name, wrong);
        fflush(stdout);
    }
    ended = 1;
    for (int i = 0; i < others; i++) pthread_join(threads[i], 0);
    return 0;
}
