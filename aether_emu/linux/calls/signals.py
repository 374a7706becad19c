"""What a task does with signals: actions, masks, waiting, returning. Sending them is in `jobs`."""

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
