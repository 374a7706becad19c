/* merge: equal pages of two processes become one, and no write leaks. It is root: it switches the scan on in
 * /sys/kernel/mm/ksm, and reads the numbers of frames from /proc/self/pagemap. `merge kept` is what it executes
 * to see that an execve keeps what PR_SET_MEMORY_MERGE asked for. */
#include "aether.h"

enum { PR_SET_MEMORY_MERGE = 67, PR_GET_MEMORY_MERGE = 68, MADV_MERGEABLE = 12, MADV_UNMERGEABLE = 13, PAGES = 4 };

#define KSM "/sys/kernel/mm/ksm/"

/* What both processes see: whose turn it is, and the frames and first bytes of the child's pages. */
struct shared {
    volatile u64 turn;
    u64 frames[PAGES];
    u8 bytes[PAGES];
};

static struct shared *shared;
static int pagemap;

static u64 read_number(const char *path) {
    char text[32];
    i64 fd = open(path, O_RDONLY), n = SYSCALL(read, fd, text, sizeof text - 1);
    if (n <= 0) FAIL("%s: %s", path, answer(n));
    text[n] = 0;
    SYSCALL(close, fd);
    return number(text);
}

static i64 write_text(const char *path, const char *text) {
    i64 fd = open(path, 1); /* O_WRONLY */
    if (fd < 0) return fd;
    i64 n = SYSCALL(write, fd, text, strlen(text));
    SYSCALL(close, fd);
    return n;
}

static void sleep_ms(u64 ms) {
    u64 time[2] = {0, ms * 1000000};
    SYSCALL(nanosleep, time, NULL);
}

static u64 frame_of(volatile u8 *page) {
    u64 entry;
    if (pread(pagemap, &entry, 8, (u64)page / PAGE * 8) != 8) FAIL("%s", "pagemap ends");
    return entry & ((1UL << 55) - 1);
}

/* Memory of PAGES pages, each all of one letter. */
static volatile u8 *letters(void) {
    u8 *base = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (u64 i = 0; i < PAGES; i++) memset(base + i * PAGE, (int)('a' + i), PAGE);
    return base;
}

static void wait_for(u64 turn) {
    while (shared->turn != turn) sleep_ms(1);
}

/* The other process: shows its pages, and does what it is told to, in turn. */
static void child(void) {
    pagemap = (int)open("/proc/self/pagemap", O_RDONLY);
    volatile u8 *base = letters();
    madvise((void *)base, PAGES * PAGE, MADV_MERGEABLE);
    for (u64 turn = 1;; turn += 2) {
        shared->turn = turn;
        wait_for(turn + 1);
        if (turn == 3) base[0] = 'X';
        if (turn == 5) madvise((void *)(base + PAGE), PAGE, MADV_UNMERGEABLE);
        if (turn == 9) exit(0);
        for (u64 i = 0; i < PAGES; i++) {
            shared->bytes[i] = base[i * PAGE];
            shared->frames[i] = frame_of(base + i * PAGE);
        }
    }
}

/* Let the child do its next, and say what both have. */
static void look(volatile u8 *base, const char *what) {
    u64 alike = 0, turn = shared->turn + 1;
    shared->turn = turn;
    wait_for(turn + 1);
    for (u64 i = 0; i < PAGES; i++) alike += frame_of(base + i * PAGE) == shared->frames[i];
    printf("%s: %lu frames are the same;", what, alike);
    printf(" I have %c%c%c%c,", base[0], base[PAGE], base[2 * PAGE], base[3 * PAGE]);
    printf(" it has %c%c%c%c.\n", shared->bytes[0], shared->bytes[1], shared->bytes[2], shared->bytes[3]);
}

/* Wait until so many pages share another's frame. */
static void until_sharing(u64 wanted) {
    for (u64 turns = 0; read_number(KSM "pages_sharing") != wanted && turns < 300; turns++) sleep_ms(1);
}

static void counts(void) {
    printf("   Shared %lu, sharing %lu.\n", read_number(KSM "pages_shared"), read_number(KSM "pages_sharing"));
}

static void about_processes(void) {
    i32 status = 0;
    shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    i64 pid = SYSCALL(clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) child();
    pagemap = (int)open("/proc/self/pagemap", O_RDONLY);
    volatile u8 *base = letters();
    printf("1. Two processes\n   I advise it: %s.\n", answer(madvise((void *)base, PAGES * PAGE, MADV_MERGEABLE)));
    wait_for(1);
    look(base, "   Before");
    write_text(KSM "sleep_millisecs", "1\n");
    write_text(KSM "pages_to_scan", "1000\n");
    printf("   I switch it on: %ld of 2 bytes; run is %lu.\n", write_text(KSM "run", "1\n"), read_number(KSM "run"));
    until_sharing(PAGES);
    counts();
    base[3 * PAGE] = 'Y';
    look(base, "   I write to one, it to another");
    counts();
    look(base, "   It says that one is not to be merged");
    counts();
    printf("   I undo all: %ld; then run is %lu.\n", write_text(KSM "run", "2"), read_number(KSM "run"));
    look(base, "   After");
    counts();
    printf("   What is no number: %s; no such state: %s.\n\n", answer(write_text(KSM "run", "on")),
           answer(write_text(KSM "run", "3")));
    shared->turn = shared->turn + 1;
    SYSCALL(wait4, pid, &status, 0, NULL);
}

static void about_all(char **argv) {
    i32 status = 0;
    volatile u8 *base = letters();
    memset((void *)base, 'z', PAGES * PAGE);
    printf("2. All memory of a process\n   It is %ld;", SYSCALL(prctl, PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
    printf(" I ask with an argument too many: %s;", answer(SYSCALL(prctl, PR_SET_MEMORY_MERGE, 1, 1, 0, 0)));
    printf(" without: %s;", answer(SYSCALL(prctl, PR_SET_MEMORY_MERGE, 1, 0, 0, 0)));
    printf(" it is %ld.\n", SYSCALL(prctl, PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
    write_text(KSM "run", "1");
    for (u64 turns = 0; frame_of(base) != frame_of(base + 3 * PAGE) && turns < 300; turns++) sleep_ms(1);
    u64 alike = 0;
    for (u64 i = 0; i < PAGES; i++) alike += frame_of(base) == frame_of(base + i * PAGE);
    printf("   Of my %d equal pages %lu have the same frame.\n", PAGES, alike);
    i64 pid = SYSCALL(clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) {
        base[0] = 'c';
        printf("   A child has it too: %ld; it writes: %c%c.\n", SYSCALL(prctl, PR_GET_MEMORY_MERGE, 0, 0, 0, 0), base[0],
               base[PAGE]);
        char *arguments[] = {argv[0], "kept", NULL}, *environment[] = {NULL};
        SYSCALL(execve, "/proc/self/exe", arguments, environment);
        exit(1);
    }
    SYSCALL(wait4, pid, &status, 0, NULL);
    printf("   I have %c%c.", base[0], base[PAGE]);
    printf(" No more of it: %s;", answer(SYSCALL(prctl, PR_SET_MEMORY_MERGE, 0, 0, 0, 0)));
    alike = 0;
    for (u64 i = 1; i < PAGES; i++) alike += frame_of(base) == frame_of(base + i * PAGE);
    printf(" then %lu are the same.\n", alike);
}

int main(int argc, char **argv) {
    if (argc > 1 && streq(argv[1], "kept")) {
        printf("   What it executes has it too: %ld.\n", SYSCALL(prctl, PR_GET_MEMORY_MERGE, 0, 0, 0, 0));
        return 0;
    }
    about_processes();
    about_all(argv);
    return 0;
}
