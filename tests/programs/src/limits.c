/* What a program can make grow, each against its limit: what stops it, and that all of it is given back. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void limit(int resource, rlim_t most) {
    struct rlimit now = {most, most};
    if (setrlimit(resource, &now)) printf("setrlimit: %s\n", strerror(errno));
}
static const char *name_of(int failed) {
    static const struct { int number; const char *name; } names[] = {{EAGAIN, "EAGAIN"}, {EMFILE, "EMFILE"}, {EINTR, "EINTR"}, {EPIPE, "EPIPE"}, {ETOOMANYREFS, "ETOOMANYREFS"}, {ENOSPC, "ENOSPC"}};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].number == failed) return names[i].name;
    return strerror(failed);
}
static void said(const char *what, int count, int failed) { printf("%s: %d, then %s\n", what, count, name_of(failed)), fflush(stdout); }
static int reap(void) {
    int count = 0;
    while (wait(NULL) > 0) count++;
    return count;
}

/* Children until there may be no more, twice: what the first ones took is there again. They live on, or are dead. */
static void processes(int lives) {
    for (int round = 0; round < 2; round++) {
        int count = 0;
        pid_t pid;
        while ((pid = fork()) > 0) count++;
        if (!pid) {
            if (lives) pause();
            _exit(0);
        }
        said(lives ? "processes" : "zombies", count, errno);
        signal(SIGTERM, SIG_IGN);
        if (lives) kill(-1, SIGKILL);
        printf("reaped: %d\n", reap());
    }
}

static int word;
static void *waits(void *argument) {
    while (!__atomic_load_n(&word, __ATOMIC_SEQ_CST)) syscall(SYS_futex, &word, 128, 0, NULL);
    return argument;
}
static void threads(void) {
    static pthread_t made[1000];
    for (int round = 0; round < 2; round++) {
        int count = 0, failed;
        word = 0;
        while (!(failed = pthread_create(&made[count], NULL, waits, NULL))) count++;
        said("threads", count, failed);
        word = 1, syscall(SYS_futex, &word, 129, 1000);
        for (int i = 0; i < count; i++) pthread_join(made[i], NULL);
    }
}

static void descriptors(void) {
    limit(RLIMIT_NOFILE, 64);
    int count = 0, fd = 0, pair[2];
    for (fd = 3; fd < 64; fd++) close(fd);
    while ((fd = open("/dev/null", O_RDONLY)) >= 0) count++;
    said("open", count, errno);
    for (fd = 3; fd < 64; fd++) close(fd);
    for (count = 0; !pipe(pair); count++);
    said("pipe", count, errno);
    for (fd = 3; fd < 64; fd++) close(fd);
    for (count = 0; !socketpair(AF_UNIX, SOCK_STREAM, 0, pair); count++);
    said("socketpair", count, errno);
}

static void heard(int number) { (void)number; }
static void pipes(void) {
    int pair[2], count = 0;
    char page[4096] = {0};
    struct sigaction action = {.sa_handler = heard};
    sigaction(SIGALRM, &action, NULL);
    pipe(pair), alarm(1);
    while (write(pair[1], page, sizeof page) == sizeof page) count++;
    said("a pipe that nobody reads", count, errno);
    close(pair[0]), signal(SIGPIPE, SIG_IGN);
    said("a pipe without readers", (int)write(pair[1], page, 1), errno);
}

static void sockets(void) {
    static struct sockaddr_un name = {AF_UNIX, "\0queue"};
    socklen_t length = sizeof(sa_family_t) + 6;
    int one = socket(AF_UNIX, SOCK_STREAM, 0), count = 0, pair[2];
    bind(one, (void *)&name, length), listen(one, 3);
    while (!connect(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), (void *)&name, length)) count++;
    said("connections that nobody accepts", count, errno);
    socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, pair);
    for (count = 0; send(pair[0], "x", 1, 0) == 1; count++);
    said("datagrams that nobody receives", count > 5 && count < 2000, errno);
    /* descriptors on their way count against the limit of descriptors */
    limit(RLIMIT_NOFILE, 64);
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair);
    for (count = 0; count < 1000; count++) {
        char place[CMSG_SPACE(sizeof(int))] = {0};
        struct iovec byte = {"x", 1};
        struct msghdr message = {.msg_iov = &byte, .msg_iovlen = 1, .msg_control = place, .msg_controllen = sizeof place};
        struct cmsghdr *part = CMSG_FIRSTHDR(&message);
        part->cmsg_level = SOL_SOCKET, part->cmsg_type = SCM_RIGHTS, part->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(part), &pair[0], sizeof(int));
        if (sendmsg(pair[0], &message, 0) < 0) break;
    }
    said("descriptors that nobody receives", count, errno);
}

