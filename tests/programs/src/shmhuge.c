// Huge pages of shared memory, as root: "memory" (anonymous, System V), "file" (memfd_create, tmpfs), "pressure".
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

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define SETTING "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

static size_t size, page;  // of a huge page, and a small one
static sigjmp_buf back;

static void on_bus(int number) {
    (void)number;
    siglongjmp(back, 1);
}

static const char *said(int result) { return result ? strerror(errno) : "ok"; }

static int set(const char *word) {
    int fd = open(SETTING, O_WRONLY), done = write(fd, word, strlen(word));
    close(fd);
    return done < 0 ? -1 : 0;
}

static long number(const char *path, const char *name) {
    char line[256];
    long value = -1;
    FILE *file = fopen(path, "r");
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, name, strlen(name)) && strchr(": ", line[strlen(name)]))
            value = atol(line + strlen(name) + 1);
    fclose(file);
    return value;
}

// A figure of the area that begins at an address.
static long figure(const void *at, const char *name) {
    char line[256], head[40];
    long value = -1;
    int here = 0;
    FILE *file = fopen("/proc/self/smaps", "r");
    snprintf(head, sizeof head, "%lx-", (unsigned long)at);
    while (fgets(line, sizeof line, file)) {
        unsigned long a, b;
        if (sscanf(line, "%lx-%lx ", &a, &b) == 2)
            here = a == (unsigned long)at;
        else if (here && !strncmp(line, name, strlen(name)) && line[strlen(name)] == ':')
            value = atol(line + strlen(name) + 1);
    }
    fclose(file);
    return value;
}

static long leaves(const void *at) { return figure(at, "ShmemPmdMapped") * 1024 / (long)size; }
static long resident(const void *at) { return figure(at, "Rss") * 1024 / (long)page; }
static long folios(void) { return number("/proc/meminfo", "ShmemHugePages") * 1024 / (long)size; }

