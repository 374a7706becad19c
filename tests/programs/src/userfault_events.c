// userfaultfd beyond faults: events of fork, mremap, munmap and madvise; pages moved, poisoned, written unseen.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "userfaultfd.h"

struct message { uint8_t event, pad[7]; uint64_t a, b, c; };
struct scan { uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, any, back; };
struct region { uint64_t start, end, categories; };

#define NEW _IO(0xAA, 0)
#define SCAN _IOWR('f', 16, struct scan)
#define EVENTS (2 | 4 | 8 | 64)
#define SIGBUS_FEATURE (1 << 7)
#define UNPOPULATED (1 << 13)
#define ASYNC (1 << 15)

static size_t page;
static char *source;
static sigjmp_buf back;
static volatile int code, least, codes;
static char *volatile at;

static const char *result(long value) {
    if (value >= 0)
        return "ok";
    static const struct {
        int number;
        const char *name;
    } known[] = {{EPERM, "EPERM"}, {EINVAL, "EINVAL"}, {ENOMEM, "ENOMEM"}, {EFAULT, "EFAULT"}, {EEXIST, "EEXIST"},
                 {ENOENT, "ENOENT"}, {EBUSY, "EBUSY"}, {EAGAIN, "EAGAIN"}, {ENOSYS, "ENOSYS"}, {EACCES, "EACCES"},
                 {ENOTTY, "ENOTTY"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].number == errno)
            return known[i].name;
    return "another error";
}

#define TELL(what, call) printf("%-44s %s\n", what, result((long)(call)))

static void caught(int signal, siginfo_t *info, void *context) {
    (void)context;
    code = signal * 10 + info->si_code, least = info->si_addr_lsb, at = info->si_addr;
    siglongjmp(back, 1);
}

static void touch(const char *what, char *where, int store) {
    if (sigsetjmp(back, 1)) {
        printf("%-44s %s\n", what,
               code / 10 == SIGBUS ? "SIGBUS" : code / 10 == SIGSEGV ? "SIGSEGV" : "?");
        if (at != where)
            puts("  of another address");
        if (codes && code == SIGBUS * 10 + BUS_MCEERR_AR)  // a kernel may be built without it
            printf("  the memory failed: a page of it: %d\n", 1ul << least == page);
        return;
    }
    if (store)
        *(volatile char *)where = 'w';
    printf("%-44s %d\n", what, *(volatile char *)where);
}

static char *map(size_t pages, int flags) {
    char *where = mmap(0, pages * page, RW, flags | MAP_ANONYMOUS, -1, 0);
    if (where == MAP_FAILED)
        abort();
    madvise(where, pages * page, MADV_NOHUGEPAGE);
    return where;
}

static long watch(int fd, char *where, size_t pages, int mode) {
    struct reg reg = {{(uintptr_t)where, pages * page}, mode, 0};
    return ioctl(fd, REGISTER, &reg);
}

static long copied;

static long copy(int fd, char *where, char *from, size_t pages, int mode) {
    struct copy copy = {(uintptr_t)where, (uintptr_t)from, pages * page, mode, 0};
    long result = ioctl(fd, COPY, &copy);
    copied = copy.copy;
    return result;
}

static long moved;

static long move(int fd, char *where, char *from, size_t length, int mode) {
    struct copy move = {(uintptr_t)where, (uintptr_t)from, length, mode, 77};
    long result = ioctl(fd, MOVE, &move);
    moved = move.copy;
    return result;
}

static long poison(int fd, char *where, size_t length, int mode) {
    struct zero poison = {{(uintptr_t)where, length}, mode, 77};
    long result = ioctl(fd, POISON, &poison);
    moved = poison.done;
    return result;
}

static long protect(int fd, char *where, size_t pages, int on) {
    struct wp wp = {{(uintptr_t)where, pages * page}, on};
    return ioctl(fd, WRITEPROTECT, &wp);
}

static int open_one(uint64_t features) {
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct api api = {0xAA, features, 0};
    if (fd < 0 || ioctl(fd, API, &api))
        printf("userfaultfd: %s\n", result(-1));
    return fd;
}

// ---- events: a thread reads them, the others wait for that

