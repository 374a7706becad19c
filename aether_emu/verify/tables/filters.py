"""Which leaves somebody wants to see: by what they grant and by their addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from aether_emu.verify.tables.formats import USER, Bits, Flags, Right, Words
from aether_emu.verify.tables.survey import Again, Leaves, Survey

_SPAN = re.compile(r"(?:0x)?([0-9a-f]{1,17})([-+])(?:0x)?([0-9a-f]{1,17})", re.IGNORECASE)
_TOP = 1 << 64


@dataclass(frozen=True, slots=True)
class Filter:
    """Leaves pass that grant all that is wanted, and map any byte of one of `spans`, if there are some.

    `writable` and `executable` are by users where `user` is set, else by anybody. `spans` are virtual
    [start, end), `end` up to 2**64.
    """

    writable: bool = False
    executable: bool = False
    user: bool = False
    spans: tuple[tuple[int, int], ...] = ()

    def __bool__(self) -> bool:
        return self.writable or self.executable or self.user or bool(self.spans)

    def grants(self, rights: Flags) -> Bits:
        """Which rights are as wanted."""
        wanted = []
        if self.user:
            wanted.append(USER)
        if self.writable:
            wanted.append(Right.USER_WRITE if self.user else Right.USER_WRITE | Right.WRITE)
        if self.executable:
            wanted.append(Right.USER_EXECUTE if self.user else Right.USER_EXECUTE | Right.EXECUTE)
        passes = np.ones(rights.shape, bool)
        for any_of in wanted:
            passes &= rights & np.uint16(any_of) != 0
        return passes

    def within(self, starts: Words, sizes: Words) -> Bits:
        """Which of the ranges that start there have a byte in one of the spans."""
        if not self.spans:
            return np.ones(starts.shape, bool)
        passes, last = np.zeros(starts.shape, bool), starts + (sizes - np.uint64(1))
        for start, end in self.spans:
            passes |= (starts <= np.uint64(end - 1)) & (last >= np.uint64(start))
        return passes


def filtered(found: Survey, wanted: Filter) -> Survey:
    """What passes. A repeat does if its addresses do, and anything below it that the rights let through.

    The counts of the survey stay those of everything.
    """
    if not wanted:
        return found
    leaves, again = found.leaves, found.again
    grants = wanted.grants(leaves.rights)
    below = _leads_to_some(found, grants) & wanted.within(again.address, found.spans(again.level))
    passes = grants & wanted.within(leaves.address, found.sizes())
    return replace(
        found,
        leaves=Leaves(*(getattr(leaves, column)[passes] for column in Leaves.__slots__)),
        again=Again(*(getattr(again, column)[below] for column in Again.__slots__)),
    )


def _leads_to_some(found: Survey, passes: Bits) -> Bits:
    """Which repeats have a leaf that passes below them, maybe by way of repeats on lower levels."""
    again = found.again
    some = np.zeros(again.address.size, bool)
    if not some.size:
        return some
    last = again.first + (found.spans(again.level) - np.uint64(1))
    counted = np.concatenate([[0], np.cumsum(passes)])
    low = np.searchsorted(found.leaves.address, again.first)
    some |= counted[np.searchsorted(found.leaves.address, last, "right")] > counted[low]
    low = np.searchsorted(again.address, again.first)
    high = np.searchsorted(again.address, last, "right")
    for level in range(2, found.tables.format.levels):
        here = again.level == level
        counted = np.concatenate([[0], np.cumsum(some & (again.level < level))])
        some[here] |= (counted[high] > counted[low])[here]
    return some


def span_of(text: str) -> tuple[int, int]:
    """START-END or START+SIZE, hexadecimal; END is not in it, and 0 for the end of all. ValueError."""
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise ValueError(text)
    start, number = int(found[1], 16), int(found[3], 16)
    end = start + number if found[2] == "+" else number or _TOP
    if not start < end <= _TOP:
        raise ValueError(text)
    return start, end
