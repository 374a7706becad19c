"""Clocks and sleeping, in virtual time: sleeping costs its length and no wall time."""

from __future__ import annotations

import errno

from aether_emu.errors import Refused
from aether_emu.linux.calls.user import read_struct, s32, write_struct
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait

_SECOND = 10**9
_REALTIME = (0, 5, 8, 11)  # REALTIME, _COARSE, _ALARM, TAI
_SINCE_START = (1, 4, 6, 7, 9)  # MONOTONIC, _RAW, _COARSE, BOOTTIME, BOOTTIME_ALARM
_OF_PROCESS = (2, 3)  # PROCESS_CPUTIME_ID, THREAD_CPUTIME_ID
_TIMER_ABSTIME = 1


def _now(task: Task, clock: int) -> int:
    """ns on a clock. EINVAL for one that does not exist."""
    since_start = task.process.kernel.observe_time()
    if clock in _REALTIME:
        return task.process.kernel.clock.realtime_ns
    if clock in _SINCE_START or clock in _OF_PROCESS:
        return since_start
    raise Refused(errno.EINVAL, f"no clock {clock}")


def sys_clock_gettime(task: Task, clock: int, result: int, *_: int) -> int:
    write_struct(task.cpu, result, "qq", *divmod(_now(task, s32(clock)), _SECOND))
    return 0


def sys_clock_getres(task: Task, clock: int, result: int, *_: int) -> int:
    _now(task, s32(clock))
    if result:
        write_struct(task.cpu, result, "qq", 0, 1)
    return 0


def sys_gettimeofday(task: Task, result: int, zone: int, *_: int) -> int:
    seconds, rest = divmod(_now(task, 0), _SECOND)
    if result:
        write_struct(task.cpu, result, "qq", seconds, rest // 1000)
    if zone:
        write_struct(task.cpu, zone, "ii", 0, 0)
    return 0


def sys_time(task: Task, result: int, *_: int) -> int:
    seconds = _now(task, 0) // _SECOND
    if result:
        write_struct(task.cpu, result, "q", seconds)
    return seconds


def sys_times(task: Task, result: int, *_: int) -> int:
    ticks = _now(task, 1) // (_SECOND // 100)
    if result:
        write_struct(task.cpu, result, "qqqq", ticks, 0, 0, 0)
    return ticks


def sys_nanosleep(task: Task, request: int, remaining: int, *_: int) -> int:
    return _sleep(task, _duration(task, request), remaining)


def sys_clock_nanosleep(task: Task, clock: int, flags: int, request: int, remaining: int, *_: int) -> int:
    now, length = _now(task, s32(clock)), _duration(task, request)
    if flags & _TIMER_ABSTIME:
        return _sleep(task, max(0, length - now), 0)
    return _sleep(task, length, remaining)


def _duration(task: Task, address: int) -> int:
    seconds, rest = read_struct(task.cpu, address, "qq")
    if seconds < 0 or not 0 <= rest < _SECOND:
        raise Refused(errno.EINVAL, "no such duration")
    return int(seconds) * _SECOND + int(rest)


def _sleep(task: Task, length: int, remaining: int) -> int:
    """Wait for `length` ns; what a signal leaves of it is written to the timespec at `remaining`."""
    deadline = task.deadline(after=length)
    assert deadline is not None, "a sleep has an end"
    if task.has_waited_until(deadline):
        return 0
    if remaining and task.signals.interrupts():
        left = deadline - task.process.kernel.clock.now_ns
        write_struct(task.cpu, remaining, "qq", *divmod(left, _SECOND))
    raise Wait((), "the end of a sleep", deadline=deadline)
