"""The supervisor's half, as the executing CPU sees it: out of reach for ring 3, guarded even from ring 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from aether_emu.arch.paging import Access, PageFlags
from aether_emu.arch.x86_64 import stubs
from aether_emu.arch.x86_64.format import X86Format
from aether_emu.errors import MappingError, OutOfFrames
from aether_emu.machine.cpu import ExitReason, UserFault
from aether_emu.mm.address_space import AddressSpace
from aether_emu.mm.fault import AccessError
from aether_emu.mm.kernel_half import DATA, TEXT, KernelHalf
from aether_emu.mm.protection import Protection
from aether_emu.mm.walk import Mapped
from tests.mm.board import KERNEL_BASE, MIB, RAM_BASE, Board

USER = int(Access.USER | Access.PRESENT)
READ, WRITE, EXECUTE = int(Access.READ), int(Access.WRITE), int(Access.EXECUTE)
CODE, PAGE = 0x40_0000, 4096
ADDRESSES = {
    "first byte of RAM": KERNEL_BASE + RAM_BASE,
    "inside RAM": KERNEL_BASE + RAM_BASE + 5 * MIB + 0x678,
    "last bytes of RAM": KERNEL_BASE + RAM_BASE + 16 * MIB - 8,
    "stubs": TEXT,
    "inside the stubs' page": TEXT + stubs.LOAD.offset,
    "tables and stack": DATA,
    "end of the stack": DATA + 0xFF8,
}


class Guest:
    """A real CPU with a page of code, a page of data and a page that is read-only."""

    def __init__(self) -> None:
        self.board = Board(X86Format(), execute=True)
        self.cpu = self.board.cpu
        self.space: AddressSpace = self.board.space()
        self.board.run_on(self.space)
        protections = (
            Protection.READ | Protection.EXECUTE | Protection.WRITE,
            Protection.READ | Protection.WRITE,
        )
        for number, protection in enumerate((*protections, Protection.READ)):
            start = CODE + number * PAGE
            self.space.insert(self.space.new_area(start, start + PAGE, protection))
        self.data, self.read_only = CODE + PAGE, CODE + 2 * PAGE
        self.cpu.copy_to_user(self.data, b"userdata")
        self.cpu.copy_from_user(self.read_only, 1)
        self.faults: list[tuple[int, int]] = []
        self.cpu.on_fault = self._fault
        self.cpu.on_system_call = lambda *_arguments: self.cpu.stop()

    def _fault(self, va: int, access: int) -> None:
        self.faults.append((va, access))
        self.cpu.stop()

    def runs(self, code: str, rdi: int) -> list[tuple[int, int]]:
        """The fault that stops ring-3 `code` (hex; a system call follows it), if one does."""
        self.faults.clear()
        self.cpu.copy_to_user(CODE, bytes.fromhex(code) + bytes.fromhex("0f05"))
        self.cpu.flush_code()
        self.cpu.write("rdi", rdi)
        self.cpu.pc = CODE
        assert self.cpu.run().reason is ExitReason.STOPPED
        return list(self.faults)


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.board.close()


LOAD, STORE, JUMP = "488b07", "488907", "ffe7"  # mov rax, [rdi]; mov [rdi], rax; jmp rdi


# ---- ring 3


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES.keys())
def test_a_program_neither_reads_writes_nor_executes_the_supervisors_half(guest: Guest, address: int) -> None:
    assert guest.runs(LOAD, address) == [(address, USER | READ)]
    assert guest.runs(STORE, address) == [(address, USER | WRITE)]
    assert guest.runs(JUMP, address) == [(address, USER | EXECUTE)]


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES.keys())
def test_nor_does_the_kernel_on_its_behalf(guest: Guest, address: int) -> None:
    with pytest.raises(UserFault):
        guest.cpu.copy_from_user(address, 8)
    with pytest.raises(UserFault):
        guest.cpu.copy_to_user(address, b"overwrite")


def test_a_faults_outcome_there_is_a_refusal(guest: Guest) -> None:
    for address in ADDRESSES.values():
        assert guest.space.fault(address, USER | READ) == AccessError(address, mapped=False)


def test_its_own_pages_a_program_uses(guest: Guest) -> None:
    assert guest.runs(LOAD, guest.data) == []
    assert guest.cpu.read("rax") == int.from_bytes(b"userdata", "little")
    assert guest.runs(STORE, guest.data) == []
    assert guest.runs(JUMP, guest.data) == [(guest.data, USER | EXECUTE)]


# ---- ring 0


def test_the_direct_map_shows_all_of_ram_to_ring_0(guest: Guest) -> None:
    at = 7 * MIB + 0x100
    guest.board.ram.bytes[at : at + 8] = b"physical"
    direct = KERNEL_BASE + RAM_BASE + at
    loaded = guest.cpu.supervisor(stubs.LOAD, rdi=direct)
    assert (loaded.rax, loaded.fault) == (int.from_bytes(b"physical", "little"), None)
    assert guest.cpu.supervisor(stubs.STORE, rdi=direct, rax=1).fault is None
    assert bytes(guest.board.ram.bytes[at : at + 8]) == (1).to_bytes(8, "little")


def test_behind_the_end_of_ram_there_is_nothing(guest: Guest) -> None:
    for address in (KERNEL_BASE, KERNEL_BASE + RAM_BASE - 8, KERNEL_BASE + RAM_BASE + 16 * MIB):
        assert guest.cpu.supervisor(stubs.LOAD, rdi=address).fault == (address, READ)


def test_the_direct_map_and_the_data_page_are_never_executed(guest: Guest) -> None:
    for address in (KERNEL_BASE + RAM_BASE, DATA):
        expected = (address, int(Access.EXECUTE | Access.PRESENT))
        assert guest.cpu.supervisor(stubs.JUMP, rdi=address).fault == expected


def test_the_stubs_are_not_writable_even_by_ring_0(guest: Guest) -> None:
    for stub in (stubs.STORE, stubs.STORE_ALLOWED):
        for address in (TEXT, TEXT + stub.offset, TEXT + 0xFF8):
            assert guest.cpu.supervisor(stub, rdi=address).fault == (
                address,
                int(Access.WRITE | Access.PRESENT),
            )
    assert guest.cpu.supervisor(stubs.LOAD, rdi=TEXT).fault is None


def test_nor_is_their_frame_by_its_address_in_the_direct_map(guest: Guest) -> None:
    assert guest.board.kernel is not None
    text = guest.board.kernel.table.walk(TEXT)
    assert isinstance(text, Mapped)
    alias = KERNEL_BASE + text.address
    before = bytes(guest.board.physical.page_bytes(guest.board.frames.number(text.address)))
    assert guest.cpu.supervisor(stubs.STORE, rax=0x90, rdi=alias + 64).fault == (
        alias + 64,
        WRITE | int(Access.PRESENT),
    )
    assert bytes(guest.board.physical.page_bytes(guest.board.frames.number(text.address))) == before
    free = KERNEL_BASE + RAM_BASE + 8 * MIB
    assert guest.cpu.supervisor(stubs.STORE, rax=1, rdi=free).fault is None


def test_smep_ring_0_executes_no_user_page(guest: Guest) -> None:
    assert guest.runs(LOAD, guest.data) == []
    assert guest.cpu.supervisor(stubs.JUMP, rdi=CODE).fault == (CODE, int(Access.EXECUTE | Access.PRESENT))


def test_smap_ring_0_touches_a_user_page_only_when_it_says_so(guest: Guest) -> None:
    value = int.from_bytes(b"userdata", "little")
    assert guest.cpu.supervisor(stubs.LOAD, rdi=guest.data).fault == (
        guest.data,
        int(Access.READ | Access.PRESENT),
    )
    assert guest.cpu.supervisor(stubs.STORE, rdi=guest.data).fault == (
        guest.data,
        int(Access.WRITE | Access.PRESENT),
    )
    assert guest.cpu.copy_from_user(guest.data, 8) == b"userdata"
    loaded = guest.cpu.supervisor(stubs.LOAD_ALLOWED, rdi=guest.data)
    assert (loaded.rax, loaded.fault) == (value, None)
    assert guest.cpu.supervisor(stubs.STORE_ALLOWED, rdi=guest.data, rax=value + 1).fault is None
    assert guest.cpu.copy_from_user(guest.data, 8) == (value + 1).to_bytes(8, "little")


def test_write_protection_binds_ring_0_too(guest: Guest) -> None:
    expected = (guest.read_only, int(Access.WRITE | Access.PRESENT))
    assert guest.cpu.supervisor(stubs.STORE_ALLOWED, rdi=guest.read_only).fault == expected


def test_a_protection_key_denies_the_program_and_the_fault_is_not_tried_for_ever(guest: Guest) -> None:
    """wrpkru needs no privilege: a program that denies itself its own pages gets a fault, not a hang."""
    wrpkru = "31c931d2b8010000000f01ef"  # xor ecx, ecx; xor edx, edx; mov eax, 1; wrpkru
    (fault,) = guest.runs(wrpkru + LOAD, guest.data)
    assert fault == (guest.data, int(Access.READ | Access.USER | Access.PRESENT | Access.KEY))
    assert guest.space.fault(*fault) == AccessError(guest.data, mapped=True)


# ---- the tables


def leaves(ram: int) -> Counter[int]:
    """How many leaves of each size the direct map of `ram` bytes takes."""
    board = Board(X86Format(), ram=ram)
    half = KernelHalf(board.physical, board.format, KERNEL_BASE, b"", lambda _va: b"")
    start = KERNEL_BASE + RAM_BASE
    found = list(half.table.cursor(start, start + ram))
    assert found[0].start == start
    for item in found:
        assert board.format.leaf_address(item.entry, item.level) == item.start - KERNEL_BASE
    walk = half.table.walk(start + ram - 1)
    assert isinstance(walk, Mapped)
    assert walk.address == RAM_BASE + ram - 1
    text = half.table.walk(TEXT)
    assert isinstance(text, Mapped)
    whole = next(
        size
        for size in (G, M, K)
        if RAM_BASE <= text.address & -size and (text.address & -size) + size <= RAM_BASE + ram
    )
    first = KERNEL_BASE + (text.address & -whole)  # this leaf was split, for the code in it to be sealed
    sizes = Counter(
        board.format.levels[f.level - 1].size for f in found if not first <= f.start < first + whole
    )
    sizes[whole] += 1
    half.close()
    board.close()
    return sizes


K, M, G = 4 << 10, 2 << 20, 1 << 30


@pytest.mark.parametrize(
    ("ram", "expected"),
    [
        (2 * M, {M: 2}),
        (2 * M + 3 * K, {M: 2, K: 3}),
        (16 * M - K, {M: 15, K: 511}),
        (G, {G: 1}),
        (G + 5 * M, {G: 1, M: 5}),
        (2 * G + 3 * M + 7 * K, {G: 2, M: 3, K: 7}),
        (5 * G - K, {G: 4, M: 511, K: 511}),
    ],
)
def test_the_direct_map_uses_the_largest_leaves_that_fit(ram: int, expected: dict[int, int]) -> None:
    assert leaves(ram) == expected


def test_no_entry_of_the_half_is_a_users_and_none_is_both_writable_and_executable() -> None:
    board = Board(X86Format(), execute=True)
    assert board.kernel is not None
    table = board.kernel.table
    found = list(table.cursor(KERNEL_BASE, 1 << 64))
    assert {TEXT, DATA} <= {f.start for f in found}
    for item in found:
        walk = table.walk(item.start)
        assert isinstance(walk, Mapped)
        flags = walk.attributes.flags
        assert not flags & PageFlags.USER
        assert flags & PageFlags.GLOBAL
        assert flags & (PageFlags.WRITE | PageFlags.EXECUTE) != PageFlags.WRITE | PageFlags.EXECUTE
        assert bool(flags & PageFlags.EXECUTE) is (item.start == TEXT)
    board.close()


def test_a_base_whose_map_would_wrap_into_the_users_half_is_refused() -> None:
    board = Board(X86Format(), ram=64 * MIB)
    before = board.buddy.free_frames
    with pytest.raises(MappingError, match="virtual bits"):
        KernelHalf(board.physical, board.format, (1 << 64) - RAM_BASE - 32 * MIB, b"", lambda _va: b"")
    assert board.buddy.free_frames == before
    board.close()


def test_too_little_memory_is_said_and_nothing_is_kept() -> None:
    board = Board(X86Format(), ram=2 * MIB)
    held = [board.buddy.alloc() for _ in range(board.buddy.free_frames - 4)]
    with pytest.raises(OutOfFrames):
        KernelHalf(board.physical, board.format, KERNEL_BASE, b"", lambda _va: b"")
    assert board.buddy.free_frames == 4
    board.buddy.free_bulk(held)
    board.close()


def test_closing_gives_back_every_table_and_both_pages() -> None:
    board = Board(X86Format())
    before = board.buddy.free_frames
    half = KernelHalf(board.physical, board.format, KERNEL_BASE, b"\xf4" * PAGE, lambda _va: b"")
    assert before - board.buddy.free_frames == half.table.tables + 2
    half.close()
    assert board.buddy.free_frames == before
    board.close()
