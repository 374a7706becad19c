"""What a task does with signals: actions, masks, waiting, returning. Sending them is in `jobs`."""

from __future__ import annotations

import errno
import struct

from aether_emu.clock import LAST_NS
from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.siginfo import encode_siginfo
from aether_emu.linux.calls.jobs import check_signal
from aether_emu.linux.calls.user import read_struct, s32
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait

_SET_SIZE = 8
_SECOND = 10**9
_KEPT = 48  # bytes of a siginfo that the kernel keeps
_LOWEST_CODE, _HIGHEST_CODE, _SI_ASYNCNL = -7, 15, -60  # codes whose siginfo the kernel knows


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


def sys_pause(task: Task, *_: int) -> int:
    raise Wait((), "a signal")


def sys_rt_sigtimedwait(task: Task, wanted: int, result: int, timeout: int, size: int, *_: int) -> int:
    if size != _SET_SIZE:
        raise Refused(errno.EINVAL, "the set has another size")
    (mask,) = read_struct(task.cpu, wanted, "Q")
    limit = None
    if timeout:
        seconds, rest = read_struct(task.cpu, timeout, "qq")
        if seconds < 0 or not 0 <= rest < _SECOND:
            raise Refused(errno.EINVAL, "no such time")
        limit = min(seconds * _SECOND + rest, LAST_NS)
    signals = task.signals
    info = signals.take(~mask | sig.UNBLOCKABLE)
    if info is not None:
        signals.update()
        if result:
            task.cpu.copy_to_user(result, encode_siginfo(info))
        return info.number
    deadline = task.deadline(after=limit)
    if limit == 0 or task.has_waited_until(deadline):
        raise Refused(errno.EAGAIN, "no such signal came")
    raise Wait((task.process.signals.posted,), "a signal", deadline=deadline)


# ---- sending one with a siginfo of one's own


def sys_rt_sigqueueinfo(task: Task, pid: int, number: int, info: int, *_: int) -> int:
    made = _read_info(task, s32(number), info)
    if task.tid != s32(pid):
        _require_honest(made)
    registry = task.process.registry
    found = registry.processes.get(s32(pid))
    if found is None:  # the number of a thread means its process
        thread = registry.tasks.get(s32(pid))
        found = thread.process if isinstance(thread, Task) else None
    if not isinstance(found, Process):
        raise Refused(errno.ESRCH, f"no process {s32(pid)}")
    check_signal(made.number)
    if made.number and not found.is_over:
        found.post(made)
    return 0


def sys_rt_tgsigqueueinfo(task: Task, group: int, thread: int, number: int, info: int, *_: int) -> int:
    made = _read_info(task, s32(number), info)
    if s32(group) <= 0 or s32(thread) <= 0:
        raise Refused(errno.EINVAL, "no such thread")
    if task.tid != s32(thread):
        _require_honest(made)
    receiver = task.process.registry.tasks.get(s32(thread))
    if not isinstance(receiver, Task) or receiver.process.pid != s32(group):
        raise Refused(errno.ESRCH, f"no thread {s32(thread)} of process {s32(group)}")
    check_signal(made.number)
    if made.number and not receiver.is_over:
        receiver.signals.post(made)
    return 0


def _read_info(task: Task, number: int, address: int) -> sig.SignalInfo:
    """A siginfo as the program made it. E2BIG for one of a kind nobody knows with more than Linux keeps."""
    raw = task.cpu.copy_from_user(address, 128)
    _, error, code = struct.unpack_from("<iii", raw)
    known = code == sig.SI_KERNEL or _LOWEST_CODE <= code <= _HIGHEST_CODE or code == _SI_ASYNCNL
    if not known and any(raw[_KEPT:]):
        raise Refused(errno.E2BIG, f"a siginfo of code {code}")
    pid, uid, value = struct.unpack_from("<iIQ", raw, 16)
    content = struct.pack("<iii", number, error, code) + raw[12:_KEPT]
    return sig.SignalInfo(number, code, pid=pid, uid=uid, value=value, raw=content)


def _require_honest(info: sig.SignalInfo) -> None:
    """EPERM for one that says the kernel, or kill or tgkill, sent it: that is for oneself alone."""
    if info.code >= 0 or info.code == sig.SI_TKILL:
        raise Refused(errno.EPERM, f"a siginfo of code {info.code} for another")


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
