/* hello: the smallest program that shows a guest starts, has its arguments, writes and exits. */
#include "aether.h"

int main(int argc, char **argv) {
    (void)argv;
    printf("hello, world\nargc = %d\n", argc);
    return 0;
}
