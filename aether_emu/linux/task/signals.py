"""Signals of one process: actions, mask, pending set, delivery (signal(7), sigaction(2)).

Faults are *forced*: a program that blocks or ignores the signal of its own fault dies by it, as
under Linux. Others are posted, and delivered when the guest is about to go on. The frame that a
handler sees is the ISA's business (`abi`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aether_emu.errors import Refused
from aether_emu.linux.task.process import Ended
from aether_emu.machine.cpu import UserFault

if TYPE_CHECKING:
    from aether_emu.linux.task.process import Process

SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL = range(1, 10)
SIGUSR1, SIGSEGV, SIGUSR2, SIGPIPE, SIGALRM, SIGTERM = range(10, 16)
SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG = range(17, 24)
SIGWINCH = 28
SIGNALS = 64
FIRST_REAL_TIME = 32

SEGV_MAPERR, SEGV_ACCERR = 1, 2
BUS_ADRALN, BUS_ADRERR = 1, 2
FPE_INTDIV, ILL_ILLOPC, ILL_ILLOPN, TRAP_BRKPT, TRAP_TRACE = 1, 1, 2, 1, 2
SI_USER, SI_KERNEL, SI_TKILL = 0, 0x80, -6

SA_ONSTACK, SA_NODEFER, SA_RESETHAND, SA_RESTORER = (
    0x0800_0000,
    0x4000_0000,
    0x8000_0000,
    0x0400_0000,
)
SS_ONSTACK, SS_DISABLE, SS_AUTODISARM = 1, 2, 1 << 31
SIG_DFL, SIG_IGN = 0, 1
SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK = 0, 1, 2

_IGNORED = frozenset({SIGCHLD, SIGCONT, SIGURG, SIGWINCH})
_STOPS = frozenset({SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU})
UNBLOCKABLE = 1 << SIGKILL - 1 | 1 << SIGSTOP - 1


@dataclass(frozen=True, slots=True)
class SignalInfo:
    """One signal on its way. `address` for faults, `pid`/`uid` for sent ones, `value` for queued ones.

    `trap` and `error` are the ISA's exception numbers, `access` the neutral access of a page fault.
    """

    number: int
    code: int = SI_USER
    address: int = 0
    pid: int = 0
    uid: int = 0
    value: int = 0
    trap: int = 0
    error: int = 0
    access: int | None = None

    @property
    def is_fault(self) -> bool:
        """Whether siginfo carries an address."""
        return self.number in (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP) and self.code > 0


@dataclass(frozen=True, slots=True)
class Action:
    """What a program asked for one signal (struct sigaction)."""

    handler: int = SIG_DFL
    flags: int = 0
    restorer: int = 0
    mask: int = 0


@dataclass(frozen=True, slots=True)
class AlternateStack:
    """sigaltstack(2)."""

    start: int = 0
    flags: int = SS_DISABLE
    size: int = 0

    def contains(self, stack_pointer: int) -> bool:
        """Whether a handler runs there. Nobody is said to on a stack that is disarmed on entry."""
        return not self.flags & SS_AUTODISARM and self.start < stack_pointer <= self.start + self.size


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the frame needs: the signal, its action, the mask to come back to, the alternate stack."""

    info: SignalInfo
    action: Action
    mask: int
    stack: AlternateStack
    switch: bool  # start at the top of the alternate stack
    signal_return: int  # address of the kernel's own return code, 0 where there is none


@dataclass(frozen=True, slots=True)
class Restored:
    """What rt_sigreturn read from a frame besides registers."""

    mask: int
    stack: AlternateStack


