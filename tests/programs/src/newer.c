// What Linux has had since 6.6: areas asked for one by one, signals by the kind of whom they are for, and others.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define RW (PROT_READ | PROT_WRITE)
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

static size_t page;

static const char *result(long value) {
    if (value >= 0)
        return "ok";
    switch (errno) {
    case EPERM: return "EPERM";
    case EINVAL: return "EINVAL";
    case ENOMEM: return "ENOMEM";
    case EFAULT: return "EFAULT";
    case ENOENT: return "ENOENT";
    case ESRCH: return "ESRCH";
    case EBADF: return "EBADF";
    case E2BIG: return "E2BIG";
    case ENOTTY: return "ENOTTY";
    case ENAMETOOLONG: return "ENAMETOOLONG";
    case ENOSYS: return "ENOSYS";
    }
    return strerror(errno);
}

#define TELL(what, call) printf("%-44s %s\n", what, result((long)(call)))

static char *map(void *at, size_t pages, int protection, int flags) {
    char *where = mmap(at, pages * page, protection, flags | MAP_ANONYMOUS, -1, 0);
    if (where == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    return where;
}

// ---- PROCMAP_QUERY

struct query {
    uint64_t size, flags, address, start, end, area_flags, page_size, offset, inode;
    uint32_t major, minor, name_size, id_size;
    uint64_t name, id;
};
#define QUERY _IOWR('f', 17, struct query)
enum { READABLE = 1, WRITABLE = 2, EXECUTABLE = 4, SHARED = 8, OR_NEXT = 16, OF_FILE = 32 };

static int maps;

static void ask(const char *what, char *base, uint64_t address, uint64_t flags) {
    char name[256] = "-";
    struct query query = {.size = sizeof query, .flags = flags, .address = address, .name_size = sizeof name,
                          .name = (uintptr_t)name};
    if (ioctl(maps, QUERY, &query)) {
        printf("%-44s %s\n", what, result(-1));
        return;
    }
    const char *end = strrchr(name, '/');
    printf("%-44s pages %lld to %lld, flags %llx, of %llu, at %llu, inode %s, \"%s\", %u\n", what,
           (long long)(int64_t)(query.start - (uintptr_t)base) / (long long)page,
           (long long)(int64_t)(query.end - (uintptr_t)base) / (long long)page, (unsigned long long)query.area_flags,
           (unsigned long long)(query.page_size / page), (unsigned long long)(query.offset / page),
           query.area_flags & SHARED ? "whatever" : query.inode ? "some" : "none", query.name_size ? end ? end + 1 : name : "", end ? 0 : query.name_size);
}

static long raw(struct query query, size_t size) {
    query.size = size;
    return ioctl(maps, QUERY, &query);
}

static void areas(void) {
    printf("-- areas\n");
    maps = open("/proc/self/maps", O_RDONLY);
    char *base = map(0, 16, PROT_NONE, MAP_PRIVATE);
    munmap(base, 16 * page);
    map(base + page, 2, RW, MAP_PRIVATE | MAP_FIXED);
    map(base + 3 * page, 1, PROT_READ, MAP_PRIVATE | MAP_FIXED);
    map(base + 6 * page, 2, RW, MAP_SHARED | MAP_FIXED);
    int file = memfd_create("queried", 0);
    ftruncate(file, 8 * page);
    mmap(base + 10 * page, 2 * page, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, 3 * page);
    uint64_t at = (uintptr_t)base;
    ask("the first", base, at + page, 0);
    ask("in the midst", base, at + 2 * page + 5, 0);
    ask("where nothing is", base, at + 4 * page, 0);
    ask("or the next", base, at + 4 * page, OR_NEXT);
    ask("that is writable", base, at + 3 * page, WRITABLE);
    ask("that is writable, or the next", base, at + 3 * page, WRITABLE | OR_NEXT);
    ask("of a file", base, at + page, OF_FILE);
    ask("of a file, or the next", base, at + page, OF_FILE | OR_NEXT);
    ask("executable, or the next", base, at + page, EXECUTABLE | OR_NEXT | OF_FILE);
    ask("shared", base, at + 6 * page, SHARED | READABLE);
    ask("above everything", base, ~0ull - 4095, OR_NEXT);
    struct query query = {.address = at + page};
    TELL("too short", raw(query, 16));
    TELL("short", raw(query, 24));
    TELL("longer than a page", raw(query, page + 8));
    TELL("unknown flags", raw((struct query){.address = at, .flags = 64}, sizeof query));
    TELL("a name without room", raw((struct query){.address = at + page, .name = at}, sizeof query));
    TELL("room without a place", raw((struct query){.address = at + page, .id_size = 20}, sizeof query));
    char little[4];
    TELL("little room", raw((struct query){.address = at + 10 * page, .name = (uintptr_t)little, .name_size = 4},
                            sizeof query));
    struct { struct query query; uint64_t more; } longer = {{.size = sizeof longer, .address = at + page}, 0};
    TELL("longer, with nothing in it", ioctl(maps, QUERY, &longer));
    longer.more = 1;
    TELL("longer, with something in it", ioctl(maps, QUERY, &longer));
    TELL("another control", ioctl(maps, _IO('f', 99)));
    unsigned char id[20] = {0};
    struct query own = {.size = sizeof own, .address = at + page, .id_size = sizeof id, .id = (uintptr_t)id};
    TELL("a build ID of what is no file", ioctl(maps, QUERY, &own));
    printf("  it has %u bytes\n", own.id_size);
    // An ELF file with a note, made here: what was compiled has none, or another each time.
    struct { uint8_t magic[16]; uint16_t type, machine; uint32_t version; uint64_t entry, headers, sections; uint32_t flags;
             uint16_t size, header_size, count, rest[3]; } elf = {{0x7f, 'E', 'L', 'F', 2, 1, 1}, 3, 62, 1, 0, 64, 0, 0, 64, 56, 1, {0}};
    struct { uint32_t type, flags; uint64_t offset, va, pa, in_file, in_memory, align; } segment = {4, 4, page - 8, 0, 0, 40, 40, 4};
    struct { uint32_t name, size, type; char text[4]; unsigned char data[8]; } note = {4, 8, 3, "GNU", {1, 2, 3, 4, 5, 6, 7, 8}};
    pwrite(file, &elf, sizeof elf, 0);
    pwrite(file, &segment, sizeof segment, 64);
    pwrite(file, &note, sizeof note, page - 8);
    own = (struct query){.size = sizeof own, .address = at + 10 * page, .id_size = sizeof id, .id = (uintptr_t)id};
    TELL("a build ID", ioctl(maps, QUERY, &own));
    printf("  it has %u bytes, from %d to %d\n", own.id_size, id[0], id[7]);
    own.id_size = 4;
    TELL("a build ID, little room", ioctl(maps, QUERY, &own));
    int ends[2];
    pipe(ends);
    pid_t child = fork();
    if (!child) {
        char byte;
        close(ends[1]);
        read(ends[0], &byte, 1);
        _exit(0);
    }
    char path[64];
    sprintf(path, "/proc/%d/maps", child);
    close(maps);
    maps = open(path, O_RDONLY);
    ask("another's", base, at + page, 0);
    close(ends[0]), close(ends[1]);
    waitpid(child, 0, 0);
    ask("that of who is gone", base, at + page, 0);
    close(maps), close(file);
    munmap(base, 16 * page);
}

// ---- signals

static volatile int got, code_got;
static volatile pid_t by;

static void caught(int number, siginfo_t *info, void *context) {
    (void)context;
    got = number, code_got = info->si_code, by = gettid();
}

static long send(int fd, int number, siginfo_t *info, unsigned flags) {
    return syscall(SYS_pidfd_send_signal, fd, number, info, flags);
}

static void sent(const char *what, long done) {
    printf("%-44s %s", what, result(done));
    if (got)
        printf(", it came, code %d, to the %s thread", code_got, by == getpid() ? "first" : "other");
    printf("\n");
    got = 0;
}

static void *other(void *where) {
    sigset_t none;
    sigemptyset(&none);
    pthread_sigmask(SIG_SETMASK, &none, 0);
    int fd = *(int *)where;
    sent("the other's own thread", send(-10000, SIGUSR1, 0, 0));
    sent("as a process", send(-10000, SIGUSR1, 0, 2));
    sent("the process", send(fd, SIGUSR1, 0, 2));
    send(fd, SIGUSR1, 0, 1);
    sigset_t waiting;
    sigpending(&waiting);
    printf("waits in the other: %d\n", sigismember(&waiting, SIGUSR1));
    siginfo_t info = {.si_signo = SIGUSR2, .si_code = 0};
    sent("as the kernel, by another thread", send(fd, SIGUSR2, &info, 0));
    return 0;
}

static void signals(void) {
    printf("-- signals\n");
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, 0);
    sigaction(SIGUSR2, &action, 0);
    int fd = syscall(SYS_pidfd_open, getpid(), 0);
    sent("to the process", send(fd, SIGUSR1, 0, 0));
    sent("to its first thread", send(fd, SIGUSR1, 0, 1));
    sent("to the thread group", send(fd, SIGUSR1, 0, 2));
    sent("two kinds", send(fd, SIGUSR1, 0, 3));
    sent("an unknown kind", send(fd, SIGUSR1, 0, 8));
    sent("no signal", send(fd, 99, 0, 1));
    siginfo_t info = {.si_signo = SIGUSR2, .si_code = 0};
    sent("as the kernel", send(fd, SIGUSR2, &info, 0));
    sent("as the kernel, to a group", send(fd, SIGUSR2, &info, 4));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, 0);
    pthread_t thread;
    pthread_create(&thread, 0, other, &fd);
    pthread_join(thread, 0);
    pthread_sigmask(SIG_UNBLOCK, &set, 0);
    sent("what was left for the first", 0);
    pid_t child = fork();
    if (!child) {
        setpgid(0, 0);
        int own = syscall(SYS_pidfd_open, getpid(), 0);
        pid_t grandchild = fork();
        if (!grandchild) {
            pause();
            _exit(1);
        }
        signal(SIGTERM, SIG_IGN);
        long done = send(own, SIGTERM, 0, 4);
        int status = 0;
        waitpid(grandchild, &status, 0);
        printf("%-44s %s, ended by %d\n", "to the group", result(done), WTERMSIG(status));
        fflush(stdout);
        int outside = syscall(SYS_pidfd_open, getppid(), 0);
        (void)outside;
        _exit(0);
    }
    waitpid(child, 0, 0);
    child = fork();
    if (!child) {
        pause();
        _exit(1);
    }
    int its = syscall(SYS_pidfd_open, child, 0);
    TELL("to a group that nobody is in", send(its, SIGTERM, 0, 4));
    TELL("kill it", send(its, SIGKILL, 0, 1));
    waitpid(child, 0, 0);
    TELL("to who is gone", send(its, SIGTERM, 0, 1));
    close(its), close(fd);
}

