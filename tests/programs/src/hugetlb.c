// Huge pages from a pool. "empty": with an empty pool, as on most hosts; "pool": with four pages or more.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif
#define M (1UL << 20)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB)

static size_t size;  // of a huge page
static sigjmp_buf back;
static volatile sig_atomic_t caught;

static void on_bus(int number) {
    caught = number;
    siglongjmp(back, 1);
}

static const char *outcome(long result) {
    static char text[4][64];
    static int next;
    char *line = text[next++ % 4];
    if (result == -1)
        snprintf(line, 64, "%s", strerror(errno));
    else
        snprintf(line, 64, "done");
    return line;
}

static const char *mapped(void *result) { return outcome((long)result == -1 ? -1 : 0); }

static const char *touch(volatile char *at, int value) {
    caught = 0;
    if (!sigsetjmp(back, 1))
        *at = value;
    return caught ? "SIGBUS" : "stored";
}

static long meminfo(const char *name) {
    char line[128];
    long value = -1;
    FILE *file = fopen("/proc/meminfo", "r");
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ':')
            value = atol(line + strlen(name) + 1);
    fclose(file);
    return value;
}

static void counts(const char *when) {
    printf("%s: %ld pages, %ld free, %ld promised, %ld surplus\n", when, meminfo("HugePages_Total"),
           meminfo("HugePages_Free"), meminfo("HugePages_Rsvd"), meminfo("HugePages_Surp"));
}

static void refusals(void) {
    void *at;
    printf("mmap of no size there is: %s\n", mapped(mmap(0, size, 3, ANON | 27 << MAP_HUGE_SHIFT, -1, 0)));
    printf("mmap of nothing: %s\n", mapped(mmap(0, 0, 3, ANON, -1, 0)));
    printf("mmap of more than the pool: %s\n", mapped(mmap(0, 1000 * size, 3, ANON, -1, 0)));
    at = mmap(0, 1000 * size, 3, ANON | MAP_NORESERVE, -1, 0);
    printf("mmap of more than the pool, without promises: %s\n", mapped(at));
    printf("aligned: %d\n", (uintptr_t)at % size == 0);
    printf("munmap of a part of a page: %s\n", outcome(munmap(at, 4096)));
    printf("mprotect of a part of a page: %s\n", outcome(mprotect((char *)at + size, size / 2, 1)));
    printf("mremap to more: %s\n", mapped(mremap(at, size, 2 * size, MREMAP_MAYMOVE)));
    printf("MADV_FREE: %s\n", outcome(madvise(at, size, MADV_FREE)));
    printf("MADV_COLD: %s\n", outcome(madvise(at, size, 20)));
    printf("MADV_DONTNEED in a page: %s\n", outcome(madvise((char *)at + 4096, size, MADV_DONTNEED)));
    printf("MADV_DONTNEED of less than a page: %s\n", outcome(madvise(at, 4096, MADV_DONTNEED)));
    printf("MADV_MERGEABLE: %s\n", outcome(madvise(at, size, MADV_MERGEABLE)));
    printf("munmap: %s\n", outcome(munmap(at, 1000 * size)));
}

static int file_of_pages(void) {
    struct stat status;
    char link[64] = "", path[64];
    int fd = memfd_create("pages", 4 | MFD_ALLOW_SEALING);
    printf("memfd_create: %s\n", outcome(fd < 0 ? -1 : 0));
    printf("memfd_create of no size there is: %s\n", outcome(memfd_create("x", 4 | 27U << 26)));
    printf("ftruncate to a part of a page: %s\n", outcome(ftruncate(fd, size + 4096)));
    printf("ftruncate: %s\n", outcome(ftruncate(fd, 2 * size)));
    fstat(fd, &status);
    printf("it has %ld pages, and takes %ld\n", (long)(status.st_size / size), (long)(status.st_blocks * 512 / size));
    printf("write: %s\n", outcome(write(fd, "x", 1)));
    printf("mmap from the middle of a page: %s\n", mapped(mmap(0, size, 3, MAP_SHARED, fd, 4096)));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    readlink(path, link, sizeof link - 1);
    printf("it is called %s\n", link);
    return fd;
}

static void empty(void) {
    refusals();
    void *at = mmap(0, size, 3, ANON | MAP_NORESERVE, -1, 0);
    printf("a touch: %s\n", touch(at, 1));
    munmap(at, size);
    int fd = file_of_pages();
    printf("mmap shared: %s\n", mapped(mmap(0, size, 3, MAP_SHARED, fd, 0)));
    printf("fallocate: %s\n", outcome(fallocate(fd, 0, 0, size)));
    close(fd);
    printf("shmget: %s\n", outcome(shmget(IPC_PRIVATE, size, IPC_CREAT | SHM_HUGETLB | 0600)));
}

// Whether a line of smaps is the first one of an area: fields begin with a large letter.
static int heads(const char *line) { return *line < 'A' || *line >= 'a'; }

