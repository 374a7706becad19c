"""Signals as Linux has them: numbers, codes, actions, and what a frame is built from (signal(7))."""

from __future__ import annotations

from dataclasses import dataclass

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

SA_ONSTACK, SA_RESTART, SA_NODEFER = 0x0800_0000, 0x1000_0000, 0x4000_0000
SA_RESETHAND, SA_RESTORER = 0x8000_0000, 0x0400_0000
SS_ONSTACK, SS_DISABLE, SS_AUTODISARM = 1, 2, 1 << 31
SIG_DFL, SIG_IGN = 0, 1
SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK = 0, 1, 2

IGNORED_BY_DEFAULT = frozenset({SIGCHLD, SIGCONT, SIGURG, SIGWINCH})
STOPPING = frozenset({SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU})
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


_NAMES = {
    SIGHUP: "SIGHUP", SIGINT: "SIGINT", SIGQUIT: "SIGQUIT", SIGILL: "SIGILL", SIGTRAP: "SIGTRAP",
    SIGABRT: "SIGABRT", SIGBUS: "SIGBUS", SIGFPE: "SIGFPE", SIGKILL: "SIGKILL", SIGUSR1: "SIGUSR1",
    SIGSEGV: "SIGSEGV", SIGUSR2: "SIGUSR2", SIGPIPE: "SIGPIPE", SIGALRM: "SIGALRM", SIGTERM: "SIGTERM",
}  # fmt: skip


def name_of(number: int) -> str:
    """SIGSEGV for 11."""
    return _NAMES.get(number, f"signal {number}")
