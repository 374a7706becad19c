"""Which edits flush what, and that nothing is freed before: on a CPU that forgets nothing, and on the engine.

The reference CPU (every format) keeps each translation until it is told to drop it, and its board's allocator
refuses a frame that a CPU can still reach. The engine proves the same with loads and stores.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from aether_emu.arch.paging import Access
from aether_emu.machine.cpu import UserFault
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.ports import NO_TRACE
from tests.mm.board import ENGINES, FORMATS, Board, discard, fault_in

READ, WRITE = Protection.READ, Protection.WRITE
NONE, RW, RX = Protection.NONE, READ | WRITE, READ | Protection.EXECUTE


class Place:
    """An address space with one long area, on a board whose CPU runs in it."""

    def __init__(self, board: Board, protection: Protection = RW) -> None:
        self.board, self.page = board, board.format.page_size
        self.space: AddressSpace = board.space()
        board.run_on(self.space)
        self.start = 64 * board.format.levels[0].entries * self.page
        self.space.insert(self.space.new_area(self.start, self.start + 400 * self.page, protection))

    def at(self, page: int) -> int:
        return self.start + page * self.page

    def write(self, *pages: int, byte: bytes = b"w") -> None:
        for page in pages:
            self.board.cpu.copy_to_user(self.at(page), byte)

    def read(self, page: int) -> bytes:
        return bytes(self.board.cpu.copy_from_user(self.at(page), 1))

    def protect(self, first: int, last: int, protection: Protection) -> None:
        area = self.space.areas.find(self.at(first))
        assert area is not None
        self.space.protect(area, self.at(first), self.at(last), protection)

    def flushed(self) -> list[tuple[str, int]]:
        """What the CPU was told to drop since last asked: ("page", number) or ("all", 0)."""
        told = [(k, (va - self.start) // self.page if k == "page" else 0) for k, va in self.board.cpu.flushes]
        self.board.cpu.flushes.clear()
        return told


@pytest.fixture(params=FORMATS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    board = Board(FORMATS[request.param])
    yield Place(board)
    board.close()


# ---- edits that add need no flush


def test_demand_zero_needs_no_flush(place: Place) -> None:
    place.write(*range(20))
    assert place.flushed() == []


def test_the_first_store_after_a_load_replaces_the_zero_page_and_flushes_that_page_once(place: Place) -> None:
    assert place.read(3) == b"\0"
    place.write(3)
    assert place.flushed() == [("page", 3)]
    assert place.read(3) == b"w"


def test_permission_to_write_is_added_without_a_flush(place: Place) -> None:
    place.write(0, 1)
    place.protect(0, 2, READ)
    assert place.flushed() == [("page", 0), ("page", 1)]
    assert place.read(0) == b"w"
    place.protect(0, 2, RW)
    place.write(0, byte=b"x")
    assert place.flushed() == []
    assert place.read(0) == b"x"


def test_permission_to_execute_is_added_without_a_flush(place: Place) -> None:
    place.read(0)
    place.protect(0, 1, READ)
    place.flushed()
    place.protect(0, 1, RX)
    assert place.flushed() == []
    place.board.cpu.fetch(place.at(0))
    place.protect(0, 1, READ)
    assert place.flushed() == [("page", 0)]


def test_what_was_forbidden_altogether_is_permitted_without_a_flush(place: Place) -> None:
    place.write(0)
    place.protect(0, 1, NONE)
    assert place.flushed() == [("page", 0)]
    place.protect(0, 1, RW)
    assert place.flushed() == []
    assert place.read(0) == b"w"


# ---- edits that take away


def test_pages_that_only_ever_were_readable_are_made_read_only_without_a_flush(place: Place) -> None:
    place.read(0)
    place.write(1)
    place.protect(0, 2, READ)
    assert place.flushed() == [("page", 1)]


def test_taking_writing_away_while_adding_execution_flushes_what_was_writable(place: Place) -> None:
    place.write(0)
    place.protect(0, 1, RW | Protection.EXECUTE)
    assert ("page", 0) in place.flushed()


@pytest.mark.parametrize("count", [1, 7, 8])
def test_up_to_the_ceiling_pages_are_flushed_one_by_one(place: Place, count: int) -> None:
    place.write(*range(count + 1))
    place.space.unmap(place.at(0), place.at(count))
    assert place.flushed() == [("page", n) for n in range(count)]


def test_one_page_more_than_the_ceiling_is_one_full_flush(place: Place) -> None:
    place.write(*range(10))
    place.space.unmap(place.at(0), place.at(9))
    assert place.flushed() == [("all", 0)]


def test_scattered_pages_are_counted_by_their_number_not_by_their_distance(place: Place) -> None:
    place.write(0, 100, 200, 300, 399)
    place.space.unmap(place.at(0), place.at(399))
    assert place.flushed() == [("page", 0), ("page", 100), ("page", 200), ("page", 300)]


def test_what_was_never_touched_or_cannot_be_cached_is_not_flushed(place: Place) -> None:
    place.write(0, 1, 399)
    place.protect(0, 2, NONE)
    place.flushed()
    place.space.unmap(place.at(0), place.at(50))
    assert place.flushed() == []


def test_detached_tables_are_a_full_flush(place: Place) -> None:
    place.write(5)
    place.space.unmap(place.at(0), place.at(400))
    assert place.flushed() == [("all", 0)]


def test_discarding_flushes_and_the_next_touch_finds_zero(place: Place) -> None:
    place.write(4)
    discard(place.space, place.at(0), place.at(8))
    assert place.flushed() == [("page", 4)]
    assert place.read(4) == b"\0"


def test_moving_entries_flushes_the_place_they_left(place: Place) -> None:
    place.write(0, 2)
    target = place.at(1000)
    place.space.insert(place.space.new_area(target, target + 4 * place.page, RW))
    place.space.move_entries(place.at(0), place.at(4), target)
    assert place.flushed() == [("page", 0), ("page", 2)]
    assert place.read(1002) == b"w"
    assert place.read(2) == b"\0"
    frame = place.board.frames.number(place.space.table.walk(target).address)  # type: ignore[union-attr]  # mapped
    assert place.board.frames.index[frame] == place.at(0) // place.page  # the index it was made with


def test_a_copy_on_write_flushes_its_page_and_obeys_break_before_make(place: Place) -> None:
    board = place.board
    place.write(7)
    found = place.space.table.find(place.at(7))
    assert found is not None
    shared = board.frames.number(found.entry & board.format.address_mask)
    board.frames.get(shared)  # somebody else shows this frame too
    board.frames.maps[shared] += 1
    board.ram.words[found.slot] = board.format.write_protect(found.entry)
    board.cpu.flush_all()
    assert place.read(7) == b"w"
    place.flushed()
    place.write(7, byte=b"x")
    assert place.flushed() == [("page", 7)]
    assert place.read(7) == b"x"
    start = (shared << board.frames.page_shift) % board.ram.size
    assert bytes(board.ram.bytes[start : start + 1]) == b"w"
    board.frames.maps[shared] -= 1
    board.frames.put(shared)
    board.physical.give_back([shared])


def test_frames_are_freed_after_the_flush_however_many(place: Place) -> None:
    """The board's allocator asserts it; so many that they are freed in bulk, and so few that they are not."""
    for pages in (3, 200):
        place.write(*range(pages))
        before = place.board.buddy.free_frames
        place.space.unmap(place.at(0), place.at(pages))
        assert place.board.buddy.free_frames >= before + pages
        place.space.insert(place.space.new_area(place.at(0), place.at(pages), RW))


