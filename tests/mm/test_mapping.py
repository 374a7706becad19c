"""The mmap family, rule by rule: the refusals and edges where Linux is particular.

The expected values were observed on Linux (6.18) where they are not in the manual pages. The model in
`test_address_space_model` covers what these calls do to bytes, permissions and areas.
"""

from __future__ import annotations

from functools import partial

import pytest

from aether_emu.arch.paging import Access
from aether_emu.errors import OutOfFrames
from aether_emu.mm import mapping
from aether_emu.mm.fault import RESOLVED, AccessError, OutOfMemory
from aether_emu.mm.mapping import (
    MADV_DONTNEED,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
    MAP_32BIT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_NONBLOCK,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_SHARED,
    MREMAP_MAYMOVE,
    Remap,
    Request,
)
from aether_emu.mm.protection import Protection
from aether_emu.ports import NEVER_FAILS
from tests.mm.board import MIB, Board, check_accounts
from tests.mm.calls import ANONYMOUS, PAGE, RW, TOP, Make, areas, mmap, mremap, refusal
from tests.mm.invented_format import InventedFormat
from tests.mm.test_page import FailsAt

READ, WRITE, EXECUTE = Protection.READ, Protection.WRITE, Protection.EXECUTE
USER_READ, USER_WRITE = int(Access.READ | Access.USER), int(Access.WRITE | Access.USER)


# ---- mmap: where


def test_without_a_hint_the_highest_gap_is_taken(make: Make) -> None:
    space = make()
    assert mmap(space, 0, 2) == TOP - 2 * PAGE
    assert mmap(space, 0, 1) == TOP - 3 * PAGE


@pytest.mark.parametrize(
    ("hint", "address"),
    [
        (0x2000_0000_0000, 0x2000_0000_0000),
        (0x2000_0000_0FFF, 0x2000_0000_0000),  # rounded down
        (0x1000, 0x1_0000),  # below the lowest address: the lowest one
        (0xFFF, TOP - PAGE),  # rounds to none at all
        (TOP, TOP - PAGE),  # does not fit there
        (1 << 63, TOP - PAGE),
    ],
)
def test_a_hint_is_taken_where_it_is_free(make: Make, hint: int, address: int) -> None:
    assert mmap(make(), hint, 1) == address


def test_a_hint_that_is_taken_is_no_obligation(make: Make) -> None:
    space = make()
    taken = mmap(space, 0x2000_0000_0000, 2)
    assert mmap(space, taken - PAGE, 2) == TOP - 2 * PAGE
    assert mmap(space, taken - 2 * PAGE, 2) == taken - 2 * PAGE


def test_nobody_is_given_the_null_page_unasked(make: Make) -> None:
    space = make(user_base=0, user_end=4 * PAGE)
    assert [mmap(space, 0, 1) for _ in range(3)] == [3 * PAGE, 2 * PAGE, PAGE]
    assert refusal(lambda: mmap(space, 0, 1)) == "ENOMEM"
    assert mmap(space, 0, 1, RW, ANONYMOUS | MAP_FIXED) == 0


def test_the_low_gigabyte_is_searched_upwards_and_honours_hints(make: Make) -> None:
    space, flags = make(), ANONYMOUS | MAP_32BIT
    assert mmap(space, 0, 1, RW, flags) == 0x4000_0000
    assert mmap(space, 0, 1, RW, flags) == 0x4000_1000
    assert mmap(space, 0x2000_0000, 1, RW, flags) == 0x2000_0000
    assert mmap(space, 0x7000_0123, 1, RW, flags) == 0x7000_0000
    assert mmap(space, 0x8000_0000, 1, RW, flags) == 0x4000_2000


def test_the_guard_of_a_growing_area_stays_free(make: Make) -> None:
    space = make(user_end=0x10_0000 + 600 * PAGE)
    stack = space.limits.user_end - 2 * PAGE
    mmap(space, stack, 2, RW, ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN)
    assert mmap(space, 0, 1) == stack - 257 * PAGE
    assert mmap(space, stack - 100 * PAGE, 1) == stack - 258 * PAGE  # not at the hint
    assert mmap(space, stack - 100 * PAGE, 1, RW, ANONYMOUS | MAP_FIXED) == stack - 100 * PAGE


