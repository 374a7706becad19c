"""Every rule of `lint`: what it finds, and what it leaves alone."""

from __future__ import annotations

import json

import pytest

from aether_emu.address import PhysAddr, VirtAddr
from aether_emu.verify import Finding, Severity, open_tables
from aether_emu.verify.tables.lint import as_data, counted, lines, lint
from aether_emu.verify.tables.notes import Registers
from tests.verify.crafted_images import CODE, KERNEL, PAGE, TABLE, Crafted

UPPER = 0xFFFF_FFFF_8000_0000
BOTH = ["x86_64-4level", "arm64-4K"]
ALL = [*BOTH, "x86_64-5level", "arm64-16K", "arm64-64K"]
NX = 1 << 63
ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


def found(crafted: Crafted, registers: Registers | None = None) -> list[Finding]:
    return lint(open_tables(crafted.image, **crafted.options, registers=registers))


def rules(crafted: Crafted, registers: Registers | None = None) -> list[tuple[str, Severity, int]]:
    return [(one.rule, one.severity, one.count) for one in found(crafted, registers)]


@pytest.mark.parametrize("name", ALL)
def test_sound_tables_have_no_finding(name: str) -> None:
    crafted = Crafted(name)
    page = crafted.format.page
    for number in range(4):
        crafted.leaf(page * (4 + number), page * (40 + number))
        crafted.leaf(UPPER + page * number, page * (44 + number), KERNEL[crafted.isa])
    crafted.leaf(UPPER + page * 8, page * 50, CODE[crafted.isa])
    assert found(crafted) == []


@pytest.mark.parametrize("name", BOTH)
def test_kernel_memory_that_is_writable_and_executable_is_an_error(name: str) -> None:
    crafted = Crafted(name)
    bits = KERNEL[crafted.isa] & ~NX if crafted.isa == "x86_64" else KERNEL[crafted.isa] & ~(1 << 53)
    at = crafted.leaf(UPPER, 0x35000, bits)
    crafted.leaf(UPPER + 0x9000, 0x39000, bits)
    (one,) = found(crafted)
    assert (one.rule, one.severity, one.count) == ("writable-executable", ERROR, 2)
    assert (one.address, one.last, one.at, one.entry) == (UPPER, UPPER + 0x9000, at, 0x35000 | bits)
    assert (type(one.address), type(one.last), type(one.at)) == (VirtAddr, VirtAddr, PhysAddr)


@pytest.mark.parametrize("name", BOTH)
def test_user_memory_that_is_writable_and_executable_is_a_warning(name: str) -> None:
    crafted = Crafted(name)
    bits = PAGE[crafted.isa] & ~NX if crafted.isa == "x86_64" else PAGE[crafted.isa] & ~(1 << 54)
    crafted.leaf(0x1000, 0x35000, bits)
    assert rules(crafted) == [("writable-executable", WARNING, 1)]
    assert found(crafted, Registers(wxn=True)) == [] or crafted.isa == "x86_64"


@pytest.mark.parametrize("name", BOTH)
def test_kernel_memory_that_users_reach_is_an_error(name: str) -> None:
    crafted = Crafted(name)
    crafted.leaf(UPPER, 0x35000, PAGE[crafted.isa])
    read_only = PAGE[crafted.isa] & ~2 if crafted.isa == "x86_64" else PAGE[crafted.isa] | 0x80
    crafted.leaf(UPPER + 0x2000, 0x36000, read_only)
    assert rules(crafted) == [("user-kernel-memory", ERROR, 1)] * 2
    assert [one.what.split()[2] for one in found(crafted)] == ["write", "read"]


def test_a_page_that_users_may_only_execute_is_reached_too() -> None:
    crafted = Crafted("arm64-4K")
    crafted.leaf(UPPER, 0x35000, CODE["arm64"] & ~(1 << 54))
    assert [one.what.split()[2] for one in found(crafted)] == ["execute"]


def test_kernel_text_that_users_may_execute_and_the_kernel_may_write_is_both() -> None:
    crafted = Crafted("arm64-4K")
    crafted.leaf(UPPER, 0x35000, 0x703)  # as early boot code maps everything
    assert rules(crafted) == [("user-kernel-memory", ERROR, 1), ("writable-executable", ERROR, 1)]


