"""TLB consistency between CPUs: who is told what, who has done it, and what may be freed only then.

Editors of a page table collect in a `Gather` what they took away (an absent entry, a permission, another
frame): those translations may still stand in a TLB. `finish` invalidates them on every CPU that may hold
them, and only when each of these has acknowledged are frames and tables given back. Nothing is freed before
it is flushed.

    finish --> CPU that runs now: flushed at once
           --> any other CPU: a `Flush` in its queue, which names the pages; carried out when that CPU takes
               notice of it (`acknowledge`), or when memory is short (`settle`)
           --> the CPU that asked goes on with its program when all others have acknowledged

Which edits owe an invalidation is not decided here but in `mm.tables.owed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aether_emu.machine.cpu import Cpu
from aether_emu.mm.counters import Counters, Event
from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.mm.shootdown import Runner, Shootdown
from aether_emu.mm.tables.page import PageTable
from aether_emu.mm.tags import Context
from aether_emu.ports import Trace

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


_ONE = np.uint32(1)  # of the columns' type, or numpy takes the slow way
_FILE = int(Kind.FILE)  # plain: numpy needs 20 us to compare with an enum


class Flush:
    """One invalidation on its way. `pages` are addresses; None means everything.

    `waiting` has a bit for each CPU that has not acknowledged yet. `done` runs when none is left. `blocks` is
    how many the slowest of those that have acknowledged executed meanwhile. With `tables` a table was taken
    out: nobody acknowledges before walkers have forgotten it (Intel SDM 3A 4.10.3.1).
    """

    __slots__ = ("blocks", "done", "pages", "tables", "waiting")

    def __init__(self, pages: Sequence[int] | None, waiting: int, *, tables: bool = False) -> None:
        self.pages, self.waiting, self.tables, self.blocks = pages, waiting, tables, 0
        self.done: list[Callable[[], None]] = []

    def acknowledge(self, index: int) -> None:
        """CPU `index` uses none of the translations any more."""
        self.waiting &= ~(1 << index)
        if not self.waiting:
            done, self.done = self.done, []
            for action in done:
                action()


class Tlb:
    """The TLBs of all CPUs. `running` is the index of the CPU that executes now.

    Up to `ceiling` single pages are flushed one by one; beyond that the whole TLB is dropped. `way` says how
    other CPUs are reached, `runner` what they do meanwhile. `windows` has, for each CPU that has been asked
    and goes on for a while, the count of its blocks at which it takes notice; `unsettled` is the mask of the
    CPUs in the address spaces that are concerned, where nothing is edited before they have.
    """

    def __init__(self, cpus: Sequence[Cpu], counters: Counters, trace: Trace, ceiling: int = 8) -> None:
        self._cpus = cpus
        self._n = counters.n
        self._trace = trace
        self.ceiling = ceiling
        self.running = 0
        self.way = Shootdown()
        self.runner = Runner()
        self.windows: dict[int, int] = {}
        self.unsettled = 0
        self._queues: list[list[Flush]] = [[] for _ in cpus]
        self._behind: list[list[int]] = [[] for _ in cpus]  # pages that a lazy CPU drops when it wakes
        self._asked_at = [0] * len(cpus)  # blocks, when the first in the queue was
        self._far_behind = 0  # mask of those that drop everything then

    @property
    def pending(self) -> int:
        """The mask of CPUs that have something to acknowledge."""
        return sum(1 << index for index, queue in enumerate(self._queues) if queue)

    @property
    def awaited(self) -> bool:
        """Whether a CPU goes on with what it was asked to drop, and has not acknowledged that."""
        return bool(self.windows)

    def flush_pages(self, mask: int, pages: Sequence[int]) -> Flush | None:
        """Drop single pages on the CPUs of `mask`. As `flush_all`."""
        if mask >> self.running & 1:
            self._drop_pages(self.running, pages)
        return self._ask(mask, pages)

    def flush_all(self, mask: int, *, tables: bool = False) -> Flush | None:
        """Drop everything on the CPUs of `mask`. Returns what others must still acknowledge, if any.

        `tables`: a table was taken out, so that walkers must forget it too.
        """
        if mask >> self.running & 1:
            self._drop_all(self.running)
        return self._ask(mask, None, tables=tables)

    def acknowledge(self, index: int) -> None:
        """Carry out what is asked of CPU `index`, which is about to run or is made to."""
        queue = self._queues[index]
        if not (queue or self._behind[index] or self._far_behind >> index & 1):
            return
        asked, queue[:] = list(queue), []
        pages = list(self._behind[index])
        everything = bool(self._far_behind >> index & 1)
        blocks = self._cpus[index].blocks - self._asked_at[index] if asked else 0
        self._forget(index)
        for flush in asked:
            flush.blocks = max(flush.blocks, blocks)
            everything |= flush.pages is None
            pages.extend(flush.pages or ())
        if asked and not self.way.broadcast:
            self._n[Event.INTERRUPT_TAKEN] += 1
        early = self.way.acknowledged == "early"
        for flush in asked:
            if early and not flush.tables:
                flush.acknowledge(index)
        if everything or len(pages) > self.ceiling:
            self._drop_all(index, counts=not self.way.broadcast)
            self.way.everything += 1
        else:
            self._drop_pages(index, pages, counts=not self.way.broadcast)
            self.way.pages += len(pages)
        for flush in asked:
            if not early or flush.tables:
                flush.acknowledge(index)

    def _forget(self, index: int) -> None:
        self._behind[index].clear()
        self._far_behind &= ~(1 << index)
        self.windows.pop(index, None)
        if not self.windows:
            self.unsettled = 0

    def owes(self, index: int) -> bool:
        """Whether CPU `index` has not dropped yet all that it must."""
        return bool(self._queues[index]) or self._is_behind(index)

    def dropped(self, index: int) -> None:
        """CPU `index` has dropped its whole TLB for another reason: all that was asked of it is done."""
        queue = self._queues[index]
        asked, queue[:] = list(queue), []
        self._forget(index)
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

    def settle_idle(self) -> None:
        """As `settle`, for the CPUs that have nothing to execute any more."""
        for index, queue in enumerate(self._queues):
            if queue and not self.runner.executes(index):
                self.acknowledge(index)

    def capture(self) -> dict[str, Any]:
        """Once every CPU has acknowledged: what lazy ones drop when they wake, and the figures."""
        assert not self.pending, "all is settled"
        figures = {name: getattr(self.way, name) for name in Shootdown.FIGURES}
        return {
            "running": self.running,
            "behind": [list(pages) for pages in self._behind],
            "far_behind": self._far_behind,
            "figures": figures,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured ones."""
        self.running, self._far_behind = state["running"], state["far_behind"]
        self._behind = [list(pages) for pages in state["behind"]]
        for name, count in state["figures"].items():
            setattr(self.way, name, count)

    def wait_for(self, flush: Flush) -> None:
        """The CPU that runs now goes on when all have acknowledged `flush`."""
        go_on = self.runner.hold(self.running, flush)
        if go_on is not None:
            flush.done.append(go_on)

    def frees_early(self) -> bool:
        """Whether memory is given back before all have acknowledged: see `mm.tlb_faults`."""
        return False

    def skips_break(self) -> bool:
        """Whether a live entry becomes another one without a break: likewise."""
        return False

    def reuses_tag(self) -> bool:
        """Whether a CPU uses a tag without the flush that it owes: likewise."""
        return False

    def _ask(self, mask: int, pages: Sequence[int] | None, *, tables: bool = False) -> Flush | None:
        if len(self._cpus) == 1:
            return None
        way, others = self.way, mask & ~(1 << self.running)
        way.spared += len(self._cpus) - 1 - others.bit_count()
        if not others:
            return None
        if way.broadcast:
            way.broadcasts += 1
            self._n[Event.BROADCAST] += 1
        flush = Flush(pages, others, tables=tables)
        for index in range(len(self._cpus)):
            if others >> index & 1:
                self._reach(flush, index, lazily=way.lazy and not tables)
        if self.windows:  # not before: the first to acknowledge may leave none, and a later CPU open one
            self.unsettled |= mask
        return flush if flush.waiting else None

    def _reach(self, flush: Flush, index: int, *, lazily: bool) -> None:
        """Have CPU `index` do its part of `flush`."""
        way = self.way
        if lazily and not way.broadcast and self.runner.idles(index):
            way.lazily += 1
            self._remember(index, flush.pages)
            flush.acknowledge(index)
            return
        queue = self._queues[index]
        if not way.broadcast:
            if queue:
                way.coalesced += 1
            else:
                way.sent += 1
                self._n[Event.INTERRUPT] += 1
        if not queue:
            self._asked_at[index] = self._cpus[index].blocks
        queue.append(flush)
        if index in self.windows:
            return
        blocks = 0 if self._is_behind(index) else self.runner.meanwhile(index)
        if blocks == 0:
            self.acknowledge(index)
        elif blocks is not None:
            self.windows[index] = self._cpus[index].blocks + blocks

    def _is_behind(self, index: int) -> bool:
        return bool(self._behind[index]) or bool(self._far_behind >> index & 1)

    def _remember(self, index: int, pages: Sequence[int] | None) -> None:
        """CPU `index` is lazy: it drops that when it wakes."""
        behind = self._behind[index]
        if pages is None or len(behind) + len(pages) > self.ceiling:
            self._far_behind |= 1 << index
            behind.clear()
        elif not self._far_behind >> index & 1:
            behind.extend(pages)

    def _drop_pages(self, index: int, pages: Sequence[int], *, counts: bool = True) -> None:
        if counts:
            self._n[Event.FLUSH_PAGE] += len(pages)
        cpu = self._cpus[index]
        for va in pages:
            cpu.flush_page(va)
        if self._trace.enabled:
            self._trace.event("tlb.flush_page", pages=len(pages))

    def _drop_all(self, index: int, *, counts: bool = True) -> None:
        if counts:
            self._n[Event.FLUSH_ALL] += 1
        self._cpus[index].flush_all()
        if self._trace.enabled:
            self._trace.event("tlb.flush_all")