@pytest.mark.parametrize(
    ("at", "length", "flags", "protection", "expected"),
    [
        (0, 0, ANONYMOUS, RW, "EINVAL"),
        (0, 1 << 48, ANONYMOUS, RW, "ENOMEM"),
        (0, (1 << 64) - 1, ANONYMOUS, RW, "ENOMEM"),
        (0x1_0001, PAGE, ANONYMOUS | MAP_FIXED, RW, "EINVAL"),
        (0xF000, PAGE, ANONYMOUS | MAP_FIXED, RW, "EPERM"),
        (TOP, PAGE, ANONYMOUS | MAP_FIXED, RW, "ENOMEM"),
        (0, PAGE, MAP_ANONYMOUS, RW, "EINVAL"),
        (0, PAGE, MAP_ANONYMOUS | 3, RW, "EINVAL"),
        (0, PAGE, MAP_ANONYMOUS | MAP_SHARED | MAP_GROWSDOWN, RW, "EINVAL"),
        (0, 64 * MIB, ANONYMOUS, RW, "ENOMEM"),  # more than all memory, and it could be written
    ],
)
def test_what_mmap_refuses(
    make: Make, at: int, length: int, flags: int, protection: int, expected: str
) -> None:
    space = make()
    request = Request(at, length, protection, flags, None, 0)
    assert refusal(lambda: mapping.map_memory(space, request)) == expected
    assert areas(space) == []


def test_more_than_all_memory_is_granted_where_it_costs_nothing(make: Make) -> None:
    space = make()
    for protection, flags in ((READ, 0), (RW, MAP_NORESERVE), (0, 0)):
        mmap(space, 0, (64 * MIB) // PAGE, protection, ANONYMOUS | flags)


def test_fixed_without_replacing_refuses_what_is_taken(make: Make) -> None:
    space = make()
    at = mmap(space, 0, 2)
    flags = ANONYMOUS | MAP_FIXED_NOREPLACE
    assert refusal(lambda: mmap(space, at + PAGE, 1, RW, flags)) == "EEXIST"
    assert mmap(space, at - PAGE, 1, RW, flags) == at - PAGE


# ---- mmap: limits and populating


def test_the_limit_of_the_address_space_counts_what_is_there_in_the_end(make: Make) -> None:
    space = make(address_space=4 * PAGE)
    at = mmap(space, 0, 4)
    assert refusal(lambda: mmap(space, 0, 1)) == "ENOMEM"
    assert mmap(space, at, 4, READ, ANONYMOUS | MAP_FIXED) == at  # replaces: nothing is added
    assert mmap(space, at + 2 * PAGE, 2, RW, ANONYMOUS | MAP_FIXED) == at + 2 * PAGE
    assert refusal(lambda: mmap(space, at - PAGE, 5, RW, ANONYMOUS | MAP_FIXED)) == "ENOMEM"
    assert space.reserved == 4 * PAGE
    mapping.unmap_memory(space, at, PAGE)
    assert mmap(space, 0, 1)


def test_the_number_of_areas_is_limited(make: Make) -> None:
    space = make(areas=3)
    places = [mmap(space, 0x100_0000 * n, 1) for n in (1, 2, 3)]
    assert refusal(lambda: mmap(space, 0x400_0000, 1)) == "ENOMEM"
    assert mmap(space, places[0] + PAGE, 2) == places[0] + PAGE  # goes on with an area that is there
    assert refusal(lambda: mapping.unmap_memory(space, places[0] + PAGE, PAGE)) == "ENOMEM"
    assert refusal(lambda: mapping.protect_memory(space, places[0] + PAGE, PAGE, READ)) == "ENOMEM"
    mapping.protect_memory(space, places[0], 3 * PAGE, READ)
    assert areas(space) == [(0x1000, 3), (0x2000, 1), (0x3000, 1)]


def test_at_the_limit_a_border_between_two_areas_can_still_move(make: Make) -> None:
    space = make(areas=2)
    at = mmap(space, 0, 4)
    mapping.protect_memory(space, at, 2 * PAGE, READ)
    mapping.protect_memory(space, at + 2 * PAGE, PAGE, READ)
    assert [n for _first, n in areas(space)] == [3, 1]
    mapping.protect_memory(space, at + PAGE, 2 * PAGE, RW)
    assert [n for _first, n in areas(space)] == [1, 3]


@pytest.mark.parametrize(
    ("protection", "flags", "resident"),
    [
        (RW, MAP_POPULATE, True),
        (READ, MAP_POPULATE, True),
        (RW, MAP_POPULATE | MAP_NONBLOCK, False),
        (RW, 0, False),
        (0, MAP_POPULATE, False),
    ],
)
def test_populating_maps_every_page_at_once(make: Make, protection: int, flags: int, resident: bool) -> None:
    space = make()
    at = mmap(space, 0, 3, protection, ANONYMOUS | flags)
    assert mapping.residency(space, at, 3 * PAGE) == bytes([resident]) * 3


def test_populating_without_memory_maps_what_it_can_and_is_no_error(make: Make, plain: Board) -> None:
    space = make()
    mmap(space, 0x1_0000, 1, RW, ANONYMOUS | MAP_FIXED | MAP_POPULATE)
    plain.buddy.failures = FailsAt(1)
    at = mmap(space, 0x1_1000, 3, RW, ANONYMOUS | MAP_FIXED | MAP_POPULATE)
    plain.buddy.failures = NEVER_FAILS
    assert mapping.residency(space, at, 3 * PAGE) == b"\1\0\0"


# ---- mprotect and the stack


def test_mprotect_goes_on_to_the_hole_and_reports_it(make: Make) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 2)
    mmap(space, at + 3 * PAGE, 1)
    assert refusal(lambda: mapping.protect_memory(space, at, 4 * PAGE, READ)) == "ENOMEM"
    assert [area.protection for area in space.areas] == [READ, RW]


