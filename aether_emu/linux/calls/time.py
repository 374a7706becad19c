"""Clocks and sleeping, in virtual time: sleeping costs its length and no wall time."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from aether_emu.errors import Refused
from aether_emu.linux.calls.user import read_struct, s32, write_struct

if TYPE_CHECKING:
    from aether_emu.linux.task.process import Process

_SECOND = 10**9
_REALTIME = (0, 5, 8, 11)  # REALTIME, _COARSE, _ALARM, TAI
_SINCE_START = (1, 4, 6, 7, 9)  # MONOTONIC, _RAW, _COARSE, BOOTTIME, BOOTTIME_ALARM
_OF_PROCESS = (2, 3)  # PROCESS_CPUTIME_ID, THREAD_CPUTIME_ID
_TIMER_ABSTIME = 1


class TimeCalls:
    """clock_gettime(2) and its relatives."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._cpu = process.cpu
        self._kernel = process.kernel

    def _now(self, clock: int) -> int:
        """ns on a clock. EINVAL for one that does not exist."""
        since_start = self._kernel.observe_time()
        if clock in _REALTIME:
            return self._kernel.clock.realtime_ns
        if clock in _SINCE_START or clock in _OF_PROCESS:
            return since_start
        raise Refused(errno.EINVAL, f"no clock {clock}")

    def sys_clock_gettime(self, clock: int, result: int, *_: int) -> int:
        write_struct(self._cpu, result, "qq", *divmod(self._now(s32(clock)), _SECOND))
        return 0

    def sys_clock_getres(self, clock: int, result: int, *_: int) -> int:
        self._now(s32(clock))
        if result:
            write_struct(self._cpu, result, "qq", 0, 1)
        return 0

    def sys_gettimeofday(self, result: int, zone: int, *_: int) -> int:
        seconds, rest = divmod(self._now(0), _SECOND)
        if result:
            write_struct(self._cpu, result, "qq", seconds, rest // 1000)
        if zone:
            write_struct(self._cpu, zone, "ii", 0, 0)
        return 0

    def sys_time(self, result: int, *_: int) -> int:
        seconds = self._now(0) // _SECOND
        if result:
            write_struct(self._cpu, result, "q", seconds)
        return seconds

    def sys_times(self, result: int, *_: int) -> int:
        ticks = self._now(1) // (_SECOND // 100)
        if result:
            write_struct(self._cpu, result, "qqqq", ticks, 0, 0, 0)
        return ticks

    def sys_nanosleep(self, request: int, _remaining: int, *_: int) -> int:
        self._sleep(self._duration(request))
        return 0

    def sys_clock_nanosleep(self, clock: int, flags: int, request: int, *_: int) -> int:
        now, length = self._now(s32(clock)), self._duration(request)
        self._sleep(max(0, length - now) if flags & _TIMER_ABSTIME else length)
        return 0

    def _duration(self, address: int) -> int:
        seconds, rest = read_struct(self._cpu, address, "qq")
        if seconds < 0 or not 0 <= rest < _SECOND:
            raise Refused(errno.EINVAL, "no such duration")
        return int(seconds) * _SECOND + int(rest)

    def _sleep(self, length: int) -> None:
        self._kernel.clock.advance(length)
