"""Locked memory: what may not take it away, where the lock goes along, and how much may be locked."""

from __future__ import annotations

import errno

import pytest

from aether_emu.errors import Refused
from aether_emu.mm import locking, mapping, stack
from aether_emu.mm.allocation import LOCK_ON_FAULT, LOCKED, LOCKS
from aether_emu.mm.mapping import (
    MADV_COLD,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_PAGEOUT,
    MADV_REMOVE,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MS_INVALIDATE,
    MS_SYNC,
)
from aether_emu.mm.remap import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE
from aether_emu.mm.space import AddressSpace
from tests.mm.board import Board
from tests.mm.calls import ANONYMOUS, RW, Make, areas, mmap, mremap, refusal

AT = 0x4000_0000
WORD = 1 << 64


def locks(space: AddressSpace, at: int, pages: int) -> str:
    """A letter for each page: l locked, f locked when it is touched, - neither, and a blank in holes."""
    found = ""
    for number in range(pages):
        area = space.areas.find(at + number * space.page_size)
        letters = {None: " ", 0: "-", LOCKED: "l", LOCKS: "f"}
        found += letters[None if area is None else area.flags & LOCKS]
    return found


def lock(space: AddressSpace, at: int, pages: int, flags: int = LOCKED) -> None:
    locking.lock_memory(space, at, pages * space.page_size, flags)


def fixed(space: AddressSpace, pages: int, flags: int = 0, protection: int = RW) -> int:
    return mmap(space, AT, pages, protection, ANONYMOUS | MAP_FIXED | flags)


@pytest.mark.parametrize("advice", [MADV_DONTNEED, MADV_FREE, MADV_COLD, MADV_PAGEOUT, MADV_REMOVE])
def test_no_advice_takes_locked_pages_away(make: Make, page: int, plain: Board, advice: int) -> None:
    space = make()
    at = fixed(space, 4)
    plain.cpu.copy_to_user(at, b"kept")
    lock(space, at, 1)
    assert refusal(lambda: mapping.advise_memory(space, at, 4 * page, advice)) == "EINVAL"
    assert plain.cpu.copy_from_user(at, 4) == b"kept"


def test_what_is_before_the_locked_part_is_dropped(make: Make, page: int, plain: Board) -> None:
    space = make()
    at = fixed(space, 2)
    plain.cpu.copy_to_user(at, b"a" * 2 * page)
    lock(space, at + page, 1)
    assert refusal(lambda: mapping.advise_memory(space, at, 2 * page, MADV_DONTNEED)) == "EINVAL"
    assert plain.cpu.copy_from_user(at + page - 1, 2) == b"\0a"


def test_pages_go_where_the_advice_says_even_if_locked(make: Make, page: int, plain: Board) -> None:
    space = make()
    at = fixed(space, 1)
    plain.cpu.copy_to_user(at, b"gone")
    lock(space, at, 1)
    mapping.advise_memory(space, at, page, MADV_DONTNEED_LOCKED)
    assert plain.cpu.copy_from_user(at, 4) == bytes(4)


def test_locked_memory_is_not_invalidated(make: Make, page: int) -> None:
    space = make()
    at = fixed(space, 2)
    lock(space, at + page, 1)
    assert refusal(lambda: mapping.sync_memory(space, at, 2 * page, MS_INVALIDATE)) == "EBUSY"
    mapping.sync_memory(space, at, page, MS_INVALIDATE)
    mapping.sync_memory(space, at, 2 * page, MS_SYNC)


def test_a_lock_cuts_an_area_and_its_end_makes_it_whole(make: Make, page: int) -> None:
    space = make()
    at = fixed(space, 5)
    lock(space, at + page, 2)
    lock(space, at + 3 * page, 1, LOCKS)
    assert (locks(space, at, 5), space.account.locked) == ("-llf-", 3 * page)
    mapping.protect_memory(space, at + 2 * page, 2 * page, 1)
    assert (locks(space, at, 5), space.account.locked) == ("-llf-", 3 * page)
    mapping.protect_memory(space, at + 2 * page, 2 * page, RW)
    space.unmap(at + page, at + 2 * page)
    assert (locks(space, at, 5), space.account.locked) == ("- lf-", 2 * page)
    locking.unlock_memory(space, at + 2 * page, 3 * page)
    assert (areas(space), space.account.locked) == ([(at, 1), (at + 2 * page, 3)], 0)


@pytest.mark.parametrize(
    ("flags", "left"), [(0, "    "), (MREMAP_DONTUNMAP, "----")], ids=["moved", "and the source stays"]
)
def test_a_lock_moves_with_its_pages(make: Make, page: int, flags: int, left: str) -> None:
    space = make()
    at = fixed(space, 4)
    lock(space, at, 4, LOCKS)
    to = mremap(space, at, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED | flags, AT + 64 * page)
    assert (locks(space, to, 4), locks(space, at, 4)) == ("ffff", left)
    assert space.account.locked == 4 * page


def test_what_a_locked_area_grows_by_is_locked(make: Make, page: int) -> None:
    space = make()
    at = fixed(space, 1)
    lock(space, at, 1)
    assert mremap(space, at, 1, 3) == at
    assert (locks(space, at, 4), space.account.locked) == ("lll ", 3 * page)


def test_a_locked_stack_grows_locked_and_as_far_as_the_limit(make: Make, page: int, plain: Board) -> None:
    space = make(stack=1 << 30)
    at = fixed(space, 1, MAP_GROWSDOWN)
    lock(space, at, 1)
    space.limits.locked = 2 * page
    assert stack.grow(space, at - 2 * page) is None
    assert stack.grow(space, at - page) is not None
    assert (locks(space, at - page, 2), space.account.locked) == ("ll", 2 * page)


