"""The free blocks of one order, last in first out, in four bytes each.

The frame table's `block` column says which blocks are free, so a list need not be exact. A block that is
joined with its buddy leaves its entry behind, which is passed over when its turn comes: then the column says
something else. One that is free again has a newer entry, nearer to the end, and goes by that. When more than
half of the entries are left behind they are thrown away.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from aether_emu.mm.frames.table import FrameTable

FREE_BLOCK = 0x80
"""Bit of the `block` column."""
_FEW = 64  # entries that may be left behind in any case


class FreeList:
    """The blocks of `order`. Whoever adds one has written its mark into the column; to `pop` takes it out.

    `count` is how many there are.
    """

    __slots__ = ("_entries", "_frames", "_mark", "count")

    def __init__(self, frames: FrameTable, order: int) -> None:
        self._frames, self._mark, self.count = frames, FREE_BLOCK | order + 1, 0
        self._entries = array("I")

    def __iter__(self) -> Iterator[int]:
        """The first frames of the blocks, the newest last."""
        return iter(self._right().tolist())

    def add(self, frame: int) -> None:
        """A block is free from now on."""
        self._entries.append(frame)
        self.count += 1
        if len(self._entries) > 2 * self.count + _FEW:
            self._tidy()

    def extend(self, frames: Iterable[int]) -> None:
        """Likewise, of several, the newest last."""
        before = len(self._entries)
        self._entries.extend(frames)
        self.count += len(self._entries) - before
        if len(self._entries) > 2 * self.count + _FEW:
            self._tidy()

    def leave(self, count: int = 1) -> None:
        """So many blocks of it are free no more, as the column says, or will."""
        self.count -= count

    def pop(self) -> int:
        """Take the newest block; there is one. Its mark is gone."""
        entries, block, mark = self._entries, self._frames.block, self._mark
        frame = entries.pop()
        while block[frame] != mark:
            frame = entries.pop()
        block[frame] = 0
        self.count -= 1
        return frame

    @property
    def kept(self) -> npt.NDArray[np.uint32]:
        """What it takes, to be measured."""
        return np.array(self._entries, np.uint32)

    def _right(self) -> npt.NDArray[np.uint32]:
        """The entries that count: of blocks that are free, the newest of each."""
        entries = np.array(self._entries, np.uint32)
        free = entries[self._frames.block_array[entries] == self._mark][::-1]
        _blocks, newest = np.unique(free, return_index=True)
        right: npt.NDArray[np.uint32] = free[np.sort(newest)][::-1]
        return right

    def _tidy(self) -> None:
        self._entries = array("I", self._right().tobytes())
