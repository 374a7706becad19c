"""Making, removing and renaming names, and changing attributes: what alters the tree.

Each function takes what a walk ended at and passes the host one name below a held directory, to a call that
follows no link there. Checks come in the order in which Linux makes them (`fs/namei.c`), so that of two
errors the guest sees the right one.
"""

from __future__ import annotations

import errno
import os
import stat as modes

from aether_emu.errors import Refused, shown
from aether_emu.linux.credentials import CHOWN, FOWNER
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import host, tmp_tree
from aether_emu.linux.files.memory_file import Memory, MemoryFile
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.place import NAME_MAX, Entry, GuestPath, Place, text
from aether_emu.linux.files.special import Special
from aether_emu.linux.files.synthetic import Opened
from aether_emu.linux.files.tmp_nodes import TmpDirectory, TmpNode

_PERMISSIONS = 0o7777
_SET_ID = modes.S_ISUID | modes.S_ISGID


def make_directory(namespace: Namespace, entry: Entry, mode: int, umask: int) -> None:
    """mkdir(2)."""
    _require_new(namespace, entry, directory=True)
    if tmp_tree.directory_of(entry.parent):
        tmp_tree.make_directory(namespace, entry, mode, umask)
        return
    with host.refusals(f"mkdir {shown(text(entry.path))}"), host.umask(umask):
        os.mkdir(entry.host_name, mode & 0o1777, dir_fd=entry.parent.fd)
    _made(namespace, entry)


def make_file(namespace: Namespace, entry: Entry, mode: int, umask: int) -> None:
    """mknod(2) of a regular file, a named pipe or a socket. Devices are root's, and none's here: EPERM."""
    kind = modes.S_IFMT(mode)
    if kind in (modes.S_IFIFO, modes.S_IFSOCK):
        make_special(namespace, entry, mode, umask)
        return
    if kind not in (0, modes.S_IFREG):
        _require_new(namespace, entry)
        raise Refused(errno.EPERM, "devices can't be made")
    _require_new(namespace, entry)
    if tmp_tree.directory_of(entry.parent):
        tmp_tree.make_file(namespace, entry, mode, umask)
        return
    with host.refusals(f"mknod {shown(text(entry.path))}"), host.umask(umask):
        os.mknod(entry.host_name, modes.S_IFREG | mode & 0o1777, dir_fd=entry.parent.fd)
    _made(namespace, entry)


def make_special(namespace: Namespace, entry: Entry, mode: int, umask: int) -> Special:
    """A named pipe, or the name of a socket. The host sees neither."""
    _require_new(namespace, entry)
    assert entry.name is not None, "an ordinary name"
    if tmp_tree.directory_of(entry.parent):
        return tmp_tree.make_special(namespace, entry, mode, umask)
    if not os.access(host.by_descriptor(entry.parent.fd), os.W_OK | os.X_OK, effective_ids=True):
        raise Refused(errno.EACCES, f"{shown(text(entry.parent.path))} doesn't allow it")
    made = namespace.specials.make(modes.S_IFMT(mode) | mode & 0o1777 & ~umask)
    namespace.specials.name(made, entry.parent.key, entry.name)
    namespace.inodes.modified(namespace.inode(entry.parent))
    return made


def make_link(namespace: Namespace, entry: Entry, target: bytes) -> None:
    """symlink(2). The target is only text: it is resolved in the guest's namespace when a walk meets it."""
    _require_new(namespace, entry)
    if tmp_tree.directory_of(entry.parent):
        tmp_tree.make_link(namespace, entry, target)
        return
    with host.refusals(f"symlink {shown(text(entry.path))}"):
        os.symlink(target, entry.host_name, dir_fd=entry.parent.fd)
    _made(namespace, entry)


