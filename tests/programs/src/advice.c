// Sealed memory, guard regions and advice to a process: mseal, MADV_GUARD_INSTALL, process_madvise.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define MSEAL 462
#define GUARD 102
#define UNGUARD 103
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define RW (PROT_READ | PROT_WRITE)

static size_t page;
static sigjmp_buf back;
static int code;
static void *at;

static const char *name(long result) {
    if (result >= 0)
        return "ok";
    static const struct {
        int number;
        const char *name;
    } known[] = {{EPERM, "EPERM"}, {EINVAL, "EINVAL"}, {ENOMEM, "ENOMEM"}, {EFAULT, "EFAULT"}, {EACCES, "EACCES"},
                 {ESRCH, "ESRCH"}, {EBADF, "EBADF"}, {EAGAIN, "EAGAIN"}, {ENOSYS, "ENOSYS"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].number == errno)
            return known[i].name;
    return "another error";
}

#define TELL(what, call) printf("%-40s %s\n", what, name((long)(call)))

static void caught(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    code = info->si_code, at = info->si_addr;
    siglongjmp(back, 1);
}

static void touch(const char *what, char *where, int store) {
    if (sigsetjmp(back, 1)) {
        printf("%-40s %s%s\n", what, code == SEGV_MAPERR ? "SEGV_MAPERR" : code == SEGV_ACCERR ? "SEGV_ACCERR" : "?",
               at == where ? "" : " elsewhere");
        return;
    }
    if (store)
        *(volatile char *)where = 7;
    printf("%-40s %d\n", what, *(volatile char *)where);
}

