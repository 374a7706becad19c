"""The window of mmap: addresses beyond it are given to those alone who ask by a hint beyond it.

Linux's rule (Documentation/arch/x86/x86_64/5level-paging.rst; arch/x86/kernel/sys_x86_64.c). Programs may
use the top bits of pointers that they did not ask to be wide.
"""

from __future__ import annotations

import pytest

from aether_emu.mm.mapping import MAP_32BIT, MAP_FIXED, MAP_FIXED_NOREPLACE
from aether_emu.mm.remap import MREMAP_MAYMOVE
from aether_emu.mm.space import AddressSpace
from tests.mm.calls import ANONYMOUS, RW, Make, mmap, mremap, refusal

PAGES = 64  # of the window, and as many beyond it
BASE = 0x10_0000


@pytest.fixture
def window(page: int) -> int:
    return BASE + PAGES * page


@pytest.fixture
def end(window: int, page: int) -> int:
    return window + PAGES * page


@pytest.fixture
def space(make: Make, window: int, end: int) -> AddressSpace:
    return make(user_base=BASE, user_end=end, window=window)


def test_without_a_hint_memory_is_below_the_window(space: AddressSpace, window: int, page: int) -> None:
    assert mmap(space, 0, 2) == window - 2 * page
    assert mmap(space, 0, 1) == window - 3 * page


def test_a_hint_beyond_the_window_is_taken_where_it_is_free(
    space: AddressSpace, window: int, end: int, page: int
) -> None:
    assert mmap(space, window + page, 1) == window + page
    assert mmap(space, end - 2 * page, 2) == end - 2 * page
    assert mmap(space, window + 5 * page + 1, 1) == window + 5 * page, "rounded down"


def test_a_hint_beyond_the_window_that_is_taken_searches_the_whole_space_from_the_top(
    space: AddressSpace, window: int, end: int, page: int
) -> None:
    hint = window + 8 * page
    assert mmap(space, hint, 1) == hint
    assert mmap(space, hint, 1) == end - page
    assert mmap(space, hint - page, 2) == end - 3 * page, "its second page is taken"


@pytest.mark.parametrize("beyond", [0, 1, 1 << 40, (1 << 64) - (1 << 40)])
def test_a_hint_beyond_the_end_still_asks_for_more(
    space: AddressSpace, end: int, page: int, beyond: int
) -> None:
    assert mmap(space, (end + beyond * page) % (1 << 64), 2) == end - 2 * page


def test_the_windows_own_end_is_not_beyond_it(space: AddressSpace, window: int, page: int) -> None:
    assert mmap(space, window, 1) == window - page, "nothing fits there without crossing"
    assert mmap(space, window + page - 1, 1) == window - 2 * page, "rounds to the window's end"


def test_memory_across_the_window_is_given_to_nobody_by_a_hint(
    space: AddressSpace, window: int, page: int
) -> None:
    assert mmap(space, window - page, 2) == window - 2 * page
    assert mmap(space, window - 3 * page, 1) == window - 3 * page, "the window's last pages are in it"


def test_after_all_that_memory_without_a_hint_is_below_again(
    space: AddressSpace, window: int, page: int
) -> None:
    mmap(space, window + page, 1)
    mmap(space, window + 2 * page, 1, RW, ANONYMOUS | MAP_FIXED)
    assert mmap(space, 0, 1) == window - page
    assert mmap(space, BASE + page, 1) == BASE + page
    assert mmap(space, BASE + page, 1) == window - 2 * page


def test_a_full_window_is_no_reason_to_go_beyond(space: AddressSpace, window: int, page: int) -> None:
    mmap(space, 0, PAGES)
    assert refusal(lambda: mmap(space, 0, 1)) == "ENOMEM"
    assert refusal(lambda: mmap(space, BASE, 1)) == "ENOMEM"
    assert refusal(lambda: mmap(space, window, 1)) == "ENOMEM"
    assert mmap(space, window + page, 1) == window + page


def test_who_asks_for_more_gets_what_is_below_when_all_beyond_is_taken(
    space: AddressSpace, window: int, page: int
) -> None:
    mmap(space, window, PAGES, RW, ANONYMOUS | MAP_FIXED)
    assert mmap(space, window + page, 1) == window - page
    mmap(space, 0, PAGES - 1)
    assert refusal(lambda: mmap(space, window + page, 1)) == "ENOMEM"


def test_who_asks_for_more_may_get_more_than_the_window_holds(
    space: AddressSpace, end: int, page: int
) -> None:
    assert refusal(lambda: mmap(space, 0, PAGES + 1)) == "ENOMEM"
    assert mmap(space, end - page, PAGES + 1) == end - (PAGES + 1) * page, "a search may cross the window"
    assert refusal(lambda: mmap(space, end - page, 2 * PAGES)) == "ENOMEM"


def test_a_fixed_address_knows_no_window(space: AddressSpace, window: int, end: int, page: int) -> None:
    for address, flag in ((window + page, MAP_FIXED), (end - page, MAP_FIXED_NOREPLACE)):
        assert mmap(space, address, 1, RW, ANONYMOUS | flag) == address
    assert mmap(space, window - page, 2, RW, ANONYMOUS | MAP_FIXED) == window - page
    assert refusal(lambda: mmap(space, end, 1, RW, ANONYMOUS | MAP_FIXED)) == "ENOMEM"


def test_memory_that_moves_stays_below_the_window(space: AddressSpace, window: int, page: int) -> None:
    high = mmap(space, window + page, 1)
    mmap(space, high + page, 1)
    assert mremap(space, high, 1, 2, MREMAP_MAYMOVE) == window - 2 * page
    assert mremap(space, high + page, 1, 2, MREMAP_MAYMOVE) == high + page, "there was room behind it"


def test_the_low_gigabyte_is_searched_whatever_the_hint(make: Make, page: int) -> None:
    space = make(user_base=BASE, user_end=1 << 33, window=1 << 32)
    assert mmap(space, 1 << 32 | page, 1, RW, ANONYMOUS | MAP_32BIT) == 0x4000_0000
    assert mmap(space, 1 << 32 | page, 1) == 1 << 32 | page


def test_without_a_window_of_its_own_all_of_a_space_is_it(make: Make, end: int, page: int) -> None:
    space = make(user_base=BASE, user_end=end)
    assert space.limits.window == space.mmap_base == end
    assert mmap(space, 0, 1) == end - page
    assert mmap(space, end - 3 * page, 2) == end - 3 * page
