/* alu N: N rounds of integer mixing in registers, no memory traffic. Prints a checksum.
 * A round is a xorshift, a rotate, a multiply, an add and a variable shift: 20 instructions on x86_64, 11 on
 * arm64 (whose shifts ride along), dependent on each other as those of hashing code are. */
#include "aether.h"

int main(int argc, char **argv) {
    if (argc != 2) FAIL("usage: alu ROUNDS");
    u64 x = 0x9e3779b97f4a7c15UL, y = 0xd1b54a32d192ed03UL, sum = 0;
    for (u64 n = number(argv[1]); n; n--) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        y = (y << 23 | y >> 41) * 0x2545f4914f6cdd1dUL + x;
        sum += (x ^ y) >> (n & 15);
    }
    printf("%lx\n", sum);
    return 0;
}
