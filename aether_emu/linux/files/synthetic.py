"""Nodes that exist on no disk: directories, texts, links and devices made of callables."""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Callable, Mapping

from aether_emu.errors import Refused, shown
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.accounts import MemoryAccount
from aether_emu.linux.files.open_file import SEEK_CUR, SEEK_SET, OpenFile, Seekable
from aether_emu.linux.files.region import Region
from aether_emu.linux.files.special import Special
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.files.tmp_nodes import TmpNode
from aether_emu.mm.space import AddressSpace
from aether_emu.records import dataclass


@dataclass(frozen=True)
class Directory:
    """A directory that lists what `children` gives at the time of asking."""

    children: Callable[[], Mapping[bytes, Node]]
    mode: int = modes.S_IFDIR | 0o755


@dataclass(frozen=True)
class Text:
    """A file whose contents are made when it is read from its beginning. `size` is what shows as its size.

    `accept` gets what one write(2) brings, as that of a `Control`; without it nobody writes. `areas` tells
    whose areas an ioctl of the file asks about; Refused(ESRCH) if they are gone.
    """

    provide: Callable[[], bytes]
    mode: int = modes.S_IFREG | 0o444
    accept: Callable[[bytes], int] | None = None
    size: int = 0
    areas: Callable[[], AddressSpace] | None = None


@dataclass(frozen=True)
class Control:
    """A file that does something when it is written, and that nobody reads. Its size shows as 0.

    `accept` gets what one write(2) brings; it returns how many bytes of that it took, or raises Refused.
    """

    accept: Callable[[bytes], int]
    mode: int = modes.S_IFREG | 0o200


@dataclass(frozen=True)
class Link:
    """A symbolic link. A magic one stands for an open file: following it leads there, not to `target`."""

    target: Callable[[], bytes]
    file: OpenFile | None = None
    mode: int = modes.S_IFLNK | 0o777


@dataclass(frozen=True)
class Device:
    """A character device: what reading and writing it does; None if it can't be opened (ENXIO).

    A device with `take` never looks at what is written to it, only at how many bytes it is. One with `opens`
    is something else once it is open: that gets path, flags and attributes. `owner` is (user, group).
    """

    number: tuple[int, int]
    read: Callable[[int], bytes] | None
    write: Callable[[bytes], int] | None
    take: Callable[[int], int] | None = None
    mode: int = modes.S_IFCHR | 0o666
    opens: Callable[[bytes, int, Stat, StatFs], OpenFile] | None = None
    owner: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Opened:
    """What a magic link to a file without a name leads to: a pipe, a stream, a memory file."""

    file: OpenFile

    @property
    def mode(self) -> int:
        """The open file's mode."""
        return self.file.stat().mode


Node = Directory | Text | Control | Region | Link | Device | Opened | Special | TmpNode


class TextFile(Seekable):
    """An open `Text`: the contents it had when it was first read, until it is read from its beginning again.

    `content` is what a captured one had, None if it was not read. Reading is Refused(ENOMEM) when `account`
    has no room for them.
    """

    kind = "text"

    def __init__(
        self,
        path: bytes,
        node: Text,
        flags: int,
        stat: Stat,
        fs: StatFs,
        account: MemoryAccount,
        content: bytes | None = None,
    ) -> None:
        super().__init__(flags, stat)
        if self.writable and node.accept is None:
            raise Refused(errno.EACCES, f"{shown(path)} is read-only")
        self.path, self._node, self._fs, self._account = path, node, fs, account
        self.content: bytes | None = None
        if content is not None:
            self._keep(content)

    def _keep(self, content: bytes) -> None:
        account, more = self._account, len(content) - self.size()
        if account.memory_used + more > account.memory_limit:
            raise Refused(errno.ENOMEM, f"open files may hold {account.memory_limit} bytes of memory in all")
        account.memory_used += more
        self.content = content

    def release(self) -> None:
        """See `OpenFile.release`."""
        self._account.memory_used -= self.size()

    def pread(self, count: int, offset: int) -> bytes:
        """See `OpenFile.pread`. What is read from the beginning is the truth of that moment."""
        if not offset or self.content is None:
            self._keep(self._node.provide())
        assert self.content is not None, "it is kept"
        return self.content[offset : offset + count]

    def pwrite(self, data: bytes, offset: int) -> int:
        """See `OpenFile.pwrite`: the whole of what is written counts, wherever that is."""
        assert self._node.accept is not None, "it is open for writing"
        return self._node.accept(data)

    @property
    def areas(self) -> Callable[[], AddressSpace] | None:
        """See `Text.areas`."""
        return self._node.areas

    def truncate(self, size: int) -> None:
        """See `OpenFile.truncate`: there is nothing to cut off, and Linux says nothing about that."""
        if not self.writable:
            raise Refused(errno.EINVAL, "not open for writing")

    def seek(self, offset: int, whence: int) -> int:
        """To an offset or by one; the end of a text in /proc is no place to seek to (Linux `seq_lseek`)."""
        if whence not in (SEEK_SET, SEEK_CUR):
            raise Refused(errno.EINVAL, f"whence {whence} on {shown(self.path)}")
        return super().seek(offset, whence)

    def size(self) -> int:
        """See `Seekable.size`."""
        return len(self.content or b"")

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return self._fs

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return self.path

    def reopen(self, flags: int) -> OpenFile:
        """See `OpenFile.reopen`."""
        return TextFile(self.path, self._node, flags, self._stat, self._fs, self._account)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"path": self.path, "content": self.content}


