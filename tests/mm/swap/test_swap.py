"""Pages in swap: who names a slot, what is cached, what stays in memory, and what comes back when."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from aether_emu.arch.paging import Access, Attributes, Held, HeldKind, PageFlags
from aether_emu.errors import Refused
from aether_emu.machine.cpu import UserFault
from aether_emu.mm import ageing, locking, mapping
from aether_emu.mm.allocation import LOCKED
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, BusError, OutOfMemory
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.mapping import MAP_FIXED, MAP_SHARED
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.populate import populate
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import MREMAP_FIXED, MREMAP_MAYMOVE
from aether_emu.mm.room import watermarks
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.area import SwapFull
from aether_emu.mm.swap.codec import best_codec
from aether_emu.mm.swap.entries import swap_entries
from aether_emu.mm.swap.off import switch_off
from aether_emu.mm.tables.damage import Damaged
from aether_emu.mm.user import ForcedMemory
from aether_emu.observe.peek import PeekMemory
from aether_emu.policy.reclaim import Generations
from tests.mm.board import FORMATS, Board, check_accounts, discard, fault_in
from tests.mm.calls import ANONYMOUS, RW, mmap, mremap
from tests.mm.swap.boards import check_slots, parts, with_swap

AT, ELSEWHERE, PAGES = 0x1000_0000, 0x2000_0000, 16
READ = int(Access.READ | Access.USER)
every_format = pytest.mark.parametrize("kind", FORMATS)


class Away:
    """A board with a space of some pages, each of its own bytes, that can be sent to swap."""

    def __init__(self, kind: str = "x86_64", **options: object) -> None:
        self.board = Board(FORMATS[kind], cpus=2)
        with_swap(self.board, 64, **options)  # type: ignore[arg-type]  # as they are given
        self.swap, self.reclaim = parts(self.board)
        self.size, self.n = self.board.format.page_size, self.board.physical.counters.n
        self.space = self.board.space(user_base=self.size)
        self.board.run_on(self.space)
        mmap(self.space, AT, PAGES, RW, ANONYMOUS | MAP_FIXED)
        for number in range(PAGES):
            self.write(number)

    def at(self, number: int) -> int:
        return AT + number * self.size

    def write(self, number: int, what: bytes = b"", space: AddressSpace | None = None) -> None:
        self.board.run_on(space or self.space)
        self.board.cpu.copy_to_user(self.at(number), what or bytes([number + 1, number + 7]) * 8)

    def read(self, number: int, space: AddressSpace | None = None) -> bytes:
        self.board.run_on(space or self.space)
        return bytes(self.board.cpu.copy_from_user(self.at(number), 16))

    def right(self, number: int) -> bytes:
        return bytes([number + 1, number + 7]) * 8

    def send(self, first: int = 0, count: int = PAGES, space: AddressSpace | None = None) -> int:
        """Some pages, by their addresses."""
        start = self.at(first)
        return self.reclaim.take(
            ageing.look(space or self.space, start, start + count * self.size).frames.tolist()
        )

    def fork(self) -> AddressSpace:
        child = self.space.fork()
        self.board.spaces.append(child)
        return child

    def check(self, objects: list[SharedMemory] | None = None) -> None:
        check_accounts(self.board, objects or [])
        check_slots(self.board, objects or [])

    def entry(self, number: int) -> int:
        found = self.space.table.find(self.at(number))
        assert found is not None
        return found.entry


@pytest.fixture
def away() -> Iterator[Away]:
    made = Away()
    yield made
    made.board.close()
    assert not made.swap.used


@every_format
def test_pages_go_and_come_back(kind: str) -> None:
    away = Away(kind)
    free = away.board.buddy.free_frames
    assert away.send() == PAGES
    assert away.board.buddy.free_frames == free + PAGES
    fmt, codec = away.board.format, swap_entries(away.board.format)
    for number in range(PAGES):
        held = fmt.decode(away.entry(number), 1)
        assert isinstance(held, Held)
        assert held.kind is HeldKind.SWAP
        assert away.entry(number) & codec.exclusive
    away.check()
    assert [away.read(number) for number in range(PAGES)] == [away.right(number) for number in range(PAGES)]
    assert away.n[Event.FAULT_SWAP] == PAGES
    away.check()
    away.board.close()
    assert not away.swap.used


@every_format
def test_slots_have_numbers_of_32_bits(kind: str) -> None:
    codec = swap_entries(FORMATS[kind])
    for slot in (0, 1, (1 << 26) - 1):
        for exclusive in (False, True):
            entry = codec.make(slot, exclusive=exclusive)
            assert codec.holds(entry)
            assert codec.slot(entry) == slot
            assert bool(entry & codec.exclusive) is exclusive
            assert codec.shared(entry) == codec.make(slot, exclusive=False)
            assert not entry & FORMATS[kind].present_mask
    assert not codec.holds(0)
    assert codec.shared(FORMATS[kind].held_entry(Held(HeldKind.NO_ACCESS, 5))) == FORMATS[kind].held_entry(
        Held(HeldKind.NO_ACCESS, 5)
    )


def test_what_ends_a_page_frees_its_slot(away: Away) -> None:
    away.send()
    assert away.swap.used == PAGES
    mapping.unmap_memory(away.space, away.at(0), away.size)
    discard(away.space, away.at(1), away.at(3))
    mmap(away.space, away.at(3), 1, RW, ANONYMOUS | MAP_FIXED)
    assert away.swap.used == PAGES - 4
    assert away.read(1) == bytes(16)
    away.check()


def test_a_moved_page_keeps_its_slot_and_its_index(away: Away) -> None:
    child = away.fork()
    assert away.send() == PAGES
    mremap(child, AT, PAGES, PAGES, MREMAP_MAYMOVE | MREMAP_FIXED, ELSEWHERE)
    assert away.read(3) == away.right(3)
    away.board.run_on(child)
    assert bytes(away.board.cpu.copy_from_user(ELSEWHERE + 3 * away.size, 16)) == away.right(3)
    away.check()
    frames = ageing.look(child, ELSEWHERE, ELSEWHERE + PAGES * away.size).frames.tolist()
    assert frames == ageing.look(away.space, AT, AT + PAGES * away.size).frames.tolist()
    assert away.reclaim.take(frames) == 1  # both sides show it, and both are found


def test_no_access_keeps_what_is_away_and_a_debugger_reads_it(away: Away) -> None:
    away.send(0, 2)
    mapping.protect_memory(away.space, AT, PAGES * away.size, 0)
    with pytest.raises(UserFault):
        away.read(0)
    assert away.send(2, 2) == 2  # what is held with a frame goes too
    assert ForcedMemory(away.space).read(away.at(0), 16) == away.right(0)
    assert ForcedMemory(away.space).read(away.at(2), 16) == away.right(2)
    mapping.protect_memory(away.space, AT, PAGES * away.size, RW)
    assert [away.read(number) for number in range(4)] == [away.right(number) for number in range(4)]
    away.check()


def test_sides_of_a_fork_share_a_slot_and_then_a_frame(away: Away) -> None:
    away.send()
    child = away.fork()
    assert not away.entry(0) & away.swap.entries.exclusive
    assert away.swap.users(away.swap.entries.slot(away.entry(0))) == 2
    assert away.read(0, child) == away.right(0)
    assert away.read(0) == away.right(0)
    assert (away.n[Event.FAULT_SWAP], away.n[Event.FAULT_SWAP_CACHE]) == (1, 1)
    shown = [space.table.find(AT) for space in (child, away.space)]
    assert shown[0] is not None
    assert shown[1] is not None
    assert shown[0].entry == shown[1].entry
    away.check()
    away.write(0, b"another")
    assert away.read(0, child) == away.right(0)
    away.write(1, b"the child's own", child)
    assert away.read(1) == away.right(1)
    away.check()


def test_a_store_to_the_only_copy_in_memory_does_not_reach_who_is_still_away(away: Away) -> None:
    away.send()
    child = away.fork()
    assert away.read(0) == away.right(0)
    away.write(0, b"mine alone")
    assert away.n[Event.FAULT_UPGRADE] == 1
    assert away.read(0, child) == away.right(0)
    away.check()


def test_a_page_that_was_only_read_goes_again_without_being_stored(away: Away) -> None:
    away.send()
    stored = away.n[Event.SWAP_OUT]
    away.read(0)
    away.write(1, b"changed")
    assert away.swap.cached == 1
    assert away.send(0, 2) == 2
    assert away.n[Event.SWAP_OUT] == stored + 1
    assert away.n[Event.RECLAIM_CLEAN] == 1
    assert (away.read(0), away.read(1)[:7]) == (away.right(0), b"changed")


def test_a_debuggers_store_ends_the_cache(away: Away) -> None:
    away.send()
    away.read(0)
    mapping.protect_memory(away.space, AT, away.size, int(Protection.READ))
    ForcedMemory(away.space).write(AT, b"by force")
    assert away.swap.cached == 0
    away.send(0, 1)
    assert away.read(0)[:8] == b"by force"


def test_slots_of_cached_frames_are_given_up_when_others_need_them(away: Away) -> None:
    mmap(away.space, ELSEWHERE, 64, RW, ANONYMOUS | MAP_FIXED)
    away.send()
    for number in range(PAGES):
        away.read(number)
    assert (away.swap.used, away.swap.cached) == (PAGES, PAGES)
    away.board.cpu.copy_to_user(ELSEWHERE, bytes(range(1, 255)) * (64 * away.size // 254))
    frames = ageing.look(away.space, ELSEWHERE, ELSEWHERE + 64 * away.size).frames.tolist()
    assert away.reclaim.take(frames) == 64
    assert (away.swap.used, away.swap.cached) == (64, 0)
    assert away.send() == 0  # all slots are used
    away.check()


# ---- what stays


def test_locked_pages_stay_and_come_back_for_the_lock(away: Away) -> None:
    away.send(0, 4)
    locking.lock_memory(away.space, AT, 4 * away.size, LOCKED)
    populate(away.space, AT, away.at(4), write=True)
    assert away.send() == PAGES - 4
    with pytest.raises(Refused, match="EINVAL"):
        mapping.advise_memory(away.space, AT, away.size, mapping.MADV_PAGEOUT)
    child = away.fork()  # whose areas are not locked: the frames are
    assert away.send(0, 4, child) == 0


def test_executable_pages_tables_and_the_page_of_zeros_stay(away: Away) -> None:
    mmap(away.space, ELSEWHERE, 2, RW | Protection.EXECUTE, ANONYMOUS | MAP_FIXED)
    away.board.cpu.copy_to_user(ELSEWHERE, b"code")
    mmap(away.space, ELSEWHERE + 64 * away.size, 1, RW, ANONYMOUS | MAP_FIXED)
    away.board.cpu.copy_from_user(ELSEWHERE + 64 * away.size, 4)
    everything = list(range(away.board.frames.count))
    assert away.reclaim.take(everything) == PAGES
    away.check()


def test_a_page_that_somebody_else_holds_stays(away: Away) -> None:
    frame = int(ageing.look(away.space, AT, AT + away.size).frames[0])
    away.board.frames.get(frame)
    assert away.send(0, 1) == 0
    away.board.frames.put(frame)
    assert away.send(0, 1) == 1


def test_a_damaged_table_keeps_its_pages_in_memory(away: Away) -> None:
    step = away.space.walk(AT).steps[1]
    slot = int(step.address) - away.board.ram.base >> 3
    frames = ageing.look(away.space, AT, AT + PAGES * away.size).frames.tolist()
    away.board.ram.words[slot] ^= 1 << 20
    assert away.reclaim.take(frames) == 0
    assert not away.reclaim.make_room(1)
    away.board.ram.words[slot] ^= 1 << 20
    assert away.reclaim.take(frames) == PAGES


@every_format
def test_a_page_is_cut_out_of_a_large_leaf(kind: str) -> None:
    away = Away(kind)
    fmt, frames, space = away.board.format, away.board.frames, away.space
    if not fmt.levels[1].leaf or fmt.levels[0].bits > 10:
        away.board.close()  # a large leaf of 64K pages is larger than the board's memory
        return
    order, large = fmt.levels[0].bits, fmt.levels[1].size
    at = ELSEWHERE & -large
    first = away.board.buddy.alloc(order)
    away.board.buddy.split(first, order)
    mmap(space, at, 1 << order, RW, ANONYMOUS | MAP_FIXED)
    area = space.areas.find(at)
    assert area is not None
    frames.claim(first, 1 << order, Kind.ANON, area.owner, at // away.size)
    frames.refs_array[first : first + (1 << order)] = frames.maps_array[first : first + (1 << order)] = 1
    frames.flags_array[first : first + (1 << order)] |= 1
    flags = PageFlags.READ | PageFlags.WRITE | PageFlags.USER | PageFlags.ACCESSED | PageFlags.DIRTY
    space.table.map(at, frames.address(first), large, Attributes(flags), largest=large)
    away.board.cpu.copy_to_user(at + 3 * away.size, b"in the middle")
    assert away.reclaim.take([first + 3]) == 1
    found = space.table.find(at + 4 * away.size)
    assert found is not None
    assert (found.level, away.swap.used) == (1, 1)
    assert bytes(away.board.cpu.copy_from_user(at + 3 * away.size, 13)) == b"in the middle"
    away.check()
    away.board.close()


@every_format
def test_bytes_are_stored_when_no_cpu_can_reach_the_page_any_more(kind: str) -> None:
    away = Away(kind)
    away.board.percpu[1].take_over()
    away.board.run_on(away.space)
    for number in range(PAGES):
        away.board.cpu.copy_to_user(away.at(number), b"by the other one")
    away.board.percpu[0].take_over()
    frames = ageing.look(away.space, AT, AT + PAGES * away.size).frames.tolist()
    held = [cpu.holds(away.board.frames.address(frames[0])) for cpu in away.board.cpus]
    assert held == [True, True]
    put, stored = away.swap.store.put, []

    def watched(slot: int, page: memoryview) -> None:
        stored.append(slot)
        for frame in frames:
            assert not any(cpu.holds(away.board.frames.address(frame)) for cpu in away.board.cpus)
        put(slot, page)

    away.swap.store.put = watched  # type: ignore[method-assign]  # looked at on the way
    assert away.send() == PAGES
    assert len(stored) == PAGES
    assert away.read(3) == b"by the other one"
    away.board.close()


def test_an_entry_that_names_a_slot_nobody_has_is_damaged() -> None:
    away = Away()
    away.send()
    found = away.space.table.find(AT)
    assert found is not None
    damaged = (
        found.entry
        ^ away.swap.entries.make(1 << 9, exclusive=False)
        ^ away.swap.entries.make(0, exclusive=False)
    )
    away.board.ram.words[found.slot] = damaged
    outcome = fault_in(away.space, AT, READ)
    assert isinstance(outcome, Damaged)
    assert outcome.seen == damaged
    mapping.unmap_memory(away.space, AT, PAGES * away.size)
    assert away.board.physical.lost_entries
    assert away.swap.used == 1  # of whom nobody knows any more
    away.board.close()


# ---- shared memory


@every_format
def test_shared_memory_keeps_a_slot_instead_of_a_frame(kind: str) -> None:
    away = Away(kind)
    mmap(away.space, ELSEWHERE, 4, RW, MAP_SHARED | mapping.MAP_ANONYMOUS | MAP_FIXED)
    area = away.space.areas.find(ELSEWHERE)
    assert area is not None
    memory = area.backing
    assert isinstance(memory, SharedMemory)
    away.board.cpu.copy_to_user(ELSEWHERE, b"for both")
    child = away.fork()
    for space in (away.space, child):
        away.board.run_on(space)
        assert bytes(away.board.cpu.copy_from_user(ELSEWHERE, 8)) == b"for both"
    (frame,) = memory.frames_by_page().values()
    assert away.reclaim.take([frame]) == 1
    assert (memory.frames_by_page(), list(memory.slots_by_page())) == ({}, [0])
    assert memory.resident(0, 4) == bytes(4)
    assert away.space.table.find(ELSEWHERE) is None
    away.check([memory])
    away.board.run_on(child)
    away.board.cpu.copy_to_user(ELSEWHERE, b"once")
    away.board.run_on(away.space)
    assert bytes(away.board.cpu.copy_from_user(ELSEWHERE, 8)) == b"onceboth"
    assert away.swap.used == 0
    assert away.n[Event.FAULT_SWAP] == 1
    away.check([memory])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedMemory, "stays", True)
        assert away.reclaim.take(list(memory.frames_by_page().values())) == 0
    assert away.reclaim.take(list(memory.frames_by_page().values())) == 1
    mapping.advise_memory(away.space, ELSEWHERE, away.size, mapping.MADV_REMOVE)
    assert away.swap.used == 0
    away.board.close()


# ---- when, and in which order


def test_watermarks_are_linuxs() -> None:
    assert watermarks(1 << 18, 4096) == (1024, 1286, 1548)  # 1 GiB: 4 MiB, and 0.1 % of memory apart
    least = watermarks(128, 65536)
    assert 8 <= least.min < least.low < least.high < 32


@pytest.mark.parametrize("order", ["mglru", "clock"])
@every_format
def test_what_was_used_lately_stays(kind: str, order: str) -> None:
    away = Away(kind, order=order)
    frames = ageing.look(away.space, AT, AT + PAGES * away.size).frames.tolist()
    ageing.forget_accesses(away.space, AT, AT + PAGES * away.size)
    for number in range(0, PAGES, 2):
        away.read(number)
    if order == "clock":  # the first hand has passed them
        hand = min(frames) & -64
        away.reclaim.order.restore({"clocks": [{"hand": hand, "first": hand + 2048, "cold": []}] * 2})
    away.reclaim.order.begin()
    assert sorted(set(away.reclaim.order.candidates(files=False)) & set(frames)) == sorted(frames[1::2])
    away.board.close()


@every_format
def test_there_are_always_numbers_for_generations(kind: str) -> None:
    away = Away(kind)
    frames = ageing.look(away.space, AT, AT + PAGES * away.size).frames.tolist()
    order = away.reclaim.order
    assert isinstance(order, Generations)
    for walk in range(300):
        order.begin()
        away.read(1 if walk < 290 else 3)
        order._age()
    order.begin()
    found = [frame for _ in range(PAGES) for frame in order.candidates(files=False) if frame in frames]
    assert found.index(frames[0]) < found.index(frames[1])
    assert frames[3] not in found[: PAGES - 2]
    away.board.close()


@pytest.mark.parametrize("order", ["mglru", "clock"])
def test_what_is_cold_goes_first(order: str) -> None:
    away = Away(order=order)
    away.reclaim.order.begin()
    mapping.advise_memory(away.space, away.at(5), 2 * away.size, mapping.MADV_COLD)
    assert away.reclaim.make_room(1)
    assert away.swap.entries.holds(away.entry(5))
    assert away.swap.entries.holds(away.entry(6))
    away.board.close()


def test_a_fault_makes_room_below_the_low_watermark(away: Away) -> None:
    held = [
        away.board.buddy.alloc() for _ in range(away.board.buddy.free_frames - away.reclaim.marks.low + 1)
    ]
    assert away.reclaim.is_short
    mmap(away.space, ELSEWHERE, 1, RW, ANONYMOUS | MAP_FIXED)
    assert fault_in(away.space, ELSEWHERE, READ) is RESOLVED
    assert away.n[Event.RECLAIM_STALLS] == 1
    assert away.n[Event.RECLAIM_TAKEN] > 0
    assert not away.reclaim.is_short
    for frame in held:
        away.board.buddy.free(frame)


def test_out_of_memory_is_when_nothing_can_go(away: Away) -> None:
    away.swap.own.on = False
    held = [away.board.buddy.alloc() for _ in range(away.board.buddy.free_frames)]
    mmap(away.space, ELSEWHERE, 1, RW, ANONYMOUS | MAP_FIXED)
    assert fault_in(away.space, ELSEWHERE, READ | int(Access.WRITE)) == OutOfMemory(ELSEWHERE)
    away.swap.own.on = True
    assert fault_in(away.space, ELSEWHERE, READ | int(Access.WRITE)) is RESOLVED
    for frame in held:
        away.board.buddy.free(frame)


@pytest.mark.parametrize("early", [True, False])
def test_a_fork_makes_room_for_its_tables(away: Away, early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not early:  # not before it, but once it has met the end of memory
        monkeypatch.setattr(away.reclaim, "balance", lambda: None)
    held = [away.board.buddy.alloc() for _ in range(away.board.buddy.free_frames)]
    child = away.board.physical.with_room(away.space.fork)
    away.board.spaces.append(child)
    assert away.n[Event.RECLAIM_TAKEN] > 0
    for frame in held:
        away.board.buddy.free(frame)
    assert [away.read(number, child) for number in range(PAGES)] == list(map(away.right, range(PAGES)))


@every_format
def test_neighbours_come_as_pages_that_were_not_accessed(kind: str) -> None:
    away = Away(kind, ahead=4)
    away.send()
    assert away.read(5) == away.right(5)
    present = [n for n in range(PAGES) if not away.swap.entries.holds(away.entry(n))]
    assert present == [4, 5, 6, 7]
    fmt = away.board.format
    assert [bool(fmt.accessed(away.entry(n))) for n in present] == [False, True, False, False]
    assert (away.n[Event.FAULT_SWAP], away.n[Event.SWAP_AHEAD]) == (1, 3)
    assert [away.read(n) for n in present] == [away.right(n) for n in present]
    assert away.n[Event.FAULT_SWAP] == 1
    away.check()
    away.board.close()


def test_refaults_are_told_and_those_that_come_soon(away: Away) -> None:
    away.send()
    for number in range(4):
        away.read(number)
    assert (away.n[Event.REFAULT], away.n[Event.REFAULT_SOON]) == (4, 4)


# ---- off, and what is lost


def test_the_area_goes_off_when_all_is_back(away: Away) -> None:
    away.send()
    child = away.fork()
    held = [away.board.buddy.alloc() for _ in range(away.board.buddy.free_frames - 4)]
    assert not switch_off(away.board.physical, away.swap, away.swap.own)
    assert away.swap.on
    for frame in held:
        away.board.buddy.free(frame)
    assert switch_off(away.board.physical, away.swap, away.swap.own)
    assert (away.swap.used, away.swap.cached) == (0, 0)
    assert away.send() == 0
    assert away.n[Event.FAULT_SWAP] == away.n[Event.FAULT_SWAP_CACHE] == 0  # nobody has touched them
    for space in (away.space, child):
        assert [away.read(n, space) for n in range(PAGES)] == list(map(away.right, range(PAGES)))


def test_who_looks_may_stop_that(away: Away) -> None:
    away.send()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        switch_off(away.board.physical, away.swap, away.swap.own, stop)
    assert away.swap.on


def test_lost_bytes_are_a_bus_error_each_time(tmp_path: Path) -> None:
    away = Away(pool=0)
    for number in range(PAGES):  # what is not one word all over goes to the file
        away.write(number, os.urandom(64))
    kept = away.read(3)
    away.send()
    os.ftruncate(away.swap.store.file._fd, 4 * away.size)
    told: list[str] = []
    away.swap.store.tell = told.append
    assert away.read(3) == kept
    for _ in range(2):
        assert fault_in(away.space, away.at(9), READ) == BusError(away.at(9))
    assert len(told) == 1
    os.ftruncate(away.swap.store.file._fd, PAGES * away.size)  # zeros are not what was there
    assert fault_in(away.space, away.at(9), READ) == BusError(away.at(9))
    check_accounts(away.board, [])
    away.board.close()
    assert not away.swap.used


def test_who_only_looks_sees_what_is_away_and_changes_nothing(away: Away) -> None:
    away.send()
    before = list(away.n)
    assert PeekMemory(away.space).read(away.at(3), 16) == away.right(3)
    assert away.n == before
    assert away.swap.entries.holds(away.entry(3))


def test_same_filled_pages_take_no_room(away: Away) -> None:
    store = away.swap.store
    away.send()
    assert (store.same_filled, store.compressed) == (0, PAGES)
    discard(away.space, AT, AT + PAGES * away.size)
    away.board.cpu.copy_to_user(AT, b"abcdefgh" * (away.size // 8))
    away.send()
    assert (store.same_filled, store.compressed, store.pooled) == (1, 0, 0)
    assert away.read(0) == b"abcdefgh" * 2


def test_zstd_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        ZstdCompressor=lambda level: SimpleNamespace(compress=lambda data: b"z" + bytes(data)),
        ZstdDecompressor=lambda: SimpleNamespace(decompress=lambda data: data[1:]),
    )
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "zstandard", fake)
    codec = best_codec()
    assert (codec.name, codec.expand(codec.compress(b"page"))) == ("zstd", b"page")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    codec = best_codec()
    assert (codec.name, codec.expand(codec.compress(b"page"))) == ("zlib", b"page")


@every_format
def test_a_full_area_does_not_give_a_slot_to_two_pages_that_go_at_once(kind: str) -> None:
    """One page's slot still has its bytes, and nobody names it: the other page must not get that."""
    away = Away(kind)
    away.send(0, 1)
    assert away.read(0) == away.right(0)
    codec, taken = swap_entries(away.board.format), list[int]()
    clean, other = ageing.look(away.space, AT, away.at(2)).frames.tolist()
    slot = away.swap.slot_of(clean)
    assert slot is not None
    with pytest.raises(SwapFull):
        while True:
            taken.append(away.swap.take({slot}))
    assert away.reclaim.take([clean, other]) == 1
    assert codec.slot(away.entry(0)) == slot
    assert [away.read(0), away.read(1)] == [away.right(0), away.right(1)]
    for each in taken:
        away.swap.give_back(each)
    away.check()
    away.board.close()
