/* privilege: everything that only a kernel may do, tried by a user. Each line says what it got. Reading,
 * writing and executing the kernel's half come first, then the instructions. Those that Linux lets a user
 * have, by executing or by emulating them, get nothing, and stand at the end. */
#include "aether.h"

#if defined(__x86_64__)
static const u64 text[6]
    __attribute__((aligned(16))) = {0x1000, 0x10, 0, 0}; /* a descriptor table; a far pointer into ring 0 */

CODE(try_hlt, "hlt");
CODE(try_cli, "cli");
CODE(try_sti, "sti");
CODE(try_in8, "inb $0x60, %al");
CODE(try_in32, "inl %dx, %eax");
CODE(try_out8, "outb %al, $0x80");
CODE(try_out16, "outw %ax, %dx");
CODE(try_ins, "insb");
CODE(try_outs, "outsb");
CODE(try_read_cr0, "movq %cr0, %rax");
CODE(try_read_cr2, "movq %cr2, %rax");
CODE(try_read_cr3, "movq %cr3, %rax");
CODE(try_read_cr4, "movq %cr4, %rax");
CODE(try_read_cr8, "movq %cr8, %rax");
CODE(try_write_cr0, "movq %rax, %cr0");
CODE(try_write_cr3, "movq %rax, %cr3");
CODE(try_write_cr4, "movq %rax, %cr4");
CODE(try_write_cr8, "movq %rax, %cr8");
CODE(try_read_dr7, "movq %dr7, %rax");
CODE(try_write_dr0, "movq %rax, %dr0");
CODE(try_clts, "clts");
CODE(try_lmsw, "lmsw %ax");
CODE(try_rdmsr, "rdmsr");
CODE(try_wrmsr, "wrmsr");
CODE(try_lgdt, "lgdt (%rdi)");
CODE(try_lidt, "lidt (%rdi)");
CODE(try_lldt, "lldt %ax");
CODE(try_ltr, "ltr %ax");
CODE(try_invlpg, "invlpg (%rdi)");
CODE(try_invd, "invd");
CODE(try_wbinvd, "wbinvd");
CODE(try_swapgs, "swapgs");
CODE(try_sysret, "sysretq");
CODE(try_sysexit, "sysexit");
CODE(try_rdpmc, "rdpmc");
CODE(try_iret, "pushq $0x18\n pushq %rsp\n pushfq\n pushq $0x10\n pushq %rdi\n iretq");
CODE(try_far_jump, "ljmpl *4(%rdi)");
CODE(try_load_ss, "movl $0x18, %eax\n movl %eax, %ss");
CODE(try_load_ds, "movl $0x18, %eax\n movl %eax, %ds");
CODE(try_int, "int $0xff");
CODE(try_stac, "stac");
CODE(try_clac, "clac");
CODE(try_rsm, "rsm");
CODE(try_ud1, "ud1l %eax, %eax");
CODE(try_lock, ".byte 0xf0, 0x90"); /* lock nop */
CODE(try_load_cs, ".byte 0x8e, 0xc8");
CODE(try_popf, "pushq $0x3002\n popfq\n pushfq\n popq %rax\n andl $0x3200, %eax\n cmpl $0x200, %eax\n je "
               "probe_end\n ud2");
CODE(try_cpuid, "xorl %eax, %eax\n xorl %ecx, %ecx\n cpuid");
CODE(try_rdtsc, "rdtsc");
CODE(try_sgdt, "subq $16, %rsp\n sgdt (%rsp)\n addq $16, %rsp");
CODE(try_smsw, "smsw %ax");

