"""fork: both sides see what was there, the first store on either side copies, and nothing else moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest

from aether_emu.arch.paging import PageFlags
from aether_emu.errors import OutOfFrames, Refused
from aether_emu.machine.cpu import UserFault
from aether_emu.mm import mapping, rmap
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.mapping import MAP_FIXED, MAP_PRIVATE, MAP_SHARED, Request
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import MREMAP_FIXED, MREMAP_MAYMOVE
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.damage import TableDamaged
from aether_emu.ports import NEVER_FAILS
from tests.mm.board import ENGINES, FORMATS, Board, GrantedFile, check_accounts
from tests.mm.calls import ANONYMOUS, RW, mmap, mremap
from tests.mm.tables.test_page import FailsAt

AT = 0x1000_0000
READ, NONE = Protection.READ, Protection.NONE
COPIES, IN_PLACE = Event.FAULT_COPY, Event.FAULT_UPGRADE


class Forks:
    """A board whose first space has eight writable private pages at AT, and may fork."""

    def __init__(self, board: Board) -> None:
        self.board, self.page = board, board.format.page_size
        self.parent = board.space(user_base=self.page)
        mmap(self.parent, AT, 8, RW, ANONYMOUS | MAP_FIXED)

    def at(self, number: int) -> int:
        return AT + number * self.page

    def fork(self, space: AddressSpace) -> AddressSpace:
        child = space.fork()
        self.board.spaces.append(child)
        return child

    def end(self, space: AddressSpace) -> None:
        """As the end of a process."""
        self.board.rest()
        self.board.spaces.remove(space)
        space.destroy()

    def write(self, space: AddressSpace, number: int, data: bytes) -> None:
        """Through the MMU, by the CPU that works now."""
        self.board.run_on(space)
        self.board.cpu.copy_to_user(self.at(number), data)

    def read(self, space: AddressSpace, number: int, length: int = 1) -> bytes:
        self.board.run_on(space)
        return bytes(self.board.cpu.copy_from_user(self.at(number), length))

    def frame(self, space: AddressSpace, number: int) -> int:
        """The frame that an entry shows, present or held."""
        found = space.table.find(self.at(number))
        assert found is not None
        return self.board.frames.number(found.entry & self.board.format.address_mask)

    def places(self, frame: int) -> list[tuple[object, int]]:
        return [(shown.space, shown.address) for shown in rmap.mappings(self.board.physical, frame)]

    def faults(self, before: Counter[Event]) -> tuple[int, int]:
        """Pages copied, and made writable in their place, since then."""
        now = self.board.events()
        return now[COPIES] - before[COPIES], now[IN_PLACE] - before[IN_PLACE]

    def map_file(self, path: Path, number: int, kind: int) -> None:
        request = Request(
            self.at(number), 2 * self.page, RW, kind | MAP_FIXED, GrantedFile(self.board, path), 0
        )
        mapping.map_memory(self.parent, request)


@pytest.fixture
def forks(board: Board) -> Forks:
    return Forks(board)


@pytest.fixture
def small(plain: Board) -> Forks:
    """On the reference CPU, which forgets nothing by itself."""
    return Forks(plain)


@pytest.fixture(params=FORMATS)
def pair(request: pytest.FixtureRequest) -> Iterator[Forks]:
    """Two CPUs."""
    board = Board(FORMATS[request.param], cpus=2, execute=request.param in ENGINES)
    yield Forks(board)
    board.close()


# ---- private pages


@pytest.mark.parametrize("child_first", [True, False])
def test_the_first_to_write_copies_and_the_last_owner_writes_in_place(
    forks: Forks, child_first: bool
) -> None:
    forks.write(forks.parent, 3, b"old")
    frame = forks.frame(forks.parent, 3)
    child = forks.fork(forks.parent)
    first, last = (child, forks.parent) if child_first else (forks.parent, child)
    assert forks.read(child, 3, 3) == forks.read(forks.parent, 3, 3) == b"old"
    assert forks.frame(child, 3) == frame
    before, free = forks.board.events(), forks.board.buddy.free_frames
    forks.write(first, 3, b"new")
    assert forks.faults(before) == (1, 0)
    forks.write(first, 3, b"now")
    assert forks.faults(before) == (1, 0)
    assert forks.read(last, 3, 3) == b"old"
    forks.write(last, 3, b"mine")
    assert forks.faults(before) == (1, 1)
    assert forks.frame(last, 3) == frame != forks.frame(first, 3)
    assert (forks.read(first, 3, 4), forks.read(last, 3, 4)) == (b"now\0", b"mine")
    assert forks.board.buddy.free_frames == free - 1
    check_accounts(forks.board, [])


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_a_space_that_outlives_its_process_shows_nothing_once_nobody_else_has_it(
    forks: Forks, shared: bool
) -> None:
    space, free = forks.parent, forks.board.buddy.free_frames
    tables = space.table.tables
    forks.write(space, 3, b"here")
    if shared:
        space.users += 1  # a process made with CLONE_VM
    space.outlive()
    if shared:
        assert forks.read(space, 3, 4) == b"here"
        space.let_go()
    assert list(space.areas) == []
    assert forks.board.buddy.free_frames == free
    assert space.table.tables == tables
    assert space.walk(forks.at(3)) is not None
    check_accounts(forks.board, [])


def test_neither_side_has_an_entry_that_permits_writing(forks: Forks) -> None:
    for number in range(8):
        forks.write(forks.parent, number, b"x")
    child = forks.fork(forks.parent)
    for space in (forks.parent, child):
        walks = [space.walk(forks.at(number)) for number in range(8)]
        assert not any(walk.attributes.flags & PageFlags.WRITE for walk in walks)  # type: ignore[union-attr]  # mapped


def test_a_fork_takes_frames_for_tables_alone(forks: Forks) -> None:
    for number in range(8):
        forks.write(forks.parent, number, b"x")
    free = forks.board.buddy.free_frames
    child = forks.fork(forks.parent)
    assert free - forks.board.buddy.free_frames == child.table.tables
    for number in range(8):
        assert forks.board.frames.refs[forks.frame(child, number)] == 2
    check_accounts(forks.board, [])


def test_what_the_parent_could_store_by_its_tlb_is_flushed_once_for_all_areas(small: Forks) -> None:
    mmap(small.parent, 2 * AT, 8, RW, ANONYMOUS | MAP_FIXED)
    for number in range(8):
        small.write(small.parent, number, b"x")
        small.board.cpu.copy_to_user(2 * AT + number * small.page, b"x")
    small.board.cpu.flushes.clear()
    small.fork(small.parent)
    assert small.board.cpu.flushes == [("all", 0)]


def test_zero_pages_are_shared_and_become_memory_on_each_side(forks: Forks) -> None:
    assert forks.read(forks.parent, 0) == b"\0"
    zero = forks.board.physical.zero_frame
    child = forks.fork(forks.parent)
    assert forks.frame(child, 0) == zero
    for space, data in ((child, b"c"), (forks.parent, b"p")):
        forks.write(space, 0, data)
        assert forks.frame(space, 0) != zero
    assert (forks.read(child, 0), forks.read(forks.parent, 0)) == (b"c", b"p")
    check_accounts(forks.board, [])


def test_pages_that_forbid_all_access_come_along_and_are_copied_once_they_permit_it(forks: Forks) -> None:
    forks.write(forks.parent, 1, b"kept")
    mapping.protect_memory(forks.parent, forks.at(1), forks.page, NONE)
    child = forks.fork(forks.parent)
    with pytest.raises(UserFault):
        forks.read(child, 1)
    mapping.protect_memory(child, forks.at(1), forks.page, RW)
    before = forks.board.events()
    forks.write(child, 1, b"c")
    assert forks.faults(before) == (1, 0)
    mapping.protect_memory(forks.parent, forks.at(1), forks.page, RW)
    assert (forks.read(child, 1, 4), forks.read(forks.parent, 1, 4)) == (b"cept", b"kept")
    check_accounts(forks.board, [])


def test_a_page_without_write_permission_is_no_more_writable_after_a_fork(forks: Forks) -> None:
    forks.write(forks.parent, 0, b"x")
    mapping.protect_memory(forks.parent, forks.at(0), forks.page, READ)
    child = forks.fork(forks.parent)
    for space in (child, forks.parent):
        with pytest.raises(UserFault):
            forks.write(space, 0, b"y")
        assert forks.read(space, 0) == b"x"


# ---- files and shared memory


def test_pages_of_a_private_file_mapping_and_copies_of_them_come_along(forks: Forks, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"f" * 2 * forks.page)
    forks.map_file(path, 0, MAP_PRIVATE)
    forks.write(forks.parent, 1, b"p")
    assert forks.read(forks.parent, 0) == b"f"
    child = forks.fork(forks.parent)
    assert forks.board.frames.kind[forks.frame(child, 0)] == Kind.FILE
    assert forks.board.frames.refs[forks.frame(child, 1)] == 2
    for number in (0, 1):
        forks.write(child, number, b"c")
    assert [forks.read(child, n, 2) for n in (0, 1)] == [b"cf", b"cf"]
    assert [forks.read(forks.parent, n, 2) for n in (0, 1)] == [b"ff", b"pf"]
    assert path.read_bytes() == b"f" * 2 * forks.page
    check_accounts(forks.board, [])


def test_shared_areas_stay_shared_and_come_without_entries(forks: Forks, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"f" * 2 * forks.page)
    forks.map_file(path, 0, MAP_SHARED)
    mmap(forks.parent, forks.at(2), 2, RW, MAP_SHARED | mapping.MAP_ANONYMOUS | MAP_FIXED)
    for number in (0, 2):
        forks.write(forks.parent, number, b"p")
    child = forks.fork(forks.parent)
    memory = next(a.backing for a in child.areas if isinstance(a.backing, SharedMemory))
    assert list(child.table.cursor(forks.at(0), forks.at(4))) == []
    for number in (0, 1, 2, 3):
        assert forks.read(child, number) == forks.read(forks.parent, number)
        forks.write(child, number, b"c")
        assert forks.read(forks.parent, number) == b"c"
    assert path.read_bytes()[:: forks.page] == b"cc"
    check_accounts(forks.board, [memory])
    forks.end(forks.parent)
    assert forks.read(child, 2) == b"c"


# ---- what becomes of one side does not touch the other


@pytest.mark.parametrize("of_child", [True, False])
def test_unmapping_one_side_leaves_the_other(forks: Forks, of_child: bool) -> None:
    forks.write(forks.parent, 2, b"x")
    child = forks.fork(forks.parent)
    gone, stays = (child, forks.parent) if of_child else (forks.parent, child)
    mapping.unmap_memory(gone, AT, 8 * forks.page)
    assert forks.read(stays, 2) == b"x"
    before = forks.board.events()
    forks.write(stays, 2, b"y")
    assert forks.faults(before) == (0, 1)
    with pytest.raises(UserFault):
        forks.read(gone, 2)
    check_accounts(forks.board, [])


def test_a_frame_leads_to_both_spaces_until_one_has_a_copy(forks: Forks) -> None:
    forks.write(forks.parent, 5, b"x")
    frame = forks.frame(forks.parent, 5)
    child = forks.fork(forks.parent)
    assert forks.places(frame) == [(forks.parent, forks.at(5)), (child, forks.at(5))]
    forks.write(child, 5, b"y")
    assert forks.places(frame) == [(forks.parent, forks.at(5))]
    copy = forks.frame(child, 5)
    assert forks.places(copy) == [(child, forks.at(5))]
    frames = forks.board.frames
    assert (frames.owner[copy], frames.index[copy]) == (frames.owner[frame], frames.index[frame])


def test_a_fork_of_a_fork_shares_with_all_three(forks: Forks) -> None:
    forks.write(forks.parent, 0, b"x")
    frame = forks.frame(forks.parent, 0)
    child = forks.fork(forks.parent)
    grandchild = forks.fork(child)
    spaces = [forks.parent, child, grandchild]
    assert forks.places(frame) == [(space, AT) for space in spaces]
    before = forks.board.events()
    for space, data in zip(spaces, (b"a", b"b", b"c"), strict=True):
        assert forks.read(space, 0) == b"x"
        forks.write(space, 0, data)
    assert forks.faults(before) == (2, 1)
    assert [forks.read(space, 0) for space in spaces] == [b"a", b"b", b"c"]
    check_accounts(forks.board, [])


def test_a_page_that_the_child_moves_keeps_its_index(forks: Forks) -> None:
    forks.write(forks.parent, 1, b"x")
    frame = forks.frame(forks.parent, 1)
    child = forks.fork(forks.parent)
    assert mremap(child, AT, 4, 4, MREMAP_MAYMOVE | MREMAP_FIXED, 2 * AT) == 2 * AT
    assert set(forks.places(frame)) == {(forks.parent, forks.at(1)), (child, 2 * AT + forks.page)}
    forks.board.run_on(child)
    forks.board.cpu.copy_to_user(2 * AT + forks.page, b"y")
    found = child.table.find(2 * AT + forks.page)
    assert found is not None
    copy = forks.board.frames.number(found.entry & forks.board.format.address_mask)
    assert forks.board.frames.index[copy] == forks.board.frames.index[frame]
    assert forks.places(copy) == [(child, 2 * AT + forks.page)]
    assert forks.read(forks.parent, 1) == b"x"
    check_accounts(forks.board, [])


def test_the_child_has_areas_heap_and_limits_of_its_own(small: Forks) -> None:
    parent, page = small.parent, small.page
    parent.heap_start = parent.heap_end = 3 * AT
    mapping.set_break(parent, 3 * AT + page)
    child = small.fork(parent)
    assert [repr(area) for area in child.areas] == [repr(area) for area in parent.areas]
    assert (child.heap_start, child.heap_end, child.mmap_base, child.account.reserved) == (
        parent.heap_start,
        parent.heap_end,
        parent.mmap_base,
        parent.account.reserved,
    )
    assert mapping.set_break(child, 3 * AT + 5 * page) == 3 * AT + 5 * page
    assert (parent.heap_end, parent.account.reserved) == (3 * AT + page, 9 * page)
    child.limits.address_space = page
    with pytest.raises(Refused):
        mmap(child, 5 * AT, 1)
    mmap(parent, 5 * AT, 1)


def test_new_memory_of_the_child_belongs_to_a_family_of_its_own(small: Forks) -> None:
    child = small.fork(small.parent)
    for space in (small.parent, child):
        mmap(space, 2 * AT, 1, RW, ANONYMOUS | MAP_FIXED)
    old = [space.areas.find(AT) for space in (small.parent, child)]
    new = [space.areas.find(2 * AT) for space in (small.parent, child)]
    assert old[0] is not None
    assert old[1] is not None
    assert old[0].family is old[1].family is small.parent.family
    assert [area.family for area in new if area is not None] == [small.parent.family, child.family]
    assert child.family is not small.parent.family


# ---- the end, and failures


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_nothing_is_left_whoever_ends_first(forks: Forks, order: tuple[int, ...]) -> None:
    board = forks.board
    objects = len(list(board.physical.objects))
    for number in range(4):
        forks.write(forks.parent, number, b"p")
    child = forks.fork(forks.parent)
    forks.write(child, 1, b"c")
    grandchild = forks.fork(child)
    forks.write(grandchild, 2, b"g")
    spaces = [forks.parent, child, grandchild]
    expected = [b"pppp", b"pcpp", b"pcgp"]
    for ends, left in zip(order, range(2, -1, -1), strict=True):
        forks.end(spaces[ends])
        for space in board.spaces:
            assert b"".join(forks.read(space, n) for n in range(4)) == expected[spaces.index(space)]
        assert len(board.spaces) == left
        check_accounts(board, [])
    assert len(list(board.physical.objects)) == objects - 1


def test_a_fork_that_finds_no_memory_leaves_nothing_and_changes_nothing(forks: Forks) -> None:
    board, parent = forks.board, forks.parent
    far = AT + 3 * board.format.levels[1].size
    mmap(parent, far, 2, RW, ANONYMOUS | MAP_FIXED)
    forks.write(parent, 0, b"x")
    board.cpu.copy_to_user(far, b"y")

    def state() -> tuple[object, ...]:
        entries = list(parent.table.cursor(0, parent.limits.user_end))
        counts = board.frames.refs_array.tobytes(), board.frames.maps_array.tobytes()
        return entries, counts, board.buddy.free_frames, len(list(board.physical.objects))

    before, failed = state(), 0
    while True:
        board.buddy.failures = FailsAt(failed)
        try:
            forks.fork(parent)
        except OutOfFrames:
            failed += 1
            assert state() == before
        else:
            break
        finally:
            board.buddy.failures = NEVER_FAILS
    assert failed > board.format.top  # the root, the tables on the way to one area, and to the other
    check_accounts(board, [])


def test_damaged_tables_are_not_copied(forks: Forks) -> None:
    board, parent = forks.board, forks.parent
    forks.write(parent, 0, b"x")
    board.rest()
    slot = parent.table.slot(AT, 2)
    board.ram.words[slot] = seen = board.ram.words[slot] ^ 1 << 20
    free = board.buddy.free_frames
    with pytest.raises(TableDamaged) as raised:
        parent.fork()
    assert (raised.value.damaged.slot, raised.value.damaged.seen) == (slot, seen)
    assert board.buddy.free_frames == free
    parent.table.salvage()
    assert forks.read(forks.fork(parent), 0) == b"x"
    check_accounts(board, [])


# ---- two CPUs


def test_two_cpus_run_the_two_sides(pair: Forks) -> None:
    board, parent = pair.board, pair.parent
    board.percpu[0].take_over()
    pair.write(parent, 0, b"old")
    child = pair.fork(parent)
    for cpu, space, data in ((1, child, b"new"), (0, parent, b"own"), (1, child, b"now")):
        board.percpu[cpu].take_over()
        assert pair.read(space, 0, 1) == (b"n" if data == b"now" else b"o")
        pair.write(space, 0, data)
    board.percpu[0].take_over()
    assert pair.read(parent, 0, 3) == b"own"
    check_accounts(board, [])


def test_another_cpu_that_runs_the_parent_may_not_store_into_the_childs_pages(pair: Forks) -> None:
    """It has a translation that permits writing: the flush has crossed to it before the child runs."""
    board, parent = pair.board, pair.parent
    for cpu in (1, 0):
        board.percpu[cpu].take_over()
        pair.write(parent, 0, b"old")
    child = pair.fork(parent)
    assert board.physical.tlb.pending == 0
    board.percpu[1].take_over()
    before = board.events()
    pair.write(parent, 0, b"new")
    assert pair.faults(before) == (1, 0)
    board.percpu[0].take_over()
    assert pair.read(parent, 0, 3) == b"new"
    assert pair.read(child, 0, 3) == b"old"
    check_accounts(board, [])
