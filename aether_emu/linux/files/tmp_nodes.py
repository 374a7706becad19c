"""The nodes of a tmpfs: directories, links, and what is common to all; names and attributes, no contents.

    Tmpfs ──root──▶ TmpDirectory ──entries──▶ TmpDirectory, TmpLink, TmpFile (`tmpfs`), Special

They exist in the memory of this process alone: the host sees none of their names.
"""

from __future__ import annotations

import errno
import os
import stat as modes

from aether_emu.errors import Refused
from aether_emu.linux.credentials import FOWNER, Actor
from aether_emu.linux.files.accounts import MemoryAccount
from aether_emu.linux.files.inodes import FileKey, Inode, InodeTable
from aether_emu.linux.files.special import Special

_KEYS = -2  # no host device has this number, and no `Special`
_PAGE = 4096
_SHORT_LINK = 128
"""Targets below this many bytes are in the inode, longer ones take a page (Linux SHORT_SYMLINK_LEN)."""
_ENTRY_SIZE = 20
"""What an entry adds to the size that a directory shows (Linux BOGO_DIRENT_SIZE)."""


class Tmpfs:
    """One tmpfs, mounted at the guest path `path`: its root, and how many inodes it has of `most_inodes`.

    `actor` says who makes what is in it, and by whose rights. Contents are on `account`, which others share.
    `block_size`: bytes of what its files consist of.
    """

    block_size = _PAGE

    def __init__(
        self,
        path: tuple[bytes, ...],
        inodes: InodeTable,
        account: MemoryAccount,
        *,
        actor: Actor,
        most_inodes: int,
    ) -> None:
        self.path, self.inodes, self.account, self.actor = path, inodes, account, actor
        self.most_inodes, self.inodes_used = most_inodes, 0
        self.root = TmpDirectory(self, 0o1777, None)
        self.root.uid = self.root.gid = 0

    def take_inode(self) -> None:
        """One more file. Refused(ENOSPC) when there are as many as can be."""
        if self.inodes_used >= self.most_inodes:
            raise Refused(errno.ENOSPC, f"a tmpfs has {self.most_inodes} files at most")
        self.inodes_used += 1

    def give_back_inode(self) -> None:
        """One file fewer."""
        self.inodes_used -= 1

    def close(self) -> None:
        """The machine ends: no name leads to anything any more."""
        below = [self.root]
        while below:
            directory = below.pop()
            for node in directory.entries.values():
                if isinstance(node, TmpDirectory):
                    below.append(node)
                elif isinstance(node, TmpNode):
                    node.drop_name()
            directory.entries.clear()


def attribute_size(attribute: tuple[bytes, bytes]) -> int:
    """What an extended attribute takes of memory, in bytes."""
    return sum(map(len, attribute))


class TmpNode:
    """What is at a name: its attributes, `links` (how many names, of a directory as Linux counts them).

    `mode` has the type too. `inode` is its number and times.
    """

    def __init__(self, fs: Tmpfs, mode: int, inode: Inode | None = None) -> None:
        fs.take_inode()
        who = fs.actor.credentials
        self.fs, self.mode, self.uid, self.gid = fs, mode, who.fsuid, who.fsgid
        self.inode = inode or fs.inodes.created()
        self.links = 0
        self.attributes: dict[bytes, bytes] = {}

    @property
    def key(self) -> FileKey:
        """Its identity, which lasts through capture and restore."""
        return _KEYS, self.inode.number

    @property
    def size(self) -> int:
        """What stat(2) shows, in bytes."""
        return 0

    @property
    def allocated(self) -> int:
        """What it takes of memory, in bytes."""
        return 0

    def permits(self, wanted: int) -> bool:
        """Whether who acts has the rights `wanted` (R_OK, W_OK, X_OK)."""
        return self.fs.actor.credentials.permits(self.mode, self.uid, self.gid, wanted)

    def require(self, wanted: int) -> None:
        """Refused(EACCES) unless it `permits` that."""
        if not self.permits(wanted):
            raise Refused(errno.EACCES, f"mode {self.mode & 0o7777:o} doesn't allow it")

    def add_name(self) -> None:
        """One more name leads here."""
        self.links += 1

    def drop_name(self) -> None:
        """One name fewer; without any it is gone, or lives on while it is open."""
        self.links -= 1
        if not self.links:
            self.nameless()

    def nameless(self) -> None:
        """The last name is gone."""
        self.gone()

    def gone(self) -> None:
        """Nobody has it any more: what it took is given back."""
        self.fs.give_back_inode()
        self.fs.account.memory_used -= sum(map(attribute_size, self.attributes.items()))


