"""Page tables alone: what is built, read, written by hand and executed, in every format."""

from __future__ import annotations

import mmap

import pytest

from aether_emu import tables
from aether_emu.address import PhysAddr
from aether_emu.arch.paging import MemoryType, PageFlags
from aether_emu.errors import (
    AddressError,
    AetherError,
    ConfigError,
    EncodingError,
    MachineError,
    MappingError,
    OutOfFrames,
)
from aether_emu.mm.tables.walk import Mapped, NotMapped
from aether_emu.tables import (
    FORMATS,
    ArmControls,
    Excepted,
    Faulted,
    NoMemory,
    PageTables,
    Reached,
    X86Controls,
)

VA, TARGET = 0x40_0000, 12
_USER = PageFlags.READ | PageFlags.USER | PageFlags.ACCESSED
every_format = pytest.mark.parametrize("name", FORMATS)


def _made(name: str) -> PageTables:
    """Tables that map one page at VA to page number TARGET, for reading and writing by users."""
    made = PageTables(name, bytearray(64 << 16))
    made.map(VA, TARGET * made.format.page_size)
    return made


def test_closed_tables_say_so_and_close_twice() -> None:
    table = _made("x86_64-4level")
    table.close()
    table.close()
    assert repr(table) == "<PageTables x86_64-4level: closed>"
    for late in (
        lambda: table.walk(VA),
        lambda: table.execute(VA),
        lambda: table.map(VA, 0),
        lambda: table.unmap(VA),
        lambda: table.read(VA),
    ):
        with pytest.raises(MachineError, match="are closed"):
            late()


@every_format
def test_what_is_mapped_is_reached_by_a_real_access_and_by_the_walk(name: str) -> None:
    table = _made(name)
    physical = TARGET * table.format.page_size + 0x120
    walked = table.walk(VA + 0x120)
    assert isinstance(walked, Mapped)
    assert walked.address == physical
    for kind in ("read", "write"):
        assert table.execute(VA + 0x120, kind) == Reached(walked.address)
    assert isinstance(table.execute(VA + 0x120, "fetch"), Faulted)
    table.protect(VA, flags=_USER | PageFlags.EXECUTE)
    assert table.execute(VA + 0x120, "fetch") == Reached(walked.address)
    assert isinstance(table.execute(VA + 0x120, "write"), Faulted)
    assert not any(memoryview(table.memory)[physical - 0x120 : physical + 0x1000])  # put back


@every_format
def test_a_bit_changed_by_hand_in_the_buffer_counts(name: str) -> None:
    table = _made(name)
    x86 = table.isa == "x86_64"
    at = int(table.address_of(VA))
    word = memoryview(table.memory)[at : at + 8]
    entry = int.from_bytes(word, "little")
    assert entry == table.read(VA)
    word[:] = (entry & ~(4 if x86 else 1 << 6)).to_bytes(8, "little")  # U/S, AP[1]
    tried = table.execute(VA, "read")
    assert isinstance(tried, Faulted)
    assert (tried.code, tried.address) == (5 if x86 else 0x24 << 26 | 0xF, VA)
    table.write(VA, 1, entry)
    assert isinstance(table.execute(VA, "read"), Reached)
    table.write(VA, 1, 0)
    assert isinstance(table.walk(VA), NotMapped)
    tried = table.execute(VA, "write")
    assert isinstance(tried, Faulted)
    assert tried.code == (6 if x86 else 0x24 << 26 | 1 << 6 | 7)


@every_format
def test_the_tables_of_somebody_else_are_walked_where_they_are(name: str) -> None:
    mine = _made(name)
    memory = bytearray(mine.memory)
    other = PageTables(name, memory, root=mine.root)
    page = other.format.page_size
    assert other.walk(VA) == mine.walk(VA)
    other.map(VA + (1 << 34), 13 * page)  # its tables go where none of the others is
    assert other.walk(VA) == mine.walk(VA)
    assert isinstance(other.execute(VA + (1 << 34)), Reached)


@every_format
def test_large_leaves_and_the_upper_half(name: str) -> None:
    table = _made(name)
    leaf = table.format.leaf_sizes()[-1]
    upper = (1 << 64) - leaf
    table.map(upper, 0, leaf=leaf, flags=PageFlags.READ | PageFlags.ACCESSED)
    assert table.execute(upper + 0x1230, user=False) == Reached(table.walk(upper + 0x1230).address)  # type: ignore[union-attr]  # it is mapped
    assert isinstance(table.execute(upper), Faulted)
    table.unmap(upper)
    assert isinstance(table.walk(upper), NotMapped)
    table.map(VA & -leaf, leaf, leaf=leaf)
    beyond = table.execute((VA & -leaf) + 8)
    assert beyond == NoMemory(table.walk((VA & -leaf) + 8).address)  # type: ignore[union-attr]  # likewise


def test_what_the_mmu_notes_stays_in_the_buffer() -> None:
    table = PageTables("x86_64-4level")
    table.map(VA, 0x8000, flags=PageFlags.READ | PageFlags.WRITE | PageFlags.USER)
    assert table.read(VA) & 0x60 == 0
    table.execute(VA)
    assert table.read(VA) & 0x60 == 0x20
    table.execute(VA, "write")
    assert table.read(VA) & 0x60 == 0x60
    assert table.read(VA, 4) & 0x20