def add_name(namespace: Namespace, source: Place, entry: Entry) -> None:
    """link(2): another name for the object at `source`, which must be in the same grant."""
    _require_new(namespace, entry)
    if tmp_tree.directory_of(entry.parent):
        tmp_tree.add_name(namespace, source, entry)
        return
    if source.mount is entry.parent.mount and isinstance(source.node, Special):
        assert entry.name is not None, "an ordinary name"
        namespace.specials.name(source.node, entry.parent.key, entry.name)
        namespace.inodes.changed(source.node.inode)
        namespace.inodes.modified(namespace.inode(entry.parent))
        return
    if source.mount is not entry.parent.mount or source.fd < 0:
        raise Refused(errno.EXDEV, f"{shown(text(source.path))} is in another grant")
    with host.refusals(f"link {shown(text(entry.path))}"):
        os.link(
            host.by_descriptor(source.fd), entry.host_name, dst_dir_fd=entry.parent.fd, follow_symlinks=True
        )
    namespace.inodes.changed(namespace.inode(source))
    namespace.inodes.modified(namespace.inode(entry.parent))


def remove_name(namespace: Namespace, entry: Entry) -> None:
    """unlink(2)."""
    if not entry.is_ordinary:
        raise Refused(errno.EISDIR, "a directory")
    if tmp_tree.directory_of(entry.parent):
        tmp_tree.remove_name(namespace, entry)
        return
    _require_writable(namespace, entry.parent)
    place = _existing(entry)
    _require_removal(namespace, entry)
    _require_unpinned(namespace, entry.path)
    if isinstance(place.node, Special):
        if entry.slash:
            raise Refused(errno.ENOTDIR, f"{shown(text(entry.path))} is no directory")
        _remove_special(namespace, entry)
        return
    with host.refusals(f"unlink {shown(text(entry.path))}"):
        os.unlink(entry.host_name, dir_fd=entry.parent.fd)
    _removed(namespace, entry.path, place)
    namespace.inodes.modified(namespace.inode(entry.parent))


def remove_directory(namespace: Namespace, entry: Entry) -> None:
    """rmdir(2)."""
    if not entry.is_ordinary:
        number = {None: errno.EBUSY, b".": errno.EINVAL, b"..": errno.ENOTEMPTY}[entry.name]
        raise Refused(number, f"{shown(entry.name or b'/')} can't be removed")
    if tmp_tree.directory_of(entry.parent):
        tmp_tree.remove_directory(namespace, entry)
        return
    _require_writable(namespace, entry.parent)
    place = _existing(entry)
    _require_removal(namespace, entry)
    _require_unpinned(namespace, entry.path)
    if isinstance(place.node, Special):
        raise Refused(errno.ENOTDIR, f"{shown(text(entry.path))} is no directory")
    if any(namespace.specials.inside(place.key)):
        raise Refused(errno.ENOTEMPTY, f"{shown(text(entry.path))} is not empty")
    with host.refusals(f"rmdir {shown(text(entry.path))}"):
        os.rmdir(entry.host_name, dir_fd=entry.parent.fd)
    _removed(namespace, entry.path, place)
    namespace.inodes.modified(namespace.inode(entry.parent))


