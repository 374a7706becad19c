"""wait4(2) and waitid(2): news of children. A zombie is gone once it was told of."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable

from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls.notices import pidfd
from aether_emu.linux.calls.process import encode_usage
from aether_emu.linux.calls.user import s32, write_struct
from aether_emu.linux.files import flags as fl
from aether_emu.linux.task import family
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait
from aether_emu.records import dataclass

_NOHANG, _UNTRACED, _EXITED, _CONTINUED, _NOWAIT = 1, 2, 4, 8, 0x0100_0000
_NOTHREAD, _ALL, _CLONE = 0x2000_0000, 0x4000_0000, 0x8000_0000
_ANY_KIND = _NOTHREAD | _ALL | _CLONE
_P_ALL, _P_PID, _P_PGID, _P_PIDFD = range(4)


@dataclass(frozen=True)
class _News:
    """What became of a child, in the words of siginfo_t and of a wait status."""

    child: Process
    code: int
    value: int

    @property
    def status(self) -> int:
        """As wait4 reports it (WIFEXITED and so on)."""
        match self.code:
            case sig.CLD_EXITED:
                return self.value << 8
            case sig.CLD_STOPPED:
                return self.value << 8 | 0x7F
            case sig.CLD_CONTINUED:
                return 0xFFFF
        return self.value | (0x80 if self.code == sig.CLD_DUMPED else 0)


def sys_wait4(task: Task, pid: int, status: int, options: int, usage: int, *_: int) -> int:
    pid, options = s32(pid), options & 0xFFFF_FFFF
    if options & ~(_NOHANG | _UNTRACED | _CONTINUED | _ANY_KIND):
        raise Refused(errno.EINVAL, f"options {options:#x}")
    if pid == -(1 << 31):
        raise Refused(errno.ESRCH, "no such group")
    if pid == -1:
        kind, number = _P_ALL, 0
    elif pid <= 0:
        kind, number = _P_PGID, -pid or task.process.group
    else:
        kind, number = _P_PID, pid
    news = _wait(task, kind, number, options | _EXITED)
    if news is None:
        return 0
    if status:
        write_struct(task.cpu, status, "i", news.status)
    if usage:
        task.cpu.copy_to_user(usage, _usage_of(news.child))
    return news.child.pid


def sys_waitid(task: Task, kind: int, number: int, info: int, options: int, usage: int, *_: int) -> int:
    kind, number, options = s32(kind), s32(number), options & 0xFFFF_FFFF
    if options & ~(_NOHANG | _NOWAIT | _EXITED | _UNTRACED | _CONTINUED | _ANY_KIND):
        raise Refused(errno.EINVAL, f"options {options:#x}")
    if not options & (_EXITED | _UNTRACED | _CONTINUED):
        raise Refused(errno.EINVAL, "nothing is waited for")
    if kind not in (_P_ALL, _P_PID, _P_PGID, _P_PIDFD):
        raise Refused(errno.EINVAL, f"no kind {kind}")
    if (kind == _P_PID and number <= 0) or (kind in (_P_PGID, _P_PIDFD) and number < 0):
        raise Refused(errno.EINVAL, f"no number {number}")
    if kind == _P_PGID and not number:
        number = task.process.group
    never_waits = False
    if kind == _P_PIDFD:
        file = pidfd(task, number)
        kind, number = _P_PID, file.pid
        never_waits = bool(file.flags & fl.O_NONBLOCK)
    news = _wait(task, kind, number, options | _NOHANG if never_waits else options)
    if news is None and never_waits and not options & _NOHANG:
        raise Refused(errno.EAGAIN, "there is no news, and PIDFD_NONBLOCK is set")
    if usage and news is not None:
        task.cpu.copy_to_user(usage, _usage_of(news.child))
    if info:
        if news is None:
            fields = (0, 0, 0, 0, 0, 0)
        else:
            child = news.child
            fields = (sig.SIGCHLD, 0, news.code, child.pid, child.credentials.uid, news.value)
        signal, error, code, pid, uid, value = fields
        task.cpu.copy_to_user(info, struct.pack("<iii", signal, error, code))
        task.cpu.copy_to_user(info + 16, struct.pack("<iIi", pid, uid, value))
    return 0


def _wait(task: Task, kind: int, number: int, options: int) -> _News | None:
    """The first news of a child that is meant; None if there is none and the caller does not wait."""
    parent = task.process
    children: Iterable[Process] = parent.children
    if kind == _P_PID:
        named = parent.registry.processes.get(number)
        children = (named,) if isinstance(named, Process) and named in parent.children else ()
    for child in children if kind == _P_PID else parent.children.news():
        if _is_meant(task, child, kind, number, options):
            news = _news_of(parent, child, options)
            if news is not None:
                return news
    if not any(_is_meant(task, child, kind, number, options) for child in children):
        raise Refused(errno.ECHILD, "there is no such child")
    if options & _NOHANG:
        return None
    raise Wait([parent.changed], "a child")


def _is_meant(task: Task, child: Process, kind: int, number: int, options: int) -> bool:
    if kind == _P_PGID and child.group != number:
        return False
    if options & _NOTHREAD and task.tid != _owner(task.process, child):
        return False
    # A child that tells its parent by another signal than SIGCHLD is a "clone" child.
    return bool(options & _ALL) or (child.exit_signal != sig.SIGCHLD) == bool(options & _CLONE)


def _owner(parent: Process, child: Process) -> int:
    """The thread whose child it is: who made it, or after that one's end the first that is left."""
    numbers = [each.tid for each in parent.tasks if not each.is_over]
    return child.made_by if child.made_by in numbers else numbers[0]


def _news_of(parent: Process, child: Process, options: int) -> _News | None:
    takes = not options & _NOWAIT
    if child.released:
        if not options & _EXITED:
            return None
        news = _News(child, *family.how_it_ended(child))
        if takes:
            family.parent_takes_usage(child)
            family.vanish(child)
        return news
    if child.untold == "stopped" and options & _UNTRACED:
        news = _News(child, sig.CLD_STOPPED, child.stop_signal)
    elif child.untold == "continued" and options & _CONTINUED:
        news = _News(child, sig.CLD_CONTINUED, sig.SIGCONT)
    else:
        return None
    if takes:
        child.untold = ""
        parent.children.hush(child)
    return news


def _usage_of(child: Process) -> bytes:
    return encode_usage(child.used().plus(child.usage_of_children), child.kernel.peak_memory())
