/* Signals that tell of files (O_ASYNC): whom, by which signal, of what, and what each kind of file has. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#ifndef F_SETSIG
#define F_SETSIG 10
#define F_GETSIG 11
#endif
struct owner { int type, pid; };

static sigset_t all;
static int queued;

static const char *why(int e) { return e ? strerror(errno) : "ok"; }

/* What has come meanwhile, in the order in which it is taken. */
static void came(const char *after) {
    siginfo_t info;
    struct timespec none = {0, 0};
    char last[64] = "", text[64];
    int number, times = 0;
    printf("%s:", after);
    while ((number = sigtimedwait(&all, &info, &none)) > 0) {
        if (number == SIGCHLD) continue;
        const char *name = number == queued ? "rt" : number == SIGIO ? "io" : number == SIGUSR1 ? "usr1" : "?";
        if (info.si_code == SI_KERNEL) sprintf(text, "%s(kernel)", name);
        else sprintf(text, "%s(%d %lx fd%d)", name, info.si_code, (long)info.si_band, info.si_fd);
        if (strcmp(last, text) && times) printf(" %d %s", times, last), times = 0;
        strcpy(last, text), times++;
    }
    if (times) printf(" %d %s", times, last);
    printf("\n");
}

/* The kernel brings on what is typed in a thread of its own. */
static void settled(const char *after) {
    poll(0, 0, 30);
    came(after);
}

static void on(int fd, int signal) {
    if (fcntl(fd, F_SETOWN, getpid()) || fcntl(fd, F_SETSIG, signal)) printf("owner: %s\n", strerror(errno));
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_ASYNC)) printf("O_ASYNC: %s\n", strerror(errno));
}

static void owners(void) {
    int p[2];
    struct owner o = {7, 7};
    pipe(p);
    printf("signal %d, F_GETOWN %d", fcntl(p[0], F_GETSIG), fcntl(p[0], F_GETOWN));
    printf(", ex %s %d %d\n", why(fcntl(p[0], F_GETOWN_EX, &o)), o.type, o.pid);
    printf("no such: %s", why(fcntl(p[0], F_SETOWN, 4000000)));
    printf(", lowest: %s", why(fcntl(p[0], F_SETOWN, -2147483647 - 1)));
    printf(", signal 65: %s", why(fcntl(p[0], F_SETSIG, 65)));
    printf(", signal -1: %s", why(fcntl(p[0], F_SETSIG, -1)));
    o.type = 3, o.pid = 0;
    printf(", kind 3: %s", why(fcntl(p[0], F_SETOWN_EX, &o)));
    printf(", nowhere: %s\n", why(fcntl(p[0], F_SETOWN_EX, (void *)8)));
    fcntl(p[0], F_SETOWN, -getpgrp());
    fcntl(p[0], F_GETOWN_EX, &o);
    printf("group: %d %d\n", o.type, o.pid == getpgrp());
    o.type = 0, o.pid = syscall(SYS_gettid);
    fcntl(p[0], F_SETOWN_EX, &o);
    o.pid = 0;
    fcntl(p[0], F_GETOWN_EX, &o);
    printf("thread: %d %d\n", o.type, o.pid == getpid());
    pid_t child = fork();
    if (!child) _exit(0);
    fcntl(p[0], F_SETOWN, child);
    waitpid(child, 0, 0);
    printf("gone: %d\n", fcntl(p[0], F_GETOWN));
    int null = open("/dev/null", O_RDWR), one = 1;
    printf("null: %s", why(fcntl(null, F_SETFL, O_ASYNC)));
    printf(" %#x", fcntl(null, F_GETFL) & O_ASYNC);
    printf(", ioctl: %s", why(ioctl(null, FIOASYNC, &one)));
    printf(", pipe: %s", why(ioctl(p[0], FIOASYNC, &one)));
    printf(" %#x", fcntl(p[0], F_GETFL) & O_ASYNC);
    printf(", FIOSETOWN: %s\n", why(ioctl(p[0], FIOSETOWN, &one)));
    close(p[0]), close(p[1]), close(null);
    came("nothing");
}

