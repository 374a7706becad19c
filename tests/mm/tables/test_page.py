"""The page table on every format: those of both ISAs, and one invented to show that the seam holds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from aether_emu.address import PhysAddr, VirtAddr
from aether_emu.arch.paging import (
    Attributes,
    Held,
    HeldKind,
    Leaf,
    MemoryType,
    PageFlags,
    PageTableFormat,
    Reach,
    Table,
)
from aether_emu.errors import EncodingError, MappingError, OutOfFrames
from aether_emu.machine.memory.ram import Ram
from aether_emu.mm.frames.buddy import Buddy, Zone
from aether_emu.mm.frames.table import Flags, FrameTable, Kind
from aether_emu.mm.tables.page import Found, PageTable
from aether_emu.mm.tables.tree import Stretch
from aether_emu.mm.tables.walk import HeldAt, MalformedAt, Mapped, NotMapped
from aether_emu.ports import NEVER_FAILS
from tests.arch.formats import EVERY_FORMAT

RAM_BASE = 1 << 30
DATA = Attributes(PageFlags.READ | PageFlags.WRITE | PageFlags.USER)
CODE = Attributes(PageFlags.READ | PageFlags.EXECUTE | PageFlags.USER)


class Bench:
    """A table, its memory, and what must be true of both."""

    def __init__(self, fmt: PageTableFormat, ram: int | None = None) -> None:
        ram = 1024 * fmt.page_size if ram is None else ram
        self.format, self.page = fmt, fmt.page_size
        self.ram = Ram(RAM_BASE, ram, self.page)
        self.frames = FrameTable(RAM_BASE, ram, fmt.page_shift)
        self.buddy = Buddy(self.frames, [Zone("normal", 0, ram >> fmt.page_shift)])
        self.table = PageTable(fmt, self.ram, self.frames, self.buddy, owner=7)
        self.large = fmt.levels[1].size
        self.leaf_span = fmt.levels[0].entries << fmt.page_shift

    def attributes(self, va: int) -> Attributes | None:
        walk = self.table.walk(va)
        return walk.attributes if isinstance(walk, Mapped) else None

    def physical(self, va: int) -> int | None:
        walk = self.table.walk(va)
        return walk.address if isinstance(walk, Mapped) else None

    def mapped(self) -> list[Found]:
        return list(self.table.cursor(0, 1 << self.format.virtual_bits))

    def check_tables(self) -> None:
        """Each table page that is taken is counted once, and is one that a walk can reach."""
        tables = [f for f in range(self.frames.count) if self.frames.kind[f] == Kind.TABLE]
        assert len(tables) == self.table.tables
        assert all(self.frames.owner[f] == 7 and self.frames.refs[f] == 1 for f in tables)

    def close(self) -> None:
        self.table.destroy()
        assert self.table.tables == 0
        assert self.frames.leaks() == []
        assert self.buddy.free_frames == self.buddy.total
        self.ram.close()


class FailsAt:
    """Failure points that fail the n-th allocation (from 0), and none after it."""

    def __init__(self, at: int) -> None:
        self.left = at

    def fails(self, point: str) -> bool:
        self.left -= 1
        return self.left == -1


@pytest.fixture(params=EVERY_FORMAT, ids=lambda fmt: fmt.name)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.check_tables()
    made.close()


# ---- mapping and walking


def test_an_empty_table_maps_nothing(bench: Bench) -> None:
    walk = bench.table.walk(0x1234_5678)
    assert isinstance(walk, NotMapped)
    assert (walk.level, len(walk.steps)) == (bench.format.top, 1)
    assert bench.table.find(0x1234_5678) is None
    assert bench.table.tables == 1


def test_a_page_translates_with_its_offset_and_shows_every_entry_read(bench: Bench) -> None:
    va, fmt = 5 * bench.leaf_span + 3 * bench.page, bench.format
    bench.table.map(va, 8 * bench.page, bench.page, DATA)
    walk = bench.table.walk(va + 0x123)
    assert isinstance(walk, Mapped)
    assert (walk.address, walk.size, walk.attributes) == (8 * bench.page + 0x123, bench.page, DATA)
    assert [step.level for step in walk.steps] == list(range(fmt.top, 0, -1))
    for step in walk.steps:
        assert bench.ram.words[(step.address - RAM_BASE) >> 3] == step.entry
    assert fmt.decode(walk.steps[-1].entry, 1) == Leaf(8 * bench.page, DATA)
    assert bench.table.tables == fmt.top


def test_the_pages_beside_a_mapped_one_are_not_mapped(bench: Bench) -> None:
    va = bench.leaf_span
    bench.table.map(va, 0, bench.page, DATA)
    for beside in (va - 1, va + bench.page):
        assert isinstance(bench.table.walk(beside), NotMapped)


def test_every_combination_of_attributes_survives_mapping_and_protecting(bench: Bench) -> None:
    flags = (PageFlags.WRITE, PageFlags.EXECUTE, PageFlags.USER, PageFlags.GLOBAL, PageFlags.ACCESSED)
    everything = [
        Attributes(PageFlags.READ | sum(chosen, start=PageFlags(0)), memory)
        for chosen in product(*((PageFlags(0), flag) for flag in flags))
        for memory in MemoryType
    ]
    live: dict[tuple[MemoryType, PageFlags], int] = {}  # a page for all that a live one may become
    for number, attributes in enumerate(everything):
        va = number * bench.page
        bench.table.map(va, bench.page, bench.page, attributes)
        first = live.setdefault((attributes.memory, attributes.flags & PageFlags.GLOBAL), va)
        bench.table.protect(first, bench.page, attributes)
        for changed in (va, first):
            assert bench.attributes(changed) == attributes
            assert bench.physical(changed) == bench.page


def test_a_range_crosses_leaf_tables(bench: Bench) -> None:
    va, pages = 2 * bench.leaf_span - 3 * bench.page, bench.format.levels[0].entries + 7
    bench.table.map(va, 64 * bench.page, pages * bench.page, DATA)
    for number in (0, 2, 3, pages - 4, pages - 1):
        assert bench.physical(va + number * bench.page) == (64 + number) * bench.page
    assert bench.physical(va - bench.page) is None
    assert bench.physical(va + pages * bench.page) is None
    assert [found.start for found in bench.mapped()] == [va + n * bench.page for n in range(pages)]


def test_the_last_page_of_the_address_space_can_be_mapped_and_nothing_beyond_it(bench: Bench) -> None:
    end = 1 << bench.format.virtual_bits
    bench.table.map(end - bench.page, 0, bench.page, DATA)
    assert bench.physical(end - 1) == bench.page - 1
    assert bench.physical(0) is None
    for va in (end - bench.page, end - 2 * bench.page):
        with pytest.raises(MappingError, match="virtual bits"):
            bench.table.map(va, 0, 4 * bench.page, DATA)
    assert bench.physical(0) is None
    assert len(bench.mapped()) == 1


def test_an_address_and_its_sign_extended_form_are_one(bench: Bench) -> None:
    """The upper half of a canonical address space: whichever form is used, the leaf table is the same."""
    short = (1 << bench.format.virtual_bits) - 3 * bench.leaf_span
    long = short | -(1 << bench.format.virtual_bits) & (1 << 64) - 1
    bench.table.map(long, 0, 2 * bench.page, DATA)
    assert bench.physical(short) == bench.physical(long) == 0
    assert bench.table.leaf_slot(short) == bench.table.leaf_slot(long)
    slot = bench.table.leaf_slot(short)
    assert bench.table.visit(long, long + bench.page) == [Stretch(long, slot, 1)]
    assert bench.table.visit(short, short + bench.page) == [Stretch(short, slot, 1)]
    with pytest.raises(MappingError):
        bench.table.map(short, 0, bench.page, DATA)
    bench.table.unmap(short, 2 * bench.page)
    detached = bench.table.prune(short, short + bench.page, 0, 1 << bench.format.virtual_bits)
    bench.table.free_tables(detached)
    assert bench.table.visit(long, long + bench.page) == []
    bench.table.map(long, 0, bench.page, DATA)
    assert bench.physical(short) == 0


# ---- large leaves


def test_leaves_are_as_large_as_alignment_length_and_limit_allow(bench: Bench) -> None:
    sizes = bench.format.leaf_sizes()
    for largest in sizes:
        fitting = [size for size in sizes if size <= largest]
        va = 4 * sizes[-1] - sum(fitting)
        length = 2 * sum(fitting)
        bench.table.map(va, va, length, DATA, largest=largest)
        found = bench.mapped()
        runs = [bench.format.levels[f.level - 1].size for f in found]
        assert sum(runs) == length
        assert max(runs) == largest
        for item in found:
            assert bench.format.leaf_address(item.entry, item.level) == item.start
            size = bench.format.levels[item.level - 1].size
            larger = [s for s in fitting if s > size]
            fits = (s for s in larger if item.start % s == 0 and item.start + s <= va + length)
            assert not any(fits), f"a larger leaf fits at {item.start:#x}"
        bench.table.unmap(va, length)
        bench.table.free_tables(bench.table.prune(va, va + length, 0, 1 << bench.format.virtual_bits))


def test_no_large_leaf_where_the_physical_address_is_not_aligned_with_the_virtual(bench: Bench) -> None:
    bench.table.map(bench.large, bench.page, bench.large, DATA, largest=bench.large)
    assert {found.level for found in bench.mapped()} == {1}


def test_a_large_leaf_translates_everywhere_inside(bench: Bench) -> None:
    bench.table.map(bench.large, bench.large, bench.large, CODE, largest=bench.large)
    walk = bench.table.walk(bench.large + bench.page + 5)
    assert walk == bench.table.walk(VirtAddr(bench.large + bench.page + 5))
    assert isinstance(walk, Mapped)
    assert all(isinstance(at, PhysAddr) for at in (walk.address, *(step.address for step in walk.steps)))
    assert (walk.address, walk.size) == (bench.large + bench.page + 5, bench.large)
    found = bench.table.find(2 * bench.large - 1)
    assert found is not None
    assert (found.start, found.level) == (bench.large, 2)
    assert bench.table.visit(bench.large, 2 * bench.large) == [found]


def test_equal_large_leaves_are_encoded_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of RAM is mapped so when a machine starts."""
    encode = bench.format.leaf_bits
    encoded: list[tuple[int, bool]] = []

    def counted(attributes: Attributes, level: int = 1) -> int:
        encoded.append((level, attributes.contiguous))
        return encode(attributes, level)

    monkeypatch.setattr(bench.format, "leaf_bits", counted)
    spec = bench.format.levels[1]
    start = spec.contiguous * spec.size
    bench.table.map(start, start, start + 3 * spec.size, DATA, largest=spec.size)
    assert len(bench.mapped()) == spec.contiguous + 3
    assert sorted(encoded) == sorted({(2, False), (2, spec.contiguous > 1)})


