// What memory a program was promised: VmFlags' ac, Committed_AS, and with "modes" overcommit_memory 0, 1 and 2.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#define RW (PROT_READ | PROT_WRITE)
#define PRIVATE (MAP_PRIVATE | MAP_ANONYMOUS)
#define MIB (1l << 20)
#define SIZE (4 * MIB)

static long figure(const char *name) {
    static char text[16384], *line;
    int fd = open("/proc/meminfo", O_RDONLY);
    text[read(fd, text, sizeof text - 1)] = 0;
    close(fd);
    line = strstr(text, name);
    return line ? atol(line + strlen(name) + 1) : -1;
}

static void set(const char *name, const char *value) {
    char path[64];
    snprintf(path, sizeof path, "/proc/sys/vm/%s", name);
    int fd = open(path, O_WRONLY);
    ssize_t done = fd < 0 ? -1 : write(fd, value, strlen(value));
    printf("%s = %s: %s\n", name, value, done > 0 ? "set" : errno == EINVAL ? "EINVAL" : errno == EACCES ? "EACCES" : "?");
    if (fd >= 0)
        close(fd);
}

static const char *said(const void *at) { return at != MAP_FAILED ? "ok" : errno == ENOMEM ? "ENOMEM" : "another error"; }

static char *map(size_t size, int protection, int flags) { return mmap(0, size, protection, flags, -1, 0); }

// Whether the area at an address is accounted.
static void flags(const char *what, void *at) {
    static char line[4096];
    FILE *smaps = fopen("/proc/self/smaps", "r");
    unsigned long start, end;
    int here = 0;
    while (fgets(line, sizeof line, smaps)) {
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            here = start <= (uintptr_t)at && (uintptr_t)at < end;
        else if (here && !strncmp(line, "VmFlags:", 8))
            printf("%-32s %s\n", what, strstr(line, " ac ") ? "accounted" : "not");
    }
    fclose(smaps);
}

static void accounted(void) {
    long page = sysconf(_SC_PAGESIZE);
    char *at = map(SIZE, RW, PRIVATE);
    at[0] = 1;
    flags("private", at);
    mprotect(at, SIZE, PROT_READ);
    flags("it was written, and may not", at);
    at = map(SIZE, PROT_READ, PRIVATE);
    flags("read only", at);
    mprotect(at, SIZE, RW);
    flags("and now writable", at);
    flags("without reserve", map(SIZE, RW, PRIVATE | MAP_NORESERVE));
    flags("shared", map(SIZE, RW, MAP_SHARED | MAP_ANONYMOUS));
    int file = memfd_create("file", 0);
    ftruncate(file, SIZE);
    flags("a private file", mmap(0, SIZE, RW, MAP_PRIVATE, file, 0));
    flags("a shared file", mmap(0, SIZE, RW, MAP_SHARED, file, 0));
    flags("the stack", &page);
    at = sbrk(page);
    flags("the heap", at);
    printf("%-32s %s\n", "sixteen TiB", said(map(1l << 44, RW, PRIVATE)));
    printf("%-32s %s\n", "sixteen TiB, without reserve", said(map(1l << 44, RW, PRIVATE | MAP_NORESERVE)));
    printf("%-32s %s\n", "sixteen TiB, read only", said(map(1l << 44, PROT_READ, PRIVATE)));
}

static long last;

static void told(const char *what) {
    long now = figure("Committed_AS:");
    printf("%-32s %+ld KiB\n", what, now - last);
    last = now;
}

