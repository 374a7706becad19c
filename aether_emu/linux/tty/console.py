"""The terminal of the host at which a run was started: the controlling terminal of its first process.

The host's own line discipline does the editing and the echo. What the guest sets is passed on to the host
while the machine runs, and taken back when it does not: see `enter` and `leave`. Two keys stay the host's:

    that for SIGINT     always sends the host SIGINT. Where the guest has it send none, it becomes a character
    Ctrl-backslash      always sends the host SIGQUIT, which ends the run

A terminal that is no host's (a `Stream` of the caller that says so) has modes that change nothing.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aether_emu.linux.abi.signal import SIGINT
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.files.streams import DescriptorStream, Stream, StreamFile
from aether_emu.linux.tty import modes as m
from aether_emu.linux.tty.modes import Modes
from aether_emu.linux.tty.terminal import Terminal, WindowSize

_TCGETS, _TCSETS, _TCXONC, _TCFLSH, _TIOCGWINSZ, _FIONREAD = 0x5401, 0x5402, 0x540A, 0x540B, 0x5413, 0x541B
_CTRL_C, _CTRL_BACKSLASH = 0x03, 0x1C


class Console(Terminal):
    """The run's own terminal. `typed` are characters that are read before those of the host.

    `heard`: the guest has looked for keys since the last one that was handed to it.
    """

    is_outer = True

    def __init__(self, number: int, post: Callable[[int, int], None], name: str, stream: Stream) -> None:
        super().__init__(number, post)
        self.stream_name, self._stream = name, stream
        self._fd = stream.fd if isinstance(stream, DescriptorStream) else None
        self._own_size: WindowSize | None = None
        self.modes = Modes()
        if self._fd is not None:
            self.modes = self.modes.changed("termios", _ask(self._fd, _TCGETS, m.SIZES["termios"]))
        self._told_size = self.size
        self._original: bytes | None = None  # the host's modes, while the guest's are in force
        self._changed = self._running = False
        self.typed = bytearray()
        self.heard = True

    # ---- size

    @property
    def size(self) -> WindowSize:
        """The host's, unless the guest has set another since that changed."""
        if self._own_size is not None:
            return self._own_size
        if self._fd is not None:
            with suppress(OSError):
                size = struct.unpack("<4H", _ask(self._fd, _TIOCGWINSZ, 8))
                if size[0] and size[1]:
                    return size[0], size[1], size[2], size[3]
        columns, rows = self._stream.terminal_size() or (80, 24)
        return rows, columns, 0, 0

    @size.setter
    def size(self, size: WindowSize) -> None:
        self._own_size = size if size != (0, 0, 0, 0) else None

    def resized(self) -> None:
        """The host's window has changed (SIGWINCH)."""
        self._own_size = None
        size = self.size
        if size != self._told_size:
            self._told_size = size
            self.tell_size()

    # ---- modes

    def change(self, modes: Modes, *, flush: bool) -> None:
        """See `Terminal.change`."""
        if flush:
            self.flush(typed=True, written=False)
        self.modes, self._changed = modes, True
        if self._running:
            self._put_in_force()

    @property
    def interrupt_is_typed(self) -> bool:
        """Whether the key for SIGINT is a character to the guest."""
        return not (self.modes.local & m.ISIG and self.modes.characters[m.VINTR])

    def _host_modes(self) -> bytes:
        modes = self.modes
        characters, local = bytearray(modes.characters), modes.local
        if self.interrupt_is_typed:
            characters[m.VINTR] = _CTRL_C
        if not local & m.ISIG:
            local |= m.ISIG | m.NOFLSH
            characters[m.VSUSP] = 0
        characters[m.VQUIT] = _CTRL_BACKSLASH
        if not local & m.ICANON:
            characters[m.VMIN], characters[m.VTIME] = 1, 0  # the calls wait for what the guest asks
        host = Modes(
            modes.input, modes.output, modes.control, local, modes.line, bytes(characters), modes.speeds
        )
        return host.pack("termios")

    def _put_in_force(self) -> None:
        if self._fd is None:
            return
        if self._original is None:
            self._original = _ask(self._fd, _TCGETS, m.SIZES["termios"])
        with suppress(OSError):
            fcntl.ioctl(self._fd, _TCSETS, self._host_modes())

    def enter(self) -> None:
        """The machine runs: what the guest has set is in force."""
        self._running = True
        if self._changed:
            self._put_in_force()

    def come_back(self) -> None:
        """The host's window may be another, and its modes, after it has stopped this process."""
        self.resized()
        if self._running and self._original is not None:
            self._put_in_force()

    def leave(self) -> bool:
        """It does not run: the host's terminal is as it was. Whether it ran. At any time, in any thread."""
        running, self._running = self._running, False
        original, self._original = self._original, None
        if original is None or self._fd is None:
            return running
        if _is_in_front(self._fd):
            with suppress(OSError):
                fcntl.ioctl(self._fd, _TCSETS, original)
        return running

    def capture(self) -> dict[str, object]:
        """The guest's modes, and whose it is."""
        return {"modes": self.modes.pack("termios2"), "whose": (self.session, self.foreground)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `capture` gave."""
        self.modes, self._changed = self.modes.changed("termios2", state["modes"]), True
        self.session, self.foreground = state["whose"]

    # ---- bytes

    def available(self, file: StreamFile) -> int:
        """Bytes that can be read now."""
        count = len(self.typed)
        if isinstance(file.stream, DescriptorStream):
            with suppress(OSError):
                (more,) = struct.unpack("<i", _ask(file.stream.fd, _FIONREAD, 4))
                return count + int(more)
        return count + file.stream.ready()

    def is_typed(self, number: int) -> bool:
        """Whether the key for a signal is a character to the guest."""
        return number == SIGINT and self.interrupt_is_typed

    def press(self, number: int) -> None:
        """A key was pressed that sends this signal."""
        self.heard = False
        if self.is_typed(number):
            self.typed.append(_CTRL_C)
        else:
            self.signal(number)

    def take_typed(self, count: int) -> bytes:
        """Those that come first."""
        taken = bytes(self.typed[:count])
        del self.typed[:count]
        return taken

    def flush(self, *, typed: bool, written: bool) -> None:
        """See `Terminal.flush`."""
        if typed:
            self.typed.clear()
        self._control(_TCFLSH, termios.TCIOFLUSH if typed and written else int(written))

    def hold(self, held: bool) -> None:
        """See `Terminal.hold`."""
        self._control(_TCXONC, termios.TCOOFF if held else termios.TCOON)

    def send_at_once(self, data: bytes, *, by_master: bool) -> None:
        """See `Terminal.send_at_once`."""
        self._stream.write(data)

    def _control(self, request: int, argument: int) -> None:
        if self._fd is not None:
            with suppress(OSError):
                fcntl.ioctl(self._fd, request, argument)

    def open(self, flags: int, stat: Stat, fs: StatFs, name: bytes) -> OpenFile:
        """See `Terminal.open`."""
        return StreamFile(self.stream_name, self._stream, flags & ~fl.O_NOCTTY, stat, self, name)


def _is_in_front(fd: int) -> bool:
    """Whether this process may change the terminal without being stopped for it: else it is another's now."""
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:  # it is not the one that controls us
        return True


def _ask(fd: int, request: int, size: int) -> bytes:
    return fcntl.ioctl(fd, request, bytes(size))
