"""Huge pages of private memory: where they come, what cuts them, and that no page and no byte is lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from aether_emu.arch.paging import Access
from aether_emu.errors import OutOfFrames
from aether_emu.mm import locking, mapping
from aether_emu.mm.allocation import LOCKED
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, OutOfMemory
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.hugepage import HugePages, huge_size, leaves
from aether_emu.mm.mapping import MAP_FIXED, MAP_STACK, Request
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import MREMAP_FIXED, MREMAP_MAYMOVE, Remap, remap_memory
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.user import ForcedMemory
from tests.mm.board import ENGINES, FORMATS, Board, check_accounts, fault_in
from tests.mm.calls import ANONYMOUS, RW

READ, WRITE = int(Access.USER | Access.READ), int(Access.USER | Access.WRITE)
NONE = Protection.NONE


class Huge:
    """A board that gives huge pages, and a space with an area for three of them at `base`."""

    def __init__(
        self, name: str, *, always: bool = True, zero_page: bool = True, cpus: int = 1, **more: Any
    ) -> None:
        fmt = FORMATS[name]
        self.size, self.page = huge_size(fmt), fmt.page_size
        self.count = self.size // self.page
        self.board = Board(fmt, ram=8 * self.size, execute=name in ENGINES, cpus=cpus)
        self.huge = HugePages(
            self.board.physical, fmt, setting="always" if always else "madvise", zero_page=zero_page, **more
        )
        self.space = self.board.space()
        self.base = 4 * self.size
        self.map(self.base, 3 * self.size)
        self.board.run_on(self.space)

    def map(self, at: int, length: int, protection: int = RW, flags: int = MAP_FIXED) -> int:
        return mapping.map_memory(self.space, Request(at, length, protection, ANONYMOUS | flags, None, 0))

    def write(self, offset: int, data: bytes, space: AddressSpace | None = None) -> None:
        """Through the MMU, at an offset from `base`."""
        self.board.run_on(space or self.space)
        self.board.cpu.copy_to_user(self.base + offset, data)

    def read(self, offset: int, length: int = 1, space: AddressSpace | None = None) -> bytes:
        self.board.run_on(space or self.space)
        return bytes(self.board.cpu.copy_from_user(self.base + offset, length))

    def fork(self) -> AddressSpace:
        child = self.space.fork()
        self.board.spaces.append(child)
        return child

    def end(self, space: AddressSpace) -> None:
        self.board.rest()
        self.board.spaces.remove(space)
        space.destroy()

    def levels(self, space: AddressSpace | None = None) -> list[int]:
        """The level of what stands at the start of each of the three, 0 for nothing."""
        table = (space or self.space).table
        found = [table.find(self.base + number * self.size) for number in range(3)]
        return [0 if each is None else each.level for each in found]

    def events(self, *events: Event) -> list[int]:
        return [self.board.physical.counters.n[event] for event in events]

    def take_blocks(self) -> list[int]:
        """Leave no block that is large enough, but frames alone: one of each block is taken."""
        taken = []
        while True:
            try:
                block = self.board.buddy.alloc(self.huge.order)
            except OutOfFrames:
                break
            self.board.buddy.split(block, self.huge.order)
            self.board.buddy.free_bulk(np.arange(block + 1, block + self.count))
            taken.append(block)
        return taken

    def give(self, frames: list[int]) -> None:
        self.board.buddy.free_bulk(frames)

    def take_all(self, but: int = 0) -> list[int]:
        taken: list[int] = self.board.buddy.alloc_bulk(self.board.buddy.free_frames - but).tolist()
        return taken


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def kit(name: str) -> Iterator[Huge]:
    made = Huge(name)
    yield made
    check_accounts(made.board, [])
    made.board.close()


def closed(kit: Huge) -> None:
    check_accounts(kit.board, [])
    kit.board.close()


# ---- at a fault


def test_the_first_store_brings_a_huge_page_of_zeros_in_a_row(kit: Huge) -> None:
    free, tables = kit.board.buddy.free_frames, kit.space.table.tables
    kit.write(kit.size + 5 * kit.page + 3, b"x")
    assert kit.levels() == [0, 2, 0]
    assert kit.events(Event.HUGE_FAULT, Event.FAULT_DEMAND_ZERO) == [1, 0]
    assert kit.read(kit.size + 5 * kit.page + 2, 3) == b"\0x\0"
    kit.write(2 * kit.size - 1, b"y")
    kit.write(kit.size, b"z")
    assert kit.events(Event.HUGE_FAULT, Event.FAULT_DEMAND_ZERO) == [1, 0]
    assert free - kit.board.buddy.free_frames == kit.count + kit.space.table.tables - tables
    ((address, frame),) = leaves(kit.space)
    assert (address, frame % kit.count) == (kit.base + kit.size, 0)
    frames = kit.board.frames
    assert frames.index_array[frame : frame + kit.count].tolist() == list(
        range(address // kit.page, address // kit.page + kit.count)
    )
    assert (frames.kind_array[frame : frame + kit.count] == Kind.ANON).all()


def test_used_frames_are_cleared(kit: Huge) -> None:
    kit.write(0, b"secret")
    kit.write(kit.size - 6, b"secret")
    kit.space.unmap(kit.base, kit.base + kit.size)
    kit.map(kit.base, kit.size)
    kit.write(kit.page, b"x")
    assert kit.read(0, 6) + kit.read(kit.size - 6, 6) == bytes(12)


def test_what_no_area_holds_whole_gets_single_pages(kit: Huge) -> None:
    kit.space.unmap(kit.base + kit.page, kit.base + 3 * kit.size - kit.page)
    kit.write(0, b"x")
    assert kit.levels()[0] == 1
    assert kit.events(Event.HUGE_FAULT, Event.HUGE_FALLBACK) == [0, 0]


@pytest.mark.parametrize("way", ["advised", "not advised", "forbidden", "process"])
def test_a_program_asks_for_huge_pages_and_forbids_them(name: str, way: str) -> None:
    kit = Huge(name, always=way in ("forbidden", "process"))
    if way == "advised":
        mapping.advise_memory(kit.space, kit.base, 3 * kit.size, mapping.MADV_HUGEPAGE)
    if way == "forbidden":
        mapping.advise_memory(kit.space, kit.base, 3 * kit.size, mapping.MADV_NOHUGEPAGE)
    kit.space.no_huge = way == "process"
    kit.write(0, b"x")
    assert kit.levels()[0] == (2 if way == "advised" else 1)
    closed(kit)


def test_without_a_block_a_fault_brings_a_single_page(kit: Huge) -> None:
    taken = kit.take_blocks()
    kit.write(0, b"x")
    assert kit.levels()[0] == 1
    assert kit.events(Event.HUGE_FAULT, Event.HUGE_FALLBACK, Event.FAULT_DEMAND_ZERO) == [0, 1, 1]
    kit.give(taken)


def test_what_is_only_read_shows_one_huge_page_of_zeros(kit: Huge) -> None:
    for number in range(3):
        assert kit.read(number * kit.size + 7) == b"\0"
    assert kit.levels() == [2, 2, 2]
    assert leaves(kit.space) == []
    assert kit.events(Event.HUGE_ZERO_PAGE, Event.HUGE_FAULT) == [3, 0]
    kit.write(kit.size + 7, b"x")
    assert kit.events(Event.HUGE_ZERO_PAGE, Event.HUGE_FAULT) == [3, 1]
    assert [kit.read(number * kit.size + 7) for number in range(3)] == [b"\0", b"x", b"\0"]
    assert len(leaves(kit.space)) == 1


def test_a_store_to_the_huge_page_of_zeros_without_a_block_splits_it(kit: Huge) -> None:
    assert kit.read(0) == b"\0"
    taken = kit.take_blocks()
    kit.write(kit.page, b"x")
    assert kit.levels()[0] == 1
    assert kit.events(Event.HUGE_SPLIT, Event.HUGE_FALLBACK) == [1, 1]
    assert kit.read(0, 1) + kit.read(kit.page, 1) + kit.read(2 * kit.page, 1) == b"\0x\0"
    kit.give(taken)


def test_without_a_page_of_zeros_a_read_brings_a_huge_page_of_its_own(name: str) -> None:
    kit = Huge(name, zero_page=False)
    assert kit.read(0) == b"\0"
    assert len(leaves(kit.space)) == 1
    closed(kit)


# ---- what cuts it


@pytest.mark.parametrize("part", ["start", "middle", "end", "over"])
def test_unmapping_a_part_keeps_the_rest(kit: Huge, part: str) -> None:
    first, last = {
        "start": (0, kit.page),
        "middle": (kit.size // 2, kit.size // 2 + 2 * kit.page),
        "end": (kit.size - kit.page, kit.size),
        "over": (kit.size - kit.page, kit.size + kit.page),
    }[part]
    for offset in (0, kit.size // 2, kit.size - 1, kit.size, 2 * kit.size - 1):
        kit.write(offset, b"x")
    free, tables = kit.board.buddy.free_frames, kit.space.table.tables
    kit.space.unmap(kit.base + first, kit.base + last)
    kit.board.physical.tlb.settle()
    cut = kit.space.table.tables - tables
    assert cut == (2 if part == "over" else 1)
    assert kit.board.buddy.free_frames - free == (last - first) // kit.page - cut
    for offset in (0, kit.size // 2, kit.size - 1, kit.size, 2 * kit.size - 1):
        if not first <= offset < last:
            assert kit.read(offset) == b"x"
    assert kit.events(Event.HUGE_SPLIT) == [cut]


def test_unmapping_all_gives_the_block_back_whole(kit: Huge) -> None:
    kit.board.buddy.stats()
    for number in range(3):
        kit.write(number * kit.size, b"x")
    kit.space.unmap(kit.base, kit.base + 3 * kit.size)
    kit.board.physical.tlb.settle()
    assert kit.events(Event.HUGE_SPLIT) == [0]
    blocks = [kit.board.buddy.alloc(kit.huge.order) for _ in range(6)]  # of 8, with some frames in use
    for block in blocks:
        kit.board.buddy.free(block, kit.huge.order)


def test_frames_that_come_back_one_by_one_make_a_block_again(kit: Huge) -> None:
    kit.write(0, b"x")
    taken = kit.take_blocks()
    for number in range(kit.count):
        kit.space.unmap(kit.base + number * kit.page, kit.base + (number + 1) * kit.page)
    block = kit.board.buddy.alloc(kit.huge.order)
    kit.board.buddy.free(block, kit.huge.order)
    kit.give(taken)


def test_a_protected_part_and_the_rest_differ(kit: Huge) -> None:
    kit.write(0, b"a")
    kit.write(kit.page, b"b")
    mapping.protect_memory(kit.space, kit.base + kit.page, kit.page, Protection.READ)
    assert kit.levels()[0] == 1
    kit.write(0, b"c")
    assert kit.read(0) + kit.read(kit.page) == b"cb"
    assert fault_in(kit.space, kit.base + kit.page, WRITE) is not RESOLVED


def test_a_protection_of_all_of_it_keeps_it_whole(kit: Huge) -> None:
    kit.write(0, b"a")
    for protection in (Protection.READ, NONE, RW):
        mapping.protect_memory(kit.space, kit.base, 3 * kit.size, protection)
        assert kit.levels()[0] == 2
    assert kit.read(0) == b"a"
    kit.write(kit.page, b"b")
    assert kit.levels()[0] == 2
    assert kit.events(Event.HUGE_SPLIT, Event.FAULT_COPY) == [0, 0]


def test_a_debugger_stores_to_one_page_of_what_nobody_may_touch(kit: Huge) -> None:
    kit.write(0, b"a")
    mapping.protect_memory(kit.space, kit.base, 3 * kit.size, NONE)
    ForcedMemory(kit.space).write(kit.base + kit.page, b"b")
    assert ForcedMemory(kit.space).read(kit.base + kit.page, 1) == b"b"
    mapping.protect_memory(kit.space, kit.base, 3 * kit.size, RW)
    assert kit.read(0) + kit.read(kit.page) == b"ab"


def test_dropping_all_or_a_part(kit: Huge) -> None:
    kit.write(0, b"a")
    kit.write(kit.page, b"b")
    mapping.advise_memory(kit.space, kit.base, kit.page, mapping.MADV_DONTNEED)
    assert kit.read(0) + kit.read(kit.page) == b"\0b"
    assert kit.levels()[0] == 1
    kit.write(kit.size, b"c")
    mapping.advise_memory(kit.space, kit.base + kit.size, kit.size, mapping.MADV_DONTNEED)
    assert kit.levels()[1] == 0
    assert kit.read(kit.size) == b"\0"


@pytest.mark.parametrize("aligned", [True, False])
def test_it_moves_whole_where_it_is_aligned(kit: Huge, aligned: bool) -> None:
    kit.write(0, b"a")
    kit.write(kit.size - 1, b"z")
    target = kit.base + (8 * kit.size if aligned else 8 * kit.size + kit.page)
    request = Remap(kit.base, kit.size, kit.size, MREMAP_MAYMOVE | MREMAP_FIXED, target)
    assert remap_memory(kit.space, request) == target
    found = kit.space.table.find(target)
    assert found is not None
    assert found.level == (2 if aligned else 1)
    assert kit.read(target - kit.base) + kit.read(target - kit.base + kit.size - 1) == b"az"
    kit.write(target - kit.base + kit.page, b"m")
    assert kit.read(target - kit.base + kit.page) == b"m"


def test_a_lock_of_a_part_cuts_it_where_the_areas_part(kit: Huge) -> None:
    kit.write(0, b"a")
    locking.lock_memory(kit.space, kit.base, kit.page, LOCKED)
    assert kit.levels()[0] == 1
    locking.unlock_memory(kit.space, kit.base, kit.page)
    assert kit.read(0) == b"a"


# ---- fork


def test_a_fork_shares_it_and_a_store_copies_one_page(kit: Huge) -> None:
    kit.write(0, b"old")
    kit.write(kit.size - 3, b"end")
    child = kit.fork()
    assert kit.levels() == kit.levels(child) == [2, 0, 0]
    kit.write(0, b"new", child)
    assert kit.levels() == [2, 0, 0]
    assert kit.levels(child) == [1, 0, 0]
    assert kit.events(Event.FAULT_COPY, Event.HUGE_SPLIT) == [1, 1]
    assert kit.read(0, 3) == b"old"
    assert (kit.read(0, 3, child), kit.read(kit.size - 3, 3, child)) == (b"new", b"end")
    kit.write(kit.page, b"p")  # still shared: the parent's is cut as well
    assert kit.levels() == [1, 0, 0]
    assert kit.read(kit.page, 1, child) == b"\0"
    kit.write(0, b"own")  # nobody else has this one any more
    assert kit.events(Event.FAULT_COPY) == [2]


def test_the_last_owner_writes_the_whole_of_it_in_place(kit: Huge) -> None:
    kit.write(0, b"old")
    child = kit.fork()
    kit.end(child)
    kit.write(kit.page, b"x")
    kit.write(0, b"new")
    assert kit.levels() == [2, 0, 0]
    assert kit.events(Event.FAULT_COPY, Event.HUGE_SPLIT, Event.FAULT_UPGRADE) == [0, 0, 1]


def test_a_fork_shares_the_huge_page_of_zeros_too(kit: Huge) -> None:
    kit.read(0)
    child = kit.fork()
    kit.write(0, b"c", child)
    assert kit.read(0) + kit.read(0, 1, child) == b"\0c"


# ---- no room


def test_a_split_without_a_frame_for_its_table_changes_nothing(kit: Huge) -> None:
    kit.write(0, b"x")
    taken = kit.take_all()
    page = kit.base, kit.page
    with pytest.raises(OutOfFrames):
        kit.space.unmap(kit.base, kit.base + kit.page)
    with pytest.raises(OutOfFrames):
        mapping.protect_memory(kit.space, *page, Protection.READ)
    for advice in (mapping.MADV_DONTNEED, mapping.MADV_RANDOM):
        with pytest.raises(OutOfFrames):
            mapping.advise_memory(kit.space, *page, advice)
    assert kit.levels()[0] == 2
    assert len(kit.space.areas) == 1
    kit.give(taken)
    assert kit.read(0) == b"x"


def test_the_heap_stays_where_it_is_if_its_huge_page_cannot_be_cut(kit: Huge) -> None:
    start = kit.base + 8 * kit.size
    kit.space.heap_start = kit.space.heap_end = start
    end = start + 2 * kit.size
    assert mapping.set_break(kit.space, end) == end
    assert fault_in(kit.space, start, WRITE) is RESOLVED
    assert [address for address, _frame in leaves(kit.space)] == [start]
    taken = kit.take_all()
    assert mapping.set_break(kit.space, start + kit.page) == end
    kit.give(taken)
    assert mapping.set_break(kit.space, start + kit.page) == start + kit.page
    assert leaves(kit.space) == []


def test_a_store_that_finds_no_frame_for_the_table_is_out_of_memory(kit: Huge) -> None:
    kit.write(0, b"x")
    child = kit.fork()
    taken = kit.take_all()
    assert fault_in(child, kit.base, WRITE) == OutOfMemory(kit.base)
    kit.give(taken)
    assert fault_in(child, kit.base, WRITE) is RESOLVED


def test_pages_of_zeros_come_back_when_memory_is_out(kit: Huge) -> None:
    kit.write(0, b"a")
    kit.write(kit.size - 1, b"z")
    kit.write(kit.size, b"b")
    taken = kit.take_all()
    tables, last = kit.space.table.tables, kit.base + 3 * kit.size - kit.page
    kit.write(last - kit.base, b"x")
    assert kit.events(Event.HUGE_UNDERUSED, Event.FAULT_OUT_OF_MEMORY)[1] == 0
    assert kit.events(Event.HUGE_UNDERUSED)[0] >= 1
    assert kit.levels()[0] == 1
    assert kit.space.table.tables >= tables + 1
    assert kit.read(0) + kit.read(kit.size - 1) + kit.read(kit.size) + kit.read(last - kit.base) == b"azbx"
    assert kit.read(kit.page) == b"\0"
    kit.write(kit.page, b"y")
    assert kit.read(kit.page) == b"y"
    kit.board.buddy.check()
    kit.give(taken)


def test_huge_pages_that_are_used_stay_whole_when_memory_is_out(name: str) -> None:
    kit = Huge(name)
    kit.write(0, b"a")
    (_, frame) = leaves(kit.space)[0]
    kit.board.ram.array.reshape(-1, kit.page >> 3)[frame : frame + kit.count, 0] = 1
    child = kit.fork()
    kit.write(kit.size, b"b", child)
    (_, other) = leaves(child)[1]
    kit.board.ram.array.reshape(-1, kit.page >> 3)[other : other + kit.count, 0] = 1
    taken = kit.take_all()
    at = kit.base + 2 * kit.size
    assert fault_in(kit.space, at, WRITE) == OutOfMemory(at)
    assert (kit.levels(), kit.levels(child)) == ([2, 0, 0], [2, 2, 0])
    kit.give(taken)
    closed(kit)


# ---- placement


def test_memory_of_whole_huge_pages_begins_where_one_may(kit: Huge) -> None:
    for length in (kit.size, 2 * kit.size):
        at = kit.map(0, length, flags=0)
        assert at % kit.size == 0
    odd = kit.map(0, kit.page, flags=0)
    assert kit.map(0, kit.size, flags=0) % kit.size == 0
    assert kit.map(odd - 8 * kit.size, kit.size, flags=0) == odd - 8 * kit.size  # as asked for
    assert kit.map(0, kit.size + kit.page, flags=0) % kit.size


def test_stacks_get_none(kit: Huge) -> None:
    at = kit.map(0, kit.size, flags=MAP_STACK)
    assert fault_in(kit.space, at, WRITE) is RESOLVED
    assert leaves(kit.space) == []
