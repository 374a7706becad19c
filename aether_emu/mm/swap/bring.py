"""A fault on an entry that names a slot: the page comes back, and with it some of its neighbours.

    read     a frame with the slot's bytes, cached for it; or the one that is cached already
    write    a frame of the entry's own, which nothing is cached for; likewise for a page that was merged with
         another when it went, if that is cached

Nothing is changed when a frame cannot be had, or the bytes are lost. Neighbours come as pages that were not
accessed (read-ahead), so that reclaim takes them first if nobody wanted them, and only while memory is not
short.
"""

from __future__ import annotations

from aether_emu.mm.allocation import USER_WP, Area
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Flags, Kind
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import Protection, user_mark, user_note, with_clean
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.area import SwapArea
from aether_emu.mm.swap.file import SwapLost
from aether_emu.mm.tables.page import Found

_DIRTY, _EXECUTE = int(Flags.DIRTY), int(Protection.EXECUTE)  # plain: asked for each page


def bring_back(space: AddressSpace, area: Area, found: Found, *, write: bool) -> None:
    """Show the page of the swap entry `found` of `area` again. Raises OutOfFrames and SwapLost."""
    physical = space.physical
    swap = physical.swap
    assert swap is not None, "who made the entry?"
    n = physical.counters.n
    in_memory = swap.frame_of(swap.entries.slot(found.entry)) is not None
    _bring(space, area, found, swap, write=write)
    n[Event.FAULT_SWAP_CACHE if in_memory else Event.FAULT_SWAP] += 1
    if not in_memory and physical.read_ahead > 1 and area.bits.present:
        _bring_neighbours(space, area, found, swap)


def bring(space: AddressSpace, area: Area, found: Found) -> None:
    """Likewise, where nobody has touched the page: it is no fault."""
    swap = space.physical.swap
    assert swap is not None, "who made the entry?"
    _bring(space, area, found, swap, write=False)


def _bring(space: AddressSpace, area: Area, found: Found, swap: SwapArea, *, write: bool) -> None:
    physical = space.physical
    frames, slot = physical.frames, swap.entries.slot(found.entry)
    frame = swap.frame_of(slot)
    merged = frame is not None and not _belongs(physical, area, found, frame)
    if frame is None or write or merged:
        frame = _loaded(physical, area, found, slot, frame, swap)
        if not write and not merged:
            swap.cache(slot, frame)
        frames.maps[frame] = 1
    else:
        frames.refs[frame] += 1
        frames.maps[frame] += 1
        swap.came_back(slot)
    if int(area.protection) & _EXECUTE:
        physical.code.executable(frame, mutable=True)
    clean = bool(found.entry & swap.entries.clean)
    bits = area.bits.write if write else with_clean(space.table.format, area.bits, clean=clean)
    if found.entry & swap.entries.told and area.flags & USER_WP:  # the store faults again, and is told
        fmt = space.table.format
        bits = fmt.write_protect(bits) | user_mark(fmt) if area.bits.present else bits | user_note(fmt)
    physical.ram.words[found.slot] = frames.address(frame) | bits
    swap.unnamed(slot)


def _belongs(physical: Physical, area: Area, found: Found, frame: int) -> bool:
    """Whether a frame holds the very page of an entry; not one that was merged with it when it went."""
    frames = physical.frames
    index = (found.start >> frames.page_shift) + area.moved
    return frames.owner[frame] == area.owner and frames.index[frame] == index


def _loaded(
    physical: Physical, area: Area, found: Found, slot: int, cached: int | None, swap: SwapArea
) -> int:
    """A fresh frame with the bytes of a slot, or of the frame that is cached for it."""
    number = (found.start >> physical.frames.page_shift) + area.moved
    frame = physical.take_to_fill(Kind.ANON, area.owner, number)
    physical.frames.flags[frame] |= _DIRTY
    try:
        page = physical.page_bytes(frame)
        if cached is None:
            swap.load(slot, page)
        else:
            page[:] = physical.page_bytes(cached)
            physical.counters.n[Event.COPIED_PAGES] += 1
    except BaseException:
        physical.frames.refs[frame] = 0
        physical.give_back([frame])
        raise
    if int(area.protection) & _EXECUTE:
        physical.code.written(frame)
    return frame


def _bring_neighbours(space: AddressSpace, area: Area, found: Found, swap: SwapArea) -> None:
    """Read ahead: what is in swap of the aligned window around the page, without making room for it."""
    physical, table = space.physical, space.table
    fmt, words = table.format, physical.ram.words
    window = min(physical.read_ahead, fmt.levels[0].entries) << fmt.page_shift
    first = max(found.start & -window, area.start)
    last = min((found.start & -window) + window, area.end)
    for va in range(first, last, fmt.page_size):
        slot = found.slot + (va - found.start >> fmt.page_shift)  # a window never leaves its leaf table
        entry = words[slot]
        if not swap.entries.holds(entry) or not swap.users(swap.entries.slot(entry)):
            continue
        if physical.reclaim is None or physical.reclaim.is_short:
            return
        try:
            _bring(space, area, Found(va, 1, slot, entry), swap, write=False)
        except SwapLost:
            continue
        words[slot] = fmt.age(words[slot])
        physical.counters.n[Event.SWAP_AHEAD] += 1
