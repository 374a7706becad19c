"""Pipes and eventfd counters: what tasks wait for one another with. Neither blocks: see `WouldBlock`.

A pipe has slots of a page, as Linux's (fs/pipe.c): a write fills one after the other, and only a slot that a
write began can be filled up by the next. So it may be full with fewer bytes than its capacity.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from typing import Any

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.accounts import PipeAccount
from aether_emu.linux.files.open_file import POLLERR, POLLHUP, POLLIN, POLLOUT, OpenFile, WouldBlock
from aether_emu.linux.files.ownership import POLL_IN, POLL_OUT, Listeners
from aether_emu.linux.files.pipe_object import PipeObject
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.waiting import WaitQueue

PIPE_BUF = 4096
"""Writes of up to so many bytes are taken whole or not at all (pipe(7)); and the size of a slot."""
LARGEST_CAPACITY = 1 << 20
_LARGEST_REQUEST = 1 << 31
_PIPEFS_MAGIC = 0x50495045


MERGES, FIXED, PACKETS = range(3)
"""Slots that the next write may fill up; that it may not; of which one read takes one, and loses the rest."""


class Piece:
    """Bytes in consecutive slots: the first stands at `base` in its page, and `skipped` of them are gone."""

    __slots__ = ("base", "data", "kind", "skipped")

    def __init__(self, data: bytes | bytearray, base: int, kind: int, skipped: int = 0) -> None:
        self.data, self.base, self.kind, self.skipped = data, base, kind, skipped

    @property
    def slots(self) -> int:
        """How many it takes."""
        begin, end = self.base + self.skipped, self.base + len(self.data)
        return (end - 1) // PIPE_BUF - begin // PIPE_BUF + 1

    @property
    def first(self) -> int:
        """Bytes that are left in its first slot."""
        return min(len(self.data) - self.skipped, PIPE_BUF - (self.base + self.skipped) % PIPE_BUF)


class Pipe:
    """The bytes between the ends, and how many open files are at each.

    They stay in the pieces in which they were written, so that a large one is not copied on its way. `size`
    counts the bytes, `used` the slots.
    `filled` is woken when bytes came or the last writer left, `drained` when a slot is free again after all
    were taken, or the last reader left, `opened` when an end was opened.
    """

    def __init__(self, stat: Stat, account: PipeAccount) -> None:
        """Raises OutOfFrames."""
        self.stat = stat
        self._account = account
        self.capacity = account.open()
        try:
            self.object = PipeObject(account.physical, stat.ino, self.capacity // PIPE_BUF)
        except OutOfFrames:
            account.close(self.capacity)
            raise
        self.pieces: deque[Piece] = deque()
        self.size = self.used = 0
        self.readers = 0
        self.writers = 0
        self.filled = WaitQueue()
        self.drained = WaitQueue()
        self.readers_told: Listeners | None = None
        self.writers_told: Listeners | None = None
        self.openings = [0, 0]  # of ends for reading and for writing, ever
        self.opened = WaitQueue()

    @property
    def free(self) -> int:
        """Slots that hold nothing."""
        return max(0, self.capacity // PIPE_BUF - self.used)

    @property
    def content(self) -> bytes:
        """All bytes that are in it."""
        return b"".join(piece.data[piece.skipped :] for piece in self.pieces)

    def accepts(self, count: int) -> int:
        """How many bytes of a write of `count` it takes now."""
        head = count % PIPE_BUF
        merged = head if head and self._merges(head) else 0
        return merged + min(count - merged, self.free * PIPE_BUF)

    def _merges(self, count: int) -> bool:
        """Whether the last slot takes so many bytes more."""
        last = self.pieces[-1] if self.pieces else None
        if last is None or last.kind != MERGES:
            return False
        end = (last.base + len(last.data)) % PIPE_BUF
        return end != 0 and end + count <= PIPE_BUF

    def resize(self, wanted: int) -> int:
        """`F_SETPIPE_SZ`: the next power of two of pages. Returns the new capacity."""
        wanted &= 0xFFFF_FFFF
        if wanted > _LARGEST_REQUEST:
            raise Refused(errno.EINVAL, f"a pipe of {wanted} bytes")
        capacity = max(PIPE_BUF, 1 << max(0, wanted - 1).bit_length())
        if capacity > max(self.capacity, LARGEST_CAPACITY):
            raise Refused(errno.EPERM, f"a pipe of {wanted} bytes is larger than {LARGEST_CAPACITY}")
        if capacity // PIPE_BUF < self.used:
            raise Refused(errno.EBUSY, f"{self.used} pages are in the pipe")
        self._account.resize(self.capacity, capacity)
        try:
            self.object.resize(capacity // PIPE_BUF)
        except OutOfFrames:
            self._account.used += self.capacity - capacity
            raise
        self.capacity = capacity
        self.drained.wake()
        return capacity

    def capture(self) -> dict[str, object]:
        """Its capacity, what is in it, and how often it was opened."""
        pieces = [[bytes(piece.data), piece.base, piece.kind, piece.skipped] for piece in self.pieces]
        openings, where = list(self.openings), self.object.capture()
        return {"capacity": self.capacity, "pieces": pieces, "openings": openings, "object": where}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `capture` gave."""
        self._account.used += state["capacity"] - self.capacity
        self.capacity = state["capacity"]
        self.object.restore(state["object"])
        for piece in state["pieces"]:
            self.append(Piece(*piece))

    def join(self, *, reader: bool, writer: bool) -> None:
        """One more end is open."""
        self.readers += reader
        self.writers += writer
        self.openings[0] += reader
        self.openings[1] += writer
        self._note_ends()
        self.opened.wake()

    def leave(self, *, reader: bool, writer: bool) -> None:
        """An open end is gone. With the last of both sides the pipe is."""
        self.readers -= reader
        self.writers -= writer
        self._note_ends()
        if reader and not self.readers:
            self.drained.wake()
        if writer and not self.writers:
            self.filled.wake()
        if bool(self.readers) != bool(self.writers):
            self.tell_readers()
            self.tell_writers()
        if not self.readers and not self.writers:
            self._account.close(self.capacity)
            self.object.free()

    def _note_ends(self) -> None:
        readers, writers = self.openings
        self.object.note(readers=self.readers, writers=self.writers, r_counter=readers, w_counter=writers)

    def tell_readers(self) -> None:
        """Those with O_ASYNC: something has come, or nobody writes any more."""
        if self.readers_told:
            self.readers_told.tell(POLL_IN)

    def tell_writers(self) -> None:
        """Likewise: something was taken, or nobody reads any more."""
        if self.writers_told:
            self.writers_told.tell(POLL_OUT)

    def put(self, data: bytes, kind: int = MERGES) -> None:
        """What a write brings, of which it takes all (see `accepts`)."""
        head = len(data) % PIPE_BUF
        if head and self._merges(head):
            last = self.pieces[-1]
            if not isinstance(last.data, bytearray):
                last.data = bytearray(last.data)
            last.data += data[:head]
            self.size += head
            data = data[head:]
            head = 0
        whole = len(data) - head
        if whole:
            self._keep(Piece(data[:whole] if head else data, 0, kind))
        if head:
            self._keep(Piece(bytearray(data[whole:]), 0, kind))
        self.filled.wake()

    def append(self, piece: Piece) -> None:
        """Pages as they are (splice), for which there are slots."""
        self._keep(piece)
        self.filled.wake()

    def _keep(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.size += len(piece.data) - piece.skipped
        self.used += piece.slots

    def look(self, count: int) -> bytes:
        """Up to `count` bytes, which stay: not beyond a packet."""
        parts: list[bytes | bytearray] = []
        for piece in self.pieces:
            if not count:
                break
            most = min(count, piece.first) if piece.kind == PACKETS else count
            parts.append(piece.data[piece.skipped : piece.skipped + most])
            count -= len(parts[-1])
            if piece.kind == PACKETS:
                break
        return b"".join(parts)

    def whole_slots(self, count: int) -> int:
        """How many of the first `count` bytes stand in slots of which none goes beyond them."""
        done = 0
        for piece in self.pieces:
            left, first = len(piece.data) - piece.skipped, piece.first
            if done + left <= count:
                done += left
            else:
                more = count - done
                return done + (first + (more - first) // PIPE_BUF * PIPE_BUF if more >= first else 0)
        return done

    def take(self, count: int) -> bytes:
        """Remove and return up to `count` bytes."""
        was_full = not self.free
        parts: list[bytes | bytearray] = []
        while count and self.pieces:
            piece = self.pieces[0]
            skipped, left = piece.skipped, len(piece.data) - piece.skipped
            if piece.kind == PACKETS:
                parts.append(piece.data[skipped : skipped + min(count, piece.first)])
                self._drop(piece, piece.first)
                break
            if left <= count:
                parts.append(piece.data[skipped:] if skipped else piece.data)
                count -= left
                self._drop(piece, left)
            else:
                parts.append(piece.data[skipped : skipped + count])
                self._drop(piece, count)
                break
        if was_full and self.free:
            self.drained.wake()
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def _drop(self, piece: Piece, count: int) -> None:
        """The first bytes of the first piece are gone."""
        before = piece.slots
        piece.skipped += count
        self.size -= count
        if piece.skipped == len(piece.data):
            self.pieces.popleft()
            self.used -= before
        else:
            self.used -= before - piece.slots

    def pass_slot(self, to: Pipe, most: int, *, takes: bool, behind: int = 0) -> int:
        """Give another pipe, which has a slot, up to `most` bytes of the slot behind the first `behind`.

        How many bytes went; with `takes` (then nothing is `behind`) they are gone from here.
        """
        piece, skipped = self._at(behind)
        start = piece.base + skipped
        length = min(len(piece.data) - skipped, PIPE_BUF - start % PIPE_BUF)
        moved = min(length, most)
        kind = piece.kind
        if kind == MERGES and (not takes or moved < length):
            kind = FIXED
        to.append(Piece(bytes(piece.data[skipped : skipped + moved]), start % PIPE_BUF, kind))
        if takes:
            was_full = not self.free
            self._drop(piece, moved)
            if was_full and self.free:
                self.drained.wake()
        return moved

    def _at(self, behind: int) -> tuple[Piece, int]:
        """The piece that has the byte behind so many, and which of its bytes that is."""
        for piece in self.pieces:
            left = len(piece.data) - piece.skipped
            if behind < left:
                return piece, piece.skipped + behind
            behind -= left
        raise AssertionError("there are so many bytes")


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
            self.pipe.tell_writers()  # as of a read, in Linux too
            return self.wait_for(POLLIN)
        taken = self.pipe.take(count)
        if count:
            self.pipe.tell_writers()
        return taken

    def write(self, data: bytes) -> int | WouldBlock:
        """Up to PIPE_BUF bytes whole or not at all; of more, what there are slots for.

        A blocking guest's larger write is complete only when all is taken: the caller goes on with the rest.
        EPIPE (the caller adds SIGPIPE) when nobody can read any more.
        """
        pipe = self.pipe
        if not data:
            return 0
        self.require_reader()
        done = pipe.accepts(len(data))
        if not done:
            return self.wait_for_slot()
        pipe.put(data[:done] if done < len(data) else data, PACKETS if self.flags & fl.O_DIRECT else MERGES)
        pipe.tell_readers()
        return done

    def wait_for_slot(self) -> WouldBlock:
        """No slot is free. Linux tells readers with O_ASYNC of that too, as of a write."""
        self.pipe.tell_readers()
        return self.wait_for(POLLOUT)

    def require_reader(self) -> None:
        """Refused(EPIPE) when nobody reads any more."""
        if not self.pipe.readers:
            raise Refused(errno.EPIPE, "no reader is left")

    def listeners(self) -> tuple[Listeners, ...]:
        """See `OpenFile.listeners`."""
        pipe, found = self.pipe, []
        if self.readable:
            pipe.readers_told = Listeners() if pipe.readers_told is None else pipe.readers_told
            found.append(pipe.readers_told)
        if self.writable:
            pipe.writers_told = Listeners() if pipe.writers_told is None else pipe.writers_told
            found.append(pipe.writers_told)
        return tuple(found)

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
        """See `OpenFile.poll`. Writable means that a slot is free."""
        events = 0
        if self.readable:
            events |= (POLLIN if self.pipe.size else 0) | (0 if self.pipe.writers else POLLHUP)
        if self.writable:
            events |= (POLLOUT if self.pipe.free else 0) | (0 if self.pipe.readers else POLLERR)
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
    is_counter = True
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
