"""Pages that are to be there before anybody touches them: MAP_POPULATE, mlock, MADV_POPULATE_READ and WRITE.

Absent pages of private anonymous memory come a leaf table at a time: the frames in one batch from the
allocator, the entries, and what the frame table says of each, in numpy stores. So do pages that a memory file
does not have yet, each of which a fault would bring alone. The counters say what as many faults would have
said. Everything else is a fault for each page: of other files and objects, over what stands there already,
where somebody decides about faults, and where huge pages or too little memory make each one a decision.
"""

from __future__ import annotations

import numpy as np

from aether_emu.arch.paging import Access
from aether_emu.errors import OutOfFrames
from aether_emu.machine.memory.aperture import BackingFailed, BeyondEnd
from aether_emu.mm.allocation import Area
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import AccessError, Blocked, BusError, Faults, OutOfMemory, shown_bits
from aether_emu.mm.frames.table import Flags, Kind
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.objects.protocol import NotReady
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.count import Frames
from aether_emu.mm.tables.damage import Damaged, TableDamaged
from aether_emu.mm.tables.tree import Stretch

Failed = BusError | AccessError | OutOfMemory

_READABLE = Protection.READ | Protection.WRITE  # what may be stored to can be loaded, on both ISAs
_FEWEST = 4  # pages: fewer are as quickly brought one by one
_ANON, _DIRTY = np.uint8(Kind.ANON), np.uint8(Flags.DIRTY)  # of the columns' types: enums are slow


def populate(space: AddressSpace, start: int, end: int, *, write: bool) -> Failed | None:
    """Fault every absent page of a range in. Returns the first outcome that is not success.

    Raises NotReady at a page that is on its way, and TableDamaged: what came before it is there.
    """
    span, at = 1 << space.table.leaf_span_shift, start
    while at < end:
        upto = min(end, (at | span - 1) + 1)
        area = space.areas.find(at)
        if area is not None:
            upto = min(upto, area.end)
        fill = _fill if area is None or area.backing is None else _fill_holes
        if area is None or not fill(space, area, at, upto, write=write):
            failed = _each(space, at, upto, write=write)
            if failed is not None:
                return failed
        at = upto
    return None


def _each(space: AddressSpace, start: int, end: int, *, write: bool) -> Failed | None:
    access = int(Access.USER | (Access.WRITE if write else Access.READ))
    fmt, resolve = space.table.format, space.physical.decide or Faults(space.physical).resolve
    for va in range(start, end, space.page_size):
        found = space.table.find(va)
        present = found is not None and found.entry & fmt.present_mask
        if found is not None and present and (not write or fmt.writable(found.entry)):
            continue
        outcome = resolve(space, va, access)
        if isinstance(outcome, BusError | AccessError | OutOfMemory):
            return outcome
        if isinstance(outcome, Blocked):
            raise NotReady(outcome.on)
        if isinstance(outcome, Damaged):
            raise TableDamaged(va, outcome, outcome.describe(fmt))
    return None


def _fill(space: AddressSpace, area: Area, start: int, end: int, *, write: bool) -> bool:
    """Bring what is absent of a part of one leaf table. Whether all of it is there now."""
    physical, fmt = space.physical, space.table.format
    count = end - start >> fmt.page_shift
    if count < _FEWEST or not _may_fill(space, area, write=write):
        return False
    if physical.reclaim is not None:
        physical.reclaim.balance()
    try:
        slot = _first_slot(space, start, end)
        if slot is None:
            return False
        entries = physical.ram.array[slot : slot + count]
        absent = np.flatnonzero(entries == 0)
        if not write:
            zero = physical.frames.address(physical.zero_frame)
            entries[absent] = np.uint64(zero | area.bits.read)
            physical.counters.n[Event.FAULT_ZERO_PAGE] += absent.size
        elif absent.size:
            frames = _fresh_frames(space, area, absent + (start >> fmt.page_shift))
            if frames is None:
                return False
            addresses = frames.astype(np.uint64) << np.uint64(fmt.page_shift)
            entries[absent] = addresses + np.uint64(physical.frames.base) | np.uint64(area.bits.write)
            physical.counters.n[Event.FAULT_DEMAND_ZERO] += absent.size
    except (TableDamaged, OutOfFrames):  # as a fault of the page finds it
        return False
    return bool(absent.size == count)


