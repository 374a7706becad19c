/* maps [FILE]: what Linux answers to mmap, munmap, mprotect, mremap, madvise, msync, mincore and brk, in a
 * table of question and answer, and with FILE what becomes of a file's pages when it is cut and grows.
 * Contents are checked too: what a call leaves behind matters more than what it returns. The questions are
 * those whose answer is the same on every kernel since 5.14, with any file system and any user. */
#include "aether.h"

#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define RW (PROT_READ | PROT_WRITE)
#define UNKNOWN_FLAG 0x00800000
#define ARENA_PAGES 64
#define AT(page) (arena + (u64)(page) * PAGE)

static char *arena; /* ARENA_PAGES pages of address space that this program owns; fresh() empties it */
static int self, nowhere = 999, broken;
static u64 self_size;

static void section(const char *title) { printf("%s\n", title); }

static void row(const char *question, i64 result) { printf("  %-58s %s\n", question, answer(result)); }

static void holds(const char *claim, int truth) {
    printf("  %-58s %s\n", claim, truth ? "yes" : "NO");
    broken |= !truth;
}

/* What a load or a store at `at` gets. */
static const char *touching(void (*code)(void), const char *at) {
    struct outcome out;
    return signal_name(probe(code, (u64)at, &out));
}
static int loads(const char *at) { return streq(touching(code_load, at), "nothing"); }
static int stores(const char *at) { return streq(touching(code_store, at), "nothing"); }

static char *map_at(char *at, u64 pages, int prot, int flags, int fd) {
    char *base = mmap(at, pages * PAGE, prot, flags | MAP_FIXED, fd, 0);
    if (base != at) FAIL("mmap into the arena: %s", answer((i64)base));
    return base;
}

/* An empty arena, then `pages` writable pages at its page 8, the k-th filled with 'a' + k. */
static char *fresh(u64 pages) {
    munmap(arena, ARENA_PAGES * PAGE);
    if (!pages) return AT(8);
    map_at(AT(8), pages, RW, ANON, -1);
    for (u64 i = 0; i < pages; i++) memset(AT(8 + i), 'a' + (int)i, PAGE);
    return AT(8);
}

static int is_filled(const char *at, int byte, u64 length) {
    for (u64 i = 0; i < length; i++)
        if (at[i] != (char)byte) return 0;
    return 1;
}
static int page_is(const char *at, int byte) { return is_filled(at, byte, PAGE); }

static int is_file(const char *at) { /* does `at` hold the first bytes of this program's own file? */
    char start[64];
    pread(self, start, sizeof start, 0);
    return memcmp(at, start, sizeof start) == 0;
}

static i64 try_mmap(void *at, u64 length, int prot, int flags, int fd, u64 offset) {
    i64 result = (i64)mmap(at, length, prot, flags, fd, offset);
    if (!IS_ERROR(result)) munmap((void *)result, length);
    return result;
}

