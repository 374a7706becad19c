"""Regular files of a tmpfs: their contents, which are a `Memory`, and their open descriptions.

    name ──▶ TmpFile ──▶ TmpMemory ◀── TmpOpen (descriptions), FileBacking (mappings)

A file that nobody has open and that takes little keeps no descriptor of the host: its contents sleep as plain
bytes, so that as many files can exist as the guest likes to make.
"""

from __future__ import annotations

import os
import stat as modes
from typing import TYPE_CHECKING, Any

from aether_emu.errors import Refused
from aether_emu.linux.credentials import FSETID
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.inodes import Inode
from aether_emu.linux.files.memory_file import Memory, MemoryFile
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.place import Dentry, Named, Place
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.files.tmp_nodes import Tmpfs, TmpNode

if TYPE_CHECKING:
    from aether_emu.linux.files.namespace import Namespace

_SLEEPS = 1 << 20
"""Up to so many bytes sleep: beyond, the limit on memory allows few files only."""
_SET_ID = modes.S_ISUID | modes.S_ISGID
_EMPTY: dict[str, Any] = {"size": 0, "pages": {}, "reserved": [], "folios": (1, [])}


class TmpMemory(Memory):
    """The contents of `node`. Its name and everyone who has it open or mapped hold it."""

    mounted = True

    def __init__(self, namespace: Namespace, node: TmpFile) -> None:
        self.node = node
        self._asleep: dict[str, Any] | None = _EMPTY
        stat = Stat(0, node.inode.number, node.mode, 0, node.uid, node.gid, 0, 0, 0, 0, 0)
        super().__init__(namespace, b"", node.inode, stat)

    def _begin(self) -> None:
        self.key = self.node.key

    def wake(self) -> None:
        """Have a descriptor of the host again, for somebody who is to hold it. Or Refused."""
        state = self._asleep
        if state is None:
            return
        self._take_storage()
        try:
            self._fill(state)
        except Refused:
            os.close(self.host_fd)
            self.host_fd = -1
            raise
        self._asleep = None

    def let_go(self) -> None:
        """See `Memory.let_go`. When only the name is left, it falls asleep."""
        super().let_go()
        if not self._holders:
            self.node.gone()
        elif self._holders == 1 and self.node.links and self._asleep is None and self.allocated <= _SLEEPS:
            state = self.capture()
            self._give_back_storage()
            self._asleep = state

    def _give_back_storage(self) -> None:
        if self._asleep is None:
            super()._give_back_storage()
            self.host_fd = -1

    @property
    def size(self) -> int:
        """See `Memory.size`."""
        if self._asleep is not None:
            size: int = self._asleep["size"]
            return size
        return super().size

    def capture(self) -> dict[str, Any]:
        """See `Memory.capture`."""
        if self._asleep is None:
            return super().capture()
        return {**self._asleep, "seals": self.seals, "mode": self.mode}

    def _fill(self, state: dict[str, Any]) -> None:
        if self.host_fd >= 0:
            super()._fill(state)
        else:
            self._asleep = {key: state[key] for key in _EMPTY}


class TmpFile(TmpNode):
    """A regular file. `linkable` unless it was made without a name that it may have (O_TMPFILE, O_EXCL)."""

    def __init__(self, fs: Tmpfs, namespace: Namespace, permissions: int, inode: Inode | None = None) -> None:
        super().__init__(fs, modes.S_IFREG | permissions, inode)
        self.linkable = False
        self.memory = TmpMemory(namespace, self)

    @property
    def size(self) -> int:
        """See `TmpNode.size`."""
        return self.memory.size

    @property
    def allocated(self) -> int:
        """See `TmpNode.allocated`."""
        return self.memory.allocated

    def add_name(self) -> None:
        """See `TmpNode.add_name`."""
        if not self.links:
            self.memory.hold()
        super().add_name()

    def nameless(self) -> None:
        """See `TmpNode.nameless`: the memory counts it until nobody has it open."""
        self.memory.let_go()


class TmpOpen(MemoryFile, Named):
    """An open regular file of a tmpfs."""

    kind = "tmpfs file"

    def __init__(self, namespace: Namespace, place: Place, node: TmpFile, flags: int) -> None:
        node.memory.wake()
        super().__init__(node.memory, flags)
        self.node = node
        self.dentry: Dentry = namespace.remember(place)
        if self.writable:
            self.begin_writing()

    def pwrite(self, data: bytes, offset: int) -> int:
        """See `OpenFile.pwrite`. What is written loses its set-id bits (Linux `file_remove_privs`)."""
        done = super().pwrite(data, offset)
        node = self.node
        if done and node.mode & _SET_ID and not node.fs.actor.credentials.has(FSETID):
            node.mode &= ~(modes.S_ISUID | (modes.S_ISGID if node.mode & modes.S_IXGRP else 0))
        return done

    def stat(self) -> Stat:
        """See `OpenFile.stat`."""
        return self.namespace.stat(self.place())

    def statfs(self) -> StatFs:
        """See `OpenFile.statfs`."""
        return self.namespace.statfs(self.dentry.mount)

    def link(self) -> bytes:
        """See `OpenFile.link`."""
        return self.dentry.shown(not self.node.links)

    def place(self) -> Place:
        """See `Named.place`."""
        return Place(self.dentry.mount, self.dentry.path, node=self.node, inode=self.node.inode)

    def reopen(self, flags: int) -> OpenFile:
        """See `OpenFile.reopen`."""
        return open_file(self.namespace, self.place(), self.node, flags)


def open_file(namespace: Namespace, place: Place, node: TmpFile, flags: int) -> TmpOpen:
    """Open a regular file, whose permissions were judged; with O_TRUNC it is empty then."""
    if fl.wants_write(flags):
        namespace.require_idle(node.key)
    file = TmpOpen(namespace, place, node, flags)
    if flags & fl.O_TRUNC:
        node.memory.resize(0)
    return file
