/* getppid N: N system calls in a tight loop. getppid, because no library caches it. Prints a checksum: how
 * many answered the same as the first. */
#include "aether.h"

int main(int argc, char **argv) {
    if (argc != 2) FAIL("usage: getppid CALLS");
    i64 first = SYSCALL(getppid);
    u64 same = 0;
    for (u64 n = number(argv[1]); n; n--) same += SYSCALL(getppid) == first;
    printf("%lx\n", same);
    return 0;
}
