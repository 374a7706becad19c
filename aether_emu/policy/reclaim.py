"""In which order pages leave memory: by the clock with two hands, or by generations.

Both go by the accessed bits of entries (`mm.ageing`), which some MMUs set and others leave to faults. Frames
come in the order of their numbers, so the same run takes the same pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import PageTableFormat
from aether_emu.config import Config
from aether_emu.mm import ageing
from aether_emu.mm.frames.table import Flags, Kind
from aether_emu.mm.physical import Physical
from aether_emu.mm.reclaim import Order, Reclaim
from aether_emu.mm.swap.area import SwapArea
from aether_emu.mm.swap.codec import best_codec
from aether_emu.mm.swap.file import SwapFile
from aether_emu.mm.swap.store import Store

_ANON, _SHARED = int(Kind.ANON), int(Kind.SHARED)
_UNEVICTABLE = int(Flags.UNEVICTABLE)
_STEP = 64  # frames that a hand passes at once, or that are tried at once of a generation
_WALKS = 2  # in one reclaim: a second one, with nothing executed in between, makes everything old
_POOL_PART = 5  # of the RAM, unless `swap_pool` says otherwise (Linux: zswap's max_pool_percent, 20)


class Clock:
    """Two hands go round the frames, the first a quarter ahead.

    first hand     forgets that a page was accessed
    second hand    takes it if it was not accessed since
    """

    def __init__(self, reclaim: Reclaim) -> None:
        self._physical = reclaim.physical
        self._count = reclaim.physical.buddy.total
        self._ahead = max(_STEP, (self._count >> 2) // _STEP * _STEP)
        self._hand = self._first = (
            0  # positions of the second and the first; the first may be one round ahead
        )
        self._left = 0  # frames that the second passes before a reclaim gives up
        self._cold: list[int] = []

    def begin(self) -> None:
        """See `Order`."""
        self._left = self._count + self._ahead

    def candidates(self) -> list[int]:
        """See `Order`. What is cold comes first."""
        if self._cold:
            cold, self._cold = self._cold, []
            return self._untouched(cold)
        while self._left > 0:
            ahead = self._hand + _STEP + self._ahead
            if self._first < ahead:
                ageing.forget_frames(self._physical, self._frames(self._first, ahead))
                self._first = ahead
            frames = self._frames(self._hand, self._hand + _STEP)
            self._hand += _STEP
            self._left -= _STEP
            if self._hand >= self._count:
                self._hand, self._first = self._hand - self._count, self._first - self._count
            chosen = self._untouched(frames)
            if chosen:
                return chosen
        return []

    def deactivate(self, frames: Sequence[int]) -> None:
        """See `Order`."""
        self._cold += frames

    def freed(self, frames: Sequence[int]) -> None:
        """See `Order`: the hands look at what is there."""

    def _untouched(self, frames: list[int]) -> list[int]:
        return [frame for frame in frames if not ageing.was_accessed(self._physical, frame)]

    def _frames(self, first: int, end: int) -> list[int]:
        """The frames of some positions, in order, that hold pages of programs."""
        numbers = np.arange(first, end) % self._count
        kinds = self._physical.frames.kind_array[numbers]
        may_go = (self._physical.frames.flags_array[numbers] & _UNEVICTABLE) == 0
        found: list[int] = numbers[((kinds == _ANON) | (kinds == _SHARED)) & may_go].tolist()
        return found

    def capture(self) -> dict[str, Any]:
        """See `Order`."""
        return {"hand": self._hand, "first": self._first, "cold": list(self._cold)}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Order`."""
        self._hand, self._first, self._cold = state["hand"], state["first"], list(state["cold"])


_TRIED, _NUMBER = np.uint8(128), np.uint8(127)  # the parts of a frame's byte
_LAST = 127
_FORGOTTEN = np.uint8(64)  # generations that become one when numbers run out


