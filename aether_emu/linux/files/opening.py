"""From a place and flags to an open file: the rules of open(2)."""

from __future__ import annotations

import errno
import os
import stat as modes

from aether_emu.errors import Refused, shown
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import host, tmp_tree
from aether_emu.linux.files.directory import OpenDirectory, PathOnly
from aether_emu.linux.files.fifo import FifoEnd
from aether_emu.linux.files.host_file import HostFile
from aether_emu.linux.files.hugetlbfs import HugeNode, HugeOpen, open_huge
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.pipe import Pipe
from aether_emu.linux.files.place import Entry, Place, text
from aether_emu.linux.files.region import Region, RegionFile
from aether_emu.linux.files.special import Special
from aether_emu.linux.files.synthetic import (
    Control,
    ControlFile,
    Device,
    DeviceFile,
    Directory,
    Opened,
    Text,
    TextFile,
)
from aether_emu.linux.files.tmp_nodes import TmpDirectory
from aether_emu.linux.files.tmpfs import TmpFile, TmpOpen, open_file

_CREATABLE_MODE = 0o1777
"""Never set-user-id or set-group-id: on the host they would lend out the identity that we run under."""


def check_flags(flags: int) -> int:
    """Open flags as Linux understands them (`build_open_flags`), or the errno it gives."""
    if flags & fl.O_PATH:
        return flags & (fl.O_PATH | fl.O_DIRECTORY | fl.O_NOFOLLOW | fl.O_CLOEXEC)
    if flags & fl.O_TMPFILE_BIT and (not flags & fl.O_DIRECTORY or flags & fl.O_ACCMODE == fl.O_RDONLY):
        raise Refused(errno.EINVAL, "O_TMPFILE needs O_DIRECTORY and writing")
    if flags & fl.O_CREAT and flags & fl.O_DIRECTORY:
        raise Refused(errno.EINVAL, "O_CREAT with O_DIRECTORY")
    if flags & fl.O_ACCMODE == fl.O_ACCMODE:
        raise Refused(errno.EINVAL, "access mode 3")
    return flags | fl.O_LARGEFILE


def open_entry(namespace: Namespace, entry: Entry, flags: int, mode: int, umask: int) -> OpenFile | None:
    """Open what a walk ended at, or create it. None: another file took the name meanwhile, walk again."""
    place = entry.place
    if flags & fl.O_CREAT:
        if entry.slash:
            raise Refused(errno.EISDIR, "only a directory can have this name")
        if place is not None and flags & fl.O_EXCL:
            raise Refused(errno.EEXIST, "it exists and O_EXCL is set")
        if place is None:
            return _create(namespace, entry, flags, mode, umask)
    if place is None:
        raise entry.absent()
    if entry.slash and not place.is_directory:
        raise Refused(errno.ENOTDIR, "it is no directory")
    if flags & fl.O_TMPFILE_BIT:
        return _open_nameless(namespace, place, flags, mode, umask)
    return open_place(namespace, place, flags)


def _open_nameless(
    namespace: Namespace, place: Place, flags: int, mode: int, umask: int
) -> TmpOpen | HugeOpen:
    """A file without a name (O_TMPFILE), which tmpfs alone has here."""
    if not place.is_directory:
        raise Refused(errno.ENOTDIR, f"{shown(text(place.path))} is no directory")
    if not place.mount.writable:
        raise Refused(errno.EROFS, f"{shown(text(place.path))} is read-only")
    if not isinstance(place.node, TmpDirectory):
        raise Refused(errno.EOPNOTSUPP, f"{shown(text(place.path))} is in no tmpfs")
    return tmp_tree.open_nameless(namespace, place, flags, mode, umask)


def _create(
    namespace: Namespace, entry: Entry, flags: int, mode: int, umask: int
) -> HostFile | TmpOpen | HugeOpen | None:
    parent, name = entry.parent, entry.host_name
    if tmp_tree.directory_of(parent):
        return tmp_tree.create(namespace, entry, flags, mode, umask)
    if not parent.mount.writable or parent.fd < 0:
        raise Refused(errno.EROFS, f"{shown(text(parent.path))} is read-only")
    namespace.rights.require(parent, os.W_OK | os.X_OK)
    how = fl.to_host(flags) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with host.umask(umask):
            fd = os.open(name, how, mode & _CREATABLE_MODE, dir_fd=parent.fd)
    except FileExistsError:
        return None
    except OSError as error:
        raise host.refused(error, f"{shown(text(entry.path))}") from None
    status = os.fstat(fd)
    namespace.inodes.created((status.st_dev, status.st_ino))
    namespace.inodes.modified(namespace.inode(parent))
    return HostFile(namespace, Place(parent.mount, entry.path, fd=fd, status=status), fd, flags)


