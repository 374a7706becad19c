"""Named pipes and sockets of the guest: names in directories that can be written, which the host never sees.

A FIFO or a socket on the host could be opened by the host's own processes. So these are only known here, by
their directory's identity and their name in it, beside what the host has there. They end with the machine.
"""

from __future__ import annotations

import stat as modes
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from aether_emu.linux.credentials import Actor
from aether_emu.linux.files.inodes import FileKey, Inode, InodeTable
from aether_emu.linux.files.pipe import Pipe

if TYPE_CHECKING:
    from aether_emu.linux.net.unix import UnixSocket

_KEYS = -1  # no host device has this number
Key = tuple[Any, ...]
"""A directory's identity (`place.Place.key`)."""


class Special:
    """A named pipe, with the `pipe` while it is open; or the name of `socket`, which may be closed by now."""

    def __init__(self, mode: int, key: FileKey, inode: Inode, uid: int, gid: int) -> None:
        self.mode, self.key, self.inode = mode, key, inode
        self.uid, self.gid = uid, gid
        self.links = 0
        self.pipe: Pipe | None = None
        self.socket: UnixSocket | None = None

    @property
    def is_fifo(self) -> bool:
        """Whether it is a named pipe."""
        return modes.S_ISFIFO(self.mode)


class Specials:
    """All of them, by (the directory's key, name)."""

    def __init__(self, inodes: InodeTable, actor: Actor) -> None:
        self._inodes, self._actor = inodes, actor
        self._by_name: dict[tuple[Key, bytes], Special] = {}
        self._made = 0

    def __bool__(self) -> bool:
        return bool(self._by_name)

    def find(self, directory: Key, name: bytes) -> Special | None:
        """The one with this name."""
        return self._by_name.get((directory, name))

    def all(self) -> Iterator[tuple[bytes, Special]]:
        """Every one with its last name."""
        return ((name, special) for (_where, name), special in self._by_name.items())

    def inside(self, directory: Key) -> Iterator[tuple[bytes, Special]]:
        """The names in a directory."""
        return ((name, special) for (where, name), special in self._by_name.items() if where == directory)

    def make(self, mode: int) -> Special:
        """A new one of who makes it, without a name."""
        self._made += 1
        key, who = (_KEYS, self._made), self._actor.credentials
        return Special(mode, key, self._inodes.created(key), who.fsuid, who.fsgid)

    def restored(self, mode: int, key: FileKey, inode: Inode, uid: int, gid: int) -> Special:
        """A captured one, without a name. The inode is the table's, if that knows one."""
        return Special(mode, key, self._inodes.known(key) or inode, uid, gid)

    def capture(self) -> dict[str, Any]:
        """The names in directories of the host, with the numbers of the inodes that they lead to."""
        names = [
            [list(where), name, special.inode.number] for (where, name), special in self._by_name.items()
        ]
        return {"names": names, "made": self._made}

    def restore(self, state: dict[str, Any], find: Callable[[int], Special]) -> None:
        """Take over what `capture` gave."""
        self._made = state["made"]
        for where, name, number in state["names"]:
            self._by_name[tuple(where), name] = find(number)

    def name(self, special: Special, directory: Key, name: bytes) -> None:
        """Give it a name, which nothing has."""
        special.links += 1
        self._by_name[directory, name] = special

    def remove(self, directory: Key, name: bytes) -> None:
        """A name is gone."""
        special = self._by_name.pop((directory, name))
        special.links -= 1
        if not special.links:
            self._inodes.forget(special.key)
