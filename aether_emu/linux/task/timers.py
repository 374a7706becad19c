"""What happens at a time: by the machine's clock, or by what a process or thread has used of a processor.

    Timers            of the machine: who is due first. The scheduler asks `first` and calls `fire`
    ProcessorTimers   of a process or thread: looked at when a task has left its processor

Neither knows what happens: each has things with a deadline and a function to call then. One whose deadline
has changed meanwhile is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Protocol

from aether_emu.clock import LAST_NS
from aether_emu.linux.task.usage import Usage

PROFILED, OF_USER, SCHEDULED = range(3)
"""What of a processor's time counts (Linux: CPUCLOCK_PROF, VIRT, SCHED): all of it, or the program's own."""
_FEW = 64  # entries that are kept whether or not their timers still run until then


class Due(Protocol):
    """Whatever runs until a time, in ns; None while it does not."""

    @property
    def deadline(self) -> int | None: ...


class Timers:
    """The machine's timers that run by its clock."""

    def __init__(self) -> None:
        self.heap: list[tuple[int, int, Due, Callable[[], None]]] = []
        self._count, self._most = 0, _FEW

    def add(self, timer: Due, expire: Callable[[], None]) -> None:
        """It runs until its deadline, and `expire` is called then; never at the end of time."""
        assert timer.deadline is not None, "it runs"
        if timer.deadline >= LAST_NS:
            return
        self._count += 1
        heappush(self.heap, (timer.deadline, self._count, timer, expire))
        if len(self.heap) > self._most:  # a program may set one timer anew as often as it likes
            running = {id(entry[2]): entry for entry in self.heap if entry[2].deadline == entry[0]}
            self.heap = sorted(running.values(), key=lambda entry: entry[:2])
            self._most = 2 * len(self.heap) + _FEW

    def first(self) -> int | None:
        """The earliest deadline, in virtual ns."""
        heap = self.heap
        while heap and heap[0][2].deadline != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def fire(self, now: int) -> None:
        """Time is up for those whose deadline is `now` or was before."""
        while (first := self.first()) is not None and first <= now:
            heappop(self.heap)[3]()


class ProcessorTimers:
    """The timers that run by what somebody has used, which `used` tells."""

    def __init__(self, used: Callable[[], Usage]) -> None:
        self._used = used
        self.running: list[tuple[int, int, Due, Callable[[], None]]] = []  # deadline, what counts
        self._most = _FEW

    def now(self, counted: int) -> int:
        """ns that were used: all, or OF_USER."""
        used = self._used()
        return used.time - used.system if counted == OF_USER else used.time

    def add(self, timer: Due, deadline: int, counted: int, expire: Callable[[], None]) -> None:
        """It runs until `deadline`, and `expire` is called then, or a little later."""
        if len(self.running) > self._most:
            self._prune()
            self._most = 2 * len(self.running) + _FEW
        self.running.append((deadline, counted, timer, expire))

    def _prune(self) -> None:
        running = {id(entry[2]): entry for entry in self.running if entry[2].deadline == entry[0]}
        self.running = list(running.values())

    def left(self) -> int | None:
        """ns until the first is due; None if none runs."""
        if self.running:
            self._prune()
        return min((at - self.now(counted) for at, counted, _, _ in self.running), default=None)

    def look(self) -> None:
        """Are there some that are due?"""
        if not self.running:
            return
        self._prune()
        due = [entry for entry in self.running if entry[0] <= self.now(entry[1])]
        self.running = [entry for entry in self.running if entry not in due]
        for deadline, _, timer, expire in due:
            if timer.deadline == deadline:
                expire()
