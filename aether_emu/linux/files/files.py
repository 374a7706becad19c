"""What a process does with files: its descriptors, its working directory and the calls on them.

One method for each system call, with the kernel's argument order, raising `Refused(errno, why)`. Paths are
bytes; `dirfd` may be AT_FDCWD; flags are in the x86_64 numbering (`flags.from_arm64` translates). Reads and
writes of pipes, streams and counters may return `WouldBlock`, which the caller turns into waiting.
"""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from aether_emu.errors import Refused, shown
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files import opening, tree
from aether_emu.linux.files.descriptor_operations import DescriptorOperations
from aether_emu.linux.files.directory import Located
from aether_emu.linux.files.fifo import FifoEnd, WaitsForOther
from aether_emu.linux.files.host_file import HostData
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.own_streams import is_closed, open_stream
from aether_emu.linux.files.place import Entry, GuestPath, Place, place_of, text
from aether_emu.linux.files.proc import ProcSource
from aether_emu.linux.files.special import Special
from aether_emu.linux.files.standing import Standing
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.files.streams import Stream
from aether_emu.linux.files.synthetic import Link, Opened
from aether_emu.linux.files.table import DEFAULT_LIMIT, DescriptorTable
from aether_emu.linux.files.tmp_nodes import TmpNode
from aether_emu.linux.files.walk import checked, read_link

if TYPE_CHECKING:
    from aether_emu.linux.net.unix import UnixSocket

_MOST_CREATE_RACES = 40
_NODES = (0, modes.S_IFREG, modes.S_IFIFO, modes.S_IFSOCK, modes.S_IFCHR, modes.S_IFBLK)
"""What mknod(2) makes: 0 is a regular file."""
_AT_STAT = fl.AT_SYMLINK_NOFOLLOW | fl.AT_EMPTY_PATH | 0x7800
"""`stat` flags: with AT_NO_AUTOMOUNT and AT_STATX_*, which have nothing to change here."""


