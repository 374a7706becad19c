/* signals: what a program can rely on when signals reach it: who runs when, what is blocked meanwhile, what
 * a handler is told, what survives it and what it may change. signals NAME ends instead by a signal that no
 * handler can take: blocked, nested, ignored, badstack, badreturn, badpc, default, abort, kill. */
#include "aether.h"

static int broken;
static char trace[64]; /* what ran, in order */
static u64 traced;

static void holds(const char *claim, int truth) {
    printf("  %-64s %s\n", claim, truth ? "yes" : "NO");
    broken |= !truth;
}
static void row(const char *question, i64 result) { printf("  %-64s %s\n", question, answer(result)); }

static void note(char what) { trace[traced++] = what; }
static void start_trace(void) {
    memset(trace, 0, sizeof trace);
    traced = 0;
}
static u64 blocked_now(void) {
    u64 mask;
    SYSCALL(rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8);
    return mask;
}
static u64 pending_now(void) {
    u64 mask;
    SYSCALL(rt_sigpending, &mask, 8);
    return mask;
}
static char letter(int signo) { return signo == SIGUSR1 ? '1' : signo == SIGUSR2 ? '2' : 'r'; }

/* Handlers. `tracer` writes "<1" when it starts and ">" when it ends. */
static struct siginfo seen_info;
static u64 seen_mask, seen_frame;
static int seen_signo, seen_order;

static void tracer(int signo) {
    note('<');
    note(letter(signo));
    seen_mask = blocked_now();
    note('>');
}
static void recorder(int signo, struct siginfo *info, struct ucontext *uc) {
    seen_signo = signo;
    seen_info = *info;
    seen_mask = uc->mask;
    seen_frame = (u64)__builtin_frame_address(0);
    seen_order = (u64)info > seen_frame && (u64)uc > seen_frame;
}
static void raises_itself(int signo) {
    note('<');
    note(letter(signo));
    if (traced < 6) raise(signo);
    note('>');
}
static void raises_other(int signo) {
    note('<');
    note(letter(signo));
    raise(SIGUSR2);
    note('>');
}

static void about_delivery(void) {
    printf("delivery\n");
    sigaction(SIGUSR1, recorder, SA_SIGINFO, 0);
    row("tgkill to myself", raise(SIGUSR1));
    holds("the handler ran before tgkill returned", seen_signo == SIGUSR1);
    holds("it was told the signal, SI_TKILL and my pid",
          seen_info.signo == SIGUSR1 && seen_info.code == -6 && (i64)(u32)seen_info.addr == SYSCALL(getpid));
    row("kill of myself", SYSCALL(kill, SYSCALL(getpid), SIGUSR1));
    holds("it was told SI_USER", seen_info.code == 0);
    holds("its frame is aligned to 16 bytes, below what it is told", (seen_frame & 15) == 0 && seen_order);
    start_trace();
    sigaction(SIGUSR1, tracer, 0, 0);
    raise(SIGUSR1);
    holds("a handler without SA_SIGINFO runs too", streq(trace, "<1>"));
    holds("its own signal was blocked meanwhile, and is no more",
          seen_mask == BIT(SIGUSR1) && blocked_now() == 0);
}

