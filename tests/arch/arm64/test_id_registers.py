"""Capability bits and ID registers say the same, in Linux's numbers."""

from __future__ import annotations

from aether_emu.arch.arm64 import id_registers as ids
from aether_emu.arch.arm64.registers import Encoding

# From arch/arm64/include/uapi/asm/hwcap.h.
HWCAP = """
    FP ASIMD EVTSTRM AES PMULL SHA1 SHA2 CRC32 ATOMICS FPHP ASIMDHP CPUID ASIMDRDM JSCVT FCMA LRCPC
    DCPOP SHA3 SM3 SM4 ASIMDDP SHA512 SVE ASIMDFHM DIT USCAT ILRCPC FLAGM SSBS SB PACA PACG
"""
HWCAP2 = """
    DCPODP SVE2 SVEAES SVEPMULL SVEBITPERM SVESHA3 SVESM4 FLAGM2 FRINT SVEI8MM SVEF32MM SVEF64MM
    SVEBF16 I8MM BF16 DGH RNG BTI MTE ECV AFP RPRES
"""


def names(word: int, table: str) -> set[str]:
    assert not word >> len(table.split())
    return {name for bit, name in enumerate(table.split()) if word >> bit & 1}


def test_bits_have_linuxs_places() -> None:
    hwcap, hwcap2 = ids.hardware_capabilities()
    announced = {capability.name for capability in ids.CAPABILITIES}
    assert names(hwcap, HWCAP) | names(hwcap2, HWCAP2) == announced | {"CPUID"}
    assert names(hwcap, HWCAP) & names(hwcap2, HWCAP2) == set()


def test_what_is_not_there_is_not_announced() -> None:
    hwcap, hwcap2 = ids.hardware_capabilities()
    absent = {"EVTSTRM", "SVE", "DIT", "USCAT", "SSBS", "PACA", "PACG", "SVE2", "I8MM", "BF16", "BTI", "MTE"}
    assert not (names(hwcap, HWCAP) | names(hwcap2, HWCAP2)) & absent


def test_registers_show_the_capabilities_and_nothing_else() -> None:
    assert ids.user_value(ids.ID_AA64ISAR0_EL1) == 0x1021_1111_1021_2120
    assert ids.user_value(ids.ID_AA64ISAR1_EL1) == 0x0000_0011_0021_1002
    assert ids.user_value(ids.ID_AA64PFR0_EL1) == 0x11_0011
    assert ids.user_value(Encoding(3, 0, 0, 4, 1)) == 0


def test_hidden_fields_show_linuxs_safe_values() -> None:
    assert ids.user_value(ids.ID_AA64MMFR0_EL1) == 0x0111_FF00_0000
    assert ids.user_value(ids.ID_AA64DFR0_EL1) == 6
    assert ids.user_value(ids.MIDR_EL1) == 0xF_0510
    assert ids.user_value(ids.MPIDR_EL1) == 1 << 31
    assert ids.user_value(ids.REVIDR_EL1) == 0


def test_the_emulated_space_is_linuxs() -> None:
    for crm in range(16):
        for op2 in range(8):
            value = ids.user_value(Encoding(3, 0, 0, crm, op2))
            if crm == 0:
                assert (value is not None) == (op2 in (0, 5, 6))
            else:
                assert (value is not None) == (2 <= crm <= 7)
    for other in (Encoding(3, 1, 0, 4, 0), Encoding(2, 0, 0, 4, 0), Encoding(3, 0, 1, 4, 0)):
        assert ids.user_value(other) is None
