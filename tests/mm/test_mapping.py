"""The mmap family, rule by rule: the refusals and edges where Linux is particular.

The expected values were observed on Linux (6.18) where they are not in the manual pages. The model in
`test_address_space_model` covers what these calls do to bytes, permissions and areas.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from aether_emu.arch.paging import Access, PageTableFormat
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
    Request,
)
from aether_emu.mm.protection import Protection
from aether_emu.ports import NEVER_FAILS
from tests.mm.board import FORMATS, FRAMES, Board, fault_in
from tests.mm.calls import ANONYMOUS, RW, Make, areas, mmap, mremap, refusal
from tests.mm.tables.test_page import FailsAt

READ, WRITE = Protection.READ, Protection.WRITE
FREE = 0x10_0000_0000  # an address far from both ends, on every format
USER_READ, USER_WRITE = int(Access.READ | Access.USER), int(Access.WRITE | Access.USER)


# ---- mmap: where


def test_without_a_hint_the_highest_gap_is_taken(make: Make, top: int, page: int) -> None:
    space = make()
    assert mmap(space, 0, 2) == top - 2 * page
    assert mmap(space, 0, 1) == top - 3 * page


@pytest.mark.parametrize(
    "case",
    [
        lambda page, top: (FREE, FREE),
        lambda page, top: (FREE + page - 1, FREE),  # rounded down
        lambda page, top: (page, 0x1_0000),  # below the lowest address: the lowest one
        lambda page, top: (page - 1, top - page),  # rounds to none at all
        lambda page, top: (top, top - page),  # does not fit there
        lambda page, top: (1 << 63, top - page),
    ],
)
def test_a_hint_is_taken_where_it_is_free(
    make: Make, page: int, top: int, case: Callable[[int, int], tuple[int, int]]
) -> None:
    hint, address = case(page, top)
    assert mmap(make(), hint, 1) == address


def test_a_hint_that_is_taken_is_no_obligation(make: Make, top: int, page: int) -> None:
    space = make()
    taken = mmap(space, FREE, 2)
    assert mmap(space, taken - page, 2) == top - 2 * page
    assert mmap(space, taken - 2 * page, 2) == taken - 2 * page


def test_nobody_is_given_the_null_page_unasked(make: Make, page: int) -> None:
    space = make(user_base=0, user_end=4 * page)
    assert [mmap(space, 0, 1) for _ in range(3)] == [3 * page, 2 * page, page]
    assert refusal(lambda: mmap(space, 0, 1)) == "ENOMEM"
    assert mmap(space, 0, 1, RW, ANONYMOUS | MAP_FIXED) == 0


def test_the_low_gigabyte_is_searched_upwards_and_honours_hints(make: Make, page: int) -> None:
    space, flags = make(), ANONYMOUS | MAP_32BIT
    assert mmap(space, 0, 1, RW, flags) == 0x4000_0000
    assert mmap(space, 0, 1, RW, flags) == 0x4000_0000 + page
    assert mmap(space, 0x2000_0000, 1, RW, flags) == 0x2000_0000
    assert mmap(space, 0x7000_0123, 1, RW, flags) == 0x7000_0000
    assert mmap(space, 0x8000_0000, 1, RW, flags) == 0x4000_0000 + 2 * page


def test_the_guard_of_a_growing_area_stays_free(make: Make, page: int) -> None:
    space = make(user_end=0x10_0000 + 600 * page)
    stack = space.limits.user_end - 2 * page
    mmap(space, stack, 2, RW, ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN)
    assert mmap(space, 0, 1) == stack - 257 * page
    assert mmap(space, stack - 100 * page, 1) == stack - 258 * page  # not at the hint
    assert mmap(space, stack - 100 * page, 1, RW, ANONYMOUS | MAP_FIXED) == stack - 100 * page


@pytest.mark.parametrize(
    ("expected", "case"),
    [
        ("EINVAL", lambda page, top: (0, 0, RW, ANONYMOUS)),
        ("ENOMEM", lambda page, top: (0, 1 << 48, RW, ANONYMOUS)),
        ("ENOMEM", lambda page, top: (0, (1 << 64) - 1, RW, ANONYMOUS)),
        ("EINVAL", lambda page, top: (0x1_0001, page, RW, ANONYMOUS | MAP_FIXED)),
        ("EPERM", lambda page, top: (0x1_0000 - page, page, RW, ANONYMOUS | MAP_FIXED)),
        ("ENOMEM", lambda page, top: (top, page, RW, ANONYMOUS | MAP_FIXED)),
        ("ENOMEM", lambda page, top: ((1 << 64) - 4096, page, RW, ANONYMOUS | MAP_FIXED)),
        ("EPERM", lambda page, top: ((1 << 64) - 1, page, RW, ANONYMOUS | MAP_FIXED)),
        ("EACCES", lambda page, top: ((1 << 64) - 13, page, RW, ANONYMOUS | MAP_FIXED_NOREPLACE)),
        ("EINVAL", lambda page, top: (0, page, RW, MAP_ANONYMOUS)),
        ("EINVAL", lambda page, top: (0, page, RW, MAP_ANONYMOUS | 3)),
        ("EINVAL", lambda page, top: (0, page, RW, MAP_ANONYMOUS | MAP_SHARED | MAP_GROWSDOWN)),
        # more than all memory, and it could be written
        ("ENOMEM", lambda page, top: (0, (FRAMES + 1) * page, RW, ANONYMOUS)),
    ],
)
def test_what_mmap_refuses(
    make: Make, page: int, top: int, expected: str, case: Callable[[int, int], tuple[int, int, int, int]]
) -> None:
    space = make()
    request = Request(*case(page, top), None, 0)
    assert refusal(lambda: mapping.map_memory(space, request)) == expected
    assert areas(space) == []


def test_more_than_all_memory_is_granted_where_it_costs_nothing(make: Make, page: int) -> None:
    space = make()
    for protection, flags in ((READ, 0), (RW, MAP_NORESERVE), (0, 0)):
        mmap(space, 0, FRAMES + 1, protection, ANONYMOUS | flags)


def test_fixed_without_replacing_refuses_what_is_taken(make: Make, page: int) -> None:
    space = make()
    at = mmap(space, 0, 2)
    flags = ANONYMOUS | MAP_FIXED_NOREPLACE
    assert refusal(lambda: mmap(space, at + page, 1, RW, flags)) == "EEXIST"
    assert mmap(space, at - page, 1, RW, flags) == at - page


# ---- mmap: limits and populating


def test_the_limit_of_the_address_space_counts_what_is_there_in_the_end(make: Make, page: int) -> None:
    space = make(address_space=4 * page)
    at = mmap(space, 0, 4)
    assert refusal(lambda: mmap(space, 0, 1)) == "ENOMEM"
    assert mmap(space, at, 4, READ, ANONYMOUS | MAP_FIXED) == at  # replaces: nothing is added
    assert mmap(space, at + 2 * page, 2, RW, ANONYMOUS | MAP_FIXED) == at + 2 * page
    assert refusal(lambda: mmap(space, at - page, 5, RW, ANONYMOUS | MAP_FIXED)) == "ENOMEM"
    assert space.account.reserved == 4 * page
    mapping.unmap_memory(space, at, page)
    assert mmap(space, 0, 1)


def test_the_number_of_areas_is_limited(make: Make, page: int) -> None:
    space = make(areas=3)
    places = [mmap(space, 0x100_0000 * n, 1) for n in (1, 2, 3)]
    assert refusal(lambda: mmap(space, 0x400_0000, 1)) == "ENOMEM"
    assert mmap(space, places[0] + page, 2) == places[0] + page  # goes on with an area that is there
    assert refusal(lambda: mapping.unmap_memory(space, places[0] + page, page)) == "ENOMEM"
    assert refusal(lambda: mapping.protect_memory(space, places[0] + page, page, READ)) == "ENOMEM"
    mapping.protect_memory(space, places[0], 3 * page, READ)
    assert areas(space) == [(0x100_0000, 3), (0x200_0000, 1), (0x300_0000, 1)]


def test_a_hole_may_take_the_last_room_for_an_area(make: Make, page: int) -> None:
    space = make(areas=2)
    at = mmap(space, 0, 3)
    mapping.unmap_memory(space, at + page, page)
    assert areas(space) == [(at, 1), (at + 2 * page, 1)]


def test_at_the_limit_a_border_between_two_areas_can_still_move(make: Make, page: int) -> None:
    space = make(areas=2)
    at = mmap(space, 0, 4)
    mapping.protect_memory(space, at, 2 * page, READ)
    mapping.protect_memory(space, at + 2 * page, page, READ)
    assert [n for _first, n in areas(space)] == [3, 1]
    mapping.protect_memory(space, at + page, 2 * page, RW)
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
def test_populating_maps_every_page_at_once(
    make: Make, page: int, protection: int, flags: int, resident: bool
) -> None:
    space = make()
    at = mmap(space, 0, 3, protection, ANONYMOUS | flags)
    assert mapping.residency(space, at, 3 * page) == bytes([resident]) * 3


def test_populating_without_memory_maps_what_it_can_and_is_no_error(
    make: Make, page: int, plain: Board
) -> None:
    space = make()
    first = mmap(space, 0x1_0000, 1, RW, ANONYMOUS | MAP_FIXED | MAP_POPULATE)
    plain.buddy.failures = FailsAt(1)
    at = mmap(space, first + page, 3, RW, ANONYMOUS | MAP_FIXED | MAP_POPULATE)
    plain.buddy.failures = NEVER_FAILS
    assert mapping.residency(space, at, 3 * page) == b"\1\0\0"


# ---- mprotect and the stack


def test_mprotect_goes_on_to_the_hole_and_reports_it(make: Make, page: int) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 2)
    mmap(space, at + 3 * page, 1)
    assert refusal(lambda: mapping.protect_memory(space, at, 4 * page, READ)) == "ENOMEM"
    assert [area.protection for area in space.areas] == [READ, RW]


@pytest.mark.parametrize(
    ("expected", "case"),
    [
        ("EINVAL", lambda page: (0x100_0001, page, READ)),
        ("ENOMEM", lambda page: (0x100_0000, (1 << 64) - 1, READ)),
        ("ENOMEM", lambda page: (0x100_0000, (1 << 64) - 0x100_0000, READ)),
        ("EINVAL", lambda page: (0x100_0000, page, 0x10)),
        ("ENOMEM", lambda page: (0x200_0000, page, READ)),
        ("EINVAL", lambda page: (0x100_0000, page, READ | mapping.PROT_GROWSDOWN)),
        ("EINVAL", lambda page: (0x100_0000, page, READ | mapping.PROT_GROWSDOWN | mapping.PROT_GROWSUP)),
    ],
)
def test_what_mprotect_refuses(
    make: Make, page: int, expected: str, case: Callable[[int], tuple[int, int, int]]
) -> None:
    space = make()
    mmap(space, 0x100_0000, 2)
    assert refusal(lambda: mapping.protect_memory(space, *case(page))) == expected
    assert [area.protection for area in space.areas] == [RW]
    mapping.protect_memory(space, 0x999_0000, 0, READ)  # no length: no question


def test_parts_of_a_stack_become_one_again_and_growsdown_reaches_its_start(make: Make, page: int) -> None:
    space = make()
    at = mmap(space, 0x1000_0000, 4, RW, ANONYMOUS | MAP_GROWSDOWN)
    mapping.protect_memory(space, at + page, page, READ)
    assert len(space.areas) == 3
    mapping.protect_memory(space, at + page, page, RW)
    assert len(space.areas) == 1
    mapping.protect_memory(space, at + 3 * page, page, READ | mapping.PROT_GROWSDOWN)
    assert [area.protection for area in space.areas] == [READ]


def test_the_stack_grows_to_its_limit_and_keeps_away_from_what_is_below(make: Make, page: int) -> None:
    space = make(stack=400 * page)
    top = mmap(space, 0x1000_0000, 1, RW, ANONYMOUS | MAP_GROWSDOWN) + page
    assert fault_in(space, top - 400 * page, USER_WRITE) is RESOLVED
    assert areas(space) == [(top - 400 * page, 400)]
    below = top - 401 * page
    assert fault_in(space, below, USER_WRITE) == AccessError(below, mapped=False)
    mapping.unmap_memory(space, top - 400 * page, 399 * page)
    for protection, room in ((READ, 256), (0, 0)):
        neighbour = top - 300 * page
        mmap(space, neighbour, 1, protection, ANONYMOUS | MAP_FIXED)
        refused = neighbour + (room or 1) * page
        granted = neighbour + (room + 1) * page
        if room:
            assert fault_in(space, refused, USER_WRITE) == AccessError(refused, mapped=False)
        assert fault_in(space, granted, USER_WRITE) is RESOLVED
        mapping.unmap_memory(space, neighbour, 299 * page)


def test_a_stack_does_not_grow_over_the_limit_of_the_address_space_or_the_lowest_address(
    make: Make, page: int
) -> None:
    space = make(address_space=10 * page)
    mmap(space, 0x1_0000 + 2 * page, 1, RW, ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN)
    for refused in (0x1_0000 - page, 0):
        assert fault_in(space, refused, USER_WRITE) == AccessError(refused, mapped=False)
    assert fault_in(space, 0x1_0000, USER_READ) is RESOLVED
    assert areas(space) == [(0x1_0000, 3)]
    high = mmap(space, 0x100_0000, 7, RW, ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN)
    assert fault_in(space, high - page, USER_WRITE) == AccessError(high - page, mapped=False)


# ---- madvise, msync, mincore


def test_advice_for_a_range_that_wraps_is_refused_before_it_is_taken(
    make: Make, page: int, plain: Board
) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 1)
    plain.cpu.copy_to_user(at, b"kept")
    for start, length in ((0, (1 << 64) - 1), (page, (1 << 64) - page), (at + 1, page)):
        assert refusal(partial(mapping.advise_memory, space, start, length, MADV_DONTNEED)) == "EINVAL"
    assert refusal(lambda: mapping.advise_memory(space, at, page, 99)) == "EINVAL"
    assert plain.cpu.copy_from_user(at, 4) == b"kept"


def test_advice_over_a_hole_is_taken_for_the_rest_and_reported(make: Make, page: int, plain: Board) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 1)
    mmap(space, at + 2 * page, 1)
    for n in (0, 2):
        plain.cpu.copy_to_user(at + n * page, b"gone")
    assert refusal(lambda: mapping.advise_memory(space, at, 3 * page, MADV_DONTNEED)) == "ENOMEM"
    assert [plain.cpu.copy_from_user(at + n * page, 4) for n in (0, 2)] == [bytes(4)] * 2


def test_removing_takes_pages_out_of_the_shared_object_itself(make: Make, page: int, plain: Board) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 3, flags=MAP_SHARED | MAP_ANONYMOUS)
    for n in range(3):
        plain.cpu.copy_to_user(at + n * page, b"here")
    before = plain.buddy.free_frames
    mapping.advise_memory(space, at + page, page, MADV_REMOVE)
    assert plain.buddy.free_frames == before + 1
    assert [plain.cpu.copy_from_user(at + n * page, 4) for n in range(3)] == [
        b"here",
        bytes(4),
        b"here",
    ]


def test_removing_needs_a_shared_writable_object(make: Make, page: int) -> None:
    space = make()
    private = mmap(space, 0x100_0000, 1)
    assert refusal(lambda: mapping.advise_memory(space, private, page, MADV_REMOVE)) == "EINVAL"


@pytest.mark.parametrize("protection", [0, READ, WRITE])
def test_removing_asks_whether_it_may_be_made_writable(make: Make, page: int, protection: int) -> None:
    space = make()
    at = mmap(space, 0x100_0000, 1, protection, flags=MAP_SHARED | MAP_ANONYMOUS)
    mapping.advise_memory(space, at, page, MADV_REMOVE)
    area = space.areas.find(at)
    assert area is not None
    area.maximum &= ~Protection.WRITE  # as of a file that is open for reading alone
    assert refusal(lambda: mapping.advise_memory(space, at, page, MADV_REMOVE)) == "EACCES"


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
    make: Make, page: int, protection: int, advice: int, expected: str | None
) -> None:
    space = make()
    at = mmap(space, 0, 2, protection)
    if expected is None:
        mapping.advise_memory(space, at, 2 * page, advice)
    else:
        assert refusal(lambda: mapping.advise_memory(space, at, 2 * page, advice)) == expected
    assert mapping.residency(space, at, 2 * page) == bytes([expected is None]) * 2
    assert refusal(lambda: mapping.advise_memory(space, at - page, page, advice)) == "ENOMEM"


def test_a_populated_zero_page_that_finds_no_frame_reads_the_same_later(
    make: Make, page: int, plain: Board
) -> None:
    """The zero page is mapped; the frame that should replace it cannot be had; nothing is lost by trying."""
    space = make()
    at = mmap(space, 0, 1)
    assert plain.cpu.copy_from_user(at, 1) == b"\0"
    plain.buddy.failures = FailsAt(0)
    assert fault_in(space, at, USER_WRITE | int(Access.PRESENT)) == OutOfMemory(at)
    plain.buddy.failures = FailsAt(0)
    assert refusal(lambda: mapping.advise_memory(space, at, page, MADV_POPULATE_WRITE)) == "ENOMEM"
    plain.buddy.failures = NEVER_FAILS
    assert plain.cpu.copy_from_user(at, 1) == b"\0"
    assert fault_in(space, at, USER_WRITE) is RESOLVED  # not through the CPU: what it has cached must go now
    frame = plain.frames.number(space.table.walk(at).address)  # type: ignore[union-attr]  # mapped
    plain.physical.page_bytes(frame)[:3] = b"new"
    assert plain.cpu.copy_from_user(at, 3) == b"new"


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_residency_is_asked_of_mapped_memory_only_an_area_after_the_other(fmt: PageTableFormat) -> None:
    board, page = Board(fmt, ram=16 * fmt.page_size), fmt.page_size
    space, many = board.space(), board.ram.size + 1
    at = mmap(space, 1 << 24, many, 0, ANONYMOUS | MAP_NORESERVE)
    other = mmap(space, at + many * page, 1, RW, ANONYMOUS | MAP_FIXED)
    assert mapping.residency(space, at, 0) == b""
    assert mapping.residency(space, at, 1) == b"\0"
    assert mapping.residency(space, other - page, 2 * page) == b"\0", "the other area is not asked yet"
    assert refusal(lambda: mapping.residency(space, at + 1, 1)) == "EINVAL"
    assert refusal(lambda: mapping.residency(space, at - page, 2 * page)) == "ENOMEM"
    assert 0 < len(mapping.residency(space, at, page * many)) < many, "the caller goes on, and can be stopped"
    assert refusal(lambda: mapping.residency(space, at, 1 << 60)) == "ENOMEM"
    board.close()


# ---- brk and munmap


def test_the_break_moves_only_where_there_is_room(make: Make, page: int) -> None:
    space, start = make(), 0x100_0000
    space.heap_start = space.heap_end = start
    assert mapping.set_break(space, 0) == start
    assert mapping.set_break(space, start + 1) == start + 1
    assert mapping.set_break(space, start + 3 * page) == start + 3 * page
    assert areas(space) == [(start, 3)]
    wall = mmap(space, start + 8 * page, 1)
    assert mapping.set_break(space, wall) == start + 3 * page  # a page stays free between them
    assert mapping.set_break(space, wall - page) == wall - page
    assert mapping.set_break(space, start + 2 * page + 1) == start + 2 * page + 1
    assert mapping.set_break(space, start - 1) == start + 2 * page + 1
    assert mapping.set_break(space, 1 << 60) == start + 2 * page + 1
    mapping.unmap_memory(space, start + page, 2 * page)
    half = start + page + page // 2
    assert mapping.set_break(space, half) == start + 2 * page + 1  # nothing is left there to give back


def test_the_break_stays_where_giving_back_would_need_one_area_too_many(make: Make, page: int) -> None:
    space, start = make(areas=1), 0x100_0000
    space.heap_start = space.heap_end = start
    mapping.set_break(space, start + 4 * page)
    assert mremap(space, start, 4, 6) == start  # the heap's area is longer than the heap
    assert mapping.set_break(space, start + 2 * page) == start + 4 * page


def test_what_munmap_refuses(make: Make, page: int, top: int) -> None:
    space = make()
    for address, length in ((1, page), (0x1_0000, 0), (top, page), (1 << 63, page)):
        assert refusal(partial(mapping.unmap_memory, space, address, length)) == "EINVAL"


def test_an_address_space_that_finds_no_root_takes_nothing(plain: Board) -> None:
    plain.buddy.failures = FailsAt(0)
    with pytest.raises(OutOfFrames):
        plain.space()
    plain.buddy.failures = NEVER_FAILS
    assert plain.spaces == []


def test_only_pages_that_become_executable_make_code_that_can_change(make: Make, plain: Board) -> None:
    """Nothing that the kernel writes needs a second look while there is no such code."""
    space = make()
    at = mmap(space, 0x100_0000, 4)
    plain.cpu.copy_to_user(at, b"data")
    mapping.protect_memory(space, at, space.page_size, Protection.READ)  # what every program does to its GOT
    assert not plain.physical.code.mutable
    plain.cpu.code_changes = False
    mapping.protect_memory(space, at, space.page_size, Protection.READ | Protection.EXECUTE)
    assert plain.physical.code.mutable
    assert plain.cpu.code_changes, "the CPU looks after stores to code from now on"