static void about_nesting(void) {
    printf("nesting\n");
    start_trace();
    sigaction(SIGUSR1, raises_other, 0, 0);
    sigaction(SIGUSR2, tracer, 0, 0);
    raise(SIGUSR1);
    holds("another signal interrupts a handler",
          streq(trace, "<1<2>>") && seen_mask == (BIT(SIGUSR1) | BIT(SIGUSR2)));
    start_trace();
    sigaction(SIGUSR1, raises_other, 0, BIT(SIGUSR2));
    raise(SIGUSR1);
    holds("unless it is in sa_mask: then it comes afterwards", streq(trace, "<1><2>"));
    start_trace();
    sigaction(SIGUSR1, raises_itself, 0, 0);
    raise(SIGUSR1);
    holds("a handler's own signal comes afterwards", streq(trace, "<1><1><1>"));
    start_trace();
    sigaction(SIGUSR1, raises_itself, SA_NODEFER, 0);
    raise(SIGUSR1);
    holds("with SA_NODEFER it comes at once", streq(trace, "<1<1<1>>>"));
    start_trace();
    sigaction(SIGUSR1, tracer, SA_RESETHAND, 0);
    struct sigaction old;
    raise(SIGUSR1);
    SYSCALL(rt_sigaction, SIGUSR1, NULL, &old, 8);
    holds("with SA_RESETHAND the handler is gone after one signal",
          streq(trace, "<1>") && old.handler == SIG_DFL);
    start_trace();
    sigaction(SIGUSR1, SIG_IGN, 0, 0);
    raise(SIGUSR1);
    raise(SIGCHLD);
    raise(SIGURG);
    raise(SIGWINCH);
    holds("SIG_IGN and signals ignored by default do nothing", streq(trace, ""));
}

static void about_blocking(void) {
    u64 both = BIT(SIGUSR1) | BIT(SIGUSR2), old;
    printf("blocking\n");
    sigaction(SIGUSR1, tracer, 0, 0);
    sigaction(SIGUSR2, tracer, 0, 0);
    sigaction(SIGRTMIN, tracer, 0, 0);
    sigaction(SIGRTMIN + 1, tracer, 0, 0);
    start_trace();
    sigprocmask(SIG_BLOCK, both, NULL);
    raise(SIGUSR1);
    holds("a blocked signal waits", streq(trace, "") && pending_now() == BIT(SIGUSR1));
    raise(SIGUSR1);
    sigprocmask(SIG_UNBLOCK, BIT(SIGUSR1), &old);
    holds("two of one kind are delivered once, when unblocked",
          streq(trace, "<1>") && pending_now() == 0 && old == both);
    start_trace();
    sigprocmask(SIG_BLOCK, both, NULL);
    raise(SIGUSR2);
    raise(SIGUSR1);
    sigprocmask(SIG_SETMASK, 0, NULL);
    holds("of two at once the later frame lies on top and runs first", streq(trace, "<2><1>"));
    start_trace();
    sigaction(SIGUSR1, tracer, 0, BIT(SIGUSR2));
    sigprocmask(SIG_BLOCK, both, NULL);
    raise(SIGUSR2);
    raise(SIGUSR1);
    sigprocmask(SIG_SETMASK, 0, NULL);
    holds("unless the first one's sa_mask blocks the second", streq(trace, "<1><2>"));
    start_trace();
    sigprocmask(SIG_BLOCK, BIT(SIGRTMIN), NULL);
    raise(SIGRTMIN);
    raise(SIGRTMIN);
    raise(SIGRTMIN);
    sigprocmask(SIG_SETMASK, 0, NULL);
    holds("real-time signals are counted: three are three", streq(trace, "<r><r><r>"));
    start_trace();
    sigprocmask(SIG_BLOCK, BIT(SIGUSR1), NULL);
    raise(SIGUSR1);
    sigaction(SIGUSR1, SIG_IGN, 0, 0);
    holds("ignoring a signal discards one that waits", pending_now() == 0);
    sigaction(SIGUSR1, tracer, 0, 0);
    raise(SIGUSR1);
    u64 nothing = 0;
    row("sigsuspend with one waiting", SYSCALL(rt_sigsuspend, &nothing, 8));
    holds("its handler ran, and the mask is what it was",
          streq(trace, "<1>") && blocked_now() == BIT(SIGUSR1));
    sigprocmask(SIG_SETMASK, ~0UL, NULL);
    holds("SIGKILL and SIGSTOP are never blocked", blocked_now() == ~(BIT(SIGKILL) | BIT(SIGSTOP)));
    sigprocmask(SIG_SETMASK, 0, NULL);
}

