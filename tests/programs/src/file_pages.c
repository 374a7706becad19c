/* A mapped file that is larger than memory: every byte is right, however often its pages leave and come back.
   Usage: file_pages DIRECTORY MIB ROUNDS */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static size_t page, bytes, words;

static uint64_t word(size_t number, unsigned round) {
    uint64_t x = number * 0x9e3779b97f4a7c15u + round * 0xbf58476d1ce4e5b9u + 1;
    x ^= x >> 29;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 32;
}

/* How many of the words that stand at the ends of each page are not those of the round. */
static size_t wrong(const volatile uint64_t *at, size_t upto, unsigned round) {
    size_t bad = 0, each = page / 8;
    for (size_t first = 0; first < upto; first += each)
        bad += (at[first] != word(first, round)) + (at[first + each - 1] != word(first + each - 1, round));
    return bad;
}

static void fill(volatile uint64_t *at, unsigned round) {
    size_t each = page / 8;
    for (size_t first = 0; first < words; first += each) {
        at[first] = word(first, round);
        at[first + each - 1] = word(first + each - 1, round);
    }
}

int main(int argc, char **argv) {
    if (argc < 4 || chdir(argv[1]))
        return 2;
    page = (size_t)sysconf(_SC_PAGESIZE);
    bytes = (size_t)atoi(argv[2]) << 20;
    words = bytes / 8;
    unsigned rounds = (unsigned)atoi(argv[3]), round = 0;
    int fd = open("pages", O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)bytes))
        return 3;
    uint64_t *shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    uint64_t *private = mmap(NULL, bytes / 8, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (shared == MAP_FAILED || private == MAP_FAILED)
        return 4;
    for (; round < rounds; round++) {
        fill(shared, round);
        printf("round %u: %zu words are wrong, %zu through a private mapping\n", round, wrong(shared, words, round),
               wrong(private, words / 8, round));
    }
    round--;
    /* Private copies stay, whatever becomes of the file's pages. */
    for (size_t at = 0; at < words / 8; at += words / 128)
        private[at] = ~word(at, round);
    fill(shared, rounds);
    size_t kept = 0, others = 0;
    for (size_t at = 0; at < words / 8; at += words / 128) {
        kept += private[at] == ~word(at, round);
        others += private[at + page / 8] == word(at + page / 8, rounds);
    }
    printf("private: %zu copies are kept, %zu neighbours are as the file\n", kept, others);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        size_t bad = wrong(shared, words, rounds);
        shared[0] = 42;
        _exit(bad != 0);
    }
    int status = 1;
    waitpid(child, &status, 0);
    printf("the child ended with %d, and stored %llu\n", status, (unsigned long long)shared[0]);
    uint64_t read_back[2] = {0, 0};
    size_t last = words - page / 8;
    if (pread(fd, read_back, 8, 0) != 8 || pread(fd, read_back + 1, 8, (off_t)(last * 8)) != 8)
        return 5;
    printf("the file: %llu, and the last page is %s\n", (unsigned long long)read_back[0],
           read_back[1] == word(last, rounds) ? "right" : "wrong");
    printf("msync %d, fsync %d\n", msync(shared, bytes, MS_SYNC), fsync(fd));
    /* What another program writes is seen, whether or not the page is there. */
    uint64_t other = 4711;
    if (pwrite(fd, &other, 8, (off_t)(words / 2 * 8)) != 8)
        return 6;
    printf("written: %llu\n", (unsigned long long)shared[words / 2]);
    if (ftruncate(fd, (off_t)(bytes / 2)) || ftruncate(fd, (off_t)bytes))
        return 7;
    int right = shared[words / 2 - 1] == word(words / 2 - 1, rounds);
    printf("after cutting it: %llu behind the cut, the word before it is %s\n",
           (unsigned long long)shared[words / 2], right ? "right" : "wrong");
    unlink("pages");
    return 0;
}
