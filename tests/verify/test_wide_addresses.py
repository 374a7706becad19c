"""Address bits beyond the usual: LPA and LPA2 on ARM64, encryption bits. No wrong address is told."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from aether_emu.errors import ConfigError
from aether_emu.verify import Severity, image_of, lint, open_tables, survey, walk
from aether_emu.verify.spec import arm64
from aether_emu.verify.tables.format_names import format_of
from aether_emu.verify.tables.images import Image
from aether_emu.verify.tables.listing import ranges
from aether_emu.verify.tables.notes import Registers, registers_of
from aether_emu.verify.tables.show import totals, walk_lines
from aether_emu.verify.tables.survey import Odd
from tests.verify.crafted_images import PAGE, Crafted, elf_core, note
from tests.verify.test_tables import odd, surveyed

TABLE = 3
PAGE_BITS = 0x443  # valid, page, AP=01, AF: with LPA2 bits 9 and 8 belong to the address

# Where a descriptor has bits 51 to 48 of an address, by the Arm ARM: D8.3.1.
HIGH_64K = {51: 15, 50: 14, 49: 13, 48: 12}
HIGH_DS = {51: 9, 50: 8, 49: 49, 48: 48}


def descriptor(address: int, high: dict[int, int], bits: int) -> int:
    low = address & (1 << 48) - 1
    return low | bits | sum(1 << place for bit, place in high.items() if address >> bit & 1)


@pytest.mark.parametrize(
    ("name", "high"),
    [("arm64-64K-lpa", HIGH_64K), ("arm64-64K-52bit-lpa", HIGH_64K), ("arm64-4K-lpa2", HIGH_DS),
     ("arm64-4K-52bit-lpa2", HIGH_DS), ("arm64-16K-lpa2", HIGH_DS), ("arm64-16K-52bit-lpa2", HIGH_DS)],
)  # fmt: skip
@pytest.mark.parametrize("bit", [48, 49, 50, 51])
def test_every_high_bit_is_found_in_pages_blocks_tables_and_roots(
    name: str, high: dict[int, int], bit: int
) -> None:
    rules = format_of(name)
    page, base = rules.page, 1 << bit
    memory = np.zeros(8 * page // 8, np.uint64)
    for number in range(rules.levels - 1):
        memory[number * page // 8] = descriptor(base | (number + 1) * page, high, TABLE)
    leaves = (rules.levels - 1) * page // 8
    memory[leaves + 5] = descriptor(base | 7 * page, high, PAGE_BITS)
    large = 1 << rules.shifts[1]
    memory[leaves - page // 8 + 3] = descriptor(base | large, high, PAGE_BITS & ~2)
    # TTBR: bits 51 to 48 of the table's address in bits 5 to 2.
    tables = open_tables(image_of(memory, base), root=(base >> 48) << 2, format=name)
    found = walk(tables, 5 * page + 8)
    assert (found.physical, found.fault, found.backed) == (base | 7 * page | 8, "", True)
    assert [step.at >> 48 for step in found.steps] == [base >> 48] * rules.levels
    block = walk(tables, 3 * large + 0x123)
    assert (block.physical, block.page) == (base | large | 0x123, large)
    assert survey(tables).leaves.physical.tolist() == [base | 7 * page, base | large]
    assert len(found.steps) == (5 if name == "arm64-4K-52bit-lpa2" else rules.levels)


@pytest.mark.parametrize(
    ("name", "levels", "top"),
    [("arm64-4K-lpa2", 4, "L0"), ("arm64-16K-lpa2", 3, "L1"), ("arm64-64K-lpa", 2, "L1"),
     ("arm64-4K", 3, "L1"), ("arm64-16K", 2, "L2"), ("arm64-64K", 2, "L2")],
)  # fmt: skip
def test_the_largest_blocks_need_addresses_of_52_bits(name: str, levels: int, top: str) -> None:
    rules = format_of(name)
    kinds = [
        rules.kinds(np.array([PAGE_BITS & ~2], np.uint64), level)[0][0]
        for level in range(2, rules.levels + 1)
    ]
    leaves = [rules.level_names[number + 1] for number, kind in enumerate(kinds) if kind == 1]
    assert leaves[-1] == top
    level = rules.level_names.index(top) + 1
    if level == rules.levels:
        crafted = Crafted(name)
        crafted.words[crafted.root // 8 + 1] = PAGE_BITS & ~2
        found = walk(crafted.image, 1 << rules.shifts[level - 1] | 0x55, **crafted.options)
        assert (found.physical, found.page) == (0x55, 1 << rules.shifts[level - 1])


def test_addresses_of_52_bits_with_pages_of_4k_have_a_level_below_0() -> None:
    crafted = Crafted("arm64-4K-52bit-lpa2")
    crafted.leaf(9 << 48 | 0x5000, 0x28000)
    tables = open_tables(crafted.image, **crafted.options)
    found = walk(tables, 9 << 48 | 0x5000)
    assert [(step.level, step.index) for step in found.steps] == [
        ("L-1", 9), ("L0", 0), ("L1", 0), ("L2", 0), ("L3", 5),
    ]  # fmt: skip
    assert walk(tables, 3 << 48).fault == "translation fault, level -1"
    assert "SH" not in found.steps[-1].fields


def test_faults_of_level_minus_1_have_codes_of_their_own() -> None:
    mode = arm64.Mode(12, (52, 52), 48, wide=True)
    at = np.zeros(2, np.uint64)
    entries = np.array([0, descriptor(1 << 50, HIGH_DS, TABLE)], np.uint64)
    found = arm64.translate(lambda _level, _at, cases: entries[cases], (0, 0), at, mode)
    verdict = arm64.judge(found, np.zeros(2, np.int64), np.full(2, True), arm64.Controls())
    assert found.level.tolist() == [-1, -1]
    assert verdict.status.tolist() == [0b101011, 0b101001]  # translation, address size


@pytest.mark.parametrize(
    ("name", "bits", "other"),
    [("arm64-64K", 1 << 12, "arm64-64K-lpa"), ("arm64-64K-42bit", 8 << 12, "arm64-64K-42bit-lpa"),
     ("arm64-4K", 1 << 48, "arm64-4K-lpa2"), ("arm64-16K", 2 << 48, "arm64-16K-lpa2")],
)  # fmt: skip
@pytest.mark.parametrize("level", [1, 2])
def test_bits_that_would_be_address_bits_are_never_dropped(
    name: str, bits: int, other: str, level: int
) -> None:
    crafted = Crafted(name)
    page = crafted.format.page
    crafted.leaf(5 * page, 7 * page)
    slot = crafted.slot(crafted.table_of(5 * page, level), 5 * page, level)
    crafted.words[slot] |= np.uint64(bits)
    found = walk(crafted.image, 5 * page, **crafted.options)
    assert found.physical is None
    assert f"address bits in {other}" in found.fault
    assert len(found.steps) == crafted.format.levels - level + 1, "nothing below the wrong descriptor is read"
    assert ranges(surveyed(crafted)) == []
    assert odd(surveyed(crafted)) == {Odd.RESERVED: 1}
    (error,) = lint(crafted.image, **crafted.options)
    assert (error.rule, error.severity) == ("reserved-bits", Severity.ERROR)
    assert hex(bits) in error.what


@pytest.mark.parametrize("name", ["arm64-4K", "arm64-64K", "x86_64-4level"])
def test_more_physical_bits_than_descriptors_have_are_all_that_they_have(name: str) -> None:
    crafted = Crafted(name)
    crafted.leaf(0, 7 * crafted.format.page)
    tables = open_tables(crafted.image, **crafted.options, registers=Registers(physical_bits=52))
    assert survey(tables).leaves.count == 1
    assert walk(tables, 0).physical == 7 * crafted.format.page


def test_an_address_beyond_the_physical_width_is_told_whole() -> None:
    crafted = Crafted("arm64-64K-lpa")
    crafted.put(0, descriptor(1 << 50, HIGH_64K, PAGE_BITS))
    tables = open_tables(crafted.image, **crafted.options, registers=Registers(physical_bits=48))
    assert walk(tables, 0).fault == "address size fault, level 3"
    (error,) = lint(tables)
    assert (error.rule, hex(1 << 50) in error.what) == ("address-too-wide", True)


@pytest.mark.parametrize("name", ["arm64-4K-lpa", "arm64-64K-lpa2", "arm64-4K-52bit", "arm64-16K-39bit-lpa2"])
def test_names_that_are_no_format(name: str) -> None:
    with pytest.raises(ConfigError, match="format"):
        format_of(name)


def test_a_core_that_says_52_bits_gets_the_wide_format() -> None:
    def told(tcr: int) -> Registers:
        words = struct.pack("<II5Q", 1, 48, 0, 0x1000, 0x2000, tcr, 0)
        return registers_of("arm64", [memoryview(note(b"AETHER", 1, words))])

    lpa = told(12 | 1 << 14 | 6 << 32)
    assert (lpa.format, lpa.physical_bits) == ("arm64-64K-52bit-lpa", 52)
    assert told(16 | 6 << 32 | 1 << 59).format == "arm64-4K-lpa2"
    assert told(16 | 5 << 32).format == "arm64-4K"


# ---- encryption bits


def encrypted(bit: int) -> tuple[Image, int]:
    """A guest of SEV: tables and its memory have the bit, a device's page and shared memory have not."""
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x1000, 0x35000 | 1 << bit)
    crafted.leaf(0x3000, 0x36000)
    slots = [crafted.slot(crafted.table_of(0, level), 0, level) for level in (4, 3, 2)]
    crafted.words[slots] |= np.uint64(1 << bit)
    return crafted.image, crafted.root | 1 << bit


