"""userfaultfd(2) as a file: faults of memory that is watched wait here until they are read and answered.

    thread: fault --ask--> a message, and the thread waits     read(2): the messages nobody has read
    ioctl: copy, zeropage, continue, write-protect, wake  -->  the threads that wait for such a page go on

    thread: fork, mremap, munmap, madvise --> an event, if the program wants such; it waits until that is read

What the controls do is in `calls/user_faults`, as is read(2).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import astuple, dataclass
from enum import IntEnum
from typing import Any

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import POLLERR, POLLIN, OpenFile, WouldBlock
from aether_emu.linux.files.stat import Stat
from aether_emu.mm import userfault
from aether_emu.mm.allocation import USER_MINOR, USER_WP
from aether_emu.mm.fault import Blocked, BusError, Outcome
from aether_emu.mm.space import AddressSpace
from aether_emu.waiting import Waiter, WaitQueue

API = 0xAA
PAGEFAULT_FLAG_WP, EVENT_FORK, EVENT_REMAP, EVENT_REMOVE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MISSING_HUGE, MISSING_SHMEM, EVENT_UNMAP, SIGBUS, THREAD_ID = 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
MINOR_HUGE, MINOR_SHMEM, EXACT_ADDRESS, WP_SHARED, WP_UNPOPULATED = 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13
POISON, WP_ASYNC, MOVE = 1 << 14, 1 << 15, 1 << 16
FEATURES = (
    PAGEFAULT_FLAG_WP
    | EVENT_FORK
    | EVENT_REMAP
    | EVENT_REMOVE
    | EVENT_UNMAP
    | MISSING_HUGE
    | MISSING_SHMEM
    | SIGBUS
    | THREAD_ID
    | MINOR_HUGE
    | MINOR_SHMEM
    | EXACT_ADDRESS
    | WP_SHARED
    | WP_UNPOPULATED
    | POISON
    | WP_ASYNC
    | MOVE
)
MESSAGE = 32
"""Bytes of one (struct uffd_msg)."""
_WRITE, _WP, _MINOR = 1, 2, 4


class Kind(IntEnum):
    """What a message tells (UFFD_EVENT_*)."""

    PAGEFAULT = 0x12
    FORK = 0x13
    REMAP = 0x14
    REMOVE = 0x15
    UNMAP = 0x16


_FEATURE = {
    Kind.FORK: EVENT_FORK,
    Kind.REMAP: EVENT_REMAP,
    Kind.REMOVE: EVENT_REMOVE,
    Kind.UNMAP: EVENT_UNMAP,
}


class _Asking(WaitQueue):
    """Where a thread waits for the answer to its fault. If it ends meanwhile, nobody needs one."""

    def __init__(self) -> None:
        super().__init__()
        self.left: Callable[[], None] = lambda: None

    def remove(self, waiter: Waiter) -> None:
        """See `WaitQueue.remove`."""
        super().remove(waiter)
        self.left()


@dataclass(slots=True, eq=False)
class _Asked:
    """A fault that waits to be answered."""

    task: int
    address: int
    flags: int
    queue: _Asking
    is_read: bool = False


class Telling(WaitQueue):
    """Where the maker of a call waits until all its events are read, and with it the child of a fork.

    If the maker ends before, nobody hears of them, and `given_up` is called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.maker: Waiter | None = None
        self.given_up: Callable[[], None] = lambda: None

    def told(self, event: Event) -> None:
        """An event was read, or cannot be any more."""
        if event in self.events:
            self.events.remove(event)
            if not self.events:
                self.wake()

    def remove(self, waiter: Waiter) -> None:
        """See `WaitQueue.remove`."""
        super().remove(waiter)
        if self.events and waiter is self.maker:
            for event in list(self.events):
                event.file.drop(event)
            self.events.clear()
            self.given_up()
            self.wake()


@dataclass(slots=True, eq=False)
class Event:
    """Something that became of the memory that a file watches: `data` are the three words of its message.

    `child` is the file of a forked address space, to which nobody has a descriptor yet.
    """

    file: UserFaultFile
    kind: Kind
    data: tuple[int, int, int]
    telling: Telling | None = None
    child: UserFaultFile | None = None

    def goes_on_with(self, file: UserFaultFile, kind: Kind, data: tuple[int, ...]) -> bool:
        """Whether another event is the next part of the same: a call that unmaps does so in parts."""
        return self.file is file and self.kind is kind is Kind.UNMAP and self.data[1] == data[0]


