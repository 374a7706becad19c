"""One process: its memory, files and signals, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aether_emu.config import Config
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.open_file import WouldBlock
from aether_emu.machine.cpu import Cpu
from aether_emu.mm.space import AddressSpace

if TYPE_CHECKING:
    from aether_emu.linux.abi import Abi
    from aether_emu.linux.kernel import Kernel
    from aether_emu.linux.task.signals import Signals

PID, PARENT_PID = 1000, 999


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


class Process:
    """A process. `ended` is None while it lives; `blocked` says what it waits for, if it does."""

    def __init__(self, kernel: Kernel, space: AddressSpace, program: Program) -> None:
        self.kernel = kernel
        self.space = space
        self.program = program
        self.pid, self.parent_pid = PID, PARENT_PID
        self.name = program.path.rsplit(b"/", 1)[-1][:15]
        self.files: Files
        self.signals: Signals
        self.ended: Ended | None = None
        self.blocked: WouldBlock | None = None
        self.clear_child_tid = 0
        self.no_new_privileges = 0
        self.limits: dict[int, tuple[int, int]] = {}  # resource -> (soft, hard), as getrlimit shows them

    @property
    def mm(self) -> AddressSpace:
        """Its memory, under the name that the Python API documents."""
        return self.space

    @property
    def cpu(self) -> Cpu:
        """The CPU that runs it."""
        return self.kernel.cpu

    @property
    def config(self) -> Config:
        return self.kernel.config

    @property
    def abi(self) -> Abi:
        """What its ISA's system-call interface looks like."""
        return self.kernel.abi

    def end(self, ended: Ended) -> None:
        """The process is over; the CPU stops as soon as the current callback returns."""
        if self.ended is None:
            self.ended = ended
        self.cpu.stop()

    def block(self, reason: WouldBlock) -> None:
        """Wait: the system call will be issued again when `reason` may be over."""
        self.blocked = reason
        self.cpu.pc = self.cpu.pc - self.abi.system_call_size
        self.cpu.stop()
