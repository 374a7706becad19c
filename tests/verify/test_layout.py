"""Lines that fit a terminal, whatever stands in them, and documents for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from aether_emu.verify import lint, open_tables, survey, walk
from aether_emu.verify.tables import documents
from aether_emu.verify.tables.diff import difference
from aether_emu.verify.tables.format_names import NAMES
from aether_emu.verify.tables.layout import wrapped
from aether_emu.verify.tables.lint import lines as lint_lines
from aether_emu.verify.tables.listing import Range, listing
from aether_emu.verify.tables.notes import Registers
from aether_emu.verify.tables.show import table, walk_lines
from aether_emu.verify.tables.text import addresses, chosen, constant, hexadecimal, lines, short_size
from aether_emu.verify.tables.who import lines as who_lines
from aether_emu.verify.tables.who import who
from tests.verify.crafted_images import TABLE, Crafted
from tests.verify.random_tables import FORMATS, random_tables
from tests.verify.test_hostile_tables import hostile
from tests.verify.test_tables import surveyed

TOP = 1 << 64


def widest(name: str, registers: Registers) -> tuple[Any, int]:
    """Tables whose addresses have all bits that the format has, with all flags set; and a virtual address."""
    crafted = Crafted(name)
    page = crafted.format.page
    if crafted.isa == "x86_64":
        leaf, address = (1 << 52) - page | 0x7F << 52 | 0x1FF, TOP - page
    else:
        # With LPA bits 15 to 12 of the descriptor are the highest of the address, with LPA2 bits 9 and 8 are.
        high = 0xF << 12 if name.endswith("-lpa") else 3 << 8
        bits = 50 if name.endswith("-lpa2") else 48
        leaf, address = (1 << bits) - page | high | 0x77F & ~0x80 | 0x1F8 << 52, TOP - page
    crafted.put(address, leaf)
    for number in range(3):
        crafted.leaf(page * (5 + number), page * (40 - 2 * number))
    return open_tables(crafted.image, **crafted.options, registers=registers), address


def of(parts: Iterable[bytes]) -> list[str]:
    return b"".join(parts).decode().splitlines()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("types", [None, 0x5F5F_5F5F_5F5F_5F5F, 0])
def test_ranges_fit_80_columns_and_no_address_is_cut(name: str, types: int | None) -> None:
    tables, address = widest(name, Registers(memory_types=types))
    found = survey(tables)
    items = listing(found)
    narrow = of(table(items, width=80))
    assert max(map(len, narrow)) <= 80
    words = " ".join(narrow).split()
    for item in items:
        assert isinstance(item, Range)
        assert f"{item.start:016x}" in words
        assert f"{item.end % TOP:016x}" in words
        assert item.pieces > 1 or f"{item.physical:x}" in words
    assert f"{address:016x}" in words
    assert types != 0 or len(narrow) == 1 + len(items), "each range has one line"
    for lines_of in (walk_lines(walk(tables, address), tables.title), lint_lines(lint(found))):
        text = list(lines_of)
        fitted = list(wrapped(text, 80))
        assert max(map(len, fitted)) <= 80
        assert " ".join(fitted).split() == " ".join(text).split()
    for physical in (int(found.leaves.physical[-1]), int(tables.roots[0] or 0)):
        assert max(len(line) for line in of_who(found, physical)) <= 80


def of_who(found: Any, physical: int) -> list[str]:
    return of(who_lines(who(found, physical), 80))


@pytest.mark.parametrize("name", ["x86_64-5level", "arm64-64K-52bit-lpa", "arm64-4K-52bit-lpa2"])
def test_repeats_and_many_pieces_fit_80_columns(name: str) -> None:
    crafted = hostile(name, 4, 1)
    items = listing(surveyed(crafted))
    assert (items.repeats != 0).any()
    assert max(map(len, of(table(items, width=80)))) <= 80


def test_a_narrow_line_that_is_too_long_goes_on_in_the_next() -> None:
    tables, address = widest("arm64-64K-52bit-lpa", Registers(memory_types=0x5F5F_5F5F_5F5F_5F5F))
    text = of(table(listing(survey(tables)), width=64))
    assert max(map(len, text)) <= 64
    (at,) = (number for number, line in enumerate(text) if f"{address:016x}" in line)
    assert text[at + 1].startswith("  64K ")
    assert text[at + 1].endswith(" fffffffff0000")


def test_a_terminal_with_room_gets_the_wide_lines() -> None:
    tables, _address = widest("x86_64-4level", Registers())
    items = listing(survey(tables))
    wide = of(table(items))
    assert of(table(items, width=max(map(len, wide)))) == wide
    assert of(table(items, width=max(map(len, wide)) - 1)) != wide


def test_only_what_can_be_written_and_executed_is_red() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(0x5000, 0x20000, 0x67)
    crafted.leaf(0x7000, 0x21000, 0x65)
    items = listing(surveyed(crafted))
    text = of(table(items, colour=True))
    assert [line.startswith("\x1b[1;31m") and line.endswith("\x1b[0m") for line in text] == [
        False,
        True,
        False,
    ]
    assert "\x1b" not in "".join(of(table(items)))


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (4096, "4K"), (1536 << 20, "1536M"), (99999 << 10, "~98M"), ((1 << 30) - 4096, "~1.0G"),
        ((1 << 47) - 4096, "~128T"), ((1 << 57) - 4096, "~128P"), ((999 << 30) + 4096, "~999G"),
        ((10 << 30) - 4096, "~10G"), ((3 << 39) + 4096, "~1.5T"), (1 << 58, "256P"),
    ],
)  # fmt: skip
def test_short_sizes_have_five_characters(size: int, text: str) -> None:
    assert short_size(size) == text
    assert len(text) <= 5


def test_rows_are_parts_side_by_side_without_what_does_not_count() -> None:
    values = np.array([0, 0xABC, TOP - 1], np.uint64)
    rows = np.array([True, False, True])
    parts = [
        addresses(values), constant(" ", 3), hexadecimal(values), constant("!", 3).where(rows),
        chosen(["x", "long"], np.array([0, 1, 0]), width=3), constant("\n", 3),
    ]  # fmt: skip
    assert lines(parts).decode().splitlines() == [
        "0" * 16 + " 0!x  ", "0" * 13 + "abc abclong", "f" * 16 + " " + "f" * 16 + "!x  ",
    ]  # fmt: skip


# ---- documents


def loaded(document: Iterable[bytes]) -> Any:
    return json.loads(b"".join(document))


def number(value: Any) -> None:
    """What a reader with numbers of 53 bits would change is text."""
    if isinstance(value, dict):
        for one in value.values():
            number(one)
    elif isinstance(value, list):
        for one in value:
            number(one)
    elif isinstance(value, int):
        assert value < 1 << 53
    elif isinstance(value, str) and value.startswith("0x"):
        assert int(value, 16) <= TOP


@pytest.mark.parametrize("name", FORMATS)
def test_a_document_has_what_the_listing_has(name: str) -> None:
    crafted = random_tables(name, 2)
    tables = open_tables(crafted.image, root=crafted.root, format=name)
    items = listing(survey(tables))
    data = loaded(documents.shown(items))
    number(data)
    ranges = [item for item in items if isinstance(item, Range)]
    repeats = [item for item in items if not isinstance(item, Range)]
    assert ranges
    assert [(int(one["start"], 16), int(one["end"], 16)) for one in data["ranges"]] == [
        (item.start, item.end) for item in ranges
    ]
    for one, item in zip(data["ranges"], ranges, strict=True):
        assert (one["page"], one["memory"], one["pieces"]) == (item.page, item.memory, item.pieces)
        assert one["physical"] == f"{item.physical:#x}"
        assert ("w" in one["user"] + one["kernel"], "global" in one["flags"]) == (
            bool(item.rights & 18), bool(item.rights & 64),
        )  # fmt: skip
    assert [(one["start"], one["as_at"], one["level"], one["table"]) for one in data["repeats"]] == [
        (f"{item.start:#x}", f"{item.first:#x}", item.level, f"{item.table:#x}") for item in repeats
    ]
    assert data["format"] == name
    assert next(iter(data["roots"].values())) == f"{crafted.root:#x}"


def test_the_end_of_all_addresses_is_2_to_the_64() -> None:
    crafted = Crafted("x86_64-4level")
    crafted.leaf(TOP - 0x1000, 0x20000)
    (one,) = loaded(documents.shown(listing(surveyed(crafted))))["ranges"]
    assert int(one["end"], 16) == TOP


def test_empty_tables_are_a_document_too() -> None:
    found = surveyed(Crafted("x86_64-4level"))
    data = loaded(documents.shown(listing(found)))
    assert (data["ranges"], data["repeats"]) == ([], [])
    assert data["totals"]["mapped"] == "0x0"
    assert loaded(documents.differing(found.tables, found.tables, difference(found, found)))["same"] is True
    assert loaded(documents.owned(found.tables, []))["pages"] == []


def test_walks_have_each_field_of_each_entry() -> None:
    crafted = Crafted("arm64-4K")
    crafted.leaf(0x5000, 0x20000)
    tables = open_tables(crafted.image, **crafted.options)
    one, other = loaded(documents.walked(tables, [walk(tables, 0x5123), walk(tables, 0x7000)]))["walks"]
    assert (one["physical"], one["page"], one["user"], one["fault"]) == ("0x20123", 4096, "rw-", None)
    assert one["steps"][-1]["fields"] == {
        "valid": 1, "page": 1, "AP": 1, "SH": 3, "AF": 1, "PXN": 1, "UXN": 1,
    }  # fmt: skip
    assert [step["level"] for step in one["steps"]] == ["L0", "L1", "L2", "L3"]
    assert (other["physical"], other["page"], other["steps"][-1]["fields"]) == (None, None, {})
    assert other["fault"].startswith("translation fault")


def test_owners_and_differences_have_documents() -> None:
    old, new = Crafted("x86_64-4level"), Crafted("x86_64-4level")
    at = old.leaf(0x5000, 0x20000)
    new.leaf(0x5000, 0x21000)
    new.leaf(0x9000, 0x22000)
    found, other = surveyed(old), surveyed(new)
    mapped, table_page = loaded(documents.owned(found.tables, [who(found, 0x20010), who(found, at)]))["pages"]
    (mapping,) = mapped["mappings"]
    assert (mapping["virtual"], mapping["at"], mapping["flags"]) == ("0x5010", hex(at), ["accessed", "dirty"])
    assert int(mapping["entry"], 16) == int(old.words[at // 8])
    (use,) = table_page["tables"]
    assert (use["level"], use["entry"], use["translates"], use["start"]) == ("PT", 5, "0x5000", "0x0")
    data = loaded(documents.differing(found.tables, other.tables, difference(found, other)))
    number(data)
    assert data["same"] is False
    changed, fresh = data["ranges"]
    assert (changed["how"], changed["what"]) == ("changed", ["target"])
    assert (changed["old"]["physical"], changed["new"]["physical"]) == ("0x20000", "0x21000")
    assert (fresh["how"], fresh["what"], fresh["old"]) == ("mapped", [], None)
    assert fresh["new"]["user"] == "rw-"


def test_a_table_of_itself_counts_in_numbers_that_javascript_has() -> None:
    crafted = Crafted("x86_64-5level", 3)
    crafted.words[512:1024] = crafted.root | TABLE["x86_64"]
    data = loaded(documents.shown(listing(surveyed(crafted))))
    number(data)
    assert data["totals"]["pages"]["4K"] == 512**5
