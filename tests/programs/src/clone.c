/* clone(2), clone3(2), wait4(2) and waitid(2): which flags are refused and with what, what is shared and what is
 * not, and which children are waited for. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif
#define CLEAR_SIGHAND 0x100000000ull

static char stack[65536] __attribute__((aligned(16)));
static int value, status; /* status: of the last wait */

/* A process that ends at once with 7, made by clone with these flags. */
static int ends(void *argument) { (void)argument; _exit(7); }
static void flags(const char *what, unsigned long flags) {
    pid_t pid;
    int place = -1;
    if (flags & CLONE_VM) pid = clone(ends, stack + sizeof stack, flags, NULL, &place, NULL, &place);
    else {
#ifdef __x86_64__
        pid = syscall(SYS_clone, flags, 0, &place, &place, 0);
#else
        pid = syscall(SYS_clone, flags, 0, &place, 0, &place);
#endif
        if (!pid) _exit(7);
    }
    if (pid < 0) { printf("%s: %s\n", what, strerror(errno)); return; }
    int found = waitpid(pid, &status, __WALL);
    printf("%s: %s, status %x\n", what, found == pid ? "made" : strerror(errno), status);
}

struct arguments { uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup, more; };
static void three(const char *what, struct arguments arguments, size_t size) {
    pid_t pid = syscall(SYS_clone3, &arguments, size);
    if (!pid) _exit(7);
    if (pid < 0) { printf("clone3, %s: %s\n", what, strerror(errno)); return; }
    int found = waitpid(pid, &status, __WALL);
    printf("clone3, %s: %s, status %x\n", what, found == pid ? "made" : strerror(errno), status);
}

/* What a child that shares something does to it. */
static int changes(void *argument) {
    (void)argument;
    value = 2;
    close(9), chdir("/"), umask(0);
    signal(SIGUSR1, SIG_IGN);
    _exit(0);
}
static void shared(const char *what, unsigned long flags) {
    char directory[4096];
    value = 1, umask(022), chdir("/proc"), dup2(1, 9), signal(SIGUSR1, SIG_DFL);
    pid_t pid = clone(changes, stack + sizeof stack, flags | SIGCHLD, NULL);
    waitpid(pid, NULL, 0);
    mode_t mask = umask(022);
    struct sigaction action;
    sigaction(SIGUSR1, NULL, &action);
    printf("%s: value %d, 9 is %s, directory %s, mask %o, signal %s\n", what, value, fcntl(9, F_GETFD) < 0 ? "closed" : "open",
           getcwd(directory, sizeof directory), mask, action.sa_handler == SIG_IGN ? "ignored" : "default");
}

static const char *news(int result) {
    static char text[64];
    if (!result) status = 0;
    if (result < 0) snprintf(text, sizeof text, "%s", strerror(errno));
    else snprintf(text, sizeof text, "%d, status %x", result > 0, status);
    return text;
}
static volatile int heard;
static void hears(int signal) { heard = signal; }

static int makes_sibling(void *argument) {
    int *tid = argument;
    *tid = clone(ends, stack + sizeof stack / 2, CLONE_PARENT | CLONE_VM | SIGUSR2, NULL);
    _exit(0);
}

