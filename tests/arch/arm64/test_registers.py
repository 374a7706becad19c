"""The declared system registers: what their values say, and that the CPU agrees."""

from __future__ import annotations

import pytest

from aether_emu.arch.arm64 import registers as regs
from tests.machine.unicorn.bare_arm64 import BareArm64

REGISTERS = (regs.SCR_EL3, regs.HCR_EL2, regs.CPACR_EL1, regs.SCTLR_EL1, regs.MAIR_EL1, regs.TCR_EL1)


@pytest.mark.parametrize("register", REGISTERS, ids=lambda register: register.name)
def test_fields_do_not_overlap_and_have_names_of_their_own(register: regs.SystemRegister) -> None:
    masks = [field.mask for field in register.fields]
    for index, mask in enumerate(masks):
        assert not any(mask & other for other in masks[index + 1 :])
    assert len({field.name for field in register.fields}) == len(masks)


@pytest.mark.parametrize("register", REGISTERS, ids=lambda register: register.name)
def test_a_value_is_read_back_as_it_was_spelled(register: regs.SystemRegister) -> None:
    settings = {field.name: field.get(field.mask) for field in register.fields}
    assert register.named(register.value(**settings)) == settings
    with pytest.raises(KeyError):
        register.value(NONE=1)
    with pytest.raises(ValueError, match="does not fit"):
        register.value(**{register.fields[0].name: 1 << register.fields[0].width})


@pytest.mark.parametrize(
    ("granule", "virtual_bits", "size", "tg0", "tg1"),
    [
        (4096, 39, 25, 0, 2),
        (4096, 48, 16, 0, 2),
        (16384, 36, 28, 2, 1),
        (16384, 47, 17, 2, 1),
        (16384, 48, 16, 2, 1),
        (65536, 42, 22, 1, 3),
        (65536, 48, 16, 1, 3),
    ],
)
def test_tcr_codes_the_granule_twice_and_differently(
    granule: int, virtual_bits: int, size: int, tg0: int, tg1: int
) -> None:
    named = regs.TCR_EL1.named(regs.tcr_value(granule, virtual_bits))
    walks = {"IRGN0": 1, "ORGN0": 1, "SH0": 3, "IRGN1": 1, "ORGN1": 1, "SH1": 3}
    expected = {"T0SZ": size, "T1SZ": size, "TG0": tg0, "TG1": tg1, "IPS": 5, "TBI0": 1, **walks}
    assert named == {name: value for name, value in expected.items() if value}


def test_pairs_without_a_kernel_are_refused() -> None:
    for granule, virtual_bits in ((4096, 36), (4096, 47), (16384, 39), (65536, 47), (8192, 48), (0, 48)):
        with pytest.raises(ValueError, match=f"{virtual_bits}-bit"):
            regs.tcr_value(granule, virtual_bits)


def test_sctlr_keeps_the_reset_value_of_what_it_does_not_mean_to_change() -> None:
    bare = BareArm64()
    engine_reset = 0x00C5_0838
    changed = regs.SCTLR_EL1.named(engine_reset ^ regs.SCTLR_VALUE)
    assert set(changed) == {"M", "C", "I", "DZE", "UCT", "NTWI", "NTWE"}
    assert bare.cpu._uc.cpr_read(*regs.SCTLR_EL1.encoding) == regs.SCTLR_VALUE
    assert "WXN" not in regs.SCTLR_EL1.named(regs.SCTLR_VALUE)


def test_a_booted_cpu_holds_the_declared_values() -> None:
    bare = BareArm64(granule=16384, virtual_bits=47)
    for register, value in (
        (regs.SCR_EL3, regs.SCR_VALUE),
        (regs.HCR_EL2, regs.HCR_VALUE),
        (regs.CPACR_EL1, regs.CPACR_VALUE),
        (regs.MAIR_EL1, regs.MAIR_VALUE),
        (regs.TCR_EL1, regs.tcr_value(16384, 47)),
    ):
        assert bare.cpu._uc.cpr_read(*register.encoding) == value, register.name


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0xD53B_D040, (regs.Encoding(3, 3, 13, 0, 2), 0)),  # mrs x0, tpidr_el0
        (0xD538_0605, (regs.Encoding(3, 0, 0, 6, 0), 5)),  # mrs x5, id_aa64isar0_el1
        (0xD53B_243F, (regs.Encoding(3, 3, 2, 4, 1), 31)),  # mrs xzr, rndrrs
        (0xD530_0000, (regs.Encoding(2, 0, 0, 0, 0), 0)),
        (0xD51B_D040, None),  # msr
        (0xD50B_7C20, None),  # dc cvap
        (0, None),
    ],
)
def test_an_mrs_is_taken_apart(word: int, expected: tuple[regs.Encoding, int] | None) -> None:
    assert regs.decode_mrs(word) == expected
