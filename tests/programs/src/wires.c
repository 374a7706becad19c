/* Processes that talk by every kind of wire, and mostly wait for each other. What each says does not depend on
   who runs when: `wires KIND`. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define CHECK(call) ((call) < 0 ? (printf("%s: %s\n", #call, strerror(errno)), fflush(stdout), _exit(1), 0) : 0)

static int open_pipe[2]; /* through which children say what they found, for the end */

static void say(const char *what, long value) {
    char line[80];
    int length = snprintf(line, sizeof line, "%s %ld\n", what, value);
    CHECK(write(open_pipe[1], line, length));
}

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Wait for all children, then print what was said, sorted: who came first does not matter. */
static int finish(void) {
    int status, failed = 0, count = 0;
    close(open_pipe[1]);
    static char all[8192], *lines[256];
    int size = 0, got;
    while ((got = read(open_pipe[0], all + size, sizeof all - 1 - size)) > 0) size += got;
    all[size] = 0;
    while (wait(&status) > 0) failed += status != 0;
    for (char *line = strtok(all, "\n"); line; line = strtok(0, "\n")) lines[count++] = line;
    qsort(lines, count, sizeof *lines, by_text);
    for (int i = 0; i < count; i++) puts(lines[i]);
    printf("failed %d\n", failed);
    return failed;
}

static unsigned next(unsigned *seed) { return *seed = *seed * 1103515245 + 12345, *seed >> 16 & 0x7fff; }

static unsigned fold(unsigned sum, const unsigned char *data, int size) {
    for (int i = 0; i < size; i++) sum = sum * 31 + data[i];
    return sum;
}

static unsigned char block[20000];

static void fill(unsigned seed) {
    for (unsigned i = 0; i < sizeof block; i++) block[i] = next(&seed);
}

/* Write `total` bytes in pieces of changing sizes. */
static unsigned pour(int fd, int total, unsigned seed) {
    unsigned sum = 7;
    fill(seed);
    for (int done = 0; done < total;) {
        int piece = next(&seed) % 7000 + 1, at = next(&seed) % 8000;
        if (piece > total - done) piece = total - done;
        int wrote = write(fd, block + at, piece);
        CHECK(wrote);
        sum = fold(sum, block + at, wrote);
        done += wrote;
    }
    return sum;
}

static unsigned drain(int fd, unsigned seed, int *total) {
    unsigned char into[9000]; /* threads do this at once */
    unsigned sum = 7;
    int got;
    *total = 0;
    while ((got = read(fd, into, next(&seed) % sizeof into + 1)) > 0) sum = fold(sum, into, got), *total += got;
    if (got < 0) *total = -errno;
    return sum;
}

static void pass(int over, int fd, const char *text) {
    union { char data[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control = {0};
    struct iovec piece = {(void *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control.data, message.msg_controllen = sizeof control.data;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
    }
    CHECK(sendmsg(over, &message, 0));
}

/* Receive a message: the open file in it, -1 if there is none, -2 at the end. */
static int taken(int over, char *text, int room) {
    union { char data[256]; struct cmsghdr align; } control;
    struct iovec piece = {text, room - 1};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control.data};
    message.msg_controllen = sizeof control.data;
    int fd = -1, got = recvmsg(over, &message, 0);
    CHECK(got);
    text[got] = 0;
    if (!got) return -2;
    for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head))
        if (head->cmsg_type == SCM_RIGHTS) memcpy(&fd, CMSG_DATA(head), sizeof fd);
    return fd;
}

static pid_t child(void) {
    pid_t pid = fork();
    CHECK(pid);
    return pid;
}

static void done(void) { _exit(0); }

