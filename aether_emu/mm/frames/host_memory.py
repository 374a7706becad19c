"""The host's memory follows the guest's: what lies behind frames that are free again goes back to the host.

A frame that was used keeps its bytes, and the host's page, after it is freed: the next owner zeroes it. So a
run that once used much memory would stay large. Here, each time that so many frames were freed, all large
free blocks are gone through, and those that were used are given back. They read as zero then, and need no
zeroing.
"""

from __future__ import annotations

import numpy as np

from aether_emu.machine.memory.ram import Ram
from aether_emu.mm.frames.buddy import Buddy
from aether_emu.mm.frames.table import Flags

_DIRTY, _CLEAN = np.uint8(Flags.DIRTY), np.uint8(255 ^ Flags.DIRTY)
_SMALLEST = 64 << 10  # bytes of a block that is worth a call to the host


class HostMemory:
    """Gives free frames back each time that `step` bytes were freed; 0: never. `returned` counts frames."""

    def __init__(self, ram: Ram, buddy: Buddy, step: int) -> None:
        self._ram, self._buddy = ram, buddy
        self._step = step // ram.page_size
        self._freed = 0
        self.returned = 0

    def freed(self, frames: int) -> None:
        """So many frames were given back to the allocator."""
        if not self._step:
            return
        self._freed += frames
        if self._freed >= self._step:
            self._freed = 0
            self.give_back()

    def give_back(self) -> None:
        """Give back what lies behind all large free blocks now."""
        flags, size = self._buddy.frames.flags_array, self._ram.page_size
        for first, count in self._buddy.free_blocks((_SMALLEST // size).bit_length() - 1):
            used = np.flatnonzero(flags[first : first + count] & _DIRTY)
            if not used.size:
                continue
            low, high = first + int(used[0]), first + int(used[-1]) + 1
            self._ram.release(self._buddy.frames.address(low), (high - low) * size)
            flags[low:high] &= _CLEAN
            self.returned += int(used.size)

    def capture(self) -> tuple[int, int]:
        """What it counts, as plain data."""
        return self._freed, self.returned

    def restore(self, state: tuple[int, int]) -> None:
        """Count on from there."""
        self._freed, self.returned = state
