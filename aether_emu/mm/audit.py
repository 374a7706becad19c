"""Whether level-1 entries of an area are what they must be: damage at the leaves, and how it is put right.

Tables remember what they wrote above level 1 (`mm.tables.tree`). What stands at level 1 follows from the area
and the frame table instead: an entry shows the zero page, a page of the area's own family, or a page of its
backing, each under the index that the address gives; its bits are those of the area's protection. An entry
that shows anything else is damaged. The frame that it lost still counts a mapping that no entry explains, and
names its owner and index, so the entry can be written again and no reference is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Entries, PageTableFormat
from aether_emu.mm.allocation import Area
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.objects.protocol import MemoryObject, Space
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import clean_mark, user_mark
from aether_emu.mm.rmap import mappings
from aether_emu.mm.tables.count import Sort, Used, few_used, first_frames, kinds, sort_of, used_in
from aether_emu.mm.tables.damage import Damaged
from aether_emu.mm.tables.tree import Found, Stretch

# Plain ints: numpy needs 20 us to compare with an enum.
_ANON, _ZERO, _FILE, _SHARED = int(Kind.ANON), int(Kind.ZERO), int(Kind.FILE), int(Kind.SHARED)
_DEVICE = int(Kind.RESERVED)
_NOBODY = -1  # no object has this number


class Audited(Space, Protocol):
    """An address space whose leaves are looked at."""

    @property
    def physical(self) -> Physical:
        """The frames behind it."""


def judge_leaf(space: Audited, area: Area, found: Found) -> Damaged | None:
    """The damage of one level-1 entry in `area`, its permission to write aside.

    An entry that lost that permission is put right by the fault that follows.
    """
    fmt = space.table.format
    if found.level != 1 or _is_held(space, area, found.entry):
        return None
    same_kind = bool(found.entry & fmt.present_mask) == area.bits.present
    if same_kind and area.bits.present:
        flags = found.entry & ~(fmt.address_mask & (1 << fmt.physical_bits) - 1)
        same_kind = _essence(fmt, flags) == _essence(fmt, area.bits.read)
    stretch = Stretch(found.start, found.slot, 1)
    if same_kind and not _strangers(space, area, stretch):
        return None
    return Damaged(1, found.slot, found.entry, _expected(space, area, found.start))


def _is_held(space: Audited, area: Area, entry: int) -> bool:
    """Whether an entry is held without a frame, and, if it names a slot, one in use for an own page."""
    swap = space.physical.swap
    if swap is not None and swap.entries.holds(entry):
        return area.family is not None and bool(swap.users(swap.entries.slot(entry)))
    return sort_of(space.table.format, entry, 1) is Sort.FRAMELESS


def _essence(fmt: PageTableFormat, flags: int) -> int:
    """The bits of a leaf apart from what accesses and copy-on-write change."""
    return fmt.soil(fmt.touch(fmt.write_protect(flags))) | user_mark(fmt) | clean_mark(fmt)


def mend(space: Audited, area: Area, stretch: Stretch) -> list[Damaged]:
    """Write the damaged entries of a stretch of `area` as they must be, and return them.

    What a TLB made of them is the caller's to flush.
    """
    damages = []
    words, shift = space.physical.ram.words, space.table.format.page_shift
    for number in _strangers(space, area, stretch):
        slot = stretch.slot + number
        expected = _expected(space, area, stretch.va + (number << shift))
        damages.append(Damaged(1, slot, words[slot], expected))
        words[slot] = expected
    return damages


def mend_all(space: Audited, areas: Sequence[Area], used: Used) -> list[Damaged]:
    """`mend` for entries in use of several areas, in ascending order. Each lies in one of the `areas`."""
    words, shift, damages = space.physical.ram.words, space.table.format.page_shift, []
    strangers, of = _strangers_of(space, areas, used)
    for number in strangers:
        slot, page = int(used.slots[number]), int(used.pages[number])
        expected = _expected(space, areas[int(of[number])], page << shift)
        damages.append(Damaged(1, slot, words[slot], expected))
        words[slot] = expected
    return damages


def reclaim(physical: Physical, item: MemoryObject) -> int:
    """Take back the mappings of an object's frames that no entry explains. Returns how many there were.

    For what damage has wiped out: nothing was left in the entry's place that could be dropped.
    """
    frames, taken, unused = physical.frames, 0, []
    named = np.flatnonzero((frames.owner_array == item.number) & (frames.maps_array > 0)).tolist()
    merged = [] if physical.merged is None else physical.merged.frames_of_family(item.number)
    for frame in named + merged:
        lost = frames.maps[frame] - sum(1 for _mapping in mappings(physical, frame))
        if lost > 0:
            taken += lost
            frames.maps[frame] -= lost
            frames.refs[frame] -= lost
            if not frames.refs[frame] and frames.kind[frame] != Kind.FILE:
                unused.append(frame)
    physical.give_back(unused)
    return taken


def _strangers(space: Audited, area: Area, stretch: Stretch) -> list[int]:
    """The numbers of entries of a stretch that are not absent, and show no page that belongs there."""
    few = few_used(space.table, stretch)
    if few is not None:
        return _few_strangers(space, area, stretch, few)
    used = used_in(space.table, [stretch])
    strangers: list[int] = (used.slots[_strangers_of(space, [area], used)[0]] - stretch.slot).tolist()
    return strangers


def _strangers_of(space: Audited, areas: Sequence[Area], used: Used) -> tuple[list[int], NDArray[np.int64]]:
    """The same for entries in use of several areas: their numbers, and the number of each entry's area."""
    fmt, frames = space.table.format, space.physical.frames
    shown: Entries = space.physical.ram.array[used.slots]
    numbers = first_frames(fmt, frames, shown)
    inside = numbers < frames.count
    numbers = np.where(inside, numbers, 0)
    kind, owner = frames.kind_array[numbers], frames.owner_array[numbers]
    index, page = frames.index_array[numbers].astype(np.int64), used.pages
    starts = [area.start >> fmt.page_shift for area in areas]
    of = np.searchsorted(np.array(starts), page, "right") - 1

    def each(values: list[int]) -> NDArray[np.int64]:
        """What is so of an area, for each entry."""
        return np.array(values, np.int64)[of]

    family, moved = each([area.owner for area in areas]), each([area.moved for area in areas])
    good = (kind == _ANON) & (owner == family) & (index == page + moved)
    merged = space.physical.merged
    if merged is not None:
        some = np.flatnonzero((kind == _ANON) & (owner == merged.number))
        sought = zip(family[some].tolist(), (page + moved)[some].tolist(), strict=True)
        good[some] = merged.shows(numbers[some], list(sought))
    backing = each([_NOBODY if area.backing is None else area.backing.number for area in areas])
    first = each([area.offset - (area.start >> fmt.page_shift) for area in areas])
    in_object = (kind == _FILE) | (kind == _SHARED) | (kind == _DEVICE)
    good |= in_object & (owner == backing) & (index == page + first)
    good |= (kind == _ZERO) & (backing == _NOBODY)
    present = each([area.bits.present for area in areas])
    good &= inside & ((shown & np.uint64(fmt.present_mask) != 0) == present)
    for mark, chosen in kinds(fmt, shown) if shown.size else ():
        if sort_of(fmt, mark, 1) is Sort.FRAMELESS:
            good[slice(None) if chosen is None else chosen] = True
    _judge_swapped(space, areas, of, shown, good)
    strangers: list[int] = np.flatnonzero(~good).tolist()
    return strangers, of