static void pairs(void) {
    int one[2], two[2], three[2], got, small = 3000;
    char text[200];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, one));
    CHECK(setsockopt(one[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small));
    if (!child()) { /* bytes both ways, and half of the connection shut down */
        close(one[0]);
        say("pair poured", drain(one[1], 3, &got)), say("pair bytes", got);
        say("pair answered", pour(one[1], 30000, 5));
        done();
    }
    if (!child()) {
        close(one[1]);
        say("pair poured", pour(one[0], 60000, 9));
        CHECK(shutdown(one[0], SHUT_WR));
        say("pair answered", drain(one[0], 4, &got)), say("pair bytes", got);
        say("pair writes", write(one[0], "x", 1) < 0 && errno == EPIPE);
        done();
    }
    close(one[0]), close(one[1]);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, one));
    if (!child()) { /* a buffer that is full, and has room again when much of it was read */
        close(one[0]);
        say("pair large", drain(one[1], 11, &got));
        done();
    }
    if (!child()) {
        close(one[1]);
        say("pair large", pour(one[0], 500000, 12));
        done();
    }
    close(one[0]), close(one[1]);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, two));
    if (!child()) { /* messages with open files: pipes, and ends of the way itself */
        close(two[1]);
        for (int i = 0; i < 6; i++) {
            int ends[2];
            CHECK(pipe(ends));
            snprintf(text, sizeof text, "file %d", i);
            CHECK(write(ends[1], text, strlen(text)));
            pass(two[0], i % 3 == 2 ? -1 : ends[0], text);
            close(ends[0]), close(ends[1]);
        }
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, three));
        pass(two[0], three[1], "a socket");
        close(three[1]);
        pass(two[0], three[0], "its peer, with what was sent to it");
        CHECK(write(three[0], "sent before", 11));
        char last[64];
        got = read(three[0], last, sizeof last);
        say("pair peer said", fold(1, (unsigned char *)last, got));
        done();
    }
    if (!child()) {
        close(two[0]);
        long sum = 0;
        int fd, kept = -1, files = 0;
        while ((fd = taken(two[1], text, sizeof text)) != -2) {
            sum = fold(sum, (unsigned char *)text, strlen(text));
            if (fd < 0) continue;
            files++;
            if (!strcmp(text, "a socket")) {
                got = read(fd, text, sizeof text);
                CHECK(write(fd, "and back", 8));
                kept = fd;
            } else if (strncmp(text, "its", 3)) {
                got = read(fd, text, sizeof text);
                sum = fold(sum, (unsigned char *)text, got), close(fd);
            }
        }
        say("pair files", files), say("pair messages", sum), close(kept);
        done();
    }
    close(two[0]), close(two[1]);
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, three));
    if (!child()) {
        for (int i = 0; i < 40; i++) CHECK(send(three[0], block, i * 37 % 900 + 1, 0));
        done();
    }
    if (!child()) {
        long sum = 0;
        struct pollfd waits = {three[1], POLLIN, 0};
        for (int i = 0; i < 40; i++) {
            CHECK(poll(&waits, 1, i % 2 ? -1 : 5000));
            sum = sum * 3 + recv(three[1], text, sizeof text, MSG_TRUNC);
        }
        say("pair datagrams", sum);
        done();
    }
    close(three[0]), close(three[1]);
}

static socklen_t named(struct sockaddr_un *address, const char *name, int is_abstract) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    strcpy(address->sun_path + is_abstract, name);
    return is_abstract ? sizeof(sa_family_t) + 1 + strlen(name) : sizeof *address;
}

static void serve(const char *name, int is_abstract, const char *label) {
    struct sockaddr_un address;
    socklen_t length = named(&address, name, is_abstract);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), ready[2], on = 1;
    char byte, text[300];
    CHECK(pipe(ready));
    if (!child()) { /* the server: one client after the other, so that others wait in line or for the line */
        CHECK(bind(listener, (void *)&address, length));
        CHECK(setsockopt(listener, SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
        CHECK(listen(listener, 1));
        CHECK(write(ready[1], "rrrrr", 5));
        long sum = 0;
        for (int i = 0; i < 5; i++) {
            int got, fd = accept4(listener, 0, 0, SOCK_CLOEXEC);
            CHECK(fd);
            struct ucred who;
            socklen_t size = sizeof who;
            CHECK(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size));
            sum += who.uid == getuid() && who.pid > getpid();
            while ((got = read(fd, text, sizeof text)) > 0) CHECK(write(fd, text, got));
            close(fd);
        }
        snprintf(text, sizeof text, "%s peers", label);
        say(text, sum);
        done();
    }
    for (int i = 0; i < 5; i++)
        if (!child()) {
            CHECK(read(ready[0], &byte, 1));
            int got, fd = socket(AF_UNIX, SOCK_STREAM, 0);
            CHECK(connect(fd, (void *)&address, length));
            fill(i);
            CHECK(write(fd, block, 200 + i));
            CHECK(shutdown(fd, SHUT_WR));
            snprintf(text, sizeof text, "%s client %d", label, i);
            say(text, drain(fd, i, &got));
            done();
        }
    close(listener), close(ready[0]), close(ready[1]);
}

