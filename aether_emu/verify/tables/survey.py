"""Everything that the roots of page tables lead to, at a cost that the memory bounds, not the addresses.

A table can be reached in many ways: shared, or through itself. Below it is the same each time, if the
levels above forbid the same. So each table is read once for each level at which it is used, each set of
rights above it and each half of the addresses, at the lowest address that leads there; what leads there
once more is told (`Again`), and counted as often as there are ways. `survey` goes level by level, each
level as arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from aether_emu.verify.tables.formats import Bits, Bytes, Flags, Half, Kind, Words
from aether_emu.verify.tables.walking import Tables

Numbers = np.ndarray[Any, np.dtype[np.int64]]

LIMIT = 1 << 23
"""The most entries of one level that a survey reads."""

_CHUNK = 1 << 20  # entries read at once
_NO_ENTRY = (1 << 64) - 1


class Odd(Enum):
    """What is wrong with an entry or the table it leads to."""

    RESERVED = "reserved bits"
    BEYOND = "beyond physical addresses"
    UNBACKED = "table not in the image"
    LOOP = "leads to a table above it"
    LIMIT = "not followed"


@dataclass(frozen=True, slots=True)
class Leaves:
    """The leaves of all tables that were read, in ascending order of `address`. `at`: where the entry is."""

    address: Words
    entry: Words
    at: Words
    physical: Words
    level: Bytes
    rights: Flags
    memory: Bytes

    @property
    def count(self) -> int:
        return int(self.address.size)


@dataclass(frozen=True, slots=True)
class Again:
    """Entries that lead to a table once more. From `address` on is what `first` and its followers lead to.

    `level` is the table's own. Nothing is told of tables that map nothing.
    """

    address: Words
    level: Bytes
    table: Words
    first: Words


@dataclass(frozen=True, slots=True)
class Places:
    """The tables that entries or a root lead to, in the image or not, each once as a survey reads them.

    `table` is where one lies, `level` its level, and `address` the lowest that it translates. `at` is where
    the entry stands that leads there first; all ones for a root.
    """

    table: Words
    level: Bytes
    address: Words
    at: Words


@dataclass(frozen=True, slots=True)
class Oddities:
    """Entries of one kind of oddity and one level. `bits` are those that are wrong."""

    odd: Odd
    level: int
    address: Words
    entry: Words
    at: Words
    bits: Words


@dataclass(slots=True)
class Survey:
    """Everything that the roots lead to.

    `uses` counts tables by level, and `pages` leaves by level, each once for each way that leads there.
    """

    tables: Tables
    leaves: Leaves
    again: Again
    places: Places
    uses: list[int]
    pages: list[int]
    odd: list[Oddities] = field(default_factory=list)

    @property
    def table_pages(self) -> Words:
        """Physical addresses of tables, unique, ascending."""
        return np.unique(self.places.table)

    @property
    def wrong(self) -> int:
        """How many entries are odd in themselves."""
        return sum(int(item.address.size) for item in self.odd if item.odd is not Odd.LIMIT)

    @property
    def skipped(self) -> int:
        """How many tables the limit forbade to look at, each once for each entry that leads there."""
        return sum(int(item.address.size) for item in self.odd if item.odd is Odd.LIMIT)

    @property
    def page_sizes(self) -> Words:
        """The bytes of a page by the level of its leaf, from 1 on."""
        return np.uint64(1) << np.array([0, *self.tables.format.shifts], np.uint64)

    def sizes(self) -> Words:
        """The bytes of each leaf's page."""
        return self.page_sizes[self.leaves.level.astype(np.int64)]

    @property
    def every_span(self) -> Words:
        """The bytes of addresses that a table translates by its level, from 1 on."""
        rules = self.tables.format
        ends = [0, *rules.shifts[1:], rules.shifts[-1] + rules.widths[-1]]
        return np.uint64(1) << np.array(ends, np.uint64)

    def spans(self, levels: Bytes) -> Words:
        """The bytes of addresses that a table of each level translates."""
        return self.every_span[levels.astype(np.int64)]


@dataclass(slots=True)
class _Tables:
    """Tables of one level, in ascending order of the lowest address that leads to each.

    Of that way there: what the levels above forbid, the entry and where it stands, and the number of the
    table above. `ways` counts all.
    """

    table: Words
    address: Words
    locks: Bytes
    entry: Words
    at: Words
    above: Numbers
    ways: Numbers
    maps: Bits  # whether anything is mapped below: known in the end


@dataclass(slots=True)
class _Links:
    """Entries of one level that lead to tables. `above` is the number of the table where one stands.

    `below` is the number of the table on the next level, -1 where the limit forbids to follow.
    """

    table: Words
    address: Words
    locks: Bytes
    entry: Words
    at: Words
    above: Numbers
    below: Numbers

    def some(self, part: Bits) -> _Links:
        return _Links(*(getattr(self, name)[part] for name in _Links.__slots__))

    def told(self, part: Bits) -> tuple[Words, Words, Words, Words]:
        """What an oddity says of some of them."""
        return self.address[part], self.entry[part], self.at[part], self.table[part]


