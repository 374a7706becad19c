"""userfaultfd(2) as a file: faults of memory that is watched wait here until they are read and answered.

    thread: fault --ask--> a message, and the thread waits     read(2): the messages nobody has read
    ioctl: copy, zeropage, continue, write-protect, wake  -->  the threads that wait for such a page go on

What the controls do is in `calls/user_faults`.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import POLLERR, POLLIN, OpenFile, WouldBlock
from aether_emu.linux.files.stat import Stat
from aether_emu.mm import userfault
from aether_emu.mm.allocation import USER_MINOR, USER_WP
from aether_emu.mm.fault import Blocked, BusError, Outcome
from aether_emu.mm.space import AddressSpace
from aether_emu.waiting import WaitQueue

API = 0xAA
PAGEFAULT_FLAG_WP, MISSING_SHMEM, SIGBUS, THREAD_ID = 1 << 0, 1 << 5, 1 << 7, 1 << 8
MINOR_SHMEM, EXACT_ADDRESS, MOVE = 1 << 10, 1 << 11, 1 << 16
FEATURES = PAGEFAULT_FLAG_WP | MISSING_SHMEM | SIGBUS | THREAD_ID | MINOR_SHMEM | EXACT_ADDRESS
_MESSAGE = 32
_EVENT_PAGEFAULT = 0x12
_WRITE, _WP, _MINOR = 1, 2, 4


@dataclass(slots=True)
class _Asked:
    """A fault that waits to be answered."""

    task: int
    address: int
    flags: int
    queue: WaitQueue
    is_read: bool = False


class UserFaultFile(OpenFile):
    """One userfaultfd, of the address space `space`. `task` tells the number of the thread that faults."""

    kind = "userfaultfd"
    capturable = False

    def __init__(
        self, space: AddressSpace, task: Callable[[], int], flags: int, stat: Stat, *, programs_only: bool
    ) -> None:
        super().__init__(flags & ~fl.O_ACCMODE | fl.O_RDWR, stat)
        self.space, self._task, self._programs_only = space, task, programs_only
        self.features: int | None = None  # until the program has said which it wants
        self._asked: list[_Asked] = []
        self._told = WaitQueue()

    # ---- as the memory manager sees it

    def ask(self, address: int, why: int, *, write: bool) -> Outcome:
        """See `mm.allocation.Watcher`."""
        assert self.features is not None, "nothing is watched before"
        if self.features & SIGBUS:
            return BusError(address)
        if not self.features & EXACT_ADDRESS:
            address &= -self.space.page_size
        flags = (
            (_WRITE if write else 0) | (_WP if why == USER_WP else 0) | (_MINOR if why == USER_MINOR else 0)
        )
        queue = WaitQueue()
        queue.for_programs = self._programs_only
        asked = _Asked(self._task(), address, flags, queue)
        self._asked = [each for each in self._asked if each.task != asked.task]  # it waits for one at a time
        self._asked.append(asked)
        self._told.wake()
        return Blocked(queue)

    def wake(self, start: int, end: int) -> None:
        """Let the threads go on whose faults lie in a range: they make their accesses again."""
        woken = [each for each in self._asked if start <= each.address < end]
        self._asked = [each for each in self._asked if not start <= each.address < end]
        for each in woken:
            each.queue.wake()

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
        return POLLIN if any(not each.is_read for each in self._asked) else 0

    def read(self, count: int) -> bytes | WouldBlock:
        """Messages of 32 bytes (struct uffd_msg), as many as there is room for."""
        if self.features is None or count < _MESSAGE:
            raise Refused(errno.EINVAL, "no features were chosen, or there is no room for a message")
        unread = [each for each in self._asked if not each.is_read][: count // _MESSAGE]
        if not unread:
            return self.wait_for(POLLIN)
        for each in unread:
            each.is_read = True
        return b"".join(self._message(each) for each in unread)

    def _message(self, asked: _Asked) -> bytes:
        assert self.features is not None, "it was asked"
        task = asked.task if self.features & THREAD_ID else 0
        return struct.pack("<B7xQQI4x", _EVENT_PAGEFAULT, asked.flags, asked.address, task)

    def release(self) -> None:
        """Nobody answers any more: faults are as everywhere else."""
        if self.space.users:
            userfault.unwatch(self.space, 0, self.space.limits.user_end, self)
        self.wake(0, 1 << 64)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return b"anon_inode:[userfaultfd]"
