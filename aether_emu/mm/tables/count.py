"""What entries stand for: their kinds, the frames behind them, and a census of a range. Changes nothing.

A range has few *kinds* of entries: they differ in their addresses, and in little else. So every edit asks
once for each kind, in plain ints, and lets numpy apply the answer to all entries of it.

A leaf of N base pages stands for one reference and one mapping of each of its N base frames, so that
splitting and collapsing change no count. The zero page is counted by nobody, and neither is what lies
outside the frame table (devices).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from enum import Enum
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Entries, Held, PageTableFormat
from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.mm.tables.tree import Found, Stretch, Tree
from aether_emu.records import dataclass

Frames = NDArray[np.int64]
Chosen = NDArray[np.bool_] | None
"""Which entries of a stretch are meant; None: all of them."""
_ZERO = int(Kind.ZERO)  # plain: numpy needs 20 us to compare with an enum


_FEW = 16  # entries, one by one
_MANY = 1 << 12  # entries of a stretch that is not searched for few: several tables in a row


def adjoined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending ranges, those that touch each other as one: the way down is asked less often."""
    joined = list[tuple[int, int]]()
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return joined


class Sort(Enum):
    """What an entry that is neither absent nor a table stands for."""

    LEAF = "a page, or a device's"
    FRAMED = "held, with a frame behind it"
    FRAMELESS = "held, without one"
    MALFORMED = "neither present nor a held kind: only damage brings that about"


def sort_of(fmt: PageTableFormat, entry: int, level: int) -> Sort:
    """What an entry stands for. One that is present counts as a leaf, even if the MMU refuses it."""
    if entry & fmt.present_mask:
        return Sort.LEAF
    held = fmt.decode(entry, level)
    if not isinstance(held, Held):
        return Sort.MALFORMED
    return Sort.FRAMED if held.kind.has_frame else Sort.FRAMELESS


@lru_cache(maxsize=1 << 10)
def has_frame(fmt: PageTableFormat, entry: int, level: int) -> bool:
    """Whether a frame stands behind the entry, where a leaf keeps its address."""
    return sort_of(fmt, entry, level) in (Sort.LEAF, Sort.FRAMED)


def address_bits(fmt: PageTableFormat, level: int) -> int:
    """The bits of an entry of `level` that are a valid leaf's address."""
    return fmt.address_mask & (1 << fmt.physical_bits) - 1 & -fmt.levels[level - 1].size


def kinds(fmt: PageTableFormat, entries: Entries, level: int = 1) -> list[tuple[int, Chosen]]:
    """The kinds of entries that are not absent: each with its address cleared, and which ones are of it.

    An entry of nothing but an address (which only damage makes) is of kind 0.
    """
    marks = entries & ~np.uint64(address_bits(fmt, level))
    if (marks == marks[0]).all() and (marks[0] or entries.all()):
        return [(int(marks[0]), None)]
    found: list[tuple[int, Chosen]] = []
    left = entries != 0
    while left.any():
        mark = marks[left.argmax()]
        alike = left & (marks == mark)
        found.append((int(mark), alike))
        left &= ~alike
    return found


def of_kind(entries: Entries, chosen: Chosen) -> Entries:
    """The chosen ones of the entries; not a copy if all are."""
    return entries if chosen is None else entries[chosen]


def numbers_of(entries: Entries, chosen: Chosen) -> Frames:
    """The numbers, from 0, of the chosen ones of the entries."""
    return np.arange(entries.size) if chosen is None else chosen.nonzero()[0]


def first_frames(fmt: PageTableFormat, frames: FrameTable, entries: Entries, level: int = 1) -> Frames:
    """The number of the first frame behind each of entries that have one; past the last for a device."""
    address = np.uint64(fmt.address_mask & -fmt.levels[level - 1].size)
    # An address below the base wraps around to a high number.
    return ((entries & address) - np.uint64(frames.base) >> np.uint64(frames.page_shift)).astype(np.int64)


def frames_of(fmt: PageTableFormat, frames: FrameTable, entries: Entries, level: int = 1) -> Frames:
    """The frames of RAM and the aperture behind entries that have some, each base page's."""
    numbers = first_frames(fmt, frames, entries, level)
    if level > 1:
        pages = fmt.levels[level - 1].size >> fmt.page_shift
        numbers = (numbers[:, None] + np.arange(pages)).ravel()
    if numbers.size and int(numbers.max()) >= frames.count:
        numbers = numbers[numbers < frames.count]
    return numbers


def counted(frames: FrameTable, numbers: Frames) -> Frames:
    """Those of the frames that hold a reference and a mapping for each entry."""
    zero = frames.kind_array[numbers] == _ZERO
    return numbers[~zero] if zero.any() else numbers


def entries_of(table: Tree, item: Stretch | Found) -> tuple[Entries, int]:
    """The entries of an item as they are now, and their level.

    A stretch's array is a view: writing into it changes the table. A Found's is a copy of its one entry.
    """
    if isinstance(item, Stretch):
        return table.ram.array[item.slot : item.slot + item.count], 1
    return np.array([table.ram.words[item.slot]], np.uint64), item.level


def few_used(table: Tree, stretch: Stretch) -> Sequence[int] | None:
    """The numbers of the entries in use, if those are few; None if they are many.

    A loop over a few is quicker than numpy's fixed cost.
    """
    if stretch.count <= _FEW:
        return range(stretch.count)
    if stretch.count > _MANY:
        return None
    entries = table.ram.array[stretch.slot : stretch.slot + stretch.count]
    if np.count_nonzero(entries) > _FEW:
        return None
    used: list[int] = entries.nonzero()[0].tolist()
    return used


@dataclass(frozen=True, slots=True)
class Used:
    """Entries in use of several stretches: their slots, and the numbers of their pages."""

    slots: Frames
    pages: Frames


def used_in(table: Tree, stretches: Sequence[Stretch]) -> Used:
    """The entries of some stretches that are not absent, in their order."""
    words, shift = table.ram.array, table.format.page_shift
    entries = np.concatenate([words[item.slot : item.slot + item.count] for item in stretches])
    counts = [item.count for item in stretches]
    begins = [0, *accumulate(counts)]
    used = entries.nonzero()[0]
    of = np.repeat(np.arange(len(counts)), counts)[used]
    slots = np.array([item.slot - begin for item, begin in zip(stretches, begins, strict=False)])
    pages = np.array([(item.va >> shift) - begin for item, begin in zip(stretches, begins, strict=False)])
    return Used(used + slots[of], used + pages[of])


@dataclass(slots=True)
class Census:
    """Base pages of a range by what the entries of one level make of them; fields as in `Sort`."""

    present: int = 0
    accessed: int = 0  # of the present ones
    dirty: int = 0  # of the present ones
    framed: int = 0
    frameless: int = 0
    malformed: int = 0

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
        for kind, chosen in kinds(fmt, entries, level):
            size = entries.size if chosen is None else int(np.count_nonzero(chosen))
            census[level].add(_counted_as(fmt, kind, level, size * pages))
    return census


def _counted_as(fmt: PageTableFormat, kind: int, level: int, pages: int) -> Census:
    match sort_of(fmt, kind, level):
        case Sort.LEAF:
            return Census(pages, fmt.accessed(kind) * pages, fmt.dirty(kind) * pages)
        case Sort.FRAMED:
            return Census(framed=pages)
        case Sort.FRAMELESS:
            return Census(frameless=pages)
        case Sort.MALFORMED:
            return Census(malformed=pages)
