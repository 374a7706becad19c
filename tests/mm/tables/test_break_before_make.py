"""Break before make: what may not be done to a live entry is refused, and no guest can bring it about.

Arm ARM R_WHZWS: between two live entries of one place that differ in address, memory type, contiguity, being
a table, or being global, there is an absent one and a flush. The reference CPU writes down each time it finds
the rule broken, and every board of this folder asserts at its end that it never was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aether_emu.arch.paging import Access, Attributes, MemoryType, PageFlags, PageTableFormat
from aether_emu.mm import ageing, mapping
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.mapping import (
    MADV_DONTNEED,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    Request,
)
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import MREMAP_FIXED, MREMAP_MAYMOVE, Remap, remap_memory
from aether_emu.mm.tables.live import BreakBeforeMake
from aether_emu.mm.tables.page import Found
from tests.arch.formats import EVERY_FORMAT
from tests.mm.board import ENGINES, FORMATS, Board, GrantedFile
from tests.mm.tables.test_page import Bench

READ, WRITE, EXECUTE = Protection.READ, Protection.WRITE, Protection.EXECUTE
RW = READ | WRITE
FLAGS = PageFlags.READ | PageFlags.WRITE | PageFlags.USER | PageFlags.ACCESSED | PageFlags.DIRTY
DATA = Attributes(FLAGS)

Change = Callable[[PageTableFormat, int], int]
"""What a live level-1 leaf would become."""


def with_attributes(changed: Attributes) -> Change:
    return lambda fmt, entry: fmt.leaf_address(entry, 1) | fmt.leaf_bits(changed)


def other_address(fmt: PageTableFormat, entry: int) -> int:
    return entry + fmt.page_size


FROZEN: dict[str, Change] = {
    "address": other_address,
    "memory type": with_attributes(replace(DATA, memory=MemoryType.UNCACHED)),
    "contiguous": with_attributes(replace(DATA, contiguous=True)),
    "global": with_attributes(Attributes(FLAGS | PageFlags.GLOBAL)),
}
PERMITTED: dict[str, Change] = {
    "read-only": with_attributes(Attributes(FLAGS & ~PageFlags.WRITE)),
    "executable": with_attributes(Attributes(FLAGS | PageFlags.EXECUTE)),
    "old": lambda fmt, entry: fmt.age(entry),
    "clean": lambda fmt, entry: fmt.clean(entry),
    "software": with_attributes(replace(DATA, software=1)),
    "absent": lambda fmt, entry: 0,
}


def forbids(fmt: PageTableFormat, what: str) -> bool:
    """The rule of each architecture, written once more: the invented one minds only where an entry points."""
    if fmt.name.startswith("x86_64"):
        return False
    return what == "address" or fmt.name.startswith("arm64")


def changes(fmt: PageTableFormat) -> dict[str, Change]:
    """Those of `FROZEN` that the format can say."""
    if not fmt.contiguous_bit:
        return {what: change for what, change in FROZEN.items() if what != "contiguous"}
    return FROZEN


@pytest.fixture(params=EVERY_FORMAT, ids=lambda fmt: fmt.name)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.close()


def live(bench: Bench, va: int = 0) -> Found:
    found = bench.table.find(va)
    assert found is not None
    return found


# ---- what is refused


def test_a_frozen_change_of_a_live_entry_is_refused_by_naming_both(bench: Bench) -> None:
    bench.table.map(0, 4 * bench.page, bench.page, DATA)
    found, fmt = live(bench), bench.format
    for what, change in changes(fmt).items():
        entry = change(fmt, found.entry)
        if not forbids(fmt, what):
            bench.table.replace(0x123, found, entry)
            assert live(bench).entry == entry
            bench.ram.words[found.slot] = found.entry
            continue
        with pytest.raises(BreakBeforeMake) as refused:
            bench.table.replace(0x123, found, entry)
        assert (refused.value.old, refused.value.new) == (
            fmt.describe(found.entry, 1),
            fmt.describe(entry, 1),
        )
        assert refused.value.old in str(refused.value)
        assert refused.value.new in str(refused.value)
        assert "0x123" in str(refused.value)
        assert live(bench) == found, what


def test_a_block_becomes_no_table_and_a_table_no_block(bench: Bench) -> None:
    fmt, large = bench.format, bench.large
    bench.table.map(0, 0, large, DATA, largest=large)
    bench.table.map(large, 0, bench.page, DATA)
    block, slot = live(bench), bench.table.slot(large, 2)
    table = Found(large, 2, slot, bench.ram.words[slot])
    other = fmt.next_table(table.entry, 2)
    assert other is not None
    for va, found, entry in ((0, block, fmt.table_entry(other)), (large, table, block.entry)):
        if fmt.frozen_bits:
            with pytest.raises(BreakBeforeMake):
                bench.table.replace(va, found, entry)
            assert bench.ram.words[found.slot] == found.entry
        else:
            bench.table.replace(va, found, entry)
            assert bench.ram.words[found.slot] == entry
            bench.ram.words[found.slot] = found.entry


@pytest.mark.parametrize("what", PERMITTED)
def test_permissions_and_what_was_observed_may_change_on_every_format(bench: Bench, what: str) -> None:
    bench.table.map(0, 4 * bench.page, bench.page, DATA)
    found = live(bench)
    entry = PERMITTED[what](bench.format, found.entry)
    bench.table.replace(0, found, entry)
    assert bench.ram.words[found.slot] == entry != found.entry
    bench.table.replace(0, found, found.entry)


@pytest.mark.parametrize("what", ["memory type", "global"])
def test_protecting_never_changes_what_is_frozen(bench: Bench, what: str) -> None:
    bench.table.map(0, 0, 3 * bench.page, DATA)
    before = bench.mapped()
    wanted = {
        "memory type": replace(DATA, memory=MemoryType.UNCACHED),
        "global": Attributes(FLAGS | PageFlags.GLOBAL),
    }[what]
    if forbids(bench.format, what):
        with pytest.raises(BreakBeforeMake):
            bench.table.protect(0, 3 * bench.page, wanted)
        assert bench.mapped() == before
    else:
        assert bench.table.protect(0, 3 * bench.page, wanted) == before
        assert bench.attributes(bench.page) == wanted


def test_an_exchange_breaks_before_it_makes_only_where_that_is_the_rule(bench: Bench) -> None:
    bench.table.map(0, 0, bench.page, DATA)
    found, seen = live(bench), list[int]()
    entry = other_address(bench.format, found.entry)
    bench.table.exchange(found, entry, lambda: seen.append(bench.ram.words[found.slot]))
    assert seen == [0 if bench.format.frozen_bits else entry]
    assert bench.ram.words[found.slot] == entry


# ---- the checker


CHECKED = [(name, what) for name, fmt in FORMATS.items() for what in changes(fmt) if fmt.frozen_bits]


class Watched:
    """One written page on the reference CPU, which has it in its TLB."""

    def __init__(self, name: str) -> None:
        self.board = Board(FORMATS[name])
        self.space = self.board.space()
        self.board.run_on(self.space)
        self.cpu, self.format, self.words = self.board.cpu, self.board.format, self.board.ram.words
        size = self.format.page_size
        self.at = mapping.map_memory(self.space, Request(0, size, RW, MAP_PRIVATE | MAP_ANONYMOUS, None, 0))
        self.cpu.copy_to_user(self.at, b"x")
        found = self.space.table.find(self.at)
        assert found is not None
        self.found = found

    def notice(self, how: str) -> None:
        """Give the CPU a reason to look at what it has cached."""
        if how == "page":
            self.cpu.flush_page(self.at)
        elif how == "all":
            self.cpu.flush_all()
        else:  # an access that the cached translation does not permit is walked again
            self.cpu.translate(self.at, Access.EXECUTE)


@pytest.mark.parametrize(("name", "what"), CHECKED)
@pytest.mark.parametrize("how", ["page", "all", "access"])
def test_the_reference_cpu_notices_a_live_entry_that_became_another(name: str, what: str, how: str) -> None:
    watched = Watched(name)
    found = watched.found
    watched.words[found.slot] = changes(watched.format)[what](watched.format, found.entry)
    assert watched.cpu.broken_rules == []
    watched.notice(how)
    watched.words[found.slot] = found.entry
    if forbids(watched.format, what):
        assert [rule.split()[0] for rule in watched.cpu.broken_rules] == [hex(watched.at)]
        with pytest.raises(AssertionError):
            watched.board.close()
    else:
        watched.board.close()


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.frozen_bits])
@pytest.mark.parametrize("what", PERMITTED)
def test_it_says_nothing_of_changes_that_are_permitted(name: str, what: str) -> None:
    watched = Watched(name)
    found = watched.found
    watched.words[found.slot] = PERMITTED[what](watched.format, found.entry)
    watched.notice("page")
    watched.words[found.slot] = found.entry
    watched.board.close()


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.frozen_bits])
def test_it_notices_a_table_that_was_put_in_the_place_of_another(name: str) -> None:
    watched = Watched(name)
    board, table = watched.board, watched.space.table
    slot = table.slot(watched.at, 2)
    good, leaf_table = watched.words[slot], watched.words[slot] & watched.format.address_mask
    copy = board.physical.take(Kind.TABLE, 0, 1)
    address = board.frames.address(copy)
    page = watched.format.page_size
    board.ram.bytes[address - board.ram.base :][:page] = board.ram.bytes[leaf_table - board.ram.base :][:page]
    watched.words[slot] = watched.format.table_entry(address, table.reach)  # the same translations, live
    watched.notice("page")
    watched.words[slot] = good
    assert watched.cpu.broken_rules
    board.frames.put(copy)
    board.physical.give_back([copy])
    with pytest.raises(AssertionError):
        board.close()


# ---- what guests can do


class Program:
    """Live memory of an address space: every page was loaded, or stored to, just before it is changed."""

    def __init__(self, board: Board, tmp_path: Path) -> None:
        self.board, self.page = board, board.format.page_size
        self.space = board.space()
        board.run_on(self.space)
        path = tmp_path / "file"
        path.write_bytes(b"".join(bytes([65 + n]) * self.page for n in range(4)))
        self.file = GrantedFile(board, path)

    def map(self, pages: int, flags: int, *, at: int = 0, file: bool = False, protection: int = RW) -> int:
        flags |= MAP_FIXED if at else 0
        flags |= 0 if file else MAP_ANONYMOUS
        backing = self.file if file else None
        request = Request(at, pages * self.page, protection, flags, backing, 0)
        return mapping.map_memory(self.space, request)

    def load(self, at: int, pages: int = 4) -> bytes:
        return b"".join(self.board.cpu.copy_from_user(at + n * self.page, 1) for n in range(pages))

    def store(self, at: int, data: bytes) -> None:
        for number, byte in enumerate(data):
            self.board.cpu.copy_to_user(at + number * self.page, bytes([byte]))


@pytest.fixture(params=[*((name, False) for name in FORMATS), *((name, True) for name in ENGINES)], ids=str)
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Program]:
    """On the CPU that checks the rule, and on the one that executes: there, what follows must be right."""
    name, execute = request.param
    board = Board(FORMATS[name], execute=execute)
    yield Program(board, tmp_path)
    board.close()


def test_protection_of_live_memory_goes_to_and_fro(program: Program) -> None:
    at = program.map(4, MAP_PRIVATE)
    program.store(at, b"abcd")
    for protection in (READ, RW, 0, READ | EXECUTE, RW | EXECUTE, 0, RW):
        mapping.protect_memory(program.space, at, 4 * program.page, protection)
        if protection:
            assert program.load(at) == b"abcd"
        if protection & WRITE:
            program.store(at, b"abcd")


def test_private_pages_of_a_file_become_copies(program: Program) -> None:
    at = program.map(4, MAP_PRIVATE, file=True)
    assert program.load(at) == b"ABCD"
    program.store(at, b"xy")
    assert program.load(at) == b"xyCD"


def test_the_zero_page_becomes_a_page_of_its_own(program: Program) -> None:
    at = program.map(4, MAP_PRIVATE)
    assert program.load(at) == bytes(4)
    program.store(at, b"abcd")
    assert program.load(at) == b"abcd"
    mapping.advise_memory(program.space, at, 4 * program.page, MADV_DONTNEED)
    assert program.load(at) == bytes(4)
    program.store(at, b"efgh")
    assert program.load(at) == b"efgh"


def test_live_memory_is_moved_and_moved_onto(program: Program) -> None:
    first, second = program.map(4, MAP_PRIVATE), program.map(4, MAP_PRIVATE)
    program.store(first, b"abcd")
    program.store(second, b"efgh")
    remap = Remap(first, 4 * program.page, 4 * program.page, MREMAP_MAYMOVE | MREMAP_FIXED, second)
    assert remap_memory(program.space, remap) == second
    assert program.load(second) == b"abcd"
    assert program.map(4, MAP_PRIVATE, at=first) == first
    assert program.load(first) == bytes(4)


@pytest.mark.parametrize("shared", [MAP_SHARED, MAP_PRIVATE])
@pytest.mark.parametrize("file", [False, True])
def test_live_memory_is_mapped_over(program: Program, shared: int, file: bool) -> None:
    at = program.map(4, MAP_PRIVATE)
    program.store(at, b"abcd")
    assert program.map(4, shared, at=at, file=file) == at
    assert program.load(at) == (b"ABCD" if file else bytes(4))
    program.store(at, b"efgh")
    assert program.map(4, MAP_PRIVATE, at=at) == at
    assert program.load(at) == bytes(4)


def test_a_scan_between_accesses_changes_what_was_observed_only(program: Program) -> None:
    at = program.map(4, MAP_PRIVATE)
    program.store(at, b"abcd")
    for _ in range(2):
        ageing.forget_accesses(program.space, at, at + 4 * program.page)
        ageing.clean(program.space, at, at + 4 * program.page)
        assert program.load(at) == b"abcd"
        program.store(at, b"abcd")
