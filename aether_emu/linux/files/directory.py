"""Open directories, and descriptors that only name a place (O_PATH)."""

from __future__ import annotations

import errno
import os
import stat as modes
import struct
from typing import TYPE_CHECKING

from aether_emu.errors import Refused, shown
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import host
from aether_emu.linux.files.listing import Listed, listed
from aether_emu.linux.files.open_file import SEEK_CUR, SEEK_SET, OpenFile, WouldBlock
from aether_emu.linux.files.place import Dentry, Named, Place, text
from aether_emu.linux.files.stat import Stat, StatFs

if TYPE_CHECKING:
    from aether_emu.linux.files.namespace import Namespace

_DIRENT = struct.Struct("<QqHB")
_LISTED = 200  # bytes that one entry of a listing takes beside its name


class Located(OpenFile, Named):
    """An open file that stands for a place in the namespace, whose descriptor it owns."""

    def __init__(self, namespace: Namespace, place: Place, fd: int, flags: int) -> None:
        super().__init__(flags, namespace.stat(place))
        self.namespace = namespace
        self.host_fd = fd
        self.dentry: Dentry = namespace.remember(place)
        self._node = place.node
        self._inode = namespace.inode(place)

    def release(self) -> None:
        """See `OpenFile.release`."""
        if self.host_fd >= 0:
            os.close(self.host_fd)

    @property
    def is_gone(self) -> bool:
        """Whether its name was removed."""
        return self.dentry.detached or (self.host_fd >= 0 and os.fstat(self.host_fd).st_nlink == 0)

    def place(self) -> Place:
        """See `Named.place`."""
        dentry = self.dentry
        if self._node is not None:
            return Place(dentry.mount, dentry.path, node=self._node, inode=self._inode)
        status = os.fstat(self.host_fd)
        return Place(dentry.mount, dentry.path, fd=self.host_fd, status=status, inode=self._inode)

    def stat(self) -> Stat:
        """See `OpenFile.stat`."""
        if self.host_fd < 0:
            return self.namespace.stat(self.place())
        return self.namespace.host_stat(self.dentry.mount, os.fstat(self.host_fd), self._inode)

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return self.namespace.statfs(self.dentry.mount)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return self.dentry.shown(self.is_gone)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"path": text(self.dentry.path)}


class OpenDirectory(Located):
    """An open directory. Its listing is taken when reading begins; the position is an index into it."""

    kind = "directory"
    seekable = True
    listing: list[Listed] | None = None
    _charged = 0  # bytes of the account

    def read(self, count: int) -> bytes | WouldBlock:
        """Directories are read by `read_entries`."""
        raise Refused(errno.EISDIR, "a directory")

    def pread(self, count: int, offset: int) -> bytes:
        """Directories are read by `read_entries`."""
        raise Refused(errno.EISDIR, "a directory")

    def read_entries(self, size: int) -> bytes:
        """See `OpenFile.read_entries`. EINVAL if not even one entry fits."""
        if self.is_gone:
            raise Refused(errno.ENOENT, "the directory was removed")
        if self.listing is None:
            self.keep(listed(self.namespace, self.place()))
        assert self.listing is not None
        found = bytearray()
        while self.position < len(self.listing):
            item = self.listing[self.position]
            length = (_DIRENT.size + len(item.name) + 1 + 7) & ~7
            if len(found) + length > size:
                if not found:
                    raise Refused(errno.EINVAL, f"{size} bytes are too few for {shown(item.name)}")
                break
            head = _DIRENT.pack(item.number, self.position + 1, length, item.kind)
            found += (head + item.name).ljust(length, b"\0")
            self.position += 1
        return bytes(found)

    def keep(self, listing: list[Listed]) -> None:
        """Have the listing, on the account of what open files hold. Refused(ENOMEM) when that is full."""
        size, namespace = sum(len(item.name) + _LISTED for item in listing), self.namespace
        if namespace.memory_used + size > namespace.memory_limit:
            raise Refused(errno.ENOMEM, f"open files may hold {namespace.memory_limit} bytes in all")
        namespace.memory_used += size
        self.listing, self._charged = listing, size

    def _forget(self) -> None:
        """The next reading takes a new listing."""
        self.namespace.memory_used -= self._charged
        self.listing, self._charged = None, 0

    def release(self) -> None:
        """See `OpenFile.release`."""
        self._forget()
        super().release()

    def seek(self, offset: int, whence: int) -> int:
        """To a position that `read_entries` gave; 0 looks at the directory anew."""
        target = offset if whence == SEEK_SET else self.position + offset
        if whence not in (SEEK_SET, SEEK_CUR) or target < 0:
            raise Refused(errno.EINVAL, f"position {offset} (whence {whence}) of a directory")
        if target == 0:
            self._forget()
        self.position = target
        return target

    def sync(self) -> None:
        """See `OpenFile.sync`."""
        if self.host_fd >= 0:
            with host.refusals("fsync"):
                os.fsync(self.host_fd)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        listing = None if self.listing is None else [[i.name, i.number, i.kind] for i in self.listing]
        return {**super().capture(), "listing": listing}


class PathOnly(Located):
    """What O_PATH opens: a place to start walks from, to look at and to open anew; no data."""

    kind = "path"

    def __init__(self, namespace: Namespace, place: Place, fd: int, flags: int) -> None:
        super().__init__(namespace, place, fd, flags & (fl.O_PATH | fl.O_DIRECTORY | fl.O_NOFOLLOW))

    @property
    def readable(self) -> bool:
        """Nothing can be read through it."""
        return False

    @property
    def is_link(self) -> bool:
        """Whether it holds a symbolic link itself."""
        return modes.S_ISLNK(self._stat.mode)
