/* wide: memory above 47 bits, for who asks for it by a hint. Nobody else gets any: programs may use the top bits
 * of pointers that they did not ask to be wide. Addresses are told relative to 2^47 alone. */
#include "aether.h"

#define WINDOW (1UL << 47)

static const char *side(u64 address) { return address >= WINDOW ? "above" : "below"; }

/* Map one page by `hint`, use it, and say on which side of the window it is. */
static u64 ask(const char *what, u64 hint, int flags) {
    u64 got = (u64)mmap((void *)hint, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    if (IS_ERROR(got)) {
        printf("%-22s %s\n", what, answer((i64)got));
        return 0;
    }
    volatile u64 *page = (volatile u64 *)got;
    u64 fresh = page[0];
    page[0] = got;
    if (fresh || page[0] != got) FAIL("%s: the page at %lx reads %lx", what, got, page[0]);
    printf("%-22s %s, %s\n", what, side(got), got == hint ? "as hinted" : "elsewhere");
    return got;
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    ask("no hint", 0, 0);
    ask("hint below", WINDOW / 2, 0);
    u64 high = ask("hint above", WINDOW * 4, 0);
    ask("hint at the very top", ~0UL & -PAGE, 0);
    ask("hint across the window", WINDOW - PAGE, 0);
    u64 fixed = ask("fixed above", WINDOW * 8, MAP_FIXED);
    ask("after those, no hint", 0, 0);
    if (fixed) {
        struct iovec { void *base; u64 length; } piece = {(void *)fixed, 8};
        i64 fds[1] = {0};
        if (SYSCALL(pipe2, fds, 0) < 0) FAIL("pipe2");
        i64 wrote = SYSCALL(writev, (int)(fds[0] >> 32), &piece, 1);
        printf("writev from above      %s\n", answer(wrote));
        printf("mprotect above         %s\n", answer(mprotect((void *)fixed, PAGE, PROT_READ)));
        u64 moved = (u64)mremap((void *)fixed, PAGE, 2 * PAGE, 1, NULL);
        if (IS_ERROR(moved)) FAIL("mremap: %s", answer((i64)moved));
        printf("mremap, longer         %s\n", side(moved));
        printf("munmap                 %s\n", answer(munmap((void *)moved, 2 * PAGE)));
    }
    printf("%s\n", high ? "done" : "nothing is above");
    return 0;
}
