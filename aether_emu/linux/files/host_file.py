"""Open files that hold data on the host: what they have in common, and regular files inside a grant."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import host
from aether_emu.linux.files.inodes import FileKey, Inode
from aether_emu.linux.files.open_file import LARGEST_FILE, LARGEST_OFFSET, MOST_PER_CALL, Seekable
from aether_emu.linux.files.place import Dentry, Named, Place, text
from aether_emu.linux.files.stat import Stat, StatFs

if TYPE_CHECKING:
    from aether_emu.linux.files.namespace import Namespace

FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
FALLOC_ZERO_RANGE = 0x10


def check_allocation(mode: int, offset: int, length: int) -> None:
    """The checks of fallocate(2) that no file system is asked for (Linux `vfs_fallocate`)."""
    if offset < 0 or length <= 0:
        raise Refused(errno.EINVAL, f"offset {offset}, length {length}")
    if mode & ~(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
        raise Refused(errno.EOPNOTSUPP, f"fallocate mode {mode:#x}")
    punches = mode & FALLOC_PUNCH_HOLE
    if punches and (mode & FALLOC_ZERO_RANGE or not mode & FALLOC_KEEP_SIZE):
        raise Refused(errno.EOPNOTSUPP, "a hole keeps the size, and is nothing else")
    if offset > LARGEST_OFFSET - length:
        raise Refused(errno.EFBIG, f"offset {offset}, length {length}")


class HostData(Seekable):
    """Bytes behind a host descriptor, which the memory manager may map.

    `host_fd` allows what the guest opened the file for; `key` is the file's identity on the host. Of the
    times that its pages could not be written back, `failures_known` are known to who has it open.
    """

    def __init__(self, namespace: Namespace, host_fd: int, flags: int, inode: Inode, stat: Stat) -> None:
        super().__init__(flags, stat)
        self.namespace = namespace
        self.host_fd = host_fd
        self.inode = inode
        status = os.fstat(host_fd)
        self.key: FileKey = (status.st_dev, status.st_ino)
        self.is_writer = False
        self.failures_known = 0 if namespace.cached is None else namespace.cached.sample(self.key)

    def begin_writing(self) -> None:
        """It is open for writing: nobody executes the file while it is (Linux: get_write_access)."""
        self.is_writer = True
        self.namespace.writers[self.key] += 1

    def _end_writing(self) -> None:
        if self.is_writer:
            self.is_writer = False
            self.namespace.writers[self.key] -= 1
            if not self.namespace.writers[self.key]:
                del self.namespace.writers[self.key]

    @property
    def writable_grant(self) -> bool:
        """Whether stores to a shared mapping may reach the host file."""
        return True

    def release(self) -> None:
        """See `OpenFile.release`."""
        self._end_writing()
        os.close(self.host_fd)

    def size(self) -> int:
        """See `Seekable.size`."""
        return os.fstat(self.host_fd).st_size

    def pread(self, count: int, offset: int) -> bytes:
        """See `OpenFile.pread`."""
        try:
            return os.pread(self.host_fd, min(count, MOST_PER_CALL, LARGEST_OFFSET - offset), offset)
        except OSError as error:
            raise host.refused(error, "read") from None

    def write(self, data: bytes) -> int:
        """See `OpenFile.write`. Nobody writes to a swap file, not even no bytes."""
        self.namespace.require_no_swap(self.key)
        return super().write(data)

    def pwrite(self, data: bytes, offset: int) -> int:
        """See `OpenFile.pwrite`. With O_APPEND Linux ignores the offset (pwrite(2), BUGS)."""
        self.namespace.require_no_swap(self.key)
        if not data:
            return 0
        if self.flags & fl.O_APPEND:
            offset = self.size()
        if offset > LARGEST_OFFSET - len(data):
            raise Refused(errno.EFBIG, f"offset {offset}")
        if self.namespace.sizes is not None:
            data = data[: self.namespace.sizes.admitted(offset, len(data))]
        try:
            done = os.pwrite(self.host_fd, data, offset)
        except OSError as error:
            raise host.refused(error, "write") from None
        self.namespace.inodes.modified(self.inode)
        if self.namespace.cached is not None:
            self.namespace.cached.wrote(self.key, offset, done)
        return done

    def truncate(self, size: int) -> None:
        """See `OpenFile.truncate`. Mappings are told before the host file changes."""
        if not self.writable:
            raise Refused(errno.EINVAL, "not open for writing")
        before = self.size()
        if size <= before:
            self.namespace.require_no_swap(self.key)
        self.require_size(before, size)
        self.namespace.on_truncate(self.key, before, size)
        with host.refusals("truncate"):
            os.ftruncate(self.host_fd, size)
        self.namespace.inodes.modified(self.inode)

    def require_size(self, old: int, new: int) -> None:
        """Refused(EFBIG) if who acts may not make files so large."""
        if self.namespace.sizes is not None:
            self.namespace.sizes.require(old, new)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        """See `OpenFile.allocate`. Modes that shift bytes are refused, as on many file systems."""
        check_allocation(mode, offset, length)
        self.namespace.require_no_swap(self.key)
        before = self.size()
        if not mode & FALLOC_KEEP_SIZE:
            self.require_size(before, offset + length)
        if mode & FALLOC_PUNCH_HOLE or mode & FALLOC_ZERO_RANGE:
            self.namespace.on_punch(self.key, offset, length)
        if not mode & FALLOC_KEEP_SIZE:
            self.namespace.on_truncate(self.key, before, max(before, offset + length))
        with host.refusals("fallocate"):
            host.fallocate(self.host_fd, mode, offset, length)
        self.namespace.inodes.modified(self.inode)

    def sync(self) -> None:
        """See `OpenFile.sync`. Refused too with what of the file's pages could not be written since."""
        self.write_back()
        cached = self.namespace.cached
        if cached is not None:
            self.failures_known, failure = cached.failure(self.key, self.failures_known)
            if failure:
                raise Refused(failure, "pages could not be written back")

    def write_back(self) -> None:
        """Have everything written. What could not be is told to who asks by `sync`."""
        if self.namespace.cached is not None:
            self.namespace.cached.write_back(self.key)
        with host.refusals("fsync"):
            os.fsync(self.host_fd)


