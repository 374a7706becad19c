/* hog: takes memory without end. Alone, it maps and writes 1 MiB at a time until mmap refuses, then says
 * how much it had. With `touch` it writes every page of one enormous MAP_NORESERVE mapping, until something
 * kills it. With `pair` a child takes a piece of memory, of so many MiB, and sleeps; the parent then takes a
 * smaller one, for which memory has no room, and says what became of the child. With `orphan` the parent takes
 * a piece of so many MiB and ends; the child then takes one of that size itself. */
#include "aether.h"

static void take(u64 pages) {
    char *base = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (u64 i = 0; i < pages; i++) base[i * PAGE] = 1;
}

static void pair(u64 mebibytes) {
    u64 pages = mebibytes * MIB / PAGE;
    int ends[2];
    char ready = 0;
    i32 status = -1;
    SYSCALL(pipe2, ends, 0);
    i64 child = SYSCALL(clone, SIGCHLD, 0, 0, 0, 0);
    if (!child) {
        take(pages);
        SYSCALL(write, ends[1], &ready, 1);
        for (;;) SYSCALL(nanosleep, ((i64[]){1000, 0}), 0);
    }
    SYSCALL(read, ends[0], &ready, 1);
    take(pages / 4 * 3);
    SYSCALL(wait4, child, &status, 0, 0);
    printf("the child ended with signal %d, the parent has what it needs\n", status & 127);
}

static void orphan(u64 mebibytes) {
    if (SYSCALL(clone, SIGCHLD, 0, 0, 0, 0)) {
        take(mebibytes * MIB / PAGE);
        return;
    }
    while (SYSCALL(getppid) != 1) SYSCALL(nanosleep, ((i64[]){0, 1000000}), 0);
    take(mebibytes * MIB / PAGE);
    printf("the parent has ended, and its memory is the child's\n");
}

int main(int argc, char **argv) {
    if (argc > 1 && streq(argv[1], "touch")) {
        u64 size = 16384 * GIB;
        char *base = (char *)-1L;
        for (; IS_ERROR(base) && size >= GIB; size /= 2) /* the largest that the address space holds */
            base =
                mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (IS_ERROR(base)) FAIL("mmap: %s", answer((i64)base));
        for (u64 i = 0;; i += PAGE) base[i] = 1;
    }
    if (argc > 2 && streq(argv[1], "pair")) {
        pair(number(argv[2]));
        return 0;
    }
    if (argc > 2 && streq(argv[1], "orphan")) {
        orphan(number(argv[2]));
        return 0;
    }
    for (u64 mebibytes = 0;; mebibytes++) {
        char *base = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (IS_ERROR(base)) {
            printf("%s after %lu MiB\n", answer((i64)base), mebibytes);
            return (i64)base == -ENOMEM ? 0 : 1;
        }
        for (u64 i = 0; i < MIB; i += PAGE) base[i] = 1;
    }
}
