/* tour [FILE]: what a memory manager does for a program, told by the program. Each section causes one kind
 * of fault and says what it saw. With FILE it also writes that file through a shared mapping. Prints
 * offsets, never addresses, so that every run reads the same. */
#include "aether.h"

static char *guarded; /* a mapping whose middle page is taken away in section 4 */

static char *map(u64 length, int prot, int flags, int fd) {
    char *base = mmap(NULL, length, prot, flags, fd, 0);
    if (IS_ERROR(base)) FAIL("mmap: %s", answer((i64)base));
    return base;
}

static void demand_paging(void) {
    static const u64 pages[] = {0, 1, 2, 511, 512, 8191};
    u64 length = 8192 * PAGE, resident = 0;
    static u8 vector[8192];
    volatile char *base = map(length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    madvise((char *)base, length, MADV_NOHUGEPAGE);
    printf("1. Demand paging\n   8192 pages are mapped. None of them has memory behind it yet.\n");
    for (u64 i = 0; i < COUNT(pages); i++) {
        volatile char *page = base + pages[i] * PAGE;
        char before = *page;
        *page = (char)(i + 1);
        printf("   page %4lu: read %d, wrote %lu, reads back %d\n", pages[i], before, i + 1, *page);
    }
    SYSCALL(mincore, base, length, vector);
    for (u64 i = 0; i < COUNT(vector); i++) resident += vector[i] & 1;
    printf("   Pages that have memory now: %lu. Each came with the first touch.\n\n", resident);
    munmap((char *)base, length);
}

static void copy_on_write(int self, u64 size) {
    char in_file;
    volatile char *base = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE, self);
    printf("2. Copy-on-write\n   My own file is mapped privately. Its bytes 1 to 3 read '%c%c%c'.\n", base[1],
           base[2], base[3]);
    base[1] = 'e';
    pread(self, &in_file, 1, 1);
    printf("   I store 'e' in byte 1: memory has '%c%c%c', the file still has '%c'.\n", base[1], base[2],
           base[3], in_file);
    munmap((char *)base, size);
    base = map(2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    printf("   Two fresh pages read %d and %d: both may show one page of zeros.\n", base[0], base[PAGE]);
    base[0] = 7;
    printf("   I store 7 in the first: they read %d and %d.\n\n", base[0], base[PAGE]);
    munmap((char *)base, 2 * PAGE);
}

static void shared_file(int self, u64 size, const char *path) {
    char block[512];
    u64 equal = 0;
    char *base = map(size, PROT_READ, MAP_SHARED, self);
    for (i64 at = 0, n; (n = pread(self, block, sizeof block, (u64)at)) > 0; at += n)
        for (i64 i = 0; i < n; i++) equal += base[at + i] == block[i];
    printf("3. A shared file mapping\n   My own file, read by loads and by read(): %s.\n",
           equal == size ? "every byte is the same" : "they DIFFER");
    munmap(base, size);
    if (!path) {
        printf("   (Give me a file's name, and I write it through a shared mapping.)\n\n");
        return;
    }
    static const char text[] = "written by a store";
    i64 fd = open(path, O_RDWR | O_CREAT);
    if (fd < 0) FAIL("   %s: %s", path, answer(fd));
    if (SYSCALL(lseek, fd, 0, 2) < (i64)sizeof text) SYSCALL(ftruncate, fd, PAGE);
    base = map(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, (int)fd);
    memcpy(base, text, sizeof text);
    pread((int)fd, block, sizeof text, 0);
    printf("   I store text into %s; pread finds '%s' at once.\n\n", path, block);
    munmap(base, PAGE);
    SYSCALL(close, fd);
}

static void repair(int signo, struct siginfo *info, struct ucontext *uc) {
    (void)uc;
    printf("   %s, si_code %d, at page 1 offset 0x%lx. I give the page back and return.\n",
           signal_name(signo), info->code, info->addr - (u64)guarded - PAGE);
    mprotect(guarded + PAGE, PAGE, PROT_READ | PROT_WRITE);
}

static void guard_page(void) {
    guarded = map(3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    volatile char *at = guarded + PAGE + 0x123;
    *at = 1;
    mprotect(guarded + PAGE, PAGE, PROT_NONE);
    printf(
        "4. A guard page\n   Page 1 of 3 has lost all permissions; its contents stay. I store 42 in it.\n");
    sigaction(SIGSEGV, repair, SA_SIGINFO, 0);
    *at = 42;
    printf("   The store was tried again and went through: it reads %d, its neighbour %d.\n\n", *at, at[1]);
    munmap(guarded, 3 * PAGE);
}

static void kernel_memory(void) {
    struct outcome out;
    probe_setup();
    printf("5. Kernel memory\n   I load from the kernel's half of the address space.\n");
    if (probe(code_load, KERNEL_HALF, &out) == SIGSEGV)
        printf("   Denied: SIGSEGV. The handler moved the pc past the load.\n\n");
    else FAIL("   Not denied: %s", signal_name(out.signo));
}

__attribute__((noinline)) static u64 recurse(u64 depth) {
    volatile u64 frame[128];
    frame[depth % 128] = depth;
    return depth ? recurse(depth - 1) + frame[depth % 128] : 0;
}

static void stack_growth(void) {
    u64 depth = 1100;
    printf("6. Stack growth\n   I recurse %lu times with 1 KiB of locals each: over 1 MiB of stack.\n",
           depth);
    printf("   The stack grew below me, fault by fault. The frames sum up to %lu.\n\n", recurse(depth));
}

static void beyond_the_file(int self, u64 size) {
    struct outcome out;
    u64 rounded = ROUND_UP(size, PAGE);
    char *base = map(rounded + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, self);
    printf("7. Beyond the end of a file\n   My file ends inside a page. The rest of that page reads %d.\n",
           base[rounded - 1]);
    if (probe(code_store, (u64)base + rounded, &out) != SIGBUS)
        FAIL("   No SIGBUS: %s", signal_name(out.signo));
    printf("   A store into the next page: SIGBUS, si_code %d, at offset 0x%lx from there.\n\n", out.code,
           out.addr - (u64)base - rounded);
    munmap(base, rounded + PAGE);
}

int main(int argc, char **argv) {
    int self = open_self(argv);
    u64 size = (u64)SYSCALL(lseek, self, 0, 2);
    printf("A tour of virtual memory, on " ISA "\n\n");
    demand_paging();
    copy_on_write(self, size);
    shared_file(self, size, argc > 1 ? argv[1] : NULL);
    guard_page();
    kernel_memory();
    stack_growth();
    beyond_the_file(self, size);
    printf("That was all. Nothing is left mapped but what I started with.\n");
    return 0;
}