static void about_mmap(void) {
    u64 big = 1UL << 56;
    section("mmap");
    row("private anonymous", try_mmap(NULL, PAGE, RW, ANON, -1, 0));
    row("shared anonymous", try_mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    row("neither shared nor private", try_mmap(NULL, PAGE, RW, MAP_ANONYMOUS, -1, 0));
    row("neither shared nor private, of a file", try_mmap(NULL, PAGE, PROT_READ, 0, self, 0));
    row("MAP_SHARED_VALIDATE anonymous",
        try_mmap(NULL, PAGE, RW, MAP_SHARED_VALIDATE | MAP_ANONYMOUS, -1, 0));
    row("no permissions", try_mmap(NULL, PAGE, PROT_NONE, ANON, -1, 0));
    row("MAP_NORESERVE, MAP_STACK", try_mmap(NULL, PAGE, RW, ANON | MAP_NORESERVE | MAP_STACK, -1, 0));
    row("MAP_DENYWRITE, MAP_EXECUTABLE", try_mmap(NULL, PAGE, RW, ANON | 0x1800, -1, 0));
    row("an unknown flag, MAP_PRIVATE", try_mmap(NULL, PAGE, RW, ANON | UNKNOWN_FLAG, -1, 0));
    row("length 0", try_mmap(NULL, 0, RW, ANON, -1, 0));
    row("length 1", try_mmap(NULL, 1, RW, ANON, -1, 0));
    row("length 2^64 - 1", try_mmap(NULL, ~0UL, RW, ANON, -1, 0));
    row("length 2^63", try_mmap(NULL, 1UL << 63, RW, ANON, -1, 0));
    row("length 2^56", try_mmap(NULL, big, RW, ANON | MAP_NORESERVE, -1, 0));
    row("length 0 before a bad descriptor", try_mmap(NULL, 0, RW, MAP_PRIVATE, nowhere, 0));
    row("a bad descriptor", try_mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, nowhere, 0));
    row("descriptor -1 and not anonymous", try_mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, -1, 0));
    row("anonymous with a bad descriptor", try_mmap(NULL, PAGE, PROT_READ, ANON, nowhere, 0));
    row("offset 1", try_mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, self, 1));
    row("offset 1 with a bad descriptor", try_mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, nowhere, 1));
    row("offset of 512 pages, beyond the end of the file",
        try_mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, self, 512 * PAGE));
    row("an offset near 2^64", try_mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, self, -(8 * PAGE)));
    row("a file opened for reading: shared, readable", try_mmap(NULL, PAGE, PROT_READ, MAP_SHARED, self, 0));
    row("... shared, writable", try_mmap(NULL, PAGE, RW, MAP_SHARED, self, 0));
    row("... private, writable", try_mmap(NULL, PAGE, RW, MAP_PRIVATE, self, 0));
    row("... MAP_SHARED_VALIDATE", try_mmap(NULL, PAGE, PROT_READ, MAP_SHARED_VALIDATE, self, 0));
    row("... MAP_SHARED_VALIDATE and an unknown flag",
        try_mmap(NULL, PAGE, PROT_READ, MAP_SHARED_VALIDATE | UNKNOWN_FLAG, self, 0));
    row("... MAP_SHARED and the same flag",
        try_mmap(NULL, PAGE, PROT_READ, MAP_SHARED | UNKNOWN_FLAG, self, 0));
    row("... MAP_SHARED_VALIDATE and MAP_SYNC",
        try_mmap(NULL, PAGE, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, self, 0));
    i64 directory = open("/", O_RDONLY | O_DIRECTORY);
    row("a directory", try_mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, (int)directory, 0));
    SYSCALL(close, directory);
    int ends[2] = {-1, -1};
    SYSCALL(pipe2, ends, 0);
    row("a pipe", try_mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, ends[0], 0));
    SYSCALL(close, ends[0]);
    SYSCALL(close, ends[1]);
}

static void about_placement(void) {
    section("mmap: placement");
    char *base = fresh(3);
    row("MAP_FIXED at an odd address", try_mmap(AT(1) + 1, PAGE, RW, ANON | MAP_FIXED, -1, 0));
    row("MAP_FIXED in the kernel's half", try_mmap((void *)KERNEL_HALF, PAGE, RW, ANON | MAP_FIXED, -1, 0));
    row("MAP_FIXED at the last page of all", try_mmap((void *)-PAGE, PAGE, RW, ANON | MAP_FIXED, -1, 0));
    row("MAP_FIXED running out of user space", try_mmap(AT(1), 1UL << 62, RW, ANON | MAP_FIXED, -1, 0));
    row("MAP_FIXED over the middle of three pages", (i64)mmap(AT(9), PAGE, RW, ANON | MAP_FIXED, -1, 0));
    holds("  the middle is zero, the others keep their contents",
          page_is(base, 'a') && page_is(AT(9), 0) && page_is(AT(10), 'c'));
    row("MAP_FIXED_NOREPLACE over a mapped page",
        (i64)mmap(AT(8), PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0));
    row("MAP_FIXED_NOREPLACE, only its end mapped",
        (i64)mmap(AT(7), 2 * PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0));
    holds("  the mapped page keeps its contents", page_is(base, 'a'));
    holds("MAP_FIXED_NOREPLACE in a gap goes there",
          mmap(AT(12), PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) == AT(12));
    holds("a hint in a gap is taken", mmap(AT(20), PAGE, RW, ANON, -1, 0) == AT(20));
    holds("an odd hint is rounded down", mmap(AT(22) + 123, PAGE, RW, ANON, -1, 0) == AT(22));
    char *other = mmap(AT(20), PAGE, RW, ANON, -1, 0);
    holds("a hint at a mapped page leads elsewhere", !IS_ERROR(other) && other != AT(20));
    munmap(other, PAGE);
    other = mmap((void *)(KERNEL_HALF + 0x10000), PAGE, RW, ANON, -1, 0);
    holds("a hint in the kernel's half leads elsewhere", (u64)other < KERNEL_HALF);
    munmap(other, PAGE);
    fresh(0);
    map_at(AT(8), 4, RW, ANON | MAP_POPULATE, -1);
    u8 resident[4] = {0};
    SYSCALL(mincore, AT(8), 4 * PAGE, resident);
    holds("MAP_POPULATE brings every page in",
          (resident[0] & resident[1] & resident[2] & resident[3] & 1) == 1);

    /* 300 empty pages lie below: more than the gap that the kernel keeps under a stack. */
    row("MAP_GROWSDOWN shared", try_mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0));
    row("MAP_GROWSDOWN of a file", try_mmap(NULL, PAGE, RW, MAP_PRIVATE | MAP_GROWSDOWN, self, 0));
    char *room = mmap(NULL, 1024 * PAGE, PROT_NONE, ANON, -1, 0), *top = room + 1000 * PAGE;
    munmap(room, 1024 * PAGE);
    map_at(top, 1, RW, ANON | MAP_GROWSDOWN, -1);
    top[0] = 'x';
    holds("MAP_GROWSDOWN: the page below appears when touched", stores(top - 8));
    holds("MAP_GROWSDOWN: so does one 100 pages below", loads(top - 100 * PAGE));
    holds("  and what lies between is zero", page_is(top - 50 * PAGE, 0) && top[0] == 'x');
    munmap(top - 100 * PAGE, 101 * PAGE);
}