def test_the_supervisor_is_governed_by_its_controls() -> None:
    x86 = _made("x86_64-4level")
    assert isinstance(x86.execute(VA, user=False), Faulted)  # SMAP
    assert isinstance(x86.execute(VA, user=False, controls=X86Controls(smap=False)), Reached)
    assert isinstance(x86.execute(VA, user=False, controls=X86Controls(ac=True)), Reached)
    x86.map(VA, 0x8000, key=3)
    assert isinstance(x86.execute(VA, controls=X86Controls(pke=True)), Reached)
    denied = x86.execute(VA, "write", controls=X86Controls(pke=True, pkru=0b11 << 6))
    assert isinstance(denied, Faulted)
    assert denied.code == 0x27
    arm = _made("arm64-4K")
    assert isinstance(arm.execute(VA, user=False), Faulted)  # PAN
    assert isinstance(arm.execute(VA, user=False, controls=ArmControls(pan=False)), Reached)
    with pytest.raises(ConfigError, match="X86Controls"):
        x86.execute(VA, controls=ArmControls())
    with pytest.raises(ConfigError, match="ArmControls"):
        arm.execute(VA, controls=X86Controls())


def test_an_answer_says_what_happened_in_the_manuals_words() -> None:
    x86, arm = _made("x86_64-4level"), _made("arm64-4K")
    assert str(x86.execute(VA, "fetch")) == f"page fault, error code 0x15 (P U I) at {VA:#x}"
    assert str(x86.execute(VA)) == "reached 0xc000"
    assert x86.execute(1 << 50) == Excepted("x86_64", 13)
    assert str(arm.execute(VA, "fetch")) == (
        f"instruction abort, permission fault, level 3 (ESR 0x8000000f) at {VA:#x}"
    )
    assert str(arm.execute(1 << 40, "write")).startswith("data abort, translation fault, level 0, store")


def test_a_buffer_may_be_an_mmap_that_stands_anywhere() -> None:
    with mmap.mmap(-1, 1 << 16) as memory:
        table = PageTables("x86_64-5level", memory, base=0x10_0000)
        table.map(VA, 0x10_8000)
        assert table.execute(VA) == Reached(table.walk(VA).address)  # type: ignore[union-attr]  # it is mapped
        assert table.root == 0x10_0000
        with pytest.raises(OutOfFrames):
            for number in range(20):
                table.map(number << 39, 0x10_8000)
        table.close()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda: PageTables("x86_64"), ConfigError),
        (lambda: PageTables("arm64-64K-lpa"), ConfigError),
        (lambda: PageTables(memory=bytearray(5000)), ConfigError),
        (lambda: PageTables(memory=bytearray(0)), ConfigError),
        (lambda: PageTables(memory=memoryview(bytes(8192))), ConfigError),
        (lambda: PageTables(root=0x10), ConfigError),
        (lambda: PageTables(root=1 << 30), ConfigError),
        (lambda: PageTables(base=1 << 45), ConfigError),
        (lambda: PageTables(physical_bits=99), ConfigError),
        (lambda: PageTables().walk(-1), AddressError),
        (lambda: PageTables().walk(1 << 50), AddressError),
        (lambda: PageTables().map(0x123, 0), MappingError),
        (lambda: PageTables().map(0, 0, leaf=12345), ConfigError),
        (lambda: PageTables().map(0, 0, flags=PageFlags(0)), EncodingError),
        (lambda: PageTables("arm64-4K").map(0, 0, key=1), EncodingError),
        (lambda: PageTables().read(0), MappingError),
        (lambda: PageTables().read(0, 9), ConfigError),
        (lambda: PageTables().write(0, 4, 1 << 64), ConfigError),
        (lambda: PageTables().unmap(0), MappingError),
        (lambda: PageTables().execute(0, "jump"), ConfigError),
        (lambda: PageTables().execute(-1), AddressError),
    ],
)
def test_misuse_gets_one_line_of_ours(wrong: object, error: type[AetherError]) -> None:
    with pytest.raises(error) as caught:
        wrong()  # type: ignore[operator]  # each is a function
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_a_small_page_inside_a_large_leaf_splits_it_and_the_rest_stays(name: str) -> None:
    table = PageTables(name)
    sizes = table.format.leaf_sizes()
    page, largest = sizes[0], sizes[-1]
    flags = PageFlags.READ | PageFlags.USER | PageFlags.ACCESSED
    table.map(0, 0, leaf=largest, flags=flags, memory=MemoryType.UNCACHED)
    before = {va: table.walk(va) for va in (0, 2 * page, largest - 1)}
    table.map(page, 0x8_0000, flags=flags | PageFlags.WRITE | PageFlags.DIRTY)
    assert isinstance(walked := table.walk(page), Mapped)
    assert (walked.address, walked.size) == (0x8_0000, page)
    assert walked.attributes.flags & PageFlags.WRITE
    for va, was in before.items():
        now = table.walk(va)
        assert isinstance(was, Mapped)
        assert isinstance(now, Mapped)
        assert (now.address, now.attributes) == (was.address, was.attributes), hex(va)
    assert table.execute(2 * page) == Reached(PhysAddr(2 * page))
    assert isinstance(table.execute(2 * page, "write"), Faulted)
    assert isinstance(table.execute(page, "write"), Reached)


def test_memory_types_are_encoded() -> None:
    table = PageTables("x86_64-4level")
    table.map(VA, 0x8000, memory=MemoryType.UNCACHED)
    assert table.read(VA) & 0x18 == 0x18
    assert "uncached" in str(table.walk(VA))


def test_the_example_of_the_module_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.__doc__ is not None
    lines = [line[4:] for line in tables.__doc__.splitlines() if line.startswith("    ")]
    exec("\n".join(lines), {})
    *_, reached, fault = capsys.readouterr().out.splitlines()
    assert reached == "reached 0x8123"
    assert fault == "page fault, error code 0x7 (P W U) at 0x400123"
