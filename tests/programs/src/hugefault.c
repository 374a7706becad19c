// userfaultfd on huge pages of a pool: missing, minor, written and poisoned ones, and what is told of them.
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
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "userfaultfd.h"

struct message { uint8_t event, pad[7]; uint64_t a, b, c; };
struct scan { uint64_t size, flags, start, end, walk_end, vec, vec_len, max, invert, mask, anyof, ret; };
struct region { uint64_t start, end, categories; };

#define SCAN _IOWR('f', 16, struct scan)
enum { F_WP = 1, F_FORK = 2, F_REMAP = 4, F_REMOVE = 8, F_HUGE = 1 << 4, F_UNMAP = 1 << 6, F_SIGBUS = 1 << 7,
       F_MINOR = 1 << 9, F_EXACT = 1 << 11, F_WP_HUGE = 1 << 12, F_ABSENT = 1 << 13, F_POISON = 1 << 14,
       F_ASYNC = 1 << 15 };

static size_t huge, page;
static int codes;  // whether to tell of memory that failed: a kernel may be built without that
static int fd, pagemap, size_flag, memfd_flag, shm_flag;
static char *source;
static sigjmp_buf back;
static volatile int code, least;
static void *volatile bad;

static const char *result(long value) {
    if (value >= 0)
        return "ok";
    switch (errno) {
    case EPERM: return "EPERM";
    case EINVAL: return "EINVAL";
    case ENOMEM: return "ENOMEM";
    case EFAULT: return "EFAULT";
    case EEXIST: return "EEXIST";
    case ENOENT: return "ENOENT";
    case EBUSY: return "EBUSY";
    case EAGAIN: return "EAGAIN";
    }
    return "another error";
}

#define TELL(what, call) (errno = 0, printf("%-44s %s\n", what, result((long)(call))))

static void need(int ok, const char *what) {
    if (!ok) {
        printf("failed: %s: %s\n", what, strerror(errno));
        exit(1);
    }
}

static char *map(size_t count, int flags, int file) {
    if (file < 0)
        flags |= MAP_ANONYMOUS | MAP_HUGETLB | size_flag;
    char *where = mmap(0, count * huge, RW, flags, file, 0);
    need(where != MAP_FAILED, "mmap");
    return where;
}

static int memory(size_t count) {
    int file = memfd_create("pages", MFD_HUGETLB | memfd_flag);
    need(file >= 0 && !ftruncate(file, count * huge), "memfd");
    return file;
}

static void open_one(uint64_t features) {
    fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct api api = {0xAA, features, 0};
    need(fd >= 0 && !ioctl(fd, API, &api), "userfaultfd");
}

static uint64_t able;

static long watch(char *where, size_t length, int mode) {
    struct reg reg = {{(uintptr_t)where, length}, mode, 0};
    long done = ioctl(fd, REGISTER, &reg);
    able = reg.ioctls;
    return done;
}

static long unwatch(char *where, size_t length) {
    struct range range = {(uintptr_t)where, length};
    return ioctl(fd, UNREGISTER, &range);
}

static int64_t told;

static long copy(char *where, char *from, size_t length, int mode) {
    struct copy copy = {(uintptr_t)where, (uintptr_t)from, length, mode, 77};
    long done = ioctl(fd, COPY, &copy);
    told = copy.copy;
    return done;
}

static long answer(unsigned long request, char *where, size_t length, int mode) {
    struct zero zero = {{(uintptr_t)where, length}, mode, 77};
    long done = ioctl(fd, request, &zero);
    told = zero.done;
    return done;
}

static long protect(char *where, size_t length, int on) {
    struct wp wp = {{(uintptr_t)where, length}, on};
    return ioctl(fd, WRITEPROTECT, &wp);
}

static void far(const char *what) {
    if (told < 0)
        printf("  %s: %s\n", what, (errno = -told, result(-1)));
    else if (told == 77)
        printf("  %s: nothing\n", what);
    else
        printf("  %s: %lld huge pages\n", what, (long long)(told / (int64_t)huge));
}