static void about_munmap(void) {
    section("munmap");
    char *base = fresh(4);
    row("length 0", munmap(base, 0));
    row("an odd address", munmap(base + 1, PAGE));
    row("length 2^64 - 1", munmap(base, ~0UL));
    row("in the kernel's half", munmap((void *)KERNEL_HALF, PAGE));
    row("where nothing is mapped", munmap(AT(30), PAGE));
    holds("  nothing of that took a page away", page_is(base, 'a') && page_is(base + 3 * PAGE, 'd'));
    row("one byte of page 1", munmap(base + PAGE, 1));
    holds("  page 1 is gone, its neighbours keep their contents",
          !loads(base + PAGE) && page_is(base, 'a') && page_is(base + 2 * PAGE, 'c'));
    row("all four pages, hole included", munmap(base, 4 * PAGE));
    holds("  all are gone", !loads(base) && !loads(base + 3 * PAGE));
}

static void about_mprotect(void) {
    section("mprotect");
    char *base = fresh(4);
    row("length 0", mprotect(base, 0, PROT_NONE));
    row("length 0 where nothing is mapped", mprotect(AT(30), 0, PROT_NONE));
    row("an odd address", mprotect(base + 1, PAGE, PROT_READ));
    row("an unknown bit", mprotect(base, PAGE, 0x40));
    row("PROT_GROWSDOWN on no stack", mprotect(base, PAGE, PROT_READ | PROT_GROWSDOWN));
    row("PROT_GROWSDOWN and PROT_GROWSUP", mprotect(base, PAGE, PROT_READ | PROT_GROWSDOWN | PROT_GROWSUP));
    row("length 2^64 - 1", mprotect(base, ~0UL, PROT_READ));
    row("length -2 pages", mprotect(base, -(2 * PAGE), PROT_READ));
    row("in the kernel's half", mprotect((void *)KERNEL_HALF, PAGE, PROT_READ));
    row("where nothing is mapped", mprotect(AT(30), PAGE, PROT_READ));
    holds("  nothing of that took a permission away", stores(base));
    memset(base, 'a', PAGE);
    row("read-only, one byte of page 0", mprotect(base, 1, PROT_READ));
    holds("  page 0 loads but does not store, page 1 does both",
          loads(base) && !stores(base) && stores(base + PAGE));
    row("no access to page 0", mprotect(base, PAGE, PROT_NONE));
    holds("  it neither loads nor stores", !loads(base) && !stores(base));
    row("write-only page 0", mprotect(base, PAGE, PROT_WRITE));
    holds("  it loads all the same, and its contents are there", loads(base) && page_is(base, 'a'));
    row("readable, writable, executable", mprotect(base, PAGE, RW | PROT_EXEC));
    munmap(base + 2 * PAGE, PAGE);
    row("four pages of which page 2 is missing", mprotect(base, 4 * PAGE, PROT_READ));
    holds("  pages 0 and 1 are read-only, page 3 is not",
          !stores(base) && !stores(base + PAGE) && stores(base + 3 * PAGE));
    row("starting with the missing page", mprotect(base + 2 * PAGE, 2 * PAGE, PROT_READ));
    holds("  page 3 stays writable", stores(base + 3 * PAGE));
    fresh(0);
    map_at(AT(8), 1, RW, ANON, -1);
    map_at(AT(9), 1, PROT_READ, MAP_SHARED, self);
    map_at(AT(10), 1, PROT_READ, ANON, -1);
    row("writable, a shared page of a file open for reading", mprotect(AT(9), PAGE, RW));
    row("writable, a private page before it and one after it", mprotect(AT(8), 3 * PAGE, RW | PROT_EXEC));
    holds("  the page after it stays read-only", !stores(AT(10)));
    fresh(0);
    map_at(AT(8), 1, PROT_READ, MAP_PRIVATE, self);
    row("writable, a private page of that file", mprotect(AT(8), PAGE, RW));
    char in_file = 0;
    AT(8)[1] = 'e';
    pread(self, &in_file, 1, 1);
    holds("  a store goes to a copy", AT(8)[0] == 0x7f && AT(8)[1] == 'e' && in_file == 'E');
}