def test_half_of_a_large_leaf_is_neither_unmapped_nor_protected(bench: Bench) -> None:
    bench.table.map(bench.large, 0, bench.large, DATA, largest=bench.large)
    before = bench.mapped()
    for start, length in (
        (bench.large, bench.page),
        (bench.large + bench.page, bench.large),
        (0, bench.large + bench.page),
    ):
        with pytest.raises(MappingError, match="reaches out"):
            bench.table.unmap(start, length)
        with pytest.raises(MappingError, match="reaches out"):
            bench.table.protect(start, length, CODE)
    assert bench.mapped() == before


def runs_of_contiguous_leaves(bench: Bench) -> list[tuple[int, int]]:
    """(leaf size, leaves) of each run that the contiguous hint can join; pages are mapped without it."""
    return [
        (level.size, level.contiguous)
        for level in bench.format.levels[1:]
        if level.leaf and level.contiguous > 1
    ]


def test_whole_aligned_runs_of_large_leaves_carry_the_contiguous_hint(bench: Bench) -> None:
    for size, count in runs_of_contiguous_leaves(bench):
        run = size * count
        hinted = Attributes(DATA.flags, contiguous=True)
        for start, address, leaves, expected in (
            (run, 0, count, [True] * count),
            (run, 2 * run, 2 * count, [True] * 2 * count),
            (run, size, count, [False] * count),  # the frames are no aligned run
            (run, 0, count - 1, [False] * (count - 1)),
            (run - size, run - size, count + 2, [False, *[True] * count, False]),
        ):
            bench.table.map(start, address, leaves * size, DATA, largest=size)
            found = bench.mapped()
            decoded = [bench.format.decode(item.entry, item.level) for item in found]
            assert decoded == [
                Leaf(address + n * size, hinted if hint else DATA) for n, hint in enumerate(expected)
            ]
            bench.table.unmap(start, leaves * size)