@pytest.mark.parametrize(
    ("address", "length", "protection", "expected"),
    [
        (0x100_0001, PAGE, READ, "EINVAL"),
        (0x100_0000, (1 << 64) - 1, READ, "ENOMEM"),
        (0x100_0000, (1 << 64) - 0x100_0000, READ, "ENOMEM"),
        (0x100_0000, PAGE, 0x10, "EINVAL"),
        (0x200_0000, PAGE, READ, "ENOMEM"),
        (0x100_0000, PAGE, READ | mapping.PROT_GROWSDOWN, "EINVAL"),
        (0x100_0000, PAGE, READ | mapping.PROT_GROWSDOWN | mapping.PROT_GROWSUP, "EINVAL"),
    ],
)
def test_what_mprotect_refuses(make: Make, address: int, length: int, protection: int, expected: str) -> None:
    space = make()
    mmap(space, 0x100_0000, 2)
    assert refusal(lambda: mapping.protect_memory(space, address, length, protection)) == expected
    assert [area.protection for area in space.areas] == [RW]
    mapping.protect_memory(space, 0x999_0000, 0, READ)  # no length: no question


def test_parts_of_a_stack_become_one_again_and_growsdown_reaches_its_start(make: Make) -> None:
    space = make()
    at = mmap(space, 0x1000_0000, 4, RW, ANONYMOUS | MAP_GROWSDOWN)
    mapping.protect_memory(space, at + PAGE, PAGE, READ)
    assert len(space.areas) == 3
    mapping.protect_memory(space, at + PAGE, PAGE, RW)
    assert len(space.areas) == 1
    mapping.protect_memory(space, at + 3 * PAGE, PAGE, READ | mapping.PROT_GROWSDOWN)
    assert [area.protection for area in space.areas] == [READ]