# ---- ranges


@pytest.mark.parametrize(
    "action", [lock, lambda space, at, _pages: locking.unlock_memory(space, at, page_of(space))]
)
def test_a_hole_ends_a_lock_where_it_is(make: Make, page: int, action: object) -> None:
    space = make()
    at = fixed(space, 1)
    assert callable(action)
    assert refusal(lambda: lock(space, at, 2)) == "ENOMEM"
    assert refusal(lambda: locking.unlock_memory(space, at - page, 2 * page)) == "ENOMEM"
    assert locks(space, at, 2) == "l "
    locking.lock_memory(space, at - page, 0, LOCKED)  # an empty range has no holes


def page_of(space: AddressSpace) -> int:
    return space.page_size


def test_ranges_are_rounded_as_linux_rounds_them(make: Make, page: int) -> None:
    space = make()
    at = fixed(space, 3)
    locking.lock_memory(space, at + page - 1, 2, LOCKED)
    assert locks(space, at, 3) == "ll-"
    locking.unlock_memory(space, at, WORD - 1)  # rounds up to no bytes at all
    assert locks(space, at, 3) == "ll-"
    assert refusal(lambda: locking.unlock_memory(space, at, WORD - 1 - page)) == "EINVAL"
    assert refusal(lambda: locking.lock_memory(space, at, WORD - 1 - page, LOCKED)) == "EINVAL"


# ---- everything


@pytest.mark.parametrize("flags", [0, 4, 8, 16, 1 | 8])
def test_locking_everything_refuses_flags_that_say_nothing(make: Make, flags: int) -> None:
    assert refusal(lambda: locking.lock_all(make(), flags)) == "EINVAL"


@pytest.mark.parametrize(
    ("flags", "now", "later"), [(1, "l", "-"), (2, "-", "l"), (3, "l", "l"), (5, "f", "-"), (6, "-", "f")]
)
def test_locking_everything_is_for_what_is_there_and_what_will_be(
    make: Make, page: int, flags: int, now: str, later: str
) -> None:
    space = make()
    at = fixed(space, 1)
    space.heap_start = space.heap_end = AT + 64 * page
    locking.lock_all(space, flags)
    new = mmap(space, at + 8 * page, 1, RW, ANONYMOUS | MAP_FIXED)
    heap = space.heap_end
    assert mapping.set_break(space, heap + page) == heap + page
    assert (locks(space, at, 1), locks(space, new, 1), locks(space, heap, 1)) == (now, later, later)
    assert space.has_own_pages(new, new + page) == (later == "l"), "what is locked is there at once"
    locking.unlock_all(space)
    assert space.account.locked == 0
    assert locks(space, mmap(space, 0, 1), 1) == "-"


def test_asking_for_the_future_alone_forgets_no_lock(make: Make) -> None:
    space = make()
    at = fixed(space, 1)
    lock(space, at, 1)
    locking.lock_all(space, locking.MCL_FUTURE)
    assert locks(space, at, 1) == "l"


# ---- the limit


def test_no_more_is_locked_than_the_limit(make: Make, page: int) -> None:
    space = make()
    at = fixed(space, 8)
    space.limits.locked = 3 * page + 1
    lock(space, at, 2)
    lock(space, at + page, 2)  # what is locked already does not count twice
    assert refusal(lambda: lock(space, at, 4)) == "ENOMEM"
    assert refusal(lambda: mmap(space, 0, 1, RW, ANONYMOUS | MAP_LOCKED)) == "EAGAIN"
    assert refusal(lambda: mremap(space, at + 2 * page, 1, 2, MREMAP_MAYMOVE)) == "EAGAIN"
    assert refusal(lambda: locking.lock_all(space, locking.MCL_CURRENT)) == "ENOMEM"
    assert locks(space, at, 8) == "lll-----"
    locking.lock_all(space, locking.MCL_FUTURE)
    space.heap_start = space.heap_end = AT + 64 * page
    assert mapping.set_break(space, space.heap_end + page) == AT + 64 * page
    locking.unlock_memory(space, at, page)
    assert mapping.set_break(space, space.heap_end + page) == AT + 65 * page


def test_without_a_limit_to_lock_nothing_may_be_locked(make: Make, page: int) -> None:
    space = make()
    at = fixed(space, 1)
    space.limits.locked = 0
    assert refusal(lambda: lock(space, at, 1)) == "EPERM"
    assert refusal(lambda: locking.lock_all(space, locking.MCL_CURRENT)) == "EPERM"
    assert refusal(lambda: mmap(space, 0, 1, RW, ANONYMOUS | MAP_LOCKED)) == "EPERM"
    locking.unlock_memory(space, at, page)


def test_a_lock_that_needs_one_area_too_many_changes_nothing(make: Make, page: int) -> None:
    space = make(areas=2)
    at = fixed(space, 3)
    with pytest.raises(Refused) as refused:
        lock(space, at + page, 1)
    assert refused.value.errno == errno.ENOMEM
    assert (locks(space, at, 3), len(space.areas)) == ("---", 1)


def test_locked_memory_that_becomes_writable_gets_its_copies_at_once(
    make: Make, page: int, plain: Board
) -> None:
    """Else a store to it would fault, which is what the lock is to prevent."""
    space = make()
    at = fixed(space, 2, protection=1)
    assert plain.cpu.copy_from_user(at, 1) == b"\0"  # the shared page of zeros
    lock(space, at, 1)
    mapping.protect_memory(space, at, 2 * page, RW)
    assert [space.has_own_pages(at + n * page, at + (n + 1) * page) for n in range(2)] == [True, False]
    lock(space, at + page, 1, LOCKED | LOCK_ON_FAULT)
