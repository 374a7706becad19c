"""What a pipe is in the machine's memory: a pipe_inode_info, and its ring of a pipe_buffer for each slot.

The bytes that are in a pipe stay with `Pipe`: no frame is taken for them. What says how many are there is not
in the ring either, which is as long as Linux's and empty.
"""

from __future__ import annotations

from typing import Any

from aether_emu.errors import OutOfFrames
from aether_emu.mm.physical import Physical
from aether_emu.mm.slab.layout import Layout

PIPE = Layout(
    "pipe_inode_info",
    ("ino", "Q"),
    ("bufs", "Q"),
    ("ring_size", "I"),
    ("readers", "I"),
    ("writers", "I"),
    ("r_counter", "I"),
    ("w_counter", "I"),
)
BUFFER = 40
"""Bytes of Linux's struct pipe_buffer."""


class PipeObject:
    """One pipe's. `physical` is None for a pipe of no machine, which has none."""

    def __init__(self, physical: Physical | None, ino: int, slots: int) -> None:
        """Raises OutOfFrames, with nothing taken."""
        self._physical, self.slots = physical, slots
        self.address, self.ring = 0, tuple[int, ...]()
        if physical is not None:
            slabs = physical.slabs
            self.ring = self._take_ring(physical, slots)
            try:
                self.address = physical.with_room(
                    lambda: slabs.take(PIPE, ino=ino, bufs=self._bufs, ring_size=slots)
                )
            except OutOfFrames:
                slabs.put_bytes(self.ring, slots * BUFFER)
                raise

    def _take_ring(self, physical: Physical, slots: int) -> tuple[int, ...]:
        return physical.with_room(lambda: physical.slabs.take_bytes(slots * BUFFER))

    @property
    def _bufs(self) -> int:
        return self.ring[0] if self.ring else 0

    def note(self, **fields: int) -> None:
        """Write fields."""
        if self._physical is not None:
            self._physical.slabs.store(PIPE, self.address, **fields)

    def resize(self, slots: int) -> None:
        """The ring has so many slots from now on. Raises OutOfFrames, with nothing changed."""
        if self._physical is not None:
            before, old = self.ring, self.slots
            self.ring = self._take_ring(self._physical, slots)
            self._physical.slabs.put_bytes(before, old * BUFFER)
            self.note(bufs=self._bufs, ring_size=slots)
        self.slots = slots

    def free(self) -> None:
        """The pipe is gone."""
        if self._physical is not None:
            address, ring = self.address, self.ring
            self.address, self.ring = 0, ()
            self._physical.slabs.put_bytes(ring, self.slots * BUFFER)
            self._physical.slabs.put(PIPE, address)

    def capture(self) -> dict[str, Any]:
        """Where it stands."""
        return {"address": self.address, "ring": self.ring, "slots": self.slots}

    def restore(self, state: dict[str, Any]) -> None:
        """Stand there."""
        self.address, self.ring, self.slots = state["address"], state["ring"], state["slots"]
