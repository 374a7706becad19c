/* RLIMIT_RTTIME: how long a real-time thread may run without a blocking call, and what happens then. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MS = 1000 };
static volatile sig_atomic_t handled, code;

static void on_signal(int number, siginfo_t *info, void *_) { (void)number, (void)_, code = info->si_code, handled++; }

static void limit(rlim_t soft, rlim_t hard) {
    struct rlimit now = {soft, hard};
    if (setrlimit(RLIMIT_RTTIME, &now)) printf("setrlimit: %s\n", strerror(errno));
}

static long used(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Until it has run for so long, or a signal was handled. */
static void spin(int ms, int yields) {
    for (long end = used() + ms; !handled && used() < end;) {
        for (volatile int i = 0; i < 5000; i++);
        if (yields) sched_yield();
    }
}

static void be(int policy) {
    int priority = policy == SCHED_OTHER ? 0 : 5; /* musl has no sched_setscheduler */
    if (syscall(SYS_sched_setscheduler, 0, policy, &priority)) printf("policy %d: %s\n", policy, strerror(errno)), exit(1);
}

static void run(const char *what, void (*does)(void)) {
    int status;
    fflush(stdout);
    if (!fork()) does(), printf("  handled %d\n", handled), exit(0);
    wait(&status);
    if (WIFSIGNALED(status)) printf("%s: signal %d\n", what, WTERMSIG(status));
    else printf("%s: exit %d\n", what, WEXITSTATUS(status));
}

static void ordinary(void) { limit(20 * MS, RLIM_INFINITY), spin(90, 0); }

static void soft(void) {
    struct rlimit now;
    limit(20 * MS, RLIM_INFINITY), be(SCHED_FIFO);
    long begun = used();
    spin(3000, 0);
    getrlimit(RLIMIT_RTTIME, &now);
    printf("  code %#x, not before its time %d, nor much later %d, now %lld us\n", code, used() - begun >= 18,
           used() - begun < 1000, (long long)now.rlim_cur);
}

static void sleeping(void) {
    limit(60 * MS, RLIM_INFINITY), be(SCHED_RR);
    for (int i = 0; i < 4; i++) spin(30, 0), usleep(100);
}

static void yielding(void) { limit(20 * MS, RLIM_INFINITY), be(SCHED_FIFO), spin(3000, 1); }

static void between(void) {
    limit(60 * MS, RLIM_INFINITY);
    for (int i = 0; i < 3; i++) spin(30, 0), be(SCHED_FIFO), spin(10, 0), be(SCHED_OTHER);
}

static void adding(void) {
    limit(60 * MS, RLIM_INFINITY);
    for (int i = 0; i < 4; i++) be(SCHED_FIFO), spin(30, 0), be(SCHED_OTHER);
}

static void hard(void) { signal(SIGXCPU, SIG_IGN), limit(20 * MS, 50 * MS), be(SCHED_FIFO), spin(3000, 0); }

static void by_default(void) { signal(SIGXCPU, SIG_DFL), limit(20 * MS, 50 * MS), be(SCHED_FIFO), spin(3000, 0); }

static void late(void) { be(SCHED_FIFO), spin(40, 0), limit(20 * MS, RLIM_INFINITY), spin(3000, 0); }

static void inherited(void) {
    int status;
    limit(20 * MS, RLIM_INFINITY), be(SCHED_FIFO);
    if (!fork()) spin(3000, 0), printf("  child: %d\n", handled), exit(0);
    wait(&status);
}

static void *spins(void *_) { spin(3000, 0); return _; }

static void threads(void) {
    pthread_t id;
    struct sched_param how = {.sched_priority = 3};
    limit(20 * MS, RLIM_INFINITY);
    pthread_create(&id, 0, spins, 0);
    int failed = pthread_setschedparam(id, SCHED_FIFO, &how);
    pthread_join(id, 0);
    printf("  %d\n", failed);
}

int main(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGXCPU, &action, 0);
    run("an ordinary one", ordinary);
    run("the soft limit", soft);
    run("sleeps in between", sleeping);
    run("only yields", yielding);
    run("ordinary in between", between);
    run("real-time in all", adding);
    run("the hard limit", hard);
    run("no handler", by_default);
    run("set later", late);
    run("a child", inherited);
    run("a thread", threads);
    return 0;
}
