// A mounted file system of huge pages, and pools that grow and shrink; as root, with a pool of four pages.
// The first word names the mount.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define ANON (MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB)

static size_t size;
static sigjmp_buf back;

static void on_bus(int number) {
    (void)number;
    siglongjmp(back, 1);
}

static const char *said(long result) { return result == -1 ? strerror(errno) : "ok"; }

static const char *touch(volatile char *at, int value) {
    if (sigsetjmp(back, 1))
        return "SIGBUS";
    *at = value;
    return "stored";
}

static long meminfo(const char *name) {
    char line[128];
    long value = -1;
    FILE *file = fopen("/proc/meminfo", "r");
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ':')
            value = atol(line + strlen(name) + 1);
    fclose(file);
    return value;
}

static void counts(const char *when) {
    printf("%s: %ld pages, %ld free, %ld promised, %ld surplus\n", when, meminfo("HugePages_Total"),
           meminfo("HugePages_Free"), meminfo("HugePages_Rsvd"), meminfo("HugePages_Surp"));
}

static int set(const char *name, const char *value) {
    char path[128];
    snprintf(path, sizeof path, "/proc/sys/vm/%s", name);
    int fd = open(path, O_WRONLY), done = write(fd, value, strlen(value));
    close(fd);
    return done < 0 ? -1 : 0;
}

static void files(void) {
    struct statfs fs;
    struct stat status;
    char text[16] = "", line[256];
    statfs(".", &fs);
    printf("the mount: type %lx, blocks of a huge page %d, %ld of them\n", (long)fs.f_type,
           (size_t)fs.f_bsize == size, (long)fs.f_blocks);
    int fd = open("file", O_RDWR | O_CREAT | O_EXCL, 0640);
    printf("open: %s\n", said(fd));
    fstat(fd, &status);
    printf("mode %o, size %ld, best in huge pages %d\n", status.st_mode, (long)status.st_size,
           (size_t)status.st_blksize == size);
    printf("write: %s\n", said(write(fd, "x", 1)));
    printf("ftruncate to a part: %s, to two pages: %s\n", said(ftruncate(fd, size + 4096)), said(ftruncate(fd, 2 * size)));
    char *at = mmap(0, 2 * size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    counts("mapped");
    strcpy(at + size + 77, "in the file");
    fstat(fd, &status);
    printf("it has %ld, and takes %ld\n", (long)status.st_size / (long)size, (long)(status.st_blocks * 512 / size));
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps))
        if (strtoul(line, 0, 16) == (unsigned long)at)
            printf("it is called %s", strrchr(line, '/'));
    fclose(maps);
    munmap(at, 2 * size);
    close(fd);
    counts("closed");
    printf("rename: %s\n", said(rename("file", "other")));
    fd = open("other", O_RDONLY);
    pread(fd, text, 11, size + 77);
    printf("it reads: %s\n", text);
    printf("mmap to write by this descriptor: %s\n",
           said((long)mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)));
    close(fd);
    if (!fork()) {
        fd = open("other", O_RDWR);
        char *there = mmap(0, 2 * size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        printf("another process reads: %s\n", there + size + 77);
        there[size + 77] = 'I';
        _exit(fflush(stdout));
    }
    wait(0);
    fd = open("other", O_RDWR);
    pread(fd, text, 11, size + 77);
    printf("it reads: %s\n", text);
    printf("allocate a third: %s\n", said(fallocate(fd, 0, 2 * size, size)));
    counts("allocated");
    printf("too much: %s\n", said(fallocate(fd, 0, 0, 6 * size)));
    printf("a hole: %s\n", said(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, size, size)));
    fstat(fd, &status);
    printf("it has %ld, and takes at least %d\n", (long)status.st_size / (long)size, status.st_blocks > 0);
    printf("directory: %s, a file in it: %s\n", said(mkdir("folder", 0755)),
           said(open("folder/file", O_RDWR | O_CREAT, 0600)));
    printf("not empty: %s\n", said(rmdir("folder")));
    unlink("folder/file");
    printf("empty: %s\n", said(rmdir("folder")));
    printf("symlink: %s, link: %s\n", said(symlink("other", "soft")), said(link("other", "hard")));
    stat("other", &status);
    printf("names: %d\n", (int)status.st_nlink);
    unlink("hard");
    unlink("other");
    at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    printf("without a name: %s\n", touch(at, 1));
    munmap(at, size);
    counts("gone");
}

