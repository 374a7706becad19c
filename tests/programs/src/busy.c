/* Files that are written and executed at the same time: ETXTBSY, whichever comes first. On a file system that the
 * host has, on a tmpfs, and without a name. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char *plain[] = {"ends", NULL};

static const char *result(long got) { return got < 0 ? strerror(errno) : "done"; }

/* What becomes of a file that a child executes. */
static const char *executed(int fd, const char *name) {
    pid_t pid = fork();
    if (!pid) {
        syscall(SYS_execveat, fd, name, plain, (char *[]){NULL}, AT_EMPTY_PATH);
        _exit(errno);
    }
    int status;
    waitpid(pid, &status, 0);
    return WEXITSTATUS(status) == 99 ? "executed" : strerror(WEXITSTATUS(status));
}

static int copied(const char *from, int to) {
    static char buffer[65536];
    int source = open(from, O_RDONLY);
    for (ssize_t got; (got = read(source, buffer, sizeof buffer)) > 0;) write(to, buffer, got);
    close(source);
    return to;
}

static int made(const char *name, const char *text) {
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0755);
    write(fd, text, strlen(text));
    return fd;
}

/* A child that executes a file until it is told to end. */
static pid_t running(int fd, const char *name, int *end) {
    int in[2], out[2];
    pipe2(in, O_CLOEXEC), pipe2(out, O_CLOEXEC);
    pid_t pid = fork();
    if (!pid) {
        dup2(in[0], 0), dup2(out[1], 20);
        syscall(SYS_execveat, fd, name, plain, (char *[]){"WAITS=", NULL}, AT_EMPTY_PATH);
        _exit(errno);
    }
    char byte;
    close(in[0]), close(out[1]), read(out[0], &byte, 1), close(out[0]);
    *end = in[1];
    return pid;
}

static void opened(const char *what, const char *name, int flags) {
    int fd = open(name, flags, 0755);
    printf("  %s: %s\n", what, result(fd));
    if (fd >= 0) close(fd);
}

static void attempts(const char *name) {
    opened("to read", name, O_RDONLY), opened("to write", name, O_WRONLY), opened("for both", name, O_RDWR);
    opened("to read, emptied", name, O_RDONLY | O_TRUNC), opened("made", name, O_WRONLY | O_CREAT);
    printf("  truncated: %s\n", result(truncate(name, 1 << 20)));
}

static void written(const char *self) {
    int fd = copied(self, made("program", ""));
    printf("written: %s\n", executed(AT_FDCWD, "./program"));
    int other = dup(fd);
    close(fd), printf("by another descriptor: %s\n", executed(AT_FDCWD, "./program"));
    void *page = mmap(NULL, 1, PROT_READ, MAP_SHARED, other, 0);
    close(other), printf("mapped: %s\n", executed(AT_FDCWD, "./program"));
    munmap(page, 1), printf("by nobody: %s\n", executed(AT_FDCWD, "./program"));
    fd = made("script", "#!nothing\n"), printf("script, written: %s\n", executed(AT_FDCWD, "script"));
    close(fd), printf("script, by nobody: %s\n", executed(AT_FDCWD, "script"));
    fd = made("script", ""), printf("empty, written: %s\n", executed(AT_FDCWD, "script"));
    close(fd), printf("empty, by nobody: %s\n", executed(AT_FDCWD, "script"));
    close(made("script", "#!./program\n")), fd = open("program", O_WRONLY);
    printf("interpreter, written: %s\n", executed(AT_FDCWD, "script"));
    close(fd), printf("interpreter, by nobody: %s\n", executed(AT_FDCWD, "script"));
}

static void runs(void) {
    int end;
    pid_t pid = running(AT_FDCWD, "script", &end);
    link("program", "another"), puts("executed"), attempts("another");
    opened("the script to write", "script", O_WRONLY);
    close(end), waitpid(pid, NULL, 0), puts("ended"), opened("to write", "another", O_WRONLY);
    pid = running(AT_FDCWD, "program", &end), unlink("another"), rename("program", "another");
    puts("renamed"), opened("to write", "another", O_WRONLY);
    close(end), waitpid(pid, NULL, 0), puts("ended"), attempts("another"), unlink("another"), unlink("script");
}

static void memory(const char *self) {
    char name[32];
    int end, fd = copied(self, memfd_create("program", 0));
    sprintf(name, "/proc/self/fd/%d", fd);
    printf("memory: %s\n", executed(fd, ""));
    int again = open(name, O_RDWR);
    printf("opened to write: %s\n", executed(fd, "")), close(again);
    printf("closed: %s\n", executed(fd, ""));
    pid_t pid = running(fd, "", &end);
    puts("executed"), attempts(name), printf("  a write: %s\n", result(pwrite(fd, "\177", 1, 0)));
    close(end), waitpid(pid, NULL, 0), puts("ended"), opened("to write", name, O_WRONLY);
}

static void nameless(const char *self) {
    char name[32];
    int fd = copied(self, open(".", O_TMPFILE | O_RDWR, 0755));
    sprintf(name, "/proc/self/fd/%d", fd);
    printf("a file without a name, written: %s\n", executed(fd, ""));
    int again = open(name, O_RDONLY);
    close(fd), printf("by nobody: %s\n", executed(again, ""));
}

int main(int argc, char **argv) {
    char self[4096] = {0}, where[64], byte;
    (void)argc;
    if (getenv("WAITS")) return close(20), read(0, &byte, 1), 0;
    if (strcmp(argv[0], "busy")) return 99;
    setvbuf(stdout, NULL, _IOLBF, 4096);
    readlink("/proc/self/exe", self, sizeof self - 1);
    written(self), runs();
    sprintf(where, "/dev/shm/busy-%d", getpid()), mkdir(where, 0755), chdir(where), puts("/dev/shm");
    written(self), runs(), nameless(self), rmdir(where);
    memory(self);
    return 0;
}
