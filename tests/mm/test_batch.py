"""`mm.batch()`: what one operation after the other would do, refusals included, with one flush for all."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aether_emu.arch.paging import Access
from aether_emu.errors import ConfigError, MachineError, Refused
from aether_emu.linux.files.streams import BufferStream
from aether_emu.mm import mapping
from aether_emu.mm.batch import Batch
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, Faults
from aether_emu.mm.joint import Joint, joined
from aether_emu.mm.mapping import MADV_DONTNEED, MADV_FREE, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, Request
from aether_emu.mm.populate import populate
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.system import Machine
from aether_emu.verify.tlbsan import Finding
from tests.mm.board import ENGINES, FORMATS, Board

_PROGRAMS = Path(__file__).resolve().parents[1] / "programs" / "bin"
READ, WRITE = Protection.READ, Protection.WRITE
RW, NONE = READ | WRITE, Protection.NONE
PAGES = 64


class Place:
    """An address space with some written pages, on a board whose CPU runs in it and has touched them."""

    def __init__(self, board: Board, **limits: Any) -> None:
        self.board, self.page = board, board.format.page_size
        self.space: AddressSpace = board.space(**limits)
        board.run_on(self.space)
        self.start = 64 * board.format.levels[0].entries * self.page
        mapping.map_memory(self.space, self.request(0, PAGES))
        for page in range(PAGES):
            board.cpu.copy_to_user(self.at(page), bytes([page]))
        board.cpu.flushes.clear()

    def at(self, page: int) -> int:
        return self.start + page * self.page

    def request(self, page: int, count: int, protection: Protection = RW) -> Request:
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        return Request(self.at(page), count * self.page, int(protection), flags, None, 0)

    def sees(self) -> list[int]:
        """What the CPU reads of each page: its first byte, -1 where it may not, -2 where nothing is."""
        return [self._see(page) for page in range(PAGES)]

    def _see(self, page: int) -> int:
        va = self.at(page)
        if self.space.areas.find(va) is None:
            return -2
        if (
            Faults(self.board.physical).resolve(self.space, va, int(Access.USER | Access.READ))
            is not RESOLVED
        ):
            return -1
        return int(self.board.cpu.copy_from_user(va, 1)[0])

    def areas(self) -> list[tuple[int, int, Protection, int]]:
        return [(area.start, area.end, area.protection, area.flags) for area in self.space.areas]

    def counted(self, event: Event) -> int:
        return self.board.physical.counters.n[event]


@pytest.fixture(params=FORMATS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    board = Board(FORMATS[request.param])
    yield Place(board)
    board.close()


@pytest.fixture
def one(request: pytest.FixtureRequest) -> Iterator[Place]:
    board = Board(FORMATS["x86_64"])
    yield Place(board)
    board.close()


def test_nothing_happens_before_the_block_ends(place: Place) -> None:
    before = place.areas()
    with place.space.batch() as batch:
        batch.unmap(place.at(0), place.page)
        batch.protect(place.at(4), place.page, READ)
        assert place.areas() == before
        assert (len(batch), batch.done) == (2, 0)
    assert batch.done == 2
    assert place.sees()[:6] == [-2, 1, 2, 3, 4, 5]


def test_all_operations_have_one_flush_and_the_counters_say_so(place: Place) -> None:
    with place.space.batch() as batch:
        for page in range(0, PAGES, 2):  # none beside another
            batch.advise(place.at(page), place.page, MADV_DONTNEED)
    assert [kind for kind, _va in place.board.cpu.flushes] == ["all"]
    assert place.counted(Event.FLUSH_JOINED) == PAGES // 2 - 1
    assert place.sees() == [0 if page % 2 == 0 else page for page in range(PAGES)]


def test_few_pages_are_flushed_one_by_one_all_at_once(place: Place) -> None:
    with place.space.batch() as batch:
        batch.unmap(place.at(3), place.page)
        batch.protect(place.at(9), place.page, READ)
        batch.unmap(place.at(5), place.page)
    assert place.board.cpu.flushes == [("page", place.at(3)), ("page", place.at(9)), ("page", place.at(5))]
    assert place.counted(Event.FLUSH_JOINED) == 2


def test_ranges_in_a_row_are_one_edit(one: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    protect = mapping.protect_memory

    def noted(space: AddressSpace, at: int, length: int, *rest: Any) -> None:
        asked.append((at, length))
        protect(space, at, length, *rest)

    monkeypatch.setattr(mapping, "protect_memory", noted)
    with one.space.batch() as batch:
        for page in range(8, 40):
            batch.protect(one.at(page), one.page, READ)
        batch.protect(one.at(40), one.page, NONE)  # asks for something else
        batch.protect(one.at(42), one.page, NONE)  # is not beside it
    assert asked == [(one.at(8), 32 * one.page), (one.at(40), one.page), (one.at(42), one.page)]
    assert batch.done == 34


@pytest.mark.parametrize("hole", [8, 20, 31])
def test_a_refusal_comes_from_the_operation_that_it_is_due_to(place: Place, hole: int) -> None:
    mapping.unmap_memory(place.space, place.at(hole), place.page)
    with pytest.raises(Refused, match="ENOMEM") as refused, place.space.batch() as batch:
        batch.unmap(place.at(2), place.page)
        for page in range(8, 32):
            batch.protect(place.at(page), place.page, NONE)
        batch.unmap(place.at(60), place.page)
    assert batch.failed is not None
    assert (batch.failed.index, batch.failed.name, batch.failed.address) == (
        hole - 7,
        "protect",
        place.at(hole),
    )
    assert batch.done == hole - 7
    assert f"operation {hole - 7} of the batch, protect" in refused.value.__notes__[0]
    expected = [-2 if page in (2, hole) else -1 if 8 <= page < hole else page for page in range(PAGES)]
    assert place.sees() == expected
    assert place.board.cpu.flushes, "what was done is flushed"


def test_advice_over_a_hole_goes_no_further_than_its_own_operation(place: Place) -> None:
    mapping.unmap_memory(place.space, place.at(11), place.page)
    with pytest.raises(Refused, match="ENOMEM"), place.space.batch() as batch:
        batch.advise(place.at(8), 8 * place.page, MADV_DONTNEED)
        batch.advise(place.at(16), 8 * place.page, MADV_DONTNEED)
    assert batch.done == 0
    assert place.sees()[8:24] == [0, 0, 0, -2, 0, 0, 0, 0, *range(16, 24)]


def test_near_the_limit_of_areas_each_operation_meets_it_for_itself() -> None:
    board = Board(FORMATS["x86_64"])
    place = Place(board, areas=2)
    with pytest.raises(Refused, match="ENOMEM"), place.space.batch() as batch:
        batch.protect(place.at(8), place.page, READ)  # three areas
        batch.protect(place.at(9), place.page, READ)
    assert (batch.done, len(place.space.areas)) == (0, 1)
    board.close()


def test_whole_areas_page_by_page_meet_the_limit_that_all_at_once_would_not() -> None:
    board = Board(FORMATS["x86_64"])
    place = Place(board, areas=1)
    with pytest.raises(Refused, match="ENOMEM"), place.space.batch() as batch:
        for page in range(PAGES):
            batch.protect(place.at(page), place.page, READ)
    assert batch.done == 0
    board.close()


def test_an_error_inside_the_block_leaves_all_undone(one: Place) -> None:
    with contextlib.suppress(ZeroDivisionError), one.space.batch() as batch:
        batch.unmap(one.at(0), one.page)
        raise ZeroDivisionError
    assert batch.done == 0
    assert one.sees() == list(range(PAGES))
    with pytest.raises(MachineError, match="the batch is over"):
        batch.unmap(one.at(0), one.page)


def test_what_is_no_number_or_protection_is_refused_where_it_is_asked(one: Place) -> None:
    with one.space.batch() as batch:
        with pytest.raises(ConfigError, match="address"):
            batch.unmap("here", one.page)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="protection"):
            batch.protect(one.at(0), one.page, 1)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="not negative"):
            batch.unmap(one.at(0), -one.page)


def test_a_batch_is_asked_inside_its_block_and_has_one(one: Place) -> None:
    batch = one.space.batch()
    with pytest.raises(MachineError, match="nothing would be done"):
        batch.unmap(one.at(0), one.page)
    with batch:
        batch.unmap(one.at(0), one.page)
    with pytest.raises(MachineError, match="the batch is over"), batch:
        pass
    assert batch.done == 1


def test_memory_that_is_no_whole_pages_is_as_alone(one: Place) -> None:
    """One byte is a page, and what begins behind that byte is misaligned: together they would be neither."""
    with pytest.raises(Refused, match="EINVAL"), one.space.batch() as batch:
        batch.unmap(one.at(0), 1)
        batch.unmap(one.at(0) + 1, one.page - 1)
    assert batch.done == 1
    assert one.sees()[:3] == [-2, 1, 2]


def test_pages_that_come_where_others_went_are_flushed_in_between(place: Place) -> None:
    """The reference CPU of the board says so if an entry is made over one that it still holds."""
    with place.space.batch() as batch:
        batch.unmap(place.at(0), 8 * place.page)
        batch.map(place.at(0), 8 * place.page, populate=True)
        batch.protect(place.at(0), 4 * place.page, READ)
    assert place.sees()[:8] == [0] * 8
    assert place.space.resident()
    assert place.counted(Event.FLUSH_JOINED) == 0


def test_new_memory_comes_with_its_pages_if_asked_for(place: Place) -> None:
    at = place.at(PAGES)
    before = place.space.mapped_pages()
    with place.space.batch() as batch:
        for page in range(16):
            batch.map(at + page * place.page, place.page, populate=True)
        batch.map(at + 16 * place.page, place.page)
        batch.populate(at + 16 * place.page, place.page, write=False)
    assert place.space.mapped_pages() == before + 17
    assert place.areas()[-1][:2] == (place.start, at + 17 * place.page)


def test_a_device_and_a_file_are_mapped_in_their_turn(tmp_path: Path) -> None:
    (tmp_path / "words").write_bytes(b"words" * 2000)
    with Machine("x86_64", ram="32M") as machine:
        process = machine.load(_PROGRAMS / "x86_64" / "flushes")
        with process.mm.batch() as batch:
            batch.map(0x5000_0000, 8192)
            batch.map_file(tmp_path / "words", 0x5000_1000, 4096, READ)
            batch.populate(0x5000_0000, 8192, write=False)
            batch.map_file(tmp_path / "nothing", 0x5000_1000, 4096, READ)
            batch.unmap(0x5000_0000, 8192)
            with pytest.raises(Refused, match="EINVAL"):
                process.mm.map_device(0x1000, 0x5000_0000, 4096)
            batch.runs.pop(-2)  # a path that is not there would be refused
        assert process.mm.areas.find(0x5000_0000) is None


@pytest.mark.parametrize("fmt", ENGINES)
@pytest.mark.parametrize("seed", range(12))
def test_a_batch_does_what_one_after_the_other_does(fmt: str, seed: int) -> None:
    chance = random.Random(seed)
    operations = [_any_operation(chance) for _ in range(40)]
    alone, together = Board(ENGINES[fmt]), Board(ENGINES[fmt])
    first, second = Place(alone), Place(together)
    done, error = 0, None
    try:
        for operation in operations:
            for number in range(operation[1], operation[1] + operation[2]):
                _make_alone(first, operation[0], number, operation[3])
                done += 1
    except Refused as refused:
        error = refused
    batch = second.space.batch()
    caught: Refused | None = None
    try:
        with batch:
            for operation in operations:
                _ask(batch, second, *operation)
    except Refused as refused:
        caught = refused
    assert (batch.done, caught and caught.errno) == (done, error and error.errno)
    assert second.areas() == first.areas()
    assert second.sees() == first.sees()
    alone.close()
    together.close()


def _any_operation(chance: random.Random) -> tuple[str, int, int, Any]:
    """What a batch may be asked: often several in a row, seldom what is refused."""
    kinds = ["protect"] * 6 + ["unmap"] * 3 + ["map"] * 3 + ["advise"] * 6 + ["populate"]
    kind = chance.choice(kinds)
    first = chance.randrange(PAGES - 4)
    count = chance.randrange(1, 5)
    more: Any = None
    if kind == "protect":
        more = chance.choice([READ, RW, RW, NONE])
    elif kind == "advise":
        more = chance.choice([MADV_DONTNEED, MADV_FREE, mapping.MADV_DONTFORK, mapping.MADV_COLD])
    elif kind == "map":
        more = chance.random() < 0.5
    elif kind == "unmap" and chance.random() < 0.9:
        kind, more = "map", True
    return kind, first, count, more


def _make_alone(place: Place, kind: str, number: int, more: Any) -> None:
    space, page, at = place.space, place.page, place.at(number)
    if kind == "protect":
        mapping.protect_memory(space, at, page, int(more))
    elif kind == "unmap":
        mapping.unmap_memory(space, at, page)
    elif kind == "map":
        mapping.map_memory(space, place.request(number, 1))
        if more:
            populate(space, at, at + page, write=True)
    elif kind == "populate":
        mapping.advise_memory(space, at, page, mapping.MADV_POPULATE_READ)
    else:
        mapping.advise_memory(space, at, page, more)


def _ask(batch: Batch, place: Place, kind: str, first: int, count: int, more: Any) -> None:
    for number in range(first, first + count):
        at = place.at(number)
        if kind == "protect":
            batch.protect(at, place.page, more)
        elif kind == "unmap":
            batch.unmap(at, place.page)
        elif kind == "map":
            batch.map(at, place.page, populate=more)
        elif kind == "populate":
            batch.populate(at, place.page, write=False)
        else:
            batch.advise(at, place.page, more)


# ---- on several CPUs


def _in_batches(machine: Machine) -> None:
    """Have every munmap, mprotect and madvise of a program done page by page, in a batch."""

    def handler(call: Any) -> int | None:
        address, length, third = call.arguments[:3]
        mm = call.process.mm
        size = mm.page_size
        try:
            with mm.batch() as batch:
                for at in range(address, address + mm.page_up(length), size):
                    if call.name == "munmap":
                        batch.unmap(at, size)
                    elif call.name == "mprotect":
                        batch.protect(at, size, Protection(third))
                    else:
                        batch.advise(at, size, third)
        except Refused as refused:
            return -refused.errno
        return 0

    machine.on_system_call(handler, ["munmap", "mprotect", "madvise"])


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
@pytest.mark.parametrize("cpus", [2, 4])
def test_no_cpu_relies_on_what_a_batch_took_away(isa: str, cpus: int) -> None:
    output = BufferStream()
    streams = {"stdin": BufferStream(b""), "stdout": output, "stderr": BufferStream()}
    with Machine(isa, cpus=cpus, ram="64M", seed=7, tlbsan=True) as machine:
        machine.load(_PROGRAMS / isa / "flushes", ["flushes", "all"], streams=streams)
        _in_batches(machine)
        assert machine.run().status == 0
        assert machine.physical.counters.n[Event.FLUSH_ALL] > 5
    lines = bytes(output.written).decode().splitlines()
    assert lines
    assert all(line.endswith(": 0 wrong") for line in lines)


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_a_batch_without_its_flush_is_found(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends_dry(joint: Joint) -> None:
        joint._pages, joint._all = [], False
        joint._free(joint._release(), [])

    monkeypatch.setattr(Joint, "end", ends_dry)
    machine = Machine(isa, cpus=2, ram="64M", seed=7, tlbsan=True)
    streams = {"stdin": BufferStream(b""), "stdout": BufferStream(), "stderr": BufferStream()}
    machine.load(_PROGRAMS / isa / "flushes", ["flushes", "unmap"], streams=streams)
    _in_batches(machine)
    try:
        with pytest.raises(Finding):
            machine.run()
    finally:
        machine.abandon()


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_process_madvise_has_one_flush_for_its_pieces(isa: str) -> None:
    output = BufferStream()
    streams = {"stdin": BufferStream(b""), "stdout": output, "stderr": BufferStream()}
    with Machine(isa, cpus=2, ram="64M", seed=7, tlbsan=True) as machine:
        machine.load(_PROGRAMS / isa / "advice", streams=streams)
        assert machine.run().status == 0
        assert machine.physical.counters.n[Event.FLUSH_JOINED] > 0
    assert b"-- process_madvise\ndontneed" in bytes(output.written)


def test_a_watcher_of_mappings_hears_when_all_is_flushed(one: Place) -> None:
    heard: list[tuple[int, int, int]] = []

    def told(_number: int, _change: object, start: int, end: int) -> None:
        heard.append((start, end, len(one.board.cpu.flushes)))

    one.board.physical.on_mapping = told
    with one.space.batch() as batch:
        batch.unmap(one.at(0), one.page)
        batch.unmap(one.at(4), one.page)
    assert heard == [(one.at(0), one.at(1), 2), (one.at(4), one.at(5), 2)]


def test_an_object_keeps_its_pages_until_its_last_area_is_flushed(place: Place) -> None:
    """The board's allocator refuses a frame that the CPU can still reach."""
    flags = mapping.MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED
    at = place.at(PAGES)
    mapping.map_memory(place.space, Request(at, 4 * place.page, 3, flags, None, 0))
    place.board.cpu.copy_to_user(at, b"x")
    free = place.board.buddy.free_frames
    with joined(place.space):
        mapping.unmap_memory(place.space, at, 4 * place.page)
        assert place.board.buddy.free_frames == free
    assert place.board.buddy.free_frames > free