def test_part_of_a_run_is_neither_unmapped_nor_protected(bench: Bench) -> None:
    for size, count in runs_of_contiguous_leaves(bench):
        run = size * count
        bench.table.map(run, 0, run, DATA, largest=size)
        before = bench.mapped()
        for start, length in ((run, size), (run + size, run - size), (2 * run - size, size), (0, run + size)):
            with pytest.raises(MappingError, match="run of contiguous leaves at"):
                bench.table.unmap(start, length)
            with pytest.raises(MappingError, match="run of contiguous leaves at"):
                bench.table.protect(start, length, CODE)
            assert bench.mapped() == before
        assert bench.table.unmap(run, run) == before


def test_pages_fill_an_emptied_table_where_a_large_leaf_would_fit(bench: Bench) -> None:
    bench.table.map(bench.large, 0, bench.page, DATA)
    bench.table.unmap(bench.large, bench.page)
    bench.table.map(bench.large, 0, bench.large, DATA, largest=bench.large)
    assert bench.physical(2 * bench.large - 1) == bench.large - 1
    assert {found.level for found in bench.mapped()} == {1}


# ---- refusals leave everything as it was


@pytest.mark.parametrize("standing", ["page", "large", "held"])
def test_mapping_over_an_entry_is_refused_and_leaves_it(bench: Bench, standing: str) -> None:
    large = bench.large
    taken = 2 * large + 4 * bench.page
    if standing == "large":
        bench.table.map(2 * large, 0, large, CODE, largest=large)
    elif standing == "held":
        held = bench.format.held_entry(Held(HeldKind.SWAP, 9))
        bench.ram.words[bench.table.leaf_slot(taken)] = held
    else:
        bench.table.map(taken, 0, bench.page, CODE)
    before = bench.mapped()
    for start, length, largest in (
        (taken, bench.page, None),
        (taken - bench.page, 2 * bench.page, None),
        (taken - bench.page, 3 * bench.page, large),
        (large, 3 * large, large),
        (large + bench.page, large + 5 * bench.page, None),
        (2 * large, large, large),
    ):
        with pytest.raises(MappingError):
            bench.table.map(start, bench.page if largest is None else 0, length, DATA, largest=largest)
        assert bench.mapped() == before, (start, length, largest)


