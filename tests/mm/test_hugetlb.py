"""Huge pages from a pool: promises, faults, forks and edits, with no page lost and no leaf cut."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from aether_emu.arch.paging import Access
from aether_emu.errors import Refused
from aether_emu.mm import locking, mapping
from aether_emu.mm.fault import RESOLVED, BusError, Faults
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.huge_pools import Pool, Pools
from aether_emu.mm.hugepage import huge_size
from aether_emu.mm.mapping import MAP_FIXED, MAP_HUGETLB, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, Request
from aether_emu.mm.objects.hugetlb import HugeMemory
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import MREMAP_FIXED, MREMAP_MAYMOVE, Remap, remap_memory
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.user import ForcedMemory
from tests.mm.board import ENGINES, FORMATS, Board, check_accounts
from tests.mm.calls import ANONYMOUS, RW

READ, WRITE = int(Access.USER | Access.READ), int(Access.USER | Access.WRITE)
NONE, R = Protection.NONE, Protection.READ


class Kit:
    """A board with a pool of `pages` huge pages, and a space."""

    def __init__(self, name: str, pages: int = 4, cpus: int = 1) -> None:
        fmt = FORMATS[name]
        self.size, self.page = huge_size(fmt), fmt.page_size
        self.board = Board(fmt, ram=8 * self.size, execute=name in ENGINES, cpus=cpus)
        self.pools = self.board.physical.pools = Pools(self.board.physical, fmt)
        assert isinstance(self.pools.default, Pool)
        self.pool = self.pools.default
        assert self.pool.resize(pages) == pages
        self.space = self.board.space()
        self.board.run_on(self.space)

    def map(self, pages: int, flags: int = MAP_PRIVATE, at: int = 0, protection: int = RW) -> int:
        flags |= MAP_HUGETLB | ANONYMOUS & ~MAP_PRIVATE
        return mapping.map_memory(self.space, Request(at, pages * self.size, protection, flags, None, 0))

    def touch(self, at: int, access: int = WRITE, space: AddressSpace | None = None) -> Any:
        return Faults(self.board.physical).resolve(space or self.space, at, access)

    def write(self, at: int, data: bytes, space: AddressSpace | None = None) -> None:
        self.board.run_on(space or self.space)
        self.board.cpu.copy_to_user(at, data)

    def read(self, at: int, length: int, space: AddressSpace | None = None) -> bytes:
        self.board.run_on(space or self.space)
        return bytes(self.board.cpu.copy_from_user(at, length))

    def fork(self) -> AddressSpace:
        child = self.space.fork()
        self.board.spaces.append(child)
        return child

    def end(self, space: AddressSpace) -> None:
        self.board.rest()
        self.board.spaces.remove(space)
        space.destroy()

    def counts(self) -> tuple[int, int, int, int]:
        """Pages, free ones, promised ones, surplus ones."""
        free = self.pool.free
        return len(self.pool), free, self.pool.reserved, self.pool.surplus

    def frame(self, at: int, space: AddressSpace | None = None) -> int:
        """The first frame of the huge page there, -1 for none; its leaf is of the pool's level."""
        space = space or self.space
        found = space.table.find(at)
        if found is None:
            return -1
        assert found.level == self.pool.level
        return self.board.frames.number(found.entry & space.table.format.address_mask & -self.size)

    def check(self) -> None:
        objects = [each for each in self.board.physical.objects if isinstance(each, HugeMemory)]
        check_accounts(self.board, objects)


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def kit(name: str) -> Iterator[Kit]:
    made = Kit(name)
    yield made
    made.check()
    for space in list(made.board.spaces):
        made.end(space)
    assert made.counts() == (len(made.pool), len(made.pool), 0, 0)
    made.board.close()


def refused(number: int, call: Any, *arguments: Any, **more: Any) -> None:
    with pytest.raises(Refused) as caught:
        call(*arguments, **more)
    assert caught.value.errno == number


