/* frames: what a signal frame shows of a fault, what rt_sigreturn makes of a frame that was changed, and how
 * many signals wait. frames overflow: more frames than the alternate stack has room for. */
#include "aether.h"

#define MARK 0x5eed5eed5eedUL
enum { SIGCONT = 18, SIGTSTP = 20, RLIMIT_SIGPENDING = 11, SA_EXPOSE_TAGBITS = 0x800 };

static void holds(const char *claim, int truth) { printf("  %-60s %s\n", claim, truth ? "yes" : "NO"); }

static const char *forgery; /* what the handler changes in its frame */
#define FORGE(name) if (streq(forgery, name))
static struct ucontext good;
static struct {
    int signo, code, kept; /* kept: the frame had the register that the forged one had */
    u64 addr;
} seen;
static u8 other_stack[128 * KIB] __attribute__((aligned(64)));
static u8 room[KIB] __attribute__((aligned(64)));

static void use_stack(void *base, i32 flags, u64 size) {
    struct sigaltstack stack = {base, flags, 0, size};
    SYSCALL(sigaltstack, &stack, NULL);
}

/* -------------------------------------------------------------------------------------- the two ISAs */
#if defined(__x86_64__)
#define MARKED(uc) ((uc)->gregs[REG_RBX])
#define LEAST_STACK 2048
#define MOST_FRAMES 8
#define CLEAR_TRAP(uc) ((uc)->gregs[REG_EFL] &= ~0x100UL)
/* tgkill, with a register that a frame may change; answers what it holds afterwards. */
__attribute__((naked)) static u64 raise_marked(u64 process, u64 thread, u64 signo) {
    __asm__("pushq %rbx\n xorl %ebx, %ebx\n movl $234, %eax\n syscall\n movq %rbx, %rax\n popq %rbx\n retq");
}
static void keep(struct ucontext *uc) { memcpy(good.gregs, uc->gregs, sizeof uc->gregs); }
static void back(struct ucontext *uc) { memcpy(uc->gregs, good.gregs, sizeof uc->gregs); }

static const char *const forgeries[] = {
    "nothing", "cs 0x10", "cs 0", "cs 0x2b", "cs 0x1234", "cs and ss bad", "ss 0", "ss 0x28", "ss 0x33",
    "ss 0x1234", "ss 0x1234, not strict", "rip not canonical", "rip in the kernel", "IOPL, VM, NT and no IF",
    "no fpstate", "fpstate at 8", "fpstate odd", "fpstate in the kernel", "reserved bits of mxcsr",
    "no first magic", "no second magic", "xstate_size 0", "xstate_size huge", "fpstate moved to 64",
    "fpstate moved to 16", "XSTATE_BV empty", "XSTATE_BV bit 62", "XSTATE_BV bit 20", "XCOMP_BV 1",
    "XCOMP_BV bit 63", "header byte 16", "header byte 24", "header byte 63", "xfeatures 0", "xfeatures 1",
    "xfeatures 1 and mxcsr", "ss_flags 77", "ss_size small", "ss_size 9999", "ss_flags 1",
};

