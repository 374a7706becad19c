"""Locks on files: those of fcntl(2), by ranges of bytes, and those of flock(2), by open files.

They are among guest processes only: the host's own are not locked out, nor do theirs hold up the guest.

    POSIX locks    belong to a table of descriptors, and go when it closes any of the file
    OFD locks      belong to an open file, and go with it
    flock          belongs to an open file too, and knows nothing of the others
"""

from __future__ import annotations

import errno
from collections.abc import Hashable, Iterator

from aether_emu.errors import Refused
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.records import dataclass
from aether_emu.waiting import Waiter, WaitQueue

F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2
END = 1 << 63
"""Where a lock ends that has no end."""
MOST_LOCKS = 1 << 16
"""Ranges that all processes may hold locked."""


@dataclass
class Lock:
    """A locked range, from `start` to before `end`. `pid` is whom F_GETLK names, -1 for an open file's."""

    owner: Hashable
    kind: int
    start: int
    end: int
    pid: int

    def conflicts_with(self, other: Lock) -> bool:
        """Whether both can't be held."""
        overlap = self.start < other.end and other.start < self.end
        return overlap and self.owner is not other.owner and F_WRLCK in (self.kind, other.kind)


class _Locked:
    """The locks on one file. `freed` is woken when one is given up or becomes weaker."""

    def __init__(self) -> None:
        self.ranges: list[Lock] = []
        self.whole: dict[OpenFile, int] = {}
        self.freed = WaitQueue()


class FileLocks:
    """The locks of all processes, by file."""

    def __init__(self) -> None:
        self._by_file: dict[Hashable, _Locked] = {}

    def __len__(self) -> int:
        return sum(len(there.ranges) + len(there.whole) for there in self._by_file.values())

    def queue(self, file: OpenFile) -> WaitQueue:
        """Who waits for a lock on this file stands here."""
        return self._there(file).freed

    def waiters(self) -> Iterator[Waiter]:
        """Whoever waits for a lock, on whatever file."""
        return (waiter for there in self._by_file.values() for waiter in there.freed)

    def held(self) -> list[tuple[Hashable, list[Lock], dict[OpenFile, int]]]:
        """What is locked, for capture: of each file its key, the ranges, and the open files with flock's."""
        by_file = self._by_file.items()
        return [(key, there.ranges, there.whole) for key, there in by_file if there.ranges or there.whole]

    def go_on(self, file: OpenFile, ranges: list[Lock], whole: dict[OpenFile, int]) -> None:
        """Hold captured locks on a file that has none."""
        there = self._there(file)
        there.ranges, there.whole = ranges, whole

    def _there(self, file: OpenFile) -> _Locked:
        return self._by_file.setdefault(key_of(file), _Locked())

    # ---- ranges

    def conflict(self, file: OpenFile, wanted: Lock) -> Lock | None:
        """The first lock that stands in the way."""
        there = self._by_file.get(key_of(file))
        if there is None:
            return None
        return next((lock for lock in there.ranges if lock.conflicts_with(wanted)), None)

    def put(self, file: OpenFile, wanted: Lock) -> None:
        """Lock or unlock a range, which nothing stands in the way of. Refused(ENOLCK)."""
        there = self._there(file)
        others = [lock for lock in there.ranges if lock.owner is not wanted.owner]
        own: list[Lock] = []
        for lock in there.ranges:
            if lock.owner is not wanted.owner:
                continue
            joins = lock.kind == wanted.kind and lock.start <= wanted.end and wanted.start <= lock.end
            if joins:
                wanted.start, wanted.end = min(lock.start, wanted.start), max(lock.end, wanted.end)
            else:
                own += _without(lock, wanted)
        if wanted.kind != F_UNLCK:
            own.append(wanted)
        if len(self) - len(there.ranges) + len(others) + len(own) > MOST_LOCKS:
            raise Refused(errno.ENOLCK, f"{MOST_LOCKS} locks are held")
        there.ranges = others + sorted(own, key=lambda lock: lock.start)
        there.freed.wake()
        self._forget_if_free(file, there)

    def drop(self, file: OpenFile, owner: Hashable) -> None:
        """All locked ranges of an owner on a file are free."""
        there = self._by_file.get(key_of(file)) if self._by_file else None
        if there is None:
            return
        left = [lock for lock in there.ranges if lock.owner is not owner]
        if len(left) < len(there.ranges):
            there.ranges = left
            there.freed.wake()
        self._forget_if_free(file, there)

    # ---- whole files

    def is_taken(self, file: OpenFile, exclusive: bool) -> bool:
        """Whether another open file's lock stands in the way."""
        others = [kind for other, kind in self._there(file).whole.items() if other is not file]
        return bool(others) if exclusive else F_WRLCK in others

    def holds_whole(self, file: OpenFile, exclusive: bool) -> bool:
        """Whether the open file has this very lock."""
        return self._there(file).whole.get(file) == (F_WRLCK if exclusive else F_RDLCK)

    def lock_whole(self, file: OpenFile, exclusive: bool) -> None:
        """Lock the file, which is not taken."""
        self._there(file).whole[file] = F_WRLCK if exclusive else F_RDLCK

    def unlock_whole(self, file: OpenFile) -> None:
        """Give it up."""
        there = self._by_file.get(key_of(file))
        if there is not None and there.whole.pop(file, None) is not None:
            there.freed.wake()
            self._forget_if_free(file, there)

    def closed(self, file: OpenFile) -> None:
        """An open file is gone, and its locks with it."""
        self.drop(file, file)
        self.unlock_whole(file)

    def _forget_if_free(self, file: OpenFile, there: _Locked) -> None:
        if not there.ranges and not there.whole and not len(there.freed):
            self._by_file.pop(key_of(file), None)


def _without(lock: Lock, hole: Lock) -> list[Lock]:
    """What is left of a lock outside a range."""
    if hole.end <= lock.start or lock.end <= hole.start:
        return [lock]
    left = Lock(lock.owner, lock.kind, lock.start, hole.start, lock.pid)
    right = Lock(lock.owner, lock.kind, hole.end, lock.end, lock.pid)
    return [part for part in (left, right) if part.start < part.end]


def key_of(file: OpenFile) -> Hashable:
    """The file that an open file is of."""
    key: Hashable = getattr(file, "key", None)
    stat = None if key is not None else file.stat()
    return key if stat is None else ("inode", stat.dev, stat.ino)