class Files(DescriptorOperations):
    """The files of a process, or of threads that have unshared theirs.

    `proc` is what it shows in /proc/self; `limit` is RLIMIT_NOFILE. `table` and `standing` may be other
    processes' too.
    """

    def __init__(
        self,
        namespace: Namespace,
        proc: ProcSource,
        *,
        limit: int = DEFAULT_LIMIT,
        table: DescriptorTable | None = None,
        standing: Standing | None = None,
    ) -> None:
        super().__init__(namespace, DescriptorTable(limit) if table is None else table)
        self._proc = proc
        self._openings: dict[int, WaitsForOther] = {}  # by the task that waits in open(2)
        self._is_over = False
        self.standing = Standing(self._anchor(namespace.top()), 0o022) if standing is None else standing
        if standing is None:
            self.chdir(text(namespace.start))

    def fork(self, proc: ProcSource, *, shares_table: bool = False, shares_standing: bool = False) -> Files:
        """The child's files: the same open files, and its own descriptors and working directory.

        It may share the ones (CLONE_FILES) or the other (CLONE_FS), umask and root with it.
        """
        table = self.table if shares_table else self.table.fork()
        standing = self.standing if shares_standing else self.standing.copy()
        table.users += shares_table
        standing.users += shares_standing
        return Files(self.namespace, proc, table=table, standing=standing)

    def attach(self, streams: Mapping[str, Stream]) -> None:
        """Open the standard streams, "stdin", "stdout" and "stderr", as descriptors 0, 1 and 2.

        What the host has closed is closed for the guest.
        """
        names = ("stdin", "stdout", "stderr")
        console = self.namespace.terminals.find_console({name: streams[name] for name in names})
        for fd, name in enumerate(names):
            stream = streams[name]
            if not is_closed(stream):
                terminal = console if stream.terminal_size() is not None else None
                self.table.place(fd, open_stream(self.namespace, name, stream, terminal))

    def close_on_exec(self) -> None:
        """execve(2) succeeded: descriptors marked FD_CLOEXEC close."""
        self.table.close_on_exec()

    def unshare_table(self) -> None:
        """Have descriptors that nobody else has, as execve(2) needs them."""
        if self.table.users > 1:
            table = self.table.fork()
            self.table.leave()
            self.table = table

    def close_all(self) -> None:
        """A process has ended: everything it holds is let go, unless another one shares it."""
        if not self._is_over:
            self._is_over = True
            for task in list(self._openings):
                self.give_up_opening(task)
            self.table.leave()
            self.standing.leave()

    # What /proc shows of this process (`proc.Viewer`)

    @property
    def proc(self) -> ProcSource:
        """The source of its texts."""
        return self._proc

    def open_files(self) -> Mapping[int, OpenFile]:
        """Its open files by descriptor."""
        return {fd: descriptor.file for fd, descriptor in self.table.descriptors.items()}

    def closes_on_exec(self, fd: int) -> bool:
        """Whether execve closes this descriptor."""
        return self.table.descriptors[fd].cloexec

    def mount_texts(self) -> Mapping[str, Callable[[], bytes]]:
        """What the namespace tells about itself in /proc."""
        return {
            "mounts": self.namespace.mounts.table_text,
            "mountinfo": self.namespace.mounts.info_text,
        }

    # From descriptors and paths to places

    def _start(self, dirfd: int, path: bytes, resolve: int = 0) -> Place:
        if path.startswith(b"/") and not resolve & fl.RESOLVE_IN_ROOT:
            return self.namespace.root(self)
        if dirfd == fl.AT_FDCWD:
            return self.working_directory.place()
        place = place_of(self.table.held(dirfd))
        if place is None or not place.is_directory:
            raise Refused(errno.ENOTDIR, f"descriptor {dirfd} is no directory")
        return place

    def _entry(
        self, dirfd: int, path: bytes, *, follow: bool = False, creating: bool = False, resolve: int = 0
    ) -> Entry:
        start = self._start(dirfd, path, resolve)
        return self.namespace.entry(
            start, path, follow=follow, creating=creating, viewer=self, resolve=resolve
        )

    def _lookup(self, dirfd: int, path: bytes, *, follow: bool = True, empty: bool = False) -> Place:
        if empty and not path:
            return (
                self.working_directory.place()
                if dirfd == fl.AT_FDCWD
                else self._place_of(self.table.held(dirfd))
            )
        return self.namespace.lookup(self._start(dirfd, path), path, follow=follow, viewer=self)

    def _place_of(self, file: OpenFile) -> Place:
        top = self.namespace.top(self)
        return place_of(file) or Place(top.mount, (), node=Opened(file))

    def _anchor(self, place: Place) -> Located:
        """Hold a directory to stand in: needs permission to search it."""
        if not place.is_directory:
            raise Refused(errno.ENOTDIR, f"{shown(text(place.path))} is no directory")
        tree.allows(self.namespace, place, os.X_OK)
        file = opening.open_place(self.namespace, place, fl.O_PATH)
        assert isinstance(file, Located)
        return file

    # Opening

    def open(self, dirfd: int, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
        """openat(2) and, with `resolve`, openat2(2)."""
        flags = opening.check_flags(flags)
        self.table.require_room()
        if resolve & fl.RESOLVE_CACHED:
            raise Refused(errno.EAGAIN, "RESOLVE_CACHED never finds a path without the host")
        exclusive = flags & (fl.O_CREAT | fl.O_EXCL) == fl.O_CREAT | fl.O_EXCL
        follow = not (flags & fl.O_NOFOLLOW or exclusive) or (path.endswith(b"/") and not flags & fl.O_CREAT)
        for _ in range(_MOST_CREATE_RACES):
            creating = bool(flags & fl.O_CREAT)
            with self._entry(dirfd, path, follow=follow, creating=creating, resolve=resolve) as entry:
                file = opening.open_entry(self.namespace, entry, flags, mode, self.mask)
            if isinstance(file, FifoEnd) and file.waits_for_other:
                raise WaitsForOther(file, bool(flags & fl.O_CLOEXEC))
            if file is not None:
                return self.table.install(file, cloexec=bool(flags & fl.O_CLOEXEC))
        raise Refused(errno.EBUSY, f"{shown(path)} comes and goes on the host")

    def open_held(self, path: bytes) -> OpenFile:
        """A file open for reading, on no descriptor; whoever calls holds it. As open(2)."""
        with self._lookup(fl.AT_FDCWD, path) as place:
            file = opening.open_place(self.namespace, place, fl.O_RDONLY | fl.O_NONBLOCK, judged=True)
        file.hold()
        return file

    def open_swap(self, path: bytes) -> OpenFile:
        """The file that swapon(2) names, open for reading and writing, on no descriptor; whoever calls holds
        it.
        """
        with self._lookup(fl.AT_FDCWD, path) as place:
            file = opening.open_place(self.namespace, place, fl.O_RDWR | fl.O_NONBLOCK)
        file.hold()
        return file

    def open_program(self, dirfd: int, path: bytes, flags: int = 0) -> HostData:
        """The file that execve(2) is to run, on no descriptor; whoever calls holds it.

        `flags` are those of execveat(2). EACCES for what is no regular file or not executable, ELOOP,
        ETXTBSY while somebody has it open for writing.
        """
        follow, empty = not flags & fl.AT_SYMLINK_NOFOLLOW, bool(flags & fl.AT_EMPTY_PATH)
        with self._lookup(dirfd, path, follow=follow, empty=empty) as place:
            if place.is_link:
                raise Refused(errno.ELOOP, "a symbolic link")
            if not modes.S_ISREG(place.mode):
                raise Refused(errno.EACCES, "it is no regular file")
            tree.allows(self.namespace, place, os.X_OK)
            file = opening.open_place(self.namespace, place, fl.O_RDONLY, judged=True)
        file.hold()
        if isinstance(file, HostData) and not self.namespace.is_written(file.key):
            return file
        file.let_go()
        if isinstance(file, HostData):
            raise Refused(errno.ETXTBSY, "it is open for writing")
        raise Refused(errno.EACCES, "it is no file of the host, and none in memory")

    def begin_opening(self, task: int, opening: WaitsForOther) -> FifoEnd:
        """Task `task` waits in open(2) for the other side of a named pipe: its own side is open already."""
        opening.file.hold()
        self._openings[task] = opening
        return opening.file

    @property
    def openings(self) -> Mapping[int, WaitsForOther]:
        """What tasks wait for in open(2)."""
        return self._openings

    def opening_of(self, task: int) -> FifoEnd | None:
        """What `task` waits for in open(2)."""
        opening = self._openings.get(task)
        return None if opening is None else opening.file

    def finish_opening(self, task: int) -> int:
        """The other side is open: the new descriptor."""
        opening = self._openings.pop(task)
        try:
            return self.table.install(opening.file, cloexec=opening.cloexec)
        finally:
            opening.file.let_go()

    def give_up_opening(self, task: int) -> None:
        """It waits no more."""
        opening = self._openings.pop(task, None)
        if opening is not None:
            opening.file.let_go()

    def bind_socket(self, socket: UnixSocket, address: bytes, path: bytes) -> None:
        """bind(2) of a unix socket to a path. Refused(EADDRINUSE) if anything has that name."""
        socket.require_nameless()
        with self._entry(fl.AT_FDCWD, path) as entry:
            try:
                made = tree.make_special(self.namespace, entry, modes.S_IFSOCK | 0o777, self.mask)
            except Refused as refused:
                number = errno.EADDRINUSE if refused.errno == errno.EEXIST else refused.errno
                raise Refused(number, str(refused)) from None
        made.socket, socket.address = socket, address

    def find_socket(self, path: bytes) -> UnixSocket:
        """The socket that a path leads to. Refused(ECONNREFUSED) if it is closed, or is no socket."""
        with self._lookup(fl.AT_FDCWD, path) as place:
            node = place.node
            if not isinstance(node, Special) or node.socket is None:
                raise Refused(errno.ECONNREFUSED, f"{path!r} is no socket of this machine")
            tree.allows(self.namespace, place, os.W_OK)
            if node.socket.is_gone:
                raise Refused(errno.ECONNREFUSED, f"nobody has {path!r} any more")
            return node.socket

    # Attributes

    def truncate(self, path: bytes, size: int) -> None:
        """truncate(2)."""
        if size < 0:
            raise Refused(errno.EINVAL, f"size {size}")
        with self._lookup(fl.AT_FDCWD, path) as place:
            file = opening.open_place(self.namespace, place, fl.O_WRONLY)
        file.hold()
        try:
            file.truncate(size)
        finally:
            file.let_go()

    def stat(self, dirfd: int, path: bytes, flags: int = 0) -> Stat:
        """newfstatat(2) and statx(2); encode with `stat.encode_*`."""
        if flags & ~_AT_STAT:
            raise Refused(errno.EINVAL, f"flags {flags:#x}")
        follow, empty = not flags & fl.AT_SYMLINK_NOFOLLOW, bool(flags & fl.AT_EMPTY_PATH)
        with self._lookup(dirfd, path, follow=follow, empty=empty) as place:
            return self.namespace.stat(place)

    def statfs(self, path: bytes) -> StatFs:
        """statfs(2)."""
        with self._lookup(fl.AT_FDCWD, path) as place:
            if isinstance(place.node, Opened):
                return place.node.file.statfs()
            return self.namespace.statfs(place.mount)

    def access(self, dirfd: int, path: bytes, mode: int, flags: int = 0) -> None:
        """faccessat2(2)."""
        if mode & ~7 or flags & ~(fl.AT_EACCESS | fl.AT_SYMLINK_NOFOLLOW | fl.AT_EMPTY_PATH):
            raise Refused(errno.EINVAL, f"mode {mode:#x}, flags {flags:#x}")
        follow, empty = not flags & fl.AT_SYMLINK_NOFOLLOW, bool(flags & fl.AT_EMPTY_PATH)
        actor, who = self.namespace.actor, self.namespace.actor.credentials
        if not flags & fl.AT_EACCESS:
            actor.credentials = who.for_access()
        try:
            with self._lookup(dirfd, path, follow=follow, empty=empty) as place:
                tree.allows(self.namespace, place, mode)
        finally:
            actor.credentials = who

    def chmod(self, dirfd: int, path: bytes, mode: int, flags: int = 0) -> None:
        """fchmodat2(2)."""
        follow, empty = not flags & fl.AT_SYMLINK_NOFOLLOW, bool(flags & fl.AT_EMPTY_PATH)
        with self._lookup(dirfd, path, follow=follow, empty=empty) as place:
            tree.set_mode(self.namespace, place, mode)

    def fchmod(self, fd: int, mode: int) -> None:
        """fchmod(2)."""
        tree.set_mode(self.namespace, self._place_of(self.table.file(fd)), mode)

    def chown(self, dirfd: int, path: bytes, uid: int, gid: int, flags: int = 0) -> None:
        """fchownat(2); fchown(2) is an empty path with AT_EMPTY_PATH."""
        follow, empty = not flags & fl.AT_SYMLINK_NOFOLLOW, bool(flags & fl.AT_EMPTY_PATH)
        with self._lookup(dirfd, path, follow=follow, empty=empty) as place:
            tree.set_owner(self.namespace, place, uid, gid)

    def utimens(
        self,
        dirfd: int,
        path: bytes,
        atime: int | None,
        mtime: int | None,
        flags: int = 0,
        *,
        touches: bool = False,
    ) -> None:
        """utimensat(2) in nanoseconds; None for UTIME_OMIT, `namespace.now()` for UTIME_NOW.

        `touches` if both are UTIME_NOW, for which it is enough to have the right to write.
        futimens(3) is an empty path with AT_EMPTY_PATH.
        """
        follow, empty = not flags & fl.AT_SYMLINK_NOFOLLOW, bool(flags & fl.AT_EMPTY_PATH)
        with self._lookup(dirfd, path, follow=follow, empty=empty) as place:
            tree.set_times(self.namespace, place, atime, mtime, touches=touches)

    def with_attributes(self, path: bytes, *, follow: bool) -> TmpNode | None:
        """What is at a path, if it can have extended attributes: only what is in a tmpfs."""
        with self._lookup(fl.AT_FDCWD, path, follow=follow) as place:
            return place.node if isinstance(place.node, TmpNode) else None

    def open_with_attributes(self, fd: int) -> TmpNode | None:
        """See `with_attributes`. EBADF for O_PATH."""
        node = self._place_of(self.table.file(fd)).node
        return node if isinstance(node, TmpNode) else None

    # Names

    def readlink(self, dirfd: int, path: bytes, size: int) -> bytes:
        """readlinkat(2): the target's first `size` bytes. With an empty path, of a link opened by O_PATH."""
        if size <= 0:
            raise Refused(errno.EINVAL, f"a buffer of {size} bytes")
        with self._lookup(dirfd, path, follow=False, empty=dirfd != fl.AT_FDCWD) as place:
            if not place.is_link:
                raise Refused(
                    errno.ENOENT if not path else errno.EINVAL, f"{shown(path)} is no symbolic link"
                )
            return self._target(place)[:size]

    def _target(self, link: Place) -> bytes:
        """What a link says. That of a magic link to a file with a name is seen from this process's root."""
        if isinstance(link.node, Link):
            self.namespace.rights.require_inspection(link)
        found = link.node.file if isinstance(link.node, Link) else None
        if self.root is not None and isinstance(found, Located) and not found.is_gone:
            return self._seen(found.dentry.path)
        return read_link(link)

    def getcwd(self) -> bytes:
        """getcwd(2), without the final NUL."""
        if self.working_directory.is_gone:
            raise Refused(errno.ENOENT, "the working directory was removed")
        return self._seen(self.working_directory.dentry.path)

    def _seen(self, path: GuestPath) -> bytes:
        """A path as it looks from the root that this process has."""
        root = self.root
        if root is None:
            return text(path)
        above = root.dentry.path
        return text(path[len(above) :]) if path[: len(above)] == above else b"(unreachable)" + text(path)

    def chdir(self, path: bytes) -> None:
        """chdir(2)."""
        with self._lookup(fl.AT_FDCWD, path) as place:
            self._stand_in(place)

    def fchdir(self, fd: int) -> None:
        """fchdir(2)."""
        self._stand_in(self._place_of(self.table.held(fd)))

    def _stand_in(self, place: Place) -> None:
        self.standing.stand_in(self._anchor(place))

    def chroot(self, path: bytes, *, allowed: bool) -> None:
        """chroot(2). EPERM for a directory that could be a root, unless it is `allowed`."""
        with self._lookup(fl.AT_FDCWD, path) as place:
            root = self._anchor(place)
            if allowed:
                self.standing.begin_at(root if place.path else None)
        if not allowed or root is not self.root:
            root.hold()
            root.let_go()
        if not allowed:
            raise Refused(errno.EPERM, "it may not choose its root")

    @property
    def working_directory(self) -> Located:
        """The working directory, held."""
        return self.standing.cwd

    @property
    def root(self) -> Located | None:
        """See `proc.OpenFiles`."""
        return self.standing.root

    @property
    def mask(self) -> int:
        """The umask."""
        return self.standing.mask

    def umask(self, mask: int) -> int:
        """umask(2): the mask before."""
        before, self.standing.mask = self.standing.mask, mask & 0o777
        return before

    def mkdir(self, dirfd: int, path: bytes, mode: int) -> None:
        """mkdirat(2)."""
        with self._entry(dirfd, path) as entry:
            tree.make_directory(self.namespace, entry, mode, self.mask)

    def mknod(self, dirfd: int, path: bytes, mode: int) -> None:
        """mknodat(2) of regular files, named pipes and sockets; EPERM for devices."""
        if modes.S_IFMT(mode) == modes.S_IFDIR:
            raise Refused(errno.EPERM, "mkdir makes directories")
        if modes.S_IFMT(mode) not in _NODES:
            raise Refused(errno.EINVAL, f"mode {mode:o}")
        with self._entry(dirfd, path) as entry:
            tree.make_file(self.namespace, entry, mode, self.mask)

    def symlink(self, target: bytes, dirfd: int, path: bytes) -> None:
        """symlinkat(2)."""
        checked(target)
        with self._entry(dirfd, path) as entry:
            tree.make_link(self.namespace, entry, target)

    def link(self, olddirfd: int, old: bytes, newdirfd: int, new: bytes, flags: int = 0) -> None:
        """linkat(2)."""
        if flags & ~(fl.AT_SYMLINK_FOLLOW | fl.AT_EMPTY_PATH):
            raise Refused(errno.EINVAL, f"flags {flags:#x}")
        follow, empty = bool(flags & fl.AT_SYMLINK_FOLLOW), bool(flags & fl.AT_EMPTY_PATH)
        with (
            self._lookup(olddirfd, old, follow=follow, empty=empty) as source,
            self._entry(newdirfd, new) as entry,
        ):
            tree.add_name(self.namespace, source, entry)

    def unlink(self, dirfd: int, path: bytes) -> None:
        """unlinkat(2)."""
        with self._entry(dirfd, path) as entry:
            tree.remove_name(self.namespace, entry)

    def rmdir(self, dirfd: int, path: bytes) -> None:
        """unlinkat(2) with AT_REMOVEDIR."""
        with self._entry(dirfd, path) as entry:
            tree.remove_directory(self.namespace, entry)

    def rename(self, olddirfd: int, old: bytes, newdirfd: int, new: bytes, flags: int = 0) -> None:
        """renameat2(2), without RENAME_WHITEOUT (EINVAL)."""
        if flags not in (0, fl.RENAME_NOREPLACE, fl.RENAME_EXCHANGE):
            raise Refused(errno.EINVAL, f"rename flags {flags:#x}")
        with self._entry(olddirfd, old) as source, self._entry(newdirfd, new) as target:
            tree.rename(self.namespace, source, target, flags)