def test_a_held_entry_where_a_table_belongs_is_refused(bench: Bench) -> None:
    held = bench.format.held_entry(Held(HeldKind.POISON, 1))
    bench.table.write(bench.large, 2, bench.table.slot(bench.large, 2), held)
    with pytest.raises(MappingError, match="held"):
        bench.table.map(bench.large, 0, bench.page, DATA)
    walk = bench.table.walk(bench.large)
    assert isinstance(walk, HeldAt)
    assert (walk.level, walk.what) == (2, Held(HeldKind.POISON, 1))


@pytest.mark.parametrize("at", range(12))
def test_an_allocation_that_fails_in_the_middle_leaves_nothing_mapped_and_nothing_lost(
    bench: Bench, at: int
) -> None:
    """A range that needs tables of every level, and small and large leaves."""
    fmt, page = bench.format, bench.page
    bench.table.map(0, 0, page, CODE)
    root_span = max(fmt.levels[-1].size, 4 * bench.leaf_span)
    va = root_span - 2 * bench.leaf_span - page
    length = 4 * bench.leaf_span + 2 * page
    bench.buddy.failures = FailsAt(at)
    try:
        bench.table.map(va, page, length, DATA, largest=page)
    except OutOfFrames:
        assert len(bench.mapped()) == 1
    else:
        assert len(bench.mapped()) == 1 + length // page
    finally:
        bench.buddy.failures = NEVER_FAILS
    bench.check_tables()
    if len(bench.mapped()) == 1:
        bench.table.map(va, page, length, DATA)
        assert bench.physical(va + length - 1) == page + length - 1


