/* huge [always]: where a program gets huge pages, what cuts them and what brings them back, as /proc/self/smaps
 * counts them. It asks for them by madvise; with `always` it does not. Counts are of huge pages, so that every
 * page size reads the same. `huge frames` also looks, as root, whether the frames of one lie in a row, and
 * `huge grown` waits for the kernel to make one of small pages. */
#include "aether.h"

enum { PR_SET_THP_DISABLE = 41, PR_GET_THP_DISABLE = 42 };

static u64 huge; /* bytes of a huge page */
static int asks = 1;

static u64 read_text(const char *path, char *text, u64 size) {
    u64 used = 0;
    i64 fd = open(path, O_RDONLY), n;
    if (fd < 0) FAIL("%s: %s", path, answer(fd));
    while ((n = SYSCALL(read, fd, text + used, size - 1 - used)) > 0) used += (u64)n;
    SYSCALL(close, fd);
    text[used] = 0;
    return used;
}

/* What smaps has as `name` in the area that contains `address`. */
static u64 shown(const char *address, const char *name) {
    static char text[256 * KIB];
    u64 length = strlen(name), bounds[2] = {0, 0};
    read_text("/proc/self/smaps", text, sizeof text);
    for (const char *line = text; *line;) {
        u64 value = 0, bound = 0;
        const char *at = line;
        for (; (*at >= '0' && *at <= '9') || (*at >= 'a' && *at <= 'f') || (*at == '-' && !bound); at++) {
            if (*at == '-') {
                bounds[0] = value, value = 0, bound = 1;
                continue;
            }
            value = value * 16 + (u64)(*at <= '9' ? *at - '0' : *at - 'a' + 10);
        }
        if (bound && *at == ' ') bounds[1] = value;
        if (bounds[0] <= (u64)address && (u64)address < bounds[1] && memcmp(line, name, length) == 0 &&
            line[length] == ':') {
            at = line + length + 1;
            while (*at == ' ') at++;
            return number(at);
        }
        while (*line && *line != '\n') line++;
        if (*line) line++;
    }
    FAIL("smaps has no %s", name);
    return 0;
}

static u64 huge_pages(const char *base) { return shown(base, "AnonHugePages") * KIB / huge; }

