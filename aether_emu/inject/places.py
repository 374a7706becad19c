"""Which page an injection hits, where its event names none: by chance, one that the process shows."""

from __future__ import annotations

import numpy as np

from aether_emu.inject.plan import Injection
from aether_emu.linux.task.process import Process
from aether_emu.mm.allocation import Area
from aether_emu.mm.tables.count import entries_of
from aether_emu.mm.tables.damage import TableDamaged
from aether_emu.mm.tables.tree import Found
from aether_emu.random import Stream


def draw(process: Process, wanted: Injection, chance: Stream) -> int | None:
    """The address of a page that the process shows where `wanted` allows, each equally likely; None: none is.

    A damaged table, of an injection before, leads nowhere.
    """
    pages = [
        found
        for area in process.mm.areas
        if _is_meant(area, wanted)
        for found in _shown(process, area, wanted)
    ]
    total = sum(each.size for each in pages)
    if not total:
        return None
    number = chance.u64() % total
    for each in pages:
        if number < each.size:
            return int(each[number])
        number -= each.size
    raise AssertionError("it is less than the sum")


def _is_meant(area: Area, wanted: Injection) -> bool:
    return not wanted.area or area.name == wanted.area or area.name.endswith(f"/{wanted.area}")


def _shown(
    process: Process, area: Area, wanted: Injection
) -> list[np.ndarray[tuple[int], np.dtype[np.uint64]]]:
    """The addresses, of those that are wanted, of the area's pages that the MMU can translate to RAM."""
    space, size = process.mm, process.mm.page_size
    start, end = area.start, area.end
    if wanted.first is not None and wanted.last is not None:
        start, end = max(start, wanted.first & -size), min(end, (wanted.last & -size) + size)
    if start >= end:
        return []
    fmt, frames = space.table.format, space.physical.frames
    ram = np.uint64(space.physical.ram.size >> fmt.page_shift)
    shown = []
    try:
        for item in space.table.visit(start, end):
            entries, level = entries_of(space.table, item)
            spec = fmt.levels[level - 1]
            first = (
                (entries & np.uint64(fmt.address_mask & -spec.size)) - np.uint64(frames.base)
            ) >> np.uint64(fmt.page_shift)
            used = ((entries & np.uint64(fmt.present_mask)) != 0) & (first < ram)
            if isinstance(item, Found):
                low, high = max(item.start, start), min(item.start + spec.size, end)
                addresses = np.arange(low, high, size, dtype=np.uint64) if used[0] else np.empty(0, np.uint64)
            else:
                addresses = used.nonzero()[0].astype(np.uint64) * np.uint64(size) + np.uint64(item.va)
            shown.append(addresses)
    except TableDamaged:
        return []
    return shown
