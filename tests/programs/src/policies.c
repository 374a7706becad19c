// On which node memory is to be, asked for on a machine with one: by task and by mapping, told, inherited, refused.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE sysconf(_SC_PAGESIZE)
#ifndef SYS_set_mempolicy_home_node
#define SYS_set_mempolicy_home_node 450
#endif
#define STATIC (1 << 15)
#define RELATIVE (1 << 14)
#define BALANCING (1 << 13)
enum { DEFAULT, PREFERRED, BIND, INTERLEAVE, LOCAL, MANY, WEIGHTED };

static const char *said(long result) {
    static const struct { int number; const char *name; } names[] = {
        {EINVAL, "EINVAL"}, {EFAULT, "EFAULT"}, {EPERM, "EPERM"}, {ESRCH, "ESRCH"}, {ENOENT, "ENOENT"},
        {ENODEV, "ENODEV"}, {EOPNOTSUPP, "EOPNOTSUPP"}, {ENOSYS, "ENOSYS"}, {EIO, "EIO"},
    };
    static char text[32];
    sprintf(text, "%ld", result < 0 ? -errno : result);
    for (size_t i = 0; result < 0 && i < sizeof names / sizeof *names; i++)
        if (names[i].number == errno)
            return names[i].name;
    return text;
}

static long set(int mode, unsigned long nodes, unsigned long most) { return syscall(SYS_set_mempolicy, mode, &nodes, most); }
static long bind(char *at, long size, int mode, unsigned long nodes, unsigned flags) {
    return syscall(SYS_mbind, at, size, mode, &nodes, 65, flags);
}

static void told(const char *of, void *at, unsigned long flags) {
    int mode = -1;
    unsigned long nodes = -1;
    long result = syscall(SYS_get_mempolicy, &mode, &nodes, 64, at, flags);
    if (result)
        printf("%s: %s\n", of, said(result));
    else
        printf("%s: mode %#x, nodes %#lx\n", of, mode, nodes);
}

// The policy's word in a line of numa_maps
static void line(const char *of, char *at) {
    char text[4096], word[64];
    unsigned long start;
    FILE *file = fopen("/proc/self/numa_maps", "r");
    while (fgets(text, sizeof text, file))
        if (sscanf(text, "%lx", &start) == 1 && (char *)start == at) {
            char *first = strchr(text, ' ') + 1, *last = strstr(first, " (many)") ? strchr(first, ')') + 1 : first;
            last += strcspn(last, " \n");
            snprintf(word, sizeof word, "%.*s", (int)(last - first), first);
            printf("%s: %s\n", of, word);
        }
    fclose(file);
}