static void pipes(void) {
    int p[2];
    char big[70000] = {0};
    pipe2(p, O_NONBLOCK);
    on(p[0], queued), on(p[1], queued);
    came("pipe");
    write(p[1], "abc", 3);
    came("written");
    write(p[1], "d", 1), write(p[1], "e", 1);
    came("twice");
    read(p[0], big, 2);
    came("read");
    write(p[1], big, sizeof big);
    came("filled");
    read(p[0], big, 100);
    came("a little");
    fcntl(p[0], F_SETSIG, 0);
    write(p[1], big, 10), write(p[1], big, 10);
    came("plain");
    fcntl(p[0], F_SETSIG, SIGIO);
    read(p[0], big, sizeof big), write(p[1], big, 10);
    came("detailed");
    fcntl(p[0], F_SETSIG, SIGCHLD);
    fcntl(p[0], F_SETFL, O_NONBLOCK);
    write(p[1], big, 10);
    came("off");
    fcntl(p[0], F_SETSIG, SIGUSR1);
    int copy = dup(p[0]);
    fcntl(copy, F_SETFL, O_NONBLOCK | O_ASYNC);
    close(p[0]);
    printf("descriptor %d\n", copy == p[0] + 2);
    write(p[1], big, 10);
    came("by another");
    fcntl(p[1], F_SETFL, O_NONBLOCK);
    close(p[1]);
    came("no writer");
    close(copy);
    pipe2(p, O_NONBLOCK);
    on(p[1], queued);
    close(p[0]);
    came("no reader");
    close(p[1]);
    mkfifo("fifo-of-notified", 0600);
    int both = open("fifo-of-notified", O_RDWR | O_NONBLOCK);
    on(both, queued);
    write(both, "x", 1), read(both, big, 1);
    came("fifo");
    close(both), unlink("fifo-of-notified");
}

static void unix_sockets(int type, const char *name) {
    int s[2], value, one = 1;
    char big[4096] = {0};
    socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, s);
    printf("%s\n", name);
    value = getpid();
    printf("FIOSETOWN: %s", why(ioctl(s[0], FIOSETOWN, &value)));
    value = 0, ioctl(s[0], SIOCGPGRP, &value);
    printf(" %d", value == getpid());
    printf(", FIOASYNC: %s\n", why(ioctl(s[0], FIOASYNC, &one)));
    write(s[1], "a", 1);
    came("plain");
    on(s[0], queued), on(s[1], queued);
    write(s[1], "abc", 3), read(s[0], big, 10), read(s[0], big, 10);
    came("one message");
    while (write(s[1], big, sizeof big) > 0) {}
    came("full");
    for (int i = 0; i < 3; i++) read(s[0], big, sizeof big);
    came("some room");
    while (read(s[0], big, sizeof big) > 0) {}
    came("empty");
    shutdown(s[1], SHUT_WR);
    came("shut");
    shutdown(s[1], SHUT_RDWR);
    came("shut both");
    close(s[1]);
    came("closed");
    close(s[0]);
}

static void inet(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    char data[100];
    int one = socket(AF_INET, SOCK_DGRAM, 0), two = socket(AF_INET, SOCK_DGRAM, 0);
    bind(one, (void *)&at, sizeof at), getsockname(one, (void *)&at, &size);
    on(one, queued);
    sendto(two, "abc", 3, 0, (void *)&at, size), sendto(two, "abc", 3, 0, (void *)&at, size);
    came("udp");
    connect(two, (void *)&at, size), on(two, queued), close(one);
    send(two, "x", 1, 0);
    came("refused");
    close(two);
    at.sin_port = 0;
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    bind(listener, (void *)&at, sizeof at), getsockname(listener, (void *)&at, &size);
    listen(listener, 5), on(listener, queued), on(client, queued);
    connect(client, (void *)&at, size);
    struct pollfd wait = {client, POLLOUT, 0};
    poll(&wait, 1, 1000);
    came("connected");
    int server = accept(listener, 0, 0);
    on(server, queued);
    send(client, "abc", 3, 0), recv(server, data, 100, 0);
    came("sent");
    send(server, "abc", 3, 0), recv(client, data, 100, 0);
    came("answered");
    shutdown(client, SHUT_WR);
    while (recv(server, data, 100, 0) > 0) {}
    came("half closed");
    close(server);
    while (recv(client, data, 100, 0) > 0) {}
    came("closed");
    close(client), close(listener);
}

