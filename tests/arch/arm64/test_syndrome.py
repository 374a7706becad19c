"""ESR_ELx against the table of the manual (Arm ARM D19.2, ESR_EL1, ISS of instruction and data aborts)."""

from __future__ import annotations

import pytest

from aether_emu.arch.arm64 import syndrome
from aether_emu.arch.paging import Access

STATUS = {
    **{level: Access.MALFORMED for level in range(4)},  # address size
    **{4 + level: Access(0) for level in range(4)},  # translation
    **{8 + level: Access.PRESENT for level in range(4)},  # access flag
    **{12 + level: Access.PRESENT for level in range(4)},  # permission
}


@pytest.mark.parametrize("kind", [0x20, 0x21, 0x24, 0x25])
@pytest.mark.parametrize("status", STATUS)
@pytest.mark.parametrize("write", [0, 1])
def test_every_translation_abort_has_its_access(kind: int, status: int, write: int) -> None:
    word = kind << 26 | syndrome.IL | write << 6 | status
    expected = STATUS[status]
    if kind < 0x22:
        expected |= Access.EXECUTE
    else:
        expected |= Access.WRITE if write else Access.READ
    if kind in (0x20, 0x24):
        expected |= Access.USER
    assert syndrome.access_of(word) == expected
    assert syndrome.is_translation_abort(word)


@pytest.mark.parametrize("status", [0x10, 0x11, 0x14, 0x18, 0x1F, 0x21, 0x30, 0x31])
def test_external_aborts_alignment_and_conflicts_are_none(status: int) -> None:
    assert not syndrome.is_translation_abort(0x24 << 26 | status)


@pytest.mark.parametrize("kind", [0x00, 0x01, 0x15, 0x18, 0x19, 0x22, 0x26, 0x3C])
def test_other_classes_are_none(kind: int) -> None:
    assert not syndrome.is_translation_abort(kind << 26 | 4)


def test_the_fields_of_the_table_do_not_overlap() -> None:
    masks = [field.mask for field in syndrome.ESR]
    assert all(not a & b for i, a in enumerate(masks) for b in masks[i + 1 :])
