"""The standard streams: the host's descriptors 0, 1 and 2, or whatever the caller puts in their place.

They pass bytes through and have no position. To the guest a stream is a terminal if it really is one and
a pipe otherwise, so that a run prints the same into a file, a pipe or a test. The host terminal's modes are
never changed: the guest's own are kept beside it, so that what it sets it also reads back.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from collections.abc import Callable
from typing import Protocol

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.host import refused
from aether_emu.linux.files.open_file import MOST_PER_CALL, POLLIN, POLLOUT, OpenFile, WouldBlock
from aether_emu.linux.files.stat import Stat
from aether_emu.waiting import HostQueue, WaitQueue


class Stream(Protocol):
    """What stands behind a standard stream. Errors are OSError."""

    def read(self, count: int) -> bytes:
        """At least one and up to `count` bytes, or none at the end."""

    def write(self, data: bytes) -> int:
        """Write; returns the bytes taken."""

    def ready(self) -> bool:
        """Whether `read` would return at once."""

    def terminal_size(self) -> tuple[int, int] | None:
        """(columns, lines) of a terminal; None if it is none."""


_ATOMIC = select.PIPE_BUF
"""Bytes that a pipe takes without waiting once it says that it takes any (pipe(7))."""
_MOMENT = 5
"""Milliseconds that a write waits for room: a reader at work makes some at once."""


class DescriptorStream:
    """A stream on a host descriptor, which stays the caller's to close.

    A write never waits for a reader: then nothing outside could end the run.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._room = select.poll()
        self._room.register(fd, select.POLLOUT)

    def read(self, count: int) -> bytes:
        """See `Stream.read`."""
        return os.read(self.fd, min(count, 1 << 20))

    def write(self, data: bytes) -> int:
        """See `Stream.write`. BlockingIOError when nobody makes room."""
        done = 0
        while not done or done < len(data):
            if not self._room.poll(0 if done else _MOMENT):
                break
            try:
                done += os.write(self.fd, data[done : done + _ATOMIC])
            except OSError:
                if not done:
                    raise
                break  # the next write tells
            if not data:
                return 0
        if not done:
            raise BlockingIOError(errno.EAGAIN, "nobody reads")
        return done

    def has_room(self) -> bool:
        """Whether a write would take something now, or fail at once."""
        return bool(self._room.poll(0))

    def ready(self) -> bool:
        """See `Stream.ready`."""
        waiting = select.poll()
        waiting.register(self.fd, select.POLLIN)
        return bool(waiting.poll(0))

    def terminal_size(self) -> tuple[int, int] | None:
        """See `Stream.terminal_size`. A terminal that does not know says 80x24."""
        if not os.isatty(self.fd):
            return None
        try:
            columns, lines = os.get_terminal_size(self.fd)
        except OSError:
            return (80, 24)
        return (columns or 80, lines or 24)


class BufferStream:
    """A stream in memory: reads what it was given, keeps what is written."""

    def __init__(self, source: bytes = b"") -> None:
        self.source = bytearray(source)
        self.written = bytearray()

    def read(self, count: int) -> bytes:
        """See `Stream.read`."""
        data = bytes(self.source[:count])
        del self.source[:count]
        return data

    def write(self, data: bytes) -> int:
        """See `Stream.write`."""
        self.written += data
        return len(data)

    def ready(self) -> bool:
        """See `Stream.ready`."""
        return True

    def terminal_size(self) -> tuple[int, int] | None:
        """A buffer is no terminal."""
        return None


_TCGETS = 0x5401
_TCSETS = (0x5402, 0x5403, 0x5404)
_TIOCGWINSZ = 0x5413
_TERMIOS_SIZE = 36


