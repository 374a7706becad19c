"""Tables that unfold to more than anybody could print: what they cost is bounded by the memory they fill."""

from __future__ import annotations

import tracemalloc
from bisect import bisect_right
from itertools import pairwise

import numpy as np
import pytest

from aether_emu.verify import image_of, lint, open_tables, survey, walk
from aether_emu.verify.tables.format_names import NAMES
from aether_emu.verify.tables.listing import listing, ranges, repeats
from aether_emu.verify.tables.show import totals
from aether_emu.verify.tables.survey import Odd
from aether_emu.verify.tables.text import size_text
from tests.verify.crafted_images import TABLE, Crafted
from tests.verify.test_show import cells
from tests.verify.test_tables import odd, surveyed

SOME = (
    "x86_64-4level",
    "x86_64-5level",
    "arm64-4K",
    "arm64-4K-52bit-lpa2",
    "arm64-16K-47bit",
    "arm64-64K-lpa",
)
"""One of each way to be different: levels, granules, addresses of 52 bits."""


def hostile(name: str, pages: int, seed: int) -> Crafted:
    """Tables full of entries that lead to any of the image's pages, with rights at random."""
    crafted = Crafted(name, pages)
    rng = np.random.default_rng(seed)
    page, words = crafted.format.page, crafted.words
    words[:] = rng.integers(0, pages, words.size, np.uint64) * np.uint64(page)
    kinds = [TABLE[crafted.isa], TABLE[crafted.isa] & ~2, crafted.page_bits, crafted.page_bits & ~2]
    kinds += [kind | 1 << 7 for kind in kinds]
    words |= np.array(kinds, np.uint64)[rng.integers(0, len(kinds), words.size)]
    words ^= rng.integers(0, 2, words.size, np.uint64) << np.uint64(63)
    words ^= rng.integers(0, 2, words.size, np.uint64) << np.uint64(60)
    return crafted


@pytest.mark.parametrize(("name", "pages"), [*((name, 3) for name in SOME), ("x86_64-5level", 8)])
def test_what_is_found_and_kept_is_bounded_by_the_image(name: str, pages: int) -> None:
    crafted = hostile(name, pages, pages)
    levels, entries = crafted.format.levels, crafted.words.size
    most = 2 * 16 * levels * entries  # halves, sets of rights, levels
    tracemalloc.start()
    found = surveyed(crafted)
    findings = lint(found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.leaves.count + found.again.address.size <= most
    assert len(listing(found)) <= most
    assert peak < 1500 * most
    assert len(findings) < 1500
    assert Odd.LIMIT not in odd(found)


@pytest.mark.parametrize("name", NAMES)
def test_a_shared_table_below_shared_tables_is_listed_once_and_counted_in_full(name: str) -> None:
    crafted = Crafted(name, 8)
    page, isa = crafted.format.page, crafted.isa
    tables = [crafted.root, *((3 + number) * page for number in range(crafted.format.levels - 1))]
    for number, (table, below) in enumerate(zip(tables, [*tables[1:], None], strict=True)):
        level = crafted.format.levels - number
        count = 1 << crafted.format.widths[level - 1]
        count >>= level == crafted.format.levels and isa == "x86_64"  # the lower half
        entry = 7 * page | crafted.page_bits if below is None else below | TABLE[isa]
        crafted.words[table // 8 : table // 8 + count] = entry
    found = survey(open_tables(crafted.image, root=crafted.root, format=name))
    width = crafted.format.shifts[-1] + crafted.format.widths[-1] - (isa == "x86_64")
    assert found.pages[0] == 1 << width - crafted.format.shifts[0]
    assert found.leaves.count == page // 8
    (whole,) = ranges(found)
    assert (whole.start, whole.size) == (0, page * (page // 8))
    parts = repeats(found)
    # The lowest way down is printed; on each level above it the rest of the table is one line.
    assert len(parts) == crafted.format.levels - 1
    assert (parts[0].start, parts[-1].end) == (whole.end, 1 << width)
    assert all(part.first == 0 for part in parts)
    assert all(one.end == other.start for one, other in pairwise(parts))
    assert totals(found)[0].startswith(f"{size_text(1 << width)} mapped: ")


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("seed", range(2))
def test_what_is_said_to_be_the_same_is_the_same(name: str, seed: int) -> None:
    crafted = hostile(name, 4, seed)
    tables = open_tables(crafted.image, **crafted.options)
    found = survey(tables)
    again = found.again
    assert again.address.size > 10
    rng = np.random.default_rng(seed)
    shifts = crafted.format.shifts
    for index in rng.integers(0, again.address.size, 25).tolist():
        level = int(again.level[index])
        for inside in rng.integers(0, 1 << shifts[level], 3).tolist():
            one, other = (walk(tables, int(start[index]) + inside) for start in (again.address, again.first))
            assert (one.physical, one.page, one.rights, one.memory) == (
                other.physical, other.page, other.rights, other.memory,
            )  # fmt: skip
            assert one.steps[-1].at == other.steps[-1].at or one.fault == other.fault != ""


@pytest.mark.parametrize("name", SOME)
def test_every_address_is_listed_as_a_leaf_or_as_the_same_as_another(name: str) -> None:
    crafted = hostile(name, 3, 9)
    tables = open_tables(crafted.image, **crafted.options)
    items = list(listing(survey(tables)))
    starts = [int(item.start) for item in items]
    assert starts == sorted(starts)
    assert all(one.end <= other.start for one, other in pairwise(items))
    rng = np.random.default_rng(1)
    width = crafted.format.shifts[-1] + crafted.format.widths[-1] - (crafted.isa == "x86_64")
    for address in rng.integers(0, 1 << width, 60).tolist():
        place = bisect_right(starts, address) - 1
        inside = place >= 0 and address < items[place].end
        # Below a repeat something is mapped, but not everything.
        assert inside or walk(tables, address).physical is None


def test_tables_nobody_saved_cost_nothing_each() -> None:
    crafted = Crafted("x86_64-4level", 300)
    for number in range(256):
        crafted.words[(3 + number) * 512 : (4 + number) * 512] = (
            np.arange(512, dtype=np.uint64) + np.uint64(512 * number) << np.uint64(12)
        ) + np.uint64(1 << 45 | TABLE["x86_64"])
        crafted.put(number << 30, (3 + number) << 12 | TABLE["x86_64"], level=3)
    tracemalloc.start()
    found = surveyed(crafted)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert odd(found)[Odd.UNBACKED] >= 255 * 512
    assert peak < 100 << 20
    assert len([one for one in lint(found) if one.rule == "unbacked-table"]) < 5


def test_a_table_that_is_its_own_page_table_is_one_line_a_level() -> None:
    crafted = Crafted("x86_64-5level", 3)
    crafted.words[512:1024] = crafted.root | TABLE["x86_64"]
    found = surveyed(crafted)
    lines = cells(found)
    assert len(lines) < 20
    assert lines[1][-1] == "as at 0000000000000000, by the PT table at 0x1000"
    assert lines[1][3:8] == ["-"] * 5
    assert found.pages[0] == 512**5


def test_an_image_may_be_all_one_table() -> None:
    memory = np.full(512, TABLE["x86_64"], np.uint64)
    found = survey(open_tables(image_of(memory), root=0, format="x86_64-5level"))
    assert found.leaves.count == 2 * 512
