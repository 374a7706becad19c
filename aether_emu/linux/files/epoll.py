"""epoll(7): a set of open files, and which of them are ready.

    (descriptor, file) -> Interest: what is asked, the caller's 64 bits, what an edge already showed

Level-triggered interests report as long as the file is ready. An edge-triggered one reports what it has
not shown since the last edge: `stirred` is told when bytes are put into or taken out of a file.
"""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import NamedTuple

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.directory import OpenDirectory
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.files.open_file import POLLERR, POLLHUP, POLLIN, POLLOUT, OpenFile
from aether_emu.linux.files.pipe import EventCounter, Pipe, PipeEnd
from aether_emu.linux.files.stat import Stat
from aether_emu.linux.files.synthetic import DeviceFile, TextFile
from aether_emu.linux.files.table import FileTable

EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD = 1, 2, 3
EPOLLEXCLUSIVE, EPOLLWAKEUP, EPOLLONESHOT, EPOLLET = 1 << 28, 1 << 29, 1 << 30, 1 << 31
_HOW = EPOLLEXCLUSIVE | EPOLLWAKEUP | EPOLLONESHOT | EPOLLET
_EXCLUSIVE_OK = 1 | 4 | POLLERR | POLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE
_DEEPEST = 5
"""Sets within sets (Linux EP_MAX_NESTS, with the outermost)."""
_NEVER_WAIT = (HostData, OpenDirectory, TextFile, DeviceFile)
"""Kinds that are always ready: epoll_ctl refuses them (EPERM)."""


_POLLRDNORM, _POLLWRNORM = 0x40, 0x100


def polled(file: OpenFile) -> int:
    """The events that hold on a file now, with POLLRDNORM and POLLWRNORM where Linux has them."""
    events = file.poll()
    return events if isinstance(file, EventCounter) else with_normal(events)


def with_normal(events: int) -> int:
    """Events with POLLRDNORM beside POLLIN and POLLWRNORM beside POLLOUT."""
    return events | (_POLLRDNORM if events & POLLIN else 0) | (_POLLWRNORM if events & POLLOUT else 0)


class Waited(NamedTuple):
    """A file and the poll(2) events that somebody waits for."""

    file: OpenFile
    events: int


@dataclass
class Interest:
    """One member. `shown` are the events that were reported since the last edge."""

    events: int
    data: int
    shown: int = 0


