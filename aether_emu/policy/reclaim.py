"""In which order pages leave memory: by the clock with two hands, or by generations.

Both go by the accessed bits of entries (`mm.ageing`), which some MMUs set and others leave to faults. Frames
come in the order of their numbers, so the same run takes the same pages. Pages of files, where they count as
memory, are known by the frames of RAM that stand for them; those that go to swap are apart from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import PageTableFormat
from aether_emu.config import Config
from aether_emu.mm import ageing
from aether_emu.mm.file_reclaim import FilePages
from aether_emu.mm.frames.table import Flags, Kind
from aether_emu.mm.page_cache import PageCache
from aether_emu.mm.physical import Physical
from aether_emu.mm.reclaim import Order, Reclaim
from aether_emu.mm.swap.area import SwapArea
from aether_emu.mm.swap.codec import best_codec
from aether_emu.mm.swap.file import SwapFile
from aether_emu.mm.swap.store import Store
from aether_emu.mm.tables.count import Frames

_ANON, _SHARED, _CACHE = int(Kind.ANON), int(Kind.SHARED), int(Kind.CACHE)
_UNEVICTABLE = int(Flags.UNEVICTABLE)
_STEP = 64  # frames that a hand passes at once, or that are tried at once of a generation
_WALKS = 2  # in one reclaim: a second one, with nothing executed in between, makes everything old
_POOL_PART = 5  # of the RAM, unless `swap_pool` says otherwise (Linux: zswap's max_pool_percent, 20)


def _may_go(physical: Physical, numbers: Frames | slice, *, files: bool) -> NDArray[np.bool_]:
    """Which of some frames stand for pages of files, or hold pages of programs, that are not locked."""
    kinds = physical.frames.kind_array[numbers]
    evictable = (physical.frames.flags_array[numbers] & _UNEVICTABLE) == 0
    of_kind = kinds == _CACHE if files else (kinds == _ANON) | (kinds == _SHARED)
    may: NDArray[np.bool_] = of_kind & evictable
    return may


def _pages(physical: Physical, frames: Sequence[int]) -> Sequence[int]:
    """The frames that entries show: others than those that stand for files' pages."""
    kinds, index = physical.frames.kind, physical.frames.index
    return [index[frame] if kinds[frame] == _CACHE else frame for frame in frames]


def _untouched(physical: Physical, frames: Sequence[int]) -> list[int]:
    """Those that were not accessed since that was last forgotten."""
    pages = _pages(physical, frames)
    touched = [ageing.was_accessed(physical, page) for page in pages]
    if physical.cache is not None and any(touched):
        used = [page for page, was in zip(pages, touched, strict=True) if was]
        physical.cache.touched(np.array(used, np.int64))
    return [frame for frame, was in zip(frames, touched, strict=True) if not was]


