"""Whom an open file tells by a signal that it may be ready: fcntl(2) with F_SETOWN, F_SETSIG and O_ASYNC.

    OpenFile.owner --> Owner: a thread, a process or a group, the signal, and who named it
    a pipe, a socket, a terminal --> Listeners: the open files of it that have O_ASYNC

What has something to tell knows its listeners only while there are any; each then sends to its owner.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from aether_emu.linux.files import flags as fl
from aether_emu.records import dataclass

F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP = range(3)
POLL_IN, POLL_OUT, POLL_MSG, POLL_ERR, POLL_PRI, POLL_HUP = range(1, 7)
"""What has come (si_code)."""


@dataclass
class Owner:
    """Who is told. `number` is a thread's, a process's or a group's, by `kind`; 0 is nobody.

    `uid` and `euid` are of who named it: nobody sends signals by another's file that he could not send
    himself. `signal` is 0 for SIGIO without details. `tell(owner, descriptor, reason)` sends it.
    """

    tell: Callable[[Owner, int, int], None]
    kind: int = F_OWNER_TID
    number: int = 0
    uid: int = 0
    euid: int = 0
    signal: int = 0

    def become(self, kind: int, number: int, uid: int, euid: int) -> None:
        """F_SETOWN. Who owns a file for nobody is nobody."""
        self.kind, self.number = kind, number
        if number:
            self.uid, self.euid = uid, euid

    def capture(self) -> list[int]:
        """All but how it is told."""
        return [self.kind, self.number, self.uid, self.euid, self.signal]


Tell = Callable[[Owner, int, int], None]


class Owned(Protocol):
    """An open file, as it is seen here."""

    flags: int
    owner: Owner | None

    def listeners(self) -> tuple[Listeners, ...]: ...


class Listeners(dict[Owned, int]):
    """Open files with O_ASYNC, and the descriptors by which they got it: the last one is told first."""

    __slots__ = ()

    def tell(self, reason: int) -> None:
        """Something has come: one of the POLL codes."""
        for file, descriptor in reversed(list(self.items())):
            if file.owner is not None:
                file.owner.tell(file.owner, descriptor, reason)


def set_asynchronous(file: Owned, descriptor: int, *, on: bool) -> bool:
    """Give or take O_ASYNC. Whether the kind of file has anything to tell."""
    listeners = file.listeners()
    for each in listeners:
        if on:
            each[file] = descriptor
        else:
            each.pop(file, None)
    if listeners:
        file.flags = file.flags & ~fl.FASYNC | (fl.FASYNC if on else 0)
    return bool(listeners)
