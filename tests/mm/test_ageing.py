"""Working sets and write-back: every format, by hardware or by faults, tells one story of the same accesses.

Guests of the executing CPUs are real: a program's own loads and stores, and the kernel's copies for it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.arch.paging import Leaf, PageFlags
from aether_emu.machine.cpu import ExitReason, UserFault
from aether_emu.mm import ageing, mapping
from aether_emu.mm.ageing import Survey
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED
from aether_emu.mm.mapping import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    MS_ASYNC,
    MS_SYNC,
    Request,
)
from aether_emu.mm.protection import Protection
from tests.mm.board import ENGINES, FORMATS, Board, GrantedFile, discard, fault_in

READ = Protection.READ
RW = READ | Protection.WRITE
RWX = RW | Protection.EXECUTE
CODE, START, PAGES = 0x100_0000, 0x200_0000, 12


class Guest:
    """Pages that are all written, on any board; where it executes, by a program."""

    def __init__(self, board: Board) -> None:
        self.board, self.cpu, self.page = board, board.cpu, board.format.page_size
        self.space = board.space()
        board.run_on(self.space)
        self.map(CODE, 1, RWX)
        self.map(START, PAGES, RW)
        self.end = START + PAGES * self.page
        isa = board.instructions
        if board.execute:
            self.cpu.copy_to_user(CODE, isa.load_byte + isa.system_call)
            self.cpu.copy_to_user(CODE + 64, isa.store_byte + isa.system_call)
            self.cpu.on_system_call = lambda *_arguments: self.cpu.stop()
            self.cpu.on_fault = self._fault
        for number in range(PAGES):
            self.store(number)

    def _fault(self, va: int, access: int) -> None:
        assert fault_in(self.space, va, access) is RESOLVED

    def map(self, at: int, pages: int, protection: int, flags: int = MAP_ANONYMOUS | MAP_PRIVATE) -> None:
        mapping.map_memory(self.space, Request(at, pages * self.page, protection, flags | MAP_FIXED, None, 0))

    def at(self, number: int) -> int:
        return START + number * self.page

    def load(self, number: int) -> None:
        self._access(number, 0)

    def store(self, number: int) -> None:
        self._access(number, 64)

    def _access(self, number: int, code: int) -> None:
        """A load or a store: by a program's instruction, or by the CPU that executes none."""
        if not self.board.execute:
            if code:
                self.cpu.copy_to_user(self.at(number), b"s")
            else:
                self.cpu.copy_from_user(self.at(number), 1)
            return
        isa = self.board.instructions
        self.cpu.write(isa.address, self.at(number))
        self.cpu.write(isa.value, ord("s"))
        self.cpu.pc = CODE + code
        assert self.cpu.run().reason is ExitReason.STOPPED

    def survey(self) -> Survey:
        return ageing.survey(self.space, START, self.end)

    def forget(self) -> int:
        return ageing.forget_accesses(self.space, START, self.end)

    def clean(self) -> int:
        return ageing.clean(self.space, START, self.end)

    def state(self, number: int) -> tuple[bool, bool]:
        """(accessed, dirty) of one page, as the table decodes."""
        found = self.space.table.find(self.at(number))
        assert found is not None
        leaf = self.board.format.decode(found.entry, found.level)
        assert isinstance(leaf, Leaf)
        flags = leaf.attributes.flags
        return bool(flags & PageFlags.ACCESSED), bool(flags & PageFlags.DIRTY)


@pytest.fixture
def guest(board: Board) -> Guest:
    return Guest(board)


# ---- the working set


def test_what_was_written_is_accessed_and_dirty(guest: Guest) -> None:
    assert guest.survey() == Survey(PAGES, PAGES, PAGES)
    assert guest.survey() == Survey(PAGES, PAGES, PAGES)  # looking changes nothing


def test_a_scan_finds_the_pages_that_were_used_since_the_last_one(guest: Guest) -> None:
    assert guest.forget() == PAGES
    assert guest.survey() == Survey(PAGES, 0, PAGES)
    assert guest.forget() == 0
    for number in (1, 5):
        guest.load(number)
    guest.store(7)
    assert guest.survey() == Survey(PAGES, 3, PAGES)
    assert [n for n in range(PAGES) if guest.state(n)[0]] == [1, 5, 7]
    assert guest.forget() == 3
    guest.load(5)
    assert guest.forget() == 1