/* Room for `count` huge pages, at an address where one may begin, between forbidden pages. */
static char *room(u64 count) {
    char *found = mmap(NULL, (count + 2) * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (IS_ERROR(found)) FAIL("mmap: %s", answer((i64)found));
    char *base = (char *)ROUND_UP((u64)found + PAGE, huge);
    if (IS_ERROR(mmap(base, count * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)))
        FAIL("no room for %lu huge pages", count);
    if (asks) madvise(base, count * huge, MADV_HUGEPAGE);
    return base;
}

static void about_faults(void) {
    volatile char *base = room(3);
    printf("1. A fault\n   I map 3 huge pages. Eligible: %lu; now there are %lu of them.\n",
           shown((char *)base, "THPeligible"), huge_pages((char *)base));
    base[huge + PAGE] = 1;
    printf("   I store into one: %lu, and %s of its pages are resident.\n", huge_pages((char *)base),
           shown((char *)base, "Rss") * KIB == huge ? "all" : "not all");
    u64 sum = 0;
    for (u64 at = 0; at < huge; at += PAGE) sum += (u64)base[huge + at];
    printf("   The sum of what its pages begin with is %lu.\n", sum);
    base[0] = base[2 * huge] = 1;
    printf("   I store into the others: %lu.\n\n", huge_pages((char *)base));
    munmap((char *)base, 3 * huge);
}

static void about_parts(void) {
    volatile char *base = room(2);
    base[0] = 'a', base[PAGE] = 'b', base[2 * huge - 1] = 'z';
    printf("2. Parts\n   Of 2 huge pages I forbid stores to one page: %s, then there are", 
           answer(mprotect((char *)base + PAGE, PAGE, PROT_READ)));
    printf(" %lu in its place.\n", huge_pages((char *)base) + huge_pages((char *)base + PAGE));
    mprotect((char *)base + PAGE, PAGE, PROT_READ | PROT_WRITE);
    printf("   Beside it there is %lu; what I stored is %c%c%c.\n", huge_pages((char *)base), base[0], base[PAGE],
           base[2 * huge - 1]);
    i64 result = madvise((char *)base, huge, MADV_COLLAPSE);
    printf("   MADV_COLLAPSE: %s, then there are %lu; %c%c%c.\n", answer(result), huge_pages((char *)base), base[0],
           base[PAGE], base[2 * huge - 1]);
    madvise((char *)base, PAGE, MADV_DONTNEED);
    printf("   I drop a page: %lu left; %d%c%c.\n", huge_pages((char *)base), base[0], base[PAGE],
           base[2 * huge - 1]);
    munmap((char *)base + huge, PAGE);
    printf("   I unmap one of the other: %lu left; %c.\n\n", huge_pages((char *)base), base[2 * huge - 1]);
}

static void about_forks(void) {
    volatile char *base = room(1);
    i32 status = 0;
    base[0] = 'p', base[PAGE] = 'q';
    i64 child = SYSCALL(clone, SIGCHLD, 0, 0, 0, 0);
    if (child == 0) {
        printf("3. A fork\n   The child has %lu huge page,", huge_pages((char *)base));
        base[0] = 'c';
        printf(" stores into it, and has %lu: %c%c.\n", huge_pages((char *)base), base[0], base[PAGE]);
        exit(0);
    }
    SYSCALL(wait4, child, &status, 0, NULL);
    printf("   The parent has %lu: %c%c.", huge_pages((char *)base), base[0], base[PAGE]);
    base[PAGE] = 'r';
    printf(" It stores into it, and has %lu: %c%c.\n\n", huge_pages((char *)base), base[0], base[PAGE]);
}

static void about_wishes(void) {
    volatile char *base = room(3);
    printf("4. Wishes\n   Disabled: %ld;", SYSCALL(prctl, PR_GET_THP_DISABLE, 0, 0, 0, 0));
    printf(" I disable them: %s;", answer(SYSCALL(prctl, PR_SET_THP_DISABLE, 1, 0, 0, 0)));
    base[0] = 1;
    printf(" disabled: %ld, eligible: %lu, there are %lu.\n", SYSCALL(prctl, PR_GET_THP_DISABLE, 0, 0, 0, 0),
           shown((char *)base, "THPeligible"), huge_pages((char *)base));
    printf("   MADV_COLLAPSE meanwhile: %s.\n", answer(madvise((char *)base, huge, MADV_COLLAPSE)));
    SYSCALL(prctl, PR_SET_THP_DISABLE, 0, 0, 0, 0);
    madvise((char *)base + huge, huge, MADV_NOHUGEPAGE);
    base[huge] = base[2 * huge] = 1;
    printf("   Enabled again, but not in the second of three: %lu, %lu, %lu.\n", huge_pages((char *)base),
           huge_pages((char *)base + huge), huge_pages((char *)base + 2 * huge));
    printf("   MADV_COLLAPSE of each: %s, %s, %s.\n", answer(madvise((char *)base, huge, MADV_COLLAPSE)),
           answer(madvise((char *)base + huge, huge, MADV_COLLAPSE)),
           answer(madvise((char *)base + 2 * huge, huge, MADV_COLLAPSE)));
    printf("   Then there are %lu, %lu, %lu.\n", huge_pages((char *)base), huge_pages((char *)base + huge),
           huge_pages((char *)base + 2 * huge));
}

static void about_frames(void) {
    volatile char *base = room(1);
    static u64 entries[64];
    base[0] = 1;
    i64 fd = open("/proc/self/pagemap", O_RDONLY);
    u64 first = 0, broken = 0, pages = huge / PAGE;
    for (u64 at = 0; at < pages; at += COUNT(entries)) {
        if (pread((int)fd, entries, sizeof entries, ((u64)base / PAGE + at) * 8) != sizeof entries)
            FAIL("pagemap ends");
        for (u64 i = 0; i < COUNT(entries); i++) {
            u64 frame = entries[i] & ((1UL << 55) - 1);
            if (at + i == 0) first = frame;
            broken += !(entries[i] >> 63) || frame != first + at + i;
        }
    }
    printf("The frames of %s pages: aligned %d, out of their row %lu.\n", huge / PAGE == pages ? "all" : "some",
           first % pages == 0 && first != 0, broken);
}

/* A mapping that is as long as a huge page in the end, but was shorter when its pages were touched. */
static void about_growth(void) {
    volatile char *base = room(1);
    u64 turns = 0;
    munmap((char *)base + PAGE, huge - PAGE);
    for (u64 at = 0; at < huge; at += PAGE) {
        if (at && IS_ERROR(mremap((char *)base, at, at + PAGE, 0, NULL))) FAIL("%s", "it does not grow");
        base[at] = 1;
    }
    while (huge_pages((char *)base) == 0 && turns++ < 100) {
        u64 time[2] = {0, 1000000}; /* a millisecond */
        SYSCALL(nanosleep, time, NULL);
        base[0] = 1;
    }
    printf("A mapping that grew page by page has %lu huge page after a while.\n", huge_pages((char *)base));
}

int main(int argc, char **argv) {
    static char text[64];
    read_text("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", text, sizeof text);
    huge = number(text);
    if (argc > 1 && streq(argv[1], "frames")) {
        about_frames();
        return 0;
    }
    if (argc > 1 && streq(argv[1], "grown")) {
        about_growth();
        return 0;
    }
    asks = !(argc > 1 && streq(argv[1], "always"));
    about_faults();
    about_parts();
    about_forks();
    about_wishes();
    return 0;
}
