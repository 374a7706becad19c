"""x86_64 control registers and MSRs that govern paging, as declared tables (Intel SDM 3A 2.5, 4.1)."""

from __future__ import annotations

from aether_emu.arch.paging import MemoryType
from aether_emu.arch.x86_64.stage1 import PAT_LAYOUT

CR0_PE = 1 << 0  # protected mode
CR0_MP = 1 << 1
CR0_ET = 1 << 4
CR0_NE = 1 << 5
CR0_WP = 1 << 16  # ring 0 honours read-only pages
CR0_PG = 1 << 31  # paging

CR4_PAE = 1 << 5
CR4_PGE = 1 << 7  # global pages
CR4_OSFXSR = 1 << 9
CR4_OSXMMEXCPT = 1 << 10
CR4_LA57 = 1 << 12  # five levels
CR4_FSGSBASE = 1 << 16
CR4_PCIDE = 1 << 17  # CR3 bits 11:0 are a PCID
CR4_OSXSAVE = 1 << 18
CR4_SMEP = 1 << 20  # ring 0 does not execute user pages
CR4_SMAP = 1 << 21  # ring 0 does not touch user pages unless EFLAGS.AC
CR4_PKE = 1 << 22  # protection keys for user pages

EFER = 0xC000_0080
EFER_SCE = 1 << 0  # syscall
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11  # NX bits count

MSR_PAT = 0x277

RFLAGS_CF = 1 << 0
RFLAGS_FIXED = 1 << 1
RFLAGS_PF = 1 << 2
RFLAGS_AF = 1 << 4
RFLAGS_ZF = 1 << 6
RFLAGS_SF = 1 << 7
RFLAGS_TF = 1 << 8
RFLAGS_IF = 1 << 9
RFLAGS_DF = 1 << 10
RFLAGS_OF = 1 << 11
RFLAGS_RF = 1 << 16
RFLAGS_AC = 1 << 18

RFLAGS_ARITHMETIC = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF

# What user code may change through a signal frame (Linux FIX_EFLAGS: AC OF DF TF SF ZF AF PF CF RF).
RFLAGS_USER = 0x0005_0DD5

CR0_KERNEL = CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE
CR4_KERNEL = (
    CR4_PAE
    | CR4_PGE
    | CR4_OSFXSR
    | CR4_OSXMMEXCPT
    | CR4_FSGSBASE
    | CR4_OSXSAVE
    | CR4_SMEP
    | CR4_SMAP
    | CR4_PKE
)
EFER_KERNEL = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE

# Encodings of memory types in the PAT MSR (Intel SDM 3A table 12-10).
_PAT_ENCODING = {
    MemoryType.UNCACHED: 0,
    MemoryType.WRITE_COMBINING: 1,
    MemoryType.WRITE_THROUGH: 4,
    MemoryType.WRITE_PROTECTED: 5,
    MemoryType.WRITE_BACK: 6,
    MemoryType.UNCACHED_MINUS: 7,
}
PAT_VALUE = sum(_PAT_ENCODING[kind] << 8 * index for index, kind in enumerate(PAT_LAYOUT))

# What x87 and SSE hold after FNINIT and reset (Intel SDM 3A 10.1.1, 1 10.2.3); Unicorn starts with zeros.
FPU_CONTROL = 0x037F
FPU_TAGS = 0xFFFF
MXCSR = 0x1F80


def segment_descriptor(*, code: bool, privilege: int) -> int:
    """A flat 64-bit code or data descriptor (Intel SDM 3A 3.4.5) for `privilege` 0 or 3."""
    access = 0x92 | privilege << 5 | (0x08 if code else 0)
    flags = 0xA if code else 0xC  # L for code, D/B for data, both with G
    return 0xFFFF | access << 40 | 0xF << 48 | flags << 52


KERNEL_CODE, KERNEL_DATA = 0x10, 0x18
USER_DATA, USER_CODE = 0x2B, 0x33  # Linux's own selectors, so that signal frames look true
TASK_STATE = 0x40
CPU_NUMBER = 0x7B  # whose limit programs read (LSL), and the vDSO for them; no register ever holds it
GDT: tuple[int, ...] = (
    0,
    0,
    segment_descriptor(code=True, privilege=0),
    segment_descriptor(code=False, privilege=0),
    0,
    segment_descriptor(code=False, privilege=3),
    segment_descriptor(code=True, privilege=3),
    0,
)


def task_state_descriptor(base: int, limit: int) -> tuple[int, int]:
    """The two words of an available 64-bit TSS descriptor (Intel SDM 3A 8.2.3)."""
    low = (
        limit & 0xFFFF
        | (base & 0xFFFFFF) << 16
        | 0x89 << 40
        | (limit >> 16 & 0xF) << 48
        | (base >> 24 & 0xFF) << 56
    )
    return low, base >> 32


def cpu_number_descriptor(cpu: int) -> int:
    """The descriptor behind `CPU_NUMBER`: read-only data for privilege 3, its limit in bytes (Linux's)."""
    return cpu & 0xFFFF | 0xF5 << 40 | 0x4 << 52
