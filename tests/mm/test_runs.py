"""Runs of pages that a fault brings, and the contiguous hint: set on whole runs, and lost with them."""

from __future__ import annotations

import pytest

from aether_emu.mm import ageing, mapping
from aether_emu.mm.counters import Event
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import MREMAP_FIXED, MREMAP_MAYMOVE, Remap, remap_memory
from tests.mm.board import FORMATS
from tests.mm.test_hugepage import Huge, closed

ARM = ("arm64-4K", "arm64-16K", "arm64-64K")
HINTED = {name: fmt.levels[0].contiguous for name, fmt in FORMATS.items()}


def kit_of(name: str, *orders: int) -> Huge:
    """Whose memory is too small for huge pages: one page less than two of them, in the midst."""
    kit = Huge(name, orders=orders)
    kit.space.unmap(kit.base, kit.base + 3 * kit.size)
    kit.map(kit.base, kit.size - kit.page)
    return kit


def hinted(kit: Huge, first: int = 0, count: int = 0) -> list[int]:
    """The numbers of the pages whose entries have the hint."""
    fmt, table = kit.board.format, kit.space.table
    found = [
        table.find(kit.base + number * kit.page) for number in range(first, first + (count or kit.count - 1))
    ]
    return [
        number
        for number, each in enumerate(found, first)
        if each is not None and each.level == 1 and each.entry & fmt.contiguous_bit
    ]


def present(kit: Huge) -> int:
    return ageing.survey(kit.space, kit.base, kit.base + kit.size).present


def order_of_run(name: str) -> int:
    return HINTED[name].bit_length() - 1


@pytest.mark.parametrize("name", FORMATS)
def test_a_store_brings_the_largest_run_that_fits(name: str) -> None:
    kit = kit_of(name, 4, 2)
    kit.write(5 * kit.page, b"x")
    assert present(kit) == 16
    assert kit.events(Event.HUGE_RUN, Event.FAULT_DEMAND_ZERO, Event.HUGE_PAGES) == [1, 0, 16]
    kit.write(0, b"y")
    assert kit.events(Event.HUGE_RUN, Event.FAULT_DEMAND_ZERO) == [1, 0]
    frame = kit.space.table.walk(kit.base).address >> kit.board.format.page_shift  # type: ignore[union-attr]  # mapped
    assert frame % 16 == 0
    kit.write((kit.count - 3) * kit.page, b"z")  # the area ends before the run would
    assert kit.events(Event.HUGE_RUN, Event.FAULT_DEMAND_ZERO) == [1, 1]
    assert kit.read(5 * kit.page) + kit.read(0) + kit.read(6 * kit.page) == b"xy\0"
    closed(kit)


def test_a_run_is_shorter_where_a_page_is_there_already() -> None:
    kit = kit_of("x86_64", 4, 2)
    kit.read(9 * kit.page)  # a single page of zeros
    kit.write(5 * kit.page, b"x")
    assert present(kit) == 1 + 4
    closed(kit)


def test_a_run_needs_a_block() -> None:
    kit = kit_of("x86_64", 4)
    kit.write(0, b"a")
    taken = kit.take_blocks()
    singles = [frame for frame in kit.take_all()]
    kit.give(singles[::2])
    kit.write(16 * kit.page, b"x")
    assert kit.events(Event.HUGE_RUN, Event.HUGE_FALLBACK, Event.FAULT_DEMAND_ZERO) == [1, 1, 1]
    kit.give(taken)
    kit.give(singles[1::2])
    closed(kit)


def test_what_is_not_to_have_runs_gets_single_pages() -> None:
    kit = kit_of("x86_64", 4)
    mapping.advise_memory(kit.space, kit.base, kit.size - kit.page, mapping.MADV_NOHUGEPAGE)
    kit.write(0, b"x")
    assert present(kit) == 1
    closed(kit)


# ---- the hint


@pytest.mark.parametrize("name", ARM)
def test_a_run_as_long_as_the_hint_has_it_and_executes(name: str) -> None:
    kit = kit_of(name, order_of_run(name))
    count = HINTED[name]
    kit.write(3 * kit.page, b"x")
    assert hinted(kit) == list(range(count))
    for number in range(count):
        kit.write(number * kit.page, bytes([number % 251 + 1]))
    assert [kit.read(number * kit.page) for number in range(count)] == [
        bytes([number % 251 + 1]) for number in range(count)
    ]
    closed(kit)


