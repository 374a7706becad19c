"""Pipes and eventfd counters: what tasks wait for one another with. Neither blocks: see `WouldBlock`."""

from __future__ import annotations

import errno
import os
import struct
from collections import deque

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.accounts import PipeAccount
from aether_emu.linux.files.open_file import POLLERR, POLLHUP, POLLIN, POLLOUT, OpenFile, WouldBlock
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.waiting import WaitQueue

PIPE_BUF = 4096
"""Writes of up to so many bytes are taken whole or not at all (pipe(7))."""
LARGEST_CAPACITY = 1 << 20
_LARGEST_REQUEST = 1 << 31
_SMALL = 4096  # pieces up to this size are put together
_PIPEFS_MAGIC = 0x50495045


class Packet(bytes):
    """What one write with O_DIRECT put into a pipe: one read takes it, the rest of it is lost."""


class Pipe:
    """The bytes between the ends, and how many open files are at each.

    They stay in the pieces in which they were written, so that a large one is not copied on its way; small
    ones are put together. `size` counts the bytes.
    `filled` is woken when bytes came or the last writer left, `drained` when there is room again for writers
    that had too little, or the last reader left, `opened` when an end was opened.
    """

    def __init__(self, stat: Stat, account: PipeAccount) -> None:
        self.stat = stat
        self._account = account
        self.capacity = account.open()
        self._pieces: deque[bytes | bytearray] = deque()
        self._skipped = 0  # bytes of the first piece that were taken already
        self.size = 0
        self.readers = 0
        self.writers = 0
        self.filled = WaitQueue()
        self.drained = WaitQueue()
        self.openings = [0, 0]  # of ends for reading and for writing, ever
        self.opened = WaitQueue()

    @property
    def room(self) -> int:
        """Bytes that still fit."""
        return max(0, self.capacity - self.size)

    def pieces(self) -> list[tuple[bytes, bool]]:
        """Its content for capture: runs of bytes, and whether one is a packet, written with O_DIRECT."""
        found: list[tuple[bytes, bool]] = []
        skipped = self._skipped
        for piece in self._pieces:
            found.append((bytes(piece[skipped:]), type(piece) is Packet))
            skipped = 0
        return found

    def resize(self, wanted: int) -> int:
        """`F_SETPIPE_SZ`: the next power of two of pages. Returns the new capacity."""
        wanted &= 0xFFFF_FFFF
        if wanted > _LARGEST_REQUEST:
            raise Refused(errno.EINVAL, f"a pipe of {wanted} bytes")
        capacity = max(PIPE_BUF, 1 << max(0, wanted - 1).bit_length())
        if capacity > max(self.capacity, LARGEST_CAPACITY):
            raise Refused(errno.EPERM, f"a pipe of {wanted} bytes is larger than {LARGEST_CAPACITY}")
        if capacity < self.size:
            raise Refused(errno.EBUSY, f"{self.size} bytes are in the pipe")
        self._account.resize(self.capacity, capacity)
        self.capacity = capacity
        self.drained.wake()
        return capacity

    def restore(self, capacity: int, pieces: list[tuple[bytes, bool]]) -> None:
        """Take over a captured pipe's capacity and `pieces`."""
        self._account.used += capacity - self.capacity
        self.capacity = capacity
        for data, is_packet in pieces:
            self.put(Packet(data) if is_packet else data)

    def join(self, *, reader: bool, writer: bool) -> None:
        """One more end is open."""
        self.readers += reader
        self.writers += writer
        self.openings[0] += reader
        self.openings[1] += writer
        self.opened.wake()

    def leave(self, *, reader: bool, writer: bool) -> None:
        """An open end is gone. With the last of both sides the pipe is."""
        self.readers -= reader
        self.writers -= writer
        if reader and not self.readers:
            self.drained.wake()
        if writer and not self.writers:
            self.filled.wake()
        if not self.readers and not self.writers:
            self._account.close(self.capacity)

    def put(self, data: bytes) -> None:
        """Append bytes that fit."""
        pieces = self._pieces
        if len(data) < _SMALL and type(data) is not Packet:
            last = pieces[-1] if pieces else None
            if type(last) is bytearray and len(last) + len(data) <= _SMALL:
                last += data
            else:
                pieces.append(bytearray(data))
        else:
            pieces.append(data)
        self.size += len(data)
        self.filled.wake()

    def put_back(self, data: bytes) -> None:
        """Bytes that were taken and could not be delivered are the first again."""
        if self._skipped:
            self._pieces[0] = self._pieces[0][self._skipped :]
            self._skipped = 0
        self._pieces.appendleft(data)
        self.size += len(data)

    def look(self, count: int) -> bytes:
        """Up to `count` bytes, which stay: not beyond a packet."""
        parts: list[bytes | bytearray] = []
        skipped = self._skipped
        for piece in self._pieces:
            if not count:
                break
            parts.append(piece[skipped : skipped + count])
            count -= len(parts[-1])
            skipped = 0
            if type(piece) is Packet:
                break
        return b"".join(parts)

    def take(self, count: int) -> bytes:
        """Remove and return up to `count` bytes."""
        had_room = self.room >= PIPE_BUF
        parts: list[bytes | bytearray] = []
        while count and self._pieces:
            piece, skipped = self._pieces[0], self._skipped
            left = len(piece) - skipped
            if left <= count or type(piece) is Packet:
                self._pieces.popleft()
                self._skipped = 0
                self.size -= left
                whole = left <= count and not skipped
                parts.append(piece if whole else piece[skipped : skipped + count])
            else:
                self._skipped += count
                self.size -= count
                parts.append(piece[skipped : skipped + count])
            count -= len(parts[-1])
            if type(piece) is Packet:
                break
        if not had_room:
            self.drained.wake()
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