def test_an_allocator_that_is_asked_too_early_says_so(place: Place) -> None:
    """The check itself: a page that the CPU still caches is refused."""
    place.write(0)
    found = place.space.table.find(place.at(0))
    assert found is not None
    frame = place.board.frames.number(found.entry & place.board.format.address_mask)
    with pytest.raises(AssertionError, match="can reach it"):
        place.board.buddy.free(frame)


def test_events_count_what_the_cpu_was_told(place: Place) -> None:
    before = place.board.events()
    place.write(*range(30))
    place.space.unmap(place.at(0), place.at(2))
    place.space.unmap(place.at(2), place.at(29))
    seen = place.board.events() - before
    assert (seen[Event.FLUSH_PAGE], seen[Event.FLUSH_ALL]) == (2, 1)
    assert seen[Event.FAULT_DEMAND_ZERO] == 30


# ---- other CPUs


@pytest.fixture
def both() -> Iterator[Place]:
    """Two CPUs in one address space, whose first two pages are written; the second CPU runs."""
    board = Board(FORMATS["invented"], cpus=2)
    place = Place(board)
    place.write(*range(20))
    board.physical.tlb.enter(1)
    board.run_on(place.space)
    assert place.read(0) == b"w"
    yield place
    board.close()


def test_another_cpu_drops_the_same_pages_before_it_runs(both: Place) -> None:
    tlb, (first, second) = both.board.physical.tlb, both.board.cpus
    discard(both.space, both.at(0), both.at(2))
    pages = [("page", both.at(0)), ("page", both.at(1))]
    assert (first.flushes, second.flushes, tlb.pending) == ([], pages, 0b01)
    tlb.enter(0)
    assert (first.flushes, second.flushes, tlb.pending) == (pages, pages, 0)