static void names(void) {
    serve("wires-stream", 0, "path"), serve("wires", 1, "abstract");
    struct sockaddr_un address, own;
    socklen_t length = named(&address, "wires-datagrams", 0);
    int receiver = socket(AF_UNIX, SOCK_DGRAM, 0);
    char text[100];
    CHECK(bind(receiver, (void *)&address, length));
    for (int i = 0; i < 3; i++)
        if (!child()) { /* more than the receiver's inbox takes */
            int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
            snprintf(text, sizeof text, "from %d", i);
            length = named(&own, text, 1);
            CHECK(bind(fd, (void *)&own, length));
            length = named(&address, "wires-datagrams", 0);
            CHECK(connect(fd, (void *)&address, length));
            for (int k = 0; k < 15; k++) CHECK(send(fd, block, k + 1, 0));
            done();
        }
    if (!child()) {
        long sums[3] = {0};
        for (int k = 0; k < 45; k++) {
            length = sizeof own;
            int got = recvfrom(receiver, text, sizeof text, 0, (void *)&own, &length);
            CHECK(got);
            sums[own.sun_path[6] - '0'] = sums[own.sun_path[6] - '0'] * 3 + got;
        }
        for (int i = 0; i < 3; i++) say("datagrams", sums[i]);
        done();
    }
    close(receiver);
}

static void fifos(void) {
    int got;
    char text[100];
    CHECK(mkfifo("wires-fifo", 0600));
    CHECK(mkfifo("wires-second", 0600));
    CHECK(mkfifo("wires-both", 0600));
    if (!child()) { /* waits in open, then reads to the end, three times */
        for (int i = 0; i < 3; i++) {
            int fd = open("wires-fifo", O_RDONLY);
            CHECK(fd);
            say("fifo read", drain(fd, i, &got)), say("fifo bytes", got);
            close(fd);
            fd = open("wires-second", O_WRONLY);
            CHECK(fd);
            CHECK(write(fd, "go on", 5));
            close(fd);
        }
        done();
    }
    if (!child()) {
        for (int i = 0; i < 3; i++) {
            int fd = open("wires-fifo", O_WRONLY);
            CHECK(fd);
            say("fifo read", pour(fd, 70000 + i, i));
            close(fd);
            fd = open("wires-second", O_RDONLY);
            CHECK(fd);
            got = read(fd, text, sizeof text);
            say("fifo told", got);
            close(fd);
        }
        done();
    }
    if (!child()) { /* both sides at once, by poll; and without a name */
        int both = open("wires-both", O_RDWR | O_NONBLOCK);
        CHECK(both);
        unlink("wires-both");
        long moved = 0, full = 0;
        struct pollfd waits = {both, POLLIN | POLLOUT, 0};
        for (int i = 0; i < 40; i++) {
            CHECK(poll(&waits, 1, -1));
            if (waits.revents & POLLOUT && (got = write(both, block, 4096)) > 0) moved += got;
            if (i % 3 == 0) got = read(both, block, 2000), moved = moved * 3 + got;
            full += !(waits.revents & POLLOUT);
        }
        struct stat about;
        CHECK(fstat(both, &about));
        say("fifo moved", moved), say("fifo full", full), say("fifo names", about.st_nlink);
        done();
    }
}

