// The allocator of a real C library: brk, mmap, mremap, madvise and mprotect as malloc uses them.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t state = 88172645463325252u;

static uint64_t draw(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static int by_value(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

static void churn(void) {
    enum { SLOTS = 256, STEPS = 6000 };
    static unsigned char *block[SLOTS];
    static size_t length[SLOTS];
    uint64_t sum = 0;
    for (int step = 0; step < STEPS; step++) {
        size_t slot = draw() % SLOTS, wanted = draw() % (step % 97 == 0 ? 300000 : 2000) + 1;
        if (block[slot]) {
            sum += block[slot][0] + block[slot][length[slot] - 1];
            if (draw() & 1) {
                unsigned char first = block[slot][0];
                block[slot] = realloc(block[slot], wanted);
                if (block[slot][0] != first)
                    puts("realloc lost the content");
            } else {
                free(block[slot]);
                block[slot] = malloc(wanted);
            }
        } else {
            block[slot] = calloc(1, wanted);
            sum += block[slot][wanted / 2];
        }
        length[slot] = wanted;
        block[slot][0] = (unsigned char)step;
        block[slot][wanted - 1] = (unsigned char)(step >> 8);
    }
    for (int slot = 0; slot < SLOTS; slot++)
        free(block[slot]);
    printf("churn %llu\n", (unsigned long long)sum);
}

static void sort(void) {
    enum { COUNT = 20000 };
    uint64_t *numbers = malloc(COUNT * sizeof *numbers), sum = 0;
    for (int i = 0; i < COUNT; i++)
        numbers[i] = draw();
    qsort(numbers, COUNT, sizeof *numbers, by_value);
    for (int i = 1; i < COUNT; i++) {
        if (numbers[i - 1] > numbers[i])
            puts("out of order");
        sum = sum * 31 + numbers[i];
    }
    uint64_t wanted = numbers[777];
    uint64_t *found = bsearch(&wanted, numbers, COUNT, sizeof *numbers, by_value);
    printf("sorted %llx at %td\n", (unsigned long long)sum, found - numbers);
    free(numbers);
}

static void large(void) {
    size_t length = (size_t)4 << 30;
    unsigned char *area = mmap(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) {
        perror("mmap");
        return;
    }
    for (size_t at = 0; at < length; at += (size_t)100 << 20)
        area[at + 12345] = (unsigned char)(at >> 20);
    uint64_t sum = 0;
    for (size_t at = 0; at < length; at += (size_t)100 << 20)
        sum = sum * 3 + area[at + 12345] + area[at + 54321];
    printf("sparse %llx\n", (unsigned long long)sum);
    madvise(area, 4096 * 16, MADV_DONTNEED);
    printf("zero again %d\n", area[12345]);
    munmap(area, length);

    unsigned char *grown = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(grown, 7, 8192);
    grown = mremap(grown, 8192, 1 << 20, MREMAP_MAYMOVE);
    printf("moved %d %d\n", grown[8191], grown[8192]);
    printf("mprotect %d\n", mprotect(grown, 4096, PROT_READ));
    printf("odd length %d\n", munmap(grown, 1 << 20));
}

int main(void) {
    churn();
    sort();
    large();
    void *aligned = 0;
    printf("aligned %d", posix_memalign(&aligned, 1 << 16, 100));
    printf(" %d\n", (int)((uintptr_t)aligned & 0xffff));
    free(aligned);
    void *start = sbrk(0), *volatile huge = malloc((size_t)1 << 47);
    printf("huge %d\n", huge == NULL);
    printf("break %d\n", start != (void *)-1);
    return 0;
}
