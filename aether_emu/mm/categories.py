"""What stands behind the pages of a range, as runs of like pages (Linux: categories of PAGEMAP_SCAN).

A page that is not there has the categories of its area alone, so a reservation of any size is one run; where
there is a table for it, it also counts as written, as on Linux.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntFlag
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aether_emu.mm import guards, markers
from aether_emu.mm.allocation import USER_WP, Area
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.protection import clean_mark, noted, user_mark, user_note
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.seen import in_swap
from aether_emu.mm.tables.count import (
    entries_of,
    first_frames,
    has_frame,
    kinds,
    numbers_of,
    of_kind,
)
from aether_emu.mm.tables.tree import Found, Stretch


class Category(IntFlag):
    """Linux's values (PAGE_IS_*, linux/fs.h)."""

    WP_ALLOWED = 1  # its area is protected asynchronously (UFFD_FEATURE_WP_ASYNC)
    WRITTEN = 2  # not protected by a userfaultfd
    FILE = 4
    PRESENT = 8
    SWAPPED = 16  # not present, but something is known of it
    ZERO = 32
    HUGE = 64
    SOFT_DIRTY = 128
    GUARD = 256


_ALLOWED, _WRITTEN, _FILE, _PRESENT, _SWAPPED, _ZERO, _HUGE, _SOFT_DIRTY, _GUARD = (
    int(Category[name])
    for name in ("WP_ALLOWED", "WRITTEN", "FILE", "PRESENT", "SWAPPED", "ZERO", "HUGE", "SOFT_DIRTY", "GUARD")
)


class Run(NamedTuple):
    """Like pages in a row, by their addresses."""

    start: int
    end: int
    categories: int
    unit: int = 1  # bytes of each, if they are huge pages of a pool


class _Pages(NamedTuple):
    """Some pages, in pages, and the categories of each."""

    pages: NDArray[np.int64]
    categories: NDArray[np.int64]


def runs(space: AddressSpace, start: int, end: int) -> Iterator[Run]:
    """The runs of `[start, end)`, in order; nothing is told of what no area covers. No run crosses areas."""
    for area in space.areas.overlapping(start, end):
        low, high = max(area.start, start), min(area.end, end)
        yield from _runs_of(space, area, low, high)


def is_allowed(area: Area) -> bool:
    """Whether a scan may protect its pages: whoever watches it for stores asked to be told of none."""
    return area.watcher is not None and bool(area.flags & USER_WP) and area.watcher.asynchronous


def _runs_of(space: AddressSpace, area: Area, start: int, end: int) -> Iterator[Run]:
    shift, at = space.table.format.page_shift, start
    if area.huge_size:
        yield from _huge_runs(space, area, start, end)
        return
    alone = (_SOFT_DIRTY if area.fresh else 0) | (_ALLOWED if is_allowed(area) else 0)
    known = _known(space, start, end)
    breaks = np.flatnonzero((np.diff(known.pages) != 1) | (np.diff(known.categories) != 0)) + 1
    for some in np.split(np.arange(known.pages.size), breaks) if known.pages.size else ():
        first, last = (int(known.pages[some[where]]) << shift for where in (0, -1))
        if at < first:
            yield Run(at, first, alone)
        at = last + (1 << shift)
        yield Run(first, at, int(known.categories[some[0]]) | alone)
    if at < end:
        yield Run(at, end, alone)


def _huge_runs(space: AddressSpace, area: Area, start: int, end: int) -> Iterator[Run]:
    """`_runs_of` for huge pages of a pool. Nothing is known where there is no table."""
    fmt, size, table = space.table.format, area.huge_size, space.table
    level = markers.level_of(fmt, size)
    alone = (_SOFT_DIRTY if area.fresh else 0) | (_ALLOWED if is_allowed(area) else 0)
    if level < fmt.top:
        span = fmt.levels[level].size
        items = table.visit(start, end, tables=True)
        tables = {item.start for item in items if isinstance(item, Found) and item.level == level + 1}
    else:  # they stand in the root
        span, tables = 1 << fmt.virtual_bits, {0}
    for block in range(start & -span, end, span):
        if block not in tables:
            yield Run(max(block, start), min(block + span, end), alone, size)
            continue
        for low in range(max(start & -size, block), min(end, block + span), size):
            known = _HUGE | _of_huge(space, area, table.find(low))
            yield Run(max(low, start), min(low + size, end), known | alone, size)