def test_the_stack_grows_to_its_limit_and_keeps_away_from_what_is_below(make: Make) -> None:
    space = make(stack=400 * PAGE)
    top = mmap(space, 0x1000_0000, 1, RW, ANONYMOUS | MAP_GROWSDOWN) + PAGE
    assert space.fault(top - 400 * PAGE, USER_WRITE) is RESOLVED
    assert areas(space) == [(top // PAGE - 400, 400)]
    below = top - 401 * PAGE
    assert space.fault(below, USER_WRITE) == AccessError(below, mapped=False)
    mapping.unmap_memory(space, top - 400 * PAGE, 399 * PAGE)
    for protection, room in ((READ, 256), (0, 0)):
        neighbour = top - 300 * PAGE
        mmap(space, neighbour, 1, protection, ANONYMOUS | MAP_FIXED)
        refused = neighbour + (room or 1) * PAGE
        granted = neighbour + (room + 1) * PAGE
        if room:
            assert space.fault(refused, USER_WRITE) == AccessError(refused, mapped=False)
        assert space.fault(granted, USER_WRITE) is RESOLVED
        mapping.unmap_memory(space, neighbour, 299 * PAGE)


def test_a_stack_does_not_grow_over_the_limit_of_the_address_space_or_the_lowest_address(make: Make) -> None:
    space = make(address_space=10 * PAGE)
    at = mmap(space, 0x1_2000, 1, RW, ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN)
    for refused in (0xF000, 0):
        assert space.fault(refused, USER_WRITE) == AccessError(refused, mapped=False)
    assert space.fault(0x1_0000, USER_READ) is RESOLVED
    assert areas(space) == [(0x10, 3)]
    high = mmap(space, 0x100_0000, 7, RW, ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN)
    assert space.fault(high - PAGE, USER_WRITE) == AccessError(high - PAGE, mapped=False)
    assert at == 0x1_2000


# ---- madvise, msync, mincore


def test_advice_for_a_range_that_wraps_is_refused_before_it_is_taken(make: Make, plain: Board) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 1)
    plain.cpu.copy_to_user(at, b"kept")
    for start, length in ((0, (1 << 64) - 1), (0x1000, (1 << 64) - 0x1000), (at + 1, PAGE)):
        assert refusal(partial(mapping.advise_memory, space, start, length, MADV_DONTNEED)) == "EINVAL"
    assert refusal(lambda: mapping.advise_memory(space, at, PAGE, 99)) == "EINVAL"
    assert plain.cpu.copy_from_user(at, 4) == b"kept"


def test_advice_over_a_hole_is_taken_for_the_rest_and_reported(make: Make, plain: Board) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 1)
    mmap(space, at + 2 * PAGE, 1)
    for page in (0, 2):
        plain.cpu.copy_to_user(at + page * PAGE, b"gone")
    assert refusal(lambda: mapping.advise_memory(space, at, 3 * PAGE, MADV_DONTNEED)) == "ENOMEM"
    assert [plain.cpu.copy_from_user(at + page * PAGE, 4) for page in (0, 2)] == [bytes(4)] * 2


def test_removing_takes_pages_out_of_the_shared_object_itself(make: Make, plain: Board) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 3, flags=MAP_SHARED | MAP_ANONYMOUS)
    for page in range(3):
        plain.cpu.copy_to_user(at + page * PAGE, b"here")
    before = plain.buddy.free_frames
    mapping.advise_memory(space, at + PAGE, PAGE, MADV_REMOVE)
    assert plain.buddy.free_frames == before + 1
    assert [plain.cpu.copy_from_user(at + page * PAGE, 4) for page in range(3)] == [
        b"here",
        bytes(4),
        b"here",
    ]


def test_removing_needs_a_shared_writable_object(make: Make) -> None:
    space = make()
    private = mmap(space, 0x100_0000, 1)
    assert refusal(lambda: mapping.advise_memory(space, private, PAGE, MADV_REMOVE)) == "EINVAL"


@pytest.mark.parametrize(
    ("protection", "advice", "expected"),
    [
        (READ, MADV_POPULATE_READ, None),
        (RW, MADV_POPULATE_WRITE, None),
        (WRITE, MADV_POPULATE_READ, "EINVAL"),  # readable on this hardware, but not to Linux
        (READ, MADV_POPULATE_WRITE, "EINVAL"),
        (0, MADV_POPULATE_READ, "EINVAL"),
    ],
)
def test_populating_by_advice_follows_the_areas_own_permission(
    make: Make, protection: int, advice: int, expected: str | None
) -> None:
    space = make()
    at = mmap(space, 0, 2, protection)
    if expected is None:
        mapping.advise_memory(space, at, 2 * PAGE, advice)
    else:
        assert refusal(lambda: mapping.advise_memory(space, at, 2 * PAGE, advice)) == expected
    assert mapping.residency(space, at, 2 * PAGE) == bytes([expected is None]) * 2
    assert refusal(lambda: mapping.advise_memory(space, at - PAGE, PAGE, advice)) == "ENOMEM"


def test_a_populated_zero_page_that_finds_no_frame_reads_the_same_later(make: Make, plain: Board) -> None:
    """The zero page is mapped; the frame that should replace it cannot be had; nothing is lost by trying."""
    space = make()
    at = mmap(space, 0, 1)
    assert plain.cpu.copy_from_user(at, 1) == b"\0"
    plain.buddy.failures = FailsAt(0)
    assert space.fault(at, USER_WRITE | int(Access.PRESENT)) == OutOfMemory(at)
    plain.buddy.failures = FailsAt(0)
    assert refusal(lambda: mapping.advise_memory(space, at, PAGE, MADV_POPULATE_WRITE)) == "ENOMEM"
    plain.buddy.failures = NEVER_FAILS
    assert plain.cpu.copy_from_user(at, 1) == b"\0"
    assert space.fault(at, USER_WRITE) is RESOLVED  # not through the CPU: what it has cached must go now
    frame = plain.frames.number(space.table.walk(at).address)  # type: ignore[union-attr]  # mapped
    plain.physical.page_bytes(frame)[:3] = b"new"
    assert plain.cpu.copy_from_user(at, 3) == b"new"