static int events;
static char *volatile base;
static volatile int stop, child_fd = -1;
static volatile int refused_meanwhile;
static char heard[1000];  // what the reader has to say; the main thread prints it
static volatile int messages;

static void *reader(void *nothing) {
    (void)nothing;
    while (!stop) {
        struct pollfd look = {events, POLLIN, 0};
        if (poll(&look, 1, 20) <= 0)
            continue;
        char *end = heard + strlen(heard);
        if (refused_meanwhile) {
            refused_meanwhile = 0;
            const char *what = result(copy(events, base, source, 1, 0));
            end += sprintf(end, "  before it is read: %s, %d\n", what, copied == -EAGAIN);
        }
        struct message message;
        if (read(events, &message, sizeof message) != sizeof message)
            continue;
        long from = (long)(message.a - (uintptr_t)base) / (long)page;
        long to = (long)(message.b - (uintptr_t)base) / (long)page;
        if (message.event == 0x12)
            copy(events, (char *)(message.b & -page), source, 1, 0);
        else if (message.event == 0x13)
            end += sprintf(end, "  fork, a descriptor: %d\n", (int)message.a >= 0);
        else if (message.event == 0x14)
            end += sprintf(end, "  remap from %ld, %s, %ld\n", from, to ? "moves" : "stays", (long)(message.c / page));
        else
            end += sprintf(end, "  %s %ld to %ld\n", message.event == 0x15 ? "remove" : "unmap", from, to);
        if (message.event == 0x13)
            __atomic_store_n(&child_fd, (int)message.a, __ATOMIC_SEQ_CST);  // from now on another adds to the text
        messages += message.event != 0x12;
    }
    return 0;
}

static void hear(int count) {
    while (messages < count)
        usleep(1000);
    usleep(1000);
    messages = 0;
    printf("%s", heard);
    heard[0] = 0;
    fflush(stdout);
}

static void told(void) {
    puts("-- events");
    events = open_one(EVENTS);
    base = map(16, MAP_PRIVATE);
    TELL("watch", watch(events, base, 12, MISSING));
    pthread_t thread;
    pthread_create(&thread, 0, reader, 0);
    memset(source, 's', page);
    base[0] = 'a', base[page] = 'b';
    usleep(1000);
    refused_meanwhile = 1;
    TELL("discard over the end", madvise(base + page, 14 * page, MADV_DONTNEED));
    hear(1);
    TELL("free", madvise(base, 2 * page, MADV_FREE));
    hear(1);
    TELL("cold tells nothing", madvise(base, 2 * page, MADV_COLD));
    printf("%c%c, brought again\n", base[page], base[page + 1]);
    TELL("unmap", munmap(base + 8 * page, 6 * page));
    hear(1);
    TELL("map over it", mmap(base + 6 * page, page, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED);
    hear(1);
    base[0] = 'a';
    char *there = mremap(base, 4 * page, 4 * page, MREMAP_MAYMOVE | MREMAP_FIXED, map(4, MAP_PRIVATE));
    printf("moved: %c%c\n", there[0], there[page]);
    hear(2);
    printf("its faults are told: %c\n", there[3 * page]);
    base = there;
    TELL("shrink", mremap(there, 4 * page, 2 * page, 0) == MAP_FAILED);
    hear(1);
    TELL("unmap it", munmap(there, 2 * page));
    hear(1);
    stop = 1;
    pthread_join(thread, 0);
    stop = 0;
    close(events);
}

static void *answers_child(void *nothing) {
    (void)nothing;
    while (!stop) {
        struct message message;
        if (child_fd < 0) {
            usleep(1000);
            continue;
        }
        struct pollfd look = {child_fd, POLLIN, 0};
        if (poll(&look, 1, 20) <= 0 || read(child_fd, &message, sizeof message) != sizeof message)
            continue;
        if (message.event == 0x12) {
            sprintf(heard + strlen(heard), "  a fault of the child: %s\n", message.a & 2 ? "a store" : "a page");
            if (message.a & 2)
                protect(child_fd, (char *)(message.b & -page), 1, 0);
            else
                copy(child_fd, (char *)(message.b & -page), source, 1, 0);
        }
    }
    return 0;
}

static void forked(void) {
    puts("-- fork");
    events = open_one(EVENTS);
    base = map(8, MAP_PRIVATE);
    base[0] = 'p', base[page] = 'q';
    TELL("watch", watch(events, base, 8, MISSING | WP));
    TELL("protect", protect(events, base, 2, 1));
    child_fd = -1;
    pthread_t thread, other;
    pthread_create(&thread, 0, reader, 0);
    pthread_create(&other, 0, answers_child, 0);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        base[0] = 'c';
        char missing = base[3 * page];
        _exit(base[0] == 'c' && base[page] == 'q' && missing == 's' ? 0 : 1);
    }
    int status;
    waitpid(child, &status, 0);
    hear(1);
    printf("the child: %d, here: %c\n", status, base[0]);
    stop = 1;
    pthread_join(thread, 0), pthread_join(other, 0);
    stop = 0;
    close(child_fd);
    close(events);
    base[0] = 'x';
    printf("nobody watches: %c\n", base[0]);
}

