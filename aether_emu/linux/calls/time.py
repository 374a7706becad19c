"""Clocks and sleeping, in virtual time: sleeping costs its length and no wall time.

The clock of a process or thread stands still while no task can run. The others differ from the machine's own,
`VirtualClock.now_ns`, by a constant.
"""

from __future__ import annotations

import errno

from aether_emu.clock import LAST_NS
from aether_emu.errors import Refused
from aether_emu.linux.calls.user import read_struct, s32, write_struct
from aether_emu.linux.task.process import CLOCK_OF_THREAD
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.timers import OF_USER, SCHEDULED
from aether_emu.linux.task.usage import Usage
from aether_emu.linux.task.wait import Restart, Wait
from aether_emu.waiting import WaitQueue

_SECOND = 10**9
_TICK = 4_000_000
"""ns between two ticks of Linux at its usual 250 Hz: what coarse clocks resolve."""
REALTIME, MONOTONIC, _PROCESS_TIME, _THREAD_TIME, _MONOTONIC_RAW = range(5)
_REALTIME_COARSE, _MONOTONIC_COARSE, BOOTTIME, TAI = 5, 6, 7, 11
ALARMS, _UNUSED, _CLOCKS = (8, 9), 10, 12
_SINCE_EPOCH = (REALTIME, _REALTIME_COARSE, TAI)
_SINCE_START = (MONOTONIC, _MONOTONIC_RAW, _MONOTONIC_COARSE, BOOTTIME)
_COARSE = (_REALTIME_COARSE, _MONOTONIC_COARSE)
_SLEPT_BY = (REALTIME, MONOTONIC, BOOTTIME, TAI)
_TIMER_ABSTIME = 1
# A negative clock is of a process or thread: its inverted number, 1 bit, 2 bits (Linux posix-timers.h). With
# 3 in its last three bits it is of an open device instead.
_PER_THREAD, _KIND, _SCHEDULED, _KINDS = CLOCK_OF_THREAD, 3, SCHEDULED, 3
_DEVICE_BITS, _OF_DEVICE = 7, 3


def is_device(clock: int) -> bool:
    """Whether a clock is that of an open device."""
    return clock < 0 and clock & _DEVICE_BITS == _OF_DEVICE


def processor_clock(task: Task, clock: int, *, read: bool = False) -> int:
    """A clock of a processor's time by the number of its owner, whoever asks. EINVAL for others.

    To `read` that of a process, the caller's own number will do, though it is not the first of its threads.
    """
    if clock in (_PROCESS_TIME, _THREAD_TIME):
        clock = ~0 << 3 | _SCHEDULED | (_PER_THREAD if clock == _THREAD_TIME else 0)
    owner, process = ~(clock >> 3), task.process
    if clock & _PER_THREAD:
        owner = owner or task.tid
        known = owner in [member.tid for member in process.tasks]
    else:
        owner = process.pid if not owner or (read and owner == task.tid) else owner
        known = owner in process.registry.processes
    if clock >= 0 or clock & _KIND >= _KINDS or not known:
        raise Refused(errno.EINVAL, f"no clock {clock}")
    return ~owner << 3 | clock & (_PER_THREAD | _KIND)


def time_on(task: Task, clock: int) -> int:
    """ns on a clock. EINVAL for one that does not exist."""
    since_start, machine = task.process.kernel.observe_time(), task.process.kernel.clock
    if clock in _SINCE_EPOCH:
        now = machine.realtime_ns
    elif clock in _SINCE_START:
        now = since_start
    else:
        named = processor_clock(task, clock, read=True)
        used = _used_by(task, named)
        now = used.time - used.system if named & _KIND == OF_USER else used.time
    return now - now % _TICK if clock in _COARSE else now


def _used_by(task: Task, named: int) -> Usage:
    """What the owner of a clock has used: a thread, or a process, which may be another."""
    registry, owner = task.process.registry, ~(named >> 3)
    if not named & _PER_THREAD:
        return registry.processes[owner].used()
    return registry.tasks[owner].used() if owner != task.tid else task.used()


def _resolution(clock: int) -> int:
    """ns, of a clock that exists."""
    ticks = clock & _KIND != _SCHEDULED if clock < 0 else clock in _COARSE
    return _TICK if ticks else 1


def sys_clock_gettime(task: Task, clock: int, result: int, *_: int) -> int:
    write_struct(task.cpu, result, "qq", *divmod(time_on(task, s32(clock)), _SECOND))
    return 0


def sys_clock_getres(task: Task, clock: int, result: int, *_: int) -> int:
    time_on(task, s32(clock))
    if result:
        write_struct(task.cpu, result, "qq", 0, _resolution(s32(clock)))
    return 0