static i64 remap(char *at, u64 old_pages, u64 new_pages, int flags, char *to) {
    return (i64)mremap(at, old_pages * PAGE, new_pages * PAGE, flags, to);
}

static void about_mremap_errors(void) {
    section("mremap: refusals");
    char *base = fresh(4);
    map_at(AT(12), 1, PROT_READ, ANON, -1);
    row("an odd address", (i64)mremap(base + 1, PAGE, 2 * PAGE, MREMAP_MAYMOVE, NULL));
    row("new length 0", remap(base, 1, 0, MREMAP_MAYMOVE, NULL));
    row("an unknown flag", remap(base, 1, 2, 8, NULL));
    row("MREMAP_FIXED without MREMAP_MAYMOVE", remap(base, 1, 1, MREMAP_FIXED, AT(30)));
    row("MREMAP_DONTUNMAP without MREMAP_MAYMOVE", remap(base, 1, 1, MREMAP_DONTUNMAP, NULL));
    row("MREMAP_DONTUNMAP with a new length", remap(base, 1, 2, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL));
    row("to an odd address", remap(base, 1, 1, MREMAP_MAYMOVE | MREMAP_FIXED, AT(30) + 1));
    row("to the kernel's half", remap(base, 1, 1, MREMAP_MAYMOVE | MREMAP_FIXED, (char *)KERNEL_HALF));
    row("onto itself", remap(base, 2, 2, MREMAP_MAYMOVE | MREMAP_FIXED, base));
    row("onto an overlapping range above", remap(base, 2, 2, MREMAP_MAYMOVE | MREMAP_FIXED, base + PAGE));
    row("onto an overlapping range below", remap(base, 2, 2, MREMAP_MAYMOVE | MREMAP_FIXED, base - PAGE));
    row("where nothing is mapped", remap(AT(30), 1, 2, MREMAP_MAYMOVE, NULL));
    row("the kernel's half", remap((char *)KERNEL_HALF, 1, 2, MREMAP_MAYMOVE, NULL));
    row("growing two areas at once", remap(AT(11), 2, 3, MREMAP_MAYMOVE, NULL));
    row("growing against a neighbour, without MREMAP_MAYMOVE", remap(base, 4, 5, 0, NULL));
    row("old length 0, private", remap(base, 0, 1, MREMAP_MAYMOVE, NULL));
    holds("  every page keeps its contents", page_is(base, 'a') && page_is(base + PAGE, 'b') &&
                                                 page_is(base + 2 * PAGE, 'c') &&
                                                 page_is(base + 3 * PAGE, 'd'));
}

