"""Every process and task of a machine by its number, and those that are new.

Numbers are given in ascending order and used again only after the last one (Linux: pid_max). A process keeps
its number until its parent has waited for it; a task until it has ended.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from aether_emu.errors import Refused

FIRST, LAST = 1000, (1 << 22) - 1
_AGAIN = 300  # where numbers begin the second time (Linux: RESERVED_PIDS)
RAM_PER_TASK = 128 << 10
"""Linux admits one task for each 128 KiB of RAM (threads-max: an eighth of RAM in stacks of 16 KiB)."""


class Numbered(Protocol):
    """A process, as it is found here."""

    @property
    def pid(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def session(self) -> int: ...


P = TypeVar("P", bound=Numbered)
T = TypeVar("T")


class Registry(Generic[P, T]):
    """Processes by number, in the order in which they were made, zombies among them; and tasks likewise.

    `most` tasks can live at one time, those that are `zombies` among them. `has_several_users` once a task
    has changed its user. `arrivals` are tasks that nobody runs yet: the scheduler takes them.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.processes: dict[int, P] = {}
        self.tasks: dict[int, T] = {}
        self.arrivals: list[T] = []
        self.last, self.zombies = FIRST - 1, 0
        self.has_several_users = False

    @property
    def count(self) -> int:
        """How many tasks there are, for limits: a zombie has a number, and so is one."""
        return len(self.tasks) + self.zombies

    def number(self) -> int:
        """A number that nobody has. Refused(EAGAIN) when there are as many tasks as there may be."""
        if self.count >= self.most:
            raise Refused(errno.EAGAIN, f"there are {self.most} tasks already")
        while True:
            self.last = self.last + 1 if self.last < LAST else _AGAIN
            if not self.is_used(self.last):
                return self.last

    def is_used(self, number: int) -> bool:
        """Whether a task, process, group or session has that number."""
        if number in self.tasks or number in self.processes:
            return True
        return any(number in (process.group, process.session) for process in self.processes.values())

    def group(self, number: int) -> Iterator[P]:
        """The processes of a process group, the oldest first."""
        return (process for process in list(self.processes.values()) if process.group == number)

    def session(self, number: int) -> Iterator[P]:
        """The processes of a session, likewise."""
        return (process for process in list(self.processes.values()) if process.session == number)

    def session_of(self, group: int) -> int | None:
        """The session of a process group; None when there is no such group."""
        return next((process.session for process in self.group(group)), None)
