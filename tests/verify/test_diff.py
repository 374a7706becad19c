"""What differs between two address spaces, held against walks of each address in both."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

import numpy as np
import pytest

from aether_emu.errors import ConfigError
from aether_emu.verify import Walk, open_tables, survey, walk
from aether_emu.verify.tables.diff import ALONE, Change, Difference, difference
from aether_emu.verify.tables.diff_lines import changes, table
from aether_emu.verify.tables.filters import Filter
from aether_emu.verify.tables.notes import Registers
from tests.verify.crafted_images import CODE, PAGE, TABLE, Crafted
from tests.verify.random_tables import FORMATS, addresses, altered, random_tables
from tests.verify.test_tables import surveyed

UPPER = 0xFFFF_FFFF_8000_0000
USE = Change.ACCESSED_ON | Change.ACCESSED_OFF | Change.DIRTY_ON | Change.DIRTY_OFF


def compared(old: Crafted, new: Crafted, *, ignore_accessed: bool = False) -> Difference:
    return difference(surveyed(old), surveyed(new), ignore_accessed=ignore_accessed)


def listed(found: Difference) -> list[tuple[int, int, Change]]:
    columns = (found.start.tolist(), found.size.tolist(), found.change.tolist())
    return [(start, size, Change(change)) for start, size, change in zip(*columns, strict=True)]


def text(found: Difference, width: int | None = None) -> list[str]:
    return b"".join(table(found, width)).decode().splitlines()


def expected(old: Walk, new: Walk) -> Change:
    """What two walks say of one address; accessed and dirty flags are not theirs to say."""
    if old.physical is None or new.physical is None:
        both = old.physical is None and new.physical is None
        return Change(0) if both else Change.MAPPED if old.physical is None else Change.UNMAPPED
    change = Change(0)
    letters = int(old.rights ^ new.rights)
    change |= Change.PROTECTION if letters & 63 else Change(0)
    change |= Change.GLOBAL if letters & 64 else Change(0)
    change |= Change.SIZE if old.page != new.page else Change(0)
    change |= Change.MEMORY if old.memory != new.memory else Change(0)
    return change | (Change.TARGET if old.physical != new.physical else Change(0))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_each_address_differs_as_walks_of_both_say(name: str, seed: int) -> None:
    one = random_tables(name, seed)
    other = altered(one, seed) if seed % 2 else random_tables(name, seed + 100)
    tables = [open_tables(each.image, root=each.root, format=name) for each in (one, other)]
    surveys = [survey(each) for each in tables]
    found = listed(difference(*surveys, ignore_accessed=True))
    assert all(first + size <= second for (first, size, _), (second, _, _) in pairwise(found))
    starts = [start for start, _size, _change in found]
    untold, told = [], set()
    for address in addresses(one):
        walks = walk(tables[0], address), walk(tables[1], address)
        place = bisect_right(starts, address) - 1
        inside = place >= 0 and address < found[place][0] + found[place][1]
        if inside:
            assert found[place][2] == expected(*walks) != 0, hex(address)
            told.add(tuple(each.physical for each in walks))
        elif expected(*walks):
            untold.append(tuple(each.physical for each in walks))
    # What both repeat from one place is told there, once.
    assert set(untold) <= told
    assert not untold or all(each.again.address.size for each in surveys)
    assert listed(difference(surveys[0], surveys[0])) == []


def test_neighbours_that_differ_alike_are_one_range_with_what_was_and_is() -> None:
    old, new = Crafted("x86_64-4level"), Crafted("x86_64-4level")
    page = PAGE["x86_64"]
    for number in range(6):
        old.leaf(0x400000 + 0x1000 * number, 0x20000 + 0x1000 * number)
        new.leaf(
            0x400000 + 0x1000 * number, 0x20000 + 0x1000 * number, page & ~2 if number in (2, 3) else page
        )
    old.leaf(0x600000, 0x5000)
    new.leaf(0x601000, 0x6000, CODE["x86_64"])
    found = compared(old, new)
    assert listed(found) == [
        (0x402000, 0x2000, Change.PROTECTION),
        (0x600000, 0x1000, Change.UNMAPPED),
        (0x601000, 0x1000, Change.MAPPED),
    ]
    lines = text(found)
    assert lines[-1] == "4K mapped in 1 range, 4K unmapped in 1 range, 8K changed in 1 range"
    assert [line.split() for line in lines[:-1]] == [
        ["start", "end", "size", "page", "user", "kernel", "flags", "memory", "physical"],
        ["~", f"{0x402000:016x}", f"{0x404000:016x}", "8K", "protection"],
        ["was", "4K", "rw-", "rw-", "-", "PAT0", "0x22000"],
        ["is", "4K", "r--", "r--", "-", "PAT0", "0x22000"],
        ["-", f"{0x600000:016x}", f"{0x601000:016x}", "4K", "4K", "rw-", "rw-", "-", "PAT0", "0x5000"],
        ["+", f"{0x601000:016x}", f"{0x602000:016x}", "4K", "4K", "---", "r-x", "global", "PAT0", "0x6000"],
    ]


@pytest.mark.parametrize(
    ("isa", "old", "new", "words"),
    [
        ("x86_64", 0x67, 0x65, ["protection"]),
        ("x86_64", 0x63, 0x67, ["protection"]),
        ("x86_64", 0x67, 0x167, ["global"]),
        ("x86_64", 0x67, 0x77, ["memory"]),
        ("x86_64", 0x07, 0x27, ["accessed on"]),
        ("x86_64", 0x27, 0x07, ["accessed off"]),
        ("x86_64", 0x27, 0x67, ["dirty on"]),
        ("x86_64", 0x67, 0x25, ["protection", "dirty off"]),
        ("x86_64", 0x67, 0x1067, ["target"]),
        ("x86_64", 0x67, 1 << 9 | 0x67, []),  # a bit that the CPU ignores
        ("arm64", 0x743, 0x7C3, ["protection"]),
        ("arm64", 0x743, 0x343, ["accessed off"]),
        ("arm64", 0x743, 0xF43, ["global"]),
        ("arm64", 0x743, 0x747, ["memory"]),
        ("arm64", 0x743, 1 << 52 | 0x743, ["contiguous"]),
        ("arm64", 0x743, 1 << 55 | 0x743, []),
    ],
)  # fmt: skip
def test_each_thing_that_can_change_has_its_word(isa: str, old: int, new: int, words: list[str]) -> None:
    crafted = []
    for bits in (old, new):
        crafted.append(Crafted(f"{isa}-4level" if isa == "x86_64" else "arm64-4K"))
        crafted[-1].leaf(0x5000, 0x20000, bits)
    found = listed(compared(*crafted))
    assert [changes(change) for _start, _size, change in found] == ([words] if words else [])
    ignoring = listed(compared(*crafted, ignore_accessed=True))
    rest = [word for word in words if word.split()[0] not in ("accessed", "dirty")]
    assert [changes(change) for _start, _size, change in ignoring] == ([rest] if rest else [])


def test_a_use_alone_is_one_line() -> None:
    old, new = Crafted("x86_64-4level"), Crafted("x86_64-4level")
    old.leaf(0x5000, 0x20000, 0x7)
    new.leaf(0x5000, 0x20000, 0x67)
    assert [line.split()[4:] for line in text(compared(old, new))[1:-1]] == [
        ["accessed", "on,", "dirty", "on"]
    ]


def test_a_large_page_that_is_split_up_differs_in_size_and_where_a_part_is_gone() -> None:
    old, new = Crafted("x86_64-4level"), Crafted("x86_64-4level")
    old.leaf(UPPER, 0x200000, level=2)
    for number in range(512):
        if number != 7:
            new.leaf(UPPER + 0x1000 * number, 0x200000 + 0x1000 * number)
    assert listed(compared(old, new)) == [
        (UPPER, 0x7000, Change.SIZE),
        (UPPER + 0x7000, 0x1000, Change.UNMAPPED),
        (UPPER + 0x8000, 0x1F8000, Change.SIZE),
    ]


def test_the_last_page_of_all_is_compared_too() -> None:
    old, new = Crafted("x86_64-4level"), Crafted("x86_64-4level")
    new.leaf((1 << 64) - 0x1000, 0x20000)
    assert listed(compared(old, new)) == [((1 << 64) - 0x1000, 0x1000, Change.MAPPED)]
    assert listed(compared(new, old)) == [((1 << 64) - 0x1000, 0x1000, Change.UNMAPPED)]
    assert text(compared(old, new))[1].split()[2] == "0" * 16


def test_where_the_tables_lie_is_no_difference() -> None:
    old, new = Crafted("x86_64-4level"), Crafted("x86_64-4level")
    new.next += 0x8000
    for crafted in (old, new):
        crafted.leaf(0x5000, 0x30000)
    assert not np.array_equal(old.words, new.words)
    assert listed(compared(old, new)) == []
    assert text(compared(old, new)) == []


def test_memory_types_are_compared_by_name() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x5000, 0x20000)
    crafted.leaf(0x6000, 0x21000, PAGE["x86_64"] | 0x10)
    surveys = []
    for pat in (0x0007_0406, 0x0006_0407):
        registers = Registers(memory_types=pat)
        surveys.append(survey(open_tables(crafted.image, **crafted.options, registers=registers)))
    assert listed(difference(*surveys)) == [
        (0x5000, 0x1000, Change.MEMORY), (0x6000, 0x1000, Change.MEMORY),
    ]  # fmt: skip
    words = [line.split()[4] for line in text(difference(*surveys)) if line.split()[0] in ("was", "is")]
    assert words == ["-", "-", "-", "-"]
    assert [line.split()[5] for line in text(difference(*surveys)) if line.split()[0] in ("was", "is")] == [
        "WB", "UC-", "UC-", "WB",
    ]  # fmt: skip


def test_filters_let_through_what_either_side_passes() -> None:
    old, new = Crafted("x86_64-4level"), Crafted("x86_64-4level")
    page = PAGE["x86_64"]
    old.leaf(0x5000, 0x20000, page & ~2)
    new.leaf(0x5000, 0x20000, page)
    old.leaf(0x7000, 0x21000, page & ~2)
    new.leaf(0x9000, 0x22000, page & ~4)
    surveys = surveyed(old), surveyed(new)

    def starts(wanted: Filter) -> list[int]:
        return [start for start, _size, _change in listed(difference(*surveys, wanted=wanted))]

    assert starts(Filter()) == [0x5000, 0x7000, 0x9000]
    assert starts(Filter(writable=True)) == [0x5000, 0x9000]
    assert starts(Filter(user=True)) == [0x5000, 0x7000]
    assert starts(Filter(user=True, writable=True)) == [0x5000]
    assert starts(Filter(spans=((0x6000, 0x7001), (0x9000, 0x9001)))) == [0x7000, 0x9000]


def test_two_architectures_cannot_be_compared_two_levels_can() -> None:
    old, new, arm = Crafted("x86_64-4level"), Crafted("x86_64-5level"), Crafted("arm64-4K")
    for crafted in (old, new, arm):
        crafted.leaf(0x5000, 0x20000)
    assert listed(compared(old, new)) == []
    with pytest.raises(ConfigError, match="x86_64"):
        compared(old, arm)


def test_shared_tables_that_unfold_without_end_are_refused() -> None:
    crafted = Crafted("x86_64-5level", 3)
    crafted.words[512:1024] = crafted.root | TABLE["x86_64"]
    empty = Crafted("x86_64-5level", 3)
    with pytest.raises(ConfigError, match="limit"):
        compared(crafted, empty)
    assert listed(compared(crafted, crafted)) == []


def test_counts_are_of_what_differs() -> None:
    old, new = Crafted("x86_64-4level"), Crafted("x86_64-4level")
    for number in (1, 2, 5):
        new.leaf(0x1000 * number, 0x20000 + 0x1000 * number)
    found = compared(old, new)
    assert found.counted(Change.MAPPED) == (2, 0x3000)
    assert found.counted(~ALONE) == (0, 0)
    assert text(found)[-1] == "12K mapped in 2 ranges"
    assert found.counted(USE) == (0, 0)


def test_no_line_is_longer_than_a_terminal_and_none_is_cut() -> None:
    old, new = Crafted("arm64-64K-52bit-lpa"), Crafted("arm64-64K-52bit-lpa")
    for crafted, bits in ((old, 0x743 | 1 << 52), (new, 0xF83 | 7 << 2)):
        crafted.put(0x000F_FFFF_FFFF_0000, (1 << 48) - (1 << 16) | 0xF << 12 | bits & ~(0xF << 12))
    found = compared(old, new)
    lines = text(found, 80)
    assert max(map(len, lines)) <= 80
    words = " ".join(lines).split()
    for word in ("000fffffffff0000", "0010000000000000", "fffffffff0000", "contiguous,", "memory"):
        assert word in words
