// Guard regions in shared memory and in files; minor faults page by page; memory that never becomes executable.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define GUARD 102
#define UNGUARD 103
#define RW (PROT_READ | PROT_WRITE)
#define PAGES 10
#define PIDFD_SELF (-10000)
#define PIDFD_SELF_PROCESS (-10001)

#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif

static size_t page;
static sigjmp_buf back;
static volatile int code;

static const char *result(long value) {
    static const struct {
        int number;
        const char *name;
    } known[] = {{EPERM, "EPERM"}, {EINVAL, "EINVAL"}, {ENOMEM, "ENOMEM"}, {EFAULT, "EFAULT"},
                 {EACCES, "EACCES"}, {EBADF, "EBADF"}, {EBUSY, "EBUSY"}, {ENODEV, "ENODEV"}};
    if (value >= 0)
        return "ok";
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].number == errno)
            return known[i].name;
    return "another error";
}

#define TELL(what, call) printf("%s: %s\n", what, result((long)(call)))

static void caught(int number, siginfo_t *info, void *context) {
    (void)context;
    code = number * 100 + info->si_code;
    siglongjmp(back, 1);
}

static int load(volatile unsigned char *at) {
    return sigsetjmp(back, 1) ? -code : *at;
}

static int store(volatile unsigned char *at, int value) {
    if (sigsetjmp(back, 1))
        return -code;
    *at = value;
    return 0;
}

static void row(const char *what, unsigned char *room) {
    printf("%s:", what);
    for (int i = 0; i < PAGES; i++)
        printf(" %d", load(room + i * page));
    puts("");
}

// How many pages the area has, and whether smaps says that it may have guards.
static void area(unsigned char *room) {
    FILE *smaps = fopen("/proc/self/smaps", "r");
    char line[512];
    unsigned long start, end;
    int on = 0;
    while (fgets(line, sizeof line, smaps)) {
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
            on = start <= (uintptr_t)room && (uintptr_t)room < end;
            if (on)
                printf("an area of %lu pages", (end - start) / page);
        }
        if (on && !strncmp(line, "VmFlags", 7))
            printf(", guards %s\n", strstr(line, " gu") ? "perhaps" : "never");
    }
    fclose(smaps);
}

// Of each page whether pagemap shows it as in swap, as guarded; and what mincore says.
static void seen(unsigned char *room) {
    int map = open("/proc/self/pagemap", O_RDONLY);
    uint64_t entry = 0;
    unsigned char there[PAGES];
    printf("pagemap:");
    for (int i = 0; i < PAGES; i++) {
        pread(map, &entry, 8, ((uintptr_t)room / page + i) * 8);
        printf(" %d%d", (int)(entry >> 62 & 1), (int)(entry >> 58 & 1));
    }
    close(map);
    TELL("\nmincore", mincore(room, PAGES * page, there));
    for (int i = 0; i < PAGES; i++)
        putchar('0' + (there[i] & 1));
    puts("");
}

enum kind { ANONYMOUS, MEMORY, MEMORY_PRIVATE, STORED, STORED_PRIVATE, KINDS };
static const char *names[KINDS] = {"shared anonymous", "memory file", "memory file, private", "file", "file, private"};

