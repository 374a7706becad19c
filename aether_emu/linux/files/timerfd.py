"""timerfd_create(2): a timer that is read, and waited for as a file is."""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import POLLIN, OpenFile, WouldBlock
from aether_emu.linux.files.stat import Stat
from aether_emu.linux.task.timers import Timer, Timers
from aether_emu.waiting import WaitQueue


class TimerFile(OpenFile):
    """A timer of `clock`. Reading takes how often it has expired since it was set or read last."""

    kind = "timerfd"

    def __init__(self, timers: Timers, clock: int, flags: int, stat: Stat) -> None:
        super().__init__(flags & ~fl.O_ACCMODE | fl.O_RDWR, stat)
        self._timers, self.clock = timers, clock
        self.timer = Timer(timers, self._expire)
        self._expired = 0
        self._expiries = WaitQueue()

    def set(self, deadline: int | None, interval: int) -> None:
        """Start it, or stop it (None)."""
        self._expired = 0
        self.timer.set(deadline, interval)

    def _expire(self) -> None:
        self._expired += 1
        self._expiries.wake()

    def left(self) -> tuple[int, int]:
        """(period, ns until it expires next)."""
        timer = self.timer
        if self._expired and timer.interval:
            self._go_on()
        return timer.interval, timer.left()

    def _go_on(self) -> None:
        """It has expired, and repeats: the periods that have passed since count too."""
        if not self.timer.armed:
            self._expired += self.timer.forward(self.timer.now) - 1
            self.timer.arm()

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`."""
        return (self._expiries,) if events & POLLIN else ()

    def read(self, count: int) -> bytes | WouldBlock:
        """Eight bytes: how often it has expired."""
        if count < 8:
            raise Refused(errno.EINVAL, "a timerfd is read 8 bytes at a time")
        self._timers.look()
        if not self._expired:
            return self.wait_for(POLLIN)
        if self.timer.interval:
            self._go_on()
        taken, self._expired = self._expired, 0
        return struct.pack("<Q", taken)

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        return POLLIN if self._expired else 0

    def release(self) -> None:
        """See `OpenFile.release`."""
        self.timer.disarm()

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"clock": self.clock, "timer": self.timer.capture(), "expired": self._expired}

    def restore(self, timer: tuple[int | None, int, bool], expired: int) -> None:
        """Take over what `capture` gave."""
        self._expired = expired
        self.timer.restore(timer)