static void about_mremap(void) {
    section("mremap");
    char *base = fresh(4);
    holds("the same length answers the same address", remap(base, 4, 4, 0, NULL) == (i64)base);
    holds("shrinking to 2 pages answers the same address", remap(base, 4, 2, 0, NULL) == (i64)base);
    holds("  the tail is gone, the rest is as it was", !loads(base + 2 * PAGE) && page_is(base + PAGE, 'b'));
    holds("growing into free space answers the same address", remap(base, 2, 6, 0, NULL) == (i64)base);
    holds("  the new pages are zero",
          page_is(base + PAGE, 'b') && page_is(base + 2 * PAGE, 0) && page_is(base + 5 * PAGE, 0));

    base = fresh(4);
    map_at(AT(12), 1, PROT_READ, ANON, -1);
    char *moved = mremap(base, 4 * PAGE, 6 * PAGE, MREMAP_MAYMOVE, NULL);
    holds("growing against a neighbour with MREMAP_MAYMOVE moves", !IS_ERROR(moved) && moved != base);
    holds("  contents go along, the new tail is zero",
          page_is(moved, 'a') && page_is(moved + 3 * PAGE, 'd') && page_is(moved + 5 * PAGE, 0));
    holds("  nothing is left behind", !loads(base) && !loads(base + 3 * PAGE));
    munmap(moved, 6 * PAGE);

    base = fresh(4);
    map_at(AT(30), 4, RW, ANON, -1);
    memset(AT(30), 'z', 4 * PAGE);
    holds("MREMAP_FIXED of the middle two onto mapped pages",
          remap(base + PAGE, 2, 2, MREMAP_MAYMOVE | MREMAP_FIXED, AT(31)) == (i64)AT(31));
    holds("  they replace what was there, nothing else",
          page_is(AT(30), 'z') && page_is(AT(31), 'b') && page_is(AT(32), 'c') && page_is(AT(33), 'z'));
    holds("  and leave a hole", page_is(base, 'a') && !loads(base + PAGE) && !loads(base + 2 * PAGE) &&
                                    page_is(base + 3 * PAGE, 'd'));

    base = fresh(4);
    holds("MREMAP_FIXED shrinking from 4 pages to 1",
          remap(base, 4, 1, MREMAP_MAYMOVE | MREMAP_FIXED, AT(30)) == (i64)AT(30));
    holds("  one page arrives, none stays",
          page_is(AT(30), 'a') && !loads(AT(31)) && !loads(base) && !loads(base + PAGE));

    base = fresh(2);
    holds("MREMAP_DONTUNMAP",
          remap(base, 2, 2, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, AT(30)) == (i64)AT(30));
    holds("  contents arrive, the old pages read zero",
          page_is(AT(30), 'a') && page_is(AT(31), 'b') && page_is(base, 0) && page_is(base + PAGE, 0));
    holds("  and the two do not share", stores(base) && page_is(AT(30), 'a'));

    fresh(0);
    base = map_at(AT(8), 2, RW, MAP_SHARED | MAP_ANONYMOUS, -1);
    memset(base, 's', 2 * PAGE);
    holds("old length 0, shared: a second mapping",
          remap(base, 0, 2, MREMAP_MAYMOVE | MREMAP_FIXED, AT(30)) == (i64)AT(30));
    base[PAGE] = 't';
    holds("  a store through one is seen through the other", page_is(AT(30), 's') && AT(31)[0] == 't');

    base = fresh(3);
    mprotect(base + PAGE, PAGE, PROT_READ);
    holds("a read-only page moves with its permission",
          remap(base + PAGE, 1, 1, MREMAP_MAYMOVE | MREMAP_FIXED, AT(40)) == (i64)AT(40) &&
              page_is(AT(40), 'b') && !stores(AT(40)));

    fresh(0);
    map_at(AT(8), 1, PROT_READ, MAP_PRIVATE, self);
    holds("a page of a file moves",
          remap(AT(8), 1, 1, MREMAP_MAYMOVE | MREMAP_FIXED, AT(40)) == (i64)AT(40) && is_file(AT(40)));
}

