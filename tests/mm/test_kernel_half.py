"""The supervisor's half, as each executing CPU sees it: out of a program's reach, guarded from itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from aether_emu.arch.arm64 import stubs as arm_stubs
from aether_emu.arch.paging import Access, Attributes, PageFlags, PageTableFormat
from aether_emu.computer import RAM_BASE, lowest_kernel_base
from aether_emu.errors import MappingError, OutOfFrames
from aether_emu.machine.cpu import ExitReason, UserFault
from aether_emu.mm.fault import AccessError
from aether_emu.mm.kernel_half import DATA, TEXT, KernelHalf
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.walk import Mapped
from tests.mm.board import ENGINES, FORMATS, Board, fault_in

USER, PRESENT = int(Access.USER | Access.PRESENT), int(Access.PRESENT)
READ, WRITE, EXECUTE = int(Access.READ), int(Access.WRITE), int(Access.EXECUTE)
CODE = 0x40_0000


class Guest:
    """A real CPU with a page of code, a page of data and a page that is read-only."""

    def __init__(self, board: Board) -> None:
        self.board, self.cpu, self.isa = board, board.cpu, board.instructions
        self.page = page = board.format.page_size
        self.space: AddressSpace = board.space()
        board.run_on(self.space)
        protections = (
            Protection.READ | Protection.EXECUTE | Protection.WRITE,
            Protection.READ | Protection.WRITE,
        )
        for number, protection in enumerate((*protections, Protection.READ)):
            start = CODE + number * page
            self.space.insert(self.space.new_area(start, start + page, protection))
        self.data, self.read_only = CODE + page, CODE + 2 * page
        self.cpu.copy_to_user(self.data, b"userdata")
        self.cpu.copy_from_user(self.read_only, 1)
        self.faults: list[tuple[int, int]] = []
        self.cpu.on_fault = self._fault
        self.cpu.on_system_call = lambda *_arguments: self.cpu.stop()
        self.direct = lowest_kernel_base(board.format) + RAM_BASE
        self.addresses = {
            "first byte of RAM": self.direct,
            "inside RAM": self.direct + 5 * page + 0x678,
            "last bytes of RAM": self.direct + board.ram.size - 8,
            "stubs": TEXT,
            "inside the stubs' page": TEXT + self.isa.load_offset,
            "tables and stack": DATA,
            "end of the stack": DATA + page - 8,
        }

    def _fault(self, va: int, access: int) -> None:
        self.faults.append((va, access))
        self.cpu.stop()

    def runs(self, code: bytes, address: int) -> list[tuple[int, int]]:
        """The fault that stops a program's `code` (a system call follows it), if one does."""
        self.faults.clear()
        self.cpu.copy_to_user(CODE, code + self.isa.system_call)
        self.cpu.flush_code()
        self.cpu.write(self.isa.address, address)
        self.cpu.pc = CODE
        assert self.cpu.run().reason is ExitReason.STOPPED
        return list(self.faults)


@pytest.fixture
def guest(engine: Board) -> Guest:
    return Guest(engine)


@pytest.fixture
def x86_guest() -> Iterator[Guest]:
    board = Board(ENGINES["x86_64"], execute=True)
    yield Guest(board)
    board.close()


@pytest.fixture(params=[name for name in ENGINES if name.startswith("arm64")])
def arm_guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    board = Board(ENGINES[request.param], execute=True)
    yield Guest(board)
    board.close()


# ---- the program


def test_a_program_neither_reads_writes_nor_executes_the_supervisors_half(guest: Guest) -> None:
    for name, address in guest.addresses.items():
        for code, kind in ((guest.isa.load, READ), (guest.isa.store, WRITE), (guest.isa.jump, EXECUTE)):
            assert guest.runs(code, address & -4) == [(address & -4, USER | kind)], name


def test_nor_does_the_kernel_on_its_behalf(guest: Guest) -> None:
    for address in guest.addresses.values():
        with pytest.raises(UserFault):
            guest.cpu.copy_from_user(address, 8)
        with pytest.raises(UserFault):
            guest.cpu.copy_to_user(address, b"overwrite")


