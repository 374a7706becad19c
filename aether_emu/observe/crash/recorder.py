"""What has to be noted while a program runs, so that its end can be explained.

That is little: the signal that ends it, and its last changes of mappings. Faults and system calls are not
listened to.
"""

from __future__ import annotations

from collections import deque

from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.kernel import Moment
from aether_emu.linux.observers import MappingChanged, SignalSeen
from aether_emu.linux.task.task import Task
from aether_emu.mm.changes import Change
from aether_emu.records import dataclass
from aether_emu.system import Machine

_CHANGES = 8
_TOLD = (Change.MAPPED, Change.UNMAPPED, Change.PROTECTED)
CRASHES = frozenset({sig.SIGILL, sig.SIGTRAP, sig.SIGABRT, sig.SIGBUS, sig.SIGFPE, sig.SIGSEGV, sig.SIGSYS})
"""Signals that say that a program is wrong."""


@dataclass(frozen=True, slots=True)
class Fatal:
    """The signal that ended a process, and the task that took it. `blocked` is the task's mask then."""

    task: Task
    info: SignalInfo
    forced: bool
    blocked: int


class Recorder:
    """Listens to a machine until the end. `fatal` is None unless a signal of `CRASHES` ended the program.

    `changes` are the last changes of mappings, the newest last, each with its moment.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.fatal: Fatal | None = None
        self.changes: deque[tuple[Moment, Change, int, int]] = deque(maxlen=_CHANGES)
        self._moment = machine.kernel.moment
        machine.observers.attach(signal=self._signal, mapping=self._mapping)

    def _signal(self, seen: SignalSeen) -> None:
        if seen.fatal and seen.info.number in CRASHES:
            assert isinstance(seen.task, Task), "there are no others"
            self.fatal = Fatal(seen.task, seen.info, seen.forced, seen.task.signals.blocked)

    def _mapping(self, seen: MappingChanged) -> None:
        if seen.change in _TOLD:
            self.changes.append((self._moment(), seen.change, seen.start, seen.end))
