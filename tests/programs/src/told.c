/* What processes are told of each other: ends of children, deaths of parents, signals that are waited for. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static siginfo_t last;
static int handled;

static void on_signal(int number, siginfo_t *info, void *_) {
    (void)number, (void)_;
    last = *info;
    handled++;
}

static void handle(int number, int flags) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | flags};
    sigaction(number, &action, 0);
}

static void child_news(const char *what) {
    printf("%s: code %d, status %d, used time %d\n", what, last.si_code, last.si_status,
           last.si_utime + last.si_stime >= 1);
}

static void spin(int ms) {
    struct timespec now;
    do {
        for (volatile int i = 0; i < 200000; i++);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    } while (now.tv_sec * 1000 + now.tv_nsec / 1000000 < ms);
}

static void children(void) {
    sigset_t child, before;
    int status;
    sigemptyset(&child), sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, &before);
    handle(SIGCHLD, 0);
    fflush(stdout);
    if (!fork()) spin(120), _exit(300);
    sigsuspend(&before), child_news("exited");
    printf("pid %d\n", last.si_pid == wait(&status));
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) for (;;) pause();
    kill(pid, SIGSTOP), sigsuspend(&before), child_news("stopped");
    kill(pid, SIGCONT), sigsuspend(&before), child_news("continued");
    kill(pid, SIGTERM), sigsuspend(&before), child_news("killed");
    wait(&status);
    handle(SIGCHLD, SA_NOCLDSTOP);
    handled = 0;
    pid = fork();
    if (!pid) for (;;) pause();
    kill(pid, SIGSTOP), waitpid(pid, &status, WUNTRACED);
    printf("no news of stops: %d\n", handled);
    kill(pid, SIGKILL), sigsuspend(&before), child_news("killed");
    wait(&status);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_SETMASK, &before, 0);
}

static void *sends(void *to) {
    usleep(20000);
    pthread_kill(*(pthread_t *)to, SIGUSR1);
    return 0;
}

static void waits(void) {
    sigset_t set, pending;
    siginfo_t info;
    struct timespec soon = {0, 10000000};
    pthread_t self = pthread_self(), other;
    handled = 0;
    handle(SIGUSR1, 0);
    sigemptyset(&set), sigaddset(&set, SIGUSR1);
    pthread_create(&other, 0, sends, &self);
    printf("not blocked, and waited for: %d", sigwaitinfo(&set, &info) == SIGUSR1);
    pthread_join(other, 0);
    printf(", handled %d\n", handled);
    signal(SIGUSR1, SIG_IGN);
    sigprocmask(SIG_BLOCK, &set, 0);
    kill(getpid(), SIGUSR1);
    sigpending(&pending);
    printf("ignored and blocked, pending %d: %d\n", sigismember(&pending, SIGUSR1), sigtimedwait(&set, &info, &soon));
    sigprocmask(SIG_UNBLOCK, &set, 0);
    printf("nothing comes: %d %s\n", sigtimedwait(&set, &info, &soon), strerror(errno));
    signal(SIGUSR1, SIG_DFL);
}

static int line[2];

static void *parent_thread(void *_) {
    (void)_;
    if (!fork()) {
        sigset_t set;
        siginfo_t info;
        sigemptyset(&set), sigaddset(&set, SIGUSR2);
        sigprocmask(SIG_BLOCK, &set, 0);
        prctl(PR_SET_PDEATHSIG, SIGUSR2);
        write(line[1], "x", 1);
        sigwaitinfo(&set, &info);
        dprintf(line[1], "the thread that made it has ended: code %d, by its process %d\n", info.si_code,
                info.si_pid == getppid());
        sigwaitinfo(&set, &info);
        dprintf(line[1], "its process too\n");
        _exit(0);
    }
    char c;
    read(line[0], &c, 1);
    return 0;
}

static void deaths(void) {
    int value = -1;
    char text[200] = {0};
    pthread_t thread;
    printf("PDEATHSIG 65: %d", prctl(PR_SET_PDEATHSIG, 65));
    prctl(PR_SET_PDEATHSIG, SIGHUP), prctl(PR_GET_PDEATHSIG, &value);
    printf(", got %d", value);
    fflush(stdout);
    if (!fork()) {
        prctl(PR_GET_PDEATHSIG, &value);
        printf(", of a child %d\n", value);
        fflush(stdout);
        _exit(0);
    }
    wait(0);
    prctl(PR_SET_PDEATHSIG, 0);
    pipe(line);
    if (!fork()) {
        pthread_create(&thread, 0, parent_thread, 0), pthread_join(thread, 0);
        usleep(50000);
        _exit(0);
    }
    wait(0);
    close(line[1]);
    for (int at = 0, got; (got = read(line[0], text + at, sizeof text - at - 1)) > 0;) at += got;
    printf("%s", text);
}

/* Each thread has its own death signal: what it makes has none, what it becomes keeps it. */
static int both[2];

static void *second_thread(void *_) {
    int value = -1;
    prctl(PR_GET_PDEATHSIG, &value);
    dprintf(both[1], "a new thread's %d", value);
    prctl(PR_SET_PDEATHSIG, SIGUSR2), prctl(PR_GET_PDEATHSIG, &value);
    dprintf(both[1], ", then %d\n", value);
    kill(getpid(), SIGCHLD);
    pause();
    return _;
}