static volatile uintptr_t bad;

static void *closes(void *nothing) {
    (void)nothing;
    struct pollfd look = {events, POLLIN, 0};
    poll(&look, 1, -1);
    char small[8];
    printf("a short buffer: %s\n", result(read(events, small, sizeof small)));
    if (bad)
        printf("a bad buffer: %s\n", result(read(events, (void *)bad, 32)));
    else
        usleep(20000);
    close(events);
    return 0;
}

static void closed(uintptr_t where) {
    puts("-- closed with an event unread");
    bad = where;
    pthread_t thread;
    base = map(4, MAP_PRIVATE);
    events = open_one(2);
    TELL("watch", watch(events, base, 4, MISSING));
    int spare = open_one(2);
    TELL("watch, by another too", watch(spare, map(2, MAP_PRIVATE), 2, MISSING));
    close(spare);
    pthread_create(&thread, 0, closes, 0);
    fflush(stdout);
    pid_t child = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);  // a fork has a descriptor of its own
    if (!child)
        _exit(where ? 0 : base[page]);
    int status;
    waitpid(child, &status, 0);
    pthread_join(thread, 0);
    printf("the child: %d\n", status);
}

static volatile int *ran;

static void *killed_forks(void *nothing) {
    if (!fork()) {
        *ran = 1;
        _exit(0);
    }
    return nothing;
}

static void killed(void) {
    puts("-- killed while an event is unread");
    fflush(stdout);
    ran = (int *)map(1, MAP_SHARED);
    pid_t middle = fork();
    if (!middle) {
        base = map(4, MAP_PRIVATE);
        events = open_one(2);
        watch(events, base, 4, MISSING);
        pthread_t thread;
        pthread_create(&thread, 0, killed_forks, 0);
        struct pollfd look = {events, POLLIN, 0};
        poll(&look, 1, -1);
        kill(getpid(), SIGKILL);
    }
    int status;
    waitpid(middle, &status, 0);
    usleep(5000);
    printf("signal %d, its child ran: %d\n", WTERMSIG(status), *ran);
}

// ---- UFFDIO_MOVE

