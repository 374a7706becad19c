"""Slabs over a small memory of their own, without a machine."""

from __future__ import annotations

from aether_emu.mm.frames.buddy import Buddy, Zone
from aether_emu.mm.frames.table import BASE_ALIGNMENT, FrameTable
from aether_emu.mm.slab.cache import Who
from aether_emu.mm.slab.geometry import debug_flags
from aether_emu.mm.slab.slabs import Slabs, Terms
from aether_emu.random import Stream

KERNEL = 0xFFFF_8000_0000_0000
FRAMES = 256


class Board:
    """`slabs` over `FRAMES` frames; `cpu` works, and `tid` is its task."""

    def __init__(
        self, debug: str = "", *, cpus: int = 1, page_shift: int = 12, merge: bool = False, only: str = ""
    ) -> None:
        size = FRAMES << page_shift
        self.memory = memoryview(bytearray(size))
        self.frames = FrameTable(BASE_ALIGNMENT, size, page_shift)
        self.buddy = Buddy(self.frames, [Zone("normal", 0, FRAMES)], cpus=cpus)
        self.cpu, self.tid, self.time = 0, 1000, 0
        self.slabs = self.make()
        self.chance = chance = Stream(7, "slab")
        named = (only,) if only else ()
        self.slabs.open(KERNEL, Terms(debug_flags(debug), named, merge, chance.u64, chance.below))
        self.slabs.cpu, self.slabs.who = lambda: self.cpu, self._who

    def make(self) -> Slabs:
        """What keeps the objects."""
        return Slabs(self.memory, BASE_ALIGNMENT, self.frames, self.buddy)

    def _who(self) -> Who:
        self.time += 1000
        return Who(self.tid, self.cpu, 56, self.time, b"a task")

    def poke(self, address: int, data: bytes) -> None:
        """Store at a kernel address, as anybody in the kernel could."""
        at = address - self.slabs.bias
        self.memory[at : at + len(data)] = data

    @property
    def used(self) -> int:
        """Frames that are not free."""
        return FRAMES - self.buddy.free_frames
