"""Signal system calls. A process can send to itself and its own tasks only."""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.calls.user import s32
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait

_SET_SIZE = 8


def sys_rt_sigaction(task: Task, number: int, new: int, old: int, size: int, *_: int) -> int:
    number = s32(number)
    if size != _SET_SIZE:
        raise Refused(errno.EINVAL, "the set has another size")
    action = None
    if new:
        handler, flags, restorer, mask = struct.unpack("<4Q", task.cpu.copy_from_user(new, 32))
        action = sig.Action(handler, flags & sig.KNOWN_FLAGS, restorer, mask & ~sig.UNBLOCKABLE)
    if not 0 < number <= sig.SIGNALS:
        raise Refused(errno.EINVAL, "no such signal")
    before = task.process.signals.actions[number]
    if action is not None:
        if number in (sig.SIGKILL, sig.SIGSTOP):
            raise Refused(errno.EINVAL, "its action cannot be changed")
        task.process.set_action(number, action)
    if old:
        packed = struct.pack("<4Q", before.handler, before.flags, before.restorer, before.mask)
        task.cpu.copy_to_user(old, packed)
    return 0


def sys_rt_sigprocmask(task: Task, how: int, new: int, old: int, size: int, *_: int) -> int:
    if size != _SET_SIZE:
        raise Refused(errno.EINVAL, "the set has another size")
    signals = task.signals
    before = signals.blocked
    if new:
        (mask,) = struct.unpack("<Q", task.cpu.copy_from_user(new, 8))
        mask &= ~sig.UNBLOCKABLE
        match s32(how):
            case sig.SIG_BLOCK:
                signals.blocked = before | mask
            case sig.SIG_UNBLOCK:
                signals.blocked = before & ~mask
            case sig.SIG_SETMASK:
                signals.blocked = mask
            case _:
                raise Refused(errno.EINVAL, "no such operation")
        signals.update()
    if old:
        task.cpu.copy_to_user(old, struct.pack("<Q", before))
    return 0


def sys_rt_sigpending(task: Task, result: int, size: int, *_: int) -> int:
    if size > _SET_SIZE:
        raise Refused(errno.EINVAL, "the set has another size")
    mask = (task.signals.pending.mask | task.process.signals.pending.mask) & task.signals.blocked
    task.cpu.copy_to_user(result, struct.pack("<Q", mask)[:size])
    return 0


def sys_rt_sigsuspend(task: Task, mask: int, size: int, *_: int) -> int:
    if size != _SET_SIZE:
        raise Refused(errno.EINVAL, "the set has another size")
    (wanted,) = struct.unpack("<Q", task.cpu.copy_from_user(mask, 8))
    if task.wait is None:
        task.signals.suspend(wanted)
    raise Wait((), "a signal")


def sys_rt_sigreturn(task: Task, *_: int) -> None:
    task.signals.go_back()


def sys_sigaltstack(task: Task, new: int, old: int, *_: int) -> int:
    signals, before = task.signals, task.signals.stack
    if new:
        start, flags, size = struct.unpack("<QIxxxxQ", task.cpu.copy_from_user(new, 24))
        signals.change_stack(sig.AlternateStack(start, flags, size))
    if old:
        flags = before.shown_flags(task.cpu.sp)
        task.cpu.copy_to_user(old, struct.pack("<QIxxxxQ", before.start, flags, before.size))
    return 0


def sys_kill(task: Task, pid: int, number: int, *_: int) -> int:
    pid = s32(pid)
    if pid not in (task.process.pid, 0, -task.process.pid, -1):
        _check(s32(number))
        raise Refused(errno.ESRCH, f"no process {pid}")
    if pid == -1:  # everybody but the caller
        _check(s32(number))
        raise Refused(errno.ESRCH, "there is no other process")
    _check(s32(number))
    if s32(number):
        task.process.post(_info(task, s32(number), sig.SI_USER))
    return 0


def sys_tgkill(task: Task, group: int, thread: int, number: int, *_: int) -> int:
    if s32(group) <= 0 or s32(thread) <= 0:
        raise Refused(errno.EINVAL, "no such thread")
    _check(s32(number))
    process = task.process
    receiver = next((other for other in process.tasks if other.tid == s32(thread)), None)
    if s32(group) != process.pid or receiver is None:
        raise Refused(errno.ESRCH, f"no thread {s32(thread)}")
    if s32(number):
        receiver.signals.post(_info(task, s32(number), sig.SI_TKILL))
    return 0


def sys_tkill(task: Task, thread: int, number: int, *_: int) -> int:
    return sys_tgkill(task, task.process.pid, thread, number)


def _check(number: int) -> None:
    if not 0 <= number <= sig.SIGNALS:
        raise Refused(errno.EINVAL, f"no signal {number}")


def _info(task: Task, number: int, code: int) -> sig.SignalInfo:
    """What the receiver learns of a signal that `task` sends."""
    return sig.SignalInfo(number, code, pid=task.process.pid, uid=task.process.config.uid)