def test_what_mmap_promised_is_there_at_each_fault(kit: Kit) -> None:
    at = kit.map(3)
    assert at % kit.size == 0
    assert kit.counts() == (4, 4, 3, 0)
    refused(errno.ENOMEM, kit.map, 2)
    assert kit.counts() == (4, 4, 3, 0)
    assert kit.touch(at + kit.size + 5 * kit.page) is RESOLVED
    assert kit.counts() == (4, 3, 2, 0)
    assert kit.frame(at + kit.size) % kit.pool.count == 0
    assert kit.frame(at) == -1
    kit.check()
    mapping.unmap_memory(kit.space, at, 3 * kit.size)
    assert kit.counts() == (4, 4, 0, 0)


def test_a_page_is_read_and_written_through_the_mmu_and_comes_again_as_zeroes(kit: Kit) -> None:
    at = kit.map(2)
    assert kit.read(at + 9, 1) == b"\0"
    kit.write(at + kit.size - 2, b"over")
    assert kit.read(at + kit.size - 2, 4) == b"over"
    mapping.advise_memory(kit.space, at, kit.size + kit.page, mapping.MADV_DONTNEED)
    assert kit.counts() == (4, 3, 1, 0)
    assert kit.read(at + kit.size - 2, 4) == b"\0\0er"
    refused(errno.EINVAL, mapping.advise_memory, kit.space, at + kit.page, kit.size, mapping.MADV_DONTNEED)


def test_without_promises_a_fault_is_sigbus_when_the_pool_is_empty(kit: Kit) -> None:
    kept = kit.map(3)
    lazy = kit.map(8, MAP_PRIVATE | MAP_NORESERVE)
    assert kit.touch(lazy) is RESOLVED
    assert isinstance(kit.touch(lazy + kit.size), BusError)
    assert all(kit.touch(kept + number * kit.size) is RESOLVED for number in range(3))


def test_a_fork_copies_a_huge_page_whole(kit: Kit) -> None:
    at = kit.map(1)
    kit.write(at + 3 * kit.page, b"parent")
    child = kit.fork()
    assert kit.frame(at) == kit.frame(at, child)
    kit.write(at + 3 * kit.page, b"child!", child)
    assert kit.frame(at) != kit.frame(at, child)
    assert kit.read(at + 3 * kit.page, 6) == b"parent"
    assert kit.read(at + 3 * kit.page, 6, child) == b"child!"
    kit.check()
    first = kit.frame(at)
    kit.write(at, b"again")  # alone again: where it is
    assert kit.frame(at) == first
    assert kit.counts() == (4, 2, 0, 0)


def test_a_child_gets_sigbus_where_nothing_is_left_and_its_parent_never_does(kit: Kit) -> None:
    at = kit.map(4)
    for number in range(3):
        kit.write(at + number * kit.size, b"%d" % number)
    child = kit.fork()
    assert kit.counts() == (4, 1, 1, 0)
    assert isinstance(kit.touch(at, WRITE, child), BusError)
    assert isinstance(kit.touch(at + 3 * kit.size, READ, child), BusError)
    assert kit.touch(at) is RESOLVED  # which takes the page away from the child
    assert kit.frame(at, child) == -1
    assert kit.read(at, 1) == b"0"
    assert isinstance(kit.touch(at, READ, child), BusError)
    assert kit.read(at + kit.size, 1, child) == b"1"
    assert kit.touch(at + 3 * kit.size) is RESOLVED
    kit.pool.resize(5)
    assert isinstance(kit.touch(at, READ, child), BusError)  # what it had there is gone
    kit.end(child)
    kit.check()


def test_shared_pages_are_the_same_on_both_sides_of_a_fork(kit: Kit) -> None:
    at = kit.map(2, MAP_SHARED)
    child = kit.fork()
    kit.write(at + kit.size, b"seen", child)
    assert kit.read(at + kit.size, 4) == b"seen"
    assert kit.counts() == (4, 3, 1, 0)
    mapping.advise_memory(kit.space, at + kit.size, kit.size, mapping.MADV_REMOVE)
    assert kit.read(at + kit.size, 4, child) == b"\0\0\0\0"
    kit.check()


