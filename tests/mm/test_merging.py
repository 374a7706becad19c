"""Merging: equal pages become one frame, no write is seen by others, and every reference is explained."""

from __future__ import annotations

import errno
import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from aether_emu.errors import Refused
from aether_emu.linux.task.ksm import RUN, UNMERGE, Ksm
from aether_emu.machine.cpu import UserFault
from aether_emu.mm import mapping
from aether_emu.mm.audit import judge_leaf
from aether_emu.mm.compaction import migrate
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, OutOfMemory
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.mapping import MADV_MERGEABLE, MADV_UNMERGEABLE, MAP_FIXED, Request
from aether_emu.mm.merging import MergeScan, duplicates, figures, merged_pages, set_merge_any, unmerge
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import MREMAP_FIXED, MREMAP_MAYMOVE, Remap, remap_memory
from aether_emu.mm.rmap import mappings
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.user import ForcedMemory
from tests.mm.board import ENGINES, FORMATS, Board, check_accounts, fault_in
from tests.mm.calls import ANONYMOUS, RW
from tests.mm.test_hugepage import WRITE, Huge, closed

BASE = 0x4000_0000
EQUAL = b"the same in both"

MS = 10**6


class Kit:
    """A board with two spaces, each with eight mergeable pages at `BASE`; the first two of each are equal."""

    def __init__(self, name: str, *, cpus: int = 1, zero_pages: bool = False) -> None:
        fmt = FORMATS[name]
        self.page = fmt.page_size
        self.board = Board(fmt, execute=name in ENGINES, cpus=cpus)
        self.physical = self.board.physical
        self.scan = MergeScan(self.physical, 1 << 20, zero_pages=zero_pages)
        self.spaces = [self.board.space(), self.board.space()]
        for space in self.spaces:
            self.map(space)
            for number in range(2):
                self.write(space, number, EQUAL)

    def map(self, space: AddressSpace, at: int = BASE, pages: int = 8) -> None:
        size = pages * self.page
        mapping.map_memory(space, Request(at, size, RW, ANONYMOUS | MAP_FIXED, None, 0))
        mapping.advise_memory(space, at, size, MADV_MERGEABLE)

    def write(self, space: AddressSpace, number: int, data: bytes) -> None:
        self.board.run_on(space)
        self.board.cpu.copy_to_user(BASE + number * self.page, data)

    def read(self, space: AddressSpace, number: int, length: int = len(EQUAL)) -> bytes:
        self.board.run_on(space)
        return bytes(self.board.cpu.copy_from_user(BASE + number * self.page, length))

    def merge(self, passes: int = 3) -> int:
        return sum(self.scan.look(self.board.spaces) for _ in range(passes))

    def frame(self, space: AddressSpace, number: int) -> int:
        found = space.table.find(BASE + number * self.page)
        assert found is not None
        return self.board.frames.number(found.entry & self.board.format.address_mask)

    def frames(self) -> set[int]:
        return {self.frame(space, number) for space in self.spaces for number in range(2)}

    def advise(self, space: AddressSpace, advice: int) -> None:
        mapping.advise_memory(space, BASE, 8 * self.page, advice)

    def fork(self, space: AddressSpace) -> AddressSpace:
        child = space.fork()
        self.board.spaces.append(child)
        return child

    def end(self, space: AddressSpace) -> None:
        self.board.rest()
        self.board.spaces.remove(space)
        space.destroy()


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def kit(name: str) -> Iterator[Kit]:
    made = Kit(name)
    yield made
    check_accounts(made.board, [])
    made.board.close()


def test_equal_pages_become_one_frame(kit: Kit) -> None:
    free = kit.board.buddy.free_frames
    assert len(kit.frames()) == 4
    assert kit.merge() == 3
    assert len(kit.frames()) == 1
    assert kit.board.buddy.free_frames == free + 3
    assert figures(kit.physical) == (1, 3)
    assert [merged_pages(space) for space in kit.spaces] == [2, 2]
    assert kit.physical.counters.n[Event.MERGED_PAGES] == 4
    assert kit.merge() == 0
    for space in kit.spaces:
        assert [kit.read(space, number) for number in range(2)] == [EQUAL, EQUAL]


def test_a_write_is_seen_by_nobody_else(kit: Kit) -> None:
    kit.merge()
    one, other = kit.spaces
    kit.write(one, 0, b"mine")
    assert [kit.read(one, 0, 4), kit.read(one, 1), kit.read(other, 0)] == [b"mine", EQUAL, EQUAL]
    assert figures(kit.physical) == (1, 2)
    for space, number in ((one, 1), (other, 0), (other, 1)):
        kit.write(space, number, b"own%d" % number)
    assert figures(kit.physical) == (0, 0)
    assert [kit.read(other, 0, 4), kit.read(other, 1, 4)] == [b"own0", b"own1"]


