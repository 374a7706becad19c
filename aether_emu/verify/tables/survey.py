"""Other people's page tables: one address walked and explained, or the whole address space at once.

`Tables` is an image, a format and the roots. `walk` asks the specification's walker for one address.
`survey` goes through all tables, level by level, each level as arrays: a table is read once for each
use of it. Tables that lead back to themselves end where the levels end, and are told as oddities.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from aether_emu.address import PhysAddr, VirtAddr
from aether_emu.errors import ConfigError
from aether_emu.verify.spec.fields import decode
from aether_emu.verify.tables.formats import Bits, Bytes, Flags, Format, Half, Kind, Right, Words, format_of
from aether_emu.verify.tables.images import Image, image_of, open_image
from aether_emu.verify.tables.notes import Registers

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Source = Image | str | os.PathLike[str] | bytes | bytearray | memoryview | Words
"""An image, the path of one, or memory itself from physical 0 on."""

LIMIT = 1 << 23
"""The most entries of one level that a survey reads."""

_CHUNK = 1 << 20  # entries read at once
_NO_ENTRY = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Tables:
    """Page tables in an image. A root is None for a half that nobody named."""

    image: Image
    format: Format
    roots: tuple[PhysAddr | None, ...]


def open_tables(
    source: Source,
    *,
    root: int | None = None,
    root1: int | None = None,
    format: str | None = None,
    registers: Registers | None = None,
) -> Tables:
    """The tables at `root` (CR3 or TTBR0_EL1) and `root1` (TTBR1_EL1), as those registers hold them.

    What is left out, the image's notes tell; `registers` takes their place. Raises ImageError, and
    ConfigError where nobody tells the format or a root, or a root has no place.
    """
    image = _image(source)
    known = image.registers if registers is None else registers
    name = format or known.format
    if name is None:
        raise ConfigError("format", None, f"needed: {image.name} is {image.kind} and does not tell")
    rules = format_of(name, known if known.isa in (None, name.split("-")[0]) else Registers())
    given = (root, root1)
    if given == (None, None):
        if known.isa not in (None, rules.isa) or known.roots[0] is None:
            raise ConfigError("root", None, f"needed: {image.name} is {image.kind} and does not tell")
        given = known.roots
    if len(rules.halves) == 1 and root1 is not None:
        raise ConfigError("root1", hex(root1), "for arm64: x86_64 has one root")
    roots: list[PhysAddr | None] = []
    for half, register in zip(rules.halves, given, strict=False):
        if register is not None and not 0 <= register < 1 << 64:
            raise ConfigError("root", register, f"what {half.name} can hold")
        at = None if register is None else PhysAddr(rules.root(register))
        if at is not None and at % min(rules.page, 8 << rules.widths[-1]):
            raise ConfigError("root", hex(at), "a multiple of the table's size")
        roots.append(at)
    return Tables(image, rules, tuple(roots))


def _image(source: Source) -> Image:
    if isinstance(source, Image):
        return source
    return open_image(source) if isinstance(source, str | os.PathLike) else image_of(source)


# ---- one address


@dataclass(frozen=True, slots=True)
class Step:
    """One level of a walk: the entry, where it stands, and its fields in words. None: not in the image."""

    level: str
    index: int
    at: PhysAddr
    entry: int | None
    fields: str


@dataclass(frozen=True, slots=True)
class Walk:
    """What an address leads to. `physical` is None where it leads nowhere, and `fault` says why."""

    address: VirtAddr
    steps: tuple[Step, ...]
    physical: PhysAddr | None
    page: int
    rights: Right
    memory: str
    fault: str
    backed: bool  # the image has the page


def walk(
    source: Source | Tables, address: int, *, root: int | None = None, root1: int | None = None,
    format: str | None = None,
) -> Walk:  # fmt: skip
    """Walk one virtual address by the specification. Options and errors are those of `open_tables`."""
    found = (
        source if isinstance(source, Tables) else open_tables(source, root=root, root1=root1, format=format)
    )
    rules, image = found.format, found.image
    if not 0 <= address < 1 << 64:
        raise ConfigError("address", address, "64 bits")
    asked = VirtAddr(address, 64)
    half = len(rules.halves) - 1 if address >> 55 & 1 else 0
    if found.roots[half] is None:
        why = f"no root: {rules.halves[half].name} translates this half, and nobody named it"
        return Walk(asked, (), None, 0, Right(0), "", why, False)
    read: dict[int, tuple[PhysAddr, int | None]] = {}

    def fetch(level: int, at: Words) -> Words:
        words, backed = image.read(at)
        if at.size:
            read[level] = PhysAddr(int(at[0])), int(words[0]) if backed[0] else None
        return words

    walked = rules.walk(fetch, [at or 0 for at in found.roots], address)
    steps = []
    for level in sorted(read, reverse=True):
        at, entry = read[level]
        leaf = level == min(read) and walked.mapped
        text = "not in the image" if entry is None else decode(rules.isa, entry, level, leaf=leaf)
        width, shift = rules.widths[level - 1], rules.shifts[level - 1]
        index = address >> shift & (1 << width) - 1
        steps.append(Step(rules.level_names[level - 1], index, at, entry, text))
    fault = walked.fault
    if steps and steps[-1].entry is None:
        fault = f"the {steps[-1].level} table at {steps[-1].at & -8:#x} is not in the image"
    elif not steps:
        fault += ": the address is outside the half's range" if rules.isa == "arm64" else ""
    if not walked.mapped:
        return Walk(asked, tuple(steps), None, 0, Right(0), "", fault, False)
    page = np.array([walked.physical & -walked.size], np.uint64)
    there = int(image.existing(page, np.array([walked.size], np.uint64))[0])
    memory = rules.memory_name(walked.memory)
    return Walk(
        asked, tuple(steps), PhysAddr(walked.physical), walked.size, walked.rights, memory, fault,
        there == walked.size,
    )  # fmt: skip


# ---- all addresses


class Odd(Enum):
    """What is wrong with an entry or the table it leads to."""

    RESERVED = "reserved bits"
    BEYOND = "beyond physical addresses"
    UNBACKED = "table not in the image"
    LOOP = "leads to a table above it"
    LIMIT = "not followed"


@dataclass(frozen=True, slots=True)
class Leaves:
    """All leaves in ascending order of `address`. `at` is where the entry stands."""

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
    """Everything that the roots lead to. `uses` counts tables by level, a table once for each use."""

    tables: Tables
    leaves: Leaves
    table_pages: Words  # physical addresses, unique, ascending
    uses: list[int]
    odd: list[Oddities] = field(default_factory=list)

    def sizes(self) -> Words:
        """The bytes of each leaf's page."""
        shifts = np.array(self.tables.format.shifts, np.uint64)
        return np.uint64(1) << shifts[self.leaves.level.astype(np.int64) - 1]


