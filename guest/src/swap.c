/* swap fill MIB [ROUNDS]: more memory than there is, every byte checked. Private pages, shared ones, and what a
 * forked child sees of both while parent and child write. Prints one line for each stage, the same whatever the
 * memory.
 * swap threads MIB ROUNDS: two threads add to words of their own in the same pages, and no addition is lost.
 * swap tell: sends pages away by advice, and says what the kernel tells of them and what becomes of them.
 * swap off: turns the swap area off and on. */
#include "aether.h"

#if defined(__x86_64__)
enum { SYS_mlock = 149, SYS_munlock = 150, SYS_swapon = 167, SYS_swapoff = 168, SYS_process_vm_readv = 310 };
#else
enum { SYS_mlock = 228, SYS_munlock = 229, SYS_swapon = 224, SYS_swapoff = 225, SYS_process_vm_readv = 270 };
#endif
enum { SHARE = 8 };  /* one page of so many is shared */
enum { PAGES = 32 }; /* that `tell` sends away */

static i64 fork(void) { return SYSCALL(clone, SIGCHLD, 0, 0, 0, 0); }

static i32 wait_for(i64 pid) {
    i32 status = -1;
    SYSCALL(wait4, pid, &status, 0, 0);
    return status;
}

static u64 mixed(u64 value) {
    value ^= value >> 33;
    value *= 0xff51afd7ed558ccdUL;
    value ^= value >> 33;
    value *= 0xc4ceb9fe1a85ec53UL;
    return value ^ value >> 33;
}

/* The word at `at` of page `page` in round `round`. Of four pages one is a word all over, one is mostly zero, one
 * repeats itself, and one cannot be compressed. */
static u64 word(u64 page, u64 at, u64 round) {
    u64 seed = page * 0x9e3779b97f4a7c15UL + round;
    switch (page % 4) {
    case 0: return mixed(seed);
    case 1: return at % 64 ? 0 : mixed(seed + at);
    case 2: return mixed(seed + at % 32);
    default: return mixed(seed + at);
    }
}

static void fill(u64 *memory, u64 page, u64 round) {
    u64 words = PAGE / 8, *start = memory + page * words;
    for (u64 at = 0; at < words; at++) start[at] = word(page, at, round);
}

static void check(const char *who, const u64 *memory, u64 page, u64 round) {
    u64 words = PAGE / 8;
    const u64 *start = memory + page * words;
    for (u64 at = 0; at < words; at++)
        if (start[at] != word(page, at, round))
            FAIL("%s: page %lu, word %lu of round %lu: %lx and not %lx", who, page, at, round, start[at],
                 word(page, at, round));
}

/* In which round a page was written last, after `rounds`: all of them in the first, then one of three. */
static u64 last_round(u64 page, u64 rounds) {
    for (u64 round = rounds; round > 1; round--)
        if ((page + round) % 3 == 0) return round;
    return 1;
}

static u64 *map(u64 length, int flags) {
    u64 *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (IS_ERROR(memory)) FAIL("mmap: %s", answer((i64)memory));
    return memory;
}

static void child_works(u64 *own, u64 *shared, u64 pages, u64 rounds) {
    for (u64 page = 0; page < pages; page++) check("child", own, page, last_round(page, rounds));
    for (u64 page = 0; page < pages; page += 2) fill(own, page, 100);
    for (u64 page = 0; page < pages / SHARE; page += 2) fill(shared, page, 100);
    for (u64 page = 0; page < pages; page++)
        check("child", own, page, page % 2 ? last_round(page, rounds) : 100);
    exit(0);
}

static void more_than_there_is(u64 mib, u64 rounds) {
    u64 pages = mib * MIB / PAGE;
    u64 *own = map(pages * PAGE, MAP_PRIVATE), *shared = map(pages / SHARE * PAGE, MAP_SHARED);
    for (u64 page = 0; page < pages; page++) fill(own, page, 1);
    for (u64 page = 0; page < pages / SHARE; page++) fill(shared, page, 1);
    for (u64 round = 2; round <= rounds; round++)
        for (u64 page = 0; page < pages; page++) {
            check("round", own, page, last_round(page, round - 1));
            if ((page + round) % 3 == 0) fill(own, page, round);
        }
    for (u64 page = 0; page < pages; page++) check("alone", own, page, last_round(page, rounds));
    for (u64 page = 0; page < pages / SHARE; page++) check("shared", shared, page, 1);
    printf("every word of %lu MiB is right after %lu rounds\n", mib, rounds);
    i64 child = fork();
    if (child < 0) FAIL("fork: %s", answer(child));
    if (!child) child_works(own, shared, pages, rounds);
    for (u64 page = 1; page < pages; page += 2) fill(own, page, 200);
    i32 status = wait_for(child);
    for (u64 page = 0; page < pages; page++)
        check("parent", own, page, page % 2 ? 200 : last_round(page, rounds));
    for (u64 page = 0; page < pages / SHARE; page++) check("shared", shared, page, page % 2 ? 1 : 100);
    printf("parent and child, both right: the child ended with %d\n", status);
}

