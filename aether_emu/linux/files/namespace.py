"""The guest's tree of names: the grants at their mount points, /dev and /proc, and how each place looks.

    Namespace(root=None,                 the guest's / is synthetic: it shows the way to the grants, no more
              binds=[Bind(Path("/home/u/w"), "/home/u/w"), Bind(program, str(program)), ...],
              cwd="/home/u/w")

    guest path --walk.py--> Place (held host object or synthetic node) --opening.py--> OpenFile

A namespace is shared by all processes of a run; what belongs to one process is in `files.Files`.
"""

from __future__ import annotations

import errno
import functools
import os
import stat as modes
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from aether_emu.clock import EPOCH_NS
from aether_emu.errors import ConfigError, Refused, shown
from aether_emu.linux.credentials import Actor, of_user
from aether_emu.linux.files.accounts import PipeAccount, WatchAccount
from aether_emu.linux.files.host import is_kernel_interface
from aether_emu.linux.files.inodes import UNMOUNTED, FileKey, Inode, InodeTable
from aether_emu.linux.files.locks import FileLocks
from aether_emu.linux.files.mounts import (
    DEVPTS_MAGIC,
    EXT4_MAGIC,
    HUGETLBFS_MAGIC,
    PROC_MAGIC,
    SYSFS_MAGIC,
    TMPFS_MAGIC,
    Bind,
    Mount,
    MountTable,
)
from aether_emu.linux.files.place import Dentry, Entry, GuestPath, Place, place_of, text
from aether_emu.linux.files.proc import Viewer, proc_tree, sys_tree
from aether_emu.linux.files.rights import Rights, of_a_process
from aether_emu.linux.files.special import Special, Specials
from aether_emu.linux.files.stat import BLOCK, Stat, StatFs
from aether_emu.linux.files.synthetic import Node, Opened, Text, device_tree, rdev
from aether_emu.linux.files.terminals import TerminalNames
from aether_emu.linux.files.tmp_nodes import TmpDirectory, Tmpfs, TmpNode
from aether_emu.linux.files.walk import NO_CHILDREN, FileSystemGate, Walk, checked

if TYPE_CHECKING:
    from aether_emu.linux.net.inbox import SocketAccount
    from aether_emu.linux.net.internet import Internet
    from aether_emu.linux.net.unix import UnixSpace

_ANONYMOUS_DEV = os.makedev(0, 12)
_STORAGE_BLOCKS = (64 << 30) // BLOCK
IN_MEMORY: tuple[GuestPath, ...] = ((b"tmp",), (b"dev", b"shm"))
"""Where a tmpfs is mounted, whatever the root is."""


def _unmapped(key: FileKey, first: int, second: int) -> None:
    """Nothing is mapped, so nothing needs to know that a file changes."""


class CachedFiles(Protocol):
    """What is done with pages of files that count as memory: `linux.cached_files`."""

    def sample(self, key: FileKey) -> int:
        """How many failures of writing a file back somebody knows of who opens it now."""

    def wrote(self, key: FileKey, offset: int, length: int) -> None:
        """Bytes of a file were written by a call."""

    def names_gone(self) -> None:
        """Names of files were taken away."""

    def sync(self, key: FileKey, known: int) -> tuple[int, int]:
        """Write back what is dirty of a file.

        Returns how many failures have been known since, and the errno of one that was not, or 0.
        """


class SizeLimit(Protocol):
    """How large files may become, in bytes. See `task/file_sizes`."""

    def admitted(self, offset: int, count: int) -> int: ...
    def require(self, old: int, new: int) -> None: ...


