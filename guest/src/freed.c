/* freed: uses memory that it gave back. A block is freed and the next one gets its addresses, so the use goes
 * unnoticed and shows the other block's text. Somebody who keeps freed addresses apart can catch it. */
#include "aether.h"

static char *allocate(const char *text) {
    char *block = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (IS_ERROR(block)) FAIL("mmap: %s", answer((i64)block));
    memcpy(block, text, strlen(text) + 1);
    return block;
}

static void release(char *block) {
    i64 result = munmap(block, PAGE);
    if (IS_ERROR(result)) FAIL("munmap: %s", answer(result));
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    char *name = allocate("a name");
    printf("the name is: %s\n", name);
    release(name);
    char *secret = allocate("a secret");
    printf("the name is: %s\n", name); /* freed above */
    release(secret);
    return 0;
}