static const struct {
    const char *name;
    void (*code)(void);
} instructions[] = {{"hlt", try_hlt},
                    {"cli", try_cli},
                    {"sti", try_sti},
                    {"in al, 0x60", try_in8},
                    {"in eax, dx", try_in32},
                    {"out 0x80, al", try_out8},
                    {"out dx, ax", try_out16},
                    {"insb", try_ins},
                    {"outsb", try_outs},
                    {"mov rax, cr0", try_read_cr0},
                    {"mov rax, cr2", try_read_cr2},
                    {"mov rax, cr3", try_read_cr3},
                    {"mov rax, cr4", try_read_cr4},
                    {"mov rax, cr8", try_read_cr8},
                    {"mov cr0, rax", try_write_cr0},
                    {"mov cr3, rax", try_write_cr3},
                    {"mov cr4, rax", try_write_cr4},
                    {"mov cr8, rax", try_write_cr8},
                    {"mov rax, dr7", try_read_dr7},
                    {"mov dr0, rax", try_write_dr0},
                    {"clts", try_clts},
                    {"lmsw", try_lmsw},
                    {"rdmsr", try_rdmsr},
                    {"wrmsr", try_wrmsr},
                    {"lgdt", try_lgdt},
                    {"lidt", try_lidt},
                    {"lldt", try_lldt},
                    {"ltr", try_ltr},
                    {"invlpg", try_invlpg},
                    {"invd", try_invd},
                    {"wbinvd", try_wbinvd},
                    {"swapgs", try_swapgs},
                    {"sysret", try_sysret},
                    {"sysexit", try_sysexit},
                    {"rdpmc", try_rdpmc},
                    {"iretq to ring 0", try_iret},
                    {"far jump to ring 0", try_far_jump},
                    {"mov ss, kernel's", try_load_ss},
                    {"mov ds, kernel's", try_load_ds},
                    {"int 0xff", try_int},
                    {"stac", try_stac},
                    {"clac", try_clac},
                    {"rsm", try_rsm},
                    {"ud1", try_ud1},
                    {"lock nop", try_lock},
                    {"mov cs, ax", try_load_cs},
                    {"popf, IOPL 3, IF 0", try_popf},
                    {"cpuid", try_cpuid},
                    {"rdtsc", try_rdtsc},
                    {"sgdt", try_sgdt},
                    {"smsw", try_smsw}};
static const u64 offsets[] = {0,         0x1000,         1UL << 21,      1UL << 30,
                              1UL << 39, 0x7fff80000000, 0x7fffffffe000, 0x7ffffffffff8};
#else
static const u64 text[2] = {0};

CODE(try_read_sctlr, "mrs x1, sctlr_el1");
CODE(try_read_ttbr0, "mrs x1, ttbr0_el1");
CODE(try_read_ttbr1, "mrs x1, ttbr1_el1");
CODE(try_read_tcr, "mrs x1, tcr_el1");
CODE(try_read_mair, "mrs x1, mair_el1");
CODE(try_read_esr, "mrs x1, esr_el1");
CODE(try_read_far, "mrs x1, far_el1");
CODE(try_read_vbar, "mrs x1, vbar_el1");
CODE(try_read_elr, "mrs x1, elr_el1");
CODE(try_read_spsr, "mrs x1, spsr_el1");
CODE(try_read_sp, "mrs x1, sp_el0");
CODE(try_read_el, "mrs x1, CurrentEL");
CODE(try_read_daif, "mrs x1, daif");
CODE(try_read_timer, "mrs x1, cntp_ctl_el0");
CODE(try_read_counter, "mrs x1, pmccntr_el0");
CODE(try_read_hcr, "mrs x1, hcr_el2");
CODE(try_write_sctlr, "msr sctlr_el1, x1");
CODE(try_write_ttbr0, "msr ttbr0_el1, x1");
CODE(try_write_tcr, "msr tcr_el1, x1");
CODE(try_write_vbar, "msr vbar_el1, x1");
CODE(try_write_cpacr, "msr cpacr_el1, x1");
CODE(try_write_tpidr, "msr tpidrro_el0, x1");
CODE(try_daifset, "msr daifset, #2");
CODE(try_daifclr, "msr daifclr, #2");
CODE(try_spsel, "msr spsel, #1");
CODE(try_tlbi_all, "tlbi vmalle1");
CODE(try_tlbi_va, "tlbi vae1is, x1");
CODE(try_ic_all, "ic iallu");
CODE(try_dc_invalidate, "dc ivac, x0");
CODE(try_dc_way, "dc isw, x0");
CODE(try_at, "at s1e1r, x0");
CODE(try_eret, "eret");
CODE(try_hvc, "hvc #0");
CODE(try_smc, ".long 0xd4000003"); /* smc #0, which this assembler reserves for EL3 */
CODE(try_hlt, "hlt #0");
CODE(try_dcps1, "dcps1");
CODE(try_udf, "udf #0");
CODE(try_undefined, ".long 0xffffffff");
CODE(try_dc_clean, "dc cvau, x0");
CODE(try_ic_line, "ic ivau, x0");
CODE(try_ctr, "mrs x1, ctr_el0");
CODE(try_dczid, "mrs x1, dczid_el0");
CODE(try_tpidr, "mrs x1, tpidr_el0");
CODE(try_cntvct, "mrs x1, cntvct_el0");
CODE(try_wfe, "sevl\n wfe");

