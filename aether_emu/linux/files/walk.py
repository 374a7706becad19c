"""The path walk: the guest's names to the objects behind them, one component at a time.

Each step opens one name below a directory that is already held, with O_PATH and O_NOFOLLOW. Links are read
and resolved here, in the guest's namespace, and `..` goes back along the guest's own path: the host never
follows a link, never resolves `..` and never sees more than one component. So whatever the tree holds, and
whatever it is turned into meanwhile, a walk stays below the roots of the mounts that it crosses.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Protocol

from aether_emu.errors import Refused, shown
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.host import is_kernel_interface, refusals, refused
from aether_emu.linux.files.mounts import Mount, MountTable
from aether_emu.linux.files.place import Entry, GuestPath, Place, place_of, text
from aether_emu.linux.files.proc import Viewer
from aether_emu.linux.files.rights import Rights
from aether_emu.linux.files.special import Specials
from aether_emu.linux.files.synthetic import Directory, Link, Opened
from aether_emu.linux.files.tmp_nodes import TmpDirectory, TmpLink

PATH_MAX = 4096
"""Longest path in bytes, the final NUL included."""
MOST_LINKS = 40
"""Links followed in one walk (Linux MAXSYMLINKS)."""
DEEPEST = 4096
"""Most components of a canonical path. Linux has no such limit; here it bounds the work of `..`."""
_TRAIL = 32
"""Directories kept open behind a walk, so that most `..` are free. The others begin at the root again."""

NO_CHILDREN = Directory(dict)


class Ground(Protocol):
    """What a walk needs of the namespace."""

    @property
    def mounts(self) -> MountTable:
        """What is mounted where."""

    @property
    def specials(self) -> Specials:
        """Named pipes and sockets."""

    def root_of(self, mount: Mount, viewer: Viewer | None) -> Place:
        """The place where `mount` begins."""

    def root(self, viewer: Viewer | None) -> Place:
        """The / of `viewer`."""

    def top(self, viewer: Viewer | None) -> Place:
        """The guest's /."""

    @property
    def rights(self) -> Rights:
        """What who walks may do."""


def checked(path: bytes) -> bytes:
    """A path that the kernel's `getname` would accept."""
    if b"\0" in path:
        raise Refused(errno.EINVAL, "a path can't contain NUL")
    if len(path) >= PATH_MAX:
        raise Refused(errno.ENAMETOOLONG, f"a path of {len(path)} bytes")
    if not path:
        raise Refused(errno.ENOENT, "the path is empty")
    return path


class FileSystemGate:
    """Remembers which host file systems may be entered, so that each is asked once."""

    def __init__(self) -> None:
        self._verdicts: dict[int, bool] = {}

    def closed(self, fd: int, device: int) -> bool:
        """Whether the host file system `device`, on which `fd` lies, is none that a grant can include."""
        verdict = self._verdicts.get(device)
        if verdict is None:
            verdict = self._verdicts[device] = is_kernel_interface(fd)
        return verdict