@pytest.mark.parametrize("bit", [37, 47, 51])
def test_an_encryption_bit_is_no_part_of_an_address(bit: int) -> None:
    image, root = encrypted(bit)
    told = Registers(encryption_bit=bit, physical_bits=36)
    tables = open_tables(image, root=root, format="x86_64-4level", registers=told)
    private, shared = walk(tables, 0x1008), walk(tables, 0x3008)
    assert (private.physical, private.memory) == (0x35008, f"PAT0 bit{bit}")
    assert (shared.physical, shared.memory) == (0x36008, "PAT0")
    assert [(item.physical, item.memory) for item in ranges(survey(tables))] == [
        (0x35000, f"PAT0 bit{bit}"), (0x36000, "PAT0"),
    ]  # fmt: skip
    assert [finding.rule for finding in lint(tables)] == []


@pytest.mark.parametrize("bit", [37, 47, 51])
def test_it_is_found_where_tables_tell(bit: int) -> None:
    image, root = encrypted(bit)
    tables = open_tables(image, root=root, format="x86_64-4level")
    assert tables.title == f"x86_64-4level, encryption bit {bit}, found from the tables"
    assert walk(tables, 0x1008).physical == 0x35008
    assert tables.title in totals(survey(tables))
    assert tables.title in next(walk_lines(walk(tables, 0), tables.title))
    (finding,) = lint(tables)
    assert (finding.rule, finding.severity) == ("encryption-bit", Severity.NOTE)
    assert finding.what.startswith(tables.title)