static void moves(void) {
    puts("-- move");
    int fd = open_one(0);
    char *to = map(16, MAP_PRIVATE), *from = map(16, MAP_PRIVATE);
    TELL("watch", watch(fd, to, 8, MISSING | WP));
    for (int i = 0; i < 8; i++)
        memset(from + i * page, 'a' + i, page);
    TELL("one page", move(fd, to, from, page, 0));
    printf("%ld, %c%c, what is left: %d\n", moved / (long)page, to[0], to[page - 1], from[0]);
    TELL("there again", move(fd, to, from + page, page, 0));
    printf("%d\n", moved == -EEXIST);
    TELL("two", move(fd, to + page, from + page, 2 * page, 1));
    printf("%ld, %c%c\n", moved / (long)page, to[page], to[2 * page]);
    madvise(from, 3 * page, MADV_DONTNEED);
    TELL("a hole", move(fd, to + 3 * page, from, page, 0));
    TELL("a hole, permitted", move(fd, to + 3 * page, from, page, 2));
    printf("%ld\n", moved / (long)page);
    TELL("some, then a hole", move(fd, to + 3 * page, from + 6 * page, 4 * page, 0));
    printf("%ld, %c%c\n", moved / (long)page, to[3 * page], to[4 * page]);
    volatile char zero = from[9 * page];
    (void)zero;
    TELL("zeros that were read", move(fd, to + 5 * page, from + 9 * page, page, 0));
    touch("there", to + 5 * page, 0);
    touch("and written", to + 5 * page, 1);
    TELL("no length", move(fd, to + 6 * page, from + 3 * page, 0, 0));
    TELL("unaligned", move(fd, to + 6 * page + 1, from + 3 * page, page, 0));
    TELL("unaligned source", move(fd, to + 6 * page, from + 3 * page + 1, page, 0));
    TELL("mode", move(fd, to + 6 * page, from + 3 * page, page, 4));
    TELL("target is not watched", move(fd, to + 9 * page, from + 3 * page, page, 0));
    TELL("target over two areas", move(fd, to + 7 * page, from + 3 * page, 2 * page, 0));
    TELL("source over the end", move(fd, to + 6 * page, from + 15 * page, 2 * page, 0));
    char *gone = map(3, MAP_PRIVATE) + page;
    munmap(gone, page);
    TELL("source is not mapped", move(fd, to + 6 * page, gone, page, 0));
    TELL("from kernel's half", move(fd, to + 6 * page, (char *)-page, page, 0));
    TELL("overlapping itself", move(fd, to + 1 * page, to + 1 * page, page, 0));
    char *shared = map(2, MAP_SHARED);
    shared[0] = 's';
    TELL("shared memory", move(fd, to + 6 * page, shared, page, 0));
    mprotect(from, 16 * page, PROT_READ);
    TELL("read-only", move(fd, to + 6 * page, from + 3 * page, page, 0));
    mprotect(from, 16 * page, RW);
    mlock(from + 3 * page, page);
    TELL("locked", move(fd, to + 6 * page, from + 3 * page, page, 0));
    munlock(from + 3 * page, page);
    fflush(stdout);
    int tube[2];
    pipe(tube);
    pid_t child = fork();
    if (!child) {
        char byte;
        close(tube[1]);
        read(tube[0], &byte, 1);
        printf("the child's page: %c\n", from[3 * page]);
        fflush(stdout);
        _exit(0);
    }
    TELL("others share it", move(fd, to + 6 * page, from + 3 * page, page, 0));
    close(tube[0]), close(tube[1]);
    waitpid(child, 0, 0);
    from[3 * page] = 'D';
    TELL("its own again", move(fd, to + 6 * page, from + 3 * page, page, 0));
    printf("%c\n", to[6 * page]);
    to[page] = 'c';
    TELL("protection at the target", protect(fd, to, 2, 1));
    TELL("out of there again", move(fd, to + 7 * page, to + page, page, 0));
    to[7 * page] = 'n';
    printf("%c%c\n", to[7 * page], to[7 * page + 1]);
    close(fd);
}

// ---- UFFDIO_POISON