def test_a_table_without_the_user_bit_protects_what_is_below() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(UPPER, 0x35000, PAGE["x86_64"])
    slot = crafted.slot(crafted.root, UPPER, 4)
    crafted.words[slot] = int(crafted.words[slot]) & ~4
    assert found(crafted) == []


def test_linuxs_vsyscall_page_is_a_note() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0xFFFF_FFFF_FF60_0000, 0x35000, 0x25)
    assert rules(crafted) == [("user-kernel-memory", NOTE, 1)]
    crafted.leaf(0xFFFF_FFFF_FF60_0000, 0x35000, 0x27 | NX)
    assert rules(crafted) == [("user-kernel-memory", ERROR, 1)]


@pytest.mark.parametrize("name", BOTH)
def test_page_tables_mapped_writable(name: str) -> None:
    crafted = Crafted(name)
    crafted.leaf(0x1000, 0x35000)
    table = crafted.table_of(0x1000, 1)
    crafted.leaf(UPPER, table, KERNEL[crafted.isa])
    assert rules(crafted) == [("table-writable", NOTE, 1)]
    crafted.leaf(0x2000, table)
    assert rules(crafted) == [("table-writable", ERROR, 1), ("table-writable", NOTE, 1)]
    read_only = PAGE[crafted.isa] & ~2 if crafted.isa == "x86_64" else PAGE[crafted.isa] | 0x80
    crafted.leaf(0x2000, table, read_only)
    assert rules(crafted) == [("table-writable", NOTE, 1)]


def test_a_large_page_with_a_table_somewhere_in_it_counts() -> None:
    crafted = Crafted("x86_64-4level", 1024)
    crafted.leaf(UPPER, 0, KERNEL["x86_64"], level=2)
    assert rules(crafted) == [("table-writable", NOTE, 1)]


@pytest.mark.parametrize("name", BOTH)
def test_one_frame_under_two_memory_types(name: str) -> None:
    crafted = Crafted(name)
    other = {"x86_64": 0x10, "arm64": 1 << 2}[crafted.isa]
    crafted.leaf(0x1000, 0x35000)
    crafted.leaf(0x3000, 0x35000)
    for number in range(4):
        crafted.leaf(0xB000 + 0x1000 * number, 0x38000 + 0x1000 * number)
    crafted.leaf(0x7000, 0x35000, PAGE[crafted.isa] | other)
    crafted.leaf(0x9000, 0x36000, PAGE[crafted.isa] | other)
    (one,) = found(crafted)
    assert (one.rule, one.severity, one.count, one.address) == ("memory-type-alias", ERROR, 1, 0x7000)


def test_a_small_page_inside_a_large_one_of_another_type_is_found() -> None:
    crafted = Crafted("x86_64-4level", 1024)
    crafted.leaf(0x20_0000, 0x20_0000, level=2)
    crafted.leaf(0x1000, 0x31_0000, PAGE["x86_64"] | 0x18)
    crafted.leaf(0x2000, 0x40_0000 - 0x201000, PAGE["x86_64"] | 0x18)
    assert [(one.rule, one.count, one.address) for one in found(crafted)] == [
        ("memory-type-alias", 1, 0x1000)
    ]


def test_two_numbers_of_one_memory_type_are_one_type() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x1000, 0x35000)
    crafted.leaf(0x3000, 0x35000, PAGE["x86_64"] | 0x80)
    assert rules(crafted) == [("memory-type-alias", ERROR, 1)]
    assert rules(crafted, Registers(memory_types=0x0407_0504_0007_0106)) == [("memory-type-alias", ERROR, 1)]
    assert rules(crafted, Registers(memory_types=0x0407_0506_0007_0106)) == []


def test_reserved_bits_are_errors_by_level_and_bits() -> None:
    crafted = Crafted("x86_64-4level")
    narrow = Registers(physical_bits=40)
    crafted.leaf(0x1000, 0x35000)
    crafted.put(0x40_0000, 0x20_0000 | 0x2000 | 0xE7, level=2)
    crafted.put(0x60_0000, 0x20_0000 | 0x2000 | 0xE7, level=2)
    crafted.put(0x2000, 1 << 45 | 0x67)
    assert rules(crafted, narrow) == [("address-too-wide", ERROR, 1), ("reserved-bits", ERROR, 2)]
    assert [one.what for one in found(crafted, narrow)][1] == "PD entry with reserved bits 0x2000"
    assert ("reserved-bits", ERROR, 1) not in rules(crafted, narrow)
    crafted.put(1 << 39, 0x5000 | TABLE["x86_64"] | 0x80, level=4)
    assert ("reserved-bits", ERROR, 1) in rules(crafted, narrow)


