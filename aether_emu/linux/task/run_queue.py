"""Who can run: the line of tasks before the CPU, and what the scheduler is told of all others.

    task.wake()                      add(task): it stands at the end of the line
    a signal, SIGCONT, an end        look_at(process): the scheduler asks each of its tasks again

So a task that waits costs nothing until something happens to it. This is a part of the kernel, which knows
no process; what the members are is the scheduler's business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """A task, as it stands in line."""

    in_line: bool


T = TypeVar("T", bound=Queued)
P = TypeVar("P")


class RunQueue(Generic[T, P]):
    """`line` are the tasks that can run, the next one first; none is in it twice, nor the running one.

    `news` are the processes to look at again. `came` is called when somebody joins the line, or there is
    news, while it is set: a task that ran alone has to share from then on.
    """

    def __init__(self) -> None:
        self.line: deque[T] = deque()
        self.news: dict[P, None] = {}
        self.real_time = 0  # how many tasks have a real-time policy
        self.came: Callable[[], None] | None = None

    def add(self, task: T) -> None:
        """It can run, after those that can already. Nothing happens to who stands in line."""
        if not task.in_line:
            task.in_line = True
            self.line.append(task)
            if self.came is not None:
                self.came()

    def put_first(self, task: T) -> None:
        """It goes on where it was, before all others."""
        if not task.in_line:
            task.in_line = True
            self.line.appendleft(task)

    def take(self) -> T | None:
        """The first in line, who leaves it; None when nobody is."""
        if not self.line:
            return None
        task = self.line.popleft()
        task.in_line = False
        return task

    @property
    def is_wanted(self) -> bool:
        """Whether somebody stands in line, or may after what happened."""
        return bool(self.line or self.news)

    def remove(self, task: T) -> None:
        """It leaves the line, if it is in it."""
        if task.in_line:
            task.in_line = False
            self.line.remove(task)

    def look_at(self, process: P) -> None:
        """Something happened to a process that may let a task of it run, or has ended one."""
        self.news[process] = None
        if self.came is not None:
            self.came()
