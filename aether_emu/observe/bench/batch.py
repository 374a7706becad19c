"""Many operations of one page each in one batch, beside numpy over the same entries and counts, for a page.

The floor does with numpy what must be done to entries and counts, and knows beforehand what stands there.
What the same operations take one by one is told with each figure (`shares`). The CPU of the engine runs in
the address space, so each flush is made. `populate` is one operation that brings all pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np

from aether_emu.computer import Computer, lowest_kernel_base, unicorn_cpus
from aether_emu.mm import mapping
from aether_emu.mm.batch import Batch
from aether_emu.mm.frames.table import Flags, Kind
from aether_emu.mm.limits import Limits
from aether_emu.mm.populate import populate
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.observe.bench import edits
from aether_emu.observe.bench.edits import MAPPED, MappedRange
from aether_emu.observe.bench.figure import BenchError, Figure, collector_off, now
from aether_emu.observe.bench.tables import FORMATS

SIZES: Mapping[int, float] = {1: 30.0, 16: 30.0, 512: 40.0, 262_144: 500.0}
"""Pages of a batch, one operation for each, and the ratio to the floor that is wanted at most.

Asking for an operation takes Python half a microsecond, and numpy some nanoseconds for an entry: with many
pages that is the ratio. Whoever has a range asks for it at once, as the figures of whole ranges do.
"""

_AT, _RW = 1 << 32, Protection.READ | Protection.WRITE
_MORE = 4096  # frames beside those of the pages: for tables and the supervisor
_FEW = 16  # pages: so few are edited several times for one answer of the clock
_ONE, _OWNER = np.uint32(1), np.uint32(7)
_ANON, _DIRTY = np.uint8(Kind.ANON), np.uint8(Flags.DIRTY)


@dataclass(frozen=True, slots=True)
class _Work:
    """One operation in a batch, alone, and its least. `stands` says whether pages are there before."""

    what: str
    stands: bool
    ask: Callable[[Batch, int, int], None]
    alone: Callable[[AddressSpace, int, int], object]
    floor: Callable[[MappedRange], object]


@contextmanager
def _space(isa: str, pages: int, *, stands: bool) -> Iterator[AddressSpace]:
    """An address space in which the CPU runs, with an area of some pages, which are there if `stands`."""
    fmt = FORMATS[isa]()
    size, cpus = fmt.page_size, unicorn_cpus(isa, fmt, ticks=lambda _hz: 0, random=lambda: 0)
    ram = 2 * (pages + _MORE) * size
    computer = Computer(fmt, cpus, ram=ram, aperture=8 << 20, kernel_base=lowest_kernel_base(fmt))
    space = computer.new_space(Limits(user_base=size, user_end=1 << 40, areas=65_530, stack=1 << 20))
    try:
        computer.percpu[0].enter(space)
        flags = mapping.MAP_PRIVATE | mapping.MAP_ANONYMOUS | mapping.MAP_FIXED
        mapping.map_memory(space, mapping.Request(_AT, pages * size, int(_RW), flags, None, 0))
        space.table.add_leaf_tables(_AT, _AT + pages * size)
        if stands:
            populate(space, _AT, _AT + pages * size, write=True)
        yield space
    finally:
        space.destroy()
        computer.close()


def _populated(there: MappedRange) -> None:
    """Entries for pages that have none, and what the frame table says of their frames."""
    frames, fmt, done = there.frames, there.table.format, 0
    bits, shift = fmt.leaf_bits(MAPPED), fmt.page_shift
    for entries in there.there:
        shown = there.numbers[done : done + entries.size]
        frames.flags_array[shown] |= _DIRTY
        frames.kind_array[shown], frames.owner_array[shown] = _ANON, _OWNER
        frames.refs_array[shown] = frames.maps_array[shown] = _ONE
        frames.index_array[shown] = np.arange(done, done + entries.size)
        begin = frames.base + (int(shown[0]) << shift) | bits
        entries[:] = np.arange(begin, begin + (entries.size << shift), 1 << shift, dtype=np.uint64)
        done += entries.size


WORKS: Mapping[str, _Work] = {
    "protect": _Work(
        "make written pages read-only",
        True,
        lambda batch, at, size: batch.protect(at, size, Protection.READ),
        lambda space, at, size: mapping.protect_memory(space, at, size, 1),
        edits.WORKS["protect"].floor,
    ),
    "unmap": _Work(
        "unmap written pages, and free them",
        True,
        lambda batch, at, size: batch.unmap(at, size),
        mapping.unmap_memory,
        edits.WORKS["unmap"].floor,
    ),
    "populate": _Work(
        "bring fresh pages",
        False,
        lambda batch, at, size: batch.populate(at, size),
        lambda space, at, size: mapping.advise_memory(space, at, size, mapping.MADV_POPULATE_WRITE),
        _populated,
    ),
}


def figure(isa: str, name: str, goal: float, *, pages: int, repetitions: int = 5) -> Figure:
    """The figure of `pages` operations of one kind."""
    work = WORKS[name]
    times = 8 if pages <= _FEW else 1

    def together(space: AddressSpace) -> None:
        with space.batch() as batch:
            for at in range(_AT, _AT + pages * space.page_size, space.page_size):
                work.ask(batch, at, space.page_size)

    def one_by_one(space: AddressSpace) -> None:
        for at in range(_AT, _AT + pages * space.page_size, space.page_size):
            work.alone(space, at, space.page_size)

    @cache
    def shares() -> Mapping[str, float]:
        return {"one by one": _measured(isa, name, pages, one_by_one, times)}

    return Figure(
        name=f"batch-{name}-{pages}",
        isa=isa,
        what=f"{work.what}: {pages:,} operations of a page, for each page",
        program="mm.batch",
        floor_is="numpy over the same entries and counts",
        unit="page",
        ours=lambda: _measured(isa, name, pages, together, times),
        floor=lambda: _least(isa, name, pages, times),
        repetitions=repetitions,
        goal=goal,
        shares=shares,
    )


def populated(isa: str, goal: float, *, pages: int = 1 << 18, repetitions: int = 5) -> Figure:
    """The figure of one operation that brings many fresh pages."""

    def together(space: AddressSpace) -> None:
        with space.batch() as batch:
            batch.populate(_AT, pages * space.page_size)

    return Figure(
        name="populate",
        isa=isa,
        what=f"bring {pages:,} fresh pages to leaf tables that exist, for each page",
        program="mm.populate",
        floor_is="numpy writes of the entries, and of what the frame table says",
        unit="page",
        ours=lambda: _measured(isa, "populate", pages, together, 1),
        floor=lambda: _least(isa, "populate", pages, 1),
        repetitions=repetitions,
        goal=goal,
    )


def _measured(isa: str, name: str, pages: int, run: Callable[[AddressSpace], None], times: int) -> float:
    """CPU seconds of a page, in address spaces made for it."""
    spent = 0.0
    for _ in range(times):
        with _space(isa, pages, stands=WORKS[name].stands) as space:
            with collector_off():
                start = now()
                run(space)
                spent += now() - start
            if not _is_done(space, name, pages):
                raise BenchError(f"{name} of {pages} pages/{isa}: they are not as they were to be")
    return spent / times / pages


def _least(isa: str, name: str, pages: int, times: int) -> float:
    """As `_measured`, of the floor."""
    spent = 0.0
    for _ in range(times):
        with edits.mapped(isa, pages * FORMATS[isa]().page_size) as there, collector_off():
            start = now()
            WORKS[name].floor(there)
            spent += now() - start
    return spent / times / pages


def _is_done(space: AddressSpace, name: str, pages: int) -> bool:
    """Whether the tables say what the operations were to make of them."""
    if name == "unmap":
        return space.mapped_pages() == 0 and not space.areas
    found = space.table.find(_AT + (pages - 1) * space.page_size)
    writable = found is not None and space.table.format.writable(found.entry)
    return space.mapped_pages() == pages and writable == (name == "populate")