static volatile int resized, interrupted;
static void on_resize(int number) { (void)number, resized++; }
static void on_interrupt(int number) { (void)number, interrupted++; }

static void until(int fd, const char *what, char *seen, int room) { /* read at the master until it shows */
    int size = 0, got;
    seen[0] = 0;
    while (!strstr(seen, what)) {
        got = read(fd, seen + size, room - 1 - size);
        CHECK(got);
        seen[size += got] = 0;
    }
}

static void terminals(void) {
    int master = posix_openpt(O_RDWR | O_NOCTTY), hungry[2], got;
    char text[4000];
    CHECK(master);
    CHECK(grantpt(master));
    CHECK(unlockpt(master));
    CHECK(pipe(hungry));
    struct winsize size = {30, 90, 0, 0};
    CHECK(ioctl(master, TIOCSWINSZ, &size));
    if (!child()) { /* who leads the session at the terminal */
        CHECK(setsid());
        int slave = open(ptsname(master), O_RDWR);
        CHECK(slave);
        close(master);
        struct sigaction action = {.sa_handler = on_resize};
        sigaction(SIGWINCH, &action, 0);
        action.sa_handler = on_interrupt;
        sigaction(SIGINT, &action, 0);
        signal(SIGTTOU, SIG_IGN);
        pid_t other = child();
        if (!other) { /* a group of its own in front */
            setpgid(0, 0);
            while (tcgetpgrp(slave) != getpid()) poll(0, 0, 1);
            CHECK(write(slave, "other>", 6));
            got = read(slave, text, sizeof text);
            say("terminal other", fold(got, (unsigned char *)text, got));
            done();
        }
        setpgid(other, other);
        CHECK(tcsetpgrp(slave, other));
        int status;
        CHECK(waitpid(other, &status, 0));
        CHECK(tcsetpgrp(slave, getpid()));
        CHECK(write(slave, "line>", 5));
        got = read(slave, text, sizeof text);
        say("terminal line", fold(got, (unsigned char *)text, got));
        CHECK(write(slave, "size>", 5));
        while (!resized) poll(0, 0, 3);
        CHECK(ioctl(slave, TIOCGWINSZ, &size));
        say("terminal size", size.ws_row * 1000 + size.ws_col);
        sigset_t key, none;
        sigemptyset(&none), sigemptyset(&key), sigaddset(&key, SIGINT);
        sigprocmask(SIG_BLOCK, &key, 0);
        struct termios modes;
        CHECK(tcgetattr(slave, &modes));
        modes.c_lflag |= NOFLSH; /* else the key may take away what is written next */
        CHECK(tcsetattr(slave, TCSANOW, &modes));
        CHECK(write(slave, "key>", 4));
        struct pollfd waits = {slave, POLLIN, 0};
        while (!interrupted)
            if ((got = ppoll(&waits, 1, 0, &none)) >= 0) say("terminal typed", got);
        cfmakeraw(&modes);
        modes.c_cc[VMIN] = 5, modes.c_cc[VTIME] = 3;
        CHECK(tcsetattr(slave, TCSAFLUSH, &modes));
        CHECK(write(slave, "raw>", 4));
        for (int left = 12; left > 0; left -= got) {
            got = read(slave, text, left);
            CHECK(got);
        }
        say("terminal raw", got > 0);
        CHECK(write(slave, "bulk>", 5));
        say("terminal bulk", pour(slave, 30000, 17)); /* more than the master has room for */
        CHECK(read(slave, text, 1));
        done();
    }
    close(hungry[0]);
    until(master, "other>", text, sizeof text);
    CHECK(write(master, "typed for th\x7fhe other\n", 22));
    until(master, "line>", text, sizeof text);
    CHECK(write(master, "half a ", 7));
    poll(0, 0, 2);
    CHECK(write(master, "lime\x7f\x7fne\nahead", 14));
    until(master, "size>", text, sizeof text);
    size.ws_row = 41;
    CHECK(ioctl(master, TIOCSWINSZ, &size));
    until(master, "key>", text, sizeof text);
    poll(0, 0, 2);
    CHECK(write(master, "\x03", 1));
    until(master, "raw>", text, sizeof text);
    CHECK(write(master, "12", 2));
    poll(0, 0, 1000);
    CHECK(write(master, "3456789012", 10));
    until(master, "bulk>", text, sizeof text);
    char *rest = strstr(text, "bulk>") + 5;
    unsigned sum = fold(7, (unsigned char *)rest, strlen(rest));
    long total = strlen(rest);
    while (total < 30000 && (got = read(master, text, sizeof text)) > 0) {
        sum = fold(sum, (unsigned char *)text, got);
        total += got;
    }
    say("terminal bulk", sum), say("terminal total", total);
    CHECK(write(master, "ended", 5));
    got = read(master, text, sizeof text);
    say("terminal end", got < 0 && errno == EIO);
    close(master), close(hungry[1]);
}

