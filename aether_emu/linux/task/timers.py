"""Timers in virtual time: interval timers, and those of timer_create(2), which send signals.

    Timers          of the machine: who is due first. The scheduler asks `first` and calls `fire`
    ProcessTimers   of a process: what it armed, and what becomes of it when time is up

A timer with an interval stands still from its signal until that is taken, and counts then what it has missed:
so nothing piles up. Those that measure a processor's time are looked at when a task has left it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from heapq import heappop, heappush
from typing import Any, Protocol

from aether_emu.clock import LAST_NS
from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.task.usage import Usage
from aether_emu.records import dataclass

REAL, VIRTUAL, PROF = -1, -2, -3
"""Numbers of the interval timers; those of timer_create count from 0."""
MOST_OVERRUNS = (1 << 31) - 1
_FEW = 64  # entries that are kept whether or not their timers still run until then


@dataclass(slots=True)
class Timer:
    """One timer. `signal` 0 tells nobody; `thread` is the one that is told, 0 is any.

    `of_processor` says that it runs by the time its process has used. `deadline` is in ns of that time, or of
    the machine's clock; None while it does not run. `base` is what the program's clock shows when the
    machine's shows 0. `waiting` is true from its signal until that is taken; `due` is when it was sent.
    """

    number: int
    signal: int
    value: int = 0
    thread: int = 0
    of_processor: bool = False
    base: int = 0
    interval: int = 0
    deadline: int | None = None
    due: int = 0
    waiting: bool = False
    overruns: int = 0


class Due(Protocol):
    """Whatever runs until a time."""

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


class Clock(Protocol):
    """The machine's clock."""

    @property
    def now_ns(self) -> int: ...


class Shared(Protocol):
    """The kernel, as timers see it."""

    @property
    def timers(self) -> Timers: ...
    @property
    def clock(self) -> Clock: ...


class Receiver(Protocol):
    """What takes signals for one task."""

    def post(self, info: SignalInfo) -> None: ...


class Thread(Protocol):
    """A task of the process."""

    @property
    def tid(self) -> int: ...
    @property
    def signals(self) -> Receiver: ...


class Owner(Protocol):
    """A process, as its timers see it."""

    @property
    def kernel(self) -> Shared: ...
    @property
    def tasks(self) -> Sequence[Thread]: ...
    def used(self) -> Usage: ...
    def post(self, info: SignalInfo) -> None: ...


class ProcessTimers:
    """A process's timers by number."""

    def __init__(self, process: Owner) -> None:
        self._process = process
        self.timers: dict[int, Timer] = {}
        self.next_number = 0

    def interval_timer(self, number: int) -> Timer:
        """One of the three of setitimer(2)."""
        signal = {REAL: sig.SIGALRM, VIRTUAL: sig.SIGVTALRM, PROF: sig.SIGPROF}[number]
        return self.timers.setdefault(number, Timer(number, signal, of_processor=number != REAL))

    def now(self, timer: Timer) -> int:
        """What the time is that the timer runs by, in ns."""
        if not timer.of_processor:
            return self._process.kernel.clock.now_ns
        return self._process.used().time

    def arm(self, timer: Timer, deadline: int | None, interval: int) -> None:
        """Let it run until `deadline`, and then again each `interval` ns; None stops it."""
        timer.deadline, timer.interval, timer.waiting, timer.overruns = deadline, interval, False, 0
        if deadline is not None and not timer.of_processor:
            self._process.kernel.timers.add(timer, partial(self.expire, timer))

    def left(self, timer: Timer) -> int:
        """ns until it is due; 0 while it does not run, and at least 1 while it does."""
        if timer.deadline is None:
            if timer.waiting and timer.interval:  # as if it had gone on
                return timer.interval - (self.now(timer) - timer.due) % timer.interval
            return 0
        return max(1, timer.deadline - self.now(timer))

    def expire(self, timer: Timer) -> None:
        """Its time is up."""
        assert timer.deadline is not None, "it runs"
        timer.due, timer.deadline = timer.deadline, None
        if not timer.signal:
            self._go_on(timer)
            return
        timer.waiting = True
        posix = timer.number >= 0
        info = SignalInfo(timer.signal, sig.SI_TIMER, pid=timer.number, value=timer.value)
        info = info if posix else SignalInfo(timer.signal, sig.SI_KERNEL)
        with suppress(Refused):  # too many signals are queued
            if not timer.thread:
                self._process.post(info)
            for task in self._process.tasks:
                if task.tid == timer.thread:
                    task.signals.post(info)
        if timer.of_processor and not posix:
            self._go_on(timer)

    def taken(self, info: SignalInfo) -> SignalInfo:
        """A signal is taken: its timer goes on, and the signal tells how often it was due meanwhile."""
        if info.number == sig.SIGALRM and REAL in self.timers and self.timers[REAL].waiting:
            self._go_on(self.timers[REAL])
        timer = self.timers.get(info.pid) if info.code == sig.SI_TIMER else None
        if timer is None or not timer.waiting:
            return info
        return replace(info, uid=self._go_on(timer))

    def _go_on(self, timer: Timer) -> int:
        """It runs again, if it has an interval: how often it was due since."""
        timer.waiting = False
        if timer.interval:
            missed = max(0, self.now(timer) - timer.due) // timer.interval
            timer.overruns = min(missed, MOST_OVERRUNS)
            timer.deadline = timer.due + (missed + 1) * timer.interval
            if not timer.of_processor:
                self._process.kernel.timers.add(timer, partial(self.expire, timer))
        return timer.overruns

    def look(self) -> None:
        """A task has left its processor: are those due that run by that time?"""
        for timer in list(self.timers.values()):
            if timer.of_processor and timer.deadline is not None and timer.deadline <= self.now(timer):
                self.expire(timer)

    def processor_time_left(self) -> int | None:
        """ns of processor time until one of those is due."""
        running = [t for t in self.timers.values() if t.of_processor and t.deadline is not None]
        return min((self.left(timer) for timer in running), default=None)

    def delete(self, timer: Timer) -> None:
        """It is gone."""
        timer.deadline = None
        del self.timers[timer.number]

    def clear(self, *, keeps_intervals: bool) -> None:
        """The process has ended, or another program begins, which keeps the interval timers."""
        for timer in list(self.timers.values()):
            if timer.number >= 0 or not keeps_intervals:
                self.delete(timer)

    def capture(self) -> dict[str, Any]:
        """What there is."""
        return {"next": self.next_number, "timers": [asdict(timer) for timer in self.timers.values()]}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `capture` gave."""
        self.next_number = state["next"]
        for fields in state["timers"]:
            timer = self.timers[fields["number"]] = Timer(**fields)
            if timer.deadline is not None and not timer.of_processor:
                self._process.kernel.timers.add(timer, partial(self.expire, timer))