def test_a_page_that_changes_is_left_alone(kit: Kit) -> None:
    kit.scan.look(kit.board.spaces)
    for space in kit.spaces:
        kit.write(space, 0, b"changed")
        kit.write(space, 1, b"changed")
    assert kit.scan.look(kit.board.spaces) == 0
    assert kit.scan.volatile == 4
    assert kit.scan.look(kit.board.spaces) == 3


def test_pages_with_the_same_checksum_are_compared(kit: Kit) -> None:
    """The generator of the CRC, laid over some bytes, leaves the checksum as it is."""
    other = (int.from_bytes(EQUAL, "little") ^ 0x1_DB71_0641 << 24).to_bytes(len(EQUAL), "little")
    for space in kit.spaces:
        kit.write(space, 1, other)
    checksums = {
        zlib.crc32(kit.physical.page_bytes(kit.frame(space, page))) for space in kit.spaces for page in (0, 1)
    }
    assert len(checksums) == 1
    assert kit.merge(2) == 1, "those that differ do not become merged ones by the way"
    assert figures(kit.physical) == (1, 1)
    assert kit.merge(2) == 1
    assert len(kit.frames()) == 2
    assert figures(kit.physical) == (2, 2)
    for space in kit.spaces:
        assert [kit.read(space, number) for number in range(2)] == [EQUAL, other]
    kit.write(kit.spaces[0], 0, b"own")
    assert kit.read(kit.spaces[1], 0) == EQUAL


def test_only_what_was_advised_is_merged(kit: Kit) -> None:
    kit.advise(kit.spaces[0], MADV_UNMERGEABLE)
    assert kit.merge() == 1
    assert len(kit.frames()) == 3


def test_a_page_that_is_held_elsewhere_is_left_alone(kit: Kit) -> None:
    frame = kit.frame(kit.spaces[0], 0)
    kit.board.frames.get(frame)
    assert kit.merge() == 2
    assert kit.frame(kit.spaces[0], 0) == frame
    kit.board.frames.put(frame)
    assert kit.merge() == 1


def test_unmerging_gives_each_page_a_frame_of_its_own(kit: Kit) -> None:
    kit.merge()
    for space in kit.spaces:
        kit.advise(space, MADV_UNMERGEABLE)
    assert len(kit.frames()) == 4
    assert kit.physical.merged is not None
    assert not any(data for _kind, data in kit.physical.merged.capture()["columns"]), (
        "nothing is kept of them"
    )
    assert figures(kit.physical) == (0, 0)
    assert kit.physical.counters.n[Event.UNMERGED_PAGES] == 4
    assert kit.merge() == 0


def test_unmerging_without_memory_is_refused_and_loses_nothing(kit: Kit) -> None:
    kit.merge()
    taken = kit.board.buddy.alloc_bulk(kit.board.buddy.free_frames - 1)
    kit.board.buddy.gather_ready()
    with pytest.raises(Refused) as refused:
        kit.advise(kit.spaces[0], MADV_UNMERGEABLE)
    assert refused.value.errno == errno.EAGAIN
    assert len(kit.frames()) == 2
    assert isinstance(fault_in(kit.spaces[0], BASE + kit.page, WRITE), OutOfMemory)
    assert kit.read(kit.spaces[0], 1) == EQUAL
    kit.board.buddy.free_bulk(taken)
    assert fault_in(kit.spaces[0], BASE + kit.page, WRITE) is RESOLVED


def test_a_process_has_all_its_private_memory_merged(kit: Kit) -> None:
    one, other = kit.spaces
    for space in kit.spaces:
        kit.advise(space, MADV_UNMERGEABLE)
        set_merge_any(space, on=True)
    assert kit.merge() == 3
    child = kit.fork(one)
    assert child.merge_any
    kit.map(child, BASE + 16 * kit.page)
    area = child.areas.find(BASE + 16 * kit.page)
    assert area is not None
    assert area.flags & 0x8000_0000
    set_merge_any(child, on=False)
    assert merged_pages(child) == 0
    assert [merged_pages(one), merged_pages(other)] == [2, 2]
    assert kit.merge() == 0


def test_a_fork_shares_merged_pages_and_writes_apart(kit: Kit) -> None:
    one, other = kit.spaces
    kit.merge()
    child = kit.fork(one)
    frame = kit.frame(one, 0)
    assert len(list(mappings(kit.physical, frame))) == 6
    kit.write(child, 0, b"child")
    kit.write(one, 1, b"parent")
    assert [kit.read(one, 0), kit.read(child, 1), kit.read(other, 0)] == [EQUAL] * 3
    kit.end(child)
    check_accounts(kit.board, [])
    assert kit.read(one, 1, 6) == b"parent"