static void forge(struct ucontext *uc) {
    u64 *segments = &uc->gregs[REG_CSGSFS], code = *segments & ~0xffffUL, stack = *segments & ~0UL >> 16;
    u32 *area = (u32 *)uc->fpstate, *header = area + 128;
    FORGE("cs 0x10") *segments = code | 0x10;
    FORGE("cs 0") *segments = code;
    FORGE("cs 0x2b") *segments = code | 0x2b;
    FORGE("cs 0x1234") *segments = code | 0x1234;
    FORGE("cs and ss bad") *segments = 0x0033000000000010UL;
    FORGE("ss 0") *segments = stack;
    FORGE("ss 0x28") *segments = stack | 0x28UL << 48;
    FORGE("ss 0x33") *segments = stack | 0x33UL << 48;
    FORGE("ss 0x1234") *segments = stack | 0x1234UL << 48;
    FORGE("ss 0x1234, not strict") *segments = stack | 0x1234UL << 48, uc->flags &= ~4UL;
    FORGE("rip not canonical") UC_PC(uc) = 0x0008000000000000UL;
    FORGE("rip in the kernel") UC_PC(uc) = KERNEL_HALF;
    FORGE("IOPL, VM, NT and no IF") uc->gregs[REG_EFL] = (uc->gregs[REG_EFL] | 0x27000) & ~0x200UL;
    FORGE("no fpstate") uc->fpstate = 0;
    FORGE("fpstate at 8") uc->fpstate = 8;
    FORGE("fpstate odd") uc->fpstate += 8;
    FORGE("fpstate in the kernel") uc->fpstate = KERNEL_HALF;
    FORGE("reserved bits of mxcsr") area[6] |= 0x80000000;
    FORGE("no first magic") area[116] = 0, header[1] = ~0U;
    FORGE("no second magic") *(u32 *)((u8 *)area + area[120]) = 0, header[1] = ~0U;
    FORGE("xstate_size 0") area[120] = 0, header[1] = ~0U;
    FORGE("xstate_size huge") area[120] = 0x10000, header[1] = ~0U;
    if (streq(forgery, "fpstate moved to 64") || streq(forgery, "fpstate moved to 16")) {
        u8 *to = forgery[17] == '6' ? room : room + 16;
        memcpy(to, area, 576);
        *(u32 *)(to + 576) = 0x46505845;
        ((u32 *)to)[120] = 576;
        ((u64 *)to)[59] = ((u64 *)to)[64] = 3; /* x87 and SSE alone */
        uc->fpstate = (u64)to;
    }
    FORGE("XSTATE_BV empty") header[0] = header[1] = 0;
    FORGE("XSTATE_BV bit 62") header[1] |= 1 << 30;
    FORGE("XSTATE_BV bit 20") header[0] |= 1 << 20;
    FORGE("XCOMP_BV 1") header[2] = 1;
    FORGE("XCOMP_BV bit 63") header[3] = 1U << 31;
    FORGE("header byte 16") header[4] = 1;
    FORGE("header byte 24") header[6] = 1;
    FORGE("header byte 63") header[15] = 1U << 24;
    FORGE("xfeatures 0") area[118] = area[119] = 0;
    FORGE("xfeatures 1") area[118] = 1, area[119] = 0;
    FORGE("xfeatures 1 and mxcsr") area[118] = 1, area[119] = 0, area[6] |= 0x80000000;
}

#define SHOW_LENGTH 5
static void show(struct ucontext *uc, u64 *out) {
    out[0] = uc->gregs[REG_TRAPNO];
    out[1] = uc->gregs[REG_ERR];
    out[2] = uc->gregs[REG_CR2];
    out[3] = uc->gregs[REG_EFL] >> 16 & 1;
    out[4] = uc->gregs[REG_CSGSFS];
}
static void print_shown(const u64 *was) {
    printf("trapno %lu, err %lx, cr2 %lx, RF %lu, selectors %lx", was[0], was[1], was[2], was[3], was[4]);
}
CODE(code_breakpoint, "int3");
CODE(code_undefined, "ud2");
CODE(code_halt, "hlt");
CODE(code_stepped, "pushfq\n orq $0x100, (%rsp)\n popfq\n movq (%rdi), %rcx");
CODE(code_x87, "fninit\n pushq $0x37b\n fldcw (%rsp)\n popq %rcx\n fld1\n fldz\n fdivrp\n fwait");

static void look(int signo, struct siginfo *info, struct ucontext *uc) {
    (void)signo, (void)info;
    u32 *area = (u32 *)uc->fpstate;
    holds("after a system call rcx is the pc, r11 the flags",
          uc->gregs[REG_RCX] == UC_PC(uc) && uc->gregs[REG_R11] == uc->gregs[REG_EFL]);
    holds("uc_flags tell of XSAVE and of SS", uc->flags == 7);
    holds("the state is aligned to 64 bytes", uc->fpstate % 64 == 0);
    holds("its size is told", area[116] == 0x46505853 && area[117] == area[120] + 4 && area[120] >= 576);
    holds("a mark ends it", *(u32 *)((u8 *)area + area[120]) == 0x46505845);
    holds("it has x87 and SSE", (area[118] & area[128] & 3) == 3 && area[7] == 0xffff && area[6] == 0x1f80);
    holds("in standard form", *(u64 *)(area + 130) == 0);
}
static void about_state(void) {
    printf("frames of x86_64\n");
    sigaction(SIGUSR1, look, SA_SIGINFO, 0);
    raise(SIGUSR1);
}
#else
static void about_state(void) {}
#define MARKED(uc) ((uc)->regs[19])
#define LEAST_STACK 5120
#define CLEAR_TRAP(uc)
#define MOST_FRAMES 2 /* from the third on they would lie over each other */
__attribute__((naked)) static u64 raise_marked(u64 process, u64 thread, u64 signo) {
    __asm__("stp x19, x30, [sp, #-16]!\n mov x19, #0\n mov x8, #131\n svc #0\n mov x0, x19\n"
            "ldp x19, x30, [sp], #16\n ret");
}
static void keep(struct ucontext *uc) { memcpy(good.regs, uc->regs, 34 * sizeof(u64)); }
static void back(struct ucontext *uc) { memcpy(uc->regs, good.regs, 34 * sizeof(u64)); }

