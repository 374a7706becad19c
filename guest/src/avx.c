/* avx (x86_64 only): VEX-encoded instructions in the middle of ordinary ones, written as bytes so that the
 * program itself needs no AVX. An emulated CPU without AVX must raise SIGILL there, after the instructions
 * before it ran and before those after it; it must never run them as something else. A host with AVX runs
 * them: there each line says "executed" and whether the result is right, so its output is not what the
 * emulator's is compared with. The VEX-encoded integer instructions (BMI) are no AVX: they work where CPUID
 * says so. avx bare runs vpaddd without a handler: SIGILL ends the program, or it says "executed". */
#include "aether.h"

/* rdi points to two vectors and room for a third. r8 counts the ordinary instructions that have run. */
#define BLOCK(name, bytes)                                                                                   \
    CODE(name,                                                                                               \
         "movl $1, %r8d\n movdqu (%rdi), %xmm1\n movdqu 16(%rdi), %xmm2\n addl $2, %r8d\n imull $5, %r8d\n"  \
         ".globl " #name "_vex\n" #name "_vex: " bytes "\n addl $1, %r8d\n movdqu %xmm0, 32(%rdi)");         \
    void name##_vex(void)

BLOCK(code_vpaddd, ".byte 0xc5, 0xf1, 0xfe, 0xc2");            /* vpaddd %xmm2, %xmm1, %xmm0 */
BLOCK(code_vpaddd_long, ".byte 0xc4, 0xe1, 0x71, 0xfe, 0xc2"); /* the same in three-byte VEX */
BLOCK(code_vpaddd_wide, ".byte 0xc5, 0xf5, 0xfe, 0xc2");       /* vpaddd %ymm2, %ymm1, %ymm0 */
BLOCK(code_vaddps, ".byte 0xc5, 0xf0, 0x58, 0xc2");            /* vaddps %xmm2, %xmm1, %xmm0 */
BLOCK(code_vpxor, ".byte 0xc5, 0xf1, 0xef, 0xc2");             /* vpxor %xmm2, %xmm1, %xmm0 */
BLOCK(code_vzeroupper, ".byte 0xc5, 0xf8, 0x77");              /* vzeroupper */

static u32 lanes[3][4];
static u64 ordinary; /* r8 in the handler */

static void on_sigill(int signo, struct siginfo *info, struct ucontext *uc) {
    ordinary = uc->gregs[REG_R8];
    probe_handler(signo, info, uc);
}

static void try(const char *name, void (*code)(void), void (*vex)(void), u32 right) {
    struct outcome out;
    for (u32 i = 0; i < 4; i++) lanes[0][i] = 100 + i, lanes[1][i] = 7, lanes[2][i] = 0;
    ordinary = 0;
    probe(code, (u64)lanes, &out);
    if (out.signo == 0)
        printf("%-14s executed%s\n", name, right == 0 ? "" : lanes[2][0] == right ? ", right" : ", WRONG");
    else
        printf("%-14s %s %s, the instructions before it ran: %s, those after it: %s\n", name,
               signal_name(out.signo), out.pc == (u64)vex ? "at it" : "ELSEWHERE",
               ordinary == 15 ? "yes" : "NO", lanes[2][0] ? "YES" : "no");
}

static void try_bmi(void) {
    u32 a = 7, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    u64 andn = 1, shlx = 1, x = 0xff00ff00ff00ff00UL, y = 0x0123456789abcdefUL;
    if (b >> 3 & 1) /* andn %rdx, %rcx, %rax: ~rcx & rdx */
        __asm__ volatile(".byte 0xc4, 0xe2, 0xf0, 0xf2, 0xc2" : "=a"(andn) : "c"(x), "d"(y) : "cc");
    else andn = ~x & y;
    if (b >> 8 & 1) /* shlx %rcx, %rdx, %rax: rdx << (rcx & 63) */
        __asm__ volatile(".byte 0xc4, 0xe2, 0xf1, 0xf7, 0xc2" : "=a"(shlx) : "c"(x | 9), "d"(y));
    else shlx = y << 9;
    printf("BMI, if CPUID has it: %s\n", andn == (~x & y) && shlx == y << 9 ? "right" : "WRONG");
}

int main(int argc, char **argv) {
    if (argc > 1 && streq(argv[1], "bare")) {
        struct outcome out;
        probe(code_vpaddd, (u64)lanes, &out);
        printf("executed\n");
        return 0;
    }
    probe_setup();
    sigaction(SIGILL, on_sigill, SA_SIGINFO | SA_ONSTACK, 0);
    try("vpaddd", code_vpaddd, code_vpaddd_vex, 107);
    try("vpaddd, c4", code_vpaddd_long, code_vpaddd_long_vex, 107);
    try("vpaddd, ymm", code_vpaddd_wide, code_vpaddd_wide_vex, 107);
    try("vaddps", code_vaddps, code_vaddps_vex, 0);
    try("vpxor", code_vpxor, code_vpxor_vex, 100 ^ 7);
    try("vzeroupper", code_vzeroupper, code_vzeroupper_vex, 0);
    try_bmi();
    return 0;
}
