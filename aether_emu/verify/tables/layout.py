"""How ranges of pages stand in lines of text: wide, or so that a terminal of 80 columns holds them.

Wide lines have a column for everything. Narrow ones need 80 columns where addresses have 57 bits and physical
ones 52: sizes are rounded to five characters, flags are letters, and memory types are shortened. A line
that is longer than the terminal all the same goes on in the next one; nothing is ever cut.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from aether_emu.verify.tables.formats import Bits, Bytes, Flags, Format, Numbers, Right, Words
from aether_emu.verify.tables.text import (
    Part,
    addresses,
    chosen,
    constant,
    distinct,
    hexadecimal,
    lines,
    short_size,
    size_text,
)

STEP = 1 << 14
"""Rows that become text at once."""

_FLAGS = (
    (Right.GLOBAL, "global", "g"), (Right.CONTIGUOUS, "contiguous", "c"),
    (Right.ACCESSED, "accessed", "a"), (Right.DIRTY, "dirty", "d"),
)  # fmt: skip
_SHORT = ("Normal-", ""), ("Device-", "Dev-")
_TITLES = ("page", "user", "kernel", "flags", "memory", "physical")
_INDENT = "\n  "


@cache
def letters(rights: Right) -> tuple[str, str]:
    """What users and the supervisor may do, as "r-x"."""
    user = (Right.USER_READ, Right.USER_WRITE, Right.USER_EXECUTE)
    own = (Right.READ, Right.WRITE, Right.EXECUTE)
    texts = (
        "".join(c if rights & right else "-" for c, right in zip("rwx", row, strict=True))
        for row in (user, own)
    )
    return next(texts), next(texts)


def flag_names(rights: Right) -> list[str]:
    """The names of the flags that a leaf has."""
    return [name for right, name, _letter in _FLAGS if rights & right]


def wrapped(texts: Iterable[str], width: int | None) -> Iterator[str]:
    """Lines of words, in a width if there is one. No word is cut; what goes on is indented more."""
    for line in texts:
        blank = line[: len(line) - len(line.lstrip())]
        yield from (
            [line]
            if width is None or len(line) <= width
            else textwrap.wrap(
                line.lstrip(), width, initial_indent=blank, subsequent_indent=blank + "    ",
                break_long_words=False, break_on_hyphens=False,
            )
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages of one kind each: page size by `level`, rights and memory type. Level 0 stands for none."""

    rules: Format
    level: Bytes
    rights: Flags
    memory: Bytes

    def __getitem__(self, rows: slice | Bits | Numbers) -> Pages:
        return Pages(self.rules, self.level[rows], self.rights[rows], self.memory[rows])

    @property
    def keys(self) -> Numbers:
        """A number for each that tells its kind."""
        return np.asarray(self.level.astype(np.int64) << 18 | self.rights.astype(np.int64) << 8 | self.memory)


def kind_of(rules: Format, key: int) -> tuple[int, Right, str]:
    """What a key of pages tells: the bytes of a page, its rights, and the name of its memory."""
    level, rights = key >> 18, Right(key >> 8 & 0x3FF)
    if not level:
        return 0, rights, ""
    return 1 << rules.shifts[level - 1], rights, rules.memory_name(key & 0xFF)


@dataclass(frozen=True, slots=True)
class Targets:
    """What memory lies behind ranges: the first frame, and of how many pieces it consists."""

    frame: Words
    pieces: Numbers

    def __getitem__(self, rows: slice | Bits | Numbers) -> Targets:
        return Targets(self.frame[rows], self.pieces[rows])

    def parts(self, prefix: str) -> list[Part]:
        """`prefix` and the frame, or "3 pieces"."""
        one = self.pieces <= 1
        parts = [constant(prefix, one.size).where(one), hexadecimal(self.frame).where(one)]
        if not one.all():
            counts, which = distinct(self.pieces)
            parts.append(chosen([f"{count} pieces" for count in counts], which).where(~one))
        return parts

    @property
    def width(self) -> int:
        """Characters of the longest, without a prefix."""
        one = self.pieces <= 1
        frame = int(self.frame[one].max(initial=0))
        count = int(self.pieces[~one].max(initial=0))
        return max(len(f"{frame:x}"), len(f"{count} pieces") if count else 0)


