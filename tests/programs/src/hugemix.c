// Huge pages of shared memory, and of a pool, beside other parts of a kernel that touch pages. As root.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/userfaultfd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static size_t size, page;

static const char *said(long result) { return result == -1 ? strerror(errno) : "ok"; }

static void set(const char *word) {
    int fd = open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", O_WRONLY);
    write(fd, word, strlen(word));
    close(fd);
}

static long leaves(const void *at) {
    char line[256];
    long value = -1;
    int here = 0;
    FILE *file = fopen("/proc/self/smaps", "r");
    while (fgets(line, sizeof line, file)) {
        unsigned long a, b;
        if (sscanf(line, "%lx-%lx ", &a, &b) == 2)
            here = a == (unsigned long)at;
        else if (here && !strncmp(line, "ShmemPmdMapped:", 15))
            value = atol(line + 15) * 1024 / (long)size;
    }
    fclose(file);
    return value;
}

static char *shared(size_t length) {
    return mmap(0, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

// A function that returns a number, for the machine that runs.
static void emit(char *at, int value) {
#ifdef __x86_64__
    char code[] = {(char)0xb8, (char)value, 0, 0, 0, (char)0xc3};
#else
    uint32_t code[] = {0x52800000u | (unsigned)value << 5, 0xd65f03c0u};
#endif
    memcpy(at, code, sizeof code);
}

static void code(void) {
    int fd = memfd_create("code", 0);
    ftruncate(fd, size);
    char *store = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *run = mmap(0, size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    int sum = 0;
    for (int i = 1; i <= 40; i++) {
        char *place = store + (i % 4) * (size / 4) + 64;
        emit(place, i);
        __builtin___clear_cache(run + (place - store), run + (place - store) + 64);
        sum += ((int (*)(void))(run + (place - store)))();
    }
    printf("code by two leaves: sum %d, %ld and %ld leaves\n", sum, leaves(store), leaves(run));
    char *third = mmap(0, size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    sum = 0;
    for (int i = 1; i <= 20; i++) {
        emit(third + page * i, i);
        __builtin___clear_cache(third + page * i, third + page * i + 64);
        sum += ((int (*)(void))(third + page * i))();
    }
    printf("code by one: sum %d, %ld leaves\n", sum, leaves(third));
    munmap(store, size), munmap(run, size), munmap(third, size), close(fd);
}

static void faults_of_its_own(void) {
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
    printf("userfaultfd: %s\n", said(ioctl(fd, UFFDIO_API, &api)));
    char *at = shared(2 * size), *source = malloc(page);
    memset(source, 'u', page);
    struct uffdio_register all = {.range = {(uintptr_t)at, size}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    printf("register: %s\n", said(ioctl(fd, UFFDIO_REGISTER, &all)));
    struct uffdio_copy copy = {.dst = (uintptr_t)at + 3 * page, .src = (uintptr_t)source, .len = page};
    printf("copy: %s\n", said(ioctl(fd, UFFDIO_COPY, &copy)));
    printf("it reads %c, %ld leaves\n", at[3 * page], leaves(at));
    at[size] = 'n';
    printf("beside it %ld leaves\n", leaves(at + size));
    ioctl(fd, UFFDIO_UNREGISTER, &all.range);
    printf("collapse: %s", said(madvise(at, size, MADV_COLLAPSE)));
    printf(", reads %c %d, %ld leaves\n", at[3 * page], at[0], leaves(at));
    munmap(at, 2 * size), close(fd), free(source);
}

static void from_outside(void) {
    char *at = shared(2 * size), text[8] = "";
    memset(at, 'o', 2 * size);
    pid_t parent = getpid(), child = fork();
    if (!child) {
        munmap(at, 2 * size);
        struct iovec here = {text, 7}, there = {at + size - 3, 7};
        printf("a child reads %ld", (long)process_vm_readv(parent, &here, 1, &there, 1, 0));
        printf(" %s", text);
        here.iov_base = (char *)"written";
        printf(", and writes %ld\n", (long)process_vm_writev(parent, &here, 1, &there, 1, 0));
        _exit(fflush(stdout));
    }
    waitpid(child, 0, 0);
    printf("it reads %.7s, %ld leaves\n", at + size - 3, leaves(at));
    int fd = open("/proc/self/mem", O_RDWR);
    pwrite(fd, "mem", 3, (uintptr_t)at + size - 1);
    printf("it reads %.3s\n", at + size - 1);
    close(fd);
    unsigned char seen[4] = "";
    mincore(at + size - 2 * page, 4 * page, seen);
    printf("mincore %d%d%d%d\n", seen[0] & 1, seen[1] & 1, seen[2] & 1, seen[3] & 1);
    printf("mlock of a part: %s", said(mlock(at + page, page)));
    printf(", munlock: %s, it reads %c\n", said(munlock(at + page, page)), at[page]);
    int ends[2];
    pipe(ends);
    struct iovec piece = {at + size + 5 * page, 5};
    at[size + 5 * page] = 'v';
    printf("vmsplice: %ld", (long)vmsplice(ends[1], &piece, 1, 0));
    read(ends[0], text, 5);
    printf(" %.5s\n", text);
    printf("dontfork: %s", said(madvise(at, page, MADV_DONTFORK)));
    printf(", dofork: %s\n", said(madvise(at, page, MADV_DOFORK)));
    printf("grown: ");
    char *to = mremap(at, 2 * size, 3 * size, MREMAP_MAYMOVE);
    printf("%s, it reads %.3s\n", said(to == MAP_FAILED ? -1 : 0), to + size - 1);
    munmap(to, 3 * size);
}

// Equal huge pages of private memory become one page: the scan splits them.
static void equal(void) {
    char *at = mmap(0, 3 * size, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    at = (char *)(((uintptr_t)at + size - 1) & -size);
    madvise(at, 2 * size, MADV_HUGEPAGE);
    for (size_t i = 0; i < 2 * size / page; i++)
        memset(at + i * page, 'e' + (i % 3 == 0), page);
    at[7 * page + 1] = 'x';
    printf("mergeable: %s\n", said(madvise(at, 2 * size, MADV_MERGEABLE)));
    for (int i = 0; i < 4; i++)
        usleep(300000);
    int right = 1;
    for (size_t i = 0; i < 2 * size / page; i++)
        right &= at[i * page] == 'e' + (i % 3 == 0);
    printf("right %d, and %c\n", right, at[7 * page + 1]);
    at[page] = 'w';
    printf("a store into a merged page: %c %c\n", at[page], at[2 * page]);
    printf("unmergeable: %s\n", said(madvise(at, 2 * size, MADV_UNMERGEABLE)));
    printf("collapse: %s", said(madvise(at, size, MADV_COLLAPSE)));
    printf(", %c %c %c\n", at[page], at[2 * page], at[7 * page + 1]);
}

int main(void) {
    char line[64];
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "r");
    size = atol(fgets(line, sizeof line, file));
    fclose(file);
    page = getpagesize();
    setbuf(stdout, 0);
    set("always");
    code();
    faults_of_its_own();
    from_outside();
    set("never");
    equal();
    return 0;
}