class Gather:
    """Collects one operation's edits of a page table; `finish` flushes, then frees.

    `mask` names the CPUs that walk this address space. `give_back` takes the RAM frames that nothing
    references any more. `context` hears of each flush, for what CPUs keep of spaces that they have left.
    """

    def __init__(
        self,
        tlb: Tlb,
        mask: int,
        table: PageTable,
        frames: FrameTable,
        give_back: Callable[[list[int]], None],
        context: Context | None = None,
    ) -> None:
        self._context = context
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

    def finish(self, *, may_defer: bool = False) -> None:
        """Flush, and give back what nothing uses once every CPU has acknowledged. References go at once.

        The program goes on when all have. With `may_defer` it need not wait for them, for nothing but its
        memory is taken away.
        """
        flush = self._issue()
        unused, tables = self._release(), self._tables
        self._tables = []
        if flush is None:
            self._free_unused(unused, tables)
            return
        if may_defer and self._tlb.way.acknowledged == "deferred":
            self._tlb.way.deferred += 1
        else:
            self._tlb.wait_for(flush)
        if self._tlb.frees_early():
            self._free(unused, tables)
        elif unused or tables:
            flush.done.append(lambda: self._free_unused(unused, tables))

    def finish_at_once(self) -> None:
        """As `finish`, and every CPU has acknowledged: others than this program rely on the flush."""
        self.finish()
        self._tlb.settle()

    def then(self, action: Callable[[], object]) -> None:
        """Do what has to wait until `finish` is through, which it is: see `mm.joint`."""
        action()

    def flush(self) -> None:
        """Flush what was gathered so far; return when every CPU has. Nothing is freed before `finish`.

        For break before make: the entry is absent now, and becomes another one next.
        """
        flush = self._issue()
        if flush is not None:
            self._tlb.wait_for(flush)
            self._tlb.settle()

    def _issue(self) -> Flush | None:
        """Start the flush of what was gathered. Returns what other CPUs must still acknowledge, if any."""
        pages, everything = self._pages, self._all
        self._pages, self._all = [], False
        if self._context is not None and (everything or pages):
            self._context.flushed(None if everything else pages)
        if everything:
            return self._tlb.flush_all(self._mask, tables=bool(self._tables))
        return self._tlb.flush_pages(self._mask, pages) if pages else None

    def _free_unused(self, unused: list[int], tables: list[int]) -> None:
        """Give back, once all CPUs have acknowledged what another address space took away of these frames.

        Its reference went before they had: what copy-on-write replaced in a parent, a child gives back.
        """
        if unused and self._tlb.awaited:
            self._tlb.settle()
        self._free(unused, tables)

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