static void *short_parent(void *_) {
    if (fork()) {
        siginfo_t info;
        sigset_t set;
        sigemptyset(&set), sigaddset(&set, SIGWINCH), sigwaitinfo(&set, &info);
        return _;
    }
    pthread_t thread;
    sigset_t set;
    siginfo_t one, two;
    int value;
    sigfillset(&set), sigprocmask(SIG_SETMASK, &set, 0);
    prctl(PR_SET_PDEATHSIG, SIGUSR1);
    pthread_create(&thread, 0, second_thread, 0);
    sigemptyset(&set), sigaddset(&set, SIGCHLD), sigwaitinfo(&set, &one);
    prctl(PR_GET_PDEATHSIG, &value);
    dprintf(both[1], "the first one's %d\n", value);
    kill(getppid(), SIGWINCH);
    sigemptyset(&set), sigaddset(&set, SIGUSR1), sigaddset(&set, SIGUSR2);
    sigwaitinfo(&set, &one), sigwaitinfo(&set, &two);
    dprintf(both[1], "both: %d %d\n", one.si_signo, two.si_signo);
    sigemptyset(&set), sigaddset(&set, SIGUSR1), sigaddset(&set, SIGUSR2), sigprocmask(SIG_SETMASK, &set, 0);
    execl("/proc/self/exe", "told", "executed", (char *)0);
    _exit(1);
}

static void each_thread(void) {
    char text[300] = {0};
    pthread_t thread;
    sigset_t set;
    pipe(both);
    fflush(stdout);
    if (!fork()) {
        sigemptyset(&set), sigaddset(&set, SIGWINCH), sigprocmask(SIG_BLOCK, &set, 0);
        dup2(both[1], 1), close(both[0]);
        pthread_create(&thread, 0, short_parent, 0), pthread_join(thread, 0);
        wait(0);
        _exit(0);
    }
    close(both[1]);
    for (int at = 0, got; (got = read(both[0], text + at, sizeof text - at - 1)) > 0;) at += got;
    wait(0);
    printf("%s", text);
}

static void executed(void) {
    int value = -1;
    prctl(PR_GET_PDEATHSIG, &value);
    printf("executed: %d\n", value);
}

static long field(const char *name) {
    char text[1000] = {0};
    int fd = open("/proc/self/io", O_RDONLY);
    pread(fd, text, sizeof text - 1, 0);
    close(fd);
    char *at = strstr(text, name);
    return at ? atol(at + strlen(name) + 2) : -1;
}

static void *write_more(void *null) {
    write((int)(long)null, "a thread that has ended", 20);
    return NULL;
}

static void transfers(void) {
    static char data[5000];
    const char *names[] = {"rchar", "wchar", "syscr", "syscw"};
    long before[4], size = 0;
    int p[2], null = open("/dev/null", O_WRONLY), zero = open("/dev/zero", O_RDONLY);
    char path[] = "accounts-of-told";
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    struct iovec two[] = {{data, 100}, {data, 200}};
    pipe(p);
    char text[1000] = {0};
    int fd = open("/proc/self/io", O_RDONLY);
    size = read(fd, text, sizeof text);
    close(fd);
    for (int i = 0; i < 4; i++) before[i] = field(names[i]);
    (void)size;
    write(p[1], data, 3000), read(p[0], data, 5000);
    write(file, data, 5000), pread(file, data, 1000, 0), pwrite(file, data, 10, 5);
    readv(zero, two, 2), writev(null, two, 2);
    read(-1, data, 10), read(file, (void *)8, 10), read(file, data, 0);
    lseek(file, 0, SEEK_SET);
    pthread_t thread;
    pthread_create(&thread, NULL, write_more, (void *)(long)null), pthread_join(thread, NULL);
    if (!fork()) { write(null, data, 777); _exit(0); }
    wait(0);
    for (int i = 0; i < 4; i++) {
        /* Reading the accounts counts too: so many reads of a few bytes more or less. */
        long more = field(names[i]) - before[i];
        if (i == 0) printf("%s: %d\n", names[i], more >= 3000 + 1000 + 300 && more < 3000 + 1000 + 300 + 1000);
        else printf("%s: %ld\n", names[i], more);
    }
    unlink(path);
}

static void priorities(void) {
    errno = 0;
    printf("nobody: %d", getpriority(PRIO_PROCESS, 4000000)), printf(" %s", strerror(errno));
    printf(", no such kind: %d", getpriority(7, 0)), printf(" %s\n", strerror(errno));
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        int ready[2];
        pipe(ready);
        setpgid(0, 0);
        pid_t other = fork();
        if (!other) { setpriority(PRIO_PROCESS, 0, 7); write(ready[1], "x", 1); for (;;) pause(); }
        char c;
        read(ready[0], &c, 1);
        setpriority(PRIO_PROCESS, 0, 9);
        printf("the group's least: %d, the other's %d", getpriority(PRIO_PGRP, 0), getpriority(PRIO_PROCESS, other));
        setpriority(PRIO_PGRP, getpgrp(), 12);
        printf(", all: %d %d\n", getpriority(PRIO_PROCESS, 0), getpriority(PRIO_PROCESS, other));
        fflush(stdout);
        kill(other, SIGKILL);
        _exit(0);
    }
    waitpid(pid, 0, 0);
}

static long number(const char *path) {
    char text[50] = {0};
    int fd = open(path, O_RDONLY);
    read(fd, text, sizeof text - 1);
    close(fd);
    return atol(text);
}

int main(int count, char **words) {
    if (count == 2 && !strcmp(words[1], "executed")) return executed(), 0;
    children();
    waits();
    deaths();
    transfers();
    priorities();
    long before = number("/proc/sys/kernel/pty/nr");
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    printf("terminals: %ld, of %d\n", number("/proc/sys/kernel/pty/nr") - before, number("/proc/sys/kernel/pty/max") > 100);
    close(master);
    each_thread();
    return 0;
}