class Namespace:
    """The tree. What grants have in it is shown as owned by `uid` and `gid`; synthetic nodes are root's.

    `actor` says by whose rights it is looked at; without it, by those of that user.

    `now` is the machine's clock in nanoseconds since 1970, `start` when it began, `random` gives n bytes for
    /dev/urandom.
    `memory_limit` bounds, in bytes, what all memory files and open texts may hold of the host's memory: of
    a memory file, its pages of `page_size` bytes that were written, touched or allocated, not its size.
    `kernel_memory` is the machine's memory, in bytes, of which Linux gives a part to watches. `devices` are
    further nodes of /dev.
    Raises ConfigError for a grant that can't be made.
    """

    def __init__(
        self,
        root: Path | None,
        binds: Sequence[Bind],
        cwd: str,
        *,
        random: Callable[[int], bytes],
        now: Callable[[], int] = lambda: EPOCH_NS,
        start: int = EPOCH_NS,
        uid: int = 1000,
        gid: int = 1000,
        memory_limit: int = 256 << 20,
        page_size: int = BLOCK,
        kernel_memory: int = 512 << 20,
        actor: Actor | None = None,
        devices: Mapping[bytes, Node] | None = None,
    ) -> None:
        self.uid, self.gid = uid, gid
        self.actor = Actor(of_user(uid, gid)) if actor is None else actor
        self.now = now
        self.inodes = InodeTable(now, start)
        self.mounts = MountTable()
        self.tmpfs: list[Tmpfs] = []
        self.memory_limit = memory_limit
        self.memory_used = 0
        self._most_inodes = kernel_memory // BLOCK // 2  # of a tmpfs, as Linux has it
        self.page_size = page_size
        self.pipes = PipeAccount()
        self.specials = Specials(self.inodes, self.actor)
        self.locks = FileLocks()
        self.terminals = TerminalNames(uid)
        self._kernel_memory = kernel_memory
        self.watches = WatchAccount(kernel_memory)
        self.on_truncate: Callable[[FileKey, int, int], None] = _unmapped
        """Called as (file key, old size, new size) before a file's size is set: mappings go first."""
        self.on_punch: Callable[[FileKey, int, int], None] = _unmapped
        """Called as (file key, offset, length) before bytes of a file become a hole, likewise."""
        self.cached: CachedFiles | None = None
        """Who counts the pages of the host's files as memory; None: nobody."""
        self.shows_stores: Callable[[FileKey], bool] = lambda key: False
        """Whether an area shows the file shared, and is writable or may become so."""
        self.rights = Rights(self.actor, uid, gid)
        self.executed: Counter[FileKey] = Counter()
        """How many processes run a file: while there are any, nobody opens it for writing."""
        self.writers: Counter[FileKey] = Counter()
        """How many open files may write to a file: while there are any, nobody executes it."""
        self.swap_files: set[FileKey] = set()
        """Files that hold pages in swap: nobody writes to them, nor takes their names away."""
        self.sizes: SizeLimit | None = None
        """How large who acts may make files, once somebody has such a limit."""
        self.look: Callable[[], None] = lambda: None
        """Called now and then during long work that changes nothing: it may raise, and the work is lost."""
        self._gate = FileSystemGate()
        self._dentries: weakref.WeakSet[Dentry] = weakref.WeakSet()
        try:
            self._mount_all(root, binds, random, devices or {})
            self.start = self._starting_directory(cwd)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give back the descriptors of the mounts. Nothing can be looked up afterwards."""
        if "unix" in vars(self):
            self.unix.close()
        self.abandon()
        for fs in self.tmpfs:
            fs.close()
        self.tmpfs = []

    def abandon(self) -> None:
        """Give back the descriptors alone, of a machine whose memory is gone. Safe twice."""
        for mount in self.mounts.all():
            if mount.fd >= 0:
                os.close(mount.fd)
        self.mounts = MountTable()

    # Sockets, whose code is imported for the first one

    @functools.cached_property
    def _socket_account(self) -> SocketAccount:
        from aether_emu.linux.net.inbox import SocketAccount  # noqa: PLC0415  # as said above

        return SocketAccount(self._kernel_memory)

    @functools.cached_property
    def unix(self) -> UnixSpace:
        """The unix sockets."""
        from aether_emu.linux.net.unix import UnixSpace  # noqa: PLC0415  # as said above

        return UnixSpace(self._socket_account, self._socket_stat)

    @functools.cached_property
    def internet(self) -> Internet:
        """The loopback interface, with the ports of TCP and UDP."""
        from aether_emu.linux.net.internet import Internet  # noqa: PLC0415  # as said above

        return Internet(self._socket_account, self._socket_stat, self.actor)

    # Mounting

    def _mount_all(
        self,
        root: Path | None,
        binds: Sequence[Bind],
        random: Callable[[int], bytes],
        more: Mapping[bytes, Node],
    ) -> None:
        if root is None:
            self._mount((), TMPFS_MAGIC, make=lambda viewer: NO_CHILDREN)
        else:
            self._grant("root", root, (), writable=False)
        for path in IN_MEMORY:
            self._mount_tmpfs(path)
        for bind in binds:
            where = self._canonical(bind.guest)
            self._grant("bind", bind.host, where, bind.writable)
        devices = device_tree(random, {**self.terminals.devices(), **more})
        terminals = self.terminals.folder()
        for path, kind, make in (
            ((b"dev",), TMPFS_MAGIC, lambda viewer: devices),
            ((b"proc",), PROC_MAGIC, proc_tree),
            ((b"dev", b"pts"), DEVPTS_MAGIC, lambda viewer: terminals),
            ((b"sys",), SYSFS_MAGIC, sys_tree),
        ):
            if self.mounts.at(path) is None:
                self._mount(path, kind, make=make)
        self.make_mount_points()

    def _mount_tmpfs(self, path: GuestPath) -> None:
        fs = Tmpfs(path, self.inodes, self, most_inodes=self._most_inodes, actor=self.actor)
        self.mount_tree(fs, TMPFS_MAGIC)

    def mount_tree(self, fs: Tmpfs, kind: int) -> None:
        """Mount a tree of this machine's memory, unless a grant is there."""
        if self.mounts.at(fs.path) is None:
            self.tmpfs.append(fs)
            self._mount(fs.path, kind, writable=True, make=lambda viewer: fs.root)

    def make_mount_points(self) -> None:
        """A tmpfs that a grant took the place of is gone; in the others, ways lead to the grants below."""
        self.tmpfs = [fs for fs in self.tmpfs if self.in_memory(self.mounts.at(fs.path)) is fs]
        for fs in self.tmpfs:
            depth = len(fs.path)
            for mount in self.mounts.all():
                if len(mount.path) > depth and mount.path[:depth] == fs.path:
                    fs.root.directory_at(mount.path[depth:-1])

    def in_memory(self, mount: Mount | None) -> Tmpfs | None:
        """The tmpfs that is mounted there."""
        root = mount.make(None) if mount is not None and mount.make is not None else None
        return root.fs if isinstance(root, TmpDirectory) else None

    def _mount(
        self,
        path: GuestPath,
        kind: int,
        *,
        writable: bool = False,
        fd: int = -1,
        make: Callable[[Viewer | None], Node] | None = None,
    ) -> None:
        replaced = self.mounts.at(path)
        if replaced is not None and replaced.fd >= 0:
            os.close(replaced.fd)
        number = replaced.number if replaced else len(self.mounts.all())
        self.mounts.add(Mount(number, path, kind, writable, fd, make))

    def _grant(self, parameter: str, host: Path, where: GuestPath, writable: bool) -> None:
        try:
            fd = os.open(host, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(parameter, str(host), f"the host says {error.strerror}") from None
        try:
            if is_kernel_interface(fd):
                raise ConfigError(parameter, str(host), "it is an interface to the host's kernel")
            if not where and not modes.S_ISDIR(os.fstat(fd).st_mode):
                raise ConfigError(parameter, str(host), "the guest's / must be a directory")
        except BaseException:
            os.close(fd)
            raise
        self._mount(where, EXT4_MAGIC, writable=writable, fd=fd)

    def _canonical(self, guest: str) -> GuestPath:
        """Where a bind for this guest path begins: its links are resolved among what is mounted so far."""
        names = [name for name in os.fsencode(guest).split(b"/") if name not in (b"", b".")]
        if not guest.startswith("/") or b".." in names or b"\0" in os.fsencode(guest):
            raise ConfigError("bind", guest, "a guest path is absolute and has no ..")
        for depth in range(len(names), -1, -1):
            try:
                with self.lookup(self.root(), text(tuple(names[:depth]))) as place:
                    return (*place.path, *names[depth:])
            except Refused as refusal:
                if refusal.errno != errno.ENOENT:
                    raise ConfigError("bind", guest, str(refusal)) from None
        raise AssertionError("the root exists")

    def _starting_directory(self, cwd: str) -> GuestPath:
        try:
            with self.lookup(self.root(), os.fsencode(cwd)) as place:
                if not place.is_directory or not cwd.startswith("/"):
                    raise ConfigError("cwd", cwd, "it must be the absolute path of a directory")
                return place.path
        except Refused as refusal:
            raise ConfigError("cwd", cwd, f"no grant contains it ({refusal})") from None

    # Walking

    def root_of(self, mount: Mount, viewer: Viewer | None) -> Place:
        """The place where `mount` begins, borrowed."""
        if mount.make is not None:
            node = mount.make(viewer)
            inode = node.inode if isinstance(node, TmpNode) else None
            return Place(mount, mount.path, node=node, inode=inode)
        return Place(mount, mount.path, fd=mount.fd, status=os.fstat(mount.fd))

    def root(self, viewer: Viewer | None = None) -> Place:
        """The / of `viewer`, borrowed; the guest's for nobody."""
        root = None if viewer is None else place_of(viewer.root)
        return self.top(viewer) if root is None else root

    def top(self, viewer: Viewer | None = None) -> Place:
        """The guest's /, whatever root a process has."""
        mount = self.mounts.at(())
        assert mount is not None
        return self.root_of(mount, viewer)

    def entry(
        self,
        start: Place,
        path: bytes,
        *,
        follow: bool = False,
        creating: bool = False,
        viewer: Viewer | None = None,
        resolve: int = 0,
    ) -> Entry:
        """Walk to the last component of `path`, for calls that make or remove names. The caller closes it.

        `start` is where relative paths begin, `resolve` are flags of openat2. A walk of an open that is
        `creating` does not follow a link whose name has a slash behind it: no file can be made there.
        """
        walk = Walk(self, self._gate, start, viewer, resolve)
        return walk.entry(checked(path), follow, creating)

    def lookup(
        self,
        start: Place,
        path: bytes,
        *,
        follow: bool = True,
        viewer: Viewer | None = None,
        resolve: int = 0,
    ) -> Place:
        """Walk to an existing object: ENOENT if there is none. The caller closes it."""
        entry = self.entry(start, path, follow=follow or path.endswith(b"/"), viewer=viewer, resolve=resolve)
        place = entry.place
        try:
            if place is None:
                raise entry.absent()
            if entry.slash and not place.is_directory:
                raise Refused(errno.ENOTDIR, f"{shown(path)} is no directory")
        except Refused:
            entry.__exit__(None, None, None)
            raise
        if not entry.is_ordinary:
            return entry.parent
        entry.parent.close()
        return place

    # Executing and writing

    def is_written(self, key: FileKey) -> bool:
        """Whether a file is open for writing, or shown by a shared mapping that was made by such a file.

        Of a memory file that no tmpfs has mappings tell nothing: the file that made it is not counted either.
        """
        return self.writers[key] > 0 or (key[0] != UNMOUNTED and self.shows_stores(key))

    def require_idle(self, key: FileKey | GuestPath) -> None:
        """Refused(ETXTBSY) while a process executes the file, which is to be opened for writing."""
        if key in self.executed:
            raise Refused(errno.ETXTBSY, "a process executes it")

    # Looking

    def inode(self, place: Place) -> Inode:
        """The number and times of what is at `place`."""
        if place.inode is not None:
            return place.inode
        if place.status is not None:
            return self.inodes.see(place.status)
        if of_a_process(place.mount, place.path):
            return Inode(number_of(place.path))
        return self.inodes.of(place.key)

    def stat(self, place: Place) -> Stat:
        """The attributes of what is at `place`."""
        if place.status is not None:
            return self.host_stat(place.mount, place.status, self.inode(place))
        assert place.node is not None
        if isinstance(place.node, Opened):
            return place.node.file.stat()
        node, inode = place.node, self.inode(place)
        if isinstance(node, TmpNode):
            return Stat(
                *(place.mount.dev, inode.number, node.mode, node.links, node.uid, node.gid, 0, node.size),
                *(inode.atime, inode.mtime, inode.ctime, node.allocated, node.fs.block_size),
            )
        if isinstance(node, Special):
            return Stat(
                *(place.mount.dev, inode.number, node.mode, node.links, node.uid, node.gid, 0, 0),
                *(inode.atime, inode.mtime, inode.ctime),
            )
        return Stat(
            *(place.mount.dev, inode.number, node.mode, 1, *self.rights.owner(place), rdev(node)),
            node.size if isinstance(node, Text) else 0,
            *(inode.atime, inode.mtime, inode.ctime),
        )

    def host_stat(self, mount: Mount, status: os.stat_result, inode: Inode) -> Stat:
        """The attributes of a host object: its type, mode, links and size; our owner, number and times.

        A directory always has 4096 bytes and one link, which `find` takes for "count unknown": hosts differ.
        """
        directory = modes.S_ISDIR(status.st_mode)
        device = modes.S_ISCHR(status.st_mode) or modes.S_ISBLK(status.st_mode)
        return Stat(
            *(
                mount.dev,
                inode.number,
                status.st_mode,
                1 if directory and status.st_nlink else status.st_nlink,
            ),
            *(self.uid, self.gid, status.st_rdev if device else 0, BLOCK if directory else status.st_size),
            *(inode.atime, inode.mtime, inode.ctime),
        )

    def nameless_stat(self, mode: int, device: int = 0) -> Stat:
        """The attributes of something new that has no name: a pipe, an eventfd, a stream."""
        number, who = self.inodes.created().number, self.actor.credentials
        return Stat(
            _ANONYMOUS_DEV, number, mode, 1, who.fsuid, who.fsgid, device, 0, EPOCH_NS, EPOCH_NS, EPOCH_NS
        )

    def _socket_stat(self) -> Stat:
        return self.nameless_stat(modes.S_IFSOCK | 0o777)

    def statfs(self, mount: Mount) -> StatFs:
        """The attributes of a mount: of a grant half of 64 GiB is free, whatever the host has left.

        A tmpfs shares what files in memory may hold with all others.
        """
        fs = self.in_memory(mount) if mount.kind in (TMPFS_MAGIC, HUGETLBFS_MAGIC) else None
        if fs is not None and mount.kind == HUGETLBFS_MAGIC:  # Linux tells of no blocks without a limit
            return StatFs(mount.kind, mount.number, 0, 0, False, block=fs.block_size)
        if fs is not None:
            free = max(0, self.memory_limit - self.memory_used) // BLOCK
            inodes = (fs.most_inodes, fs.most_inodes - fs.inodes_used)
            return StatFs(mount.kind, mount.number, self.memory_limit // BLOCK, free, False, inodes)
        blocks = _STORAGE_BLOCKS if mount.kind == EXT4_MAGIC else 0
        return StatFs(mount.kind, mount.number, blocks, blocks // 2, not mount.writable)

    # Names of what is held open

    def remember(self, place: Place) -> Dentry:
        """The name of something that stays open; it follows the guest's renames while it is referenced."""
        dentry = Dentry(place.mount, place.path)
        self._dentries.add(dentry)
        return dentry

    def name_removed(self, path: GuestPath) -> None:
        """The name at `path` is gone or now another file's."""
        for dentry in self._dentries:
            if dentry.path == path:
                dentry.detached = True

    def name_moved(self, old: GuestPath, new: GuestPath, exchange: bool = False) -> None:
        """What was at and below `old` is now at `new` (and the other way round)."""
        for dentry in self._dentries:
            if dentry.detached:
                continue
            if dentry.path[: len(old)] == old:
                dentry.path = new + dentry.path[len(old) :]
            elif exchange and dentry.path[: len(new)] == new:
                dentry.path = old + dentry.path[len(new) :]


def number_of(path: GuestPath) -> int:
    """An inode number made from a name, above those that are given one after the other."""
    return 1 << 32 | zlib.crc32(text(path))