def test_a_scan_after_a_scan_notices_the_same_page_again(guest: Guest) -> None:
    """The translation was in use all the time: only a flush makes the next access leave a trace."""
    for _ in range(3):
        assert guest.forget() in (1, PAGES)
        guest.load(4)
        guest.load(4)
        assert guest.survey().accessed == 1


def test_the_kernels_own_copies_count_as_accesses(guest: Guest) -> None:
    guest.forget()
    guest.clean()
    guest.cpu.copy_from_user(guest.at(2), 3)
    guest.cpu.copy_to_user(guest.at(3), b"kernel")
    assert guest.survey() == Survey(PAGES, 2, 1)
    assert (guest.state(2), guest.state(3)) == ((True, False), (True, True))


def test_a_scan_is_of_its_range_alone(guest: Guest) -> None:
    assert ageing.forget_accesses(guest.space, guest.at(2), guest.at(5)) == 3
    assert ageing.survey(guest.space, guest.at(0), guest.at(5)) == Survey(5, 2, 5)
    assert ageing.survey(guest.space, guest.at(5), guest.end + 99 * guest.page).accessed == PAGES - 5


def test_pages_that_are_not_there_or_forbid_access_are_not_counted(guest: Guest) -> None:
    discard(guest.space, guest.at(0), guest.at(2))
    mapping.protect_memory(guest.space, guest.at(2), guest.page, 0)
    assert guest.survey() == Survey(PAGES - 3, PAGES - 3, PAGES - 3)
    assert guest.forget() == PAGES - 3
    assert guest.clean() == PAGES - 3


def test_a_scan_costs_one_fault_for_a_page_where_the_mmu_notes_nothing_itself(guest: Guest) -> None:
    guest.forget()
    before = guest.board.events()
    for _ in range(2):
        guest.load(1)
        guest.store(2)
    software = not guest.board.format.hardware_accessed
    assert (guest.board.events() - before)[Event.FAULT_ACCESS_FLAG] == (2 if software else 0)
    assert (guest.board.events() - before)[Event.FAULT_SPURIOUS] == 0


@pytest.mark.parametrize("name", ENGINES)
def test_only_the_isa_that_notes_nothing_itself_takes_such_faults(name: str) -> None:
    board = Board(ENGINES[name], execute=True)
    guest = Guest(board)
    guest.forget()
    guest.clean()
    for number in range(PAGES):
        guest.load(number)
        guest.store(number)
    assert board.events()[Event.FAULT_ACCESS_FLAG] == (0 if name == "x86_64" else 2 * PAGES)
    board.close()


# ---- dirty state


def test_a_clean_page_becomes_dirty_by_a_store_and_not_by_a_load(guest: Guest) -> None:
    assert guest.clean() == PAGES
    assert guest.survey() == Survey(PAGES, PAGES, 0)
    guest.load(1)
    assert guest.survey().dirty == 0
    guest.store(1)
    guest.store(8)
    assert [n for n in range(PAGES) if guest.state(n)[1]] == [1, 8]
    assert guest.clean() == 2
    guest.store(1)
    assert guest.clean() == 1


def test_cleaning_takes_no_permission_and_no_bytes(guest: Guest) -> None:
    guest.clean()
    before = guest.board.events()
    guest.store(3)
    assert guest.cpu.copy_from_user(guest.at(3), 1) == b"s"
    seen = guest.board.events() - before
    assert seen[Event.FAULT_UPGRADE] == seen[Event.FAULT_COPY] == seen[Event.FAULT_ACCESS] == 0


def test_changing_protection_keeps_what_is_known_of_a_page(guest: Guest) -> None:
    guest.forget()
    guest.clean()
    guest.load(1)
    guest.store(2)
    guest.store(3)
    ageing.forget_accesses(guest.space, guest.at(3), guest.at(4))
    expected = [(False, False), (True, False), (True, True), (False, True)]
    assert [guest.state(n) for n in range(4)] == expected
    for protection in (READ, RW, RWX, 0, READ, 0, 0, RW):
        mapping.protect_memory(guest.space, START, PAGES * guest.page, protection)
        if protection:
            assert [guest.state(n) for n in range(4)] == expected, protection
    assert guest.survey() == Survey(PAGES, 2, 2)


def test_a_read_only_page_can_be_dirty_and_still_refuses_a_store(guest: Guest) -> None:
    mapping.protect_memory(guest.space, START, PAGES * guest.page, READ)
    assert guest.survey().dirty == PAGES
    with pytest.raises(UserFault):
        guest.cpu.copy_to_user(guest.at(1), b"!")
    assert guest.clean() == PAGES
    with pytest.raises(UserFault):
        guest.cpu.copy_to_user(guest.at(1), b"!")
    assert guest.survey().dirty == 0


