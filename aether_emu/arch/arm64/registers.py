"""ARM64 system registers that govern paging, as declared tables (Arm ARM D19.2, by register name).

Each register that we program is a `SystemRegister`: its encoding, its fields, and a value spelled as
named fields, so that what the CPU runs with can be read, printed and compared bit by bit.
"""

from __future__ import annotations

from typing import NamedTuple

from aether_emu.arch.paging import BitField
from aether_emu.records import dataclass


class Encoding(NamedTuple):
    """How `mrs` and `msr` name a register (Arm ARM D18.3)."""

    op0: int
    op1: int
    crn: int
    crm: int
    op2: int


@dataclass(frozen=True, slots=True)
class SystemRegister:
    """A register whose fields we set. Fields not declared are left zero."""

    name: str
    encoding: Encoding
    fields: tuple[BitField, ...]

    def value(self, **settings: int) -> int:
        """The word with the named fields set, all others 0. Raises KeyError for a name it does not have."""
        by_name = {field.name: field for field in self.fields}
        return sum(by_name[name].put(value) for name, value in settings.items())

    def named(self, word: int) -> dict[str, int]:
        """The fields of `word` that are not 0, lowest first."""
        return {field.name: field.get(word) for field in self.fields if field.get(word)}


TTBR0_EL1 = Encoding(3, 0, 2, 0, 0)
TTBR1_EL1 = Encoding(3, 0, 2, 0, 1)
CNTKCTL_EL1 = Encoding(3, 0, 14, 1, 0)
TLBI_VAE1 = Encoding(1, 0, 8, 7, 1)
AT_S1E0R = Encoding(1, 0, 7, 8, 2)  # translate as a read at EL0 would; the answer is in PAR_EL1
PAR_EL1 = Encoding(3, 0, 7, 4, 0)

SCR_EL3 = SystemRegister(
    "SCR_EL3",
    Encoding(3, 6, 1, 1, 0),
    (
        BitField("NS", 0, 1, "the levels below are non-secure"),
        BitField("RES1", 4, 2, "always one"),
        BitField("SMD", 7, 1, "smc is undefined"),
        BitField("HCE", 8, 1, "hvc is defined"),
        BitField("RW", 10, 1, "EL2 is AArch64; without it the walker takes EL1 for AArch32"),
    ),
)
SCR_VALUE = SCR_EL3.value(NS=1, RES1=3, SMD=1, HCE=1, RW=1)

HCR_EL2 = SystemRegister(
    "HCR_EL2", Encoding(3, 4, 1, 1, 0), (BitField("RW", 31, 1, "EL1 is AArch64, stage 2 is off"),)
)
HCR_VALUE = HCR_EL2.value(RW=1)

CPACR_EL1 = SystemRegister(
    "CPACR_EL1",
    Encoding(3, 0, 1, 0, 2),
    (
        BitField("ZEN", 16, 2, "SVE: 0 traps it at every level"),
        BitField("FPEN", 20, 2, "floating point and SIMD: 3 traps nothing"),
    ),
)
CPACR_VALUE = CPACR_EL1.value(FPEN=3)

SCTLR_EL1 = SystemRegister(
    "SCTLR_EL1",
    Encoding(3, 0, 1, 0, 0),
    (
        BitField("M", 0, 1, "translation on"),
        BitField("A", 1, 1, "every misaligned access faults"),
        BitField("C", 2, 1, "data caching"),
        BitField("SA", 3, 1, "EL1 stack alignment is checked"),
        BitField("SA0", 4, 1, "EL0 stack alignment is checked"),
        BitField("CP15BEN", 5, 1, "AArch32 barriers at EL0"),
        BitField("UMA", 9, 1, "EL0 may mask interrupts"),
        BitField("EOS", 11, 1, "an exception return synchronizes"),
        BitField("I", 12, 1, "instruction caching"),
        BitField("ENDB", 13, 1, "pointer authentication by key DB"),
        BitField("DZE", 14, 1, "EL0 may dc zva"),
        BitField("UCT", 15, 1, "EL0 may read CTR_EL0"),
        BitField("NTWI", 16, 1, "EL0 may wait for an interrupt"),
        BitField("NTWE", 18, 1, "EL0 may wait for an event"),
        BitField("WXN", 19, 1, "what can be written is never executed"),
        BitField("EIS", 22, 1, "an exception entry synchronizes"),
        BitField("SPAN", 23, 1, "PAN is left alone on exception entry"),
        BitField("E0E", 24, 1, "EL0 data is big-endian"),
        BitField("EE", 25, 1, "EL1 data is big-endian"),
        BitField("UCI", 26, 1, "EL0 may maintain caches"),
        BitField("ENDA", 27, 1, "pointer authentication by key DA"),
        BitField("ENIB", 30, 1, "pointer authentication by key IB"),
        BitField("ENIA", 31, 1, "pointer authentication by key IA"),
        BitField("BT0", 35, 1, "paciasp at EL0 is no landing pad for every branch"),
    ),
)
# UCI is 0 so that `ic ivau` traps and drops translations; NTWI and NTWE because a wait would end the run.
# The pointer-authentication instructions are no-ops, as on a CPU without them: no key is enabled.
SCTLR_VALUE = SCTLR_EL1.value(
    M=1, C=1, SA=1, SA0=1, CP15BEN=1, EOS=1, I=1, DZE=1, UCT=1, EIS=1, SPAN=1
)  # fmt: skip

