"""Guard regions (MADV_GUARD_INSTALL): pages that refuse every access, without an area of their own.

A guarded page has a held entry of the kind GUARD at level 1, and no frame. It goes with munmap and with
MADV_GUARD_REMOVE alone: mprotect, MADV_DONTNEED and MADV_FREE leave it, mremap moves it, fork copies it.
In a mapping of a file or of shared memory it guards the addresses and not what they show: others read and
write the same page elsewhere, and a hole or a truncation leaves the guard. Linux: mm/madvise.c, since 6.13,
for shared memory and files since 6.15.
"""

from __future__ import annotations

import errno

import numpy as np
from numpy.typing import NDArray

from aether_emu.errors import Refused
from aether_emu.mm.allocation import LOCKED, MAYBE_GUARDED, Area
from aether_emu.mm.hugepage import split_at
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.count import entries_of
from aether_emu.mm.tables.tree import Stretch


def install(space: AddressSpace, area: Area, start: int, end: int) -> None:
    """Drop the pages of `[start, end)`, a part of `area`, and guard it. Guarding twice is no mistake.

    Raises Refused(EINVAL) for memory that is locked, the kernel's own, or a device's; OutOfFrames where there
    is no memory for page tables, with nothing changed. That is no hole, behind which the call would go on.
    """
    _check(area)
    if area.flags & LOCKED:
        raise Refused(errno.EINVAL, "the memory is locked")
    table, span = space.table, 1 << space.table.leaf_span_shift
    firsts = range(start & -span, end, span)  # never a list: a range may have millions of leaf tables

    def add_tables() -> None:
        for at in firsts:
            _make_table(space, max(at, start))

    space.physical.with_room(add_tables)
    area.flags |= MAYBE_GUARDED
    gather = space.gather()
    try:
        space.clear(gather, area, start, end)
        for at in firsts:
            low, high = max(at, start), min(at + span, end)
            slot = table.leaf_slot(low)
            table.ram.array[slot : slot + (high - low >> table.format.page_shift)] = space.guard
    finally:
        gather.finish_at_once()  # whoever stores there from now on must hear of it


def _make_table(space: AddressSpace, va: int) -> None:
    """Have a leaf table over the address: what is large there is split."""
    found = space.table.find(va)
    while found is not None and found.level > 1:
        found = split_at(space, va, found)
    space.table.leaf_slot(va)


def remove(space: AddressSpace, area: Area, start: int, end: int) -> None:
    """Take the guards of `[start, end)`, a part of `area`, away. Raises Refused(EINVAL)."""
    _check(area)
    for item in space.table.visit(start, end):
        if isinstance(item, Stretch):
            entries = entries_of(space.table, item)[0]
            entries[entries == space.guard] = 0


def guarded(space: AddressSpace, start: int, end: int) -> NDArray[np.int64]:
    """The guarded pages of `[start, end)`: their addresses, in pages."""
    found, shift = [np.zeros(0, np.int64)], space.page_size.bit_length() - 1
    for item in space.table.visit(start, end):
        if isinstance(item, Stretch):
            found.append((entries_of(space.table, item)[0] == space.guard).nonzero()[0] + (item.va >> shift))
    return np.concatenate(found)


def _check(area: Area) -> None:
    if area.backing is not None and (area.backing.whole or area.backing.in_device):
        raise Refused(errno.EINVAL, f"{area.backing.name} is not guarded")
