"""Files whose bytes are looked up where they are asked for: a process's memory, and what maps it."""

from __future__ import annotations

import errno
import stat as modes
from collections.abc import Callable, Iterator

from aether_emu.errors import Refused, shown
from aether_emu.linux.files.open_file import SEEK_CUR, SEEK_SET, OpenFile, Seekable
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.mm.categories import Run
from aether_emu.records import dataclass

_POSITIONS = (1 << 64) - 1
_NEGATIVE = 1 << 63


@dataclass(frozen=True)
class Region:
    """A file with bytes at positions, and no size. Counts and positions are in bytes.

    `read` gives up to `count` bytes, none at an end; `write` says how many it took, and is None where nobody
    writes. `unsigned` files have positions from 2**63 on (Linux: FMODE_UNSIGNED_OFFSET).
    `scan` tells what stands in a range of addresses, for a file that has an ioctl for that; `protect` has the
    next stores there told or noted.
    """

    read: Callable[[int, int], bytes]
    write: Callable[[int, bytes], int] | None = None
    unsigned: bool = False
    scan: Callable[[int, int], Iterator[Run]] | None = None
    protect: Callable[[int, int], None] = lambda start, end: None

    @property
    def mode(self) -> int:
        """Who may open it."""
        return modes.S_IFREG | (0o400 if self.write is None else 0o600)


class RegionFile(Seekable):
    """An open `Region`."""

    kind = "region"

    def __init__(self, path: bytes, region: Region, flags: int, stat: Stat, fs: StatFs) -> None:
        super().__init__(flags, stat)
        if self.writable and region.write is None:
            raise Refused(errno.EACCES, f"{shown(path)} is read-only")
        self.path, self._region, self._fs = path, region, fs

    def read(self, count: int) -> bytes:
        """See `OpenFile.read`. EINVAL from 2**63 on where there are no such positions; EOVERFLOW."""
        data = self.pread(count, self.position & _POSITIONS)
        self.position += len(data)
        return data

    def write(self, data: bytes) -> int:
        """See `OpenFile.write`. Nothing is appended: there is no end."""
        done = self.pwrite(data, self.position & _POSITIONS)
        self.position += done
        return done

    def _verify(self, position: int, count: int) -> None:
        """Refuse positions that do not exist (Linux `rw_verify_area`)."""
        if position + count >= _NEGATIVE and not self._region.unsigned:
            raise Refused(errno.EINVAL, f"{count} bytes at position {position:#x}")
        if position >= _NEGATIVE and count > _POSITIONS - position:
            raise Refused(errno.EOVERFLOW, f"{count} bytes at position {position:#x}")

    def pread(self, count: int, offset: int) -> bytes:
        """See `OpenFile.pread`."""
        self._verify(offset, count)
        return self._region.read(offset, count)

    def pwrite(self, data: bytes, offset: int) -> int:
        """See `OpenFile.pwrite`."""
        self._verify(offset, len(data))
        if self._region.write is None:
            raise Refused(errno.EINVAL, f"{shown(self.path)} can't be written")
        return self._region.write(offset, data)

    def seek(self, offset: int, whence: int) -> int:
        """To any position, or by any distance: there is no end (Linux `mem_lseek`). What is negative too."""
        if whence not in (SEEK_SET, SEEK_CUR):
            raise Refused(errno.EINVAL, f"whence {whence} on {shown(self.path)}")
        position = offset + (self.position if whence == SEEK_CUR else 0)
        self.position = (position + _NEGATIVE & _POSITIONS) - _NEGATIVE
        return self.position

    @property
    def scans(self) -> bool:
        """Whether there is something to `scan`."""
        return self._region.scan is not None

    def protect(self, start: int, end: int) -> None:
        """Protect the pages of a range from stores, as their userfaultfd would."""
        self._region.protect(start, end)

    def scan(self, start: int, end: int) -> Iterator[Run]:
        """What stands in a range of addresses."""
        assert self._region.scan is not None, "who asks has looked"
        return self._region.scan(start, end)

    def size(self) -> int:
        """See `Seekable.size`."""
        return 0

    def truncate(self, size: int) -> None:
        """See `OpenFile.truncate`: there is nothing to cut off, and Linux says nothing about that."""
        if not self.writable:
            raise Refused(errno.EINVAL, "not open for writing")

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """See `OpenFile.allocate`."""
        raise Refused(errno.EOPNOTSUPP, f"{shown(self.path)} is on no storage")

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return self._fs

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return self.path

    def reopen(self, flags: int) -> OpenFile:
        """See `OpenFile.reopen`."""
        return RegionFile(self.path, self._region, flags, self._stat, self._fs)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"path": self.path}
