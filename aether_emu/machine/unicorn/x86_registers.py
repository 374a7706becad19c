"""The x86 registers a user program can observe, by name, and how the engine numbers them."""

from __future__ import annotations

from unicorn import x86_const as c

GENERAL_NAMES = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip

NUMBERS: dict[str, int] = {
    **{name: getattr(c, f"UC_X86_REG_{name.upper()}") for name in GENERAL_NAMES},
    "rflags": c.UC_X86_REG_EFLAGS,
    "fs_base": c.UC_X86_REG_FS_BASE,
    "gs_base": c.UC_X86_REG_GS_BASE,
    "mxcsr": c.UC_X86_REG_MXCSR,
    "fpcw": c.UC_X86_REG_FPCW,
    "fpsw": c.UC_X86_REG_FPSW,
    "fptag": c.UC_X86_REG_FPTAG,
    **{f"xmm{i}": c.UC_X86_REG_XMM0 + i for i in range(16)},
}
X87_NAMES = tuple(f"fp{i}" for i in range(8))
X87_NUMBERS = tuple(c.UC_X86_REG_FP0 + i for i in range(8))

CONTROL: dict[str, int] = {
    "cr0": c.UC_X86_REG_CR0,
    "cr2": c.UC_X86_REG_CR2,
    "cr3": c.UC_X86_REG_CR3,
    "cr4": c.UC_X86_REG_CR4,
}
