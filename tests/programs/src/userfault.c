// userfaultfd: a thread answers the faults of others, as post-copy migration and collectors do.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "userfaultfd.h"

struct message { uint8_t event, pad[7]; uint64_t flags, address; uint32_t task, pad2; };

static size_t page;
static int fd;
static char *source;
static char *answered;           // where the range that the thread answers begins
static volatile int faults[3];   // missing, written, minor
static volatile int stop;
static sigjmp_buf back;
static volatile int code;

static const char *result(long value) {
    if (value >= 0)
        return "ok";
    static const struct {
        int number;
        const char *name;
    } known[] = {{EPERM, "EPERM"}, {EINVAL, "EINVAL"}, {ENOMEM, "ENOMEM"}, {EFAULT, "EFAULT"}, {EEXIST, "EEXIST"},
                 {ENOENT, "ENOENT"}, {EBUSY, "EBUSY"}, {EAGAIN, "EAGAIN"}, {ENOSYS, "ENOSYS"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].number == errno)
            return known[i].name;
    return "another error";
}

#define TELL(what, call) printf("%-40s %s\n", what, result((long)(call)))

static void caught(int signal, siginfo_t *info, void *context) {
    (void)context;
    code = signal * 10 + info->si_code;
    siglongjmp(back, 1);
}

static void touch(const char *what, char *where, int store) {
    if (sigsetjmp(back, 1)) {
        printf("%-40s %s\n", what, code == SIGBUS * 10 + BUS_ADRERR ? "SIGBUS" : code / 10 == SIGSEGV ? "SIGSEGV" : "?");
        return;
    }
    if (store)
        *(volatile char *)where = 'w';
    printf("%-40s %d\n", what, *(volatile char *)where);
}

static char *map(size_t pages, int flags) {
    char *where = mmap(0, pages * page, RW, flags | MAP_ANONYMOUS, -1, 0);
    if (where == MAP_FAILED)
        abort();
    return where;
}

static long watch(int fd, char *where, size_t length, int mode) {
    struct reg reg = {{(uintptr_t)where, length}, mode, 0};
    return ioctl(fd, REGISTER, &reg);
}

static long copy(int fd, char *where, char *from, size_t length, int mode) {
    struct copy copy = {(uintptr_t)where, (uintptr_t)from, length, mode, 0};
    return ioctl(fd, COPY, &copy);
}

static long zero(int fd, char *where, size_t length) {
    struct zero zero = {{(uintptr_t)where, length}, 0, 0};
    return ioctl(fd, ZEROPAGE, &zero);
}

static long protect(int fd, char *where, size_t length, int on) {
    struct wp wp = {{(uintptr_t)where, length}, on};
    return ioctl(fd, WRITEPROTECT, &wp);
}

static int open_one(uint64_t features, int mode) {
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | mode);
    struct api api = {0xAA, features, 0};
    if (fd < 0 || ioctl(fd, API, &api))
        printf("userfaultfd: %s\n", result(-1));
    return fd;
}

static void *answer(void *nothing) {
    (void)nothing;
    while (!stop) {
        struct pollfd look = {fd, POLLIN, 0};
        if (poll(&look, 1, 20) <= 0)
            continue;
        struct message message[4];
        ssize_t got = read(fd, message, sizeof message);
        for (ssize_t i = 0; i * (ssize_t)sizeof *message < got; i++) {
            char *where = (char *)(message[i].address & -page);
            if (message[i].flags & WP) {
                faults[1]++;
                protect(fd, where, page, 0);
            } else if (message[i].flags & MINOR) {
                faults[2]++;
                where[0] ^= 0;  // nothing: it is not ours to touch
            } else {
                faults[0]++;
                size_t number = (where - answered) / page;
                memset(source, 'a' + number % 26, page);
                if (number % 5 == 4)
                    zero(fd, where, page);
                else
                    copy(fd, where, source, page, 0);
            }
        }
    }
    return 0;
}

static void *reader(void *where) {
    unsigned sum = 0;
    for (size_t i = 0; i < 64; i++)
        sum += ((volatile char *)where)[i * page] + ((volatile char *)where)[i * page + page - 1];
    return (void *)(uintptr_t)sum;
}

