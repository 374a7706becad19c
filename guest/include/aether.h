/* The whole run-time of the guest programs: Linux system calls, _start, a small printf, signals, and a probe
 * that runs one instruction which may fault and says what became of it. A program is one file and this one.
 *
 * All that is ISA-specific is in the sections marked x86_64 and arm64; the rest is the same text for both. */
#ifndef AETHER_H
#define AETHER_H

#pragma GCC visibility push(hidden) /* names are reached directly, not through a table of addresses */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef int i32;
typedef long i64;
typedef __builtin_va_list va_list;

#define NULL ((void *)0)
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define KIB 1024UL
#define MIB (1024UL * KIB)
#define GIB (1024UL * MIB)
#define PAGE page_size
#define ROUND_UP(size, unit) (((size) + (unit) - 1) / (unit) * (unit))

static u64 page_size; /* bytes, from the kernel (AT_PAGESZ) */

/* ----------------------------------------------------------------------------------------- x86_64 */
#if defined(__x86_64__)
#define ISA "x86_64"

/* clang-format off */
enum {
    SYS_read = 0, SYS_write = 1, SYS_close = 3, SYS_fstat = 5, SYS_lseek = 8, SYS_mmap = 9,
    SYS_mprotect = 10, SYS_munmap = 11, SYS_brk = 12, SYS_rt_sigaction = 13, SYS_rt_sigprocmask = 14,
    SYS_ioctl = 16, SYS_pread64 = 17, SYS_readv = 19, SYS_writev = 20, SYS_mremap = 25, SYS_msync = 26,
    SYS_mincore = 27, SYS_madvise = 28, SYS_nanosleep = 35, SYS_getpid = 39, SYS_exit = 60, SYS_kill = 62,
    SYS_uname = 63, SYS_ftruncate = 77, SYS_getcwd = 79, SYS_gettimeofday = 96, SYS_getrusage = 98,
    SYS_sysinfo = 99, SYS_times = 100, SYS_getppid = 110, SYS_rt_sigpending = 127, SYS_rt_sigsuspend = 130,
    SYS_sigaltstack = 131, SYS_gettid = 186, SYS_futex = 202, SYS_getdents64 = 217, SYS_clock_gettime = 228,
    SYS_exit_group = 231, SYS_tgkill = 234, SYS_openat = 257, SYS_newfstatat = 262, SYS_readlinkat = 267,
    SYS_faccessat = 269, SYS_ppoll = 271, SYS_pipe2 = 293, SYS_prlimit64 = 302, SYS_getrandom = 318,
    SYS_statx = 332, SYS_clone = 56, SYS_execve = 59, SYS_wait4 = 61, SYS_waitid = 247, SYS_prctl = 157,
};
/* clang-format on */
#define O_DIRECTORY 0x10000
#define SA_RESTORER 0x04000000UL /* with SIGRETURN, the way back from a handler */
#define KERNEL_HALF 0xffff800000000000UL

static inline i64 syscall6(i64 n, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f) {
    register u64 r10 __asm__("r10") = d;
    register u64 r8 __asm__("r8") = e;
    register u64 r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "+a"(n)
                     : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return n;
}

__asm__(".section .text.start, \"ax\"\n.globl _start\n_start:\n"
        " xorl %ebp, %ebp\n movq %rsp, %rdi\n andq $-16, %rsp\n call start\n"
        ".globl sigreturn_trampoline\nsigreturn_trampoline:\n movl $15, %eax\n syscall\n");
void sigreturn_trampoline(void);
#define SIGRETURN ((void *)sigreturn_trampoline)

/* The order of gregs is the kernel's. */
/* clang-format off */
enum {
    REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RDI, REG_RSI, REG_RBP,
    REG_RBX, REG_RDX, REG_RAX, REG_RCX, REG_RSP, REG_RIP, REG_EFL, REG_CSGSFS, REG_ERR, REG_TRAPNO,
    REG_OLDMASK, REG_CR2, REG_COUNT,
};
/* clang-format on */