static void pools(void) {
    printf("overcommit: %s\n", said(set("nr_overcommit_hugepages", "2")));
    printf("mmap of seven: %s\n", said((long)mmap(0, 7 * size, 3, ANON, -1, 0)));
    counts("refused");
    char *at = mmap(0, 6 * size, 3, ANON, -1, 0);
    counts("mmap of six");
    for (int i = 0; i < 6; i++)
        at[i * size] = i;
    counts("touched");
    munmap(at + 2 * size, 4 * size);
    counts("four unmapped");
    munmap(at, 2 * size);
    counts("unmapped");
    at = mmap(0, 7 * size, 3, ANON | MAP_NORESERVE, -1, 0);
    int good = 0;
    for (int i = 0; i < 7; i++)
        good += *touch(at + i * size, i) == 's';
    printf("without promises: %d stored\n", good);
    munmap(at, 7 * size);
    counts("unmapped");
    printf("no overcommit: %s\n", said(set("nr_overcommit_hugepages", "0")));

    printf("six: %s\n", said(set("nr_hugepages", "6")));
    counts("grown");
    at = mmap(0, 3 * size, 3, ANON, -1, 0);
    at[0] = at[size] = 1;
    printf("one: %s\n", said(set("nr_hugepages", "1")));
    counts("shrunk in use");
    printf("a promise is kept: %s\n", touch(at + 2 * size, 1));
    munmap(at + size, size);
    counts("one unmapped");
    munmap(at, size);
    munmap(at + 2 * size, size);
    counts("unmapped");
    printf("four: %s\n", said(set("nr_hugepages", "4")));
    printf("what is no number: %s\n", said(set("nr_hugepages", "many")));
    counts("at last");
}

static void others(void) {
    int go[2], done[2];
    char c, text[8] = "";
    char *at = mmap(0, 2 * size, 3, ANON, -1, 0);
    strcpy(at + size - 4, "seam no"), at[5] = 5;
    printf("not to be written: %s\n", said(mprotect(at, 2 * size, PROT_READ)));
    pipe(go), pipe(done);
    pid_t parent = getpid(), child = fork();
    if (!child) {
        struct iovec here = {text, 7}, there = {at + size - 4, 7};
        long count = process_vm_readv(parent, &here, 1, &there, 1, 0);
        printf("a child reads its parent's: %ld %s\n", count, text);
        there.iov_base = at + size - 4;
        here.iov_base = (char *)"SEAM NO";
        count = process_vm_writev(parent, &here, 1, &there, 1, 0);
        printf("and writes, where it is not to be written: %s\n", said(count));
        fflush(stdout);
        write(done[1], "x", 1);
        read(go[0], &c, 1);
        count = process_vm_writev(parent, &here, 1, &there, 1, 0);
        printf("where it is: %ld\n", count);
        printf("its own is as it was: %s\n", at + size - 4);
        _exit(fflush(stdout));
    }
    read(done[0], &c, 1);
    printf("to be written: %s\n", said(mprotect(at, 2 * size, PROT_READ | PROT_WRITE)));
    printf("%s\n", touch(at + 9, 9));
    fflush(stdout);
    write(go[1], "x", 1);
    waitpid(child, 0, 0);
    printf("parent: %s, %d %d\n", at + size - 4, at[5], at[9]);
    munmap(at, 2 * size);
    counts("at last");
}

int main(int argc, char **argv) {
    setbuf(stdout, 0);
    signal(SIGBUS, on_bus);
    size = meminfo("Hugepagesize") * 1024;
    if (argc < 2 || chdir(argv[1]))
        return 1;
    files();
    pools();
    others();
    return 0;
}
