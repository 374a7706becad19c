"""Many lines of text at once, as arrays of bytes: what prints a million rows in less than a second.

A `Part` is what each of some rows has in one place: a matrix of characters, a row each. Lines are parts
side by side, and the characters that do not count are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from aether_emu.verify.tables.formats import Bits, Bytes, Numbers, Words

_PAIRS = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)
_POWERS = np.array([16**digit if digit else 0 for digit in reversed(range(16))], np.uint64)
"""The least numbers that have each of sixteen digits."""
_COUNTED = 1 << 14
_UNITS = ("B", "K", "M", "G", "T", "P", "E")


class Part(NamedTuple):
    """`characters`: those of each row; NUL for one that does not count."""

    characters: Bytes

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self.characters.shape[0])

    def where(self, rows: Bits) -> Part:
        """The same in these rows, and nothing in the others."""
        return self if rows.all() else Part(self.characters * rows.view(np.uint8)[:, None])

    @property
    def widths(self) -> Numbers:
        """How many characters each row has."""
        return np.asarray(np.count_nonzero(self.characters, axis=1))


def constant(text: str, rows: int) -> Part:
    """The same in every row."""
    return Part(np.broadcast_to(np.frombuffer(text.encode("ascii"), np.uint8), (rows, len(text))))


def addresses(values: Words) -> Part:
    """Sixteen hexadecimal digits."""
    return Part(_digits(values))


def hexadecimal(values: Words) -> Part:
    """Hexadecimal digits without leading zeros."""
    width = max(1, (int(values.max(initial=0)).bit_length() + 3) // 4)
    needed = values[:, None] >= _POWERS[-width:]
    return Part(_digits(values)[:, -width:] * needed.view(np.uint8))


def _digits(values: Words) -> Bytes:
    pairs = _PAIRS[values.astype(">u8").view(np.uint8)]
    return pairs.view(np.uint8).reshape(-1, 16)


def chosen(texts: Sequence[str], which: np.ndarray[Any, Any], *, width: int = 0) -> Part:
    """One of `texts` in each row, at least `width` characters wide. They are ASCII without NUL."""
    padded = [text.ljust(width).encode("ascii") for text in texts] or [b" "]
    table = np.array(padded)
    return Part(table.view(np.uint8).reshape(len(padded), -1).take(which, axis=0))


def distinct(values: np.ndarray[Any, Any]) -> tuple[list[int], Numbers]:
    """The different numbers among `values` in ascending order, and which of them each is.

    Few small ones, or multiples of a page, are counted, which is much faster than sorting them all.
    """
    if not (values & 0xFFF).any():
        numbers, unit = values >> 12, 12
    else:
        numbers, unit = values, 0
    if int(numbers.max(initial=0)) >= _COUNTED:
        sorted_out, which = np.unique(values, return_inverse=True)
        return sorted_out.tolist(), which
    numbers = numbers.astype(np.int64)
    there = np.bincount(numbers, minlength=1) > 0
    return [number << unit for number in np.flatnonzero(there).tolist()], (np.cumsum(there) - 1).take(numbers)


def lines(parts: Sequence[Part]) -> bytes:
    """All rows, each its parts in order. A part of the last has to bring the newline."""
    characters = np.concatenate([part.characters for part in parts], axis=1)
    return characters.tobytes().translate(None, b"\0")


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