def test_some_allocation_fails_in_the_middle() -> None:
    """The test above would say nothing if its range needed fewer than two: the leaf tables come together."""
    for fmt in EVERY_FORMAT:
        bench = Bench(fmt)
        va = max(fmt.levels[-1].size, 4 * bench.leaf_span) - 2 * bench.leaf_span
        bench.buddy.failures = FailsAt(1 if fmt.top > 2 else 0)
        with pytest.raises(OutOfFrames):
            bench.table.map(va, 0, 4 * bench.leaf_span, DATA)
        bench.buddy.failures = NEVER_FAILS
        bench.close()


def test_what_the_format_cannot_say_is_refused_before_anything_is_mapped(bench: Bench) -> None:
    with pytest.raises(EncodingError):
        bench.table.map(0, 0, 3 * bench.page, Attributes(PageFlags.WRITE))
    assert bench.mapped() == []


@pytest.mark.parametrize(("va", "address", "length"), [(1, 0, 1), (0, 1, 1), (0, 0, 0), (0, 0, -1)])
def test_misaligned_and_empty_ranges_are_refused(bench: Bench, va: int, address: int, length: int) -> None:
    """The addresses are in half pages, the length in pages."""
    half = bench.page // 2
    with pytest.raises(MappingError):
        bench.table.map(va * half, address * half, 2 * length * half, DATA)
    if va or length < 1:
        with pytest.raises(MappingError):
            bench.table.unmap(va * half, 2 * length * half)
        with pytest.raises(MappingError):
            bench.table.protect(va * half, 2 * length * half, DATA)
    assert bench.mapped() == []


def test_physical_addresses_wider_than_the_processors_are_refused(bench: Bench) -> None:
    end = 1 << bench.format.physical_bits
    for address, pages in ((end, 1), (end - bench.page, 2)):
        with pytest.raises(MappingError, match="physical"):
            bench.table.map(0, address, pages * bench.page, DATA)
    bench.table.map(0, end - bench.page, bench.page, DATA)
    assert bench.physical(0) == end - bench.page


# ---- editing


def test_unmap_returns_what_stood_there_in_order_and_clears_it(bench: Bench) -> None:
    bench.table.map(
        bench.large - 2 * bench.page,
        bench.large - 2 * bench.page,
        bench.large + 3 * bench.page,
        DATA,
        largest=bench.large,
    )
    before = bench.mapped()
    assert {found.level for found in before} == {1, 2}
    inside = [found for found in before if found.start >= bench.large - bench.page]
    gone = bench.table.unmap(bench.large - bench.page, 2 * bench.large)
    assert gone == inside
    assert bench.mapped() == [before[0]]