static const struct {
    const char *name;
    void (*code)(void);
} instructions[] = {{"mrs sctlr_el1", try_read_sctlr},
                    {"mrs ttbr0_el1", try_read_ttbr0},
                    {"mrs ttbr1_el1", try_read_ttbr1},
                    {"mrs tcr_el1", try_read_tcr},
                    {"mrs mair_el1", try_read_mair},
                    {"mrs esr_el1", try_read_esr},
                    {"mrs far_el1", try_read_far},
                    {"mrs vbar_el1", try_read_vbar},
                    {"mrs elr_el1", try_read_elr},
                    {"mrs spsr_el1", try_read_spsr},
                    {"mrs sp_el0", try_read_sp},
                    {"mrs CurrentEL", try_read_el},
                    {"mrs daif", try_read_daif},
                    {"mrs cntp_ctl_el0", try_read_timer},
                    {"mrs pmccntr_el0", try_read_counter},
                    {"mrs hcr_el2", try_read_hcr},
                    {"msr sctlr_el1", try_write_sctlr},
                    {"msr ttbr0_el1", try_write_ttbr0},
                    {"msr tcr_el1", try_write_tcr},
                    {"msr vbar_el1", try_write_vbar},
                    {"msr cpacr_el1", try_write_cpacr},
                    {"msr tpidrro_el0", try_write_tpidr},
                    {"msr daifset", try_daifset},
                    {"msr daifclr", try_daifclr},
                    {"msr spsel", try_spsel},
                    {"tlbi vmalle1", try_tlbi_all},
                    {"tlbi vae1is", try_tlbi_va},
                    {"ic iallu", try_ic_all},
                    {"dc ivac", try_dc_invalidate},
                    {"dc isw", try_dc_way},
                    {"at s1e1r", try_at},
                    {"eret", try_eret},
                    {"hvc", try_hvc},
                    {"smc", try_smc},
                    {"hlt", try_hlt},
                    {"dcps1", try_dcps1},
                    {"udf", try_udf},
                    {"0xffffffff", try_undefined},
                    {"dc cvau", try_dc_clean},
                    {"ic ivau", try_ic_line},
                    {"mrs ctr_el0", try_ctr},
                    {"mrs dczid_el0", try_dczid},
                    {"mrs tpidr_el0", try_tpidr},
                    {"mrs cntvct_el0", try_cntvct},
                    {"wfe after sevl", try_wfe}};
static const u64 offsets[] = {0,         0x1000,         1UL << 21,      1UL << 30,
                              1UL << 39, 0xffff80000000, 0xffffffffe000, 0xfffffffffff8};
#endif

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    struct outcome load, store, jump;
    probe_setup();
    printf("the kernel's half, from its start:\n");
    for (u64 i = 0; i < COUNT(offsets); i++) {
        u64 address = KERNEL_HALF + offsets[i];
        probe(code_load, address, &load);
        probe(code_store, address, &store);
        probe(code_jump, address, &jump);
        printf("  %16lx  load %s %d, store %s %d, jump %s %d%s\n", offsets[i], signal_name(load.signo),
               load.code, signal_name(store.signo), store.code, signal_name(jump.signo), jump.code,
               load.addr == address && store.addr == address && jump.addr == address ? ", at the address"
                                                                                     : "");
    }
    printf("instructions:\n");
    for (u64 i = 0; i < COUNT(instructions); i++) {
        probe(instructions[i].code, (u64)text, &load);
        printf("  %-18s  %s", instructions[i].name, signal_name(load.signo));
        if (load.signo) printf(" code %d", load.code);
#if defined(__x86_64__)
        if (load.signo) printf(" trap %lu error 0x%lx", load.trapno, load.error);
#endif
        printf("\n");
    }
    return 0;
}
