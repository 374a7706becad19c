"""What entries stand for: the frames behind them, and a census of a range. Changes nothing.

A leaf of N base pages stands for one reference and one mapping of each of its N base frames, so that
splitting and collapsing change no count. The zero page is counted by nobody, and neither is what lies
outside the frame table (devices).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Entries, Held, HeldKind, PageTableFormat
from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.mm.tables.tree import Found, Stretch, Tree

Frames = NDArray[np.int64]


@dataclass(slots=True)
class Census:
    """Base pages of a range by what the entries of one level make of them."""

    present: int = 0
    accessed: int = 0  # of the present ones
    dirty: int = 0  # of the present ones
    framed: int = 0  # held, with a frame behind them
    frameless: int = 0  # held, without one
    malformed: int = 0  # neither present nor a held kind: only damage brings that about

    def add(self, other: Census) -> None:
        """Count the pages of `other` too."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def count(table: Tree, start: int, end: int) -> dict[int, Census]:
    """The census of `[start, end)` by level. Of a large entry only the pages in the range count."""
    fmt = table.format
    census = {level: Census() for level in range(1, fmt.top + 1)}
    for item in table.visit(start, end):
        entries, level = entries_of(table, item)
        pages = 1
        if isinstance(item, Found):
            last = min(end, item.start + fmt.levels[level - 1].size)
            pages = last - max(start, item.start) >> fmt.page_shift
        census[level].add(_count(fmt, entries, pages))
    return census


def _count(fmt: PageTableFormat, entries: Entries, pages: int) -> Census:
    entries = entries[entries != 0]
    live = entries & np.uint64(fmt.present_mask) != 0
    leaves, others = entries[live], entries[~live]
    with_frame = int(np.count_nonzero(is_held(fmt, others, _FRAMED)))
    without = int(np.count_nonzero(is_held(fmt, others, _FRAMELESS)))
    return Census(
        leaves.size * pages,
        int(fmt.accessed(leaves).sum()) * pages,
        int(fmt.dirty(leaves).sum()) * pages,
        with_frame * pages,
        without * pages,
        (others.size - with_frame - without) * pages,
    )


_FRAMED = tuple(kind for kind in HeldKind if kind.has_frame)
_FRAMELESS = tuple(kind for kind in HeldKind if not kind.has_frame)


def is_held(fmt: PageTableFormat, entries: Entries, kinds: tuple[HeldKind, ...]) -> NDArray[np.bool_]:
    """Which of entries that are not present are held ones of these kinds."""
    marks = entries & np.uint64(fmt.held_mask)
    found = np.zeros(entries.size, np.bool_)
    for kind in kinds:
        found |= marks == np.uint64(fmt.held_entry(Held(kind, 0)))
    return found


def has_frame(fmt: PageTableFormat, entries: Entries) -> NDArray[np.bool_]:
    """Which entries have a frame behind them: leaves, and held entries of the kinds that keep one."""
    framed: NDArray[np.bool_] = entries & np.uint64(fmt.present_mask) != 0
    if not framed.all():
        framed[~framed] = is_held(fmt, entries[~framed], _FRAMED)
    return framed


def first_frames(fmt: PageTableFormat, frames: FrameTable, entries: Entries, level: int = 1) -> Frames:
    """The first frame behind each of entries that have one; beyond the table's last for a device."""
    address = np.uint64(fmt.address_mask & -fmt.levels[level - 1].size)
    numbers = (entries & address) - np.uint64(frames.base) >> np.uint64(frames.page_shift)
    return numbers.astype(np.int64)  # an address below the base wraps around to a high number


def counted(fmt: PageTableFormat, frames: FrameTable, entries: Entries, level: int = 1) -> Frames:
    """The frames that hold a reference and a mapping for entries that have a frame, each as often."""
    numbers = first_frames(fmt, frames, entries, level)
    if level > 1:
        pages = fmt.levels[level - 1].size >> fmt.page_shift
        numbers = (numbers[:, None] + np.arange(pages)).ravel()
    if numbers.size and int(numbers.max()) >= frames.count:
        numbers = numbers[numbers < frames.count]
    zero = frames.kind_array[numbers] == Kind.ZERO
    return numbers[~zero] if zero.any() else numbers


def entries_of(table: Tree, item: Stretch | Found) -> tuple[Entries, int]:
    """The entries of an item as they are now, and their level. The array of a stretch is the table itself."""
    if isinstance(item, Stretch):
        return table.ram.array[item.slot : item.slot + item.count], 1
    return np.array([table.ram.words[item.slot]], np.uint64), item.level
