"""A scheduler that lets a guide say how long turns are, and notes the switches that came of it.

A switch is noted where a turn was ended by its length, as a place in the task's own blocks; the same
switches given to `Replayed` make the same run. What ends a turn for another reason (a wait, a deadline) does
so again by itself, and is no switch of the schedule.

A run has no end when it has worked for longer than it may. Work is counted in executed blocks and system
calls, so a run and its replay come to that at the same place, on any host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from struct import pack

from aether_emu.errors import AetherError, shown
from aether_emu.explore.guides import Guide, Span
from aether_emu.explore.schedule import Switch
from aether_emu.linux.entry import Entry
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.task.scheduler import LONGEST_TURN, Scheduler
from aether_emu.linux.task.task import Task
from aether_emu.machine.memory.aperture import ApertureFile
from aether_emu.random import Stream

_CALL = 50  # blocks that a system call counts for: it costs as much of virtual time
_ALONE = 1 << 20  # blocks after which one who runs alone is asked how much it has worked
_MOST_NAMED = 4  # tasks that a message names


class NoEnd(AetherError):
    """A run has worked for as long as it may, and goes on."""


@dataclass(slots=True)
class Place:
    """Where a switch was made: in front of the instruction at `pc` of `task`; `then` ran next."""

    task: Task
    pc: int
    then: Task | None = None


class GuidedScheduler(Scheduler):
    """As `Scheduler`, by the words of `guide`. Where that has none, turns are drawn from `chance`.

    `made` has the switches so far, `places` where each was. `most` is how much it may work; 0: any amount.
    """

    def __init__(
        self,
        kernel: Kernel,
        entries: Sequence[Entry],
        *,
        guide: Guide,
        chance: Stream,
        most: int = 0,
        pause: Callable[[], None],
        lost_pages: Callable[[], list[tuple[ApertureFile, int]]],
    ) -> None:
        super().__init__(kernel, entries, pause=pause, lost_pages=lost_pages)
        self._chance, self._guide, self._most = chance, guide, most
        self.made: list[Switch] = []
        self.places: list[Place] = []
        self._shared: dict[int, int] = {}  # task -> how many it had when it first shared the machine
        self._own: dict[int, int] = {}  # task -> blocks that it has executed
        self._ends: dict[int, int] = {}  # task -> how many it will have when its turn is over
        self._noted = 0  # the CPU's count up to which they are its task's
        self._waited = 0  # blocks for which others can have waited for a CPU that stood still
        self._ran: Task | None = None
        self._order = blake2b(digest_size=16)

    @property
    def order(self) -> bytes:
        """A number of the interleaving: the same for runs in which the same tasks ran for as long."""
        return self._order.digest()

    @property
    def spans(self) -> tuple[Span, ...]:
        """Which part of each task others could have interrupted; all of it where none could."""
        return tuple((task, self._shared.get(task, 0), own) for task, own in self._own.items())

    @property
    def work(self) -> int:
        """How much the run has worked, in blocks: those of all tasks, and `_CALL` for each system call; less
        what the other CPUs can have worked while one of them stood still.
        """
        return self.kernel.blocks + _CALL * sum(self.kernel.calls_made.values()) - self._waited

    def _let_run(self, task: Task, limit: int | None) -> bool:
        if self._most and self.work >= self._most:
            raise NoEnd(self._without_end(task))
        self._noted = self.entry.cpu.blocks
        if task is not self._ran:
            if self._ran is not None:
                tid = self._ran.tid
                cut = self.made[-1].instructions if self.made and self.made[-1].task == tid else 0
                self._order.update(pack("<QQQQ", tid, self._own.get(tid, 0), cut, task.tid))
                if self.places and self.places[-1].task is self._ran and self.places[-1].then is None:
                    self.places[-1].then = task
            self._ran = task
        return super()._let_run(task, limit)

    def _without_end(self, task: Task) -> str:
        calls = sum(self.kernel.calls_made.values())
        able = sorted((task, *self._queue), key=lambda each: each.tid)
        named = ", ".join(map(called, able[:_MOST_NAMED]))
        more = f" and {len(able) - _MOST_NAMED} more" if len(able) > _MOST_NAMED else ""
        can = "goes on" if len(able) == 1 else "go on"
        return f"no end: after {self.kernel.blocks:,} blocks and {calls:,} system calls {named}{more} {can}"

    def _begun(self, task: Task) -> int | None:
        turn = super()._begun(task)
        return _ALONE if turn is None and self._shared else turn

    def _note_blocks(self, task: Task) -> int:
        """How many blocks it has executed."""
        now = self.entry.cpu.blocks
        own = self._own[task.tid] = self._own.get(task.tid, 0) + now - self._noted
        self._noted = now
        return own

    def _length(self, task: Task) -> int:
        own = self._note_blocks(task)
        self._shared.setdefault(task.tid, own)
        told = self._guide.turn(task.tid, own)
        if told is None:
            length = super()._length(task)
        else:
            length, task.cut = told
        self._ends[task.tid] = own + length if length < LONGEST_TURN else -1
        return length

    def _is_alone(self, _task: Task) -> bool:
        return False  # each turn is looked at

    def _turn(self, task: Task, limit: int | None) -> bool:
        own = self._note_blocks(task)
        cut = 0 if task.turn else task.cut
        try:
            reached = super()._turn(task, limit)
        finally:
            if cut:
                self._note_switch(task, own, cut)
        over = not (task.turn or task.cut or cut)
        own = self._note_blocks(task)
        if over and task.wait is None and not task.is_over and self._ends.get(task.tid) == own:
            self._note_switch(task, own, 0)
        return reached

    def _note_switch(self, task: Task, own: int, cut: int) -> None:
        last = self.made[-1] if self.made else None
        if last is not None and (last.task, last.blocks) == (task.tid, own):
            return  # the turn around a cut, which is noted
        delay = 0
        if len(self._entries) > 1:
            delay, clock = self._guide.delay(task.tid, own), self.kernel.clock
            clock.go_to(clock.now_ns + delay)
            self._waited += delay // clock.costs.block * (len(self._entries) - 1)
        self.made.append(Switch(task.tid, own, cut, delay))
        self.places.append(Place(task, self.entry.cpu.pc))


def called(task: Task) -> str:
    """A task by number and name."""
    kind = "process" if task.tid == task.process.pid else "thread"
    return f"{kind} {task.tid} ({shown(task.name)})"
