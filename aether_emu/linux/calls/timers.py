"""Timers of a process, in virtual time: setitimer(2), timer_create(2), timerfd_create(2).

What they do at their deadlines is `task.alarms` and `files.timerfd`.
"""

from __future__ import annotations

import errno

from aether_emu.clock import EPOCH_NS, LAST_NS
from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls import time
from aether_emu.linux.calls.user import read_struct, s32, u32, write_struct
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.timerfd import TimerFile
from aether_emu.linux.task.alarms import (
    ITIMER_PROF,
    ITIMER_REAL,
    SIGEV_NONE,
    SIGEV_SIGNAL,
    SIGEV_THREAD,
    SIGEV_THREAD_ID,
    Alarm,
)
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.timers import Timer

_SECOND = 10**9
_TIMER_ABSTIME, _CANCEL_ON_SET = 1, 2
_TIMED = (time.REALTIME, time.MONOTONIC, time.BOOTTIME, time.TAI)
_OF_FILES = (time.REALTIME, time.MONOTONIC, time.BOOTTIME, *time.ALARMS)


# ---- setitimer


def sys_alarm(task: Task, seconds: int, *_: int) -> int:
    timer = task.process.alarms.interval(ITIMER_REAL)
    left = timer.left()
    _start(timer, u32(seconds) * _SECOND, 0)
    task.signals.arm()
    whole, rest = divmod(left, _SECOND)
    return whole + (rest >= _SECOND // 2 or (not whole and rest > 0))


def sys_setitimer(task: Task, which: int, new: int, old: int, *_: int) -> int:
    interval, value = 0, 0
    if new:
        words = read_struct(task.cpu, new, "4q")
        if any(words[at] < 0 or not 0 <= words[at + 1] < 10**6 for at in (0, 2)):
            raise Refused(errno.EINVAL, "no such time")
        interval, value = (words[at] * _SECOND + words[at + 1] * 1000 for at in (0, 2))
    timer = _interval_timer(task, which)
    before = (timer.interval, timer.left())
    _start(timer, value, interval)
    task.signals.arm()
    if old:
        _write_interval(task, old, *before)
    return 0


def sys_getitimer(task: Task, which: int, result: int, *_: int) -> int:
    timer = _interval_timer(task, which)
    _write_interval(task, result, timer.interval, timer.left())
    return 0


def _interval_timer(task: Task, which: int) -> Timer:
    which = s32(which)
    if not ITIMER_REAL <= which <= ITIMER_PROF:
        raise Refused(errno.EINVAL, f"no timer {which}")
    return task.process.alarms.interval(which)


def _write_interval(task: Task, address: int, interval: int, left: int) -> None:
    microseconds = max(1, left // 1000) if left else 0
    words = (*divmod(interval // 1000, 10**6), *divmod(microseconds, 10**6))
    write_struct(task.cpu, address, "4q", *words)


def _start(timer: Timer, length: int, interval: int) -> None:
    """Let it expire `length` ns from now; 0 stops it."""
    timer.set(min(timer.now + length, LAST_NS) if length else None, min(interval, LAST_NS))


# ---- timer_create


def sys_timer_create(task: Task, clock: int, event: int, result: int, *_: int) -> int:
    process, number = task.process, _alarm_clock(task, s32(clock))
    how, signal, value, tid = _event(task, event)
    if process.queued_signals >= process.signal_limit:
        raise Refused(errno.EAGAIN, "as many signals are queued as RLIMIT_SIGPENDING admits")
    offset = _offset(number)
    made = process.alarms.create(number, (how, signal, value, tid), time.meter_of(process, number), offset)
    try:
        write_struct(task.cpu, result, "i", made.number)
    except BaseException:
        process.alarms.delete(made.number)
        raise
    return 0


def _alarm_clock(task: Task, clock: int) -> int:
    """A clock that timers go by, one of a processor by the number of its owner. EINVAL, EOPNOTSUPP."""
    if clock in _TIMED:
        return clock
    if clock >= 0 and not time.is_of_processor(task, clock):
        time.now_on(task, clock)
        raise Refused(errno.EOPNOTSUPP, f"no timer goes by clock {clock}")
    time.now_on(task, clock)
    return time.named_clock(task, clock)


def _event(task: Task, address: int) -> tuple[int, int, int | None, int]:
    """What a sigevent asks for: (how, signal, value, thread). EINVAL."""
    if not address:
        return SIGEV_SIGNAL, sig.SIGALRM, None, 0
    value, signal, how, tid = read_struct(task.cpu, address, "Qiii")
    if how not in (SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, SIGEV_THREAD_ID):
        raise Refused(errno.EINVAL, f"no way {how} to tell")
    if how == SIGEV_THREAD_ID and tid not in [member.tid for member in task.process.tasks]:
        raise Refused(errno.EINVAL, f"no thread {tid} of this process")
    if how != SIGEV_NONE and not 0 < signal <= sig.SIGNALS:
        raise Refused(errno.EINVAL, f"no signal {signal}")
    return how, signal, value, tid if how == SIGEV_THREAD_ID else 0


def _alarm(task: Task, number: int) -> Alarm:
    made = task.process.alarms.made.get(s32(number))
    if made is None:
        raise Refused(errno.EINVAL, f"no timer {s32(number)}")
    return made


def sys_timer_settime(task: Task, number: int, flags: int, new: int, old: int, *_: int) -> int:
    if not new:
        raise Refused(errno.EINVAL, "no time is given")
    interval, value = _read_times(task, new)
    made = _alarm(task, number)
    left, period = made.left()
    made.set(_deadline(made.timer, value, made.offset if flags & _TIMER_ABSTIME else None), interval)
    task.signals.arm()
    if old:
        _write_times(task, old, period, left)
    return 0


def sys_timer_gettime(task: Task, number: int, result: int, *_: int) -> int:
    left, period = _alarm(task, number).left()
    _write_times(task, result, period, left)
    return 0


def sys_timer_getoverrun(task: Task, number: int, *_: int) -> int:
    return _alarm(task, number).overruns


def sys_timer_delete(task: Task, number: int, *_: int) -> int:
    task.process.alarms.delete(_alarm(task, number).number)
    return 0


# ---- timerfd_create


def sys_timerfd_create(task: Task, clock: int, flags: int, *_: int) -> int:
    clock, flags = s32(clock), s32(flags)
    if flags & ~(fl.O_CLOEXEC | fl.O_NONBLOCK) or clock not in _OF_FILES:
        raise Refused(errno.EINVAL, f"clock {clock}, flags {flags:#x}")
    if clock in time.ALARMS and not task.process.is_root:
        raise Refused(errno.EPERM, "only root wakes the machine")
    files = task.process.files
    files.table.require_room()
    stat = files.namespace.nameless_stat(0o600)
    made = TimerFile(task.process.kernel.timers, clock, flags & fl.O_NONBLOCK, stat)
    return files.table.install(made, cloexec=bool(flags & fl.O_CLOEXEC))


def _timer_file(task: Task, fd: int) -> TimerFile:
    file = task.process.files.table.file(s32(fd))
    if not isinstance(file, TimerFile):
        raise Refused(errno.EINVAL, f"descriptor {s32(fd)} is no timer")
    return file


def sys_timerfd_settime(task: Task, fd: int, flags: int, new: int, old: int, *_: int) -> int:
    words = read_struct(task.cpu, new, "4q")
    if s32(flags) & ~(_TIMER_ABSTIME | _CANCEL_ON_SET):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    interval, value = _times(words)
    file = _timer_file(task, fd)
    before = file.left()
    offset = _offset(file.clock) if flags & _TIMER_ABSTIME else None
    file.set(_deadline(file.timer, value, offset), interval)
    task.signals.arm()
    if old:
        _write_times(task, old, *before)
    return 0


def sys_timerfd_gettime(task: Task, fd: int, result: int, *_: int) -> int:
    _write_times(task, result, *_timer_file(task, fd).left())
    return 0


# ---- times


def _offset(clock: int) -> int:
    """ns of a clock at the machine's start."""
    return EPOCH_NS if clock in (time.REALTIME, time.TAI, time.ALARMS[0]) else 0


def _read_times(task: Task, address: int) -> tuple[int, int]:
    return _times(read_struct(task.cpu, address, "4q"))


def _times(words: tuple[int, ...]) -> tuple[int, int]:
    """(period, time) in ns of a struct itimerspec. EINVAL."""
    if any(words[at] < 0 or not 0 <= words[at + 1] < _SECOND for at in (0, 2)):
        raise Refused(errno.EINVAL, "no such time")
    interval, value = (min(words[at] * _SECOND + words[at + 1], LAST_NS) for at in (0, 2))
    return interval, value


def _deadline(timer: Timer, value: int, offset: int | None) -> int | None:
    """When that is: a time of the clock that began with `offset`, or so long from now. None for 0."""
    if not value:
        return None
    return min(timer.now + value, LAST_NS) if offset is None else max(0, value - offset)


def _write_times(task: Task, address: int, interval: int, left: int) -> None:
    write_struct(task.cpu, address, "4q", *divmod(interval, _SECOND), *divmod(left, _SECOND))