static void about_refusals(void) {
    struct sigaction old;
    u64 mask = 0;
    printf("refusals\n");
    row("a handler for SIGKILL", sigaction(SIGKILL, tracer, 0, 0));
    row("a handler for SIGSTOP", sigaction(SIGSTOP, tracer, 0, 0));
    row("a question about SIGKILL", SYSCALL(rt_sigaction, SIGKILL, NULL, &old, 8));
    row("signal 0", sigaction(0, tracer, 0, 0));
    row("signal 65", sigaction(65, tracer, 0, 0));
    row("signal -1", sigaction(-1, tracer, 0, 0));
    row("rt_sigaction with a mask of 4 bytes", SYSCALL(rt_sigaction, SIGUSR1, NULL, &old, 4));
    row("rt_sigprocmask with a mask of 16 bytes", SYSCALL(rt_sigprocmask, SIG_BLOCK, &mask, NULL, 16));
    row("rt_sigprocmask, how = 3", SYSCALL(rt_sigprocmask, 3, &mask, NULL, 8));
    row("rt_sigprocmask, how = 3, without a new mask", SYSCALL(rt_sigprocmask, 3, NULL, &mask, 8));
    row("tgkill with signal 0", raise(0));
    row("tgkill with signal 65", raise(65));
    row("tgkill of thread 0", SYSCALL(tgkill, SYSCALL(getpid), 0, SIGUSR1));
    row("tgkill of a thread that is not", SYSCALL(tgkill, SYSCALL(getpid), 0x3fffffff, SIGUSR1));
    row("kill of a process that is not", SYSCALL(kill, 0x3fffffff, SIGUSR1));
    sigaction(SIGUSR2, tracer, SA_NODEFER, BIT(SIGUSR1) | BIT(SIGKILL));
    SYSCALL(rt_sigaction, SIGUSR2, NULL, &old, 8);
    holds("rt_sigaction answers what was set, less SIGKILL in the mask",
          old.handler == tracer && old.flags == (SA_NODEFER | SA_RESTORER) && old.mask == BIT(SIGUSR1));
}

static u8 other_stack[64 * KIB] __attribute__((aligned(16)));
static struct sigaltstack in_handler;
static i64 change_in_handler;
static u64 frames[2];

static int on_other_stack(u64 address) { return address - (u64)other_stack < sizeof other_stack; }

static void on_stack(int signo) {
    struct sigaltstack none = {NULL, SS_DISABLE, 0, 0};
    frames[signo == SIGUSR2] = (u64)__builtin_frame_address(0);
    SYSCALL(sigaltstack, NULL, &in_handler);
    if (signo == SIGUSR1) {
        change_in_handler = SYSCALL(sigaltstack, &none, NULL);
        raise(SIGUSR2);
    }
}

static void about_stacks(void) {
    struct sigaltstack stack = {other_stack, 0, 0, sizeof other_stack}, old;
    printf("sigaltstack\n");
    SYSCALL(sigaltstack, NULL, &old);
    holds("there is none at first", old.flags == SS_DISABLE);
    struct sigaltstack small = {other_stack, 0, 0, 1024}, odd = {other_stack, 4, 0, sizeof other_stack};
    row("one of 1024 bytes", SYSCALL(sigaltstack, &small, NULL));
    row("one with flag 4", SYSCALL(sigaltstack, &odd, NULL));
    row("one of 64 KiB", SYSCALL(sigaltstack, &stack, NULL));
    sigaction(SIGUSR1, on_stack, SA_ONSTACK, 0);
    sigaction(SIGUSR2, on_stack, SA_ONSTACK, 0);
    raise(SIGUSR1);
    holds("a handler with SA_ONSTACK runs there", on_other_stack(frames[0]));
    row("changing it meanwhile", change_in_handler);
    holds("a second one goes on below the first",
          on_other_stack(frames[1]) && frames[1] < frames[0] && in_handler.flags == SS_ONSTACK);
    SYSCALL(sigaltstack, NULL, &old);
    holds("afterwards it is free again",
          old.flags == 0 && old.base == other_stack && old.size == sizeof other_stack);
    sigaction(SIGUSR2, on_stack, 0, 0);
    raise(SIGUSR2);
    holds("a handler without SA_ONSTACK stays on the stack it found", !on_other_stack(frames[1]));
    struct sigaltstack disarm = {other_stack, (i32)SS_AUTODISARM, 0, sizeof other_stack};
    row("one with SS_AUTODISARM", SYSCALL(sigaltstack, &disarm, NULL));
    sigaction(SIGUSR2, on_stack, SA_ONSTACK, 0);
    raise(SIGUSR2);
    SYSCALL(sigaltstack, NULL, &old);
    holds("it is disabled inside the handler and back afterwards",
          on_other_stack(frames[1]) && in_handler.flags == SS_DISABLE && old.flags == disarm.flags &&
              old.size == sizeof other_stack);
    struct sigaltstack none = {NULL, SS_DISABLE, 0, 0};
    row("taking it away", SYSCALL(sigaltstack, &none, NULL));
    raise(SIGUSR2);
    holds("SA_ONSTACK without one uses the stack it found", !on_other_stack(frames[1]));
}