struct ucontext {
    u64 flags, link, stack_base, stack_flags, stack_size;
    u64 gregs[REG_COUNT];
    u64 fpstate, reserved[8];
    u64 mask;
};
#define UC_PC(uc) ((uc)->gregs[REG_RIP])
#define UC_SP(uc) ((uc)->gregs[REG_RSP])
#define UC_REGISTERS(uc) ((uc)->gregs)

/* What probe() runs, see there. The registers are loaded and compared in the order of gregs. */
enum { PROBE_REGISTERS = REG_RSP, PROBE_ADDRESS = REG_RDI, PROBE_CODE = REG_RAX };
__asm__(
    ".section .text.probe, \"ax\"\n"
    ".globl probe_run\nprobe_run:\n"
    " pushq %rbx\n pushq %rbp\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    " movq %rsp, probe_sp(%rip)\n .set n, 0\n"
    " .irp r, r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx\n"
    " movq probe_pattern+8*n(%rip), %\\r\n .set n, n+1\n .endr\n"
    " jmp *%rax\n"
    ".globl probe_end\nprobe_end:\n"
    " .irp r, rcx, rax, rdx, rbx, rbp, rsi, rdi, r15, r14, r13, r12, r11, r10, r9, r8\n pushq %\\r\n .endr\n"
    " movq %rsp, %rdi\n leaq probe_pattern(%rip), %rsi\n movl $15*8, %edx\n call memcmp\n addq $15*8, %rsp\n"
    " popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbp\n popq %rbx\n retq\n");
