"""An open file description: what descriptors point at, shared by `dup` and `fork`.

Every kind of file derives from `OpenFile` and overrides what it can do; the defaults refuse the rest
with the errno that Linux gives. Counts, offsets and sizes are in bytes.
"""

from __future__ import annotations

import errno
import os
import select
from collections import Counter
from collections.abc import Callable
from typing import ClassVar, Protocol

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.ownership import Listeners, Owner, set_asynchronous
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.records import dataclass
from aether_emu.waiting import WaitQueue

MOST_PER_CALL = 0x7FFFF000
"""The most bytes that one read or write moves (Linux MAX_RW_COUNT)."""
LARGEST_OFFSET = (1 << 63) - 1
LARGEST_FILE = (1 << 44) - 4096
"""Most bytes of a file on ext4 with blocks of 4 KiB, which is what grants look like."""

SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE = range(5)

POLLIN = select.POLLIN
POLLOUT = select.POLLOUT
POLLERR = select.POLLERR
POLLHUP = select.POLLHUP
POLLNVAL = select.POLLNVAL


@dataclass(frozen=True)
class WouldBlock:
    """Nothing could be moved now. Wait in `file.queues(events)`, then ask again."""

    file: OpenFile
    events: int


class Watcher(Protocol):
    """An epoll set."""

    def lose(self, file: OpenFile) -> None:
        """The file is gone."""


class OpenFile:
    """One open file description. `flags` are the access mode and the status flags of `F_GETFL`."""

    kind: ClassVar[str]
    """Names the kind in captured state."""
    seekable: ClassVar[bool] = False
    ignores_seeks: ClassVar[bool] = False
    """Whether seeking does nothing, and is not refused (Linux: noop_llseek)."""
    is_socket: ClassVar[bool] = False
    position: int = 0
    """Where the next byte is read or written."""
    capturable: ClassVar[bool] = True
    """Whether a captured machine may have it open."""
    hears_of_closing: ClassVar[bool] = False
    """Whether each closed descriptor matters, and not only the last one."""
    is_terminal = False
    """Whether it is a terminal: then `calls/terminals` reads, writes and controls it."""

    def __init__(self, flags: int, stat: Stat) -> None:
        self.flags = flags & ~fl.ONLY_AT_OPEN
        self._stat = stat
        self._holders = 0
        self.on_last_close: Callable[[OpenFile], None] | None = None
        """Whoever has to know that nobody refers to it any more, before it is released."""
        self.owner: Owner | None = None
        self.watchers: Counter[Watcher] | None = None
        """The epoll sets that it is a member of, and how often."""

    @property
    def name_of_one(self) -> str:
        """What it is, for people: "a pipe", "an eventfd"."""
        return f"{'an' if self.kind[0] in 'aeio' else 'a'} {self.kind}"

    # Life: descriptors and memory areas hold a file; the last to let go closes it.

    def hold(self) -> None:
        """One more descriptor or mapping refers to this file."""
        self._holders += 1

    @property
    def is_held(self) -> bool:
        """Whether anybody refers to it still."""
        return self._holders > 0

    def let_go(self) -> None:
        """One reference fewer; the last one releases the host's resources."""
        assert self._holders > 0, "a file was let go more often than held"
        self._holders -= 1
        if self._holders == 0:
            if self.on_last_close is not None:
                self.on_last_close(self)
            for watcher in list(self.watchers or ()):
                watcher.lose(self)
            if self.flags & fl.FASYNC:
                set_asynchronous(self, -1, on=False)
            self.release()

    def release(self) -> None:
        """Give back what the host lent."""

    def descriptor_closed(self, table: object) -> None:
        """A descriptor of it in `table` is closed, though others may be left: if it `hears_of_closing`."""

    # Access

    @property
    def readable(self) -> bool:
        """Opened for reading."""
        return self.flags & fl.O_ACCMODE in (fl.O_RDONLY, fl.O_RDWR)

    @property
    def writable(self) -> bool:
        """Opened for writing."""
        return self.flags & fl.O_ACCMODE in (fl.O_WRONLY, fl.O_RDWR)

    def wait_for(self, events: int) -> WouldBlock:
        """The answer of a call that can't proceed: EAGAIN under O_NONBLOCK, else a reason to wait."""
        if self.flags & fl.O_NONBLOCK:
            raise Refused(errno.EAGAIN, "nothing can be moved now and O_NONBLOCK is set")
        return WouldBlock(self, events)

    # Data

    def read(self, count: int) -> bytes | WouldBlock:
        """Up to `count` bytes from the position on, which moves; empty at the end."""
        raise Refused(errno.EINVAL, f"a {self.kind} can't be read")

    def write(self, data: bytes) -> int | WouldBlock:
        """Write at the position, which moves. Returns the bytes taken, which may be fewer."""
        raise Refused(errno.EINVAL, f"a {self.kind} can't be written")

    def pread(self, count: int, offset: int) -> bytes:
        """Up to `count` bytes at `offset`; the position stays."""
        raise Refused(errno.ESPIPE, f"a {self.kind} has no positions")

    def pwrite(self, data: bytes, offset: int) -> int:
        """Write at `offset`; the position stays."""
        raise Refused(errno.ESPIPE, f"a {self.kind} has no positions")

    def seek(self, offset: int, whence: int) -> int:
        """Move the position and return it."""
        if self.ignores_seeks:
            return 0
        raise Refused(errno.ESPIPE, f"a {self.kind} has no positions")

    def read_entries(self, size: int) -> bytes:
        """The next directory entries as `struct linux_dirent64`, at most `size` bytes."""
        raise Refused(errno.ENOTDIR, f"a {self.kind} is no directory")

    def truncate(self, size: int) -> None:
        """Set the size."""
        raise Refused(errno.EINVAL, f"a {self.kind} has no size to set")

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""
        raise Refused(errno.ENODEV, f"a {self.kind} has no space to allocate")

    def sync(self) -> None:
        """fsync(2)."""
        raise Refused(errno.EINVAL, f"a {self.kind} is on no storage")

    def available(self) -> int:
        """Bytes that can be read now (`FIONREAD`)."""
        raise Refused(errno.ENOTTY, f"a {self.kind} doesn't say how much can be read")

    def queues(self, events: int) -> tuple[WaitQueue, ...]:
        """The queues that are woken when one of `events` may have come; none for what is always ready."""
        return ()

    def listeners(self) -> tuple[Listeners, ...]:
        """Where it stands with O_ASYNC; nowhere if its kind tells nobody by signals."""
        return ()

    def poll(self) -> int:
        """The poll(2) events that hold now: both, however it is open, where nothing waits."""
        return POLLIN | POLLOUT

    # Description

    def stat(self) -> Stat:
        """The file's attributes."""
        return self._stat

    def statfs(self) -> StatFs:
        """The attributes of the file system it is on: by default one without storage (anon_inodefs)."""
        return StatFs(kind=0x09041934, number=os.minor(self._stat.dev), blocks=0, free=0, read_only=False)

    def link(self) -> bytes:
        """What readlink of /proc/self/fd/N shows."""
        return b"anon_inode:[" + self.kind.encode() + b"]"

    def details(self) -> bytes:
        """What /proc/self/fdinfo/N shows of this kind beside what all have: whole lines."""
        return b""

    def reopen(self, flags: int) -> OpenFile:
        """Open the same object anew, as opening /proc/self/fd/N does."""
        raise Refused(errno.ENXIO, f"a {self.kind} can't be opened through its descriptor")

    # Control

    def ioctl(self, request: int, fetch: Callable[[int], bytes]) -> bytes:
        """Requests of this kind of file only. See `Files.ioctl`."""
        raise Refused(errno.ENOTTY, f"a {self.kind} has no ioctl {request:#x}")

    def capture(self) -> dict[str, object]:
        """Everything `restore` needs beside `kind`, flags and position, as plain data."""
        return {}