static void about_madvise(void) {
    section("madvise");
    char *base = fresh(4);
    row("unknown advice", madvise(base, PAGE, 77));
    row("an odd address", madvise(base + 1, PAGE, MADV_DONTNEED));
    row("length 0", madvise(base, 0, MADV_DONTNEED));
    row("length 0, unknown advice", madvise(base, 0, 77));
    row("length 2^64 - 1", madvise(base, ~0UL, MADV_DONTNEED));
    row("length -2 pages", madvise(base, -(2 * PAGE), MADV_DONTNEED));
    row("where nothing is mapped", madvise(AT(30), PAGE, MADV_DONTNEED));
    row("MADV_NORMAL", madvise(base, 4 * PAGE, MADV_NORMAL));
    row("MADV_RANDOM", madvise(base, 4 * PAGE, MADV_RANDOM));
    row("MADV_SEQUENTIAL", madvise(base, 4 * PAGE, MADV_SEQUENTIAL));
    row("MADV_DONTFORK", madvise(base, 4 * PAGE, MADV_DONTFORK));
    row("MADV_DOFORK", madvise(base, 4 * PAGE, MADV_DOFORK));
    row("MADV_COLD", madvise(base, 4 * PAGE, MADV_COLD));
    row("MADV_PAGEOUT", madvise(base, 4 * PAGE, MADV_PAGEOUT));
    holds("  every page keeps its contents", page_is(base, 'a') && page_is(base + 3 * PAGE, 'd'));
    row("MADV_DONTNEED of one byte of page 1", madvise(base + PAGE, 1, MADV_DONTNEED));
    holds("  page 1 reads zero, its neighbours keep their contents",
          page_is(base, 'a') && page_is(base + PAGE, 0) && page_is(base + 2 * PAGE, 'c'));
    munmap(base + PAGE, PAGE);
    row("MADV_DONTNEED over a hole", madvise(base, 4 * PAGE, MADV_DONTNEED));
    holds("  both sides of the hole read zero",
          page_is(base, 0) && page_is(base + 2 * PAGE, 0) && page_is(base + 3 * PAGE, 0));
    base = fresh(4);
    mprotect(base, PAGE, PROT_READ);
    mprotect(base + PAGE, PAGE, PROT_NONE);
    row("MADV_DONTNEED of a read-only and a forbidden page", madvise(base, 2 * PAGE, MADV_DONTNEED));
    mprotect(base, 2 * PAGE, RW);
    holds("  they read zero", page_is(base, 0) && page_is(base + PAGE, 0));
    base = fresh(1);
    row("MADV_FREE", madvise(base, PAGE, MADV_FREE));
    base[5] = 'k';
    holds("  a store made after it stays", base[5] == 'k');

    fresh(0);
    base = map_at(AT(8), 1, RW, MAP_PRIVATE, self);
    base[1] = 'e';
    row("MADV_FREE, a private page of a file", madvise(base, PAGE, MADV_FREE));
    row("MADV_WILLNEED, the same", madvise(base, PAGE, MADV_WILLNEED));
    holds("  the store into it stays", base[1] == 'e');
    row("MADV_DONTNEED, the same", madvise(base, PAGE, MADV_DONTNEED));
    holds("  it shows the file again", is_file(base));
    base = map_at(AT(8), 2, RW, MAP_SHARED | MAP_ANONYMOUS, -1);
    memset(base, 's', 2 * PAGE);
    row("MADV_DONTNEED, shared anonymous", madvise(base, PAGE, MADV_DONTNEED));
    holds("  contents stay", page_is(base, 's'));
    row("MADV_REMOVE, shared anonymous", madvise(base, PAGE, MADV_REMOVE));
    holds("  contents are zero, the next page stays", page_is(base, 0) && page_is(base + PAGE, 's'));
    base = fresh(1);
    row("MADV_REMOVE, private anonymous", madvise(base, PAGE, MADV_REMOVE));
}

static void about_populate(void) {
    u8 resident[4] = {0};
    section("madvise: populate");
    fresh(0);
    char *base = map_at(AT(8), 4, RW, ANON, -1);
    row("MADV_POPULATE_READ", madvise(base, 2 * PAGE, MADV_POPULATE_READ));
    row("MADV_POPULATE_WRITE", madvise(base + 2 * PAGE, PAGE, MADV_POPULATE_WRITE));
    SYSCALL(mincore, base, 4 * PAGE, resident);
    holds("  the first three pages are in, the fourth is not",
          (resident[0] & resident[1] & resident[2] & 1) && !(resident[3] & 1));
    holds("  they read zero", page_is(base, 0) && page_is(base + 2 * PAGE, 0));
    mprotect(base, PAGE, PROT_READ);
    row("MADV_POPULATE_WRITE, read-only", madvise(base, PAGE, MADV_POPULATE_WRITE));
    row("MADV_POPULATE_READ, read-only", madvise(base, PAGE, MADV_POPULATE_READ));
    mprotect(base, PAGE, PROT_NONE);
    row("MADV_POPULATE_READ, forbidden", madvise(base, PAGE, MADV_POPULATE_READ));
    munmap(base + PAGE, PAGE);
    row("MADV_POPULATE_READ over a hole", madvise(base + PAGE, 2 * PAGE, MADV_POPULATE_READ));
    u64 length = ROUND_UP(self_size, PAGE) + PAGE;
    base = mmap(NULL, length, PROT_READ, MAP_PRIVATE, self, 0);
    row("MADV_POPULATE_READ beyond the end of a file",
        madvise(base + length - PAGE, PAGE, MADV_POPULATE_READ));
    row("MADV_POPULATE_READ up to the end of a file", madvise(base, length - PAGE, MADV_POPULATE_READ));
    munmap(base, length);
}

