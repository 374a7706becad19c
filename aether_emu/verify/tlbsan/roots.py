"""What is known of one root: its tables, who walks it, and what those keep who have left it."""

from __future__ import annotations

from typing import NamedTuple

from aether_emu.verify.tlbsan.finding import Where


class Table:
    """One table: where it lies, what it serves, and the bytes as they were last seen."""

    __slots__ = ("address", "bytes", "end", "level", "start", "va")

    def __init__(self, address: int, level: int, va: int, start: int, size: int) -> None:
        self.address, self.level, self.va = address, level, va
        self.start, self.end = start, start + size
        self.bytes = bytes(size)


class Root:
    """All tables below one root. `cpus` has a bit for each CPU that walks it.

    `uppers` are the tables above level 1 by address, `leaves` those of level 1 by what an address has above
    their span. `pending` are leaf tables that gained entries since they were compared; `hinted` those that
    the operation under way may have edited, with the number of the one entry, or -1 for several; `upper`
    whether it may have edited a table above. `kept` is what CPUs that have left it keep, by (CPU, tag).
    """

    __slots__ = ("address", "cpus", "hinted", "kept", "leaves", "pending", "upper", "uppers")

    def __init__(self, address: int) -> None:
        self.address, self.cpus = address, 0
        self.kept: dict[tuple[int, int], Kept] = {}
        self.uppers: dict[int, Table] = {}
        self.leaves: dict[int, Table] = {}
        self.pending: set[int] = set()
        self.hinted: dict[int, int] = {}
        self.upper = False

    def close(self) -> None:
        """The root is gone: nobody edits its tables any more."""
        for known in (self.uppers, self.leaves, self.pending, self.hinted):
            known.clear()


class Lost(NamedTuple):
    """An old entry that a CPU may keep, and where it was edited. `table` as that of `Stale`."""

    where: Where
    va: int
    old: int
    level: int
    table: int = 0


class Kept:
    """What one CPU may hold under one tag: translations of `root`, used last at `used`.

    `whole` is the first edit that no invalidation of single pages makes up for, `pages` those that one does.
    """

    __slots__ = ("pages", "root", "used", "whole")

    def __init__(self, root: Root, used: Where) -> None:
        self.root, self.used = root, used
        self.whole: Lost | None = None
        self.pages: dict[int, Lost] = {}

    @property
    def lost(self) -> Lost | None:
        """Something of it that is behind; None when nothing is."""
        return self.whole or next(iter(self.pages.values()), None)

    def note(self, lost: Lost, *, by_pages: bool) -> None:
        """An entry was edited meanwhile."""
        if by_pages:
            self.pages.setdefault(lost.va, lost)
        elif self.whole is None:
            self.whole = lost


def lowest(cpus: int) -> int:
    """The first CPU of a mask."""
    return (cpus & -cpus).bit_length() - 1
