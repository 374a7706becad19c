"""timerfd_create(2), pidfd_open(2), signalfd(2) and their relatives."""

from __future__ import annotations

import errno
import struct
from typing import Any

from aether_emu.clock import LAST_NS
from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls.jobs import check_signal, require_right_to_signal, send_to_group, sent_by
from aether_emu.linux.calls.signals import read_info
from aether_emu.linux.calls.user import read_struct, s32, u32
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.directory import OpenDirectory
from aether_emu.linux.files.notices import ProcessFile, SignalFile, TimerFile
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.stat import Stat
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.waiting import WaitQueue

_SECOND = 10**9
_REALTIME, _MONOTONIC, _BOOTTIME, _ALARMS = 0, 1, 7, (8, 9)
_ABSTIME, _CANCEL_ON_SET = 1, 2
_SELF_THREAD = -10000
_SELF = (_SELF_THREAD, -10001)  # or PIDFD_SELF_THREAD_GROUP: a process has all that is asked of it
_TO_THREAD, _TO_PROCESS, _TO_GROUP = 1, 2, 4  # PIDFD_SIGNAL_THREAD, _THREAD_GROUP, _PROCESS_GROUP


# ---- timers


def sys_timerfd_create(task: Task, clock: int, flags: int, *_: int) -> int:
    clock, flags = s32(clock), u32(flags)
    if flags & ~(fl.O_CLOEXEC | fl.O_NONBLOCK) or clock not in (_REALTIME, _MONOTONIC, _BOOTTIME, *_ALARMS):
        raise Refused(errno.EINVAL, f"clock {clock}, flags {flags:#x}")
    if clock in _ALARMS:
        raise Refused(errno.EPERM, "no device wakes the machine")
    kernel, files = task.process.kernel, task.files
    files.table.require_room()
    base = kernel.clock.epoch_ns if clock == _REALTIME else 0
    file = _timer_file(kernel, (clock, base), flags & fl.O_NONBLOCK, files.namespace.nameless_stat(0o600))
    return files.table.install(file, cloexec=bool(flags & fl.O_CLOEXEC))


def _timer_file(kernel: Kernel, clock: tuple[int, int], flags: int, stat: Stat) -> TimerFile:
    return TimerFile(
        lambda timer: kernel.timers.add(timer, timer.expire), kernel.observe_time, clock, flags, stat
    )


def _timer(task: Task, fd: int) -> TimerFile:
    file = task.files.table.file(s32(fd))
    if not isinstance(file, TimerFile):
        raise Refused(errno.EINVAL, f"a {file.kind} is no timer")
    return file


def sys_timerfd_settime(task: Task, fd: int, flags: int, new: int, old: int, *_: int) -> int:
    """timerfd_settime(2). Nobody sets the clock, so TFD_TIMER_CANCEL_ON_SET cancels nothing."""
    fields = read_struct(task.cpu, new, "4q")
    if u32(flags) & ~(_ABSTIME | _CANCEL_ON_SET):
        raise Refused(errno.EINVAL, f"flags {u32(flags):#x}")
    for seconds, rest in (fields[:2], fields[2:]):
        if seconds < 0 or not 0 <= rest < _SECOND:
            raise Refused(errno.EINVAL, "no such time")
    timer, now = _timer(task, fd), task.process.kernel.observe_time()
    before = _shown(timer)
    interval, first = (seconds * _SECOND + rest for seconds, rest in (fields[:2], fields[2:]))
    deadline = first - timer.base if flags & _ABSTIME else now + first
    timer.arm(min(deadline, LAST_NS) if first else None, interval)
    timer.set_flags = u32(flags)
    task.yields = True  # the next turn ends when the timer is due
    task.stop()
    if old:
        task.cpu.copy_to_user(old, before)
    return 0


def _shown(timer: TimerFile) -> bytes:
    return struct.pack("<4q", *divmod(timer.interval, _SECOND), *divmod(timer.left(), _SECOND))


def sys_timerfd_gettime(task: Task, fd: int, result: int, *_: int) -> int:
    task.cpu.copy_to_user(result, _shown(_timer(task, fd)))
    return 0


# ---- processes


def sys_pidfd_open(task: Task, pid: int, flags: int, *_: int) -> int:
    process, files = task.process, task.files
    if u32(flags) & ~fl.O_NONBLOCK or s32(pid) <= 0:
        raise Refused(errno.EINVAL, f"number {s32(pid)}, flags {u32(flags):#x}")
    found = process.registry.processes.get(s32(pid))
    if not isinstance(found, Process):
        is_thread = s32(pid) in process.registry.tasks
        raise Refused(errno.EINVAL if is_thread else errno.ESRCH, f"no process {s32(pid)}")
    files.table.require_room()
    return install_pidfd(task, found, u32(flags) & fl.O_NONBLOCK)


def install_pidfd(task: Task, process: Process, flags: int) -> int:
    """A descriptor of the caller's that means `process`."""
    files = task.files
    file = _process_file(process, flags, files.namespace.nameless_stat(0o600))
    return files.table.install(file, cloexec=True)


def _process_file(process: Process, flags: int, stat: Stat) -> ProcessFile:
    known, pid = process.registry.processes, process.pid
    ended = (lambda: process.released, lambda: known.get(pid) is not process)
    return ProcessFile(pid, process.gone, ended, flags, stat)


