"""TLB consistency: on which CPUs an edit is flushed, and what may be freed only afterwards.

An edit that takes something away (unmap, a permission, another frame) leaves a stale translation
behind; one that only adds (absent to present, read-only to writable of the same frame) does not:
`mm.tables.owed` has the rule.
Editors therefore collect what they took away in a `Gather`, and its `finish` flushes first and
gives frames and tables back afterwards. Nothing is freed before it is flushed.

A CPU other than the running one is marked, and consumes its mark before it next runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aether_emu.machine.cpu import Cpu
from aether_emu.mm.counters import Counters, Event
from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.mm.tables.page import PageTable
from aether_emu.ports import Trace

_ONE = np.uint32(1)  # of the columns' type, or numpy takes the slow way


class Tlb:
    """The TLBs of all CPUs. `running` is the index of the CPU that executes now.

    Up to `ceiling` single pages are flushed one by one; beyond that the whole TLB is dropped.
    """

    def __init__(self, cpus: Sequence[Cpu], counters: Counters, trace: Trace, ceiling: int = 8) -> None:
        self._cpus = cpus
        self._n = counters.n
        self._trace = trace
        self.ceiling = ceiling
        self.running = 0
        self.pending = 0  # CPUs that must drop everything before they next run, a bit each

    @property
    def everyone(self) -> int:
        """The mask of all CPUs."""
        return (1 << len(self._cpus)) - 1

    def flush_pages(self, mask: int, pages: Sequence[int]) -> None:
        """Drop single pages on the CPUs of `mask`."""
        if mask >> self.running & 1:
            self._n[Event.FLUSH_PAGE] += len(pages)
            cpu = self._cpus[self.running]
            for va in pages:
                cpu.flush_page(va)
            if self._trace.enabled:
                self._trace.event("tlb.flush_page", pages=len(pages))
        self.pending |= mask & ~(1 << self.running)

    def flush_all(self, mask: int) -> None:
        """Drop the whole TLB on the CPUs of `mask`."""
        if mask >> self.running & 1:
            self._n[Event.FLUSH_ALL] += 1
            self._cpus[self.running].flush_all()
            if self._trace.enabled:
                self._trace.event("tlb.flush_all")
        self.pending |= mask & ~(1 << self.running)

    def consume(self, index: int) -> None:
        """CPU `index` is about to run: carry out what was marked for it."""
        self.running = index
        if self.pending >> index & 1:
            self.pending &= ~(1 << index)
            self._n[Event.FLUSH_ALL] += 1
            self._cpus[index].flush_all()


class Gather:
    """Collects one operation's edits of a page table; `finish` flushes, then frees.

    `mask` names the CPUs that may hold translations of this address space.
    """

    def __init__(self, tlb: Tlb, mask: int, table: PageTable, frames: FrameTable) -> None:
        self._tlb, self._mask, self._table, self._frames = tlb, mask, table, frames
        self._pages: list[int] = []
        self._all = False
        self._dropped: list[int] = []
        self._dropped_many: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
        self._tables: list[int] = []

    def page(self, va: int, size: int = 0) -> None:
        """The translation of one page got less permissive or changed its frame.

        A large leaf (`size` over a page) takes a full flush: single-page invalidation of a large
        page drops everything in this engine, and is counted as what it is.
        """
        if size > self._table.format.page_size or len(self._pages) >= self._tlb.ceiling:
            self._all = True
        else:
            self._pages.append(va)

    def pages(self, va: int, numbers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        """As `page`, for the pages with these numbers, counted from the one at `va`."""
        if numbers.size + len(self._pages) > self._tlb.ceiling:
            self._all = True
        else:
            shift = self._table.format.page_shift
            self._pages.extend(va + (number << shift) for number in numbers.tolist())

    def drop(self, frame: int) -> None:
        """An entry no longer points at `frame`: its reference and map count go after the flush."""
        self._dropped.append(frame)

    def drop_many(self, frames: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        """As `drop`, for an array; a frame may stand in it more than once."""
        self._dropped_many.append(frames)

    def detach(self, tables: list[int]) -> None:
        """Table frames that nothing points at any more. The walkers may still hold them: full flush."""
        if tables:
            self._tables += tables
            self._all = True

    def finish(self) -> list[int]:
        """Flush, then drop references and tables. Returns the RAM frames that are now unused."""
        self.flush()
        unused = self._release()
        if self._tables:
            self._table.free_tables(self._tables)
        self._tables = []
        return unused

    def flush(self) -> None:
        """Flush what was gathered so far; frames and tables stay until `finish`."""
        if self._all:
            self._tlb.flush_all(self._mask)
        elif self._pages:
            self._tlb.flush_pages(self._mask, self._pages)
        self._pages, self._all = [], False

    def _release(self) -> list[int]:
        frames = self._frames
        unused: list[int] = []
        kind, refs, maps = frames.kind, frames.refs, frames.maps
        for frame in self._dropped:
            maps[frame] -= 1
            left = refs[frame] = refs[frame] - 1
            if not left and kind[frame] != Kind.FILE:
                unused.append(frame)
        for many in self._dropped_many:
            np.subtract.at(frames.refs_array, many, _ONE)
            np.subtract.at(frames.maps_array, many, _ONE)
            idle = many[(frames.refs_array[many] == 0) & (frames.kind_array[many] != Kind.FILE)]
            unused.extend(dict.fromkeys(idle.tolist()))  # np.unique would import numpy.ma for this
        self._dropped, self._dropped_many = [], []
        return unused
