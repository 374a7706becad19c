"""RLIMIT_DATA and RLIMIT_AS: what counts, what is refused, and what is let through as on Linux."""

from __future__ import annotations

import pytest

from aether_emu.mm import mapping
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_FIXED, MAP_GROWSDOWN, MAP_PRIVATE, MAP_SHARED
from aether_emu.mm.remap import MREMAP_FIXED, MREMAP_MAYMOVE
from aether_emu.mm.space import AddressSpace
from tests.mm.calls import ANONYMOUS, RW, Make, mmap, mremap, refusal

READ, RWX = 1, 7
AT = 0x4000_0000


@pytest.mark.parametrize(
    ("protection", "flags", "counts"),
    [
        (RW, MAP_PRIVATE, True),
        (RWX, MAP_PRIVATE, True),
        (2, MAP_PRIVATE, True),
        (READ, MAP_PRIVATE, False),
        (0, MAP_PRIVATE, False),
        (RW, MAP_SHARED, False),
        (RW, MAP_PRIVATE | MAP_GROWSDOWN, False),
    ],
)
def test_private_writable_memory_is_data(
    make: Make, page: int, protection: int, flags: int, counts: bool
) -> None:
    space = make()
    space.limits.data = 4 * page
    at = mmap(space, 0, 3, protection, flags | MAP_ANONYMOUS)
    assert space.account.data == 3 * page * counts
    if counts:
        assert refusal(lambda: mmap(space, 0, 2, protection, flags | MAP_ANONYMOUS)) == "ENOMEM"
        mmap(space, 0, 1, protection, flags | MAP_ANONYMOUS)
    else:
        mmap(space, 0, 5, protection, flags | MAP_ANONYMOUS)
    space.unmap(at, at + 3 * page)
    assert space.account.data == page * counts


def test_a_limit_of_nothing_is_the_hard_limit(make: Make, page: int) -> None:
    """So that what uses the limit 0 to force its allocator to mmap goes on working (valgrind)."""
    space = make()
    space.limits.data, space.limits.data_most = 0, 2 * page
    mmap(space, 0, 2)
    assert refusal(lambda: mmap(space, 0, 1)) == "ENOMEM"
    space.limits.data_most = None
    mmap(space, 0, 1)


def test_what_is_replaced_makes_room_whatever_it_was(make: Make, page: int) -> None:
    space = make(address_space=4 * page)
    space.limits.data = 2 * page
    mmap(space, AT, 4, READ, ANONYMOUS | MAP_FIXED)
    mmap(space, AT, 4, RW, ANONYMOUS | MAP_FIXED)
    assert (space.account.data, space.account.reserved) == (4 * page, 4 * page)
    assert refusal(lambda: mmap(space, AT + 2 * page, 3, READ, ANONYMOUS | MAP_FIXED)) == "ENOMEM"
    assert space.account.reserved == 4 * page


def test_an_area_becomes_data_only_within_the_limit(make: Make, page: int) -> None:
    space = make()
    at = mmap(space, AT, 8, READ, ANONYMOUS | MAP_FIXED)
    space.limits.data = 4 * page
    assert refusal(lambda: mapping.protect_memory(space, at, 8 * page, RW)) == "ENOMEM"
    mapping.protect_memory(space, at, 4 * page, RW)
    assert space.account.data == 4 * page
    mapping.protect_memory(space, at, 4 * page, RWX)  # it is data already
    mapping.protect_memory(space, at, 4 * page, READ)
    assert space.account.data == 0


def test_an_area_that_no_longer_fits_its_space_may_become_data(make: Make, page: int) -> None:
    space = make()
    at = mmap(space, AT, 8, READ, ANONYMOUS | MAP_FIXED)
    space.limits.data, space.limits.address_space = 0, page
    mapping.protect_memory(space, at, 8 * page, RW)
    assert space.account.data == 8 * page


@pytest.mark.parametrize(("limit", "most"), [("address_space", 6), ("data", 6)])
def test_a_move_counts_what_it_adds(make: Make, page: int, limit: str, most: int) -> None:
    space = make()
    at = mmap(space, AT, 4, RW, ANONYMOUS | MAP_FIXED)
    setattr(space.limits, limit, most * page)
    assert refusal(lambda: mremap(space, at, 4, 7, MREMAP_MAYMOVE)) == "ENOMEM"
    assert mremap(space, at, 4, 6, MREMAP_MAYMOVE) == at


def test_a_move_of_the_same_length_asks_for_nothing(make: Make, page: int) -> None:
    space = make()
    at = mmap(space, AT, 4, RW, ANONYMOUS | MAP_FIXED)
    space.limits.address_space = 0
    target = at + 16 * page
    assert mremap(space, at, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target


def _heap(space: AddressSpace) -> int:
    space.heap_start = space.heap_end = AT
    return AT


def test_the_heap_and_the_programs_data_share_a_limit(make: Make, page: int) -> None:
    space = make()
    heap = _heap(space)
    space.program_data, space.limits.data = page, 3 * page
    assert mapping.set_break(space, heap + 2 * page + 1) == heap
    assert mapping.set_break(space, heap + 2 * page) == heap + 2 * page
    space.limits.data = 0
    assert mapping.set_break(space, heap + page) == heap + 2 * page, "not even less"


def test_the_heap_is_data_like_all_other(make: Make, page: int) -> None:
    space = make()
    heap = _heap(space)
    space.limits.data = 2 * page
    mmap(space, 0, 1)
    assert mapping.set_break(space, heap + 2 * page) == heap
    assert mapping.set_break(space, heap + page) == heap + page


def test_the_peak_of_the_address_space_is_kept(make: Make, page: int) -> None:
    space = make()
    at = mmap(space, 0, 5)
    space.unmap(at, at + 4 * page)
    mmap(space, 0, 1)
    assert (space.account.reserved, space.account.most_reserved) == (2 * page, 5 * page)