def test_a_faults_outcome_there_is_a_refusal(guest: Guest) -> None:
    for address in guest.addresses.values():
        assert fault_in(guest.space, address, USER | READ) == AccessError(address, mapped=False)


def test_its_own_pages_a_program_uses(guest: Guest) -> None:
    assert guest.runs(guest.isa.load, guest.data) == []
    assert guest.cpu.read(guest.isa.value) == int.from_bytes(b"userdata", "little")
    assert guest.runs(guest.isa.store, guest.data) == []
    assert guest.runs(guest.isa.jump, guest.data) == [(guest.data, USER | EXECUTE)]


# ---- the supervisor


def test_the_direct_map_shows_all_of_ram_to_the_supervisor(guest: Guest) -> None:
    at = 700 * guest.page + 0x100
    guest.board.ram.bytes[at : at + 8] = b"physical"
    loaded = guest.isa.supervisor_load(guest.cpu, guest.direct + at)
    assert (loaded.value, loaded.fault) == (int.from_bytes(b"physical", "little"), None)
    assert guest.isa.supervisor_store(guest.cpu, guest.direct + at, 1).fault is None
    assert bytes(guest.board.ram.bytes[at : at + 8]) == (1).to_bytes(8, "little")


def test_behind_the_end_of_ram_there_is_nothing(guest: Guest) -> None:
    base, size = guest.direct - RAM_BASE, guest.board.ram.size
    for address in (base, guest.direct - 8, guest.direct + size):
        assert guest.isa.supervisor_load(guest.cpu, address).fault == (address, READ)


def test_the_direct_map_and_the_data_page_are_never_executed(guest: Guest) -> None:
    for address in (guest.direct, DATA):
        assert guest.isa.supervisor_jump(guest.cpu, address).fault == (address, EXECUTE | PRESENT)


def test_the_stubs_are_not_writable_even_by_the_supervisor(guest: Guest) -> None:
    for allowed in (False, True):
        for address in (TEXT, TEXT + guest.isa.load_offset, TEXT + guest.page - 8):
            landed = guest.isa.supervisor_store(guest.cpu, address, 0, allowed=allowed)
            assert landed.fault == (address, WRITE | PRESENT)
    assert guest.isa.supervisor_load(guest.cpu, TEXT).fault is None


def test_nor_is_their_frame_by_its_address_in_the_direct_map(guest: Guest) -> None:
    kernel, board = guest.board.kernel_half, guest.board
    assert kernel is not None
    text = kernel.table.walk(TEXT)
    assert isinstance(text, Mapped)
    alias = guest.direct - RAM_BASE + int(text.address) + 64
    before = bytes(board.physical.page_bytes(board.frames.number(text.address)))
    assert guest.isa.supervisor_store(guest.cpu, alias, 0x90).fault == (alias, WRITE | PRESENT)
    assert bytes(board.physical.page_bytes(board.frames.number(text.address))) == before
    assert guest.isa.supervisor_load(guest.cpu, alias).fault is None
    free = guest.direct + 800 * guest.page
    assert guest.isa.supervisor_store(guest.cpu, free, 1).fault is None


def test_the_supervisor_executes_no_page_of_a_program(guest: Guest) -> None:
    """SMEP; PXN."""
    assert guest.runs(guest.isa.load, guest.data) == []
    assert guest.isa.supervisor_jump(guest.cpu, CODE).fault == (CODE, EXECUTE | PRESENT)


def test_the_supervisor_touches_a_page_of_a_program_only_when_it_says_so(guest: Guest) -> None:
    """SMAP; PAN."""
    isa, cpu, data = guest.isa, guest.cpu, guest.data
    value = int.from_bytes(b"userdata", "little")
    assert isa.supervisor_load(cpu, data).fault == (data, READ | PRESENT)
    assert isa.supervisor_store(cpu, data, 0).fault == (data, WRITE | PRESENT)
    assert cpu.copy_from_user(data, 8) == b"userdata"
    loaded = isa.supervisor_load(cpu, data, allowed=True)
    assert (loaded.value, loaded.fault) == (value, None)
    assert isa.supervisor_store(cpu, data, value + 1, allowed=True).fault is None
    assert cpu.copy_from_user(data, 8) == (value + 1).to_bytes(8, "little")


