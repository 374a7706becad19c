"""Which pages of files are in memory, where they count: what they take, what is kept of them, who stays."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from aether_emu.mm import mapping
from aether_emu.mm.compaction import Compaction
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.mapping import MAP_FIXED, MAP_PRIVATE, MAP_SHARED, Request
from aether_emu.mm.page_cache import MOST_UNUSED, PageCache
from aether_emu.mm.rmap import unmap
from tests.mm.board import FORMATS, Board, GrantedFile, fault_in
from tests.mm.calls import RW, mapped
from tests.mm.counted import AT, READ, USER_READ, USER_WRITE, Counted

# ---- what pages take


def test_a_page_takes_a_frame_and_gives_it_back_when_it_is_dropped(counted: Counted) -> None:
    counted.map()
    free, around = counted.board.buddy.free_frames + counted.space.table.tables, counted.cache.around
    assert counted.read(5) == counted.right(5)
    assert counted.resident() == list(range(5 - 5 % around, 5 - 5 % around + around))
    assert counted.cache.pages == around == counted.n[Event.FILE_READ]
    counted.check()
    assert counted.send(5, 1) == 1
    assert counted.cache.pages == around - 1
    assert not mapped(counted.space, AT + 5 * counted.page, 1)[0]
    unmap(counted.backing, 0, counted.pages)
    assert counted.physical.files is not None
    assert counted.physical.files.drop_unused_of(counted.backing, 0, counted.pages) == around - 1
    assert counted.board.buddy.free_frames == free - counted.space.table.tables
    assert counted.read(5) == counted.right(5)


def test_what_is_not_in_memory_is_a_major_fault_and_its_neighbours_are_read_too(counted: Counted) -> None:
    counted.map()
    counted.read(0)
    assert (counted.n[Event.FAULT_FILE_READ], counted.n[Event.FAULT_FILE]) == (1, 0)
    counted.read(1)
    read_alone = counted.cache.around == 1
    assert (counted.n[Event.FAULT_FILE_READ], counted.n[Event.FAULT_FILE]) == (1 + read_alone, 1 - read_alone)
    counted.read(counted.cache.around)
    assert counted.n[Event.FAULT_FILE_READ] == 2 + read_alone


def test_a_fault_maps_no_neighbour_that_is_not_in_memory(one: Counted) -> None:
    one.map()
    one.read(0)
    one.read(1)
    assert mapped(one.space, AT, 16) == b"\1" * 16
    one.send(0, 16)
    held = one.fill(8)
    one.reclaim.balance = lambda: None  # type: ignore[method-assign]  # memory stays short
    one.read(4)
    one.read(5)
    assert mapped(one.space, AT, 16) == bytes(n in (4, 5) for n in range(16))
    assert one.resident() == [4, 5, *range(16, 32)]
    one.board.buddy.free_bulk(held)


def test_where_files_do_not_count_they_take_nothing(path: Path) -> None:
    board = Board(FORMATS["x86_64"])
    path.write_bytes(bytes(8 * board.format.page_size))
    space = board.space()
    board.run_on(space)
    file = GrantedFile(board, path)
    mapping.map_memory(space, Request(AT, 8 * space.page_size, RW, MAP_SHARED | MAP_FIXED, file, 0))
    assert fault_in(space, AT, USER_READ) is RESOLVED
    tables, free = space.table.tables, board.buddy.free_frames
    for page in range(8):
        assert fault_in(space, AT + page * space.page_size, USER_WRITE) is RESOLVED
    assert board.buddy.free_frames == free - (space.table.tables - tables)
    assert board.physical.counters.n[Event.FILE_READ] == board.physical.counters.n[Event.FILE_DIRTIED] == 0
    board.close()


def test_a_private_copy_brings_the_page_that_it_copies(one: Counted) -> None:
    one.map(flags=MAP_PRIVATE)
    one.write(3, b"mine")
    assert one.n[Event.FAULT_FILE_READ] == 1
    assert one.n[Event.FAULT_COPY] == 0
    assert 3 in one.resident()
    one.write(4, b"mine")
    assert (one.n[Event.FAULT_FILE_READ], one.n[Event.FAULT_COPY]) == (1, 1)


def test_private_copies_stay(counted: Counted) -> None:
    counted.map(flags=MAP_PRIVATE)
    counted.write(3, b"mine")
    for number in range(8):
        counted.read(number)
    assert counted.send(0, 8) == 7
    assert counted.read(3) == b"mine"
    assert counted.in_file(3) == counted.right(3)
    assert [counted.read(n) for n in (0, 4)] == [counted.right(0), counted.right(4)]


# ---- what comes back


def test_a_page_that_comes_back_soon_is_a_sign_of_thrashing(one: Counted) -> None:
    one.map()
    one.read(0)
    one.send(0, 1)
    one.read(0)
    assert (one.n[Event.FILE_REFAULT], one.n[Event.FILE_REFAULT_SOON]) == (1, 1)
    one.send(0, 1)
    one.cache._gone += one.board.buddy.total  # as many others went as memory holds
    one.read(0)
    assert (one.n[Event.FILE_REFAULT], one.n[Event.FILE_REFAULT_SOON]) == (2, 1)


# ---- files that nobody shows


def test_pages_stay_in_memory_when_the_last_area_is_gone(counted: Counted) -> None:
    counted.map()
    counted.write(3, b"stay")
    pages, backing = counted.cache.pages, counted.backing
    counted.space.unmap(AT, AT + counted.pages * counted.page)
    assert counted.cache.pages == pages
    counted.check()
    counted.map()
    assert counted.backing is backing
    read = counted.n[Event.FAULT_FILE_READ]
    assert counted.read(3) == b"stay"
    assert counted.n[Event.FAULT_FILE_READ] == read
    assert not counted.cache.unused


def test_pages_that_nobody_shows_are_reclaimed(one: Counted) -> None:
    one.map()
    one.write(3, b"last")
    one.space.unmap(AT, AT + one.pages * one.page)
    held = one.fill(8)
    while one.cache.pages:
        assert one.reclaim.make_room(1)
    assert one.in_file(3) == b"last"
    one.board.buddy.free_bulk(held)


def test_a_file_without_a_name_is_not_kept(one: Counted) -> None:
    one.map()
    one.write(0, b"none")
    one.path.unlink()
    one.space.unmap(AT, AT + one.pages * one.page)
    assert (one.cache.pages, len(one.cache.unused), one.cache.dirty) == (0, 0, 0)


def test_a_file_that_loses_its_name_is_kept_no_longer(one: Counted) -> None:
    one.map()
    one.read(0)
    one.space.unmap(AT, AT + one.pages * one.page)
    one.cache.end_nameless()
    assert one.cache.pages
    one.path.unlink()
    one.cache.end_nameless()
    assert not one.cache.pages


def test_only_so_many_files_are_kept(tmp_path: Path) -> None:
    counted = Counted(tmp_path / "file", pages=1)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(MOST_UNUSED + 5):
        other = tmp_path / f"other{number}"
        other.write_bytes(b"x")
        counted.map(READ, path=other)
        counted.read(0)
    assert len(counted.cache.unused) == MOST_UNUSED
    assert len(os.listdir("/proc/self/fd")) == before + MOST_UNUSED + 1
    counted.board.close()
    assert len(os.listdir("/proc/self/fd")) == before


# ---- state, and frames that move


def test_what_is_in_memory_and_what_went_is_captured(one: Counted) -> None:
    one.map()
    one.write(0, b"kept")
    one.read(40)
    one.send(40, 1)
    state, frames = one.cache.capture(), one.board.frames.capture()
    pages, dirty, resident = one.cache.pages, one.cache.dirty, one.resident()
    other = PageCache(one.board.frames, one.board.buddy, one.physical.aperture, [0] * len(Event), list.clear)
    one.board.frames.restore(frames)
    other.restore(state)
    assert (other.pages, other.dirty) == (pages, dirty)
    assert other.all_pages().tolist() == one.cache.all_pages().tolist()
    assert other.capture()["gone"] == 1
    assert other.capture()["dropped"][0].tolist() == state["dropped"][0].tolist() != []
    assert one.resident() == resident


def test_what_stands_for_a_page_can_move(one: Counted) -> None:
    one.map(READ)
    for number in range(one.pages):
        one.read(number)
    buddy, cache, frames = one.board.buddy, one.cache, one.board.frames
    kinds = frames.kind_array
    row = next(first for first in range(0, buddy.total, 8) if (kinds[first : first + 8] == Kind.CACHE).all())
    inside = [page for page in cache.all_pages() if row <= cache.stand_ins(np.array([page]))[0] < row + 8]
    assert one.reclaim.take([int(page) for page in inside[1::2]]) == 4
    pages = cache.all_pages()
    held = one.fill(0)
    elsewhere = [frame for frame in held if frame >= row + 64][::2]
    buddy.free_bulk([frame for frame in held if row <= frame < row + 8] + elsewhere)
    made = Compaction(one.physical).make(3)
    assert made == row
    assert one.n[Event.MIGRATED_PAGES] == 4
    assert cache.all_pages().tolist() == pages.tolist()
    assert not ((cache.stand_ins(pages) >= row) & (cache.stand_ins(pages) < row + 8)).any()
    buddy.free_bulk(np.arange(row, row + 8))
    buddy.free_bulk(sorted(set(held) - set(range(row, row + 8)) - set(elsewhere)))
    assert one.read(3) == one.right(3)
