"""Open files that hold data on the host: regular files inside a grant, and memory files (memfd_create)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat as modes
from typing import TYPE_CHECKING

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import host
from aether_emu.linux.files.inodes import FileKey, Inode
from aether_emu.linux.files.open_file import LARGEST_FILE, LARGEST_OFFSET, MOST_PER_CALL, OpenFile, Seekable
from aether_emu.linux.files.place import Dentry, Named, Place, text
from aether_emu.linux.files.stat import Stat, StatFs

if TYPE_CHECKING:
    from aether_emu.linux.files.namespace import Namespace

_FALLOC_KEEP_SIZE = 1
_FALLOC_PUNCH_HOLE = 2
_FALLOC_ZERO_RANGE = 0x10


class HostData(Seekable):
    """Bytes behind a host descriptor, which the memory manager may map.

    `host_fd` allows what the guest opened the file for; `key` is the file's identity on the host.
    """

    def __init__(self, namespace: Namespace, host_fd: int, flags: int, inode: Inode, stat: Stat) -> None:
        super().__init__(flags, stat)
        self.namespace = namespace
        self.host_fd = host_fd
        self.inode = inode
        status = os.fstat(host_fd)
        self.key: FileKey = (status.st_dev, status.st_ino)

    @property
    def writable_grant(self) -> bool:
        """Whether stores to a shared mapping may reach the host file."""
        return True

    def release(self) -> None:
        """See `OpenFile.release`."""
        os.close(self.host_fd)

    def size(self) -> int:
        """See `Seekable.size`."""
        return os.fstat(self.host_fd).st_size

    def pread(self, count: int, offset: int) -> bytes:
        """See `OpenFile.pread`."""
        if offset > LARGEST_OFFSET - MOST_PER_CALL:
            return b""
        try:
            return os.pread(self.host_fd, min(count, MOST_PER_CALL), offset)
        except OSError as error:
            raise host.refused(error, "read") from None

    def pwrite(self, data: bytes, offset: int) -> int:
        """See `OpenFile.pwrite`. With O_APPEND Linux ignores the offset (pwrite(2), BUGS)."""
        if not data:
            return 0
        if self.flags & fl.O_APPEND:
            offset = self.size()
        if offset > LARGEST_OFFSET - len(data):
            raise Refused(errno.EFBIG, f"offset {offset}")
        self.make_room(offset + len(data))
        try:
            done = os.pwrite(self.host_fd, data, offset)
        except OSError as error:
            raise host.refused(error, "write") from None
        self.namespace.inodes.modified(self.inode)
        return done

    def truncate(self, size: int) -> None:
        """See `OpenFile.truncate`. Mappings are told before the host file changes."""
        if not self.writable:
            raise Refused(errno.EINVAL, "not open for writing")
        self.make_room(size)
        self.namespace.on_truncate(self.key, self.size(), size)
        with host.refusals("truncate"):
            os.ftruncate(self.host_fd, size)
        self.resized()
        self.namespace.inodes.modified(self.inode)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """See `OpenFile.allocate`. Modes that shift bytes are refused, as on many file systems."""
        if offset < 0 or length <= 0 or offset > LARGEST_OFFSET - length:
            raise Refused(errno.EINVAL, f"offset {offset}, length {length}")
        if mode & ~(_FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE | _FALLOC_ZERO_RANGE):
            raise Refused(errno.EOPNOTSUPP, f"fallocate mode {mode:#x}")
        before = self.size()
        if not mode & _FALLOC_KEEP_SIZE:
            self.make_room(offset + length)
            self.namespace.on_truncate(self.key, before, max(before, offset + length))
        with host.refusals("fallocate"):
            host.fallocate(self.host_fd, mode, offset, length)
        self.resized()
        self.namespace.inodes.modified(self.inode)

    def make_room(self, size: int) -> None:
        """Refuse a size that the file may not have."""

    def resized(self) -> None:
        """The host file may have another size now."""

    def sync(self) -> None:
        """See `OpenFile.sync`."""
        with host.refusals("fsync"):
            os.fsync(self.host_fd)


class HostFile(HostData, Named):
    """A regular file inside a grant."""

    kind = "file"
    largest = LARGEST_FILE

    def __init__(self, namespace: Namespace, place: Place, host_fd: int, flags: int) -> None:
        status = os.fstat(host_fd)
        inode = namespace.inode(place)
        super().__init__(namespace, host_fd, flags, inode, namespace.host_stat(place.mount, status, inode))
        self.dentry: Dentry = namespace.remember(place)

    @property
    def writable_grant(self) -> bool:
        """See `HostData.writable_grant`."""
        return self.dentry.mount.writable

    def stat(self) -> Stat:
        """See `OpenFile.stat`."""
        return self.namespace.host_stat(self.dentry.mount, os.fstat(self.host_fd), self.inode)

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return self.namespace.statfs(self.dentry.mount)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return self.dentry.shown(os.fstat(self.host_fd).st_nlink == 0)

    def place(self) -> Place:
        """See `Named.place`."""
        dentry = self.dentry
        status = os.fstat(self.host_fd)
        return Place(dentry.mount, dentry.path, fd=self.host_fd, status=status, inode=self.inode)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"path": text(self.dentry.path)}


class Memory:
    """The contents of a memory file, shared by all its descriptions, and what they take of the limit."""

    def __init__(self, namespace: Namespace, name: bytes, inode: Inode, stat: Stat) -> None:
        self.namespace, self.name, self.inode, self.stat = namespace, name, inode, stat
        self.descriptions = 0
        self.charged = 0

    def charge(self, size: int) -> None:
        """It takes `size` bytes: ENOSPC beyond the limit, as for a full tmpfs."""
        used = self.namespace.memory_used + size - self.charged
        if size > self.charged and used > self.namespace.memory_limit:
            raise Refused(errno.ENOSPC, f"memory files may hold {self.namespace.memory_limit} bytes in all")
        self.namespace.memory_used, self.charged = used, size


class MemoryFile(HostData):
    """An open file of memfd_create."""

    kind = "memory"

    def __init__(self, memory: Memory, host_fd: int, flags: int) -> None:
        super().__init__(memory.namespace, host_fd, flags, memory.inode, memory.stat)
        self.memory = memory
        memory.descriptions += 1

    def release(self) -> None:
        """See `OpenFile.release`."""
        super().release()
        self.memory.descriptions -= 1
        if not self.memory.descriptions:
            self.memory.charge(0)

    def make_room(self, size: int) -> None:
        """See `HostData.make_room`."""
        self.memory.charge(max(size, self.memory.charged))

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """See `OpenFile.allocate`. No memory behind the end: the limit counts sizes."""
        beyond = offset + length > self.size()
        if mode & _FALLOC_KEEP_SIZE and not mode & _FALLOC_PUNCH_HOLE and beyond:
            raise Refused(errno.EOPNOTSUPP, "memory behind the end of a memory file")
        super().allocate(mode, offset, length)

    def resized(self) -> None:
        """See `HostData.resized`."""
        self.memory.charge(self.size())

    def stat(self) -> Stat:
        """See `OpenFile.stat`."""
        status, stat, inode = os.fstat(self.host_fd), self._stat, self.inode
        return Stat(
            *(stat.dev, stat.ino, status.st_mode, 0, stat.uid, stat.gid, 0, status.st_size),
            *(inode.atime, inode.mtime, inode.ctime),
        )

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return b"/memfd:" + self.memory.name + b" (deleted)"

    def add_seals(self, seals: int) -> None:
        """`F_ADD_SEALS`."""
        with host.refusals("F_ADD_SEALS"):
            fcntl.fcntl(self.host_fd, fcntl.F_ADD_SEALS, seals)

    @property
    def seals(self) -> int:
        """`F_GET_SEALS`."""
        return fcntl.fcntl(self.host_fd, fcntl.F_GET_SEALS)

    def reopen(self, flags: int) -> OpenFile:
        """The same memory through another description."""
        with host.refusals("memory file"):
            fd = os.open(host.by_descriptor(self.host_fd), fl.to_host(flags))
        file = MemoryFile(self.memory, fd, flags)
        if flags & fl.O_TRUNC and file.writable:
            try:
                file.truncate(0)
            except Refused:
                file.release()
                raise
        return file

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`; what is shared is captured once, with the memory."""
        return {"seals": self.seals}


def create_memory(namespace: Namespace, name: bytes, flags: int) -> MemoryFile:
    """memfd_create(2): an empty memory file. `flags` are about seals and execution."""
    stat = namespace.nameless_stat(modes.S_IFREG | 0o777)
    return open_memory(Memory(namespace, name, namespace.inodes.created(), stat), flags)


def open_memory(memory: Memory, flags: int) -> MemoryFile:
    """The first description of a memory file, on new host memory."""
    with host.refusals("memfd_create"):
        fd = os.memfd_create("guest", os.MFD_CLOEXEC | flags)
    return MemoryFile(memory, fd, fl.O_RDWR)