#define CODE(name, text)                                                                                     \
    void name(void);                                                                                         \
    __asm__(".section .text.probe, \"ax\"\n.globl " #name "\n" #name ":\n " text "\n jmp probe_end\n")
CODE(code_load, "movq (%rdi), %rcx");
CODE(code_store, "movq %rcx, (%rdi)");
CODE(code_jump, "jmp *%rdi");

/* What spawn() is, see there. */
__asm__(".section .text.spawn, \"ax\"\n.globl spawn\nspawn:\n"
        " leaq -16(%rsi), %rsi\n movq %r8, (%rsi)\n movq %r9, 8(%rsi)\n movq %rcx, %r10\n xorl %r8d, %r8d\n"
        " movl $56, %eax\n syscall\n testq %rax, %rax\n jz 1f\n retq\n"
        "1: popq %rax\n popq %rdi\n xorl %ebp, %ebp\n callq *%rax\n"
        " movl %eax, %edi\n movl $60, %eax\n syscall\n");

/* ------------------------------------------------------------------------------------------ arm64 */
#elif defined(__aarch64__)
#define ISA "arm64"

/* clang-format off */
enum {
    SYS_getcwd = 17, SYS_ioctl = 29, SYS_ftruncate = 46, SYS_faccessat = 48, SYS_openat = 56,
    SYS_close = 57, SYS_pipe2 = 59, SYS_getdents64 = 61, SYS_lseek = 62, SYS_read = 63, SYS_write = 64,
    SYS_readv = 65, SYS_writev = 66, SYS_pread64 = 67, SYS_ppoll = 73, SYS_readlinkat = 78,
    SYS_newfstatat = 79, SYS_fstat = 80, SYS_exit = 93, SYS_exit_group = 94, SYS_futex = 98,
    SYS_nanosleep = 101, SYS_clock_gettime = 113, SYS_kill = 129, SYS_tgkill = 131, SYS_sigaltstack = 132,
    SYS_rt_sigaction = 134, SYS_rt_sigprocmask = 135, SYS_rt_sigpending = 136, SYS_rt_sigsuspend = 133,
    SYS_times = 153, SYS_uname = 160, SYS_getrusage = 165, SYS_gettimeofday = 169, SYS_getpid = 172,
    SYS_getppid = 173, SYS_gettid = 178, SYS_sysinfo = 179, SYS_brk = 214, SYS_munmap = 215,
    SYS_mremap = 216, SYS_mmap = 222, SYS_mprotect = 226, SYS_msync = 227, SYS_mincore = 232,
    SYS_madvise = 233, SYS_prlimit64 = 261, SYS_getrandom = 278, SYS_statx = 291,
    SYS_clone = 220, SYS_execve = 221, SYS_wait4 = 260, SYS_waitid = 95, SYS_prctl = 167,
};
/* clang-format on */
#define O_DIRECTORY 0x4000
#define SA_RESTORER 0UL /* none: the kernel has its own way back, in the vDSO */
#define SIGRETURN NULL
#define KERNEL_HALF 0xffff000000000000UL

static inline i64 syscall6(i64 n, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f) {
    register i64 x8 __asm__("x8") = n;
    register u64 x0 __asm__("x0") = a;
    register u64 x1 __asm__("x1") = b;
    register u64 x2 __asm__("x2") = c;
    register u64 x3 __asm__("x3") = d;
    register u64 x4 __asm__("x4") = e;
    register u64 x5 __asm__("x5") = f;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return (i64)x0;
}

__asm__(".section .text.start, \"ax\"\n.globl _start\n_start:\n"
        " mov x29, #0\n mov x30, #0\n mov x0, sp\n bl start\n");

struct ucontext {
    u64 flags, link, stack_base, stack_flags, stack_size;
    u64 mask, unused[15];
    u64 fault_address __attribute__((aligned(16)));
    u64 regs[31], sp, pc, pstate;
    u8 records[4096] __attribute__((aligned(16)));
};
#define UC_PC(uc) ((uc)->pc)
#define UC_SP(uc) ((uc)->sp)
#define UC_REGISTERS(uc) ((uc)->regs)

enum { PROBE_REGISTERS = 31, PROBE_ADDRESS = 0, PROBE_CODE = 16 };
__asm__(".section .text.probe, \"ax\"\n"
        ".globl probe_run\nprobe_run:\n"
        " stp x29, x30, [sp, #-96]!\n stp x19, x20, [sp, #16]\n stp x21, x22, [sp, #32]\n"
        " stp x23, x24, [sp, #48]\n stp x25, x26, [sp, #64]\n stp x27, x28, [sp, #80]\n"
        " adrp x16, probe_sp\n mov x17, sp\n str x17, [x16, :lo12:probe_sp]\n"
        " adrp x16, probe_pattern\n add x16, x16, :lo12:probe_pattern\n"
        " .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,17,18,19,20,21,22,23,24,25,26,27,28,29,30,16\n"
        " ldr x\\n, [x16, #8*\\n]\n .endr\n"
        " br x16\n"
        ".globl probe_end\nprobe_end:\n sub sp, sp, #256\n"
        " .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30\n"
        " str x\\n, [sp, #8*\\n]\n .endr\n"
        " mov x0, sp\n adrp x1, probe_pattern\n add x1, x1, :lo12:probe_pattern\n mov x2, #31*8\n bl memcmp\n"
        " add sp, sp, #256\n ldp x19, x20, [sp, #16]\n ldp x21, x22, [sp, #32]\n ldp x23, x24, [sp, #48]\n"
        " ldp x25, x26, [sp, #64]\n ldp x27, x28, [sp, #80]\n ldp x29, x30, [sp], #96\n ret\n");
#define CODE(name, text)                                                                                     \
    void name(void);                                                                                         \
    __asm__(".section .text.probe, \"ax\"\n.globl " #name "\n" #name ":\n " text "\n b probe_end\n")
CODE(code_load, "ldr x1, [x0]");
CODE(code_store, "str x1, [x0]");
CODE(code_jump, "br x0");

/* What spawn() is, see there. */
__asm__(".section .text.spawn, \"ax\"\n.globl spawn\nspawn:\n"
        " stp x4, x5, [x1, #-16]!\n mov x4, x3\n mov x3, #0\n mov x8, #220\n svc #0\n cbz x0, 1f\n ret\n"
        "1: ldp x1, x0, [sp], #16\n mov x29, #0\n mov x30, #0\n blr x1\n mov x8, #93\n svc #0\n");
#else
#error "guest programs are built for x86_64 and arm64"
#endif

/* --------------------------------------------------------------------- constants of the Linux ABI */
/* clang-format off */
enum {
    EPERM = 1, ENOENT = 2, EINTR = 4, ESRCH = 3, EBADF = 9, EAGAIN = 11, ENOMEM = 12, EACCES = 13,
    EFAULT = 14, EEXIST = 17, ENODEV = 19, ENOTDIR = 20, EISDIR = 21, EINVAL = 22, ENOTTY = 25, ESPIPE = 29,
    ERANGE = 34, ENOSYS = 38, EOVERFLOW = 75, EOPNOTSUPP = 95, ETIMEDOUT = 110, EBUSY = 16, ENXIO = 6,
    ENAMETOOLONG = 36, ETXTBSY = 26, EHWPOISON = 133, EIO = 5,
};
enum {
    PROT_NONE = 0, PROT_READ = 1, PROT_WRITE = 2, PROT_EXEC = 4, PROT_GROWSDOWN = 0x01000000,
    PROT_GROWSUP = 0x02000000,
};
enum {
    MAP_SHARED = 1, MAP_PRIVATE = 2, MAP_SHARED_VALIDATE = 3, MAP_FIXED = 0x10, MAP_ANONYMOUS = 0x20,
    MAP_GROWSDOWN = 0x100, MAP_NORESERVE = 0x4000, MAP_POPULATE = 0x8000, MAP_STACK = 0x20000,
    MAP_SYNC = 0x80000, MAP_FIXED_NOREPLACE = 0x100000,
};
enum { MREMAP_MAYMOVE = 1, MREMAP_FIXED = 2, MREMAP_DONTUNMAP = 4 };
enum {
    MADV_NORMAL = 0, MADV_RANDOM = 1, MADV_SEQUENTIAL = 2, MADV_WILLNEED = 3, MADV_DONTNEED = 4,
    MADV_FREE = 8, MADV_REMOVE = 9, MADV_DONTFORK = 10, MADV_DOFORK = 11,
    MADV_HUGEPAGE = 14, MADV_NOHUGEPAGE = 15, MADV_COLLAPSE = 25,
    MADV_COLD = 20, MADV_PAGEOUT = 21, MADV_POPULATE_READ = 22, MADV_POPULATE_WRITE = 23,
};
/* clang-format on */
enum { MS_ASYNC = 1, MS_INVALIDATE = 2, MS_SYNC = 4 };
enum { O_RDONLY = 0, O_RDWR = 2, O_CREAT = 0x40, AT_FDCWD = -100 };
/* clang-format off */
enum {
    SIGILL = 4, SIGTRAP = 5, SIGABRT = 6, SIGBUS = 7, SIGFPE = 8, SIGKILL = 9, SIGUSR1 = 10, SIGSEGV = 11,
    SIGUSR2 = 12, SIGCHLD = 17, SIGSTOP = 19, SIGURG = 23, SIGWINCH = 28, SIGRTMIN = 34,
};
/* clang-format on */
enum { SA_SIGINFO = 4, SA_ONSTACK = 0x08000000, SA_NODEFER = 0x40000000 };
#define SA_RESETHAND 0x80000000UL
enum { SIG_BLOCK = 0, SIG_UNBLOCK = 1, SIG_SETMASK = 2, SS_ONSTACK = 1, SS_DISABLE = 2 };
#define SS_AUTODISARM 0x80000000U
#define SIG_DFL ((void *)0)
#define SIG_IGN ((void *)1)
#define BIT(signo) (1UL << ((signo) - 1))

/* ----------------------------------------------------------------------------------- system calls */
#define PICK(_1, _2, _3, _4, _5, _6, _7, NAME, ...) NAME
#define SYSCALL(...)                                                                                         \
    PICK(__VA_ARGS__, SYSCALL6, SYSCALL5, SYSCALL4, SYSCALL3, SYSCALL2, SYSCALL1, SYSCALL0)(__VA_ARGS__)
#define SYSCALL0(n) syscall6(SYS_##n, 0, 0, 0, 0, 0, 0)
#define SYSCALL1(n, a) syscall6(SYS_##n, (u64)(a), 0, 0, 0, 0, 0)
#define SYSCALL2(n, a, b) syscall6(SYS_##n, (u64)(a), (u64)(b), 0, 0, 0, 0)
#define SYSCALL3(n, a, b, c) syscall6(SYS_##n, (u64)(a), (u64)(b), (u64)(c), 0, 0, 0)
#define SYSCALL4(n, a, b, c, d) syscall6(SYS_##n, (u64)(a), (u64)(b), (u64)(c), (u64)(d), 0, 0)
#define SYSCALL5(n, a, b, c, d, e) syscall6(SYS_##n, (u64)(a), (u64)(b), (u64)(c), (u64)(d), (u64)(e), 0)
#define SYSCALL6(n, a, b, c, d, e, f)                                                                        \
    syscall6(SYS_##n, (u64)(a), (u64)(b), (u64)(c), (u64)(d), (u64)(e), (u64)(f))

#define IS_ERROR(result) ((u64)(result) >= (u64) - 4095L)

static void exit(int status) {
    for (;;) SYSCALL(exit_group, status);
}
static void *mmap(void *addr, u64 length, int prot, int flags, int fd, u64 offset) {
    return (void *)SYSCALL(mmap, addr, length, prot, flags, fd, offset);
}
static i64 munmap(void *addr, u64 length) { return SYSCALL(munmap, addr, length); }
static i64 mprotect(void *addr, u64 length, int prot) { return SYSCALL(mprotect, addr, length, prot); }
static i64 madvise(void *addr, u64 length, int advice) { return SYSCALL(madvise, addr, length, advice); }
static void *mremap(void *addr, u64 old_length, u64 new_length, int flags, void *new_addr) {
    return (void *)SYSCALL(mremap, addr, old_length, new_length, flags, new_addr);
}
static i64 open(const char *path, int flags) { return SYSCALL(openat, AT_FDCWD, path, flags, 0644); }
static i64 pread(int fd, void *buffer, u64 count, u64 offset) {
    return SYSCALL(pread64, fd, buffer, count, offset);
}

/* ----------------------------------------------------------------------------------- memory, text */
void *memset(void *to, int byte, u64 count) {
    for (u8 *p = to; count--;) *p++ = (u8)byte;
    return to;
}
void *memcpy(void *to, const void *from, u64 count) {
    const u8 *q = from;
    for (u8 *p = to; count--;) *p++ = *q++;
    return to;
}
int memcmp(const void *left, const void *right, u64 count) {
    const u8 *p = left, *q = right;
    for (; count; count--, p++, q++)
        if (*p != *q) return *p - *q;
    return 0;
}
u64 strlen(const char *text) {
    u64 n = 0;
    while (text[n]) n++;
    return n;
}
static int streq(const char *left, const char *right) {
    return strlen(left) == strlen(right) && memcmp(left, right, strlen(left)) == 0;
}
static u64 number(const char *text) {
    u64 value = 0;
    for (; *text >= '0' && *text <= '9'; text++) value = value * 10 + (u64)(*text - '0');
    return value;
}

/* %s %c %d %u %x %p, an optional l, and a width with - or 0 before it. One write(2) a call, at most 1 KiB. */
static void printf(const char *format, ...) {
    char line[1024], digits[24];
    u64 used = 0;
    va_list args;
    __builtin_va_start(args, format);
    for (; *format && used < sizeof line; format++) {
        if (*format != '%') {
            line[used++] = *format;
            continue;
        }
        int left = 0, is_long = 0, base = 10, negative = 0;
        char fill = ' ';
        u64 width = 0, n = 0, value = 0;
        const char *text = NULL;
        format++;
        if (*format == '-') left = 1, format++;
        if (*format == '0') fill = '0', format++;
        for (; *format >= '0' && *format <= '9'; format++) width = width * 10 + (u64)(*format - '0');
        if (*format == 'l') is_long = 1, format++;
        switch (*format) {
        case 's':
            text = __builtin_va_arg(args, const char *);
            n = strlen(text);
            break;
        case 'c':
            digits[0] = (char)__builtin_va_arg(args, int);
            text = digits;
            n = 1;
            break;
        case 'p':
            is_long = 1;
            base = 16;
            break;
        case 'x': base = 16; break;
        case '%':
            text = "%";
            n = 1;
            break;
        default: break;
        }
        if (!text) {
            if (is_long) value = __builtin_va_arg(args, u64);
            else if (*format == 'd') value = (u64)(i64) __builtin_va_arg(args, int);
            else value = __builtin_va_arg(args, u32);
            if (*format == 'd' && (i64)value < 0) negative = 1, value = -value;
            char *end = digits + sizeof digits, *p = end;
            do *--p = "0123456789abcdef"[value % (u64)base];
            while (value /= (u64)base);
            if (*format == 'p') *--p = 'x', *--p = '0';
            if (negative) *--p = '-';
            text = p;
            n = (u64)(end - p);
        }
        u64 pad = width > n ? width - n : 0;
        for (; !left && pad && used < sizeof line; pad--) line[used++] = fill;
        for (u64 i = 0; i < n && used < sizeof line; i++) line[used++] = text[i];
        for (; pad && used < sizeof line; pad--) line[used++] = ' ';
    }
    __builtin_va_end(args);
    for (u64 done = 0; done < used;) {
        i64 wrote = SYSCALL(write, 1, line + done, used - done);
        if (wrote <= 0) exit(2);
        done += (u64)wrote;
    }
}

#define FAIL(...) (printf(__VA_ARGS__), printf("\n"), exit(1))

/* "ok" for any success, else the errno's name: what a table of system-call answers is made of. */
static const char *answer(i64 result) {
    static const struct {
        int number;
        const char *name;
    } names[] = {{EPERM, "EPERM"},         {ENOENT, "ENOENT"},         {EINTR, "EINTR"},
                 {ESRCH, "ESRCH"},         {EBADF, "EBADF"},           {EAGAIN, "EAGAIN"},
                 {ENOMEM, "ENOMEM"},       {EACCES, "EACCES"},         {EFAULT, "EFAULT"},
                 {EEXIST, "EEXIST"},       {ENODEV, "ENODEV"},         {ENOTDIR, "ENOTDIR"},
                 {EISDIR, "EISDIR"},       {EINVAL, "EINVAL"},         {ENOTTY, "ENOTTY"},
                 {ESPIPE, "ESPIPE"},       {ERANGE, "ERANGE"},         {ENOSYS, "ENOSYS"},
                 {EOVERFLOW, "EOVERFLOW"}, {EOPNOTSUPP, "EOPNOTSUPP"}, {ETIMEDOUT, "ETIMEDOUT"},
                 {EBUSY, "EBUSY"},         {ENXIO, "ENXIO"},           {ENAMETOOLONG, "ENAMETOOLONG"},
                 {ETXTBSY, "ETXTBSY"},     {EHWPOISON, "EHWPOISON"},   {EIO, "EIO"}};
    if (!IS_ERROR(result)) return "ok";
    for (u64 i = 0; i < COUNT(names); i++)
        if (names[i].number == -result) return names[i].name;
    return "another errno";
}

/* ---------------------------------------------------------------------------------------- signals */
struct siginfo {
    i32 signo, error, code, pad;
    u64 addr;
    u8 rest[104];
};
struct sigaction {
    void *handler;
    u64 flags;
    void *restorer;
    u64 mask;
};
struct sigaltstack {
    void *base;
    i32 flags, pad;
    u64 size;
};

static i64 sigaction(int signo, void *handler, u64 flags, u64 mask) {
    struct sigaction action = {handler, flags | SA_RESTORER, SIGRETURN, mask};
    return SYSCALL(rt_sigaction, signo, &action, NULL, 8);
}
static i64 sigprocmask(int how, u64 mask, u64 *old) { return SYSCALL(rt_sigprocmask, how, &mask, old, 8); }
static i64 raise(int signo) { return SYSCALL(tgkill, SYSCALL(getpid), SYSCALL(gettid), signo); }
static const char *signal_name(int signo) {
    switch (signo) {
    case 0: return "nothing";
    case SIGILL: return "SIGILL";
    case SIGTRAP: return "SIGTRAP";
    case SIGBUS: return "SIGBUS";
    case SIGFPE: return "SIGFPE";
    case SIGSEGV: return "SIGSEGV";
    default: return "another signal";
    }
}

/* -------------------------------------------------------------------------------- one instruction */
/* probe(code, address, &outcome) fills all general registers with a pattern, puts `address` in the first
 * argument register and jumps to `code`, a fragment made with CODE. Whether that faults or not, execution
 * goes on at probe_end: the handler (on its own stack) writes its address into the saved pc. */
struct outcome {
    int signo, code;    /* 0 when nothing was raised */
    u64 addr, pc, sp;   /* si_addr; where the fault was, and its stack pointer */
    u64 trapno, error;  /* x86_64: vector and error code; arm64: 0 and the syndrome, ESR */
    int registers_kept; /* the handler saw the pattern, and it was there again after the handler */
};

static struct outcome *probe_outcome; /* NULL outside of probe() */
__attribute__((used)) u64 probe_sp, probe_pattern[32];
static u8 probe_stack[64 * KIB] __attribute__((aligned(16)));

void probe_end(void);
int probe_run(void);

static void probe_handler(int signo, struct siginfo *info, struct ucontext *uc) {
    struct outcome *out = probe_outcome;
    if (!out) FAIL("%s where none was expected", signal_name(signo));
    *out = (struct outcome){.signo = signo, .code = info->code, .addr = info->addr};
    out->pc = UC_PC(uc);
    out->sp = UC_SP(uc);
#if defined(__x86_64__)
    out->trapno = uc->gregs[REG_TRAPNO];
    out->error = uc->gregs[REG_ERR];
    uc->gregs[REG_EFL] &= ~0x40000UL; /* AC: a fragment that set it must not leave it to us */
#else
    for (u32 *record = (u32 *)uc->records; record[1]; record += record[1] / 4) /* magic, size, contents */
        if (record[0] == 0x45535201) out->error = *(u64 *)(record + 2);
#endif
    out->registers_kept = memcmp(UC_REGISTERS(uc), probe_pattern, PROBE_REGISTERS * sizeof(u64)) == 0;
    UC_PC(uc) = (u64)probe_end;
    UC_SP(uc) = probe_sp;
}

static void probe_setup(void) {
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    struct sigaltstack stack = {probe_stack, 0, 0, sizeof probe_stack};
    SYSCALL(sigaltstack, &stack, NULL);
    for (u64 i = 0; i < COUNT(signals); i++) sigaction(signals[i], probe_handler, SA_SIGINFO | SA_ONSTACK, 0);
    for (u64 i = 0; i < COUNT(probe_pattern); i++)
        probe_pattern[i] = 0xa5e7000000000000UL + i * 0x0000010100010001UL;
}

static int probe(void (*code)(void), u64 address, struct outcome *out) {
    *out = (struct outcome){.registers_kept = 1};
    probe_pattern[PROBE_ADDRESS] = address;
    probe_pattern[PROBE_CODE] = (u64)code;
    *(struct outcome *volatile *)&probe_outcome = out;
    int changed = probe_run();
    *(struct outcome *volatile *)&probe_outcome = NULL;
    if (out->signo && changed) out->registers_kept = 0;
    return out->signo;
}

/* ------------------------------------------------------------------------------------------ start */
static u64 *auxiliary; /* pairs of tag and value, ended by tag 0 */

static u64 auxiliary_value(u64 tag) {
    for (u64 *p = auxiliary; p[0]; p += 2)
        if (p[0] == tag) return p[1];
    return 0;
}

int main(int argc, char **argv);

__attribute__((used)) static void start(u64 *stack) {
    int argc = (int)stack[0];
    char **argv = (char **)(stack + 1);
    u64 *p = (u64 *)(argv + argc + 1); /* the environment, then pairs of tag and value ended by tag 0 */
    while (*p) p++;
    auxiliary = p + 1;
    page_size = auxiliary_value(6 /* AT_PAGESZ */);
    exit(main(argc, argv));
}

/* The program's own file: what every program can map without being given a path. */
static int open_self(char **argv) {
    i64 fd = open("/proc/self/exe", O_RDONLY);
    if (fd < 0) fd = open(argv[0], O_RDONLY);
    if (fd < 0) FAIL("cannot open my own file: %s", answer(fd));
    return (int)fd;
}

#endif
