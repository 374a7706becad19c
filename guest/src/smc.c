/* smc: code that changes while it runs. Whatever way new instructions reach memory (a store to the same
 * page or to an alias of it, a read from a file, a new page in an old one's place), the next call must run
 * them, never the old ones. Each line says what the calls answered. */
#include "aether.h"

#define RW (PROT_READ | PROT_WRITE)
#define RX (PROT_READ | PROT_EXEC)
#define RWX (PROT_READ | PROT_WRITE | PROT_EXEC)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

typedef int function(void);

/* A function of this program's own text whose bytes are copied elsewhere; NAME_end lies after it. */
#define CODE_TEMPLATE(name, text)                                                                            \
    int name(void);                                                                                          \
    extern const char name##_end[];                                                                          \
    __asm__(".section .text.templates, \"ax\"\n.globl " #name ", " #name "_end\n" #name ":\n " text          \
            "\n" #name "_end:\n")

/* emit() writes "return value" at `at`. publish() makes what was written there executable: the caches of
 * x86_64 are coherent, those of arm64 need to be told. */
#if defined(__x86_64__)
static void publish(char *at, u64 length) {
    (void)length;
    __asm__ volatile("" ::"r"(at) : "memory");
}
static void emit(char *at, int value) {
    at[0] = (char)0xb8; /* mov eax, value */
    memcpy(at + 1, &value, 4);
    at[5] = (char)0xc3; /* ret */
    publish(at, 6);
}
enum { CODE_BYTES = 6, SPLIT = 3 }; /* SPLIT bytes of it make the value's lower half */
CODE_TEMPLATE(seven, "movl $7, %eax\n retq");
CODE_TEMPLATE(eight, "movl $8, %eax\n retq");
/* A store into the very next instruction: the old one must not run. */
CODE_TEMPLATE(ahead, "movb $2, 1(%rip)\n movl $1, %eax\n retq");
#else
static void publish(char *at, u64 length) {
    u64 ctr;
    __asm__ volatile("mrs %0, ctr_el0" : "=r"(ctr));
    u64 data_line = 4UL << (ctr >> 16 & 15), code_line = 4UL << (ctr & 15);
    for (u64 p = (u64)at & -data_line; p < (u64)at + length; p += data_line)
        __asm__ volatile("dc cvau, %0" ::"r"(p) : "memory");
    __asm__ volatile("dsb ish" ::: "memory");
    for (u64 p = (u64)at & -code_line; p < (u64)at + length; p += code_line)
        __asm__ volatile("ic ivau, %0" ::"r"(p) : "memory");
    __asm__ volatile("dsb ish\n isb" ::: "memory");
}
static void emit(char *at, int value) {
    u32 low = (u32)value & 0xffff, high = (u32)value >> 16;
    u32 code[3] = {0x52800000U | low << 5, 0x72a00000U | high << 5, 0xd65f03c0U}; /* mov, movk lsl 16, ret */
    memcpy(at, code, sizeof code);
    publish(at, sizeof code);
}
enum { CODE_BYTES = 12, SPLIT = 4 };
CODE_TEMPLATE(seven, "mov w0, #7\n movk w0, #0, lsl #16\n ret");
CODE_TEMPLATE(eight, "mov w0, #8\n movk w0, #0, lsl #16\n ret");
/* The architecture lets the old one run until it is told: the cache maintenance stands between the two. */
CODE_TEMPLATE(ahead,
              "adr x0, 1f\n ldr w1, 2f\n str w1, [x0]\n dc cvau, x0\n dsb ish\n ic ivau, x0\n dsb ish\n isb\n"
              "1: mov w0, #1\n ret\n 2: mov w0, #2");
#endif
extern const char __ehdr_start[]; /* this program's ELF header, which the linker maps */

static u64 file_offset(const void *address) {
    const char *header = __ehdr_start + *(u64 *)(__ehdr_start + 32);      /* e_phoff */
    for (u16 i = 0; i < *(u16 *)(__ehdr_start + 56); i++, header += 56) { /* e_phnum of Elf64_Phdr */
        const u64 *fields = (const u64 *)header; /* type and flags, offset, vaddr, paddr, filesz */
        if ((u32)fields[0] == 1 && (u64)address - fields[2] < fields[4])
            return (u64)address - fields[2] + fields[1];
    }
    FAIL("my code is in no segment of mine");
    return 0;
}

static int call(char *at) { return ((function *)at)(); }

static char *map(char *at, u64 length, int prot, int flags, int fd, u64 offset) {
    char *base = mmap(at, length, prot, flags, fd, offset);
    if (IS_ERROR(base)) FAIL("mmap: %s", answer((i64)base));
    return base;
}

static void same_page(void) {
    char *page = map(NULL, PAGE, RWX, ANON, -1, 0);
    printf("same page, patched in place:         ");
    for (int i = 1; i <= 6; i++) {
        emit(page, i);
        printf(" %d", call(page));
    }
    printf("\nsame page, code beside code:         ");
    for (int i = 0; i < 4; i++) {
        emit(page + 64 * i, 10 + i);
        printf(" %d %d", call(page + 64 * i), call(page));
    }
    printf("\nsame page, a loop patches its callee:");
    u64 sum = 0;
    for (int i = 0; i < 1000; i++) {
        emit(page, i);
        sum += (u64)call(page);
    }
    printf(" %lu\n", sum);
    munmap(page, PAGE);
}

static void next_instruction(void) {
    char *page = map(NULL, PAGE, RWX, ANON, -1, 0);
    printf("a store into the next instruction:   ");
    for (int i = 0; i < 3; i++) {
        u64 length = (u64)(ahead_end - (const char *)ahead);
        memcpy(page, (const void *)ahead, length);
        publish(page, length);
        printf(" %d", call(page));
    }
    printf("\n");
    munmap(page, PAGE);
}

static void flipped(void) {
    struct outcome out;
    char *page = map(NULL, PAGE, RW, ANON, -1, 0);
    printf("written, then made executable:       ");
    for (int i = 1; i <= 4; i++) {
        mprotect(page, PAGE, RW);
        emit(page, 20 + i);
        printf(" %s", signal_name(probe(code_jump, (u64)page, &out)));
        mprotect(page, PAGE, RX);
        printf(" %d", call(page));
    }
    printf(" %s\n", signal_name(probe(code_store, (u64)page, &out)));
    munmap(page, PAGE);
}

static void alias(void) {
    char *writable = map(NULL, 2 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *executable = mremap(writable, 0, 2 * PAGE, MREMAP_MAYMOVE, NULL); /* the same memory once more */
    if (IS_ERROR(executable)) FAIL("mremap: %s", answer((i64)executable));
    mprotect(executable, 2 * PAGE, RX);
    printf("written through an alias:            ");
    for (int i = 1; i <= 6; i++) {
        emit(writable, 30 + i);
        publish(executable, CODE_BYTES);
        printf(" %d", call(executable));
    }
    printf("\nalias, two pages in turn:            ");
    for (int i = 1; i <= 6; i++) {
        char *half = writable + (i & 1) * PAGE;
        emit(half, 40 + i);
        publish(executable + (half - writable), CODE_BYTES);
        printf(" %d", call(executable + (half - writable)));
    }
    printf("\n");
    munmap(writable, 2 * PAGE);
    munmap(executable, 2 * PAGE);
}

static void from_file(int self) {
    static function *const functions[] = {seven, eight};
    char *page = map(NULL, PAGE, RWX, ANON, -1, 0);
    printf("read from a file over old code:      ");
    for (int i = 0; i < 6; i++) {
        if (pread(self, page, CODE_BYTES, file_offset((const void *)functions[i & 1])) != CODE_BYTES)
            FAIL("pread failed");
        publish(page, CODE_BYTES);
        printf(" %d", call(page));
    }
    munmap(page, PAGE);
    u64 at = file_offset((const void *)seven), base = at / PAGE * PAGE;
    page = map(NULL, 2 * PAGE, RX, MAP_PRIVATE, self, base);
    printf("\nmapped from a file, then copied:      %d", call(page + (at - base)));
    mprotect(page, 2 * PAGE, RW);
    emit(page + (at - base), 51);
    mprotect(page, 2 * PAGE, RX);
    printf(" %d %d", call(page + (at - base)), seven());
    madvise(page, 2 * PAGE, MADV_DONTNEED);
    printf(" %d\n", call(page + (at - base)));
    munmap(page, 2 * PAGE);
}

static void replaced(void) {
    char *page = map(NULL, PAGE, RWX, ANON, -1, 0);
    printf("a new page in the old one's place:   ");
    for (int i = 1; i <= 4; i++) {
        emit(page, 60 + i);
        printf(" %d", call(page));
        if (i & 1) madvise(page, PAGE, MADV_DONTNEED);
        else map(page, PAGE, RWX, ANON | MAP_FIXED, -1, 0);
    }
    char *other = map(NULL, PAGE, RWX, ANON, -1, 0);
    emit(page, 71);
    emit(other, 72);
    printf(" %d %d", call(page), call(other));
    mremap(other, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, page);
    printf(" %d\n", call(page));
    munmap(page, PAGE);
}

static void straddling(void) {
    char *pages = map(NULL, 2 * PAGE, RWX, ANON, -1, 0), *at = pages + PAGE - SPLIT, other[CODE_BYTES];
    printf("across two pages, a half patched:    ");
    emit(at, 0x00010001);
    printf(" %x", call(at));
    emit(other, 0x00020002);
    memcpy(at + SPLIT, other + SPLIT, CODE_BYTES - SPLIT);
    publish(at, CODE_BYTES);
    printf(" %x", call(at));
    emit(other, 0x00030003);
    memcpy(at, other, SPLIT);
    publish(at, CODE_BYTES);
    printf(" %x\n", call(at));
    munmap(pages, 2 * PAGE);
}

static void many(void) {
    enum { PAGES = 64 };
    char *pages = map(NULL, PAGES * PAGE, RWX, ANON, -1, 0);
    printf("64 pages, patched three times:       ");
    for (int round = 0; round < 3; round++) {
        u64 sum = 0;
        for (int i = 0; i < PAGES; i++) emit(pages + (u64)i * PAGE, i * (round + 1));
        for (int i = 0; i < PAGES; i++) sum += (u64)call(pages + (u64)i * PAGE);
        printf(" %lu", sum);
    }
    printf("\n");
    munmap(pages, PAGES * PAGE);
}

int main(int argc, char **argv) {
    (void)argc;
    int self = open_self(argv);
    probe_setup();
    same_page();
    next_instruction();
    flipped();
    alias();
    from_file(self);
    replaced();
    straddling();
    many();
    return 0;
}