def test_the_zero_page_is_read_and_never_dirty(guest: Guest) -> None:
    guest.map(START, PAGES, RW)
    for number in range(3):
        guest.load(number)
    assert guest.survey() == Survey(3, 3, 0)
    guest.store(0)
    assert guest.survey() == Survey(3, 3, 1)


def test_shared_memory_that_was_only_read_is_clean_until_it_is_stored_to(guest: Guest) -> None:
    guest.map(START, PAGES, RW, MAP_SHARED | MAP_ANONYMOUS)
    for number in range(3):
        guest.load(number)
    assert guest.survey() == Survey(3, 3, 0)
    guest.store(1)
    guest.store(5)
    assert [guest.state(n)[1] for n in (0, 1, 2, 5)] == [False, True, False, True]


# ---- writing files back


@pytest.fixture
def shared(guest: Guest, tmp_path: Path) -> Guest:
    """The guest's pages show a file."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGES * guest.page))
    file = GrantedFile(guest.board, path)
    request = Request(START, PAGES * guest.page, RW, MAP_SHARED | MAP_FIXED, file, 0)
    mapping.map_memory(guest.space, request)
    return guest


def sync(guest: Guest, flags: int, first: int = 0, pages: int = PAGES) -> int:
    """How many pages an msync writes back."""
    before = guest.board.events()
    mapping.sync_memory(guest.space, guest.at(first), pages * guest.page, flags)
    return (guest.board.events() - before)[Event.WRITTEN_BACK]


def test_msync_writes_each_dirty_page_of_a_file_back_once(shared: Guest) -> None:
    for number in (0, 3, 4):
        shared.store(number)
    shared.load(6)
    assert shared.survey().dirty == 3
    assert (
        sync(shared, MS_ASYNC) == 0
    )  # what is shared is in the file's pages; the host writes them when it likes
    assert sync(shared, MS_SYNC, 4, 2) == 1
    assert sync(shared, MS_SYNC) == 2
    assert sync(shared, MS_SYNC) == 0
    shared.store(3)
    assert sync(shared, MS_SYNC) == 1
    assert shared.survey().dirty == 0


def test_a_page_of_a_shared_file_that_was_only_read_is_clean_until_it_is_stored_to(shared: Guest) -> None:
    for number in range(3):
        shared.load(number)
    assert shared.survey().dirty == 0
    shared.store(1)
    assert [shared.state(n)[1] for n in range(3)] == [False, True, False]
    assert sync(shared, MS_SYNC) == 1
    shared.load(1)
    assert sync(shared, MS_SYNC) == 0


def test_msync_of_private_pages_and_of_shared_memory_writes_nothing_back(guest: Guest) -> None:
    assert sync(guest, MS_SYNC) == 0
    guest.map(START, PAGES, RW, MAP_SHARED | MAP_ANONYMOUS)
    guest.store(1)
    assert sync(guest, MS_SYNC) == 0
    assert guest.survey().dirty == 1


# ---- one story


def test_the_same_accesses_leave_the_same_traces_on_every_format() -> None:
    stories: dict[tuple[str, bool], list[int | tuple[bool, bool]]] = {}
    for name, fmt in FORMATS.items():
        for execute in sorted({False, name in ENGINES}):
            board = Board(fmt, execute=execute)
            guest = Guest(board)
            story: list[int | tuple[bool, bool]] = []
            for step in range(40):
                number = step * 7 % PAGES
                if step % 3:
                    guest.load(number)
                else:
                    guest.store(number)
                if step % 5 == 2:
                    story.append(guest.forget())
                if step % 11 == 6:
                    story.append(guest.clean())
                if step % 13 == 5:
                    mapping.protect_memory(guest.space, guest.at(4), 3 * guest.page, READ)
                    mapping.protect_memory(guest.space, guest.at(5), 3 * guest.page, 0)
                    mapping.protect_memory(guest.space, guest.at(7), guest.page, RW)
                    mapping.protect_memory(guest.space, guest.at(4), 3 * guest.page, RW)
                story += [guest.state(n) for n in range(PAGES)]
            stories[name, execute] = story
            board.close()
    assert len(stories) == 2 * len(ENGINES) + 1
    first, *others = stories.values()
    assert all(story == first for story in others)
