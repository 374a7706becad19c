"""Who can run: the line of tasks before the CPU, and what the scheduler is told of all others.

    task.wake()                      add(task): it stands at the end of the line
    a signal, SIGCONT, an end        look_at(process): the scheduler asks each of its tasks again

So a task that waits costs nothing until something happens to it. This is a part of the kernel, which knows
no process; what the members are is the scheduler's business.

The line is a row of tasks for each real-time priority, the highest first; ordinary tasks have priority 0. Who
is next, and who in it weighs most, is known without a look at each.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from aether_emu.linux.task.scheduling import NICE_0_WEIGHT, ORDINARY, Scheduling


class Queued(Protocol):
    """A task, as it stands in line."""

    in_line: bool

    @property
    def scheduling(self) -> Scheduling: ...


T = TypeVar("T", bound=Queued)
P = TypeVar("P")


class RunQueue(Generic[T, P]):
    """The tasks that can run, the next one first; none is in line twice, nor the running one.

    `news` are the processes to look at again. While they are set, `came` is called when somebody joins the
    line, for a task that ran alone has to share from then on, and `told` when there is news: who runs leaves
    the CPU for it, so that it does not matter whether the run returns about then.

    While there are real-time tasks, who joins the line or changes its priority finds its row when the next
    one is taken: first those who changed (who rises stands behind those of its new row, who falls before
    them), then those who joined, in their order.
    """

    def __init__(self) -> None:
        self.news: dict[P, None] = {}
        self.real_time = 0  # how many tasks have a real-time policy
        self.came: Callable[[], None] | None = None
        self.told: Callable[[], None] | None = None
        self._ordinary = OrderedDict[T, None]()
        self._rows = {0: self._ordinary}  # of the others none is empty
        self._raised: dict[T, int] = {}  # who stands in a row of real-time tasks, and in which
        # Whose row is not found yet: at the end of the line, the last one last; at its beginning, in reverse.
        self._joined: list[T] = []
        self._first: list[T] = []
        self._changed: dict[T, None] = {}
        self._weights: Counter[int] = Counter()  # in line, of tasks that do not share in the ordinary way
        self._special = 0  # how many those are
        self.count = 0
        """How many are in line: `len`, in less time."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[T]:
        yield from reversed(self._first)
        for priority in sorted(self._rows, reverse=True):
            yield from self._rows[priority]
        yield from self._joined

    def add(self, task: T) -> None:
        """It can run, after those that can already. Nothing happens to who stands in line."""
        if not task.in_line:
            self._enter(task)
            if self.real_time:
                self._joined.append(task)
            else:
                self._ordinary[task] = None
            if self.came is not None:
                self.came()

    def put_first(self, task: T) -> None:
        """It goes on where it was, before all others."""
        if not task.in_line:
            self._enter(task)
            if self.real_time:
                self._first.append(task)
            else:
                self._ordinary[task] = None
                if self.count > 1:
                    self._ordinary.move_to_end(task, last=False)

    def take(self) -> T | None:
        """The first in line, who leaves it; None when nobody is."""
        if not self.count:
            return None
        if self._joined or self._first or self._changed:
            self._find_rows()
        if len(self._rows) == 1:
            task, _none = self._ordinary.popitem(False)
        else:
            task = self._take_highest()
        self._leave(task)
        return task

    @property
    def first(self) -> T | None:
        """Who stands first; None when nobody is."""
        return next(iter(self), None)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody stands in line, or may after what happened."""
        return bool(self.count or self.news)

    @property
    def heaviest(self) -> int:
        """The most that a task in line weighs, up to an ordinary one's weight; 0 when nobody is."""
        if self.count > self._special:
            return NICE_0_WEIGHT
        return min(max(self._weights), NICE_0_WEIGHT) if self._weights else 0

    def remove(self, task: T) -> None:
        """It leaves the line, if it is in it."""
        if task.in_line:
            self._forget(task)
            self._leave(task)

    def reschedule(self, task: T, before: Scheduling) -> None:
        """It shares the CPU in another way than `before`."""
        wanted = task.scheduling
        self.real_time += (wanted.priority > 0) - (before.priority > 0)
        if task.in_line:
            self._weigh(before, -1)
            self._weigh(wanted, 1)
            if wanted.priority != before.priority:
                self._changed[task] = None

    def look_at(self, process: P) -> None:
        """Something happened to a process that may let a task of it run, or has ended one."""
        self.news[process] = None
        if self.told is not None:
            self.told()
        elif self.came is not None:
            self.came()

    # ---- inside

    def _take_highest(self) -> T:
        priority = max(self._rows)
        row = self._rows[priority]
        task, _none = row.popitem(last=False)
        if priority:
            del self._raised[task]
            if not row:
                del self._rows[priority]
        return task

    def _enter(self, task: T) -> None:
        task.in_line = True
        self.count += 1
        if task.scheduling is not ORDINARY:
            self._weigh(task.scheduling, 1)

    def _leave(self, task: T) -> None:
        task.in_line = False
        self.count -= 1
        if task.scheduling is not ORDINARY:
            self._weigh(task.scheduling, -1)

    def _weigh(self, scheduling: Scheduling, more: int) -> None:
        if scheduling is ORDINARY:
            return
        self._special += more
        self._weights[scheduling.weight] += more
        if not self._weights[scheduling.weight]:
            del self._weights[scheduling.weight]

    def _forget(self, task: T) -> None:
        """It stands in no row any more."""
        self._changed.pop(task, None)
        priority = self._raised.pop(task, 0)
        row = self._rows[priority]
        if task in row:
            del row[task]
            if priority and not row:
                del self._rows[priority]
        else:
            (self._joined if task in self._joined else self._first).remove(task)

    def _find_rows(self) -> None:
        """Let everybody stand where he belongs."""
        joined, first, changed = self._joined, self._first, self._changed
        self._joined, self._first, self._changed = [], [], {}
        if changed:
            self._move(changed)
        for task in first:
            row = self._row_for(task)
            row[task] = None
            row.move_to_end(task, last=False)
        for task in joined:
            self._row_for(task)[task] = None

    def _move(self, changed: dict[T, None]) -> None:
        """Those whose priority is another now go to their rows, in the order in which they stand."""
        rises, falls = list[T](), list[T]()
        for priority in sorted(self._rows, reverse=True):
            for task in self._rows[priority]:
                if task in changed and task.scheduling.priority != priority:
                    (rises if task.scheduling.priority > priority else falls).append(task)
        for task in [*rises, *falls]:
            self._forget(task)
        for task in rises:
            self._row_for(task)[task] = None
        for task in reversed(falls):
            row = self._row_for(task)
            row[task] = None
            row.move_to_end(task, last=False)

    def _row_for(self, task: T) -> OrderedDict[T, None]:
        priority = task.scheduling.priority
        if priority:
            self._raised[task] = priority
        return self._rows.setdefault(priority, OrderedDict())
