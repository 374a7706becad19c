"""Timers that send signals: alarm(2), setitimer(2), timer_create(2), in virtual time."""

from __future__ import annotations

import errno
import struct

from aether_emu.clock import LAST_NS
from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls.time import ALARMS, BOOTTIME, MONOTONIC, REALTIME, TAI, is_device, processor_clock
from aether_emu.linux.calls.user import read_struct, s32, u32, write_struct
from aether_emu.linux.task.alarms import MACHINE, REAL, Timer
from aether_emu.linux.task.task import Task

_SECOND = 10**9
_SIGNAL, _NONE, _THREAD, _THREAD_ID = 0, 1, 2, 4  # SIGEV_*
_ABSTIME = 1
_CLOCKS = (REALTIME, TAI, MONOTONIC, BOOTTIME)
_NO_TIMERS = (4, 5, 6)  # the raw clock, and the coarse ones
_WHICH = 3


def _arm(task: Task, timer: Timer, deadline: int | None, interval: int) -> None:
    """Arm it; the turn ends, so that the next one ends when the timer is due."""
    task.process.kernel.observe_time()
    most = None if deadline is None else min(deadline, LAST_NS)
    task.process.timers.arm(timer, most, min(interval, LAST_NS))
    task.end_turn()


def sys_alarm(task: Task, seconds: int, *_: int) -> int:
    task.process.kernel.observe_time()
    timers = task.process.timers
    timer = timers.interval_timer(REAL)
    left = timers.left(timer)
    length = u32(seconds) * _SECOND
    _arm(task, timer, timers.now(timer) + length if length else None, 0)
    whole, rest = divmod(left, _SECOND)  # Linux rounds to the nearest second, but never to none
    return whole + (rest >= _SECOND // 2 or bool(left and not whole))


def _interval_timer(task: Task, which: int) -> Timer:
    if not 0 <= s32(which) < _WHICH:
        raise Refused(errno.EINVAL, f"no interval timer {s32(which)}")
    return task.process.timers.interval_timer(REAL - s32(which))


def sys_getitimer(task: Task, which: int, result: int, *_: int) -> int:
    task.process.kernel.observe_time()
    _tell_interval(task, _interval_timer(task, which), result)
    return 0


def _tell_interval(task: Task, timer: Timer, result: int) -> None:
    times = [part // 1000 for part in (timer.interval, task.process.timers.left(timer))]
    fields = [field for time in times for field in divmod(time, 10**6)]
    write_struct(task.cpu, result, "4q", *fields)


def sys_setitimer(task: Task, which: int, new: int, old: int, *_: int) -> int:
    task.process.kernel.observe_time()
    fields = read_struct(task.cpu, new, "4q") if new else (0, 0, 0, 0)
    timer = _interval_timer(task, which)
    for seconds, rest in (fields[:2], fields[2:]):
        if seconds < 0 or not 0 <= rest < 10**6:
            raise Refused(errno.EINVAL, "no such time")
    if old:
        _tell_interval(task, timer, old)
    interval, first = (seconds * _SECOND + rest * 1000 for seconds, rest in (fields[:2], fields[2:]))
    _arm(task, timer, task.process.timers.now(timer) + first if first else None, interval)
    return 0


# ---- POSIX timers


def sys_timer_create(task: Task, clock: int, event: int, result: int, *_: int) -> int:
    clock, process = s32(clock), task.process
    if clock in ALARMS or clock in _NO_TIMERS or is_device(clock):
        raise Refused(errno.EOPNOTSUPP, f"no timer goes by clock {clock}")
    if clock not in _CLOCKS:
        clock = processor_clock(task, clock)
    timers = process.timers
    if process.queued_signals >= process.signal_limit:
        raise Refused(errno.EAGAIN, "as many signals are queued or set aside as RLIMIT_SIGPENDING admits")
    number = timers.next_number
    if event:
        value, signal, notify, thread = read_struct(task.cpu, event, "Qiii")
    else:
        value, signal, notify, thread = number, sig.SIGALRM, _SIGNAL, 0
    if notify not in (_SIGNAL, _NONE, _THREAD, _THREAD_ID):
        raise Refused(errno.EINVAL, f"no notification {notify}")
    if notify == _THREAD_ID and thread not in [member.tid for member in process.tasks]:
        raise Refused(errno.EINVAL, f"no thread {thread}")
    if notify != _NONE and not 0 < signal <= sig.SIGNALS:
        raise Refused(errno.EINVAL, f"no signal {signal}")
    write_struct(task.cpu, result, "i", number)
    timers.next_number += 1
    timers.timers[number] = Timer(
        number,
        0 if notify == _NONE else signal,
        value,
        thread if notify == _THREAD_ID else 0,
        clock=MACHINE if clock >= 0 else clock,
        base=process.kernel.clock.epoch_ns if clock in (REALTIME, TAI) else 0,
    )
    return 0


def _timer(task: Task, number: int) -> Timer:
    timer = task.process.timers.timers.get(s32(number)) if s32(number) >= 0 else None
    if timer is None:
        raise Refused(errno.EINVAL, f"no timer {s32(number)}")
    return timer


def sys_timer_settime(task: Task, number: int, flags: int, new: int, old: int, *_: int) -> int:
    if not new:
        raise Refused(errno.EINVAL, "no time")
    fields = read_struct(task.cpu, new, "4q")
    for seconds, rest in (fields[:2], fields[2:]):
        if seconds < 0 or not 0 <= rest < _SECOND:
            raise Refused(errno.EINVAL, "no such time")
    timer, timers = _timer(task, number), task.process.timers
    interval, first = (seconds * _SECOND + rest for seconds, rest in (fields[:2], fields[2:]))
    task.process.kernel.observe_time()
    before = _shown(task, timer)
    deadline = first - timer.base if flags & _ABSTIME else timers.now(timer) + first
    _arm(task, timer, deadline if first else None, interval)
    if old:
        task.cpu.copy_to_user(old, before)
    return 0


def _shown(task: Task, timer: Timer) -> bytes:
    """struct itimerspec: the interval, and what is left."""
    left = task.process.timers.left(timer)
    return struct.pack("<4q", *divmod(timer.interval, _SECOND), *divmod(left, _SECOND))


def sys_timer_gettime(task: Task, number: int, result: int, *_: int) -> int:
    task.process.kernel.observe_time()
    task.cpu.copy_to_user(result, _shown(task, _timer(task, number)))
    return 0


def sys_timer_getoverrun(task: Task, number: int, *_: int) -> int:
    return _timer(task, number).overruns


def sys_timer_delete(task: Task, number: int, *_: int) -> int:
    task.process.timers.delete(_timer(task, number))
    return 0
