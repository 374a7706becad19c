/* randload MIB LOADS: follows a random cycle through all cache lines of a buffer of MIB mebibytes, LOADS
 * times. Each load's address is the value of the one before it, so the figure is latency: of the TLB, then
 * of memory. */
#include "aether.h"

#define LINE 64UL

int main(int argc, char **argv) {
    if (argc != 3) FAIL("usage: randload MIB LOADS");
    u64 bytes = number(argv[1]) * MIB, lines = bytes / LINE, seed = 0x9e3779b97f4a7c15UL;
    char *buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (IS_ERROR(buffer) || !lines) FAIL("mmap: %s", answer((i64)buffer));
    u64 *next = (u64 *)buffer; /* word i*8 holds the index of the line after line i */
    for (u64 i = 0; i < lines; i++) next[i * 8] = i;
    for (u64 i = lines - 1; i > 0; i--) { /* Sattolo's shuffle: a single cycle through every line */
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
        u64 j = seed % i, held = next[i * 8];
        next[i * 8] = next[j * 8];
        next[j * 8] = held;
    }
    u64 at = 0, sum = 0;
    for (u64 n = number(argv[2]); n; n--) {
        at = next[at * 8];
        sum += at;
    }
    printf("%lx\n", sum);
    return 0;
}
