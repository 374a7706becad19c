"""Collapse of shared memory: the object gets a huge page for pages that stood here and there.

    every entry that shows one of them is removed, in all address spaces, and flushed
    the bytes go to an aligned block, what was in swap too; the object has that block from then on
    who asked gets a large leaf; the others find the huge page at their next fault

A memory file needs no copy: its pages stand in a row already, and only have to be there, all of them. Where
the object has the huge page, and small pages of it are mapped, only the entries become a leaf.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Access
from aether_emu.errors import OutOfFrames
from aether_emu.mm.allocation import Area
from aether_emu.mm.collapse_terms import Ending, Terms
from aether_emu.mm.counters import Event
from aether_emu.mm.guards import guarded
from aether_emu.mm.hugepage import LEVEL, cleared, give_block
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.physical import SharedHuge
from aether_emu.mm.rmap import unmap
from aether_emu.mm.shared_huge import own
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.file import SwapLost

_WRITE = int(Access.WRITE)  # plain: an enum's operators are slow


def collapse_shared(space: AddressSpace, area: Area, start: int, terms: Terms) -> Ending:
    """Make the range at `start`, which a shared `area` holds whole, a huge page. Raises TableDamaged."""
    huge, backing, table = space.physical.shared_huge, area.backing, space.table
    first = None if huge is None else huge.first_page(space, area, start)
    if huge is None or first is None or not area.shared:
        return Ending.UNFIT
    found = table.find(start)
    if found is not None and found.level == LEVEL:
        return Ending.HUGE if found.entry & table.format.present_mask else Ending.UNFIT
    if not area.bits.present or guarded(space, start, start + huge.size).size:
        return Ending.UNFIT
    if isinstance(backing, SharedMemory):
        ending = _collapse_memory(space, backing, first, huge, terms)
        block = backing.row(first, 1 << huge.order) if ending is Ending.DONE else None
    else:
        assert isinstance(backing, FileBacking), "it fits"
        ending, block = _collapse_file(space, backing, first, 1 << huge.order, terms, write=_writes(area))
    if block is not None:
        _show(space, area, start, block, huge)
    return ending


def _collapse_memory(
    space: AddressSpace, memory: SharedMemory, first: int, huge: SharedHuge, terms: Terms
) -> Ending:
    """Let the object have a huge page."""
    physical, count = space.physical, 1 << huge.order
    if first + count > memory.pages:
        return Ending.UNFIT
    if first in memory.folios:
        return Ending.DONE
    there, away = memory.frames_in(first, count), memory.swapped(first, count)
    if not there and not away:
        return Ending.EMPTY
    if count - len(there) - away > terms.absent or away > terms.swapped:
        return Ending.UNFIT
    frames = physical.frames
    if any(frames.refs[frame] != frames.maps[frame] + 1 for frame in _frames(memory, there)):
        return Ending.BUSY
    try:
        for index in memory.slots_in(first, count):
            memory.frames(index, 1, write=False)
    except SwapLost:
        return Ending.UNFIT
    except OutOfFrames:
        return Ending.NO_BLOCK
    there = memory.frames_in(first, count)
    numbers = np.array(there, np.int64) - first
    block = cleared(physical, huge.order, numbers, compacts=terms.moves)
    if block is None:
        physical.counters.n[Event.HUGE_COLLAPSE_FAILED] += 1
        return Ending.NO_BLOCK
    unmap(memory, first, count)
    physical.tlb.settle()
    old = _frames(memory, there)
    if (frames.refs_array[old] != 1).any():  # damage hides an entry
        give_block(physical, block, huge.order)
        return Ending.BUSY
    by_page = physical.ram.array.reshape(-1, physical.ram.page_size >> 3)
    by_page[block + numbers] = by_page[old]
    own(physical, memory, first, block, count)
    physical.give_back(memory.put(first, block, count, folio=True))
    physical.counters.n[Event.HUGE_COLLAPSE] += 1
    return Ending.DONE


def _frames(memory: SharedMemory, pages: list[int]) -> NDArray[np.int64]:
    """The frames of some pages that have one."""
    known = memory.frames_by_page()
    return np.array([known[index] for index in pages], np.int64)


def _collapse_file(
    space: AddressSpace, backing: FileBacking, first: int, count: int, terms: Terms, *, write: bool
) -> tuple[Ending, int | None]:
    """Let a memory file have a huge page; and its first frame."""
    absent = backing.resident(first, count).count(0)
    if absent == count:
        return Ending.EMPTY, None
    if first + count > backing.length_in_pages or absent > terms.absent:
        return Ending.UNFIT, None
    known = first in backing.folios
    block = backing.block(first, count, write=write and backing.writable)
    space.physical.counters.n[Event.HUGE_COLLAPSE] += block is not None and not known
    return (Ending.NO_BLOCK, None) if block is None else (Ending.DONE, block)


def _writes(area: Area) -> bool:
    """Whether the area permits stores."""
    return not area.denied & _WRITE


def _show(space: AddressSpace, area: Area, start: int, block: int, huge: SharedHuge) -> None:
    """Let a leaf stand in the place of what shows parts of a huge page."""
    gather = space.gather()
    try:
        space.clear(gather, area, start, start + huge.size)
    finally:
        gather.finish_at_once()
    huge.show(space, area, start, block, write=_writes(area))
