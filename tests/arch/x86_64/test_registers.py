"""Control registers, MSRs and descriptors of x86_64 against the numbers that the manual prints."""

from __future__ import annotations

import pytest

from aether_emu.arch.x86_64 import registers as regs

# Intel SDM 3A 2.5 (CR0, CR4), 2.2.1 (IA32_EFER), 1 3.4.3 (RFLAGS).
POSITIONS = {
    "CR0_PE": 0, "CR0_MP": 1, "CR0_ET": 4, "CR0_NE": 5, "CR0_WP": 16, "CR0_PG": 31,
    "CR4_PAE": 5, "CR4_PGE": 7, "CR4_OSFXSR": 9, "CR4_OSXMMEXCPT": 10, "CR4_LA57": 12,
    "CR4_FSGSBASE": 16, "CR4_OSXSAVE": 18, "CR4_SMEP": 20, "CR4_SMAP": 21, "CR4_PKE": 22,
    "EFER_SCE": 0, "EFER_LME": 8, "EFER_LMA": 10, "EFER_NXE": 11,
    "RFLAGS_FIXED": 1, "RFLAGS_TF": 8, "RFLAGS_IF": 9, "RFLAGS_DF": 10, "RFLAGS_RF": 16, "RFLAGS_AC": 18,
}  # fmt: skip


@pytest.mark.parametrize(("name", "position"), POSITIONS.items())
def test_a_bit_stands_where_the_manual_puts_it(name: str, position: int) -> None:
    assert getattr(regs, name) == 1 << position


def test_the_kernel_runs_with_paging_write_protection_and_every_protection_feature() -> None:
    assert regs.CR0_KERNEL == 0x8001_0033
    on = ("PAE", "PGE", "OSFXSR", "OSXMMEXCPT", "FSGSBASE", "OSXSAVE", "SMEP", "SMAP", "PKE")
    assert sum(1 << POSITIONS[f"CR4_{name}"] for name in on) == regs.CR4_KERNEL
    assert regs.EFER_KERNEL == 0xD01


def test_msr_numbers_are_the_manuals() -> None:
    assert (regs.EFER, regs.MSR_PAT) == (0xC000_0080, 0x277)


def test_the_pat_is_the_one_linux_programs() -> None:
    """WB WC UC- UC WB WP UC- WT, index 0 in the lowest byte (Intel SDM 3A 12.12.2)."""
    assert regs.PAT_VALUE == 0x0407_0506_0007_0106


def test_user_flags_are_those_that_linux_restores_from_a_signal_frame() -> None:
    carry, parity, adjust, zero, sign, overflow = 0, 2, 4, 6, 7, 11
    bits = (carry, parity, adjust, zero, sign, overflow, 8, 10, 16, 18)  # and TF, DF, RF, AC
    assert sum(1 << bit for bit in bits) == regs.RFLAGS_USER


def test_the_fpu_starts_as_after_fninit() -> None:
    assert (regs.FPU_CONTROL, regs.FPU_TAGS, regs.MXCSR) == (0x37F, 0xFFFF, 0x1F80)


@pytest.mark.parametrize(
    ("code", "privilege", "descriptor"),
    [
        (True, 0, 0x00AF_9A00_0000_FFFF),
        (False, 0, 0x00CF_9200_0000_FFFF),
        (True, 3, 0x00AF_FA00_0000_FFFF),
        (False, 3, 0x00CF_F200_0000_FFFF),
    ],
)
def test_segments_are_flat(code: bool, privilege: int, descriptor: int) -> None:
    assert regs.segment_descriptor(code=code, privilege=privilege) == descriptor


def test_selectors_index_the_descriptors_they_are_named_after() -> None:
    for selector, code, privilege in (
        (regs.KERNEL_CODE, True, 0),
        (regs.KERNEL_DATA, False, 0),
        (regs.USER_CODE, True, 3),
        (regs.USER_DATA, False, 3),
    ):
        assert regs.GDT[selector >> 3] == regs.segment_descriptor(code=code, privilege=privilege)
        assert selector & 3 == privilege
    assert len(regs.GDT) == regs.TASK_STATE >> 3


def test_a_task_state_descriptor_spreads_its_base_over_two_words() -> None:
    """Intel SDM 3A figure 8-4: base 15..0 at 16, 23..16 at 32, 31..24 at 56, 63..32 in the second word."""
    low, high = regs.task_state_descriptor(0xFFFF_8765_4321_ABCD, 0xF_0067)
    assert low == 0x430F_8921_ABCD_0067
    assert high == 0xFFFF_8765
