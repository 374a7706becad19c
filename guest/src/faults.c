/* faults NAME: raises one fault with no handler installed, so that the process dies of its signal. faults
 * all: raises every fault that a precise MMU and decoder give, one after another, and prints what its
 * handler was told. faults strict: the same for checks that only a strict CPU makes (alignment, #SS, the
 * write bit of a read-modify-write). faults list: the names. */
#include "aether.h"

enum place { ZERO, CODE_ITSELF, UNMAPPED, NONE, CONSTANT, DATA, KERNEL, HOLE, PAGE_END, PAST_EOF, ODD, TOP };

struct fault {
    const char *name;
    void (*code)(void);
    enum place place; /* where the address register points */
    int strict;
};

/* code_stack lets the stack go down a page at a time until it meets its limit. */
#if defined(__x86_64__)
CODE(code_stack, "pushq %rax\n subq $4088, %rsp\n jmp code_stack");
CODE(code_divide, "divq %rdi");
CODE(code_undefined, "ud2");
CODE(code_breakpoint, "int3");
CODE(code_halt, "hlt");
CODE(code_in, "inb %dx, %al");
CODE(code_out, "outb %al, %dx");
CODE(code_int13, "int $13");
CODE(code_int14, "int $14");
CODE(code_int32, "int $32");
CODE(code_int3_long, ".byte 0xcd, 0x03");
CODE(code_overflow, "int $4");
CODE(code_add, "addq $1, (%rdi)");
CODE(code_vector, "movaps (%rdi), %xmm0");
CODE(code_push, "movq %rdi, %rsp\n pushq %rax");
CODE(code_icebp, ".byte 0xf1");
CODE(code_checked, "pushfq\n orq $0x40000, (%rsp)\n popfq\n movq (%rdi), %rcx");

static const struct fault faults[] = {
    {"null", code_load, ZERO, 0},
    {"wild", code_load, UNMAPPED, 0},
    {"wildstore", code_store, UNMAPPED, 0},
    {"wildjump", code_jump, UNMAPPED, 0},
    {"none", code_load, NONE, 0},
    {"nonestore", code_store, NONE, 0},
    {"ro", code_store, CONSTANT, 0},
    {"code", code_store, CODE_ITSELF, 0},
    {"readmodify", code_add, CONSTANT, 0},
    {"nx", code_jump, DATA, 0},
    {"kernel", code_load, KERNEL, 0},
    {"kernelstore", code_store, KERNEL, 0},
    {"kerneljump", code_jump, KERNEL, 0},
    {"noncanonical", code_load, HOLE, 0},
    {"top", code_load, TOP, 0},
    {"straddle", code_load, PAGE_END, 0},
    {"straddlestore", code_store, PAGE_END, 0},
    {"eof", code_load, PAST_EOF, 0},
    {"eofstore", code_store, PAST_EOF, 0},
    {"stackoverflow", code_stack, ZERO, 0},
    {"div0", code_divide, ZERO, 0},
    {"ud", code_undefined, ZERO, 0},
    {"int3", code_breakpoint, ZERO, 0},
    {"int3long", code_int3_long, ZERO, 0},
    {"int4", code_overflow, ZERO, 0},
    {"gp", code_halt, ZERO, 0},
    {"inport", code_in, ZERO, 0},
    {"outport", code_out, ZERO, 0},
    {"int13", code_int13, ZERO, 0},
    {"int14", code_int14, ZERO, 0},
    {"int32", code_int32, ZERO, 0},
    {"readmodifywild", code_add, UNMAPPED, 1},
    {"noncanonicaljump", code_jump, HOLE, 1},
    {"noncanonicalstack", code_push, HOLE, 1},
    {"unaligned", code_vector, ODD, 1},
    {"alignmentcheck", code_checked, ODD, 1},
    {"icebp", code_icebp, ZERO, 1},
};
#else
CODE(code_stack, "stp x0, x1, [sp, #-16]!\n sub sp, sp, #4080\n b code_stack");
CODE(code_undefined, "udf #0");
CODE(code_breakpoint, "brk #0");
CODE(code_system, "mrs x1, sctlr_el1");
CODE(code_hvc, "hvc #0");
CODE(code_smc, ".long 0xd4000003"); /* smc #0, which this assembler reserves for EL3 */
CODE(code_pair, "stp x1, x2, [x0]");
CODE(code_exclusive, "ldxr x1, [x0]");
CODE(code_acquire, "ldar x1, [x0]");