// What smaps says of an area, in huge pages, and whether its letters have ht.
static void area(const char *what, void *at) {
    char line[256], name[128] = "";
    long own = 0, shared = 0, page = 0, rss = 0;
    int found = 0, letters = 0;
    FILE *file = fopen("/proc/self/smaps", "r");
    while (fgets(line, sizeof line, file)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %127[^\n]", &start, &end, name) >= 2 && heads(line))
            found = start == (unsigned long)at;
        if (!found)
            continue;
        if (start == (unsigned long)at && heads(line))
            printf("%s: %s\n", what, name);
        sscanf(line, "Private_Hugetlb: %ld", &own);
        sscanf(line, "Shared_Hugetlb: %ld", &shared);
        sscanf(line, "KernelPageSize: %ld", &page);
        sscanf(line, "Rss: %ld", &rss);
        if (!strncmp(line, "VmFlags:", 8))
            letters = strstr(line, " ht") != 0;
    }
    fclose(file);
    printf("  its own %ld, shared %ld, page size right %d, resident %ld kB, ht %d\n", own * 1024 / (long)size,
           shared * 1024 / (long)size, (size_t)page * 1024 == size, rss, letters);
}

static void in_a_row(char *at) {
    uint64_t entry[2], first = 0;
    long page = sysconf(_SC_PAGESIZE), wrong = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY);
    for (size_t n = 0; n < size / page; n++) {
        pread(fd, entry, 8, ((uintptr_t)at / page + n) * 8);
        uint64_t frame = entry[0] & ((1UL << 55) - 1);
        if (!n)
            first = frame;
        wrong += !(entry[0] >> 63) || frame != first + n;
    }
    close(fd);
    printf("frames of a page: aligned %d, not in a row %ld\n", first % (size / page) == 0, wrong);
}

static void child(char *at, int full) {
    fflush(stdout);
    if (!fork()) {
        printf("child reads %d, and writes: %s\n", at[5], touch(at, 7));
        printf("child's page: %d\n", at[5]);
        exit(0);
    }
    wait(0);
    printf("parent's page%s: %d\n", full ? " with nothing left" : "", at[0]);
}

static void pool(void) {
    unsigned char seen[1];
    counts("at first");
    char *at = mmap(0, 3 * size, 3, ANON, -1, 0);
    counts("mapped");
    printf("mmap of more: %s\n", mapped(mmap(0, 2 * size, 3, ANON, -1, 0)));
    at[size + 4097] = 1;
    counts("touched");
    in_a_row(at + size);
    mincore(at + size, 4096, seen);
    printf("mincore: %d", seen[0]);
    mincore(at, 4096, seen);
    printf(" %d\n", seen[0]);
    printf("mlock: %s\n", outcome(mlock(at + size, size)));
    area("private", at);
    at[0] = 1, at[5] = 5;
    munmap(at + size, 2 * size);
    child(at, 0);
    char *rest = mmap(0, 3 * size, 3, ANON | MAP_POPULATE, -1, 0);
    counts("all taken");
    child(at, 1);
    fflush(stdout);
    int pipe_[2], back_[2];
    pipe(pipe_), pipe(back_);
    if (!fork()) {
        char c;
        read(pipe_[0], &c, 1);
        printf("child, after the parent needed the page: %s\n", touch(at, 9));
        exit(0);
    }
    printf("parent: %s\n", touch(at, 3));
    fflush(stdout);
    write(pipe_[1], "x", 1);
    wait(0);
    munmap(rest, 3 * size);
    printf("MADV_DONTNEED: %s\n", outcome(madvise(at, size, MADV_DONTNEED)));
    counts("given up");
    printf("it reads %d\n", at[5]);
    char *moved = mremap(at, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, at - 64 * size);
    moved[9] = 9;
    printf("moved: %d\n", moved == at - 64 * size && moved[9] == 9);
    munmap(moved, size);
    counts("unmapped");

    char *shared = mmap(0, size, 3, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    fflush(stdout);
    if (!fork()) {
        strcpy(shared, "from the child");
        exit(0);
    }
    wait(0);
    printf("shared: %s\n", shared);
    area("shared", shared);
    munmap(shared, size);

    int fd = file_of_pages();
    char *one = mmap(0, 2 * size, 3, MAP_SHARED, fd, 0), *two = mmap(0, 2 * size, 3, MAP_PRIVATE, fd, 0);
    counts("file mapped twice");
    strcpy(one + size, "in the file");
    printf("private sees: %s\n", two + size);
    strcpy(two + size, "own copy");
    printf("%s, %s\n", one + size, two + size);
    area("file", one);
    char text[12] = "";
    pread(fd, text, 11, size);
    printf("read: %s\n", text);
    printf("ftruncate: %s\n", outcome(ftruncate(fd, size)));
    printf("behind the end: %s\n", touch(one + size, 1));
    munmap(one, 2 * size), munmap(two, 2 * size);
    close(fd);
    counts("file closed");

    int segment = shmget(IPC_PRIVATE, size, IPC_CREAT | SHM_HUGETLB | 0600);
    counts("segment made");
    char *there = shmat(segment, 0, 0);
    printf("attached: aligned %d, %s\n", (uintptr_t)there % size == 0, touch(there, 1));
    area("segment", there);
    shmctl(segment, IPC_RMID, 0);
    shmdt(there);
    counts("at last");
}

int main(int argc, char **argv) {
    signal(SIGBUS, on_bus);
    size = meminfo("Hugepagesize") * 1024;
    printf("pages of %luM\n", size / M);
    argc > 1 && !strcmp(argv[1], "pool") ? pool() : empty();
    return 0;
}