def test_pages_shared_by_a_fork_are_merged_one_by_one(kit: Kit) -> None:
    child = kit.fork(kit.spaces[0])
    assert kit.merge() == 4  # the page that is taken over shows in both already
    assert len({*kit.frames(), kit.frame(child, 0), kit.frame(child, 1)}) == 1
    kit.write(kit.spaces[0], 0, b"own")
    assert kit.read(child, 0) == EQUAL


def test_a_merged_page_is_protected_moved_and_migrated(kit: Kit) -> None:
    one, other = kit.spaces
    kit.merge()
    mapping.protect_memory(one, BASE, 8 * kit.page, int(Protection.NONE))
    with pytest.raises(UserFault):
        kit.read(one, 0)
    mapping.protect_memory(one, BASE, 8 * kit.page, int(RW))
    to = BASE + 32 * kit.page
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    remap_memory(other, Remap(BASE, 8 * kit.page, 8 * kit.page, flags, to))
    remap_memory(other, Remap(to, 8 * kit.page, 8 * kit.page, flags, BASE))
    old = kit.frame(one, 0)
    shown = list(mappings(kit.physical, old))
    assert len(shown) == 4
    new = kit.board.buddy.alloc_bulk(1)
    migrate(kit.physical, np.array([old]), new, [shown])
    kit.physical.give_back([old])
    assert kit.frames() == {int(new[0])}
    kit.write(one, 0, b"own")
    assert [kit.read(one, 1), kit.read(other, 0), kit.read(other, 1)] == [EQUAL] * 3


def test_a_debugger_stores_into_a_copy(kit: Kit) -> None:
    one, other = kit.spaces
    kit.merge()
    mapping.protect_memory(one, BASE, 8 * kit.page, int(Protection.READ))
    ForcedMemory(one).write(BASE, b"forced")
    assert [kit.read(one, 0, 6), kit.read(one, 1), kit.read(other, 0)] == [b"forced", EQUAL, EQUAL]
    kit.write(other, 0, b"a")
    kit.write(other, 1, b"b")
    ForcedMemory(one).write(BASE + kit.page, b"alone")
    assert figures(kit.physical) == (0, 0)


def test_damage_of_an_entry_that_shows_a_merged_page_is_put_right(kit: Kit) -> None:
    one, other = kit.spaces
    kit.merge()
    found = one.table.find(BASE)
    area = one.areas.find(BASE)
    assert found is not None
    assert area is not None
    assert judge_leaf(one, area, found) is None
    kit.write(one, 5, b"some other page")
    kit.board.ram.words[found.slot] = one.table.find(BASE + 5 * kit.page).entry  # type: ignore[union-attr]
    wrong = one.table.find(BASE)
    assert wrong is not None
    damaged = judge_leaf(one, area, wrong)
    assert damaged is not None
    assert damaged.expected & kit.board.format.address_mask == found.entry & kit.board.format.address_mask
    kit.board.ram.words[found.slot] = 0
    kit.board.rest()
    kit.board.spaces.remove(one)
    one.damages.append(damaged)  # it was noted by whoever met it
    one.destroy()
    kit.spaces = [other, other]


def test_pages_of_zeros_become_the_zero_page(name: str) -> None:
    kit = Kit(name, zero_pages=True)
    one = kit.spaces[0]
    for number in range(4, 7):
        kit.write(one, number, b"x")
        kit.write(one, number, b"\0")
    kit.merge()
    assert {kit.frame(one, number) for number in range(4, 7)} == {kit.physical.zero_frame}
    assert kit.physical.counters.n[Event.MERGED_ZEROS] == 3
    kit.write(one, 4, b"again")
    assert [kit.read(one, 4, 5), kit.read(one, 5, 5)] == [b"again", bytes(5)]
    check_accounts(kit.board, [])
    kit.board.close()


def test_unmerging_gives_pages_of_zeros_frames_too(name: str) -> None:
    kit = Kit(name, zero_pages=True)
    one, zero = kit.spaces[0], kit.physical.zero_frame
    kit.physical.merge_scan = kit.scan
    kit.read(one, 7)  # it shows the zero page, but not because of the scan
    for number in range(4, 6):
        kit.write(one, number, b"x")
        kit.write(one, number, b"\0")
    kit.merge()
    assert len(kit.scan.zeros_of(one)) == 2
    unmerge(one, BASE, BASE + 5 * kit.page)
    assert len(kit.scan.zeros_of(one)) == 1
    assert kit.frame(one, 4) != zero == kit.frame(one, 5)
    kit.advise(one, MADV_UNMERGEABLE)
    assert [kit.frame(one, number) == zero for number in (4, 5, 7)] == [False, False, True]
    assert kit.read(one, 4, 5) == bytes(5)
    kit.write(one, 5, b"again")
    assert kit.read(one, 5, 5) == b"again"
    check_accounts(kit.board, [])
    kit.board.close()


