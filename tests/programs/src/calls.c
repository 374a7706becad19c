// Makes system calls of every kind, well and badly, for a tracer to show. Prints nothing.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/times.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_openat2
#define SYS_openat2 437
#endif

#define CALL(name, ...) syscall(SYS_##name, ##__VA_ARGS__)
#define BAD ((void *)8)
#define NOWHERE (-100)

static char buffer[8192];
static int fds[2], one, two, three;
static struct timespec soon = {0, 1000000}, left;
static sigset_t nothing;

static void shut(long fd) { CALL(close, fd); }

static void handler(int number) { (void)number; }

static void files(void) {
  long fd = CALL(openat, NOWHERE, "made", O_RDWR | O_CREAT | O_EXCL, 0640);
  CALL(openat, NOWHERE, "made", O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
  CALL(openat, NOWHERE, "a/path/that/is/much/longer/than/a/buffer/is/shown", O_RDONLY | O_DIRECTORY);
  CALL(openat, NOWHERE, BAD, O_PATH);
  unsigned long how[3] = {O_RDONLY | O_CLOEXEC, 0, 8};
  shut(CALL(openat2, NOWHERE, "made", how, sizeof how));
  CALL(write, fd, "text\twith \"quotes\", \\ and \1\0017\377 more than fits", 46);
  CALL(write, fd, BAD, 5);
  CALL(write, fd, "", 0);
  CALL(pwrite64, fd, "abc", 3, 100);
  CALL(lseek, fd, 0, SEEK_SET);
  CALL(read, fd, buffer, 20);
  CALL(read, fd, BAD, 20);
  CALL(pread64, fd, buffer, 100, 1000);
  struct iovec vectors[3] = {{"one", 3}, {NULL, 0}, {"three", 5}}, into[2] = {{buffer, 4}, {buffer + 10, 100}};
  CALL(writev, fd, vectors, 3);
  CALL(writev, fd, BAD, 2);
  CALL(lseek, fd, 0, SEEK_SET);
  CALL(readv, fd, into, 2);
  CALL(preadv, fd, into, 2, 50, 0);
  CALL(pwritev, fd, vectors, 1, 50, 0);
  CALL(preadv2, fd, into, 1, 3, 0, 0);
  CALL(lseek, fd, 1000000, SEEK_HOLE);
  CALL(ftruncate, fd, 4096);
  CALL(fallocate, fd, 1, 0, 8192);
  CALL(fadvise64, fd, 0, 0, POSIX_FADV_WILLNEED);
  CALL(readahead, fd, 0, 10);
  CALL(fsync, fd);
  CALL(fdatasync, fd);
  CALL(fstat, fd, buffer);
  CALL(fstat, 99, buffer);
  CALL(newfstatat, NOWHERE, "tree/link", buffer, AT_SYMLINK_NOFOLLOW);
  CALL(newfstatat, NOWHERE, "gone", buffer, 0);
  CALL(faccessat, NOWHERE, "made", R_OK | W_OK);
  CALL(faccessat2, NOWHERE, "made", F_OK, AT_EACCESS);
  CALL(fchmod, fd, 0600);
  CALL(fchmodat, NOWHERE, "made", 0755);
  CALL(fchown, fd, -1, -1);
  CALL(fchownat, NOWHERE, "made", -1, -1, AT_SYMLINK_NOFOLLOW);
  struct timespec times[2] = {{5, 6}, {0, UTIME_NOW}};
  CALL(utimensat, NOWHERE, "made", times, 0);
  CALL(utimensat, fd, NULL, NULL, 0);
  CALL(linkat, NOWHERE, "made", NOWHERE, "link", 0);
  CALL(symlinkat, "target", NOWHERE, "symbolic");
  CALL(readlinkat, NOWHERE, "symbolic", buffer, 100);
  CALL(readlinkat, NOWHERE, "made", buffer, 100);
  CALL(renameat2, NOWHERE, "link", NOWHERE, "renamed", 1);
  CALL(mkdirat, NOWHERE, "folder", 0755);
  CALL(mknodat, NOWHERE, "regular", S_IFREG | 0644, 0);
  CALL(chdir, "folder");
  CALL(getcwd, BAD, 1);
  CALL(chdir, "..");
  long folder = CALL(openat, NOWHERE, "folder", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  CALL(getdents64, folder, buffer, sizeof buffer);
  CALL(getdents64, folder, buffer, sizeof buffer);
  CALL(fchdir, folder);
  CALL(chdir, "..");
  CALL(close, folder);
  CALL(unlinkat, NOWHERE, "folder", AT_REMOVEDIR);
  CALL(unlinkat, NOWHERE, "renamed", 0);
  CALL(unlinkat, NOWHERE, "symbolic", 0);
  CALL(unlinkat, NOWHERE, "regular", 0);
  CALL(umask, 077);
  CALL(umask, 022);
  CALL(truncate, "made", 10);
  CALL(flistxattr, fd, buffer, 0);
  CALL(sync_file_range, fd, 0, 0, 2);
  CALL(sendfile, 99, fd, NULL, 10);
  CALL(copy_file_range, fd, NULL, 99, NULL, 10, 0);
  CALL(close, fd);
  CALL(close, fd);
}

static void descriptors(void) {
  CALL(pipe2, fds, O_CLOEXEC | O_NONBLOCK);
  CALL(pipe2, BAD, 0);
  CALL(read, fds[0], buffer, 1);
  CALL(dup, 99);
  long copy = CALL(dup3, fds[0], 50, O_CLOEXEC);
  CALL(fcntl, copy, F_GETFD, 0);
  CALL(fcntl, copy, F_SETFD, 0);
  CALL(fcntl, copy, F_GETFD, 0);
  CALL(fcntl, copy, F_GETFL, 0);
  CALL(fcntl, copy, F_SETFL, O_RDONLY);
  CALL(fcntl, copy, F_DUPFD, 60);
  CALL(fcntl, copy, F_DUPFD_CLOEXEC, 70);
  CALL(fcntl, copy, F_GETPIPE_SZ, 0);
  CALL(fcntl, copy, 12345, 17);
  CALL(close_range, 50, 80, 0);
  CALL(ioctl, fds[0], 0x541B, &one);
  CALL(ioctl, fds[0], 0x5401, buffer);
  CALL(ioctl, fds[0], 0x5413, buffer);
  CALL(ioctl, fds[0], 0xc010ff55, buffer);
  long event = CALL(eventfd2, 3, EFD_CLOEXEC | EFD_SEMAPHORE);
  CALL(write, event, "\1\0\0\0\0\0\0", 8);
  struct pollfd polled[3] = {{fds[0], POLLIN, 0}, {event, POLLIN | POLLOUT, 0}, {-1, POLLPRI, 0}};
  CALL(ppoll, polled, 3, NULL, &nothing, 8);
  CALL(ppoll, polled, 1, &soon, NULL, 0);
  CALL(ppoll, NULL, 0, &soon, NULL, 0);
  fd_set in, out;
  FD_ZERO(&in);
  FD_ZERO(&out);
  FD_SET(fds[0], &in);
  FD_SET(event, &in);
  FD_SET(event, &out);
  CALL(pselect6, event + 1, &in, &out, NULL, NULL, NULL);
  FD_ZERO(&in);
  FD_SET(fds[0], &in);
  struct timespec brief = soon;
  CALL(pselect6, fds[0] + 1, &in, NULL, NULL, &brief, NULL);
  long set = CALL(epoll_create1, EPOLL_CLOEXEC);
  struct epoll_event wanted = {EPOLLIN | EPOLLET, {.u64 = 7}}, ready[4];
  CALL(epoll_ctl, set, EPOLL_CTL_ADD, event, &wanted);
  CALL(epoll_ctl, set, EPOLL_CTL_ADD, event, &wanted);
  CALL(epoll_pwait, set, ready, 4, 0, NULL, 8);
  CALL(epoll_pwait, set, ready, 4, 0, NULL, 8);
  CALL(epoll_ctl, set, EPOLL_CTL_DEL, event, NULL);
  long memory = CALL(memfd_create, "a name", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  CALL(fcntl, memory, 1033, 2);
  CALL(fcntl, memory, 1034, 0);
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 10};
  CALL(fcntl, memory, F_GETLK, &lock);
  CALL(close_range, fds[0], ~0U, 0);
}

static void memory(void) {
  char *area = (char *)CALL(mmap, NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CALL(mmap, NULL, 0, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CALL(mmap, NULL, 4096, PROT_READ, MAP_PRIVATE, 99, 4096);
  CALL(mmap, area, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
  CALL(mprotect, area, 4096, PROT_READ | PROT_WRITE);
  CALL(mprotect, area + 1, 4096, PROT_NONE);
  area = (char *)CALL(mremap, area, 16384, 32768, MREMAP_MAYMOVE, 0);
  CALL(mremap, area, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, area);
  CALL(madvise, area, 4096, MADV_DONTNEED);
  CALL(madvise, area, 4096, 777);
  CALL(msync, area, 4096, MS_SYNC | MS_INVALIDATE);
  area[0] = 1;
  CALL(mincore, area, 8192, buffer);
  CALL(mlock, area, 4096);
  CALL(mlock2, area, 4096, 1);
  CALL(munlock, area, 4096);
  CALL(mlockall, 0);
  CALL(munlockall);
  CALL(munmap, area, 32768);
  CALL(munmap, area + 1, 1);
  CALL(brk, NULL);
}

static void signals(void) {
  struct {
    void *function;
    unsigned long flags;
    void *restorer;
    unsigned long mask;
  } ignore = {SIG_IGN, 0, NULL, 3}, old;
  CALL(rt_sigaction, SIGUSR1, &ignore, &old, 8);
  CALL(rt_sigaction, SIGUSR1, NULL, &old, 8);
  CALL(rt_sigaction, SIGKILL, &ignore, NULL, 8);
  CALL(rt_sigaction, 64, NULL, NULL, 8);
  CALL(rt_sigaction, 99, NULL, NULL, 8);
  signal(SIGUSR2, handler);
  unsigned long mask = 1UL << (SIGUSR2 - 1), all = ~0UL;
  CALL(rt_sigprocmask, SIG_BLOCK, &mask, buffer, 8);
  CALL(rt_sigprocmask, SIG_SETMASK, &all, NULL, 8);
  CALL(rt_sigprocmask, 77, &mask, NULL, 8);
  CALL(rt_sigprocmask, SIG_SETMASK, &mask, NULL, 8);
  CALL(kill, getpid(), SIGUSR2);
  CALL(tkill, getpid(), SIGUSR2);
  CALL(rt_sigpending, buffer, 8);
  CALL(rt_sigsuspend, &nothing, 8);
  CALL(rt_sigprocmask, SIG_SETMASK, &nothing, NULL, 8);
  CALL(tgkill, getpid(), getpid(), 0);
  CALL(kill, getpid(), 99);
  stack_t stack = {buffer, 0, sizeof buffer};
  CALL(sigaltstack, &stack, NULL);
  CALL(sigaltstack, NULL, &stack);
  stack.ss_flags = SS_DISABLE;
  CALL(sigaltstack, &stack, NULL);
}

static void times_and_waits(void) {
  soon.tv_nsec = 1000000;  // ppoll has left what was left
  CALL(clock_getres, CLOCK_MONOTONIC, &left);
  CALL(clock_gettime, 99, &left);
  CALL(nanosleep, &soon, NULL);
  CALL(nanosleep, &soon, &left);
  CALL(clock_nanosleep, CLOCK_MONOTONIC, 0, &soon, &left);
  CALL(clock_nanosleep, CLOCK_REALTIME, TIMER_ABSTIME, &soon, NULL);
  struct timespec bad = {-1, 5};
  CALL(nanosleep, &bad, BAD);
  CALL(futex, &one, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 5, NULL, NULL, 0);
  CALL(futex, &one, FUTEX_WAIT, 0, &soon, NULL, 0);
  CALL(futex, &one, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0);
  CALL(futex, &one, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME, 5, NULL, NULL, -1);
  CALL(futex, &one, FUTEX_WAKE_BITSET, 1, NULL, NULL, 3);
  CALL(futex, &one, FUTEX_REQUEUE, 1, 2, &two, 0);
  CALL(futex, &one, FUTEX_CMP_REQUEUE | FUTEX_PRIVATE_FLAG, 1, 2, &two, 7);
  CALL(futex, &one, FUTEX_WAKE_OP, 1, 1, &two, FUTEX_OP(FUTEX_OP_SET, 1, FUTEX_OP_CMP_EQ, 0));
  CALL(futex, &three, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0);
  CALL(futex, &three, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0);
}

static void process(void) {
  CALL(getppid);
  CALL(getpgid, 99999999);
  CALL(getresuid, &one, &two, BAD);
  CALL(getgroups, -1, buffer);
  struct rlimit limit = {4096, RLIM_INFINITY};
  CALL(prlimit64, 0, RLIMIT_CORE, &limit, NULL);
  CALL(prlimit64, 0, RLIMIT_CORE, NULL, &limit);
  CALL(prlimit64, 0, 77, NULL, &limit);
  CALL(getrlimit, RLIMIT_CORE, &limit);
  CALL(getpriority, PRIO_PROCESS, 0);
  CALL(sched_yield);
  CALL(sched_setaffinity, 0, 0, BAD);
  CALL(getrandom, buffer, 0, 1);
  CALL(getrandom, buffer, 4, 99);
  CALL(uname, BAD);
  CALL(personality, 0xffffffff);
  CALL(prctl, PR_SET_NAME, "a new name");
  CALL(prctl, PR_GET_NAME, buffer);
  CALL(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  CALL(prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
  CALL(prctl, PR_GET_DUMPABLE);
  CALL(wait4, -1, &one, WNOHANG, NULL);
  CALL(waitid, P_ALL, 0, NULL, WEXITED | WNOHANG, NULL);
  CALL(set_robust_list, BAD, 24);
  CALL(socket, 99, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

#ifdef __x86_64__
static void old_calls(void) {
  shut(CALL(open, "made", O_RDWR | O_CREAT | O_TRUNC | O_APPEND, 0600));
  shut(CALL(creat, "other", 0600));
  CALL(stat, "made", buffer);
  CALL(lstat, "gone", buffer);
  CALL(access, "made", W_OK);
  CALL(chmod, "made", 0644);
  CALL(chown, "made", -1, -1);
  CALL(lchown, "made", -1, -1);
  long old[2] = {1, 2};
  CALL(utime, "made", old);
  struct timeval times[2] = {{1, 2}, {3, 4}};
  CALL(utimes, "made", times);
  CALL(futimesat, NOWHERE, "made", NULL);
  CALL(link, "made", "link");
  CALL(symlink, "made", "symbolic");
  CALL(readlink, "symbolic", buffer, 3);
  CALL(rename, "link", "renamed");
  CALL(renameat, NOWHERE, "renamed", NOWHERE, "again");
  CALL(unlink, "again");
  CALL(unlink, "symbolic");
  CALL(unlink, "other");
  CALL(mkdir, "folder", 0700);
  CALL(rmdir, "folder");
  CALL(mknod, "node", S_IFREG | 0600, 0);
  CALL(unlink, "node");
  CALL(pipe, fds);
  CALL(dup2, fds[0], fds[0]);
  CALL(eventfd, 0);
  CALL(epoll_create, 1);
  struct epoll_event ready[1];
  CALL(epoll_wait, fds[1] + 2, ready, 1, 0);
  struct pollfd polled[1] = {{fds[1], POLLOUT, 0}};
  CALL(poll, polled, 1, 0);
  CALL(poll, NULL, 0, 0);
  fd_set out;
  FD_ZERO(&out);
  FD_SET(fds[1], &out);
  struct timeval wait = {1, 0};
  CALL(select, fds[1] + 1, NULL, &out, NULL, &wait);
  CALL(close_range, fds[0], ~0U, 0);
  CALL(arch_prctl, 0x1003, buffer);
  CALL(arch_prctl, 0x1234, 5);
  CALL(time, BAD);
}
#else
static void old_calls(void) {}
#endif

int main(void) {
  files();
  descriptors();
  memory();
  signals();
  times_and_waits();
  process();
  old_calls();
  CALL(unlinkat, NOWHERE, "made", 0);
  CALL(exit_group, 7);
}
