"""What is for whoever administers a machine: setting its clock, and reading its kernel's log.

Nobody sets the clock, root neither: virtual time is what repeats a run. The log is empty: this kernel tells
whoever started it. The order of refusals is Linux 6.6's (kernel/time, kernel/printk).
"""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.calls.time import REALTIME, is_device, processor_clock, time_on
from aether_emu.linux.calls.user import read_struct, s32
from aether_emu.linux.credentials import SYS_ADMIN, SYSLOG
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait

_SECOND = 10**9
_LATEST = ((1 << 63) - 1) // _SECOND - 30 * 365 * 24 * 3600
"""Seconds: what a clock may be set to, so that it runs for thirty years (TIME_SETTOD_SEC_MAX)."""
_TIMEX = struct.Struct("<I4xqqqqi4xqqqqqqqqi4xqqqqqi44x")
_CONSTANT, _PRECISION, _TOLERANCE, _TICK = 2, 1, 32_768_000, 10_000
_UNCERTAIN = 16_000_000  # us: as much as ntp(5) knows to say (NTP_PHASE_LIMIT)
_STA_UNSYNC, _TIME_ERROR = 0x40, 5
_ADJ_ADJTIME, _ADJ_SINGLESHOT, _ADJ_READ_ONLY = 0x8000, 1, 0x2000
(
    _CLOSE, _OPEN, _READ, _READ_ALL, _READ_CLEAR, _CLEAR, _CONSOLE_OFF, _CONSOLE_ON, _CONSOLE_LEVEL,
    _UNREAD, _SIZE,
) = range(11)  # fmt: skip
_BUFFER = 1 << 18
"""Bytes that Linux keeps of its log at its usual configuration."""


def _not_set() -> Refused:
    return Refused(errno.EPERM, "nobody sets the machine's clock")


def _require_time(seconds: int, rest: int) -> None:
    if not 0 <= seconds < _LATEST or not 0 <= rest < _SECOND:
        raise Refused(errno.EINVAL, f"no clock can show {seconds} s and {rest} ns")


def sys_settimeofday(task: Task, time: int, zone: int, *_: int) -> int:
    if time:
        seconds, micro = read_struct(task.cpu, time, "qq")
        if not 0 <= micro < 10**6:
            raise Refused(errno.EINVAL, f"{micro} us")
    if zone:
        read_struct(task.cpu, zone, "ii")
    if time:
        _require_time(seconds, micro * 1000)
    raise _not_set()


def sys_clock_settime(task: Task, clock: int, time: int, *_: int) -> int:
    clock = s32(clock)
    if clock > REALTIME or is_device(clock):
        raise Refused(errno.EINVAL, f"clock {clock} can't be set")
    seconds, rest = read_struct(task.cpu, time, "qq")
    if clock == REALTIME:
        _require_time(seconds, rest)
    else:
        processor_clock(task, clock)
    raise _not_set()


def sys_adjtimex(task: Task, address: int, *_: int) -> int:
    """adjtimex(2): how the clock is disciplined, which is not at all. EPERM for any change of that."""
    modes: int = _TIMEX.unpack(task.cpu.copy_from_user(address, _TIMEX.size))[0]
    if modes & _ADJ_ADJTIME:
        if not modes & _ADJ_SINGLESHOT:
            raise Refused(errno.EINVAL, f"modes {modes:#x}")
        if not modes & _ADJ_READ_ONLY:
            raise _not_set()
    elif modes:
        raise _not_set()
    seconds, rest = divmod(time_on(task, REALTIME), _SECOND)
    told = (
        *(modes, 0, 0, _UNCERTAIN, _UNCERTAIN, _STA_UNSYNC, _CONSTANT, _PRECISION, _TOLERANCE),
        *(seconds, rest // 1000, _TICK, *(0,) * 9),
    )
    task.cpu.copy_to_user(address, _TIMEX.pack(*told))
    return _TIME_ERROR


def sys_clock_adjtime(task: Task, clock: int, address: int, *_: int) -> int:
    clock = s32(clock)
    task.cpu.copy_from_user(address, _TIMEX.size)
    if clock != REALTIME:
        time_on(task, clock)
        raise Refused(errno.EOPNOTSUPP, f"clock {clock} can't be adjusted")
    return sys_adjtimex(task, address)


def sys_syslog(task: Task, action: int, buffer: int, length: int, *_: int) -> int:
    """syslog(2), as where dmesg_restrict is 1: EPERM without CAP_SYSLOG, whatever is asked."""
    who, action, length = task.credentials, s32(action), s32(length)
    if not who.has(SYSLOG) and not who.has(SYS_ADMIN):
        raise Refused(errno.EPERM, "the kernel's log is for CAP_SYSLOG")
    if action in (_READ, _READ_ALL, _READ_CLEAR):
        if not buffer or length < 0:
            raise Refused(errno.EINVAL, f"{length} bytes at {buffer:#x}")
        if action == _READ and length:
            raise Wait((), "a line of the kernel's log")
        return 0
    if action == _CONSOLE_LEVEL and not 1 <= length <= 8:
        raise Refused(errno.EINVAL, f"level {length}")
    if not _CLOSE <= action <= _SIZE:
        raise Refused(errno.EINVAL, f"action {action}")
    return _BUFFER if action == _SIZE else 0
