"""Which pages of an address space are in swap, as those who tell about it see them. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.count import entries_of, numbers_of
from aether_emu.mm.tables.tree import Stretch

_PSS_SHIFT = 12  # a share of a page is kept in 4096ths of a byte, as in smaps
Numbers = NDArray[np.int64]


class InSwap(NamedTuple):
    """The private pages of a range that are in swap, in the order of their addresses."""

    pages: Numbers  # addresses, in pages
    slots: Numbers
    clean: NDArray[np.bool_]  # see `ageing.Seen`


def in_swap(space: AddressSpace, start: int, end: int) -> InSwap:
    """The private pages of `[start, end)` that are in swap."""
    swap, shift = space.physical.swap, space.table.format.page_shift
    pages, slots = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    clean = [np.zeros(0, np.bool_)]
    for item in space.table.visit(start, end) if swap is not None and swap.used else ():
        if not isinstance(item, Stretch):
            continue
        entries = entries_of(space.table, item)[0]
        numbers = numbers_of(entries, swap.entries.which(entries)) if swap is not None else pages[0]
        if swap is not None and numbers.size:
            pages.append(numbers + (item.va >> shift))
            slots.append(swap.entries.slots(entries[numbers]))
            clean.append(entries[numbers] & np.uint64(swap.entries.clean) != 0)
    return InSwap(np.concatenate(pages), np.concatenate(slots), np.concatenate(clean))


def swap_usage(space: AddressSpace, starts: Sequence[int]) -> dict[str, Numbers]:
    """Bytes in swap for each of the ranges that begin at `starts`, as `smaps.usage` has bytes of memory.

    `Swap` counts pages of shared memory too, for each area that shows them; `SwapPss` and `Own` do not.
    """
    size, shift = space.page_size, space.table.format.page_shift
    own, shares = np.zeros(len(starts), np.int64), np.zeros(len(starts), np.int64)
    swap = space.physical.swap
    if swap is None or not swap.used:
        return {"Swap": own, "SwapPss": shares, "Own": own}
    seen = in_swap(space, 0, space.limits.user_end)
    group = np.searchsorted(np.array(starts, np.int64) >> shift, seen.pages, side="right") - 1
    np.add.at(own, group, size)
    users = np.array([swap.users(slot) for slot in seen.slots.tolist()], np.int64)
    np.add.at(shares, group, (size << _PSS_SHIFT) // np.maximum(users, 1))
    everything = own.copy()
    for area in space.areas:
        if area.shared and isinstance(area.backing, SharedMemory):
            which = int(np.searchsorted(np.array(starts, np.int64), area.start, side="right")) - 1
            everything[which] += area.backing.swapped(area.offset, area.length >> shift) * size
    return {"Swap": everything, "SwapPss": shares >> _PSS_SHIFT, "Own": own}
