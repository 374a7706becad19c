"""Areas that show files and shared memory: whose bytes they are, where they end, and who holds what."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aether_emu.arch.paging import Access
from aether_emu.errors import Refused
from aether_emu.machine.cpu import UserFault
from aether_emu.mm import mapping
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, BusError, OutOfMemory
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, Request
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.objects.protocol import Backing
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import Remap, remap_memory
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tlb import Flush
from aether_emu.ports import NEVER_FAILS
from tests.mm.board import ENGINES, FORMATS, MIB, Board, GrantedFile, check_accounts, discard, fault_in
from tests.mm.calls import mapped
from tests.mm.tables.test_page import FailsAt

READ, WRITE = Protection.READ, Protection.WRITE
RW = READ | WRITE
USER_READ, USER_WRITE = int(Access.READ | Access.USER), int(Access.WRITE | Access.USER)


class Shown:
    """A file of `pages` pages and `extra` bytes, page n full of letter n, for an address space of a board."""

    def __init__(self, board: Board, tmp_path: Path, pages: int = 3, extra: int = 0, **limits: int) -> None:
        self.board, self.page = board, board.format.page_size
        self.path = tmp_path / "file"
        self.content = b"".join(bytes([65 + n % 26]) * self.page for n in range(pages)) + b"#" * extra
        self.path.write_bytes(self.content)
        self.file = GrantedFile(board, self.path)
        self.space: AddressSpace = board.space(**limits)
        board.run_on(self.space)

    def map(
        self,
        pages: int,
        protection: int,
        flags: int,
        offset: int = 0,
        at: int = 0,
        file: GrantedFile | None = None,
    ) -> int:
        request = Request(at, pages * self.page, protection, flags, file or self.file, offset * self.page)
        return mapping.map_memory(self.space, request)

    def read(self, va: int, length: int) -> bytes:
        return bytes(self.board.cpu.copy_from_user(va, length))

    def write(self, va: int, data: bytes) -> None:
        self.board.cpu.copy_to_user(va, data)

    def outcome(self, va: int, access: int = USER_READ) -> object:
        return fault_in(self.space, va, access)

    def backing(self) -> FileBacking | None:
        status = os.stat(self.path)
        return self.board.files.find((status.st_dev, status.st_ino))

    def areas_shown(self, backing: Backing) -> int:
        """How many areas show the backing, which it must know exactly."""
        areas = {area for area in self.space.areas if area.backing is backing}
        assert set(backing.windows) == areas
        return len(areas)


Make = Callable[..., Shown]


@pytest.fixture
def make(board: Board, tmp_path: Path) -> Make:
    return lambda *arguments, **limits: Shown(board, tmp_path, *arguments, **limits)


# ---- whose bytes


def test_a_private_mapping_reads_the_file_and_keeps_its_stores(make: Make) -> None:
    shown = make(3)
    at = shown.map(3, RW, MAP_PRIVATE)
    assert shown.read(at, 3 * shown.page) == shown.content
    shown.write(at + shown.page + 5, b"mine")
    assert shown.read(at + shown.page, 9) == b"BBBBBmine"
    assert shown.path.read_bytes() == shown.content
    assert shown.board.events()[Event.COPIED_PAGES] == 1


def test_a_store_that_is_the_first_access_copies_the_page_too(make: Make) -> None:
    shown = make(2)
    at = shown.map(2, RW, MAP_PRIVATE)
    shown.write(at + 1, b"x")
    assert shown.read(at, 3) == b"AxA"
    assert shown.path.read_bytes() == shown.content


def test_a_shared_mapping_stores_into_the_file_at_once(make: Make) -> None:
    shown = make(2)
    at = shown.map(2, RW, MAP_SHARED)
    assert shown.read(at, 1) == b"A"
    shown.write(at + shown.page, b"stored")
    shown.write(at, b"stored")
    with shown.path.open("rb") as file:
        assert file.read(7) == b"storedA"
        file.seek(shown.page)
        assert file.read(7) == b"storedB"
    assert shown.board.events()[Event.COPIED_PAGES] == 0


def test_stores_are_watched_where_code_of_a_file_is_and_it_becomes_writable(make: Make) -> None:
    shown = make(2)
    watched: list[int] = []
    for each in shown.board.cpus:
        each.watch_stores = lambda pa, length: watched.extend((pa, length))
    at = shown.map(2, READ | Protection.EXECUTE, MAP_PRIVATE)
    shown.read(at, 1)
    assert not watched, "nobody can write to the file"
    shown.map(1, RW, MAP_SHARED)
    start, length = watched
    leaf = shown.space.table.find(at)
    assert leaf is not None
    assert start <= shown.board.format.leaf_address(leaf.entry, 1) < start + length


def test_what_is_written_to_the_file_appears_in_both_kinds_except_in_copies(make: Make) -> None:
    shown = make(2)
    private, shared = shown.map(2, RW, MAP_PRIVATE), shown.map(2, READ, MAP_SHARED)
    shown.write(private + shown.page, b"copy")
    assert shown.read(private, 1) == shown.read(shared, 1) == b"A"
    with shown.path.open("r+b") as file:
        file.write(b"news")
        file.seek(shown.page)
        file.write(b"news")
    assert shown.read(private, 4) == shown.read(shared, 4) == b"news"
    assert (shown.read(private + shown.page, 4), shown.read(shared + shown.page, 4)) == (b"copy", b"news")


def test_two_mappings_of_one_file_show_the_same_frames(make: Make) -> None:
    shown = make(2)
    first, second = shown.map(2, READ, MAP_PRIVATE), shown.map(1, RW, MAP_SHARED, offset=1)
    shown.read(first, 2 * shown.page)
    shown.read(second, 1)
    walks = [shown.space.walk(va) for va in (first + shown.page, second)]
    assert walks[0].address == walks[1].address  # type: ignore[union-attr]  # both are mapped
    check_accounts(shown.board, [])


# ---- where the file ends


@pytest.mark.parametrize("kind", [MAP_PRIVATE, MAP_SHARED])
def test_the_last_page_is_zero_behind_the_end_and_the_next_is_a_bus_error(make: Make, kind: int) -> None:
    shown = make(1, 10)
    at = shown.map(4, RW, kind)
    assert shown.read(at + shown.page, shown.page) == b"#" * 10 + bytes(shown.page - 10)
    for page in (2, 3):
        va = at + page * shown.page + 77
        assert shown.outcome(va) == BusError(va)
        assert shown.outcome(va, USER_WRITE) == BusError(va)
        with pytest.raises(UserFault):
            shown.read(va, 1)
    check_accounts(shown.board, [])


def test_an_empty_file_has_no_page_at_all(make: Make) -> None:
    shown = make(0)
    at = shown.map(1, READ, MAP_PRIVATE)
    assert shown.outcome(at) == BusError(at)


def test_a_private_store_behind_the_end_takes_no_frame(make: Make) -> None:
    shown = make(1)
    at = shown.map(2, RW, MAP_PRIVATE)
    assert shown.read(at, 1) == b"A"  # the tables are there
    before = shown.board.buddy.free_frames
    assert shown.outcome(at + shown.page, USER_WRITE) == BusError(at + shown.page)
    assert shown.board.buddy.free_frames == before


def test_a_file_that_grows_is_reached_further(make: Make) -> None:
    shown = make(1)
    at = shown.map(2, READ, MAP_SHARED)
    assert shown.outcome(at + shown.page) == BusError(at + shown.page)
    with shown.path.open("ab") as file:
        file.write(b"more")
    assert shown.read(at + shown.page, 5) == b"more\0"


# ---- fault-around


def test_one_read_maps_the_neighbours_that_are_there_anyway(make: Make) -> None:
    shown = make(20, fault_around=8)
    at = shown.map(20, READ, MAP_PRIVATE, at=0x40_0000_0000 // shown.page * shown.page // 8 * 8)
    shown.read(at + 10 * shown.page, 1)
    there = mapped(shown.space, at, 20)
    aligned = [
        n
        for n in range(20)
        if (at + n * shown.page) // (8 * shown.page) == (at + 10 * shown.page) // (8 * shown.page)
    ]
    assert [n for n in range(20) if there[n]] == aligned
    seen = shown.board.events()
    assert (seen[Event.FAULT_FILE], seen[Event.FILE_AROUND]) == (1, len(aligned) - 1)
    check_accounts(shown.board, [])


def test_fault_around_stays_inside_the_area_and_the_file_and_keeps_what_is_mapped(make: Make) -> None:
    shown = make(6, 1)
    low = shown.map(3, RW, MAP_PRIVATE, offset=1, at=64 * shown.page * 16)
    shown.write(low + shown.page, b"mine")
    area = shown.space.areas.find(low)
    assert area is not None
    shown.space.protect(area, low + 2 * shown.page, low + 3 * shown.page, Protection.NONE)
    shown.read(low, 1)
    assert shown.read(low + shown.page, 4) == b"mine"
    with pytest.raises(UserFault):
        shown.read(low + 2 * shown.page, 1)
    assert mapped(shown.space, low, 3) == b"\1\1\0"
    beyond = shown.map(9, READ, MAP_PRIVATE, at=low + 32 * shown.page)
    shown.read(beyond + 3 * shown.page, 1)
    assert mapped(shown.space, beyond, 9) == b"\1" * 7 + b"\0\0"
    check_accounts(shown.board, [])


def test_fault_around_ends_with_the_leaf_table(tmp_path: Path) -> None:
    """The widest window is more than a table of the invented format holds: what follows is not its own."""
    board = Board(FORMATS["invented"], aperture=32 * MIB)
    entries = board.format.levels[0].entries
    shown = Shown(board, tmp_path, entries + 40, fault_around=2 * entries)
    at = shown.map(entries + 40, READ, MAP_PRIVATE, at=(5 * entries - 20) * shown.page)
    for page in (3, 25, entries + 30):
        assert shown.read(at + page * shown.page, 1) == shown.content[page * shown.page :][:1]
    assert mapped(shown.space, at, 20) == b"\1" * 20
    check_accounts(board, [])
    board.close()


# ---- who holds what


def test_cutting_moving_and_merging_keep_one_attachment_for_each_area(make: Make) -> None:
    shown, page = make(8), 0
    page = shown.page
    at = shown.map(8, RW, MAP_PRIVATE)
    backing = shown.backing()
    assert backing is not None
    assert shown.areas_shown(backing) == 1
    mapping.protect_memory(shown.space, at + 2 * page, page, READ)
    assert shown.areas_shown(backing) == 3
    mapping.protect_memory(shown.space, at + 2 * page, page, RW)
    assert shown.areas_shown(backing) == 1
    mapping.unmap_memory(shown.space, at + 3 * page, page)
    assert shown.areas_shown(backing) == 2
    shown.map(1, RW, MAP_PRIVATE | MAP_FIXED, offset=3, at=at + 3 * page)  # joins both again
    assert shown.areas_shown(backing) == 1
    moved = remap_memory(shown.space, Remap(at + 4 * page, 2 * page, 5 * page, 1, 0))
    assert shown.areas_shown(backing) == 3
    assert shown.read(moved + page, 1) == b"F"
    remap_memory(shown.space, Remap(at, page, page, 3, moved + 9 * page))
    assert shown.areas_shown(backing) == 4
    for area in list(shown.space.areas):
        shown.space.unmap(area.start, area.end)
    assert len(backing.windows) == 0
    assert shown.backing() is None
    assert shown.board.frames.census()[Kind.FILE] == 0


def test_replacing_the_only_mapping_of_a_file_by_another_of_it_keeps_the_file(make: Make) -> None:
    shown = make(3)
    at = shown.map(1, READ, MAP_PRIVATE)
    assert shown.read(at, 1) == b"A"
    shown.map(1, READ, MAP_PRIVATE | MAP_FIXED, offset=2, at=at)
    assert shown.read(at, 1) == b"C"
    backing = shown.backing()
    assert backing is not None
    assert shown.areas_shown(backing) == 1


def test_a_refused_mapping_lets_its_file_go(make: Make) -> None:
    shown = make(1, areas=1)
    shown.map(1, READ, MAP_PRIVATE)
    other = shown.path.with_name("other")
    other.write_bytes(b"other")
    with pytest.raises(Refused) as refused:
        shown.map(1, READ, MAP_PRIVATE, file=GrantedFile(shown.board, other))
    assert refused.value.errno == errno.ENOMEM
    status = other.stat()
    assert shown.board.files.find((status.st_dev, status.st_ino)) is None


def test_a_file_is_shared_by_two_address_spaces_until_both_are_gone(make: Make) -> None:
    shown = make(1)
    at = shown.map(1, RW, MAP_SHARED)
    other = shown.board.space()
    request = Request(at, shown.page, RW, MAP_SHARED | MAP_FIXED, shown.file, 0)
    assert mapping.map_memory(other, request) == at
    shown.write(at, b"from one")
    shown.board.run_on(other)
    assert shown.read(at, 8) == b"from one"
    shown.space.unmap(at, at + shown.page)
    assert shown.read(at, 8) == b"from one"
    other.unmap(at, at + shown.page)
    assert shown.backing() is None


def test_the_first_writable_use_of_a_file_keeps_what_is_mapped(make: Make) -> None:
    shown = make(2)
    read_only = shown.map(2, READ, MAP_PRIVATE)
    assert shown.read(read_only, 1) == b"A"
    writable = shown.map(2, RW, MAP_SHARED)
    shown.write(writable, b"new")
    assert shown.read(read_only, 3) == b"new"


# ---- eviction


@pytest.mark.parametrize("name", FORMATS)
def test_slots_are_reused_when_files_outnumber_them(name: str, tmp_path: Path) -> None:
    """Two slots of 2 MiB, three files: whatever is touched is right, and private copies survive."""
    board = Board(FORMATS[name], aperture=4 * MIB, execute=name in ENGINES)
    size = board.format.page_size
    space = board.space()
    board.run_on(space)
    places = []
    for number in range(3):
        path = tmp_path / str(number)
        path.write_bytes(bytes([97 + number]) * (2 * size))
        request = Request(0, 2 * size, RW, MAP_PRIVATE, GrantedFile(board, path), 0)
        places.append(mapping.map_memory(space, request))
        board.cpu.copy_to_user(places[-1] + size, b"mine")
    area = space.areas.find(places[0])
    assert area is not None
    for _ in range(3):
        for number, at in enumerate(places):
            assert board.cpu.copy_from_user(at, 2) == bytes([97 + number]) * 2
            assert board.cpu.copy_from_user(at + size, 5) == b"mine" + bytes([97 + number])
            check_accounts(board, [])
    assert board.frames.census()[Kind.FILE] <= 4
    board.close()


@pytest.mark.parametrize("name", FORMATS)
def test_entries_that_forbid_access_are_evicted_too(name: str, tmp_path: Path) -> None:
    board = Board(FORMATS[name], aperture=2 * MIB, execute=name in ENGINES)
    size = board.format.page_size
    space = board.space()
    board.run_on(space)
    places = []
    for letter in "ab":
        (tmp_path / letter).write_bytes(letter.encode() * size)
        request = Request(0, size, READ, MAP_PRIVATE, GrantedFile(board, tmp_path / letter), 0)
        places.append(mapping.map_memory(space, request))
    assert board.cpu.copy_from_user(places[0], 1) == b"a"
    mapping.protect_memory(space, places[0], size, 0)
    assert board.cpu.copy_from_user(places[1], 1) == b"b"
    mapping.protect_memory(space, places[0], size, READ)
    assert board.cpu.copy_from_user(places[0], 1) == b"a"
    check_accounts(board, [])
    board.close()


def test_a_slot_whose_last_area_goes_waits_for_cpus_that_may_still_use_it(tmp_path: Path) -> None:
    board = Board(FORMATS["x86_64"], cpus=2)
    shown = Shown(board, tmp_path)
    at = shown.map(1, READ, MAP_SHARED)
    assert shown.read(at, 1) == b"A"
    tlb = board.physical.tlb
    tlb._queues[1].append(Flush([at], 0b10))
    mapping.unmap_memory(shown.space, at, shown.page)
    assert tlb.pending == 0
    board.close()


# ---- shared memory


def shared(shown: Shown, pages: int) -> tuple[int, SharedMemory]:
    request = Request(0, pages * shown.page, RW, MAP_SHARED | MAP_ANONYMOUS, None, 0)
    at = mapping.map_memory(shown.space, request)
    area = shown.space.areas.find(at)
    assert area is not None
    assert isinstance(area.backing, SharedMemory)
    return at, area.backing


def test_shared_memory_keeps_its_pages_when_their_entries_go(make: Make) -> None:
    shown = make()
    at, memory = shared(shown, 2)
    shown.write(at, b"kept")
    discard(shown.space, at, at + 2 * shown.page)
    assert shown.read(at, 4) == b"kept"
    assert list(memory.frames_by_page()) == [0]
    check_accounts(shown.board, [memory])
    shown.space.unmap(at, at + 2 * shown.page)
    assert not memory.frames_by_page()


def test_a_duplicate_of_shared_memory_shows_the_same_pages(make: Make) -> None:
    shown = make()
    at, memory = shared(shown, 3)
    shown.write(at + shown.page, b"one")
    again = remap_memory(shown.space, Remap(at + shown.page, 0, 2 * shown.page, 1, 0))
    assert again != at + shown.page
    assert shown.read(again, 3) == b"one"
    shown.write(again + shown.page, b"two")
    assert shown.read(at + 2 * shown.page, 3) == b"two"
    assert shown.areas_shown(memory) == 2
    check_accounts(shown.board, [memory])


def test_a_duplicate_wanted_where_its_source_is_finds_no_source(make: Make) -> None:
    shown = make(1)
    for at in (shared(shown, 1)[0], shown.map(1, READ, MAP_SHARED)):
        with pytest.raises(Refused) as refused:
            remap_memory(shown.space, Remap(at, 0, shown.page, 3, at))
        assert refused.value.errno == errno.EFAULT
    assert list(shown.space.areas) == []


def test_shared_memory_ends_where_it_was_made_to_end_however_long_its_area(make: Make) -> None:
    """Linux: the object behind a shared anonymous mapping does not grow with mremap."""
    shown = make()
    at, memory = shared(shown, 1)
    longer = remap_memory(shown.space, Remap(at, shown.page, 2 * shown.page, 1, 0))
    shown.write(longer, b"fits")
    beyond = longer + shown.page
    for access in (USER_READ, USER_WRITE):
        assert shown.outcome(beyond, access) == BusError(beyond)
    check_accounts(shown.board, [memory])


def test_a_private_view_of_shared_memory_copies_before_it_stores(make: Make) -> None:
    shown = make()
    at, memory = shared(shown, 1)
    shown.write(at, b"common")
    view = 1 << 30
    shown.space.insert(shown.space.new_area(view, view + shown.page, RW, backing=memory))
    assert shown.read(view, 6) == b"common"
    shown.write(view, b"mine")
    assert shown.read(view, 6) == b"mineon"
    assert shown.read(at, 6) == b"common"
    check_accounts(shown.board, [memory])


# ---- no memory in the middle


@pytest.mark.parametrize("fails", range(5))
@pytest.mark.parametrize("kind", [MAP_PRIVATE, MAP_SHARED])
@pytest.mark.parametrize("access", [USER_READ, USER_WRITE])
def test_a_fault_without_memory_changes_nothing_and_succeeds_later(
    make: Make, fails: int, kind: int, access: int
) -> None:
    shown = make(2)
    at = shown.map(2, RW, kind)
    shown.board.buddy.failures = FailsAt(fails)
    outcome = shown.outcome(at + 1, access)
    shown.board.buddy.failures = NEVER_FAILS
    assert outcome in (RESOLVED, OutOfMemory(at + 1))
    if outcome is not RESOLVED:
        assert shown.space.table.find(at) is None
    check_accounts(shown.board, [])
    assert shown.outcome(at + 1, access) is RESOLVED
    assert shown.read(at, 1) == b"A"


def test_a_copy_without_memory_leaves_the_file_page_where_it_was(make: Make) -> None:
    shown = make(1)
    at = shown.map(1, RW, MAP_PRIVATE)
    assert shown.read(at, 1) == b"A"
    shown.board.buddy.failures = FailsAt(0)
    assert shown.outcome(at, USER_WRITE | int(Access.PRESENT)) == OutOfMemory(at)
    shown.board.buddy.failures = NEVER_FAILS
    assert shown.read(at, 1) == b"A"
    shown.write(at, b"x")
    assert shown.read(at, 2) == b"xA"
    check_accounts(shown.board, [])
