/* POSIX message queues: what each call answers, who waits for whom, who is told; a word has some of it again. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char name[64], text[256];
static volatile int heard, told_code, told_value, told_by;

static int said(int result) { return result < 0 ? -errno : result; }

static mqd_t made(int flags, long most, long size) {
    struct mq_attr wanted = {.mq_maxmsg = most, .mq_msgsize = size};
    return mq_open(name, O_CREAT | flags, 0640, &wanted);
}

static struct timespec after(long ns) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_nsec += ns, at.tv_sec += at.tv_nsec / 1000000000, at.tv_nsec %= 1000000000;
    return at;
}

static void on_signal(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    heard++, told_code = info->si_code, told_value = info->si_value.sival_int, told_by = info->si_pid;
}

static void handle(int number, int flags) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | flags};
    sigaction(number, &action, 0);
}

static void pass(long ns) {
    struct timespec left = {ns / 1000000000, ns % 1000000000};
    while (nanosleep(&left, &left) && errno == EINTR) {}
}

static int ended(pid_t pid) {
    int status;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static void show(mqd_t queue, const char *what) {
    struct mq_attr found;
    mq_getattr(queue, &found);
    printf("%s: flags %lo, %ld of %ld messages of %ld bytes\n", what, found.mq_flags, found.mq_curmsgs,
           found.mq_maxmsg, found.mq_msgsize);
}

static void take(mqd_t queue, const char *what) {
    unsigned priority = 0;
    int size = said(mq_receive(queue, text, sizeof text, &priority));
    printf("%s: %d %u %.*s\n", what, size, priority, size > 0 ? size : 0, text);
}

/* Names, attributes, priorities, sizes, refusals. */
static void calls(void) {
    struct mq_attr set = {.mq_flags = 0};
    printf("none: %d\n", said(mq_open(name, O_RDWR)));
    mqd_t queue = made(O_RDWR | O_EXCL | O_NONBLOCK, 4, 16);
    printf("made: %o, closed at exec: %d\n", fcntl(queue, F_GETFL) & ~O_LARGEFILE, fcntl(queue, F_GETFD));
    printf("again: %d\n", said(made(O_RDWR | O_EXCL, 4, 16)));
    printf("empty: %d\n", said(mq_receive(queue, text, 16, 0)));
    mq_send(queue, "low", 3, 0), mq_send(queue, "high", 4, 7), mq_send(queue, "high too", 8, 7);
    mq_send(queue, "", 0, 32767);
    show(queue, "full");
    printf("one more: %d\n", said(mq_send(queue, "x", 1, 1)));
    printf("too large: %d, priority: %d\n", said(mq_send(queue, text, 17, 1)),
           said(mq_send(queue, text, 1, 32768)));
    printf("too small a buffer: %d\n", said(mq_receive(queue, text, 15, 0)));
    for (int i = 0; i < 4; i++) take(queue, "taken");
    mq_send(queue, "lost", 4, 3);
    printf("bad buffer: %d\n", said(syscall(SYS_mq_timedreceive, queue, (void *)8, 64L, (void *)0, (void *)0)));
    show(queue, "lost");
    printf("unreadable: %d\n", said(syscall(SYS_mq_timedsend, queue, (void *)8, 4L, 0, (void *)0)));
    mqd_t reads = mq_open(name, O_RDONLY), writes = mq_open(name, O_WRONLY | O_NONBLOCK);
    printf("other way: %d %d\n", said(mq_send(reads, "x", 1, 0)), said(mq_receive(writes, text, 16, 0)));
    show(reads, "reads");
    printf("set: %d\n", said(mq_setattr(queue, &set, 0)));
    show(queue, "blocks now");
    set.mq_flags = O_APPEND;
    printf("set: %d\n", said(mq_setattr(queue, &set, 0)));
    printf("of a pipe: %d %d\n", said(mq_getattr(1, &set)), said(mq_send(99, "x", 1, 0)));
    struct timespec bad[] = {{-1, 0}, {0, 1000000000}}, past = {0, 0};
    for (int i = 0; i < 2; i++) printf("no time: %d\n", said(mq_timedreceive(queue, text, 16, 0, &bad[i])));
    printf("the past: %d\n", said(mq_timedreceive(queue, text, 16, 0, &past)));
    printf("no wait: %d\n", said(mq_timedsend(queue, "now", 3, 0, &past)));
    const char *names[] = {"/a", "a/b", ".", "..", ""};
    for (int i = 0; i < 5; i++) {
        int opened = said(syscall(SYS_mq_open, names[i], O_RDWR | O_CREAT, 0600, 0));
        printf("name '%s': %d", names[i], opened);
        printf(" %d\n", said(syscall(SYS_mq_unlink, names[i])));
    }
    char longer[300];
    memset(longer, 'n', 299), longer[256] = 0;
    printf("long: %d %d\n", said(syscall(SYS_mq_open, longer, O_RDWR, 0, 0)), said(syscall(SYS_mq_unlink, longer)));
    struct mq_attr bads[] = {{.mq_msgsize = 1}, {.mq_maxmsg = 1}, {.mq_maxmsg = 65537, .mq_msgsize = 1},
                             {.mq_maxmsg = -1, .mq_msgsize = 1}, {.mq_maxmsg = 1, .mq_msgsize = 1 << 25}};
    for (int i = 0; i < 5; i++) printf("attributes: %d\n", said(mq_open("/bad-one", O_CREAT | O_RDWR, 0600, &bads[i])));
    printf("both ways: %d\n", said(syscall(SYS_mq_open, name + 1, O_RDWR | O_WRONLY, 0, 0)));
    printf("direct: %d\n", said(syscall(SYS_mq_open, name + 1, O_RDWR | O_DIRECT, 0, 0)));
    int path = syscall(SYS_mq_open, name + 1, O_PATH, 0, 0);
    printf("path: %d\n", said(mq_getattr(path, &set)));
    printf("unlink: %d", said(mq_unlink(name)));
    printf(" %d\n", said(mq_unlink(name)));
    take(reads, "without a name");
    for (mqd_t each = queue; each <= path; each++) close(each);
}

