"""Flipped bits above the leaves: named exactly, never followed, and nothing is lost by them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aether_emu.address import VirtAddr
from aether_emu.arch.paging import Attributes, Held, HeldKind, Leaf, PageFlags, PageTableFormat
from aether_emu.mm.tables import edits
from aether_emu.mm.tables.count import count
from aether_emu.mm.tables.damage import Damaged, TableDamaged
from aether_emu.mm.tables.page import PageTable
from tests.arch.formats import EVERY_FORMAT
from tests.mm.tables.mixture import FORMATS, Mixture, Recorder
from tests.mm.tables.test_page import DATA, Bench

Path = list[tuple[int, int, int]]
"""(level, slot, entry) of each entry above level 1 on one way down."""


@pytest.fixture(params=EVERY_FORMAT, ids=lambda fmt: fmt.name)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    made.table.map(made.large, 0, 3 * made.page, DATA)
    yield made
    made.close()


def path_to(bench: Bench, va: int) -> Path:
    fmt = bench.format
    slots = [(level, bench.table.slot(va, level)) for level in range(fmt.top, 1, -1)]
    return [(level, slot, bench.ram.words[slot]) for level, slot in slots]


def noted_by_the_mmu(fmt: PageTableFormat, entry: int, bit: int) -> bool:
    """Whether the bit is one that the MMU sets in a table entry by itself."""
    return fmt.hardware_accessed and fmt.touch(entry) == fmt.touch(entry ^ bit)


def test_every_flipped_bit_of_a_path_is_named_and_never_followed(bench: Bench) -> None:
    va, table, fmt = bench.large + bench.page, bench.table, bench.format
    good = table.find(va)
    assert good is not None
    for level, slot, entry in path_to(bench, va):
        for bit in (1 << number for number in range(64)):
            bench.ram.words[slot] = entry ^ bit
            if noted_by_the_mmu(fmt, entry, bit):
                assert table.judge(va) is None
                assert table.find(va) == good
                continue
            damaged = Damaged(level, slot, entry ^ bit, entry)
            assert table.judge(va) == damaged
            assert table.check(0, 1 << fmt.virtual_bits) == [damaged]
            assert table.check(bench.large, bench.large + 2 * bench.page) == [damaged]
            with pytest.raises(TableDamaged) as raised:
                table.visit(va, va + bench.page)
            assert raised.value.damaged == damaged
            found_or_raised(bench, va, damaged)
            assert table.salvage() == [damaged]
            assert bench.ram.words[slot] == entry
        assert table.judge(va) is None
    assert table.find(va) == good


def found_or_raised(bench: Bench, va: int, damaged: Damaged) -> None:
    """A bit that does not change where the entry leads may go unnoticed by `find`; any other may not."""
    fmt = bench.format
    leads = fmt.next_table(damaged.seen, damaged.level) == fmt.next_table(damaged.expected, damaged.level)
    try:
        found = bench.table.find(va)
    except TableDamaged as error:
        assert error.damaged == damaged
        assert error.va == va
        assert isinstance(error.va, VirtAddr)
        assert not leads
        assert fmt.describe(damaged.expected, damaged.level) in str(error)
        assert fmt.describe(damaged.seen, damaged.level) in str(error)
    else:
        assert leads
        assert found is not None
        assert found.slot == bench.table.leaf_slot(va)


def test_what_appears_where_nothing_was_put_is_damage(bench: Bench) -> None:
    """Not a table, leaf or held entry that somebody may follow, and not one to put a table in place of."""
    fmt, table = bench.format, bench.table
    for level in range(2, fmt.top + 1):
        step = fmt.levels[level - 1].size
        va = bench.large + step if (bench.large + step) >> fmt.virtual_bits == 0 else 0
        base = table.slot(bench.large, level) - (bench.large // step)
        slot = base + va // step % fmt.levels[level - 1].entries
        assert bench.ram.words[slot] == 0
        for entry in (
            fmt.table_entry(bench.ram.base),
            fmt.held_entry(Held(HeldKind.SWAP, 3)),
            1 << 40,
        ):
            bench.ram.words[slot] = entry
            damaged = Damaged(level, slot, entry, 0)
            assert table.judge(va) == damaged
            assert table.check(0, 1 << fmt.virtual_bits) == [damaged]
            for look in (table.find, table.leaf_slot):
                with pytest.raises(TableDamaged) as raised:
                    look(va)
                assert raised.value.damaged == damaged
            assert table.salvage() == [damaged]
        assert table.find(va) is None


def test_a_table_lost_from_the_bytes_is_found_again(bench: Bench) -> None:
    va, table = bench.large, bench.table
    good = table.find(va)
    for level, slot, entry in path_to(bench, va):
        bench.ram.words[slot] = 0
        damaged = Damaged(level, slot, 0, entry)
        assert table.judge(va) == damaged
        with pytest.raises(TableDamaged):
            table.find(va)
        assert table.check(0, 1 << bench.format.virtual_bits) == [damaged]
        assert table.salvage() == [damaged]
        assert table.find(va) == good


def test_the_way_to_a_table_that_is_gone_leads_nowhere(bench: Bench) -> None:
    """Even if the bytes say again what they said when somebody last went there."""
    va, table = bench.large, bench.table
    path = path_to(bench, va)
    assert table.find(va) is not None
    level, slot, entry = path[-1]
    table.write(va, level, slot, 0)
    assert table.find(va) is None
    bench.ram.words[slot] = entry
    with pytest.raises(TableDamaged) as raised:
        table.find(va)
    assert raised.value.damaged == Damaged(level, slot, entry, 0)
    table.write(va, level, slot, entry)
    assert table.find(va) is not None


def test_a_large_leaf_may_be_used_by_the_mmu_and_not_moved(bench: Bench) -> None:
    fmt, table, va = bench.format, bench.table, 2 * bench.large
    attributes = Attributes(PageFlags.READ | PageFlags.WRITE | PageFlags.USER)
    table.map(va, bench.large, bench.large, attributes, largest=bench.large)
    found = table.find(va)
    assert found is not None
    assert found.level == 2
    if fmt.hardware_dirty:
        bench.ram.words[found.slot] = fmt.soil(fmt.touch(found.entry))
        assert table.judge(va) is None
        used = table.find(va)
        assert used is not None
        assert used.entry == fmt.soil(fmt.touch(found.entry))
    seen = found.entry ^ fmt.levels[1].size
    bench.ram.words[found.slot] = seen
    assert table.judge(va) == Damaged(2, found.slot, seen, found.entry)
    with pytest.raises(TableDamaged):
        table.find(va)
    assert table.salvage() == [Damaged(2, found.slot, seen, found.entry)]


def test_a_damaged_tree_is_given_back_whole(bench: Bench) -> None:
    """Every upper entry of a path is flipped at once; the fixture sees that no frame is lost."""
    path = path_to(bench, bench.large)
    for number, (_level, slot, entry) in enumerate(path):
        bench.ram.words[slot] = entry ^ 1 << 13 + number
    other = Bench(bench.format)
    other.table.map(other.large, 0, 3 * other.page, DATA)
    slots = [(level, slot, entry, entry ^ 1 << 20) for level, slot, entry in path_to(other, other.large)]
    for _level, slot, _entry, seen in slots:
        other.ram.words[slot] = seen
    damages = other.table.destroy()
    assert damages == [Damaged(level, slot, seen, entry) for level, slot, entry, seen in slots]
    assert other.frames.leaks() == []
    assert other.buddy.free_frames == other.buddy.total
    other.ram.close()


def test_damage_in_a_lent_half_is_seen_through_it(bench: Bench) -> None:
    upper = (1 << bench.format.virtual_bits) // 2
    bench.table.map(upper, 0, bench.page, DATA)
    other = PageTable(bench.format, bench.ram, bench.frames, bench.buddy, owner=7)
    other.borrow_upper(bench.table, upper)
    found = bench.table.find(upper)
    assert other.find(upper) == found
    assert list(other.cursor(upper, upper + bench.page)) == [found]
    level, slot, entry = path_to(bench, upper)[-1]
    bench.ram.words[slot] = entry ^ 1 << 30
    damaged = Damaged(level, slot, entry ^ 1 << 30, entry)
    if level < bench.format.top:
        assert other.judge(upper) == damaged
        assert other.check(upper, upper + bench.page) == [damaged]
        assert other.salvage() == []
    assert bench.table.salvage() == [damaged]
    other.destroy()


def test_what_was_captured_is_remembered(bench: Bench) -> None:
    va = bench.large
    state = bench.table.capture()
    level, slot, entry = path_to(bench, va)[-1]
    bench.table.restore(state)
    bench.ram.words[slot] = entry ^ 1 << 21
    assert bench.table.judge(va) == Damaged(level, slot, entry ^ 1 << 21, entry)
    bench.table.salvage()


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_an_edit_that_meets_damage_changes_nothing(fmt: PageTableFormat) -> None:
    mixture = Mixture(fmt, 9)
    table, words = mixture.table, mixture.ram.words
    start, end = mixture.bytes_of(mixture.start, mixture.end)
    slot = next(f.slot for f in table.cursor(start, end) if f.level > 1)
    for lost in (0, words[slot] ^ 1 << 30):
        good, words[slot] = words[slot], lost
        before = bytes(mixture.ram.bytes)
        gather = Recorder(table)
        for edit in (edits.zap, edits.age, edits.clean):
            with pytest.raises(TableDamaged):
                edit(table, gather, start, end)
        with pytest.raises(TableDamaged):
            count(table, start, end)
        gather.finish()
        assert bytes(mixture.ram.bytes) == before
        words[slot] = good
        mixture.check()
    mixture.close()


def test_a_leaf_outside_the_frame_table_is_counted_by_nobody(bench: Bench) -> None:
    fmt, table = bench.format, bench.table
    device = (1 << fmt.physical_bits) - bench.page
    table.map(0, device, bench.page, DATA)
    assert fmt.decode(bench.ram.words[table.leaf_slot(0)], 1) == Leaf(device, DATA)
    gather = Recorder(table)
    assert edits.zap(table, gather, 0, bench.page) == []
    gather.finish()
    assert int(bench.frames.maps_array.sum()) == 0