// ---- accesses by another thread, whose faults this one answers

struct access { volatile char *where; int store; int value; };
static struct access access_made;
static pthread_t toucher;

static void *touch(void *nothing) {
    (void)nothing;
    if (access_made.store)
        *access_made.where = access_made.store;
    access_made.value = *access_made.where;
    return 0;
}

static void begin(char *where, int store) {
    access_made = (struct access){where, store, -1};
    need(!pthread_create(&toucher, 0, touch, 0), "thread");
}

static void finish(const char *what) {
    pthread_join(toucher, 0);
    printf("%-44s %d\n", what, access_made.value);
}

static struct message next(char *base) {
    struct message message = {0};
    struct pollfd look = {fd, POLLIN, 0};
    if (poll(&look, 1, 5000) != 1 || read(fd, &message, sizeof message) != sizeof message)
        printf("  no message\n");
    else if (message.event == 0x12)
        printf("  fault:%s%s%s at page %lld of the area%s\n", message.a & 1 ? " store" : "",
               message.a & 2 ? " protected" : "", message.a & 4 ? " minor" : "",
               (long long)((int64_t)(message.b - (uintptr_t)base) / (int64_t)huge),
               message.b % huge ? ", exact" : "");
    else
        printf("  event %#x\n", message.event);
    return message;
}

static void quiet(void) {
    struct pollfd look = {fd, POLLIN, 0};
    if (poll(&look, 1, 0) == 1)
        printf("  somebody waits\n");
}

static void caught(int signal, siginfo_t *info, void *context) {
    (void)context;
    code = signal * 10 + info->si_code;
    least = info->si_addr_lsb;
    bad = info->si_addr;
    siglongjmp(back, 1);
}

static void try(const char *what, char *where, int store) {
    if (sigsetjmp(back, 1)) {
        printf("%-44s %s\n", what,
               code / 10 != SIGBUS ? "SIGSEGV"
               : !codes || code % 10 == BUS_ADRERR ? "SIGBUS"
               : (1ul << least) == huge ? "SIGBUS, a huge page failed" : "SIGBUS, failed");
        return;
    }
    if (store)
        *(volatile char *)where = store;
    printf("%-44s %d\n", what, *(volatile char *)where);
}

static void look(const char *what, char *where, size_t count) {
    printf("%-44s", what);
    for (size_t i = 0; i < count; i++) {
        uint64_t entry = 0, last = 0;
        pread(pagemap, &entry, 8, ((uintptr_t)where + i * huge) / page * 8);
        pread(pagemap, &last, 8, (((uintptr_t)where + (i + 1) * huge) / page - 1) * 8);
        printf(" %s%s%s%s%s", entry >> 63 ? "p" : "-", entry >> 62 & 1 ? "s" : "-", entry >> 61 & 1 ? "f" : "-",
               entry >> 57 & 1 ? "w" : "-", (entry ^ last) >> 56 & ~1ul ? "!" : "");
    }
    printf("\n");
}

static void scan(const char *what, char *where, size_t count, int flags, uint64_t mask, size_t most) {
    struct region region[8];
    struct scan scan = {sizeof scan, flags, (uintptr_t)where, (uintptr_t)where + count * huge, 0,
                        (uintptr_t)region, 8, most, 0, mask, 0, 0x17f};
    long found = ioctl(pagemap, SCAN, &scan);
    printf("%-44s %s, to %lld:", what, found < 0 ? result(found) : "", (long long)((int64_t)(scan.walk_end - scan.start) / (int64_t)huge));
    for (long i = 0; i < found; i++)
        printf(" [%llu,%llu) %llx", (unsigned long long)(region[i].start - scan.start) / huge,
               (unsigned long long)(region[i].end - scan.start) / huge,
               (unsigned long long)region[i].categories);
    printf("\n");
}

// ---- what is tried

