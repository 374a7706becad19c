"""Pages of memory files that are brought ahead (MAP_POPULATE, mlock): in ranges, as a fault of each would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aether_emu.linux.files.memory_file import MemoryFile
from aether_emu.linux.mappable import MappedFile
from aether_emu.linux.task.process import Process
from aether_emu.machine.memory.aperture import ApertureFile
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, BusError, Faults
from aether_emu.mm.mapping import MAP_FIXED, MAP_PRIVATE, MAP_SHARED, Request, map_memory
from aether_emu.mm.populate import populate
from aether_emu.system import Machine
from tests.guests.running import TARGETS, Target, program

_PAGES = 24
_AT = 0x10_0000_0000  # the end of a leaf table
_READ, _WRITE = 9, 10  # Access.USER with READ or WRITE
_EVENTS = Event.FAULT_FILE, Event.FILE_AROUND, Event.FAULT_UPGRADE, Event.FAULT_COPY


@pytest.fixture(params=TARGETS, ids=str)
def process(request: pytest.FixtureRequest) -> Iterator[Process]:
    target: Target = request.param
    made = Machine(target.isa, page_size=target.page_size, ram="8M", aperture="4M")
    try:
        made.load(program(target.isa, "hello"), ["hello"])
        assert made.process is not None
        yield made.process
    finally:
        made.close()


def _mapped(
    process: Process,
    file_pages: int = _PAGES,
    kind: int = MAP_SHARED,
    beside: int = _AT,
    protection: int = 3,
) -> tuple[MemoryFile, int]:
    """A memory file of so many pages, none of which is there, and where `_PAGES` of it are mapped.

    Eight of them lie before the address `beside`.
    """
    page = process.mm.page_size
    at = beside - 8 * page
    fd = process.files.memfd_create(b"m")
    process.files.ftruncate(fd, file_pages * page)
    file = process.files.table.file(fd)
    assert isinstance(file, MemoryFile)
    request = Request(at, _PAGES * page, protection, kind | MAP_FIXED, MappedFile(process.kernel, file), 0)
    assert map_memory(process.mm, request) == at
    return file, at


def _seen(process: Process, at: int) -> list[tuple[int, ...] | None]:
    """Of each page the bits of its entry but the address, and what the frame table says of the frame."""
    space, frames, seen = process.mm, process.mm.physical.frames, list[tuple[int, ...] | None]()
    for number in range(_PAGES):
        found = space.table.find(at + number * space.page_size)
        if found is None:
            seen.append(None)
            continue
        address = space.table.format.leaf_address(found.entry, 1)
        frame = frames.number(address)
        columns = frames.kind, frames.index, frames.refs, frames.maps
        seen.append((found.entry ^ address, *(column[frame] for column in columns)))
    return seen


def _counts(process: Process) -> list[int]:
    return [process.mm.physical.counters.n[event] for event in _EVENTS]


@pytest.mark.parametrize("there", [(), (5,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize(("kind", "write"), [(MAP_SHARED, False), (MAP_SHARED, True), (MAP_PRIVATE, False)])
def test_populating_is_as_many_faults(
    process: Process, kind: int, write: bool, there: tuple[int, ...]
) -> None:
    page, done = process.mm.page_size, list[object]()
    for by_faults in (False, True):
        file, at = _mapped(process, kind=kind, beside=_AT + (by_faults << 30))
        for number in there:
            file.pwrite(b"x", number * page)
        before = _counts(process)
        if by_faults:
            for number in range(_PAGES):
                if process.mm.table.find(at + number * page) is None:
                    access = _WRITE if write else _READ
                    assert (
                        Faults(process.mm.physical).resolve(process.mm, at + number * page, access)
                        is RESOLVED
                    )
        else:
            assert populate(process.mm, at, at + _PAGES * page, write=write) is None
        counted = [after - first for first, after in zip(before, _counts(process), strict=True)]
        done.append((_seen(process, at), counted, file.memory.touched, file.stat().blocks))
    assert done[0] == done[1]


@pytest.mark.parametrize("protection", [1, 2, 3])
def test_pages_that_the_file_lacks_come_together(
    process: Process, monkeypatch: pytest.MonkeyPatch, protection: int
) -> None:
    asked, frames = list[int](), ApertureFile.frames

    def counted(self: ApertureFile, page: int, count: int, *, write: bool = False) -> tuple[int, int]:
        asked.append(count)
        return frames(self, page, count, write=write)

    _file, at = _mapped(process, protection=protection)
    monkeypatch.setattr(ApertureFile, "frames", counted)
    page, span = process.mm.page_size, 1 << process.mm.table.leaf_span_shift
    tables = (at + _PAGES * page - 1) // span - at // span + 1
    assert populate(process.mm, at, at + _PAGES * page, write=False) is None
    assert len(asked) == tables and sum(asked) == _PAGES


@pytest.mark.parametrize(("kind", "protection", "writable"), [(MAP_SHARED, 3, True), (MAP_SHARED, 1, False),
                                                              (MAP_PRIVATE, 3, False)])  # fmt: skip
@pytest.mark.parametrize("ahead", [True, False])
def test_a_page_that_was_loaded_takes_a_store_where_the_area_does(
    process: Process, kind: int, protection: int, writable: bool, ahead: bool
) -> None:
    """There is no second fault, as on Linux: shmem asks for no notice of stores."""
    space, fmt = process.mm, process.mm.table.format
    _file, at = _mapped(process, kind=kind, protection=protection)
    if ahead:
        assert populate(space, at, at + _PAGES * space.page_size, write=False) is None
    else:
        assert Faults(space.physical).resolve(space, at, _READ) is RESOLVED
    found = space.table.find(at)
    assert found is not None
    assert bool(fmt.writable(found.entry)) is writable
    assert not fmt.dirty(found.entry)


@pytest.mark.parametrize("most", ["the end of the file", "the limit of memory"])
def test_the_first_page_that_cannot_be_had_is_told_and_those_before_it_are_there(
    process: Process, most: str
) -> None:
    file, at = _mapped(process, 10 if most == "the end of the file" else _PAGES)
    namespace, page = process.files.namespace, process.mm.page_size
    if most != "the end of the file":
        namespace.memory_limit = namespace.memory_used + 10 * page
    assert populate(process.mm, at, at + _PAGES * page, write=False) == BusError(at + 10 * page)
    assert [each is not None for each in _seen(process, at)] == [True] * 10 + [False] * (_PAGES - 10)
    assert file.memory.touched == set(range(10))


def test_what_stands_there_already_stays(process: Process) -> None:
    """A private page of the program's own, over a page that the file has lost since."""
    file, at = _mapped(process, kind=MAP_PRIVATE)
    page = process.mm.page_size
    process.kernel.cpus[0].copy_to_user(at + 3 * page, b"own")
    file.memory.punch(3, 1)
    assert not file.memory.touched
    assert populate(process.mm, at, at + _PAGES * page, write=False) is None
    assert process.kernel.cpus[0].copy_from_user(at + 3 * page, 3) == b"own"
    assert 3 not in file.memory.touched and len(file.memory.touched) == _PAGES - 1
