"""Damaged entries as faults, calls and teardown meet them. Whole programs: `tests/guests/test_damage.py`."""

from __future__ import annotations

import pytest

from aether_emu.arch.paging import Access
from aether_emu.mm import mapping
from aether_emu.mm.fault import RESOLVED
from aether_emu.mm.populate import populate
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.damage import Damaged, TableDamaged
from aether_emu.mm.tables.tree import Found
from tests.mm.board import Board, fault_in
from tests.mm.calls import mmap

READ, WRITE = int(Access.USER | Access.READ), int(Access.USER | Access.WRITE)
AT = 0x100_0000


@pytest.fixture
def space(engine: Board) -> AddressSpace:
    """Four written pages at AT, in a space that the CPU runs in."""
    made = engine.space()
    engine.run_on(made)
    mmap(made, AT, 4)
    for number in range(4):
        engine.cpu.copy_to_user(AT + number * made.page_size, b"%d" % number)
    return made


def leaf(space: AddressSpace, number: int) -> Found:
    found = space.table.find(AT + number * space.page_size)
    assert found is not None
    return found


def damage(engine: Board, slot: int, mask: int) -> None:
    engine.ram.words[slot] ^= mask
    engine.cpu.flush_all()


def test_a_leaf_that_is_not_present_any_more_is_damage_and_not_a_missing_page(
    engine: Board, space: AddressSpace
) -> None:
    found = leaf(space, 1)
    damage(engine, found.slot, found.entry & engine.format.present_mask)
    outcome = fault_in(space, found.start, READ)
    assert isinstance(outcome, Damaged)
    assert (outcome.level, outcome.slot, outcome.seen) == (1, found.slot, engine.ram.words[found.slot])
    assert outcome.expected & engine.format.address_mask == found.entry & engine.format.address_mask
    with pytest.raises(TableDamaged):
        populate(space, AT, AT + 4 * space.page_size, write=False)
    space.unmap(AT, AT + 4 * space.page_size)
    assert [found.slot for found in space.damages] == [found.slot]


def test_a_leaf_that_shows_another_frame_is_put_right_before_anything_is_let_go_of(
    engine: Board, space: AddressSpace
) -> None:
    mine, other = leaf(space, 0), leaf(space, 3)
    damage(engine, mine.slot, (mine.entry ^ other.entry) & engine.format.address_mask)
    assert bytes(engine.cpu.copy_from_user(AT, 1)) == b"3"
    before = engine.buddy.free_frames
    space.unmap(AT, AT + space.page_size)
    assert engine.buddy.free_frames == before + 1
    assert bytes(engine.cpu.copy_from_user(other.start, 1)) == b"3"
    (noted,) = space.damages
    assert noted.expected & engine.format.address_mask == mine.entry & engine.format.address_mask


def test_damage_in_one_of_many_areas_that_go_together_is_put_right(
    engine: Board, space: AddressSpace
) -> None:
    page = space.page_size
    for number in range(1, 24, 2):  # areas of one page, with gaps between
        mmap(space, 2 * AT + number * page, 1)
        assert fault_in(space, 2 * AT + number * page, WRITE) is RESOLVED
    free, damaged = engine.buddy.free_frames, [2 * AT + 5 * page, 2 * AT + 9 * page]
    other = leaf(space, 3)
    entries = [found for found in map(space.table.find, damaged) if found is not None]
    for found in entries:
        damage(engine, found.slot, (found.entry ^ other.entry) & engine.format.address_mask)
    space.unmap(2 * AT, 3 * AT)
    assert [(noted.slot, noted.level) for noted in space.damages] == [(found.slot, 1) for found in entries]
    for noted, found in zip(space.damages, entries, strict=True):
        assert noted.expected & engine.format.address_mask == found.entry & engine.format.address_mask
    assert engine.buddy.free_frames >= free + 12, "their pages, each once"
    assert bytes(engine.cpu.copy_from_user(other.start, 1)) == b"3"


def test_an_entry_where_nothing_was_mapped_is_forgotten(engine: Board, space: AddressSpace) -> None:
    mmap(space, 2 * AT, 2)
    assert fault_in(space, 2 * AT, WRITE) is RESOLVED
    slot = space.table.leaf_slot(2 * AT + space.page_size)
    damage(engine, slot, leaf(space, 2).entry)
    space.unmap(2 * AT, 2 * AT + 2 * space.page_size)
    assert [(noted.slot, noted.expected) for noted in space.damages] == [(slot, 0)]


def test_a_wiped_leaf_table_loses_no_frame(engine: Board, space: AddressSpace) -> None:
    """The entries are zero, so nothing can be dropped: teardown finds the frames by their owner."""
    for number in range(4):
        engine.ram.words[leaf(space, number).slot] = 0
    engine.cpu.flush_all()
    space.damages.append(Damaged(1, 0, 0, 0))  # somebody has noticed
    # The board's teardown fails when a frame is left.


def test_damage_above_the_leaves_stops_calls_before_they_change_anything(
    engine: Board, space: AddressSpace
) -> None:
    steps = space.walk(AT).steps
    slot = int(steps[-2].address) - engine.ram.base >> 3
    damage(engine, slot, 1 << 15)
    judged = space.table.judge(AT)
    assert judged is not None
    assert (judged.level, judged.slot) == (2, slot)
    assert fault_in(space, AT + 0x10, WRITE) == judged
    areas = [(area.start, area.end, area.protection) for area in space.areas]
    with pytest.raises(TableDamaged):
        mapping.unmap_memory(space, AT, space.page_size)
    with pytest.raises(TableDamaged):
        mapping.protect_memory(space, AT, space.page_size, 1)
    assert [(area.start, area.end, area.protection) for area in space.areas] == areas
    assert space.table.salvage() == [judged]
    engine.cpu.flush_all()
    assert bytes(engine.cpu.copy_from_user(AT + space.page_size, 1)) == b"1"