def rename(namespace: Namespace, old: Entry, new: Entry, flags: int) -> None:
    """renameat2(2), without RENAME_WHITEOUT."""
    if old.parent.mount is not new.parent.mount:
        raise Refused(errno.EXDEV, "the names are in different grants")
    if not old.is_ordinary:
        raise Refused(errno.EBUSY, f"{shown(old.name or b'/')} can't be renamed")
    if not new.is_ordinary:
        raise Refused(
            errno.EEXIST if flags & fl.RENAME_NOREPLACE else errno.EBUSY, f"{shown(new.name or b'/')} stays"
        )
    if tmp_tree.directory_of(old.parent) and tmp_tree.directory_of(new.parent):
        tmp_tree.rename(namespace, old, new, flags)
        return
    _require_writable(namespace, old.parent)
    _require_writable(namespace, new.parent)
    source, target = _existing(old), new.place
    if flags & fl.RENAME_NOREPLACE and target is not None:
        raise Refused(errno.EEXIST, f"{shown(text(new.path))} exists")
    _require_removal(namespace, old)
    if target is not None:
        _require_removal(namespace, new)
    _require_unpinned(namespace, old.path)
    _require_unpinned(namespace, new.path)
    if isinstance(source.node, Special) or (target is not None and isinstance(target.node, Special)):
        _rename_special(namespace, old, new, flags)
        return
    if target is not None and target.is_directory and any(namespace.specials.inside(target.key)):
        raise Refused(errno.ENOTEMPTY, f"{shown(text(new.path))} is not empty")
    with host.refusals(f"rename {shown(text(old.path))} to {shown(text(new.path))}"):
        if flags:
            host.rename_exactly(old.parent.fd, old.host_name, new.parent.fd, new.host_name, flags)
        else:
            os.rename(old.host_name, new.host_name, src_dir_fd=old.parent.fd, dst_dir_fd=new.parent.fd)
    for parent in (old.parent, new.parent):
        namespace.inodes.modified(namespace.inode(parent))
    if target is not None and target.key == source.key:
        return
    namespace.inodes.changed(namespace.inode(source))
    exchange = bool(flags & fl.RENAME_EXCHANGE)
    if target is not None and not exchange:
        _removed(namespace, new.path, target)
    namespace.name_moved(old.path, new.path, exchange)


def _remove_special(namespace: Namespace, entry: Entry) -> None:
    assert entry.name is not None and entry.place is not None, "it exists"
    namespace.specials.remove(entry.parent.key, entry.name)
    namespace.name_removed(entry.path)
    namespace.inodes.modified(namespace.inode(entry.parent))


def _rename_special(namespace: Namespace, old: Entry, new: Entry, flags: int) -> None:
    """rename(2) where a named pipe or socket moves, or one is replaced."""
    source, target, specials = old.place, new.place, namespace.specials
    assert source is not None and old.name is not None and new.name is not None, "it exists"
    if flags & fl.RENAME_EXCHANGE:
        raise Refused(errno.EINVAL, "named pipes and sockets can't be exchanged")
    if source.is_directory or old.slash or new.slash:
        raise Refused(errno.ENOTDIR, f"{shown(text(new.path))} is no directory")
    if target is not None and target.is_directory:
        raise Refused(errno.EISDIR, f"{shown(text(new.path))} is a directory")
    if target is not None and target.node is source.node is not None:
        return
    if target is not None:
        remove_name(namespace, new)
    if isinstance(source.node, Special):
        specials.name(source.node, new.parent.key, new.name)
        specials.remove(old.parent.key, old.name)
        namespace.inodes.changed(source.node.inode)
    else:
        with host.refusals(f"rename {shown(text(old.path))}"):
            os.rename(old.host_name, new.host_name, src_dir_fd=old.parent.fd, dst_dir_fd=new.parent.fd)
        namespace.inodes.changed(namespace.inode(source))
    for parent in (old.parent, new.parent):
        namespace.inodes.modified(namespace.inode(parent))
    namespace.name_moved(old.path, new.path)


def set_mode(namespace: Namespace, place: Place, mode: int) -> None:
    """chmod(2), for files and directories of writable grants; no set-id bits on files (EPERM).

    On the host they would lend out the identity that we run under.
    """
    if place.is_link:
        raise Refused(errno.EOPNOTSUPP, "a symbolic link has no mode of its own")
    memory = _memory_at(place)
    if memory is not None:
        namespace.rights.require_owner(place)
        memory.set_mode(mode)
        return
    if isinstance(place.node, Special | TmpNode):
        namespace.rights.require_owner(place)
        mode = _without_group(namespace, place.node.gid, mode)
        place.node.mode = modes.S_IFMT(place.node.mode) | mode & _PERMISSIONS
        namespace.inodes.changed(place.node.inode)
        return
    _require_on_writable(place)
    namespace.rights.require_owner(place)
    if not (modes.S_ISREG(place.mode) or place.is_directory):
        raise Refused(errno.EPERM, f"{shown(text(place.path))} is a device, FIFO or socket of the host")
    if mode & _SET_ID and not place.is_directory:
        raise Refused(errno.EPERM, f"mode {mode:o} would lend out an identity")
    with host.refusals(f"chmod {shown(text(place.path))}"):
        os.chmod(host.by_descriptor(place.fd), mode & _PERMISSIONS)
    namespace.inodes.changed(namespace.inode(place))


