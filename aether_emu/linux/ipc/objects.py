"""What System V's things are in the machine's memory: an object for each, with the bytes of its messages.

ipc_perm   how each of the three begins: who it belongs to, and by which number and key it is found
sem        one semaphore of a set, 64 bytes each, in pieces of a page
msg_msg    a message: this head, and its bytes right behind it, in pieces of a page
"""

from __future__ import annotations

from aether_emu.mm.physical import Physical
from aether_emu.mm.slab.layout import Layout

_PERM = (
    ("id", "i"),
    ("key", "I"),
    ("uid", "I"),
    ("gid", "I"),
    ("cuid", "I"),
    ("cgid", "I"),
    ("mode", "I"),
)
SEGMENT = Layout("shmid_kernel", *_PERM, ("cprid", "i"), ("segsz", "Q"))
SET = Layout("sem_array", *_PERM, ("nsems", "I"), ("sems", "Q"))
QUEUE = Layout(
    "msg_queue", *_PERM, ("lspid", "i"), ("lrpid", "i"), ("qnum", "I"), ("cbytes", "Q"), ("qbytes", "Q")
)
SEM = Layout("sem", ("semval", "i"), ("sempid", "i"))
SEM_SIZE = 64
MESSAGE = Layout("msg_msg", ("type", "q"), ("size", "Q"), ("queue", "Q"))
HEAD = 48
"""Bytes of a message's head."""


class Kept:
    """Something with an object in memory. It has none before `embody`, nor on a computer without Linux."""

    layout: Layout
    physical: Physical | None = None
    kernel_object = 0

    def embody(self, **fields: int) -> None:
        """Take an object. Raises OutOfFrames, with nothing taken."""
        physical = self.physical
        if physical is not None:
            taken = physical.with_room(lambda: physical.slabs.take(self.layout, **fields))
            self.kernel_object = taken

    def note(self, **fields: int) -> None:
        """Write fields of the object."""
        if self.physical is not None:
            self.physical.slabs.store(self.layout, self.kernel_object, **fields)

    def disembody(self) -> None:
        """Nobody has it any more."""
        address, self.kernel_object = self.kernel_object, 0
        if self.physical is not None:
            self.physical.slabs.put(self.layout, address)


class Bytes:
    """Bytes of memory that belong to one thing: for the semaphores of a set, or a message."""

    def __init__(self, physical: Physical | None, size: int, pieces: tuple[int, ...] = ()) -> None:
        self._physical, self.size, self.pieces = physical, size, pieces

    def take(self) -> None:
        """Take them. Raises OutOfFrames, with nothing taken."""
        physical = self._physical
        if physical is not None:
            self.pieces = physical.with_room(lambda: physical.slabs.take_bytes(self.size))

    def write(self, data: bytes, at: int = 0) -> None:
        """Write from the byte `at` on."""
        if self._physical is not None and self.pieces:
            self._physical.slabs.write(self.pieces, data, at)

    def read(self, length: int, at: int = 0) -> bytes:
        """Read there; nothing where there are none."""
        return b"" if self._physical is None else self._physical.slabs.read(self.pieces, length, at)

    def free(self) -> None:
        """Give them back."""
        pieces, self.pieces = self.pieces, ()
        if self._physical is not None:
            self._physical.slabs.put_bytes(pieces, self.size)
