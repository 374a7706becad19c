"""The neutral vocabulary: levels, fields and what every format derives from its data."""

from __future__ import annotations

import pytest

from aether_emu.arch.arm64.format import ArmFormat
from aether_emu.arch.paging import BitField, HeldKind, Level, PageTableFormat, Table
from aether_emu.arch.x86_64.format import X86Format
from aether_emu.random import Stream


def test_a_field_gets_and_puts_its_own_bits_only() -> None:
    field = BitField("KEY", 59, 4, "protection key")
    assert field.mask == 0xF << 59
    for value in range(16):
        assert field.put(value) == value << 59
        assert field.get(field.put(value) | ~field.mask) == value


def test_a_value_wider_than_its_field_is_refused() -> None:
    with pytest.raises(ValueError, match="KEY has 4"):
        BitField("KEY", 59, 4, "protection key").put(16)


def test_a_level_knows_its_entries_and_what_each_covers() -> None:
    level = Level(21, 9, True, "PD")
    assert (level.entries, level.size) == (512, 2 << 20)


def test_a_format_derives_its_shape_from_its_levels() -> None:
    fmt = X86Format(5)
    assert (fmt.top, fmt.page_shift, fmt.page_size, fmt.virtual_bits) == (5, 12, 4096, 57)
    assert fmt.leaf_sizes() == (4 << 10, 2 << 20, 1 << 30)


def test_no_held_kind_is_zero() -> None:
    """An entry of all zeros maps nothing: a kind of 0 with a value of 0 could not be told from it."""
    assert all(kind.value for kind in HeldKind)
    assert len({kind.value for kind in HeldKind}) == len(HeldKind)


@pytest.mark.parametrize("fmt", [X86Format(4), X86Format(5), X86Format(4, 46, no_execute=False), ArmFormat()])
def test_the_next_table_is_what_the_decoder_says(fmt: PageTableFormat) -> None:
    stream = Stream(1, fmt.name)
    for level in range(1, fmt.top + 1):
        for bit in range(64):
            for entry in (1 << bit, 1 << bit | 1, 1 << bit | 3, stream.u64(), stream.u64() | 3):
                decoded = fmt.decode(entry, level)
                expected = decoded.address if isinstance(decoded, Table) else None
                assert fmt.next_table(entry, level) == expected
