"""How many frames are kept free, and who makes room where there are fewer.

    free frames        high    reclaim is content
                       low     kswapd is woken, if there is one; else whoever needs a frame makes room itself
                       min     whoever needs a frame makes room itself

It runs where no operation is in its midst: at the beginning of a fault that is not served on the fast path,
and of a call that takes frames (`balance`), where an operation has met OutOfFrames and left all as it was
(`make_room`), and between two turns (`in_background`, for `linux/task/kswapd`).

Without a swap area there is a `Room` from the first MADV_FREE on: only such pages can go (`mm.lazyfree`).
With one, `mm.reclaim` takes others as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aether_emu.mm.counters import Event
from aether_emu.mm.lazyfree import LazyPages
from aether_emu.mm.physical import Physical

BATCH = 32
"""Frames that are taken together, with one flush for each address space (Linux: SWAP_CLUSTER_MAX)."""
_RESTS = 64  # slow faults after a try that brought nothing


class Watermarks(NamedTuple):
    """Free frames: below `low` reclaim begins, up to `high` it goes on; `min` is what it never promises."""

    min: int
    low: int
    high: int


def least_free(frames: int, page_size: int) -> int:
    """Linux's min_free_kbytes for so much memory, in bytes: four times the root of the KiB, in KiB."""
    return max(8, min(frames >> 4, 4 * isqrt(frames * page_size >> 10) * 1024 // page_size)) * page_size


def watermarks(frames: int, page_size: int, least: int | None = None, scale: int = 10) -> Watermarks:
    """Those for so much memory. `least` is min_free_kbytes in bytes, if not Linux's own; `scale` how far the
    marks are apart at least, in 10,000ths of memory (watermark_scale_factor).
    """
    least = max(8, (least_free(frames, page_size) if least is None else least) // page_size)
    gap = max(least >> 2, 4, frames * scale // 10_000)
    return Watermarks(least, least + gap, least + 2 * gap)


class Room:
    """Makes room on one machine. `on_stall` is told when somebody has waited for it.

    `wake` calls whoever reclaims in the background; None: nobody does.
    """

    def __init__(self, physical: Physical) -> None:
        self._physical = physical
        self._n, self._buddy = physical.counters.n, physical.buddy
        self.least: int | None = None
        self.scale = 10
        self.marks = watermarks(self._buddy.total, physical.ram.page_size)
        self._rests = 0
        self.lazy = LazyPages(physical)
        self.on_stall: Callable[[], None] = lambda: None
        self.wake: Callable[[], None] | None = None
        self._scanned, self._taken = Event.RECLAIM_SCANNED, Event.RECLAIM_TAKEN

    @property
    def physical(self) -> Physical:
        """The machine's memory."""
        return self._physical

    def set_marks(self, least: int | None, scale: int) -> None:
        """Keep other watermarks: see `watermarks`."""
        self.least, self.scale = least, scale
        self.marks = watermarks(self._buddy.total, self._physical.ram.page_size, least, scale)

    @property
    def is_short(self) -> bool:
        """See `Reclaiming`."""
        return self._buddy.free_frames < self.marks.low

    @property
    def spare(self) -> int:
        """See `Reclaiming`."""
        return self.marks.min

    def balance(self) -> None:
        """See `Reclaiming`. After a try that brought nothing some faults go by without one."""
        free = self._buddy.free_frames
        if free >= self.marks.low:
            return
        if self._rests:
            self._rests -= 1
            return
        if self.wake is not None:
            self.wake()
            if free >= self.marks.min:
                return
        wanted = self.marks.high - free if self.wake is None else max(self.marks.min - free, BATCH)
        if not self._stall(wanted):
            self._rests = _RESTS

    def make_room(self, wanted: int) -> bool:
        """See `Reclaiming`."""
        short = max(wanted, self.marks.min) - self._buddy.free_frames
        return self._stall(max(short, BATCH)) > 0

    def in_background(self) -> int:
        """Take frames up to the high mark, while nobody waits for them. Returns how many."""
        wanted = self.marks.high - self._buddy.free_frames
        if wanted <= 0:  # somebody has made room since it was asked for
            return 0
        self._scanned, self._taken = Event.KSWAPD_SCANNED, Event.KSWAPD_TAKEN
        try:
            taken = self._reclaim(wanted)
        finally:
            self._scanned, self._taken = Event.RECLAIM_SCANNED, Event.RECLAIM_TAKEN
        if not taken:
            self._rests = _RESTS
        return taken

    def _stall(self, wanted: int) -> int:
        """Somebody waits for so many frames. Returns how many could be had."""
        self._n[Event.RECLAIM_STALLS] += 1
        taken = self._reclaim(wanted)
        self.on_stall()
        return taken

    def _reclaim(self, wanted: int) -> int:
        """Take at least so many frames, if there are. Returns how many."""
        dropped = self.lazy.drop(wanted)
        self._n[self._scanned] += dropped
        self._n[self._taken] += dropped
        return dropped

    # ---- what there is only where pages go to swap

    def take(self, _frames: Sequence[int]) -> int:
        """See `Reclaiming`."""
        return 0

    def cool(self, _frames: Sequence[int]) -> None:
        """See `Reclaiming`."""

    def unlocked(self, _frames: NDArray[np.int64]) -> None:
        """See `Reclaiming`."""

    def freed(self, frames: Sequence[int]) -> None:
        """See `Reclaiming`."""
        self.lazy.forget(frames)

    # ---- state

    def capture(self) -> dict[str, Any]:
        """All that goes on."""
        marks = self.least, self.scale
        return {"rests": self._rests, "marks": marks, "lazy": self.lazy.capture()}

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one."""
        self._rests = state["rests"]
        self.set_marks(*state["marks"])
        self.lazy.restore(state["lazy"])
