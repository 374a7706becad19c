"""Files that tell of something: timerfd (a timer is due) and pidfd (a process has ended)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import POLLIN, OpenFile, WouldBlock
from aether_emu.linux.files.stat import Stat
from aether_emu.waiting import WaitQueue


class TimerFile(OpenFile):
    """timerfd_create(2). Reading takes how often it was due.

    `add` has it expire at its `deadline`, in ns of `now`; `base` is what the program's clock shows when `now`
    is 0. With an interval it stands still from when it is due until it is read, and counts then what it has
    missed.
    """

    kind = "timerfd"

    def __init__(
        self, add: Callable[[TimerFile], None], now: Callable[[], int], base: int, flags: int, stat: Stat
    ) -> None:
        super().__init__(flags & ~fl.O_ACCMODE | fl.O_RDWR, stat)
        self._add, self._now, self.base = add, now, base
        self.deadline: int | None = None
        self.interval = self._ticks = self._due = 0
        self._expired = WaitQueue()

    def arm(self, deadline: int | None, interval: int) -> None:
        """Let it run until `deadline`, then each `interval` ns; None stops it."""
        self.deadline, self.interval, self._ticks = deadline, interval, 0
        if deadline is not None:
            self._add(self)

    def expire(self) -> None:
        """Its time is up."""
        assert self.deadline is not None, "it runs"
        self._due, self.deadline = self.deadline, None
        self._ticks += 1
        self._expired.wake()

    def left(self) -> int:
        """ns until it is due, 0 while it does not run."""
        if self.deadline is not None:
            return max(1, self.deadline - self._now())
        if self._ticks and self.interval:
            return self.interval - (self._now() - self._due) % self.interval
        return 0

    def release(self) -> None:
        """Nobody can read it any more."""
        self.deadline = None

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`."""
        return (self._expired,) if events & POLLIN else ()

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        return POLLIN if self._ticks else 0

    def read(self, count: int) -> bytes | WouldBlock:
        """Eight bytes: how often it was due since it was armed or read."""
        if count < 8:
            raise Refused(errno.EINVAL, "a timerfd is read 8 bytes at a time")
        if not self._ticks:
            return self.wait_for(POLLIN)
        ticks, self._ticks = self._ticks, 0
        if self.interval:
            missed = max(0, self._now() - self._due) // self.interval
            ticks += missed
            self.deadline = self._due + (missed + 1) * self.interval
            self._add(self)
        return struct.pack("<Q", ticks)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return b"anon_inode:[timerfd]"


class ProcessFile(OpenFile):
    """pidfd_open(2): a process by its number, ready to read once it has ended."""

    kind = "pidfd"

    def __init__(
        self, pid: int, gone: WaitQueue, is_gone: Callable[[], bool], flags: int, stat: Stat
    ) -> None:
        super().__init__(flags & ~fl.O_ACCMODE | fl.O_RDWR, stat)
        self.pid = pid
        self._gone, self.is_gone = gone, is_gone

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`."""
        return (self._gone,) if events & POLLIN else ()

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        return POLLIN if self.is_gone() else 0

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return b"anon_inode:[pidfd]"
