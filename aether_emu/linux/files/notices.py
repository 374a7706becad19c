"""Files that tell of something: timerfd (time is up), pidfd (a process has ended), signalfd (a signal)."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import astuple
from typing import Protocol

from aether_emu.errors import Refused
from aether_emu.linux.abi.signal import SI_KERNEL, SI_SIGIO, SI_TIMER, SIGCHLD, UNBLOCKABLE, SignalInfo
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import POLLIN, OpenFile, WouldBlock
from aether_emu.linux.files.stat import Stat
from aether_emu.waiting import WaitQueue


class TimerFile(OpenFile):
    """timerfd_create(2). Reading takes how often it was due.

    `add` has it expire at its `deadline`, in ns of `now`; `clock` are the program's clock, and what that
    shows when `now` is 0 (`base`). With an interval it stands still from when it is due until it is read, and
    counts then what it has missed.
    """

    kind = "timerfd"
    is_counter = True
    ignores_seeks = True

    def __init__(
        self,
        add: Callable[[TimerFile], None],
        now: Callable[[], int],
        clock: tuple[int, int],
        flags: int,
        stat: Stat,
    ) -> None:
        super().__init__(flags & ~fl.O_ACCMODE | fl.O_RDWR, stat)
        self._add, self._now = add, now
        self.clock, self.base = clock
        self.set_flags = 0  # of the last timerfd_settime(2)
        self.deadline: int | None = None
        self.interval = self._ticks = self._due = 0
        self._expired = WaitQueue()

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        state = (self.deadline, self.interval, self._ticks, self._due)
        clock = self.clock, self.base
        return {"clock": clock, "state": state, "set": self.set_flags, "stat": list(astuple(self.stat()))}

    def details(self) -> bytes:
        """See `OpenFile.details`."""
        left, second = self.left(), 10**9
        return b"clockid: %d\nticks: %d\nsettime flags: 0%o\nit_value: (%d, %d)\nit_interval: (%d, %d)\n" % (
            *(self.clock, self._ticks, self.set_flags),
            *(*divmod(left, second), *divmod(self.interval, second)),
        )

    def go_on(self, state: tuple[int | None, int, int, int]) -> None:
        """As it was captured."""
        self.deadline, self.interval, self._ticks, self._due = state
        if self.deadline is not None:
            self._add(self)

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
    """pidfd_open(2): a process by its number, ready to read once it has ended.

    `ended` tells whether it has, and whether it was waited for too.
    """

    kind = "pidfd"

    def __init__(
        self,
        pid: int,
        gone: WaitQueue,
        ended: tuple[Callable[[], bool], Callable[[], bool]],
        flags: int,
        stat: Stat,
    ) -> None:
        super().__init__(flags & ~fl.O_ACCMODE | fl.O_RDWR, stat)
        self.pid = pid
        self._gone = gone
        self.is_gone, self.was_waited_for = ended

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"pid": self.pid, "waited": self.was_waited_for(), "stat": list(astuple(self.stat()))}

    def details(self) -> bytes:
        """See `OpenFile.details`."""
        pid = -1 if self.was_waited_for() else self.pid
        return b"Pid:\t%d\nNSpid:\t%d\n" % (pid, pid)

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`."""
        return (self._gone,) if events & POLLIN else ()

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        return POLLIN if self.is_gone() else 0

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return b"anon_inode:[pidfd]"


class Signals(Protocol):
    """The signals of a task."""

    @property
    def waiting(self) -> int: ...
    def take(self, wanted: int) -> SignalInfo | None: ...


class SignalFile(OpenFile):
    """signalfd(2): the signals of whoever looks at it, which `looks` tells with the queue that they wake.

    `mask` are those it shows, bit N-1 for signal N.
    """

    kind = "signalfd"
    ignores_seeks = True

    def __init__(
        self, mask: int, looks: Callable[[], tuple[Signals, WaitQueue]], flags: int, stat: Stat
    ) -> None:
        super().__init__(flags & ~fl.O_ACCMODE | fl.O_RDWR, stat)
        self._looks = looks
        self.show(mask)

    def show(self, mask: int) -> None:
        """Show those of `mask` from now on, but never SIGKILL and SIGSTOP."""
        self.mask = mask & ~UNBLOCKABLE

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"mask": self.mask, "stat": list(astuple(self.stat()))}

    def details(self) -> bytes:
        """See `OpenFile.details`."""
        return b"sigmask:\t%016x\n" % self.mask

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`: of whoever asks, as on Linux."""
        return (self._looks()[1],) if events & POLLIN else ()

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        return POLLIN if self._looks()[0].waiting & self.mask else 0

    def read(self, count: int) -> bytes | WouldBlock:
        """One signal, 128 bytes: a call asks again for each that has room."""
        if count < SIGNAL_SIZE:
            raise Refused(errno.EINVAL, f"a signalfd is read {SIGNAL_SIZE} bytes at a time")
        info = self._looks()[0].take(self.mask)
        return self.wait_for(POLLIN) if info is None else encode_signal(info)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return b"anon_inode:[signalfd]"


SIGNAL_SIZE = 128
"""Bytes of struct signalfd_siginfo."""


def encode_signal(info: SignalInfo) -> bytes:
    """struct signalfd_siginfo (Linux: signalfd_copyinfo)."""
    pid = uid = fd = tid = band = overruns = status = value = address = 0
    used = info.used
    if info.code == SI_TIMER:
        tid, overruns, value = info.pid, info.uid, info.value
    elif info.file is not None:
        band, fd = info.value, info.file
    elif info.code == SI_SIGIO:
        band, fd = info.pid & 0xFFFF_FFFF, info.value & 0x7FFF_FFFF
    elif info.is_fault:
        address = info.address
    elif info.number == SIGCHLD and 0 < info.code < SI_KERNEL:
        pid, uid, status = info.pid, info.uid, info.value & 0xFFFF_FFFF
    else:
        pid, uid, value = info.pid, info.uid, info.value if info.code < 0 else 0
    error = int.from_bytes(info.raw[4:8], "little", signed=True)
    head = struct.pack("<IiiIIi", info.number, error, info.code, pid & 0xFFFF_FFFF, uid, fd)
    words = head + struct.pack("<IIIIII", tid, band, overruns, 0, status, value & 0xFFFF_FFFF)
    return (words + struct.pack("<QQQQ", value, *used, address)).ljust(SIGNAL_SIZE, b"\0")