int main(void) {
    setbuf(stdout, NULL);
    told("at first", NULL, 0);
    told("allowed", NULL, 4);
    static const struct { int mode; unsigned long nodes, most; } tried[] = {
        {PREFERRED, 1, 65}, {PREFERRED, 0, 65}, {BIND, 1, 65}, {BIND, 3, 65}, {BIND, 2, 65}, {BIND, 0, 65},
        {BIND, 1, 1}, {BIND, 3, 2}, {INTERLEAVE, 1, 65}, {INTERLEAVE | STATIC, 1, 65}, {INTERLEAVE | STATIC, 5, 65},
        {INTERLEAVE | RELATIVE, 6, 65}, {BIND | STATIC | RELATIVE, 1, 65}, {BIND | STATIC, 2, 65}, {LOCAL, 0, 0},
        {LOCAL, 1, 65}, {LOCAL | STATIC, 0, 65}, {PREFERRED | RELATIVE, 0, 65}, {MANY, 1, 65},
        {MANY | BALANCING, 1, 65}, {INTERLEAVE | BALANCING, 1, 65}, {WEIGHTED, 1, 65}, {7, 1, 65}, {-1, 1, 65},
        {DEFAULT, 1, 65}, {DEFAULT | STATIC, 0, 65}, {BIND, 1, 1 << 20}, {BIND | BALANCING | STATIC, 1, 65},
    };
    for (size_t i = 0; i < sizeof tried / sizeof *tried; i++) {
        printf("set %#x %#lx %lu: %s\n", tried[i].mode, tried[i].nodes, tried[i].most,
               said(set(tried[i].mode, tried[i].nodes, tried[i].most)));
        told("  it is", NULL, 0);
    }
    printf("no set: %s\n", said(syscall(SYS_set_mempolicy, BIND, NULL, 65)));
    printf("a bad set: %s\n", said(syscall(SYS_set_mempolicy, BIND, 16, 65)));
    set(INTERLEAVE, 1, 65);
    told("the next node", NULL, 1);
    if (!fork()) {
        told("a child", NULL, 0);
        set(BIND, 1, 65);
        fflush(stdout);
        _exit(0);
    }
    wait(NULL);
    told("the parent", NULL, 0);
    told("unknown flags", NULL, 8);
    told("allowed of an address", NULL, 6);
    told("an address alone", stdout, 0);
    told("nothing there", (void *)PAGE, 2);
    printf("too few: %s\n", said(syscall(SYS_get_mempolicy, NULL, (unsigned long[1]){0}, 0, NULL, 0)));
    printf("nothing asked: %s\n", said(syscall(SYS_get_mempolicy, NULL, NULL, 0, NULL, 0)));
    set(LOCAL, 0, 65);

    char *at = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(at + 7 * PAGE, PAGE);
    line("an area without", at);
    set(DEFAULT, 0, 65);
    line("an area without", at);
    printf("mbind: %s\n", said(bind(at + PAGE, 2 * PAGE, BIND, 1, 2)));
    printf("mbind: %s\n", said(bind(at + 4 * PAGE, 1, INTERLEAVE | STATIC, 1, 1)));
    printf("mbind: %s\n", said(bind(at + 6 * PAGE, PAGE, MANY, 1, 0)));
    for (int page = 0; page < 7; page++)
        told("  a page", at + page * PAGE, 2);
    line("before", at), line("bound", at + PAGE), line("between", at + 3 * PAGE), line("static", at + 4 * PAGE);
    line("many", at + 6 * PAGE);
    told("its node", at + PAGE, 3);
    mremap(at + PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at + 64 * PAGE);
    told("moved", at + 64 * PAGE, 2);
    if (!fork()) {
        told("a child's", at + 2 * PAGE, 2);
        fflush(stdout);
        _exit(0);
    }
    wait(NULL);
    printf("over a hole: %s\n", said(bind(at + 6 * PAGE, 2 * PAGE, BIND, 1, 0)));
    printf("in front: %s\n", said(bind(at + PAGE, 2 * PAGE, BIND, 1, 0)));
    printf("default over a hole: %s\n", said(bind(at, 8 * PAGE, DEFAULT, 0, 0)));
    told("  a page", at + 2 * PAGE, 2);
    printf("in a hole: %s\n", said(bind(at + PAGE, PAGE, DEFAULT, 0, 0)));
    printf("no page: %s\n", said(bind(at + 1, PAGE, BIND, 1, 0)));
    printf("nothing: %s\n", said(bind(at, 0, BIND, 2, 0)));
    printf("absent node: %s\n", said(bind(at, PAGE, BIND, 2, 0)));
    printf("flags: %s\n", said(bind(at, PAGE, BIND, 1, 8)));
    printf("wraps: %s\n", said(bind(at, -PAGE, BIND, 1, 0)));

    printf("home: %s\n", said(syscall(SYS_set_mempolicy_home_node, at, PAGE, 0, 0)));
    bind(at, PAGE, BIND, 1, 0), bind(at + 2 * PAGE, PAGE, INTERLEAVE, 1, 0);
    printf("home: %s\n", said(syscall(SYS_set_mempolicy_home_node, at, PAGE, 0, 0)));
    printf("home: %s\n", said(syscall(SYS_set_mempolicy_home_node, at + 2 * PAGE, PAGE, 0, 0)));
    printf("home: %s\n", said(syscall(SYS_set_mempolicy_home_node, at, PAGE, 1, 0)));
    printf("home: %s\n", said(syscall(SYS_set_mempolicy_home_node, at, PAGE, 0, 1)));
    printf("home: %s\n", said(syscall(SYS_set_mempolicy_home_node, at + 1, PAGE, 0, 0)));
    printf("home: %s\n", said(syscall(SYS_set_mempolicy_home_node, at, 0, 0, 0)));

    unsigned long here = 1, there = 2;
    printf("migrate: %s\n", said(syscall(SYS_migrate_pages, 0, 65, &here, &here)));
    printf("migrate: %s\n", said(syscall(SYS_migrate_pages, getpid(), 65, &there, &here)));
    printf("migrate: %s\n", said(syscall(SYS_migrate_pages, 0, 65, &here, &there)) );
    printf("migrate: %s\n", said(syscall(SYS_migrate_pages, 1 << 22, 65, &here, &here)));
    printf("migrate: %s\n", said(syscall(SYS_migrate_pages, 0, 65, &here, 16)));

    char *more = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(more + 3 * PAGE, PAGE);
    more[0] = 1;
    printf("zero: %d\n", more[PAGE]);
    void *pages[] = {more, more + PAGE, more + 2 * PAGE, more + 3 * PAGE, (void *)main};
    int nodes[] = {0, 0, 0, 0, 0}, status[5] = {77, 77, 77, 77, 77};
    printf("where: %s,", said(syscall(SYS_move_pages, 0, 5, pages, NULL, status, 0)));
    for (int i = 0; i < 5; i++)
        printf(" %d", status[i]);
    printf("\nmove: %s,", said(syscall(SYS_move_pages, getpid(), 5, pages, nodes, status, 2)));
    for (int i = 0; i < 5; i++)
        printf(" %d", status[i]);
    nodes[2] = 1;
    printf("\nno node: %s\n", said(syscall(SYS_move_pages, 0, 5, pages, nodes, status, 2)));
    printf("flags: %s\n", said(syscall(SYS_move_pages, 0, 5, pages, NULL, status, 1)));
    printf("nobody: %s\n", said(syscall(SYS_move_pages, 1 << 22, 5, pages, NULL, status, 0)));
    printf("nowhere: %s\n", said(syscall(SYS_move_pages, 0, 5, 16, NULL, status, 0)));
    printf("none: %s\n", said(syscall(SYS_move_pages, 0, 0, 16, NULL, NULL, 2)));
    return 0;
}