def _judge_swapped(
    space: Audited,
    areas: Sequence[Area],
    of: NDArray[np.int64],
    shown: Entries,
    good: NDArray[np.bool_],
) -> None:
    """Judge those of some entries that name a slot."""
    swap = space.physical.swap
    if swap is not None:
        for number in np.flatnonzero(swap.entries.which(shown)).tolist():
            good[number] = _is_held(space, areas[int(of[number])], int(shown[number]))


def _few_strangers(space: Audited, area: Area, stretch: Stretch, used: Iterable[int]) -> list[int]:
    """The same for a few entries, those of the numbers `used`, one by one."""
    fmt, frames = space.table.format, space.physical.frames
    words, mask, present = space.physical.ram.words, fmt.address_mask, fmt.present_mask
    kind, owner, index = frames.kind, frames.owner, frames.index
    page, backing, merged = stretch.va >> fmt.page_shift, area.backing, space.physical.merged
    strangers = []
    for number in used:
        entry = words[stretch.slot + number]
        if not entry:
            continue
        frame = (entry & mask) - frames.base >> fmt.page_shift
        good = False
        if 0 <= frame < frames.count and bool(entry & present) == area.bits.present:
            what = kind[frame]
            if what == _ANON:
                own = area.owner, page + number + area.moved
                good = (owner[frame], index[frame]) == own
                if not good and merged is not None:
                    good = own in merged.pages_of(frame)
            elif backing is None:
                good = what == _ZERO
            elif what in (_FILE, _SHARED, _DEVICE):
                first = area.offset - (area.start >> fmt.page_shift)
                good = owner[frame] == backing.number and index[frame] == page + number + first
        if not good and not _is_held(space, area, entry):
            strangers.append(number)
    return strangers


def _expected(space: Audited, area: Area, va: int) -> int:
    """The entry that must stand at `va`: of the frame that is mapped nowhere else as often as it counts."""
    physical, page = space.physical, va >> space.table.format.page_shift
    sought: list[tuple[int, int]] = []
    if area.family is not None:
        sought.append((area.owner, page + area.moved))
    if area.backing is not None:
        first = area.offset - (area.start >> space.table.format.page_shift)
        sought.append((area.backing.number, page + first))
    frames = physical.frames
    for owner, index in sought:
        alike = (frames.owner_array == owner) & (frames.index_array == index) & (frames.maps_array > 0)
        named = np.flatnonzero(alike & (frames.kind_array != Kind.TABLE)).tolist()
        merged = [] if physical.merged is None else physical.merged.frames_of((owner, index))
        for frame in named + merged:
            elsewhere = [m for m in mappings(physical, frame) if m.space is not space or m.address != va]
            if len(elsewhere) < frames.maps[frame]:
                return frames.address(frame) | area.bits.read
    return 0
