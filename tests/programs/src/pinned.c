// The copying device beside swap, soft-dirty pages, huge pages and little memory. Ours: no other host has it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define DMA_PIN 0xc0204101
#define DMA_UNPIN 0x40084102
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

static volatile uint32_t *registers;
static int device;
static size_t page;

static const char *said(int result) { return result ? strerror(errno) : "ok"; }

static uint64_t pin(void *at, size_t length, int writes) {
    uint64_t asked[4] = {(uintptr_t)at, length, writes, 0};
    int result = ioctl(device, DMA_PIN, asked);
    if (result)
        printf("pin: %s\n", said(result));
    return asked[3];
}

static void copy(uint64_t from, uint64_t to, uint64_t length) {
    volatile uint64_t *wide = (volatile uint64_t *)registers;
    struct pollfd ready = {device, POLLIN, 0};
    uint64_t ended;
    wide[0] = from, wide[1] = to, wide[2] = length;
    registers[5] = 1;
    poll(&ready, 1, -1);
    read(device, &ended, 8);
    if (registers[6] & 4)
        printf("refused: %u\n", registers[7]);
    registers[6] = 6;
}

static int written(void *at) {
    uint64_t entry = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY);
    pread(fd, &entry, 8, (uintptr_t)at / page * 8);
    close(fd);
    return entry >> 55 & 1;
}

static int is_right(char *at, size_t length) {
    size_t right = 0;
    for (size_t n = 0; n < length; n += page)
        right += *(size_t *)(at + n) == n;
    return right == length / page;
}

int main(void) {
    page = getpagesize();
    size_t size = page * (page / 8), much = 12 * size;
    device = open("/dev/dma0", O_RDWR);
    registers = mmap(0, page, 3, MAP_SHARED, device, 0);
    char *shared = mmap(0, 2 * size, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *own = mmap(0, 16 * page, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(shared, 's', size);
    memset(own, 'p', 16 * page);
    madvise(shared + page, page, MADV_PAGEOUT);
    madvise(own, 16 * page, MADV_PAGEOUT);
    int fd = open("/proc/self/clear_refs", O_WRONLY);
    write(fd, "4", 1);
    close(fd);
    printf("written before: %d %d\n", written(shared + 2 * page), written(own));
    uint64_t from = pin(shared + page, 8 * page, 0), to = pin(own + 3, 8 * page, 1);
    copy(from, to, 8 * page);
    printf("copied: %c %c %c %c\n", own[2], own[3], own[8 * page + 2], own[8 * page + 3]);
    printf("written: %d %d %d\n", written(own), written(own + 8 * page), written(own + 12 * page));
    printf("collapse of what is pinned: %s\n", said(madvise(shared, size, MADV_COLLAPSE)));
    ioctl(device, DMA_UNPIN, &from);
    printf("and of what is not: %s\n", said(madvise(shared, size, MADV_COLLAPSE)));

    char *big = mmap(0, much, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t n = 0; n < much; n += page)
        *(size_t *)(big + n) = n;
    from = pin(shared + size / 2, page, 0);
    memset(shared + size / 2, 'z', page);
    copy(from, to, page);
    printf("when memory is short: %c %c, the rest is right: %d\n", own[3], own[page + 3], is_right(big, much));

    char *huge = mmap(0, size, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    memset(huge, 'h', size);
    uint64_t there = pin(huge + 5 * page, 2 * page, 1);
    copy(from, there, page);
    printf("to a huge page: %c %c\n", huge[5 * page], huge[6 * page]);
    mprotect(huge, size, PROT_READ);
    mprotect(huge, size, PROT_READ | PROT_WRITE);
    huge[7 * page] = 1;
    memset(shared + size / 2, 'y', page);
    copy(from, there, page);
    printf("after mprotect: %c\n", huge[5 * page]);
    munmap(huge, size);
    char *other = mmap(0, size, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    printf("the pool has another: %d\n", other != MAP_FAILED);
    copy(there, to, page);
    printf("after munmap: %c\n", own[3]);
    ioctl(device, DMA_UNPIN, &there);
    other = mmap(0, size, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    printf("unpinned, it has: %d, with %d in it\n", other != MAP_FAILED, other[5 * page]);
    return 0;
}