static void features(void) {
    struct api api = {0xAA, 0, 0};
    int other = syscall(SYS_userfaultfd, O_CLOEXEC);
    need(!ioctl(other, API, &api), "api");
    printf("features: missing %d, minor %d, protected %d\n", !!(api.features & F_HUGE), !!(api.features & F_MINOR),
           !!(api.features & F_WP_HUGE));
    close(other);
}

static void registering(void) {
    open_one(F_HUGE | F_MINOR | F_WP_HUGE);
    char *where = map(2, MAP_PRIVATE, -1);
    TELL("watch, from inside a huge page", watch(where + page, huge, MISSING));
    TELL("watch, to inside a huge page", watch(where, huge + page, MISSING));
    TELL("watch one", watch(where, huge, MISSING));
    printf("  it can be answered by %llx\n", (unsigned long long)able);
    TELL("watch both, in every way", watch(where, 2 * huge, MISSING | MINOR | WP));
    printf("  it can be answered by %llx\n", (unsigned long long)able);
    TELL("watch no more, from inside", unwatch(where + page, huge - page));
    TELL("watch no more, to inside", unwatch(where, huge + page));
    TELL("watch no more", unwatch(where, huge));
    munmap(where, 2 * huge);
    close(fd);
}

static void missing(const char *what, char *where, int features) {
    printf("-- missing: %s\n", what);
    open_one(features);
    TELL("watch", watch(where, 2 * huge, MISSING));
    source[0] = 1, source[huge - 1] = 2, source[3 * page] = 3;
    begin(where + huge + 5, 0);
    next(where);
    TELL("copy, to inside a page", copy(where + huge + page, source, huge, 0));
    far("so far");
    TELL("copy less than a page", copy(where + huge, source, page, 0));
    far("so far");
    TELL("copy from nowhere", copy(where + huge, (char *)page, huge, 0));
    far("so far");
    TELL("copy, protected", copy(where + huge, source, huge, 2));
    far("so far");
    TELL("zeroes", answer(ZEROPAGE, where + huge, huge, 0));
    far("so far");
    TELL("continue", answer(CONTINUE, where + huge, huge, 0));
    far("so far");
    TELL("protect", protect(where, huge, 1));
    struct copy move = {(uintptr_t)where, (uintptr_t)source, huge, 0, 77};
    TELL("move", ioctl(fd, MOVE, &move));
    TELL("copy", copy(where + huge, source + 0, huge, 1));
    far("so far");
    quiet();
    struct range wake = {(uintptr_t)where + huge, huge};
    TELL("wake", ioctl(fd, WAKE, &wake));
    finish("the byte");
    printf("copied: %d %d %d\n", where[huge], where[2 * huge - 1], where[huge + 3 * page]);
    TELL("copy again", copy(where + huge, source, huge, 0));
    far("so far");
    TELL("copy both", copy(where, source, huge, 0));
    far("so far");
    printf("copied: %d %d %d\n", where[0], where[huge - 1], where[3 * page]);
    TELL("give both up", madvise(where, 2 * huge, MADV_DONTNEED));
    begin(where + page + 1, 'x');
    struct message message = next(where);
    (void)message;
    if (copy(where, source, huge, 0))  // of shared memory it is there again
        printf("  it is there\n");
    finish("stored");
    look("pages", where, 2);
    close(fd);
    munmap(where, 2 * huge);
}