/* ---- threads */

enum {
    CLONE_VM = 0x100, CLONE_FS = 0x200, CLONE_FILES = 0x400, CLONE_SIGHAND = 0x800, CLONE_THREAD = 0x10000,
    CLONE_SYSVSEM = 0x40000, CLONE_CHILD_CLEARTID = 0x200000, FUTEX_WAIT = 0,
};

/* A task with these clone flags that runs entry(argument) on its own stack, and then exits. */
i64 spawn(u64 flags, void *stack, i32 *parent_tid, i32 *child_tid, int (*entry)(void *), void *argument);

static u8 stack_of_other[16384] __attribute__((aligned(16)));
static u64 *common, common_pages, common_rounds;

/* Adds 1 to each eighth word of every page from word `which` on, so often. */
static int add_up(void *which) {
    u64 words = PAGE / 8;
    for (u64 round = 0; round < common_rounds; round++)
        for (u64 page = 0; page < common_pages; page++)
            for (u64 at = (u64)which; at < words; at += words / 8) common[page * words + at] += page + 1;
    return 0;
}

static void two_threads(u64 mib, u64 rounds) {
    volatile i32 lives = 1;
    common_pages = mib * MIB / PAGE, common_rounds = rounds;
    common = map(common_pages * PAGE, MAP_PRIVATE);
    u64 flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
                CLONE_CHILD_CLEARTID;
    i64 other = spawn(flags, stack_of_other + sizeof stack_of_other, NULL, (i32 *)&lives, add_up, (void *)1);
    if (other < 0) FAIL("clone: %s", answer(other));
    add_up((void *)0);
    while (lives) SYSCALL(futex, &lives, FUTEX_WAIT, 1, 0);
    u64 words = PAGE / 8;
    for (u64 page = 0; page < common_pages; page++)
        for (u64 at = 0; at < words; at++) {
            u64 wanted = at % (words / 8) < 2 ? rounds * (page + 1) : 0;
            if (common[page * words + at] != wanted)
                FAIL("page %lu, word %lu: %lu and not %lu", page, at, common[page * words + at], wanted);
        }
    printf("two threads have added up %lu MiB %lu times\n", mib, rounds);
}

/* ---- tell */

/* A file of /proc, as a text. */
static const char *text_of(const char *path) {
    static char text[256 * KIB];
    u64 used = 0;
    i64 fd = open(path, O_RDONLY), n;
    if (fd < 0) FAIL("%s: %s", path, answer(fd));
    while ((n = SYSCALL(read, fd, text + used, sizeof text - 1 - used)) > 0) used += (u64)n;
    SYSCALL(close, fd);
    text[used] = 0;
    return text;
}

/* The number behind `name` and a colon or a blank, at the beginning of a line from `at` on. */
static u64 figure(const char *at, const char *name) {
    u64 length = strlen(name);
    for (const char *line = at; *line; line++) {
        if (line != at && line[-1] != '\n') continue;
        if (memcmp(line, name, length) || (line[length] != ':' && line[length] != ' ')) continue;
        for (line += length + 1; *line == ' ' || *line == '\t';) line++;
        return number(line);
    }
    FAIL("there is no %s", name);
    return 0;
}

/* Pages that smaps counts as `name` in the area that begins at `base`. */
static u64 in_area(const void *base, const char *name) {
    for (const char *line = text_of("/proc/self/smaps"), *at; *line; line = *at ? at + 1 : at) {
        u64 start = 0;
        for (at = line; (*at >= '0' && *at <= '9') || (*at >= 'a' && *at <= 'f'); at++)
            start = start * 16 + (u64)(*at <= '9' ? *at - '0' : *at - 'a' + 10);
        if (*at == '-' && start == (u64)base) return figure(line, name) * KIB / PAGE;
        while (*at && *at != '\n') at++;
    }
    FAIL("smaps does not show my area");
    return 0;
}

