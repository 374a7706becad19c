"""What differs between two address spaces: what is mapped in one alone, and what is mapped otherwise.

Compared is what addresses lead to, not where the tables lie that lead there. What absent entries hold is no
difference. Neighbours that differ in the same way are one range.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import numpy as np

from aether_emu.errors import ConfigError
from aether_emu.verify.tables.filters import Filter
from aether_emu.verify.tables.formats import ALLOWED, Bits, Bytes, Flags, Numbers, Right, Words
from aether_emu.verify.tables.layout import Pages, Targets
from aether_emu.verify.tables.listing import STAYS, follows, pieces_of, runs
from aether_emu.verify.tables.survey import LIMIT, Survey
from aether_emu.verify.tables.unfold import Flat, unfolded


class Change(IntFlag):
    """How a range differs. MAPPED: the second alone maps it; UNMAPPED: the first alone does."""

    MAPPED = 1
    UNMAPPED = 2
    PROTECTION = 4
    GLOBAL = 8
    CONTIGUOUS = 16
    SIZE = 32
    MEMORY = 64
    TARGET = 128
    ACCESSED_ON = 256
    ACCESSED_OFF = 512
    DIRTY_ON = 1024
    DIRTY_OFF = 2048


ALONE = Change.MAPPED | Change.UNMAPPED
USE = Change.ACCESSED_ON | Change.ACCESSED_OFF | Change.DIRTY_ON | Change.DIRTY_OFF
"""What an access makes, and nobody who edits the tables."""

_FLAGS = (
    (Right.GLOBAL, Change.GLOBAL, Change.GLOBAL),
    (Right.CONTIGUOUS, Change.CONTIGUOUS, Change.CONTIGUOUS),
    (Right.ACCESSED, Change.ACCESSED_ON, Change.ACCESSED_OFF),
    (Right.DIRTY, Change.DIRTY_ON, Change.DIRTY_OFF),
)


@dataclass(frozen=True, slots=True)
class State:
    """What one side has in each range. Level 0 where it has nothing."""

    pages: Pages
    targets: Targets


@dataclass(frozen=True, slots=True)
class Difference:
    """Ranges in ascending order. `change` are `Change`s."""

    start: Words
    size: Words
    change: Flags
    old: State
    new: State

    def __len__(self) -> int:
        return int(self.start.size)

    def counted(self, of: Change) -> tuple[int, int]:
        """How many ranges have one of these changes, and how many bytes they are."""
        here = self.change & np.uint16(of) != 0
        return int(np.count_nonzero(here)), sum(self.size[here].tolist())


@dataclass(frozen=True, slots=True)
class _Segment:
    """One side of addresses that no leaf of either side ends in. `leaf` is -1 where nothing is mapped."""

    leaf: Numbers
    level: Bytes
    rights: Flags
    memory: Bytes
    physical: Words


def difference(
    old: Survey,
    new: Survey,
    *,
    ignore_accessed: bool = False,
    wanted: Filter | None = None,
    limit: int = LIMIT,
) -> Difference:
    """How `new` differs from `old`. Of filters, one that either side passes lets a range through.

    Raises ConfigError for tables of two architectures, and where shared ones unfold to more than `limit`.
    """
    formats = old.tables.format, new.tables.format
    if formats[0].isa != formats[1].isa:
        raise ConfigError("format", formats[1].name, f"of {formats[0].isa}, as the other is")
    one, other = _unlike(*unfolded(old, new, limit), ignore_accessed)
    shift = np.uint64(min(formats[0].shifts[0], formats[1].shifts[0]))
    # In units of pages the end of all addresses is a number, too.
    edges = [(side.address >> shift, (side.address >> shift) + (side.size >> shift)) for side in (one, other)]
    bounds = _distinct(np.concatenate([edge for pair in edges for edge in pair]))
    start, size = bounds[:-1] << shift, np.diff(bounds) << shift
    sides = [_segment(side, edge, bounds[:-1], start) for side, edge in zip((one, other), edges, strict=True)]
    change = _changes(one, other, sides[0], sides[1], ignore_accessed)
    keep = change != 0
    if wanted:
        passes = [wanted.grants(side.rights) & (side.leaf >= 0) for side in sides]
        keep &= (passes[0] | passes[1]) & wanted.within(start, size)
    return _merged(
        start[keep],
        size[keep],
        change[keep],
        [(survey, _some(side, keep)) for survey, side in zip((old, new), sides, strict=True)],
    )


def _compared(flat: Flat, ignore_accessed: bool) -> np.uint16:
    """The rights that make a difference. On ARM64 a page is dirty when it can be written, no more."""
    rights = STAYS
    if not ignore_accessed:
        rights |= np.uint16(Right.ACCESSED)
        if flat.found.tables.format.isa == "x86_64":
            rights |= np.uint16(Right.DIRTY)
    return np.uint16(rights)


def _memory_numbers(one: Flat, other: Flat) -> list[Bytes]:
    """For each side, a number of the name that each memory type has under its registers."""
    names: dict[str, int] = {}
    tables = []
    for side in (one, other):
        table = np.zeros(256, np.uint8)
        for memory in np.flatnonzero(np.bincount(side.memory, minlength=1)).tolist():
            name = side.found.tables.format.memory_name(memory)
            table[memory] = names.setdefault(name, len(names))
        tables.append(table)
    return tables


def _distinct(numbers: Words) -> Words:
    """The numbers in ascending order, each once. They are few ascending runs: a merge sorts them fastest."""
    numbers = np.sort(numbers, kind="stable")
    first = np.concatenate([np.ones(min(numbers.size, 1), bool), numbers[1:] != numbers[:-1]])
    return np.asarray(numbers[first])


def _unlike(one: Flat, other: Flat, ignore_accessed: bool) -> tuple[Flat, Flat]:
    """Without the leaves that both have, to look at the few that remain."""
    if not one.address.size or not other.address.size:
        return one, other
    place = np.minimum(np.searchsorted(other.address, one.address), other.address.size - 1)
    there = other[place]
    numbers = _memory_numbers(one, other)
    same = (there.address == one.address) & (there.physical == one.physical) & (there.size == one.size)
    same &= (there.rights ^ one.rights) & _compared(one, ignore_accessed) == 0
    same &= numbers[0][one.memory] == numbers[1][there.memory]
    left = np.ones(other.address.size, bool)
    left[place[same]] = False
    return one[~same], other[left]


def _segment(side: Flat, edges: tuple[Words, Words], bounds: Words, start: Words) -> _Segment:
    """What a side has in each segment."""
    if not side.address.size:
        nothing = np.zeros(start.size, np.uint8)
        return _Segment(
            np.full(start.size, -1), nothing, nothing.astype(np.uint16), nothing, start * np.uint64(0)
        )
    leaf = np.searchsorted(edges[0], bounds, "right").astype(np.int64) - 1
    at = np.maximum(leaf, 0)
    there = (leaf >= 0) & (bounds < edges[1][at])
    found = side[at]
    return _Segment(
        np.where(there, leaf, -1), found.level * there, found.rights * there, found.memory * there,
        np.where(there, found.physical + (start - found.address), np.uint64(0)),
    )  # fmt: skip


def _changes(one: Flat, other: Flat, old: _Segment, new: _Segment, ignore_accessed: bool) -> Flags:
    """The `Change`s of each segment, 0 where there is none."""
    had, has = old.leaf >= 0, new.leaf >= 0
    both = had & has
    change = np.zeros(both.size, np.uint16)
    change[has & ~had] = Change.MAPPED
    change[had & ~has] = Change.UNMAPPED
    numbers = _memory_numbers(one, other)
    sizes = (
        one.found.page_sizes[old.level.astype(np.int64)],
        other.found.page_sizes[new.level.astype(np.int64)],
    )
    altered = (old.rights ^ new.rights) & _compared(one, ignore_accessed)
    tests: list[tuple[Bits, Change]] = [
        (altered & np.uint16(ALLOWED) != 0, Change.PROTECTION),
        (sizes[0] != sizes[1], Change.SIZE),
        (numbers[0][old.memory] != numbers[1][new.memory], Change.MEMORY),
        (old.physical != new.physical, Change.TARGET),
    ]
    for right, on, off in _FLAGS:
        differs, set_now = altered & np.uint16(right) != 0, new.rights & np.uint16(right) != 0
        tests += [(differs & set_now, on), (differs & ~set_now, off)]
    for which, kind in tests:
        change[which & both] |= np.uint16(kind)
    return change


def _some(side: _Segment, keep: Bits) -> _Segment:
    return _Segment(*(getattr(side, column)[keep] for column in _Segment.__slots__))


def _merged(start: Words, size: Words, change: Flags, sides: list[tuple[Survey, _Segment]]) -> Difference:
    """Segments that follow each other and differ in the same way as one range."""
    alike = [column for _survey, side in sides for column in (side.level, side.rights & STAYS, side.memory)]
    first, last = runs(follows(start, size, change, *alike), start.size)
    states = []
    for survey, side in sides:
        pages = Pages(survey.tables.format, side.level, side.rights & STAYS, side.memory)[first]
        states.append(
            State(pages, Targets(side.physical[first], pieces_of(side.physical, size, first, last)))
        )
    return Difference(
        start[first], start[last] - start[first] + size[last], change[first], states[0], states[1]
    )