def _without_group(namespace: Namespace, gid: int, mode: int) -> int:
    """A mode without S_ISGID where who sets it is not of that group."""
    return mode if namespace.actor.credentials.may_lend_group(gid) else mode & ~modes.S_ISGID


def set_owner(namespace: Namespace, place: Place, uid: int, gid: int) -> None:
    """chown(2). -1 leaves one as it is. What is the host's has the one owner that it is shown with: EPERM.

    Another owner is CAP_CHOWN's to set; an owner may give a file to a group that he is in.
    """
    memory = _memory_at(place)
    ours = isinstance(place.node, Special | TmpNode)
    if memory is None and not ours:
        _require_on_writable(place)
    unchanged, (owner, group) = (-1, 0xFFFF_FFFF), namespace.rights.owner(place)
    who = namespace.actor.credentials
    wanted = (owner if uid in unchanged else uid, group if gid in unchanged else gid)
    may_be_owner = uid in unchanged or (who.fsuid == owner == uid) or who.has(CHOWN)
    in_group = gid == group or who.in_group(gid)
    may_be_group = gid in unchanged or (who.fsuid == owner and in_group) or who.has(CHOWN)
    if not may_be_owner or not may_be_group or (not ours and wanted != (owner, group)):
        raise Refused(errno.EPERM, f"owner {uid}:{gid}")
    if isinstance(place.node, Special | TmpNode):
        node = place.node
        node.uid, node.gid = wanted
        if not place.is_directory:
            lends = node.mode & modes.S_IXGRP or not who.may_lend_group(node.gid)
            node.mode &= ~(modes.S_ISUID | (modes.S_ISGID if lends else 0))
    namespace.inodes.changed(namespace.inode(place) if memory is None else memory.inode)


