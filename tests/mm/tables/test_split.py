"""Splitting live large leaves: on every format and level, runs with the contiguous hint among them.

The executing CPUs load and store through the direct map before and after; the reference CPU checks that
no live entry became another one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aether_emu.arch.paging import Access, Attributes, Leaf, PageFlags, PageTableFormat
from aether_emu.computer import RAM_BASE, lowest_kernel_base
from aether_emu.errors import MappingError, OutOfFrames
from aether_emu.mm.tables.page import Found
from aether_emu.mm.tables.split import split, split_down
from aether_emu.mm.tables.tree import Stretch
from aether_emu.mm.tables.walk import Mapped
from aether_emu.ports import NEVER_FAILS
from tests.arch.formats import EVERY_FORMAT
from tests.mm.board import ENGINES, MIB, Board
from tests.mm.reference_cpu import ReferenceCpu
from tests.mm.tables.test_page import Bench, FailsAt

USER = PageFlags.READ | PageFlags.USER | PageFlags.ACCESSED
DATA = Attributes(USER | PageFlags.WRITE | PageFlags.DIRTY, software=1)
LARGE = [
    (fmt, number)
    for fmt in EVERY_FORMAT
    for number, level in enumerate(fmt.levels, 1)
    if number > 1 and level.leaf
]
every_large_leaf = pytest.mark.parametrize(("fmt", "level"), LARGE, ids=lambda x: getattr(x, "name", x))


class Split:
    """One large leaf, or a run of them, at `start`, and its flushes: what stood in the slot at each."""

    def __init__(self, fmt: PageTableFormat, level: int, leaves: int) -> None:
        self.bench = Bench(fmt)
        self.format, self.level, self.table, self.ram = fmt, level, self.bench.table, self.bench.ram
        self.size = fmt.levels[level - 1].size
        self.start = max(2 * fmt.levels[level - 1].contiguous, 2) * self.size
        self.length = leaves * self.size
        self.table.map(self.start, 0, self.length, DATA, largest=self.size)
        self.entries: list[int] = []
        self.slot = self.at(self.start).slot

    def at(self, va: int) -> Found:
        found = self.table.find(va)
        assert found is not None
        return found

    def split(self, va: int) -> None:
        split(self.table, va, lambda: self.entries.append(self.ram.words[self.slot]))

    def leaves(self) -> list[tuple[int, int, bool]]:
        """(va, level, contiguous) of each leaf, all of which must translate as the first ones did."""
        found = list(self.table.cursor(self.start, self.start + self.length))
        seen, reached = [], self.start
        for item in found:
            leaf = self.format.decode(item.entry, item.level)
            assert isinstance(leaf, Leaf)
            assert (item.start, leaf.address) == (reached, reached - self.start)
            assert leaf.attributes.flags == DATA.flags
            assert leaf.attributes.software == DATA.software
            seen.append((item.start, item.level, leaf.attributes.contiguous))
            reached += self.format.levels[item.level - 1].size
        assert reached == self.start + self.length
        return seen

    def close(self) -> None:
        self.bench.check_tables()
        self.bench.close()


@every_large_leaf
def test_one_leaf_becomes_a_table_full_of_the_next_smaller_ones(fmt: PageTableFormat, level: int) -> None:
    case = Split(fmt, level, 1)
    before, tables = case.at(case.start).entry, case.table.tables
    case.split(case.start + case.size // 2 + 5)
    below = fmt.levels[level - 2]
    assert case.leaves() == [(case.start + n * below.size, level - 1, False) for n in range(below.entries)]
    assert case.table.tables == tables + 1
    table = case.ram.words[case.slot]
    assert fmt.next_table(table, level) is not None
    assert case.entries == [0 if fmt.frozen_bits else table]
    assert before != table
    for va in (case.start, case.start + case.size // 2 + 0x123, case.start + case.size - 1):
        walk = case.table.walk(va)
        assert isinstance(walk, Mapped)
        assert (walk.address, walk.attributes) == (va - case.start, DATA)
    case.close()


@every_large_leaf
def test_a_run_of_contiguous_leaves_ends_as_a_whole(fmt: PageTableFormat, level: int) -> None:
    run = fmt.levels[level - 1].contiguous
    case = Split(fmt, level, 2 * run)
    hinted = run > 1
    assert case.leaves() == [(case.start + n * case.size, level, hinted) for n in range(2 * run)]
    case.split(case.start + case.size - 1)
    below = fmt.levels[level - 2]
    assert case.leaves() == [
        *((case.start + n * below.size, level - 1, False) for n in range(below.entries)),
        *((case.start + n * case.size, level, False) for n in range(1, run)),
        *((case.start + n * case.size, level, hinted) for n in range(run, 2 * run)),
    ]
    assert case.entries == [0, 0] if hinted else len(case.entries) == 1
    case.close()


@every_large_leaf
def test_splitting_down_ends_at_one_page_and_leaves_the_rest_large(fmt: PageTableFormat, level: int) -> None:
    case = Split(fmt, level, 1)
    va, tables = case.start + case.size // 2 + fmt.page_size, case.table.tables
    split_down(case.table, va, lambda: None)
    assert case.at(va).level == 1
    assert case.table.tables == tables + level - 1
    expected = sum(fmt.levels[n].entries - 1 for n in range(level - 1)) + 1
    assert len(case.leaves()) == expected
    case.table.protect(va, fmt.page_size, Attributes(USER))  # its leaf table is known to the table
    assert case.table.visit(va, va + fmt.page_size) == [Stretch(va, case.table.leaf_slot(va), 1)]
    assert case.at(va).slot == case.table.leaf_slot(va)
    split_down(case.table, va, lambda: pytest.fail("there is nothing to flush"))
    case.close()


@every_large_leaf
@pytest.mark.parametrize("fails", range(3))
def test_without_memory_for_the_table_everything_is_as_it_was(
    fmt: PageTableFormat, level: int, fails: int
) -> None:
    case = Split(fmt, level, fmt.levels[level - 1].contiguous)
    before, tables = case.leaves(), case.table.tables
    case.bench.buddy.failures = FailsAt(fails)
    done = 0
    try:
        while case.at(case.start).level > 1:
            case.split(case.start)
            done += 1
    except OutOfFrames:
        assert done == fails
    else:
        assert fails >= level - 1
    finally:
        case.bench.buddy.failures = NEVER_FAILS
    assert case.table.tables == tables + done
    if not fails:
        assert case.leaves() == before
        assert case.entries == []
    case.leaves()
    case.close()


def test_where_nothing_large_stands_there_is_nothing_to_split() -> None:
    for fmt in EVERY_FORMAT:
        bench = Bench(fmt)
        bench.table.map(0, 0, fmt.page_size, DATA)
        tables = bench.table.tables
        for va in (0, fmt.page_size, 4 * bench.large):
            with pytest.raises(MappingError, match="nothing large"):
                split(bench.table, va, lambda: pytest.fail("nothing changes"))
        assert bench.table.tables == tables
        bench.close()


# ---- live


@every_large_leaf
def test_a_cpu_that_uses_the_leaf_finds_no_rule_broken(fmt: PageTableFormat, level: int) -> None:
    case = Split(fmt, level, fmt.levels[level - 1].contiguous)
    board = Board(fmt)
    cpu = ReferenceCpu(fmt, case.ram, board.aperture)
    cpu.set_root(case.table.root)
    places = [case.start + n for n in (0, case.size // 2 + 5, case.size - 1, case.length - 1)]
    for _ in range(level - 1):
        assert [cpu.translate(va, Access.WRITE) for va in places] == [va - case.start for va in places]
        split(case.table, case.start, cpu.flush_all)
    assert [cpu.translate(va, Access.WRITE) for va in places] == [va - case.start for va in places]
    assert cpu.broken_rules == []
    board.close()
    case.close()


@pytest.mark.parametrize(
    ("fmt", "level"), [(f, n) for f, n in LARGE if f.frozen_bits], ids=lambda x: getattr(x, "name", x)
)
def test_it_would_find_one_if_the_table_came_at_once(fmt: PageTableFormat, level: int) -> None:
    case = Split(fmt, level, 1)
    board = Board(fmt)
    cpu = ReferenceCpu(fmt, case.ram, board.aperture)
    cpu.set_root(case.table.root)
    cpu.translate(case.start, Access.READ)

    def flush() -> None:
        standing, case.ram.words[case.slot] = case.ram.words[case.slot], fmt.table_entry(case.table.root)
        cpu.flush_all()
        case.ram.words[case.slot] = standing

    split(case.table, case.start, flush)
    assert cpu.broken_rules
    board.close()
    case.close()


@pytest.fixture(params=ENGINES)
def roomy(request: pytest.FixtureRequest) -> Iterator[Board]:
    """An executing board whose direct map has a leaf of the largest size that nobody else needs."""
    fmt = ENGINES[request.param]
    made = Board(fmt, ram=2 * fmt.leaf_sizes()[-1] + 64 * MIB, execute=True)
    yield made
    made.close()


def test_the_supervisor_uses_a_leaf_of_the_direct_map_before_and_after(roomy: Board) -> None:
    kernel, fmt, isa, cpu = roomy.kernel_half, roomy.format, roomy.instructions, roomy.cpu
    assert kernel is not None
    table = kernel.table
    direct = lowest_kernel_base(fmt) + RAM_BASE
    top = len(fmt.leaf_sizes())
    found = next(f for f in table.cursor(direct, direct + roomy.ram.size) if f.level == top)
    size = fmt.levels[top - 1].size
    places = [found.start + n for n in (0, size // 3 & -8, size - 8)]
    seen: list[bool] = []

    def flush() -> None:
        seen.append(table.find(places[1]) is None)
        cpu.flush_all()

    def use(value: int) -> None:
        for number, va in enumerate(places):
            assert isa.supervisor_store(cpu, va, value + number).fault is None
            loaded = isa.supervisor_load(cpu, va)
            assert (loaded.value, loaded.fault) == (value + number, None)
            assert roomy.ram.words[va - direct >> 3] == value + number

    saved = [roomy.ram.words[va - direct >> 3] for va in places]
    use(0x1111)
    tables = table.tables
    for done in range(top - 1):
        split(table, places[1], flush)
        assert table.tables == tables + done + 1
        use(0x2222 * (done + 2))
    assert seen == [bool(fmt.frozen_bits)] * (top - 1)
    for va, value in zip(places, saved, strict=True):
        roomy.ram.words[va - direct >> 3] = value