class ControlFile(OpenFile):
    """An open `Control`. Its position is always 0 (Linux `noop_llseek`)."""

    kind = "control"
    seekable = True

    def __init__(self, path: bytes, control: Control, flags: int, stat: Stat, fs: StatFs) -> None:
        super().__init__(flags, stat)
        self.path, self._control, self._fs = path, control, fs

    def write(self, data: bytes) -> int:
        """See `OpenFile.write`."""
        return self._control.accept(data)

    def pwrite(self, data: bytes, offset: int) -> int:
        """As `write`, wherever the offset is."""
        return self._control.accept(data)

    def seek(self, offset: int, whence: int) -> int:
        """Always 0."""
        return 0

    def truncate(self, size: int) -> None:
        """See `OpenFile.truncate`: there is nothing to cut off, and Linux says nothing about that."""

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return self._fs

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return self.path

    def reopen(self, flags: int) -> OpenFile:
        """See `OpenFile.reopen`. Raises Refused(EACCES) for reading."""
        if flags & fl.O_ACCMODE != fl.O_WRONLY:
            raise Refused(errno.EACCES, f"{shown(self.path)} is write-only")
        return ControlFile(self.path, self._control, flags, self._stat, self._fs)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"path": self.path}


class DeviceFile(OpenFile):
    """An open device. Its position is always 0."""

    kind = "device"
    seekable = True

    def __init__(self, path: bytes, device: Device, flags: int, stat: Stat, fs: StatFs) -> None:
        super().__init__(flags, stat)
        if device.read is None or device.write is None:
            raise Refused(errno.ENXIO, f"{shown(path)} has nothing behind it")
        self.path, self._device, self._fs = path, device, fs
        self.number = device.number
        self._read, self._write, self.take = device.read, device.write, device.take

    def read(self, count: int) -> bytes:
        """See `OpenFile.read`."""
        return self._read(count)

    def write(self, data: bytes) -> int:
        """See `OpenFile.write`."""
        return self._write(data)

    def pread(self, count: int, offset: int) -> bytes:
        """See `OpenFile.pread`."""
        return self._read(count)

    def pwrite(self, data: bytes, offset: int) -> int:
        """See `OpenFile.pwrite`."""
        return self._write(data)

    def seek(self, offset: int, whence: int) -> int:
        """Always 0 (Linux `null_lseek`)."""
        return 0

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return self._fs

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return self.path

    def reopen(self, flags: int) -> OpenFile:
        """See `OpenFile.reopen`."""
        return DeviceFile(self.path, self._device, flags, self._stat, self._fs)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"path": self.path}


USER_FAULTS = 10, 257
"""The number of /dev/userfaultfd. Who may open it makes userfaultfds (`calls/user_faults`)."""
_MOST_AT_ONCE = 0x1FFFFFF
"""One read of /dev/urandom gives at most 32 MiB - 1 (random(4)); here /dev/zero too, to bound our memory."""


def device_tree(random: Callable[[int], bytes], more: Mapping[bytes, Node]) -> Directory:
    """/dev: the memory devices, links to the process's descriptors, and `more`. `random` gives n bytes."""

    def no_space(count: int) -> int:
        raise Refused(errno.ENOSPC, "/dev/full is full")

    def all_of_it(count: int) -> int:
        return count

    def to(target: bytes) -> Link:
        return Link(lambda: target)

    def chance(count: int) -> bytes:
        return random(min(count, _MOST_AT_ONCE))

    def zeros(count: int) -> bytes:
        return bytes(min(count, _MOST_AT_ONCE))

    def nothing(count: int) -> bytes:
        raise Refused(errno.EINVAL, "it is only there for its ioctl")

    nodes: dict[bytes, Node] = {
        b"null": Device((1, 3), lambda count: b"", len, all_of_it),
        b"zero": Device((1, 5), zeros, len, all_of_it),
        b"full": Device((1, 7), zeros, lambda data: no_space(len(data)), no_space),
        b"random": Device((1, 8), chance, len),
        b"urandom": Device((1, 9), chance, len),
        b"userfaultfd": Device(
            USER_FAULTS, nothing, lambda data: len(nothing(0)), mode=modes.S_IFCHR | 0o600
        ),
        b"fd": to(b"/proc/self/fd"),
        b"stdin": to(b"/proc/self/fd/0"),
        b"stdout": to(b"/proc/self/fd/1"),
        b"stderr": to(b"/proc/self/fd/2"),
        **more,
    }
    return Directory(lambda: nodes)


def rdev(node: Node) -> int:
    """The device number that `stat` shows."""
    return os.makedev(*node.number) if isinstance(node, Device) else 0
