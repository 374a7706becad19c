"""The lines before several CPUs: where a task goes that can run, and which CPU works next.

    a task can run   its last CPU, unless that has others to run and one is idle that it may use
    next             of the CPUs with tasks in line, the one whose time has come least far
    a CPU is idle    it takes the last one out of the longest line that it may run

One CPU works at a time, since they share a thread of the host, and each has a time of its own: that of the
clock while it works. So CPUs get on side by side, none more than a turn ahead of those that have something
to do. What a program observes never goes back: see `Kernel.observe_time`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from aether_emu.linux.task.run_queue import Queued, RunQueue
from aether_emu.linux.task.scheduling import Scheduling


class Placed(Queued, Protocol):
    """A task, as it stands in one of several lines."""

    home: int
    affinity: int
    ready_at: int


def _nothing() -> None:
    pass


T = TypeVar("T", bound=Placed)
P = TypeVar("P")


class Lines(Generic[T, P]):
    """As `RunQueue`, for `count` CPUs. `now` is the time of the CPU that works, which is `at`.

    `times` has how far each CPU has come, in ns; `working` is whether `at` executes a task, which is in no
    line then. `migrations` counts tasks that went on elsewhere than they were.

    `held` tells for how many shootdowns each CPU waits: it does not work until they are over, and the first
    in its line stays there. `holding` is their sum, and `waited` for how many ns CPUs have waited so. `grant`
    lets those go on that wait for locks, as far as these can be theirs: see `contention`.
    """

    def __init__(self, count: int, now: Callable[[], int]) -> None:
        self.lines: list[RunQueue[T, P]] = [RunQueue() for _ in range(count)]
        self.news = self.lines[0].news
        for line in self.lines:
            line.news = self.news
        self.times = [0] * count
        self.at = 0
        self.working = False
        self.migrations = 0
        self.held = [0] * count
        self.holding = 0
        self.waited = 0
        self.grant: Callable[[], None] = _nothing
        self._now = now
        self._came: Callable[[], None] | None = None

    def __len__(self) -> int:
        return self.count

    @property
    def count(self) -> int:
        """How many are in line."""
        return sum([line.count for line in self.lines])

    def __iter__(self) -> Iterator[T]:
        for line in self.lines:
            yield from line

    @property
    def real_time(self) -> int:
        """How many tasks have a real-time policy."""
        return self.lines[0].real_time

    @property
    def came(self) -> Callable[[], None] | None:
        """See `RunQueue`."""
        return self._came

    @came.setter
    def came(self, call: Callable[[], None] | None) -> None:
        self._came = call
        for line in self.lines:
            line.came = call

    @property
    def is_wanted(self) -> bool:
        """Whether somebody stands in line, or may after what happened."""
        return bool(self.news) or any(map(len, self.lines))

    def add(self, task: T) -> None:
        """It can run, where it did last, or where it need not wait. Nothing happens to who is in line."""
        if not task.in_line:
            index = self._place(task)
            if not self._is_busy(index):
                self.times[index] = max(self.times[index], self._now())
            self.join(task, index)

    def join(self, task: T, index: int) -> None:
        """It stands in the line of CPU `index` from now on."""
        if index != task.home:
            self.migrations += 1
            task.home = index
        task.ready_at = self._now()
        self.lines[index].add(task)

    def remove(self, task: T) -> None:
        """It leaves its line, if it is in one."""
        self.lines[task.home].remove(task)

    def reschedule(self, task: T, before: Scheduling) -> None:
        """It shares its CPU in another way than `before`."""
        own = self.lines[task.home]
        own.reschedule(task, before)
        for line in self.lines:
            line.real_time = own.real_time

    def look_at(self, process: P) -> None:
        """See `RunQueue`."""
        self.lines[self.at].look_at(process)

    # ---- which CPU

    def _is_busy(self, index: int) -> bool:
        return bool(len(self.lines[index])) or (self.working and index == self.at)

    def _place(self, task: T) -> int:
        """The CPU on which it runs next."""
        count, allowed = len(self.lines), task.affinity
        home = task.home
        if not allowed >> home & 1:
            home = next(index for index in range(count) if allowed >> index & 1)
        if not self._is_busy(home):
            return home
        for step in range(1, count):
            index = (home + step) % count
            if allowed >> index & 1 and not self._is_busy(index):
                return index
        return home

    def balance(self) -> None:
        """Who is idle takes over one of those who wait elsewhere."""
        if all(len(line) < 2 for line in self.lines):
            return
        for index in range(len(self.lines)):
            taken = None if self._is_busy(index) else self._spare(index)
            if taken is not None:
                ready_at = taken.ready_at
                self.remove(taken)
                self.times[index] = max(self.times[index], ready_at)
                self.join(taken, index)
                taken.ready_at = ready_at

    def _spare(self, index: int) -> T | None:
        """Whom CPU `index` may take out of the longest line in which two or more stand."""
        for line in sorted(self.lines, key=len, reverse=True):
            if len(line) < 2:
                return None
            first, *others = line
            if not self.held[first.home]:
                others.insert(0, first)
            for task in reversed(others):
                if task.affinity >> index & 1:
                    return task
        return None

    def earliest(self) -> int | None:
        """The CPU that works next; None when none has a task in line and waits for no shootdown."""
        waiting = [
            (self.times[index], index)
            for index, line in enumerate(self.lines)
            if len(line) and not self.held[index]
        ]
        return min(waiting)[1] if waiting else None

    # ---- state

    def capture(self) -> dict[str, Any]:
        """All but who stands in which line. No CPU waits for a shootdown."""
        assert not self.holding, "shootdowns are over"
        return {
            "times": list(self.times),
            "at": self.at,
            "migrations": self.migrations,
            "waited": self.waited,
        }

    def restore(self, state: dict[str, Any], lines: Sequence[Sequence[T]]) -> None:
        """Become the captured ones, with these tasks in the line of each CPU; others that are in line stand
        behind them.
        """
        others = [task for task in self if all(task not in tasks for tasks in lines)]
        for line in self.lines:
            for task in list(line):
                line.remove(task)
        for own, tasks in zip(self.lines, lines, strict=True):
            for task in tasks:
                own.add(task)
        for task in others:
            self.lines[task.home].add(task)
        self.times, self.at = list(state["times"]), state["at"]
        self.migrations, self.waited = state["migrations"], state["waited"]
