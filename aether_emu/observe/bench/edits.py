"""Edits of ranges that are mapped: whole operations, gather and counts included, beside bare numpy.

The floor does with numpy what any way of doing the work must do to the same entries and counts, one
leaf table after the other, and knows beforehand what stands there. There is no CPU, so the flush that
ends each operation costs neither side anything; frames keep a reference, so that none is freed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Attributes, Entries, PageFlags
from aether_emu.machine.memory.ram import Ram
from aether_emu.mm.counters import Counters
from aether_emu.mm.frames.buddy import Buddy, Zone
from aether_emu.mm.frames.code import CodeFrames
from aether_emu.mm.frames.table import Flags, FrameTable, Kind
from aether_emu.mm.protection import Protection, leaf_bits
from aether_emu.mm.tables import edits, transfer
from aether_emu.mm.tables.page import PageTable
from aether_emu.mm.tlb import Gather, Tlb
from aether_emu.observe.bench.figure import BenchError, Figure, collector_off, now
from aether_emu.observe.bench.tables import FORMATS
from aether_emu.ports import NO_TRACE

_BASE = 1 << 30
_VA, _AWAY = 1 << 40, 1 << 40
_TO = _VA + _AWAY
_FLAGS = PageFlags.READ | PageFlags.USER | PageFlags.ACCESSED
MAPPED = Attributes(_FLAGS | PageFlags.WRITE | PageFlags.DIRTY)
_ONE = np.uint32(1)


@dataclass(frozen=True, slots=True)
class MappedRange:
    """A mapping of `length` bytes from `start` on, writable and written.

    Leaf tables stand ready `_AWAY` from there, and at the same addresses of another tree, the `child`.
    """

    table: PageTable
    frames: FrameTable
    code: CodeFrames
    gather: Gather
    length: int
    numbers: NDArray[np.int64]  # the frames mapped, in order
    here: list[Entries]  # the level-1 entries of each leaf table from `start` on, and of those `_AWAY`
    there: list[Entries]
    child: PageTable
    copied: list[Entries]  # as `here`, of the child
    start: int = _VA

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Work:
    """One edit as the memory manager does it, and its least."""

    what: str
    program: str
    floor_is: str
    ours: Callable[[MappedRange], object]
    floor: Callable[[MappedRange], object]


@contextmanager
def mapped(isa: str, length: int) -> Iterator[MappedRange]:
    """A mapping to edit. Frames and tables are made for it alone, and there is no CPU."""
    fmt = FORMATS[isa]()
    page, pages = fmt.page_size, length // fmt.page_size
    leaf_tables = pages // fmt.levels[0].entries
    tables = 3 * (leaf_tables + leaf_tables // fmt.levels[1].entries) + 64
    ram = Ram(_BASE, tables * page, page)
    frames = FrameTable(_BASE, tables * page + length, fmt.page_shift)
    buddy = Buddy(frames, [Zone("tables", 0, tables)])
    table, child = (PageTable(fmt, ram, frames, buddy, owner) for owner in (1, 2))
    counters = Counters()
    gather = Gather(Tlb([], counters, NO_TRACE), 0, table, frames, lambda _unused: None)
    frames.kind_array[tables:] = Kind.ANON
    frames.refs_array[tables:], frames.maps_array[tables:] = 2, 1
    table.map(_VA, _BASE + tables * page, length, MAPPED)
    table.add_leaf_tables(_TO, _TO + length)
    child.add_leaf_tables(_VA, _VA + length)
    code = CodeFrames(frames, [], counters)
    try:
        here, there, copied = (
            _leaf_entries(tree, va, pages) for tree, va in ((table, _VA), (table, _TO), (child, _VA))
        )
        numbers = np.arange(tables, tables + pages)
        yield MappedRange(table, frames, code, gather, length, numbers, here, there, child, copied)
    finally:
        ram.close()


def _leaf_entries(table: PageTable, start: int, pages: int) -> list[Entries]:
    """The entries of `pages` pages from `start`, where a leaf table begins: an array for each leaf table."""
    each, size = table.format.levels[0].entries, table.format.page_size
    slots = [
        (table.leaf_slot(start + done * size), min(each, pages - done)) for done in range(0, pages, each)
    ]
    return [table.ram.array[slot : slot + count] for slot, count in slots]


def _protect(mapped: MappedRange, protection: Protection) -> None:
    bits = leaf_bits(mapped.table.format, protection)
    code = edits.protect(mapped.table, mapped.gather, mapped.start, mapped.end, bits)
    if code.size:
        mapped.code.executable_each(code, mutable=True)
    mapped.gather.finish()


def _protect_barely(mapped: MappedRange, flags: PageFlags) -> None:
    fmt = mapped.table.format
    change = np.uint64(fmt.leaf_bits(MAPPED) ^ fmt.leaf_bits(Attributes(flags)))
    for entries in mapped.here:
        np.bitwise_xor(entries, change, out=entries)
    if flags & PageFlags.EXECUTE:
        mapped.frames.flags_array[mapped.numbers] |= np.uint8(Flags.EXECUTABLE)


def _move(mapped: MappedRange) -> None:
    transfer.move(mapped.table, mapped.gather, mapped.start, mapped.end, mapped.start + _AWAY)
    mapped.gather.finish()


def _move_barely(mapped: MappedRange) -> None:
    for entries, there in zip(mapped.here, mapped.there, strict=True):
        there[:] = entries
        entries[:] = 0


def _zap(mapped: MappedRange) -> None:
    edits.zap(mapped.table, mapped.gather, mapped.start, mapped.end)
    mapped.gather.finish()


def _zap_barely(mapped: MappedRange) -> None:
    count = mapped.table.format.levels[0].entries
    for number, entries in enumerate(mapped.here):
        shown = mapped.numbers[number * count : number * count + count]
        np.subtract.at(mapped.frames.refs_array, shown, _ONE)
        np.subtract.at(mapped.frames.maps_array, shown, _ONE)
        entries[:] = 0


def _fork(mapped: MappedRange) -> None:
    transfer.copy(mapped.table, mapped.child, mapped.gather, [(mapped.start, mapped.end)], private=True)
    mapped.gather.finish()


def _fork_barely(mapped: MappedRange) -> None:
    fmt, count = mapped.table.format, mapped.table.format.levels[0].entries
    written = fmt.leaf_bits(MAPPED)
    change = np.uint64(written ^ fmt.write_protect(written))
    for number, (entries, copied) in enumerate(zip(mapped.here, mapped.copied, strict=True)):
        np.bitwise_xor(entries, change, out=entries)
        copied[:] = entries
        shown = mapped.numbers[number * count : number * count + count]
        np.add.at(mapped.frames.refs_array, shown, _ONE)
        np.add.at(mapped.frames.maps_array, shown, _ONE)


WORKS: Mapping[str, Work] = {
    "protect": Work(
        "make {} written pages read-only",
        "mm.tables.edits.protect",
        "{} numpy exclusive-ors of {} KiB",
        lambda mapped: _protect(mapped, Protection.READ),
        lambda mapped: _protect_barely(mapped, _FLAGS | PageFlags.DIRTY),
    ),
    "protect-exec": Work(
        "make {} written pages read-only and executable",
        "mm.tables.edits.protect",
        "{} numpy exclusive-ors of {} KiB, and one marking of the frames",
        lambda mapped: _protect(mapped, Protection.READ | Protection.EXECUTE),
        lambda mapped: _protect_barely(mapped, _FLAGS | PageFlags.DIRTY | PageFlags.EXECUTE),
    ),
    "move": Work(
        "move {} pages to tables that exist",
        "mm.tables.transfer.move",
        "{} numpy copies and clearings of {} KiB",
        _move,
        _move_barely,
    ),
    "unmap": Work(
        "clear {} pages and count their frames down",
        "mm.tables.edits.zap",
        "{} numpy clearings of {} KiB, their frames, known before, counted down",
        _zap,
        _zap_barely,
    ),
    "fork": Work(
        "copy {} written pages to another process's tables that exist, writable in neither",
        "mm.tables.transfer.copy",
        "{} numpy exclusive-ors and copies of {} KiB, their frames, known before, counted up",
        _fork,
        _fork_barely,
    ),
}


def figure(isa: str, name: str, goal: float, *, length: int = 1 << 30, repetitions: int = 15) -> Figure:
    """The figure of one edit for `length` bytes, a multiple of what a leaf table covers."""
    work, fmt = WORKS[name], FORMATS[isa]()
    pages, entries = length // fmt.page_size, fmt.levels[0].entries

    def measured(edit: Callable[[MappedRange], object], done: dict[str, Entries]) -> Callable[[], float]:
        def run() -> float:
            with mapped(isa, length) as there:
                with collector_off():
                    start = now()
                    edit(there)
                    spent = now() - start
                done["counts"] = there.frames.maps_array.astype(np.uint64)
                done["entries"] = np.concatenate([*there.here, *there.there, *there.copied])
                return spent

        return run

    ours, floor = dict[str, Entries](), dict[str, Entries]()
    our_run, floor_run = measured(work.ours, ours), measured(work.floor, floor)

    def floor_and_compare() -> float:
        spent = floor_run()
        for what, made in ours.items():
            if not np.array_equal(made, floor[what]):
                raise BenchError(f"{name}/{isa}: the two sides made different {what}")
        return spent

    return Figure(
        name=name,
        isa=isa,
        what=work.what.format(f"{pages:,}"),
        program=work.program,
        floor_is=work.floor_is.format(pages // entries, entries * 8 >> 10),
        unit="range",
        ours=our_run,
        floor=floor_and_compare,
        repetitions=repetitions,
        goal=goal,
    )