static char *shared(size_t length) {
    return mmap(0, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static const char *touch(volatile char *at) {
    const char *text = "SIGBUS";
    if (!sigsetjmp(back, 1)) {
        (void)*at;
        text = "read";
    }
    return text;
}

static void memory(void) {
    char *at = shared(3 * size);
    long before = folios(), count = size / page;
    printf("advise: %s\n", said(set("advise")));
    char *other = shared(3 * size);
    printf("aligned: %d\n", (uintptr_t)other % size == 0);
    munmap(at, 3 * size);
    at = other;
    printf("eligible: %ld\n", figure(at, "THPeligible"));
    at[0] = 'a';
    printf("a store brings: %ld leaves, %ld pages\n", leaves(at), resident(at));
    madvise(at, 3 * size, MADV_HUGEPAGE);
    printf("eligible when it was advised: %ld\n", figure(at, "THPeligible"));
    long alloc = number("/proc/vmstat", "thp_file_alloc"), mapped = number("/proc/vmstat", "thp_file_mapped");
    at[size + 5 * page] = 'b';
    printf("a store brings: %ld leaves, %d more pages\n", leaves(at), resident(at) == 1 + count);
    printf("vmstat: %ld allocated, %ld mapped\n", number("/proc/vmstat", "thp_file_alloc") - alloc,
           number("/proc/vmstat", "thp_file_mapped") - mapped);
    printf("huge pages: %ld\n", folios() - before);
    printf("it reads: %d %c\n", at[size], at[size + 5 * page]);
    at[2 * size - 1] = 'c';

    if (!fork()) {
        printf("a child has %ld leaves, ", leaves(at));
        printf("reads %c, and has %ld\n", at[size + 5 * page], leaves(at));
        at[size + 5 * page] = 'B';
        printf("a part is protected: %s\n", said(mprotect(at + size, page, PROT_READ)));
        at[size + page] = 'd';
        exit(fflush(stdout));
    }
    wait(0);
    printf("the parent reads %c %c, has %ld leaves, %ld huge pages\n", at[size + 5 * page], at[size + page],
           leaves(at), folios() - before);

    printf("a hole: %s\n", said(madvise(at + size + 5 * page, page, MADV_REMOVE)));
    printf("it reads %d %c, huge pages %ld\n", at[size + 5 * page], at[size + page], folios() - before);
    printf("collapse: %s\n", said(madvise(at + size, size, MADV_COLLAPSE)));
    printf("it reads %d %c %c, %ld leaves, huge pages %ld\n", at[size + 5 * page], at[size + page],
           at[2 * size - 1], leaves(at), folios() - before);
    printf("collapse of what was small: %s, %ld leaves, reads %c\n", said(madvise(at, size, MADV_COLLAPSE)),
           leaves(at), at[0]);
    printf("collapse of a hole: %s, %ld leaves\n", said(madvise(at + 2 * size, size, MADV_COLLAPSE)), leaves(at));
    printf("without: %s, %ld pages\n", said(madvise(at, 3 * size, MADV_DONTNEED)), resident(at));
    printf("it reads %c %c, %ld leaves\n", at[0], at[size + page], leaves(at));
    printf("moved by a page: ");
    char *to = shared(4 * size);
    to = mremap(at + size, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to + page);
    printf("reads %c %c\n", to[page], to[size - 1]);
    munmap(to, size);
    munmap(at, 3 * size);

    int id = shmget(IPC_PRIVATE, 2 * size, IPC_CREAT | 0600);
    char *one = shmat(id, 0, 0);
    printf("System V, aligned: %d\n", (uintptr_t)one % size == 0);
    madvise(one, 2 * size, MADV_HUGEPAGE);
    memset(one, 's', 2 * size);
    printf("%ld leaves, huge pages %ld\n", leaves(one), folios() - before);
    char *two = shmat(id, one + 8 * size + page, 0);
    printf("at an odd address: %c %c, %ld leaves\n", two[0], two[2 * size - 1], leaves(two));
    two[size + 1] = 't';
    printf("they agree: %d\n", one[size + 1] == 't');
    shmdt(one);
    printf("detached: %c, huge pages %ld\n", two[size + 1], folios() - before);
    shmdt(two);
    shmctl(id, IPC_RMID, 0);
    printf("removed: huge pages %ld\n", folios() - before);

    printf("deny: %s\n", said(set("deny")));
    at = shared(size);
    at[0] = 1;
    printf("collapse: %s\n", said(madvise(at, size, MADV_COLLAPSE)));
    munmap(at, size);
    printf("force: %s\n", said(set("force")));
    at = shared(2 * size);
    at[0] = 1;
    printf("%ld leaves\n", leaves(at));
    munmap(at, 2 * size);
    printf("a word that is none: %s\n", said(set("sometimes")));
    printf("never: %s\n", said(set("never")));
    at = shared(size);
    at[0] = 1;
    printf("%ld leaves\n", leaves(at));
}

static void files(void) {
    struct stat status;
    long before = folios();
    printf("always: %s\n", said(set("always")));
    int fd = memfd_create("huge", 0);
    ftruncate(fd, 3 * size);
    char *at = mmap(0, 3 * size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    printf("aligned: %d, eligible: %ld\n", (uintptr_t)at % size == 0, figure(at, "THPeligible"));
    at[0] = 'a';
    fstat(fd, &status);
    printf("a store brings: %ld leaves, %ld KiB, huge pages %ld\n", leaves(at), (long)status.st_blocks / 2,
           folios() - before);
    pwrite(fd, "w", 1, 17);
    printf("write and load agree: %c\n", at[17]);
    char *second = mmap(0, 2 * size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, size);
    printf("from the second on, aligned: %d\n", (uintptr_t)second % size == 0);
    memset(second, 'm', 2 * size);
    printf("%ld leaves\n", leaves(second));

    char *room = mmap(0, 4 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *odd = (char *)(((uintptr_t)room + size - 1) & -size) + page;
    odd = mmap(odd, 2 * size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    odd[size + 3] = 'o';
    printf("at an odd address: %ld leaves, %c, they agree: %d\n", leaves(odd), odd[0], second[3] == 'o');

    char *own = mmap(0, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    printf("a private view reads %c, %ld leaves\n", own[17], leaves(own));
    own[0] = 'p';
    printf("a store into it: %c %c, %ld leaves\n", own[0], at[0], leaves(own));
    own[size] = 'q';
    printf("and as its first access: %c %c\n", own[size], second[0]);

    printf("a hole: %s\n", said(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2 * page)));
    fstat(fd, &status);
    printf("it reads %d %d %d, KiB %ld, huge pages %ld\n", at[0], at[17], own[0] == 'p' || own[0] == 0,
           (long)(3 * size - status.st_blocks * 512) / 1024, folios() - before);
    printf("shorter: %s\n", said(ftruncate(fd, size + 3 * page)));
    printf("inside %s, behind %s, %s\n", touch(at + size + 2 * page), touch(at + size + 3 * page),
           touch(second + size));
    printf("huge pages %ld\n", folios() - before);
    printf("longer: %s, reads %d\n", said(ftruncate(fd, 3 * size)), at[2 * size]);
    munmap(second, 2 * size);
    munmap(odd, 2 * size);
    munmap(own, 2 * size);
    munmap(at, 3 * size);
    close(fd);
    printf("closed: huge pages %ld\n", folios() - before);

    printf("never: %s\n", said(set("never")));
    fd = memfd_create("small", 0);
    ftruncate(fd, 2 * size);
    room = mmap(0, 4 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    at = (char *)(((uintptr_t)room + size - 1) & -size);
    at = mmap(at, 2 * size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    for (size_t i = 0; i < size / page; i += 7)
        at[i * page] = i;
    printf("%ld leaves; collapse: %s", leaves(at), said(madvise(at, size, MADV_COLLAPSE)));
    printf(", then %ld, reads %d %d\n", leaves(at), at[7 * page], at[8 * page]);
    if (!fork()) {
        printf("a child reads %d, has %ld leaves\n", at[14 * page], leaves(at));
        exit(fflush(stdout));
    }
    wait(0);
    close(fd);

    fd = open("/dev/shm/mounted", O_RDWR | O_CREAT | O_EXCL, 0600);
    unlink("/dev/shm/mounted");
    ftruncate(fd, 2 * size);
    at = mmap(at, 2 * size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    set("always");
    at[0] = 1;
    printf("always, on a mount: %ld leaves\n", leaves(at));
    set("force");
    at[size] = 1;
    printf("force, on a mount: %ld leaves\n", leaves(at));
    set("never");
}

// More than a small machine has: two processes, one of which shows it at an odd address.
static void pressure(void) {
    size_t length = 6 * size;
    unsigned wrong = 0, sum = 0;
    set("always");
    char *at = shared(length);
    for (size_t i = 0; i < length / page; i++)
        *(unsigned *)(at + i * page) = i + 1;
    pid_t child = fork();
    if (!child) {
        char *room = mmap(0, length + 2 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        char *odd = (char *)(((uintptr_t)room + size - 1) & -size) + page;
        odd = mremap(at, 0, length, MREMAP_MAYMOVE | MREMAP_FIXED, odd);
        for (size_t i = 0; i < length / page; i++)
            wrong += *(unsigned *)(odd + i * page) != i + 1;
        for (size_t i = 0; i < length / page; i += 3)
            *(unsigned *)(odd + i * page) += 5;
        exit(wrong != 0);
    }
    int status;
    waitpid(child, &status, 0);
    for (size_t i = 0; i < length / page; i++)
        sum += *(unsigned *)(at + i * page) == i + 1 + (i % 3 ? 0 : 5);
    printf("the child is right: %d, so is the parent: %d\n", status == 0, sum == length / page);
    madvise(at, length, MADV_REMOVE);
    printf("nothing is left: %d\n", at[size] + at[5 * size + page]);
    set("never");
}

int main(int count, char **words) {
    char line[64];
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "r");
    size = atol(fgets(line, sizeof line, file));
    fclose(file);
    page = getpagesize();
    setbuf(stdout, 0);
    signal(SIGBUS, on_bus);
    if (count > 1 && !strcmp(words[1], "memory"))
        memory();
    else if (count > 1 && !strcmp(words[1], "pressure"))
        pressure();
    else
        files();
    return 0;
}
