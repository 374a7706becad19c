"""The names of terminals: /dev/ptmx, /dev/tty, /dev/pts. What is behind is imported when it is opened."""

from __future__ import annotations

import errno
import stat as modes
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from aether_emu.errors import Refused
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.files.synthetic import Device, Directory, Node

if TYPE_CHECKING:
    from aether_emu.linux.files.streams import Stream
    from aether_emu.linux.tty.console import Console
    from aether_emu.linux.tty.pty import Terminals
    from aether_emu.linux.tty.terminal import Terminal

_GROUP = 5
"""Whose terminals are (the group "tty", which devpts is mounted with)."""
_SLAVE_MAJOR = 136


def _no_group(group: int, number: int) -> None:
    """There are no processes."""


def _nobody(terminal: Terminal) -> None:
    """Likewise."""


class TerminalNames:
    """The terminals of a namespace, and who is asked about processes.

    `post(group, signal)` sends a signal to a group, `hang_up` tells a session that its terminal is gone,
    `of_caller` is the controlling terminal of whoever makes the call.
    """

    def __init__(self, uid: int) -> None:
        self._uid = uid
        self._all: Terminals | None = None
        self.post: Callable[[int, int], None] = _no_group
        self.hang_up: Callable[[Terminal], None] = _nobody
        self.of_caller: Callable[[], Terminal | None] = lambda: None

    @property
    def all(self) -> Terminals:
        """They themselves."""
        if self._all is None:
            from aether_emu.linux.tty.pty import Terminals  # noqa: PLC0415  # few programs have any

            self._all = Terminals(self.post, self.hang_up)
        return self._all

    @property
    def pairs(self) -> int:
        """How many pseudo-terminals there are (kernel.pty.nr)."""
        return 0 if self._all is None else self._all.pairs

    @property
    def console(self) -> Console | None:
        """The run's own."""
        return None if self._all is None else self._all.console

    @property
    def made(self) -> Terminals | None:
        """Likewise, if there are any."""
        return self._all

    def numbered(self, number: int) -> Terminal | None:
        """The one with that number."""
        return None if self._all is None else self._all.by_number.get(number)

    def find_console(self, streams: Mapping[str, Stream]) -> Console | None:
        """The run's own, if one of its streams is a terminal."""
        if all(stream.terminal_size() is None for stream in streams.values()):
            return None
        return self.all.make_console(streams)

    def devices(self) -> Mapping[bytes, Node]:
        """What is in /dev."""
        return {b"ptmx": self._ptmx(0o666), b"tty": Device((5, 0), None, None, opens=self._open_own)}

    def folder(self) -> Directory:
        """What /dev/pts is."""
        return Directory(self._nodes)

    def _nodes(self) -> Mapping[bytes, Node]:
        nodes: dict[bytes, Node] = {b"ptmx": self._ptmx(0)}
        for number, terminal in ({} if self._all is None else self._all.shown()).items():
            nodes[b"%d" % number] = Device(
                (_SLAVE_MAJOR, number),
                None,
                None,
                mode=modes.S_IFCHR | 0o620,
                opens=_opener(terminal),
                owner=(self._uid, _GROUP),
            )
        return nodes

    def _ptmx(self, permissions: int) -> Device:
        return Device((5, 2), None, None, mode=modes.S_IFCHR | permissions, opens=self._open_pair)

    def _open_pair(self, path: bytes, flags: int, stat: Stat, fs: StatFs) -> OpenFile:
        if not stat.mode & 0o777:
            raise Refused(errno.EACCES, "nobody may open it; /dev/ptmx is for everybody")
        return self.all.open_pair(flags, stat, fs, path)

    def _open_own(self, path: bytes, flags: int, stat: Stat, fs: StatFs) -> OpenFile:
        terminal = self.of_caller()
        if terminal is None:
            raise Refused(errno.ENXIO, "the session has no controlling terminal")
        return terminal.open(flags, stat, fs, path)


def _opener(terminal: Terminal) -> Callable[[bytes, int, Stat, StatFs], OpenFile]:
    def opened(path: bytes, flags: int, stat: Stat, fs: StatFs) -> OpenFile:
        if terminal.exclusive:
            raise Refused(errno.EBUSY, "it is open for one alone (TIOCEXCL)")
        return terminal.open(flags, stat, fs, path)

    return opened