static void guarded(enum kind kind) {
    int private = kind == MEMORY_PRIVATE || kind == STORED_PRIVATE, fd = -1;
    unsigned char *room, *whole = 0;
    printf("-- %s\n", names[kind]);
    if (kind == ANONYMOUS) {
        room = mmap(0, PAGES * page, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    } else {
        fd = kind < STORED ? (int)syscall(SYS_memfd_create, "guarded", 0) : open("guarded", O_RDWR | O_CREAT, 0600);
        ftruncate(fd, PAGES * page);
        whole = mmap(0, PAGES * page, RW, MAP_SHARED, fd, 0);
        room = mmap(0, PAGES * page, RW, private ? MAP_PRIVATE : MAP_SHARED, fd, 0);
    }
    unsigned char *others = whole ? whole : room;
    for (int i = 0; i < PAGES; i++)
        others[i * page] = i + 1;
    if (private)
        room[3 * page] = 77;
    area(room);
    TELL("guard three", madvise(room + 2 * page, 3 * page, GUARD));
    TELL("and again", madvise(room + 2 * page, 3 * page, GUARD));
    row("here", room);
    seen(room);
    if (whole)
        row("elsewhere", whole);
    area(room);
    printf("a store: %d\n", store(room + 2 * page, 5));
    TELL("drop all", madvise(room, PAGES * page, MADV_DONTNEED));
    row("here", room);
    TELL("populate all", madvise(room, PAGES * page, 22));
    TELL("populate before", madvise(room, 2 * page, 23));
    TELL("read-only", mprotect(room, PAGES * page, PROT_READ));
    row("here", room);
    TELL("writable", mprotect(room, PAGES * page, RW));
    if (kind != STORED && kind != STORED_PRIVATE) {  // the host's file system may have no holes
        TELL("a hole", madvise(room, PAGES * page, MADV_REMOVE));
        row("here", room);
        for (int i = whole ? 0 : 5; i < PAGES; i++)
            others[i * page] = i + 1;
    }
    fflush(stdout);
    if (!fork()) {
        row("a child", room);
        madvise(room, PAGES * page, UNGUARD);
        row("without guards", room);
        fflush(stdout);
        _exit(0);
    }
    wait(0);
    row("its parent", room);
    if (whole) {
        TELL("shorter", ftruncate(fd, 3 * page));
        row("here", room);
        TELL("longer", ftruncate(fd, PAGES * page));
        row("here", room);
        TELL("write", pwrite(fd, "zzz", 3, 2 * page));
        row("here", room);
    }
    unsigned char *target = mmap(0, PAGES * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TELL("move", mremap(room, PAGES * page, PAGES * page, MREMAP_MAYMOVE | MREMAP_FIXED, target) == MAP_FAILED ? -1 : 0);
    room = target;
    row("there", room);
    area(room);
    mlock2(room + 8 * page, page, 1);
    TELL("guard what is locked", madvise(room + 8 * page, page, GUARD));
    munlock(room + 8 * page, page);
    TELL("read a guard", read(open("/dev/zero", O_RDONLY), room + 4 * page, page));
    TELL("remove some", madvise(room + page, 3 * page, UNGUARD));
    row("there", room);
    TELL("remove all", madvise(room, PAGES * page, UNGUARD));
    row("there", room);
    seen(room);
    TELL("guard all", madvise(room, PAGES * page, GUARD));
    row("there", room);
    TELL("unmap one", munmap(room + page, page));
    TELL("over a hole", madvise(room, PAGES * page, GUARD));
    TELL("over a hole", madvise(room, PAGES * page, UNGUARD));
    if (fd >= 0)
        close(fd);
    unlink("guarded");
}

static void around(void) {
    puts("-- other calls");
    unsigned char *room = mmap(0, 2 * page, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct iovec one = {room, page}, two = {room + page, page};
    room[0] = room[page] = 1;
    TELL("advise itself", syscall(SYS_process_madvise, PIDFD_SELF, &one, 1, MADV_DONTNEED, 0));
    TELL("advise its process", syscall(SYS_process_madvise, PIDFD_SELF_PROCESS, &two, 1, GUARD, 0));
    TELL("no such", syscall(SYS_process_madvise, PIDFD_SELF - 2, &one, 1, MADV_DONTNEED, 0));
    printf("%d %d\n", load(room), load(room + page));
    TELL("signal itself", syscall(SYS_pidfd_send_signal, PIDFD_SELF, 0, 0, 0));
    int fd = syscall(SYS_memfd_create, "sealed", MFD_ALLOW_SEALING);
    ftruncate(fd, page);
    TELL("seal", fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    TELL("writable", mmap(0, page, RW, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0);
    room = mmap(0, page, PROT_READ, MAP_SHARED, fd, 0);
    TELL("read-only", room == MAP_FAILED ? -1 : 0);
    TELL("made writable", mprotect(room, page, RW));
    TELL("a hole", madvise(room, page, MADV_REMOVE));
    TELL("guard it", madvise(room, page, GUARD));
    printf("%d\n", load(room));
    FILE *maps = fopen("/proc/self/maps", "r");
    unsigned char *late = mmap(0, 3 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(late + page, page, RW);
    char line[512];
    unsigned long start;
    int found = 0;
    while (fgets(line, sizeof line, maps))
        found |= sscanf(line, "%lx-", &start) == 1 && start == (uintptr_t)late + page;
    printf("an open text has what came before it was read: %d\n", found);
    fclose(maps);
}

// ---- memory that never becomes executable (PR_SET_MDWE)

#define SET_GAIN 65
#define GET_GAIN 66
#define RX (PROT_READ | PROT_EXEC)

static void gain(int bits, int then_execute) {
    fflush(stdout);
    if (fork()) {
        wait(0);
        return;
    }
    printf("bits %d\n", bits);
    void *before = mmap(0, page, RX, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TELL("set", prctl(SET_GAIN, bits, 0, 0, 0));
    TELL("other bits", prctl(SET_GAIN, bits ^ 2, 0, 0, 0));
    TELL("none any more", prctl(SET_GAIN, 0, 0, 0, 0));
    TELL("written and executed", mmap(0, page, RW | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0);
    TELL("executed", mmap(0, page, RX, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0);
    void *data = mmap(0, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TELL("becomes executable", mprotect(data, page, RX));
    TELL("stays so", mprotect(before, page, RX));
    TELL("is written too", mprotect(before, page, RW | PROT_EXEC));
    TELL("is data", mprotect(before, page, RW));
    TELL("and back", mprotect(before, page, RX));
    fflush(stdout);
    if (!fork()) {
        printf("a child has %d\n", prctl(GET_GAIN, 0, 0, 0, 0));
        fflush(stdout);
        _exit(0);
    }
    wait(0);
    if (then_execute)
        execl("/proc/self/exe", "guards", "gain", (char *)0);
    _exit(0);
}

// ---- minor faults: each page is told, though its neighbours are there

#define MANY 64
struct range { uint64_t start, len; };
struct api { uint64_t api, features, ioctls; };
struct reg { struct range range; uint64_t mode, ioctls; };
struct zero { struct range range; uint64_t mode; int64_t done; };
struct message { uint8_t event, pad[7]; uint64_t flags, address; uint32_t task, pad2; };

static int faults;
static unsigned char *mine, *watched;
static int answers_from;

static void *answer(void *unused) {
    struct message told;
    struct pollfd wait = {answers_from, POLLIN, 0};
    while (poll(&wait, 1, 2000) == 1 && read(answers_from, &told, sizeof told) == sizeof told) {
        faults += told.flags == 4;
        uint64_t at = told.address & -(uint64_t)page;
        unsigned char *same = mine + (at - (uintptr_t)watched);
        *same = ~*same;
        struct zero go = {{at, page}, 0, 0};
        ioctl(answers_from, _IOWR(0xAA, 7, struct zero), &go);
        if (faults == MANY)
            break;
    }
    return unused;
}

static void minor(void) {
    puts("-- minor faults");
    int fd = syscall(SYS_memfd_create, "minor", 0), bad = 0;
    ftruncate(fd, MANY * page);
    mine = mmap(0, MANY * page, RW, MAP_SHARED, fd, 0);
    watched = mmap(0, MANY * page, RW, MAP_SHARED, fd, 0);
    answers_from = syscall(SYS_userfaultfd, O_NONBLOCK | 1);
    struct api api = {0xAA, 0, 0};
    struct reg reg = {{(uintptr_t)watched, MANY * page}, 4, 0};
    TELL("choose", ioctl(answers_from, _IOWR(0xAA, 0x3F, struct api), &api));
    TELL("watch", ioctl(answers_from, _IOWR(0xAA, 0, struct reg), &reg));
    for (int i = 0; i < MANY; i++)
        mine[i * page] = i;
    pthread_t thread;
    pthread_create(&thread, 0, answer, 0);
    for (int i = 0; i < MANY; i++)
        bad += watched[i * page] != (unsigned char)~i;
    pthread_join(thread, 0);
    printf("%d faults, %d pages not as the answer made them\n", faults, bad);
}

int main(int count, char **arguments) {
    page = sysconf(_SC_PAGESIZE);
    if (count > 1 && !strcmp(arguments[1], "gain")) {
        printf("the next program has %d\n", prctl(GET_GAIN, 0, 0, 0, 0));
        return 0;
    }
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, 0);
    sigaction(SIGBUS, &action, 0);
    for (enum kind kind = 0; kind < KINDS; kind++)
        guarded(kind);
    around();
    puts("-- gains");
    TELL("unknown bits", prctl(SET_GAIN, 4, 0, 0, 0));
    TELL("not inherited alone", prctl(SET_GAIN, 2, 0, 0, 0));
    TELL("another argument", prctl(SET_GAIN, 1, 1, 0, 0));
    TELL("another argument", prctl(GET_GAIN, 1, 0, 0, 0));
    gain(1, 1);
    gain(3, 1);
    minor();
    return 0;
}