def _may_fill(space: AddressSpace, area: Area, *, write: bool) -> bool:
    """Whether a fault at an absent page of an area would give it a fresh frame, or the zero page."""
    physical = space.physical
    plain = area.backing is None and not area.shared and area.watcher is None and physical.decide is None
    permitted = area.protection & (Protection.WRITE if write else _READABLE)
    huge = physical.huge
    return plain and bool(permitted) and (huge is None or not huge.eligible(space, area))


def _fill_holes(space: AddressSpace, area: Area, start: int, end: int, *, write: bool) -> bool:
    """Bring a part of one leaf table, pages of a memory file that has none of them. Whether all are there."""
    backing, physical, shift = area.backing, space.physical, space.table.format.page_shift
    count, offset = end - start >> shift, area.offset - (area.start >> shift)
    if count < _FEWEST or not isinstance(backing, FileBacking) or not _may_bring(space, area, write=write):
        return False
    if backing.contents is None or not backing.contents.lacks(offset + (start >> shift), count):
        return False
    if physical.reclaim is not None:
        physical.reclaim.balance()
    try:
        slot = _first_slot(space, start, end)
        if slot is None or physical.ram.array[slot : slot + count].any():
            return False
        page, last = start >> shift, end >> shift
        while page < last:
            frame, there = backing.bring(offset + page, last - page, write=write)
            slot = space.table.leaf_slot(page << shift)  # other pages may have gone to make room for these
            entries = np.arange(frame, frame + there, dtype=np.uint64) << np.uint64(shift)
            bits = shown_bits(area, backing, write=write)
            physical.ram.array[slot : slot + there] = entries + np.uint64(physical.frames.base) | np.uint64(
                bits
            )
            physical.frames.refs_array[frame : frame + there] += 1
            physical.frames.maps_array[frame : frame + there] += 1
            physical.counters.n[Event.FAULT_FILE] += there
            page += there
    except (TableDamaged, OutOfFrames, BackingFailed, BeyondEnd):  # as a fault of the page finds it
        return False
    return True


def _may_bring(space: AddressSpace, area: Area, *, write: bool) -> bool:
    """Whether a fault at an absent page of an area of a file would show the file's page, and no others."""
    physical, huge = space.physical, space.physical.shared_huge
    plain = (area.shared or not write) and area.watcher is None and physical.decide is None
    permitted = area.protection & (Protection.WRITE if write else _READABLE)
    folios = huge is not None and (huge.on or (area.backing is not None and area.backing.folios))
    return plain and bool(permitted) and not area.protection & Protection.EXECUTE and not folios


def _first_slot(space: AddressSpace, start: int, end: int) -> int | None:
    """Where the entry of `start` stands, in a leaf table that is made if need be; None over a large leaf."""
    if start >> space.table.leaf_span_shift not in space.leaf_tables:
        return None if space.table.visit(start, end) else space.table.leaf_slot(start)
    items = space.table.visit(start, end)
    alone = len(items) == 1 and isinstance(items[0], Stretch)
    return items[0].slot if alone else None


def _fresh_frames(space: AddressSpace, area: Area, pages: Frames) -> Frames | None:
    """Zeroed frames of the area's family, mapped once, for pages by their numbers. None: memory is short."""
    physical, table = space.physical, space.physical.frames
    spare = 0 if physical.reclaim is None else physical.reclaim.spare
    if physical.buddy.free_frames < pages.size + spare:
        return None
    frames = physical.buddy.alloc_bulk(pages.size)
    used = frames[(table.flags_array[frames] & _DIRTY) != 0]
    _zero(space, used)
    physical.counters.n[Event.ZEROED_PAGES] += used.size
    table.flags_array[frames] |= _DIRTY
    table.kind_array[frames] = _ANON
    table.owner_array[frames] = area.owner
    table.index_array[frames] = pages + area.moved
    table.refs_array[frames] = table.maps_array[frames] = 1
    if area.protection & Protection.EXECUTE:
        physical.code.executable_each(frames, mutable=True)
    return frames


def _zero(space: AddressSpace, frames: Frames) -> None:
    """Make ascending frames read as zero, those in a row together."""
    ram, table, size = space.physical.ram, space.physical.frames, space.page_size
    if frames.size:
        for row in np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1):
            ram.zero(table.address(int(row[0])), row.size * size)