static void in_part(void) {
    printf("-- some of it\n");
    char *where = map(2, MAP_PRIVATE, -1);
    open_one(0);
    watch(where, 2 * huge, MISSING);
    copy(where + huge, source, huge, 0);
    char *two = mmap(0, 2 * huge, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TELL("copy two, of which one is there", copy(where, two, 2 * huge, 0));
    far("so far");
    munmap(two, 2 * huge);
    munmap(where, 2 * huge);
    close(fd);
    open_one(F_SIGBUS);
    where = map(1, MAP_PRIVATE, -1);
    watch(where, huge, MISSING);
    try("nobody answers", where, 0);
    munmap(where, huge);
    close(fd);
    int file = memory(1);
    where = map(2, MAP_SHARED | MAP_NORESERVE, file);
    ftruncate(file, huge);
    open_one(0);
    watch(where, 2 * huge, MISSING);
    try("beyond the end", where + huge, 0);
    TELL("copy beyond the end", copy(where + huge, source, huge, 0));
    far("so far");
    munmap(where, 2 * huge);
    close(file);
    close(fd);
}

static void without_pages(void) {
    printf("-- a pool without pages\n");
    size_t count = 0;
    char *all[64];
    for (; count < 64; count++)
        if ((all[count] = mmap(0, huge, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | size_flag, -1, 0)) == MAP_FAILED)
            break;
    char *where = map(1, MAP_PRIVATE | MAP_NORESERVE, -1);
    open_one(0);
    watch(where, huge, MISSING);
    TELL("copy without a page", copy(where, source, huge, 0));
    far("so far");
    munmap(where, huge);
    while (count)
        munmap(all[--count], huge);
    close(fd);
}

static void minor(void) {
    printf("-- minor\n");
    int file = memory(2);
    char *where = map(2, MAP_SHARED, file), *there = map(2, MAP_SHARED, file);
    open_one(F_MINOR);
    TELL("watch", watch(where, 2 * huge, MINOR));
    there[7] = 7;
    TELL("continue where nothing is", answer(CONTINUE, where + huge, huge, 0));
    far("so far");
    begin(where + 7, 0);
    next(where);
    there[7] = 8;
    TELL("continue, a small page", answer(CONTINUE, where, page, 0));
    TELL("continue, protected", answer(CONTINUE, where, huge, 2));
    TELL("continue", answer(CONTINUE, where, huge, 0));
    far("so far");
    finish("the byte");
    TELL("continue again", answer(CONTINUE, where, huge, 0));
    far("so far");
    try("what is missing is not told", where + huge, 5);
    printf("there: %d\n", there[huge]);
    munmap(where, 2 * huge);
    where = map(2, MAP_PRIVATE, file);
    TELL("watch a private mapping", watch(where, 2 * huge, MINOR));
    begin(where + 7, 'p');
    next(where);
    TELL("continue", answer(CONTINUE, where, huge, 0));
    finish("the byte");
    printf("there: %d\n", there[7]);
    look("pages", where, 2);
    munmap(where, 2 * huge);
    munmap(there, 2 * huge);
    close(file);
    close(fd);
}

static void written(const char *what, char *where) {
    printf("-- protected: %s\n", what);
    open_one(F_WP_HUGE | F_EXACT);
    TELL("watch", watch(where, 3 * huge, WP));
    where[0] = 1, where[huge] = 2;
    TELL("protect, from inside", protect(where + page, huge, 1));
    TELL("protect less than a page", protect(where, page, 1));
    TELL("protect", protect(where, 3 * huge, 1));
    look("pages", where, 3);
    begin(where + 9, 'a');
    next(where);
    TELL("let it", protect(where, huge, 0));
    finish("stored");
    begin(where + 2 * huge + 9, 'b');
    next(where);
    look("pages", where, 3);
    TELL("let it", protect(where + 2 * huge, huge, 0));
    finish("stored");
    try("a load", where + huge, 0);
    look("pages", where, 3);
    TELL("forbid all", mprotect(where, 3 * huge, PROT_NONE));
    TELL("permit all", mprotect(where, 3 * huge, RW));
    look("pages", where, 3);
    TELL("give up", madvise(where, 3 * huge, MADV_DONTNEED));
    look("pages", where, 3);
    begin(where + huge, 0);
    finish("loaded");
    look("pages", where, 3);
    TELL("protect no more", unwatch(where, 3 * huge));
    look("pages", where, 3);
    close(fd);
    munmap(where, 3 * huge);
}

static void asynchronously(int shared) {
    printf("-- scanned, %s\n", shared == MAP_SHARED ? "shared" : "private");
    char *where = map(3, shared, -1);
    scan("nothing is there", where, 3, 0, 0, 0);
    open_one(F_ASYNC | F_ABSENT);
    TELL("watch", watch(where, 3 * huge, WP));
    scan("protect what is written", where, 3, 1, 2, 0);
    where[0] = 1, where[huge] = 1;
    scan("two were", where, 3, 0, 0, 0);
    scan("protect what is written", where, 3, 1, 2, 0);
    look("pages", where, 3);
    where[huge + 5] = 2;
    scan("what was written since", where, 3, 0, 2, 0);
    scan("protect what is written, a part", where, 3, 3, 2, 1);
    scan("protect what is written", where, 3, 3, 2, huge / page);
    scan("what was written since", where, 3, 0, 2, 0);
    TELL("protect", protect(where, 3 * huge, 1));
    scan("what is there", where, 3, 0, 0, 0);
    where[2 * huge] = 1;
    scan("what was written since", where, 3, 0, 2, 0);
    close(fd);
    munmap(where, 3 * huge);
}

static void poisoned(int shared) {
    printf("-- poisoned, %s\n", shared == MAP_SHARED ? "shared" : "private");
    char *where = map(2, shared, -1);
    open_one(F_POISON);
    TELL("watch", watch(where, 2 * huge, MISSING | WP));
    TELL("poison less than a page", answer(POISON, where, page, 0));
    far("so far");
    TELL("poison", answer(POISON, where, huge, 0));
    far("so far");
    look("pages", where, 2);
    scan("what is there", where, 2, 0, 0, 0);
    try("a load", where + 3 * page, 0);
    try("a store", where, 1);
    TELL("poison again", answer(POISON, where, huge, 0));
    TELL("protect", protect(where, huge, 1));
    try("a load", where, 0);
    int status;
    if (!fork()) {
        try("a load in the child", where, 0);
        _exit(0);
    }
    wait(&status);
    TELL("copy", copy(where, source, huge, 0));
    try("a load", where, 0);
    TELL("poison what is there", answer(POISON, where, huge, 0));
    answer(POISON, where + huge, huge, 0);
    TELL("give up", madvise(where, 2 * huge, MADV_DONTNEED));
    look("pages", where, 2);
    close(fd);
    try("a load, and nobody watches", where + huge, 0);
    munmap(where, 2 * huge);
}

static void forked(int shared, int features) {
    printf("-- forked, %s%s\n", shared == MAP_SHARED ? "shared" : "private", features ? ", told" : "");
    char *where = map(3, shared, -1);
    open_one(features);
    watch(where, 3 * huge, WP);
    where[0] = 1, where[huge] = 1;
    TELL("protect", protect(where + huge, 2 * huge, 1));
    int ends[2];
    pipe(ends);
    pid_t child = -1;
    if (!features) {
        fflush(stdout);
        if (!(child = fork())) {
            look("the child's pages", where, 3);
            try("it stores", where + huge, 'c');
            fflush(stdout);
            _exit(0);
        }
    } else {
        fflush(stdout);
        pthread_t maker;
        void *fork_it(void *);
        pthread_create(&maker, 0, fork_it, where);
        struct message message = {0};
        struct pollfd look_at = {fd, POLLIN, 0};
        need(poll(&look_at, 1, 5000) == 1 && read(fd, &message, sizeof message) == sizeof message, "event");
        printf("  event %#x\n", message.event);
        int kept = fd;
        fd = message.a;
        void *number;
        pthread_join(maker, &number);
        child = (intptr_t)number;
        next(where);
        TELL("let the child", protect(where + huge, huge, 0));
        int status;
        waitpid(child, &status, 0);
        printf("the child's byte %d\n", WEXITSTATUS(status));
        close(fd);
        fd = kept;
        child = -1;
    }
    int status;
    if (child > 0)
        waitpid(child, &status, 0);
    look("the parent's pages", where, 3);
    printf("the parent's byte %d\n", where[huge]);
    close(ends[0]), close(ends[1]);
    close(fd);
    munmap(where, 3 * huge);
}

void *fork_it(void *where) {
    pid_t child = fork();
    if (!child) {
        char *at = (char *)where + huge;
        *(volatile char *)at = 'c';
        _exit(*(volatile char *)at);
    }
    return (void *)(intptr_t)child;
}

static void *do_remap(void *where) {
    char *to = mmap(0, 4 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE | size_flag, -1, 0);
    munmap(to, 4 * huge);
    return mremap(where, 2 * huge, 2 * huge, MREMAP_MAYMOVE | MREMAP_FIXED, to);
}
static void *do_give_up(void *where) { return (void *)(intptr_t)madvise(where, huge + page, MADV_DONTNEED); }
static void *do_remove(void *where) { return (void *)(intptr_t)madvise(where, huge, MADV_REMOVE); }
static void *do_unmap(void *where) { return (void *)(intptr_t)munmap(where, 2 * huge); }

static void *(*acting)(void *);
static volatile int acted;

static void *act(void *where) {
    void *done = acting(where);
    acted = 1;
    return done;
}

static void *told_of(const char *what, void *(*action)(void *), char *where) {
    pthread_t maker;
    void *done;
    fflush(stdout);
    printf("%-44s", what);
    acting = action, acted = 0;
    pthread_create(&maker, 0, act, where);
    while (!acted) {
        struct message message = {0};
        struct pollfd look_at = {fd, POLLIN, 0};
        if (poll(&look_at, 1, 20) != 1 || read(fd, &message, sizeof message) != sizeof message)
            continue;
        uint64_t length = message.event == 0x14 ? message.c : message.b - message.a;
        printf(" event %#x from %lld, %llu%s pages;", message.event,
               (long long)(int64_t)(message.a - (uintptr_t)where) / (long long)huge, (unsigned long long)length / huge,
               length % huge ? " and some" : "");
    }
    pthread_join(maker, &done);
    printf("\n");
    return done;
}

static void events(void) {
    printf("-- told\n");
    open_one(F_REMAP | F_REMOVE | F_UNMAP);
    char *where = map(2, MAP_SHARED, -1);
    watch(where, 2 * huge, MISSING | WP);
    copy(where, source, huge, 0);
    protect(where, 2 * huge, 1);
    where = told_of("moved", do_remap, where);
    look("pages", where, 2);
    told_of("given up", do_give_up, where);
    look("pages", where, 2);
    told_of("removed", do_remove, where);
    look("pages", where, 2);
    begin(where, 0);
    next(where);
    TELL("copy", copy(where, source, huge, 2));
    finish("the byte");
    look("pages", where, 2);
    told_of("unmapped", do_unmap, where);
    close(fd);
    open_one(0);
    where = map(2, MAP_PRIVATE, -1);
    watch(where, 2 * huge, WP);
    where[0] = 1;
    protect(where, 2 * huge, 1);
    where = do_remap(where);
    look("moved, and nobody was to be told", where, 2);
    try("a store", where, 9);
    munmap(where, 2 * huge);
    close(fd);
}

static void holes(void) {
    printf("-- cut\n");
    int file = memory(3);
    char *where = map(3, MAP_SHARED, file);
    open_one(0);
    watch(where, 3 * huge, WP);
    where[0] = where[huge] = where[2 * huge] = 1;
    protect(where, 3 * huge, 1);
    fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, huge, huge);
    look("with a hole", where, 3);
    ftruncate(file, 2 * huge);
    look("with an end", where, 3);
    ftruncate(file, 3 * huge);
    try("a store behind it", where + 2 * huge, 4);
    munmap(where, 3 * huge);
    close(file);
    close(fd);
}