static void poisons(void) {
    puts("-- poison");
    int fd = open_one(0);
    char *room = map(12, MAP_PRIVATE);
    TELL("watch", watch(fd, room, 10, MISSING));
    TELL("poison two", poison(fd, room, 2 * page, 0));
    printf("%ld\n", moved / (long)page);
    touch("load", room + 5, 0);
    touch("store", room + page + 7, 1);
    TELL("a system call's access", write(1, room, 1));
    TELL("again", poison(fd, room, page, 0));
    TELL("zeros over it", ioctl(fd, ZEROPAGE, &(struct zero){{(uintptr_t)room, page}, 0, 0}));
    TELL("a copy over it", copy(fd, room, source, 1, 0));
    touch("is as any", room, 0);
    TELL("where a page is", poison(fd, room, page, 0));
    TELL("some, then a page", (copy(fd, room + 4 * page, source, 1, 0), poison(fd, room + 2 * page, 4 * page, 0)));
    printf("%ld\n", moved / (long)page);
    TELL("not watched", poison(fd, room + 10 * page, page, 0));
    TELL("mode", poison(fd, room + 5 * page, page, 2));
    TELL("nothing", poison(fd, room + 5 * page, 0, 0));
    TELL("discard", madvise(room + page, page, MADV_DONTNEED));
    TELL("it can be copied to", copy(fd, room + page, source, 1, 0));
    TELL("moved away", move(fd, room + 6 * page, room + 2 * page, page, 0));
    TELL("mprotect", mprotect(room + 2 * page, page, PROT_READ) | mprotect(room + 2 * page, page, RW));
    touch("still", room + 2 * page, 0);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        touch("a child has it too", room + 2 * page, 0);
        touch("and hears of nothing", room + 5 * page, 1);
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, 0, 0);
    struct range range = {(uintptr_t)room, 10 * page};
    TELL("unregister", ioctl(fd, UNREGISTER, &range));
    touch("it stays", room + 3 * page, 0);
    char *there = mremap(room + 3 * page, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, map(1, MAP_PRIVATE));
    touch("and moves", there, 1);
    unsigned char seen = 9;
    mincore(there, page, &seen);
    printf("in memory: %d\n", seen & 1);
    munmap(there, page);
    char *again = mmap(there, page, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    touch("mapped anew", again, 1);
    char *shared = map(2, MAP_SHARED);
    TELL("watch shared memory", watch(fd, shared, 2, MISSING));
    TELL("poison it", poison(fd, shared, page, 0));
    touch("load", shared, 0);
    close(fd);
}

// ---- stores that nobody is told of, and pagemap

static int pagemap;

static void show(const char *what, char *where, size_t pages, uint64_t bit) {
    printf("%-44s ", what);
    for (size_t i = 0; i < pages; i++) {
        uint64_t entry = 0;
        pread(pagemap, &entry, 8, ((uintptr_t)where / page + i) * 8);
        putchar('0' + !!(entry & bit));
    }
    putchar('\n');
}

static void scan(const char *what, char *where, size_t pages, int flags, uint64_t mask) {
    struct region region[16];
    struct scan scan = {sizeof scan, flags, (uintptr_t)where, (uintptr_t)where + pages * page, 0, (uintptr_t)region,
                        16, 0, 0, mask, 0, 0x1 | 0x2 | 0x8 | 0x10};
    long found = ioctl(pagemap, SCAN, &scan);
    printf("%-44s %s", what, result(found));
    for (long i = 0; i < found; i++)
        printf(" %d-%d:%#x", (int)((region[i].start - (uintptr_t)where) / page),
               (int)((region[i].end - (uintptr_t)where) / page), (unsigned)region[i].categories);
    putchar('\n');
}

