// MADV_FREE: pages stay until memory is short, a store takes one back, and what is clean goes without swap.
// MADV_PAGEOUT stands for the shortage: it takes freed pages as reclaim does.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 16 };
static long page;
static char smaps[1 << 20];

static char *fresh(void)
{
    char *at = mmap(0, (PAGES + 2) * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + page;
    mprotect(at, PAGES * page, PROT_READ | PROT_WRITE);
    madvise(at, PAGES * page, MADV_NOHUGEPAGE);
    for (int i = 0; i < PAGES; i++)
        memset(at + i * page, i + 1, page);
    return at;
}

// What smaps says of the area at `at`, in pages.
static long told(const char *at, const char *field)
{
    int fd = open("/proc/self/smaps", O_RDONLY);
    long length = 0, got;
    while ((got = read(fd, smaps + length, sizeof smaps - 1 - length)) > 0)
        length += got;
    close(fd);
    smaps[length] = 0;
    char start[32];
    sprintf(start, "%lx-", (long)at);
    char *area = strstr(smaps, start), *row = area ? strstr(area, field) : 0;
    return row ? atol(row + strlen(field)) * 1024 / page : -1;
}

static void settle(void) // the kernel notes what was freed in batches: another call makes it finish
{
    char *other = fresh();
    madvise(other, page, MADV_FREE);
    munmap(other - page, (PAGES + 2) * page);
}

static const char *holds(const char *at)
{
    static char text[PAGES + 1];
    for (int i = 0; i < PAGES; i++) {
        int right = 1, zero = 1;
        for (long j = 0; j < page; j++) {
            right &= at[i * page + j] == i + 1;
            zero &= at[i * page + j] == 0;
        }
        text[i] = right ? '=' : zero ? '0' : at[i * page] == 'x' ? 'x' : '?';
    }
    return text;
}

static void free_all(char *at)
{
    printf("freed: %d\n", madvise(at, PAGES * page, MADV_FREE));
    settle();
}

static long counted(const char *name)
{
    int fd = open("/proc/vmstat", O_RDONLY);
    smaps[read(fd, smaps, sizeof smaps - 1)] = 0;
    close(fd);
    char *row = strstr(smaps, name);
    return row ? atol(row + strlen(name)) : -1;
}

// Two thirds of memory, freed; then as much again. Only with what was freed is there room for both.
static int press(void)
{
    long pages = sysconf(_SC_PHYS_PAGES) * 2 / 3;
    char *old = mmap(0, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (long i = 0; i < pages; i++)
        *(long *)(old + i * page) = i + 1;
    madvise(old, pages * page, MADV_FREE);
    for (long i = 0; i < pages; i += 16)
        *(long *)(old + i * page) = -i;
    char *more = mmap(0, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (long i = 0; i < pages; i++)
        *(long *)(more + i * page) = i + 1;
    long wrong = 0, gone = 0;
    for (long i = 0; i < pages; i++) {
        long is = *(long *)(old + i * page);
        wrong += *(long *)(more + i * page) != i + 1;
        wrong += i % 16 ? is && is != i + 1 : is != -i;
        gone += i % 16 && !is;
    }
    printf("wrong: %ld, some gone: %d, counted: %d, to swap: %ld\n", wrong, gone > 0,
           gone == counted("pglazyfreed "), counted("zswpout "));
    return 0;
}

int main(int count, char **arguments)
{
    page = sysconf(_SC_PAGESIZE);
    if (count > 1 && !strcmp(arguments[1], "press"))
        return press();
    char *at = fresh();
    printf("lazy before: %ld\n", told(at, "LazyFree:"));
    free_all(at);
    printf("lazy: %ld, resident: %ld\n", told(at, "LazyFree:"), told(at, "Rss:"));
    printf("%s\n", holds(at));
    for (int i = 0; i < PAGES; i += 4)
        at[i * page] = 'x';
    printf("lazy after stores: %ld\n", told(at, "LazyFree:"));
    madvise(at, PAGES * page, MADV_PAGEOUT);
    printf("%s\n", holds(at));

    puts("a store by a call takes a page back:");
    at = fresh();
    free_all(at);
    int ends[2];
    if (pipe(ends) || write(ends[1], "x", 1) != 1 || read(ends[0], at + 3 * page, 1) != 1)
        return 1;
    madvise(at, PAGES * page, MADV_PAGEOUT);
    printf("%s\n", holds(at));

    puts("after mprotect and back, and after mremap:");
    at = fresh();
    free_all(at);
    at[5 * page] = 'x';
    mprotect(at, PAGES * page, PROT_READ);
    mprotect(at, PAGES * page, PROT_READ | PROT_WRITE);
    char *to = fresh();
    at = mremap(at, PAGES * page, PAGES * page, MREMAP_MAYMOVE | MREMAP_FIXED, to);
    madvise(at, PAGES * page, MADV_PAGEOUT);
    printf("%s\n", holds(at));

    puts("after a fork the other side's store is its own:");
    at = fresh();
    free_all(at);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        at[2 * page] = 'x';
        printf("%s\n", holds(at));
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, 0, 0);
    madvise(at, PAGES * page, MADV_PAGEOUT);
    printf("%s\n", holds(at));

    puts("what the other side of a fork has not freed stays:");
    at = fresh();
    int hold[2];
    if (pipe(hold))
        return 1;
    fflush(stdout);
    child = fork();
    if (!child) {
        char byte;
        close(hold[1]);
        read(hold[0], &byte, 1);
        printf("%s\n", holds(at));
        fflush(stdout);
        _exit(0);
    }
    free_all(at);
    printf("lazy: %ld\n", told(at, "LazyFree:"));
    fflush(stdout);
    madvise(at, PAGES * page, MADV_PAGEOUT);
    close(hold[1]);
    waitpid(child, 0, 0);

    puts("what is locked, or of a file, is refused:");
    at = fresh();
    mlock(at, page);
    printf("%s\n", madvise(at, page, MADV_FREE) ? strerror(errno) : "freed");
    at = mmap(0, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    printf("%s\n", madvise(at, page, MADV_FREE) ? strerror(errno) : "freed");
    return 0;
}