static struct sockaddr_in at_port(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static int listening(int port, int backlog) {
    struct sockaddr_in address = at_port(port);
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    CHECK(bind(fd, (void *)&address, sizeof address));
    CHECK(listen(fd, backlog));
    return fd;
}

static void *accepts(void *argument) {
    int fd = accept(*(int *)argument, 0, 0), got;
    CHECK(fd);
    say("tcp thread", drain(fd, 1, &got));
    close(fd);
    return 0;
}

static void streams(void) {
    int many = listening(7001, 8), few = listening(7002, 3), got;
    struct sockaddr_in address = at_port(7001);
    if (!child()) { /* a server with a set: edges for clients, levels for the listener */
        int set = epoll_create1(0), left = 4;
        long echoed = 0;
        struct epoll_event event = {EPOLLIN, {.fd = many}}, events[8];
        CHECK(epoll_ctl(set, EPOLL_CTL_ADD, many, &event));
        CHECK(fcntl(many, F_SETFL, O_NONBLOCK));
        while (left) {
            int count = epoll_wait(set, events, 8, -1);
            CHECK(count);
            for (int i = 0; i < count; i++) {
                int fd = events[i].data.fd;
                if (fd == many) {
                    while ((fd = accept4(many, 0, 0, SOCK_NONBLOCK)) >= 0) {
                        event.events = EPOLLIN | EPOLLRDHUP | EPOLLET, event.data.fd = fd;
                        CHECK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
                    }
                    continue;
                }
                char text[1000];
                while ((got = read(fd, text, sizeof text)) > 0) {
                    struct pollfd waits = {fd, POLLOUT, 0};
                    for (int at = 0; at < got;) {
                        int wrote = write(fd, text + at, got - at);
                        if (wrote > 0) at += wrote;
                        else CHECK(poll(&waits, 1, -1));
                    }
                    echoed += got;
                }
                if (!got) close(fd), left--;
            }
        }
        say("tcp echoed", echoed);
        done();
    }
    for (int i = 0; i < 4; i++)
        if (!child()) {
            int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
            CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on));
            CHECK(connect(fd, (void *)&address, sizeof address));
            char text[20000], label[40];
            unsigned sum = 1;
            for (int round = 0; round < 4; round++) {
                fill(i * 9 + round);
                int size = 300 * i + 700 * round + 1;
                CHECK(send(fd, block, size, 0));
                got = recv(fd, text, size, MSG_WAITALL);
                sum = fold(sum * (got == size), (unsigned char *)text, size);
            }
            CHECK(shutdown(fd, SHUT_WR));
            snprintf(label, sizeof label, "tcp client %d", i);
            say(label, sum), say("tcp rest", read(fd, text, 10));
            done();
        }
    if (!child()) { /* threads that wait in accept, and who connects without waiting */
        pthread_t threads[3];
        for (int i = 0; i < 3; i++) pthread_create(&threads[i], 0, accepts, &few);
        for (int i = 0; i < 3; i++) pthread_join(threads[i], 0);
        done();
    }
    for (int i = 0; i < 3; i++)
        if (!child()) {
            address = at_port(7002);
            int fd = socket(AF_INET, SOCK_STREAM | (i ? SOCK_NONBLOCK : 0), 0), error;
            socklen_t size = sizeof error;
            if (connect(fd, (void *)&address, sizeof address) < 0 && errno != EINPROGRESS) CHECK(-1);
            struct pollfd waits = {fd, POLLOUT, 0};
            CHECK(poll(&waits, 1, -1));
            CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size));
            CHECK(fcntl(fd, F_SETFL, 0));
            say("tcp thread", pour(fd, 5000, 77)), say("tcp error", error);
            done();
        }
    close(many), close(few);
    if (!child()) { /* nobody is there; and a connection that is reset with an answer on its way */
        address = at_port(7003);
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        say("tcp refused", connect(fd, (void *)&address, sizeof address) < 0 && errno == ECONNREFUSED);
        int listener = listening(7003, 4), one = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(connect(one, (void *)&address, sizeof address));
        CHECK(write(one, "never read", 10));
        int other = accept(listener, 0, 0);
        poll(0, 0, 3);
        struct linger at_once = {1, 0};
        CHECK(setsockopt(other, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once));
        close(other);
        poll(0, 0, 3);
        char text[10];
        say("tcp reset", read(one, text, 10) < 0 && errno == ECONNRESET);
        say("tcp end", read(one, text, 10));
        done();
    }
}

