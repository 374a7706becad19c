/* wild: hands pointers that the program has no right to use to system calls. None may do harm: each answers
 * EFAULT, or what little it could do before the pointer mattered. One row a call, one column a kind of
 * pointer. */
#include "aether.h"

struct iovec {
    void *base;
    u64 length;
};
struct pollfd {
    i32 fd;
    u16 events, revents;
};

static int self, directory, ends[2];
static char good[256];
static struct iovec vector[2];
static struct pollfd ready;
static const struct sigaltstack stack = {(void *)(1UL << 32), 0, 0, 64 * KIB};
static const u64 no_time[2]; /* a timespec of zero */

#define CALL(name, expression)                                                                               \
    static i64 name(char *p) { return (i64)(expression); }
#define REWIND(fd) (void)SYSCALL(lseek, fd, 0, 0)

CALL(do_read, (REWIND(self), SYSCALL(read, self, p, 64)))
CALL(do_read_nothing, SYSCALL(read, self, p, 0))
CALL(do_read_endless, SYSCALL(read, self, p, 1UL << 63))
CALL(do_pread, SYSCALL(pread64, self, p, 64, 0))
CALL(do_write, SYSCALL(write, ends[1], p, 64))
CALL(do_readv_table, SYSCALL(readv, self, p, 1))
CALL(do_readv_base, (REWIND(self), vector[0] = (struct iovec){p, 64}, SYSCALL(readv, self, vector, 1)))
CALL(do_readv_second, (REWIND(self), vector[0] = (struct iovec){good, 8}, vector[1] = (struct iovec){p, 64},
                       SYSCALL(readv, self, vector, 2)))
CALL(do_writev_table, SYSCALL(writev, ends[1], p, 1))
CALL(do_writev_base, (vector[0] = (struct iovec){p, 64}, SYSCALL(writev, ends[1], vector, 1)))
CALL(do_fstat, SYSCALL(fstat, self, p))
CALL(do_stat_path, SYSCALL(newfstatat, AT_FDCWD, p, good, 0))
CALL(do_stat_answer, SYSCALL(newfstatat, AT_FDCWD, "/", p, 0))
CALL(do_statx_path, SYSCALL(statx, AT_FDCWD, p, 0, 0x7ff, good))
CALL(do_statx_answer, SYSCALL(statx, AT_FDCWD, "/", 0, 0x7ff, p))
CALL(do_openat, SYSCALL(openat, AT_FDCWD, p, O_RDONLY, 0))
CALL(do_faccessat, SYSCALL(faccessat, AT_FDCWD, p, 0))
CALL(do_readlinkat, SYSCALL(readlinkat, AT_FDCWD, p, good, sizeof good))
CALL(do_getdents, (REWIND(directory), SYSCALL(getdents64, directory, p, 256)))
CALL(do_getcwd, SYSCALL(getcwd, p, 256))
CALL(do_uname, SYSCALL(uname, p))
CALL(do_sysinfo, SYSCALL(sysinfo, p))
CALL(do_getrusage, SYSCALL(getrusage, 0, p))
CALL(do_times, SYSCALL(times, p))
CALL(do_clock_gettime, SYSCALL(clock_gettime, 1, p))
CALL(do_gettimeofday, SYSCALL(gettimeofday, p, NULL))
CALL(do_nanosleep, SYSCALL(nanosleep, p, NULL))
CALL(do_getrandom, SYSCALL(getrandom, p, 64, 0))
CALL(do_action, SYSCALL(rt_sigaction, SIGUSR1, p, NULL, 8))
CALL(do_old_action, SYSCALL(rt_sigaction, SIGUSR1, NULL, p, 8))
CALL(do_mask, SYSCALL(rt_sigprocmask, SIG_BLOCK, p, NULL, 8))
CALL(do_old_mask, SYSCALL(rt_sigprocmask, SIG_BLOCK, NULL, p, 8))
CALL(do_sigpending, SYSCALL(rt_sigpending, p, 8))
CALL(do_altstack, (SYSCALL(sigaltstack, &stack, NULL), SYSCALL(sigaltstack, p, NULL)))
CALL(do_old_altstack, SYSCALL(sigaltstack, NULL, p))
CALL(do_limit, SYSCALL(prlimit64, 0, 4 /* RLIMIT_CORE */, p, NULL))
CALL(do_old_limit, SYSCALL(prlimit64, 0, 4, NULL, p))
CALL(do_ioctl, SYSCALL(ioctl, self, 0x5401 /* TCGETS */, p))
CALL(do_futex_wait, SYSCALL(futex, p, 128 /* FUTEX_WAIT, private */, 1, no_time))
CALL(do_futex_timeout, SYSCALL(futex, good, 128, 1, p))
CALL(do_futex_wake, SYSCALL(futex, p, 129 /* FUTEX_WAKE, private */, 1))
CALL(do_poll, SYSCALL(ppoll, p, 1, no_time, NULL, 8))
CALL(do_poll_timeout, SYSCALL(ppoll, &ready, 1, p, NULL, 8))
CALL(do_mremap, SYSCALL(mremap, p, PAGE, PAGE, 0))
CALL(do_mincore, SYSCALL(mincore, (u64)good & -PAGE, PAGE, p))