/* What a descriptor is as a file, and who is told. */
static void as_a_file(void) {
    umask(027);
    mqd_t queue = made(O_RDWR, 3, 32);
    struct stat found;
    struct statfs system;
    fstat(queue, &found), fstatfs(queue, &system);
    printf("mode %o, %ld bytes, %ld links, owner %d, kind %lx\n", found.st_mode, (long)found.st_size,
           (long)found.st_nlink, found.st_uid == geteuid(), (long)system.f_type);
    char path[40], shown[100] = "";
    snprintf(path, sizeof path, "/proc/self/fd/%d", queue);
    printf("link: %d", readlink(path, shown, sizeof shown - 1) > 0 && !strcmp(shown, name));
    mq_send(queue, "twelve bytes", 12, 0);
    memset(text, 0, sizeof text);
    printf(" read: %d", (int)read(queue, text, sizeof text));
    printf(" then %d\n%s", (int)read(queue, text + 100, 10), text);
    printf("written: %d, size %d", said(write(queue, "x", 1)), said(ftruncate(queue, 5)));
    printf(", seek %d\n", said(lseek(queue, 0, SEEK_END)));
    int other = open(path, O_RDONLY);
    printf("opened anew: %d\n", said(mq_receive(other, text, 32, 0)));
    close(other);
    handle(SIGUSR1, 0), handle(SIGRTMIN, 0);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 77};
    printf("notify: %d", said(mq_notify(queue, &event)));
    printf(" again: %d\n", said(mq_notify(queue, &event)));
    lseek(queue, 0, SEEK_SET), memset(text, 0, sizeof text), read(queue, text, 42), printf("%s\n", text);
    pid_t child = fork();
    if (!child) _exit(mq_notify(queue, &event) == -1 && errno == EBUSY && !mq_send(queue, "a", 1, 0) &&
                              !mq_send(queue, "b", 1, 0) ? 3 : 4);
    printf("child: %d\n", ended(child));
    printf("told: %d times, code %d, value %d, by it: %d\n", heard, told_code, told_value, told_by == child);
    printf("once: %d\n", said(mq_notify(queue, &event)));
    mq_receive(queue, text, 32, 0), mq_send(queue, "c", 1, 0);
    printf("not empty before: %d\n", heard);
    close(dup(queue));
    mq_receive(queue, text, 32, 0), mq_receive(queue, text, 32, 0), mq_send(queue, "d", 1, 0);
    printf("after a close: %d\n", heard);
    printf("taken back: %d", said(mq_notify(queue, &event)));
    printf(" %d\n", said(mq_notify(queue, 0)));
    event.sigev_notify = SIGEV_NONE, event.sigev_signo = 99;
    printf("nothing: %d", said(mq_notify(queue, &event)));
    printf(" %d\n", said(mq_notify(queue, 0)));
    event.sigev_notify = SIGEV_SIGNAL;
    printf("no signal: %d", said(mq_notify(queue, &event)));
    event.sigev_notify = 9;
    printf(" no way: %d\n", said(mq_notify(queue, &event)));
    struct { void *value; int signo, notify; char rest[48]; } thread = {text, 99, SIGEV_THREAD, ""};
    printf("thread: %d", said(syscall(SYS_mq_notify, queue, &thread)));
    thread.signo = queue;
    printf(" %d", said(syscall(SYS_mq_notify, queue, &thread)));
    thread.value = (void *)8;
    printf(" %d\n", said(syscall(SYS_mq_notify, queue, &thread)));
    struct pollfd look = {queue, POLLIN | POLLOUT, 0};
    poll(&look, 1, -1), printf("some: %x", look.revents);
    mq_receive(queue, text, 32, 0), poll(&look, 1, -1), printf(" none: %x", look.revents);
    for (int i = 0; i < 3; i++) mq_send(queue, "e", 1, 0);
    poll(&look, 1, -1), printf(" full: %x\n", look.revents);
    int set = epoll_create1(0);
    struct epoll_event edge = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
    epoll_ctl(set, EPOLL_CTL_ADD, queue, &edge);
    printf("edges: %d", epoll_wait(set, &edge, 1, 0));
    printf(" %d", epoll_wait(set, &edge, 1, 0));
    mq_receive(queue, text, 32, 0), printf(" %d", epoll_wait(set, &edge, 1, 0)), printf(" %x", edge.events);
    printf(" %d\n", epoll_wait(set, &edge, 1, 0));
    mq_unlink(name);
    fstat(queue, &found), printf("%ld links\n", (long)found.st_nlink);
    close(set), close(queue);
}