/* The handlers of this part are reached by a breakpoint in the middle of a register-filled fragment. Each
 * spoils all the vector registers and flags it can, and moves the pc past the breakpoint where the ISA
 * leaves it there. */
static int edit; /* what the handler changes in the saved context */
static u64 entry_flags;
enum { EDIT_NOTHING, EDIT_REGISTER, EDIT_VECTOR, EDIT_MASK };

#if defined(__x86_64__)
#define RESULT_REGISTER(uc) ((uc)->gregs[REG_RAX])
#define VECTOR_ZERO(uc) ((u64 *)((uc)->fpstate + 160))
static void spoil(void) {
    u32 rounding = 0x7f80;
    __asm__ volatile(
        "pcmpeqd %%xmm0, %%xmm0\n movdqa %%xmm0, %%xmm1\n movdqa %%xmm0, %%xmm7\n movdqa %%xmm0, %%xmm8\n"
        "movdqa %%xmm0, %%xmm15\n ldmxcsr %0\n fninit\n stc" ::"m"(rounding)
        : "xmm0", "xmm1", "xmm7", "xmm8", "xmm15", "cc");
}
/* Loads xmm0..15 from `in`, breaks, stores them into `out`. */
__attribute__((naked)) static void vectors_across(const u64 *in, u64 *out) {
    __asm__(".set n, 0\n .irp r, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n movdqu 16*n(%rdi), %xmm\\r\n .set "
            "n, n+1\n .endr\n"
            "int3\n .set n, 0\n"
            ".irp r, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n movdqu %xmm\\r, 16*n(%rsi)\n .set n, n+1\n "
            ".endr\n retq");
}
enum { VECTOR_WORDS = 32, FLAG_BITS = 0xcd5, SOME_FLAGS = 0xc41 }; /* CF PF AF ZF SF DF OF; CF ZF DF OF */
/* Sets the arithmetic flags and DF as in `flags`, breaks, answers the flags. */
__attribute__((naked)) static u64 flags_across(u64 flags) {
    __asm__("pushq %rdi\n popfq\n int3\n pushfq\n popq %rax\n cld\n retq");
}
static u64 controls(void) {
    u32 mxcsr;
    u16 x87;
    __asm__ volatile("stmxcsr %0\n fnstcw %1" : "=m"(mxcsr), "=m"(x87));
    return (u64)x87 << 32 | mxcsr;
}
static void set_controls(void) {
    u32 mxcsr = 0x3f80; /* round down */
    u16 x87 = 0x077f;   /* round down, 53 bits */
    __asm__ volatile("ldmxcsr %0\n fldcw %1" ::"m"(mxcsr), "m"(x87));
}
static void reset_controls(void) {
    u32 mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0\n fninit" ::"m"(mxcsr));
}
/* Writes 128 bytes below the stack pointer, breaks, answers whether they are still there. */
__attribute__((naked)) static int red_zone(void) {
    __asm__("movq $16, %rcx\n 1: movq %rcx, -136(%rsp,%rcx,8)\n decq %rcx\n jnz 1b\n int3\n movq $16, %rcx\n"
            "2: cmpq %rcx, -136(%rsp,%rcx,8)\n jne 3f\n decq %rcx\n jnz 2b\n movl $1, %eax\n retq\n 3: xorl "
            "%eax, %eax\n retq");
}
__attribute__((naked)) static u64 broken_at(u64 value) { __asm__("movq %rdi, %rax\n int3\n retq"); }
static u64 flags_here(void) {
    u64 flags;
    __asm__ volatile("pushfq\n popq %0" : "=r"(flags));
    return flags;
}
#define FLAGS_CLEAR_AT_ENTRY 0x400 /* DF: the ABI wants it clear in a handler */
#define SAVED_FLAGS(uc) ((uc)->gregs[REG_EFL])
#else
#define RESULT_REGISTER(uc) ((uc)->regs[0])
static u64 *fpsimd(struct ucontext *uc) {
    for (u32 *record = (u32 *)uc->records; record[1]; record += record[1] / 4)
        if (record[0] == 0x46508001) return (u64 *)record;
    FAIL("no vector registers in the signal frame");
    return NULL;
}
#define VECTOR_ZERO(uc) (fpsimd(uc) + 2)
static void spoil(void) {
    __asm__ volatile("movi v0.16b, #0xff\n mov v1.16b, v0.16b\n mov v7.16b, v0.16b\n mov v8.16b, v0.16b\n "
                     "mov v15.16b, v0.16b\n"
                     "mov v31.16b, v0.16b\n msr fpcr, %0\n msr nzcv, %0" ::"r"(0UL)
                     : "v0", "v1", "v7", "v8", "v15", "v31", "cc");
}
__attribute__((naked)) static void vectors_across(const u64 *in, u64 *out) {
    __asm__(".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n "
            "ldr q\\n, [x0, #16*\\n]\n .endr\n"
            "brk #0\n"
            ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n "
            "str q\\n, [x1, #16*\\n]\n .endr\n ret");
}
enum { VECTOR_WORDS = 64 };
#define FLAG_BITS 0xf0000000UL
#define SOME_FLAGS 0xa0000000UL
__attribute__((naked)) static u64 flags_across(u64 flags) {
    __asm__("msr nzcv, x0\n brk #0\n mrs x0, nzcv\n ret");
}
static u64 controls(void) {
    u64 fpcr, fpsr;
    __asm__ volatile("mrs %0, fpcr\n mrs %1, fpsr" : "=r"(fpcr), "=r"(fpsr));
    return fpcr << 32 | fpsr;
}
static void set_controls(void) {
    __asm__ volatile("msr fpcr, %0\n msr fpsr, %1" ::"r"(2UL << 22), "r"(1UL << 4));
}
static void reset_controls(void) { __asm__ volatile("msr fpcr, %0\n msr fpsr, %0" ::"r"(0UL)); }
static int red_zone(void) { return 1; } /* this ABI protects nothing below the stack pointer */
__attribute__((naked)) static u64 broken_at(u64 value) { __asm__("brk #0\n ret"); }
static u64 flags_here(void) { return 0; }
#define FLAGS_CLEAR_AT_ENTRY 0
#define SAVED_FLAGS(uc) ((uc)->pstate)
#endif

