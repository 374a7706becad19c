/* touch PAGES ROUNDS: writes one word in each page of an anonymous mapping and gives the pages back with
 * MADV_DONTNEED, ROUNDS times: PAGES * ROUNDS demand-zero faults. Prints a checksum of the words found, all
 * zero before they are written. */
#include "aether.h"

int main(int argc, char **argv) {
    if (argc != 3) FAIL("usage: touch PAGES ROUNDS");
    u64 pages = number(argv[1]), rounds = number(argv[2]), page = PAGE, sum = 0;
    char *base = mmap(NULL, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (IS_ERROR(base)) FAIL("mmap: %s", answer((i64)base));
    for (u64 round = 1; round <= rounds; round++) {
        for (u64 i = 0; i < pages; i++) *(volatile u64 *)(base + i * page) = round + i;
        for (u64 i = 0; i < pages; i++)
            sum += *(u64 *)(base + i * page) + *(u64 *)(base + i * page + page - 8);
        i64 result = madvise(base, pages * page, MADV_DONTNEED);
        if (IS_ERROR(result)) FAIL("madvise: %s", answer(result));
    }
    printf("%lx\n", sum);
    return 0;
}
