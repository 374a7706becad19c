"""Open ends of named pipes: opening one waits until the other side is opened too (fifo(7))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.open_file import OpenFile
from aether_emu.linux.files.pipe import PipeEnd
from aether_emu.linux.files.place import Dentry, Named, Place
from aether_emu.linux.files.special import Special
from aether_emu.linux.files.stat import Stat, StatFs

if TYPE_CHECKING:
    from aether_emu.linux.files.namespace import Namespace


class FifoEnd(PipeEnd, Named):
    """One open end of a named pipe. The bytes are there as long as an end is open."""

    def __init__(self, namespace: Namespace, place: Place, node: Special, flags: int) -> None:
        assert node.pipe is not None, "opening makes the pipe"
        self.namespace, self.node = namespace, node
        self.dentry: Dentry = namespace.remember(place)
        super().__init__(node.pipe, flags)
        others = self.pipe.writers if self.readable else self.pipe.readers
        self._seen = tuple(self.pipe.openings)
        self._waits = not (others or flags & fl.O_NONBLOCK or (self.readable and self.writable))

    @property
    def waits_for_other(self) -> bool:
        """Whether open(2) still waits: nobody has opened the other side since."""
        if self._waits and self.pipe.openings[self.readable] > self._seen[self.readable]:
            self._waits = False
        return self._waits

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`."""
        name = {"mount": list(self.dentry.mount.path), "path": list(self.dentry.path)}
        return {
            "fifo": {**name, "node": self.node.inode.number, "detached": self.dentry.detached},
            "opening": [self._waits, list(self._seen)],
        }

    def go_on(self, waits: bool, seen: Sequence[int]) -> None:
        """As it was captured."""
        self._waits, self._seen = waits, tuple(seen)

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
        return FifoEnd(self.namespace, self.place(), self.node, flags)


class WaitsForOther(Exception):
    """open(2) of a named pipe is not done: `file` waits for its other side, and nobody holds it yet."""

    def __init__(self, file: FifoEnd, cloexec: bool) -> None:
        super().__init__("a named pipe")
        self.file, self.cloexec = file, cloexec