def test_more_pages_than_the_ceiling_together_are_one_full_flush_there(both: Place) -> None:
    discard(both.space, both.at(0), both.at(6))
    discard(both.space, both.at(6), both.at(12))
    both.board.physical.tlb.enter(0)
    assert both.board.cpus[0].flushes == [("all", 0)]


def test_a_frame_is_free_only_once_every_cpu_has_acknowledged(both: Place) -> None:
    board = both.board
    frame = board.frames.number(both.space.table.walk(both.at(0)).address)  # type: ignore[union-attr]  # mapped
    discard(both.space, both.at(0), both.at(1))
    assert (board.frames.kind[frame], board.frames.refs[frame]) == (Kind.ANON, 0)
    board.physical.tlb.enter(0)
    assert board.frames.kind[frame] == Kind.FREE


def test_the_allocator_has_all_cpus_acknowledge_before_it_gives_up(both: Place) -> None:
    board = both.board
    held = [board.buddy.alloc() for _ in range(board.buddy.free_frames)]
    discard(both.space, both.at(0), both.at(1))
    assert board.buddy.free_frames == 0
    both.write(0, byte=b"x")
    assert board.physical.tlb.pending == 0
    for frame in held:
        board.buddy.free(frame)


def test_a_cpu_that_leaves_the_space_has_acknowledged_and_is_asked_no_more(both: Place) -> None:
    board = both.board
    discard(both.space, both.at(0), both.at(1))
    board.percpu[0].leave()
    assert board.physical.tlb.pending == 0
    discard(both.space, both.at(1), both.at(2))
    assert (board.physical.tlb.pending, board.cpus[0].flushes) == (0, [])


def test_only_the_cpus_of_the_mask_are_flushed() -> None:
    board = Board(FORMATS["invented"], cpus=3)
    tlb = board.physical.tlb
    tlb.flush_pages(0b100, [0x4000])
    tlb.flush_all(0b010)
    assert (tlb.pending, board.cpus[0].flushes) == (0b110, [])
    tlb.flush_pages(0b001, [0x4000, 0x8000])
    assert board.cpus[0].flushes == [("page", 0x4000), ("page", 0x8000)]
    board.close()


def test_flushes_are_traced_when_somebody_listens() -> None:
    board = Board(FORMATS["invented"])

    class Listening:
        enabled = True

        def __init__(self) -> None:
            self.heard: list[tuple[str, dict[str, int | str]]] = []

        def event(self, name: str, /, **fields: int | str) -> None:
            self.heard.append((name, fields))

    listening = Listening()
    tlb = type(board.physical.tlb)(board.cpus, board.physical.counters, listening)
    tlb.flush_pages(1, [0, 0x4000])
    tlb.flush_all(1)
    assert listening.heard == [("tlb.flush_page", {"pages": 2}), ("tlb.flush_all", {})]
    assert not NO_TRACE.enabled
    board.close()


# ---- the gather alone


def test_a_gather_flushes_before_it_drops_and_frees_what_became_unused(place: Place) -> None:
    board, space = place.board, place.space
    frames = board.frames
    kept, gone, both = (board.physical.take(Kind.ANON, space.number, 0) for _ in range(3))
    for frame, refs in ((kept, 2), (gone, 1), (both, 3)):
        frames.refs[frame] = frames.maps[frame] = refs
    gather = space.gather()
    gather.page(place.at(0))
    gather.drop(kept)
    gather.drop(gone)
    gather.drop(both)
    gather.drop_many(np.array([both, both]))
    assert (place.flushed(), frames.refs[gone]) == ([], 1)
    gather.finish()
    assert place.flushed() == [("page", 0)]
    assert [(frames.refs[f], frames.maps[f]) for f in (kept, gone, both)] == [(1, 1), (0, 0), (0, 0)]
    assert [frames.kind[f] for f in (kept, gone, both)] == [Kind.ANON, Kind.FREE, Kind.FREE]
    gather.finish()
    assert place.flushed() == []
    frames.refs[kept] = frames.maps[kept] = 0
    board.physical.give_back([kept])