static void counted(void) {
    last = figure("Committed_AS:");
    char *at = map(SIZE, RW, PRIVATE);
    told("private");
    mprotect(at, SIZE, PROT_READ);
    told("read only");
    mprotect(at, MIB, RW);
    told("a part writable again");
    munmap(at, 2 * MIB);
    told("half of it unmapped");
    at = mremap(at + 2 * MIB, 2 * MIB, 8 * MIB, MREMAP_MAYMOVE);
    told("made longer");
    char *other = map(SIZE, PROT_READ, PRIVATE | MAP_NORESERVE);
    told("read only, without reserve");
    mmap(at, MIB, RW, PRIVATE | MAP_FIXED, -1, 0);
    told("a part replaced");
    munmap(at, 8 * MIB), munmap(other, SIZE);
    told("unmapped");
    char *shared = map(SIZE, RW, MAP_SHARED | MAP_ANONYMOUS);
    told("shared");
    munmap(shared, MIB);
    told("a part unmapped");
    munmap(shared + MIB, SIZE - MIB);
    told("all unmapped");
    int segment = shmget(IPC_PRIVATE, SIZE, 0600);
    told("a segment");
    shmctl(segment, IPC_RMID, 0);
    told("removed");
    at = map(SIZE, RW, PRIVATE);
    int ends[2];
    char byte;
    pipe(ends);
    pid_t child = fork();
    if (!child)
        _exit(read(ends[0], &byte, 1));
    long forked = figure("Committed_AS:") - last;
    printf("%-32s %s\n", "a child", forked >= 2 * SIZE >> 10 ? "has it all again" : "has less");
    write(ends[1], "", 1), waitpid(child, 0, 0);
    munmap(at, SIZE);
    told("which has ended");
}

static void modes(void) {
    counted();
    long total = figure("MemTotal:") * 1024, limit = figure("CommitLimit:") * 1024;
    printf("half of memory: %d\n", limit >= total / 2 - 4096 && limit <= total / 2);
    printf("mode 0, more than memory: %s\n", said(map(total + MIB, RW, PRIVATE)));
    printf("mode 0, half twice: %s", said(map(total / 2, RW, PRIVATE)));
    char *half = map(total / 2, RW, PRIVATE);
    printf(" %s\n", said(half));
    set("overcommit_memory", "1");
    char *more = map(2 * total, RW, PRIVATE);
    printf("mode 1, more than memory: %s\n", said(more));
    munmap(more, 2 * total), munmap(half, total / 2);
    set("overcommit_memory", "3");
    set("overcommit_memory", "two");
    set("overcommit_memory", "2");
    printf("mode 2, too much is promised: %s\n", said(map(MIB, RW, PRIVATE)));
    printf("without reserve: %s\n", said(map(MIB, RW, PRIVATE | MAP_NORESERVE)));
    printf("read only: %s\n", said(map(MIB, PROT_READ, PRIVATE)));
    printf("shared: %s\n", said(map(MIB, RW, MAP_SHARED | MAP_ANONYMOUS)));
    printf("the heap: %s\n", sbrk(MIB) == (void *)-1 ? "ENOMEM" : "ok");
    pid_t child = fork();
    if (!child)
        _exit(0);
    printf("fork: %s\n", child < 0 && errno == ENOMEM ? "ENOMEM" : "ok");
    set("overcommit_ratio", "200");
    printf("mode 2, of twice the memory: %s\n", said(map(MIB, RW, PRIVATE)));
    more = map(4 * MIB, PROT_READ, PRIVATE);
    long room = figure("CommitLimit:") - figure("Committed_AS:");
    char value[32];
    snprintf(value, sizeof value, "%ld", figure("CommitLimit:") - room + 2 * 1024);
    set("admin_reserve_kbytes", "0"), set("user_reserve_kbytes", "0");
    int fd = open("/proc/sys/vm/overcommit_kbytes", O_WRONLY);
    write(fd, value, strlen(value));
    printf("2 MiB are left: %ld KiB\n", figure("CommitLimit:") - figure("Committed_AS:"));
    printf("mprotect of 4: %d\n", mprotect(more, 4 * MIB, RW) < 0 ? errno == ENOMEM : 2);
    printf("mprotect of 1: %d\n", mprotect(more, MIB, RW));
    printf("made longer by 2: %s\n", said(mremap(more, MIB, 3 * MIB, MREMAP_MAYMOVE)));
    printf("made longer by a half: %s\n", said(mremap(more, MIB, MIB + MIB / 2, MREMAP_MAYMOVE)));
}

int main(int argc, char **argv) {
    setvbuf(stdout, 0, _IONBF, 0);
    if (argc > 1 && !strcmp(argv[1], "modes"))
        modes();
    else
        accounted();
    return 0;
}