class PipeEnd(OpenFile):
    """One open end of a pipe; opened for reading and writing it is both."""

    kind = "pipe"

    def __init__(self, pipe: Pipe, flags: int) -> None:
        super().__init__(flags, pipe.stat)
        self.pipe = pipe
        pipe.join(reader=self.readable, writer=self.writable)

    def release(self) -> None:
        """Leave the pipe: readers see the end, writers EPIPE."""
        self.pipe.leave(reader=self.readable, writer=self.writable)

    def read(self, count: int) -> bytes | WouldBlock:
        """What is there; empty once no writer is left."""
        if count and not self.pipe.size and self.pipe.writers:
            return self.wait_for(POLLIN)
        return self.pipe.take(count)

    def write(self, data: bytes) -> int | WouldBlock:
        """Up to PIPE_BUF bytes whole or not at all; of more, what fits.

        A blocking guest's larger write is complete only when all is taken: the caller goes on with the rest.
        EPIPE (the caller adds SIGPIPE) when nobody can read any more.
        """
        pipe = self.pipe
        if not data:
            return 0
        if not pipe.readers:
            raise Refused(errno.EPIPE, "no reader is left")
        if pipe.room < (len(data) if len(data) <= PIPE_BUF else 1):
            return self.wait_for(POLLOUT)
        done = min(len(data), pipe.room)
        if self.flags & fl.O_DIRECT:
            for at in range(0, done, PIPE_BUF):
                pipe.put(Packet(data[at : min(at + PIPE_BUF, done)]))
        else:
            pipe.put(data[:done] if done < len(data) else data)
        return done

    def available(self) -> int:
        """See `OpenFile.available`."""
        return self.pipe.size

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`. Every end hears when the other side has gone."""
        pipe, both = self.pipe, self.readable and self.writable
        reading = self.readable and (not both or events & POLLIN)
        writing = self.writable and (not both or events & POLLOUT)
        return ((pipe.filled,) if reading else ()) + ((pipe.drained,) if writing else ())

    def poll(self) -> int:
        """See `OpenFile.poll`. Writable means room for PIPE_BUF bytes."""
        events = 0
        if self.readable:
            events |= (POLLIN if self.pipe.size else 0) | (0 if self.pipe.writers else POLLHUP)
        if self.writable:
            events |= (POLLOUT if self.pipe.room >= PIPE_BUF else 0) | (0 if self.pipe.readers else POLLERR)
        return events

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return b"pipe:[%d]" % self._stat.ino

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return StatFs(_PIPEFS_MAGIC, os.minor(self._stat.dev), blocks=0, free=0, read_only=False)

    def reopen(self, flags: int) -> OpenFile:
        """Another end of the same pipe."""
        return PipeEnd(self.pipe, flags)


_COUNTER_MAX = (1 << 64) - 2
EFD_SEMAPHORE = 1


class EventCounter(OpenFile):
    """eventfd(2): a 64-bit counter that reading takes and writing adds to."""

    kind = "eventfd"
    ignores_seeks = True

    def __init__(self, value: int, semaphore: bool, flags: int, stat: Stat) -> None:
        super().__init__(flags & ~fl.O_ACCMODE | fl.O_RDWR, stat)
        self.value = value
        self.semaphore = semaphore
        self._added, self._taken = WaitQueue(), WaitQueue()

    def details(self) -> bytes:
        """See `OpenFile.details`."""
        shown = self.value, self.stat().ino, self.semaphore
        return b"eventfd-count: %16x\neventfd-id: %d\neventfd-semaphore: %d\n" % shown

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`."""
        return ((self._added,) if events & POLLIN else ()) + ((self._taken,) if events & POLLOUT else ())

    def read(self, count: int) -> bytes | WouldBlock:
        """Eight bytes: the counter, or one of it for a semaphore."""
        if count < 8:
            raise Refused(errno.EINVAL, "an eventfd is read 8 bytes at a time")
        if not self.value:
            return self.wait_for(POLLIN)
        taken = 1 if self.semaphore else self.value
        self.value -= taken
        self._taken.wake()
        return struct.pack("<Q", taken)

    def write(self, data: bytes) -> int | WouldBlock:
        """Add eight bytes' value, waiting while the sum would not fit."""
        if len(data) < 8:
            raise Refused(errno.EINVAL, "an eventfd is written 8 bytes at a time")
        (added,) = struct.unpack_from("<Q", data)
        if added > _COUNTER_MAX:
            raise Refused(errno.EINVAL, "an eventfd takes no 0xffffffffffffffff")
        if self.value + added > _COUNTER_MAX:
            return self.wait_for(POLLOUT)
        self.value += added
        self._added.wake()
        return 8

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        return (POLLIN if self.value else 0) | (POLLOUT if self.value < _COUNTER_MAX else 0)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return b"anon_inode:[eventfd]"

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"value": self.value, "semaphore": self.semaphore}
