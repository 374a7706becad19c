"""Compaction: pages move to other frames with their bytes and all their entries; a row of frames is free."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import numpy as np
import pytest

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.mm import mapping
from aether_emu.mm.compaction import Compaction
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.hugepage import leaves
from aether_emu.mm.protection import Protection
from tests.mm.board import FORMATS, check_accounts
from tests.mm.calls import RW
from tests.mm.test_hugepage import Huge, closed

EACH = 64  # of so many frames one is in use


class Fragmented(Huge):
    """RAM whose free frames lie between pages of `space`, from `base` on: the last of each 64 is in use."""

    def __init__(self, name: str, *, compacts: str = "always", protection: int = RW) -> None:
        super().__init__(name, compacts=compacts)
        self.compaction = Compaction(self.board.physical)
        self.board.physical.compaction = self.compaction
        self.space.no_huge = True
        self.pages = 0
        if protection != RW:
            self.space.unmap(self.base, self.base + 3 * self.size)
            self.map(self.base, 3 * self.size, protection)
        self.fragment()

    def fragment(self) -> None:
        """Each row is taken, and given back but for the frames that pages get then."""
        buddy, physical, start = self.board.buddy, self.board.physical, self.base // self.page
        area = self.space.areas.find(self.base)
        assert area is not None
        rows = self.take_rows()
        for row in rows:
            kept = np.arange(row + EACH - 1, row + self.count, EACH)
            buddy.free_bulk(np.setdiff1d(np.arange(row, row + self.count), kept))
            for frame in kept.tolist():
                physical.prepare(frame)
                physical.frames.claim(frame, 1, Kind.ANON, area.owner, start + self.pages)
                physical.frames.refs[frame] = physical.frames.maps[frame] = 1
                slot = self.space.table.leaf_slot(self.base + self.pages * self.page)
                self.board.ram.words[slot] = physical.frames.address(frame) | area.bits.write
                if area.protection & Protection.EXECUTE:
                    physical.code.executable(frame, mutable=True)
                self.pages += 1

    def take_rows(self) -> list[int]:
        rows = list[int]()
        while True:
            try:
                row = self.board.buddy.alloc(self.huge.order)
            except OutOfFrames:
                return rows
            self.board.buddy.split(row, self.huge.order)
            rows.append(row)


@pytest.fixture(params=FORMATS)
def kit(request: pytest.FixtureRequest) -> Iterator[Fragmented]:
    made = Fragmented(request.param)
    yield made
    check_accounts(made.board, [])
    made.board.close()


def store_all(kit: Fragmented) -> None:
    for number in range(kit.pages):
        kit.write(number * kit.page, bytes([number % 251 + 1]))


def holds_all(kit: Fragmented) -> bool:
    return all(kit.read(number * kit.page) == bytes([number % 251 + 1]) for number in range(kit.pages))


def test_a_row_is_made_and_no_byte_is_lost(kit: Fragmented) -> None:
    store_all(kit)
    free = kit.board.buddy.free_frames
    row = kit.compaction.make(kit.huge.order)
    assert row is not None
    assert row % kit.count == 0
    assert kit.board.buddy.free_frames == free - kit.count
    assert kit.events(Event.COMPACTED, Event.MIGRATED_PAGES) == [1, kit.count // EACH]
    assert holds_all(kit)
    kit.board.buddy.check()
    kit.board.buddy.free_bulk(np.arange(row, row + kit.count))
    store_all(kit)
    assert holds_all(kit)


def test_a_fault_makes_room_for_its_huge_page(kit: Fragmented) -> None:
    store_all(kit)
    kit.space.no_huge = False
    kit.write(2 * kit.size, b"x")
    assert kit.events(Event.HUGE_FAULT, Event.COMPACTED) == [1, 1]
    assert len(leaves(kit.space)) == 1
    assert holds_all(kit)
    assert kit.read(2 * kit.size + kit.page) == b"\0"


@pytest.mark.parametrize(("compacts", "advised"), [("never", True), ("madvise", False), ("madvise", True)])
def test_a_fault_moves_pages_only_where_it_is_to(compacts: str, advised: bool) -> None:
    kit = Fragmented("x86_64", compacts=compacts)
    kit.space.no_huge = False
    if advised:
        mapping.advise_memory(kit.space, kit.base, 3 * kit.size, mapping.MADV_HUGEPAGE)
    kit.write(2 * kit.size, b"x")
    assert bool(leaves(kit.space)) == (compacts == "madvise" and advised)
    kit.board.close()


def test_pages_of_two_processes_move_in_both(kit: Fragmented) -> None:
    store_all(kit)
    child = kit.fork()
    row = kit.compaction.make(kit.huge.order)
    assert row is not None
    kit.board.buddy.free_bulk(np.arange(row, row + kit.count))
    assert all(
        kit.read(number * kit.page, 1, child) == bytes([number % 251 + 1]) for number in range(kit.pages)
    )
    kit.write(0, b"x", child)
    assert holds_all(kit)


def test_a_collapse_moves_even_the_pages_that_it_copies(kit: Fragmented) -> None:
    store_all(kit)
    kit.space.no_huge = False
    mapping.advise_memory(kit.space, kit.base, kit.size, mapping.MADV_COLLAPSE)
    assert kit.levels()[0] == 2
    assert kit.events(Event.COMPACTED) == [1]
    assert holds_all(kit)


def test_what_cannot_move_is_left_and_wishes_are_passed_over_after_that(kit: Fragmented) -> None:
    store_all(kit)
    frames = kit.board.frames
    shown = kit.space.shown(kit.base, kit.base + kit.pages * kit.page)
    frames.refs_array[shown] += 1  # somebody else holds them
    assert [kit.compaction.make(kit.huge.order) for _ in range(8)] == [None] * 8
    assert kit.events(Event.COMPACTION_FAILED) == [3]  # the first, the third, the seventh
    kit.space.no_huge = False
    with pytest.raises(Refused) as refused:
        mapping.advise_memory(kit.space, kit.base, kit.size, mapping.MADV_COLLAPSE)
    assert refused.value.errno == errno.EAGAIN
    frames.refs_array[shown] -= 1
    again = Compaction(kit.board.physical)
    again.restore(kit.compaction.capture())
    assert again.capture() == kit.compaction.capture()
    assert again.make(kit.huge.order) is None  # passed over
    assert holds_all(kit)


def test_rows_that_are_free_are_the_allocators_to_hand_out() -> None:
    kit = Huge("x86_64")
    kit.space.no_huge = True
    for number in range(100):  # some rows have a page in use, others none
        kit.write(number * kit.page, b"x")
    free = kit.board.buddy.free_frames
    row = Compaction(kit.board.physical).make(3)
    taken = 0 if row is None else 8
    assert kit.board.buddy.free_frames == free - taken
    kit.board.buddy.check()
    if row is not None:
        kit.board.buddy.free_bulk(np.arange(row, row + 8))
    closed(kit)


def test_without_enough_free_frames_nothing_moves(kit: Fragmented) -> None:
    store_all(kit)
    kit.board.buddy.gather_ready()
    taken = kit.take_all(but=1)
    assert kit.compaction.make(kit.huge.order) is None
    kit.board.buddy.check()
    kit.give(taken)
    assert holds_all(kit)


def test_code_moves_with_its_mark(kit: Fragmented) -> None:
    kit.board.close()
    name = next(name for name, fmt in FORMATS.items() if fmt is kit.board.format)
    kit.__init__(name, protection=int(RW | Protection.EXECUTE))  # type: ignore[misc]  # anew
    store_all(kit)
    row = kit.compaction.make(kit.huge.order)
    assert row is not None
    kit.board.buddy.free_bulk(np.arange(row, row + kit.count))
    shown = kit.space.shown(kit.base, kit.base + kit.pages * kit.page)
    assert (kit.board.frames.flags_array[shown] & 2 != 0).all()
    assert holds_all(kit)
