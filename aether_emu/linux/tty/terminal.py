"""What every terminal has: modes, a window's size, whose it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from aether_emu.linux.abi.signal import SIGWINCH
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.tty.modes import Modes

WindowSize = tuple[int, int, int, int]
"""Lines, columns, and both in pixels (struct winsize)."""


class Terminal(ABC):
    """A terminal. `session` is whose controlling terminal it is, `foreground` the group in front; 0: none.

    `post` sends a signal to every process of a group. `exclusive`: nobody else may open it (TIOCEXCL).
    """

    modes: Modes
    is_outer = False
    """Whether it is the host's, whose own shell leads the session."""

    def __init__(self, number: int, post: Callable[[int, int], None]) -> None:
        self.number, self.post = number, post
        self.session = self.foreground = 0
        self.size: WindowSize = (0, 0, 0, 0)
        self.exclusive = False

    @property
    def name(self) -> bytes:
        """Where it is found."""
        return b"/dev/pts/%d" % self.number

    def signal(self, number: int) -> None:
        """A signal to who is in front."""
        if self.foreground:
            self.post(self.foreground, number)

    def resize(self, size: WindowSize) -> None:
        """TIOCSWINSZ: who is in front hears of it (SIGWINCH)."""
        if size != self.size:
            self.size = size
            self.tell_size()

    def tell_size(self) -> None:
        """Whoever is in front hears that the size is another."""
        self.signal(SIGWINCH)

    @abstractmethod
    def change(self, modes: Modes, *, flush: bool) -> None:
        """Other modes; `flush`: what was typed is forgotten first."""

    @abstractmethod
    def flush(self, *, typed: bool, written: bool) -> None:
        """tcflush(3)."""

    @abstractmethod
    def hold(self, held: bool) -> None:
        """tcflow(3): output waits, or goes on."""

    @abstractmethod
    def send_at_once(self, data: bytes, *, by_master: bool) -> None:
        """tcflow(3): a character that stops or starts the other side, although output may be stopped."""

    @abstractmethod
    def open(self, flags: int, stat: Stat, fs: StatFs, name: bytes) -> OpenFile:
        """One more open file of it, which shows as `name`. Refused(EIO) where nobody is behind it."""
