"""Walks and surveys of other people's tables: by the specification, and never without an end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_emu.address import PhysAddr, VirtAddr
from aether_emu.errors import ConfigError
from aether_emu.verify import image_of, open_tables, survey, walk
from aether_emu.verify.tables.format_names import NAMES
from aether_emu.verify.tables.formats import ALLOWED, Right
from aether_emu.verify.tables.images import open_image
from aether_emu.verify.tables.listing import ranges, repeats
from aether_emu.verify.tables.notes import Registers
from aether_emu.verify.tables.show import walk_lines
from aether_emu.verify.tables.survey import Odd, Survey
from tests.verify.crafted_images import KERNEL, LARGE, PAGE, TABLE, Crafted, Words

UPPER = 0xFFFF_FFFF_8000_0000
_SHOWN = ALLOWED | Right.GLOBAL


def surveyed(crafted: Crafted, **options: int) -> Survey:
    return survey(open_tables(crafted.image, **crafted.options), **options)


def odd(found: Survey) -> dict[Odd, int]:
    """How many entries of each oddity."""
    counts: dict[Odd, int] = {}
    for item in found.odd:
        counts[item.odd] = counts.get(item.odd, 0) + item.address.size
    return counts


# ---- one address


@pytest.mark.parametrize("name", NAMES)
def test_a_walk_shows_every_level_and_where_it_leads(name: str) -> None:
    crafted = Crafted(name)
    page, levels = crafted.format.page, crafted.format.levels
    at = crafted.leaf(page * 5, page * 40)
    found = walk(crafted.image, page * 5 + 0x18, **crafted.options)
    assert (found.physical, found.page, found.backed, found.fault) == (page * 40 + 0x18, page, True, "")
    assert [step.level for step in found.steps] == list(reversed(crafted.format.level_names))
    assert len(found.steps) == levels
    assert (found.steps[-1].at, found.steps[-1].entry) == (at, page * 40 | crafted.page_bits)
    assert found.steps[-1].index == 5
    assert found.rights & ALLOWED == Right.USER_READ | Right.USER_WRITE | Right.READ | Right.WRITE


def test_a_walk_gives_addresses_that_know_their_kind() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x5000, 0x28000)
    found = walk(crafted.image, VirtAddr(0x5018), **crafted.options)
    assert isinstance(found.address, VirtAddr)
    assert all(isinstance(at, PhysAddr) for at in (found.physical, *(step.at for step in found.steps)))
    (item,) = ranges(surveyed(crafted))
    assert (type(item.start), type(item.physical)) == (VirtAddr, PhysAddr)


@pytest.mark.parametrize("name", NAMES)
def test_a_walk_into_nothing_names_the_level(name: str) -> None:
    crafted = Crafted(name)
    crafted.leaf(0, 0)
    found = walk(crafted.image, crafted.format.page * 7, **crafted.options)
    assert found.physical is None
    assert found.fault.startswith(
        "not present in the PT" if crafted.isa == "x86_64" else "translation fault, level 3"
    )


def test_a_walk_names_reserved_bits_and_addresses_that_are_none() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.put(0x1000, 0x67 | 1 << 45)
    tables = open_tables(crafted.image, **crafted.options, registers=Registers(physical_bits=40))
    assert "reserved bits in the PT" in walk(tables, 0x1000).fault
    assert "not canonical" in walk(tables, 1 << 47).fault
    assert walk(tables, 1 << 47).steps == ()
    arm = Crafted("arm64-4K")
    arm.leaf(0x1000, 0x5000, PAGE["arm64"] & ~(1 << 10))
    assert walk(arm.image, 0x1000, **arm.options).fault == "access flag fault, level 3"
    arm.put(0x2000, 0x5000 | 1 << 45 | PAGE["arm64"])
    narrow = open_tables(arm.image, **arm.options, registers=Registers(physical_bits=40))
    assert walk(narrow, 0x2000).fault == "address size fault, level 3"
    assert "outside" in walk(narrow, 1 << 50).fault


def test_a_walk_stops_at_a_table_that_is_not_in_the_image() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.put(0, 0x7000_0000 | TABLE["x86_64"], level=2)
    found = walk(crafted.image, 0x5000, **crafted.options)
    assert found.steps[-1].entry is None
    assert found.fault == "the PT table at 0x70000028 is not in the image"


def test_a_page_outside_the_image_is_told() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x5000, 0x7000_0000)
    found = walk(crafted.image, 0x5000, **crafted.options)
    assert (found.physical, found.backed) == (0x7000_0000, False)
    assert any("not in the image" in line for line in walk_lines(found, "x"))


def test_the_half_that_nobody_named_is_told() -> None:
    crafted = Crafted("arm64-4K")
    crafted.leaf(UPPER, 0x5000, KERNEL["arm64"])
    options = crafted.options
    assert walk(crafted.image, UPPER, **options).physical == 0x5000
    del options["root1"]
    assert "TTBR1_EL1" in walk(crafted.image, UPPER, **options).fault
    options["root1"] = options.pop("root")
    assert "TTBR0_EL1" in walk(crafted.image, 0, **options).fault


def test_entries_are_decoded_in_the_manuals_words() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0, 0x20_0000, 0x1E7 | 3 << 59 | 1 << 12, level=2)
    steps = walk(crafted.image, 0, **crafted.options).steps
    assert steps[0].fields == "P RW US A"
    assert steps[-1].fields == "P RW US A D PS G PAT key=3"
    arm = Crafted("arm64-16K")
    arm.put(0, arm.next | 3 | 1 << 62 | 1 << 59, level=2)
    arm.leaf(0, 0x10000, PAGE["arm64"] | 1 << 52)
    steps = walk(arm.image, 0, **arm.options).steps
    assert steps[-2].fields == "valid table PXNTable APTable=2"
    assert steps[-1].fields == "valid page AP=1 SH=3 AF contiguous PXN UXN"


# ---- all addresses


def random_tables(name: str, seed: int) -> Crafted:
    """Sixteen tables for each level below the roots, with sensible and with wild entries in both halves."""
    crafted = Crafted(name, 96)
    rng = np.random.default_rng(seed)
    page, isa, levels = crafted.format.page, crafted.isa, crafted.format.levels
    homes = {levels: [crafted.root, crafted.root1]}
    for level in range(1, levels):
        homes[level] = [(3 + 16 * level + number) * page for number in range(16)]
    for level, tables in homes.items():
        for table in tables:
            for _ in range(12):
                leaf = level == 1 or (level < 4 and rng.random() < 0.4)
                entry = TABLE[isa]
                if leaf:
                    entry = (crafted.page_bits, crafted.kernel_bits, crafted.code_bits)[int(rng.integers(3))]
                    entry = entry & ~2 if isa == "arm64" and level > 1 else entry | LARGE[isa] * (level > 1)
                    entry |= int(rng.integers(0, 96)) * page << (9 if level > 1 else 0)
                else:
                    entry |= homes[level - 1][int(rng.integers(16))]
                for _ in range(int(rng.integers(3))):
                    entry ^= 1 << int(rng.integers(64))
                slot = int(rng.integers(1 << crafted.format.widths[level - 1]))
                crafted.words[table // 8 + slot] = entry
    return crafted


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_a_survey_agrees_with_the_specifications_walker(name: str, seed: int) -> None:
    """About 40 leaves from everywhere, what is behind each, and a few of every oddity of every table."""
    check_survey(name, seed, 40, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_a_survey_agrees_with_the_specifications_walker_about_most_leaves(name: str, seed: int) -> None:
    check_survey(name, seed, 500, 100)


def check_survey(name: str, seed: int, many: int, odd_ones: int) -> None:
    """Walk to `many` leaves and behind them, and to so many entries of each oddity."""
    crafted = random_tables(name, seed)
    tables = open_tables(
        crafted.image, **crafted.options, registers=Registers(physical_bits=46, wxn=seed > 1)
    )
    found = survey(tables)
    leaves, sizes = found.leaves, found.sizes().tolist()
    assert leaves.count > 5
    assert (np.diff(leaves.address.astype(np.float64)) >= 0).all()
    chosen = range(0, leaves.count, max(leaves.count // many, 1))
    for index in chosen:
        address = int(leaves.address[index])
        walked = walk(tables, address + sizes[index] - 8)
        assert walked.physical == int(leaves.physical[index]) + sizes[index] - 8
        assert walked.page == sizes[index]
        assert walked.steps[-1].at == int(leaves.at[index])
        assert walked.rights & _SHOWN == int(leaves.rights[index]) & _SHOWN
        assert walked.memory == tables.format.memory_name(int(leaves.memory[index]))
    ends = leaves.address + found.sizes()
    for index in chosen:
        behind = int(ends[index])
        if index + 1 < leaves.count and behind != int(leaves.address[index + 1]):
            assert walk(tables, behind).physical is None
    for item in found.odd:
        if item.odd in (Odd.RESERVED, Odd.BEYOND):
            for address in item.address[:odd_ones].tolist():
                assert walk(tables, address).physical is None


def test_tables_count_once_for_each_use() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0, 0x5000)
    table = crafted.table_of(0, 1)
    crafted.put(1 << 21, table | TABLE["x86_64"], level=2)
    crafted.put(5 << 21, table | TABLE["x86_64"] & ~2, level=2)
    found = surveyed(crafted)
    assert found.uses == [3, 1, 1, 1]
    assert found.pages == [3, 0, 0, 0]
    assert found.table_pages.size == 4
    # Read once for each set of rights: the second use is what the first is, the third may not write.
    assert found.leaves.address.tolist() == [0, 5 << 21]
    assert [bool(right & Right.USER_WRITE) for right in found.leaves.rights.tolist()] == [True, False]
    again = found.again
    assert (again.address.tolist(), again.first.tolist()) == ([1 << 21], [0])
    assert (again.level.tolist(), again.table.tolist()) == ([1], [table])


@pytest.mark.parametrize("name", NAMES)
def test_a_table_shared_by_both_halves_is_read_for_each(name: str) -> None:
    crafted = Crafted(name)
    crafted.leaf(0, 5 * crafted.format.page)
    table = crafted.table_of(0, 1)
    crafted.put(UPPER, table | TABLE[crafted.isa], level=2)
    found = surveyed(crafted)
    assert found.leaves.address.tolist() == [0, UPPER]
    assert found.again.address.size == 0


def test_tables_that_map_nothing_are_not_told_again() -> None:
    crafted = Crafted("x86_64-4level")
    empty = crafted.table_of(0, 1)
    gone = 0x7000_0000
    for number in range(1, 5):
        crafted.put(number << 21, empty | TABLE["x86_64"], level=2)
        crafted.put(number << 30, gone | TABLE["x86_64"], level=3)
    found = surveyed(crafted)
    assert found.again.address.size == 0
    assert found.uses == [5, 5, 1, 1]
    assert odd(found) == {Odd.UNBACKED: 4}


def test_a_table_nobody_saved_counts_once_for_each_way_to_it_too() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.put(0, 0x7000_0000 | TABLE["x86_64"], level=2)
    shared = crafted.table_of(0, 2)
    for number in range(1, 4):
        crafted.put(number << 30, shared | TABLE["x86_64"], level=3)
    assert surveyed(crafted).uses == [4, 4, 1, 1]


def test_repeats_of_one_table_under_other_rights_are_told_apart() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0, 0x5000)
    table = crafted.table_of(0, 1)
    for number in range(1, 4):
        read_only = number % 2
        crafted.put(number << 21, table | TABLE["x86_64"] & ~(2 * read_only), level=2)
    assert [(int(one.start), one.end, int(one.first)) for one in repeats(surveyed(crafted))] == [
        (2 << 21, 3 << 21, 0), (3 << 21, 4 << 21, 1 << 21),
    ]  # fmt: skip


def test_the_upper_half_is_sign_extended() -> None:
    for name, lowest in (
        ("x86_64-4level", -(1 << 47)),
        ("x86_64-5level", -(1 << 56)),
        ("arm64-4K-39bit", -(1 << 39)),
    ):
        crafted = Crafted(name)
        crafted.leaf(lowest % (1 << 64), 0x5000)
        assert surveyed(crafted).leaves.address.tolist() == [lowest % (1 << 64)]


def test_a_table_that_leads_to_itself_ends_and_is_told() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0, 0x5000)
    crafted.put(0x1ED << 39, crafted.root | TABLE["x86_64"], level=4)
    found = surveyed(crafted)
    # Read as a page table the root maps its two entries; through it the tables appear as pages.
    assert odd(found)[Odd.LOOP] == 3
    assert found.leaves.count == 5
    own = walk(crafted.image, 0xFFFFF6FB7DBEDF68, **crafted.options)
    assert own.physical == crafted.root + 0x1ED * 8


@pytest.mark.parametrize("name", NAMES)
def test_tables_that_lead_back_from_everywhere_are_read_once_a_level(name: str) -> None:
    crafted = Crafted(name, 4)
    crafted.words[:] = crafted.root | TABLE[crafted.isa]
    found = surveyed(crafted, limit=1 << 16)
    counts = odd(found)
    assert counts[Odd.LOOP] > 0
    assert Odd.LIMIT not in counts
    assert found.leaves.count <= 2 * crafted.format.page // 8
    roots = {crafted.root, *(int(root) for root in found.tables.roots if root is not None)}
    assert found.table_pages.tolist() == sorted(roots)


def test_more_leaves_than_the_limit_are_not_followed_and_told() -> None:
    crafted = Crafted("x86_64-4level")
    for number in range(8):
        crafted.leaf(number << 21, 0x5000)
    found = surveyed(crafted, limit=1024)
    assert (found.leaves.count, odd(found)) == (2, {Odd.LIMIT: 6})
    assert odd(surveyed(crafted)) == {}


def test_tables_that_the_image_lacks_are_told_with_their_entry() -> None:
    crafted = Crafted("x86_64-4level")
    at = crafted.put(3 << 21, 0x7000_0000 | TABLE["x86_64"], level=2)
    (item,) = surveyed(crafted).odd
    assert (item.odd, item.at.tolist(), item.bits.tolist()) == (Odd.UNBACKED, [at], [0x7000_0000])
    assert item.address.tolist() == [3 << 21]


def test_a_root_that_is_not_there_is_told() -> None:
    found = survey(open_tables(image_of(bytes(4096)), root=1 << 40, format="x86_64-4level"))
    assert odd(found) == {Odd.UNBACKED: 1}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6)
@given(seed=st.integers(0, 1 << 32), present=st.booleans())
def test_garbage_ends(name: str, seed: int, present: bool) -> None:
    rng = np.random.default_rng(seed)
    page = Crafted(name, 4).format.page
    memory: Words = rng.integers(0, 1 << 64, 8 * page // 8, np.uint64, endpoint=False)
    # Addresses inside the image, so that the walk goes on, with random flags.
    memory &= np.uint64((1 << 64) - 1 & ~0x0000_FFFF_FFFF_F000 | 7 * page)
    memory |= np.uint64(present)
    found = survey(open_tables(image_of(memory), root=page, format=name), limit=1 << 14)
    assert found.leaves.count <= 1 << 16


# ---- what must be told


def test_what_the_image_does_not_tell_is_asked_for() -> None:
    image = image_of(bytes(8192))
    with pytest.raises(ConfigError, match="format"):
        open_tables(image, root=0)
    with pytest.raises(ConfigError, match="root"):
        open_tables(image, format="arm64-4K")
    with pytest.raises(ConfigError, match="x86_64-4level"):
        open_tables(image, root=0, format="vax")
    with pytest.raises(ConfigError, match="multiple"):
        open_tables(image, root=0x108, format="arm64-4K")
    with pytest.raises(ConfigError, match="one root"):
        open_tables(image, root=0, root1=0, format="x86_64-4level")
    with pytest.raises(ConfigError, match="widths"):
        open_tables(image, root=0, format="arm64-4K-42bit")
    with pytest.raises(ConfigError, match="address"):
        walk(image, 1 << 64, root=0, format="x86_64-4level")


def test_registers_are_taken_as_they_are() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0, 0x5000)
    cr3 = crafted.root | 1 << 63 | 0x123
    assert walk(crafted.image, 0, root=cr3, format="x86_64-4level").physical == 0x5000
    arm = Crafted("arm64-4K")
    arm.leaf(0, 0x5000)
    ttbr = arm.root | 0x55 << 48 | 1
    assert walk(arm.image, 0, root=ttbr, format="arm64-4K").physical == 0x5000


def test_an_image_may_be_a_path_or_memory(tmp_path: object) -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0, 0x5000)
    path = f"{tmp_path}/image"
    crafted.words.tofile(path)
    for source in (path, open_image(path), crafted.words, crafted.words.tobytes()):
        assert walk(source, 8, **crafted.options).physical == 0x5008
