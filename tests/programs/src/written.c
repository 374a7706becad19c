// Finds what another process wrote: /proc/PID/clear_refs 4, and bit 55 of /proc/PID/pagemap, as a checkpoint does.
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

#define RW (PROT_READ | PROT_WRITE)
#define SOFT_DIRTY (1ull << 55)
#define PAGES 16

static size_t page;
static int commands[2], answers[2], refs, pagemap;
static volatile char sink;

static void check(int good, const char *what) {
    if (good)
        return;
    printf("%s: errno %d\n", what, errno);
    exit(1);
}

static char *map(size_t pages, int flags, int fd) {
    char *at = mmap(0, pages * page, RW, flags, fd, 0);
    check(at != MAP_FAILED, "mmap");
    return at;
}

// ---- who looks

static void forget(void) { check(write(refs, "4", 1) == 1, "clear_refs"); }

static void show(const char *what, char *at) {
    uint64_t entries[PAGES];
    ssize_t got = pread(pagemap, entries, sizeof entries, (uintptr_t)at / page * 8);
    check(got == sizeof entries, "pagemap");
    printf("%-36s ", what);
    for (int i = 0; i < PAGES; i++)
        putchar(entries[i] & SOFT_DIRTY ? 'W' : entries[i] >> 63 ? '.' : '-');
    putchar('\n');
}

static void order(char command) {
    char answer;
    check(write(commands[1], &command, 1) == 1, "order");
    check(read(answers[0], &answer, 1) == 1, "answer");
}

// ---- who writes

static char *data, *shared, *private_file, *room, *grown;

static void touch(char *at, int step) {
    for (int i = 0; i < PAGES; i += step)
        at[i * page] = (char)(i + 1);
}

static void look(char *at) {
    for (int i = 0; i < PAGES; i++)
        sink = at[i * page];
}

static void obey(char command) {
    switch (command) {
    case 'a': touch(data, 1), touch(shared, 1); break;
    case 'b': look(data), look(shared), look(private_file), look(room); break;
    case 'c': touch(data, 3), touch(shared, 5), touch(private_file, 7), touch(room, 2); break;
    case 'd':
        mprotect(data, PAGES * page, PROT_READ), mprotect(data, PAGES * page, PROT_NONE);
        mprotect(data, PAGES * page, RW);
        break;
    case 'e': touch(data, 4); break;
    case 'f':
        touch(data, 5), mprotect(data, PAGES * page, PROT_NONE), mprotect(data, PAGES * page, PROT_READ);
        break;
    case 'g': mprotect(data, PAGES * page, RW), madvise(data, 8 * page, MADV_DONTNEED), look(data); break;
    case 'h':
        check(mremap(data + 8 * page, 4 * page, 4 * page, MREMAP_MAYMOVE | MREMAP_FIXED, grown) == grown, "mremap");
        break;
    case 'i':
        check(mmap(room + 4 * page, 4 * page, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED, "mmap");
        break;
    case 'j':
        if (!fork()) {
            touch(shared, 8), touch(private_file, 1);
            _exit(0);
        }
        wait(0);
        break;
    case 'k': touch(private_file, 6); break;
    case 'l': check(pread(open("/proc/self/exe", O_RDONLY), room + 2 * page, page, 0) > 0, "pread"); break;
    }
}

static void work(void) {
    close(commands[1]);
    char command;
    while (read(commands[0], &command, 1) == 1) {
        obey(command);
        check(write(answers[1], &command, 1) == 1, "answer");
    }
    _exit(0);
}

int main(void) {
    page = sysconf(_SC_PAGESIZE);
    data = map(PAGES, MAP_PRIVATE | MAP_ANONYMOUS, -1), shared = map(PAGES, MAP_SHARED | MAP_ANONYMOUS, -1);
    int file = memfd_create("file", 0);
    check(!ftruncate(file, PAGES * page), "ftruncate");
    mprotect(map(1, MAP_PRIVATE | MAP_ANONYMOUS, -1), page, PROT_NONE); // keeps areas apart
    private_file = map(PAGES, MAP_PRIVATE, file), room = map(PAGES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    mprotect(map(1, MAP_PRIVATE | MAP_ANONYMOUS, -1), page, PROT_NONE);
    grown = map(PAGES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    check(!pipe(commands) && !pipe(answers), "pipe");
    pid_t child = fork();
    if (!child)
        work();
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/clear_refs", child);
    refs = open(path, O_WRONLY);
    snprintf(path, sizeof path, "/proc/%d/pagemap", child);
    pagemap = open(path, O_RDONLY);
    check(refs >= 0 && pagemap >= 0, "open");

    show("an area is new", data);
    order('a');
    show("it was written", data);
    forget();
    show("forgotten", data);
    show("shared", shared);
    order('b');
    show("read only", data);
    show("shared", shared);
    show("a file", private_file);
    show("zeros", room);
    order('c');
    show("every third page", data);
    show("shared, every fifth", shared);
    show("a file, every seventh", private_file);
    show("zeros, every second", room);
    forget();
    order('d');
    show("other protections, and back", data);
    order('e');
    show("every fourth", data);
    forget();
    order('f');
    show("every fifth, then protected", data);
    order('g');
    show("the first half discarded and read", data);
    forget();
    order('h');
    show("a part has moved away", data);
    show("to here", grown);
    order('i');
    show("a part is mapped anew", room);
    forget();
    show("forgotten", room);
    order('j');
    show("what a child writes to shared memory", shared);
    show("and to its own", private_file);
    order('k');
    show("every sixth", private_file);
    order('l');
    show("what a system call writes", room);
    close(commands[1]);
    waitpid(child, 0, 0);
    return 0;
}