class EpollFile(OpenFile):
    """An open epoll set."""

    kind = "eventpoll"

    def __init__(self, stat: Stat) -> None:
        super().__init__(fl.O_RDWR, stat)
        self._interests: dict[tuple[int, OpenFile], Interest] = {}
        self._unbound: list[tuple[int, Interest]] = []
        self._containing: weakref.WeakSet[EpollFile] = weakref.WeakSet()

    def __len__(self) -> int:
        """How many members there are."""
        return len(self._interests)

    # ---- the set

    def control(self, operation: int, fd: int, file: OpenFile, events: int, data: int) -> None:
        """epoll_ctl(2) on the file that `fd` names."""
        if isinstance(file, _NEVER_WAIT):
            raise Refused(errno.EPERM, f"a {file.kind} is always ready")
        if file is self:
            raise Refused(errno.EINVAL, "a set can't contain itself")
        key = (fd, file)
        known = self._interests.get(key)
        if operation == EPOLL_CTL_ADD:
            self._check_exclusive(file, events)
            if isinstance(file, EpollFile):
                self._check_nesting(file)
            if known is not None:
                raise Refused(errno.EEXIST, f"descriptor {fd} is in the set")
            self._interests[key] = Interest(events, data)
            if isinstance(file, EpollFile):
                file._containing.add(self)
            return
        if operation not in (EPOLL_CTL_MOD, EPOLL_CTL_DEL):
            raise Refused(errno.EINVAL, f"operation {operation}")
        if operation == EPOLL_CTL_MOD and events & EPOLLEXCLUSIVE:
            raise Refused(errno.EINVAL, "EPOLLEXCLUSIVE is for adding")
        if known is None:
            raise Refused(errno.ENOENT, f"descriptor {fd} is not in the set")
        if operation == EPOLL_CTL_DEL:
            self._remove(key)
            return
        if known.events & EPOLLEXCLUSIVE:
            raise Refused(errno.EINVAL, "an exclusive interest can't be changed")
        self._interests[key] = Interest(events, data)

    def _remove(self, key: tuple[int, OpenFile]) -> None:
        del self._interests[key]
        file = key[1]
        if isinstance(file, EpollFile) and file not in self._inner():
            file._containing.discard(self)

    def release(self) -> None:
        """See `OpenFile.release`: a closed set contains nothing."""
        for key in list(self._interests):
            self._remove(key)

    @staticmethod
    def _check_exclusive(file: OpenFile, events: int) -> None:
        if events & EPOLLEXCLUSIVE and (isinstance(file, EpollFile) or events & ~_EXCLUSIVE_OK):
            raise Refused(errno.EINVAL, "EPOLLEXCLUSIVE goes with plain files and few flags")

    def _check_nesting(self, inner: EpollFile) -> None:
        below, above = inner._generations(EpollFile._inner), self._generations(EpollFile._outer)
        if any(self in sets for sets in below) or len(below) + len(above) > _DEEPEST:
            raise Refused(errno.ELOOP, "sets within sets go round or too deep")

    def _generations(self, following: Callable[[EpollFile], set[EpollFile]]) -> list[set[EpollFile]]:
        """This set, those next to it in one direction, those next to them: as many as the way is long."""
        found = [{self}]
        while found[-1] and len(found) <= _DEEPEST:
            found.append({other for one in found[-1] for other in following(one)})
        return [sets for sets in found if sets]

    def _inner(self) -> set[EpollFile]:
        """The sets that are members."""
        return {file for (_, file), _ in self._living() if isinstance(file, EpollFile)}

    def _outer(self) -> set[EpollFile]:
        """The sets that this one is a member of."""
        return set(self._containing)

    def _living(self) -> Iterator[tuple[tuple[int, OpenFile], Interest]]:
        """The members whose file is still open somewhere; the others are gone from the set, as in Linux."""
        for key in [key for key in self._interests if not key[1]._holders]:
            del self._interests[key]
        yield from self._interests.items()

    # ---- waiting

    def ready(self, most: int) -> list[tuple[int, int]]:
        """Up to `most` (events, data) to report now. What was reported goes to the end of the queue."""
        found: list[tuple[int, int]] = []
        known: dict[EpollFile, int] = {}
        for key, interest in list(self._living()):
            if len(found) == most:
                break
            events = self._due(key[1], interest, known)
            if not events:
                continue
            found.append((events, interest.data))
            del self._interests[key]
            self._interests[key] = interest
            interest.shown |= events
            if interest.events & EPOLLONESHOT:
                interest.events &= _HOW
        return found

    @staticmethod
    def _due(file: OpenFile, interest: Interest, known: dict[EpollFile, int]) -> int:
        """The events to report for one member now. `known` are sets that were already looked into."""
        if not interest.events & ~_HOW:
            return 0  # disabled by EPOLLONESHOT
        events = with_normal(file._look(known)) if isinstance(file, EpollFile) else polled(file)
        events &= interest.events | POLLERR | POLLHUP
        interest.shown &= events
        if interest.events & EPOLLET and not events & ~interest.shown:
            return 0
        return events

    def stirred(self, source: OpenFile | Pipe, events: int) -> bool:
        """Bytes came (POLLIN) or went (POLLOUT) in a file or pipe: an edge. Whether it is a member."""
        found = False
        for (_, file), interest in self._interests.items():
            if file is source or (isinstance(file, PipeEnd) and file.pipe is source):
                interest.shown &= ~with_normal(events)
                found = True
        return found

    def waited(self) -> list[Waited]:
        """Everything that the set waits for."""
        return [
            Waited(file, interest.events & ~_HOW | POLLERR | POLLHUP)
            for (_, file), interest in self._living()
            if interest.events & ~_HOW
        ]

    def poll(self) -> int:
        """See `OpenFile.poll`: readable while a member is ready."""
        return self._look({})

    def _look(self, known: dict[EpollFile, int]) -> int:
        """`poll`, but once for each set, in however many ways it is a member."""
        if self not in known:
            due = any(self._due(file, interest, known) for (_, file), interest in self._living())
            known[self] = POLLIN if due else 0
        return known[self]

    # ---- state

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`. A member is known by its descriptor."""
        members = [[key[0], *astuple(interest)] for key, interest in self._living()]
        unbound = [[fd, *astuple(interest)] for fd, interest in self._unbound]
        return {"stat": list(astuple(self._stat)), "members": members + unbound}

    def bind(self, table: FileTable) -> None:
        """After `restore_epoll`, once the process has its descriptors back: find the members by them."""
        for fd, interest in self._unbound:
            descriptor = table.descriptors.get(fd)
            if descriptor is not None:
                self._interests[fd, descriptor.file] = interest
                if isinstance(descriptor.file, EpollFile):
                    descriptor.file._containing.add(self)
        self._unbound.clear()

    def expect(self, members: list[tuple[int, Interest]]) -> None:
        """Members that `bind` will find."""
        self._unbound = members


def restore_epoll(described: dict[str, object]) -> EpollFile:
    """A `capture.Restorer` for epoll sets."""
    stat, members = described["stat"], described["members"]
    assert isinstance(stat, list) and isinstance(members, list)
    file = EpollFile(Stat(*stat))
    file.expect([(fd, Interest(*fields)) for fd, *fields in members])
    return file
