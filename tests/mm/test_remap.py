"""mremap, rule by rule: what it refuses, what it takes along, and that a move that fails moves nothing."""

from __future__ import annotations

import errno
from functools import partial

import pytest

from aether_emu.arch.paging import Access
from aether_emu.errors import Refused
from aether_emu.mm import mapping
from aether_emu.mm.fault import AccessError
from aether_emu.mm.mapping import MAP_FIXED, MAP_GROWSDOWN
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE, Remap, remap_memory
from aether_emu.ports import NEVER_FAILS
from tests.mm.board import Board, check_accounts, fault_in
from tests.mm.calls import ANONYMOUS, RW, Make, areas, mmap, mremap, refusal
from tests.mm.tables.test_page import FailsAt

READ = Protection.READ
USER_READ = int(Access.READ | Access.USER)


@pytest.mark.parametrize(
    ("old", "new", "flags", "target", "expected"),
    [
        (2, 2, 8, None, "EINVAL"),
        (2, 2, MREMAP_FIXED, 0x500_0000, "EINVAL"),
        (2, 3, MREMAP_DONTUNMAP | MREMAP_MAYMOVE, None, "EINVAL"),
        (2, 2, MREMAP_DONTUNMAP, None, "EINVAL"),
        (2, 0, MREMAP_MAYMOVE, None, "EINVAL"),
        (0, 2, MREMAP_MAYMOVE, None, "EINVAL"),  # only shared memory is duplicated
        (3, 4, MREMAP_MAYMOVE, None, "EFAULT"),
        (2, 3, 0, None, "ENOMEM"),  # an area follows
        (2, 2, MREMAP_FIXED | MREMAP_MAYMOVE, 0x500_0001, "EINVAL"),
        (2, 2, MREMAP_FIXED | MREMAP_MAYMOVE, "second page", "EINVAL"),  # overlaps itself
        (2, 2, MREMAP_FIXED | MREMAP_MAYMOVE, "top", "EINVAL"),
        (2, 2, MREMAP_FIXED | MREMAP_MAYMOVE, "first page", "EPERM"),
        (2, 2, MREMAP_DONTUNMAP | MREMAP_MAYMOVE, 0x500_0001, "EINVAL"),  # a hint, but checked
        (1 << 50, 1, 0, None, "EINVAL"),  # would unmap beyond the user half
    ],
)
def test_what_mremap_refuses(
    make: Make, page: int, top: int, old: int, new: int, flags: int, target: int | str | None, expected: str
) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 2)
    mmap(space, at + 2 * page, 1, READ)
    before = areas(space)
    named = {None: 0, "second page": at + page, "top": top, "first page": page}
    to = target if isinstance(target, int) else named[target]
    assert refusal(lambda: mremap(space, at, old, new, flags, to)) == expected
    assert areas(space) == before


def test_lengths_that_wrap_around_are_no_lengths(make: Make, page: int) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 2)
    for old, new in (((1 << 64) - 1, page), (page, (1 << 64) - 1)):
        request = Remap(at, old, new, MREMAP_MAYMOVE, 0)
        assert refusal(partial(remap_memory, space, request)) == "EINVAL"
    assert refusal(lambda: remap_memory(space, Remap(at + 1, page, page, 0, 0))) == "EINVAL"
    assert refusal(lambda: mremap(space, at + 9 * page, 1, 1)) == "EFAULT"


def test_growing_in_place_may_reach_a_growing_area_itself(make: Make, page: int) -> None:
    space = make()
    stack = mmap(space, 0x1000_0000, 1, RW, ANONYMOUS | MAP_GROWSDOWN)
    at = mmap(space, stack - 16 * page, 1, RW, ANONYMOUS | MAP_FIXED)
    assert mremap(space, at, 1, 16) == at
    assert refusal(lambda: mremap(space, at, 16, 17)) == "ENOMEM"


def test_growing_in_place_may_reach_the_end_of_the_user_half(make: Make, page: int, top: int) -> None:
    space = make()
    at = mmap(space, top - 2 * page, 1, RW, ANONYMOUS | MAP_FIXED)
    assert mremap(space, at, 1, 2) == at
    assert refusal(lambda: mremap(space, at, 2, 3)) == "ENOMEM"
    assert areas(space) == [(at, 2)]


def test_moving_takes_pages_along_and_leaves_nothing(make: Make, page: int, plain: Board) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 2)
    mmap(space, at + 2 * page, 1, READ)
    plain.cpu.copy_to_user(at + page, b"moved")
    to = mremap(space, at, 2, 5, MREMAP_MAYMOVE)
    assert plain.cpu.copy_from_user(to + page, 6) == b"moved\0"
    assert space.areas.find(at) is None
    assert fault_in(space, at + page, USER_READ) == AccessError(at + page, mapped=False)
    check_accounts(plain, [])