static void late(void) {
    printf("-- copied late\n");
    int file = memory(1), all = open("/proc/self/mem", O_RDWR);
    char *there = map(1, MAP_SHARED, file), *where = map(1, MAP_PRIVATE, file);
    there[1] = 1;
    open_one(F_POISON);
    TELL("watch", watch(where, huge, WP));
    TELL("protect", protect(where, huge, 1));
    begin(where, 'x');
    next(where);
    there[1] = 2;
    TELL("let it", protect(where, huge, 0));
    finish("stored");
    printf("the copy has %d\n", where[1]);
    madvise(where, huge, MADV_DONTNEED);
    TELL("poison", answer(POISON, where, huge, 0));
    TELL("a store by a debugger", pwrite(all, "y", 1, (uintptr_t)where));
    try("a load", where, 0);
    madvise(where, huge, MADV_DONTNEED);
    mprotect(where, huge, PROT_READ);
    TELL("poison", answer(POISON, where, huge, 0));
    TELL("a store by a debugger", pwrite(all, "y", 1, (uintptr_t)where));
    try("a load", where, 0);
    close(fd);
    munmap(where, huge);
    where = map(2, MAP_PRIVATE, -1);
    open_one(F_ASYNC);
    watch(where, 2 * huge, WP);
    where[0] = where[huge] = 1;
    struct region region[4];
    struct scan scan = {sizeof scan, 1, (uintptr_t)where + page, (uintptr_t)where + 2 * huge, 0, (uintptr_t)region, 4, 0, 0, 2, 0, 2};
    long found = ioctl(pagemap, SCAN, &scan);
    printf("from inside a huge page: %ld, %llu to %llu, at %llu pages\n", found,
           (unsigned long long)(region[0].start - scan.start + page) / huge, (unsigned long long)(region[0].end - scan.start + page) / huge,
           (unsigned long long)(scan.walk_end - (uintptr_t)where) / page);
    look("pages", where, 2);
    munmap(where, 2 * huge);
    munmap(there, huge);
    close(fd), close(all), close(file);
}