static void datagrams(void) {
    int ready[2], receiver = socket(AF_INET, SOCK_DGRAM, 0), got;
    struct sockaddr_in address = at_port(7101), from;
    socklen_t length = sizeof from;
    char text[2000];
    CHECK(bind(receiver, (void *)&address, sizeof address));
    CHECK(pipe(ready));
    if (!child()) { /* answers each who asks */
        long sum = 0;
        for (int i = 0; i < 24; i++) {
            length = sizeof from;
            got = recvfrom(receiver, text, sizeof text, 0, (void *)&from, &length);
            CHECK(got);
            sum += got;
            CHECK(sendto(receiver, text, got / 2, 0, (void *)&from, length));
        }
        say("udp asked", sum);
        done();
    }
    for (int i = 0; i < 3; i++)
        if (!child()) {
            int fd = socket(AF_INET, SOCK_DGRAM, 0), set = epoll_create1(0);
            struct epoll_event event = {EPOLLIN | EPOLLONESHOT, {.u64 = 1}};
            long sum = 0;
            CHECK(connect(fd, (void *)&address, sizeof address));
            CHECK(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
            for (int k = 0; k < 8; k++) {
                CHECK(send(fd, block, 100, MSG_MORE));
                CHECK(send(fd, block, k * 11 + i, 0));
                CHECK(epoll_wait(set, &event, 1, -1));
                got = recv(fd, text, sizeof text, MSG_PEEK);
                sum = sum * 3 + got + recv(fd, text, sizeof text, 0);
                event.events = EPOLLIN | EPOLLONESHOT;
                CHECK(epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
            }
            snprintf(text, sizeof text, "udp client %d", i);
            say(text, sum);
            done();
        }
    if (!child()) { /* what nobody receives comes back as an error, and time runs out */
        struct sockaddr_in nobody = at_port(7102);
        int fd = socket(AF_INET, SOCK_DGRAM, 0);
        struct timeval soon = {0, 20000};
        CHECK(connect(fd, (void *)&nobody, sizeof nobody));
        CHECK(send(fd, "x", 1, 0));
        poll(0, 0, 5);
        say("udp refused", recv(fd, text, 10, 0) < 0 && errno == ECONNREFUSED);
        CHECK(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon));
        say("udp late", recv(fd, text, 10, 0) < 0 && errno == EAGAIN);
        done();
    }
    close(receiver);
}

/* Sets that several wait for: an inner one is a member of an outer one, and all hear of one listener. */
static void sets(void) {
    struct sockaddr_un address;
    socklen_t length = named(&address, "wires-sets", 1);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), got;
    char text[100];
    CHECK(bind(listener, (void *)&address, length));
    CHECK(listen(listener, 20));
    for (int i = 0; i < 3; i++)
        if (!child()) {
            int inner = epoll_create1(0), outer = epoll_create1(0), count = 0;
            struct epoll_event event = {EPOLLIN | (i == 2 ? EPOLLEXCLUSIVE : 0), {.u64 = 5}};
            CHECK(epoll_ctl(inner, EPOLL_CTL_ADD, listener, &event));
            event.events = EPOLLIN;
            CHECK(epoll_ctl(outer, EPOLL_CTL_ADD, inner, &event));
            while (epoll_wait(outer, &event, 1, -1) == 1) {
                int fd = accept(listener, 0, 0);
                if (fd < 0) continue;
                got = read(fd, text, sizeof text);
                close(fd);
                if (got == 1) break;
                count++;
                say("set took", got);
            }
            say("set ended", count >= 0);
            done();
        }
    if (!child()) {
        for (int i = 0; i < 15; i++) {
            int fd = socket(AF_UNIX, SOCK_STREAM, 0);
            CHECK(connect(fd, (void *)&address, length));
            CHECK(write(fd, block, i < 12 ? 10 + i : 1));
            if (i % 4 == 0) poll(0, 0, 1);
            close(fd);
        }
        done();
    }
    close(listener);
}