@dataclass(slots=True)
class _Uses:
    """Tables of one level that are to be read: where, for which addresses, under which locks, below which."""

    table: Words
    address: Words
    locks: Bytes
    entry: Words
    at: Words
    chain: list[Words]  # the tables above, the root first

    def some(self, part: slice | Bits) -> _Uses:
        chain = [above[part] for above in self.chain]
        return _Uses(
            self.table[part], self.address[part], self.locks[part], self.entry[part], self.at[part], chain
        )


@dataclass(slots=True)
class _Found:
    """What a survey gathers."""

    leaves: list[Leaves] = field(default_factory=list)
    odd: list[Oddities] = field(default_factory=list)
    pages: list[Words] = field(default_factory=list)


def survey(found: Tables, *, limit: int = LIMIT) -> Survey:
    """Go through all tables. What is beyond `limit` entries of a level is not followed, but told."""
    rules = found.format
    gathered = _Found()
    uses = [0] * rules.levels
    for half, root in zip(rules.halves, found.roots, strict=True):
        if root is None:
            continue
        one = np.ones(1, np.uint64)
        level_uses = _Uses(
            one * np.uint64(root), one * np.uint64(half.base), np.zeros(1, np.uint8), one * np.uint64(0),
            one * np.uint64(_NO_ENTRY), [],
        )  # fmt: skip
        for level in range(rules.levels, 0, -1):
            if not level_uses.table.size:
                break
            uses[level - 1] += level_uses.table.size
            gathered.pages.append(np.unique(level_uses.table))
            level_uses = _level(found, half, level, level_uses, gathered, limit)
    leaves = _sorted(gathered.leaves)
    pages = np.unique(np.concatenate([np.zeros(0, np.uint64), *gathered.pages]))
    return Survey(found, leaves, pages, uses, gathered.odd)