static void about_msync(void) {
    section("msync");
    char *base = fresh(3);
    row("MS_SYNC", SYSCALL(msync, base, PAGE, MS_SYNC));
    row("MS_ASYNC", SYSCALL(msync, base, PAGE, MS_ASYNC));
    row("MS_INVALIDATE", SYSCALL(msync, base, PAGE, MS_INVALIDATE));
    row("no flag", SYSCALL(msync, base, PAGE, 0));
    row("MS_SYNC and MS_ASYNC", SYSCALL(msync, base, PAGE, MS_SYNC | MS_ASYNC));
    row("an unknown flag", SYSCALL(msync, base, PAGE, 8));
    row("an odd address", SYSCALL(msync, base + 1, PAGE, MS_SYNC));
    row("length 0", SYSCALL(msync, base, 0, MS_SYNC));
    row("length 2^64 - 1", SYSCALL(msync, base, ~0UL, MS_SYNC));
    row("length -2 pages", SYSCALL(msync, base, -(2 * PAGE), MS_SYNC));
    row("where nothing is mapped", SYSCALL(msync, AT(30), PAGE, MS_SYNC));
    munmap(base + PAGE, PAGE);
    row("over a hole", SYSCALL(msync, base, 3 * PAGE, MS_SYNC));
    map_at(AT(8), 1, PROT_READ, MAP_SHARED, self);
    row("a shared page of a file", SYSCALL(msync, AT(8), PAGE, MS_SYNC));
    holds("  it shows the file", is_file(AT(8)));
}

static void about_mincore(void) {
    u8 resident[4];
    section("mincore");
    fresh(0);
    char *base = map_at(AT(8), 4, RW, ANON, -1);
    base[PAGE] = 1;
    base[3 * PAGE] = 1;
    row("four pages", SYSCALL(mincore, base, 4 * PAGE, resident));
    holds("  the two that were written are in",
          !(resident[0] & 1) && (resident[1] & 1) && !(resident[2] & 1) && (resident[3] & 1));
    row("length 0", SYSCALL(mincore, base, 0, resident));
    row("an odd address", SYSCALL(mincore, base + 1, PAGE, resident));
    row("length 2^64 - 1", SYSCALL(mincore, base, ~0UL, resident));
    row("in the kernel's half", SYSCALL(mincore, KERNEL_HALF, PAGE, resident));
    row("where nothing is mapped", SYSCALL(mincore, AT(30), PAGE, resident));
    munmap(base + 2 * PAGE, PAGE);
    row("over a hole", SYSCALL(mincore, base, 4 * PAGE, resident));
    row("an answer that cannot be written", SYSCALL(mincore, base, PAGE, AT(30)));
}

static void about_brk(void) {
    section("brk");
    u64 start = (u64)SYSCALL(brk, 0), page = ROUND_UP(start, PAGE);
    holds("brk(0) answers the break, and does so again", (u64)SYSCALL(brk, 0) == start);
    holds("it grows by 4 pages", (u64)SYSCALL(brk, page + 4 * PAGE) == page + 4 * PAGE);
    holds("  which are zero and writable",
          is_filled((char *)page, 0, 4 * PAGE) && stores((char *)page + 4 * PAGE - 8));
    memset((char *)page, 'h', 4 * PAGE);
    holds("it grows by 100 bytes", (u64)SYSCALL(brk, page + 4 * PAGE + 100) == page + 4 * PAGE + 100);
    holds("  the page that holds them is there to its end",
          loads((char *)page + 5 * PAGE - 8) && !loads((char *)page + 5 * PAGE));
    holds("it shrinks to 1 page", (u64)SYSCALL(brk, page + PAGE) == page + PAGE);
    holds("  the rest is gone", page_is((char *)page, 'h') && !loads((char *)page + PAGE));
    holds("it grows again", (u64)SYSCALL(brk, page + 2 * PAGE) == page + 2 * PAGE);
    holds("  by zeros", page_is((char *)page, 'h') && page_is((char *)page + PAGE, 0));
    holds("below its start it stays where it is", (u64)SYSCALL(brk, 1) == page + 2 * PAGE);
    holds("in the kernel's half it stays where it is", (u64)SYSCALL(brk, KERNEL_HALF) == page + 2 * PAGE);
    map_at((char *)page + 8 * PAGE, 1, PROT_READ, ANON, -1);
    holds("against a mapping it stays where it is", (u64)SYSCALL(brk, page + 9 * PAGE) == page + 2 * PAGE);
    munmap((char *)page + 8 * PAGE, PAGE);
    holds("it goes back to where it was", (u64)SYSCALL(brk, start) == start);
    holds("  and nothing is left", !loads((char *)page));
}

