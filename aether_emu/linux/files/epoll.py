"""epoll(7): a set of open files, and which of them are ready.

    (descriptor, file) -> Interest: what is asked, the caller's 64 bits
    the line           -> members that may be ready, in the order in which they became so

Each member stands in its file's wait queues, from when it joins the set until it leaves: whoever wakes a
queue, in whatever process, puts it at the end of the line, unless it is there already. Whoever asks the set
takes members from the line's beginning. A level-triggered one that was ready goes to the end again, behind
those for which there was no room; an edge-triggered one comes back with the next wake. The set tells of the
line in turn to the tasks that wait for it, and to the sets that it is a member of.
"""

from __future__ import annotations

import errno
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.accounts import WatchAccount
from aether_emu.linux.files.directory import OpenDirectory
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.files.open_file import POLLERR, POLLHUP, POLLIN, POLLOUT, OpenFile
from aether_emu.linux.files.pipe import EventCounter
from aether_emu.linux.files.stat import Stat
from aether_emu.linux.files.synthetic import DeviceFile, TextFile
from aether_emu.records import dataclass
from aether_emu.waiting import HostQueue, WaitQueue

EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD = 1, 2, 3
EPOLLEXCLUSIVE, EPOLLWAKEUP, EPOLLONESHOT, EPOLLET = 1 << 28, 1 << 29, 1 << 30, 1 << 31
_HOW = EPOLLEXCLUSIVE | EPOLLWAKEUP | EPOLLONESHOT | EPOLLET
_EXCLUSIVE_OK = 1 | 4 | POLLERR | POLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE
_DEEPEST = 5
"""Sets within sets (Linux EP_MAX_NESTS, with the outermost)."""
_NEVER_WAIT = (HostData, OpenDirectory, TextFile, DeviceFile)
"""Kinds that are always ready: epoll_ctl refuses them (EPERM)."""


_ALWAYS = POLLERR | POLLHUP
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
    """What is asked of one member."""

    events: int
    data: int


Key = tuple[int, OpenFile]
"""A member: the descriptor by which it joined, and its file."""


class _Ear:
    """Stands in a wait queue of a member's file and tells the set of edges.

    A wake means `events`, and perhaps an error or the end of a connection.
    """

    def __init__(self, owner: EpollFile, key: Key, interest: Interest, events: int) -> None:
        self._owner, self._key, self._interest = owner, key, interest
        self._events = with_normal(events)

    def wake(self) -> None:
        """See `waiting.Waiter`. What nobody asks for is no edge; an error or a hang-up is one."""
        asked = self._interest.events
        if not asked & ~_HOW or (not asked & self._events and not self._key[1].poll() & _ALWAYS):
            return
        self._owner.enlist(self._key)

    def wake_one(self) -> bool:
        """See `waiting.OneOfMany` (EPOLLEXCLUSIVE): a set that nobody waits for takes no wake from others."""
        waits = bool(len(self._owner.changed)) and bool(self._interest.events & self._events)
        self.wake()
        return waits


@dataclass
class _Member:
    """One file of a set: what is asked of it, and where its edges are heard.

    `entered`: who has the lower number stands before others in a queue of which both hear.
    """

    interest: Interest
    ears: list[tuple[WaitQueue, _Ear]]
    entered: int = 0

    def enter(self, number: int) -> None:
        self.entered = number
        exclusive = self.interest.events & EPOLLEXCLUSIVE
        for queue, ear in self.ears:
            if exclusive:
                queue.add_one(ear)
            else:
                queue.add(ear)

    def leave(self) -> None:
        for queue, ear in self.ears:
            queue.remove(ear)
            queue.remove_one(ear)


