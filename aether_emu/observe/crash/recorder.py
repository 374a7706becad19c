"""What has to be noted while programs run, so that the end of one can be explained.

That is little: the signal that ends a process, and its last changes of mappings. Faults and system calls are
not listened to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import SignalInfo
from aether_emu.linux.kernel import Moment
from aether_emu.linux.observers import MappingChanged, ProcessSeen, SignalSeen
from aether_emu.linux.task.task import Task
from aether_emu.mm.changes import Change
from aether_emu.records import dataclass
from aether_emu.system import Machine

_CHANGES = 8  # of one address space
_SPACES = 64  # address spaces whose changes are kept: those that changed last
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
    """Listens to a machine, and calls `crashed` for each process that a signal of `CRASHES` ends.

    It is called when the process has ended and before it gives anything back: its memory and registers are
    those of that moment.
    """

    def __init__(self, machine: Machine, crashed: Callable[[Fatal], object]) -> None:
        self.machine = machine
        self._crashed = crashed
        self._fatal: dict[int, Fatal] = {}  # by process, until it is told
        self._changes: dict[int, deque[tuple[Moment, Change, int, int]]] = {}
        self._moment = machine.kernel.moment
        machine.observers.attach(signal=self._signal, mapping=self._mapping, ended=self._ended)

    def changes(self, space: int) -> Sequence[tuple[Moment, Change, int, int]]:
        """The last changes of mappings of an address space, the newest last, each with its moment."""
        return self._changes.get(space, ())

    def _signal(self, seen: SignalSeen) -> None:
        if seen.fatal and seen.info.number in CRASHES:
            assert isinstance(seen.task, Task), "there are no others"
            fatal = Fatal(seen.task, seen.info, seen.forced, seen.task.signals.blocked)
            self._fatal.setdefault(seen.task.process.pid, fatal)

    def _ended(self, process: ProcessSeen) -> None:
        fatal = self._fatal.pop(process.pid, None)
        if fatal is not None:
            self._crashed(fatal)

    def _mapping(self, seen: MappingChanged) -> None:
        if seen.change not in _TOLD:
            return
        changes = self._changes.pop(seen.space, None)
        if changes is None:
            changes = deque(maxlen=_CHANGES)
            if len(self._changes) >= _SPACES:
                del self._changes[next(iter(self._changes))]
        self._changes[seen.space] = changes  # the last in order
        changes.append((self._moment(), seen.change, seen.start, seen.end))
