"""The standard streams: the host's descriptors 0, 1 and 2, or whatever the caller puts in their place.

Here are those that pass bytes through and have no position: to the guest they are a terminal if they really
are one, what the host's descriptor is, and a pipe where there is none. What is more of a terminal than its
bytes is in `tty/console`; files, devices and directories of the host are in `own_streams`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat as modes
from typing import Protocol

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


class Console(Protocol):
    """The terminal that a stream is, as far as its bytes go: see `tty/console`."""

    heard: bool
    typed: bytearray

    @property
    def name(self) -> bytes: ...
    def available(self, file: StreamFile) -> int: ...
    def take_typed(self, count: int) -> bytes: ...


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

    def flags(self) -> int | None:
        """The host's status flags; None if the descriptor is closed, or names a place only (O_PATH)."""
        try:
            flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        except OSError:
            return None
        return None if flags & os.O_PATH else flags

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


class StreamFile(OpenFile):
    """A descriptor of a standard stream. `name` finds the stream again when state is restored.

    `console` is the terminal that it is, if it is one, and `path` what it was opened as.
    """

    kind = "stream"
    hung_up = is_master = False

    def __init__(
        self,
        name: str,
        stream: Stream,
        flags: int,
        stat: Stat,
        console: Console | None = None,
        path: bytes = b"",
    ) -> None:
        super().__init__(flags, stat)
        self.name = name
        self.stream = stream
        self.terminal, self.is_terminal, self._path = console, console is not None, path
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
        if self.terminal is not None:
            self.terminal.heard = True
            if self.terminal.typed:
                return self.terminal.take_typed(count)
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
        return self.stream.ready() or (self.terminal is not None and bool(self.terminal.typed))

    def available(self) -> int:
        """Whether there is anything: a stream does not say how much, but a terminal does."""
        return int(self._has_input()) if self.terminal is None else self.terminal.available(self)

    def poll(self) -> int:
        """See `OpenFile.poll`."""
        if self.terminal is not None:
            self.terminal.heard = True
        incoming = POLLIN if self.readable and self._has_input() else 0
        return incoming | (POLLOUT if self.writable and self._has_room() else 0)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        if self.terminal is not None:
            return self._path or self.terminal.name
        if modes.S_ISFIFO(self._stat.mode):
            return b"pipe:[%d]" % self._stat.ino
        return (
            b"socket:[%d]" % self._stat.ino if modes.S_ISSOCK(self._stat.mode) else b"/" + self.name.encode()
        )

    def reopen(self, flags: int) -> OpenFile:
        """The same stream under other flags. Refused(ENXIO) for a socket, as on Linux."""
        if modes.S_ISSOCK(self._stat.mode):
            return super().reopen(flags)
        return StreamFile(self.name, self.stream, flags, self._stat, self.terminal, self._path)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"name": self.name, "path": self._path}


def standard_flags(name: str, stream: Stream) -> int:
    """How a stream is open: a terminal both ways, others as the host's descriptor, or as the name says."""
    if stream.terminal_size() is not None:
        return fl.O_RDWR
    if isinstance(stream, DescriptorStream) and (flags := stream.flags()) is not None:
        return flags & (fl.O_ACCMODE | fl.O_APPEND)
    return fl.O_RDONLY if name == "stdin" else fl.O_WRONLY