def _cooked_termios() -> bytes:
    """`struct termios` of a fresh terminal (asm-generic/termbits.h): the kernel's tty_std_termios."""
    iflag, oflag = 0o400 | 0o2000, 0o1 | 0o4  # ICRNL IXON; OPOST ONLCR
    cflag = 0o17 | 0o60 | 0o200 | 0o2000  # B38400 CS8 CREAD HUPCL
    lflag = (
        0o1 | 0o2 | 0o10 | 0o20 | 0o40 | 0o1000 | 0o4000 | 0o100000
    )  # ISIG ICANON ECHO ECHOE ECHOK ECHOCTL ECHOKE IEXTEN
    controls = bytes([3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0])
    return struct.pack("<IIIIB19s", iflag, oflag, cflag, lflag, 0, controls)


class StreamFile(OpenFile):
    """A descriptor of a standard stream. `name` finds the stream again when state is restored."""

    kind = "stream"

    def __init__(self, name: str, stream: Stream, flags: int, stat: Stat) -> None:
        super().__init__(flags, stat)
        self.name = name
        self.stream = stream
        self._termios = _cooked_termios()
        self._incoming = HostQueue(self._has_input)
        # A stream that took nothing and says no more is tried again.
        self._has_room = stream.has_room if isinstance(stream, DescriptorStream) else lambda: True
        self._outgoing = HostQueue(self._has_room)

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """See `OpenFile.queues`: only the host changes a stream."""
        reading = self.readable and events & POLLIN
        writing = self.writable and events & POLLOUT
        return ((self._incoming,) if reading else ()) + ((self._outgoing,) if writing else ())

    def read(self, count: int) -> bytes | WouldBlock:
        """What the stream has; `WouldBlock` while it has nothing and is not at its end."""
        if not count:
            return b""
        if not self.stream.ready():
            return self.wait_for(POLLIN)
        try:
            data = self.stream.read(min(count, MOST_PER_CALL))
            self._incoming.wake()  # nobody tells when the host brings more: edge-triggered sets look again
            return data
        except BlockingIOError:
            return self.wait_for(POLLIN)
        except OSError as error:
            raise refused(error, self.name) from None

    def write(self, data: bytes) -> int | WouldBlock:
        """Pass the bytes on. EPIPE (the caller adds SIGPIPE) when nobody reads any more."""
        try:
            return self.stream.write(data)
        except BlockingIOError:
            return self.wait_for(POLLOUT)
        except OSError as error:
            raise refused(error, self.name) from None

    def _has_input(self) -> bool:
        return self.stream.ready()

    def available(self) -> int:
        """Whether there is anything: a stream does not say how much."""
        return int(self._has_input())

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        incoming = POLLIN if self.readable and self.stream.ready() else 0
        return incoming | (POLLOUT if self.writable and self._has_room() else 0)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return b"pipe:[%d]" % self._stat.ino if self.stream.terminal_size() is None else b"/dev/tty"

    def reopen(self, flags: int) -> OpenFile:
        """The same stream under other flags: a second one with its own position would overwrite the first."""
        return StreamFile(self.name, self.stream, flags, self._stat)

    def ioctl(self, request: int, fetch: Callable[[int], bytes]) -> bytes:
        """Terminal requests, if it is a terminal. Job control is not offered (ENOTTY)."""
        size = self.stream.terminal_size()
        if size is not None:
            if request == _TCGETS:
                return self._termios
            if request in _TCSETS:
                self._termios = fetch(_TERMIOS_SIZE)
                return b""
            if request == _TIOCGWINSZ:
                return struct.pack("<HHHH", size[1], size[0], 0, 0)
        raise Refused(errno.ENOTTY, f"ioctl {request:#x} on {self.name}")

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"name": self.name, "termios": self._termios}

    def restore_termios(self, termios: bytes) -> None:
        """Take over captured terminal modes."""
        self._termios = termios


def standard_flags(name: str, stream: Stream) -> int:
    """How a stream is open: a terminal both ways, else as its name says."""
    if stream.terminal_size() is not None:
        return fl.O_RDWR
    return fl.O_RDONLY if name == "stdin" else fl.O_WRONLY
