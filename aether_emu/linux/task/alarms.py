"""The timers of a process: those of setitimer(2), and those that it makes with timer_create(2).

    expires --> a signal is posted, once --> taken: armed again, and told how many periods it has missed

So at most one signal of a timer waits (Linux kernel/time/{itimer,posix-timers}.c). One that is ignored is
armed again at once, since nobody will take it; that of ITIMER_REAL is not, as under Linux.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.task.timers import Timer, Timers
from aether_emu.linux.task.usage import Usage

ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF = range(3)
_INTERVAL_SIGNALS = (sig.SIGALRM, sig.SIGVTALRM, sig.SIGPROF)
SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, SIGEV_THREAD_ID = 0, 1, 2, 4
_MOST_OVERRUNS = (1 << 31) - 1
TICK = 4_000_000
"""ns: one whose signal is ignored expires no more often than Linux's clock ticks (250 Hz)."""


class Signals(Protocol):
    """The signals of a task, as a timer posts to it."""

    def post(self, info: SignalInfo) -> None: ...
    def blocks(self, number: int) -> bool: ...


class Thread(Protocol):
    """A task, as it is found here."""

    @property
    def tid(self) -> int: ...
    @property
    def signals(self) -> Signals: ...


class Actions(Protocol):
    """The actions of a process."""

    def is_ignored(self, number: int) -> bool: ...


class Owner(Protocol):
    """A process, as its timers see it."""

    @property
    def timers(self) -> Timers: ...
    @property
    def tasks(self) -> Any: ...
    @property
    def signals(self) -> Any: ...
    def post(self, info: SignalInfo) -> None: ...
    def used(self) -> Usage: ...