def test_nx_without_nxe_is_reserved() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x1000, 0x35000)
    assert rules(crafted, Registers(nxe=False)) == [("reserved-bits", ERROR, 1)]


def test_reserved_encodings_of_arm_are_errors() -> None:
    crafted = Crafted("arm64-4K")
    crafted.put(0x1000, 0x35000 | PAGE["arm64"] & ~2)
    crafted.put(1 << 39, PAGE["arm64"] & ~2, level=4)
    assert rules(crafted) == [("reserved-bits", ERROR, 1)] * 2
    crafted = Crafted("arm64-64K")
    crafted.put(0, 1 << 45 | PAGE["arm64"])
    assert rules(crafted, Registers(physical_bits=44)) == [("address-too-wide", ERROR, 1)]


def test_pages_that_are_no_memory_are_told_by_how_they_are_cached() -> None:
    pat = Registers(memory_types=0x0407_0506_0007_0106)
    crafted = Crafted("x86_64-4level")
    crafted.leaf(UPPER, 0x7000_0000, KERNEL["x86_64"])
    assert rules(crafted, pat) == [("unbacked-page", WARNING, 1)]
    crafted.leaf(UPPER, 0x7000_0000, KERNEL["x86_64"] | 0x18)
    assert rules(crafted, pat) == [("unbacked-page", NOTE, 1)]
    assert rules(crafted) == [("unbacked-page", WARNING, 1)], "nobody knows what index 3 is"
    crafted.leaf(UPPER, 0, KERNEL["x86_64"] | 0x18)
    large = Crafted("x86_64-4level", 256)
    large.leaf(UPPER, 0, CODE["x86_64"], level=2)
    assert rules(large, pat) == [("unbacked-page", NOTE, 1)]


def test_tables_that_are_not_there_and_tables_that_lead_back() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.put(0, 0x7000_0000 | TABLE["x86_64"], level=2)
    assert rules(crafted) == [("unbacked-table", ERROR, 1)]
    crafted = Crafted("x86_64-4level")
    crafted.put(511 << 39, crafted.root | 0x23, level=4)
    assert ("table-loop", WARNING) in [one[:2] for one in rules(crafted)]


def test_a_bad_root_is_a_finding_without_an_entry() -> None:
    crafted = Crafted("x86_64-4level")
    (one,) = lint(crafted.image, root=1 << 40, format="x86_64-4level")
    assert (one.rule, one.entry, one.at) == ("unbacked-table", None, None)
    assert "entry" not in "".join(lines([one]))


def split(crafted: Crafted, change: int, number: int = 7, at: int = 0x20_0000) -> None:
    """A 2M page in pieces of 4K, one of them changed."""
    for piece in range(512):
        bits = KERNEL[crafted.isa] ^ (change if piece == number else 0)
        crafted.leaf(UPPER + 0x1000 * piece, at + 0x1000 * piece, bits)


def test_a_split_page_whose_pieces_disagree() -> None:
    for change, what in ((0x10, "memory type"), (0x100, "global bit")):
        crafted = Crafted("x86_64-4level", 1024)
        split(crafted, change)
        (one,) = [one for one in found(crafted) if one.rule == "split-inconsistent"]
        assert (one.severity, one.count, one.address) == (WARNING, 1, UPPER + 0x7000)
        assert what in one.what


def test_a_split_page_whose_pieces_differ_in_rights_is_what_splitting_is_for() -> None:
    crafted = Crafted("x86_64-4level", 1024)
    split(crafted, 2)
    assert found(crafted) == []


def test_pages_that_cannot_have_been_a_large_page_may_differ() -> None:
    crafted = Crafted("x86_64-4level", 1024)
    split(crafted, 0x10, at=0x10_0000)
    assert found(crafted) == []


def test_pages_that_were_never_one_large_page_may_differ() -> None:
    crafted = Crafted("x86_64-4level", 1024)
    split(crafted, 0x10)
    crafted.leaf(UPPER + 0x9000, 0x35000, KERNEL["x86_64"])
    assert "split-inconsistent" not in [one.rule for one in found(crafted)]


