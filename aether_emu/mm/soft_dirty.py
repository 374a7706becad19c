"""Which pages were written since a program last asked (soft-dirty state: Linux, admin-guide/mm/soft-dirty).

`forget` takes the right to write from every page, and marks it as clean; a write is a fault that brings an
entry without the mark. From the first time on the bits of the space's areas have the mark too, so that a page
that is only read comes with it. Nothing is different where nobody asks.

A *fresh* area, which came since then, counts as written whole, pages that are not there included: else one
that took another's place would go unnoticed. So do pages that mremap moved.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aether_emu.mm.ageing import Seen
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.seen import InSwap
from aether_emu.mm.tables import edits


def forget(space: AddressSpace) -> None:
    """From now on no page of the space counts as written. Raises OutOfFrames and TableDamaged."""
    if not space.tracks_writes:
        space.track_writes()
    gather = space.gather()
    try:
        for area in space.areas:
            area.fresh = False
            edits.forget_writes(space.table, gather, area.start, area.end)
    finally:
        gather.finish_at_once()  # who asks what was written since then relies on it


def written(space: AddressSpace, first: int, last: int, *looks: Seen | InSwap) -> NDArray[np.bool_]:
    """Whether each of the pages `[first, last)` (by number) counts as written; `looks` are what is there."""
    answer, shift = np.zeros(last - first, np.bool_), space.table.format.page_shift
    for seen in looks:
        answer[seen.pages[~seen.clean] - first] = True
    for area in space.areas.overlapping(first << shift, last << shift):
        if area.fresh:
            answer[max(area.start >> shift, first) - first : (area.end >> shift) - first] = True
    return answer
