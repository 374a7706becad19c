"""Many lines of text at once, as arrays of bytes: what prints a million rows in less than a second.

A `Part` is what each of some rows has in one place: a matrix of characters, a row each, and which of them
count. Lines are parts side by side, and what does not count is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from aether_emu.verify.tables.formats import Bits, Bytes, Numbers, Words

_PAIRS = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)
_ZERO = np.uint8(ord("0"))
_UNITS = ("B", "K", "M", "G", "T", "P", "E")


class Part(NamedTuple):
    """`kept`: which characters of each row count."""

    characters: Bytes
    kept: Bits

    def where(self, rows: Bits) -> Part:
        """The same in these rows, and nothing in the others."""
        return self if rows.all() else Part(self.characters, self.kept & rows[:, None])

    @property
    def widths(self) -> Numbers:
        """How many characters each row has."""
        return np.asarray(np.count_nonzero(self.kept, axis=1))


def constant(text: str, rows: int) -> Part:
    """The same in every row."""
    shape = rows, len(text)
    characters = np.broadcast_to(np.frombuffer(text.encode("ascii"), np.uint8), shape)
    return Part(characters, np.broadcast_to(np.bool_(True), shape))


def addresses(values: Words) -> Part:
    """Sixteen hexadecimal digits."""
    digits = _digits(values)
    return Part(digits, np.ones(digits.shape, bool))


def hexadecimal(values: Words) -> Part:
    """Hexadecimal digits without leading zeros."""
    digits = _digits(values)
    kept = np.logical_or.accumulate(digits != _ZERO, axis=1)
    kept[:, -1] = True
    return Part(digits, kept)


def _digits(values: Words) -> Bytes:
    pairs = _PAIRS[values.astype(">u8").view(np.uint8)]
    return pairs.view(np.uint8).reshape(-1, 16)


def chosen(texts: Sequence[str], which: np.ndarray[Any, Any], *, width: int = 0) -> Part:
    """One of `texts` in each row, at least `width` characters wide. They are ASCII without NUL."""
    padded = [text.ljust(width).encode("ascii") for text in texts] or [b" "]
    table = np.array(padded)
    characters = table.view(np.uint8).reshape(len(padded), -1)[which]
    return Part(characters, characters != 0)


def lines(parts: Sequence[Part]) -> bytes:
    """All rows, each its parts in order. A part of the last has to bring the newline."""
    characters = np.concatenate([part.characters for part in parts], axis=1)
    kept = np.concatenate([part.kept for part in parts], axis=1)
    return bytes(characters[kept])


@cache
def size_text(size: int) -> str:
    """Bytes in the largest unit that gives a whole number: 4K, 2M, 1536M."""
    unit = 0
    while size and size % 1024 == 0 and unit < len(_UNITS) - 1:
        size, unit = size // 1024, unit + 1
    return f"{size}{_UNITS[unit]}"


@cache
def short_size(size: int) -> str:
    """As `size_text` in at most five characters: what needs more is rounded and marked: ~1.5G."""
    exact = size_text(size)
    if len(exact) <= 5:
        return exact
    value, unit = float(size), 0
    while value >= 999.5:
        value, unit = value / 1024, unit + 1
    return f"~{value:.1f}{_UNITS[unit]}" if value < 9.95 else f"~{value:.0f}{_UNITS[unit]}"