static void terminals(void) {
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
    struct termios raw;
    char data[5000] = {0};
    grantpt(master), unlockpt(master);
    int slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_NONBLOCK);
    on(slave, queued);
    write(master, "ab", 2);
    settled("typed");
    write(master, "c\nd\n", 4);
    settled("lines");
    read(slave, data, 100);
    on(master, queued);
    read(master, data, 100);
    settled("master");
    tcgetattr(slave, &raw);
    raw.c_lflag = 0, raw.c_oflag = 0;
    tcsetattr(slave, TCSANOW, &raw);
    write(master, "xyz", 3);
    settled("raw");
    write(slave, "shown", 5);
    settled("shown");
    fcntl(slave, F_SETOWN, 0);
    printf("off %d", fcntl(slave, F_GETOWN));
    fcntl(slave, F_SETFL, O_NONBLOCK), fcntl(slave, F_SETFL, O_NONBLOCK | O_ASYNC);
    printf(", on %d\n", fcntl(slave, F_GETOWN) == getpid());
    fcntl(master, F_SETFL, O_NONBLOCK);
    close(master);
    settled("hung up");
    printf("%#x\n", fcntl(slave, F_GETFL) & O_ASYNC);
    close(slave);
}

static int thread_pipe[2];

static void *thread(void *_) {
    siginfo_t info;
    struct owner o = {0, syscall(SYS_gettid)};
    (void)_;
    fcntl(thread_pipe[0], F_SETOWN_EX, &o);
    fcntl(thread_pipe[0], F_SETSIG, queued);
    fcntl(thread_pipe[0], F_SETFL, O_ASYNC);
    write(thread_pipe[1], "x", 1);
    sigwaitinfo(&all, &info);
    printf("thread: %d %d\n", info.si_signo == queued, info.si_fd == thread_pipe[0]);
    return 0;
}

static void others(void) {
    int p[2], ready[2];
    char c;
    pthread_t id;
    pipe(thread_pipe);
    pthread_create(&id, 0, thread, 0), pthread_join(id, 0);
    came("not the process");
    pipe(p), pipe(ready);
    setpgid(0, 0);
    fcntl(p[0], F_SETSIG, queued), fcntl(p[0], F_SETFL, O_ASYNC);
    fcntl(p[0], F_SETOWN, -getpgrp());
    if (!fork()) {
        siginfo_t info;
        write(ready[1], "x", 1);
        sigwaitinfo(&all, &info);
        printf("child: %d %d\n", info.si_signo == queued, info.si_code);
        exit(0);
    }
    fflush(stdout);
    read(ready[0], &c, 1);
    write(p[1], "x", 1);
    wait(0);
    came("group");
    int fd = signalfd(-1, &all, SFD_NONBLOCK);
    struct signalfd_siginfo info;
    write(p[1], "x", 1);
    read(fd, &info, sizeof info);
    printf("signalfd: %d %d %x fd%d\n", info.ssi_signo == (unsigned)queued, info.ssi_code, info.ssi_band, info.ssi_fd);
}

/* A thread that waits in a call on the file itself: streams tell nobody of what it gets at once, others do. */
static struct { int fd, size; char how; volatile int tid; } call;

static void *calls(void *_) {
    static char data[1 << 17];
    struct pollfd wait = {call.fd, POLLIN, 0};
    call.tid = syscall(SYS_gettid);
    if (call.how == 'r') read(call.fd, data, call.size);
    if (call.how == 'w') write(call.fd, data, call.size);
    if (call.how == 'k') recv(call.fd, data, call.size, MSG_PEEK);
    if (call.how == 'a') recv(call.fd, data, call.size, MSG_WAITALL);
    if (call.how == 'p') poll(&wait, 1, -1);
    if (call.how == 'c') close(accept(call.fd, 0, 0));
    return _;
}

static void sleeps(void) {
    char path[64], text[300], *end;
    sprintf(path, "/proc/self/task/%d/stat", call.tid);
    do {
        poll(0, 0, 1);
        FILE *stat = fopen(path, "r");
        end = fgets(text, sizeof text, stat) ? strrchr(text, ')') : 0;
        fclose(stat);
    } while (!end || end[2] != 'S');
}