@dataclass(slots=True)
class _Gathered:
    """What a survey gathers of one half. `notes`: the columns of oddities."""

    leaves: list[Leaves] = field(default_factory=list)
    again: list[Again] = field(default_factory=list)
    notes: dict[tuple[Odd, int], list[tuple[Words, Words, Words, Words]]] = field(default_factory=dict)
    places: list[Places] = field(default_factory=list)

    def place(self, table: Words, level: int, address: Words, at: Words) -> None:
        self.places.append(Places(table, np.full(table.size, level, np.uint8), address, at))

    def note(self, odd: Odd, level: int, address: Words, entry: Words, at: Words, bits: Words) -> None:
        if address.size:
            self.notes.setdefault((odd, level), []).append((address, entry, at, bits))

    def oddities(self) -> list[Oddities]:
        """Those of one kind and level together."""
        return [
            Oddities(odd, level, *map(np.concatenate, zip(*columns, strict=True)))
            for (odd, level), columns in self.notes.items()
        ]


def survey(found: Tables, *, limit: int = LIMIT) -> Survey:
    """Go through all tables. What is beyond `limit` entries of a level is not followed, but told."""
    rules = found.format
    uses, pages = [0] * rules.levels, [0] * rules.levels
    parts = []
    for half, root in zip(rules.halves, found.roots, strict=True):
        if root is not None:
            parts.append(_Gathered())
            _half(found, half, int(root), parts[-1], limit, (uses, pages))
    leaves = Leaves(*_sorted(Leaves.__slots__, [part.leaves for part in parts]))
    again = Again(*_sorted(Again.__slots__, [part.again for part in parts]))
    places = Places(*_joined(Places.__slots__, [part.places for part in parts]))
    odd = [one for part in parts for one in part.oddities()]
    return Survey(found, leaves, again, places, uses, pages, odd)


def _half(
    found: Tables, half: Half, root: int, gathered: _Gathered, limit: int, counts: tuple[list[int], list[int]]
) -> None:
    """All levels of a half, the root's first; then, from below, which tables map anything."""
    uses, pages = counts
    nothing = np.full(1, _NO_ENTRY, np.uint64)
    tables = _Tables(
        np.array([root], np.uint64), np.array([half.base], np.uint64), np.zeros(1, np.uint8), nothing,
        nothing, np.zeros(1, np.int64), np.ones(1, np.int64), np.zeros(1, bool),
    )  # fmt: skip
    levels: list[tuple[_Tables, _Links]] = []
    for level in range(found.format.levels, 0, -1):
        uses[level - 1] += int(tables.ways.sum())
        gathered.place(tables.table, level, tables.address, tables.at)
        links, leaves = _read(found, level, tables, gathered)
        pages[level - 1] += int(leaves @ tables.ways)
        tables.maps |= leaves > 0
        levels.append((tables, links))
        if not links.table.size:
            break
        _note_loops(levels, level, gathered)
        gone = ~found.image.touches(links.table, found.format.table_size(level - 1))
        if gone.any():
            gathered.note(Odd.UNBACKED, level - 1, *links.told(gone))
            lost, first = np.unique(links.table[gone], return_index=True)
            gathered.place(lost, level - 1, links.address[gone][first], links.at[gone][first])
            uses[level - 2] += int(tables.ways[links.above[gone]].sum())
            links = links.some(~gone)
            levels[-1] = tables, links
        tables = _below(found, links, tables, max(limit >> found.format.widths[level - 2], 1))
        gathered.note(Odd.LIMIT, level, *links.told(links.below < 0))
        if not tables.table.size:
            break
    _tell_again(found.format.levels, levels, gathered)


