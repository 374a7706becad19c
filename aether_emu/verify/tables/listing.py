"""What is mapped, as ranges of leaves that are alike: arrays, because there can be millions.

Leaves become one range when their addresses follow each other and their rights, memory type, page size
and, on ARM64, contiguous hint are the same. Accessed and dirty flags don't part a range. A range whose
frames follow each other too has a physical start; another is told by how many pieces it lies in.
What a table maps is listed once: where it is reached again, a repeat says what it is the same as.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aether_emu.address import PhysAddr, VirtAddr
from aether_emu.verify.tables.formats import ALLOWED, Bits, Bytes, Flags, Numbers, Right, Words
from aether_emu.verify.tables.survey import Survey

STAYS = np.uint16(ALLOWED | Right.GLOBAL | Right.CONTIGUOUS)
"""The rights and flags that are the same in all of a range."""


@dataclass(frozen=True, slots=True)
class Range:
    """[start, end) of virtual addresses; `end` itself need not be one: it can be 2**64.

    `pieces` counts the runs of contiguous frames behind it.
    """

    start: VirtAddr
    end: int
    page: int
    rights: Right
    memory: str
    physical: PhysAddr
    pieces: int

    @property
    def size(self) -> int:
        return self.end - int(self.start)


@dataclass(frozen=True, slots=True)
class Repeat:
    """[start, end) is what [first, ...) is: entries lead to the same table, of the level of that name.

    Where there are several, each of them leads to the whole table.
    """

    start: VirtAddr
    end: int
    level: str
    table: PhysAddr
    first: VirtAddr

    @property
    def size(self) -> int:
        return self.end - int(self.start)


@dataclass(frozen=True, slots=True)
class Listing:
    """Ranges and repeats in ascending order, one element each. `size` is in bytes; of a range that ends at
    2**64 `start + size` is 0.

    Of a repeat `repeats` is the level of its table, `physical` where that lies, `first` where its contents
    are listed, and `level` (of the pages), `rights`, `memory` and `pieces` are 0. Of a range `repeats` and
    `first` are 0.
    """

    found: Survey
    start: Words
    size: Words
    level: Bytes
    rights: Flags
    memory: Bytes
    physical: Words
    pieces: Numbers
    repeats: Bytes
    first: Words

    def __len__(self) -> int:
        return int(self.start.size)

    def __iter__(self) -> Iterator[Range | Repeat]:
        rules = self.found.tables.format
        names = {kind: rules.memory_name(kind) for kind in np.unique(self.memory).tolist()}
        kinds = {word: Right(word) for word in np.unique(self.rights).tolist()}
        columns = (
            self.start, self.size, self.level, self.rights, self.memory, self.physical, self.pieces,
            self.repeats, self.first,
        )  # fmt: skip
        for start, size, level, right, memory, physical, pieces, again, first in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            at, end, frame = VirtAddr(start, 64), start + size, PhysAddr(physical)
            if again:
                yield Repeat(at, end, rules.level_names[again - 1], frame, VirtAddr(first, 64))
            else:
                page = 1 << rules.shifts[level - 1]
                yield Range(at, end, page, kinds[right], names[memory], frame, pieces)


def listing(found: Survey) -> Listing:
    """All that is mapped, in ascending order."""
    columns: Sequence[Any] = _range_columns(found)
    if not found.again.address.size:
        return Listing(found, *columns)
    more: Sequence[Any] = _repeat_columns(found)
    both = [np.concatenate(pair) for pair in zip(columns, more, strict=True)]
    order = np.argsort(both[0], kind="stable")
    return Listing(found, *(column[order] for column in both))


def ranges(found: Survey) -> list[Range]:
    """All leaves of the tables that were read, merged, in ascending order."""
    return [item for item in listing(found) if isinstance(item, Range)]


def repeats(found: Survey) -> list[Repeat]:
    """Where tables are reached again, in ascending order."""
    return [item for item in listing(found) if isinstance(item, Repeat)]


_Columns = tuple[Words, Words, Bytes, Flags, Bytes, Words, Numbers, Bytes, Words]


def _range_columns(found: Survey) -> _Columns:
    leaves, sizes = found.leaves, found.sizes()
    rights = leaves.rights & STAYS
    first, last = runs(follows(leaves.address, sizes, rights, leaves.memory, leaves.level), leaves.count)
    pieces = pieces_of(leaves.physical, sizes, first, last)
    nothing = np.zeros(first.size, np.uint64)
    return (
        leaves.address[first], leaves.address[last] - leaves.address[first] + sizes[last],
        leaves.level[first], rights[first], leaves.memory[first], leaves.physical[first], pieces,
        np.zeros(first.size, np.uint8), nothing,
    )  # fmt: skip


def _repeat_columns(found: Survey) -> _Columns:
    again = found.again
    span = found.spans(again.level)
    alike = follows(again.address, span, again.level, again.table, again.first)
    first, last = runs(alike, again.address.size)
    nothing = np.zeros(first.size, np.uint64)
    return (
        again.address[first], again.address[last] - again.address[first] + span[last],
        nothing.astype(np.uint8), nothing.astype(np.uint16), nothing.astype(np.uint8), again.table[first],
        nothing.astype(np.int64), again.level[first], again.first[first],
    )  # fmt: skip


def follows(starts: Words, sizes: Words, *alike: Words | Flags | Bytes | Numbers) -> Bits:
    """Whether each place but the first begins where the last one ends, and all of `alike` are the same."""
    found = starts[1:] == starts[:-1] + sizes[:-1]
    for column in alike:
        found &= column[1:] == column[:-1]
    return np.asarray(found)


def runs(joined: Bits, count: int) -> tuple[Numbers, Numbers]:
    """The first and last of each run of `count` things; `joined`: which belong to the one before."""
    if not count:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    first = np.concatenate([[0], np.flatnonzero(~joined) + 1])
    return first, np.concatenate([first[1:], [count]]) - 1


def pieces_of(frames: Words, sizes: Words, first: Numbers, last: Numbers) -> Numbers:
    """Of how many pieces of memory each run from `first` to `last` consists."""
    broken = np.cumsum(frames[1:] != frames[:-1] + sizes[:-1])
    broken = np.concatenate([np.zeros(1, np.int64), broken])
    return np.asarray(broken[last] - broken[first] + 1)