def _level(found: Tables, half: Half, level: int, uses: _Uses, gathered: _Found, limit: int) -> _Uses:
    """Read all tables of a level; what they lead to on the next one."""
    step = max(_CHUNK >> found.format.widths[level - 1], 1)
    below = max(limit >> found.format.widths[max(level - 2, 0)], 1)
    parts, ahead = [], 0
    for start in range(0, uses.table.size, step):
        part = uses.some(slice(start, start + step))
        if ahead > below:
            _note(gathered, Odd.LIMIT, level + 1, part.address, part.entry, part.at, part.table)
            break
        parts.append(_read(found, half, level, part, gathered))
        ahead += parts[-1].table.size
    if not parts:
        return uses.some(slice(0))
    together = parts[0] if len(parts) == 1 else _together(parts)
    if ahead > below:
        rest = together.some(slice(below, None))
        _note(gathered, Odd.LIMIT, level, rest.address, rest.entry, rest.at, rest.table)
    return together.some(slice(below))


def _together(parts: list[_Uses]) -> _Uses:
    chains = zip(*(part.chain for part in parts), strict=True)
    return _Uses(
        np.concatenate([part.table for part in parts]),
        np.concatenate([part.address for part in parts]),
        np.concatenate([part.locks for part in parts]),
        np.concatenate([part.entry for part in parts]),
        np.concatenate([part.at for part in parts]),
        [np.concatenate(rows) for rows in chains],
    )


def _read(found: Tables, half: Half, level: int, uses: _Uses, gathered: _Found) -> _Uses:
    rules = found.format
    shift, width = np.uint64(rules.shifts[level - 1]), rules.widths[level - 1]
    words, backed = found.image.tables(uses.table, 1 << width)
    if not backed.all():
        lost = ~backed.all(axis=1)
        _note(
            gathered,
            Odd.UNBACKED,
            level,
            uses.address[lost],
            uses.entry[lost],
            uses.at[lost],
            uses.table[lost],
        )
    row, column = np.nonzero(words & np.uint64(1))
    entry = words[row, column]
    index = column.astype(np.uint64)
    at = uses.table[row] + (index << np.uint64(3))
    address = uses.address[row] + (index << shift)
    if rules.isa == "x86_64" and level == rules.levels:
        high = np.uint64(_NO_ENTRY & -(1 << rules.shifts[-1] + width))
        address |= np.where(index >> np.uint64(width - 1) != 0, high, np.uint64(0))
    kinds, bits = rules.kinds(entry, level)
    for kind, odd in ((Kind.RESERVED, Odd.RESERVED), (Kind.BEYOND, Odd.BEYOND)):
        bad = kinds == kind
        _note(gathered, odd, level, address[bad], entry[bad], at[bad], bits[bad])
    leaf = kinds == Kind.LEAF
    if leaf.any():
        every = bool(leaf.all())
        rows, word = (row, entry) if every else (row[leaf], entry[leaf])
        gathered.leaves.append(
            Leaves(
                address if every else address[leaf],
                word,
                at if every else at[leaf],
                rules.frames(word, level),
                np.full(word.size, level, np.uint8),
                rules.rights(uses.locks[rows], word),
                rules.memory(word, level),
            )
        )
    table = kinds == Kind.TABLE
    row, entry, at, address = row[table], entry[table], at[table], address[table]
    below = _Uses(
        rules.next_tables(entry), address, rules.narrowed(uses.locks[row], entry), entry, at,
        [*(above[row] for above in uses.chain), uses.table[row]],
    )  # fmt: skip
    loops = np.zeros(entry.size, bool)
    for above in below.chain:
        loops |= above == below.table
    _note(gathered, Odd.LOOP, level, address[loops], entry[loops], at[loops], below.table[loops])
    return below


def _note(
    gathered: _Found, odd: Odd, level: int, address: Words, entry: Words, at: Words, bits: Words
) -> None:
    if address.size:
        gathered.odd.append(Oddities(odd, level, address, entry, at, bits))


def _sorted(parts: list[Leaves]) -> Leaves:
    names = ("address", "entry", "at", "physical", "level", "rights", "memory")
    kinds = (np.uint64,) * 4 + (np.uint8, np.uint16, np.uint8)
    columns = [
        np.concatenate([np.zeros(0, kind), *(getattr(part, name) for part in parts)])
        for name, kind in zip(names, kinds, strict=True)
    ]
    address = columns[0]
    if address.size and (address[1:] < address[:-1]).any():
        order = np.argsort(address, kind="stable")
        columns = [column[order] for column in columns]
    return Leaves(*columns)
