"""Making, removing and renaming names in a tmpfs, with the checks of Linux in its order (`fs/namei.c`).

`tree` comes here once it knows that the directory is a tmpfs's, and that both names are ordinary ones.
"""

from __future__ import annotations

import errno
import os
import stat as modes

from aether_emu.errors import Refused, shown
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.hugetlbfs import HugeNode, HugeOpen, Hugetlbfs, open_huge
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.place import NAME_MAX, Entry, GuestPath, Place, text
from aether_emu.linux.files.special import Special
from aether_emu.linux.files.tmp_nodes import TmpDirectory, Tmpfs, TmpLink, TmpNode
from aether_emu.linux.files.tmpfs import TmpFile, TmpOpen, open_file

_PERMISSIONS = 0o7777


def directory_of(place: Place) -> TmpDirectory | None:
    """The tmpfs directory that a place is."""
    return place.node if isinstance(place.node, TmpDirectory) else None


# ---- making


def make_directory(namespace: Namespace, entry: Entry, mode: int, umask: int) -> None:
    """mkdir(2) of a name that is free. A set-group-id directory hands that bit on."""
    parent = _parent(entry)
    permissions = mode & 0o1777 & ~umask | parent.mode & modes.S_ISGID
    made = TmpDirectory(parent.fs, permissions, parent)
    parent.inherit(made)
    _give_name(namespace, entry, made)


_Opened = TmpOpen | HugeOpen


def _new_file(fs: Tmpfs, namespace: Namespace, permissions: int) -> TmpFile | HugeNode:
    """A regular file without a name, of the kind that the file system has."""
    return HugeNode(fs, permissions) if isinstance(fs, Hugetlbfs) else TmpFile(fs, namespace, permissions)


def _opened(namespace: Namespace, place: Place, node: TmpFile | HugeNode, flags: int) -> _Opened:
    if isinstance(node, HugeNode):
        return open_huge(namespace, place, node, flags)
    return open_file(namespace, place, node, flags)


def make_file(namespace: Namespace, entry: Entry, mode: int, umask: int) -> TmpFile | HugeNode:
    """mknod(2) of a regular file, or the file of open(2), by a name that is free."""
    parent = _parent(entry)
    made = _new_file(parent.fs, namespace, mode & _PERMISSIONS & ~umask)
    parent.inherit(made)
    if made.mode & modes.S_ISGID and not parent.fs.actor.credentials.may_lend_group(made.gid):
        made.mode &= ~modes.S_ISGID
    _give_name(namespace, entry, made)
    return made


def make_special(namespace: Namespace, entry: Entry, mode: int, umask: int) -> Special:
    """mknod(2) of a named pipe, or bind(2) of a socket."""
    _parent(entry).fs.take_inode()
    made = namespace.specials.make(modes.S_IFMT(mode) | mode & 0o1777 & ~umask)
    _parent(entry).inherit(made)
    _give_name(namespace, entry, made)
    return made


def make_link(namespace: Namespace, entry: Entry, target: bytes) -> None:
    """symlink(2). Linux stores the target by a write, which a hugetlbfs refuses."""
    if isinstance(_parent(entry).fs, Hugetlbfs):
        raise Refused(errno.EINVAL, "a file system of huge pages has no symbolic links")
    made = TmpLink(_parent(entry).fs, target)
    _parent(entry).inherit(made)
    _give_name(namespace, entry, made)


def create(namespace: Namespace, entry: Entry, flags: int, mode: int, umask: int) -> _Opened:
    """open(2) with O_CREAT of what is not there: the mode does not limit this descriptor."""
    if len(entry.name or b"") > NAME_MAX:
        raise entry.absent()
    _parent(entry).require_change()
    node = make_file(namespace, entry, mode, umask)
    place = Place(entry.parent.mount, entry.path, node=node, inode=node.inode)
    return _opened(namespace, place, node, flags & ~fl.O_TRUNC)


def open_nameless(namespace: Namespace, place: Place, flags: int, mode: int, umask: int) -> _Opened:
    """open(2) with O_TMPFILE in the directory `place`: /proc/self/fd/N may get a name, but for O_EXCL."""
    assert isinstance(place.node, TmpDirectory), "others have no files without names"
    place.node.require_change()
    node = _new_file(place.node.fs, namespace, mode & _PERMISSIONS & ~umask)
    node.linkable = not flags & fl.O_EXCL
    where = (*place.path, b"#%d" % node.inode.number)
    return _opened(namespace, Place(place.mount, where, node=node, inode=node.inode), node, flags)


def add_name(namespace: Namespace, source: Place, entry: Entry) -> None:
    """link(2) to a name that is free."""
    node = source.node
    if source.mount is not entry.parent.mount or not isinstance(node, TmpNode | Special):
        raise Refused(errno.EXDEV, f"{shown(text(source.path))} is in another file system")
    if isinstance(node, TmpDirectory):
        raise Refused(errno.EPERM, f"{shown(text(source.path))} is a directory")
    if not node.links and not (isinstance(node, TmpFile | HugeNode) and node.linkable):
        raise Refused(errno.ENOENT, f"{shown(text(source.path))} has no name any more")
    namespace.inodes.changed(node.inode)
    _give_name(namespace, entry, node)


def _parent(entry: Entry) -> TmpDirectory:
    assert isinstance(entry.parent.node, TmpDirectory), "the caller has looked"
    return entry.parent.node


def _give_name(namespace: Namespace, entry: Entry, node: TmpNode | Special) -> None:
    assert entry.name is not None, "an ordinary name"
    parent = _parent(entry)
    parent.put(entry.name, node)
    if isinstance(node, TmpNode):
        if not isinstance(node, TmpDirectory):
            node.add_name()
    else:
        node.links += 1
    namespace.inodes.modified(parent.inode)