static void asleep(pthread_t *id, int fd, int how, int size) {
    call.fd = fd, call.how = how, call.size = size, call.tid = 0;
    pthread_create(id, 0, calls, 0);
    while (!call.tid) poll(0, 0, 1);
    sleeps();
}

static void both_ends(const char *name, int get, int put, int is_socket) {
    pthread_t id;
    char text[64], data[100];
    printf("%s\n", name);
    on(get, queued);
    for (const char *how = is_socket ? "rpka" : "rp"; *how; how++) {
        asleep(&id, get, *how, 10);
        write(put, "abc", 3);
        if (*how == 'a' && name[0] != 'd' && name[1] != 'e') sleeps();
        if (*how == 'a') write(put, "abcdefgh", 8);
        pthread_join(id, 0);
        sprintf(text, "in %c", *how), came(text);
        fcntl(get, F_SETFL, O_ASYNC | O_NONBLOCK);
        while (read(get, data, sizeof data) > 0) {}
        fcntl(get, F_SETFL, O_ASYNC);
        write(put, "abc", 3), read(get, data, 3);
        came("in none");
    }
}

static void at_the_end(const char *name, int get, int put, int how) {
    pthread_t id;
    on(get, queued);
    asleep(&id, get, 'r', 10);
    if (how < 0) close(put);
    else shutdown(put, how);
    pthread_join(id, 0);
    came(name);
    close(get), close(put);
}

static void connected(int s[2]) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    pthread_t id;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    s[1] = socket(AF_INET, SOCK_STREAM, 0);
    bind(listener, (void *)&at, size), getsockname(listener, (void *)&at, &size), listen(listener, 5);
    connect(s[1], (void *)&at, size), s[0] = accept(listener, 0, 0);
    on(listener, queued);
    asleep(&id, listener, 'c', 0);
    int other = socket(AF_INET, SOCK_STREAM, 0);
    connect(other, (void *)&at, size), pthread_join(id, 0);
    came("in accept");
    close(other), close(listener);
}

static void blocked(void) {
    static const int types[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
    static const char *names[] = {"stream, in calls", "seqpacket, in calls", "datagram, in calls"};
    static char data[4096];
    pthread_t id;
    int s[2];
    pipe(s), both_ends("pipe, in calls", s[0], s[1], 0), close(s[0]), close(s[1]);
    for (int i = 0; i < 3; i++) {
        socketpair(AF_UNIX, types[i], 0, s), both_ends(names[i], s[0], s[1], 1), close(s[0]), close(s[1]);
        if (i == 2) break;
        socketpair(AF_UNIX, types[i], 0, s), at_the_end("shut", s[0], s[1], SHUT_WR);
        socketpair(AF_UNIX, types[i], 0, s), at_the_end("shut both", s[0], s[1], SHUT_RDWR);
        socketpair(AF_UNIX, types[i], 0, s), at_the_end("closed", s[0], s[1], -1);
        socketpair(AF_UNIX, types[i], 0, s);
        while (send(s[0], data, sizeof data, MSG_DONTWAIT) > 0) {}
        on(s[0], queued);
        asleep(&id, s[0], 'w', 4096);
        while (recv(s[1], data, sizeof data, MSG_DONTWAIT) > 0) {}
        pthread_join(id, 0);
        came("room for a writer");
        close(s[0]), close(s[1]);
    }
    connected(s), both_ends("tcp, in calls", s[0], s[1], 1), close(s[0]), close(s[1]);
    connected(s), at_the_end("shut", s[0], s[1], SHUT_WR);
    connected(s), at_the_end("closed", s[0], s[1], -1);
}

int main(void) {
    setvbuf(stdout, 0, _IOLBF, 0);
    queued = SIGRTMIN + 2;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, 0);
    owners();
    pipes();
    unix_sockets(SOCK_STREAM, "stream");
    unix_sockets(SOCK_SEQPACKET, "seqpacket");
    unix_sockets(SOCK_DGRAM, "datagram");
    inet();
    terminals();
    others();
    blocked();
    return 0;
}