def set_times(
    namespace: Namespace, place: Place, atime: int | None, mtime: int | None, *, touches: bool = False
) -> None:
    """utimensat(2), nanoseconds since 1970; None leaves one as it is. The host file gets them too.

    Who may write to the file `touches` it: both become now. Only its owner sets anything else (EPERM).
    """
    memory, ours = _memory_at(place), isinstance(place.node, Special | TmpNode)
    if memory is None and not ours:
        _require_on_writable(place)
    if not namespace.actor.credentials.owns(namespace.rights.owner(place)[0]):
        if not touches:
            raise Refused(errno.EPERM, f"{shown(text(place.path))} is another user's")
        namespace.rights.require(place, os.W_OK)
    if any(time is not None and not -(1 << 63) <= time // 10**9 < 1 << 63 for time in (atime, mtime)):
        raise Refused(errno.EINVAL, f"times {atime}, {mtime}")
    inode = namespace.inode(place) if memory is None else memory.inode
    if memory is None and not ours and not place.is_link:
        real = place.status
        assert real is not None, "a place that can be written is the host's"
        with host.refusals(f"utimensat {shown(text(place.path))}"):
            os.utime(
                host.by_descriptor(place.fd),
                ns=(
                    real.st_atime_ns if atime is None else atime,
                    real.st_mtime_ns if mtime is None else mtime,
                ),
            )
    inode.atime = inode.atime if atime is None else atime
    inode.mtime = inode.mtime if mtime is None else mtime
    namespace.inodes.changed(inode)


def _memory_at(place: Place) -> Memory | None:
    """The memory file that a descriptor's link leads to: it has attributes of its own, and no grant."""
    if isinstance(place.node, Opened) and isinstance(place.node.file, MemoryFile):
        return place.node.file.memory
    return None


def allows(namespace: Namespace, place: Place, mode: int) -> None:
    """access(2): raise EROFS or EACCES unless all of `mode` (R_OK, W_OK, X_OK) is possible."""
    if place.node is not None:
        if mode & os.W_OK and place.is_directory and not isinstance(place.node, TmpNode):
            raise Refused(errno.EACCES, f"{shown(text(place.path))} doesn't allow it")
        if not namespace.rights.permits(place, mode):
            raise Refused(errno.EACCES, f"{shown(text(place.path))} doesn't allow it")
        return
    if mode & os.W_OK and not place.mount.writable:
        raise Refused(errno.EROFS, f"{shown(text(place.path))} is in a read-only grant")
    if mode and not (modes.S_ISREG(place.mode) or place.is_directory or place.is_link):
        raise Refused(errno.EACCES, f"{shown(text(place.path))} is a device, FIFO or socket of the host")
    if not namespace.rights.permits(place, mode):
        raise Refused(errno.EACCES, f"{shown(text(place.path))} doesn't allow it")
    if not place.is_link and not os.access(host.by_descriptor(place.fd), mode, effective_ids=True):
        raise Refused(errno.EACCES, f"{shown(text(place.path))} doesn't allow it")


def _require_new(namespace: Namespace, entry: Entry, directory: bool = False) -> None:
    if not entry.is_ordinary or entry.place is not None:
        raise Refused(errno.EEXIST, "it exists")
    if entry.slash and not directory:
        raise Refused(errno.ENOENT, "only a directory can have this name")
    if len(entry.name or b"") > NAME_MAX:
        raise entry.absent()
    _require_writable(namespace, entry.parent)


def _require_writable(namespace: Namespace, directory: Place) -> None:
    """Refused(EROFS, EACCES) unless names may be made and removed in it."""
    if isinstance(directory.node, TmpDirectory):
        directory.node.require_change()
        return
    _require_on_writable(directory)
    namespace.rights.require(directory, os.W_OK | os.X_OK)


def _require_on_writable(place: Place) -> None:
    """Refused(EROFS) unless it lies in a grant that can be written."""
    if not place.mount.writable or place.fd < 0:
        raise Refused(errno.EROFS, f"{shown(text(place.path))} is read-only")


def _require_removal(namespace: Namespace, entry: Entry) -> None:
    """Refused(EPERM) for a swap file, and where a directory is sticky and neither it nor the file is the
    caller's.
    """
    place, who = entry.place, namespace.actor.credentials
    assert place is not None, "it exists"
    if place.key in namespace.swap_files:
        raise Refused(errno.EPERM, f"{shown(text(entry.path))} is a swap file")
    if not entry.parent.mode & modes.S_ISVTX or who.has(FOWNER):
        return
    if who.fsuid not in (namespace.rights.owner(place)[0], namespace.rights.owner(entry.parent)[0]):
        raise Refused(errno.EPERM, f"{shown(text(entry.path))} is another user's, in a sticky directory")


def _require_unpinned(namespace: Namespace, path: GuestPath) -> None:
    if namespace.mounts.pins(path):
        raise Refused(errno.EBUSY, f"{shown(text(path))} is or leads to a grant")


def _existing(entry: Entry) -> Place:
    if entry.place is None:
        raise entry.absent()
    return entry.place


def _made(namespace: Namespace, entry: Entry) -> None:
    assert entry.name is not None
    try:
        status = os.stat(entry.name, dir_fd=entry.parent.fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    namespace.inodes.created((status.st_dev, status.st_ino))
    namespace.inodes.modified(namespace.inode(entry.parent))


def _removed(namespace: Namespace, path: GuestPath, place: Place) -> None:
    namespace.name_removed(path)
    if namespace.cached is not None:
        namespace.cached.names_gone()
    if place.status is None:
        return
    if place.is_directory or os.fstat(place.fd).st_nlink == 0:
        namespace.inodes.forget((place.status.st_dev, place.status.st_ino))
    else:
        namespace.inodes.changed(namespace.inode(place))