@pytest.mark.parametrize("name", BOTH)
def test_few_pages_without_a_bit_that_their_neighbours_have(name: str) -> None:
    x86 = name.startswith("x86")
    for change, rule in (
        (0x100 if x86 else 1 << 11, "missing-global"),
        (NX if x86 else 1 << 53, "missing-nx"),
    ):
        crafted = Crafted(name)
        for number in range(32):
            bits = KERNEL[crafted.isa] & (~2 if x86 else ~0) | (0 if x86 else 0x80)
            bits ^= change if number == 9 else 0
            crafted.leaf(UPPER + 0x1000 * number, 0x10000 + 0x1000 * number, bits)
        (one,) = found(crafted)
        assert (one.rule, one.severity, one.address) == (rule, WARNING, UPPER + 0x9000)


def test_many_pages_without_a_bit_lack_nothing() -> None:
    crafted = Crafted("x86_64-4level")
    for number in range(32):
        bits = KERNEL["x86_64"] & ~2 ^ (NX if number < 3 else 0)
        crafted.leaf(UPPER + 0x1000 * number, 0x10000 + 0x1000 * number, bits)
    assert found(crafted) == []


def contiguous(crafted: Crafted, length: int, shift: int = 0) -> None:
    page = crafted.format.page
    for number in range(length):
        crafted.leaf(page * (length + number), page * (length + number + shift), PAGE["arm64"] | 1 << 52)


@pytest.mark.parametrize(("name", "length"), [("arm64-4K", 16), ("arm64-16K", 128), ("arm64-64K", 32)])
def test_a_contiguous_run_must_be_whole_aligned_and_alike(name: str, length: int) -> None:
    def changed(entry: int | None) -> list[tuple[str, Severity, int]]:
        crafted = Crafted(name, 2 * length + 8)
        contiguous(crafted, length)
        if entry is not None:
            crafted.put(page * (length + 3), entry)
        return rules(crafted)

    page = Crafted(name).format.page
    good = page * (length + 3) | PAGE["arm64"] | 1 << 52
    rule = "contiguous-inconsistent"
    assert changed(None) == []
    assert changed(good ^ 1 << 10) == [], "the access flag may differ"
    assert changed(good ^ 1 << 55) == []
    assert changed(0) == [(rule, ERROR, length - 1)]
    assert changed(good ^ 1 << 52) == [(rule, ERROR, length - 1)]
    crafted = Crafted(name, 2 * length + 8)
    contiguous(crafted, length, shift=1)
    assert rules(crafted) == [(rule, ERROR, length)], "misaligned frames"
    assert changed(good ^ page) == [(rule, ERROR, length)]
    assert changed(good ^ 1 << 7) == [(rule, ERROR, length)]
    assert (rule, ERROR, length) in changed(good ^ 1 << 2)


def test_clean_pages_of_a_contiguous_run_with_dbm_are_alike() -> None:
    crafted = Crafted("arm64-4K")
    for number in range(16):
        clean = 0x80 if number % 2 else 0
        crafted.leaf(
            0x1000 * (16 + number), 0x1000 * (16 + number), PAGE["arm64"] | 1 << 52 | 1 << 51 | clean
        )
    assert found(crafted) == []


def test_identical_findings_are_one_and_errors_come_first() -> None:
    crafted = Crafted("x86_64-4level")
    for number in range(300):
        crafted.leaf(0x1000 * number, 0x35000, 0x67)
    crafted.leaf(UPPER, 0x36000, 0x63)
    assert rules(crafted) == [("writable-executable", ERROR, 1), ("writable-executable", WARNING, 300)]


def test_findings_print_as_text_and_json() -> None:
    crafted = Crafted("x86_64-4level")
    at = crafted.leaf(UPPER, 0x36000, 0x63)
    findings = found(crafted)
    first, second = lines(findings)
    assert first == f"error: writable-executable at {UPPER:#x}: entry 0x0000000000036063 at {at:#x}"
    assert "the kernel can write and execute it" in second
    (data,) = json.loads(json.dumps(as_data(findings)))
    assert (data["rule"], data["severity"], data["address"]) == ("writable-executable", "error", hex(UPPER))
    assert (data["entry"], data["at"], data["count"]) == ("0x36063", hex(at), 1)
    assert counted(findings) == "1 error, 0 warnings, 0 notes"