static void waits(void) {
    printf("no child: %s\n", news(waitpid(-1, &status, 0)));
    printf("no child, WNOHANG: %s\n", news(waitpid(-1, &status, WNOHANG)));
    printf("INT_MIN: %s\n", news(waitpid(-2147483647 - 1, &status, 0)));
    printf("options: %s\n", news(waitpid(-1, &status, 0x10)));
    printf("options, waited for: %s\n", news(waitpid(-1, &status, WEXITED)));
    siginfo_t info;
    memset(&info, 1, sizeof info);
    printf("waitid: %s\n", news(waitid(P_ALL, 0, &info, 0)));
    printf("waitid: %s\n", news(waitid(17, 0, &info, WEXITED)));
    printf("waitid: %s\n", news(waitid(P_PID, 0, &info, WEXITED)));
    printf("waitid: %s\n", news(waitid(P_PID, -5, &info, WEXITED)));
    printf("waitid: %s\n", news(waitid(P_PGID, 0, &info, WEXITED)));
    printf("waitid: %s\n", news(waitid(P_ALL, 0, &info, WEXITED | 0x100)));
    printf("waitid, bad descriptor: %s\n", news(waitid(3, 1000, &info, WEXITED)));
    printf("waitid, no pidfd: %s\n", news(waitid(3, 1, &info, WEXITED)));

    /* a child that tells by another signal */
    heard = 0, signal(SIGUSR2, hears);
    pid_t pid = clone(ends, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGUSR2, NULL);
    printf("SIGUSR2: plain: %s\n", news(waitpid(pid, &status, WNOHANG)));
    do info.si_pid = waitpid(pid, &status, __WCLONE);
    while (info.si_pid < 0 && errno == EINTR);
    printf("  __WCLONE: %s, heard %d\n", news(info.si_pid), heard == SIGUSR2);
    printf("  again: %s\n", news(waitpid(pid, &status, __WALL)));
    pid = clone(ends, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
    printf("SIGCHLD: __WCLONE: %s\n", news(waitpid(pid, &status, __WCLONE)));
    printf("  __WALL: %s\n", news(waitpid(pid, &status, __WALL)));
    pid = clone(ends, stack + sizeof stack, CLONE_VM | CLONE_VFORK, NULL);
    printf("no signal: %s\n", news(waitpid(pid, &status, WNOHANG)));
    printf("  __WALL: %s\n", news(waitpid(pid, &status, __WALL)));

    /* a sibling: of the exit signal only the maker's counts */
    int tid = 0;
    pid = clone(makes_sibling, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &tid);
    printf("CLONE_PARENT: maker %s", news(waitpid(pid, &status, 0)));
    printf(", sibling %s\n", news(waitpid(tid, &status, 0)));

    /* groups */
    pid = fork();
    if (!pid) { setpgid(0, 0); _exit(3); }
    setpgid(pid, pid);
    printf("own group: %s\n", news(waitpid(0, &status, 0)));
    printf("that group: %s\n", news(waitpid(-pid, &status, 0)));

    /* stops; the second one when the parent has heard that the first is over. In a group of its own, which is
       not orphaned whoever started us: SIGTSTP stops nobody in an orphaned one. */
    int heard[2];
    pipe(heard);
    pid = fork();
    if (!pid) { setpgid(0, 0), raise(SIGSTOP); read(heard[0], &status, 1); raise(SIGTSTP); _exit(5); }
    printf("stop: %s\n", news(waitpid(pid, &status, WUNTRACED)));
    printf("  again: %s\n", news(waitpid(pid, &status, WUNTRACED | WNOHANG)));
    status = 0;
    memset(&info, 0, sizeof info);
    printf("  waitid: %s", news(waitid(P_PID, pid, &info, WSTOPPED | WNOHANG)));
    printf(", signal %d, code %d\n", info.si_signo, info.si_code);
    kill(pid, SIGCONT);
    memset(&info, 0, sizeof info);
    printf("  goes on: %s", news(waitid(P_PID, pid, &info, WCONTINUED | WNOWAIT)));
    printf(", code %d, status %d\n", info.si_code, info.si_status);
    write(heard[1], "", 1);
    memset(&info, 0, sizeof info);
    waitid(P_PID, pid, &info, WSTOPPED), printf("  stops: code %d, status %d\n", info.si_code, info.si_status);
    kill(pid, SIGKILL);
    memset(&info, 0, sizeof info);
    waitid(P_PID, pid, &info, WEXITED | WNOWAIT), printf("  killed: code %d, status %d\n", info.si_code, info.si_status);
    printf("  bad place: %s\n", news(syscall(SYS_wait4, pid, (int *)8, 0, NULL)));
    printf("  gone: %s\n", news(waitpid(pid, &status, 0)));
}

static void *waits_in_thread(void *argument) {
    pid_t pid = *(pid_t *)argument;
    printf("another thread's child, __WNOTHREAD: %s\n", news(waitpid(pid, &status, WNOHANG | __WNOTHREAD)));
    printf("  else: %s\n", news(waitpid(pid, &status, 0)));
    *(pid_t *)argument = fork();
    if (!*(pid_t *)argument) _exit(8);
    return NULL;
}
static void threads(void) {
    pthread_t thread;
    pid_t pid = fork();
    if (!pid) _exit(6);
    pthread_create(&thread, NULL, waits_in_thread, &pid), pthread_join(thread, NULL);
    printf("of a thread that has ended: %s\n", news(waitpid(pid, &status, 0)));
}

/* Numbers in memory */
static int numbers(void *argument) { int *tid = argument; _exit(*tid == getpid() ? 1 : 2); }
static void tids(void) {
    int tid = 0, other = 0;
    pid_t pid = clone(numbers, stack + sizeof stack, CLONE_CHILD_SETTID | CLONE_PARENT_SETTID | SIGCHLD, &tid, &other, NULL, &tid);
    waitpid(pid, &status, 0);
    printf("set: in the child %x, in the parent %d %d\n", status, tid, other == pid);
    pid = clone(ends, stack + sizeof stack, CLONE_VM | CLONE_CHILD_CLEARTID | CLONE_CHILD_SETTID | SIGCHLD, NULL, NULL, NULL, &tid);
    waitpid(pid, &status, 0);
    printf("cleared: %d\n", tid);
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0), signal(64, SIG_IGN);
    flags("plain", SIGCHLD), flags("no signal", 0), flags("signal 64", 64), flags("signal 65", 65), flags("signal 255", 255);
    flags("CLONE_THREAD", CLONE_THREAD), flags("CLONE_THREAD, CLONE_VM", CLONE_THREAD | CLONE_VM);
    flags("CLONE_THREAD, CLONE_SIGHAND", CLONE_THREAD | CLONE_SIGHAND);
    flags("CLONE_SIGHAND", CLONE_SIGHAND), flags("CLONE_SIGHAND, CLONE_VM", CLONE_SIGHAND | CLONE_VM | SIGCHLD);
    flags("CLONE_FS, CLONE_NEWNS", CLONE_FS | CLONE_NEWNS), flags("CLONE_FS, CLONE_NEWUSER", CLONE_FS | CLONE_NEWUSER);
    flags("CLONE_THREAD, CLONE_NEWPID", CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_NEWPID);
    flags("CLONE_THREAD, CLONE_NEWUSER", CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_NEWUSER);
    flags("CLONE_PIDFD, CLONE_DETACHED", CLONE_PIDFD | CLONE_DETACHED | SIGCHLD), flags("CLONE_DETACHED", CLONE_DETACHED | SIGCHLD);
    flags("CLONE_PIDFD, CLONE_PARENT_SETTID", CLONE_PIDFD | CLONE_PARENT_SETTID | SIGCHLD);
    flags("CLONE_PTRACE", CLONE_PTRACE | SIGCHLD), flags("CLONE_UNTRACED", CLONE_UNTRACED | SIGCHLD), flags("CLONE_IO", CLONE_IO | SIGCHLD);
    flags("CLONE_SYSVSEM", CLONE_SYSVSEM | SIGCHLD), flags("CLONE_FILES", CLONE_FILES | SIGCHLD), flags("CLONE_FS", CLONE_FS | SIGCHLD);

    struct arguments plain = {.exit_signal = SIGCHLD}, given = plain;
    three("plain", plain, 64), three("80 bytes", plain, 80), three("88 bytes", plain, 88), three("96 bytes", plain, 96);
    three("short", plain, 63), three("nothing", plain, 0), three("long", plain, 4097);
    given.more = 1, three("something new", given, 96), given = plain;
    given.exit_signal = 65, three("signal 65", given, 88), given.exit_signal = 256, three("signal 256", given, 88), given = plain;
    given.flags = CLONE_DETACHED, three("CLONE_DETACHED", given, 88), given.flags = 1, three("flag 1", given, 88);
    given.flags = 1ull << 40, three("flag 40", given, 88), given = plain;
    given.flags = CLONE_PARENT, three("CLONE_PARENT, signal", given, 88), given.flags = CLONE_THREAD, three("CLONE_THREAD, signal", given, 88);
    given.exit_signal = 0, three("CLONE_THREAD", given, 88), given = plain;
    given.stack = 4096, three("stack without size", given, 88), given.stack = 0, given.stack_size = 4096, three("size without stack", given, 88);
    given.stack = -4096ull, three("stack beyond", given, 88), given = plain;
    given.flags = CLEAR_SIGHAND, three("CLONE_CLEAR_SIGHAND", given, 88), given.flags |= CLONE_SIGHAND | CLONE_VM, three("and CLONE_SIGHAND", given, 88), given = plain;
    int numbers_[2] = {1, 2};
    given.set_tid = (uintptr_t)numbers_, three("set_tid without size", given, 88), given.set_tid_size = 33, three("set_tid of 33", given, 88);
    given.set_tid = 0, given.set_tid_size = 1, three("size without set_tid", given, 88), given = plain;
    given.set_tid = 8, given.set_tid_size = 1, three("set_tid nowhere", given, 88), given = plain;
    numbers_[0] = 0, given.set_tid = (uintptr_t)numbers_, given.set_tid_size = 1, three("set_tid of 0", given, 88), given = plain;
    numbers_[0] = getpid(), given.set_tid = (uintptr_t)numbers_, given.set_tid_size = 1, printf("set_tid: %d\n", syscall(SYS_clone3, &given, 88) < 0 && errno == (geteuid() ? EPERM : EEXIST)), given = plain;
    if (!geteuid()) {
        pid_t made = -1; /* with the first number from 31000 on that nobody has */
        given.set_tid = (uintptr_t)numbers_, given.set_tid_size = 1, errno = EEXIST;
        for (numbers_[0] = 31000; made < 0 && errno == EEXIST; numbers_[0] += made < 0) made = syscall(SYS_clone3, &given, 88);
        if (!made) _exit(getpid() == numbers_[0] ? 0 : 1);
        if (waitpid(made, &status, 0) != numbers_[0] || status) printf("the number is not the one asked for\n");
        given = plain;
    }
    given.flags = 0x200000000ull, given.cgroup = 99, three("CLONE_INTO_CGROUP", given, 88), given = plain;
    given.flags = 0x200000000ull, three("CLONE_INTO_CGROUP, short", given, 80);

    shared("nothing", 0), shared("CLONE_VM", CLONE_VM);
    shared("CLONE_FILES, CLONE_FS", CLONE_FILES | CLONE_FS), shared("CLONE_VM, CLONE_SIGHAND", CLONE_VM | CLONE_SIGHAND);
    shared("CLONE_VFORK", CLONE_VFORK);
    waits(), threads(), tids();
    return 0;
}