class StoredFile(HostData):
    """A regular file of the host. `dentry` is what it is called."""

    largest = LARGEST_FILE

    def __init__(self, namespace: Namespace, dentry: Dentry, host_fd: int, flags: int, inode: Inode) -> None:
        stat = namespace.host_stat(dentry.mount, os.fstat(host_fd), inode)
        super().__init__(namespace, host_fd, flags, inode, stat)
        self.dentry = dentry
        if self.writable:
            self.begin_writing()

    def stat(self) -> Stat:
        """See `OpenFile.stat`."""
        return self.namespace.host_stat(self.dentry.mount, os.fstat(self.host_fd), self.inode)

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return self.namespace.statfs(self.dentry.mount)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return self.dentry.shown(os.fstat(self.host_fd).st_nlink == 0)


class HostFile(StoredFile, Named):
    """A regular file inside a grant."""

    kind = "file"

    def __init__(self, namespace: Namespace, place: Place, host_fd: int, flags: int) -> None:
        super().__init__(namespace, namespace.remember(place), host_fd, flags, namespace.inode(place))

    @property
    def writable_grant(self) -> bool:
        """See `HostData.writable_grant`."""
        return self.dentry.mount.writable

    def place(self) -> Place:
        """See `Named.place`."""
        dentry = self.dentry
        status = os.fstat(self.host_fd)
        return Place(dentry.mount, dentry.path, fd=self.host_fd, status=status, inode=self.inode)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"path": text(self.dentry.path), "failures_known": self.failures_known}
