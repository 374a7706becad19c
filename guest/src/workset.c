/* workset [FILE]: which of its pages a program used and wrote, as /proc/self/smaps counts them after
 * /proc/self/clear_refs made it forget. With FILE it also writes that file through a shared mapping, and msync
 * makes its pages clean. Counts are of pages, so that every page size reads the same. */
#include "aether.h"

enum { PAGES = 64, FILE_PAGES = 8, O_WRONLY = 1 };

static char *map_alone(u64 pages, int prot, int flags, int fd) {
    /* Between two forbidden pages, so that no neighbour becomes part of the area. */
    u64 length = pages * PAGE;
    char *room = mmap(NULL, length + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (IS_ERROR(room)) FAIL("mmap: %s", answer((i64)room));
    char *base = mmap(room + PAGE, length, prot, flags | MAP_FIXED, fd, 0);
    if (IS_ERROR(base)) FAIL("mmap: %s", answer((i64)base));
    madvise(base, length, MADV_NOHUGEPAGE);
    return base;
}

/* The text of smaps from the line of the area at `base` on. */
static const char *area_at(const char *base) {
    static char text[256 * KIB];
    u64 used = 0, start = 0;
    i64 fd = open("/proc/self/smaps", O_RDONLY), n;
    if (fd < 0) FAIL("/proc/self/smaps: %s", answer(fd));
    while ((n = SYSCALL(read, fd, text + used, sizeof text - 1 - used)) > 0) used += (u64)n;
    SYSCALL(close, fd);
    text[used] = 0;
    for (const char *line = text, *at; *line; line = *at ? at + 1 : at) {
        start = 0;
        for (at = line; (*at >= '0' && *at <= '9') || (*at >= 'a' && *at <= 'f'); at++)
            start = start * 16 + (u64)(*at <= '9' ? *at - '0' : *at - 'a' + 10);
        if (*at == '-' && start == (u64)base) return line;
        while (*at && *at != '\n') at++;
    }
    FAIL("smaps does not show my area");
    return NULL;
}

/* The pages that smaps counts as `name` in the area whose text begins at `at`. */
static u64 count(const char *at, const char *name) {
    u64 length = strlen(name);
    for (; *at; at++)
        if (at[0] == '\n' && memcmp(at + 1, name, length) == 0 && at[1 + length] == ':') {
            at += length + 2;
            while (*at == ' ') at++;
            return number(at) * KIB / PAGE;
        }
    FAIL("smaps has no %s", name);
    return 0;
}

static u64 referenced(const char *base) { return count(area_at(base), "Referenced"); }
static u64 dirty(const char *base) {
    const char *area = area_at(base);
    return count(area, "Private_Dirty") + count(area, "Shared_Dirty");
}

static i64 clear_refs(const char *what) {
    i64 fd = open("/proc/self/clear_refs", O_WRONLY), result;
    if (fd < 0) FAIL("/proc/self/clear_refs: %s", answer(fd));
    result = SYSCALL(write, fd, what, strlen(what));
    SYSCALL(close, fd);
    return result;
}

/* Linux forgets without flushing the TLB, which would go on translating unseen. Taking a permission away makes
 * it flush. */
static void flush(char *base, u64 pages) {
    mprotect(base, pages * PAGE, PROT_READ);
    mprotect(base, pages * PAGE, PROT_READ | PROT_WRITE);
}

static char *about_anonymous(void) {
    static const u64 loads[] = {0, 7, 63}, stores[] = {8, 31};
    char *base = map_alone(PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    for (u64 i = 0; i < PAGES; i++) base[i * PAGE] = (char)i;
    printf("1. Anonymous memory\n   I store into each of %d pages: %lu referenced, %lu dirty.\n", PAGES,
           referenced(base), dirty(base));
    clear_refs("1");
    printf("   I write 1 to clear_refs: %lu referenced, %lu dirty: nothing of them is on storage.\n",
           referenced(base), dirty(base));
    flush(base, PAGES);
    for (u64 i = 0; i < COUNT(loads); i++)
        if (((volatile char *)base)[loads[i] * PAGE] != (char)loads[i]) FAIL("page %lu changed", loads[i]);
    printf("   I load from %lu of them: %lu referenced.\n", COUNT(loads), referenced(base));
    for (u64 i = 0; i < COUNT(stores); i++) ((volatile char *)base)[stores[i] * PAGE] = 1;
    printf("   I store into %lu others: %lu referenced. That is my working set.\n\n", COUNT(stores),
           referenced(base));
    return base;
}

static void about_kinds(char *anonymous, int self) {
    char *file = map_alone(1, PROT_READ, MAP_PRIVATE, self);
    printf("2. Anonymous and file pages\n   I load '%c' from a page of my own file: %lu referenced.\n",
           ((volatile char *)file)[1], referenced(file));
    clear_refs("2");
    printf("   I write 2 to clear_refs: of the anonymous pages %lu referenced, of the file %lu.\n",
           referenced(anonymous), referenced(file));
    flush(anonymous, PAGES);
    *(volatile char *)anonymous = 1;
    clear_refs("3");
    printf("   I store into one and write 3: of the anonymous pages %lu referenced, of the file %lu.\n\n",
           referenced(anonymous), referenced(file));
}

static void about_refusals(void) {
    static const char *texts[] = {"1\n", " 1 ", "0", "-1", "x", "1x", "99999999999", ""};
    printf("3. What clear_refs takes\n");
    for (u64 i = 0; i < COUNT(texts); i++) {
        u64 length = strlen(texts[i]);
        int newline = length && texts[i][length - 1] == '\n';
        printf("   '%s'%s: %s\n", newline ? "1" : texts[i], newline ? " and a newline" : "",
               answer(clear_refs(texts[i])));
    }
    printf("\n");
}

static void about_writing_back(const char *path) {
    i64 fd = open(path, O_RDWR | O_CREAT);
    if (fd < 0) FAIL("%s: %s", path, answer(fd));
    SYSCALL(ftruncate, fd, 0);
    SYSCALL(ftruncate, fd, FILE_PAGES * PAGE);
    char *base = map_alone(FILE_PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, (int)fd), seen[2] = {0};
    volatile char *page = base;
    u64 sum = 0;
    printf("4. A shared mapping of a file\n");
    for (u64 i = 0; i < FILE_PAGES; i++) sum += (u64)page[i * PAGE];
    printf("   I load %lu from each of %d pages: %lu dirty.\n", sum, FILE_PAGES, dirty(base));
    page[0] = 'a', page[3 * PAGE] = 'b', page[7 * PAGE] = 'c';
    printf("   I store into 3 of them: %lu dirty.\n", dirty(base));
    SYSCALL(msync, base, FILE_PAGES * PAGE, MS_SYNC);
    printf("   msync writes them back: %lu dirty.\n", dirty(base));
    page[3 * PAGE] = 'B';
    pread((int)fd, seen, 1, 0);
    pread((int)fd, seen + 1, 1, 3 * PAGE);
    printf("   I store into one again: %lu dirty. The file has '%c' and '%c'.\n", dirty(base), seen[0],
           seen[1]);
    SYSCALL(close, fd);
}

int main(int argc, char **argv) {
    int self = open_self(argv);
    char *anonymous = about_anonymous();
    about_kinds(anonymous, self);
    about_refusals();
    if (argc > 1) about_writing_back(argv[1]);
    else printf("(Give me a file's name, and I write it through a shared mapping.)\n");
    return 0;
}