def open_place(namespace: Namespace, place: Place, flags: int, *, judged: bool = False) -> OpenFile:
    """Open what is at `place`; the descriptor made for it is new, the place stays the caller's.

    `judged` if somebody has looked whether it may be opened.
    """
    if flags & fl.O_DIRECTORY and not place.is_directory:
        raise Refused(errno.ENOTDIR, f"{shown(text(place.path))} is no directory")
    if flags & fl.O_PATH:
        if isinstance(place.node, Opened):
            raise Refused(errno.EACCES, "a file without a name can't be opened by O_PATH")
        return PathOnly(namespace, place, os.dup(place.fd) if place.fd >= 0 else -1, flags)
    if place.is_link:
        raise Refused(errno.ELOOP, f"{shown(text(place.path))} is a symbolic link")
    if place.is_directory and not isinstance(place.node, Opened):
        return _open_directory(namespace, place, flags)
    if not judged:
        namespace.rights.require(place, _rights(flags) | (os.W_OK if flags & fl.O_TRUNC else 0))
        if flags & fl.O_NOATIME:
            namespace.rights.require_owner(place)
    if place.node is not None:
        return _open_node(namespace, place, flags)
    return _open_host_file(namespace, place, flags)


def _open_directory(namespace: Namespace, place: Place, flags: int) -> OpenDirectory:
    if fl.wants_write(flags) or flags & fl.O_CREAT:
        raise Refused(errno.EISDIR, f"{shown(text(place.path))} is a directory")
    namespace.rights.require(place, os.R_OK)
    fd = -1
    if place.fd >= 0:
        with host.refusals(f"{shown(text(place.path))}"):
            fd = os.open(host.by_descriptor(place.fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return OpenDirectory(namespace, place, fd, flags)


def _open_node(namespace: Namespace, place: Place, flags: int) -> OpenFile:
    node, path = place.node, text(place.path)
    if isinstance(node, Opened):
        return node.file.reopen(flags)
    if isinstance(node, Special):
        return _open_special(namespace, place, node, flags)
    if isinstance(node, HugeNode):
        return open_huge(namespace, place, node, flags)
    if isinstance(node, TmpFile):
        return open_file(namespace, place, node, flags)
    stat, fs = namespace.stat(place), namespace.statfs(place.mount)
    if isinstance(node, Device):
        if node.opens is not None:
            return node.opens(path, flags, stat, fs)
        return DeviceFile(path, node, flags, stat, fs)
    if isinstance(node, Control):
        return ControlFile(path, node, fl.O_WRONLY, stat, fs).reopen(flags)
    if isinstance(node, Region):
        return RegionFile(path, node, flags, stat, fs)
    assert isinstance(node, Text) and not isinstance(node, Directory)
    if fl.wants_write(flags) and node.accept is None:
        raise Refused(errno.EACCES, f"{shown(path)} is read-only")
    return TextFile(path, node, flags, stat, fs, namespace)


def _rights(flags: int) -> int:
    """What a file must permit to be opened so."""
    return {fl.O_RDONLY: os.R_OK, fl.O_WRONLY: os.W_OK}.get(flags & fl.O_ACCMODE, os.R_OK | os.W_OK)


def _open_special(namespace: Namespace, place: Place, node: Special, flags: int) -> OpenFile:
    """An end of a named pipe. Nobody opens a socket by its name (ENXIO)."""
    if not node.is_fifo:
        raise Refused(errno.ENXIO, f"{shown(text(place.path))} is a socket")
    pipe = node.pipe if node.pipe is not None and (node.pipe.readers or node.pipe.writers) else None
    if flags & fl.O_NONBLOCK and flags & fl.O_ACCMODE == fl.O_WRONLY and not (pipe and pipe.readers):
        raise Refused(errno.ENXIO, f"nobody reads from {shown(text(place.path))}")
    node.pipe = pipe or Pipe(namespace.stat(place), namespace.pipes)
    return FifoEnd(namespace, place, node, flags)


def _open_host_file(namespace: Namespace, place: Place, flags: int) -> HostFile:
    if not modes.S_ISREG(place.mode):
        raise Refused(errno.EACCES, f"{shown(text(place.path))} is a device, FIFO or socket of the host")
    if fl.wants_write(flags) and not place.mount.writable:
        raise Refused(errno.EROFS, f"{shown(text(place.path))} is in a read-only grant")
    if fl.wants_write(flags):
        namespace.require_idle(place.key)
    with host.refusals(f"{shown(text(place.path))}"):
        fd = os.open(host.by_descriptor(place.fd), fl.to_host(flags))
    file = HostFile(namespace, place, fd, flags)
    if flags & fl.O_TRUNC:
        try:
            truncate_host(namespace, place, fd)
        except BaseException:
            file.release()
            raise
    return file


def truncate_host(namespace: Namespace, place: Place, fd: int) -> None:
    """Empty the file at `place` for O_TRUNC, which needs no descriptor open for writing.

    Raises Refused(ETXTBSY) for a swap file.
    """
    status = os.fstat(fd)
    key = status.st_dev, status.st_ino
    namespace.require_no_swap(key)
    namespace.on_truncate(key, status.st_size, 0)
    with host.refusals(f"{shown(text(place.path))}"):
        os.truncate(host.by_descriptor(fd), 0)
    namespace.inodes.modified(namespace.inode(place))
