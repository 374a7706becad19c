/* hog: takes memory without end. Alone, it maps and writes 1 MiB at a time until mmap refuses, then says
 * how much it had. With `touch` it writes every page of one enormous MAP_NORESERVE mapping, until something
 * kills it. */
#include "aether.h"

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
    for (u64 mebibytes = 0;; mebibytes++) {
        char *base = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (IS_ERROR(base)) {
            printf("%s after %lu MiB\n", answer((i64)base), mebibytes);
            return (i64)base == -ENOMEM ? 0 : 1;
        }
        for (u64 i = 0; i < MIB; i += PAGE) base[i] = 1;
    }
}