MAIR_EL1 = SystemRegister(
    "MAIR_EL1",
    Encoding(3, 0, 10, 2, 0),
    tuple(BitField(f"ATTR{index}", 8 * index, 8, f"memory of AttrIndx {index}") for index in range(8)),
)
MAIR_VALUE = MAIR_EL1.value(
    ATTR0=0xFF,  # Normal, write-back, allocating on read and write
    ATTR1=0xBB,  # Normal, write-through
    ATTR2=0x44,  # Normal, non-cacheable
    ATTR3=0x0C,  # Device-GRE
    ATTR4=0x00,  # Device-nGnRnE
    ATTR5=0xAA,  # Normal, write-through, allocating on read only
)

TCR_EL1 = SystemRegister(
    "TCR_EL1",
    Encoding(3, 0, 2, 0, 2),
    (
        BitField("T0SZ", 0, 6, "the low half has 64 - T0SZ address bits"),
        BitField("EPD0", 7, 1, "no walks by TTBR0"),
        BitField("IRGN0", 8, 2, "inner cacheability of walks by TTBR0"),
        BitField("ORGN0", 10, 2, "outer cacheability"),
        BitField("SH0", 12, 2, "shareability"),
        BitField("TG0", 14, 2, "granule of the low half"),
        BitField("T1SZ", 16, 6, "the high half has 64 - T1SZ address bits"),
        BitField("A1", 22, 1, "the ASID is TTBR1's"),
        BitField("EPD1", 23, 1, "no walks by TTBR1"),
        BitField("IRGN1", 24, 2, "inner cacheability of walks by TTBR1"),
        BitField("ORGN1", 26, 2, "outer cacheability"),
        BitField("SH1", 28, 2, "shareability"),
        BitField("TG1", 30, 2, "granule of the high half, in another code than TG0"),
        BitField("IPS", 32, 3, "physical address size"),
        BitField("AS", 36, 1, "16-bit ASIDs"),
        BitField("TBI0", 37, 1, "the top byte of low addresses is ignored"),
        BitField("TBI1", 38, 1, "the top byte of high addresses is ignored"),
        BitField("HA", 39, 1, "hardware sets the access flag"),
        BitField("HD", 40, 1, "hardware sets dirty state"),
        BitField("HPD0", 41, 1, "table permissions are ignored below TTBR0"),
        BitField("HPD1", 42, 1, "table permissions are ignored below TTBR1"),
    ),
)
TG0_OF = {4096: 0, 16384: 2, 65536: 1}
TG1_OF = {4096: 2, 16384: 1, 65536: 3}
VIRTUAL_BITS = {4096: (39, 48), 16384: (36, 47, 48), 65536: (42, 48)}
_IPS_48_BITS = 5
_INNER_SHAREABLE, _WRITE_BACK_ALLOCATE = 3, 1


ASID_SHIFT = 48  # of TTBR0_EL1, whose ASID counts where TCR_EL1.A1 is 0


def tcr_value(granule: int, virtual_bits: int, asid_bits: int = 8) -> int:
    """TCR_EL1 for both halves alike: page size in bytes, and address bits as Linux lets one choose.

    ASIDs have 8 or 16 bits. Raises ValueError for a pair that no kernel configuration has.
    """
    if virtual_bits not in VIRTUAL_BITS.get(granule, ()):
        raise ValueError(f"no {virtual_bits}-bit addresses with a granule of {granule} bytes")
    size = 64 - virtual_bits
    walks = dict.fromkeys(("SH0", "SH1"), _INNER_SHAREABLE)
    walks |= dict.fromkeys(("IRGN0", "ORGN0", "IRGN1", "ORGN1"), _WRITE_BACK_ALLOCATE)
    return TCR_EL1.value(
        T0SZ=size,
        T1SZ=size,
        TG0=TG0_OF[granule],
        TG1=TG1_OF[granule],
        IPS=_IPS_48_BITS,
        AS=int(asid_bits == 16),
        TBI0=1,
        **walks,
    )


def decode_mrs(word: int) -> tuple[Encoding, int] | None:
    """What the instruction `word` reads and into which register, if it is an mrs (Arm ARM C6.2, MRS)."""
    if word >> 20 != 0xD53:
        return None
    fields = Encoding(2 | word >> 19 & 1, word >> 16 & 7, word >> 12 & 15, word >> 8 & 15, word >> 5 & 7)
    return fields, word & 31


def untagged(va: int) -> int:
    """The address without the tag byte that TCR.TBI0 allows in pointers to the low half (Arm ARM D8.8)."""
    return va if va >> 55 & 1 else va & (1 << 56) - 1


PSTATE_EL0 = 0
PSTATE_FLAGS = 0xF000_0000  # N, Z, C, V
PSTATE_NOT_USER = 0x3DF  # D, A, I, F, AArch32, and every mode but EL0 (SPSR_EL1, as Linux checks it)
PSTATE_EL1 = 0x3C5  # EL1h, interrupts masked
PSTATE_PAN = 1 << 22
PSTATE_UAO = 1 << 23
