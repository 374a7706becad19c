"""The neutral vocabulary: levels, fields, and what holds of every format there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, reduce
from itertools import product
from operator import or_

import numpy as np
import pytest

from aether_emu.arch.paging import (
    Absent,
    Attributes,
    BitField,
    Entries,
    Held,
    HeldKind,
    Leaf,
    Level,
    Malformed,
    MemoryType,
    PageFlags,
    PageTableFormat,
    Reach,
    Table,
)
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.errors import EncodingError
from aether_emu.random import Stream
from tests.arch.formats import EVERY_FORMAT

A, D, W, U = PageFlags.ACCESSED, PageFlags.DIRTY, PageFlags.WRITE, PageFlags.USER
OPERATIONS = ("writable", "accessed", "dirty", "touch", "soil", "age", "clean", "write_protect")
Flags = Callable[[PageFlags], PageFlags]

every_format = pytest.mark.parametrize("fmt", EVERY_FORMAT, ids=lambda fmt: fmt.name)


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


# ---- every format


@cache
def expressible(fmt: PageTableFormat, level: int) -> list[Attributes]:
    """Every combination of flags, memory type and hint that the format can say in a leaf of `level`."""
    combinations = [reduce(or_, chosen) for chosen in product(*((PageFlags(0), flag) for flag in PageFlags))]
    found = []
    for flags, memory, contiguous in product(combinations, MemoryType, (False, True)):
        attributes = Attributes(flags, memory, contiguous=contiguous)
        try:
            fmt.leaf_bits(attributes, level)
        except EncodingError:
            continue
        found.append(attributes)
    return found


def leaf_levels(fmt: PageTableFormat) -> list[int]:
    return [number for number, level in enumerate(fmt.levels, 1) if level.leaf]


def last_address(fmt: PageTableFormat, level: int) -> int:
    """The highest address of a leaf at `level`: all its address bits set."""
    return (1 << fmt.physical_bits) - fmt.levels[level - 1].size


@every_format
def test_what_a_format_can_say_it_says_without_loss_and_no_two_things_alike(fmt: PageTableFormat) -> None:
    for level in leaf_levels(fmt):
        address, seen = last_address(fmt, level), set()
        attributes = expressible(fmt, level)
        assert len(attributes) >= 64
        for each in attributes:
            entry = fmt.leaf_entry(address, each, level)
            assert entry & fmt.present_mask
            assert fmt.decode(entry, level) == Leaf(address, each)
            assert fmt.leaf_address(entry, level) == address
            assert fmt.next_table(entry, level) is None
            seen.add(entry)
        assert len(seen) == len(attributes)


@every_format
def test_levels_follow_on_one_another_and_tables_are_no_longer_than_a_page(fmt: PageTableFormat) -> None:
    for lower, upper in zip(fmt.levels, fmt.levels[1:], strict=False):
        assert upper.shift == lower.shift + lower.bits
    assert all(8 * level.entries <= fmt.page_size for level in fmt.levels)
    assert len({level.name for level in fmt.levels}) == fmt.top
    assert all(level.contiguous == 1 or level.leaf for level in fmt.levels)
    assert any(level.contiguous > 1 for level in fmt.levels) is bool(fmt.contiguous_bit)


@every_format
def test_the_next_table_is_what_the_decoder_says(fmt: PageTableFormat) -> None:
    stream = Stream(1, fmt.name)
    for level in range(1, fmt.top + 1):
        for bit in range(64):
            for entry in (1 << bit, 1 << bit | 1, 1 << bit | 3, stream.u64(), stream.u64() | 3):
                decoded = fmt.decode(entry, level)
                expected = decoded.address if isinstance(decoded, Table) else None
                assert fmt.next_table(entry, level) == expected


@every_format
def test_any_word_decodes_and_is_described(fmt: PageTableFormat) -> None:
    stream = Stream(2, fmt.name)
    for level in range(1, fmt.top + 1):
        for word in (0, (1 << 64) - 1, *(stream.u64() for _ in range(300))):
            decoded = fmt.decode(word, level)
            assert isinstance(decoded, Absent | Held) is not bool(word & fmt.present_mask)
            assert fmt.describe(word, level).startswith(f"{fmt.level_name(level)} {word:#018x} ")
            if isinstance(decoded, Malformed):
                assert decoded.bits & word == decoded.bits != 0
            if isinstance(decoded, Leaf):
                assert not decoded.address & fmt.levels[level - 1].size - 1
            if word & fmt.present_mask:
                masks = [field.mask for field in fmt.fields(word, level)]
                assert sum(masks) == reduce(or_, masks)


@every_format
def test_a_table_entry_points_at_its_table_and_restricts_no_more_than_its_reach(fmt: PageTableFormat) -> None:
    address = (1 << fmt.physical_bits) - fmt.page_size
    needed = PageFlags.READ | PageFlags.WRITE | PageFlags.EXECUTE
    for level, reach in product(range(2, fmt.top + 1), Reach):
        table = fmt.decode(fmt.table_entry(address, reach), level)
        assert isinstance(table, Table)
        assert table.address == address
        supervisor = table.flags if table.supervisor is None else table.supervisor
        if reach is not Reach.SUPERVISOR:
            assert table.flags & (needed | U) == needed | U
        else:
            assert not table.flags & U
        if reach is not Reach.USER:
            assert supervisor & needed == needed


@every_format
def test_held_entries_are_absent_to_the_mmu_and_come_back(fmt: PageTableFormat) -> None:
    for kind, value, level in product(HeldKind, (0, 1, (1 << 32) - 1), range(1, fmt.top + 1)):
        entry = fmt.held_entry(Held(kind, value))
        assert entry
        assert not entry & fmt.present_mask
        assert fmt.decode(entry, level) == Held(kind, value)


@every_format
def test_no_access_keeps_the_address_where_a_leaf_keeps_it(fmt: PageTableFormat) -> None:
    address = last_address(fmt, 1)
    leaf = fmt.leaf_entry(address, Attributes(PageFlags.READ | U))
    kept = leaf & fmt.address_mask | fmt.held_entry(Held(HeldKind.NO_ACCESS, 0))
    assert fmt.decode(kept, 1) == Held(HeldKind.NO_ACCESS, address >> fmt.page_shift)


# ---- what a leaf remembers of accesses


@every_format
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_on_many_entries_is_the_operation_on_each(fmt: PageTableFormat, operation: str) -> None:
    stream, apply = Stream(3, f"{fmt.name} {operation}"), getattr(fmt, operation)
    words = [0, (1 << 64) - 1, *(1 << bit for bit in range(64)), *(stream.u64() for _ in range(500))]
    entries: Entries = np.array(words, dtype=np.uint64)
    many = apply(entries)
    assert many.dtype == np.uint64
    assert entries.tolist() == words  # the operand is left alone
    singly = [apply(word) for word in words]
    assert many.tolist() == singly
    assert all(type(answer) is int and 0 <= answer < 1 << 64 for answer in singly)
    if operation in ("writable", "accessed", "dirty"):
        assert set(singly) == {0, 1}
    assert apply(entries[:0]).dtype == np.uint64


@every_format
def test_the_three_questions_are_what_the_decoder_says(fmt: PageTableFormat) -> None:
    for level in leaf_levels(fmt):
        for attributes in expressible(fmt, level):
            entry = fmt.leaf_bits(attributes, level)
            answers = (fmt.writable(entry), fmt.accessed(entry), fmt.dirty(entry))
            assert answers == tuple(int(bool(attributes.flags & flag)) for flag in (W, A, D))


@every_format
@pytest.mark.parametrize(
    ("operation", "change"),
    [
        ("touch", lambda flags: flags | A),
        ("soil", lambda flags: flags | D),
        ("age", lambda flags: flags & ~A),
        ("clean", lambda flags: flags & ~D),
        ("write_protect", lambda flags: flags & ~W),
    ],
    ids=["touch", "soil", "age", "clean", "write_protect"],
)
def test_an_operation_changes_its_one_flag_and_nothing_that_must_be_broken_first(
    fmt: PageTableFormat, operation: str, change: Flags
) -> None:
    """Soiling keeps permissions, cleaning keeps writing, write protection keeps what was written."""
    apply = getattr(fmt, operation)
    for level in leaf_levels(fmt):
        address = last_address(fmt, level)
        for attributes in expressible(fmt, level):
            if attributes.memory not in (MemoryType.WRITE_BACK, MemoryType.WRITE_PROTECTED):
                continue  # their bits are none of an operation's; two are enough to show that
            entry = fmt.leaf_entry(address, attributes, level)
            changed = apply(entry)
            assert fmt.decode(changed, level) == Leaf(
                address, replace(attributes, flags=change(attributes.flags))
            )
            assert apply(changed) == changed
            assert not (entry ^ changed) & (fmt.frozen_bits | fmt.present_mask)


@every_format
def test_frozen_are_the_address_and_what_tells_a_table_from_a_leaf_where_anything_is(
    fmt: PageTableFormat,
) -> None:
    if not fmt.frozen_bits:
        return
    assert fmt.frozen_bits & fmt.address_mask == fmt.address_mask
    assert fmt.frozen_bits & fmt.contiguous_bit == fmt.contiguous_bit
    for level in leaf_levels(fmt)[1:]:
        leaf = fmt.leaf_entry(0, Attributes(PageFlags.READ), level)
        assert (leaf ^ fmt.table_entry(0)) & fmt.frozen_bits
