"""Splitting and collapsing in a mixture: what is said stays the same, and so does every count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from aether_emu.arch.paging import Access, Attributes, HeldKind, PageFlags, PageTableFormat
from aether_emu.mm.tables import split as sizes
from tests.mm.board import Board
from tests.mm.reference_cpu import ReferenceCpu
from tests.mm.tables.mixture import FORMATS, Mixture, Recorder, Segment
from tests.mm.tables.test_page import Bench

USER = PageFlags.READ | PageFlags.USER


@pytest.fixture(params=FORMATS, ids=lambda fmt: fmt.name)
def mixture(request: pytest.FixtureRequest) -> Iterator[Mixture]:
    made = Mixture(request.param, 4)
    yield made
    made.close()


def test_splitting_anything_large_says_the_same(mixture: Mixture) -> None:
    fmt, table = mixture.format, mixture.table
    large = [f for f in table.cursor(0, 1 << fmt.virtual_bits) if f.level > 1]
    assert {fmt.decode(f.entry, f.level).__class__.__name__ for f in large} == {"Leaf", "Held"}
    assert {f.level for f in large} == set(range(2, fmt.top + 1))
    for found in large:
        flushes: list[int] = []
        sizes.split(table, found.start + 5, partial(flushes.append, 1))
        below = table.find(found.start)
        assert below is not None
        assert below.level == found.level - 1
        assert bool(flushes) == bool(found.entry & fmt.present_mask)
    mixture.check()


def test_collapsing_brings_a_split_leaf_back(mixture: Mixture) -> None:
    fmt, table = mixture.format, mixture.table
    leaves = [f for f in table.cursor(0, 1 << fmt.virtual_bits) if f.level > 1 and f.entry & fmt.present_mask]
    for found in leaves:
        tables = table.tables
        sizes.split(table, found.start, lambda: None)
        gather = Recorder(table)
        assert sizes.collapse(table, gather, found.start + 1, found.level)
        assert (
            found.start >> fmt.page_shift,
            fmt.levels[found.level - 1].size >> fmt.page_shift,
        ) in gather.flushed
        assert table.tables == tables + 1  # until the flush is done
        gather.finish()
        assert table.tables == tables
        again = table.find(found.start)
        assert again == replace(found, entry=found.entry & ~fmt.contiguous_bit)
    mixture.check()


def block_of_pages(fmt: PageTableFormat, attributes: Attributes) -> Bench:
    bench = Bench(fmt)
    bench.table.map(bench.large, 4 * bench.large, bench.large, attributes)
    return bench


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_a_collapsed_leaf_was_used_if_one_of_its_pages_was(fmt: PageTableFormat) -> None:
    writable = Attributes(USER | PageFlags.WRITE)
    for touched, soiled in ((False, False), (True, False), (True, True)):
        bench = block_of_pages(fmt, writable)
        slot = bench.table.leaf_slot(bench.large + 3 * bench.page)
        entry = bench.ram.words[slot]
        entry = fmt.touch(entry) if touched else entry
        bench.ram.words[slot] = fmt.soil(entry) if soiled else entry
        gather = Recorder(bench.table)
        assert sizes.collapse(bench.table, gather, bench.large, 2)
        gather.finish()
        flags = writable.flags | (PageFlags.ACCESSED if touched else PageFlags(0))
        flags |= PageFlags.DIRTY if soiled else PageFlags(0)
        assert bench.attributes(2 * bench.large - 1) == Attributes(flags)
        assert bench.physical(bench.large + 5) == 4 * bench.large + 5
        bench.close()


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_what_is_not_one_leaf_is_not_collapsed(fmt: PageTableFormat) -> None:
    attributes = Attributes(USER | PageFlags.ACCESSED)
    page = fmt.page_size
    held = Segment(0, 1, 9, HeldKind.NO_ACCESS).entry(fmt)
    executable = fmt.leaf_bits(Attributes(attributes.flags | PageFlags.EXECUTE)) ^ fmt.leaf_bits(attributes)
    for number, change in ((3, page), (0, page), (5, executable), (7, None), (8, held)):
        bench = block_of_pages(fmt, attributes)
        slot = bench.table.leaf_slot(bench.large) + number
        entry = bench.ram.words[slot]
        bench.ram.words[slot] = 0 if change is None else held if change == held else entry ^ change
        before = bytes(bench.ram.bytes)
        gather = Recorder(bench.table)
        assert not sizes.collapse(bench.table, gather, bench.large, 2)
        assert not sizes.collapse(bench.table, gather, 0, 2)  # nothing is there
        assert not sizes.collapse(bench.table, gather, bench.large, fmt.top)  # no leaf is that large
        assert (bytes(bench.ram.bytes), gather.flushed) == (before, [])
        bench.close()
    bench = Bench(fmt)
    bench.table.map(bench.large, bench.page, bench.large, attributes)  # not aligned
    assert not sizes.collapse(bench.table, Recorder(bench.table), bench.large, 2)
    bench.close()


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_a_cpu_that_uses_the_pages_finds_no_rule_broken_by_collapsing(fmt: PageTableFormat) -> None:
    bench = block_of_pages(fmt, Attributes(USER | PageFlags.WRITE | PageFlags.ACCESSED | PageFlags.DIRTY))
    board = Board(fmt)
    cpu = ReferenceCpu(fmt, bench.ram, board.aperture)
    cpu.set_root(bench.table.root)
    places = [bench.large + n for n in (0, 5 * bench.page + 3, bench.large - 1)]

    class Flushing(Recorder):
        def flush(self) -> None:
            super().flush()
            cpu.flush_all()

    expected = [va + 3 * bench.large for va in places]
    assert [cpu.translate(va, Access.WRITE) for va in places] == expected
    gather = Flushing(bench.table)
    assert sizes.collapse(bench.table, gather, bench.large, 2)
    assert [cpu.translate(va, Access.WRITE) for va in places] == expected
    cpu.flush_all()
    gather.finish()
    assert cpu.broken_rules == []
    board.close()
    bench.close()
