"""What edits have left behind: translations and tables that CPUs may hold though the bytes say otherwise.

A translation that is valid may be kept by each CPU that walks its table, at any time and without an access
(speculation: Intel SDM 3A 4.10.2.3; Arm ARM R_SQBCS). So there is nothing to note before an edit. After it,
each CPU that walks the root may hold the old entry until it flushes. A table that was taken out may be held
likewise by paging-structure caches (SDM 4.10.3) and walk caches (Arm ARM R_RVJDB).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from aether_emu.verify.tlbsan.finding import Where
from aether_emu.verify.tlbsan.rules import Loss

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Words = np.ndarray[Any, np.dtype[np.uint64]]


class Stale:
    """Entries of one table that one edit changed: those of the numbers `numbers`, counted from `va`.

    `cpus` has a bit for each CPU that may hold one of them; `flushed` what it has dropped alone so far.
    `table` is the table's physical address where a table was taken out, and 0 otherwise. `leaves`: the old
    entries are leaves, with frames; what table entries permitted is dropped by a full flush alone. `absent`:
    nothing stands there now. `idle` has a bit for each CPU that had nothing to execute then and has not
    worked since: whatever it is given to do, it drops first what it must. `freed` says where frames were
    given back that a CPU could still hold because of that, by position.
    """

    __slots__ = (
        "absent", "cpus", "flushed", "freed", "idle", "index", "leaves", "level", "loss", "numbers", "olds",
        "root", "shift", "table", "va", "where",
    )  # fmt: skip

    def __init__(
        self,
        root: int,
        level: int,
        va: int,
        shift: int,
        numbers: list[int],
        olds: list[int],
        cpus: int,
        loss: Loss,
        where: Where,
        *,
        absent: bool,
        leaves: bool = True,
        table: int = 0,
    ) -> None:
        self.root, self.level, self.va, self.shift = root, level, va, shift
        self.numbers, self.olds, self.cpus, self.loss = numbers, olds, cpus, loss
        self.where, self.absent, self.leaves, self.table = where, absent, leaves, table
        self.flushed: dict[int, set[int]] = {}
        self.freed: dict[int, Where] = {}
        self.idle = 0
        self.index: dict[int, int] | None = None

    def position(self, va: int) -> int | None:
        """Which of its entries translates `va`."""
        number = va - self.va >> self.shift
        if not 0 <= number <= self.numbers[-1]:
            return None
        if self.index is None:
            self.index = {number: at for at, number in enumerate(self.numbers)}
        return self.index.get(number)

    def holders(self, position: int) -> Iterator[int]:
        """The CPUs that may still hold the entry at a position of it."""
        for cpu in range(self.cpus.bit_length()):
            if self.cpus >> cpu & 1 and position not in self.flushed.get(cpu, ()):
                yield cpu

    def given_back(self, cpu: int) -> int | None:
        """The position of an entry that a CPU may still hold though its frame was given back."""
        gone = self.flushed.get(cpu, ())
        return next((at for at in self.freed if at not in gone), None) if self.cpus >> cpu & 1 else None

    def first(self, cpu: int) -> int:
        """The position of the first entry that a CPU of `cpus` may still hold."""
        gone = self.flushed.get(cpu, ())
        return next(at for at in range(len(self.numbers)) if at not in gone)

    def address(self, position: int) -> int:
        return self.va + (self.numbers[position] << self.shift)

    def drop(self, cpu: int) -> None:
        """A CPU holds none of them any more."""
        self.cpus &= ~(1 << cpu)
        self.flushed.pop(cpu, None)

    def drop_page(self, cpu: int, va: int, *, all_tables: bool) -> bool:
        """A CPU has invalidated `va`. Whether that dropped something it may have held.

        `all_tables`: invalidating any address forgets every table (INVLPG: SDM 3A 4.10.4.1; on AMD's CPUs
        while EFER.TCE is clear, as it is here: APM 2 5.5.3). Otherwise the tables on the way to that address
        alone (TLBI VAE1: Arm ARM R_LGSCG).
        """
        if self.table and all_tables:
            self.drop(cpu)
            return True
        at = self.position(va)
        if at is None or not (self.leaves or self.table):
            return False
        if len(self.numbers) == 1:
            self.drop(cpu)
            return True
        gone = self.flushed.setdefault(cpu, set())
        if at in gone:
            return False
        gone.add(at)
        if len(gone) == len(self.numbers):
            self.drop(cpu)
        return True


class Behind:
    """All that is stale, and quickly whether a frame is among it.

    `behind` is a list that is empty most of the time: whoever asks often looks at it first.
    """

    def __init__(self, base: int, page_shift: int, frames: int, address: int) -> None:
        self.behind: list[Stale] = []
        self._base, self._page_shift, self._count, self._address = base, page_shift, frames, address
        held = np.zeros(frames, np.int32)
        self.held = memoryview(held.data)  # how many stale entries and tables show each frame
        self._held = held

    def add(self, stale: Stale) -> None:
        self.behind.append(stale)
        self._count_frames(stale, 1)

    def sweep(self) -> None:
        """Forget what no CPU holds any more."""
        kept = []
        for stale in self.behind:
            if stale.cpus:
                kept.append(stale)
            else:
                self._count_frames(stale, -1)
        self.behind[:] = kept

    def frame(self, address: int) -> int:
        """The number of the frame at a physical address."""
        return address - self._base >> self._page_shift

    def address(self, frame: int) -> int:
        """Where a frame begins."""
        return self._base + (frame << self._page_shift)

    def spans(self, stale: Stale) -> Iterator[tuple[int, int]]:
        """(first frame, number of frames) of each entry, in their order."""
        if stale.table:
            yield self.frame(stale.table), 1
            return
        if not stale.leaves:
            return
        count = max(1, 1 << stale.shift >> self._page_shift)
        for old in stale.olds:
            yield self.frame(old & self._address & -(1 << stale.shift)), count

    def _count_frames(self, stale: Stale, by: int) -> None:
        held, count = self.held, self._count
        for first, length in self.spans(stale):
            if length == 1:
                if 0 <= first < count:
                    held[first] += by
            else:
                self._held[max(0, first) : max(0, first + length)] += by

    def holding(self, frame: int, count: int = 1) -> Iterator[tuple[Stale, int, int]]:
        """(stale, position in it, CPU) for each that may be held and shows one of some frames."""
        for stale in self.behind:
            for position, (first, length) in enumerate(self.spans(stale)):
                if first < frame + count and frame < first + length:
                    for cpu in stale.holders(position):
                        yield stale, position, cpu