static i64 do_pipe(char *p) {
    i64 result = SYSCALL(pipe2, p, 0);
    if (!IS_ERROR(result)) SYSCALL(close, ((int *)p)[0]), SYSCALL(close, ((int *)p)[1]);
    return result;
}

static const struct {
    const char *name;
    i64 (*call)(char *);
    int counts;
} calls[] = {{"read", do_read, 1},
             {"read of 0 bytes", do_read_nothing, 1},
             {"read of 2^63", do_read_endless, 1},
             {"pread64", do_pread, 1},
             {"write", do_write, 1},
             {"readv: table", do_readv_table, 1},
             {"readv: buffer", do_readv_base, 1},
             {"readv: buffer 2", do_readv_second, 1},
             {"writev: table", do_writev_table, 1},
             {"writev: buffer", do_writev_base, 1},
             {"fstat", do_fstat, 0},
             {"newfstatat: path", do_stat_path, 0},
             {"newfstatat: answer", do_stat_answer, 0},
             {"statx: path", do_statx_path, 0},
             {"statx: answer", do_statx_answer, 0},
             {"openat", do_openat, 0},
             {"faccessat", do_faccessat, 0},
             {"readlinkat: path", do_readlinkat, 0},
             {"getdents64", do_getdents, 0},
             {"getcwd", do_getcwd, 0},
             {"uname", do_uname, 0},
             {"sysinfo", do_sysinfo, 0},
             {"getrusage", do_getrusage, 0},
             {"times", do_times, 0},
             {"clock_gettime", do_clock_gettime, 0},
             {"gettimeofday", do_gettimeofday, 0},
             {"nanosleep", do_nanosleep, 0},
             {"getrandom", do_getrandom, 1},
             {"rt_sigaction: new", do_action, 0},
             {"rt_sigaction: old", do_old_action, 0},
             {"sigprocmask: new", do_mask, 0},
             {"sigprocmask: old", do_old_mask, 0},
             {"rt_sigpending", do_sigpending, 0},
             {"sigaltstack: new", do_altstack, 0},
             {"sigaltstack: old", do_old_altstack, 0},
             {"prlimit64: new", do_limit, 0},
             {"prlimit64: old", do_old_limit, 0},
             {"ioctl TCGETS", do_ioctl, 0},
             {"pipe2", do_pipe, 0},
             {"futex wait", do_futex_wait, 0},
             {"futex wait: time", do_futex_timeout, 0},
             {"futex wake", do_futex_wake, 1},
             {"ppoll: table", do_poll, 1},
             {"ppoll: time", do_poll_timeout, 1},
             {"mremap", do_mremap, 0},
             {"mincore: answer", do_mincore, 0}};

int main(int argc, char **argv) {
    (void)argc;
    char *base = mmap(NULL, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (IS_ERROR(base)) FAIL("mmap: %s", answer((i64)base));
    char *forbidden = base, *constant = base + PAGE, *hole = base + 3 * PAGE;
    memset(forbidden, 'f', PAGE);
    munmap(hole, PAGE);
    mprotect(forbidden, PAGE, PROT_NONE);
    mprotect(constant, PAGE, PROT_READ);
    self = open_self(argv);
    directory = (int)open("/", O_RDONLY | O_DIRECTORY);
    if (directory < 0 || SYSCALL(pipe2, ends, 0) < 0) FAIL("cannot open / or a pipe");
    ready = (struct pollfd){self, 1 /* POLLIN */, 0};

    const struct {
        const char *name;
        char *pointer;
    } columns[] = {{"null", NULL},
                   {"kernel", (char *)KERNEL_HALF + 0x10000},
                   {"beyond", (char *)(1UL << 56)},
                   {"last", (char *)-8L},
                   {"hole", hole + 64},
                   {"noaccess", forbidden},
                   {"readonly", constant},
                   {"straddle", hole - 1}};
    printf("%-18s", "");
    for (u64 c = 0; c < COUNT(columns); c++) printf(" %8s", columns[c].name);
    printf("\n");
    for (u64 i = 0; i < COUNT(calls); i++) {
        printf("%-18s", calls[i].name);
        for (u64 c = 0; c < COUNT(columns); c++) {
            hole[-1] = 'a'; /* no end of a string */
            i64 result = calls[i].call(columns[c].pointer);
            if (calls[i].counts && !IS_ERROR(result)) printf(" %8ld", result);
            else printf(" %8s", answer(result));
        }
        printf("\n");
    }
    mprotect(forbidden, PAGE, PROT_READ);
    for (u64 i = 0; i < PAGE; i++)
        if (forbidden[i] != 'f' || constant[i] != 0) FAIL("a call wrote where it must not");
    printf("nothing was written where it must not\n");
    return 0;
}
