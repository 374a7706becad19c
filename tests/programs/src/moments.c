/* Processes that wait for each other, for signals and for time, again and again: a word chooses the kind. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static volatile int heard, sums;

static void work(int rounds) {
    for (volatile int i = 0; i < rounds; i++) {}
}

static void on_signal(int number) { (void)number, heard++; }

static void on_value(int number, siginfo_t *info, void *context) {
    (void)context;
    heard++, sums = sums * 3 + number - SIGRTMIN + info->si_value.sival_int;
}

static void handle(int number, int flags) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags};
    sigaction(number, &action, 0);
}

static void handle_values(int number) {
    struct sigaction action = {.sa_sigaction = on_value, .sa_flags = SA_SIGINFO};
    sigaction(number, &action, 0);
}

static sigset_t set_of(int first, int second) {
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, first);
    if (second) sigaddset(&set, second);
    return set;
}

static void pass(long ns) {
    struct timespec left = {0, ns};
    while (nanosleep(&left, &left) && errno == EINTR) {}
}

static long now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000L + at.tv_nsec;
}

static int ended(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status); }

/* The parent waits until its child has memory of its own, whatever signals it gets. */
static void vforks(void) {
    handle(SIGUSR1, SA_RESTART);
    for (volatile int i = 0; i < 4; i++) {
        volatile int lent = 0;
        pid_t pid = vfork();
        if (!pid) {
            lent = 7 + i;
            kill(getppid(), SIGUSR1);
            work(60 * i);
            if (i & 1) _exit(i);
            char *words[] = {"moments", "exit", i ? "21" : "20", 0};
            execv("/proc/self/exe", words);
            _exit(99);
        }
        int status;
        waitpid(pid, &status, 0);
        printf("vfork: lent %d, ended %d, heard %d\n", lent, ended(status), heard);
        fflush(stdout);
    }
    pid_t maker = fork();
    if (!maker) {
        if (!vfork()) {
            pass(300000000);
            execl("/proc/self/exe", "moments", "exit", "5", (char *)0);
        }
        _exit(6);
    }
    pass(500000), kill(maker, SIGTERM);
    int status;
    waitpid(maker, &status, 0);
    printf("its maker: %d\n", ended(status));
}

/* Children that are stopped while they sleep, poll, work and wait, and their waiters. */
static void jobs(void) {
    pid_t all[4];
    int status, line[2];
    pipe(line);
    for (int i = 0; i < 4; i++) {
        fflush(stdout);
        if ((all[i] = fork())) continue;
        handle(SIGCONT, i & 1 ? SA_RESTART : 0);
        write(line[1], "r", 1);
        long before = now();
        struct timespec time = {0, 3000000};
        int result = 0;
        if (i == 0) result = nanosleep(&time, 0) ? errno : 0;
        if (i == 1) result = poll(0, 0, 3) < 0 ? errno : 0;
        if (i == 2) work(3000);
        if (i == 3) {
            sigset_t set = set_of(SIGUSR2, 0);
            sigprocmask(SIG_BLOCK, &set, 0);
            result = sigwaitinfo(&set, 0) < 0 ? errno : 0;
        }
        _exit((result == EINTR ? 100 : 0) + (i == 0 && !result && now() - before < 3000000 ? 50 : 0) + i);
    }
    for (int i = 0; i < 4; i++) read(line[0], &(char){0}, 1);
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 4; i++) {
            siginfo_t info = {0};
            if (!all[i]) continue;
            if (kill(all[i], SIGSTOP) || waitpid(all[i], &status, WUNTRACED) != all[i] || !WIFSTOPPED(status)) {
                if (WIFEXITED(status)) all[i] = 0;
                continue;
            }
            work(100 + 50 * i);
            if (round) kill(all[i], SIGCONT), waitid(P_PID, all[i], &info, WCONTINUED);
            else if (!fork()) {
                pass(300000 * (i + 1)), kill(all[i], SIGCONT);
                _exit(40);
            } else waitid(P_PID, all[i], &info, WCONTINUED | WEXITED | WNOWAIT);
        }
    pass(1000000);
    if (all[3]) kill(all[3], SIGUSR2);
    while (wait(&status) > 0) {}
    printf("jobs: no child is left\n");
    fflush(stdout);
    pid_t leader = fork();
    if (!leader) {
        setpgid(0, 0);
        for (int i = 0; i < 2; i++)
            if (!fork()) { raise(SIGSTOP), work(50); _exit(3); }
        siginfo_t info;
        for (int i = 0; i < 2; i++) waitid(P_PGID, getpid(), &info, WSTOPPED);
        raise(SIGSTOP);
        int sum = 0;
        while (wait(&status) > 0) sum += ended(status);
        _exit(sum);
    }
    waitpid(leader, &status, WUNTRACED);
    printf("the leader is stopped: %d\n", WIFSTOPPED(status));
    kill(-leader, SIGCONT), waitpid(leader, &status, 0);
    printf("the group: %d\n", ended(status));
}

