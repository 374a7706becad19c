// Files of a program as swap (swapon(2)): headers that serve and that do not, priorities, and what nobody may
// do to such a file. Argument: a folder on a disk. Prints the same natively, as root.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <unistd.h>

static char path[3][512];
static long page;

static const char *named(int result)
{
    static char other[32];
    if (!result)
        return "ok";
    switch (errno) {
    case EINVAL: return "EINVAL";
    case ENOENT: return "ENOENT";
    case EISDIR: return "EISDIR";
    case EBUSY: return "EBUSY";
    case ETXTBSY: return "ETXTBSY";
    case EPERM: return "EPERM";
    }
    snprintf(other, sizeof other, "errno %d", errno);
    return other;
}

// A file of so many pages, the first of them a header that tells of `last` and `bad`.
static void make(const char *name, int pages, uint32_t version, uint32_t last, uint32_t bad, const char *signature)
{
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    char *bytes = calloc(pages, page);
    memset(bytes, 'x', (size_t)pages * page);
    memset(bytes, 0, page);
    memcpy(bytes + 1024, &version, 4);
    memcpy(bytes + 1028, &last, 4);
    memcpy(bytes + 1032, &bad, 4);
    memcpy(bytes + page - 10, signature, 10);
    if (write(fd, bytes, (size_t)pages * page) != (ssize_t)pages * page)
        perror("write");
    fsync(fd);
    close(fd);
    free(bytes);
}

static void try(const char *what, const char *name, int flags) { printf("%s: %s\n", what, named(swapon(name, flags))); }

// The lines of /proc/swaps that are ours, without the folder.
static void show(const char *folder)
{
    char line[1024], name[1024], kind[64];
    unsigned long size, used;
    int priority, ranks = 0;
    FILE *file = fopen("/proc/swaps", "r");
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "%1023s %63s %lu %lu %d", name, kind, &size, &used, &priority) == 5 &&
            !strncmp(name, folder, strlen(folder)))
            printf("  %s: %s of %lu pages, priority %s %d\n", name + strlen(folder), kind, size * 1024 / page,
                   priority < 0 ? "below zero, of its own" : "as given", priority < 0 ? ++ranks : priority);
    fclose(file);
}

static long in_swap(const char *from, size_t length)
{
    int fd = open("/proc/self/pagemap", O_RDONLY);
    long count = 0;
    for (size_t at = 0; at < length; at += page) {
        uint64_t entry = 0;
        if (pread(fd, &entry, 8, ((uintptr_t)from + at) / page * 8) != 8)
            perror("pagemap");
        count += entry >> 62 & 1;
    }
    close(fd);
    return count;
}

int main(int count, char **arguments)
{
    const char *folder = count > 1 ? arguments[1] : "/tmp";
    page = sysconf(_SC_PAGESIZE);
    for (int i = 0; i < 3; i++)
        snprintf(path[i], sizeof path[i], "%s/swap%d", folder, i);
    setvbuf(stdout, NULL, _IOLBF, 0);

    make(path[0], 16, 1, 15, 0, "SWAPSPACE3");
    try("another signature", path[0], 0);
    make(path[0], 16, 2, 15, 0, "SWAPSPACE2");
    try("another version", path[0], 0);
    make(path[0], 16, 1, 0, 0, "SWAPSPACE2");
    try("no pages", path[0], 0);
    make(path[0], 16, 1, 16, 0, "SWAPSPACE2");
    try("a page too many", path[0], 0);
    make(path[0], 16, 1, 15, 1, "SWAPSPACE2");
    try("bad pages in a file", path[0], 0);
    make(path[0], 16, 1, 15, 0, "SWAPSPACE2");
    try("unknown flags", path[0], 0x200000);
    try("nothing there", "/proc/nothing", 0);
    try("a folder", folder, 0);
    try("a device", "/dev/zero", 0);
    printf("swapoff of what is no swap: %s\n", named(swapoff(path[0])));
    make(path[1], 1, 1, 15, 0, "SWAPSPACE2");
    if (truncate(path[1], 16 * page))
        perror("truncate");
    try("a file with holes", path[1], 0);

    make(path[0], 257, 1, 256, 0, "SWAPSPACE2");
    make(path[1], 65, 1, 64, 0, "SWAPSPACE2");
    int old = open(path[0], O_RDWR);
    char *shown = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, old, page);
    close(old);
    try("a good one", path[0], 0);
    try("the same again", path[0], 0);
    try("one with a priority", path[1], SWAP_FLAG_PREFER | 5);
    show(folder);

    int fd = open(path[0], O_RDWR);
    printf("open: %s\n", named(fd < 0));
    printf("write: %s\n", named(pwrite(fd, "x", 1, 0) != 1));
    printf("write nothing: %s, %s\n", named(write(fd, "x", 0)), named(pwrite(fd, "x", 0, 0)));
    printf("ftruncate: %s\n", named(ftruncate(fd, 0)));
    printf("ftruncate to another end: %s\n", named(ftruncate(fd, 257 * page)));
    printf("ftruncate beyond it: %s\n", named(ftruncate(fd, 258 * page)));
    printf("truncate: %s\n", named(truncate(path[0], page)));
    printf("open with O_TRUNC: %s\n", named(open(path[0], O_WRONLY | O_TRUNC) < 0 ? -1 : 0));
    printf("open with O_TRUNC to read: %s\n", named(open(path[0], O_RDONLY | O_TRUNC) < 0 ? -1 : 0));
    printf("creat: %s\n", named(creat(path[0], 0600) < 0 ? -1 : 0));
    printf("a hole by a mapping from before: %s\n", named(madvise(shown, page, MADV_REMOVE)));
    int other = open(path[2], O_RDWR | O_CREAT, 0600);
    off_t here = 0, there = 0;
    printf("copy_file_range from it: %s\n", named(copy_file_range(fd, &here, other, &there, page, 0) < 0 ? -1 : 0));
    printf("copy_file_range to it: %s\n", named(copy_file_range(other, &here, fd, &there, page, 0) < 0 ? -1 : 0));
    close(other);
    unlink(path[2]);
    struct stat now;
    fstat(fd, &now);
    printf("it still has %ld pages\n", (long)(now.st_size / page));
    printf("fallocate: %s\n", named(fallocate(fd, 0, 0, 300 * page)));
    printf("a shared mapping to write: %s\n", named(mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED));
    close(fd);
    printf("unlink: %s\n", named(unlink(path[0])));
    printf("rename: %s\n", named(rename(path[0], path[2])));

    size_t length = 128 * page;
    char *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t at = 0; at < length; at += 8)
        *(uint64_t *)(memory + at) = at * 0x9E3779B97F4A7C15u;
    printf("madvise: %s\n", named(madvise(memory, length, MADV_PAGEOUT)));
    printf("pages that went: %s\n", in_swap(memory, length) == 128 ? "all" : "some");
    printf("swapoff of the small one: %s\n", named(swapoff(path[1])));
    printf("swapoff of the large one: %s\n", named(swapoff(path[0])));
    printf("pages in swap: %ld\n", in_swap(memory, length));
    long wrong = 0;
    for (size_t at = 0; at < length; at += 8)
        wrong += *(uint64_t *)(memory + at) != at * 0x9E3779B97F4A7C15u;
    printf("wrong words: %ld\n", wrong);
    printf("swapoff again: %s\n", named(swapoff(path[0])));
    show(folder);
    printf("unlink: %s %s\n", named(unlink(path[0])), named(unlink(path[1])));
    return 0;
}
