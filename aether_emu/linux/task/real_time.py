"""RLIMIT_RTTIME: how long a real-time thread may run without a call that blocks (getrlimit(2)).

    watch_real_time    a policy or the limit has changed: the thread is watched, or no longer
    RealTimeWatch      its time since it last slept; SIGXCPU at the soft limit, SIGKILL at the hard one

As on Linux (kernel/sched/rt.c, kernel/time/posix-cpu-timers.c) the signals are the process's, each SIGXCPU
moves the soft limit on by a second, and neither sched_yield(2) nor time under another policy ends a count.
"""

from __future__ import annotations

from typing import Any, Protocol

from aether_emu.clock import LAST_NS
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.task.scheduling import REAL_TIME, Scheduling
from aether_emu.linux.task.timers import SCHEDULED, ProcessorTimers
from aether_emu.linux.task.usage import Usage

RLIMIT_RTTIME = 15
_UNLIMITED = (1 << 64) - 1
_MICROSECOND, _SECOND = 1000, 1_000_000  # ns of the limit's unit; units of a second


class Watched(Protocol):
    """A task, as it is looked at here."""

    scheduling: Scheduling
    usage: Usage
    processor: ProcessorTimers | None
    real_time: RealTimeWatch | None

    @property
    def process(self) -> Any: ...
    @property
    def working(self) -> bool: ...
    def end_turn(self) -> None: ...
    def used(self) -> Usage: ...


def watch_real_time(task: Watched) -> None:
    """Its policy has changed, or its process's limit."""
    limited = task.process.limits[RLIMIT_RTTIME][0] != _UNLIMITED
    if task.real_time is None and not (limited and task.scheduling.policy in REAL_TIME):
        return
    if task.real_time is None:
        task.real_time = RealTimeWatch(task)
    task.real_time.look()
    if task.working:
        task.end_turn()


class RealTimeWatch:
    """The time of one thread.

    `counted` are the ns before `since`, which is what it had used of a processor when the count went on; None
    while nothing counts. `deadline` is how much it will have used when it is to be looked at.
    """

    def __init__(self, task: Watched, counted: int = 0) -> None:
        self._task = task
        self.counted = counted
        self.since: int | None = None
        self.deadline: int | None = None

    @property
    def count(self) -> int:
        """ns that it has run since it slept."""
        return self.counted + (0 if self.since is None else self._task.used().time - self.since)

    def look(self) -> None:
        """The policy or the limit has changed, or time is up that was the limit when it last slept."""
        task = self._task
        self.counted, self.since, self.deadline = self.count, None, None
        soft, hard = task.process.limits[RLIMIT_RTTIME]
        if soft == _UNLIMITED or task.scheduling.policy not in REAL_TIME:
            return
        task.process.kernel.observe_time()
        if task.processor is None:
            task.processor = ProcessorTimers(task.used)
        self.since = task.used().time
        deadline = self.since - self.counted + min(soft, hard) * _MICROSECOND
        if deadline < LAST_NS:
            self.deadline = deadline
            task.processor.add(self, deadline, SCHEDULED, self._expire)

    def has_slept(self) -> None:
        """It has waited, or was stopped: the count begins anew."""
        self.counted = 0
        if self.since is not None:
            self.since = self._task.used().time

    def _expire(self) -> None:
        process = self._task.process
        soft, hard = process.limits[RLIMIT_RTTIME]
        if hard != _UNLIMITED and self.count >= hard * _MICROSECOND:
            process.post(SignalInfo(sig.SIGKILL, sig.SI_KERNEL))
            return
        if self.count >= soft * _MICROSECOND:
            process.post(SignalInfo(sig.SIGXCPU, sig.SI_KERNEL))
            process.limits[RLIMIT_RTTIME] = (soft + _SECOND, hard)
        self.look()
