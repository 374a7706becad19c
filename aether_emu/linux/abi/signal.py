"""Signals as Linux has them: numbers, codes, actions, and what a frame is built from (signal(7))."""

from __future__ import annotations

from aether_emu.records import dataclass

SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL = range(1, 10)
SIGUSR1, SIGSEGV, SIGUSR2, SIGPIPE, SIGALRM, SIGTERM = range(10, 16)
SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG = range(17, 24)
SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF = range(24, 28)
SIGWINCH, SIGIO, SIGSYS = 28, 29, 31
SIGNALS = 64
FIRST_REAL_TIME = 32

SEGV_MAPERR, SEGV_ACCERR, SEGV_PKUERR = 1, 2, 4
BUS_ADRALN, BUS_ADRERR, BUS_MCEERR_AR = 1, 2, 4
FPE_INTDIV, FPE_FLTDIV, FPE_FLTOVF, FPE_FLTUND, FPE_FLTRES, FPE_FLTINV = 1, 3, 4, 5, 6, 7
ILL_ILLOPC, ILL_ILLOPN, TRAP_BRKPT, TRAP_TRACE = 1, 2, 1, 2
SI_USER, SI_KERNEL, SI_TIMER, SI_MESGQ, SI_SIGIO, SI_TKILL = 0, 0x80, -2, -3, -5, -6
CLD_EXITED, CLD_KILLED, CLD_DUMPED, CLD_TRAPPED, CLD_STOPPED, CLD_CONTINUED = range(1, 7)

SA_NOCLDSTOP, SA_NOCLDWAIT, SA_SIGINFO, SA_EXPOSE_TAGBITS = 1, 2, 4, 0x800
SA_ONSTACK, SA_RESTART, SA_NODEFER = 0x0800_0000, 0x1000_0000, 0x4000_0000
SA_RESETHAND, SA_RESTORER = 0x8000_0000, 0x0400_0000
KNOWN_FLAGS = (
    SA_NOCLDSTOP
    | SA_NOCLDWAIT
    | SA_SIGINFO
    | SA_EXPOSE_TAGBITS
    | SA_ONSTACK
    | SA_RESTART
    | SA_NODEFER
    | SA_RESETHAND
    | SA_RESTORER
)
"""Flags of an action that are kept. Others are cleared, so that programs can ask what there is."""
SS_ONSTACK, SS_DISABLE, SS_AUTODISARM = 1, 2, 1 << 31
SIG_DFL, SIG_IGN = 0, 1
SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK = 0, 1, 2

IGNORED_BY_DEFAULT = frozenset({SIGCHLD, SIGCONT, SIGURG, SIGWINCH})
DUMPING = frozenset({SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGXCPU, SIGXFSZ, SIGSYS})
"""Those whose default leaves a core."""
STOPPING = frozenset({SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU})
UNBLOCKABLE = 1 << SIGKILL - 1 | 1 << SIGSTOP - 1
SYNCHRONOUS = sum(1 << number - 1 for number in (SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS))
"""What the program's own instructions raise. Of several pending signals these are taken first."""


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """What frames show of the task's last fault, until the next one (Linux: thread_struct).

    x86_64: vector, error code and cr2; `address` is None for an exception that leaves cr2 alone.
    arm64: `error` is the syndrome and `address` the fault address; `trap` is unused.
    """

    trap: int = 0
    error: int = 0
    address: int | None = 0


@dataclass(frozen=True, slots=True)
class SignalInfo:
    """One signal on its way. `address` for faults, `pid`/`uid` for sent ones, `value` for queued ones.

    `record` is what a fault leaves in this frame and later ones; None leaves what was there. `selectors` are
    CS and SS as the frame shows them, where a program has put others there than its own (x86_64). `raw` is
    the siginfo as a program made it (sigqueue). `of_timer` marks those of timer_create: `pid` is the timer's
    number, `uid` how often it was due meanwhile. `file` is the descriptor of which a signal tells what may be
    done with it, `value` is the poll(2) events then. `used` is the processor time of a child, by the program
    and by the system, in ticks of 10 ms. `key` is the protection key that forbade an access.
    `least_bit` is the lowest bit of `address` that matters, where memory failed.
    """

    number: int
    code: int = SI_USER
    address: int = 0
    pid: int = 0
    uid: int = 0
    value: int = 0
    record: FaultRecord | None = None
    selectors: tuple[int, int] | None = None
    raw: bytes = b""
    of_timer: bool = False
    file: int | None = None
    used: tuple[int, int] = (0, 0)
    key: int = 0
    least_bit: int = 0

    @property
    def is_fault(self) -> bool:
        """Whether siginfo carries an address."""
        return self.number in (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP) and 0 < self.code < SI_KERNEL


@dataclass(frozen=True, slots=True)
class Action:
    """What a program asked for one signal (struct sigaction)."""

    handler: int = SIG_DFL
    flags: int = 0
    restorer: int = 0
    mask: int = 0


@dataclass(frozen=True, slots=True)
class AlternateStack:
    """sigaltstack(2): `flags` are as the program gave them. There is none while `size` is 0."""

    start: int = 0
    flags: int = 0
    size: int = 0

    def spans(self, stack_pointer: int) -> bool:
        """Whether the stack pointer points into it, or at its upper end."""
        return self.start < stack_pointer <= self.start + self.size

    def contains(self, stack_pointer: int) -> bool:
        """Whether a handler runs there. Nobody is said to on a stack that is disarmed on entry."""
        return not self.flags & SS_AUTODISARM and self.spans(stack_pointer)

    def is_entered(self, action: Action, stack_pointer: int) -> bool:
        """Whether a handler with this action starts at its top."""
        return bool(action.flags & SA_ONSTACK and self.size) and not self.contains(stack_pointer)

    def shown_flags(self, stack_pointer: int) -> int:
        """ss_flags as sigaltstack answers them."""
        state = SS_DISABLE if not self.size else SS_ONSTACK if self.contains(stack_pointer) else 0
        return state | self.flags & SS_AUTODISARM


DISARMED = AlternateStack(flags=SS_DISABLE)
"""None: what a program begins with, and has while a handler runs on a stack that is disarmed on entry."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the frame needs: the signal, its action, the mask to come back to, the alternate stack."""

    info: SignalInfo
    action: Action
    mask: int
    stack: AlternateStack
    record: FaultRecord
    signal_return: int  # address of the kernel's own return code, 0 where there is none


@dataclass(slots=True)
class Restored:
    """What rt_sigreturn read from a frame besides registers, as far as it came.

    `refused` is the signal that a bad frame raises. Whatever was read before the bad part stays in force.
    """

    mask: int | None = None
    stack: AlternateStack | None = None
    refused: SignalInfo | None = None


_NAMES = {
    SIGHUP: "SIGHUP", SIGINT: "SIGINT", SIGQUIT: "SIGQUIT", SIGILL: "SIGILL", SIGTRAP: "SIGTRAP",
    SIGABRT: "SIGABRT", SIGBUS: "SIGBUS", SIGFPE: "SIGFPE", SIGKILL: "SIGKILL", SIGUSR1: "SIGUSR1",
    SIGSEGV: "SIGSEGV", SIGUSR2: "SIGUSR2", SIGPIPE: "SIGPIPE", SIGALRM: "SIGALRM", SIGTERM: "SIGTERM",
}  # fmt: skip


def name_of(number: int) -> str:
    """SIGSEGV for 11."""
    return _NAMES.get(number, f"signal {number}")
