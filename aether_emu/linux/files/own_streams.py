"""The run's own streams as what they are on the host.

    regular file       `OwnFile`: the host's own open file description, with the offset that others share
    /dev/null, ...     `OwnDevice`: the guest's device with the same number
    directory          in a grant an ordinary one; elsewhere `OwnDirectory`, from which nothing is reached
    pipe, socket, ...  `streams.StreamFile`, with the host's type

A stream was given with the access that its descriptor has, and opening it anew never gives more.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat as modes

from aether_emu.errors import Refused
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import host, opening
from aether_emu.linux.files.host_file import StoredFile
from aether_emu.linux.files.mounts import EXT4_MAGIC, Mount
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.open_file import MOST_PER_CALL, OpenFile
from aether_emu.linux.files.place import Dentry, Place, text
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.files.streams import Console, DescriptorStream, Stream, StreamFile, standard_flags
from aether_emu.linux.files.synthetic import Device, DeviceFile

_DEVICES = {(1, 3): b"null", (1, 5): b"zero", (1, 7): b"full", (1, 8): b"random", (1, 9): b"urandom"}
"""Names in /dev of what the guest has too, by number."""
_PERMISSIONS = {modes.S_IFIFO: 0o600, modes.S_IFSOCK: 0o777}


def is_closed(stream: Stream) -> bool:
    """Whether the host has nothing there: then the guest has no such descriptor."""
    return isinstance(stream, DescriptorStream) and stream.flags() is None


def open_stream(
    namespace: Namespace,
    name: str,
    stream: Stream,
    console: Console | None,
    captured: tuple[int, Stat, bytes] | None = None,
) -> OpenFile:
    """Open a standard stream. `console` is the terminal that it is, if it is one.

    `captured` are flags, attributes and name that it had when the machine was captured: it goes on with
    these flags. The access to a file of the host is always that of the descriptor given now.
    """
    flags = standard_flags(name, stream)
    now = flags if captured is None else captured[0]
    if console is not None:
        stat = _terminal_stat(namespace, console) if captured is None else captured[1]
        return StreamFile(name, stream, now, stat, console, b"" if captured is None else captured[2])
    kind, status = modes.S_IFIFO, None
    if isinstance(stream, DescriptorStream) and not is_closed(stream):
        status = os.fstat(stream.fd)
        kind = modes.S_IFMT(status.st_mode)
        host_flags = now & ~(fl.O_ACCMODE | fl.O_APPEND) | flags | fl.O_LARGEFILE
        file = _of_the_host(namespace, name, stream.fd, status, host_flags)
        if file is not None:
            return file
    if captured is not None and modes.S_IFMT(captured[1].mode) == kind:
        return StreamFile(name, stream, now, captured[1])
    device = status.st_rdev if status is not None and modes.S_ISCHR(kind) else 0
    return StreamFile(
        name, stream, now, namespace.nameless_stat(kind | _PERMISSIONS.get(kind, 0o600), device)
    )


def _terminal_stat(namespace: Namespace, console: Console) -> Stat:
    with namespace.lookup(namespace.root(), console.name) as place:
        return namespace.stat(place)


def _of_the_host(
    namespace: Namespace, name: str, fd: int, status: os.stat_result, flags: int
) -> OpenFile | None:
    """What is behind a descriptor, if that is more than bytes that pass."""
    if modes.S_ISREG(status.st_mode):
        return OwnFile(namespace, name, os.dup(fd), flags)
    if modes.S_ISCHR(status.st_mode):
        return _device(namespace, name, status, flags)
    if modes.S_ISDIR(status.st_mode):
        place = _granted(namespace, fd, status)
        if place is None:
            return OwnDirectory(namespace, name, status, flags)
        with place:
            return opening.open_place(namespace, place, flags, judged=True)
    return None


# ---- names


def _granted(namespace: Namespace, fd: int, status: os.stat_result) -> Place | None:
    """Where the guest finds a file of the host. None if no grant shows it."""
    path = _host_path(fd)
    for mount in namespace.mounts.all():
        top = _host_path(mount.fd) if mount.fd >= 0 else None
        if top is None or path[: len(top)] != top:
            continue
        try:
            place = namespace.lookup(namespace.root(), text((*mount.path, *path[len(top) :])), follow=False)
        except Refused:
            continue
        if place.key == (status.st_dev, status.st_ino):
            return place
        place.close()
    return None


def _host_path(fd: int) -> tuple[bytes, ...]:
    return tuple(part for part in os.readlink(os.fsencode(host.by_descriptor(fd))).split(b"/") if part)


def _nowhere(namespace: Namespace) -> Mount:
    """What holds files that no grant shows. No path leads to it."""
    return Mount(len(namespace.mounts.all()), (), EXT4_MAGIC, writable=True)


def _name(namespace: Namespace, name: str, fd: int, status: os.stat_result) -> Dentry:
    """What the guest calls a file: by its path in a grant, else by the name of the stream."""
    place = _granted(namespace, fd, status)
    if place is None:
        return Dentry(_nowhere(namespace), (name.encode(),))
    with place:
        return namespace.remember(place)


# ---- kinds


class OwnFile(StoredFile):
    """A regular file that the run was given as a stream.

    Its position is the offset of the host's description, and reading and writing move it in one step: others
    may read or write by the same description at the same time, and go on where the guest stopped.
    """

    kind = StreamFile.kind

    def __init__(
        self, namespace: Namespace, name: str, host_fd: int, flags: int, *, reopened: bool = False
    ) -> None:
        status = os.fstat(host_fd)
        dentry = _name(namespace, name, host_fd, status)
        super().__init__(namespace, dentry, host_fd, flags, namespace.inodes.see(status))
        self.name, self._reopened = name, reopened

    def release(self) -> None:
        """See `OpenFile.release`."""
        self._share_appending()
        super().release()

    @property
    def position(self) -> int:
        """The offset of the host's description."""
        return os.lseek(self.host_fd, 0, os.SEEK_CUR)

    @position.setter
    def position(self, position: int) -> None:
        with host.refusals("lseek"):
            os.lseek(self.host_fd, position, os.SEEK_SET)

    def _share_appending(self) -> None:
        """The host's description appends if the guest's does: F_SETFL may have changed that."""
        flags = fcntl.fcntl(self.host_fd, fcntl.F_GETFL)
        if (flags ^ self.flags) & fl.O_APPEND:
            fcntl.fcntl(self.host_fd, fcntl.F_SETFL, flags ^ os.O_APPEND)

    def read(self, count: int) -> bytes:
        """See `OpenFile.read`."""
        with host.refusals("read"):
            return os.read(self.host_fd, min(count, MOST_PER_CALL))

    def write(self, data: bytes) -> int:
        """See `OpenFile.write`."""
        if not data:
            return 0
        self._share_appending()
        if self.namespace.sizes is not None:
            begin = self.size() if self.flags & fl.O_APPEND else self.position
            data = data[: self.namespace.sizes.admitted(begin, len(data))]
        with host.refusals("write"):
            done = os.write(self.host_fd, data)
        self.namespace.inodes.modified(self.inode)
        return done

    def pwrite(self, data: bytes, offset: int) -> int:
        """See `OpenFile.pwrite`."""
        self._share_appending()
        return super().pwrite(data, offset)

    def reopen(self, flags: int) -> OpenFile:
        """See `OpenFile.reopen`: from its beginning. More access than it has, only a grant can give."""
        opened = flags & fl.O_ACCMODE
        if (opened != fl.O_WRONLY and not self.readable) or (fl.wants_write(flags) and not self.writable):
            return self._open_granted(flags)
        with host.refusals(self.name):
            fd = os.open(host.by_descriptor(self.host_fd), fl.to_host(flags))
        if flags & fl.O_TRUNC:
            try:
                self.truncate(0)
            except BaseException:
                os.close(fd)
                raise
        return OwnFile(self.namespace, self.name, fd, flags, reopened=True)

    def _open_granted(self, flags: int) -> OpenFile:
        """Open it by its name in a grant. Refused(EACCES) if it has none."""
        place = _granted(self.namespace, self.host_fd, os.fstat(self.host_fd))
        if place is None:
            raise Refused(errno.EACCES, f"{self.name} was not given for that")
        with place:
            return opening.open_place(self.namespace, place, flags)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"name": self.name, "path": b"", "reopened": self._reopened}