/* RLIMIT_MSGQUEUE counts what could be in them; a user may open only what the mode allows. */
static void limits(void) {
    struct rlimit limit = {3000, 3000};
    pid_t child = fork();
    if (!child) {
        setrlimit(RLIMIT_MSGQUEUE, &limit);
        for (int i = 0; i < 4; i++) {
            snprintf(name + 40, 20, "%d", i), memset(name + 20, 'l', 20);
            mqd_t queue = made(O_RDWR, 4, 200);
            printf("limit: %d\n", queue < 0 ? -errno : 0);
            if (queue >= 0 && i == 1) mq_unlink(name), close(queue);
            if (queue >= 0 && i == 2) mq_unlink(name);
        }
        snprintf(name + 40, 20, "0"), mq_unlink(name);
        fflush(stdout);
        _exit(0);
    }
    printf("limits: %d\n", ended(child));
}

/* Senders and receivers wait, for room, messages, time and signals. */
static void waits(void) {
    mqd_t queue = made(O_RDWR, 2, 16);
    struct timespec until = after(3000000);
    printf("time: %d\n", said(mq_timedreceive(queue, text, 16, 0, &until)));
    pid_t child = fork();
    if (!child) {
        for (int i = 0; i < 9; i++) text[0] = '0' + i, mq_send(queue, text, 1, i % 3);
        _exit(7);
    }
    pass(20000000);
    for (int i = 0; i < 9; i++) {
        take(queue, "in turn"), pass(5000000);
    }
    printf("sender: %d\n", ended(child));
    pid_t first = fork();
    if (!first) _exit(mq_receive(queue, text, 16, 0) == 1 ? text[0] : 1);
    pass(10000000);
    pid_t second = fork();
    if (!second) _exit(mq_receive(queue, text, 16, 0) == 1 ? text[0] : 1);
    pass(10000000);
    mq_send(queue, "a", 1, 0), mq_send(queue, "b", 1, 9);
    printf("receivers: %c", ended(first));
    printf(" %c\n", ended(second));
    first = fork();
    if (!first) nice(5), _exit(mq_receive(queue, text, 16, 0) == 1 ? text[0] : 1);
    pass(10000000);
    second = fork();
    if (!second) _exit(mq_receive(queue, text, 16, 0) == 1 ? text[0] : 1);
    pass(10000000);
    mq_send(queue, "c", 1, 0), mq_send(queue, "d", 1, 0);
    printf("the nicer one later: %c", ended(first));
    printf(" %c\n", ended(second));
    for (int again = 0; again < 2; again++) {
        first = fork();
        if (!first) {
            handle(SIGUSR2, again ? SA_RESTART : 0), heard = 0;
            int size = said(mq_receive(queue, text, 16, 0));
            _exit(size < 0 ? 10 - size : heard * 100 + size);
        }
        pass(10000000), kill(first, SIGUSR2), pass(10000000);
        if (again) mq_send(queue, "e", 1, 0);
        printf("a signal: %d\n", ended(first));
    }
    first = fork();
    if (!first) _exit(mq_receive(queue, text, 16, 0) == 1 ? text[0] : 1);
    pass(10000000), kill(first, SIGSTOP), pass(10000000);
    mq_send(queue, "f", 1, 0), show(queue, "who is stopped gets nothing");
    kill(first, SIGCONT), printf("but later: %c\n", ended(first));
    show(queue, "at the end");
    mq_unlink(name), close(queue);
}

