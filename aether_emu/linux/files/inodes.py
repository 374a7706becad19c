"""Inode numbers and times that do not depend on the host.

A number is given at first sight and stays; all names of one host file share it, because the table is
keyed by the host's (device, inode). Synthetic nodes are keyed by their guest path. Times are one
constant until the guest changes something; from then on they are virtual. Only when the contents of a host
file changed is told as the host has it, at first sight: by that make, git and Python know what is stale. A
directory's time says when others used it, and is the constant.
"""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Callable

from aether_emu.clock import EPOCH_NS
from aether_emu.records import dataclass

FileKey = tuple[int, int]
"""(st_dev, st_ino) on the host: the identity of a host file."""
UNMOUNTED = -3
"""In place of st_dev for memory files that no tmpfs has; -1 and -2 are those of `special` and `tmp_nodes`."""


@dataclass(slots=True)
class Inode:
    """A file's number and times (nanoseconds), shared by all its open files and names.

    `mtime` is the guest's own from the moment that it was `seen`, or made.
    """

    number: int
    atime: int = EPOCH_NS
    mtime: int = EPOCH_NS
    ctime: int = EPOCH_NS
    seen: bool = False


class InodeTable:
    """All inodes seen so far. `now` is the machine's clock in ns since 1970, `start` when it began."""

    def __init__(self, now: Callable[[], int], start: int = EPOCH_NS) -> None:
        self._now, self._start = now, start
        self._next = 1
        self._by_key: dict[FileKey | tuple[bytes, ...], Inode] = {}

    def of(self, key: FileKey | tuple[bytes, ...]) -> Inode:
        """The inode of what is known by `key`; a new number at first sight."""
        inode = self._by_key.get(key)
        if inode is None:
            inode = self._by_key[key] = Inode(self._take())
        return inode

    def known(self, key: FileKey) -> Inode | None:
        """The inode of what is known by `key`, if anything is."""
        return self._by_key.get(key)

    def see(self, status: os.stat_result) -> Inode:
        """The inode of a host file with that status. No file is newer than the machine."""
        inode = self.of((status.st_dev, status.st_ino))
        if not inode.seen:
            inode.seen = True
            if not modes.S_ISDIR(status.st_mode):
                inode.mtime = min(status.st_mtime_ns, self._start)
        return inode

    def created(self, key: FileKey | None = None) -> Inode:
        """The inode of something the guest just made. A host number used before is not mistaken for it."""
        now = self._now()
        inode = Inode(self._take(), now, now, now, seen=True)
        if key is not None:
            self._by_key[key] = inode
        return inode

    def forget(self, key: FileKey) -> None:
        """The last name of a file is gone: the host may give its number to another file."""
        self._by_key.pop(key, None)

    def modified(self, inode: Inode) -> None:
        """The contents changed now."""
        inode.mtime = inode.ctime = self._now()

    def changed(self, inode: Inode) -> None:
        """Mode, owner or links changed now."""
        inode.ctime = self._now()

    def capture(self) -> dict[str, object]:
        """The table as plain data."""
        rows = [[list(key), i.number, i.atime, i.mtime, i.ctime, i.seen] for key, i in self._by_key.items()]
        return {"next": self._next, "inodes": rows}

    def restore(self, state: dict[str, object]) -> None:
        """Become the table that `capture` described."""
        following, rows = state["next"], state["inodes"]
        assert isinstance(following, int) and isinstance(rows, list)
        self._next = following
        self._by_key = {tuple(key): Inode(*numbers) for key, *numbers in rows}

    def _take(self) -> int:
        self._next += 1
        return self._next - 1
