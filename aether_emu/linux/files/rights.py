"""Who may do what to what is at a place: by its mode and owner, and in /proc by whose process it shows."""

from __future__ import annotations

import errno
from collections.abc import Callable

from aether_emu.errors import Refused, shown
from aether_emu.linux.credentials import Actor
from aether_emu.linux.files.mounts import PROC_MAGIC, Mount
from aether_emu.linux.files.place import GuestPath, Place, text
from aether_emu.linux.files.special import Special
from aether_emu.linux.files.synthetic import Device, Opened
from aether_emu.linux.files.tmp_nodes import TmpNode

_INSIDE = frozenset(
    b"environ auxv maps smaps smaps_rollup mem pagemap exe cwd root fd fdinfo io syscall ns "
    b"personality".split()
)
"""What of a process only those may see who may inspect it."""


class Rights:
    """What `actor` may do. What grants show is owned by `uid` and `gid`; synthetic nodes are root's."""

    def __init__(self, actor: Actor, uid: int, gid: int) -> None:
        self._actor, self._uid, self._gid = actor, uid, gid
        self.process_owner: Callable[[int, bool], tuple[int, int]] = lambda number, folder: (uid, gid)
        """Who owns what /proc has of a process or thread: of its `folder` itself, or what is in it."""
        self.may_inspect: Callable[[int], bool] = lambda number: True
        """Whether who looks may look into a process or thread."""

    def owner(self, place: Place) -> tuple[int, int]:
        """(uid, gid) of what is at `place`."""
        node = place.node
        if isinstance(node, TmpNode | Special):
            return node.uid, node.gid
        if node is None:
            return self._uid, self._gid
        if isinstance(node, Device):
            return node.owner
        if isinstance(node, Opened):
            stat = node.file.stat()
            return stat.uid, stat.gid
        if of_a_process(place.mount, place.path):
            number, rest = _process_in(place)
            return self.process_owner(number, not rest)
        return 0, 0

    def permits(self, place: Place, wanted: int) -> bool:
        """Whether who looks has the rights `wanted` (R_OK, W_OK, X_OK) to what is at `place`.

        The host's user must have them too, for what is the host's.
        """
        return self._actor.credentials.permits(place.mode, *self.owner(place), wanted)

    def require(self, place: Place, wanted: int) -> None:
        """Refused(EACCES) unless it `permits` that, and for what shows a process, unless that may be seen."""
        if not self.permits(place, wanted):
            raise Refused(errno.EACCES, f"{shown(text(place.path))} doesn't allow it")
        if place.node is not None:
            self.require_inspection(place)

    def require_inspection(self, place: Place) -> None:
        """Refused(EACCES) for what shows the inside of a process that is not the looking one's to inspect."""
        if not of_a_process(place.mount, place.path):
            return
        number, rest = _process_in(place)
        if rest and rest[0] in _INSIDE and not self.may_inspect(number):
            raise Refused(errno.EACCES, f"{shown(text(place.path))} is another user's")

    def require_owner(self, place: Place) -> None:
        """Refused(EPERM) unless who looks may do what the owner may."""
        if not self._actor.credentials.owns(self.owner(place)[0]):
            raise Refused(errno.EPERM, f"{shown(text(place.path))} is another user's")


def of_a_process(mount: Mount, path: GuestPath) -> bool:
    """Whether this is the folder of a process in /proc, or below it. They come and go: no table has them."""
    below = path[len(mount.path) :]
    return mount.kind == PROC_MAGIC and bool(below) and below[0].isdigit()


def _process_in(place: Place) -> tuple[int, GuestPath]:
    """The number of the process or thread whose folder it is or is in, and where in that."""
    below = place.path[len(place.mount.path) :]
    if below[1:2] == (b"task",) and below[2:]:
        return int(below[2]), below[3:]
    return int(below[0]), below[1:]