static void breaker(int signo, struct siginfo *info, struct ucontext *uc) {
    (void)signo, (void)info;
    entry_flags = flags_here();
    seen_mask = SAVED_FLAGS(uc);
    spoil();
#if defined(__aarch64__)
    uc->pc += 4;
#endif
    if (edit == EDIT_REGISTER) RESULT_REGISTER(uc) = 4711;
    if (edit == EDIT_VECTOR) VECTOR_ZERO(uc)[1] = 4712;
    if (edit == EDIT_MASK) uc->mask |= BIT(SIGUSR2);
    edit = EDIT_NOTHING;
}

static void about_context(void) {
    static u64 in[VECTOR_WORDS], out[VECTOR_WORDS];
    printf("context\n");
    sigaction(SIGTRAP, breaker, SA_SIGINFO, 0);
    for (u64 i = 0; i < VECTOR_WORDS; i++) in[i] = (i + 1) * 0x0123456789abcdefUL;
    vectors_across(in, out);
    holds("vector registers survive a handler that spoils them", memcmp(in, out, sizeof in) == 0);
    holds("so do the flags, some set", (flags_across(SOME_FLAGS) & FLAG_BITS) == SOME_FLAGS);
    holds("which the handler finds in its context", (seen_mask & FLAG_BITS) == SOME_FLAGS);
    holds("and starts with the flags that its ABI wants clear", (entry_flags & FLAGS_CLEAR_AT_ENTRY) == 0);
    holds("so do the flags, the others set",
          (flags_across(FLAG_BITS ^ SOME_FLAGS) & FLAG_BITS) == (FLAG_BITS ^ SOME_FLAGS));
    set_controls();
    u64 before = controls();
    broken_at(0);
    holds("so do rounding modes", controls() == before);
    reset_controls();
    holds("so does what the ABI protects below the stack pointer", red_zone());
    holds("a result is what it was", broken_at(99) == 99);
    edit = EDIT_REGISTER;
    holds("unless the handler changes the register", broken_at(99) == 4711);
    edit = EDIT_VECTOR;
    vectors_across(in, out);
    holds("or half a vector register",
          out[1] == 4712 && out[0] == in[0] && memcmp(in + 2, out + 2, sizeof in - 16) == 0);
    edit = EDIT_MASK;
    broken_at(0);
    holds("or the mask, from then on", blocked_now() == BIT(SIGUSR2));
    sigprocmask(SIG_SETMASK, 0, NULL);
}