class UserFaultFile(OpenFile):
    """One userfaultfd, of the address space `space`. `task` tells the number of the thread that faults."""

    kind = "userfaultfd"

    def __init__(
        self,
        space: AddressSpace,
        task: Callable[[], int],
        flags: int,
        stat: Stat,
        *,
        programs_only: bool,
        cloexec: bool = False,
    ) -> None:
        super().__init__(flags & ~fl.O_ACCMODE | fl.O_RDWR, stat)
        self.space, self._task, self._programs_only = space, task, programs_only
        self.cloexec = cloexec  # of the descriptors of its children too
        self.features: int | None = None  # until the program has said which it wants
        self._asked: list[_Asked] = []
        self._events: list[Event] = []
        self._told = WaitQueue()
        self._released = False

    # ---- as the memory manager sees it: see `mm.allocation.Watcher`

    def wants(self, feature: int) -> bool:
        """Whether the program asked for a feature."""
        return bool((self.features or 0) & feature)

    @property
    def asynchronous(self) -> bool:
        """Whether stores to protected pages are not told."""
        return self.wants(WP_ASYNC)

    @property
    def unpopulated(self) -> bool:
        """Whether absent private pages are protected too."""
        return self.wants(WP_UNPOPULATED | WP_ASYNC)

    @property
    def follows(self) -> bool:
        """Whether it goes with memory that mremap moves."""
        return self.wants(EVENT_REMAP)

    def ask(self, address: int, why: int, *, write: bool, size: int) -> Outcome:
        """What becomes of a fault."""
        assert self.features is not None, "nothing is watched before"
        if self.features & SIGBUS:
            return BusError(address)
        if not self.features & EXACT_ADDRESS:
            address &= -size
        flags = (
            (_WRITE if write else 0) | (_WP if why == USER_WP else 0) | (_MINOR if why == USER_MINOR else 0)
        )
        task = self._task()
        self._asked = [each for each in self._asked if each.task != task]  # it waits for one at a time
        queue = self._note(task, address, flags)
        self._told.wake()
        return Blocked(queue)

    def _note(self, task: int, address: int, flags: int, *, is_read: bool = False) -> _Asking:
        """A fault is to be answered. Where its task waits for that."""
        queue = _Asking()
        queue.for_programs = self._programs_only
        asked = _Asked(task, address, flags, queue, is_read)
        self._asked.append(asked)
        queue.left = lambda: self._forget(asked)
        return queue

    def asking(self) -> tuple[WaitQueue, ...]:
        """Where those wait whose faults are not answered, in the order in which they came."""
        return tuple(each.queue for each in self._asked)

    def _forget(self, asked: _Asked) -> None:
        if asked in self._asked:
            self._asked.remove(asked)

    def wake(self, start: int, end: int) -> None:
        """Let the threads go on whose faults lie in a range: they make their accesses again."""
        woken = [each for each in self._asked if start <= each.address < end]
        self._asked = [each for each in self._asked if not start <= each.address < end]
        for each in woken:
            each.queue.wake()

    def of_child(self, space: Any) -> UserFaultFile | None:
        """The space is forked: its child has a file of its own if the program wants to hear of forks."""
        if not self.wants(EVENT_FORK):
            return None
        child = UserFaultFile(
            space,
            self._task,
            self.flags & fl.O_NONBLOCK,
            self._stat,
            programs_only=self._programs_only,
            cloexec=self.cloexec,
        )
        child.features = self.features
        space.watched = True
        self.tell(Kind.FORK, child=child)
        return child

    def tell(self, kind: int, *data: int, child: UserFaultFile | None = None) -> None:
        """Something becomes of memory that it watches: who brings it about is to wait (`space.untold`)."""
        kind = Kind(kind)
        if not self.wants(_FEATURE[kind]) or self._released:
            return
        last = self.space.untold[-1] if self.space.untold else None
        if isinstance(last, Event) and last.goes_on_with(self, kind, data):
            last.data = last.data[0], data[1], 0
            return
        self.space.untold.append(Event(self, kind, (*data, 0, 0, 0)[:3], child=child))  # type: ignore[arg-type]

    # ---- events

    def publish(self, event: Event) -> None:
        """An event can be read from now on."""
        self._events.append(event)
        self._told.wake()

    @property
    def is_changing(self) -> bool:
        """Whether an event has not been read: nothing may be answered before."""
        return bool(self._events)

    def next_event(self) -> Event | None:
        """The first event that nobody has read."""
        return self._events[0] if self._events else None

    def has_read(self, event: Event) -> None:
        """It was read: whoever brought it about goes on."""
        self._events.remove(event)
        if event.telling is not None:
            event.telling.told(event)

    def drop(self, event: Event) -> None:
        """Nobody will read it. The child of a fork is not watched any more."""
        if event in self._events:
            self._events.remove(event)
        if event.child is not None and not event.child.is_held:
            event.child.release()

    # ---- state

    @property
    def capturable(self) -> bool:  # type: ignore[override]  # not only of a kind: see below
        """Whether it can be captured: not while somebody waits for an event to be read."""
        return not self._events

    @property
    def name_of_one(self) -> str:
        """See `OpenFile.name_of_one`."""
        return f"a {self.kind}, of which an event was not read," if self._events else f"a {self.kind}"

    def capture(self) -> dict[str, Any]:
        """See `OpenFile.capture`. With the starts of the areas that it watches."""
        areas = self.space.areas if self.space.users else ()
        return {
            "space": self.space.number,
            "watched": [area.start for area in areas if area.watcher is self],
            "features": self.features,
            "programs_only": self._programs_only,
            "cloexec": self.cloexec,
            "stat": list(astuple(self._stat)),
            "asked": [(each.task, each.address, each.flags, each.is_read) for each in self._asked],
        }

    def go_on(self, described: dict[str, Any]) -> None:
        """Be the captured one. Who waits for answers is still to stand where they wait (`asking`)."""
        self.features = described["features"]
        for task, address, flags, is_read in described["asked"]:
            self._note(task, address, flags, is_read=is_read)

    # ---- as a file

    def details(self) -> bytes:
        """See `OpenFile.details`."""
        unread = sum(not each.is_read for each in self._asked)
        api = API, self.features or 0, FEATURES
        return b"pending:\t%d\ntotal:\t%d\nAPI:\t%x:%x:%x\n" % (unread, len(self._asked), *api)

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`."""
        return (self._told,) if events & POLLIN else ()

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        if self.features is None or not self.flags & fl.O_NONBLOCK:
            return POLLERR  # as on Linux
        return POLLIN if self._events or any(not each.is_read for each in self._asked) else 0

    def require_room(self, count: int) -> None:
        """Raise Refused(EINVAL) if a read of so many bytes gives no message."""
        if self.features is None or count < MESSAGE:
            raise Refused(errno.EINVAL, "no features were chosen, or there is no room for a message")

    def next_fault(self) -> bytes | None:
        """The message of the first fault that nobody has read; it counts as read now."""
        asked = next((each for each in self._asked if not each.is_read), None)
        if asked is None:
            return None
        asked.is_read = True
        task = asked.task if self.wants(THREAD_ID) else 0
        return struct.pack("<B7xQQI4x", Kind.PAGEFAULT, asked.flags, asked.address, task)

    def read(self, count: int) -> bytes | WouldBlock:
        """Messages of faults alone: those of events are read by a task (`calls/user_faults.read`)."""
        self.require_room(count)
        messages = list[bytes]()
        while len(messages) < count // MESSAGE and (message := self.next_fault()) is not None:
            messages.append(message)
        return b"".join(messages) or self.wait_for(POLLIN)

    def release(self) -> None:
        """Nobody answers any more: faults are as everywhere else, and nobody waits for events to be read."""
        self._released = True
        if self.space.users:
            userfault.unwatch(self.space, 0, self.space.limits.user_end, self)
        self.wake(0, 1 << 64)
        for event in list(self._events):
            self.drop(event)
            if event.telling is not None:
                event.telling.told(event)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return b"anon_inode:[userfaultfd]"