static u64 in_core(void *base) {
    u8 seen[PAGES];
    u64 count = 0;
    i64 result = SYSCALL(mincore, base, PAGES * PAGE, seen);
    if (result) FAIL("mincore: %s", answer(result));
    for (u64 page = 0; page < PAGES; page++) count += seen[page] & 1;
    return count;
}

/* Entries of pagemap with this bit. */
static u64 in_pagemap(const void *base, int bit) {
    u64 entries[PAGES], count = 0;
    i64 fd = open("/proc/self/pagemap", O_RDONLY);
    if (pread((int)fd, entries, sizeof entries, (u64)base / PAGE * 8) != sizeof entries) FAIL("pagemap");
    SYSCALL(close, fd);
    for (u64 page = 0; page < PAGES; page++) count += entries[page] >> bit & 1;
    return count;
}

static u64 major_faults(void) {
    u64 usage[18];
    SYSCALL(getrusage, 0, usage);
    return usage[9];
}

static u64 *map_alone(int flags) {
    char *room = mmap(NULL, (PAGES + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u64 *base = mmap(room + PAGE, PAGES * PAGE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (IS_ERROR(base)) FAIL("mmap: %s", answer((i64)base));
    madvise(base, PAGES * PAGE, MADV_NOHUGEPAGE);
    for (u64 page = 0; page < PAGES; page++) fill(base, page, 1);
    return base;
}

static void send_away(u64 *base) {
    i64 result = madvise(base, PAGES * PAGE, MADV_PAGEOUT);
    if (result) FAIL("MADV_PAGEOUT: %s", answer(result));
}

static void check_all(const char *who, const u64 *base, u64 round) {
    for (u64 page = 0; page < PAGES; page++) check(who, base, page, round);
}

static void tell(const char *what, u64 *base) {
    printf("%s: %lu pages in memory, %lu in swap\n", what, in_area(base, "Rss"), in_area(base, "Swap"));
}

static u64 swap_used(void) {
    const char *text = text_of("/proc/meminfo");
    return (figure(text, "SwapTotal") - figure(text, "SwapFree")) * KIB / PAGE;
}

static void about_private(void) {
    u64 before = swap_used(), faults = major_faults();
    u64 *base = map_alone(MAP_PRIVATE);
    tell("written", base);
    send_away(base);
    tell("sent away", base);
    printf("  mincore %lu, pagemap %lu present and %lu in swap, VmSwap %lu, meminfo %lu\n", in_core(base),
           in_pagemap(base, 63), in_pagemap(base, 62), figure(text_of("/proc/self/status"), "VmSwap") * KIB / PAGE,
           swap_used() - before);
    check_all("back", base, 1);
    tell("read again", base);
    printf("  major faults: %s\n", major_faults() > faults ? "some" : "none");
    send_away(base);
    for (u64 page = 0; page < PAGES; page++) fill(base, page, 2);
    check_all("written over", base, 2);
    tell("sent away and written over", base);
    send_away(base);
    mprotect(base, PAGES * PAGE, PROT_NONE);
    tell("sent away, then no access", base);
    u64 word_there = 0;
    i64 fd = open("/proc/self/mem", O_RDONLY);
    i64 got = pread((int)fd, &word_there, 8, (u64)base + 3 * PAGE);
    SYSCALL(close, fd);
    printf("  /proc/self/mem reads %ld bytes there, %s\n", got,
           word_there == word(3, 0, 2) ? "the right ones" : "wrong ones");
    mprotect(base, PAGES * PAGE, PROT_READ | PROT_WRITE);
    check_all("permitted again", base, 2);
    send_away(base);
    u64 *moved = mremap(base, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, map_alone(MAP_PRIVATE));
    tell("sent away and moved", moved);
    u64 copy[2] = {0, 0}, here[2] = {(u64)copy, 16}, there[2] = {(u64)(moved + PAGE / 8 * 5), 16};
    got = SYSCALL(process_vm_readv, SYSCALL(getpid), here, 1, there, 1, 0);
    printf("  process_vm_readv reads %ld bytes there, %s\n", got,
           copy[0] == word(5, 0, 2) && copy[1] == word(5, 1, 2) ? "the right ones" : "wrong ones");
    check_all("moved", moved, 2);
    send_away(moved);
    i64 locked = SYSCALL(mlock, moved, PAGES * PAGE);
    if (locked) FAIL("mlock: %s", answer(locked));
    tell("locked", moved);
    printf("  sent away nevertheless: %s\n", answer(madvise(moved, PAGES * PAGE, MADV_PAGEOUT)));
    SYSCALL(munlock, moved, PAGES * PAGE);
    send_away(moved);
    madvise(moved, PAGES * PAGE, MADV_DONTNEED);
    tell("sent away and given up", moved);
    printf("  meminfo %lu, the first word is %lu\n", swap_used() - before, moved[0]);
    munmap(moved, PAGES * PAGE);
}

static void about_fork(void) {
    u64 *base = map_alone(MAP_PRIVATE), before = swap_used();
    send_away(base);
    i64 child = fork();
    if (!child) {
        tell("a child of the fork", base);
        printf("  half of each page is its share: %lu\n", in_area(base, "SwapPss"));
        check_all("child", base, 1);
        for (u64 page = 0; page < PAGES; page += 2) fill(base, page, 3);
        for (u64 page = 0; page < PAGES; page++) check("child", base, page, page % 2 ? 1 : 3);
        exit(0);
    }
    i32 status = wait_for(child);
    check_all("parent", base, 1);
    printf("after it the parent is right, the child ended with %d\n", status);
    munmap(base, PAGES * PAGE);
    printf("  meminfo %lu\n", swap_used() - before);
}

static void about_shared(void) {
    u64 *base = map_alone(MAP_SHARED);
    send_away(base);
    tell("shared memory sent away", base);
    printf("  mincore %lu, pagemap %lu in swap\n", in_core(base), in_pagemap(base, 62));
    i64 child = fork();
    if (!child) {
        check_all("child", base, 1);
        fill(base, 7, 4);
        exit(0);
    }
    wait_for(child);
    for (u64 page = 0; page < PAGES; page++) check("parent", base, page, page == 7 ? 4 : 1);
    printf("shared memory is right on both sides\n");
    munmap(base, PAGES * PAGE);
}

static int contains(const char *text, const char *part) {
    for (u64 length = strlen(part); *text; text++)
        if (!memcmp(text, part, length)) return 1;
    return 0;
}

static void about_machine(void) {
    u64 *base = map_alone(MAP_PRIVATE);
    u64 stored = figure(text_of("/proc/vmstat"), "zswpout"), taken = figure(text_of("/proc/vmstat"), "pgsteal_anon");
    send_away(base);
    const char *vmstat = text_of("/proc/vmstat");
    printf("vmstat: %lu pages taken, %lu stored\n", figure(vmstat, "pgsteal_anon") - taken,
           figure(vmstat, "zswpout") - stored);
    u64 major = figure(vmstat, "pgmajfault"), came = figure(vmstat, "workingset_refault_anon");
    check_all("back", base, 1);
    vmstat = text_of("/proc/vmstat");
    printf("vmstat: %s, %lu came back\n", figure(vmstat, "pgmajfault") > major ? "major faults" : "no major faults",
           figure(vmstat, "workingset_refault_anon") - came);
    printf("/proc/swaps %s the area\n", contains(text_of("/proc/swaps"), "/swapfile") ? "has" : "lacks");
    const char *pressure = text_of("/proc/pressure/memory");
    printf("tasks stood still for %s\n",
           contains(pressure, "some avg10=") && !contains(pressure, "total=0\n") ? "some time" : "no time");
}

static void off_and_on(void) {
    u64 *base = map_alone(MAP_PRIVATE);
    send_away(base);
    i64 off = SYSCALL(swapoff, "/swapfile");
    printf("swapoff: %s\n", answer(off));
    if (off) exit(0);
    tell("the area is off", base);
    printf("again: %s; SwapTotal %lu\n", answer(SYSCALL(swapoff, "/swapfile")),
           figure(text_of("/proc/meminfo"), "SwapTotal"));
    send_away(base);
    tell("sent away with nowhere to go", base);
    printf("swapon: %s; again: %s\n", answer(SYSCALL(swapon, "/swapfile", 0)),
           answer(SYSCALL(swapon, "/swapfile", 0)));
    send_away(base);
    tell("sent away", base);
    check_all("on", base, 1);
}

int main(int argc, char **argv) {
    if (argc > 2 && streq(argv[1], "fill")) {
        more_than_there_is(number(argv[2]), argc > 3 ? number(argv[3]) : 3);
    } else if (argc > 3 && streq(argv[1], "threads")) {
        two_threads(number(argv[2]), number(argv[3]));
    } else if (argc > 1 && streq(argv[1], "tell")) {
        about_private();
        about_fork();
        about_shared();
        about_machine();
    } else if (argc > 1 && streq(argv[1], "off")) {
        off_and_on();
    } else {
        FAIL("swap fill MIB [ROUNDS], swap threads MIB ROUNDS, swap tell or swap off");
    }
    return 0;
}