static const struct fault faults[] = {
    {"null", code_load, ZERO, 0},
    {"wild", code_load, UNMAPPED, 0},
    {"wildstore", code_store, UNMAPPED, 0},
    {"wildjump", code_jump, UNMAPPED, 0},
    {"none", code_load, NONE, 0},
    {"nonestore", code_store, NONE, 0},
    {"ro", code_store, CONSTANT, 0},
    {"code", code_store, CODE_ITSELF, 0},
    {"pair", code_pair, CONSTANT, 0},
    {"nx", code_jump, DATA, 0},
    {"kernel", code_load, KERNEL, 0},
    {"kernelstore", code_store, KERNEL, 0},
    {"kerneljump", code_jump, KERNEL, 0},
    {"noncanonical", code_load, HOLE, 0},
    {"top", code_load, TOP, 0},
    {"straddle", code_load, PAGE_END, 0},
    {"straddlestore", code_store, PAGE_END, 0},
    {"eof", code_load, PAST_EOF, 0},
    {"eofstore", code_store, PAST_EOF, 0},
    {"stackoverflow", code_stack, ZERO, 0},
    {"ud", code_undefined, ZERO, 0},
    {"brk", code_breakpoint, ZERO, 0},
    {"gp", code_system, ZERO, 0},
    {"hvc", code_hvc, ZERO, 0},
    {"smc", code_smc, ZERO, 0},
    {"unaligned", code_exclusive, ODD, 0},
    {"unalignedacquire", code_acquire, ODD, 1},
    {"unalignedjump", code_jump, CODE_ITSELF, 1},
};
#endif

static const u64 constant[2] = {1, 2};
static u64 data[4] = {1, 2, 3, 4};

/* The address each fault is raised at. `code` is its own code, for those that write or misread it. */
static u64 address_of(enum place place, void (*code)(void), char *unmapped, char *none, char *past_eof) {
    switch (place) {
    case CODE_ITSELF: return code == code_jump ? (u64)code + 2 : (u64)code;
    case UNMAPPED: return (u64)unmapped + 0x528;
    case NONE: return (u64)none + 0x10;
    case CONSTANT: return (u64)constant;
    case DATA: return (u64)data;
    case KERNEL: return KERNEL_HALF + 0x1230;
    case HOLE: return 0x0001000000000000UL + 0x1230;
    case PAGE_END: return (u64)unmapped - 3; /* three bytes are there, five are not */
    case PAST_EOF: return (u64)past_eof + 0x18;
    case ODD: return (u64)data + 1;
    case TOP: return 0x0000800000000000UL - PAGE; /* the last page of 47 bits, which Linux never hands out */
    default: return 0;
    }
}

static void report(const struct fault *fault, u64 address, const struct outcome *out) {
    const char *addr = out->addr == 0              ? "0"
                       : out->addr == address      ? "address"
                       : out->addr == out->pc      ? "pc"
                       : out->addr == address + 3  ? "next page"
                       : out->sp - out->addr <= 16 ? "sp"
                                                   : "other";
    u64 code = (u64)fault->code;
    const char *pc = out->pc == code      ? "at"
                     : out->pc == address ? "target"
                     : out->pc - code < 4 ? "after"
                                          : "inside";
    if (!out->signo) {
        printf("%-17s nothing\n", fault->name);
        return;
    }
    printf("%-17s %-7s code %-3d addr %-9s pc %-6s ", fault->name, signal_name(out->signo), out->code, addr,
           pc);
#if defined(__x86_64__)
    printf("trap %-2lu error 0x%-3lx ", out->trapno, out->error);
#else
    /* The level at which a walk ended depends on the tables that happen to exist: it is left out. */
    u64 status = out->error & 0x3c, walked = status == 0x04 || status == 0x0c;
    printf("esr %08lx ", walked ? out->error & ~3UL : out->error);
#endif
    printf("registers %s\n", out->registers_kept ? "kept" : "LOST");
}

int main(int argc, char **argv) {
    if (argc != 2) FAIL("usage: faults NAME | all | strict | list");
    int self = open_self(argv), all = streq(argv[1], "all"), strict = streq(argv[1], "strict");
    int list = streq(argv[1], "list"), raised = 0;
    u64 size = ROUND_UP((u64)SYSCALL(lseek, self, 0, 2), PAGE);
    char *pages = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *file = mmap(NULL, size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, self, 0);
    if (IS_ERROR(pages) || IS_ERROR(file)) FAIL("mmap: %s, %s", answer((i64)pages), answer((i64)file));
    mprotect(pages, PAGE, PROT_NONE);
    munmap(pages + 3 * PAGE, PAGE); /* the pages stay above it, so nothing but their neighbour is missing */
    if (all || strict) probe_setup();
    for (u64 i = 0; i < COUNT(faults); i++) {
        const struct fault *fault = &faults[i];
        struct outcome out;
        u64 address = address_of(fault->place, fault->code, pages + 3 * PAGE, pages, file + size);
        if (list) printf("%s\n", fault->name);
        if (!(all || strict ? fault->strict == strict : streq(argv[1], fault->name))) continue;
        raised = 1;
        probe(fault->code, address, &out);
        if (all || strict) report(fault, address, &out);
        else FAIL("%s raised nothing", fault->name);
    }
    if (!raised && !list) FAIL("no fault is named %s", argv[1]);
    return 0;
}