def test_protect_keeps_addresses_and_passes_over_what_is_not_present(bench: Bench) -> None:
    bench.table.map(0, 9 * bench.page, 2 * bench.page, DATA)
    held = bench.format.held_entry(Held(HeldKind.MIGRATION, 3))
    bench.ram.words[bench.table.leaf_slot(3 * bench.page)] = held
    old = bench.table.protect(0, 5 * bench.page, CODE)
    assert [bench.format.decode(found.entry, 1) for found in old] == [
        Leaf(9 * bench.page, DATA),
        Leaf(10 * bench.page, DATA),
    ]
    assert (bench.physical(0), bench.physical(bench.page)) == (9 * bench.page, 10 * bench.page)
    assert bench.attributes(bench.page) == CODE
    assert isinstance(bench.table.walk(3 * bench.page), HeldAt)


def test_the_cursor_may_be_edited_under_and_an_empty_range_has_nothing(bench: Bench) -> None:
    bench.table.map(bench.large, 0, bench.large, DATA, largest=bench.large)
    bench.table.map(0, 0, 3 * bench.page, DATA)
    for at in (0, bench.page, bench.large, bench.large + bench.page):
        assert list(bench.table.cursor(at, at)) == []
    for found in bench.table.cursor(0, 2 * bench.large):
        bench.table.write(found.start, found.level, found.slot, 0)
    assert bench.mapped() == []


@pytest.mark.parametrize("reach", Reach)
@pytest.mark.parametrize("user", [PageFlags.USER, PageFlags(0)], ids=["user", "supervisor"])
def test_tables_on_the_way_restrict_what_the_leaf_grants(bench: Bench, reach: Reach, user: PageFlags) -> None:
    everything = Attributes(PageFlags.READ | PageFlags.WRITE | PageFlags.EXECUTE | user)
    bench.table.map(0, 0, bench.page, everything)
    slot = bench.table.slot(0, 2)
    below = bench.format.next_table(bench.ram.words[slot], 2)
    assert below is not None
    bench.table.write(0, 2, slot, bench.format.table_entry(below, reach))
    table = bench.format.decode(bench.ram.words[slot], 2)
    assert isinstance(table, Table)
    others = table.flags if table.supervisor is None else table.supervisor
    granted = table.flags if user else others
    assert bench.attributes(0) == Attributes(everything.flags & (granted | PageFlags.READ))
    serves = reach in (Reach.ANY, Reach.USER if user else Reach.SUPERVISOR)
    if serves or user:
        assert (bench.attributes(0) == everything) is serves


def test_a_walk_tells_what_is_malformed_and_where(bench: Bench) -> None:
    bench.table.map(0, 0, bench.page, DATA)
    reserved = 1 << 45  # above the physical width of every format here
    for level in range(1, bench.format.top + 1):
        slot = bench.table.slot(0, level)
        good = bench.ram.words[slot]
        bench.ram.words[slot] = good | reserved
        walk = bench.table.walk(0)
        assert isinstance(walk, MalformedAt)
        assert (walk.level, walk.bits) == (level, reserved)
        bench.ram.words[slot] = good


def test_a_table_outside_ram_reads_as_zero(bench: Bench) -> None:
    bench.table.map(0, 0, bench.page, DATA)
    slot = bench.table.slot(0, 2)
    good = bench.ram.words[slot]
    for address in (0, RAM_BASE + bench.ram.size):
        bench.ram.words[slot] = bench.format.table_entry(address)
        walk = bench.table.walk(0)
        assert isinstance(walk, NotMapped)
        assert walk.level == 1
    bench.ram.words[slot] = good


# ---- stretches and pruning