class EpollFile(OpenFile):
    """An open epoll set. `changed` is woken when a member may have become ready."""

    kind = "eventpoll"
    ignores_seeks = True

    def __init__(self, stat: Stat, watches: WatchAccount) -> None:
        super().__init__(fl.O_RDWR, stat)
        self._watches = watches
        self.changed = WaitQueue()
        self._members: dict[Key, _Member] = {}
        self._line: dict[Key, None] = {}
        self._by_host: dict[Key, None] = {}  # members of which only the host knows, which wakes nobody
        self._around: weakref.WeakKeyDictionary[EpollFile, dict[int, Interest]] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        """How many members there are."""
        return len(self._members)

    # ---- the set

    def control(self, operation: int, fd: int, file: OpenFile, events: int, data: int) -> None:
        """epoll_ctl(2) on the file that `fd` names."""
        if isinstance(file, _NEVER_WAIT):
            raise Refused(errno.EPERM, f"a {file.kind} is always ready")
        if file is self:
            raise Refused(errno.EINVAL, "a set can't contain itself")
        key = (fd, file)
        known = self._members.get(key)
        if operation == EPOLL_CTL_ADD:
            self._check_exclusive(file, events)
            if isinstance(file, EpollFile):
                self._check_nesting(file)
            if known is not None:
                raise Refused(errno.EEXIST, f"descriptor {fd} is in the set")
            self._watches.add()
            self._ask(fd, file, Interest(events, data))
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
        if known.interest.events & EPOLLEXCLUSIVE:
            raise Refused(errno.EINVAL, "an exclusive interest can't be changed")
        known.leave()
        self._ask(fd, file, Interest(events, data))

    def _ask(self, fd: int, file: OpenFile, interest: Interest) -> None:
        """`join`, and what is ready already is an edge. Errors and hang-ups are always asked for."""
        interest.events |= _ALWAYS
        self.join(fd, file, interest)
        if self._due(file, interest, {}):
            self.enlist((fd, file))

    def enlist(self, key: Key) -> None:
        """A member may be ready: wake who waits for this set, or for one around it, each once."""
        self._line.setdefault(key)
        reached = {self: None}
        for inner in (sets := [self]):  # which grows on the way
            inner.changed.wake()
            for outer, interests in inner._around.items():
                for fd, interest in interests.items():
                    if interest.events & with_normal(POLLIN):
                        outer._line.setdefault((fd, inner))
                if outer not in reached:
                    reached[outer] = None
                    sets.append(outer)

    @property
    def line(self) -> list[Key]:
        """The members that may be ready, the first one first."""
        return list(self._line)

    def join(self, fd: int, file: OpenFile, interest: Interest) -> None:
        """Make the file that `fd` names a member, or ask something else of it, which keeps its place."""
        ears: list[tuple[WaitQueue, _Ear]] = []
        key = (fd, file)
        if isinstance(file, EpollFile):
            file._around.setdefault(self, {})[fd] = interest
        else:
            ears = [
                (queue, _Ear(self, key, interest, bit))
                for bit in (POLLIN, POLLOUT)
                for queue in file.queues(bit)
            ]
            if any(isinstance(queue, HostQueue) for queue, _ear in ears):
                self._by_host[key] = None
        if key not in self._members:
            file.watchers = Counter() if file.watchers is None else file.watchers
            file.watchers[self] += 1
        self._members[key] = member = _Member(interest, ears)
        self._watches.entered += 1
        member.enter(self._watches.entered)

    def place_of(self, key: Key) -> int:
        """A number by which members of all sets come one after the other in the queues of their files."""
        return self._members[key].entered

    def stand_last(self, key: Key, number: int) -> None:
        """Leave the queues of a member's file, and enter them anew with a number as `place_of` gives them."""
        member = self._members[key]
        member.leave()
        member.enter(number)
        self._watches.entered = number

    def members(self) -> Iterator[tuple[int, OpenFile, Interest]]:
        """(descriptor, file, interest) of each."""
        for (fd, file), member in self._members.items():
            yield fd, file, member.interest

    def details(self) -> bytes:
        """See `OpenFile.details`."""
        return b"".join(
            b"tfd: %8d events: %8x data: %16x  pos:%d ino:%x sdev:%x\n"
            % (fd, interest.events, interest.data, file.position, file.stat().ino, file.statfs().number)
            for fd, file, interest in self.members()
        )

    def _remove(self, key: Key) -> None:
        self._members.pop(key).leave()
        self._line.pop(key, None)
        self._by_host.pop(key, None)
        self._watches.drop()
        fd, file = key
        assert file.watchers is not None, "it was a member"
        file.watchers[self] -= 1
        if not file.watchers[self]:
            del file.watchers[self]
        if isinstance(file, EpollFile):
            interests = file._around[self]
            del interests[fd]
            if not interests:
                del file._around[self]

    def lose(self, file: OpenFile) -> None:
        """See `Watcher`: what is open nowhere any more is no member."""
        for key in [key for key in self._members if key[1] is file]:
            self._remove(key)

    def release(self) -> None:
        """See `OpenFile.release`: a closed set contains nothing."""
        for key in list(self._members):
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
        return {file for _, file in self._members if isinstance(file, EpollFile)}

    def _outer(self) -> set[EpollFile]:
        """The sets that this one is a member of."""
        return set(self._around)

    # ---- waiting

    def ready(self, most: int) -> list[tuple[int, int]]:
        """Up to `most` (events, data) to report now."""
        found: list[tuple[int, int]] = []
        known: dict[EpollFile, int] = {}
        again: list[Key] = []
        for key in self._candidates():
            if len(found) == most:
                break
            del self._line[key]
            interest = self._members[key].interest
            events = self._due(key[1], interest, known)
            if not events:
                continue
            found.append((events, interest.data))
            if interest.events & EPOLLONESHOT:
                interest.events &= _HOW
            elif not interest.events & EPOLLET:
                again.append(key)
        self._line.update(dict.fromkeys(again))
        return found

    def _candidates(self) -> list[Key]:
        """The line, with what the host has made ready."""
        for key in self._by_host:
            if key[1].poll() and not self._members[key].interest.events & EPOLLET:
                self._line.setdefault(key)
        return list(self._line)

    @staticmethod
    def _due(file: OpenFile, interest: Interest, known: dict[EpollFile, int]) -> int:
        """The events to report for one member now. `known` are sets that were already looked into."""
        if not interest.events & ~_HOW:
            return 0  # disabled by EPOLLONESHOT
        events = with_normal(file._look(known)) if isinstance(file, EpollFile) else polled(file)
        return events & (interest.events | _ALWAYS)

    def waited(self) -> list[Waited]:
        """Everything that the set waits for."""
        return [
            Waited(file, interest.events & ~_HOW | POLLERR | POLLHUP)
            for _, file, interest in self.members()
            if interest.events & ~_HOW
        ]

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`. What the host brings to a member is waited for in the member's own queue."""
        behind = [queue for file, wanted in sources(self.waited()) for queue in file.queues(wanted)]
        return (self.changed, *(queue for queue in behind if isinstance(queue, HostQueue)))

    def poll(self) -> int:
        """See `OpenFile.poll`: readable while a member is ready."""
        return self._look({})

    def _look(self, known: dict[EpollFile, int]) -> int:
        """`poll`, but once for each set, in however many ways it is a member."""
        if self not in known:
            known[self] = 0
            for key in self._candidates():
                if self._due(key[1], self._members[key].interest, known):
                    known[self] = POLLIN
                    break
                del self._line[key]
        return known[self]


def sources(waited: Iterable[Waited]) -> list[Waited]:
    """What a wait comes down to: the members in place of each set, those of one set once."""
    found, seen = list(waited), set()
    for wait in found:  # which grows on the way
        if isinstance(wait.file, EpollFile) and wait.file not in seen:
            seen.add(wait.file)
            found += wait.file.waited()
    return [wait for wait in found if not isinstance(wait.file, EpollFile)]
