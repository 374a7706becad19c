"""Sending signals, process groups, sessions (kill(2), setpgid(2)).

Rules and their order are those of Linux 6.6 (kernel/sys.c, kernel/signal.c).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls.user import s32
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task


def find_process(task: Task, pid: int) -> Process:
    """The process of a number, 0 is the caller's. ESRCH."""
    pid = s32(pid)
    found = task.process if pid in (0, task.process.pid) else task.process.registry.processes.get(pid)
    if not isinstance(found, Process):
        raise Refused(errno.ESRCH, f"no process {pid}")
    return found


# ---- signals


def sys_kill(task: Task, pid: int, number: int, *_: int) -> int:
    pid, number = s32(pid), s32(number)
    check_signal(number)
    info = sent_by(task, number, sig.SI_USER)
    registry = task.process.registry
    if pid > 0:
        found = process_of_number(task, pid)
        require_right_to_signal(task, found, number)
        _send([found], info)
    elif pid == -1:
        others = [other for other in registry.processes.values() if other is not task.process]
        if not others:
            raise Refused(errno.ESRCH, "there is no other process")
        _send([other for other in others if may_signal(task, other, number)], info)
    else:
        send_to_group(task, -pid or task.process.group, info)
    return 0


def send_to_group(task: Task, group: int, info: sig.SignalInfo) -> None:
    """Send a signal to all processes of a group that may be sent it. ESRCH, EINVAL, EPERM for none."""
    members = list(task.process.registry.group(group))
    if not members:
        raise Refused(errno.ESRCH, f"no process group {group}")
    check_signal(info.number)
    allowed = [member for member in members if may_signal(task, member, info.number)]
    if not allowed:
        raise Refused(errno.EPERM, "a group of another user's processes")
    _send(allowed, info)


def may_signal(task: Task, process: Process, number: int, receiver: Task | None = None) -> bool:
    """Whether it may send a signal to a process, or to a thread of it (Linux: check_kill_permission)."""
    if process is task.process:
        return True
    who = process.credentials if receiver is None else receiver.credentials
    continues = number == sig.SIGCONT and process.session == task.process.session
    return continues or task.credentials.may_signal(who)


def require_right_to_signal(task: Task, process: Process, number: int, receiver: Task | None = None) -> None:
    """Refused(EPERM) unless it `may_signal`."""
    if not may_signal(task, process, number, receiver):
        raise Refused(errno.EPERM, "another user's process")


def process_of_number(task: Task, pid: int) -> Process:
    """The process of a number, or of a thread's. ESRCH."""
    registry = task.process.registry
    found = registry.processes.get(pid)
    if found is None:
        thread = registry.tasks.get(pid)
        found = thread.process if isinstance(thread, Task) else None
    if not isinstance(found, Process):
        raise Refused(errno.ESRCH, f"no process {pid}")
    return found


def _send(processes: Iterable[Process], info: sig.SignalInfo) -> None:
    for process in processes:
        if info.number and not process.is_over:
            process.post(info)


def sys_tgkill(task: Task, group: int, thread: int, number: int, *_: int) -> int:
    if s32(group) <= 0:
        raise Refused(errno.EINVAL, "no such thread")
    return _send_to_thread(task, s32(group), s32(thread), s32(number))


def sys_tkill(task: Task, thread: int, number: int, *_: int) -> int:
    return _send_to_thread(task, None, s32(thread), s32(number))


def _send_to_thread(task: Task, group: int | None, thread: int, number: int) -> int:
    if thread <= 0:
        raise Refused(errno.EINVAL, "no such thread")
    receiver = thread_of_number(task, group, thread)
    check_signal(number)
    if receiver is None:
        return 0
    require_right_to_signal(task, receiver.process, number, receiver)
    if number and not receiver.is_over:
        receiver.signals.post(sent_by(task, number, sig.SI_TKILL))
    return 0


def thread_of_number(task: Task, group: int | None, thread: int) -> Task | None:
    """The thread of a number, in a process if one is named. ESRCH; None if it has ended and is a zombie."""
    receiver = task.process.registry.tasks.get(thread)
    if receiver is None and thread in task.process.registry.processes and group in (None, thread):
        return None
    if not isinstance(receiver, Task) or group not in (None, receiver.process.pid):
        raise Refused(errno.ESRCH, f"no thread {thread}")
    return receiver


def check_signal(number: int) -> None:
    """EINVAL for what is no signal; 0 asks only whether one could be sent."""
    if not 0 <= number <= sig.SIGNALS:
        raise Refused(errno.EINVAL, f"no signal {number}")


def sent_by(task: Task, number: int, code: int) -> sig.SignalInfo:
    """What the receiver learns of a signal that `task` sends."""
    return sig.SignalInfo(number, code, pid=task.process.pid, uid=task.credentials.uid)


# ---- groups and sessions


def sys_getpgrp(task: Task, *_: int) -> int:
    return task.process.group


def sys_getpgid(task: Task, pid: int, *_: int) -> int:
    return find_process(task, pid).group


def sys_getsid(task: Task, pid: int, *_: int) -> int:
    return find_process(task, pid).session


def sys_setpgid(task: Task, pid: int, group: int, *_: int) -> int:
    if s32(group) < 0:
        raise Refused(errno.EINVAL, f"no group {s32(group)}")
    process, caller = find_process(task, pid), task.process
    if process.parent is caller:
        if process.session != caller.session:
            raise Refused(errno.EPERM, "the child has a session of its own")
        if process.has_executed:
            raise Refused(errno.EACCES, "the child has executed another program")
    elif process is not caller:
        raise Refused(errno.ESRCH, "neither the caller nor its child")
    if process.session == process.pid:
        raise Refused(errno.EPERM, "it leads a session")
    wanted = s32(group) or process.pid
    if wanted != process.pid and process.registry.session_of(wanted) != caller.session:
        raise Refused(errno.EPERM, f"no group {wanted} in the session")
    process.group = wanted
    return 0


def sys_setsid(task: Task, *_: int) -> int:
    process = task.process
    if process.session == process.pid or process.registry.session_of(process.pid) is not None:
        raise Refused(errno.EPERM, "the process leads a group already")
    process.group = process.session = process.pid
    process.terminal = None
    return process.pid