def _of_huge(space: AddressSpace, area: Area, found: Found | None) -> int:
    """What the entry of a huge page of a pool says. An absent one is not written either."""
    fmt, frames = space.table.format, space.physical.frames
    if found is None:
        return 0
    if markers.is_marker(fmt, found.entry):
        return _SWAPPED | (_WRITTEN if found.entry == markers.poisoned(fmt) else 0)
    frame = frames.number(found.entry & fmt.address_mask & -area.huge_size)
    assert area.backing is not None, "the pool's memory"
    in_object = frames.owner[frame] == area.backing.number
    return _of_entry(space, found.entry) | (_FILE if in_object else 0)


def _known(space: AddressSpace, start: int, end: int) -> _Pages:
    """The pages of which something is known, in the order of their addresses."""
    out, shift = in_swap(space, start, end), space.table.format.page_shift
    guarded, marked = guards.guarded(space, start, end), markers.Marked(space.table, start, end)
    written = np.where(np.isin(out.pages, marked.told), 0, _WRITTEN)
    parts = [
        *_shown(space, start >> shift, end >> shift),
        _Pages(out.pages, np.where(out.clean, 0, _SOFT_DIRTY) | _SWAPPED | written),
        _Pages(marked.absent, np.full(marked.absent.size, _SWAPPED)),
        _Pages(marked.failed, np.full(marked.failed.size, _SWAPPED | _WRITTEN)),
        _Pages(guarded, np.full(guarded.size, _SWAPPED | _WRITTEN | _GUARD)),
    ]
    pages = np.concatenate([part.pages for part in parts])
    order = np.argsort(pages, kind="stable")
    return _Pages(pages[order], np.concatenate([part.categories for part in parts])[order])


def _shown(space: AddressSpace, first: int, last: int) -> Iterator[_Pages]:
    """Those that have a frame or an empty place in a table, by their numbers."""
    table, frames, fmt = space.table, space.physical.frames, space.table.format
    for item in table.visit(first << fmt.page_shift, last << fmt.page_shift):
        entries, level = entries_of(table, item)
        at = (item.va if isinstance(item, Stretch) else item.start) >> fmt.page_shift
        size = fmt.levels[level - 1].size >> fmt.page_shift
        if level == 1:
            absent = np.flatnonzero(entries == 0)
            yield _Pages(absent + at, np.full(absent.size, _WRITTEN))
        for kind, chosen in kinds(fmt, entries, level) if entries.any() else ():
            if not has_frame(fmt, kind, level):
                continue
            shown = _frame_kinds(space, first_frames(fmt, frames, of_kind(entries, chosen), level))
            pages = numbers_of(entries, chosen) * size + at
            categories = _of_entry(space, kind) | (_HUGE if level > 1 else 0) | shown
            if size > 1:
                pages = (pages[:, None] + np.arange(size)).ravel()
                categories = np.repeat(categories, size)
            inside = (pages >= first) & (pages < last)
            yield _Pages(pages[inside], categories[inside])


def _of_entry(space: AddressSpace, entry: int) -> int:
    """What an entry says, its frame aside."""
    fmt = space.table.format
    if not entry & fmt.present_mask:
        return (
            _PRESENT
            | (0 if entry & user_note(fmt) else _WRITTEN)
            | (0 if entry & noted(fmt)[2] else _SOFT_DIRTY)
        )
    written = 0 if entry & user_mark(fmt) else _WRITTEN
    return _PRESENT | written | (0 if entry & clean_mark(fmt) else _SOFT_DIRTY)


def _frame_kinds(space: AddressSpace, frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """What frames say: those outside the table are a device's."""
    table = space.physical.frames
    known = frames < table.count
    kind = np.where(known, table.kind_array[np.where(known, frames, 0)], 0).astype(np.int64)
    in_object = (kind == int(Kind.FILE)) | (kind == int(Kind.SHARED))
    categories = np.zeros(frames.size, np.int64)
    categories[in_object] = _FILE
    categories[kind == int(Kind.ZERO)] = _ZERO
    return categories
