"""Who uses a physical page: the addresses that lead there, and the tables that lie in it."""

from __future__ import annotations

import numpy as np
import pytest

from aether_emu.verify import open_tables, survey, walk
from aether_emu.verify.tables.survey import Survey
from aether_emu.verify.tables.who import Owners, lines, who
from tests.verify.crafted_images import KERNEL, PAGE, TABLE, Crafted
from tests.verify.random_tables import FORMATS, addresses, random_tables
from tests.verify.test_tables import surveyed

UPPER = 0xFFFF_FFFF_8000_0000


def told(owners: Owners, width: int | None = None) -> list[str]:
    return b"".join(lines(owners, width)).decode().splitlines()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_all_addresses_that_a_walk_leads_there_from_are_found_and_no_others(name: str, seed: int) -> None:
    crafted = random_tables(name, seed)
    tables = open_tables(crafted.image, root=crafted.root, format=name)
    found = survey(tables)
    expected: dict[int, list[int]] = {}
    for address in addresses(crafted):
        walked = walk(tables, address)
        if walked.physical is not None:
            expected.setdefault(int(walked.physical), []).append(address)
    assert expected
    for physical, ways in expected.items():
        owners = who(found, physical)
        assert owners.address.tolist() == sorted(ways)
        assert owners.complete
        assert {int(found.leaves.level[leaf]) for leaf in owners.leaf} <= {1, 2}


def test_both_halves_are_searched_and_large_pages_count() -> None:
    for name in ("x86_64-4level", "arm64-4K"):
        crafted = Crafted(name)
        crafted.leaf(0x5000, 0x20_3000)
        at = crafted.leaf(UPPER, 0x20_0000, KERNEL[crafted.isa], level=2)
        owners = who(surveyed(crafted), 0x20_3123)
        assert owners.address.tolist() == [0x5123, UPPER + 0x3123]
        assert not owners.backed
        text = told(owners)
        assert text[0] == "0x203123: mapped at 2 addresses, no memory of the image"
        assert text[2].split()[:4] == ["0000000000005123", "4K", "rw-", "rw-"]
        assert text[3].split()[:4] == [f"{UPPER + 0x3123:016x}", "2M", "---", "rw-"]
        assert text[3].endswith(f"  {at:#x}")


def test_nobody_uses_a_page_that_nothing_leads_to() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x5000, 0x1_0000)
    for physical in (0xF_FFF, 0x1_1000, (1 << 52) - 1):
        owners = who(surveyed(crafted), physical)
        assert (owners.address.size, owners.tables) == (0, [])
        assert "not mapped" in told(owners)[0]


@pytest.mark.parametrize("name", ["x86_64-4level", "x86_64-5level", "arm64-4K-39bit", "arm64-64K"])
def test_tables_are_told_with_the_entry_that_leads_there_and_what_they_translate(name: str) -> None:
    crafted = Crafted(name)
    page = crafted.format.page
    address = UPPER + 5 * page
    crafted.leaf(address, page * 40)
    found = surveyed(crafted)
    for level in range(1, crafted.format.levels + 1):
        table = crafted.table_of(address, level)
        slot = 8 * crafted.slot(table, address, level)
        (use,) = who(found, slot + 4).tables
        assert (use.level, use.table) == (crafted.format.level_names[level - 1], table)
        span = 1 << crafted.format.shifts[level - 1]
        assert use.translates == address & -span
        assert use.entry == (slot - table) // 8
        if level == crafted.format.levels:
            assert use.at is None
            assert "a root" in told(who(found, slot))[1]
        else:
            above = crafted.table_of(address, level + 1)
            assert use.at == 8 * crafted.slot(above, address, level + 1)
            assert int(use.start) <= address < use.end
            assert use.end - int(use.start) == 1 << crafted.format.shifts[level]


def test_a_table_of_several_levels_is_told_for_each() -> None:
    crafted = Crafted("x86_64-4level", 8)
    crafted.words[512 + 511] = crafted.root | TABLE["x86_64"]  # the root as a PDPT, a PD, a PT and a page
    uses = who(surveyed(crafted), crafted.root).tables
    assert [use.level for use in uses] == ["PML4", "PDPT", "PD", "PT"]
    (at,) = {use.at for use in uses[1:]}
    assert at == crafted.root + 8 * 511


def test_a_table_that_nobody_saved_is_told_once_by_its_first_entry() -> None:
    crafted = Crafted("x86_64-4level")
    first = crafted.put(0x4000_0000, 0x7000_0000 | TABLE["x86_64"], level=2)
    crafted.put(0x4020_0000, 0x7000_0000 | TABLE["x86_64"], level=2)
    (use,) = who(surveyed(crafted), 0x7000_0008).tables
    assert (use.level, use.start, use.entry, use.at) == ("PT", 0x4000_0000, 1, first)


def test_more_addresses_than_are_told_are_said_to_be_more() -> None:
    crafted = Crafted("x86_64-4level", 8)
    crafted.words[512 : 512 + 256] = 3 * 4096 | TABLE["x86_64"]
    for table in (3, 4):
        crafted.words[512 * table : 512 * (table + 1)] = (table + 1) * 4096 | TABLE["x86_64"]
    crafted.words[512 * 5] = 7 << 12 | PAGE["x86_64"]
    found = survey(open_tables(crafted.image, root=crafted.root, format="x86_64-4level"))
    owners = who(found, 7 << 12, most=1000)
    assert not owners.complete
    assert 0 < owners.address.size <= 1000
    assert (np.diff(owners.address.astype(np.int64)) > 0).all()
    assert told(owners)[-1] == "  and more: shared tables lead there in other ways"
    assert who(found, 7 << 12, most=256 * 512).complete is False


@pytest.mark.parametrize("width", [80, 100])
def test_no_line_is_longer_than_the_terminal(width: int) -> None:
    found = widest()
    for owners in (who(found, int(found.leaves.physical[0])), who(found, found.tables.roots[0] or 0)):
        text = told(owners, width)
        assert max(map(len, text)) <= width
        assert f"{owners.address[0]:016x}" in " ".join(text) if owners.address.size else owners.tables


def widest() -> Survey:
    """The widest addresses of both kinds there are."""
    crafted = Crafted("arm64-64K-52bit-lpa")
    crafted.put(0x000F_FFFF_FFFF_0000, (1 << 48) - (1 << 16) | 0xF << 12 | 0x743 | 1 << 52)
    return surveyed(crafted)
