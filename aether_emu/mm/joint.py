"""One gather for many operations of an address space: a flush for all, and nothing freed before it.

    with joined(space):    op, op, op ...    each edits its entries; `finish` only notes how it would end
    the end                                  one flush, references fall, frames and tables go back

Between the operations no CPU executes, so nobody can use what a TLB still holds of them. What must be seen in
between is not joined: bringing pages (new entries would come where old ones are not flushed yet, which break
before make forbids), and whatever else relies on a flush that is over. Linux batches the flushes of one
process_madvise alike (since 6.16).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from aether_emu.mm.counters import Event
from aether_emu.mm.physical import Physical
from aether_emu.mm.tables.page import PageTable
from aether_emu.mm.tags import Context
from aether_emu.mm.tlb import Gather, Numbers


class Space(Protocol):
    """An address space, as far as a joint gather needs one."""

    joint: Joint | None
    cpus: int

    @property
    def physical(self) -> Physical: ...
    @property
    def table(self) -> PageTable: ...
    @property
    def context(self) -> Context: ...
    def gather(self) -> Gather: ...


class Joint(Gather):
    """Collects the edits of many operations. Each calls `finish`; `end` does it, once for all."""

    def __init__(self, space: Space) -> None:
        physical = space.physical
        super().__init__(physical.tlb, space.cpus, space.table, physical.frames, physical.free, space.context)
        self._n = physical.counters.n
        self._owes = False  # whether the operation in hand owes a flush
        self._owing = 0  # how many before it do
        self._may_defer, self._at_once = True, False
        self._afterwards: list[Callable[[], object]] = []

    def page(self, va: int, size: int = 0) -> None:
        """As `Gather.page`."""
        self._owes = True
        super().page(va, size)

    def pages(self, va: int, numbers: Numbers) -> None:
        """As `Gather.pages`."""
        self._owes |= bool(numbers.size)
        super().pages(va, numbers)

    def detach(self, tables: list[int]) -> None:
        """As `Gather.detach`."""
        self._owes |= bool(tables)
        super().detach(tables)

    def finish(self, *, may_defer: bool = False) -> None:
        """An operation is over: its flush may be one with those of others."""
        self._owing += self._owes
        self._may_defer &= may_defer or not self._owes
        self._owes = False

    def finish_at_once(self) -> None:
        """As `finish`, of an operation after which every CPU must have acknowledged."""
        self.finish()
        self._at_once = True

    def then(self, action: Callable[[], object]) -> None:
        """Do that once it is flushed: an object that lets go of its pages, a watcher that is told."""
        self._afterwards.append(action)

    def end(self) -> None:
        """Flush for all operations, and give back what nothing uses any more."""
        self.finish(may_defer=True)
        if self._owing:
            self._n[Event.FLUSH_JOINED] += self._owing - 1
        if self._at_once:
            super().finish()
            self._tlb.settle()
        else:
            super().finish(may_defer=self._may_defer)
        for action in self._afterwards:
            action()


@contextmanager
def joined(space: Space) -> Iterator[Joint]:
    """Let the operations on `space` inside have one gather. It ends whatever they raise."""
    assert space.joint is None, "operations are joined already"
    space.gather()  # what was asked before is acknowledged
    joint = space.joint = Joint(space)
    try:
        yield joint
    finally:
        space.joint = None
        joint.end()
