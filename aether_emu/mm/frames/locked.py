"""An allocator that counts how often a lock of its free lists would be taken (`mm.locks`).

With ready lists for each CPU that is each time when one is filled or drained, and for everything that is
larger than a frame. Without them it is each allocation and each free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from aether_emu.mm.frames.buddy import Buddy, Zone
from aether_emu.mm.frames.free_lists import FreeLists
from aether_emu.mm.frames.table import FrameTable


class CountedBuddy(Buddy):
    """As `Buddy`; `touched` is how often the free lists were used."""

    def __init__(self, frames: FrameTable, zones: Sequence[Zone], **options: Any) -> None:
        self.touched = 0
        super().__init__(frames, zones, **options)

    def _begin(self, point: str, count: int, zone: str | None) -> list[FreeLists]:
        self.touched += 1
        return super()._begin(point, count, zone)

    def _free_slowly(self, frame: int, order: int) -> None:
        self.touched += 1
        super()._free_slowly(frame, order)

    def free_bulk(self, frames: npt.ArrayLike) -> None:
        """See `Buddy`: one batch."""
        self.touched += 1
        super().free_bulk(frames)


class SharedBuddy(CountedBuddy):
    """One list of ready frames for all CPUs, behind the lock: each frame that is taken or given back counts.

    Nobody pops a ready frame without asking: `caches` stay empty.
    """

    def __init__(self, frames: FrameTable, zones: Sequence[Zone], **options: Any) -> None:
        super().__init__(frames, zones, **options)
        self._lists = [cache[:] for cache in self.caches]
        self._ready = self._lists[0]

    def enter(self, cpu: int) -> None:
        """All CPUs have the same list."""

    def free(self, frame: int, order: int = 0) -> None:
        """See `Buddy`."""
        before = self.touched
        super().free(frame, order)
        self.touched = before + 1
