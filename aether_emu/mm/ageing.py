"""What a program touched and wrote since the last look: accessed and dirty state of its pages.

Leaves come accessed (and dirty, if they permit writing), so that a first access costs one fault. A
scan clears the state and flushes; after it x86_64's MMU sets the bits again by itself, and where the
format says that the MMU does not, the next access faults and `mm.fault` notes it. Either way the
same calls here see the same pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Entries
from aether_emu.mm.allocation import Area
from aether_emu.mm.counters import Event
from aether_emu.mm.space import AddressSpace


@dataclass(frozen=True, slots=True)
class Survey:
    """How many pages of a range are present, and how many of those were accessed and written."""

    present: int
    accessed: int
    dirty: int


class Seen(NamedTuple):
    """The pages of a range that have memory, in the order of their addresses: four arrays alike."""

    pages: NDArray[np.int64]  # addresses, in pages
    frames: NDArray[np.int64]
    accessed: NDArray[np.bool_]
    dirty: NDArray[np.bool_]


def look(space: AddressSpace, start: int, end: int) -> Seen:
    """Which frames `[start, end)` shows, and what is known of each page. Changes nothing.

    A page that no access is permitted to (PROT_NONE) has a frame, and is neither accessed nor dirty.
    """
    fmt, shift = space.table.format, np.uint64(space.table.format.page_shift)
    parts, numbers = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for va, slot, pages in space.table.spans(start, end):
        stretch = space.physical.ram.array[slot : slot + pages]
        used = stretch.nonzero()[0]
        parts.append(stretch[used])
        numbers.append(used + (va >> fmt.page_shift))
    entries = np.concatenate(parts)
    present = entries & np.uint64(fmt.present_mask) != 0
    addresses = entries & np.uint64(fmt.address_mask)
    return Seen(
        np.concatenate(numbers),
        (addresses - np.uint64(space.physical.frames.base) >> shift).astype(np.int64),
        present & (fmt.accessed(entries) != 0),
        present & (fmt.dirty(entries) != 0),
    )


def survey(space: AddressSpace, start: int, end: int) -> Survey:
    """Count the pages of `[start, end)`, changing nothing."""
    fmt, present = space.table.format, np.uint64(space.table.format.present_mask)
    counts = [0, 0, 0]
    for _va, slot, pages in space.table.spans(start, end):
        entries = space.physical.ram.array[slot : slot + pages]
        leaves = entries[entries & present != 0]
        counts[0] += leaves.size
        counts[1] += int(fmt.accessed(leaves).sum())
        counts[2] += int(fmt.dirty(leaves).sum())
    return Survey(*counts)


def forget_accesses(space: AddressSpace, start: int, end: int) -> int:
    """Clear ACCESSED on `[start, end)` and flush what it was set on. Returns how many pages that were.

    What a later `survey` counts as accessed is the working set of the time between.
    """
    fmt = space.table.format
    return _change(space, start, end, fmt.accessed, fmt.age)


def clean(space: AddressSpace, start: int, end: int) -> int:
    """Clear DIRTY on `[start, end)`, which stays writable, and flush. Returns how many pages were dirty."""
    fmt = space.table.format
    return _change(space, start, end, fmt.dirty, fmt.clean)


def write_back(space: AddressSpace, area: Area, start: int, end: int) -> None:
    """The pages of `[start, end)` of a shared area are about to be written to its file: they become clean."""
    if area.backing is not None and area.backing.in_place:
        space.physical.counters.n[Event.WRITTEN_BACK] += clean(space, start, end)


def _change(
    space: AddressSpace,
    start: int,
    end: int,
    wanted: Callable[[Entries], Entries],
    change: Callable[[Entries], Entries],
) -> int:
    """`change` the present leaves for which `wanted` is 1, and flush them."""
    present, gather, changed = np.uint64(space.table.format.present_mask), space.gather(), 0
    for va, slot, pages in space.table.spans(start, end):
        entries = space.physical.ram.array[slot : slot + pages]
        used = (entries & present != 0).nonzero()[0]
        chosen = used[wanted(entries[used]) != 0]
        if chosen.size:
            fresh = entries.copy()
            fresh[chosen] = change(entries[chosen])
            space.table.replace_many(va, slot, fresh)
            gather.pages(va, chosen)
            changed += chosen.size
    space.finish(gather)
    return changed