static void unseen(void) {
    puts("-- stores that are not told");
    int fd = open_one(ASYNC);
    char *room = map(8, MAP_PRIVATE);
    scan("nobody watches", room, 8, 3, 2);
    for (int i = 0; i < 4; i++)
        room[i * page] = 'o';
    TELL("watch", watch(fd, room, 8, WP));
    TELL("protect", protect(fd, room, 8, 1));
    show("protected", room, 8, 1ull << 57);
    show("said to be in swap", room, 8, 1ull << 62);
    scan("nothing is written", room, 8, 0, 2);
    room[page] = 'w', room[5 * page] = 'v';
    volatile char read = room[6 * page];
    (void)read;
    show("protected", room, 8, 1ull << 57);
    scan("all", room, 8, 0, 0);
    scan("written, and protected again", room, 8, 3, 2);
    scan("nothing is written", room, 8, 0, 2);
    room[2 * page] = 'x', room[6 * page] = 'y';
    scan("two", room, 8, 0, 2);
    printf("%c%c%c%c%d\n", room[page], room[5 * page], room[2 * page], room[6 * page], room[7 * page]);
    TELL("discard", madvise(room, 2 * page, MADV_DONTNEED));
    show("protected", room, 8, 1ull << 57);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        pagemap = open("/proc/self/pagemap", O_RDONLY);
        show("a child's are not", room, 8, 1ull << 57);
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, 0, 0);
    mprotect(room, 8 * page, PROT_NONE);
    show("without access", room, 8, 1ull << 57);
    mprotect(room, 8 * page, RW);
    show("with it", room, 8, 1ull << 57);
    TELL("page out", madvise(room, 8 * page, MADV_PAGEOUT));
    show("protected", room, 8, 1ull << 57);
    int file = open("/proc/self/exe", O_RDONLY);
    char *shown = mmap(0, page, RW, MAP_PRIVATE, file, 0);
    TELL("a private file", watch(fd, shown, 1, WP));
    TELL("protect", protect(fd, shown, 1, 1));
    show("protected", shown, 1, 1ull << 57);
    printf("%d", shown[1]);
    scan(" read", shown, 1, 0, 2);
    shown[1] = 'e';
    scan("written", shown, 1, 0, 2);
    TELL("a private file, missing", watch(fd, shown, 1, MISSING));
    TELL("a copy there", copy(fd, shown, source, 1, 0));
    char *shared = map(4, MAP_SHARED);
    shared[0] = 's', shared[page] = 't';
    TELL("shared memory", watch(fd, shared, 4, WP));
    TELL("protect", protect(fd, shared, 4, 1));
    show("protected", shared, 4, 1ull << 57);
    TELL("discard", madvise(shared, 4 * page, MADV_DONTNEED));
    show("stays protected", shared, 4, 1ull << 57);
    printf("%c%c", shared[0], shared[page]);
    shared[page] = 'u', shared[2 * page] = 'v';
    scan(" written", shared, 4, 0, 2);
    struct range range = {(uintptr_t)room, 8 * page};
    TELL("unregister", ioctl(fd, UNREGISTER, &range));
    show("nothing is protected", room, 8, 1ull << 57);
    close(fd);
    show("nor here", shared, 4, 1ull << 57);

    puts("-- absent pages are protected");
    fd = open_one(UNPOPULATED | SIGBUS_FEATURE);
    room = map(4, MAP_PRIVATE);
    TELL("watch", watch(fd, room, 4, WP));
    TELL("protect", protect(fd, room, 4, 1));
    show("protected", room, 4, 1ull << 57);
    touch("load", room, 0);
    touch("store", room, 1);
    touch("store", room + page, 1);
    TELL("permit", protect(fd, room, 2, 0));
    touch("store", room, 1);
    touch("store", room + page, 1);
    show("protected", room, 4, 1ull << 57);
    close(fd);
    fd = open_one(0);
    room = map(4, MAP_PRIVATE);
    room[0] = 'o';
    watch(fd, room, 4, WP);
    protect(fd, room, 4, 1);
    show("without asking for it", room, 4, 1ull << 57);
    close(fd);
}

static void others(void) {
    puts("-- the device, and who may");
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    TELL("open", device);
    int fd = ioctl(device, NEW, O_CLOEXEC | O_NONBLOCK);
    TELL("a new one", fd);
    TELL("flags", ioctl(device, NEW, 64));
    TELL("another request", ioctl(device, API, 0));
    struct api api = {0xAA, 0, 0};
    TELL("features", ioctl(fd, API, &api));
    api.features = 0;
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        if (setuid(1000))
            abort();
        TELL("not root: all faults", syscall(SYS_userfaultfd, O_CLOEXEC));
        TELL("not root: bad flags", syscall(SYS_userfaultfd, 64));
        fd = syscall(SYS_userfaultfd, O_CLOEXEC | 1);
        TELL("not root: its own faults", fd);
        api.features = 2;
        TELL("not root: forks", ioctl(fd, API, &api));
        api.features = 0;
        TELL("not root: features", ioctl(fd, API, &api));
        TELL("not root: the device", open("/dev/userfaultfd", O_RDWR));
        TELL("not root: what it was given", ioctl(device, NEW, O_CLOEXEC));
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, 0, 0);
    int setting = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY);
    char text[4] = "";
    read(setting, text, 3);
    printf("the setting: %s", text);
}

int main(int count, char **arguments) {
    codes = count > 1 && !strcmp(arguments[1], "codes");
    setvbuf(stdout, 0, _IOLBF, 0);
    page = sysconf(_SC_PAGESIZE);
    source = map(1, MAP_PRIVATE);
    *source = 0;
    pagemap = open("/proc/self/pagemap", O_RDONLY);
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, 0);
    sigaction(SIGBUS, &action, 0);
    told();
    forked();
    closed(0);
    closed(8);
    killed();
    moves();
    poisons();
    unseen();
    others();
    return 0;
}