class Walk:
    """One resolution under way. `here` is always inside the namespace; only it and the trail are open."""

    def __init__(
        self, ground: Ground, gate: FileSystemGate, start: Place, viewer: Viewer | None, resolve: int
    ) -> None:
        self._ground, self._gate, self._viewer, self._resolve = ground, gate, viewer, resolve
        confined = resolve & (fl.RESOLVE_BENEATH | fl.RESOLVE_IN_ROOT)
        self._base = start if confined else None
        root = None if viewer is None or viewer.root is None else place_of(viewer.root)
        self._root_path: GuestPath = () if root is None else root.path
        self._here = start.borrowed()
        self._trail: list[Place] = []
        self._pending: list[bytes] = []
        self._slash = False
        self._links = 0

    def entry(self, path: bytes, follow: bool, creating: bool) -> Entry:
        """Resolve all but the last component, and say what the last one names, following it if asked to."""
        try:
            self._extend(path)
            while True:
                entry = self._advance(follow and not (creating and self._slash))
                if entry is not None:
                    self._here = entry.parent.borrowed()
                    return entry
        finally:
            self._here.close()
            self._forget_trail()

    def _advance(self, follow: bool) -> Entry | None:
        """Take one component. Returns the entry when it was the last."""
        here = self._here
        if not self._pending:
            return Entry(here, None, here.borrowed(), self._slash)
        if not here.is_directory:
            raise Refused(errno.ENOTDIR, f"{shown(text(here.path))} is no directory")
        name = self._pending.pop()
        if name in (b".", b".."):
            self._require_search(here)
            if name == b"..":
                self._go_up()
            here = self._here
            return None if self._pending else Entry(here, name, here.borrowed(), self._slash)
        last = not self._pending
        found = self._step(here, name)
        if found is None:
            entry = Entry(here, name, None, self._slash)
            if not last:
                raise entry.absent()
            return entry
        try:
            if self._resolve & fl.RESOLVE_NO_XDEV and found.mount is not here.mount:
                raise Refused(errno.EXDEV, f"{shown(text(found.path))} is another mount")
            if found.is_link and (follow or not last):
                self._follow(found, last)
                found.close()
                return None
        except BaseException:
            found.close()
            raise
        if last:
            return Entry(here, name, found, self._slash)
        self._enter(found)
        return None

    def _extend(self, path: bytes) -> None:
        """Put a path's or link's components before what is pending; go to the root if it is absolute."""
        if not self._pending:
            self._slash = self._slash or path.endswith(b"/")
        self._pending += reversed([name for name in path.split(b"/") if name])
        if path.startswith(b"/"):
            if self._resolve & fl.RESOLVE_BENEATH:
                raise Refused(errno.EXDEV, f"{shown(path)} is absolute")
            self._jump(self._base.borrowed() if self._base else self._ground.root(self._viewer).borrowed())

    def _follow(self, link: Place, last: bool) -> None:
        if self._resolve & fl.RESOLVE_NO_SYMLINKS:
            raise Refused(errno.ELOOP, f"{shown(text(link.path))} is a symbolic link")
        self._links += 1
        if self._links > MOST_LINKS:
            raise Refused(errno.ELOOP, f"more than {MOST_LINKS} symbolic links")
        if isinstance(link.node, Link):
            self._ground.rights.require_inspection(link)
        if isinstance(link.node, Link) and link.node.file is not None:
            if self._resolve & (fl.RESOLVE_NO_MAGICLINKS | fl.RESOLVE_BENEATH | fl.RESOLVE_IN_ROOT):
                raise Refused(errno.ELOOP, f"{shown(text(link.path))} is a magic link")
            place = place_of(link.node.file)
            self._jump(place or Place(link.mount, link.path, node=Opened(link.node.file)))
            return
        target = read_link(link)
        if not target:
            raise Refused(errno.ENOENT, f"{shown(text(link.path))} leads nowhere")
        self._extend(target)

    def _step(self, here: Place, name: bytes) -> Place | None:
        """What `name` is in the directory `here`: a mount, a node or a host object; None if nothing."""
        if len(here.path) >= DEEPEST:
            raise Refused(errno.ENAMETOOLONG, f"{len(here.path)} directories deep")
        path = (*here.path, name)
        mount = self._ground.mounts.at(path)
        if mount is not None:
            return self._ground.root_of(mount, self._viewer)
        special = self._ground.specials.find(here.key, name) if self._ground.specials else None
        if special is not None:
            return Place(here.mount, path, node=special, inode=special.inode)
        found = (
            self._host_child(here, name, path) if here.node is None else self._node_child(here, name, path)
        )
        if self._ground.mounts.leads_to_mount(path) and (found is None or not found.is_directory):
            if found is not None:
                found.close()
            return Place(here.mount, path, node=NO_CHILDREN)
        return found

    def _node_child(self, here: Place, name: bytes, path: GuestPath) -> Place | None:
        if isinstance(here.node, TmpDirectory):
            if here.node.mode & 0o111 != 0o111:
                here.node.require_search()
            entry = here.node.entries.get(name)
            return None if entry is None else Place(here.mount, path, node=entry, inode=entry.inode)
        if not isinstance(here.node, Directory):
            raise Refused(errno.EACCES, "a directory that was given as a stream leads nowhere")
        self._require_search(here)
        node = here.node.children().get(name)
        return None if node is None else Place(here.mount, path, node=node)

    def _host_child(self, here: Place, name: bytes, path: GuestPath) -> Place | None:
        if here.mode & 0o111 != 0o111:
            self._ground.rights.require(here, os.X_OK)
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None  # `Entry.absent` says so, at the time when Linux does
            raise refused(error, shown(text(path))) from None
        status = os.fstat(fd)
        if not self._gate.closed(fd, status.st_dev):
            return Place(here.mount, path, fd=fd, status=status, owned=True)
        os.close(fd)
        if not stat.S_ISDIR(status.st_mode):
            raise Refused(errno.EACCES, f"{shown(text(path))} is an interface to the host's kernel")
        return Place(here.mount, path, node=NO_CHILDREN)

    def _require_search(self, here: Place) -> None:
        """EACCES unless names may be looked up in `here`: `.` and `..` count as such."""
        if here.mode & 0o111 != 0o111:
            self._ground.rights.require(here, os.X_OK)
            if here.status is None:
                return
            with refusals(f"directory {shown(text(here.path))}"):
                os.close(os.open(b".", os.O_PATH | os.O_CLOEXEC, dir_fd=here.fd))

    def _enter(self, place: Place) -> None:
        self._trail.append(self._here)
        self._here = place
        if len(self._trail) > _TRAIL:
            self._trail.pop(0).close()

    def _jump(self, place: Place) -> None:
        self._forget_trail()
        self._here.close()
        self._here = place

    def _forget_trail(self) -> None:
        while self._trail:
            self._trail.pop().close()

    def _go_up(self) -> None:
        """`..` along the guest's path: to the directory come from, else down to it from the root."""
        here = self._here
        if len(here.path) == (len(self._base.path) if self._base else 0) or here.path == self._root_path:
            if self._resolve & fl.RESOLVE_BENEATH:
                raise Refused(errno.EXDEV, "the path leaves the directory it must stay beneath")
            return
        if self._trail:
            here.close()
            self._here = self._trail.pop()
        else:
            self._descend(here.path[:-1])
        if self._resolve & fl.RESOLVE_NO_XDEV and self._here.mount is not here.mount:
            raise Refused(errno.EXDEV, f"{shown(text(self._here.path))} is another mount")

    def _descend(self, path: GuestPath) -> None:
        """Walk down a canonical path from the top. A link on it means that the tree has changed: ENOENT."""
        self._jump(self._ground.top(self._viewer))
        for name in path:
            found = self._step(self._here, name)
            if found is None or not found.is_directory:
                if found is not None:
                    found.close()
                raise Refused(errno.ENOENT, f"{shown(text(path))} is no longer there")
            self._enter(found)


def read_link(place: Place) -> bytes:
    """The target of a symbolic link."""
    if isinstance(place.node, Link):
        return place.node.target()
    if isinstance(place.node, TmpLink):
        return place.node.target
    with refusals(f"link {shown(text(place.path))}"):
        return os.readlink(b"", dir_fd=place.fd)