def _device(namespace: Namespace, name: str, status: os.stat_result, flags: int) -> OpenFile | None:
    """The guest's device with the host's number; None if it has none."""
    number = os.major(status.st_rdev), os.minor(status.st_rdev)
    if number not in _DEVICES:
        return None
    path = b"/dev/" + _DEVICES[number]
    try:
        with namespace.lookup(namespace.root(), path) as place:
            if isinstance(place.node, Device) and place.node.number == number:
                stat, fs = namespace.stat(place), namespace.statfs(place.mount)
                return OwnDevice(name, path, place.node, flags, stat, fs)
    except Refused:  # another /dev is bound there
        pass
    return None


class OwnDevice(DeviceFile):
    """A device that the run was given as a stream."""

    kind = StreamFile.kind

    def __init__(self, name: str, path: bytes, device: Device, flags: int, stat: Stat, fs: StatFs) -> None:
        super().__init__(path, device, flags, stat, fs)
        self.name = name

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"name": self.name, "path": b""}


class OwnDirectory(OpenFile):
    """A directory that the run was given as a stream, which no grant shows: nor what is in it."""

    kind = StreamFile.kind
    seekable = True
    ignores_seeks = True

    def __init__(self, namespace: Namespace, name: str, status: os.stat_result, flags: int) -> None:
        mount = _nowhere(namespace)
        super().__init__(flags, namespace.host_stat(mount, status, namespace.inodes.see(status)))
        self.name, self._fs = name, namespace.statfs(mount)

    def read(self, count: int) -> bytes:
        """See `OpenFile.read`."""
        raise Refused(errno.EISDIR, "a directory")

    def pread(self, count: int, offset: int) -> bytes:
        """See `OpenFile.pread`."""
        raise Refused(errno.EISDIR, "a directory")

    def read_entries(self, size: int) -> bytes:
        """See `OpenFile.read_entries`."""
        raise Refused(errno.EACCES, "no grant shows it")

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return self._fs

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return b"/" + self.name.encode()

    def reopen(self, flags: int) -> OpenFile:
        """See `OpenFile.reopen`."""
        raise Refused(errno.EACCES, "no grant shows it")

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        return {"name": self.name, "path": b""}