static void missing(void) {
    puts("-- missing pages");
    answered = map(64, MAP_PRIVATE);
    TELL("watch", watch(fd, answered, 64 * page, MISSING));
    pthread_t thread, readers[3];
    pthread_create(&thread, 0, answer, 0);
    for (int i = 0; i < 3; i++)
        pthread_create(&readers[i], 0, reader, answered);
    for (int i = 0; i < 3; i++) {
        void *sum;
        pthread_join(readers[i], &sum);
        printf("reader %d sums up to %u\n", i, (unsigned)(uintptr_t)sum);
    }
    printf("at least a fault a page: %d\n", faults[0] >= 64);
    TELL("discard", madvise(answered, 64 * page, MADV_DONTNEED));
    int before = faults[0];
    answered[3 * page] = 'x';
    printf("a write after it: %c%c, a fault more: %d\n", answered[3 * page], answered[3 * page + 1], faults[0] > before);
    stop = 1;
    pthread_join(thread, 0);
    stop = 0;
}

static void refused(void) {
    puts("-- what is refused");
    char *room = map(8, MAP_PRIVATE);
    int second = open_one(0, 1);
    TELL("watch", watch(fd, room + page, 4 * page, MISSING | WP));
    TELL("by another", watch(second, room, 4 * page, MISSING));
    TELL("unaligned", watch(fd, room + 1, page, MISSING));
    TELL("nothing", watch(fd, room, 0, MISSING));
    TELL("no mode", watch(fd, room, page, 0));
    TELL("a mode that there is not", watch(fd, room, page, 64));
    TELL("minor faults of private memory", watch(fd, room, page, MINOR));
    char *gone = map(3, MAP_PRIVATE) + page;
    munmap(gone, page);
    TELL("a hole", watch(fd, gone, page, MISSING));
    int file = open("/proc/self/exe", O_RDONLY);
    char *shown = mmap(0, 2 * page, PROT_READ, MAP_PRIVATE, file, 0);
    TELL("a file", watch(fd, shown, page, MISSING));
    TELL("copy", copy(fd, room + page, source, page, 0));
    TELL("copy there again", copy(fd, room + page, source, page, 0));
    TELL("zero there", zero(fd, room + page, page));
    TELL("copy two, the second is there", copy(fd, room + page, source, 2 * page, 0));
    TELL("copy outside", copy(fd, room + 6 * page, source, page, 0));
    TELL("copy over the end", copy(fd, room + 4 * page, source, 2 * page, 0));
    TELL("copy unaligned", copy(fd, room + 2 * page + 8, source, page, 0));
    TELL("copy from nowhere", copy(fd, room + 2 * page, gone, page, 0));
    TELL("a mode of copy", copy(fd, room + 2 * page, source, page, 32));
    TELL("protect outside", protect(fd, room + 6 * page, page, 1));
    TELL("protect", protect(fd, room + 2 * page, page, 1));
    struct api api = {0xAA, 0, 0};
    TELL("features again", ioctl(fd, API, &api));
    TELL("another request", ioctl(fd, _IOWR(0xAA, 0x30, struct api), &api));
    int third = syscall(SYS_userfaultfd, O_CLOEXEC | 1);
    TELL("before features were chosen", watch(third, room, page, MISSING));
    api.features = 1ull << 60;
    TELL("a feature that there is not", ioctl(third, API, &api));
    char byte;
    TELL("read of less", read(fd, &byte, 1));
    struct message message;
    TELL("read of nothing", read(fd, &message, sizeof message));
    TELL("flags", syscall(SYS_userfaultfd, 64));
    struct range range = {(uintptr_t)room + page, 4 * page};
    TELL("unregister by another", ioctl(second, UNREGISTER, &range));
    TELL("unregister", ioctl(fd, UNREGISTER, &range));
    touch("now it is memory as any", room + 3 * page, 1);
    TELL("wake nobody", ioctl(fd, WAKE, &range));
    close(second);
    close(third);
}

