"""Pages that are brought before they are touched: in numpy ranges, with what a fault of each would give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from aether_emu.mm import mapping
from aether_emu.mm.allocation import USER_MISSING
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, AccessError, Faults, OutOfMemory
from aether_emu.mm.frames.table import Flags, Kind
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_PRIVATE, Request
from aether_emu.mm.overcommit import ALWAYS
from aether_emu.mm.populate import populate
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import MREMAP_FIXED, MREMAP_MAYMOVE, Remap, remap_memory
from aether_emu.mm.space import AddressSpace
from aether_emu.system import Machine
from tests.mm.board import FORMATS, Board

RW = Protection.READ | Protection.WRITE


@pytest.fixture(params=FORMATS)
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    made = Board(FORMATS[request.param])
    yield made
    made.close()


def _mapped(board: Board, pages: int, protection: Protection = RW) -> tuple[AddressSpace, int]:
    space = board.space()
    board.run_on(space)
    size = board.format.page_size
    at = 3 * board.format.levels[0].entries * size - 8 * size  # over the end of a leaf table
    flags = MAP_PRIVATE | MAP_ANONYMOUS | mapping.MAP_FIXED
    mapping.map_memory(space, Request(at, pages * size, int(protection), flags, None, 0))
    return space, at


def _state(board: Board, space: AddressSpace, at: int, pages: int) -> list[tuple[int, ...]]:
    """What stands in each entry but its frame, and what the frame table says of that."""
    fmt, frames, told = board.format, board.frames, []
    for page in range(pages):
        found = space.table.find(at + page * fmt.page_size)
        assert found is not None
        address = fmt.leaf_address(found.entry, 1)
        frame = frames.number(address)
        columns = (frames.kind, frames.index, frames.refs, frames.maps, frames.flags)
        told.append((found.entry ^ address, *(column[frame] for column in columns)))
        assert frames.owner[frame] == space.family.number or frame == board.physical.zero_frame
    return told


@pytest.mark.parametrize("write", [True, False])
def test_populating_is_as_many_faults(board: Board, write: bool) -> None:
    space, at = _mapped(board, 40)
    page, faults = board.format.page_size, Faults(board.physical)
    for number in (3, 11):  # some are there
        assert faults.resolve(space, at + number * page, 9 if number == 3 else 10) is RESOLVED
    before = board.events()
    assert populate(space, at, at + 40 * page, write=write) is None
    told, counted = _state(board, space, at, 40), board.events()
    counted.subtract(before)
    for number in range(40):
        space.discard(space.areas.find(at) or space.nowhere, at + number * page, at + (number + 1) * page)
    for number in (3, 11):
        faults.resolve(space, at + number * page, 9 if number == 3 else 10)
    before = board.events()
    for number in range(40):
        found = space.table.find(at + number * page)
        if found is None or (write and not board.format.writable(found.entry)):
            assert faults.resolve(space, at + number * page, 9 | 0 if not write else 10) is RESOLVED
    again = board.events()
    again.subtract(before)
    faulted = _state(board, space, at, 40)
    assert [each[:2] for each in told] == [each[:2] for each in faulted]
    assert [each[2:] for each in told if each[1] == Kind.ANON] == [
        each[2:] for each in faulted if each[1] == Kind.ANON
    ]
    for event in (Event.FAULT_DEMAND_ZERO, Event.FAULT_ZERO_PAGE, Event.FAULT_UPGRADE):
        assert counted[event] == again[event], event


def test_frames_that_were_used_are_cleared(board: Board) -> None:
    space, at = _mapped(board, 64)
    size = board.format.page_size
    used = board.buddy.alloc_bulk(board.buddy.free_frames)
    for frame in used.tolist():
        board.physical.page_bytes(frame)[:6] = b"secret"
    board.frames.flags_array[used] |= np.uint8(Flags.DIRTY)
    board.buddy.free_bulk(used)
    cleared = board.events()[Event.ZEROED_PAGES]
    assert populate(space, at, at + 64 * size, write=True) is None
    assert board.events()[Event.ZEROED_PAGES] - cleared == 64
    for frame in space.shown(at, at + 64 * size).tolist():
        assert not any(board.physical.page_bytes(frame)[:8])


def test_what_is_executable_is_known_to_be_code(board: Board) -> None:
    space, at = _mapped(board, 16, RW | Protection.EXECUTE)
    assert populate(space, at, at + 16 * board.format.page_size, write=True) is None
    frames = space.shown(at, at + 16 * board.format.page_size)
    assert (board.frames.flags_array[frames] & np.uint8(Flags.EXECUTABLE)).all()
    assert board.physical.code.mutable


def test_moved_memory_keeps_the_numbers_of_its_pages(board: Board) -> None:
    space, at = _mapped(board, 32)
    size = board.format.page_size
    assert populate(space, at, at + 16 * size, write=True) is None
    to = remap_memory(space, Remap(at, 32 * size, 32 * size, MREMAP_MAYMOVE | MREMAP_FIXED, at + 64 * size))
    assert populate(space, to, to + 32 * size, write=True) is None
    numbers = board.frames.index_array[space.shown(to, to + 32 * size)].tolist()
    assert numbers == list(range(numbers[0], numbers[0] + 32)), "those that moved, and those that came since"
    assert numbers[0] == at >> board.format.page_shift


def test_who_decides_about_faults_is_asked_for_each_page(board: Board) -> None:
    space, at = _mapped(board, 16)
    size, asked = board.format.page_size, []
    manager = Faults(board.physical)

    def decide(space: AddressSpace, va: int, access: int) -> Any:
        asked.append(va)
        return AccessError(va, True) if len(asked) == 8 else manager.resolve(space, va, access)

    board.physical.decide = decide
    failed = populate(space, at, at + 16 * size, write=True)
    board.physical.decide = None
    assert failed == AccessError(at + 7 * size, True)
    assert asked == [at + number * size for number in range(8)]


def test_an_area_that_is_watched_is_not_filled(board: Board) -> None:
    space, at = _mapped(board, 16)
    size, asked = board.format.page_size, []

    class Watcher:
        asynchronous = unpopulated = follows = False

        def of_child(self, space: object) -> None:
            return

        def tell(self, kind: int, *data: int) -> None:
            return

        def ask(self, va: int, why: int, *, write: bool, size: int) -> object:
            asked.append(va)
            return AccessError(va, True)

    area = space.areas.find(at)
    assert area is not None
    area.flags |= USER_MISSING
    area.watcher = Watcher()
    assert populate(space, at, at + 16 * size, write=True) == AccessError(at, True)
    assert asked == [at]
    area.watcher, area.flags = None, 0


def test_memory_that_is_out_is_told_with_the_page_that_is_missing(board: Board) -> None:
    free = board.buddy.free_frames
    board.physical.overcommit.mode = ALWAYS
    space, at = _mapped(board, free + 50)
    size = board.format.page_size
    failed = populate(space, at, at + (free + 50) * size, write=True)
    assert isinstance(failed, OutOfMemory)
    there = int(space.shown(at, failed.address).size)
    assert at + there * size == failed.address, "all before it are there"


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_memory_that_may_have_huge_pages_gets_them(isa: str) -> None:
    with Machine(isa, ram="64M", aslr=False, thp="always") as machine:
        space = machine.new_space()
        at = mapping.map_memory(space, Request(0, 8 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, None, 0))
        assert populate(space, at, at + (8 << 20), write=True) is None
        assert machine.physical.counters.n[Event.HUGE_FAULT] == 4
        space.destroy()


def test_frames_come_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(FORMATS["x86_64"])
    taken: list[int] = []
    alloc = board.buddy.alloc_bulk

    def counted(count: int) -> Any:
        taken.append(count)
        return alloc(count)

    monkeypatch.setattr(board.buddy, "alloc_bulk", counted)
    space, at = _mapped(board, 1024)
    assert populate(space, at, at + 1024 * 4096, write=True) is None
    assert taken == [8, 512, 504]
    board.close()