class Seekable(OpenFile):
    """A file with positions; a kind of it says its size and moves bytes at offsets."""

    seekable = True

    largest: ClassVar[int] = LARGEST_OFFSET
    """Highest position that can be sought."""

    def size(self) -> int:
        """Length in bytes now."""
        raise Refused(errno.EINVAL, f"a {self.kind} has no size")

    def read(self, count: int) -> bytes:
        """See `OpenFile.read`."""
        data = self.pread(count, self.position)
        self.position += len(data)
        return data

    def write(self, data: bytes) -> int:
        """See `OpenFile.write`. With O_APPEND each write goes to the end."""
        if not data:
            return 0
        if self.flags & fl.O_APPEND:
            self.position = self.size()
        done = self.pwrite(data, self.position)
        self.position += done
        return done

    def seek(self, offset: int, whence: int) -> int:
        """See `OpenFile.seek`. The whole file counts as data: how a host stores holes is not shown."""
        if whence in (SEEK_DATA, SEEK_HOLE):
            if not 0 <= offset < self.size():
                raise Refused(errno.ENXIO, f"offset {offset} is not inside the file")
            target = offset if whence == SEEK_DATA else self.size()
        elif whence == SEEK_SET:
            target = offset
        elif whence == SEEK_CUR:
            target = self.position + offset
        elif whence == SEEK_END:
            target = self.size() + offset
        else:
            raise Refused(errno.EINVAL, f"whence {whence}")
        if not 0 <= target <= self.largest:
            raise Refused(errno.EINVAL, f"position {target}")
        self.position = target
        return target

    def available(self) -> int:
        """See `OpenFile.available`."""
        return max(0, self.size() - self.position)