def test_stretches_are_the_level_1_entries_that_exist(bench: Bench) -> None:
    span, page = bench.leaf_span, bench.page
    for va in (span, 5 * span - page, 5 * span):
        bench.table.map(va, 0, page, DATA)
    shown = pages_of(bench.table.visit(0, 100 * span), page)
    assert [va for va, _slot in shown] == [*range(span, 2 * span, page), *range(4 * span, 6 * span, page)]
    assert all(slot == bench.table.leaf_slot(va) for va, slot in shown)
    part = pages_of(bench.table.visit(5 * span - 3 * page, 5 * span + 2 * page), page)
    assert [va for va, _slot in part] == [5 * span + n * page for n in range(-3, 2)]
    assert bench.table.visit(2 * span, 3 * span) == []


def pages_of(items: list[Stretch | Found], page: int) -> list[tuple[int, int]]:
    """Address and slot of each level-1 entry of some stretches."""
    stretches = [item for item in items if isinstance(item, Stretch)]
    assert stretches == items
    return [(item.va + n * page, item.slot + n) for item in stretches for n in range(item.count)]


def test_pruning_gives_back_the_tables_of_a_free_range_and_no_others(bench: Bench) -> None:
    span, table = bench.leaf_span, bench.table
    for va in (0, span, 2 * span, 3 * span):
        table.map(va, 0, bench.page, DATA)
    before = table.tables
    table.unmap(span, 2 * span)
    detached = table.prune(span, 3 * span, span, 3 * span)
    assert len(detached) == 2
    assert table.tables == before  # until they are freed
    table.free_tables(detached)
    assert table.tables == before - 2
    assert [f.start for f in bench.mapped()] == [0, 3 * span]
    table.map(span, 0, bench.page, DATA)  # a new table, not the one given back
    assert bench.physical(span) == 0


def test_a_table_that_also_serves_a_neighbour_stays(bench: Bench) -> None:
    span, page = bench.leaf_span, bench.page
    bench.table.map(span, 0, 2 * page, DATA)
    bench.table.unmap(span + page, page)
    assert bench.table.prune(span + page, span + 2 * page, span + page, 9 * span) == []
    assert bench.physical(span) == 0


def test_pruning_all_leaves_the_root(bench: Bench) -> None:
    bench.table.map(0, 0, bench.page, DATA)
    bench.table.unmap(0, bench.page)
    end = 1 << bench.format.virtual_bits
    bench.table.free_tables(bench.table.prune(0, bench.page, 0, end))
    assert bench.table.tables == 1


# ---- a borrowed half


def test_a_borrowed_half_is_shared_and_never_pruned_or_destroyed(bench: Bench) -> None:
    end = 1 << bench.format.virtual_bits
    upper = end // 2
    bench.table.map(upper + bench.page, 0, bench.page, DATA)
    other = PageTable(bench.format, bench.ram, bench.frames, bench.buddy, owner=7)
    other.borrow_upper(bench.table, upper)
    assert isinstance(other.walk(upper + bench.page), Mapped)
    bench.table.map(upper, bench.page, bench.page, DATA)  # in tables that both walk
    assert isinstance(other.walk(upper), Mapped)
    assert other.prune(0, end, 0, end) == []
    other.destroy()
    assert bench.physical(upper) == bench.page


def test_a_table_takes_zeroed_frames_even_after_others_used_them(bench: Bench) -> None:
    words = bench.page // 8
    used = [bench.buddy.alloc() for _ in range(bench.buddy.free_frames)]
    for frame in used:
        start = frame * words
        bench.ram.array[start : start + words] = (1 << 64) - 1
        bench.frames.flags[frame] |= Flags.DIRTY
    bench.buddy.free_bulk(used)
    bench.table.map(0, 0, 9 * bench.leaf_span, DATA)
    bench.table.map(16 * max(bench.format.levels[-1].size >> 4, bench.leaf_span), 0, bench.page, DATA)
    assert len(bench.mapped()) == 9 * bench.format.levels[0].entries + 1