def test_moving_without_unmapping_leaves_an_empty_area_and_takes_the_hint(make: Make, plain: Board) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 2)
    plain.cpu.copy_to_user(at, b"moved")
    hint = 0x11_0000_0000
    assert mremap(space, at, 2, 2, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, hint) == hint
    assert plain.cpu.copy_from_user(hint, 5) == b"moved"
    assert plain.cpu.copy_from_user(at, 5) == bytes(5)


def test_a_move_onto_another_part_of_the_same_area(make: Make, page: int, plain: Board) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 8)
    for n in range(8):
        plain.cpu.copy_to_user(at + n * page, b"%d" % n)
    assert mremap(space, at, 2, 2, MREMAP_MAYMOVE | MREMAP_FIXED, at + 5 * page) == at + 5 * page
    seen = [plain.cpu.copy_from_user(at + n * page, 1) for n in range(2, 8)]
    assert seen == [b"2", b"3", b"4", b"0", b"1", b"7"]
    # Three, as on Linux: pages keep the index they were made with, and here the numbers jump.
    assert areas(space) == [(at + 2 * page, 3), (at + 5 * page, 2), (at + 7 * page, 1)]


def test_a_move_needs_only_what_it_adds_of_the_limits(make: Make, page: int) -> None:
    space = make(address_space=8 * page)
    at = mmap(space, 0x100_0000, 5)
    mmap(space, at + 5 * page, 1, READ)
    assert refusal(lambda: mremap(space, at, 5, 8, MREMAP_MAYMOVE)) == "ENOMEM"
    to = mremap(space, at, 5, 7, MREMAP_MAYMOVE)
    assert to != at
    assert space.account.reserved == 8 * page
    assert refusal(lambda: mremap(space, to, 7, 7, MREMAP_MAYMOVE | MREMAP_DONTUNMAP)) == "ENOMEM"


@pytest.mark.parametrize("limit", range(1, 8))
def test_a_move_that_needs_too_many_areas_moves_nothing(
    make: Make, page: int, plain: Board, limit: int
) -> None:
    space = make(areas=limit)
    at = mmap(space, 0x100_0000, 6)
    plain.cpu.copy_to_user(at + 2 * page, b"stays")
    try:
        to = mremap(space, at + 2 * page, 1, 2, MREMAP_MAYMOVE)
    except Refused as refused:
        assert refused.errno == errno.ENOMEM
        assert areas(space) == [(at, 6)]
        to = at + 2 * page
    else:
        assert limit >= 3
        assert len(space.areas) == 3
    assert plain.cpu.copy_from_user(to, 5) == b"stays"


@pytest.mark.parametrize("fails", range(4))
@pytest.mark.parametrize("fixed", [False, True])
def test_a_move_without_memory_for_tables_moves_nothing(
    make: Make, page: int, plain: Board, fails: int, fixed: bool
) -> None:
    """Source and target span two leaf tables: the second allocation fails after the first succeeded."""
    space, span = make(), 512 * page
    at = mmap(space, 16 * span - 2 * page, 4)
    mmap(space, at + 4 * page, 1, READ)
    for n in range(4):
        plain.cpu.copy_to_user(at + n * page, b"%d" % n)
    target = (1 << 36) - 2 * page
    flags = MREMAP_MAYMOVE | (MREMAP_FIXED if fixed else MREMAP_DONTUNMAP)
    plain.buddy.failures = FailsAt(fails)
    try:
        at = mremap(space, at, 4, 4, flags, target)
    except Refused as refused:
        assert refused.errno == errno.ENOMEM
        assert [n for _first, n in areas(space)] == [4, 1]
    finally:
        plain.buddy.failures = NEVER_FAILS
    assert b"".join(plain.cpu.copy_from_user(at + n * page, 1) for n in range(4)) == b"0123"
    check_accounts(plain, [])


def test_what_moves_out_of_the_heap_is_no_heap(make: Make, page: int) -> None:
    space, start = make(), 0x100_0000
    space.heap_start = space.heap_end = start
    mapping.set_break(space, start + 4 * page)
    to = mremap(space, start, 1, 1, MREMAP_MAYMOVE | MREMAP_FIXED, 0x200_0000)
    assert [(area.start, area.name) for area in space.areas] == [(start + page, "[heap]"), (to, "")]


def test_a_target_that_is_sealed_in_part_is_refused_before_anything_is_taken_away(
    make: Make, page: int
) -> None:
    space = make()
    at, to = mmap(space, 0x100_0000, 3), mmap(space, 0x200_0000, 2)
    mapping.seal_memory(space, to + page, page, 0)
    before = areas(space)
    assert refusal(lambda: mremap(space, at, 3, 2, MREMAP_FIXED | MREMAP_MAYMOVE, to)) == "EPERM"
    assert areas(space) == before