static const char *const forgeries[] = {
    "nothing", "EL1h", "EL1t", "EL3h", "AArch32", "D", "A", "I", "F", "bits 5, 13 to 23, 26 to 63", "SS",
    "pc not canonical", "pc in the kernel", "sp in the kernel and EL1h", "no FPSIMD", "bad magic",
    "FPSIMD too small", "FPSIMD too large", "record larger than its space", "record of odd size",
    "record of size 0", "FPSIMD twice", "unknown record", "ESR first", "ESR twice", "ESR of size 0", "SVE",
    "ESR fills the rest", "no end", "extra with FPSIMD", "extra twice", "extra elsewhere", "extra too short",
    "extra without its end", "extra of odd size", "extra too large", "extra with nothing",
    "ss_flags 77", "ss_size small", "ss_size 9999", "ss_flags 1",
};

enum { FPSIMD = 0x46508001, ESR = 0x45535201, EXTRA = 0x45585401, SVE = 0x53564501, FPSIMD_SIZE = 528 };
static u8 fpsimd[FPSIMD_SIZE];

static u8 *put(u8 *at, u32 magic, u32 size) {
    ((u32 *)at)[0] = magic;
    ((u32 *)at)[1] = size;
    return at + size;
}
static u8 *put_fpsimd(u8 *at) {
    memcpy(at, fpsimd, sizeof fpsimd);
    return at + sizeof fpsimd;
}
/* An extra record, its end, and room for `length` bytes of records behind it: answers where they begin. */
static u8 *put_extra(u8 *at, u64 length) {
    u8 *data = put(put(at, EXTRA, 32), 0, 0) + 16;
    ((u64 *)at)[1] = (u64)data;
    ((u64 *)at)[2] = length;
    ((u64 *)at)[3] = 0;
    return data;
}

static void forge_extra(u8 *record) {
    u8 *data = put_extra(record, FPSIMD_SIZE + 16);
    put(put_fpsimd(data), 0, 0);
    FORGE("extra twice") put(put_fpsimd(put_extra(data, FPSIMD_SIZE + 16)), 0, 0);
    FORGE("extra elsewhere") ((u64 *)record)[1] = (u64)room;
    FORGE("extra too short") put(put(record, EXTRA, 16), 0, 0);
    FORGE("extra without its end") put(record + 32, ESR, 16);
    FORGE("extra of odd size") ((u64 *)record)[2] += 8;
    FORGE("extra too large") ((u64 *)record)[2] = 256 * KIB;
    FORGE("extra with nothing") put(data, 0, 0);
}

static void forge(struct ucontext *uc) {
    u8 *record = uc->records, *behind = record + FPSIMD_SIZE;
    for (u32 *r = (u32 *)record; r[1]; r += r[1] / 4)
        if (r[0] == FPSIMD) memcpy(fpsimd, r, sizeof fpsimd);
    put(put_fpsimd(record), 0, 0);
    FORGE("EL1h") uc->pstate |= 5;
    FORGE("EL1t") uc->pstate |= 4;
    FORGE("EL3h") uc->pstate |= 13;
    FORGE("AArch32") uc->pstate |= 0x10;
    FORGE("D") uc->pstate |= 0x200;
    FORGE("A") uc->pstate |= 0x100;
    FORGE("I") uc->pstate |= 0x80;
    FORGE("F") uc->pstate |= 0x40;
    FORGE("bits 5, 13 to 23, 26 to 63") uc->pstate |= 0xffffffff0cffe020UL & ~(1UL << 21);
    FORGE("SS") uc->pstate |= 1UL << 21;
    FORGE("pc not canonical") UC_PC(uc) = 0x0008000000000000UL;
    FORGE("pc in the kernel") UC_PC(uc) = KERNEL_HALF;
    FORGE("sp in the kernel and EL1h") uc->pstate |= 5, UC_SP(uc) = ~15UL;
    FORGE("no FPSIMD") put(record, 0, 0);
    FORGE("bad magic") put(record, 0xdeadbeef, FPSIMD_SIZE);
    FORGE("FPSIMD too small") put(put(record, FPSIMD, FPSIMD_SIZE - 16), 0, 0);
    FORGE("FPSIMD too large") put(put(record, FPSIMD, FPSIMD_SIZE + 16), 0, 0);
    FORGE("record larger than its space") put(behind, ESR, 4096);
    FORGE("record of odd size") put(behind, ESR, 19);
    FORGE("record of size 0") put(behind, 0, 16);
    FORGE("FPSIMD twice") put(put_fpsimd(behind), 0, 0);
    FORGE("unknown record") put(put(behind, 0x12345678, 16), 0, 0);
    FORGE("ESR first") put(put_fpsimd(put(record, ESR, 16)), 0, 0);
    FORGE("ESR twice") put(put(put(behind, ESR, 16), ESR, 16), 0, 0);
    FORGE("ESR of size 0") put(behind, ESR, 0);
    FORGE("SVE") put(put(behind, SVE, 16), 0, 0);
    FORGE("ESR fills the rest") put(behind, ESR, 4096 - FPSIMD_SIZE - 16), put(record + 4080, 0, 0);
    FORGE("no end") put(behind, ESR, 4096 - FPSIMD_SIZE);
    if (forgery[0] == 'e') forge_extra(record);
}