/* Owners of files hear of what comes by signals. */
static void owners(void) {
    int pair[2], other[2];
    sigset_t told;
    sigemptyset(&told), sigaddset(&told, SIGRTMIN), sigaddset(&told, SIGIO);
    sigprocmask(SIG_BLOCK, &told, 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    int listener = listening(7201, 4);
    if (!child()) {
        long bytes = 0, calls = 0;
        char text[100];
        int watched[2] = {pair[0], listener};
        for (int i = 0; i < 2; i++) {
            CHECK(fcntl(watched[i], F_SETOWN, getpid()));
            CHECK(fcntl(watched[i], F_SETSIG, SIGRTMIN));
            CHECK(fcntl(watched[i], F_SETFL, O_ASYNC | O_NONBLOCK));
        }
        close(pair[1]);
        CHECK(write(pair[0], "r", 1));
        for (int ended = 0; !ended;) {
            siginfo_t info;
            CHECK(sigwaitinfo(&told, &info));
            int got, fd;
            while ((got = read(pair[0], text, sizeof text)) > 0) bytes += got;
            ended = !got;
            while ((fd = accept(listener, 0, 0)) >= 0) calls++, close(fd);
        }
        say("owner bytes", bytes), say("owner calls", calls);
        done();
    }
    if (!child()) {
        struct sockaddr_in address = at_port(7201);
        char byte;
        close(pair[0]);
        CHECK(read(pair[1], &byte, 1));
        for (int i = 0; i < 10; i++) {
            CHECK(write(pair[1], block, 50 + i));
            if (i % 3) continue;
            int fd = socket(AF_INET, SOCK_STREAM, 0);
            CHECK(connect(fd, (void *)&address, sizeof address));
            CHECK(read(fd, &byte, 1));
            close(fd);
        }
        done();
    }
    close(pair[0]), close(pair[1]), close(listener);
    (void)other;
}

int main(int count, char **arguments) {
    struct { const char *name; void (*run)(void); } kinds[] = {
        {"pairs", pairs}, {"names", names}, {"fifos", fifos}, {"terminals", terminals}, {"tcp", streams},
        {"udp", datagrams}, {"sets", sets}, {"owners", owners},
    };
    char place[] = "/tmp/wires-XXXXXX"; /* where the names are, of this run alone */
    signal(SIGPIPE, SIG_IGN);
    if (!mkdtemp(place)) CHECK(-1);
    CHECK(chdir(place));
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (count < 2 || !strcmp(arguments[1], kinds[i].name)) {
            printf("== %s\n", kinds[i].name), fflush(stdout);
            CHECK(pipe(open_pipe));
            kinds[i].run();
            if (finish()) return 1;
            fflush(stdout);
            close(open_pipe[0]);
        }
    const char *names[] = {"wires-stream", "wires-datagrams", "wires-fifo", "wires-second"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) unlink(names[i]);
    CHECK(rmdir(place));
    return 0;
}