static char *segment(void) {
    int id = shmget(IPC_PRIVATE, 3 * huge, IPC_CREAT | 0600 | SHM_HUGETLB | shm_flag);
    need(id >= 0, "shmget");
    char *where = shmat(id, 0, 0);
    shmctl(id, IPC_RMID, 0);
    return where;
}

int main(int count, char **arguments) {
    int shift = count > 1 ? atoi(arguments[1]) : 0;
    codes = count > 2;
    page = sysconf(_SC_PAGESIZE);
    setvbuf(stdout, 0, _IOLBF, 0);
    size_flag = memfd_flag = shm_flag = shift << 26;
    huge = shift ? 1ul << shift : 0;
    if (!huge) {
        char line[128];
        FILE *info = fopen("/proc/meminfo", "r");
        while (fgets(line, sizeof line, info))
            if (sscanf(line, "Hugepagesize: %zu", &huge) == 1)
                huge <<= 10;
        fclose(info);
    }
    pagemap = open("/proc/self/pagemap", O_RDONLY);
    source = mmap(0, huge, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | size_flag, -1, 0);
    need(source != MAP_FAILED, "source");
    source[0] = 1;
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, 0);
    sigaction(SIGSEGV, &action, 0);
    features();
    registering();
    missing("private", map(2, MAP_PRIVATE, -1), 0);
    missing("shared", map(2, MAP_SHARED, -1), F_EXACT);
    int file = memory(2);
    missing("a memory file", map(2, MAP_SHARED, file), 0);
    missing("a private mapping of it", map(2, MAP_PRIVATE, file), 0);
    close(file);
    missing("a segment", segment(), 0);
    in_part();
    without_pages();
    minor();
    written("private", map(3, MAP_PRIVATE, -1));
    written("shared", map(3, MAP_SHARED, -1));
    asynchronously(MAP_PRIVATE);
    asynchronously(MAP_SHARED);
    poisoned(MAP_PRIVATE);
    poisoned(MAP_SHARED);
    forked(MAP_PRIVATE, 0);
    forked(MAP_SHARED, 0);
    forked(MAP_PRIVATE, F_FORK);
    forked(MAP_SHARED, F_FORK);
    events();
    holes();
    late();
    return 0;
}
