"""What an ARM64 program is told about its CPU: capability bits, and the ID registers that agree with them.

Linux traps an EL0 `mrs` of an ID register and answers with a value in which only fields of use to
programs are left (arch/arm64/kernel/cpufeature.c; Documentation/arch/arm64/cpu-feature-registers.rst).
Here one table is the source of both: a capability names its bit and the field that shows it (Arm ARM
D19.2, by register name). A field's visible value is the highest that an announced capability has.

Announced is what the engine executes correctly at EL0, with no state beyond that of a signal frame.
"""

from __future__ import annotations

from aether_emu.arch.arm64.registers import Encoding
from aether_emu.records import dataclass

ID_AA64PFR0_EL1 = Encoding(3, 0, 0, 4, 0)
ID_AA64DFR0_EL1 = Encoding(3, 0, 0, 5, 0)
ID_AA64ISAR0_EL1 = Encoding(3, 0, 0, 6, 0)
ID_AA64ISAR1_EL1 = Encoding(3, 0, 0, 6, 1)
ID_AA64MMFR0_EL1 = Encoding(3, 0, 0, 7, 0)
MIDR_EL1, MPIDR_EL1, REVIDR_EL1 = (Encoding(3, 0, 0, 0, op2) for op2 in (0, 5, 6))


@dataclass(frozen=True, slots=True)
class Capability:
    """One bit of AT_HWCAP (0 to 63) or AT_HWCAP2 (from 64), and the ID field that says the same.

    `low` is the field's lowest bit, `value` what it holds at least when the capability is there.
    """

    name: str
    bit: int
    register: Encoding
    low: int
    value: int


# Bits: arch/arm64/include/uapi/asm/hwcap.h. Fields and values: arm64_elf_hwcaps in cpufeature.c.
CAPABILITIES: tuple[Capability, ...] = (
    Capability("FP", 0, ID_AA64PFR0_EL1, 16, 0),
    Capability("ASIMD", 1, ID_AA64PFR0_EL1, 20, 0),
    Capability("AES", 3, ID_AA64ISAR0_EL1, 4, 1),
    Capability("PMULL", 4, ID_AA64ISAR0_EL1, 4, 2),
    Capability("SHA1", 5, ID_AA64ISAR0_EL1, 8, 1),
    Capability("SHA2", 6, ID_AA64ISAR0_EL1, 12, 1),
    Capability("CRC32", 7, ID_AA64ISAR0_EL1, 16, 1),
    Capability("ATOMICS", 8, ID_AA64ISAR0_EL1, 20, 2),
    Capability("FPHP", 9, ID_AA64PFR0_EL1, 16, 1),
    Capability("ASIMDHP", 10, ID_AA64PFR0_EL1, 20, 1),
    Capability("ASIMDRDM", 12, ID_AA64ISAR0_EL1, 28, 1),
    Capability("JSCVT", 13, ID_AA64ISAR1_EL1, 12, 1),
    Capability("FCMA", 14, ID_AA64ISAR1_EL1, 16, 1),
    Capability("LRCPC", 15, ID_AA64ISAR1_EL1, 20, 1),
    Capability("DCPOP", 16, ID_AA64ISAR1_EL1, 0, 1),
    Capability("SHA3", 17, ID_AA64ISAR0_EL1, 32, 1),
    Capability("SM3", 18, ID_AA64ISAR0_EL1, 36, 1),
    Capability("SM4", 19, ID_AA64ISAR0_EL1, 40, 1),
    Capability("ASIMDDP", 20, ID_AA64ISAR0_EL1, 44, 1),
    Capability("SHA512", 21, ID_AA64ISAR0_EL1, 12, 2),
    Capability("ASIMDFHM", 23, ID_AA64ISAR0_EL1, 48, 1),
    Capability("ILRCPC", 26, ID_AA64ISAR1_EL1, 20, 2),
    Capability("FLAGM", 27, ID_AA64ISAR0_EL1, 52, 1),
    Capability("SB", 29, ID_AA64ISAR1_EL1, 36, 1),
    Capability("DCPODP", 64 + 0, ID_AA64ISAR1_EL1, 0, 2),
    Capability("FLAGM2", 64 + 7, ID_AA64ISAR0_EL1, 52, 2),
    Capability("FRINT", 64 + 8, ID_AA64ISAR1_EL1, 32, 1),
    Capability("RNG", 64 + 16, ID_AA64ISAR0_EL1, 60, 1),
)
CPUID = 1 << 11  # of AT_HWCAP: `mrs` of an ID register is answered
_WORD = (1 << 64) - 1

# What hidden fields show: Linux's safe values, where they are not 0.
_HIDDEN: dict[Encoding, int] = {
    ID_AA64PFR0_EL1: 0x11,  # EL1, EL0: AArch64 alone
    ID_AA64DFR0_EL1: 0x6,  # DebugVer
    ID_AA64MMFR0_EL1: 0x0000_0111_FF00_0000,  # stage-2 granules as stage 1; TGran4, TGran64: none
}

_MIDR = 0x000F_0510  # the engine's own: no implementer, a part number that means nothing
_MPIDR = 1 << 31  # RES1; the affinity of no CPU is shown


def hardware_capabilities() -> tuple[int, int]:
    """AT_HWCAP and AT_HWCAP2."""
    bits = CPUID + sum(1 << capability.bit for capability in CAPABILITIES)
    return bits & _WORD, bits >> 64


def _feature_registers() -> dict[Encoding, int]:
    fields: dict[tuple[Encoding, int], int] = {}
    for capability in CAPABILITIES:
        field = capability.register, capability.low
        fields[field] = max(fields.get(field, 0), capability.value)
    registers = dict(_HIDDEN)
    for (register, low), value in fields.items():
        registers[register] = registers.get(register, 0) | value << low
    return registers


_ANSWERS = _feature_registers() | {MIDR_EL1: _MIDR, MPIDR_EL1: _MPIDR, REVIDR_EL1: 0}


def user_value(register: Encoding) -> int | None:
    """What an EL0 `mrs` of `register` yields, or None where it is undefined to programs.

    The space of ID registers is answered as a whole, AArch32's CRm 1 excepted: what Linux does not know is 0.
    """
    op0, op1, crn, crm, _op2 = register
    if (op0, op1, crn) != (3, 0, 0) or crm not in (0, 2, 3, 4, 5, 6, 7):
        return None
    return _ANSWERS.get(register, None if crm == 0 else 0)
