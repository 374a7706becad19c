/* stream MIB ROUNDS: stores 8-byte words one after another over a buffer of MIB mebibytes, ROUNDS times.
 * Prints a checksum of one word a page, read back at the end. */
#include "aether.h"

int main(int argc, char **argv) {
    if (argc != 3) FAIL("usage: stream MIB ROUNDS");
    u64 bytes = number(argv[1]) * MIB, rounds = number(argv[2]), sum = 0;
    u64 *buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (IS_ERROR(buffer)) FAIL("mmap: %s", answer((i64)buffer));
    for (u64 round = 1; round <= rounds; round++) {
        u64 value = round * 0x9e3779b97f4a7c15UL;
        for (u64 i = 0; i < bytes / 8; i++) {
            buffer[i] = value + i;
            __asm__ volatile("" ::: "memory"); /* one store an iteration: no vectors, no unrolled pairs */
        }
    }
    for (u64 i = 0; i < bytes / 8; i += PAGE / 8) sum = (sum << 7 | sum >> 57) ^ buffer[i];
    printf("%lx\n", sum);
    return 0;
}
