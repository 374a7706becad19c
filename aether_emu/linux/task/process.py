"""One process: its memory, files, signal actions and limits, its tasks, and how it ended."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Protocol

from aether_emu.linux.abi.signal import Action, SignalInfo
from aether_emu.linux.files.files import Files
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.task.signals import ProcessSignals, TaskSignals, enqueue, forget_opposite
from aether_emu.mm.space import AddressSpace

PID, PARENT_PID = 1000, 999
RLIM_INFINITY = (1 << 64) - 1
RLIMITS = 16
RLIMIT_STACK, RLIMIT_NPROC, RLIMIT_NOFILE, RLIMIT_AS, RLIMIT_SIGPENDING = 3, 6, 7, 9, 11
_RAM_PER_SIGNAL = (
    2 * 8 * (16 << 10)
)  # bytes: Linux admits half as many as stacks of 16 KiB in an eighth of RAM


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: by `exit` with `code`, or by `signal` (0 is none)."""

    code: int = 0
    signal: int = 0
    why: str = ""

    @property
    def status(self) -> int:
        """The exit status as a shell shows it: 128+N for signal N."""
        return 128 + self.signal if self.signal else self.code & 0xFF


@dataclass
class Program:
    """What was executed, as /proc/self and the auxiliary vector tell it."""

    path: bytes
    arguments: list[bytes]
    environment: list[bytes]
    auxiliary: bytes = b""
    entry: int = 0
    stack_pointer: int = 0


class Member(Protocol):
    """A task, as its process sees it."""

    @property
    def tid(self) -> int: ...
    @property
    def name(self) -> bytes: ...
    @property
    def signals(self) -> TaskSignals: ...
    def stop(self) -> None: ...


class Process:
    """A process.

    `mm` is its address space. `tasks` are its threads, the first one first; a task enters itself when it is
    made. `ended` is None while it lives, and never changes afterwards. `limits` are resource -> (soft, hard),
    as getrlimit shows them. `files` is set by whoever makes the process, before it runs.
    """

    files: Files

    def __init__(
        self,
        kernel: Kernel,
        mm: AddressSpace,
        program: Program,
        *,
        pid: int = PID,
        parent_pid: int = PARENT_PID,
    ) -> None:
        self.kernel, self.config, self.abi = kernel, kernel.config, kernel.abi
        self.mm = mm
        self.program = program
        self.pid, self.parent_pid = pid, parent_pid
        self.signals = ProcessSignals()
        self.tasks: list[Member] = []
        self.ended: Ended | None = None
        self.no_new_privileges = 0
        self.limits = self._initial_limits()

    def _initial_limits(self) -> dict[int, tuple[int, int]]:
        limits = dict.fromkeys(range(RLIMITS), (RLIM_INFINITY, RLIM_INFINITY))
        space = self.mm.limits
        limits[RLIMIT_STACK] = (space.stack, RLIM_INFINITY)
        limits[RLIMIT_NPROC] = (1, 1)
        limits[RLIMIT_NOFILE] = (self.config.open_files, self.config.open_files)
        signals = max(self.config.ram // _RAM_PER_SIGNAL, 1)
        limits[RLIMIT_SIGPENDING] = (signals, signals)
        if space.address_space is not None:
            limits[RLIMIT_AS] = (space.address_space, space.address_space)
        return limits

    # ---- signals

    def post(self, info: SignalInfo) -> None:
        """Send a signal to the process: the first task that does not block it takes it.

        Raises Refused(EAGAIN), see `signals.enqueue`.
        """
        forget_opposite(info.number, self)
        takers = [task for task in self.tasks if not task.signals.blocks(info.number)]
        if takers and self.signals.is_ignored(info.number):
            return
        enqueue(self.signals.pending, info, self)
        if takers:
            takers[0].signals.update()

    @property
    def queued_signals(self) -> int:
        """How many signals are queued for it and its tasks (`SigQ`)."""
        return self.signals.pending.queued + sum(task.signals.pending.queued for task in self.tasks)

    @property
    def signal_limit(self) -> int:
        """How many may be (RLIMIT_SIGPENDING)."""
        return self.limits[RLIMIT_SIGPENDING][0]

    def has_memory_above(self, address: int) -> bool:
        """Whether an area lies at `address` or above it."""
        return self.mm.areas.following(address) is not None

    def set_action(self, number: int, action: Action) -> None:
        """sigaction(2). What is ignored from now on is not pending either."""
        self.signals.actions[number] = action
        if self.signals.is_ignored(number):
            self.forget(number)

    def forget(self, number: int) -> None:
        """Drop what waits of a signal, for the process and for each task."""
        self.signals.pending.drop(number)
        for task in self.tasks:
            task.signals.pending.drop(number)
            task.signals.update()

    # ---- the end

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.ended is not None

    def end(self, ended: Ended) -> None:
        """The process is over. A CPU that runs one of its tasks stops when its current callback returns."""
        if self.ended is None:
            self.ended = ended
        for task in self.tasks:
            task.stop()

    def die(self, signal: int, why: str) -> None:
        """It is killed by a signal; `why` is for people."""
        self.end(Ended(signal=signal, why=why))

    # ---- state

    def capture(self) -> dict[str, Any]:
        """What is the process's own; its memory and files are captured by themselves."""
        return {
            "pid": self.pid,
            "parent_pid": self.parent_pid,
            "program": copy.deepcopy(self.program),
            "limits": dict(self.limits),
            "no_new_privileges": self.no_new_privileges,
            "signals": self.signals.capture(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `capture` gave."""
        self.pid, self.parent_pid = state["pid"], state["parent_pid"]
        self.program = copy.deepcopy(state["program"])
        self.limits = dict(state["limits"])
        self.no_new_privileges = state["no_new_privileges"]
        self.signals.restore(state["signals"])