def test_write_protection_binds_the_supervisor_too(guest: Guest) -> None:
    landed = guest.isa.supervisor_store(guest.cpu, guest.read_only, 0, allowed=True)
    assert landed.fault == (guest.read_only, WRITE | PRESENT)


def test_a_protection_key_denies_the_program_and_the_fault_is_not_tried_for_ever(x86_guest: Guest) -> None:
    """wrpkru needs no privilege: a program that denies itself its own pages gets a fault, not a hang."""
    guest = x86_guest
    wrpkru = bytes.fromhex("31c931d2b8010000000f01ef")  # xor ecx, ecx; xor edx, edx; mov eax, 1; wrpkru
    (fault,) = guest.runs(wrpkru + guest.isa.load, guest.data)
    assert fault == (guest.data, int(Access.READ | Access.USER | Access.PRESENT | Access.KEY))
    assert fault_in(guest.space, *fault) == AccessError(guest.data, mapped=True)


def test_an_unprivileged_load_of_the_supervisor_has_the_programs_rights(arm_guest: Guest) -> None:
    guest, stub = arm_guest, arm_stubs.LOAD_UNPRIVILEGED
    loaded = guest.cpu.supervisor(stub, x1=guest.data)
    assert (loaded.x0, loaded.fault) == (int.from_bytes(b"userdata", "little"), None)
    for address in (TEXT, guest.direct):
        assert guest.cpu.supervisor(stub, x1=address).fault[1] & ~int(Access.USER) == READ | PRESENT


# ---- the tables


def test_a_users_leaf_that_strayed_into_the_supervisors_tables_serves_no_program(guest: Guest) -> None:
    """The tables lock users out once more, whatever a leaf below them says."""
    kernel, board, fmt = guest.board.kernel_half, guest.board, guest.board.format
    assert kernel is not None
    stray = TEXT + guest.page
    flags = PageFlags.READ | PageFlags.WRITE | PageFlags.EXECUTE | PageFlags.USER | PageFlags.ACCESSED
    slot = kernel.table.leaf_slot(stray)
    board.ram.words[slot] = fmt.leaf_entry(RAM_BASE, Attributes(flags | PageFlags.DIRTY))
    for code, kind in ((guest.isa.load, READ), (guest.isa.store, WRITE), (guest.isa.jump, EXECUTE)):
        assert guest.runs(code, stray) == [(stray, USER | kind)] or guest.faults == [
            (stray, USER | kind | PRESENT)
        ]
    board.ram.words[slot] = 0


def test_a_supervisors_leaf_that_strayed_into_a_programs_tables_is_not_executed(arm_guest: Guest) -> None:
    guest, board, fmt = arm_guest, arm_guest.board, arm_guest.board.format
    assert board.kernel_half is not None
    stray = CODE + 8 * guest.page
    text = board.kernel_half.table.walk(TEXT)
    assert isinstance(text, Mapped)
    slot = guest.space.table.leaf_slot(stray)
    flags = PageFlags.READ | PageFlags.EXECUTE | PageFlags.ACCESSED
    board.ram.words[slot] = fmt.leaf_entry(text.address, Attributes(flags))
    assert guest.isa.supervisor_load(guest.cpu, stray).fault is None
    assert guest.isa.supervisor_jump(guest.cpu, stray).fault == (stray, EXECUTE | PRESENT)
    board.ram.words[slot] = 0


def leaves(fmt: PageTableFormat, ram: int) -> Counter[int]:
    """How many leaves of each size the direct map of `ram` bytes takes."""
    board, base = Board(fmt, ram=ram), lowest_kernel_base(fmt)
    half = KernelHalf(board.physical, fmt, base, b"", lambda _va, _cpu: b"")
    start = base + RAM_BASE
    found = list(half.table.cursor(start, start + ram))
    assert found[0].start == start
    for item in found:
        assert fmt.leaf_address(item.entry, item.level) == item.start - base
    walk = half.table.walk(start + ram - 1)
    assert isinstance(walk, Mapped)
    assert walk.address == RAM_BASE + ram - 1
    text = half.table.walk(TEXT)
    assert isinstance(text, Mapped)
    whole = next(
        size
        for size in reversed(fmt.leaf_sizes())
        if text.address & -size >= RAM_BASE and (text.address & -size) + size <= RAM_BASE + ram
    )
    first = base + (text.address & -whole)  # this leaf was split, for the code in it to be sealed
    sizes = Counter(fmt.levels[f.level - 1].size for f in found if not first <= f.start < first + whole)
    sizes[whole] += 1
    half.close()
    board.close()
    return sizes


