"""Where a walk has arrived, and how open files remember their names.

A `Place` holds the object itself (a host O_PATH descriptor or a synthetic node), so that nothing done to
names afterwards can change what is reached through it. A `Dentry` is only the name; renames inside the
guest move it along.
"""

from __future__ import annotations

import errno
import os
import stat as modes
from abc import ABC, abstractmethod
from types import TracebackType

from aether_emu.errors import Refused, shown
from aether_emu.linux.files.inodes import Inode
from aether_emu.linux.files.mounts import Mount
from aether_emu.linux.files.special import Special
from aether_emu.linux.files.synthetic import Node
from aether_emu.linux.files.tmp_nodes import TmpNode
from aether_emu.records import dataclass

GuestPath = tuple[bytes, ...]
"""A canonical path: components below the guest's root, with no links, `.` or `..` among them."""

NAME_MAX = 255
"""Longest name in bytes."""


def text(path: GuestPath) -> bytes:
    """The path as the guest writes it."""
    return b"/" + b"/".join(path)


class Place:
    """One object in the namespace: exactly one of (`fd`, `status`) and `node` says which.

    An owned descriptor is closed with the place; a borrowed one belongs to a mount or an open file.
    `inode` is known if it was reached through an open file, which keeps its inode when its last name goes.
    """

    __slots__ = ("fd", "inode", "mount", "node", "owned", "path", "status")

    def __init__(
        self,
        mount: Mount,
        path: GuestPath,
        *,
        fd: int = -1,
        status: os.stat_result | None = None,
        node: Node | None = None,
        inode: Inode | None = None,
        owned: bool = False,
    ) -> None:
        assert (status is None) != (node is None), "a place is either the host's or synthetic"
        self.mount, self.path, self.fd, self.status, self.node, self.owned = (
            mount,
            path,
            fd,
            status,
            node,
            owned,
        )
        self.inode = inode

    @property
    def mode(self) -> int:
        """Type and permission bits."""
        if self.status is not None:
            return self.status.st_mode
        assert self.node is not None
        return self.node.mode

    @property
    def is_directory(self) -> bool:
        """Whether walks can go on from here."""
        return modes.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link (itself, not what it leads to)."""
        return modes.S_ISLNK(self.mode)

    @property
    def key(self) -> tuple[int, int] | GuestPath:
        """What the inode table knows the object by."""
        if self.status is not None:
            return self.status.st_dev, self.status.st_ino
        return self.node.key if isinstance(self.node, TmpNode | Special) else self.path

    def borrowed(self) -> Place:
        """The same place without the duty to close."""
        return Place(self.mount, self.path, fd=self.fd, status=self.status, node=self.node, inode=self.inode)

    def close(self) -> None:
        """Close an owned descriptor."""
        if self.owned:
            os.close(self.fd)
            self.owned = False

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Named(ABC):
    """An open file that has a place in the namespace, where walks can start."""

    @abstractmethod
    def place(self) -> Place:
        """Where it is; borrowed, so good as long as the file is open."""


def place_of(file: object) -> Place | None:
    """Where in the namespace an open file is; None for what has no name."""
    return file.place() if isinstance(file, Named) else None


@dataclass(eq=False)
class Dentry:
    """The name of an open file or working directory; `detached` once it is gone or another file's."""

    mount: Mount
    path: GuestPath
    detached: bool = False

    def shown(self, gone: bool) -> bytes:
        """The name as /proc/self/fd shows it."""
        return text(self.path) + (b" (deleted)" if gone or self.detached else b"")


@dataclass
class Entry:
    """The last step of a walk: a directory, a name in it, and what is there (None: nothing is).

    `name` is None for the root, b"." and b".." where the path ended so; `slash` if a slash followed it.
    """

    parent: Place
    name: bytes | None
    place: Place | None
    slash: bool

    def __enter__(self) -> Entry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.parent.close()
        if self.place is not None:
            self.place.close()

    @property
    def path(self) -> GuestPath:
        """Where the name is or would be. Only for an ordinary name."""
        assert self.name is not None and self.name not in (b".", b"..")
        return (*self.parent.path, self.name)

    def absent(self) -> Refused:
        """What to raise because nothing is there: a name that is too long can't be."""
        if self.name is not None and len(self.name) > NAME_MAX:
            return Refused(errno.ENAMETOOLONG, f"a name of {len(self.name)} bytes")
        return Refused(
            errno.ENOENT, f"{shown(self.name or b'/')} does not exist in {shown(text(self.parent.path))}"
        )

    @property
    def is_ordinary(self) -> bool:
        """Whether the name is one that can be made and removed."""
        return self.name is not None and self.name not in (b".", b"..")

    @property
    def host_name(self) -> bytes:
        """The name for a host call on `parent.fd` that does not follow its last component.

        With its slash, so that the host itself decides what the slash forbids.
        """
        assert self.name is not None
        return self.name + (b"/" if self.slash else b"")