static char *map(size_t pages, int protection) {
    char *where = mmap(0, pages * page, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (where == MAP_FAILED)
        abort();
    return where;
}

static long seal(void *where, size_t length, unsigned long flags) { return syscall(MSEAL, where, length, flags); }

static void sealed(void) {
    puts("-- sealed");
    char *room = map(8, RW), *where = room + 2 * page;
    memset(room, 5, 8 * page);
    TELL("flags", seal(where, page, 1));
    TELL("unaligned", seal(where + 1, page, 0));
    TELL("nothing", seal(where, 0, 0));
    TELL("seal", seal(where, 2 * page, 0));
    TELL("again", seal(where, page, 0));
    TELL("munmap", munmap(where, page));
    TELL("munmap of more", munmap(room, 8 * page));
    TELL("mmap over it", mmap(where, page, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ? -1 : 0);
    TELL("mprotect", mprotect(where, page, PROT_READ));
    TELL("mprotect to the same", mprotect(where, page, RW));
    TELL("mremap: longer", mremap(where, 2 * page, 3 * page, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0);
    TELL("mremap: shorter", mremap(where, 2 * page, page, 0) == MAP_FAILED ? -1 : 0);
    TELL("discarded, writable", madvise(where, page, MADV_DONTNEED));
    touch("reads", where, 0);
    touch("its neighbour", where + page, 0);
    touch("stores", where, 1);
    TELL("mprotect up to it", mprotect(room, 3 * page, PROT_READ));
    touch("what came before it", room, 1);
    TELL("munmap beside it", munmap(room + 4 * page, 4 * page));
    TELL("seal with a hole", seal(where, 4 * page, 0));
    char *fixed = map(2, RW);
    memset(fixed, 6, 2 * page);
    TELL("mprotect", mprotect(fixed, 2 * page, PROT_READ));
    TELL("seal", seal(fixed, page, 0));
    TELL("discarded, read only", madvise(fixed, page, MADV_DONTNEED));
    TELL("freed", madvise(fixed, page, MADV_FREE));
    TELL("guarded", madvise(fixed, page, GUARD));
    TELL("wiped at a fork", madvise(fixed, page, MADV_WIPEONFORK));
    TELL("not dumped", madvise(fixed, page, MADV_DONTDUMP));
    TELL("advised", madvise(fixed, page, MADV_WILLNEED));
    touch("reads", fixed, 0);
    TELL("beside it", madvise(fixed + page, page, MADV_DONTNEED));
    touch("reads", fixed + page, 0);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        TELL("in a child", munmap(where, page));
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, 0, 0);
}

static void resident(const char *what, char *where, size_t pages) {
    unsigned char seen[16];
    mincore(where, pages * page, seen);
    printf("%-40s ", what);
    for (size_t i = 0; i < pages; i++)
        putchar('0' + (seen[i] & 1));
    int file = open("/proc/self/pagemap", O_RDONLY);
    putchar(' ');
    for (size_t i = 0; i < pages; i++) {
        uint64_t entry = 0;
        pread(file, &entry, 8, ((uintptr_t)where / page + i) * 8);
        putchar(entry >> 63 ? 'p' : entry >> 58 & 1 ? 'g' : '-');
    }
    close(file);
    putchar('\n');
}

static void guarded(void) {
    puts("-- guarded");
    char *room = map(8, RW);
    memset(room, 5, 8 * page);
    TELL("unaligned", madvise(room + 1, page, GUARD));
    TELL("guard two pages in use", madvise(room + 2 * page, 2 * page, GUARD));
    resident("resident", room, 8);
    touch("load", room + 2 * page + 9, 0);
    touch("store", room + 3 * page, 1);
    touch("before", room + 2 * page - 1, 0);
    touch("behind", room + 4 * page, 1);
    TELL("again", madvise(room + page, 2 * page, GUARD));
    resident("resident", room, 8);
    TELL("discard all", madvise(room, 8 * page, MADV_DONTNEED));
    touch("a page without", room, 1);
    touch("a guarded page", room + 3 * page, 1);
    TELL("populate", madvise(room, 8 * page, MADV_POPULATE_WRITE));
    TELL("read into it", read(open("/dev/zero", O_RDONLY), room + 2 * page, 8));
    TELL("mprotect", mprotect(room, 8 * page, PROT_READ));
    touch("a guarded page", room + page, 0);
    TELL("mprotect", mprotect(room, 8 * page, PROT_NONE));
    touch("no access", room + page, 0);
    TELL("mprotect", mprotect(room, 8 * page, RW));
    touch("a guarded page", room + page, 1);
    char *other = map(8, PROT_NONE);
    char *moved = mremap(room, 8 * page, 8 * page, MREMAP_MAYMOVE | MREMAP_FIXED, other);
    TELL("moved", moved == MAP_FAILED ? -1 : 0);
    touch("a guarded page", moved + page, 1);
    touch("a page without", moved, 1);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        touch("in a child", moved + 3 * page, 1);
        TELL("removed in the child", madvise(moved, 8 * page, UNGUARD));
        touch("in the child", moved + 3 * page, 1);
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, 0, 0);
    touch("in the parent", moved + 3 * page, 1);
    TELL("remove one", madvise(moved + 3 * page, page, UNGUARD));
    touch("the page", moved + 3 * page, 0);
    touch("the next", moved + 2 * page, 0);
    TELL("map over them", mmap(moved, 4 * page, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ? -1 : 0);
    touch("the page", moved + 2 * page, 1);
    size_t many = (20 << 20) / page;
    TELL("guard a lot", madvise(map(many, RW), many * page, GUARD));
    char *empty = map(4, RW);
    TELL("guard what was never touched", madvise(empty, 4 * page, GUARD));
    touch("it", empty, 0);
    TELL("locked", mlock(moved, page));
    TELL("guard it", madvise(moved, page, GUARD));
    TELL("lock the guarded", mlock(empty, page));
}

static void advised(void) {
    puts("-- process_madvise");
    char *room = map(8, RW);
    memset(room, 5, 8 * page);
    int self = syscall(SYS_pidfd_open, getpid(), 0);
    struct iovec two[] = {{room, page}, {room + 4 * page, 2 * page}};
    printf("%-40s %ld\n", "dontneed", syscall(SYS_process_madvise, self, two, 2, MADV_DONTNEED, 0) / (long)page);
    resident("resident", room, 8);
    printf("%-40s %ld\n", "cold", syscall(SYS_process_madvise, self, two, 2, MADV_COLD, 0) / (long)page);
    TELL("flags", syscall(SYS_process_madvise, self, two, 2, MADV_COLD, 1));
    TELL("no advice", syscall(SYS_process_madvise, self, two, 2, 77, 0));
    TELL("no process", syscall(SYS_process_madvise, 0, two, 2, MADV_COLD, 0));
    struct iovec bad[] = {{room, page}, {room + 1, page}};
    printf("%-40s %ld\n", "the second is refused", syscall(SYS_process_madvise, self, bad, 2, MADV_COLD, 0) / (long)page);
    TELL("the first is refused", syscall(SYS_process_madvise, self, bad + 1, 1, MADV_COLD, 0));
    if (!geteuid() && setresuid(1000, 1000, 1000))
        abort();
    prctl(PR_SET_DUMPABLE, 1);
    int ends[2];
    if (pipe(ends))
        abort();
    pid_t child = fork();
    if (!child) {
        close(ends[1]);
        _exit(read(ends[0], room, 1) + room[0]);
    }
    int other = syscall(SYS_pidfd_open, child, 0);
    TELL("a child's, without CAP_SYS_NICE", syscall(SYS_process_madvise, other, two, 2, MADV_PAGEOUT, 0));
    TELL("a child's, dontneed", syscall(SYS_process_madvise, other, two, 2, MADV_DONTNEED, 0));
    close(ends[1]);
    int status;
    waitpid(child, &status, 0);
    printf("%-40s %d\n", "it read", WEXITSTATUS(status));
    TELL("it has ended", syscall(SYS_process_madvise, other, two, 2, MADV_COLD, 0));
}

int main(void) {
    page = sysconf(_SC_PAGESIZE);
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, 0);
    sealed();
    guarded();
    advised();
    return 0;
}