def test_it_is_not_guessed_where_tables_do_not_tell() -> None:
    plain = Crafted("x86_64-4level")
    plain.leaf(0x1000, 0x35000 | 1 << 47)
    tables = open_tables(plain.image, **plain.options)
    assert tables.title == "x86_64-4level"
    assert walk(tables, 0x1000).physical == 0x35000 | 1 << 47
    image, root = encrypted(47)
    words = image.read(np.array([root & ~(1 << 47)], np.uint64))[0]
    two = Crafted("x86_64-4level")
    two.words[two.root // 8] = words[0] | np.uint64(1 << 45)  # two bits: which is it?
    assert not open_tables(two.image, **two.options).guessed
    one = Crafted("x86_64-4level")
    one.words[one.root // 8] = 0x3000 | 1 << 47 | 0x27
    one.words[one.root // 8 + 1] = 0x3000 | 0x27  # an entry without it
    assert not open_tables(one.image, **one.options).guessed


@pytest.mark.parametrize(
    ("memory", "title"),
    [((), "x86_64-4level"), ((1 << 45,), "x86_64-4level, encryption bit 47, found from the tables"),
     ((1 << 45, 1 << 47), "x86_64-4level"), ((1 << 45, 1 << 45 | 1 << 47), "x86_64-4level")],
    ids=["no bit will do", "one will", "two would", "the address is memory as it is"],
)  # fmt: skip
def test_only_one_bit_must_make_sense(tmp_path: Path, memory: tuple[int, ...], title: str) -> None:
    root = struct.pack("<Q", 1 << 45 | 1 << 47 | 0x3000 | 0x27).ljust(4096, b"\0")
    ranges = [(0x1000, root, 4096), *((at | 0x3000, bytes(4096), 4096) for at in memory)]
    (tmp_path / "core").write_bytes(elf_core(ranges))
    assert open_tables(tmp_path / "core", root=0x1000, format="x86_64-4level").title == title


def test_a_realms_bit_is_one_too() -> None:
    crafted = Crafted("arm64-4K")
    crafted.leaf(0x1000, 0x35000 | 1 << 40)
    told = Registers(encryption_bit=40, physical_bits=40)
    tables = open_tables(crafted.image, **crafted.options, registers=told)
    assert (walk(tables, 0x1000).physical, walk(tables, 0x1000).memory) == (0x35000, "Attr0 inner bit40")


def test_one_frame_with_and_without_the_bit_is_an_alias() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x1000, 0x35000 | 1 << 47)
    crafted.leaf(0x3000, 0x35000)
    crafted.leaf(0x5000, 0x36000)
    tables = open_tables(crafted.image, **crafted.options, registers=Registers(encryption_bit=47))
    (finding,) = lint(tables)
    assert (finding.rule, "bit47" in finding.what) == ("memory-type-alias", True)


@pytest.mark.parametrize(("name", "bit"), [("x86_64-4level", 52), ("x86_64-4level", 11), ("arm64-4K", 48)])
def test_a_bit_that_no_address_has_is_refused(name: str, bit: int) -> None:
    crafted = Crafted(name)
    with pytest.raises(ConfigError, match="encryption-bit"):
        open_tables(crafted.image, **crafted.options, registers=Registers(encryption_bit=bit))


def test_linuxs_own_note_tells_the_bit() -> None:
    def told(text: bytes) -> int | None:
        return registers_of("x86_64", [memoryview(note(b"VMCOREINFO", 0, text))]).encryption_bit

    assert told(b"OSRELEASE=6.6.0\nNUMBER(sme_mask)=140737488355328\nNUMBER(x)=1\n") == 47
    assert told(b"NUMBER(sme_mask)=0\n") is None
    assert told(b"NUMBER(sme_mask)=-9223372036854775808\n") is None
    assert told(b"OTHER(sme_mask)=140737488355328\n") is None


def test_the_users_of_an_unusual_page_are_the_usual_ones() -> None:
    crafted = Crafted("arm64-4K-lpa2")
    crafted.leaf(0x1000, 0x35000, PAGE["arm64"] & ~0x300)
    (item,) = ranges(surveyed(crafted))
    assert item.memory == "Attr0 inner"
