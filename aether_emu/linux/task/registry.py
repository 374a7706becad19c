"""Every process and task of a machine by its number, and those that are new.

Numbers are given in ascending order and used again only after the last one (Linux: pid_max). A process keeps
its number until its parent has waited for it; a task until it has ended.
"""

from __future__ import annotations

import errno
from collections import Counter
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
File = tuple[int, int]  # a file's identity (`files/inodes.FileKey`)


class Registry(Generic[P, T]):
    """Processes by number, in the order in which they were made, zombies among them; and tasks likewise.

    `most` tasks can live at one time, those that are `zombies` among them. `has_several_users` once a task
    has changed its user. `arrivals` are tasks that nobody runs yet: the scheduler takes them. `reapers` is
    how many processes take in orphans of their descendants, `executed` how many execute a file. `vdso` are
    the numbers of the objects that show the vDSO and its data.

    Nothing that is asked here goes through all processes, but for the members of a session.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.processes: dict[int, P] = {}
        self.tasks: dict[int, T] = {}
        self.arrivals: list[T] = []
        self.last, self.zombies, self.reapers = FIRST - 1, 0, 0
        self.has_several_users = False
        self.executed: Counter[File] = Counter()
        self.vdso = 0, 0
        self._order: dict[P, int] = {}  # when it was entered
        self._entered = 0
        self._groups: dict[int, dict[P, None]] = {}
        self._sessions: Counter[int] = Counter()

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
        return (
            number in self.tasks
            or number in self.processes
            or number in self._groups
            or number in self._sessions
        )

    # ---- processes, groups, sessions

    def enter(self, process: P) -> None:
        """A process that is new, a member of its group and session."""
        self.processes[process.pid] = process
        self._entered += 1
        self._order[process] = self._entered
        self._groups.setdefault(process.group, {})[process] = None
        self._sessions[process.session] += 1

    def leave(self, process: P) -> bool:
        """The process is gone: its number is free. Whether it was there."""
        if self.processes.get(process.pid) is not process:
            return False
        del self.processes[process.pid], self._order[process]
        self._leave_group(process, process.group)
        self._leave_session(process.session)
        return True

    def regroup(self, process: P, before: int) -> None:
        """It is a member of another group than `before`."""
        if process in self._order:
            self._leave_group(process, before)
            self._groups.setdefault(process.group, {})[process] = None

    def change_session(self, process: P, before: int) -> None:
        """It is in another session than `before`."""
        if process in self._order:
            self._leave_session(before)
            self._sessions[process.session] += 1

    def group(self, number: int) -> list[P]:
        """The processes of a process group, the oldest first."""
        return sorted(self._groups.get(number, ()), key=self._order.__getitem__)

    def session(self, number: int) -> Iterator[P]:
        """The processes of a session, likewise."""
        return (process for process in list(self.processes.values()) if process.session == number)

    def session_of(self, group: int) -> int | None:
        """The session of a process group; None when there is no such group."""
        return next((process.session for process in self._groups.get(group, ())), None)

    def _leave_group(self, process: P, number: int) -> None:
        members = self._groups[number]
        del members[process]
        if not members:
            del self._groups[number]

    def _leave_session(self, number: int) -> None:
        self._sessions[number] -= 1
        if not self._sessions[number]:
            del self._sessions[number]
