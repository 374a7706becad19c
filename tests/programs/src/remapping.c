// remap_file_pages(2); what mremap(2) refuses before it looks where it is; the peak of the resident memory, which clear_refs has begin anew.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RW (PROT_READ | PROT_WRITE)

static size_t page;

static const char *remap(char *where, size_t length, int protection, size_t from, int flags) {
    if (!syscall(SYS_remap_file_pages, where, length, protection, from, flags))
        return "ok";
    return errno == EINVAL ? "EINVAL" : errno == EOVERFLOW ? "EOVERFLOW" : strerror(errno);
}

static char *map(int file, int flags, int protection) {
    char *where = mmap(0, 8 * page, protection, flags | (file < 0 ? MAP_ANONYMOUS : 0), file, 0);
    if (where == MAP_FAILED)
        abort();
    return where;
}

static void other_pages(int file) {
    char *all = map(file, MAP_SHARED, RW);
    for (int i = 0; i < 8; i++)
        memset(all + i * page, 'a' + i, page);
    printf("one page: %s", remap(all, page, 0, 7, 0));
    printf(", %c\n", all[0]);
    printf("two: %s", remap(all + page, 2 * page, 0, 3, 0));
    printf(", %c%c%c\n", all[page], all[2 * page], all[3 * page]);
    printf("over what was mapped anew: %s", remap(all + page, 3 * page, 0, 0, 0));
    printf(", %c%c%c\n", all[page], all[2 * page], all[3 * page]);
    all[page] = 'A';
    printf("a store is seen: %c\n", map(file, MAP_SHARED, PROT_READ)[0]);
    printf("a protection: %s\n", remap(all, page, PROT_READ, 7, 0));
    printf("no length: %s\n", remap(all, 0, 0, 7, 0));
    printf("less than a page: %s\n", remap(all, page - 1, 0, 7, 0));
    printf("unaligned: %s", remap(all + 1, page, 0, 6, 0));
    printf(", %c\n", all[0]);
    printf("a page and more: %s", remap(all, page + 5, 0, 5, 0));
    printf(", %c%c\n", all[0], all[page]);
    printf("over the end: %s\n", remap(all + 7 * page, 2 * page, 0, 0, 0));
    printf("behind the file: %s\n", remap(all, page, 0, 100, 0));
    printf("any flags: %s\n", remap(all, page, 0, 7, 0xFFFFFF));
    printf("behind all files: %s\n", remap(all, page, 0, SIZE_MAX / page, 0));
    printf("no such page: %s\n", remap(all, page, 0, SIZE_MAX, 0));
    printf("wraps around: %s\n", remap((char *)-page, 2 * page, 0, 7, 0));
    printf("private: %s\n", remap(map(file, MAP_PRIVATE, RW), page, 0, 2, 0));
    printf("anonymous: %s\n", remap(map(-1, MAP_PRIVATE, RW), page, 0, 2, 0));
    char *shared = map(-1, MAP_SHARED, RW);
    shared[2 * page] = 'z';
    printf("shared and anonymous: %s", remap(shared, page, 0, 2, 0));
    printf(", %c\n", shared[0]);
    munmap(shared, page);
    printf("not mapped: %s\n", remap(shared, page, 0, 2, 0));
    char *read_only = map(file, MAP_SHARED, PROT_READ);
    printf("read-only: %s", remap(read_only, page, 0, 2, 0));
    printf(", %c\n", read_only[0]);
    char *mixed = map(file, MAP_SHARED, RW);
    mprotect(mixed + 2 * page, page, PROT_READ);
    printf("two protections: %s\n", remap(mixed + page, 2 * page, 0, 0, 0));
    munmap(mixed + 5 * page, page);
    printf("a hole: %s\n", remap(mixed + 4 * page, 3 * page, 0, 0, 0));
    printf("before it: %s\n", remap(mixed + 3 * page, 2 * page, 0, 0, 0));
    printf("no access: %s\n", remap(map(file, MAP_SHARED, PROT_NONE), page, 0, 5, 0));
    unsigned char there = 0;
    remap(shared + page, page, 0, 6, 0);
    mincore(shared + page, page, &there);
    printf("it is there: %d\n", there & 1);
}

static void control(const char *what) {
    int file = open("/proc/self/clear_refs", O_WRONLY);
    if (write(file, what, strlen(what)) < 0)
        puts("refused");
    close(file);
}

static long kilobytes(const char *name) {
    FILE *status = fopen("/proc/self/status", "r");
    char line[200];
    long value = -1;
    while (fgets(line, sizeof line, status))
        if (!strncmp(line, name, strlen(name)))
            value = atol(line + strlen(name));
    fclose(status);
    return value;
}

static void peak(void) {
    size_t length = 16 << 20;
    char *much = mmap(0, length, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(much, 1, length);
    munmap(much, length);
    printf("a peak is kept: %d\n", kilobytes("VmHWM:") - kilobytes("VmRSS:") > 12 << 10);
    control("5");
    printf("it begins anew: %d\n", kilobytes("VmHWM:") - kilobytes("VmRSS:") < 4 << 10);
    much = mmap(0, length / 2, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(much, 1, length / 2);
    munmap(much, length / 2);
    long over = kilobytes("VmHWM:") - kilobytes("VmRSS:");
    printf("and is lower: %d\n", over > 6 << 10 && over < 12 << 10);
}

static void move(const char *what, char *from, size_t old, size_t new, int flags, char *to) {
    long where = syscall(SYS_mremap, from, old, new, flags, to);
    printf("%s: %s\n", what, where != -1 ? "ok" : errno == EINVAL ? "EINVAL" : errno == EFAULT ? "EFAULT" : strerror(errno));
}

static void first_refused(int file) {
    char name[32];
    sprintf(name, "/proc/self/fd/%d", file);
    int reader = open(name, O_RDONLY);
    printf("by who cannot write: %s\n", remap(map(reader, MAP_SHARED, PROT_READ), page, 0, 1, 0));
    char *here = map(-1, MAP_PRIVATE, RW), *hole = map(-1, MAP_PRIVATE, RW), *high = (char *)(1UL << 62);
    munmap(hole, 8 * page);
    for (int i = 0; i < 2; i++) {
        char *from = i ? hole : here;
        printf("from %s\n", i ? "a hole" : "memory");
        move("no length", from, 8 * page, 0, MREMAP_MAYMOVE, 0);
        move("longer than all addresses", from, 8 * page, 1UL << 62, MREMAP_MAYMOVE, 0);
        move("onto itself", from, 8 * page, 8 * page, MREMAP_MAYMOVE | MREMAP_FIXED, from + page);
        move("too high", from, 8 * page, 8 * page, MREMAP_MAYMOVE | MREMAP_FIXED, high);
        move("in the midst of a page", from, 8 * page, 8 * page, MREMAP_MAYMOVE | MREMAP_FIXED, here + 16 * page + 1);
    }
    move("nothing there", hole, 8 * page, 8 * page, MREMAP_MAYMOVE, 0);
}

int main(void) {
    page = sysconf(_SC_PAGESIZE);
    int file = syscall(SYS_memfd_create, "pages", 0);
    if (ftruncate(file, 8 * page))
        abort();
    other_pages(file);
    first_refused(file);
    peak();
    return 0;
}
