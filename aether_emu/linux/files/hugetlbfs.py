"""Files of huge pages with names (hugetlbfs), mounted at /dev/hugepages where a machine has pools.

    Hugetlbfs ──root──▶ TmpDirectory ──entries──▶ HugeNode ──▶ NodeContents: pages of the mount's pool

Directories are those of a tmpfs. A file's pages live as long as it has a name, is open, or mapped.
"""

from __future__ import annotations

import stat as modes
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aether_emu.linux.credentials import Actor
from aether_emu.linux.files import flags as fl
from aether_emu.linux.files.accounts import MemoryAccount
from aether_emu.linux.files.huge_file import HugeContents, HugeFile
from aether_emu.linux.files.inodes import Inode, InodeTable
from aether_emu.linux.files.mounts import HUGETLBFS_MAGIC
from aether_emu.linux.files.place import Dentry, Named, Place
from aether_emu.linux.files.stat import Stat, StatFs
from aether_emu.linux.files.tmp_nodes import Tmpfs, TmpNode
from aether_emu.mm.objects.hugetlb import HugePool
from aether_emu.mm.physical import Physical

if TYPE_CHECKING:
    from aether_emu.linux.files.namespace import Namespace
    from aether_emu.linux.files.open_file import OpenFile

_ENDLESS = 1 << 62  # files: a mount has no limit unless one is given


class Hugetlbfs(Tmpfs):
    """One such mount, whose files have pages of `pool`."""

    def __init__(
        self,
        path: tuple[bytes, ...],
        inodes: InodeTable,
        account: MemoryAccount,
        actor: Actor,
        pool: HugePool,
        physical: Physical,
    ) -> None:
        super().__init__(path, inodes, account, actor=actor, most_inodes=_ENDLESS)
        self.pool, self.physical = pool, physical
        self.block_size = pool.size


class NodeContents(HugeContents):
    """The pages of `node`, which its names, descriptions and areas hold."""

    def __init__(self, node: HugeNode) -> None:
        fs = node.fs
        assert isinstance(fs, Hugetlbfs), "such files are in no other"
        self.node = node
        stat = Stat(0, node.inode.number, node.mode, 0, node.uid, node.gid, 0, 0, 0, 0, 0)
        super().__init__(fs.physical, fs.pool, b"", stat)

    def release(self) -> None:
        """See `MemoryObject.release`."""
        super().release()
        self.node.gone()


class HugeNode(TmpNode):
    """A regular file."""

    def __init__(self, fs: Tmpfs, permissions: int, inode: Inode | None = None) -> None:
        super().__init__(fs, modes.S_IFREG | permissions, inode)
        self.linkable = False
        self.contents = NodeContents(self)

    @property
    def size(self) -> int:
        """See `TmpNode.size`."""
        return self.contents.length

    @property
    def allocated(self) -> int:
        """See `TmpNode.allocated`."""
        return len(self.contents.blocks) * self.contents.huge_size

    def add_name(self) -> None:
        """See `TmpNode.add_name`."""
        if not self.links:
            self.contents.hold()
        super().add_name()

    def nameless(self) -> None:
        """See `TmpNode.nameless`."""
        self.contents.let_go()

    def restore(self, state: dict[str, Any], *, named: bool) -> None:
        """Have the captured contents, which the pool counts already."""
        self.contents.take_over(state)
        if named:
            self.contents.hold()


class HugeOpen(HugeFile, Named):
    """An open regular file of a hugetlbfs."""

    kind = "hugetlbfs file"

    def __init__(self, namespace: Namespace, place: Place, node: HugeNode, flags: int) -> None:
        super().__init__(node.contents, flags)
        self.namespace, self.node = namespace, node
        self.dentry: Dentry = namespace.remember(place)

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
        return open_huge(self.namespace, self.place(), self.node, flags)

    def capture(self) -> dict[str, object]:
        """See `OpenFile.capture`: its node has the contents."""
        return {}


def open_huge(namespace: Namespace, place: Place, node: HugeNode, flags: int) -> HugeOpen:
    """Open a regular file, whose permissions were judged; with O_TRUNC it is empty then."""
    if flags & fl.O_TRUNC:
        node.contents.set_length(0)
    return HugeOpen(namespace, place, node, flags & ~fl.O_TRUNC)


def mount_pools(namespace: Namespace, physical: Physical, pools: Iterable[HugePool], default: int) -> None:
    """Mount one for each pool: that of pages of `default` bytes at /dev/hugepages, others by their size."""
    for pool in pools:
        name = b"hugepages" if pool.size == default else b"hugepages-%dkB" % (pool.size >> 10)
        path = (b"dev", name)
        fs = Hugetlbfs(path, namespace.inodes, namespace, namespace.actor, pool, physical)
        namespace.mount_tree(fs, HUGETLBFS_MAGIC)
