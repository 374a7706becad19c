// What stands behind pages, as PAGEMAP_SCAN tells: categories, what is asked and what is returned, where it stops.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define RW (PROT_READ | PROT_WRITE)
#define REGIONS 12

struct scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, returned;
};
struct region {
    uint64_t start, end, categories;
};
#define SCAN _IOWR('f', 16, struct scan)
enum { WPALLOWED = 1, WRITTEN = 2, FILE_ = 4, PRESENT = 8, SWAPPED = 16, PFNZERO = 32, HUGE = 64, SOFT = 128, GUARD = 256 };
#define SHOWN (WPALLOWED | WRITTEN | FILE_ | PRESENT | SWAPPED | PFNZERO | GUARD)

static size_t page;
static char *base;
static int pagemap;
static volatile char sink;
static struct region regions[REGIONS];

static struct scan request(size_t first, size_t end) {
    return (struct scan){.size = sizeof(struct scan),
                         .start = (uintptr_t)(base + first * page),
                         .end = (uintptr_t)(base + end * page),
                         .vec = (uintptr_t)regions,
                         .vec_len = REGIONS,
                         .returned = SHOWN};
}

static int number(uint64_t address) { return (int)((int64_t)(address - (uintptr_t)base) / (int64_t)page); }

static void tell(const char *what, struct scan scan) {
    static const char *names[] = {"allowed", "written", "file", "present", "swapped", "zero", "huge", "soft", "guard"};
    int found = ioctl(pagemap, SCAN, &scan);
    printf("%s: ", what);
    if (found < 0) {
        printf("%s\n", errno == EINVAL ? "EINVAL" : errno == EFAULT ? "EFAULT" : errno == EPERM ? "EPERM" : "?");
        return;
    }
    printf("%d, up to %d\n", found, number(scan.walk_end));
    for (int i = 0; i < found; i++) {
        printf("    %d-%d", number(regions[i].start), number(regions[i].end));
        for (int bit = 0; bit < 9; bit++)
            if (regions[i].categories >> bit & 1)
                printf(" %s", names[bit]);
        putchar('\n');
    }
}

static void put(size_t first, size_t pages, int protection, int flags, int fd) {
    char *at = base + first * page;
    if (mmap(at, pages * page, protection, flags | MAP_FIXED, fd, 0) != at)
        abort();
}

int main(void) {
    page = sysconf(_SC_PAGESIZE);
    pagemap = open("/proc/self/pagemap", O_RDONLY);
    base = mmap(0, 256 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    munmap(base, 256 * page);
    base = (char *)(((uintptr_t)base + 127 * page) / (128 * page) * (128 * page)); // within one page table
    put(0, 10, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    madvise(base, 10 * page, MADV_NOHUGEPAGE);
    memset(base + page, 1, page);                  // its own
    sink = base[2 * page];                         // zeros
    memset(base + 3 * page, 1, 2 * page);          // written, then taken from everybody
    mprotect(base + 4 * page, page, PROT_NONE);
    memset(base + 6 * page, 1, page), memset(base + 9 * page, 1, page);
    put(12, 4, RW, MAP_SHARED | MAP_ANONYMOUS, -1); // after a hole
    memset(base + 13 * page, 1, page);
    int file = memfd_create("file", 0);
    ftruncate(file, 4 * page), pwrite(file, "x", 1, 0), pwrite(file, "x", 1, page);
    put(16, 4, RW, MAP_PRIVATE, file);
    madvise(base + 16 * page, 4 * page, MADV_RANDOM);
    sink = base[16 * page], base[17 * page] = 2;
    put(30, 10, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    madvise(base + 30 * page, 10 * page, MADV_NOHUGEPAGE);
    memset(base + 30 * page, 1, 10 * page);

    struct scan scan = request(0, 10);
    tell("private", scan);
    tell("shared, after a hole", request(9, 16));
    tell("a file", request(16, 20));
    tell("nothing", request(40, 60));

    scan = request(0, 80), scan.mask = PRESENT;
    tell("what is present", scan);
    scan.returned = PRESENT;
    tell("without what it is else", scan);
    scan.returned = 0;
    tell("nothing returned", scan);
    scan.mask = PRESENT | PFNZERO, scan.inverted = PFNZERO, scan.returned = SHOWN;
    tell("present, and no zeros", scan);
    scan.mask = 0, scan.inverted = 0, scan.anyof = FILE_ | PFNZERO;
    tell("a file or zeros", scan);
    scan = request(0, 20), scan.mask = scan.inverted = PRESENT;
    tell("what is not present", scan);

    scan = request(0, 80), scan.mask = PRESENT, scan.max_pages = 5;
    tell("five pages", scan);
    scan.max_pages = 2;
    tell("two pages", scan);
    scan.max_pages = 0, scan.vec_len = 2;
    tell("two regions", scan);
    scan.vec_len = 1, scan.returned = PRESENT;
    tell("one region", scan);
    scan.vec = scan.vec_len = 0;
    tell("no region", scan);

    scan = request(0, 40), scan.size--;
    tell("size", scan);
    scan = request(0, 40), scan.flags = 4;
    tell("flags", scan);
    scan = request(0, 40), scan.mask = 1 << 9;
    tell("mask", scan);
    scan = request(0, 40), scan.returned = 1ull << 40;
    tell("returned", scan);
    scan = request(0, 40), scan.start++;
    tell("start", scan);
    scan = request(0, 2), scan.end -= page / 2;
    tell("end", scan);
    scan = request(4, 2);
    tell("backwards", scan);
    scan = request(0, 40), scan.vec = 0;
    tell("vector", scan);
    scan = request(0, 40), scan.vec = ~0ull - 100;
    tell("vector in the kernel", scan);
    scan = request(0, 40), scan.vec = (uintptr_t)(base + 4 * page);
    tell("vector that nobody may write", scan);
    scan = request(0, 40), scan.end = ~0ull << 12;
    tell("end in the kernel", scan);
    scan = request(0, 40), scan.flags = 2;
    tell("nobody watches", scan);
    scan.flags = 1, scan.returned = SHOWN;
    tell("nothing to protect", scan);
    printf("another request: %d\n", ioctl(pagemap, _IOWR('f', 17, struct scan), &scan) < 0 ? errno == EINVAL : 2);
    return 0;
}