@dataclass(slots=True)
class Layout:
    """Wide lines, or narrow ones. `width` is the terminal's, None for a pipe or file.

    How wide the columns are, `measure` and `measure_sizes` find out, for all rows that will stand in a table.
    `kinds` are the keys of pages then, ascending, and their columns as text, by format.
    """

    narrow: bool
    width: int | None = None
    columns: list[int] = field(default_factory=list)
    kinds: dict[Format, tuple[Numbers, list[str]]] = field(default_factory=dict)
    size_width: int = 4

    @property
    def gap(self) -> str:
        return " " if self.narrow else "  "

    def cells(self, kind: tuple[int, Right, str]) -> tuple[str, ...]:
        """The words of a kind of pages."""
        page, rights, memory = kind
        if not page:
            return ("-",) * len(self.titles)
        user, own = letters(rights)
        if not self.narrow:
            return size_text(page), user, own, ",".join(flag_names(rights)) or "-", memory
        for name, short in _SHORT:
            memory = memory.replace(name, short)
        flags = "".join(letter for right, _name, letter in _FLAGS if rights & right) or "-"
        return size_text(page), f"{user}/{own}", flags, memory

    @property
    def titles(self) -> tuple[str, ...]:
        """Those of `cells`."""
        return ("page", "usr/krn", "fl", "memory") if self.narrow else _TITLES[:-1]

    def measure(self, *pages: Pages) -> None:
        """Make the columns as wide as these pages need."""
        seen: dict[Format, Bits] = {}
        for each in pages:
            seen.setdefault(each.rules, np.zeros(1 << 22, bool))[each.keys] = True
        keys = {rules: np.flatnonzero(there) for rules, there in seen.items()}
        cells = {rules: [self.cells(kind_of(rules, key)) for key in keys[rules].tolist()] for rules in keys}
        rows = [self.titles, *(one for each in cells.values() for one in each)]
        self.columns = [max(len(one[k]) for one in rows) for k in range(len(self.titles))]
        self.kinds = {rules: (keys[rules], [self.aligned(one) for one in cells[rules]]) for rules in keys}

    def measure_sizes(self, sizes: Words) -> None:
        """Make the column of sizes as wide as these need."""
        self.size_width = max(4, *(len(self.size(size)) for size in distinct(sizes)[0]), 0)

    def size(self, size: int) -> str:
        return short_size(size) if self.narrow else size_text(size)

    @property
    def pages_width(self) -> int:
        return sum(self.columns) + len(self.gap) * (len(self.columns) - 1)

    def aligned(self, cells: Sequence[str]) -> str:
        """Cells of `columns` as text."""
        return self.gap.join(cell.ljust(width) for cell, width in zip(cells, self.columns, strict=True))

    def pages(self, pages: Pages) -> Part:
        """The columns of pages that were measured."""
        keys, texts = self.kinds[pages.rules]
        return chosen(texts, np.searchsorted(keys, pages.keys), width=self.pages_width)

    def spans(self, start: Words, size: Words) -> list[Part]:
        """The columns of start, end and size."""
        sizes, which = distinct(size)
        texts = [self.size(one) for one in sizes]
        gap = constant(self.gap, start.size)
        return [
            addresses(start), gap, addresses(start + size), gap,
            chosen(texts, which, width=self.size_width),
        ]  # fmt: skip

    @property
    def spans_width(self) -> int:
        return 32 + 2 * len(self.gap) + self.size_width

    @property
    def prefix(self) -> str:
        """What stands in front of a physical address."""
        return "" if self.narrow else "0x"

    def folded(self, front: Sequence[Part], front_width: int, tail: Sequence[Part]) -> list[Part]:
        """The front of lines and their tails, beside it or, where that is too long, below it."""
        rows = front[0].rows
        gap = constant(self.gap, rows)
        if self.width is None:
            return [*front, gap, *tail]
        widths = np.zeros(rows, np.int64)
        for part in tail:
            widths += part.widths
        fits = front_width + len(self.gap) + widths <= self.width
        if fits.all():
            return [*front, gap, *tail]
        return [*front, gap.where(fits), constant(_INDENT, rows).where(~fits), *tail]

    def head(self, front: str, front_width: int, last: str) -> str:
        """The titles above lines as `folded` makes them: `front`, those of `pages`, and `last`."""
        tail = self.aligned(self.titles) + self.gap + last
        one = front.ljust(front_width) + self.gap + tail
        if self.width is None or len(one) <= self.width:
            return one
        return front + _INDENT + tail


def finished(parts: Sequence[Part], hot: Bits | None = None) -> bytes:
    """Lines of these parts. Those that are `hot` are bold and red."""
    rows = parts[0].rows
    end = constant("\n", rows)
    if hot is None or not hot.any():
        return lines([*parts, end])
    return lines([constant("\x1b[1;31m", rows).where(hot), *parts, constant("\x1b[0m", rows).where(hot), end])


def slices(rows: int) -> Iterator[slice]:
    """All rows, some at once."""
    for start in range(0, rows, STEP):
        yield slice(start, min(start + STEP, rows))