# ---- removing


def remove_name(namespace: Namespace, entry: Entry) -> None:
    """unlink(2)."""
    place = _existing(entry)
    if entry.slash:
        raise Refused(errno.EISDIR if place.is_directory else errno.ENOTDIR, f"{shown(text(entry.path))}")
    _require_removal(entry)
    if place.is_directory:
        raise Refused(errno.EISDIR, f"{shown(text(entry.path))} is a directory")
    _require_unpinned(namespace, entry.path)
    _take_name(namespace, entry)


def remove_directory(namespace: Namespace, entry: Entry) -> None:
    """rmdir(2)."""
    place = _existing(entry)
    _require_removal(entry)
    if not place.is_directory:
        raise Refused(errno.ENOTDIR, f"{shown(text(entry.path))} is no directory")
    _require_unpinned(namespace, entry.path)
    _require_empty(place)
    _take_name(namespace, entry)


def _take_name(namespace: Namespace, entry: Entry) -> None:
    assert entry.name is not None, "an ordinary name"
    parent = _parent(entry)
    node = parent.take(entry.name)
    if isinstance(node, TmpNode):
        node.drop_name()
    else:
        node.links -= 1
        if not node.links:
            parent.fs.give_back_inode()
            namespace.inodes.forget(node.key)
    namespace.inodes.changed(node.inode)
    namespace.inodes.modified(parent.inode)
    namespace.name_removed(entry.path)


# ---- renaming


def rename(namespace: Namespace, old: Entry, new: Entry, flags: int) -> None:
    """renameat2(2), both names in this mount."""
    source, target = _existing(old), new.place
    if flags & fl.RENAME_NOREPLACE and target is not None:
        raise Refused(errno.EEXIST, f"{shown(text(new.path))} exists")
    exchange = bool(flags & fl.RENAME_EXCHANGE)
    if exchange and target is None:
        raise new.absent()
    if target is None and len(new.name or b"") > NAME_MAX:
        raise new.absent()
    if exchange and target is not None and new.slash and not target.is_directory:
        raise Refused(errno.ENOTDIR, f"{shown(text(new.path))} is no directory")
    if not source.is_directory and (old.slash or (new.slash and not exchange)):
        raise Refused(errno.ENOTDIR, f"{shown(text(old.path))} is no directory")
    _require_no_loop(old, new, exchange)
    if target is not None and target.node is source.node:
        return
    _may_replace(old, new, source, target, exchange)
    _require_unpinned(namespace, old.path)
    _require_unpinned(namespace, new.path)
    if target is not None and not exchange and target.is_directory:
        _require_empty(target)
    _move(namespace, old, new, exchange)


def _require_no_loop(old: Entry, new: Entry, exchange: bool) -> None:
    """EINVAL for a directory into itself, ENOTEMPTY for one in the place of what it is in."""
    moved, replaced = old.place, new.place
    assert moved is not None, "the caller has looked"
    if isinstance(moved.node, TmpDirectory) and _parent(new).is_below(moved.node):
        raise Refused(errno.EINVAL, f"{shown(text(new.path))} is inside {shown(text(old.path))}")
    if replaced and isinstance(replaced.node, TmpDirectory) and _parent(old).is_below(replaced.node):
        raise Refused(errno.EINVAL if exchange else errno.ENOTEMPTY, f"{shown(text(old.path))} is inside")


def _may_replace(old: Entry, new: Entry, source: Place, target: Place | None, exchange: bool) -> None:
    _require_removal(old)
    _require_removal(new)
    if target is not None and not exchange:
        if source.is_directory and not target.is_directory:
            raise Refused(errno.ENOTDIR, f"{shown(text(new.path))} is no directory")
        if target.is_directory and not source.is_directory:
            raise Refused(errno.EISDIR, f"{shown(text(new.path))} is a directory")
    if old.parent.node is not new.parent.node:  # a directory that moves is written: its `..`
        for place in (source, target if exchange else None):
            if place is not None and isinstance(place.node, TmpDirectory):
                place.node.require(os.W_OK)


def _move(namespace: Namespace, old: Entry, new: Entry, exchange: bool) -> None:
    assert old.name is not None and new.name is not None, "ordinary names"
    before, after = _parent(old), _parent(new)
    if new.place is not None and not exchange:
        _take_name(namespace, new)
    moved = before.take(old.name)
    if exchange:
        other = after.take(new.name)
        before.put(old.name, other)
        namespace.inodes.changed(other.inode)
    after.put(new.name, moved)
    namespace.inodes.changed(moved.inode)
    for parent in (before, after):
        namespace.inodes.modified(parent.inode)
    namespace.name_moved(old.path, new.path, exchange)


def _require_removal(entry: Entry) -> None:
    """Refused unless the name may be removed, or made where there is none. What is mounted there stays."""
    parent = _parent(entry)
    node = parent.entries.get(entry.name or b"")
    if node is None:
        parent.require_change()
    else:
        parent.require_removal(node)


def _existing(entry: Entry) -> Place:
    if entry.place is None:
        raise entry.absent()
    return entry.place


def _require_unpinned(namespace: Namespace, path: GuestPath) -> None:
    if namespace.mounts.pins(path):
        raise Refused(errno.EBUSY, f"{shown(text(path))} is or leads to a grant")


def _require_empty(place: Place) -> None:
    if isinstance(place.node, TmpDirectory) and place.node.entries:
        raise Refused(errno.ENOTEMPTY, f"{shown(text(place.path))} is not empty")
