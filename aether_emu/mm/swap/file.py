"""The swap file on the host: pages by slot. What somebody else takes from it is lost, and noticed.

Without a path it is an unlinked temporary file, made when the first page is written. With one it must be
there, be large enough, and be nobody else's: it is locked while the machine lives. A program's own file
(swapon(2)) begins with a page for its header. Each page has a checksum here, so that a page that was cut off,
or changed, is never taken for the one that was written.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import zlib

from aether_emu.errors import ConfigError
from aether_emu.machine.memory.aperture import BackingFailed
from aether_emu.rules import format_size


class SwapLost(BackingFailed):
    """The bytes of a page in swap are gone: the host's file was cut off, changed, or cannot be read."""

    def __init__(self, slot: int, why: str) -> None:
        super().__init__(slot, why)
        self.why = why


class SwapFile:
    """Room for `slots` pages of `page_size` bytes. Raises ConfigError for a path that does not serve."""

    def __init__(self, path: str | None, slots: int, page_size: int) -> None:
        self.path, self._page_size, self._fd, self._start = path, page_size, -1, 0
        self._sums: dict[int, int] = {}
        self.refused = ""  # why the host took no page, once it did not
        if path is not None:
            self._fd = _open(path, slots * page_size)

    @classmethod
    def of_program(cls, fd: int, slots: int, page_size: int) -> SwapFile:
        """That of a program: `fd`, which is this object's from now on. Its first page is the header."""
        made = cls(None, slots, page_size)
        made._fd, made._start = fd, page_size
        return made

    @property
    def key(self) -> tuple[int, int] | None:
        """Device and inode number of the file at `path`; None where there is none, for nobody finds it."""
        if self.path is None:
            return None
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    def __contains__(self, slot: int) -> bool:
        return slot in self._sums

    def __len__(self) -> int:
        return len(self._sums)

    def write(self, slot: int, data: bytes) -> bool:
        """Keep a page. False, with nothing kept and `refused` said, when the host does not take it."""
        try:
            if self._fd < 0:
                self._fd = _temporary()
            written = os.pwrite(self._fd, data, self._start + slot * self._page_size)
        except OSError as error:
            self.refused = error.strerror or str(error)
            return False
        if written < len(data):
            self.refused = "No space left on device"
            return False
        self.refused = ""
        self._sums[slot] = zlib.crc32(data)
        return True

    def read(self, slot: int) -> bytes:
        """The page in `slot`. Raises SwapLost."""
        try:
            at = self._start + slot * self._page_size
            data = b"" if self._fd < 0 else os.pread(self._fd, self._page_size, at)
        except OSError as error:
            raise SwapLost(slot, f"the swap file cannot be read: {error.strerror}") from None
        if len(data) < self._page_size or zlib.crc32(data) != self._sums[slot]:
            raise SwapLost(slot, "the swap file was cut off or changed")
        return data

    def forget(self, slot: int) -> None:
        """Nobody asks for the page any more."""
        self._sums.pop(slot, None)

    def lose(self, slot: int) -> None:
        """The page of a slot is lost already: it was when the machine was captured."""
        self._sums[slot] = -1  # no checksum

    def slots(self) -> list[int]:
        """The slots whose pages are here, in the order in which they were written."""
        return list(self._sums)

    def close(self) -> None:
        """Let go of the file. Safe twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _temporary() -> int:
    fd, path = tempfile.mkstemp(prefix="aether-swap-")
    os.unlink(path)
    return fd


def _open(path: str, length: int) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError("swap_file", path, str(error.strerror), refusal="cannot be opened") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError("swap_file", path, "a regular file")
        if status.st_size < length:
            need = (
                f"at least {format_size(length)} long, as `swap` says; it has {format_size(status.st_size)}"
            )
            raise ConfigError("swap_file", path, need)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ConfigError:
        os.close(fd)
        raise
    except OSError:
        os.close(fd)
        raise ConfigError("swap_file", path, "one that no other machine uses", refusal="is taken") from None
    return fd