static void written(void) {
    puts("-- protected from writes");
    char *room = map(8, MAP_PRIVATE);
    memset(room, 'o', 8 * page);
    TELL("watch", watch(fd, room, 8 * page, WP));
    pthread_t thread;
    pthread_create(&thread, 0, answer, 0);
    faults[1] = 0;
    TELL("protect", protect(fd, room, 8 * page, 1));
    printf("reads are free: %c, %d\n", room[page], faults[1]);
    for (int i = 0; i < 8; i += 2)
        room[i * page] = 'w', room[i * page + 1] = 'v';
    printf("%c%c%c%c, written to %d\n", room[0], room[page], room[2 * page + 1], room[3 * page], faults[1]);
    TELL("protect again", protect(fd, room, 8 * page, 1));
    TELL("mprotect keeps it", mprotect(room, 8 * page, PROT_READ) | mprotect(room, 8 * page, RW));
    room[4 * page] = 'x';
    printf("%c, written to %d\n", room[4 * page], faults[1]);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        room[5 * page] = 'c';
        printf("a child writes: %c\n", room[5 * page]);
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, 0, 0);
    printf("here: %c, written to %d\n", room[5 * page], faults[1]);
    room[5 * page] = 'p';
    printf("here: %c, written to %d\n", room[5 * page], faults[1]);
    TELL("protect again", protect(fd, room, 8 * page, 1));
    struct range range = {(uintptr_t)room, 8 * page};
    TELL("unregister", ioctl(fd, UNREGISTER, &range));
    room[6 * page] = 'u';
    printf("%c, written to %d\n", room[6 * page], faults[1]);
    stop = 1;
    pthread_join(thread, 0);
    stop = 0;
}

static char *first, *second;
static int minor;

static void *continued(void *nothing) {
    (void)nothing;
    struct message message;
    for (int left = 3; left;) {
        struct pollfd look = {minor, POLLIN, 0};
        poll(&look, 1, 20);
        if (read(minor, &message, sizeof message) != sizeof message)
            continue;
        size_t offset = (message.address & -page) - (uintptr_t)second;
        if (message.flags & MINOR) {
            first[offset] += 1;
            struct zero go = {{message.address & -page, page}, 0, 0};
            ioctl(minor, CONTINUE, &go);
            printf("minor fault in page %d\n", (int)(offset / page));
        } else {
            copy(minor, second + offset, source, page, 0);
            printf("missing page %d\n", (int)(offset / page));
        }
        left--;
    }
    return 0;
}

static void shared(void) {
    puts("-- shared memory");
    int file = syscall(SYS_memfd_create, "memory", 0);
    if (ftruncate(file, 8 * page))
        abort();
    first = mmap(0, 8 * page, RW, MAP_SHARED, file, 0), second = mmap(0, 8 * page, RW, MAP_SHARED, file, 0);
    minor = open_one(1 << 10 | 1 << 5, 1);
    TELL("watch", watch(minor, second, 8 * page, MINOR | MISSING));
    memset(source, 's', page);
    memset(first, 'f', page), memset(first + 4 * page, 'g', page);
    struct zero go = {{(uintptr_t)second + 2 * page, page}, 0, 0};
    TELL("continue without a page", ioctl(minor, CONTINUE, &go));
    pthread_t thread;
    pthread_create(&thread, 0, continued, 0);
    char a = second[0], b = second[4 * page + 1], c = second[6 * page];
    pthread_join(thread, 0);
    printf("%c %c %c, seen there: %c\n", a, b, c, first[6 * page]);
    close(minor);
    touch("nobody watches", second + 2 * page, 1);
}

static void others(void) {
    puts("-- without a thread that answers");
    int bus = open_one(1 << 7, 1);
    char *room = map(8, MAP_PRIVATE);
    TELL("watch", watch(bus, room, 8 * page, MISSING));
    touch("load", room, 0);
    touch("store", room + page, 1);
    TELL("copy", copy(bus, room, source, page, 0));
    touch("load", room, 0);
    char *moved = mremap(room, 8 * page, 16 * page, MREMAP_MAYMOVE);
    touch("moved away", moved + 3 * page, 1);
    room = map(4, MAP_PRIVATE);
    TELL("watch", watch(fd, room, 4 * page, MISSING));
    TELL("a system call's access", read(open("/dev/zero", O_RDONLY), room, 8));
    TELL("unmap", munmap(room, 4 * page));
    room = map(4, MAP_PRIVATE);
    TELL("watch", watch(bus, room, 4 * page, MISSING));
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        touch("a child", room, 1);
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, 0, 0);
    touch("here", room, 1);
    close(bus);
    touch("closed", room, 1);
}

int main(void) {
    page = sysconf(_SC_PAGESIZE);
    source = map(1, MAP_PRIVATE);
    *source = 0;
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, 0);
    sigaction(SIGBUS, &action, 0);
    fd = open_one(0, 1);
    missing();
    refused();
    written();
    shared();
    others();
    return 0;
}