class Alarm:
    """One of timer_create(2): `clock` is its number, `how` the SIGEV_ way it tells, to thread `tid`.

    `queued` says that its signal waits. `missed` counts expiries beyond the one that a signal tells, -1
    before the first; `overruns` are those that the last signal told. Times of its clock and of its timer
    differ by `offset`.
    """

    def __init__(
        self, owner: Owner, number: int, clock: int, event: tuple[int, int, int, int], offset: int
    ) -> None:
        self._owner, self.number, self.clock, self.offset = owner, number, clock, offset
        self.how, self.signal, self.value, self.tid = event
        self.timer: Timer
        self.queued = False
        self.missed, self.overruns = -1, 0

    def set(self, deadline: int | None, interval: int) -> None:
        """Start it, or stop it (None)."""
        self.missed, self.overruns = -1, 0
        self.queued = False
        self.timer.set(deadline, interval)
        if self.how == SIGEV_NONE:
            self.timer.disarm()

    def left(self) -> tuple[int, int]:
        """(ns until it expires, its period)."""
        timer = self.timer
        if timer.deadline is None:
            return 0, timer.interval
        now, silent = timer.now, self.how == SIGEV_NONE
        if timer.interval and (self.queued or silent):
            self.missed += timer.forward(now)
        elif not (timer.armed or silent):
            return 0, timer.interval
        return max(0 if silent else 1, timer.deadline - now), timer.interval

    def expire(self) -> None:
        """Its time has come."""
        info = SignalInfo(self.signal, sig.SI_TIMER, pid=self.number, value=self.value, of_timer=True)
        owner, timer = self._owner, self.timer
        thread = next((task for task in owner.tasks if task.tid == self.tid), None)
        receivers = [thread] if thread is not None else owner.tasks
        open_to_it = any(not task.signals.blocks(self.signal) for task in receivers)
        if open_to_it and owner.signals.is_ignored(self.signal):
            if timer.interval:
                self.missed += timer.forward(timer.now + (TICK if timer.interval < TICK else 0))
                timer.arm()
            return
        if self.how == SIGEV_THREAD_ID and thread is None:
            return  # it has ended
        if not self.queued:
            self.queued = True
            (owner.post if thread is None else thread.signals.post)(info)

    def taken(self) -> int:
        """Its signal is taken: how many expiries that missed."""
        self.queued = False
        timer = self.timer
        if not timer.interval:
            return 0
        self.missed += timer.forward(timer.now)
        timer.arm()
        self.overruns, self.missed = min(self.missed, _MOST_OVERRUNS), -1
        return self.overruns

    def capture(self) -> dict[str, Any]:
        """Everything about it."""
        return {
            "number": self.number,
            "clock": self.clock,
            "event": (self.how, self.signal, self.value, self.tid),
            "offset": self.offset,
            "timer": self.timer.capture(),
            "counts": (self.queued, self.missed, self.overruns),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `capture` gave."""
        self.timer.restore(state["timer"])
        self.queued, self.missed, self.overruns = state["counts"]


class Alarms:
    """A process's timers. `intervals` are those of setitimer(2), made at first need, `made` those of
    timer_create(2) by number.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.intervals: dict[int, Timer] = {}
        self.made: dict[int, Alarm] = {}
        self._next = 0

    def interval(self, which: int) -> Timer:
        """ITIMER_REAL, ITIMER_VIRTUAL or ITIMER_PROF."""
        if which not in self.intervals:
            meter = None if which == ITIMER_REAL else self._used
            self.intervals[which] = Timer(self._owner.timers, lambda: self._expire(which), meter)
        return self.intervals[which]

    def _used(self) -> int:
        return self._owner.used().time

    def _expire(self, which: int) -> None:
        timer = self.intervals[which]
        if which != ITIMER_REAL and timer.interval:  # Linux: check_cpu_itimer
            timer.forward(timer.now)
            timer.arm()
        self._owner.post(SignalInfo(_INTERVAL_SIGNALS[which], sig.SI_KERNEL))

    def taken(self, info: SignalInfo) -> SignalInfo:
        """A signal of the process is taken: what is told of it."""
        if info.of_timer:
            made = self.made.get(info.pid)
            return info if made is None or not made.queued else replace(info, uid=made.taken())
        if info.number == sig.SIGALRM and ITIMER_REAL in self.intervals:
            timer = self.intervals[ITIMER_REAL]
            if timer.interval and timer.deadline is not None and not timer.armed:
                timer.forward(timer.now)
                timer.arm()
        return info

    # ---- timer_create(2)

    def create(
        self,
        clock: int,
        event: tuple[int, int, int | None, int],
        meter: Callable[[], int] | None,
        offset: int,
    ) -> Alarm:
        """One more. `event` is (how, signal, value or None for its own number, thread)."""
        number, self._next = self._next, self._next + 1
        how, signal, value, tid = event
        made = Alarm(
            self._owner, number, clock, (how, signal, number if value is None else value, tid), offset
        )
        made.timer = Timer(self._owner.timers, made.expire, meter)
        self.made[number] = made
        return made

    def delete(self, number: int) -> None:
        """timer_delete(2). A signal that waits stays."""
        self.made.pop(number).timer.disarm()

    def delete_all(self) -> None:
        """Another program begins: those of setitimer stay."""
        for number in list(self.made):
            self.delete(number)
        self._next = 0

    def clear(self) -> None:
        """The process has ended."""
        self.delete_all()
        for timer in self.intervals.values():
            timer.disarm()

    @property
    def idle_records(self) -> int:
        """How many have set aside the record of a signal that does not wait."""
        return sum(not made.queued for made in self.made.values()) if self.made else 0

    # ---- state

    def capture(self) -> dict[str, Any]:
        """All of them."""
        return {
            "next": self._next,
            "intervals": {which: timer.capture() for which, timer in self.intervals.items()},
            "made": [made.capture() for made in self.made.values()],
        }

    def restore(self, state: dict[str, Any], meter_of: Callable[[int], Callable[[], int] | None]) -> None:
        """Take over what `capture` gave; `meter_of` is what measures the time of a clock."""
        for which, timer in state["intervals"].items():
            self.interval(which).restore(timer)
        for made in state["made"]:
            self._next = made["number"]
            self.create(made["clock"], made["event"], meter_of(made["clock"]), made["offset"]).restore(made)
        self._next = state["next"]