#define SHOW_LENGTH 3
static void show(struct ucontext *uc, u64 *out) {
    out[0] = uc->fault_address;
    out[1] = out[2] = 0;
    for (u32 *record = (u32 *)uc->records; record[1]; record += record[1] / 4)
        if (record[0] == ESR) out[1] = 1, out[2] = *(u64 *)(record + 2);
    u64 status = out[2] & 0x3c; /* a translation, access flag or permission fault says at which level: */
    if (status && status <= 0xc) out[2] &= ~3UL; /* that depends on the size of pages */
}
static void print_shown(const u64 *was) {
    printf("fault_address %lx, ", was[0]);
    if (was[1]) printf("ESR %lx", was[2]);
    else printf("no ESR");
}
CODE(code_breakpoint, "brk #0");
CODE(code_undefined, "udf #0");
CODE(code_exclusive, "ldxr x1, [x0]");
CODE(code_zero, "dc zva, x0");
#endif

/* ------------------------------------------------------------------------------------ forged frames */
static u64 seen_shown[SHOW_LENGTH];

static void forger(int signo, struct siginfo *info, struct ucontext *uc) {
    (void)signo, (void)info;
    keep(uc);
    MARKED(uc) = MARK;
    FORGE("ss_flags 77") uc->stack_flags = 77;
    FORGE("ss_size small") uc->stack_size = LEAST_STACK - 1;
    FORGE("ss_size 9999") uc->stack_size = 9999;
    FORGE("ss_flags 1") uc->stack_flags = 1;
    forge(uc);
}
static void caught(int signo, struct siginfo *info, struct ucontext *uc) {
    seen.signo = signo;
    seen.code = info->code;
    seen.addr = info->addr;
    seen.kept = MARKED(uc) == MARK;
    show(uc, seen_shown);
    back(uc);
}

static void about_forgeries(void) {
    printf("forged frames\n");
    sigaction(SIGUSR1, forger, SA_SIGINFO, 0);
    sigaction(SIGSEGV, caught, SA_SIGINFO | SA_ONSTACK, 0);
    for (u64 i = 0; i < COUNT(forgeries); i++) {
        struct sigaltstack after;
        forgery = forgeries[i];
        seen.signo = 0;
        use_stack(other_stack, 0, sizeof other_stack);
        u64 mark = raise_marked((u64)SYSCALL(getpid), (u64)SYSCALL(gettid), SIGUSR1);
        SYSCALL(sigaltstack, NULL, &after);
        printf("  %-29s", forgery);
        if (seen.signo) {
            printf("%s %d, %s, ", signal_name(seen.signo), seen.code, seen.kept ? "changed" : "as before");
            print_shown(seen_shown);
            printf("\n");
        } else printf("goes on, %s\n", mark == MARK ? "changed" : "as before");
        if (after.size != sizeof other_stack || after.flags)
            printf("    the alternate stack has %lu bytes, flags %d\n", after.size, after.flags);
    }
}

