// How many pages of its areas are on the node: /proc/self/numa_maps.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define RW (PROT_READ | PROT_WRITE)

static size_t page;
static volatile char sink;

static char *map(int flags, int fd) {
    char *at = mmap(0, 8 * page, RW, flags, fd, 0);
    madvise(at, 8 * page, MADV_NOHUGEPAGE);
    mmap(0, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at;
}

static void show(const char *what, void *at) {
    static char line[4096];
    FILE *maps = fopen("/proc/self/numa_maps", "r");
    while (fgets(line, sizeof line, maps)) {
        if (strtoul(line, 0, 16) != (uintptr_t)at)
            continue;
        printf("%-28s", what);
        strtok(line, " \n");
        for (char *word; (word = strtok(0, " \n"));)
            if (strncmp(word, "active=", 7) && strncmp(word, "kernelpagesize_kB=", 18))
                printf(" %s", word);
        putchar('\n');
    }
    fclose(maps);
}

int main(void) {
    page = sysconf(_SC_PAGESIZE);
    char *at = map(MAP_PRIVATE | MAP_ANONYMOUS, -1);
    show("nothing", at);
    sink = at[0];
    show("zeros", at);
    at[page] = at[3 * page] = 1;
    show("written", at);
    mprotect(at, 8 * page, PROT_NONE);
    show("nobody may", at);
    mprotect(at, 8 * page, RW);
    char *shared = map(MAP_SHARED | MAP_ANONYMOUS, -1);
    shared[0] = shared[page] = 1;
    show("shared", shared);
    int file = memfd_create("a file", 0);
    ftruncate(file, 8 * page), pwrite(file, "x", 1, 0);
    char *mine = map(MAP_PRIVATE, file);
    sink = mine[0], mine[page] = 1, mine[2 * page] = 1;
    show("private", mine);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        at[page] = 2, sink = (char)(shared[0] + shared[page]);
        show("a child", at);
        show("what it shares", shared);
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, 0, 0);
    show("after it", at);
    return 0;
}
