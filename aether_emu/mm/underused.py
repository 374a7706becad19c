"""Huge pages that are hardly used give their zeros back when memory is out.

A program that stores into one page of each huge page takes many times the memory that it needs. When a fault
finds no frame, huge pages of which an eighth or more reads as zero are split, and the pages of zeros become
absent again: the next touch finds zeros as before. One of their frames becomes the table, no other is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.hugepage import LEVEL, leaves
from aether_emu.mm.objects.anonymous import AnonymousMemory
from aether_emu.mm.physical import Physical
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.damage import TableDamaged
from aether_emu.mm.tables.split import flush_large, smaller
from aether_emu.mm.tables.tree import Found

_ENOUGH = 1024  # frames, after which it is over for this time
_SHARE = 8  # of the pages of a huge page, one in so many at least must be zero


def shrink(physical: Physical) -> int:
    """Give the zeros of some huge pages back. Returns how many frames are free then that were not before.

    No edit of a page table may be under way.
    """
    given = 0
    for space in _spaces(physical):
        with suppress(TableDamaged):  # whoever needs the range finds that
            for address, frame in leaves(space):
                given += _shrink_leaf(physical, space, address, frame)
                if given >= _ENOUGH:
                    return given
    return given


def _spaces(physical: Physical) -> Iterator[AddressSpace]:
    """Those with private memory, each once."""
    seen: set[int] = set()
    for item in list(physical.objects):
        for area in item.windows if isinstance(item, AnonymousMemory) else ():
            space = area.space
            if isinstance(space, AddressSpace) and space.number not in seen:
                seen.add(space.number)
                yield space


def _shrink_leaf(physical: Physical, space: AddressSpace, address: int, frame: int) -> int:
    table, frames, ram = space.table, physical.frames, physical.ram
    fmt, found = table.format, table.find(address)
    if found is None or found.level != LEVEL or not found.entry & fmt.present_mask:
        return 0
    area = space.areas.find(address)
    if area is None or area.watcher is not None:  # it would hear of pages that are missing
        return 0
    entries = smaller(fmt, found.entry, LEVEL)
    span = slice(frame, frame + entries.size)
    if (frames.refs_array[span] != 1).any():
        return 0
    by_page: NDArray[Any] = ram.array.reshape(-1, ram.page_size >> 3)
    zeros = np.flatnonzero(~by_page[span].any(axis=1))
    if zeros.size < entries.size // _SHARE:
        return 0
    _exchange(physical, space, found, entries, zeros + frame)
    return int(zeros.size) - 1


def _exchange(
    physical: Physical,
    space: AddressSpace,
    found: Found,
    entries: NDArray[np.uint64],
    zeros: NDArray[np.int64],
) -> None:
    """Put a table without the pages of zeros in the place of a large leaf: in the first of their frames."""
    table, frames, own = space.table, physical.frames, int(zeros[0])
    first = frames.number(table.format.leaf_address(found.entry, LEVEL))
    entries[zeros - first] = 0
    gather = space.gather()
    table.write(found.start, LEVEL, found.slot, 0)
    flush_large(gather, found.start, table.format.levels[LEVEL - 1].size)
    physical.tlb.settle()
    gather.drop_many(zeros[1:])
    frames.claim(own, 1, Kind.TABLE, table.owner, LEVEL - 1)
    frames.maps[own] = 0
    physical.code.retire([own])
    table.tables += 1
    table.fill(frames.address(own), LEVEL - 1, entries)
    entry = table.format.table_entry(frames.address(own), table.reach)
    table.write(found.start, LEVEL, found.slot, entry)
    gather.finish()
    physical.tlb.settle()
    physical.counters.n[Event.HUGE_UNDERUSED] += 1
