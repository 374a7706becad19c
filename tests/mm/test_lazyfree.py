"""MADV_FREE: what stays, what takes a page back, what goes when memory is short, and in which order."""

from __future__ import annotations

import pytest

from aether_emu.arch.paging import Access
from aether_emu.mm import ageing, locking, mapping
from aether_emu.mm.allocation import LOCKED
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED
from aether_emu.mm.mapping import MADV_FREE, MAP_FIXED
from aether_emu.mm.physical import Reclaiming
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.user import ForcedMemory
from tests.mm.board import ENGINES, FORMATS, Board, check_accounts, fault_in
from tests.mm.calls import ANONYMOUS, RW, mmap
from tests.mm.swap.boards import with_swap
from tests.mm.test_hugepage import Huge

AT, ELSEWHERE, PAGES = 0x1000_0000, 0x2000_0000, 16
every_format = pytest.mark.parametrize("kind", FORMATS)
each_order = pytest.mark.parametrize("order", ["mglru", "clock", None], ids=["mglru", "clock", "no-swap"])


class Freed:
    """A board with a space of some pages, each of its own bytes, which were freed lazily."""

    def __init__(self, kind: str = "x86_64", order: str | None = None) -> None:
        self.board = Board(FORMATS[kind], cpus=2)
        if order is not None:
            with_swap(self.board, 64, order=order)
        self.n, self.size = self.board.physical.counters.n, self.board.format.page_size
        self.space = self.board.space(user_base=self.size)
        self.board.run_on(self.space)
        mmap(self.space, AT, PAGES, RW, ANONYMOUS | MAP_FIXED)
        for number in range(PAGES):
            self.write(number, self.right(number))
        self.free()

    @property
    def reclaim(self) -> Reclaiming:
        assert self.board.physical.reclaim is not None
        return self.board.physical.reclaim

    def at(self, number: int) -> int:
        return AT + number * self.size

    def right(self, number: int) -> bytes:
        return bytes([number + 1, number + 7]) * 8

    def free(self, first: int = 0, count: int = PAGES) -> None:
        mapping.advise_memory(self.space, self.at(first), count * self.size, MADV_FREE)

    def write(self, number: int, what: bytes, space: AddressSpace | None = None) -> None:
        self.board.run_on(space or self.space)
        self.board.cpu.copy_to_user(self.at(number), what)

    def holds(self, space: AddressSpace | None = None) -> str:
        """`=` for a page that has its bytes, `0` for one of zeros, `?` for another."""
        self.board.run_on(space or self.space)
        found = [bytes(self.board.cpu.copy_from_user(self.at(number), 16)) for number in range(PAGES)]
        known = {bytes(16): "0"}
        return "".join(
            "=" if each == self.right(number) else known.get(each, "?") for number, each in enumerate(found)
        )


@each_order
@every_format
def test_pages_stay_until_memory_is_short_and_go_without_a_slot(kind: str, order: str | None) -> None:
    made = Freed(kind, order)
    assert made.holds() == "=" * PAGES
    assert made.n[Event.LAZY_FREE] == PAGES
    made.write(3, b"x" * 16)
    free = made.board.buddy.free_frames
    made.reclaim.lazy.drop(PAGES)
    assert made.board.buddy.free_frames == free + PAGES - 1
    assert made.holds() == "000?" + "0" * (PAGES - 4)
    assert made.n[Event.LAZY_FREED] == PAGES - 1
    assert made.n[Event.SWAP_OUT] == 0
    assert not len(made.reclaim.lazy)
    check_accounts(made.board, [])
    made.board.close()


@each_order
def test_a_fault_takes_them_first_and_in_their_order(order: str | None) -> None:
    made = Freed(order=order)
    held = [made.board.buddy.alloc() for _ in range(made.board.buddy.free_frames)]
    mmap(made.space, ELSEWHERE, 1, RW, ANONYMOUS | MAP_FIXED)
    assert fault_in(made.space, ELSEWHERE, int(Access.USER | Access.WRITE)) is RESOLVED
    assert made.n[Event.LAZY_FREED] == PAGES
    assert made.n[Event.SWAP_OUT] == 0
    for frame in held:
        made.board.buddy.free(frame)
    other = Freed(order=order)
    other.free(8, 1)  # a second time changes nothing of the order
    assert other.n[Event.LAZY_FREE] == PAGES
    assert other.reclaim.lazy.drop_of(other.reclaim.lazy.capture()[:8]) == 8
    assert other.holds() == "0" * 8 + "=" * 8
    for each in (made, other):
        each.board.close()