static void files(void) {
    static char block[1 << 16];
    for (int round = 0; round < 2; round++) {
        int fd = open("/tmp/full", O_RDWR | O_CREAT | O_TRUNC, 0600), failed;
        ssize_t done;
        long total = 0;
        while ((done = write(fd, block, sizeof block)) > 0) total += done;
        failed = errno, unlink("/tmp/full"), close(fd);
        said("a file", total > 1 << 20, failed);
    }
}

static void timers(void) {
    limit(RLIMIT_SIGPENDING, 50);
    for (int round = 0; round < 2; round++) {
        static timer_t made[1000];
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
        int count = 0, failed;
        while (!timer_create(CLOCK_MONOTONIC, &event, &made[count])) count++;
        failed = errno, said("timers", count, failed);
        for (int i = 0; i < count; i++) timer_delete(made[i]);
    }
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGRTMIN), sigprocmask(SIG_BLOCK, &set, NULL);
    int count = 0;
    while (!sigqueue(getpid(), SIGRTMIN, (union sigval){0})) count++;
    said("queued signals", count, errno);
}

/* Handlers that fault: the same signal blocked, not blocked and without end, and on a stack that is used up. */
static volatile int depth;
static void faults(int number) { (void)number, depth++, *(volatile int *)8 = 1; }
static void handlers(void) {
    for (int flags = 0; flags < 3; flags++) {
        fflush(stdout);
        pid_t pid = fork();
        if (!pid) {
            struct sigaction action = {.sa_handler = faults, .sa_flags = flags ? SA_NODEFER : 0};
            char *guarded = mmap(NULL, 1 << 18, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            stack_t stack = {.ss_sp = guarded + (1 << 17), .ss_size = 1 << 17};
            mprotect(stack.ss_sp, stack.ss_size, PROT_READ | PROT_WRITE);
            limit(RLIMIT_STACK, 256 << 10);
            if (flags == 2) sigaltstack(&stack, NULL), action.sa_flags |= SA_ONSTACK;
            sigaction(SIGSEGV, &action, NULL), faults(0);
        }
        int status;
        waitpid(pid, &status, 0);
        printf("a handler that faults: signal %d\n", WTERMSIG(status));
    }
}

/* A chain of processes, each the parent of the next, whose oldest ends first: who reaps them? */
static void orphans(void) {
    int pair[2], held[2];
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pipe(pair), pipe(held);
    pid_t first = fork();
    if (!first) {
        int count = 1;
        pid_t pid;
        while ((pid = fork()) == 0 && count < 25) count++;
        if (pid < 0) count = -count;
        if (pid) {
            char byte;
            if (pid < 0 || count == 25) write(pair[1], &count, sizeof count);
            close(held[1]), read(held[0], &byte, 1);
            _exit(0);
        }
        write(pair[1], &count, sizeof count), close(held[1]);
        char byte;
        read(held[0], &byte, 1), _exit(0);
    }
    int count = 0;
    read(pair[0], &count, sizeof count);
    close(held[1]); /* all of them end */
    printf("a chain: %d\n", count > 20), printf("reaped: %d\n", reap() > 20);
}

/* Numbers of groups and sessions are free again. */
static void groups(void) {
    for (int round = 0; round < 100; round++) {
        pid_t pid = fork();
        if (!pid) _exit(round % 2 ? setsid() < 0 : setpgid(0, 0));
        int status;
        waitpid(pid, &status, 0);
        if (status || kill(-pid, 0) != -1 || errno != ESRCH) printf("group %d: %d, %s\n", round, status, strerror(errno));
    }
    printf("groups: made\n");
}

static void bomb(void) {
    for (;;) fork();
}

int main(int count, char **names) {
    static const struct { const char *name; void (*does)(void); } scenes[] = {{"threads", threads}, {"descriptors", descriptors}, {"pipes", pipes}, {"sockets", sockets}, {"files", files}, {"timers", timers}, {"handlers", handlers}, {"orphans", orphans}, {"groups", groups}, {"bomb", bomb}};
    const char *name = count > 1 ? names[1] : "";
    limit(RLIMIT_NPROC, 40);
    if (!strcmp(name, "processes") || !strcmp(name, "zombies")) processes(name[0] == 'p');
    for (unsigned i = 0; i < sizeof scenes / sizeof *scenes; i++)
        if (!strcmp(name, scenes[i].name)) scenes[i].does();
    return 0;
}