def test_residency_is_asked_of_mapped_memory_only_and_of_no_more_than_memory_can_hold(make: Make) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 1 << 26, 0, ANONYMOUS | MAP_NORESERVE)
    assert mapping.residency(space, at, 0) == b""
    assert mapping.residency(space, at, 1) == b"\0"
    assert refusal(lambda: mapping.residency(space, at + 1, 1)) == "EINVAL"
    assert refusal(lambda: mapping.residency(space, at - PAGE, 2 * PAGE)) == "ENOMEM"
    assert refusal(lambda: mapping.residency(space, at, PAGE << 26)) == "EFAULT"
    assert refusal(lambda: mapping.residency(space, at, 1 << 60)) == "ENOMEM"


# ---- brk and munmap


def test_the_break_moves_only_where_there_is_room(make: Make) -> None:
    space = make()
    space.heap_start = space.heap_end = 0x100_0000
    assert mapping.set_break(space, 0) == 0x100_0000
    assert mapping.set_break(space, 0x100_0001) == 0x100_0001
    assert mapping.set_break(space, 0x100_3000) == 0x100_3000
    assert areas(space) == [(0x1000, 3)]
    wall = mmap(space, 0x100_8000, 1)
    assert mapping.set_break(space, wall) == 0x100_3000  # a page stays free between them
    assert mapping.set_break(space, wall - PAGE) == wall - PAGE
    assert mapping.set_break(space, 0x100_2001) == 0x100_2001
    assert mapping.set_break(space, 0xFF_FFFF) == 0x100_2001
    assert mapping.set_break(space, 1 << 60) == 0x100_2001
    mapping.unmap_memory(space, 0x100_1000, 2 * PAGE)
    assert mapping.set_break(space, 0x100_1800) == 0x100_2001  # nothing is left there to give back


def test_the_break_stays_where_giving_back_would_need_one_area_too_many(make: Make) -> None:
    space = make(areas=1)
    space.heap_start = space.heap_end = 0x100_0000
    mapping.set_break(space, 0x100_4000)
    assert mremap(space, 0x100_0000, 4, 6) == 0x100_0000  # the heap's area is longer than the heap
    assert mapping.set_break(space, 0x100_2000) == 0x100_4000


@pytest.mark.parametrize(
    ("address", "length", "expected"),
    [(1, PAGE, "EINVAL"), (0x1_0000, 0, "EINVAL"), (TOP, PAGE, "EINVAL"), (1 << 63, PAGE, "EINVAL")],
)
def test_what_munmap_refuses(make: Make, address: int, length: int, expected: str) -> None:
    assert refusal(lambda: mapping.unmap_memory(make(), address, length)) == expected


def test_an_address_space_that_finds_no_root_takes_nothing(plain: Board) -> None:
    plain.buddy.failures = FailsAt(0)
    with pytest.raises(OutOfFrames):
        plain.space()
    plain.buddy.failures = NEVER_FAILS
    assert plain.spaces == []


def test_the_invented_format_knows_the_same_rules() -> None:
    """Its pages are four times as large: nothing in the family may count in pages of 4 KiB."""
    board = Board(InventedFormat())
    space = board.space()
    board.run_on(space)
    size = board.format.page_size
    at = mapping.map_memory(space, Request(0, 3 * size - 1, RW, ANONYMOUS, None, 0))
    assert at == space.limits.user_end - 3 * size
    assert refusal(lambda: mapping.protect_memory(space, at + 4096, size, READ)) == "EINVAL"
    board.cpu.copy_to_user(at + size, b"kept")
    to = mapping.remap_memory(space, Remap(at, 3 * size, 4 * size, MREMAP_MAYMOVE, 0))
    assert board.cpu.copy_from_user(to + size, 4) == b"kept"
    assert mapping.residency(space, to, 4 * size) == b"\0\1\0\0"
    check_accounts(board, [])
    board.close()