/* Timers that are due once and again while others run, and descriptors that tell of it. */
static void timers(void) {
    handle(SIGALRM, 0), handle(SIGVTALRM, SA_RESTART), handle(SIGPROF, SA_RESTART);
    struct itimerval soon = {{0, 400}, {0, 700}}, often = {{0, 300}, {0, 300}}, none = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &soon, 0);
    while (heard < 6) pause();
    setitimer(ITIMER_REAL, &none, 0);
    printf("interval: %d\n", heard >= 6);
    heard = 0;
    setitimer(ITIMER_VIRTUAL, &often, 0), setitimer(ITIMER_PROF, &often, 0);
    while (heard < 6) work(20);
    setitimer(ITIMER_VIRTUAL, &none, 0), setitimer(ITIMER_PROF, &none, 0);
    handle_values(SIGRTMIN), handle_values(SIGRTMIN + 1);
    timer_t made[3];
    for (int i = 0; i < 3; i++) {
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + (i & 1)};
        event.sigev_value.sival_int = i;
        struct itimerspec times = {{0, 150000 * (i + 1)}, {0, 200000}};
        timer_create(i == 2 ? CLOCK_REALTIME : CLOCK_MONOTONIC, &event, made + i), timer_settime(made[i], 0, &times, 0);
    }
    sigset_t set = set_of(SIGRTMIN, 0);
    heard = 0;
    while (heard < 9) {
        sigprocmask(SIG_BLOCK, &set, 0), work(60), sigprocmask(SIG_UNBLOCK, &set, 0);
        pause();
    }
    for (int i = 0; i < 3; i++) timer_delete(made[i]);
    int file = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec times = {{0, 250000}, {0, 100000}};
    timerfd_settime(file, 0, &times, 0);
    for (int i = 0; i < 4; i++) {
        if (i & 1) work(2000);
        unsigned long ticks = 0;
        read(file, &ticks, 8);
        if (!ticks) printf("no tick\n");
    }
    heard = 0, alarm(1);
    pause();
    printf("alarm: %d\n", heard);
    fflush(stdout);
}

/* Limits of a processor's time: SIGXCPU, then SIGKILL. Time is cheap, or this takes two seconds. */
static void limits(void) {
    pid_t pid = fork();
    if (!pid) {
        struct rlimit limit = {1, 2};
        handle(SIGXCPU, 0);
        setrlimit(RLIMIT_CPU, &limit);
        while (!heard) work(10);
        write(1, "over\n", 5);
        for (;;) work(10);
    }
    int status;
    waitpid(pid, &status, 0);
    printf("limits: %d\n", ended(status));
}

/* Sleeps: until one time, all; for a time, ended by signals; while another works. */
static void sleeps(void) {
    struct timespec at;
    int line[2], status, sum = 0;
    pipe(line);
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_nsec += 4000000;
    if (at.tv_nsec >= 1000000000) at.tv_sec++, at.tv_nsec -= 1000000000;
    for (int i = 0; i < 5; i++)
        if (!fork()) {
            if (i < 3) clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, 0), work(30 * (3 - i));
            if (i == 3) {
                handle(SIGUSR1, SA_RESTART);
                struct timespec left = {0, 5000000};
                int count = 0;
                write(line[1], "r", 1);
                while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR) count++;
                _exit(count + 10);
            }
            if (i == 4) {
                struct timespec first = {0, 900000};
                clock_nanosleep(CLOCK_BOOTTIME, 0, &first, 0), pass(300000), work(200);
            }
            _exit(i);
        }
    read(line[0], &(char){0}, 1);
    while (wait(&status) > 0) sum += ended(status);
    printf("sleeps: %d\n", sum);
    fflush(stdout);
    pid_t sleeper = fork();
    if (!sleeper) {
        handle(SIGUSR1, 0);
        write(line[1], "r", 1);
        struct timespec left = {100, 0};
        int count = 0;
        while (count < 3 && clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR) count++;
        _exit(count + (left.tv_sec == 99 ? 20 : 30));
    }
    read(line[0], &(char){0}, 1);
    while (waitpid(sleeper, &status, WNOHANG) == 0) pass(200000), kill(sleeper, SIGUSR1);
    printf("interrupted: %d\n", ended(status));
    fflush(stdout);
    pid_t worker = fork();
    if (!worker) for (;;) work(10);
    clockid_t clock;
    clock_getcpuclockid(worker, &clock);
    struct timespec used = {0, 300000};
    printf("by its processor's time: %d\n", clock_nanosleep(clock, 0, &used, 0));
    kill(worker, SIGKILL), wait(0);
}