def test_all_unmerged_is_all_forgotten(kit: Kit) -> None:
    kit.write(kit.spaces[0], 5, b"alone")
    ksm = Ksm(kit.scan, 1, lambda: kit.board.spaces, runs=True)
    ksm.look(10 * MS)
    told = ksm.figures()
    assert (told["pages_sharing"], told["pages_unshared"], told["full_scans"] > 0) == (3, 1, True)
    assert kit.scan.looked_at(kit.spaces[0]) == 3
    ksm.set_run(UNMERGE, 10 * MS)
    assert not any(ksm.figures().values())
    assert not kit.scan.looked_at(kit.spaces[0])
    ksm.set_run(RUN, 10 * MS)
    ksm.look(20 * MS)
    assert ksm.figures()["pages_sharing"] == 3


def test_with_the_hosts_clock_it_rests_as_long_as_it_looked(kit: Kit) -> None:
    ksm = Ksm(kit.scan, 1, lambda: kit.board.spaces, runs=True)
    ksm.of_host = lambda: 150 * MS
    ksm.look(100 * MS)
    assert (ksm.scan.passes, ksm.due) == (1, 200 * MS), "one look, which took 50 ms"


def test_a_scan_goes_on_where_it_was(kit: Kit) -> None:
    kit.scan.pages = 1
    assert [kit.scan.look(kit.board.spaces) for _ in range(3)] == [0, 0, 0]
    state = kit.scan.capture()
    other = MergeScan(kit.physical, 5)
    other.restore(state)
    assert other.capture() == state
    done = sum(other.look(kit.board.spaces) for _ in range(12))
    assert done == 3
    for space in kit.spaces:
        unmerge(space, 0, BASE + 8 * kit.page)
    assert not (kit.board.frames.owner_array[list(kit.frames())] == kit.physical.with_merged().number).any()
    assert all(kit.board.frames.kind[frame] == Kind.ANON for frame in kit.frames())


def test_no_more_pages_share_a_frame_than_may(name: str) -> None:
    kit = Kit(name)
    kit.scan.most = 3
    for space in kit.spaces:
        for number in range(2, 5):
            kit.write(space, number, EQUAL)
    assert kit.merge(6) == 6  # of ten pages nine share three frames
    shown = [kit.frame(space, number) for space in kit.spaces for number in range(5)]
    assert max(Counter(shown).values()) == 3
    assert (figures(kit.physical), duplicates(kit.physical)) == ((3, 6), (1, 3))
    kit.write(kit.spaces[0], 0, b"own")
    assert kit.read(kit.spaces[1], 4) == EQUAL
    check_accounts(kit.board, [])
    kit.board.close()


@pytest.mark.parametrize("orders", [(), (4,)])
def test_an_equal_page_is_cut_out_of_a_huge_page_or_a_run(name: str, orders: tuple[int, ...]) -> None:
    huge = Huge(name, orders=orders)
    space, physical, scan = huge.space, huge.board.physical, MergeScan(huge.board.physical, 1 << 20)
    pages = 16 if orders else huge.count
    if orders:  # where no huge page fits, a run comes
        space.unmap(huge.base + 16 * huge.page, huge.base + 3 * huge.size)
    for page in range(pages):
        huge.write(page * huge.page, b"equal" if page in (5, 9) else b"%d" % page)
    assert huge.levels()[0] == (1 if orders else 2)
    mapping.advise_memory(space, huge.base, pages * huge.page, MADV_MERGEABLE)
    assert huge.levels()[0] == (1 if orders else 2)
    assert sum(scan.look([space]) for _ in range(3)) == 1
    assert huge.levels()[0] == 1
    assert figures(physical) == (1, 1)
    assert [huge.read(page * huge.page, 5) for page in (5, 9)] == [b"equal"] * 2
    huge.write(5 * huge.page, b"other")
    assert huge.read(9 * huge.page, 5) == b"equal"
    assert huge.read(12 * huge.page, 2) == b"12"
    closed(huge)


def test_a_huge_page_without_equal_ones_stays_whole(name: str) -> None:
    huge = Huge(name)
    scan = MergeScan(huge.board.physical, 1 << 20)
    for page in range(huge.count):
        huge.write(page * huge.page, b"%d" % page)
    mapping.advise_memory(huge.space, huge.base, huge.size, MADV_MERGEABLE)
    assert sum(scan.look([huge.space]) for _ in range(3)) == 0
    assert huge.levels()[0] == 2
    assert scan.unshared == huge.count
    closed(huge)