@dataclass
class Signals:
    """The signal state of a process. Masks have bit N-1 for signal N."""

    process: Process
    actions: list[Action] = field(default_factory=lambda: [Action()] * (SIGNALS + 1))
    blocked: int = 0
    pending: dict[int, tuple[SignalInfo, ...]] = field(default_factory=dict)  # none is empty
    suspended_mask: int | None = None  # what rt_sigsuspend is to put back
    stack: AlternateStack = AlternateStack()
    signal_return: int = 0

    # ---- sending

    def force(self, info: SignalInfo) -> None:
        """A fault of the program itself: deliver now, or die by it when that is not possible."""
        action = self.actions[info.number]
        if action.handler in (SIG_DFL, SIG_IGN) or self.blocked >> info.number - 1 & 1:
            self._die(info)
        else:
            self._enter(info, action)

    def post(self, info: SignalInfo) -> None:
        """Send a signal; it is delivered when the guest is about to go on and does not block it."""
        if self.is_ignored(info.number) and not self.blocked >> info.number - 1 & 1:
            return
        waiting = self.pending.get(info.number, ())
        if not waiting or info.number >= FIRST_REAL_TIME:  # only real-time signals are counted
            self.pending[info.number] = (*waiting, info)
        self.update()

    def update(self) -> None:
        """Tell the CPU whether there is something to deliver when the system call returns."""
        work = any(not self.blocked >> number - 1 & 1 for number in self.pending)
        self.process.cpu.return_work = self.deliver if work else None

    # ---- delivering

    def deliver(self) -> None:
        """Enter the handlers of what is pending and not blocked, or do the default."""
        while self.process.ended is None:
            ready = [number for number in sorted(self.pending) if not self.blocked >> number - 1 & 1]
            if not ready:
                break
            info = self._take(ready[0])
            action = self.actions[info.number]
            if action.handler == SIG_DFL:
                if info.number not in _IGNORED and info.number not in _STOPS:
                    self._die(info)
            elif action.handler != SIG_IGN:
                self._enter(info, action)
        if self.suspended_mask is not None:
            self.blocked, self.suspended_mask = self.suspended_mask, None
        self.update()

    def _take(self, number: int) -> SignalInfo:
        info, *others = self.pending.pop(number)
        if others:
            self.pending[number] = tuple(others)
        return info

    def suspend(self, mask: int) -> bool:
        """rt_sigsuspend(2): block `mask` instead until a handler has run. False if none ever will."""
        ready = [n for n in self.pending if not mask >> n - 1 & 1 and not self.is_ignored(n)]
        if ready:
            self.suspended_mask, self.blocked = self.blocked, mask & ~UNBLOCKABLE
            self.update()
        return bool(ready)

    def is_ignored(self, number: int) -> bool:
        """Whether the signal has no effect under its present action."""
        handler = self.actions[number].handler
        return handler == SIG_IGN or (handler == SIG_DFL and number in _IGNORED)

    def _enter(self, info: SignalInfo, action: Action) -> None:
        cpu = self.process.cpu
        on_stack = self.stack.contains(cpu.sp)
        switch = bool(action.flags & SA_ONSTACK) and not self.stack.flags & SS_DISABLE and not on_stack
        mask = self.blocked if self.suspended_mask is None else self.suspended_mask
        delivery = Delivery(info, action, mask, self.stack, switch, self.signal_return)
        try:
            self.process.abi.push_frame(cpu, delivery)
        except UserFault:
            failed = SignalInfo(SIGSEGV, SI_KERNEL)
            if info.number == SIGSEGV:
                self._die(failed)
            else:
                self.force(failed)
            return
        self.suspended_mask = None
        if self.stack.flags & SS_AUTODISARM:
            self.stack = AlternateStack()
        if action.flags & SA_RESETHAND:
            self.actions[info.number] = Action(SIG_DFL, action.flags, action.restorer, action.mask)
        self.blocked |= action.mask & ~UNBLOCKABLE
        if not action.flags & SA_NODEFER:
            self.blocked |= 1 << info.number - 1
        self.update()

    def restore(self) -> None:
        """rt_sigreturn(2): a bad frame is SIGSEGV."""
        try:
            restored = self.process.abi.pop_frame(self.process.cpu)
        except (UserFault, Refused):
            self.force(SignalInfo(SIGSEGV, SI_KERNEL))
            return
        self.blocked = restored.mask & ~UNBLOCKABLE
        if not self.stack.contains(self.process.cpu.sp):
            self.stack = restored.stack
        self.update()

    def _die(self, info: SignalInfo) -> None:
        where = f" at {info.address:#x}" if info.is_fault else ""
        self.process.end(Ended(signal=info.number, why=f"{name_of(info.number)}{where}"))


_NAMES = {
    SIGHUP: "SIGHUP", SIGINT: "SIGINT", SIGQUIT: "SIGQUIT", SIGILL: "SIGILL", SIGTRAP: "SIGTRAP",
    SIGABRT: "SIGABRT", SIGBUS: "SIGBUS", SIGFPE: "SIGFPE", SIGKILL: "SIGKILL", SIGUSR1: "SIGUSR1",
    SIGSEGV: "SIGSEGV", SIGUSR2: "SIGUSR2", SIGPIPE: "SIGPIPE", SIGALRM: "SIGALRM", SIGTERM: "SIGTERM",
}  # fmt: skip


def name_of(number: int) -> str:
    """SIGSEGV for 11."""
    return _NAMES.get(number, f"signal {number}")