static int ends_by_bus(const char *at) { return streq(touching(code_load, at), "SIGBUS"); }

/* How many bytes of 'a' + 0, 'b' and so on, page by page, stand at `at` before the first that differs. */
static u64 filled_bytes(const char *at, u64 most) {
    u64 n = 0;
    while (n < most && at[n] == (char)('a' + n / PAGE)) n++;
    return n;
}

static void about_ends_of_files(const char *path) {
    section("the end of a file");
    int fd = (int)open(path, O_RDWR | O_CREAT);
    if (fd < 0) FAIL("%s: %s", path, answer(fd));
    fresh(0);
    row("a new size of 3 pages", (SYSCALL(ftruncate, fd, 0), SYSCALL(ftruncate, fd, 3 * PAGE)));
    char *shared = map_at(AT(8), 4, RW, MAP_SHARED, fd), *private = map_at(AT(20), 4, RW, MAP_PRIVATE, fd);
    for (u64 i = 0; i < 3; i++) memset(shared + i * PAGE, 'a' + (int)i, PAGE);
    private[PAGE - 1] = private[3 * PAGE - 1] = 'p';
    holds("all of it is there, and nothing behind it", filled_bytes(shared, 3 * PAGE) == 3 * PAGE &&
                                                           ends_by_bus(shared + 3 * PAGE) &&
                                                           ends_by_bus(private + 3 * PAGE));
    row("cut to 1 page and 100 bytes", SYSCALL(ftruncate, fd, PAGE + 100));
    holds("  these are there", filled_bytes(shared, PAGE + 100) == PAGE + 100);
    holds("  the rest of their page is zero", is_filled(shared + PAGE + 100, 0, PAGE - 100));
    holds("  the page behind it is gone", ends_by_bus(shared + 2 * PAGE));
    holds("  so is a private copy of it", ends_by_bus(private + 2 * PAGE));
    holds("  but not one of what is left", private[PAGE - 1] == 'p' && private[PAGE - 2] == 'a');
    holds("  a private page sees the cut", private[PAGE + 99] == 'b' && private[PAGE + 100] == 0);
    row("a store into the rest of the page", stores(shared + 2 * PAGE - 8) ? 0 : -EFAULT);
    holds("  does not make the file longer", SYSCALL(lseek, fd, 0, 2) == (i64)PAGE + 100);
    row("cut to 10 bytes", SYSCALL(ftruncate, fd, 10));
    holds("  a page of 10 bytes and zeros is left", filled_bytes(shared, PAGE) == 10 &&
                                                        is_filled(shared + 10, 0, PAGE - 10) &&
                                                        ends_by_bus(shared + PAGE));
    SYSCALL(lseek, fd, PAGE - 1, 0);
    row("a write of the page's last byte", SYSCALL(write, fd, "w", 1));
    holds("  is in memory at once, behind zeros", shared[PAGE - 1] == 'w' &&
                                                      filled_bytes(shared, PAGE) == 10 &&
                                                      is_filled(shared + 10, 0, PAGE - 11));
    row("a new size of 2 pages", SYSCALL(ftruncate, fd, 2 * PAGE));
    holds("  the second is back, as zeros",
          is_filled(shared + PAGE, 0, PAGE) && ends_by_bus(shared + 2 * PAGE));
    row("cut to nothing", SYSCALL(ftruncate, fd, 0));
    holds("  no page is left", ends_by_bus(shared) && ends_by_bus(private));
    SYSCALL(close, fd);
}

int main(int argc, char **argv) {
    probe_setup();
    self = open_self(argv);
    self_size = (u64)SYSCALL(lseek, self, 0, 2);
    arena = mmap(NULL, ARENA_PAGES * PAGE, PROT_NONE, ANON, -1, 0);
    about_mmap();
    about_placement();
    about_munmap();
    about_mprotect();
    about_mremap_errors();
    about_mremap();
    about_madvise();
    about_populate();
    about_msync();
    about_mincore();
    about_brk();
    if (argc > 1) about_ends_of_files(argv[1]);
    if (broken) FAIL("something does not hold");
    return 0;
}
