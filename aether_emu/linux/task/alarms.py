"""Timers of a process that send signals: those of setitimer(2), and those that it makes with timer_create(2).

    due --> a signal is posted, one at a time --> it is taken: the timer goes on, and tells what it has missed

So nothing piles up, however short the interval (Linux kernel/time/: itimer.c, posix-timers.c,
posix-cpu-timers.c). Where the signal is ignored nobody will take it: the timer goes on at once, but that of
ITIMER_REAL stands still.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Protocol

from aether_emu.clock import LAST_NS
from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.task.timers import OF_USER, PROFILED, ProcessorTimers, Timers
from aether_emu.records import dataclass

REAL, VIRTUAL, PROF = -1, -2, -3
"""Numbers of the interval timers; those of timer_create count from 0."""
MACHINE = 0
"""In place of a processor's clock: the timer runs by the machine's."""
_COUNTED = 3  # the bits of a processor's clock that say what counts
_MOST_OVERRUNS = (1 << 31) - 1
_TICK = 4_000_000  # ns: one whose signal is ignored is due no more often than Linux ticks at 250 Hz


@dataclass(slots=True)
class Timer:
    """One timer. `signal` 0 tells nobody; `thread` is the one that is told, 0 is any.

    `clock` is MACHINE, or a processor's as a number that names its owner (see `calls.time`). `base` is what
    the program's clock shows when the machine's shows 0. `expires` is when it is due, or was last, in ns of
    the clock it runs by; None if it was never set or was stopped. `runs` says that it will expire. `queued`
    says that its signal waits, `goes_on` that it runs again once that is taken. `missed` counts how often it
    was due beyond the time that the next signal tells, -1 before the first; `overruns` are those the last
    signal told, `repeated` how often it was due anew while a signal from before it was set waited.
    """

    number: int
    signal: int
    value: int = 0
    thread: int = 0
    clock: int = MACHINE
    base: int = 0
    interval: int = 0
    expires: int | None = None
    runs: bool = False
    queued: bool = False
    goes_on: bool = False
    missed: int = -1
    overruns: int = 0
    repeated: int = 0

    @property
    def deadline(self) -> int | None:
        """When it is due; None while it does not run."""
        return self.expires if self.runs else None

    def forward(self, now: int) -> int:
        """Move on by whole intervals until it is due after `now`: by how many."""
        assert self.expires is not None, "it was set"
        times = max(0, (now - self.expires) // self.interval + 1)
        self.expires = min(self.expires + times * self.interval, LAST_NS)
        return times


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

    def post(self, info: SignalInfo) -> bool: ...


class Thread(Protocol):
    """A task of the process."""

    @property
    def tid(self) -> int: ...
    @property
    def signals(self) -> Receiver: ...


class Owner(Protocol):
    """A process, as its timers see it."""

    @property
    def pid(self) -> int: ...
    @property
    def kernel(self) -> Shared: ...
    @property
    def tasks(self) -> Sequence[Thread]: ...
    def processor_timers(self, clock: int) -> ProcessorTimers | None: ...
    def post(self, info: SignalInfo) -> bool: ...


class Alarms:
    """A process's timers by number."""

    def __init__(self, process: Owner) -> None:
        self._process = process
        self.timers: dict[int, Timer] = {}
        self.next_number = 0

    def interval_timer(self, number: int) -> Timer:
        """One of the three of setitimer(2)."""
        if number not in self.timers:
            signal = {REAL: sig.SIGALRM, VIRTUAL: sig.SIGVTALRM, PROF: sig.SIGPROF}[number]
            own = ~self._process.pid << 3 | (OF_USER if number == VIRTUAL else PROFILED)
            self.timers[number] = Timer(number, signal, clock=MACHINE if number == REAL else own)
        return self.timers[number]

    @property
    def made(self) -> int:
        """How many timer_create(2) has made."""
        return sum(number >= 0 for number in self.timers)

    @property
    def idle_records(self) -> int:
        """How many of those have set aside the record of a signal that does not wait."""
        return sum(number >= 0 and not timer.queued for number, timer in self.timers.items())

    def now(self, timer: Timer) -> int:
        """What the time is that the timer runs by, in ns. None passes for one whose owner has ended."""
        if timer.clock == MACHINE:
            return self._process.kernel.clock.now_ns
        owner = self._process.processor_timers(timer.clock)
        return 0 if owner is None else owner.now(timer.clock & _COUNTED)

    def arm(self, timer: Timer, deadline: int | None, interval: int) -> None:
        """Let it run until `deadline`, and then again each `interval` ns; None stops it.

        A signal of it that waits stays, and counts for nothing.
        """
        timer.expires, timer.interval = deadline, interval
        timer.missed, timer.overruns, timer.goes_on, timer.runs = -1, 0, False, False
        self._run(timer)

    def _run(self, timer: Timer) -> None:
        if timer.expires is None or (timer.number >= 0 and not timer.signal):
            return  # nobody is told: what it has missed is counted when somebody asks
        timer.runs = True
        if timer.clock == MACHINE:
            self._process.kernel.timers.add(timer, partial(self.expire, timer))
            return
        owner = self._process.processor_timers(timer.clock)
        if owner is not None:
            owner.add(timer, timer.expires, timer.clock & _COUNTED, partial(self.expire, timer))

    def left(self, timer: Timer) -> int:
        """ns until it is due; 0 while it does not run, and at least 1 while it does."""
        if timer.expires is None:
            return 0
        silent = timer.number >= 0 and not timer.signal
        now = self.now(timer)
        if timer.interval and (silent or timer.goes_on):
            timer.missed += timer.forward(now)
        elif not (timer.runs or silent):
            return 0
        return max(0 if silent else 1, timer.expires - now)

    def expire(self, timer: Timer) -> None:
        """Its time is up."""
        timer.runs = False
        if timer.number < 0:
            self._send_interval(timer)
        elif timer.queued:  # a signal from before it was set anew: it tells of this one too
            timer.goes_on = True
            timer.repeated += 1
        else:
            self._send(timer)

    def _send_interval(self, timer: Timer) -> None:
        if timer.number != REAL and timer.interval:
            assert timer.expires is not None, "it ran"
            timer.expires += timer.interval
            self._run(timer)
        self._process.post(SignalInfo(timer.signal, sig.SI_KERNEL))

    def _send(self, timer: Timer) -> None:
        info = SignalInfo(timer.signal, sig.SI_TIMER, pid=timer.number, value=timer.value, of_timer=True)
        receiver: Receiver | None = self._process
        if timer.thread:
            tasks = [task for task in self._process.tasks if task.tid == timer.thread]
            receiver = tasks[0].signals if tasks else None
        if receiver is None:
            return  # the thread has ended, and with it the timer
        taken = True
        with suppress(Refused):
            taken = receiver.post(info)
        if taken:
            timer.queued = timer.goes_on = True
        elif timer.interval:  # it is ignored
            grace = _TICK if timer.clock == MACHINE and timer.interval < _TICK else 0
            timer.missed += timer.forward(self.now(timer) + grace)
            self._run(timer)

    def taken(self, info: SignalInfo) -> SignalInfo:
        """A signal of the process is taken: its timer goes on, and the signal tells what it has missed."""
        if not info.of_timer:
            timer = self.timers.get(REAL) if info.number == sig.SIGALRM else None
            if timer is not None and timer.interval and not timer.runs and timer.expires is not None:
                timer.forward(self.now(timer))
                self._run(timer)
            return info
        timer = self.timers.get(info.pid)
        if timer is None:
            return info
        timer.queued = False
        repeated, timer.repeated = timer.repeated, 0
        if not (timer.goes_on and timer.interval):
            return replace(info, uid=repeated)
        timer.goes_on = False
        timer.missed += timer.forward(self.now(timer))
        timer.overruns, timer.missed = min(timer.missed, _MOST_OVERRUNS), -1
        self._run(timer)
        return replace(info, uid=min(timer.overruns + repeated, _MOST_OVERRUNS))

    def forget(self, number: int) -> None:
        """Signals of a number that waited are gone: their timers stand still, as on Linux."""
        for timer in self.timers.values():
            if timer.signal == number:
                timer.queued = False

    def delete(self, timer: Timer) -> None:
        """It is gone. A signal of it that waits stays."""
        timer.runs = False
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
        """Take over what `capture` gave. All processes and tasks are there already."""
        self.next_number = state["next"]
        for fields in state["timers"]:
            timer = self.timers[fields["number"]] = Timer(**fields)
            if timer.runs:
                self._run(timer)