def test_a_large_leaf_is_a_full_flush(place: Place) -> None:
    gather = place.space.gather()
    gather.page(place.at(0), size=place.board.format.levels[1].size)
    gather.finish()
    assert place.flushed() == [("all", 0)]


def test_a_ceiling_of_none_always_flushes_all() -> None:
    board = Board(FORMATS["x86_64"], flush_ceiling=0)
    place = Place(board)
    place.write(0, 1)
    discard(place.space, place.at(0), place.at(1))
    assert place.flushed() == [("all", 0)]
    board.close()


# ---- on the engine: no load or store sees what was


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Place]:
    board = Board(ENGINES[request.param], execute=True)
    yield Place(board)
    board.close()


def denied(place: Place, page: int, *, write: bool = False) -> None:
    with pytest.raises(UserFault):
        place.board.cpu.copy_to_user(place.at(page), b"!") if write else place.read(page)


@pytest.mark.parametrize("pages", [1, 30])
def test_the_engine_sees_no_page_after_munmap(engine: Place, pages: int) -> None:
    engine.write(*range(pages + 1))
    assert all(engine.read(n) == b"w" for n in range(pages))
    engine.space.unmap(engine.at(0), engine.at(pages))
    for n in range(pages):
        denied(engine, n)
    assert engine.read(pages) == b"w"


@pytest.mark.parametrize("pages", [1, 30])
def test_the_engine_stores_nothing_after_mprotect(engine: Place, pages: int) -> None:
    engine.write(*range(pages + 1))
    engine.protect(0, pages, READ)
    for n in range(pages):
        denied(engine, n, write=True)
        assert engine.read(n) == b"w"
    engine.protect(0, pages, NONE)
    for n in range(pages):
        denied(engine, n)
    engine.protect(0, pages, RW)
    engine.write(*range(pages), byte=b"x")
    assert all(engine.read(n) == b"x" for n in range(pages))


def test_the_engine_reads_the_copy_after_a_copy_on_write(engine: Place) -> None:
    assert engine.read(0) == b"\0"
    engine.write(0)
    assert engine.read(0) == b"w"
    discard(engine.space, engine.at(0), engine.at(1))
    assert engine.read(0) == b"\0"
    engine.write(0, byte=b"x")
    assert engine.read(0) == b"x"


def test_the_engine_finds_moved_pages_at_their_new_place_only(engine: Place) -> None:
    engine.write(*range(12))
    target = engine.at(5000)
    engine.space.insert(engine.space.new_area(target, target + 12 * engine.page, RW))
    engine.space.move_entries(engine.at(0), engine.at(12), target)
    assert all(engine.read(5000 + n) == b"w" for n in range(12))
    assert all(engine.read(n) == b"\0" for n in range(12))


def test_a_page_table_that_was_given_back_is_not_walked_again(engine: Place) -> None:
    """Its frame becomes a data page full of what would be fine entries."""
    board, fmt = engine.board, engine.board.format
    span = fmt.levels[0].entries * engine.page
    engine.write(0)
    secret = board.frames.number(engine.space.table.walk(engine.at(0)).address)  # type: ignore[union-attr]  # mapped
    far = engine.start + 512 * span
    engine.space.insert(engine.space.new_area(far, far + engine.page, RW))
    board.cpu.copy_to_user(far, b"1")
    table = board.frames.number(board.ram.base + (engine.space.table.leaf_slot(far) << 3) & -engine.page)
    engine.space.unmap(far, far + engine.page)
    assert board.frames.kind[table] == Kind.FREE
    entry = fmt.leaf_bits(fmt.decode(engine.space.table.find(engine.at(0)).entry, 1).attributes)  # type: ignore[union-attr]  # a leaf
    entry |= board.frames.address(secret)
    words = engine.page // 8
    board.ram.array[table * words : (table + 1) * words] = entry
    with pytest.raises(UserFault):
        board.cpu.copy_from_user(far, 1)
    board.ram.array[table * words : (table + 1) * words] = 0


def test_a_spurious_fault_is_flushed_and_resolved(engine: Place) -> None:
    engine.write(0)
    before = engine.board.events()
    assert fault_in(engine.space, engine.at(0), int(Access.USER | Access.READ))
    seen = engine.board.events() - before
    assert (seen[Event.FAULT_SPURIOUS], seen[Event.FLUSH_PAGE]) == (1, 1)