/* Signals that wait with their values, and those who wait for signals. */
static void signals(void) {
    handle_values(SIGRTMIN), handle_values(SIGRTMIN + 3), handle(SIGUSR1, 0), handle(SIGCHLD, SA_RESTART);
    sigset_t set = set_of(SIGRTMIN, SIGRTMIN + 3), before, one = set_of(SIGUSR1, 0);
    sigprocmask(SIG_BLOCK, &set, &before);
    for (int i = 0; i < 6; i++) {
        sigqueue(getpid(), SIGRTMIN + 3 * (i % 2), (union sigval){.sival_int = i * i});
        work(40);
    }
    sigset_t waits;
    sigpending(&waits);
    printf("pending: %d %d\n", sigismember(&waits, SIGRTMIN), sigismember(&waits, SIGRTMIN + 3));
    siginfo_t info;
    int taken = sigwaitinfo(&set, &info);
    printf("taken: %d with %d\n", taken - SIGRTMIN, info.si_value.sival_int);
    sigprocmask(SIG_SETMASK, &before, 0);
    printf("heard %d, %d\n", heard, sums);
    sigprocmask(SIG_BLOCK, &one, 0), sigprocmask(SIG_BLOCK, &set, 0);
    for (int i = 0; i < 4; i++) {
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            pass(100000 * i), work(50), kill(getppid(), SIGUSR1);
            sigset_t none;
            sigemptyset(&none), sigaddset(&none, SIGCHLD);
            handle(SIGUSR1, 0);
            heard = 0;
            while (!heard) sigsuspend(&none);
            union sigval told = {.sival_int = 10 + i};
            sigqueue(getppid(), SIGRTMIN, told), _exit(i);
        }
        sigset_t open = before;
        int heard_before = heard;
        sigaddset(&open, SIGCHLD);
        while (heard == heard_before) sigsuspend(&open);
        work(70), kill(child, SIGUSR1);
        struct timespec limit = {5, 0};
        int got = sigtimedwait(&set, &info, &limit);
        printf("told %d by %d\n", got < 0 ? -1 : info.si_value.sival_int, info.si_pid == child);
        int status;
        waitpid(child, &status, 0);
    }
    int file = signalfd(-1, &set, SFD_CLOEXEC);
    fflush(stdout);
    if (!fork()) {
        for (int i = 0; i < 4; i++) pass(80000), sigqueue(getppid(), SIGRTMIN + 3, (union sigval){.sival_int = i});
        _exit(0);
    }
    for (int i = 0; i < 4; i++) {
        struct signalfd_siginfo told;
        struct pollfd wanted = {file, POLLIN, 0};
        while (i & 1 && poll(&wanted, 1, -1) < 0) {}
        while (read(file, &told, sizeof told) < 0) {}
        printf("by its file: %d\n", told.ssi_int), work(100);
    }
    while (wait(0) > 0 || errno == EINTR) {}
    struct timespec limit = {0, 500000};
    printf("nothing comes: %d\n", sigtimedwait(&set, 0, &limit) < 0 && errno == EAGAIN);
}

/* Who waits for the end of processes: by descriptors too. */
static void ends(void) {
    int files[3], sum = 0;
    pid_t all[3];
    for (int i = 0; i < 3; i++) {
        fflush(stdout);
        all[i] = fork();
        if (!all[i]) {
            if (i == 2 && !fork()) { pass(3000000), work(30); _exit(0); }
            pass(400000 * (3 - i)), work(60);
            _exit(i + 1);
        }
        files[i] = syscall(SYS_pidfd_open, all[i], 0);
    }
    struct pollfd wanted[3] = {{files[0], POLLIN, 0}, {files[1], POLLIN, 0}, {files[2], POLLIN, 0}};
    for (int left = 3; left;) {
        poll(wanted, 3, -1);
        for (int i = 0; i < 3; i++)
            if (wanted[i].revents) {
                siginfo_t info = {0};
                waitid(P_PIDFD, files[i], &info, WEXITED);
                sum += 100 * info.si_status, wanted[i].fd = -1, wanted[i].revents = 0, left--;
            }
    }
    for (int i = 0; i < 4; i++) {
        fflush(stdout);
        if (!fork()) { pass(200000 * (4 - i)); _exit(1 << i); }
    }
    siginfo_t info = {0};
    waitid(P_ALL, 0, &info, WEXITED | WNOWAIT);
    work(100);
    struct rusage used;
    int status;
    while (wait4(-1, &status, 0, &used) > 0) sum += ended(status);
    printf("ends: %d\n", sum);
}

int main(int count, char **words) {
    setvbuf(stdout, 0, _IOFBF, 1 << 14);
    char kind = count > 1 ? words[1][0] : 'a';
    if (kind == 'e' && count > 2) return atoi(words[2]);
    if (kind == 'v' || kind == 'a') vforks();
    if (kind == 'j' || kind == 'a') jobs();
    if (kind == 't' || kind == 'a') timers();
    if (kind == 'n' || kind == 'a') sleeps();
    if (kind == 's' || kind == 'a') heard = 0, sums = 0, signals();
    if (kind == 'w' || kind == 'a') ends();
    if (kind == 'l') limits();
    fflush(stdout);
    return 0;
}