// ---- advice, and memory of who was killed

static void advice(void) {
    printf("-- advice\n");
    char *where = map(0, 2, RW, MAP_PRIVATE);
    int fd = syscall(SYS_pidfd_open, getpid(), 0);
    struct iovec none = {where, 0}, some = {where, page}, odd = {where + 1, 0};
    TELL("unknown advice for nothing", syscall(SYS_process_madvise, fd, &none, 1, 12345, 0));
    TELL("at no page", syscall(SYS_process_madvise, fd, &odd, 1, 12345, 0));
    TELL("for no pieces", syscall(SYS_process_madvise, fd, &none, 0, 12345, 0));
    TELL("unknown advice for a page", syscall(SYS_process_madvise, fd, &some, 1, 12345, 0));
    TELL("unknown flags", syscall(SYS_process_madvise, fd, &none, 1, 4, 1));
    TELL("reap oneself", syscall(SYS_process_mrelease, fd, 0));
    TELL("with flags", syscall(SYS_process_mrelease, fd, 1));
    TELL("of no process", syscall(SYS_process_mrelease, 0, 0));
    pid_t child = fork();
    if (!child) {
        pause();
        _exit(1);
    }
    int its = syscall(SYS_pidfd_open, child, 0);
    TELL("reap who lives", syscall(SYS_process_mrelease, its, 0));
    kill(child, SIGKILL);
    long done = syscall(SYS_process_mrelease, its, 0);
    printf("%-44s %s\n", "reap who was killed", done == 0 || errno == ESRCH ? "ok" : result(done));
    siginfo_t info;
    waitid(P_PID, child, &info, WEXITED | WNOWAIT);
    TELL("reap who has ended", syscall(SYS_process_mrelease, its, 0));
    waitpid(child, 0, 0);
    TELL("reap who was waited for", syscall(SYS_process_mrelease, its, 0));
    close(its), close(fd);
    munmap(where, 2 * page);
}

int main(void) {
    page = sysconf(_SC_PAGESIZE);
    setvbuf(stdout, 0, _IOLBF, 0);
    areas();
    signals();
    advice();
    return 0;
}
