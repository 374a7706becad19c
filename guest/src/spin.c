/* spin: never ends. What --timeout and Ctrl-C are tried on. With `quiet` nothing is printed first. */
#include "aether.h"

int main(int argc, char **argv) {
    if (argc < 2 || !streq(argv[1], "quiet")) printf("spinning\n");
    for (;;) __asm__ volatile("" ::: "memory");
}
