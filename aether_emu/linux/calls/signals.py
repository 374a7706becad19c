"""Signal system calls of a process that can signal only itself."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from aether_emu.errors import Refused
from aether_emu.linux.calls.user import s32
from aether_emu.linux.task import signals as sig

if TYPE_CHECKING:
    from aether_emu.linux.task.process import Process

_SET_SIZE = 8
_MINIMUM_STACK = 2048


class SignalCalls:
    """rt_sigaction(2) and its relatives."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._cpu = process.cpu

    @property
    def _signals(self) -> sig.Signals:
        return self._process.signals

    def sys_rt_sigaction(self, number: int, new: int, old: int, size: int, *_: int) -> int:
        number = s32(number)
        if size != _SET_SIZE or not 0 < number <= sig.SIGNALS:
            raise Refused(errno.EINVAL, "no such signal")
        action = None
        if new:
            handler, flags, restorer, mask = struct.unpack("<4Q", self._cpu.copy_from_user(new, 32))
            action = sig.Action(handler, flags, restorer, mask & ~sig.UNBLOCKABLE)
            if number in (sig.SIGKILL, sig.SIGSTOP):
                raise Refused(errno.EINVAL, "its action cannot be changed")
        before = self._signals.actions[number]
        if action is not None:
            self._signals.actions[number] = action
            if self._signals.is_ignored(number):
                self._signals.pending.pop(number, None)
                self._signals.update()
        if old:
            packed = struct.pack("<4Q", before.handler, before.flags, before.restorer, before.mask)
            self._cpu.copy_to_user(old, packed)
        return 0

    def sys_rt_sigprocmask(self, how: int, new: int, old: int, size: int, *_: int) -> int:
        if size != _SET_SIZE:
            raise Refused(errno.EINVAL, "the set has another size")
        before = self._signals.blocked
        if new:
            (mask,) = struct.unpack("<Q", self._cpu.copy_from_user(new, 8))
            mask &= ~sig.UNBLOCKABLE
            match s32(how):
                case sig.SIG_BLOCK:
                    self._signals.blocked = before | mask
                case sig.SIG_UNBLOCK:
                    self._signals.blocked = before & ~mask
                case sig.SIG_SETMASK:
                    self._signals.blocked = mask
                case _:
                    raise Refused(errno.EINVAL, "no such operation")
            self._signals.update()
        if old:
            self._cpu.copy_to_user(old, struct.pack("<Q", before))
        return 0

    def sys_rt_sigpending(self, result: int, size: int, *_: int) -> int:
        if size > _SET_SIZE:
            raise Refused(errno.EINVAL, "the set has another size")
        mask = sum(1 << number - 1 for number in self._signals.pending) & self._signals.blocked
        self._cpu.copy_to_user(result, struct.pack("<Q", mask)[:size])
        return 0

    def sys_rt_sigsuspend(self, mask: int, size: int, *_: int) -> int:
        if size != _SET_SIZE:
            raise Refused(errno.EINVAL, "the set has another size")
        (wanted,) = struct.unpack("<Q", self._cpu.copy_from_user(mask, 8))
        if not self._signals.suspend(wanted):
            self._process.kernel.deadlock("a signal")
        raise Refused(errno.EINTR, "a handler runs")

    def sys_rt_sigreturn(self, *_: int) -> None:
        self._signals.restore()

    def sys_sigaltstack(self, new: int, old: int, *_: int) -> int:
        signals, stack_pointer = self._signals, self._cpu.sp
        before = signals.stack
        on_it = before.contains(stack_pointer)
        change = None
        if new:
            start, flags, size = struct.unpack("<QIxxxxQ", self._cpu.copy_from_user(new, 24))
            mode = flags & ~sig.SS_AUTODISARM
            if on_it:
                raise Refused(errno.EPERM, "the program runs on the alternate stack")
            if mode not in (0, sig.SS_DISABLE, sig.SS_ONSTACK):
                raise Refused(errno.EINVAL, "unknown flags")
            if mode == sig.SS_DISABLE:
                change = sig.AlternateStack(flags=flags)
            elif size < _MINIMUM_STACK:
                raise Refused(errno.ENOMEM, f"at least {_MINIMUM_STACK} bytes")
            else:
                change = sig.AlternateStack(start, flags, size)
        if change is not None:
            signals.stack = change
        if old:
            flags = before.flags & (sig.SS_AUTODISARM | sig.SS_DISABLE) | (sig.SS_ONSTACK if on_it else 0)
            self._cpu.copy_to_user(old, struct.pack("<QIxxxxQ", before.start, flags, before.size))
        return 0

    def sys_kill(self, pid: int, number: int, *_: int) -> int:
        pid = s32(pid)
        if pid not in (self._process.pid, 0, -self._process.pid, -1):
            self._check(s32(number))
            raise Refused(errno.ESRCH, f"no process {pid}")
        if pid == -1:  # everybody but the caller
            self._check(s32(number))
            raise Refused(errno.ESRCH, "there is no other process")
        return self._send(s32(number), sig.SI_USER)

    def sys_tgkill(self, group: int, thread: int, number: int, *_: int) -> int:
        if s32(group) <= 0 or s32(thread) <= 0:
            raise Refused(errno.EINVAL, "no such thread")
        self._check(s32(number))
        if s32(group) != self._process.pid or s32(thread) != self._process.pid:
            raise Refused(errno.ESRCH, f"no thread {s32(thread)}")
        return self._send(s32(number), sig.SI_TKILL)

    def sys_tkill(self, thread: int, number: int, *_: int) -> int:
        return self.sys_tgkill(self._process.pid, thread, number)

    @staticmethod
    def _check(number: int) -> None:
        if not 0 <= number <= sig.SIGNALS:
            raise Refused(errno.EINVAL, f"no signal {number}")

    def _send(self, number: int, code: int) -> int:
        self._check(number)
        if number:
            process = self._process
            self._signals.post(sig.SignalInfo(number, code, pid=process.pid, uid=process.config.uid))
        return 0