def test_an_edit_of_a_part_of_a_page_is_refused(kit: Kit) -> None:
    at = kit.map(3)
    kit.write(at, b"x")
    refused(errno.EINVAL, mapping.unmap_memory, kit.space, at, kit.page)
    refused(errno.EINVAL, mapping.unmap_memory, kit.space, at + kit.page, 3 * kit.size - kit.page)
    refused(errno.EINVAL, mapping.protect_memory, kit.space, at, kit.page, R)
    refused(errno.EINVAL, remap_memory, kit.space, Remap(at, kit.size, 2 * kit.size, MREMAP_MAYMOVE, 0))
    refused(errno.EINVAL, kit.map, 1, MAP_PRIVATE | MAP_FIXED, at + kit.page)
    for advice in (
        mapping.MADV_FREE,
        mapping.MADV_COLD,
        mapping.MADV_PAGEOUT,
        mapping.MADV_COLLAPSE,
        mapping.MADV_GUARD_INSTALL,
    ):
        refused(errno.EINVAL, mapping.advise_memory, kit.space, at, kit.size, advice)
    assert len(kit.space.areas.overlapping(at, at + 3 * kit.size)) == 1
    mapping.protect_memory(kit.space, at + kit.size, kit.size, R)
    mapping.unmap_memory(kit.space, at + 2 * kit.size, kit.size)
    assert kit.counts() == (4, 3, 1, 0)
    assert kit.frame(at) >= 0


def test_a_page_without_access_keeps_its_bytes(kit: Kit) -> None:
    at = kit.map(1)
    kit.write(at, b"kept")
    mapping.protect_memory(kit.space, at, kit.size, NONE)
    assert kit.touch(at, READ) is not RESOLVED
    mapping.protect_memory(kit.space, at, kit.size, RW)
    assert kit.read(at, 4) == b"kept"


def test_pages_and_promises_move_with_mremap(kit: Kit) -> None:
    at = kit.map(2)
    kit.write(at, b"moved")
    to = at - 8 * kit.size
    assert (
        remap_memory(kit.space, Remap(at, 2 * kit.size, 2 * kit.size, MREMAP_MAYMOVE | MREMAP_FIXED, to))
        == to
    )
    assert kit.read(to, 5) == b"moved"
    assert kit.counts() == (4, 3, 1, 0)
    child = kit.fork()
    fresh = kit.map(2)
    assert kit.touch(fresh) is RESOLVED
    assert kit.touch(fresh + kit.size) is RESOLVED
    assert kit.touch(to) is RESOLVED
    assert kit.frame(to, child) == -1
    assert kit.touch(to + kit.size) is RESOLVED


def test_locks_leave_them_alone_and_mincore_sees_them(kit: Kit) -> None:
    at = kit.map(2)
    kit.write(at, b"x")
    locking.lock_memory(kit.space, at, kit.size, 0x2000)
    assert not kit.space.account.locked
    seen = mapping.residency(kit.space, at, 2 * kit.page)
    assert seen == b"\1\1"
    assert mapping.residency(kit.space, at + kit.size, kit.page) == b"\0"


def test_a_pool_grows_and_shrinks_while_pages_are_in_use(kit: Kit) -> None:
    at = kit.map(2)
    kit.write(at, b"x")
    assert kit.pool.resize(0) == 0
    assert kit.counts() == (2, 1, 1, 2)
    refused(errno.ENOMEM, kit.map, 1)
    assert kit.pool.resize(3) == 3
    assert kit.counts() == (3, 2, 1, 0)
    kit.pool.resize(1)
    mapping.unmap_memory(kit.space, at, 2 * kit.size)
    assert kit.counts() == (1, 1, 0, 0)
    free = kit.board.buddy.free_frames
    assert kit.pool.resize(1000) < 1000
    kit.pool.resize(1)
    assert kit.board.buddy.free_frames == free


