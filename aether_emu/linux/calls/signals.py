"""What a task does with signals: actions, masks, waiting, returning. Sending them is in `jobs`."""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.siginfo import SIZE as INFO_SIZE
from aether_emu.linux.abi.siginfo import encode_siginfo
from aether_emu.linux.calls.jobs import (
    check_signal,
    process_of_number,
    require_right_to_signal,
    thread_of_number,
)
from aether_emu.linux.calls.polling import read_timespec
from aether_emu.linux.calls.user import s32
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Restart, SignalWait, Wait

_SET_SIZE = 8
_KEPT = 48  # bytes of a siginfo that the kernel keeps
_LOWEST_CODE, _SI_ASYNCNL = -7, -60  # codes below those of the kernel whose siginfo it knows
_CODES = {sig.SIGILL: 11, sig.SIGFPE: 15, sig.SIGSEGV: 10, sig.SIGBUS: 5, sig.SIGTRAP: 6, sig.SIGSYS: 2}


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
    mask = task.signals.waiting & task.signals.blocked
    task.cpu.copy_to_user(result, struct.pack("<Q", mask)[:size])
    return 0


def sys_rt_sigsuspend(task: Task, mask: int, size: int, *_: int) -> int:
    if size != _SET_SIZE:
        raise Refused(errno.EINVAL, "the set has another size")
    (wanted,) = struct.unpack("<Q", task.cpu.copy_from_user(mask, 8))
    if task.wait is None:
        task.signals.suspend(wanted)
    raise Wait((), "a signal", restart=Restart.WITHOUT_HANDLER)


def sys_pause(_task: Task, *_: int) -> int:
    raise Wait((), "a signal", restart=Restart.WITHOUT_HANDLER)


def sys_rt_sigtimedwait(task: Task, wanted: int, info: int, timeout: int, size: int, *_: int) -> int:
    """sigtimedwait(2): take a signal of a set without its handler. It ends by other signals too (EINTR)."""
    if size != _SET_SIZE:
        raise Refused(errno.EINVAL, "the set has another size")
    (mask,) = struct.unpack("<Q", task.cpu.copy_from_user(wanted, 8))
    limit = read_timespec(task, timeout)
    deadline = task.deadline(after=limit)
    mask &= ~sig.UNBLOCKABLE
    taken = task.signals.take(mask)
    if taken is None and (limit == 0 or task.has_waited_until(deadline)):
        raise Refused(errno.EAGAIN, "none of them is pending")
    if taken is None:
        raise SignalWait(mask, deadline)
    if info:
        task.cpu.copy_to_user(info, encode_siginfo(taken))
    return taken.number


def sys_rt_sigqueueinfo(task: Task, pid: int, number: int, info: int, *_: int) -> int:
    """sigqueue(3): a signal with what the sender says of it, which may pose as the kernel to itself only."""
    sent = read_info(task, s32(number), info)
    if (sent.code >= 0 or sent.code == sig.SI_TKILL) and s32(pid) != task.process.pid:
        raise Refused(errno.EPERM, "such a code is the kernel's")
    process = process_of_number(task, s32(pid))
    check_signal(s32(number))
    require_right_to_signal(task, process, s32(number))
    if sent.number and not process.is_over:
        process.post(sent)
    return 0


def sys_rt_tgsigqueueinfo(task: Task, group: int, thread: int, number: int, info: int, *_: int) -> int:
    sent = read_info(task, s32(number), info)
    if s32(group) <= 0 or s32(thread) <= 0:
        raise Refused(errno.EINVAL, "no such thread")
    if (sent.code >= 0 or sent.code == sig.SI_TKILL) and s32(thread) != task.tid:
        raise Refused(errno.EPERM, "such a code is the kernel's")
    receiver = thread_of_number(task, s32(group), s32(thread))
    check_signal(s32(number))
    if receiver is not None:
        require_right_to_signal(task, receiver.process, sent.number, receiver)
    if receiver is not None and sent.number and not receiver.is_over:
        receiver.signals.post(sent)
    return 0


def read_info(task: Task, number: int, address: int) -> sig.SignalInfo:
    """A siginfo_t as a program made it. E2BIG for more than Linux keeps of a kind that it does not know."""
    raw = task.cpu.copy_from_user(address, INFO_SIZE)
    error, code = struct.unpack_from("<ii", raw, 4)
    known = code == sig.SI_KERNEL or _LOWEST_CODE <= code <= _highest_code(number) or code == _SI_ASYNCNL
    if not known and any(raw[_KEPT:]):
        raise Refused(errno.E2BIG, f"a siginfo of code {code}")
    pid, uid, value = struct.unpack_from("<iIQ", raw, 16)
    kept = struct.pack("<iii", number, error, code) + raw[12:_KEPT]
    return sig.SignalInfo(number, code, pid=pid, uid=uid, value=value, raw=kept)


def _highest_code(number: int) -> int:
    """The highest si_code that the kernel itself gives to a signal (Linux: sig_sicodes, NSIGPOLL)."""
    return _CODES.get(number, 6)


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