/* ---------------------------------------------------------------------------------- faults in frames */
static void shower(int signo, struct siginfo *info, struct ucontext *uc) {
    (void)signo;
    seen.addr = info->addr;
    show(uc, seen_shown);
}
static void taken(int signo, struct siginfo *info, struct ucontext *uc) {
    seen.addr = info->addr;
    show(uc, seen_shown);
    probe_handler(signo, info, uc);
    CLEAR_TRAP(uc);
}
static void fault(const char *name, void (*code)(void), u64 address) {
    struct outcome out;
    probe(code, address, &out);
    int own = out.signo == SIGILL || out.signo == SIGTRAP || out.signo == SIGFPE; /* at the program's own pc */
    printf("  %-29s%s %d at %lx, ", name, signal_name(out.signo), out.code, out.code == 0x80 || own ? 0 : seen.addr);
    if (!own) print_shown(seen_shown);
    printf("\n");
    raise(SIGUSR2);
    printf("    and the next frame shows: ");
    print_shown(seen_shown);
    printf("\n");
}

static void about_faults(void) {
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
    u8 *nothing = mmap((void *)(64 * GIB), PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    u8 *data = mmap((void *)(65 * GIB), PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (nothing != (u8 *)(64 * GIB) || data != (u8 *)(65 * GIB)) FAIL("no room at 64 GiB");
    data[0] = 1;
    printf("what frames show\n");
    probe_setup();
    sigaction(SIGUSR2, shower, SA_SIGINFO, 0);
    for (u64 i = 0; i < COUNT(signals); i++) sigaction(signals[i], taken, SA_SIGINFO | SA_ONSTACK, 0);
    fault("load", code_load, (u64)nothing + 5);
    fault("store", code_store, (u64)nothing + 5);
    fault("jump", code_jump, (u64)nothing + 8);
    fault("store to what is absent", code_store, 4096);
    fault("load of the kernel's", code_load, KERNEL_HALF + 64 * KIB);
    fault("jump to the kernel's", code_jump, KERNEL_HALF + 64 * KIB);
    fault("load, not canonical", code_load, 0x0008000000000000UL);
#if defined(__x86_64__)
    fault("hlt", code_halt, 0);
    fault("load with TF set", code_stepped, (u64)nothing + 5);
    sigaction(SIGTRAP, probe_handler, SA_SIGINFO | SA_ONSTACK, 0);
    sigaction(SIGILL, probe_handler, SA_SIGINFO | SA_ONSTACK, 0);
    fault("undefined", code_undefined, 0);
    fault("breakpoint", code_breakpoint, 0);
    sigaction(SIGFPE, taken, SA_SIGINFO | SA_ONSTACK, 0);
    fault("x87, 1 / 0", code_x87, 0);
    __asm__ volatile("fninit");
#else
    sigaction(SIGTRAP, probe_handler, SA_SIGINFO | SA_ONSTACK, 0);
    sigaction(SIGILL, probe_handler, SA_SIGINFO | SA_ONSTACK, 0);
    fault("a misaligned exclusive", code_exclusive, (u64)data + 4);
    fault("undefined", code_undefined, 0);
    fault("load", code_load, (u64)nothing + 5);
    fault("breakpoint", code_breakpoint, 0);
    fault("dc zva", code_zero, (u64)nothing + 5);
    for (int exposed = 0; exposed < 2; exposed++) {
        u64 flags = SA_SIGINFO | SA_ONSTACK | (exposed ? SA_EXPOSE_TAGBITS : 0);
        for (u64 i = 0; i < COUNT(signals); i++) sigaction(signals[i], taken, flags, 0);
        printf(exposed ? "with SA_EXPOSE_TAGBITS\n" : "tagged pointers\n");
        fault("load", code_load, 0xabUL << 56 | ((u64)nothing + 5));
        fault("store", code_store, 0xabUL << 56 | ((u64)nothing + 5));
        fault("jump", code_jump, 0xabUL << 56 | (u64)nothing);
        fault("load of the kernel's", code_load, 0xab80000000000000UL);
    }
#endif
}

/* ------------------------------------------------------------------------------ actions, stacks, queue */
static u64 order[8];
static int ran;
static struct siginfo told;
static void note(int signo) {
    if (ran < 8) order[ran] = (u64)signo;
    ran++;
}
static void note_told(int signo, struct siginfo *info, struct ucontext *uc) {
    (void)uc;
    told = *info;
    note(signo);
}

static void about_actions(void) {
    struct sigaction old;
    printf("actions and stacks\n");
    sigaction(SIGUSR2, note, ~0UL & ~SA_RESETHAND & ~0x04000000UL, 0);
    SYSCALL(rt_sigaction, SIGUSR2, NULL, &old, 8);
    holds("flags that nobody knows are cleared", (old.flags & ~0x04000000UL) == 0x58000807);
    struct sigaltstack nothing = {NULL, 0, 0, 0}, small = {other_stack, 0, 0, LEAST_STACK - 1};
    use_stack(NULL, SS_DISABLE, 0);
    use_stack(other_stack, SS_DISABLE, 77);
    printf("  nothing, over nothing: %s\n", answer(SYSCALL(sigaltstack, &nothing, NULL)));
    printf("  a byte less than the least: %s\n", answer(SYSCALL(sigaltstack, &small, NULL)));
    small.size++;
    printf("  the least: %s\n", answer(SYSCALL(sigaltstack, &small, NULL)));
    printf("  a wild pointer and signal 99: %s\n", answer(SYSCALL(rt_sigaction, 99, (void *)8, NULL, 8)));
}

static void about_queue(void) {
    u64 limit[2] = {3, 3}, all = ~0UL;
    i64 answers[4];
    printf("waiting signals\n");
    for (int signo = SIGRTMIN; signo < SIGRTMIN + 2; signo++) sigaction(signo, note_told, SA_SIGINFO, all);
    sigaction(SIGUSR1, note_told, SA_SIGINFO, all);
    sigaction(SIGUSR2, note_told, SA_SIGINFO, all);
    sigaction(SIGSEGV, note_told, SA_SIGINFO, all);
    SYSCALL(prlimit64, 0, RLIMIT_SIGPENDING, limit, NULL);
    sigprocmask(SIG_SETMASK, all, NULL);
    for (int i = 0; i < 4; i++) answers[i] = raise(SIGRTMIN);
    for (int i = 0; i < 4; i++) printf("  tgkill number %d: %s\n", i + 1, answer(answers[i]));
    printf("  kill, when the queue is full: %s\n", answer(SYSCALL(kill, SYSCALL(getpid), SIGRTMIN + 1)));
    printf("  a standard signal then: %s\n", answer(raise(SIGUSR1)));
    printf("  and by kill: %s\n", answer(SYSCALL(kill, SYSCALL(getpid), SIGUSR2)));
    SYSCALL(kill, SYSCALL(getpid), SIGSEGV);
    raise(SIGTSTP);
    raise(SIGCONT);
    u64 waiting;
    SYSCALL(rt_sigpending, &waiting, 8);
    holds("SIGCONT takes a waiting SIGTSTP away", !(waiting & BIT(SIGTSTP)) && waiting & BIT(SIGCONT));
    ran = 0;
    sigprocmask(SIG_SETMASK, ~BIT(SIGSEGV) & ~BIT(SIGUSR2), NULL);
    holds("of two, the one that an instruction could raise runs first", ran == 2 && order[1] == SIGUSR2);
    holds("a signal that kill sent says who sent it", told.code == 0 && (u32)told.addr != 0);
    ran = 0;
    sigprocmask(SIG_SETMASK, ~BIT(SIGRTMIN), NULL);
    holds("three real-time signals were queued", ran == 3 && told.code == -6);
    ran = 0;
    sigprocmask(SIG_SETMASK, ~BIT(SIGUSR1), NULL);
    holds("the standard one without room tells nothing", ran == 1 && told.code == 0 && told.addr == 0);
    ran = 0;
    sigprocmask(SIG_SETMASK, ~BIT(SIGRTMIN + 1), NULL);
    holds("nor does the real-time one that kill sent", ran == 1 && told.code == 0 && told.addr == 0);
    sigprocmask(SIG_SETMASK, BIT(SIGRTMIN), NULL);
    holds("now there is room again", raise(SIGRTMIN) == 0);
}

/* ----------------------------------------------------------------------------- a frame without room */
static int depth;
static void again(int signo) {
    if (++depth < MOST_FRAMES) raise(signo);
}
static void overflow(void) {
    u64 least = auxiliary_value(51 /* AT_MINSIGSTKSZ */);
    u64 size = (least > LEAST_STACK ? least : LEAST_STACK) + KIB;
    use_stack(other_stack + sizeof other_stack - size, 0, size);
    sigaction(SIGUSR1, again, SA_ONSTACK | SA_NODEFER, 0);
    raise(SIGUSR1);
    printf("%d frames\n", depth);
}

int main(int argc, char **argv) {
    if (argc > 1 && streq(argv[1], "overflow")) overflow();
    else {
        about_forgeries();
        about_faults();
        about_state();
        about_actions();
        about_queue();
    }
    return 0;
}
