"""What `show` prints: ranges as a person would draw them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from aether_emu.verify import open_tables, survey
from aether_emu.verify.tables.listing import Range, listing, ranges
from aether_emu.verify.tables.notes import Registers
from aether_emu.verify.tables.show import table, totals, writable_executable
from aether_emu.verify.tables.survey import Survey
from aether_emu.verify.tables.text import size_text
from tests.verify.crafted_images import CODE, KERNEL, PAGE, Crafted
from tests.verify.test_tables import surveyed

TITLES = ["start", "end", "size", "page", "user", "kernel", "flags", "memory", "physical"]
UPPER = 0xFFFF_FFFF_8000_0000


def shown(crafted: Crafted) -> list[Range]:
    return ranges(surveyed(crafted))


def cells(found: Survey) -> list[list[str]]:
    """What a pipe gets, without the titles: no cell has two blanks."""
    lines = b"".join(table(listing(found))).decode().splitlines()
    assert lines[0].split() == TITLES
    return [re.split("  +", line) for line in lines[1:]]


@pytest.mark.parametrize("name", ["x86_64-4level", "arm64-4K", "arm64-16K", "arm64-64K"])
def test_pages_that_are_alike_become_one_range(name: str) -> None:
    crafted = Crafted(name)
    page = crafted.format.page
    for number in range(20):
        crafted.leaf(page * (4 + number), page * (30 + number))
    (item,) = shown(crafted)
    assert (item.start, item.end, item.page) == (4 * page, 24 * page, page)
    assert (item.physical, item.pieces) == (30 * page, 1)


def test_other_rights_types_sizes_and_holes_part_ranges() -> None:
    crafted = Crafted("x86_64-4level")
    page = PAGE["x86_64"]
    kinds = (page, page & ~2, page & ~4, page & (1 << 63) - 1, page | 0x10, page | 0x100)
    for number, bits in enumerate(kinds):
        for half in range(2):
            crafted.leaf(0x10000 + 0x2000 * number + 0x1000 * half, 0x20000 + 0x1000 * half, bits)
    crafted.leaf(0x10000 + 0x2000 * len(kinds) + 0x1000, 0x20000)
    found = surveyed(crafted)
    assert [item.size for item in ranges(found)] == [0x2000] * len(kinds) + [0x1000]
    assert [line[4:8] for line in cells(found)[:-1]] == [
        ["rw-", "rw-", "-", "PAT0"], ["r--", "r--", "-", "PAT0"], ["---", "rw-", "-", "PAT0"],
        ["rwx", "rwx", "-", "PAT0"], ["rw-", "rw-", "-", "PAT2"], ["rw-", "rw-", "global", "PAT0"],
    ]  # fmt: skip
    assert writable_executable(listing(found)).tolist() == [False, False, False, True, False, False, False]


def test_accessed_and_dirty_flags_part_nothing() -> None:
    crafted = Crafted("x86_64-4level")
    for number, flags in enumerate((0, 0x20, 0x60)):
        crafted.leaf(0x1000 * number, 0x20000 + 0x1000 * number, PAGE["x86_64"] & ~0x60 | flags)
    assert len(shown(crafted)) == 1


def test_a_large_page_beside_small_ones_is_a_range_of_its_own() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x1FF000, 0x5000)
    crafted.leaf(0x200000, 0x200000, level=2)
    crafted.leaf(0x40000000, 0, level=3)
    assert [(item.size, item.page) for item in shown(crafted)] == [
        (1 << 12, 1 << 12), (1 << 21, 1 << 21), (1 << 30, 1 << 30),
    ]  # fmt: skip


def test_frames_that_do_not_follow_each_other_are_counted_in_pieces() -> None:
    crafted = Crafted("x86_64-4level")
    for number, frame in enumerate((0x20, 0x21, 0x30, 0x22)):
        crafted.leaf(0x1000 * number, frame << 12)
    (item,) = shown(crafted)
    assert item.pieces == 3
    assert cells(surveyed(crafted))[0][-1] == "3 pieces"


def test_the_halves_of_an_address_space_never_touch() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf((1 << 47) - 0x1000, 0x5000)
    crafted.leaf(-(1 << 47) % (1 << 64), 0x6000)
    crafted.leaf((1 << 64) - 0x1000, 0x7000)
    items = shown(crafted)
    assert len(items) == 3
    assert cells(surveyed(crafted))[2][1] == "0" * 16


def test_rights_of_tables_above_narrow_the_pages() -> None:
    crafted = Crafted("arm64-4K")
    crafted.leaf(0, 0x5000, 0x743)
    slot = crafted.slot(crafted.table_of(0, 2), 0, 2)
    locks = (
        (0, ["rwx", "rw-"]),
        (1 << 61, ["--x", "rwx"]),
        (1 << 62, ["r-x", "r-x"]),
        (1 << 60, ["rw-", "rw-"]),
        (1 << 59, ["rwx", "rw-"]),
    )
    for lock, letters in locks:
        entry = int(crafted.words[slot])
        crafted.words[slot] = entry | lock
        assert cells(surveyed(crafted))[0][4:6] == letters, hex(lock)
        crafted.words[slot] = entry


def test_memory_types_have_names_where_the_register_is_known() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0, 0x5000, PAGE["x86_64"] | 0x80)
    crafted.leaf(0x200000, 0x200000, PAGE["x86_64"] | 1 << 12 | 0x18, level=2)
    tables = open_tables(
        crafted.image, **crafted.options, registers=Registers(memory_types=0x0407_0506_0007_0106)
    )
    assert [item.memory for item in ranges(survey(tables))] == ["WB", "WT"]
    arm = Crafted("arm64-4K")
    for number in range(4):
        arm.leaf(0x2000 * number, 0x5000, PAGE["arm64"] | number << 2)
    known = open_tables(arm.image, **arm.options, registers=Registers(memory_types=0x040044FF))
    assert [item.memory for item in ranges(survey(known))] == [
        "Normal-WB inner", "Normal-NC", "Device-nGnRnE", "Device-nGnRE",
    ]  # fmt: skip


def test_smep_and_wxn_take_execution_from_the_kernel() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0, 0x5000, 0x67)
    with_smep = open_tables(crafted.image, **crafted.options, registers=Registers(smep=True))
    assert cells(survey(with_smep))[0][4:6] == ["rwx", "rw-"]
    arm = Crafted("arm64-4K")
    arm.leaf(UPPER, 0x5000, 0x703)
    for wxn, letters in ((False, "rwx"), (True, "rw-")):
        tables = open_tables(arm.image, **arm.options, registers=Registers(wxn=wxn))
        assert cells(survey(tables))[0][5] == letters


def test_totals_count_pages_by_size_and_tables_by_level() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0, 0x5000)
    crafted.leaf(0x200000, 0x200000, level=2)
    crafted.put(0x40000000, 0x7000_0000_0000 | 0x27, level=3)
    assert totals(surveyed(crafted)) == [
        "2052K mapped: 1 of 4K, 1 of 2M",
        "tables: 1 PML4, 1 PDPT, 2 PD, 1 PT",
        "1 entry is wrong or leads nowhere: aether pt lint tells them",
    ]
    assert totals(surveyed(Crafted("x86_64-4level")))[0] == "0B mapped: no pages"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (4096, "4K"), (2 << 20, "2M"), (3 << 29, "1536M"), (1 << 47, "128T"), (5, "5B")],
)
def test_sizes_are_whole_numbers(size: int, text: str) -> None:
    assert size_text(size) == text


def test_a_million_pages_of_a_kernel_are_few_ranges() -> None:
    crafted = Crafted("x86_64-4level", 2080)
    entries = np.arange(512, dtype=np.uint64)
    for number in range(2048):
        table = crafted.table_of(UPPER - (1 << 33) + (number << 21), 1)
        crafted.words[table // 8 + entries] = (
            np.uint64(number << 21) + (entries << np.uint64(12))
        ) | np.uint64(KERNEL["x86_64"])
    crafted.leaf(UPPER, 0x5000, CODE["x86_64"])
    found = surveyed(crafted)
    assert found.leaves.count == (1 << 20) + 1
    assert [(item.size, item.physical) for item in ranges(found)] == [(1 << 32, 0), (4096, 0x5000)]
