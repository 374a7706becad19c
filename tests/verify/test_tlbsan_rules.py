"""What TLBSan takes for a loss: every pair of rights, and the special cases."""

from __future__ import annotations

from itertools import product

import pytest

from aether_emu.verify.tlbsan.rules import Loss, Rules

_FRAME, _OTHER = 0x4000_0000, 0x4060_0000
_X86 = Rules("x86_64-4level")
_ARM_FORMATS = ("arm64-4K", "arm64-16K", "arm64-64K", "arm64-4K-39bit")
_P, _RW, _US, _A, _D, _XD = 1, 2, 4, 1 << 5, 1 << 6, 1 << 63
_PAGE, _USER, _READ_ONLY, _AF, _NG = 3, 1 << 6, 1 << 7, 1 << 10, 1 << 11
_PXN, _UXN = 1 << 53, 1 << 54


def _x86(rights: tuple[bool, ...]) -> int:
    """writable, user, executable; accessed and dirty."""
    bits = (_RW, _US, 0)
    entry = _FRAME | _P | _A | _D | sum(bit for bit, has in zip(bits, rights, strict=True) if has)
    return entry if rights[2] else entry | _XD


def test_an_x86_64_entry_loses_what_another_one_does_not_grant() -> None:
    for old, new in product(product((False, True), repeat=3), repeat=2):
        lost = any(had and not has for had, has in zip(old, new, strict=True))
        assert _X86.loss(_x86(old), _x86(new), 1) is (Loss.RIGHT if lost else Loss.NOTHING), (old, new)


@pytest.mark.parametrize("name", _ARM_FORMATS)
def test_an_arm64_entry_loses_what_another_one_does_not_grant(name: str) -> None:
    rules, base = Rules(name), _FRAME | _PAGE | _AF | _NG | _USER | _PXN | 3 << 8

    def entry(writable: bool, executable: bool) -> int:
        return base | (0 if writable else _READ_ONLY) | (0 if executable else _UXN)

    for old, new in product(product((False, True), repeat=2), repeat=2):
        lost = any(had and not has for had, has in zip(old, new, strict=True))
        assert rules.loss(entry(*old), entry(*new), 1) is (Loss.RIGHT if lost else Loss.NOTHING), (old, new)


@pytest.mark.parametrize(
    ("old", "new", "loss"),
    [
        pytest.param(_FRAME | 0x67, 0, Loss.RIGHT, id="absent"),
        pytest.param(_FRAME | 0x67, _FRAME | 0x66, Loss.RIGHT, id="not present"),
        pytest.param(_FRAME | 0x67, _OTHER | 0x67, Loss.RIGHT, id="another frame"),
        pytest.param(_FRAME | 0x67, _FRAME | 0x77, Loss.RIGHT, id="another memory type"),
        pytest.param(_FRAME | 0x67, _FRAME | 0x27, Loss.RIGHT, id="clean"),
        pytest.param(
            _FRAME | 0x65, _FRAME | 0x25, Loss.NOTHING, id="clean and read-only: no store goes unnoted"
        ),
        pytest.param(_FRAME | 0x67, _FRAME | 0x47, Loss.NOTICE, id="not accessed"),
        pytest.param(_FRAME | 0x67, _FRAME | 0xE67, Loss.NOTHING, id="bits that are left to software"),
        pytest.param(_FRAME | 0x66, 0, Loss.NOTHING, id="was absent"),
        pytest.param(0, _FRAME | 0x67, Loss.NOTHING, id="becomes present"),
        pytest.param(_FRAME | 0x27, _FRAME | 0x67, Loss.NOTHING, id="dirty, as the MMU sets it"),
    ],
)
def test_what_else_an_x86_64_entry_can_lose(old: int, new: int, loss: Loss) -> None:
    assert _X86.loss(old, new, 1) is loss


@pytest.mark.parametrize("name", _ARM_FORMATS)
def test_what_else_an_arm64_entry_can_lose_and_what_needs_a_break(name: str) -> None:
    rules, old = Rules(name), _FRAME | _PAGE | _AF | _NG | _USER | _PXN | _UXN | 3 << 8
    for new, loss, broken in (
        (0, Loss.RIGHT, False),
        (_OTHER | old & 0xFFF | _PXN | _UXN, Loss.RIGHT, True),
        (old | 1 << 2, Loss.RIGHT, True),  # the memory type
        (old & ~(3 << 8), Loss.RIGHT, True),  # shareability
        (old & ~_NG, Loss.NOTHING, True),
        (old | 1 << 52, Loss.NOTHING, True),  # contiguous
        (old | _READ_ONLY, Loss.RIGHT, False),
        (old & ~_AF, Loss.NOTICE, False),
        (old | 1 << 55, Loss.NOTHING, False),  # software's
    ):
        assert (rules.loss(old, new, 1), rules.needs_break(old, new, 1)) == (loss, broken), hex(new)
    assert rules.loss(old & ~_AF, 0, 1) is Loss.NOTHING  # never kept: R_XCLRD
    assert not rules.needs_break(old & ~_AF, _OTHER | old & 0xFFF | _PXN | _UXN, 1)
    assert not rules.needs_break(0, old, 1)


def test_a_large_leaf_and_a_table_are_judged_as_what_they_are() -> None:
    table, leaf = _FRAME | 0x67, _FRAME | 0xE7
    assert (_X86.table(table, 2), _X86.table(leaf, 2), _X86.table(table, 1)) == (_FRAME, None, None)
    assert _X86.loss(leaf, leaf & ~_RW, 2) is Loss.RIGHT
    assert _X86.loss(table, table & ~_RW, 2) is Loss.RIGHT  # of all that lies below
    assert _X86.loss(leaf, _OTHER | 0xE7, 2) is Loss.RIGHT
    arm = Rules("arm64-4K")
    assert (arm.table(_FRAME | 3, 2), arm.table(_FRAME | 1, 2)) == (_FRAME, None)
    assert arm.needs_break(_FRAME | 3, _FRAME | 1, 2)  # the size
    assert not arm.needs_break(_FRAME | 3, _FRAME | 3 | 1 << 61, 2)  # APTable


def test_entries_are_told_in_the_manuals_words() -> None:
    assert _X86.describe(_FRAME | 0x67 | _XD, 1) == "0x40000000 P RW US A D XD (PT entry)"
    assert _X86.describe(0, 1) == "absent"
    assert Rules("arm64-4K").describe(_FRAME | 3, 2) == "0x40000000 valid table (L2 entry)"
