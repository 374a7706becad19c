"""TLB consistency between CPUs: who is told what, who has done it, and what may be freed only then.

Editors of a page table collect in a `Gather` what they took away (an absent entry, a permission, another
frame): those translations may still stand in a TLB. `finish` invalidates them on every CPU that may hold
them, and only when each of these has acknowledged are frames and tables given back. Nothing is freed before
it is flushed.

    finish --> CPU that runs now: flushed at once
           --> any other CPU: a `Flush` in its queue, which names the pages; carried out when that CPU
               next runs (`acknowledge`), or when memory is short (`settle`)

Which edits owe an invalidation is not decided here but in `mm.tables.owed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aether_emu.machine.cpu import Cpu
from aether_emu.mm.counters import Counters, Event
from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.mm.tables.page import PageTable
from aether_emu.ports import Trace

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


_ONE = np.uint32(1)  # of the columns' type, or numpy takes the slow way
_FILE = int(Kind.FILE)  # plain: numpy needs 20 us to compare with an enum


class Flush:
    """One invalidation on its way. `pages` are addresses; None means everything.

    `waiting` has a bit for each CPU that has not acknowledged yet. `done` runs when none is left.
    """

    __slots__ = ("done", "pages", "waiting")

    def __init__(self, pages: Sequence[int] | None, waiting: int) -> None:
        self.pages, self.waiting = pages, waiting
        self.done: list[Callable[[], None]] = []

    def acknowledge(self, index: int) -> None:
        """CPU `index` holds none of the translations any more."""
        self.waiting &= ~(1 << index)
        if not self.waiting:
            done, self.done = self.done, []
            for action in done:
                action()


class Tlb:
    """The TLBs of all CPUs. `running` is the index of the CPU that executes now.

    Up to `ceiling` single pages are flushed one by one; beyond that the whole TLB is dropped.
    Of each flush that concerns others, `asked` counts the CPUs that were asked, `spared` those that hold
    nothing of the address space, and `merged` how often one was carried out along with an earlier one.
    """

    def __init__(self, cpus: Sequence[Cpu], counters: Counters, trace: Trace, ceiling: int = 8) -> None:
        self._cpus = cpus
        self._n = counters.n
        self._trace = trace
        self.ceiling = ceiling
        self.running = 0
        self.asked = self.spared = self.merged = 0
        self._queues: list[list[Flush]] = [[] for _ in cpus]

    @property
    def pending(self) -> int:
        """The mask of CPUs that have something to acknowledge."""
        return sum(1 << index for index, queue in enumerate(self._queues) if queue)

    def flush_pages(self, mask: int, pages: Sequence[int]) -> Flush | None:
        """Drop single pages on the CPUs of `mask`. As `flush_all`."""
        if mask >> self.running & 1:
            self._drop_pages(self.running, pages)
        return self._ask(mask, pages)

    def flush_all(self, mask: int) -> Flush | None:
        """Drop everything on the CPUs of `mask`. Returns what others must still acknowledge, if any."""
        if mask >> self.running & 1:
            self._drop_all(self.running)
        return self._ask(mask, None)

    def acknowledge(self, index: int) -> None:
        """Carry out what is asked of CPU `index`, which is about to run or is made to."""
        queue = self._queues[index]
        if not queue:
            return
        asked, queue[:] = list(queue), []
        pages: list[int] = []
        everything = False
        for flush in asked:
            everything |= flush.pages is None
            pages.extend(flush.pages or ())
        if everything or len(pages) > self.ceiling:
            self._drop_all(index)
        else:
            self._drop_pages(index, pages)
        self.merged += len(asked) - 1
        for flush in asked:
            flush.acknowledge(index)

    def dropped(self, index: int) -> None:
        """CPU `index` has dropped its whole TLB for another reason: all that was asked of it is done."""
        queue = self._queues[index]
        asked, queue[:] = list(queue), []
        for flush in asked:
            flush.acknowledge(index)

    def enter(self, index: int) -> None:
        """CPU `index` runs from now on, with none of what it was asked to drop."""
        self.running = index
        self.acknowledge(index)

    def settle(self) -> bool:
        """Have every CPU acknowledge now. Returns whether one had something to acknowledge."""
        waiting = [index for index, queue in enumerate(self._queues) if queue]
        for index in waiting:
            self.acknowledge(index)
        return bool(waiting)

    def _ask(self, mask: int, pages: Sequence[int] | None) -> Flush | None:
        if len(self._cpus) == 1:
            return None
        others = mask & ~(1 << self.running)
        count = others.bit_count()
        self.spared += len(self._cpus) - 1 - count
        if not others:
            return None
        self.asked += count
        flush = Flush(pages, others)
        for index, queue in enumerate(self._queues):
            if others >> index & 1:
                queue.append(flush)
        return flush

    def _drop_pages(self, index: int, pages: Sequence[int]) -> None:
        self._n[Event.FLUSH_PAGE] += len(pages)
        cpu = self._cpus[index]
        for va in pages:
            cpu.flush_page(va)
        if self._trace.enabled:
            self._trace.event("tlb.flush_page", pages=len(pages))

    def _drop_all(self, index: int) -> None:
        self._n[Event.FLUSH_ALL] += 1
        self._cpus[index].flush_all()
        if self._trace.enabled:
            self._trace.event("tlb.flush_all")


class Gather:
    """Collects one operation's edits of a page table; `finish` flushes, then frees.

    `mask` names the CPUs that may hold translations of this address space. `give_back` takes the RAM frames
    that nothing references any more.
    """

    def __init__(
        self,
        tlb: Tlb,
        mask: int,
        table: PageTable,
        frames: FrameTable,
        give_back: Callable[[list[int]], None],
    ) -> None:
        self._tlb, self._mask, self._table, self._frames = tlb, mask, table, frames
        self._give_back = give_back
        self._pages: list[int] = []
        self._all = False
        self._dropped: list[int] = []
        self._dropped_many: list[Numbers] = []
        self._tables: list[int] = []

    def page(self, va: int, size: int = 0) -> None:
        """The translation of one page may be stale.

        A large leaf (`size` over a page) takes a full flush: single-page invalidation of a large
        page drops everything in this engine, and is counted as what it is.
        """
        if size > self._table.format.page_size or len(self._pages) >= self._tlb.ceiling:
            self._all = True
        else:
            self._pages.append(va)

    def pages(self, va: int, numbers: Numbers) -> None:
        """As `page`, for the pages with these numbers, counted from the one at `va`."""
        if numbers.size + len(self._pages) > self._tlb.ceiling:
            self._all = True
        else:
            shift = self._table.format.page_shift
            self._pages.extend(va + (number << shift) for number in numbers.tolist())

    def drop(self, frame: int) -> None:
        """An entry no longer points at `frame`.

        `finish` takes away its reference and mapping at once. If they were the last, the frame is freed when
        every CPU has acknowledged the flush.
        """
        self._dropped.append(frame)

    def drop_many(self, frames: Numbers) -> None:
        """As `drop`, for an array; a frame may stand in it more than once."""
        self._dropped_many.append(frames)

    def detach(self, tables: list[int]) -> None:
        """Table frames that nothing points at any more. The walkers may still hold them: full flush."""
        if tables:
            self._tables += tables
            self._all = True

    def finish(self) -> None:
        """Flush, and give back what nothing uses once every CPU has acknowledged. References go at once."""
        flush = self._issue()
        unused, tables = self._release(), self._tables
        self._tables = []
        if flush is not None and (unused or tables):
            flush.done.append(lambda: self._free(unused, tables))
        else:
            self._free(unused, tables)

    def flush(self) -> None:
        """Flush what was gathered so far; return when every CPU has. Nothing is freed before `finish`.

        For break before make: the entry is absent now, and becomes another one next.
        """
        if self._issue() is not None:
            self._tlb.settle()

    def _issue(self) -> Flush | None:
        """Start the flush of what was gathered. Returns what other CPUs must still acknowledge, if any."""
        pages, everything = self._pages, self._all
        self._pages, self._all = [], False
        if everything:
            return self._tlb.flush_all(self._mask)
        return self._tlb.flush_pages(self._mask, pages) if pages else None

    def _free(self, unused: list[int], tables: list[int]) -> None:
        if tables:
            self._table.free_tables(tables)
        self._give_back(unused)

    def _release(self) -> list[int]:
        frames = self._frames
        unused: list[int] = []
        kind, refs, maps = frames.kind, frames.refs, frames.maps
        for frame in self._dropped:
            maps[frame] -= 1
            left = refs[frame] = refs[frame] - 1
            if not left and kind[frame] != _FILE:
                unused.append(frame)
        for many in self._dropped_many:
            np.subtract.at(frames.refs_array, many, _ONE)
            np.subtract.at(frames.maps_array, many, _ONE)
            idle = many[(frames.refs_array[many] == 0) & (frames.kind_array[many] != _FILE)]
            unused.extend(dict.fromkeys(idle.tolist()))  # np.unique would import numpy.ma for this
        self._dropped, self._dropped_many = [], []
        return unused
