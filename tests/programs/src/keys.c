// Protection keys: what a thread may do by its PKRU, page by page. x86_64; elsewhere there are none.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define RW (PROT_READ | PROT_WRITE)
#define NO_ACCESS 1
#define NO_WRITE 2

static size_t page;
static sigjmp_buf back;
static volatile int code, key, in_handler;

#ifdef __x86_64__
static unsigned rights(void) {
    unsigned value, high;
    __asm__ volatile("rdpkru" : "=a"(value), "=d"(high) : "c"(0));
    return value;
}

static void set_rights(unsigned value) { __asm__ volatile("wrpkru" ::"a"(value), "c"(0), "d"(0) : "memory"); }
#else
static unsigned rights(void) { return 0; }
static void set_rights(unsigned value) { (void)value; }
#endif

static void allow(int key, unsigned what) { set_rights((rights() & ~(3u << 2 * key)) | what << 2 * key); }

static const char *result(long value) {
    static char text[32];
    if (value >= 0)
        return snprintf(text, sizeof text, "%ld", value), text;
    return errno == ENOSPC ? "ENOSPC" : errno == EINVAL ? "EINVAL" : errno == ENOSYS ? "ENOSYS" : errno == EFAULT ? "EFAULT" : "another error";
}

#define TELL(what, call) printf("%-40s %s\n", what, result(call))

static void caught(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    code = info->si_code, key = *(int *)((char *)info + 32), in_handler = rights();
    siglongjmp(back, 1);
}

static void touch(const char *what, volatile char *where, int store) {
    unsigned before = rights();
    if (sigsetjmp(back, 1)) {
        set_rights(before);  // siglongjmp leaves those of the handler
        printf("%-40s %s, key %d, in the handler %x\n", what, code == 4 ? "SEGV_PKUERR" : code == 2 ? "SEGV_ACCERR" : "?", key, in_handler);
        return;
    }
    if (store)
        *where = 'w';
    printf("%-40s %c\n", what, *where);
}

static char *map(size_t pages) {
    char *where = mmap(0, pages * page, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (where == MAP_FAILED)
        abort();
    return where;
}

static int first;
static char *room;

static void *other(void *nothing) {
    (void)nothing;
    printf("a thread begins with %x\n", rights());
    touch("it stores", room, 1);
    allow(first, NO_ACCESS);
    touch("and may not", room, 1);
    return 0;
}

static void returns(int signal) {
    (void)signal;
    printf("in a handler: %x\n", rights());
    allow(first, 0);
}

int main(void) {
    page = sysconf(_SC_PAGESIZE);
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, 0);
    room = map(4);
    memset(room, 'o', 4 * page);
    printf("at the start %x\n", rights());
    TELL("flags", syscall(SYS_pkey_alloc, 1, 0));
    TELL("rights", syscall(SYS_pkey_alloc, 0, 8));
    first = syscall(SYS_pkey_alloc, 0, NO_WRITE);
    TELL("a key", first);
    if (first < 0)
        return 0;
    TELL("protect without a key", syscall(SYS_pkey_mprotect, room, page, RW, 9));
    TELL("protect two pages", syscall(SYS_pkey_mprotect, room, 2 * page, RW, first));
    touch("load", room, 0);
    touch("store", room, 1);
    touch("store elsewhere", room + 2 * page, 1);
    allow(first, NO_ACCESS);
    touch("load", room + page, 0);
    TELL("write(2) from there", write(1, room, 1));
    allow(first, 0);
    touch("store", room, 1);
    allow(first, NO_WRITE);
    touch("store", room + page, 1);
    TELL("read(2) into it", syscall(SYS_getrandom, room, 8, 0));
    TELL("mprotect keeps the key", mprotect(room, page, RW));
    touch("store", room, 1);
    TELL("no key", syscall(SYS_pkey_mprotect, room, page, RW, 0));
    touch("store", room, 1);
    TELL("again", syscall(SYS_pkey_mprotect, room, page, RW, first));
    allow(first, 0);
    pthread_t thread;
    pthread_create(&thread, 0, other, 0);
    pthread_join(thread, 0);
    touch("this one still may", room, 1);
    allow(first, NO_WRITE);
    signal(SIGUSR1, returns);
    raise(SIGUSR1);
    touch("behind a handler that may", room, 1);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        touch("a child", room, 1);
        TELL("its next key", syscall(SYS_pkey_alloc, 0, 0));
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, 0, 0);
    int many = 0;
    while (syscall(SYS_pkey_alloc, 0, 0) >= 0)
        many++;
    printf("%d more, then %s\n", many, result(-1));
    TELL("free one", syscall(SYS_pkey_free, 7));
    TELL("twice", syscall(SYS_pkey_free, 7));
    TELL("it comes again", syscall(SYS_pkey_alloc, 0, 0));
    TELL("free the first", syscall(SYS_pkey_free, first));
    touch("its pages keep it", room, 1);
    TELL("it cannot be given any more", syscall(SYS_pkey_mprotect, room + 3 * page, page, RW, first));
    TELL("discard", madvise(room, page, MADV_DONTNEED));
    touch("a page brought anew", room, 1);
    char *moved = mremap(room, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, map(1));
    touch("moved", moved, 1);
    char *sealed = map(1);
    TELL("a key once more", syscall(SYS_pkey_alloc, 0, 0));
    syscall(SYS_pkey_mprotect, sealed, page, RW, first);
    allow(first, 0);
    *sealed = 5;
    TELL("seal", syscall(462, sealed, page, 0));
    allow(first, NO_WRITE);
    printf("discard what the key keeps: %s\n", madvise(sealed, page, MADV_DONTNEED) ? errno == EPERM ? "EPERM" : "?" : "done");
    printf("it is still %d\n", *sealed);
    allow(first, 0);
    TELL("discard what it does not", madvise(sealed, page, MADV_DONTNEED));
    printf("it is %d\n", *sealed);
    return 0;
}