@pytest.mark.parametrize("kind", ENGINES)
def test_a_huge_page_goes_as_one_and_is_split_where_only_a_part_was_freed(kind: str) -> None:
    made = Huge(kind)
    board, n, base = made.board, made.board.physical.counters.n, made.base
    made.write(0, b"one")
    made.write(made.size, b"two")
    mapping.advise_memory(made.space, base, made.size, MADV_FREE)
    assert made.levels() == [2, 2, 0]
    held = [board.buddy.alloc() for _ in range(board.buddy.free_frames)]  # no table for a split either
    assert board.physical.reclaim is not None
    assert board.physical.reclaim.lazy.drop(1) == made.count
    assert made.levels() == [0, 2, 0]
    for frame in held:
        board.buddy.free(frame)
    mapping.advise_memory(made.space, base + made.size + made.page, made.page, MADV_FREE)
    assert made.levels() == [0, 1, 0]
    assert board.physical.reclaim.lazy.drop(made.count) == 1
    assert made.read(made.size, 3) == b"two"
    mapping.advise_memory(made.space, base + made.size, made.size, MADV_FREE)
    assert n[Event.LAZY_FREE] == 2 * made.count
    board.close()


@pytest.mark.parametrize("kind", ENGINES)
def test_one_store_takes_all_of_a_huge_page_back(kind: str) -> None:
    made = Huge(kind)
    made.write(0, b"one")
    mapping.advise_memory(made.space, made.base, made.size, MADV_FREE)
    made.write(made.size // 2, b"back")
    assert made.board.physical.reclaim is not None
    assert made.board.physical.reclaim.lazy.drop(1) == 0
    assert made.read(0, 3) == b"one"
    made.board.close()


@every_format
def test_a_page_that_two_processes_show_goes_when_it_is_clean_for_both(kind: str) -> None:
    made = Freed(kind)
    child = made.space.fork()
    made.board.spaces.append(child)
    made.write(1, b"x" * 16, child)
    assert made.reclaim.lazy.drop(PAGES) == PAGES
    assert made.holds(child) == "0?" + "0" * (PAGES - 2)
    assert made.holds() == "0" * PAGES
    for number in range(PAGES):
        made.write(number, made.right(number))
    other = made.space.fork()
    made.board.spaces.append(other)
    made.free()
    assert made.reclaim.lazy.drop(PAGES) == 0  # what was stored before the fork is the other's still
    assert made.holds(other) == "=" * PAGES
    made.board.close()


def test_what_a_debugger_stores_and_what_is_locked_since_stays() -> None:
    made = Freed()
    made.space.protect(made.space.areas.find(AT), AT, made.at(1), Protection.READ)  # type: ignore[arg-type]
    ForcedMemory(made.space).write(AT, b"y" * 16)
    locking.lock_memory(made.space, made.at(2), made.size, LOCKED)
    assert made.reclaim.lazy.drop(PAGES) == PAGES - 2
    assert made.holds() == "?0=" + "0" * (PAGES - 3)
    made.board.close()


def test_what_is_in_swap_goes_at_once_and_what_is_cached_loses_its_slot() -> None:
    made = Freed(order="mglru")
    for number in range(PAGES):
        made.write(number, made.right(number))
    frames = ageing.look(made.space, AT, made.at(PAGES)).frames.tolist()
    assert made.reclaim.take(frames) == PAGES
    made.board.cpu.copy_from_user(made.at(2), 1)
    swap = made.board.physical.swap
    assert swap is not None
    made.free()
    assert (swap.used, swap.cached) == (0, 0)
    assert made.holds() == "00=" + "0" * (PAGES - 3)
    made.reclaim.lazy.drop(PAGES)
    assert made.holds() == "0" * PAGES
    made.board.close()


@each_order
def test_what_was_freed_is_captured_in_its_order(order: str | None) -> None:
    made = Freed(order=order)
    state = made.board.physical.capture()
    frames = made.reclaim.lazy.capture()
    made.reclaim.lazy.forget(frames)
    if order is None:
        made.board.physical.reclaim = None
    made.board.physical.restore(state)
    assert made.reclaim.lazy.capture() == frames
    made.board.close()
