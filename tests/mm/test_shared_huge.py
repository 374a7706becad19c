"""Huge pages of shared memory: where they come, who shows them by a leaf, and what ends them."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import numpy as np
import pytest

from aether_emu.arch.paging import Access
from aether_emu.errors import OutOfFrames, Refused
from aether_emu.mm import mapping
from aether_emu.mm.allocation import AreaFlags
from aether_emu.mm.collapse import Scan
from aether_emu.mm.collapse_terms import Terms
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, AccessError
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.hugepage import huge_size, leaves
from aether_emu.mm.mapping import (
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_NOHUGEPAGE,
    MADV_REMOVE,
    Request,
)
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.protection import Protection
from aether_emu.mm.shared_huge import SharedHugePages
from aether_emu.mm.space import AddressSpace
from tests.mm.board import ENGINES, FORMATS, Board, check_accounts, fault_in
from tests.mm.calls import RW
from tests.mm.swap.boards import check_slots, parts, with_swap

READ, WRITE = int(Access.USER | Access.READ), int(Access.USER | Access.WRITE)
SHARED = mapping.MAP_SHARED | mapping.MAP_ANONYMOUS


class Kit:
    """A board with an object of three huge pages, which two spaces show. `odd`: where no leaf fits."""

    def __init__(
        self, name: str, setting: str = "always", orders: tuple[int, ...] = (), swap: int = 0
    ) -> None:
        fmt = FORMATS[name]
        self.size, self.page = huge_size(fmt), fmt.page_size
        self.count = self.size // self.page
        self.board = Board(fmt, ram=8 * self.size, execute=name in ENGINES)
        self.physical = self.board.physical
        self.huge = SharedHugePages(self.physical, fmt, setting=setting, orders=orders)
        self.physical.shared_huge = self.huge
        if swap:
            with_swap(self.board, swap)
        self.memory = SharedMemory(self.physical, 3 * self.count)
        self.memory.hold()
        self.space, self.other = self.board.space(), self.board.space()
        self.base, self.odd = 4 * self.size, 8 * self.size + self.page
        self.show(self.space, self.base)
        self.show(self.other, self.base)

    def show(self, space: AddressSpace, at: int, protection: Protection = RW, *, shared: bool = True) -> None:
        area = space.new_area(at, at + 3 * self.size, protection, shared=shared, backing=self.memory)
        space.replace(area)

    def write(self, va: int, data: bytes, space: AddressSpace | None = None) -> None:
        self.board.run_on(space or self.space)
        self.board.cpu.copy_to_user(va, data)

    def read(self, va: int, length: int = 1, space: AddressSpace | None = None) -> bytes:
        self.board.run_on(space or self.space)
        return bytes(self.board.cpu.copy_from_user(va, length))

    def leaves(self, space: AddressSpace | None = None) -> list[int]:
        return [at for at, _frame in leaves(space or self.space, (Kind.SHARED,))]

    def events(self, *events: Event) -> list[int]:
        return [self.physical.counters.n[event] for event in events]

    def advise(self, first: int, count: int, advice: int, space: AddressSpace | None = None) -> None:
        start = self.base + first * self.page
        mapping.advise_memory(space or self.space, start, count * self.page, advice)

    def close(self) -> None:
        check_accounts(self.board, [self.memory])
        if self.physical.swap is not None:
            check_slots(self.board, [self.memory])
        self.memory.let_go()
        self.board.close()


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def kit(name: str) -> Iterator[Kit]:
    made = Kit(name)
    yield made
    made.close()


def test_a_fault_brings_a_huge_page_that_both_show_whole(kit: Kit) -> None:
    kit.write(kit.base + kit.size + 7, b"x")
    assert kit.leaves() == [kit.base + kit.size]
    assert kit.memory.folios == {kit.count}
    assert kit.read(kit.base + kit.size + 6, 3, kit.other) == b"\0x\0"
    assert kit.leaves(kit.other) == [kit.base + kit.size]
    assert kit.events(Event.SHARED_HUGE, Event.SHARED_HUGE_MAPPED, Event.FAULT_SHARED) == [1, 2, 2]
    kit.write(kit.base + kit.size + 7, b"y", kit.other)
    assert kit.read(kit.base + kit.size + 7) == b"y"
    assert kit.leaves(kit.other) == [kit.base + kit.size]


def test_at_an_odd_address_its_pages_are_shown_one_by_one(kit: Kit) -> None:
    kit.show(kit.other, kit.odd)
    kit.write(kit.odd + kit.size + 1, b"x", kit.other)
    assert kit.leaves(kit.other) == []
    assert not kit.memory.folios
    assert len(kit.memory.frames_by_page()) == 1
    kit.write(kit.base, b"y")
    assert kit.read(kit.odd, 1, kit.other) == b"y"
    kit.write(kit.odd + 5 * kit.page, b"z", kit.other)
    assert kit.read(kit.base + 5 * kit.page) == b"z"
    assert kit.leaves() == [kit.base]
    assert kit.read(kit.base + kit.size + 1) == b"x"
    assert kit.leaves() == [kit.base]


def test_an_area_that_ends_within_shows_pages(kit: Kit) -> None:
    kit.space.unmap(kit.base + kit.size - kit.page, kit.base + kit.size)
    kit.write(kit.base, b"x")
    assert kit.leaves() == []
    kit.write(kit.base, b"y", kit.other)
    assert kit.leaves(kit.other) == []  # the object has a small page there


def test_a_collapse_needs_room_for_a_leaf_in_the_area_and_a_border_in_the_range(kit: Kit) -> None:
    kit.advise(1, kit.count, MADV_COLLAPSE)  # nothing lies in it whole
    with pytest.raises(Refused, match="within one huge page"):
        kit.advise(1, 1, MADV_COLLAPSE)
    kit.show(kit.space, kit.odd)  # its leaves would have to begin at odd pages
    with pytest.raises(Refused, match="no huge page is possible"):
        mapping.advise_memory(kit.space, kit.odd, kit.size, MADV_COLLAPSE)
    kit.space.unmap(kit.base + kit.size - kit.page, kit.base + 3 * kit.size)
    with pytest.raises(Refused, match="no huge page is possible") as refused:
        kit.advise(0, 1, MADV_COLLAPSE)
    assert refused.value.errno == errno.EINVAL
    assert kit.leaves() == []


@pytest.mark.parametrize("setting", SharedHugePages.WORDS)
def test_the_setting_says_where(setting: str) -> None:
    kit = Kit("x86_64", setting)
    kit.write(kit.base, b"x")
    assert bool(kit.leaves()) == (setting in ("always", "within_size", "force"))
    kit.advise(kit.count, kit.count, mapping.MADV_HUGEPAGE)
    kit.write(kit.base + kit.size, b"x")
    assert (kit.base + kit.size in kit.leaves()) == (setting not in ("never", "deny"))
    kit.advise(2 * kit.count, kit.count, MADV_NOHUGEPAGE)
    kit.write(kit.base + 2 * kit.size, b"x")
    assert kit.base + 2 * kit.size not in kit.leaves()
    kit.advise(2 * kit.count, kit.count, mapping.MADV_HUGEPAGE)
    if setting == "deny":
        with pytest.raises(Refused, match="no huge page is possible"):
            kit.advise(2 * kit.count, kit.count, MADV_COLLAPSE)
    else:
        kit.advise(2 * kit.count, kit.count, MADV_COLLAPSE)
    assert (kit.base + 2 * kit.size in kit.leaves()) == (setting != "deny")
    kit.close()


def test_a_process_that_wants_none_shows_pages(kit: Kit) -> None:
    kit.write(kit.base, b"x")
    kit.other.no_huge = True
    assert kit.read(kit.base, 1, kit.other) == b"x"
    assert kit.leaves(kit.other) == []


def test_eligible_is_what_a_fault_would_do(kit: Kit) -> None:
    area = kit.space.areas.find(kit.base)
    assert area is not None
    assert kit.huge.eligible(kit.space, area)
    kit.huge.change("advise")
    assert not kit.huge.eligible(kit.space, area)
    area.flags |= AreaFlags.HUGE
    assert kit.huge.eligible(kit.space, area)
    kit.show(kit.other, kit.odd)
    odd = kit.other.areas.find(kit.odd)
    assert odd is not None
    odd.flags |= AreaFlags.HUGE
    assert not kit.huge.eligible(kit.other, odd)


def test_without_a_block_a_page_comes(kit: Kit) -> None:
    taken, buddy = [], kit.board.buddy
    while True:
        try:
            block = buddy.alloc(kit.huge.order)
        except OutOfFrames:
            break
        buddy.split(block, kit.huge.order)
        buddy.free_bulk(np.arange(block + 1, block + kit.count))
        taken.append(block)
    kit.write(kit.base, b"x")
    assert kit.leaves() == []
    assert len(kit.memory.frames_by_page()) == 1
    assert kit.events(Event.SHARED_HUGE_FALLBACK) == [1]
    buddy.free_bulk(taken)


def test_an_edit_of_a_part_splits_one_leaf_and_leaves_the_other(kit: Kit) -> None:
    for space in (kit.space, kit.other):
        kit.write(kit.base, b"x", space)
    mapping.protect_memory(kit.space, kit.base + kit.page, kit.page, Protection.READ)
    assert (kit.leaves(), kit.leaves(kit.other)) == ([], [kit.base])
    assert kit.memory.folios == {0}
    kit.write(kit.base + 2 * kit.page, b"y", kit.other)
    assert kit.read(kit.base + 2 * kit.page) == b"y"


def test_a_leaf_that_may_be_written_again_stays_whole(kit: Kit) -> None:
    kit.write(kit.base, b"x")
    for wanted in (Protection.READ, RW):
        mapping.protect_memory(kit.space, kit.base, 3 * kit.size, wanted)
    kit.write(kit.base + kit.page, b"y")
    assert kit.leaves() == [kit.base]


def test_a_hole_ends_a_huge_page_everywhere(kit: Kit) -> None:
    for space in (kit.space, kit.other):
        kit.write(kit.base + 3 * kit.page, b"x", space)
        kit.write(kit.base + kit.size, b"z", space)
    free = kit.board.buddy.free_frames
    kit.advise(3, 1, MADV_REMOVE)
    assert (kit.leaves(), kit.leaves(kit.other)) == ([kit.base + kit.size], [kit.base + kit.size])
    assert kit.memory.folios == {kit.count}
    assert kit.board.buddy.free_frames == free + 1 - 2  # two tables
    assert kit.read(kit.base + 3 * kit.page, 1, kit.other) == b"\0"
    kit.advise(0, kit.count, MADV_REMOVE)
    assert kit.memory.folios == {kit.count}
    kit.write(kit.base, b"n")
    assert kit.base in kit.leaves()


def test_what_is_dropped_by_one_is_found_again_whole(kit: Kit) -> None:
    kit.write(kit.base, b"x")
    kit.advise(0, kit.count, MADV_DONTNEED)
    assert kit.leaves() == []
    assert kit.read(kit.base) == b"x"
    assert kit.leaves() == [kit.base]


def test_a_private_view_copies_a_page_and_shows_the_rest(kit: Kit) -> None:
    kit.write(kit.base, b"x")
    kit.show(kit.other, kit.base, shared=False)
    assert kit.read(kit.base, 1, kit.other) == b"x"
    assert kit.leaves(kit.other) == [kit.base]
    kit.write(kit.base + kit.page, b"own", kit.other)
    assert kit.leaves(kit.other) == []
    assert kit.read(kit.base + kit.page, 3) == bytes(3)
    kit.write(kit.base + 2 * kit.page, b"y")
    assert kit.read(kit.base + kit.page, 3, kit.other) == b"own"
    assert kit.read(kit.base + 2 * kit.page, 1, kit.other) == b"y"


@pytest.mark.parametrize("name", ["x86_64", "arm64-4K", "arm64-16K"])
def test_pages_of_it_go_to_swap_and_a_collapse_brings_them_back(name: str) -> None:
    kit = Kit(name, swap=64)
    kit.show(kit.other, kit.odd)
    kit.write(kit.base + kit.page, b"one")
    kit.read(kit.odd + kit.page, 1, kit.other)
    _swap, reclaim = parts(kit.board)
    frames = kit.memory.frames_by_page()
    assert reclaim.take([frames[1], frames[2]]) == 2
    assert kit.memory.folios == set()
    assert kit.leaves() == []
    check_slots(kit.board, [kit.memory])
    assert kit.read(kit.odd + kit.page, 3, kit.other) == b"one"
    kit.advise(0, kit.count, MADV_COLLAPSE)
    assert kit.leaves() == [kit.base]
    assert kit.memory.swapped(0, kit.count) == 0
    assert kit.read(kit.base + kit.page, 3) == kit.read(kit.odd + kit.page, 3, kit.other) == b"one"
    kit.close()


def test_the_scan_collapses_what_grew_page_by_page(kit: Kit) -> None:
    kit.huge.change("never")
    for page in range(0, 6, 2):
        kit.write(kit.base + page * kit.page, b"%d" % page, kit.other)
    scan = Scan(kit.physical, Terms(kit.count - 4, kit.count), 4 * kit.count)
    assert scan.look([kit.space, kit.other]) == 0
    kit.huge.change("always")
    assert scan.look([kit.space, kit.other]) == 0  # one absent too many
    kit.write(kit.base + kit.page, b"1", kit.other)
    assert scan.look([kit.space, kit.other]) == 1
    assert kit.leaves(kit.other) == [kit.base]
    assert [kit.read(kit.base + page * kit.page) for page in range(5)] == [b"0", b"1", b"2", b"\0", b"4"]


def test_a_collapse_leaves_a_page_alone_that_somebody_holds(kit: Kit) -> None:
    kit.huge.change("never")
    kit.write(kit.base, b"x")
    frame = kit.memory.frames_by_page()[0]
    kit.board.frames.refs[frame] += 1
    with pytest.raises(Refused, match="for a while"):
        kit.advise(0, kit.count, MADV_COLLAPSE)
    kit.board.frames.refs[frame] -= 1
    assert kit.leaves() == []


def test_a_collapse_leaves_a_range_alone_that_has_a_guard(kit: Kit) -> None:
    kit.huge.change("never")
    for page in range(kit.count):
        kit.write(kit.base + page * kit.page, b"x")
    kit.advise(3, 1, MADV_GUARD_INSTALL)
    with pytest.raises(Refused):
        kit.advise(0, kit.count, MADV_COLLAPSE)
    assert kit.leaves() == []
    kit.advise(3, 1, MADV_GUARD_REMOVE)
    kit.advise(0, kit.count, MADV_COLLAPSE)
    assert kit.leaves() == [kit.base]


def test_a_guard_in_the_midst_of_a_huge_page_cuts_the_leaf_of_who_asked(kit: Kit) -> None:
    kit.write(kit.base, b"x")
    kit.write(kit.base + 5 * kit.page, b"y", kit.other)
    assert kit.leaves() == kit.leaves(kit.other) == [kit.base]
    kit.advise(5, 1, MADV_GUARD_INSTALL)
    assert (kit.leaves(), kit.leaves(kit.other)) == ([], [kit.base])
    assert fault_in(kit.space, kit.base + 5 * kit.page, READ) == AccessError(kit.base + 5 * kit.page, False)
    assert kit.read(kit.base) + kit.read(kit.base + 5 * kit.page, space=kit.other) == b"xy"
    kit.advise(0, kit.count, MADV_GUARD_INSTALL)
    kit.advise(0, kit.count, MADV_GUARD_REMOVE)
    assert kit.read(kit.base) + kit.read(kit.base + 5 * kit.page) == b"xy"


@pytest.mark.parametrize("name", ["arm64-4K", "invented"])
def test_runs_of_pages_are_shown_with_the_hint_where_they_lie_alike(name: str) -> None:
    order = 4
    kit = Kit(name, orders=(order,))
    kit.show(kit.other, kit.base + 16 * kit.page)  # aligned as runs are, not as huge pages
    kit.write(kit.base + 20 * kit.page, b"x")
    kit.write(kit.base + 16 * kit.page + 20 * kit.page, b"y", kit.other)
    fmt = kit.board.format
    found = kit.other.table.find(kit.base + 36 * kit.page)
    assert found is not None
    assert found.level == 1
    if fmt.levels[0].contiguous == 1 << order:
        assert found.entry & fmt.contiguous_bit
    assert kit.leaves() == [kit.base]
    assert kit.read(kit.base + 20 * kit.page) == b"y"
    area = kit.other.areas.find(kit.base + 36 * kit.page)
    assert area is not None
    mapping.protect_memory(kit.other, kit.base + 36 * kit.page, kit.page, Protection.READ)
    found = kit.other.table.find(kit.base + 37 * kit.page)
    assert found is not None
    assert not found.entry & fmt.contiguous_bit
    kit.close()


def test_memory_is_placed_as_huge_pages_lie_in_it(kit: Kit) -> None:
    at = mapping.map_memory(kit.space, Request(0, 2 * kit.size + kit.page, RW, SHARED, None, 0))
    assert not at & kit.size - 1
    assert fault_in(kit.space, at, WRITE) is RESOLVED
    assert at in kit.leaves()
    kit.huge.change("never")
    plain = mapping.map_memory(kit.space, Request(0, kit.size, RW, SHARED, None, 0))
    assert plain + kit.size == at  # as closely as it fits
    kit.space.unmap(plain, at + 2 * kit.size + kit.page)


def test_the_state_says_which_pages_are_huge(kit: Kit) -> None:
    kit.write(kit.base, b"x")
    state = kit.memory.capture()
    twin = SharedMemory(kit.physical, 3 * kit.count)
    twin.go_on(kit.physical.objects.last + 1, state)
    assert twin.folios == {0}
    assert twin.row(0, kit.count) == kit.memory.row(0, kit.count)
    twin.go_on(twin.number, {"frames": {}, "slots": {}, "folios": (1, [])})
    twin.hold()
    twin.let_go()