K, M, G = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("name", "ram", "expected"),
    [
        *(
            (name, ram, expected)
            for name in ("x86_64", "arm64-4K")
            for ram, expected in (
                (2 * M, {2 * M: 1}),
                (4 * M + 12 * K, {2 * M: 2, 4 * K: 3}),
                (16 * M - 4 * K, {2 * M: 7, 4 * K: 511}),
                (G, {G: 1}),
                (G + 10 * M, {G: 1, 2 * M: 5}),
                (2 * G + 6 * M + 28 * K, {G: 2, 2 * M: 3, 4 * K: 7}),
                (5 * G - 4 * K, {G: 4, 2 * M: 511, 4 * K: 511}),
            )
        ),
        ("arm64-16K", 16 * M, {16 * K: 1024}),
        ("arm64-16K", 2 * G + 16 * K, {32 * M: 64, 16 * K: 1}),
        ("arm64-64K", 64 * M, {64 * K: 1024}),
        ("arm64-64K", 2 * G + 192 * K, {512 * M: 4, 64 * K: 3}),
        ("invented", G + 8 * M + 16 * K, {8 * M: 129, 16 * K: 1}),
    ],
)
def test_the_direct_map_uses_the_largest_leaves_that_fit(
    name: str, ram: int, expected: dict[int, int]
) -> None:
    assert leaves(FORMATS[name], ram) == expected


def test_no_entry_of_the_half_is_a_users_and_none_is_both_writable_and_executable(engine: Board) -> None:
    assert engine.kernel_half is not None
    table = engine.kernel_half.table
    found = list(table.cursor(lowest_kernel_base(engine.format), 1 << 64))
    assert {TEXT, DATA} <= {f.start for f in found}
    for item in found:
        walk = table.walk(item.start)
        assert isinstance(walk, Mapped)
        flags = walk.attributes.flags
        assert not flags & PageFlags.USER
        assert flags & PageFlags.GLOBAL
        assert flags & (PageFlags.WRITE | PageFlags.EXECUTE) != PageFlags.WRITE | PageFlags.EXECUTE
        assert bool(flags & PageFlags.EXECUTE) is (item.start == TEXT)


@pytest.fixture(params=FORMATS)
def bare(request: pytest.FixtureRequest) -> Iterator[Board]:
    """A board without a kernel half of its own."""
    made = Board(FORMATS[request.param], ram=1024 * FORMATS[request.param].page_size)
    yield made
    made.close()


def test_a_base_whose_map_would_wrap_into_the_users_half_is_refused(bare: Board) -> None:
    before = bare.buddy.free_frames
    base = (1 << 64) - RAM_BASE - bare.ram.size // 2
    with pytest.raises(MappingError, match="virtual bits"):
        KernelHalf(bare.physical, bare.format, base, b"", lambda _va, _cpu: b"")
    assert bare.buddy.free_frames == before


def test_too_little_memory_is_said_and_nothing_is_kept(bare: Board) -> None:
    held = [bare.buddy.alloc() for _ in range(bare.buddy.free_frames - 4)]
    with pytest.raises(OutOfFrames):
        KernelHalf(bare.physical, bare.format, lowest_kernel_base(bare.format), b"", lambda _va, _cpu: b"")
    assert bare.buddy.free_frames == 4
    bare.buddy.free_bulk(held)


def test_closing_gives_back_every_table_and_both_pages(bare: Board) -> None:
    before = bare.buddy.free_frames
    text = b"\xf4" * bare.format.page_size
    half = KernelHalf(
        bare.physical, bare.format, lowest_kernel_base(bare.format), text, lambda _va, _cpu: b""
    )
    assert before - bare.buddy.free_frames == half.table.tables + 2
    half.close()
    assert bare.buddy.free_frames == before