class Clock:
    """Two hands go round the frames, the first a quarter ahead.

    first hand     forgets that a page was accessed
    second hand    takes it if it was not accessed since

    Pages of files have a clock of their own, over the same frames.
    """

    def __init__(self, reclaim: Reclaim) -> None:
        self._physical = reclaim.physical
        self._clocks = tuple(_Hands(reclaim.physical, files=files) for files in (False, True))

    def begin(self) -> None:
        """See `Order`."""
        for hands in self._clocks:
            hands.begin()

    def candidates(self, *, files: bool) -> list[int]:
        """See `Order`. What is cold comes first."""
        return self._clocks[files].candidates()

    def deactivate(self, frames: Sequence[int]) -> None:
        """See `Order`."""
        kinds = self._physical.frames.kind
        for files, hands in enumerate(self._clocks):
            hands.cold += [frame for frame in frames if (kinds[frame] == _CACHE) == files]

    def spared(self, frame: int) -> None:
        """See `Order`: it comes again in the next round."""

    def freed(self, frames: Sequence[int]) -> None:
        """See `Order`: the hands look at what is there."""

    def capture(self) -> dict[str, Any]:
        """See `Order`."""
        return {"clocks": [hands.capture() for hands in self._clocks]}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Order`."""
        for hands, captured in zip(self._clocks, state["clocks"], strict=True):
            hands.restore(captured)


class _Hands:
    """The two hands of one clock."""

    def __init__(self, physical: Physical, *, files: bool) -> None:
        self._physical, self._files = physical, files
        self._count = physical.buddy.total
        self._ahead = max(_STEP, (self._count >> 2) // _STEP * _STEP)
        self._hand = self._first = (
            0  # positions of the second and the first; the first may be one round ahead
        )
        self._left = 0  # frames that the second passes before a reclaim gives up
        self.cold: list[int] = []

    def begin(self) -> None:
        """All may be passed once."""
        self._left = self._count + self._ahead

    def candidates(self) -> list[int]:
        """The cold ones, then what the second hand comes to."""
        if self.cold:
            cold, self.cold = self.cold, []
            chosen = self._of_kind(np.array(cold, np.int64))
            return _untouched(self._physical, chosen)
        while self._left > 0:
            ahead = self._hand + _STEP + self._ahead
            if self._first < ahead:
                passed = self._frames(self._first, ahead)
                if self._files:
                    _untouched(self._physical, passed)  # what was spared and used since is spared again
                ageing.forget_frames(self._physical, _pages(self._physical, passed))
                self._first = ahead
            frames = self._frames(self._hand, self._hand + _STEP)
            self._hand += _STEP
            self._left -= _STEP
            if self._hand >= self._count:
                self._hand, self._first = self._hand - self._count, self._first - self._count
            chosen = _untouched(self._physical, frames)
            if chosen:
                return chosen
        return []

    def _frames(self, first: int, end: int) -> list[int]:
        """The frames of some positions, in order, that hold pages of the kind."""
        return self._of_kind(np.arange(first, end) % self._count)

    def _of_kind(self, numbers: Frames) -> list[int]:
        found: list[int] = numbers[_may_go(self._physical, numbers, files=self._files)].tolist()
        return found

    def capture(self) -> dict[str, Any]:
        """Where they are."""
        return {"hand": self._hand, "first": self._first, "cold": list(self.cold)}

    def restore(self, state: dict[str, Any]) -> None:
        """Be there."""
        self._hand, self._first, self.cold = state["hand"], state["first"], list(state["cold"])


class _Line:
    """Frames that are tried one after the other."""

    def __init__(self) -> None:
        self.frames: Frames = np.zeros(0, np.int64)


_TRIED, _NUMBER = np.uint8(128), np.uint8(127)  # the parts of a frame's byte
_LAST = 127
_FORGOTTEN = np.uint8(64)  # generations that become one when numbers run out


class Generations:
    """Pages belong to generations, and those of old ones go (Linux: multi-generational LRU).

        ageing    a walk through all page tables: what was accessed since the last one is of a new generation,
                  what has none yet is of the one before
        taking    the oldest first, but nothing of the newest; what was accessed since the walk joins that

    Where nothing but the newest is left there is an ageing. A frame that was freed has no generation. Pages
    of files are of the same generations as others; which of them is their oldest is another question.

    A byte for each frame has the number of its generation, 0 for none, and whether it was tried since
    `begin`. When numbers run out all are counted down, and the oldest generations become one.
    """

    def __init__(self, reclaim: Reclaim) -> None:
        self._physical = reclaim.physical
        count = reclaim.physical.buddy.total
        self._born: NDArray[np.uint8] = np.zeros(count, np.uint8)
        self._newest = 1
        self._walks = 0
        # What is left to try of the oldest one: of what goes to swap, of files.
        self._oldest = (_Line(), _Line())

    def begin(self) -> None:
        """See `Order`."""
        self._born &= _NUMBER
        self._walks = 0
        for line in self._oldest:
            line.frames = line.frames[:0]

    def candidates(self, *, files: bool) -> list[int]:
        """See `Order`."""
        line = self._oldest[files]
        while True:
            if not line.frames.size:
                used = _may_go(self._physical, slice(self._born.size), files=files)
                old = np.flatnonzero(used & (self._born > 0) & (self._born < self._newest))
                born = self._born[old]
                line.frames = old[born == born.min()] if old.size else old
                self._born[line.frames] |= _TRIED
            if line.frames.size:
                chosen: list[int] = line.frames[:_STEP].tolist()
                line.frames = line.frames[_STEP:]
                untouched = _untouched(self._physical, chosen)
                self._born[[frame for frame in chosen if frame not in untouched]] = self._newest
                if untouched:
                    return untouched
            elif self._walks < _WALKS:
                self._age()
            else:
                return []

    def _age(self) -> None:
        """Begin a generation."""
        self._walks += 1
        self._born &= _NUMBER
        if self._newest == _LAST:
            younger = self._born > _FORGOTTEN
            self._born = np.where(younger, self._born - _FORGOTTEN, np.minimum(self._born, 1))
            self._newest -= int(_FORGOTTEN)
        for files in (False, True):
            used = _may_go(self._physical, slice(self._born.size), files=files)
            self._born[(self._born == 0) & used] = self._newest
        self._newest += 1
        cache = self._physical.cache
        for frames in ageing.forget_everywhere(self._physical):
            self._born[frames[frames < self._born.size]] = self._newest
            if cache is not None:
                cache.touched(frames)
                self._born[cache.stand_ins(frames)] = self._newest

    def deactivate(self, frames: Sequence[int]) -> None:
        """See `Order`: they are of the oldest generation there can be."""
        self._born[list(frames)] = 1
        self._newest = max(self._newest, 2)

    def spared(self, frame: int) -> None:
        """See `Order`: it is of the newest generation."""
        self._born[frame] = self._newest

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
    _reclaims(physical, config).swap = physical.swap


def count_files(physical: Physical, config: Config) -> None:
    """Have pages of files count as memory, and go when it is short."""
    n = physical.counters.n
    cache = PageCache(physical.frames, physical.buddy, physical.aperture, n, physical.free)
    physical.cache, files = cache, FilePages(physical, cache)
    physical.files = _reclaims(physical, config).files = files


def _reclaims(physical: Physical, config: Config) -> Reclaim:
    """Who takes pages, made where there is none. It takes over what was freed lazily before."""
    room = physical.reclaim
    if isinstance(room, Reclaim):
        return room
    physical.reclaim = reclaim = Reclaim(physical, None, ORDERS[config.reclaim])
    if room is not None:
        reclaim.lazy = room.lazy
    return reclaim