/* ------------------------------------------------------------------------------------- ends by a signal */
static char *nowhere;
static void faults_again(int signo) {
    (void)signo;
    *(volatile char *)nowhere = 1;
}
static void wild_pc(int signo, struct siginfo *info, struct ucontext *uc) {
    (void)info;
    sigaction(signo, SIG_DFL, 0, 0);
    UC_PC(uc) = 0x0001000000000000UL;
}

static void end_by(const char *name) {
    nowhere = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (streq(name, "blocked")) {
        sigaction(SIGSEGV, tracer, 0, 0);
        sigprocmask(SIG_BLOCK, BIT(SIGSEGV), NULL);
        *(volatile char *)nowhere = 1;
    } else if (streq(name, "nested")) {
        sigaction(SIGSEGV, faults_again, 0, 0);
        *(volatile char *)nowhere = 1;
    } else if (streq(name, "ignored")) {
        sigaction(SIGSEGV, SIG_IGN, 0, 0);
        *(volatile char *)nowhere = 1;
    } else if (streq(name, "badstack")) {
        sigaction(SIGTRAP, tracer, 0, 0);
#if defined(__x86_64__)
        __asm__ volatile("movq %0, %%rsp\n int3" ::"r"(nowhere));
#else
        __asm__ volatile("mov sp, %0\n brk #0" ::"r"(nowhere));
#endif
    } else if (streq(name, "badreturn")) {
#if defined(__x86_64__)
        __asm__ volatile("movq %0, %%rsp\n movl $15, %%eax\n syscall" ::"r"(nowhere));
#else
        __asm__ volatile("mov sp, %0\n mov x8, #139\n svc #0" ::"r"(nowhere));
#endif
    } else if (streq(name, "badpc")) {
        sigaction(SIGUSR1, wild_pc, SA_SIGINFO, 0);
        raise(SIGUSR1);
    } else if (streq(name, "default")) raise(SIGUSR1);
    else if (streq(name, "abort")) raise(SIGABRT);
    else if (streq(name, "kill")) raise(SIGKILL);
    else FAIL("no end is named %s", name);
    FAIL("%s did not end me", name);
}

int main(int argc, char **argv) {
    if (argc > 1) end_by(argv[1]);
    about_delivery();
    about_nesting();
    about_blocking();
    about_refusals();
    about_stacks();
    about_context();
    if (broken) FAIL("something does not hold");
    return 0;
}
