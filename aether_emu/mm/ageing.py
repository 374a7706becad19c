"""What a program touched and wrote since the last look: accessed and dirty state of its pages.

Leaves come accessed (and dirty, if they permit writing), so that a first access costs one fault. A
scan clears the state and flushes; after it x86_64's MMU sets the bits again by itself, and where the
format says that the MMU does not, the next access faults and `mm.fault` notes it. Either way the
same calls here see the same pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aether_emu.mm.allocation import Area
from aether_emu.mm.counters import Event
from aether_emu.mm.objects.protocol import Space
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import clean_mark, noted
from aether_emu.mm.rmap import Mapping, mappings
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables import edits
from aether_emu.mm.tables.count import (
    Census,
    Frames,
    count,
    entries_of,
    first_frames,
    has_frame,
    kinds,
    numbers_of,
    of_kind,
)
from aether_emu.mm.tables.damage import TableDamaged
from aether_emu.mm.tables.owed import Gathering
from aether_emu.mm.tables.tree import Stretch, Tree
from aether_emu.mm.tlb import Gather
from aether_emu.records import dataclass


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
    clean: NDArray[np.bool_]  # nobody wrote since `soft_dirty.forget`, if the page's area is not fresh


def look(space: AddressSpace, start: int, end: int) -> Seen:
    """Which frames `[start, end)` shows, and what is known of each page. Changes nothing.

    A page that no access is permitted to (PROT_NONE) has a frame, and counts as neither accessed nor dirty.
    Its entry keeps what was noted before, and it counts again when an access is permitted.
    """
    table, frames = space.table, space.physical.frames
    fmt, first, last = table.format, start >> table.format.page_shift, end >> table.format.page_shift
    parts, none = [], (np.zeros(0, np.int64), np.zeros(0, np.bool_))
    parts.append(Seen(none[0], none[0], none[1], none[1], none[1]))
    mark, note = clean_mark(fmt), noted(fmt)[2]
    for item in table.visit(start, end):
        entries, level = entries_of(table, item)
        page = (item.va if isinstance(item, Stretch) else item.start) >> fmt.page_shift
        size = fmt.levels[level - 1].size >> fmt.page_shift
        for kind, chosen in kinds(fmt, entries, level):
            if not has_frame(fmt, kind, level):
                continue
            shown = first_frames(fmt, frames, of_kind(entries, chosen), level)
            pages = _each(numbers_of(entries, chosen) * size + page, size)
            inside = (pages >= first) & (pages < last)
            present = bool(kind & fmt.present_mask)
            length = int(np.count_nonzero(inside))
            accessed = np.full(length, present and bool(fmt.accessed(kind)))
            dirty = np.full(length, present and bool(fmt.dirty(kind)))
            clean = np.full(length, bool(kind & (mark if present else note)))
            parts.append(Seen(pages[inside], _each(shown, size)[inside], accessed, dirty, clean))
    order = np.argsort(np.concatenate([part.pages for part in parts]), kind="stable")
    return Seen(
        np.concatenate([part.pages for part in parts])[order],
        np.concatenate([part.frames for part in parts])[order],
        np.concatenate([part.accessed for part in parts])[order],
        np.concatenate([part.dirty for part in parts])[order],
        np.concatenate([part.clean for part in parts])[order],
    )


def _each(firsts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` numbers in a row from each of `firsts` on."""
    return (firsts[:, None] + np.arange(count)).ravel() if count > 1 else firsts


def survey(space: AddressSpace, start: int, end: int) -> Survey:
    """Count the pages of `[start, end)`, changing nothing."""
    total = Census()
    for census in count(space.table, start, end).values():
        total.add(census)
    return Survey(total.present, total.accessed, total.dirty)


def forget_accesses(space: AddressSpace, start: int, end: int) -> int:
    """Clear ACCESSED on `[start, end)` and flush what it was set on. Returns how many pages that were.

    What a later `survey` counts as accessed is the working set of the time between.
    """
    return _edited(space, start, end, edits.age)


def was_accessed(physical: Physical, frame: int) -> bool:
    """Whether an entry that shows a frame was accessed since that was last forgotten.

    True where that cannot be told, because a table on the way is damaged.
    """
    try:
        return any(_is_accessed(mapping) for mapping in mappings(physical, frame))
    except TableDamaged:
        return True


def _is_accessed(mapping: Mapping) -> bool:
    fmt, entry = mapping.space.table.format, mapping.found.entry
    return bool(entry & fmt.present_mask) and bool(fmt.accessed(entry))


def forget_frames(physical: Physical, frames: Iterable[int]) -> None:
    """Clear ACCESSED in every entry that shows one of the frames, and flush. Not where a table is damaged."""
    gathers: dict[int, tuple[Space, Gather]] = {}
    for frame in frames:
        try:
            touched = [mapping for mapping in mappings(physical, frame) if _is_accessed(mapping)]
        except TableDamaged:
            continue
        for space, _address, found in touched:
            fmt = space.table.format
            if id(space) not in gathers:
                gathers[id(space)] = space, space.gather()
            space.table.write(found.start, found.level, found.slot, fmt.age(found.entry))
            gathers[id(space)][1].page(found.start, fmt.levels[found.level - 1].size)
    for _space, gather in gathers.values():
        gather.finish_at_once()


def forget_everywhere(physical: Physical) -> Iterator[Frames]:
    """Clear ACCESSED in all address spaces, and flush. Gives the frames that had it, of a space at a time.

    Spaces whose tables are damaged are left out.
    """
    for space in spaces(physical):
        end = space.limits.user_end
        try:
            seen = look(space, 0, end)
            if seen.accessed.any():
                forget_accesses(space, 0, end)
        except TableDamaged:
            continue
        yield seen.frames[seen.accessed]


def spaces(physical: Physical) -> list[AddressSpace]:
    """Every address space with an area, in the order of their numbers."""
    found: dict[int, AddressSpace] = {}
    for item in physical.objects:
        for area in item.windows:
            if isinstance(area.space, AddressSpace):
                found[area.space.number] = area.space
    return [found[number] for number in sorted(found)]


def clean(space: AddressSpace, start: int, end: int) -> int:
    """Clear DIRTY on `[start, end)`, which stays writable, and flush. Returns how many pages were dirty."""
    return _edited(space, start, end, edits.clean)


def write_back(space: AddressSpace, area: Area, start: int, end: int) -> None:
    """The pages of `[start, end)` of a shared area are about to be written to its file: they become clean."""
    if area.backing is not None and area.backing.in_place:
        space.physical.counters.n[Event.WRITTEN_BACK] += clean(space, start, end)


def _edited(
    space: AddressSpace, start: int, end: int, edit: Callable[[Tree, Gathering, int, int], int]
) -> int:
    gather = space.gather()
    try:
        return edit(space.table, gather, start, end)
    finally:
        gather.finish_at_once()  # what the bits say is believed from now on