class TmpDirectory(TmpNode):
    """A directory. `parent` is None for the root; without `links` it was removed."""

    def __init__(
        self, fs: Tmpfs, permissions: int, parent: TmpDirectory | None, inode: Inode | None = None
    ) -> None:
        super().__init__(fs, modes.S_IFDIR | permissions, inode)
        self.parent = parent
        self.entries: dict[bytes, TmpNode | Special] = {}
        self.links = 2

    @property
    def size(self) -> int:
        """See `TmpNode.size`."""
        return len(self.entries) * _ENTRY_SIZE

    def require_search(self) -> None:
        """Refused(EACCES) unless names may be looked up."""
        self.require(os.X_OK)

    def require_change(self) -> None:
        """Refused unless names may be made and removed: ENOENT when it was removed, EACCES."""
        if not self.links:
            raise Refused(errno.ENOENT, "the directory was removed")
        self.require(os.W_OK | os.X_OK)

    def require_removal(self, node: TmpNode | Special) -> None:
        """Refused unless a name of `node` may be removed: see `require_change`; EPERM where it is sticky."""
        self.require_change()
        who = self.fs.actor.credentials
        if self.mode & modes.S_ISVTX and who.fsuid not in (node.uid, self.uid) and not who.has(FOWNER):
            raise Refused(errno.EPERM, "in a sticky directory names are removed by their files' owners")

    def inherit(self, node: TmpNode | Special) -> None:
        """What is made in a set-group-id directory is of its group."""
        if self.mode & modes.S_ISGID:
            node.gid = self.gid

    def put(self, name: bytes, node: TmpNode | Special) -> None:
        """Let a name, which leads nowhere yet, lead to what has been counted."""
        self.entries[name] = node
        if isinstance(node, TmpDirectory):
            node.parent = self
            self.links += 1

    def take(self, name: bytes) -> TmpNode | Special:
        """Let a name lead nowhere. What it led to is still counted."""
        node = self.entries.pop(name)
        if isinstance(node, TmpDirectory):
            self.links -= 1
        return node

    def is_below(self, other: TmpNode | Special) -> bool:
        """Whether it is `other`, or lies somewhere in it."""
        here: TmpDirectory | None = self
        while here is not None:
            if here is other:
                return True
            here = here.parent
        return False

    def directory_at(self, names: tuple[bytes, ...]) -> TmpDirectory:
        """The directory below, made where there is none: where something is to be mounted."""
        here = self
        for name in names:
            below = here.entries.get(name)
            if not isinstance(below, TmpDirectory):
                below = TmpDirectory(self.fs, 0o755, here)
                here.put(name, below)
            here = below
        return here

    def drop_name(self) -> None:
        """It is removed: a directory has one name."""
        self.links = 0
        self.nameless()


class TmpLink(TmpNode):
    """A symbolic link. Refused(ENOSPC) when a long target finds no memory."""

    def __init__(self, fs: Tmpfs, target: bytes, inode: Inode | None = None) -> None:
        if len(target) >= _SHORT_LINK and fs.account.memory_used + _PAGE > fs.account.memory_limit:
            raise Refused(errno.ENOSPC, f"files in memory may hold {fs.account.memory_limit} bytes in all")
        super().__init__(fs, modes.S_IFLNK | 0o777, inode)
        self.target = target
        fs.account.memory_used += self.allocated

    @property
    def size(self) -> int:
        """See `TmpNode.size`."""
        return len(self.target)

    @property
    def allocated(self) -> int:
        """See `TmpNode.allocated`."""
        return _PAGE if len(self.target) >= _SHORT_LINK else 0

    def nameless(self) -> None:
        """See `TmpNode.nameless`."""
        self.fs.account.memory_used -= self.allocated
        super().nameless()
