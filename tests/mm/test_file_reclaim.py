"""Pages of files that count as memory: which go and how, and that no store is ever lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from aether_emu.errors import Refused
from aether_emu.machine.memory import host
from aether_emu.mm import ageing, locking, mapping, markers
from aether_emu.mm.allocation import LOCKED
from aether_emu.mm.balance import Balance
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Flags
from aether_emu.mm.mapping import MAP_FIXED, MAP_PRIVATE
from aether_emu.mm.populate import populate
from aether_emu.mm.protection import Protection
from aether_emu.mm.rmap import unmap
from aether_emu.ports import NEVER_FAILS
from tests.mm.board import ENGINES, FORMATS, MIB, discard
from tests.mm.calls import ANONYMOUS, RW, mapped, mmap
from tests.mm.counted import AT, EXECUTE, OWN, READ, SECOND, Counted, every_order
from tests.mm.tables.test_page import FailsAt

# ---- dirty pages


def test_a_dirty_page_is_written_before_it_is_dropped(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, real = list[tuple[int, int]](), host.write_back

    def write_back(fd: int, offset: int, length: int) -> int:
        assert not any(mapped(counted.space, AT + 3 * counted.page, 2)), "it is unmapped first"
        assert counted.cache.has(frames[0]), "it is dropped afterwards"
        written.append((offset // counted.page, length // counted.page))
        return real(fd, offset, length)

    monkeypatch.setattr(host, "write_back", write_back)
    counted.map()
    for number in (3, 4, 9):
        counted.write(number, b"new!")
    frames = [counted.frame(number) for number in (3, 4, 9)]
    counted.read(5)
    assert counted.cache.dirty == 3
    assert counted.send(3, 3) == 3
    assert written == [(3, 2)]
    assert (counted.cache.dirty, counted.n[Event.FILE_WRITTEN], counted.n[Event.FILE_DIRTIED]) == (1, 2, 3)
    assert [counted.read(n) for n in (3, 4, 5)] == [b"new!", b"new!", counted.right(5)]
    assert counted.in_file(4) == b"new!"
    assert not counted.cache.is_dirty(counted.frame(3))
    counted.check()


def test_what_cannot_be_written_stays_and_is_told_once(one: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    one.map()
    one.write(3, b"kept")
    one.read(5)
    monkeypatch.setattr(host, "write_back", lambda *_: errno.ENOSPC)
    assert one.send(3, 3) == 2, "the clean ones go"
    assert one.cache.dirty == 1
    assert 3 in one.resident()
    assert one.read(3) == b"kept"
    assert one.n[Event.FILE_WRITTEN] == 0
    one.check()
    monkeypatch.undo()
    with pytest.raises(Refused) as refused:
        mapping.sync_memory(one.space, AT, one.page, mapping.MS_SYNC)
    assert refused.value.errno == errno.ENOSPC
    mapping.sync_memory(one.space, AT, one.pages * one.page, mapping.MS_SYNC)
    assert one.cache.dirty == 0
    assert one.in_file(3) == b"kept"


def test_failures_are_told_to_each_once_and_to_those_who_come_before_anybody_knew(one: Counted) -> None:
    one.map()
    failed = one.backing.failed
    early = failed.sample()
    failed.note(errno.EIO)
    late = failed.sample()
    assert failed.tell(early) == errno.EIO
    assert failed.tell(late) == errno.EIO
    assert failed.tell(failed.count) == 0
    assert failed.tell(failed.sample()) == 0


def test_after_msync_the_next_store_makes_the_page_dirty_again(counted: Counted) -> None:
    counted.map()
    child = counted.board.space()
    counted.map(at=SECOND, space=child)
    counted.write(2, b"one!")
    counted.write(2, b"two!", at=SECOND, space=child)
    mapping.sync_memory(counted.space, AT, counted.pages * counted.page, mapping.MS_SYNC)
    assert counted.cache.dirty == 0
    assert counted.n[Event.WRITTEN_BACK] == counted.n[Event.FILE_WRITTEN] == 1
    for space, at in ((counted.space, AT), (child, SECOND)):
        before = counted.n[Event.FAULT_UPGRADE]
        counted.write(2, b"more", at=at, space=space)
        assert counted.cache.dirty == 1
        assert counted.n[Event.FAULT_UPGRADE] == before + 1
        mapping.sync_memory(space, at, counted.page * 4, mapping.MS_SYNC)
        assert counted.cache.dirty == 0
    assert counted.in_file(2) == b"more"


def test_a_page_is_dirty_still_when_who_stored_to_it_has_unmapped_it(counted: Counted) -> None:
    counted.map()
    counted.write(2, b"left")
    discard(counted.space, AT, AT + 4 * counted.page)
    assert counted.cache.dirty == 1
    assert counted.physical.files is not None
    assert counted.physical.files.drop_unused([counted.frame(2)]) == 0
    assert counted.physical.files.write_back(counted.backing, 0, counted.pages) == 1
    assert counted.cache.dirty == 0


# ---- who shows a page


def test_a_page_goes_from_everybody_who_shows_it_with_one_flush_for_each(path: Path) -> None:
    counted = Counted(path, cpus=2)
    counted.map()
    other = counted.board.space()
    counted.map(READ, at=SECOND, space=other)
    for number in range(12):
        counted.read(number)
        counted.read(number, at=SECOND, space=other)
    counted.board.run_on(counted.space)
    before = counted.board.events()
    assert counted.send(0, 12) == 12
    flushed = counted.board.events() - before
    assert flushed[Event.FLUSH_PAGE] + flushed[Event.FLUSH_ALL] <= 2
    assert not any(mapped(counted.space, AT, 12))
    assert not any(mapped(other, SECOND, 12))
    counted.check()
    assert counted.read(7) == counted.right(7) == counted.read(7, at=SECOND, space=other)
    counted.check()
    counted.board.close()


def test_no_cpu_can_store_to_a_page_that_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(path, cpus=2)
    counted.map()
    counted.board.percpu[1].enter(counted.space)
    counted.write(3, b"old!")
    real, seen = host.write_back, list[int]()

    def write_back(fd: int, offset: int, length: int) -> int:
        seen.append(counted.physical.tlb.pending)
        return real(fd, offset, length)

    monkeypatch.setattr(host, "write_back", write_back)
    assert counted.send(3, 1) == 1
    counted.write(3, b"new!")
    mapping.sync_memory(counted.space, AT, counted.pages * counted.page, mapping.MS_SYNC)
    assert seen == [0, 0]
    counted.board.close()


def test_the_host_need_not_keep_at_hand_what_is_dropped(one: Counted) -> None:
    one.map()
    one.write(3, b"here")
    at = one.physical.aperture.host_address + (one.frame(3) - one.cache.base) * one.page
    assert host.held_pages(at, one.page).all()
    assert one.send(3, 1) == 1
    assert not host.held_pages(at, one.page).any()
    assert one.read(3) == b"here"


def test_what_was_asked_about_stores_stays_true_of_a_page_that_went(counted: Counted) -> None:
    counted.map()
    counted.write(3, b"here")
    gather = counted.space.gather()
    markers.watch_writes(counted.space.table, gather, AT, AT + 4 * counted.page, on=True)
    gather.finish()
    assert counted.send(3, 1) == 1
    found = counted.space.table.find(AT + 3 * counted.page)
    assert found is not None
    assert found.entry == markers.watched(counted.board.format)
    assert counted.read(3) == b"here"


def test_a_failed_reading_ahead_fails_nobody(one: Counted) -> None:
    one.map()
    one.read(32)  # the tables
    one.board.buddy.failures = FailsAt(1)
    assert one.read(0) == one.right(0)
    assert one.resident() == [0, *range(32, 64)]
    one.board.buddy.failures = NEVER_FAILS


def test_a_locked_page_stays_until_it_is_unlocked(one: Counted) -> None:
    one.map()
    locking.lock_memory(one.space, AT, 4 * one.page, LOCKED)
    populate(one.space, AT, AT + 8 * one.page, write=False)
    frame = one.frame(1)
    (stand_in,) = one.cache.stand_ins(np.array([frame])).tolist()
    assert one.send(0, 8) == 4
    assert one.board.frames.flags[stand_in] & Flags.UNEVICTABLE
    one.reclaim.order.begin()
    assert stand_in not in one.reclaim.order.candidates(files=True)
    locking.unlock_memory(one.space, AT, 4 * one.page)
    assert not one.board.frames.flags[stand_in] & Flags.UNEVICTABLE
    assert one.send(0, 8) == 4


def test_a_page_that_nobody_may_touch_goes_too(counted: Counted) -> None:
    counted.map()
    counted.write(2, b"away")
    mapping.protect_memory(counted.space, AT, 8 * counted.page, Protection.NONE)
    counted.check()
    frame = counted.frame(2)
    assert counted.reclaim.take([frame]) == 1
    counted.check()
    mapping.protect_memory(counted.space, AT, 8 * counted.page, READ)
    assert counted.read(2) == b"away"


def test_a_page_in_use_by_something_else_stays(one: Counted) -> None:
    one.map()
    one.read(0)
    frame = one.frame(0)
    one.board.frames.get(frame)
    assert one.reclaim.take([frame]) == 0
    one.board.frames.put(frame)
    assert one.reclaim.take([frame]) == 1


# ---- which go


@every_order
@pytest.mark.parametrize("kind", FORMATS)
def test_what_was_used_lately_stays(kind: str, order: str, path: Path) -> None:
    counted = Counted(path, kind, order=order, pages=24)
    counted.map(READ)
    for number in range(counted.pages):
        counted.read(number)
    ageing.forget_accesses(counted.space, AT, AT + counted.pages * counted.page)
    for number in range(0, counted.pages, 2):
        counted.read(number)
    stand_in = {
        n: counted.cache.stand_ins(np.array([counted.frame(n)])).tolist()[0] for n in range(counted.pages)
    }
    if order == "clock":  # the first hand has passed them
        hand = min(stand_in.values()) & -64
        counted.reclaim.order.restore({"clocks": [{"hand": hand, "first": hand + 2048, "cold": []}] * 2})
    counted.reclaim.order.begin()
    chosen = set(counted.reclaim.order.candidates(files=True))
    assert {n for n, frame in stand_in.items() if frame in chosen} == set(range(1, counted.pages, 2))
    counted.board.close()


@every_order
def test_code_gets_a_second_chance(order: str, path: Path) -> None:
    counted = Counted(path, order=order, pages=96)
    counted.map(READ | EXECUTE, MAP_PRIVATE)
    counted.map(READ, MAP_PRIVATE, at=SECOND)
    for number in range(counted.pages):
        counted.read(number, at=AT if number < 16 else SECOND)
    counted.space.unmap(SECOND, SECOND + 16 * counted.page)
    ageing.forget_accesses(counted.space, 0, counted.space.limits.user_end)
    held = counted.fill(8)
    assert counted.reclaim.make_room(1)
    gone = set(range(counted.pages)) - set(counted.resident())
    assert gone
    assert gone <= set(range(16, counted.pages))
    assert counted.n[Event.FILE_SPARED] > 0
    if order == "mglru":  # it is of the newest generation now
        counted.reclaim.order.begin()
        tried = [counted.backing.file.frame(n) for n in range(16)]
        frames = {counted.board.frames.number(address) for address in tried}
        chosen = counted.cache.pages_of(counted.reclaim.order.candidates(files=True))
        assert chosen
        assert not frames & set(chosen)
    while counted.cache.pages > 8:
        assert counted.reclaim.make_room(1)
    assert not set(range(16)) <= set(counted.resident()), "once"
    counted.board.buddy.free_bulk(held)
    counted.board.close()


@every_order
def test_where_all_is_code_some_of_it_goes(order: str, path: Path) -> None:
    counted = Counted(path, order=order, pages=32)
    counted.map(READ | EXECUTE, MAP_PRIVATE)
    for number in range(32):
        counted.read(number)
    held = counted.fill(8)
    assert counted.reclaim.make_room(1)
    counted.board.buddy.free_bulk(held)
    counted.board.close()


@every_order
def test_code_that_was_used_again_is_spared_again(order: str, path: Path) -> None:
    counted = Counted(path, order=order)
    counted.map(READ | EXECUTE, MAP_PRIVATE)
    counted.read(0)
    frame = counted.frame(0)
    for used in (True, False):
        assert counted.cache.spare(frame)
        assert not counted.cache.spare(frame)
        if used:
            ageing.forget_accesses(counted.space, AT, AT + counted.page)
            counted.read(0)
        counted.reclaim.order.begin()
        while counted.reclaim.order.candidates(files=True):
            pass
        assert counted.cache.spare(frame) == used
        counted.cache.touched(np.array([frame]))
    counted.board.close()


@every_order
@pytest.mark.parametrize(("swappiness", "goes"), [(0, "files"), (200, "own")])
def test_swappiness_says_which_kind_goes(swappiness: int, goes: str, order: str, path: Path) -> None:
    counted = Counted(path, order=order, swap=256)
    counted.map(READ)
    mmap(counted.space, OWN, 64, RW, ANONYMOUS | MAP_FIXED)
    for number in range(64):
        counted.read(number)
        counted.write(number, b"mine", at=OWN)
    counted.physical.swappiness = swappiness
    held = counted.fill(8)
    assert counted.reclaim.make_room(20)
    assert (counted.n[Event.FILE_TAKEN] > 0, counted.n[Event.SWAP_OUT] > 0) == (
        goes == "files",
        goes == "own",
    )
    counted.board.buddy.free_bulk(held)
    counted.board.close()


def test_where_few_pages_are_files_others_go(path: Path) -> None:
    counted = Counted(path, swap=256, pages=4)
    counted.map(READ)
    mmap(counted.space, OWN, 64, RW, ANONYMOUS | MAP_FIXED)
    for number in range(64):
        counted.read(number % 4)
        counted.write(number, b"mine", at=OWN)
    counted.physical.swappiness = 0
    held = counted.fill(8)
    assert counted.reclaim.make_room(20)
    assert counted.n[Event.FILE_TAKEN] == 0
    assert counted.n[Event.SWAP_OUT] > 0
    counted.board.buddy.free_bulk(held)
    counted.board.close()


def test_the_balance_goes_by_swappiness_and_by_what_each_kind_has_cost() -> None:
    n = [0] * len(Event)
    balance = Balance(n)
    assert [balance.files_next(100) for _ in range(6)].count(True) == 3
    swap, files = balance.shares(100)
    assert swap == files
    n[Event.FILE_REFAULT_SOON] += 10
    balance.look(1 << 20)
    swap, files = balance.shares(100)
    assert swap > files
    n[Event.SWAP_OUT] += 100
    balance.look(1 << 20)
    swap, files = balance.shares(100)
    assert swap < files
    assert sum(balance.capture()["costs"]) == 110 * 32
    balance.look(400)
    assert sum(balance.capture()["costs"]) <= 100, "what lies back counts less"
    other = Balance([0] * len(Event))
    other.restore(balance.capture())
    assert other.capture() == balance.capture()


@every_order
@pytest.mark.parametrize("kind", ENGINES)
def test_a_file_larger_than_memory_is_gone_through_with_every_byte_right(
    kind: str, order: str, path: Path
) -> None:
    counted = Counted(path, kind, order=order, pages=600, aperture=64 * MIB)
    held = counted.fill(300)
    counted.map()
    for number in range(counted.pages):
        counted.write(number, b"%04d" % number)
    for number in range(counted.pages):
        assert counted.read(number) == b"%04d" % number
    assert counted.n[Event.FAULT_OUT_OF_MEMORY] == 0
    assert counted.n[Event.FILE_REFAULT] > 0
    counted.board.buddy.free_bulk(held)
    counted.check()
    counted.space.destroy()
    counted.board.spaces.clear()
    assert [counted.in_file(n) for n in range(counted.pages)] == [b"%04d" % n for n in range(counted.pages)]
    counted.board.close()


# ---- what programs ask


def test_pageout_drops_and_willneed_reads(counted: Counted) -> None:
    counted.map()
    counted.write(1, b"out!")
    for number in range(8):
        counted.read(number)
    mapping.advise_memory(counted.space, AT, 8 * counted.page, mapping.MADV_PAGEOUT)
    assert not set(range(8)) & set(counted.resident())
    assert not any(mapped(counted.space, AT, 8))
    assert counted.in_file(1) == b"out!"
    read = counted.n[Event.FAULT_FILE_READ]
    mapping.advise_memory(counted.space, AT, 8 * counted.page, mapping.MADV_WILLNEED)
    assert set(range(8)) <= set(counted.resident())
    assert not any(mapped(counted.space, AT, 8))
    assert counted.read(1) == b"out!"
    assert counted.n[Event.FAULT_FILE_READ] == read


def test_dontneed_leaves_the_pages_in_memory(counted: Counted) -> None:
    counted.map()
    counted.write(1, b"kept")
    mapping.advise_memory(counted.space, AT, 8 * counted.page, mapping.MADV_DONTNEED)
    assert not any(mapped(counted.space, AT, 8))
    assert 1 in counted.resident()
    assert counted.read(1) == b"kept"


@every_order
def test_what_is_cold_goes_first(order: str, path: Path) -> None:
    counted = Counted(path, order=order)
    counted.map()
    for number in range(counted.pages):
        counted.read(number)
    mapping.advise_memory(counted.space, AT + 5 * counted.page, 2 * counted.page, mapping.MADV_COLD)
    counted.reclaim.order.begin()
    first = counted.reclaim.order.candidates(files=True)
    assert sorted(counted.cache.pages_of(first)) == [counted.frame(5), counted.frame(6)]
    counted.board.close()


def test_residency_is_what_is_in_memory(counted: Counted) -> None:
    counted.map()
    around = counted.cache.around
    assert not any(mapping.residency(counted.space, AT, counted.pages * counted.page))
    counted.read(around)
    assert list(mapping.residency(counted.space, AT, counted.pages * counted.page)) == [
        int(around <= page < 2 * around) for page in range(counted.pages)
    ]


# ---- what takes pages away


def test_a_hole_and_the_end_of_the_file_take_pages_out_of_memory(counted: Counted) -> None:
    counted.map()
    for number in range(counted.pages):
        counted.write(number, b"full")
    mapping.advise_memory(counted.space, AT + 4 * counted.page, 4 * counted.page, mapping.MADV_REMOVE)
    assert not set(range(4, 8)) & set(counted.resident())
    assert counted.cache.dirty == counted.pages - 4
    assert counted.read(4) == bytes(4)
    counted.check()
    unmap(counted.backing, 32, counted.pages, copies=True)
    counted.backing.leave_memory(32, 1 << 40)
    os.truncate(counted.path, 32 * counted.page)
    assert max(counted.resident()) == 31
    counted.check()


def test_a_slot_that_shows_another_file_gives_its_frames_back(tmp_path: Path) -> None:
    counted = Counted(tmp_path / "first", pages=4)
    counted.map()
    counted.write(0, b"gone")
    one = counted.backing
    free = counted.board.buddy.free_frames
    for number in range(8 * MIB // (2 * MIB)):
        other = tmp_path / f"other{number}"
        other.write_bytes(bytes(4 * counted.page))
        counted.map(READ, at=SECOND + number * (4 << 20), path=other)
        counted.read(0, at=SECOND + number * (4 << 20))
    assert not any(one.resident(0, 4))
    assert free - counted.board.buddy.free_frames <= 4 * 4 + 8, "four files of four pages, and tables"
    counted.check()
    assert counted.read(0) == b"gone"
    assert counted.n[Event.FILE_REFAULT] == 0
    counted.board.close()