class Generations:
    """Pages belong to generations, and those of old ones go (Linux: multi-generational LRU).

        ageing    a walk through all page tables: what was accessed since the last one is of a new generation,
                  what has none yet is of the one before
        taking    the oldest first, but nothing of the newest; what was accessed since the walk joins that

    Where nothing but the newest is left there is an ageing. A frame that was freed has no generation.

    A byte for each frame has the number of its generation, 0 for none, and whether it was tried since
    `begin`. When numbers run out all are counted down, and the oldest generations become one.
    """

    def __init__(self, reclaim: Reclaim) -> None:
        self._physical = reclaim.physical
        count = reclaim.physical.buddy.total
        self._born: NDArray[np.uint8] = np.zeros(count, np.uint8)
        self._newest = 1
        self._walks = 0
        self._oldest: NDArray[np.int64] = np.zeros(0, np.int64)  # what is left to try of that generation

    def begin(self) -> None:
        """See `Order`."""
        self._born &= _NUMBER
        self._walks = 0
        self._oldest = self._oldest[:0]

    def candidates(self) -> list[int]:
        """See `Order`."""
        while True:
            if not self._oldest.size:
                old = np.flatnonzero(self._used() & (self._born > 0) & (self._born < self._newest))
                born = self._born[old]
                self._oldest = old[born == born.min()] if old.size else old
                self._born[self._oldest] |= _TRIED
            if self._oldest.size:
                chosen: list[int] = self._oldest[:_STEP].tolist()
                self._oldest = self._oldest[_STEP:]
                touched = [frame for frame in chosen if ageing.was_accessed(self._physical, frame)]
                self._born[touched] = self._newest
                untouched = [frame for frame in chosen if frame not in touched]
                if untouched:
                    return untouched
            elif self._walks < _WALKS:
                self._age()
            else:
                return []

    def _used(self) -> NDArray[np.bool_]:
        kinds = self._physical.frames.kind_array[: self._born.size]
        may_go = (self._physical.frames.flags_array[: self._born.size] & _UNEVICTABLE) == 0
        used: NDArray[np.bool_] = ((kinds == _ANON) | (kinds == _SHARED)) & may_go
        return used

    def _age(self) -> None:
        """Begin a generation."""
        self._walks += 1
        self._born &= _NUMBER
        if self._newest == _LAST:
            younger = self._born > _FORGOTTEN
            self._born = np.where(younger, self._born - _FORGOTTEN, np.minimum(self._born, 1))
            self._newest -= int(_FORGOTTEN)
        self._born[(self._born == 0) & self._used()] = self._newest
        self._newest += 1
        for frames in ageing.forget_everywhere(self._physical):
            self._born[frames[frames < self._born.size]] = self._newest

    def deactivate(self, frames: Sequence[int]) -> None:
        """See `Order`: they are of the oldest generation there can be."""
        self._born[list(frames)] = 1
        self._newest = max(self._newest, 2)

    def freed(self, frames: Sequence[int]) -> None:
        """See `Order`."""
        self._born[[frame for frame in frames if frame < self._born.size]] = 0

    def capture(self) -> dict[str, Any]:
        """See `Order`."""
        return {"born": self._born.copy(), "newest": int(self._newest)}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Order`."""
        self._born[:], self._newest = state["born"], state["newest"]


ORDERS: dict[str, Callable[[Reclaim], Order]] = {"mglru": Generations, "clock": Clock}


def connect(physical: Physical, fmt: PageTableFormat, config: Config) -> None:
    """Give a machine a swap area, with a file of its own if parameters ask for that. Raises ConfigError."""
    slots = config.swap // fmt.page_size
    n = physical.counters.n
    limit = config.ram // _POOL_PART if config.swap_pool is None else config.swap_pool
    file = SwapFile(config.swap_file, slots, fmt.page_size)
    store = Store(file, best_codec(), limit, fmt.page_size, n)
    physical.swap = SwapArea(fmt, slots, store, n, physical.ram.size // fmt.page_size)
    physical.read_ahead = config.swap_readahead
    room, physical.reclaim = physical.reclaim, Reclaim(physical, physical.swap, ORDERS[config.reclaim])
    if room is not None:
        physical.reclaim.lazy = room.lazy
