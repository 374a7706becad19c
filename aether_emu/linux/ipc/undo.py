"""What tasks did to semaphores with SEM_UNDO: it is taken back at the end of the last that shares it."""

from __future__ import annotations

from typing import Protocol


class Undoable(Protocol):
    """A set of semaphores."""

    def take_back(self, undo: Undo, pid: int) -> None: ...


class Undo:
    """One list, of the sets that have something noted. `users` counts who shares it (CLONE_SYSVSEM)."""

    def __init__(self, users: int = 1) -> None:
        self.users = users
        self.sets: dict[Undoable, None] = {}

    def leave(self, pid: int) -> None:
        """A task of process `pid` has ended, or shares it no longer."""
        self.users -= 1
        if not self.users:
            for each in list(self.sets):
                each.take_back(self, pid)
            self.sets.clear()
