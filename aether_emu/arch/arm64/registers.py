"""ARM64 system registers that govern paging, as declared tables (Arm ARM D19.2)."""

from __future__ import annotations

Encoding = tuple[int, int, int, int, int]  # op0, op1, CRn, CRm, op2

SCTLR_EL1: Encoding = (3, 0, 1, 0, 0)
CPACR_EL1: Encoding = (3, 0, 1, 0, 2)
TTBR0_EL1: Encoding = (3, 0, 2, 0, 0)
TTBR1_EL1: Encoding = (3, 0, 2, 0, 1)
TCR_EL1: Encoding = (3, 0, 2, 0, 2)
MAIR_EL1: Encoding = (3, 0, 10, 2, 0)
CNTKCTL_EL1: Encoding = (3, 0, 14, 1, 0)
HCR_EL2: Encoding = (3, 4, 1, 1, 0)
SCR_EL3: Encoding = (3, 6, 1, 1, 0)
PAN: Encoding = (3, 0, 4, 2, 3)
TLBI_VMALLE1: Encoding = (1, 0, 8, 7, 0)
TLBI_VAE1: Encoding = (1, 0, 8, 7, 1)

SCTLR_M = 1 << 0  # translation on
SCTLR_C = 1 << 2
SCTLR_I = 1 << 12
SCTLR_DZE = 1 << 14  # EL0 may `dc zva`
SCTLR_UCT = 1 << 15  # EL0 may read CTR_EL0
SCTLR_NTWI = 1 << 16  # EL0 may wait for an interrupt
SCTLR_NTWE = 1 << 18  # EL0 may wait for an event
SCTLR_SPAN = 1 << 23  # PAN is left alone on exception entry
SCTLR_KERNEL = SCTLR_M | SCTLR_C | SCTLR_I | SCTLR_DZE | SCTLR_UCT | SCTLR_SPAN
SCTLR_TRAPS = SCTLR_NTWI | SCTLR_NTWE  # cleared: a wait would end the run of the engine

SCR_KERNEL = 0x5B1  # NS, SMD, HCE, RW: without RW the walker takes EL1 for AArch32
HCR_RW = 1 << 31  # EL1 is AArch64
CPACR_FPEN = 3 << 20

# Device and Normal attributes by AttrIndx, in the order of `format._ATTR_INDEX` (Arm ARM D19.2.100).
MAIR_ATTRIBUTES = (0xFF, 0xBB, 0x44, 0x0C, 0x00, 0xAA)
MAIR_VALUE = sum(value << 8 * index for index, value in enumerate(MAIR_ATTRIBUTES))

_T0SZ = _T1SZ = 16  # 48-bit addresses both ways
_WALK = 0x35  # inner shareable, write-back write-allocate walks (SH, ORGN, IRGN)
TCR_VALUE = (
    _T0SZ
    | _WALK << 8
    | _T1SZ << 16
    | _WALK << 24
    | 2 << 30  # TG1: 4 KiB
    | 5 << 32  # IPS: 48 bits
    | 1 << 37  # TBI0: EL0 pointers may carry a tag byte
)

PSTATE_EL0 = 0
PSTATE_EL1 = 0x3C5  # EL1h, interrupts masked
PSTATE_PAN = 1 << 22
