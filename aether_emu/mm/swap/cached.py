"""Which slot a frame is cached for: a column in pieces, of which only those with such a frame are there.

Most frames are cached for none, and 4 bytes for each of them would be a good part of all that is kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SHIFT = 6
_FRAMES = 1 << _SHIFT
_IN_PIECE = _FRAMES - 1
_EMPTY = memoryview(bytes(4 * _FRAMES)).cast("I")  # for all pieces without a cached frame


class CachedSlots:
    """Of each of `frames` frames the slot that it is cached for, plus one; 0: none. `of[frame]` asks."""

    def __init__(self, frames: int) -> None:
        self._pieces = [_EMPTY] * (frames + _IN_PIECE >> _SHIFT)
        self._counts = bytearray(len(self._pieces))

    def __getitem__(self, frame: int) -> int:
        return self._pieces[frame >> _SHIFT][frame & _IN_PIECE]

    def set(self, frame: int, slot: int) -> None:
        """A frame that is cached for none is cached for a slot, plus one."""
        assert not self[frame], f"frame {frame} is cached for a slot"
        at = frame >> _SHIFT
        if not self._counts[at]:
            self._pieces[at] = memoryview(bytearray(4 * _FRAMES)).cast("I")
        self._counts[at] += 1
        self._pieces[at][frame & _IN_PIECE] = slot

    def clear(self, frame: int) -> None:
        """A frame that is cached is cached no longer."""
        at = frame >> _SHIFT
        self._counts[at] -= 1
        if self._counts[at]:
            self._pieces[at][frame & _IN_PIECE] = 0
        else:
            self._pieces[at] = _EMPTY

    def frames(self) -> NDArray[np.int64]:
        """The frames that are cached, in ascending order."""
        found = [
            (at << _SHIFT) + np.flatnonzero(np.asarray(self._pieces[at]))
            for at, count in enumerate(self._counts)
            if count
        ]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    @property
    def kept(self) -> int:
        """Bytes that it takes."""
        return 8 * len(self._pieces) + len(self._counts) + sum(4 * _FRAMES for count in self._counts if count)