def _below(found: Tables, links: _Links, tables: _Tables, most: int) -> _Tables:
    """The tables that links lead to, `most` at most; which of them each link leads to is put into `links`."""
    upper = found.format.is_upper(links.address)
    # A table is aligned to pages: below its address is room for what else parts it from others.
    key = links.table | links.locks.astype(np.uint64) << np.uint64(1) | upper.astype(np.uint64)
    _key, first, which = np.unique(key, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    links.below = np.where(rank[which] < most, rank[which], -1)
    first = first[order][:most]
    ways = np.zeros(first.size, np.int64)
    followed = links.below >= 0
    np.add.at(ways, links.below[followed], tables.ways[links.above[followed]])
    return _Tables(
        links.table[first], links.address[first], links.locks[first], links.entry[first], links.at[first],
        links.above[first], ways, np.zeros(first.size, bool),
    )  # fmt: skip


def _note_loops(levels: list[tuple[_Tables, _Links]], level: int, gathered: _Gathered) -> None:
    """Links of the last of `levels` that lead to a table on the first way to the one they stand in."""
    links = levels[-1][1]
    loops, above = np.zeros(links.table.size, bool), links.above
    for tables, _links in reversed(levels):
        loops |= tables.table[above] == links.table
        above = tables.above[above]
    gathered.note(Odd.LOOP, level, *links.told(loops))


def _tell_again(top: int, levels: list[tuple[_Tables, _Links]], gathered: _Gathered) -> None:
    """From below: which tables map anything, and the links that are not the first to lead to one."""
    for number in range(len(levels) - 2, -1, -1):
        (tables, links), (below, _links) = levels[number], levels[number + 1]
        followed = links.some(links.below >= 0)
        followed = followed.some(below.maps[followed.below])
        tables.maps[followed.above] = True
        more = followed.some(followed.address != below.address[followed.below])
        level = np.full(more.table.size, top - number - 1, np.uint8)
        gathered.again.append(Again(more.address, level, more.table, below.address[more.below]))


def _read(found: Tables, level: int, tables: _Tables, gathered: _Gathered) -> tuple[_Links, Numbers]:
    """Read all tables of a level: their links, and how many leaves each has."""
    step = max(_CHUNK >> found.format.widths[level - 1], 1)
    leaves = np.zeros(tables.table.size, np.int64)
    parts = [
        _read_some(found, level, tables, np.arange(start, min(start + step, leaves.size)), leaves, gathered)
        for start in range(0, leaves.size, step)
    ]
    columns = [np.concatenate([getattr(part, column) for part in parts]) for column in _Links.__slots__]
    return _Links(*columns), leaves


def _read_some(
    found: Tables, level: int, tables: _Tables, chosen: Numbers, leaves: Numbers, gathered: _Gathered
) -> _Links:
    rules = found.format
    shift, width = np.uint64(rules.shifts[level - 1]), rules.widths[level - 1]
    words, backed = found.image.tables(tables.table[chosen], 1 << width)
    if not backed.all():
        lost = chosen[~backed.all(axis=1)]
        gathered.note(
            Odd.UNBACKED, level, tables.address[lost], tables.entry[lost], tables.at[lost], tables.table[lost]
        )
    row, column = np.nonzero(words & np.uint64(1))
    entry = words[row, column]
    row = chosen[row]
    index = column.astype(np.uint64)
    at = tables.table[row] + (index << np.uint64(3))
    address = tables.address[row] + (index << shift)
    if rules.isa == "x86_64" and level == rules.levels:
        high = np.uint64(_NO_ENTRY & -(1 << rules.shifts[-1] + width))
        address |= np.where(index >> np.uint64(width - 1) != 0, high, np.uint64(0))
    kinds, bits = rules.kinds(entry, level)
    for kind, odd in ((Kind.RESERVED, Odd.RESERVED), (Kind.BEYOND, Odd.BEYOND)):
        bad = kinds == kind
        gathered.note(odd, level, address[bad], entry[bad], at[bad], bits[bad])
    leaf = kinds == Kind.LEAF
    if leaf.any():
        every = bool(leaf.all())
        rows, word = (row, entry) if every else (row[leaf], entry[leaf])
        leaves += np.bincount(rows, minlength=leaves.size)
        gathered.leaves.append(
            Leaves(
                address if every else address[leaf],
                word,
                at if every else at[leaf],
                rules.frames(word, level),
                np.full(word.size, level, np.uint8),
                rules.rights(tables.locks[rows], word),
                rules.memory(word, level),
            )
        )
    table = kinds == Kind.TABLE
    row, entry, at, address = row[table], entry[table], at[table], address[table]
    locks = rules.narrowed(tables.locks[row], entry)
    return _Links(rules.next_tables(entry), address, locks, entry, at, row, np.full(row.size, -1))


_NUMBERS = {"level": np.uint8, "rights": np.uint16, "memory": np.uint8}  # other columns are words


def _sorted(columns: Sequence[str], halves: Sequence[list[Any]]) -> list[Any]:
    """The columns of all parts together, by address."""
    found = _joined(columns, halves)
    address = found[0]
    if address.size and (address[1:] < address[:-1]).any():
        order = np.argsort(address, kind="stable")
        for number, column in enumerate(found):
            found[number] = column[order]
    return found


def _joined(columns: Sequence[str], halves: Sequence[list[Any]]) -> list[Any]:
    """The columns of all parts together. The parts leave their lists, so that none is there twice."""
    parts = [
        [
            np.zeros(0, _NUMBERS.get(column, np.uint64)),
            *(getattr(one, column) for half in halves for one in half),
        ]
        for column in columns
    ]
    for half in halves:
        half.clear()
    found = []
    for part in parts:
        found.append(np.concatenate(part))
        part.clear()
    return found