/* Two processes pass messages through two small queues and are told of some by a signal. */
static void passes(int rounds) {
    char back[70];
    mqd_t there = made(O_RDWR, 2, 16);
    snprintf(back, sizeof back, "%sb", name);
    struct mq_attr wanted = {.mq_maxmsg = 1, .mq_msgsize = 16};
    mqd_t here = mq_open(back, O_CREAT | O_RDWR, 0600, &wanted);
    mq_unlink(back);
    handle(SIGUSR1, SA_RESTART);
    pid_t child = fork();
    if (!child) {
        unsigned sum = 0, priority;
        for (int i = 0; i < rounds; i++) {
            mq_receive(there, text, 16, &priority);
            sum = sum * 3 + text[0] + priority;
            for (volatile int j = 0; j < i % 5 * 20; j++) {}
            if (mq_send(here, (char *)&sum, 4, i % 2)) _exit(2);
        }
        _exit(sum % 100);
    }
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 5};
    unsigned total = 0, part;
    int sent = 0, got = 0;
    while (got < rounds) {
        struct timespec until = after(2000);
        mq_notify(here, &event);
        text[0] = sent;
        if (sent < rounds && !mq_timedsend(there, text, 1 + sent % 16, sent % 4, &until)) sent++;
        until = after(sent < rounds ? 1000 : 900000000);
        if (mq_timedreceive(here, (char *)text, 16, 0, &until) == 4) {
            memcpy(&part, text, 4);
            total = total * 7 + part, got++;
        }
    }
    printf("passed: %u, child %d, heard %d\n", total % 100000, ended(child), heard > 0);
    mq_unlink(name);
}

int main(int count, char **words) {
    setvbuf(stdout, 0, _IOFBF, 1 << 16);
    snprintf(name, sizeof name, "/queues-%d", getpid());
    if (count > 1 && words[1][0] == 'p') return passes(12), 0;
    if (count > 1 && words[1][0] == 'w') return waits(), 0;
    calls(), fflush(stdout);
    as_a_file(), fflush(stdout);
    waits(), fflush(stdout);
    limits();
    return 0;
}
