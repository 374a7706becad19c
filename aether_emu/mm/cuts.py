"""Where to cut a range whose edit would take long, so that somebody can look in between."""

from __future__ import annotations

from aether_emu.mm.space import AddressSpace

ENTRIES, AREAS = 1 << 16, 1 << 9
"""The most level-1 entries and areas of a part: a few hundredths of a second's work."""


def cuts(space: AddressSpace, start: int, end: int) -> list[int]:
    """The page-aligned addresses at which to cut `[start, end)`, in order; none if it is soon done.

    A cut within an area makes two of it for a while, so there is none where no area may be added.
    """
    found: set[int] = set()
    table, areas = space.table, space.areas
    if len(areas) > AREAS:
        found.update(area.start for area in areas.overlapping(start, end)[AREAS::AREAS])
    tables = ENTRIES // table.format.levels[0].entries
    shift = table.leaf_span_shift
    if (end >> shift) - (start >> shift) <= tables:
        return sorted(found)  # before all tables of the process are looked at
    if len(table.leaf_tables) > tables and len(areas) + 2 < space.limits.areas:
        keys = [key for key in table.leaf_tables if start >> shift < key < end >> shift]
        found.update(key << shift for key in sorted(keys)[tables::tables])
    return sorted(found)