def pidfd(task: Task, fd: int) -> ProcessFile:
    """The pidfd of a descriptor. EBADF for another file."""
    file = task.files.table.file(s32(fd))
    if not isinstance(file, ProcessFile):
        raise Refused(errno.EBADF, f"a {file.kind} is no process")
    return file


def named(task: Task, fd: int) -> Process:
    """The process that a descriptor means, or the caller's own (PIDFD_SELF, Linux 6.14). As `living`."""
    return task.process if s32(fd) in _SELF else living(task, task.files.table.file(s32(fd)))


def living(task: Task, file: OpenFile) -> Process:
    """The process that a pidfd means, or a folder of /proc. EBADF; ESRCH once it was waited for."""
    folder = file.link().removeprefix(b"/proc/") if isinstance(file, OpenDirectory) else b""
    if isinstance(file, ProcessFile):
        pid, waited = file.pid, file.was_waited_for()
    elif folder.isdigit():
        pid, waited = int(folder), False
    else:
        raise Refused(errno.EBADF, f"a {file.kind} is no process")
    found = task.process.registry.processes.get(pid)
    if waited or not isinstance(found, Process):
        raise Refused(errno.ESRCH, "it has ended, and was waited for")
    return found


def sys_pidfd_getfd(task: Task, fd: int, number: int, flags: int, *_: int) -> int:
    """pidfd_getfd(2): what another process has open under a number, shared with it."""
    if u32(flags):
        raise Refused(errno.EINVAL, f"flags {u32(flags):#x}")
    other = living(task, pidfd(task, fd))
    if other.released:
        raise Refused(errno.ESRCH, "it has ended")
    if not task.may_inspect(other, real=True):
        raise Refused(errno.EPERM, "another user's process")
    file = other.files.table.file(s32(number))
    return task.files.table.install(file, cloexec=True)


def sys_pidfd_send_signal(task: Task, fd: int, number: int, info: int, flags: int, *_: int) -> int:
    """pidfd_send_signal(2): to the process, its first thread, or the group that it leads (Linux 6.9)."""
    flags, own = u32(flags), s32(fd) == _SELF_THREAD
    if flags not in (0, _TO_THREAD, _TO_PROCESS, _TO_GROUP):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    process, number = named(task, fd), s32(number)
    scope = flags or (_TO_THREAD if own else _TO_PROCESS)
    pid = task.tid if own else process.pid
    if info:
        sent = read_info(task, number, info)
        (told,) = struct.unpack("<i", task.cpu.copy_from_user(info, 4))
        if told != number:
            raise Refused(errno.EINVAL, "the info is of another signal")
        others = pid != task.tid or scope == _TO_GROUP
        if others and (sent.code >= 0 or sent.code == sig.SI_TKILL):
            raise Refused(errno.EPERM, "such a code is the kernel's")
    else:
        sent = sent_by(task, number, sig.SI_TKILL if scope == _TO_THREAD else sig.SI_USER)
    if scope == _TO_GROUP:
        send_to_group(task, pid, sent)
        return 0
    check_signal(number)
    receiver = process.registry.tasks.get(pid) if scope == _TO_THREAD else None
    assert receiver is None or isinstance(receiver, Task), "tasks are known there"
    require_right_to_signal(task, process, number, receiver)
    if number and receiver is not None and not receiver.is_over:
        receiver.signals.post(sent)
    elif number and scope == _TO_PROCESS and not process.is_over:
        process.post(sent)
    return 0


# ---- signals


def sys_signalfd(task: Task, fd: int, mask: int, size: int, *_: int) -> int:
    return sys_signalfd4(task, fd, mask, size, 0)


def sys_signalfd4(task: Task, fd: int, mask: int, size: int, flags: int, *_: int) -> int:
    if size != 8:
        raise Refused(errno.EINVAL, "the set has another size")
    (wanted,) = read_struct(task.cpu, mask, "Q")
    fd, flags, files = s32(fd), u32(flags), task.files
    if flags & ~(fl.O_CLOEXEC | fl.O_NONBLOCK):
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    if fd == -1:
        files.table.require_room()
        stat = files.namespace.nameless_stat(0o600)
        file = _signal_file(task.process.kernel, wanted, flags & fl.O_NONBLOCK, stat)
        return files.table.install(file, cloexec=bool(flags & fl.O_CLOEXEC))
    known = files.table.file(fd)
    if not isinstance(known, SignalFile):
        raise Refused(errno.EINVAL, f"a {known.kind} is no signalfd")
    known.show(wanted)
    task.process.arrived.wake()
    return fd


def _signal_file(kernel: Kernel, mask: int, flags: int, stat: Stat) -> SignalFile:
    return SignalFile(mask, lambda: kernel.caller(), flags, stat)  # noqa: PLW0108  # it changes meanwhile


# ---- state


def restored(described: dict[str, Any], viewer: Process) -> OpenFile:
    """One of these files as it was captured; `viewer` is a process that has it open."""
    flags, stat, kernel = described["flags"], Stat(*described["stat"]), viewer.kernel
    if described["kind"] == TimerFile.kind:
        timer = _timer_file(kernel, described["clock"], flags, stat)
        timer.go_on(described["state"])
        timer.set_flags = described["set"]
        return timer
    if described["kind"] == SignalFile.kind:
        return _signal_file(kernel, described["mask"], flags, stat)
    process = viewer.registry.processes.get(described["pid"])
    if described["waited"] or process is None:
        return ProcessFile(described["pid"], WaitQueue(), (lambda: True, lambda: True), flags, stat)
    return _process_file(process, flags, stat)