def sys_gettimeofday(task: Task, result: int, zone: int, *_: int) -> int:
    seconds, rest = divmod(time_on(task, REALTIME), _SECOND)
    if result:
        write_struct(task.cpu, result, "qq", seconds, rest // 1000)
    if zone:
        write_struct(task.cpu, zone, "ii", 0, 0)
    return 0


def sys_time(task: Task, result: int, *_: int) -> int:
    seconds = time_on(task, REALTIME) // _SECOND
    if result:
        write_struct(task.cpu, result, "q", seconds)
    return seconds


def sys_times(task: Task, result: int, *_: int) -> int:
    hundredth = _SECOND // 100
    ticks = time_on(task, MONOTONIC) // hundredth
    if result:
        own, children = task.process.used(), task.process.usage_of_children
        times = [part for used in (own, children) for part in (used.time - used.system, used.system)]
        write_struct(task.cpu, result, "qqqq", *(time // hundredth for time in times))
    return ticks


def sys_nanosleep(task: Task, request: int, remaining: int, *_: int) -> int:
    return _sleep(task, _duration(task, request), remaining)


def sys_clock_nanosleep(task: Task, clock: int, flags: int, request: int, remaining: int, *_: int) -> int:
    clock = s32(clock)
    if clock >= _CLOCKS or clock == _UNUSED:
        raise Refused(errno.EINVAL, f"no clock {clock}")
    if is_device(clock) or clock in (_THREAD_TIME, _MONOTONIC_RAW, *_COARSE):
        raise Refused(errno.EOPNOTSUPP, f"nobody sleeps by clock {clock}")
    length = _duration(task, request)
    if clock in ALARMS:
        raise Refused(errno.EOPNOTSUPP, "no device wakes the machine")
    if clock < 0 and clock & _PER_THREAD and ~(clock >> 3) in (0, task.tid):
        raise Refused(errno.EINVAL, "a thread's own clock stands still while it sleeps")
    if clock not in _SLEPT_BY:
        return _sleep_by_processor(task, clock, length, 0 if flags & _TIMER_ABSTIME else remaining, flags)
    now = time_on(task, clock)
    if flags & _TIMER_ABSTIME:
        length, remaining = max(0, length - now), 0
    return _sleep(task, length, remaining)


class _Sleeper:
    """Who sleeps until a processor's clock shows a time: it is forgotten with the wait."""

    def __init__(self, until: int) -> None:
        self.queue, self._until = WaitQueue(), until

    @property
    def deadline(self) -> int | None:
        """See `timers.Due`."""
        return self._until if len(self.queue) else None


def _sleep_by_processor(task: Task, clock: int, length: int, remaining: int, flags: int) -> int:
    """Wait while others use a processor: until a process or thread has used so much more of it, or in all."""
    task.process.kernel.observe_time()
    named = processor_clock(task, clock)
    timers, counted = task.process.processor_timers(named), named & _KIND
    assert timers is not None, "its owner lives"
    now = timers.now(counted)
    (until,) = task.progress or (min(length if flags & _TIMER_ABSTIME else now + length, LAST_NS),)
    if now >= until:
        return 0
    if remaining and (task.was_stopped or task.signals.interrupts()):
        write_struct(task.cpu, remaining, "qq", *divmod(until - now, _SECOND))
    sleeper = _Sleeper(until)
    timers.add(sleeper, until, counted, sleeper.queue.wake)
    what = "the time of a processor that is idle"
    raise Wait((sleeper.queue,), what, progress=(until,), restart=Restart.WITHOUT_HANDLER)


def _duration(task: Task, address: int) -> int:
    """ns of a timespec, as far as clocks go. EINVAL for one that is none."""
    seconds, rest = read_struct(task.cpu, address, "qq")
    if seconds < 0 or not 0 <= rest < _SECOND:
        raise Refused(errno.EINVAL, "no such duration")
    return min(int(seconds) * _SECOND + int(rest), LAST_NS)


def _sleep(task: Task, length: int, remaining: int) -> int:
    """Wait for `length` ns; what a signal leaves of it is written to the timespec at `remaining`."""
    deadline = task.deadline(after=length)
    if task.has_waited_until(deadline):
        return 0
    stopped = None if task.wait is None else task.wait.stopped_at
    if remaining and (stopped is not None or task.signals.interrupts()):
        now = task.process.kernel.clock.now_ns if stopped is None else stopped
        left = (LAST_NS if deadline is None else deadline) - now
        write_struct(task.cpu, remaining, "qq", *divmod(left, _SECOND))
    raise Wait((), "the end of a sleep", deadline=deadline, restart=Restart.WITHOUT_HANDLER)