@pytest.mark.parametrize("name", ARM)
def test_a_shorter_run_has_no_hint_and_a_longer_one_has_several(name: str) -> None:
    kit = kit_of(name, order_of_run(name) - 1)
    kit.write(0, b"x")
    assert hinted(kit) == []
    closed(kit)
    kit = kit_of(name, order_of_run(name) + 1)
    kit.write(0, b"x")
    assert len(hinted(kit)) == 2 * HINTED[name]
    mapping.protect_memory(kit.space, kit.base, kit.page, Protection.READ)
    assert hinted(kit) == list(range(HINTED[name], 2 * HINTED[name]))
    closed(kit)


@pytest.mark.parametrize("edit", ["unmap", "protect", "discard", "mark", "age part", "copy"])
def test_an_edit_of_one_page_takes_the_hint_from_the_run_by_break_before_make(edit: str) -> None:
    name, count = "arm64-4K", 16
    kit = kit_of(name, 4)
    for number in range(count):
        kit.write(number * kit.page, bytes([number + 1]))
    at, child = kit.base + 3 * kit.page, None
    if edit == "unmap":
        kit.space.unmap(at, at + kit.page)
    elif edit == "protect":
        mapping.protect_memory(kit.space, at, kit.page, Protection.READ)
    elif edit == "discard":
        mapping.advise_memory(kit.space, at, kit.page, mapping.MADV_DONTNEED)
    elif edit == "mark":
        mapping.advise_memory(kit.space, at, kit.page, mapping.MADV_RANDOM)
    elif edit == "age part":
        ageing.forget_accesses(kit.space, at, at + kit.page)
    else:
        child = kit.fork()
        kit.write(3 * kit.page, b"x")
        assert kit.events(Event.FAULT_COPY) == [1]
    assert hinted(kit) == []
    assert kit.events(Event.RUN_BROKEN) == [1]
    rest = [number for number in range(count) if number != 3]
    assert [kit.read(number * kit.page) for number in rest] == [bytes([number + 1]) for number in rest]
    if child is not None:
        assert kit.read(3 * kit.page, 1, child) == b"\x04"
    closed(kit)


def test_edits_of_all_of_a_run_keep_the_hint() -> None:
    kit = kit_of("arm64-4K", 4)
    kit.write(0, b"a")
    kit.write(15 * kit.page, b"b")
    length = kit.size - kit.page
    ageing.forget_accesses(kit.space, kit.base, kit.base + length)
    assert kit.read(0) == b"a"
    assert present(kit) == ageing.survey(kit.space, kit.base, kit.base + kit.size).accessed == 16
    ageing.clean(kit.space, kit.base, kit.base + length)
    kit.write(0, b"c")
    assert ageing.survey(kit.space, kit.base, kit.base + kit.size).dirty == 16
    mapping.protect_memory(kit.space, kit.base, length, Protection.READ)
    mapping.protect_memory(kit.space, kit.base, length, Protection.READ | Protection.WRITE)
    kit.write(7 * kit.page, b"d")
    assert hinted(kit) == list(range(16))
    child = kit.fork()
    assert hinted(kit) == list(range(16))
    kit.end(child)
    kit.write(1 * kit.page, b"e")  # nobody shares it: all of the run may be written again
    assert hinted(kit) == list(range(16))
    assert kit.events(Event.RUN_BROKEN, Event.FAULT_COPY) == [0, 0]
    assert [kit.read(number * kit.page) for number in (0, 1, 7, 15)] == [b"c", b"e", b"d", b"b"]
    closed(kit)


def test_a_run_that_moves_to_where_it_is_not_aligned_loses_the_hint() -> None:
    kit = kit_of("arm64-4K", 4)
    kit.write(0, b"a")
    target = kit.base + 4 * kit.size + kit.page
    length = 16 * kit.page
    remap_memory(kit.space, Remap(kit.base, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, target))
    found = kit.space.table.find(target)
    assert found is not None
    assert not found.entry & kit.board.format.contiguous_bit
    assert kit.read(target - kit.base) == b"a"
    closed(kit)
