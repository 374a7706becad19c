/* swap fill MIB [ROUNDS]: more memory than there is, every byte checked. Private pages, shared ones, and what a
 * forked child sees of both while parent and child write. Prints one line for each stage, the same whatever the
 * memory. The other words are in main. */
#include "aether.h"

enum { CLONE_VM = 0x100, SHARE = 8 }; /* one page of so many is shared */

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

int main(int argc, char **argv) {
    if (argc > 2 && streq(argv[1], "fill")) more_than_there_is(number(argv[2]), argc > 3 ? number(argv[3]) : 3);
    else FAIL("swap fill MIB [ROUNDS]");
    return 0;
}
