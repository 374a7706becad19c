"""One process: its memory, files, signal actions and limits, its tasks, and how it ended."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Protocol

from aether_emu.linux.abi.signal import Action, SignalInfo
from aether_emu.linux.files.files import Files
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.task.signals import ProcessSignals, TaskSignals
from aether_emu.mm.objects.special import SpecialMapping
from aether_emu.mm.space import AddressSpace

PID, PARENT_PID = 1000, 999
RLIM_INFINITY = (1 << 64) - 1
RLIMITS = 16
RLIMIT_STACK, RLIMIT_NPROC, RLIMIT_NOFILE, RLIMIT_AS = 3, 6, 7, 9


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
    """What was executed, as /proc/self and the auxiliary vector tell it.

    `vdso` is the number of the object that has the vDSO's image, `vdso_start` where the process has it or had
    it last, `signal_return` what handlers return to in it: an offset, 0 on an ISA without.
    """

    path: bytes
    arguments: list[bytes]
    environment: list[bytes]
    auxiliary: bytes = b""
    entry: int = 0
    stack_pointer: int = 0
    vdso: int = 0
    vdso_start: int = 0
    signal_return: int = 0


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
        if space.address_space is not None:
            limits[RLIMIT_AS] = (space.address_space, space.address_space)
        return limits

    # ---- signals

    def post(self, info: SignalInfo) -> None:
        """Send a signal to the process: the first task that does not block it takes it."""
        takers = [task for task in self.tasks if not task.signals.blocks(info.number)]
        if takers and self.signals.is_ignored(info.number):
            return
        self.signals.pending.add(info)
        if takers:
            takers[0].signals.update()

    def set_action(self, number: int, action: Action) -> None:
        """sigaction(2). What is ignored from now on is not pending either."""
        self.signals.actions[number] = action
        if not self.signals.is_ignored(number):
            return
        self.signals.pending.drop(number)
        for task in self.tasks:
            task.signals.pending.drop(number)
            task.signals.update()

    def signal_return(self) -> int:
        """Where handlers return to that name no other place: in the vDSO, which mremap may have moved.

        Where it was, if it has been unmapped. 0 on an ISA without such a place.
        """
        program = self.program
        vdso = self.mm.physical.objects.find(program.vdso)
        if isinstance(vdso, SpecialMapping):
            program.vdso_start = vdso.start(self.mm) or program.vdso_start
        return program.vdso_start + program.signal_return if program.signal_return else 0

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
