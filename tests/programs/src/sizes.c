/* RLIMIT_FSIZE: how large a process may make files, and SIGXFSZ. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/wait.h>
#include <unistd.h>

static siginfo_t last;
static volatile int signals;
static char bytes[8000];

static void note(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    last = *info, signals++;
}

static void tell(const char *what, long result) {
    int error = errno;
    printf("%s: %ld %s, signals %d", what, result, result < 0 ? strerror(error) : "", signals);
    if (signals) printf(" (code %d, own pid %d)", last.si_code, last.si_pid == getpid());
    printf("\n");
    signals = 0;
}

static void limit(rlim_t soft) {
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){soft, RLIM_INFINITY});
}

static void use(const char *name, int fd) {
    printf("-- %s\n", name);
    limit(10000);
    tell("write", write(fd, bytes, 8000));
    tell("write to the limit", write(fd, bytes, 8000));
    tell("write at the limit", write(fd, bytes, 8000));
    tell("write nothing", write(fd, bytes, 0));
    tell("pwrite behind", pwrite(fd, bytes, 10, 20000));
    tell("pwrite below", pwrite(fd, bytes, 10, 9995));
    tell("position", lseek(fd, 0, SEEK_CUR));
    tell("longer", ftruncate(fd, 10001));
    tell("as long", ftruncate(fd, 10000));
    tell("shorter", ftruncate(fd, 9000));
    tell("allocate", fallocate(fd, 0, 0, 20000));
    tell("allocate to the limit", fallocate(fd, 0, 0, 10000));
    tell("allocate, keep the size", fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 20000));
    tell("size", lseek(fd, 0, SEEK_END));
    fcntl(fd, F_SETFL, O_APPEND);
    tell("append", write(fd, bytes, 1));
    fcntl(fd, F_SETFL, 0);
    ftruncate(fd, 9990), lseek(fd, 9990, SEEK_SET);
    int source = memfd_create("source", 0);
    tell("source", write(source, bytes, 8000));
    lseek(source, 0, SEEK_SET);
    tell("sendfile", sendfile(fd, source, NULL, 100));
    tell("sendfile at the limit", sendfile(fd, source, NULL, 100));
    close(source);
    limit(RLIM_INFINITY);
    tell("without a limit", ftruncate(fd, 20000));
    limit(10000);
    tell("larger already, overwritten", pwrite(fd, bytes, 10, 5));
    tell("larger already, behind", pwrite(fd, bytes, 10, 15000));
    tell("larger already, shorter", ftruncate(fd, 15000));
    tell("larger already, longer", ftruncate(fd, 15001));
    close(fd);
}

int main(void) {
    int status, ends[2], fd = open("sizes", O_RDWR | O_CREAT | O_TRUNC, 0600);
    unlink("sizes");
    sigaction(SIGXFSZ, &(struct sigaction){.sa_sigaction = note, .sa_flags = SA_SIGINFO}, NULL);
    use("a file", fd);
    use("a memory file", memfd_create("sizes", 0));
    limit(100);
    pipe(ends);
    tell("a pipe", write(ends[1], bytes, 4000));
    fflush(stdout);
    fd = memfd_create("child", 0);
    if (!fork()) {
        tell("a child", ftruncate(fd, 101));
        fflush(stdout);
        signal(SIGXFSZ, SIG_IGN);
        tell("a child that ignores it", ftruncate(fd, 101));
        fflush(stdout);
        setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
        signal(SIGXFSZ, SIG_DFL);
        ftruncate(fd, 101);
        _exit(1);
    }
    wait(&status);
    printf("killed %d by %d\n", WIFSIGNALED(status), WTERMSIG(status) == SIGXFSZ);
}
