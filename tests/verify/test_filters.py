"""Filters: what passes is what a walk of each address says it should."""

from __future__ import annotations

import re
from itertools import product

import pytest

from aether_emu.verify import open_tables, survey, walk
from aether_emu.verify.tables.filters import Filter, filtered, span_of
from aether_emu.verify.tables.formats import Right
from aether_emu.verify.tables.listing import Range, Repeat, listing
from tests.verify.crafted_images import CODE, PAGE, TABLE, Crafted
from tests.verify.random_tables import FORMATS, addresses, random_tables
from tests.verify.test_tables import surveyed

TOP = 1 << 64
UPPER = 0xFFFF_FFFF_8000_0000


def passes(rights: Right, wanted: Filter) -> bool:
    """A filter in the words of its options."""
    write = Right.USER_WRITE if wanted.user else Right.USER_WRITE | Right.WRITE
    execute = Right.USER_EXECUTE if wanted.user else Right.USER_EXECUTE | Right.EXECUTE
    user = Right.USER_READ | Right.USER_WRITE | Right.USER_EXECUTE
    return bool(
        (not wanted.writable or rights & write)
        and (not wanted.executable or rights & execute)
        and (not wanted.user or rights & user)
    )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(2))
def test_what_is_listed_is_what_grants_all_that_is_wanted(name: str, seed: int) -> None:
    crafted = random_tables(name, seed)
    tables = open_tables(crafted.image, root=crafted.root, format=name)
    found = survey(tables)
    walks = [walk(tables, address) for address in addresses(crafted)]
    for writable, executable, user in product((False, True), repeat=3):
        wanted = Filter(writable, executable, user)
        items = list(listing(filtered(found, wanted)))
        for one in walks:
            place = [item for item in items if item.start <= one.address and int(one.address) < item.end]
            if one.physical is None or not passes(one.rights, wanted):
                # Of a repeat, only a part need pass.
                assert all(isinstance(item, Repeat) for item in place)
            else:
                assert len(place) == 1


def test_a_repeat_of_what_does_not_pass_is_left_out() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x5000, 0x20000, PAGE["x86_64"] & ~2)
    crafted.leaf(0x4000_0000, 0x21000)
    pd, other = crafted.table_of(0, 2), crafted.table_of(0x4000_0000, 2)
    crafted.put(2 << 30, pd | TABLE["x86_64"], level=3)
    crafted.put(3 << 30, other | TABLE["x86_64"], level=3)
    # By way of another shared table: what it repeats passes by what that one repeats.
    crafted.put(1 << 39, crafted.table_of(0, 3) | TABLE["x86_64"], level=4)
    found = surveyed(crafted)
    everything = [item.start for item in listing(found)]
    assert everything == [0x5000, 1 << 30, 2 << 30, 3 << 30, 1 << 39]
    writable = [item.start for item in listing(filtered(found, Filter(writable=True)))]
    assert writable == [1 << 30, 3 << 30, 1 << 39]
    assert list(listing(filtered(found, Filter(executable=True)))) == []


def test_ranges_are_of_pages_that_have_a_byte_in_them() -> None:
    crafted = Crafted("x86_64-4level")
    for number in range(8):
        crafted.leaf(0x10000 + 0x1000 * number, 0x20000 + 0x1000 * number)
    crafted.leaf(UPPER, 0x200000, CODE["x86_64"], level=2)
    crafted.leaf(TOP - 0x1000, 0x30000)
    found = surveyed(crafted)

    def spans(*wanted: tuple[int, int]) -> list[tuple[int, int]]:
        items = listing(filtered(found, Filter(spans=wanted)))
        return [(int(item.start), item.end) for item in items if isinstance(item, Range)]

    assert spans((0x12000, 0x14000)) == [(0x12000, 0x14000)]
    assert spans((0x12FFF, 0x14001)) == [(0x12000, 0x15000)]
    assert spans((0x10000, 0x11000), (0x17FFF, 0x18000)) == [(0x10000, 0x11000), (0x17000, 0x18000)]
    assert spans((UPPER + 0x1234, UPPER + 0x1235)) == [(UPPER, UPPER + 0x200000)]
    assert spans((TOP - 1, TOP)) == [(TOP - 0x1000, TOP)]
    assert spans((0, 0x10000), (0x18000, UPPER)) == []
    assert len(spans((0, TOP))) == 3


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("1000-2000", (0x1000, 0x2000)),
        ("0x1000-0X2000", (0x1000, 0x2000)),
        ("ffff800000000000-0", (0xFFFF_8000_0000_0000, TOP)),
        ("ffffffffffffffff+1", (TOP - 1, TOP)),
        ("0-10000000000000000", (0, TOP)),
        ("1000+0x10", (0x1000, 0x1010)),
    ],
)
def test_spans_are_written_as_they_are_printed(text: str, span: tuple[int, int]) -> None:
    assert span_of(text) == span


@pytest.mark.parametrize(
    "text",
    ["", "1000", "2000-1000", "1000-1000", "1000+0", "x-y", "-1-5", "1-2-3", "ffffffffffffffff+2", "1" * 18],
)
def test_spans_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text) or "^$"):
        span_of(text)