def test_frames_of_a_page_lie_in_a_row_and_are_of_the_pool(kit: Kit) -> None:
    at = kit.map(1)
    kit.touch(at)
    first = kit.frame(at)
    kinds = kit.board.frames.kind_array[first : first + kit.pool.count]
    assert (kinds == Kind.HUGETLB).all()
    assert first in kit.pool.pages


@pytest.mark.parametrize("name", ["x86_64", "arm64-4K"])
def test_a_page_of_a_gigabyte_is_one_leaf_of_level_3(name: str) -> None:
    board = Board(FORMATS[name], ram=3 << 30)
    pools = board.physical.pools = Pools(board.physical, FORMATS[name])
    pool = pools.chosen(30)
    assert pool.resize(1) == 1
    space = board.space()
    board.run_on(space)
    flags = MAP_SHARED | MAP_HUGETLB | ANONYMOUS & ~MAP_PRIVATE | 30 << 26
    at = mapping.map_memory(space, Request(0, 1 << 30, RW, flags, None, 0))
    board.cpu.copy_to_user(at + (1 << 30) - 2, b"xy")
    found = space.table.find(at)
    assert found is not None
    assert (found.level, at % (1 << 30), pool.free) == (3, 0, 0)
    refused(errno.EINVAL, mapping.protect_memory, space, at, 2 << 20, R)
    assert bytes(board.cpu.copy_from_user(at + (1 << 30) - 2, 2)) == b"xy"
    board.rest()
    board.spaces.remove(space)
    space.destroy()
    board.close()


def test_a_debugger_reads_and_writes_what_the_program_may_not(kit: Kit) -> None:
    at = kit.map(2)
    kit.write(at, b"bytes")
    child = kit.fork()
    for protection in (R, NONE):
        mapping.protect_memory(kit.space, at, 2 * kit.size, protection)
        forced = ForcedMemory(kit.space)
        assert forced.read(at + 1, 4) in (b"ytes", b"YTES")
        forced.write(at + 1, b"YTES")
        assert forced.read(at, 5) == b"bYTES"
        assert kit.read(at, 5, child) == b"bytes"
        forced.write(at + kit.size, b"fresh")
    mapping.protect_memory(kit.space, at, 2 * kit.size, RW)
    assert kit.read(at + kit.size, 5) == b"fresh"


def test_a_page_is_used_again_only_after_every_cpu_has_flushed(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, settled = kit.map(1), list[int]()
    tlb = kit.board.physical.tlb
    with monkeypatch.context() as patched:
        patched.setattr(type(tlb), "awaited", True)
        patched.setattr(type(tlb), "settle", lambda _tlb: settled.append(kit.pool.free))
        assert kit.touch(at) is RESOLVED
    assert settled == [4]  # while the page was still free


def test_what_is_pinned_stays_its_owners_page_across_mprotect(kit: Kit) -> None:
    at = kit.map(1)
    kit.write(at, b"x")
    block = kit.frame(at)
    kit.pool.refer(block, 1, mapped=False)
    mapping.protect_memory(kit.space, at, kit.size, R)
    mapping.protect_memory(kit.space, at, kit.size, RW)
    kit.write(at, b"y")
    assert kit.frame(at) == block
    kit.space.unmap(at, at + kit.size)
    assert kit.pool.free == 3
    kit.pool.refer(block, -1, mapped=False)
    assert kit.pool.free == 4


def test_surplus_pages_come_for_promises_and_touches_and_leave_when_free(kit: Kit) -> None:
    kit.pool.overcommit = 2
    refused(errno.ENOMEM, kit.map, 7)
    assert kit.counts() == (4, 4, 0, 0)
    at = kit.map(5)
    assert kit.counts() == (5, 5, 5, 1)
    other = kit.map(2, MAP_PRIVATE | MAP_NORESERVE)
    kit.write(other, b"x")
    assert kit.counts() == (6, 5, 5, 2)
    assert isinstance(kit.touch(other + kit.size), BusError)
    kit.space.unmap(at, at + 5 * kit.size)
    assert kit.counts() == (4, 3, 0, 0)
    kit.space.unmap(other, other + 2 * kit.size)
