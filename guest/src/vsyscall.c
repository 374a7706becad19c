/* vsyscall: x86_64's page of calls at fixed addresses, which programs older than the vDSO still make. */
#include "aether.h"

struct timeval {
    i64 seconds, microseconds;
};
enum { SYS_time = 201, SI_KERNEL = 128 };

#define VSYSCALL 0xffffffffff600000UL
#define TEXT(number) #number
#define CALL(name, offset)                                                                                   \
    CODE(name, "movq $0xffffffffff600000+" TEXT(                                                             \
                   offset) ", %rax\n xorl %esi, %esi\n call *%rax\n"                                         \
                           " movq %rax, result(%rip)\n movq $0xa5e7000e0000fefe, %rcx")
CALL(call_gettimeofday, 0);
CALL(call_time, 0x400);
CALL(call_getcpu, 0x800);
CALL(call_middle, 0x10);
CALL(call_none, 0xc00);
CALL(call_next_page, 0x1000);
CODE(call_without_stack, "movq %rsp, %rbx\n xorl %esp, %esp\n movq $0xffffffffff600400, %rax\n jmp *%rax");
__attribute__((used)) i64 result;

static void show(const char *what, void (*code)(void), u64 pointer) {
    struct outcome out;
    result = 77;
    if (!probe(code, pointer, &out)) {
        printf("  %-32s returns\n", what);
        return;
    }
    const char *where = out.pc >> 12 == VSYSCALL >> 12 ? "in the page" : "elsewhere";
    const char *told = out.addr == pointer ? "the pointer" : out.addr ? "another address" : "0";
    printf("  %-32s %s, si_code %d, si_addr is %s, %s", what, signal_name(out.signo), out.code, told, where);
    if (out.code != SI_KERNEL)
        printf(", %s", out.error & 16 ? "a fetch" : out.error & 2 ? "a store" : "a load");
    printf("\n");
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    probe_setup();
    struct outcome out;
    struct timeval now = {0};
    i64 before = SYSCALL0(time), seconds = 0;
    u32 cpu = 77;
    probe(call_gettimeofday, (u64)&now, &out);
    i64 answered = result;
    probe(call_time, (u64)&seconds, &out);
    i64 told = result, after = SYSCALL0(time);
    printf("gettimeofday answers %ld, and between two system calls: %s\n", answered,
           before <= now.seconds && now.seconds <= after ? "yes" : "NO");
    printf("time answers what it writes: %s, and between them: %s\n", told == seconds ? "yes" : "NO",
           before <= told && told <= after ? "yes" : "NO");
    probe(call_getcpu, (u64)&cpu, &out);
    printf("getcpu answers %ld, and the CPU has a number: %s\n", result, cpu < 4096 ? "yes" : "NO");
    show("gettimeofday(NULL):", call_gettimeofday, 0);
    show("time(NULL):", call_time, 0);
    show("getcpu(NULL, NULL):", call_getcpu, 0);
    show("gettimeofday, no memory:", call_gettimeofday, 8);
    show("time, memory to read:", call_time, (u64)main & -8UL);
    show("time, the kernel's half:", call_time, KERNEL_HALF);
    show("getcpu, the page itself:", call_getcpu, VSYSCALL);
    show("in the middle:", call_middle, 0);
    show("where a fourth would be:", call_none, 0);
    show("behind the page:", call_next_page, 0);
    show("without a stack:", call_without_stack, 0);
    show("a load:", code_load, VSYSCALL);
    show("a store:", code_store, VSYSCALL + 0x400);
    return 0;
}
