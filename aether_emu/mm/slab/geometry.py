"""Where things stand in a slab: an object, its red zones, the pointer to the next free one, who had it.

    red zone | object                             | red zone | pointer | allocated by | freed by |
     Z         the pointer is in its midst, or P:   Z          P         U              U

The pointer stands in the midst of a free object, so that a store beyond a neighbour's end does not reach it.
A poisoned object keeps all its bytes to tell of stores, and the pointer stands behind it.
"""

from __future__ import annotations

from enum import IntFlag
from typing import NamedTuple

LARGEST_ORDER = 3
"""Frames of a slab: 2**3 at most, unless one object needs more (Linux: slub_max_order)."""
WORD = 8
TRACK = 32
"""Bytes of what is noted of who allocated, or freed, an object."""
_WASTE = 8  # of a slab no more than a part in so many is left over, if a longer one does better


class Debug(IntFlag):
    """What is checked, in the letters of Linux's parameter `slab_debug`."""

    F = 1
    """Sanity: every free object is where it must be, and nobody frees one twice."""
    Z = 2
    """Red zones in front of an object and behind it."""
    P = 4
    """Poison in free objects."""
    U = 8
    """Who allocated and who freed an object."""


NOTHING = Debug(0)


def debug_flags(letters: str) -> Debug:
    """The flags that letters name; those of Linux's "-" and of nothing are none."""
    flags = NOTHING
    for letter in letters.replace("-", ""):
        flags |= Debug[letter]
    return flags


class Geometry(NamedTuple):
    """Bytes from the beginning of an object's place: to the object, the pointer, and so on."""

    left: int
    size: int
    right: int  # where the red zone behind the object ends
    pointer: int
    tracks: int
    stride: int


def up(value: int, to: int) -> int:
    """`value`, rounded up to a multiple."""
    return -(-value // to) * to


def geometry(size: int, align: int, flags: Debug) -> Geometry:
    """That of objects of `size` bytes, aligned to `align`."""
    left = up(WORD, align) if flags & Debug.Z else 0
    end = left + up(max(size, WORD), WORD)
    if flags & Debug.Z:
        end += WORD
    right, pointer = end, left + (size // 2 & -WORD)
    if flags & Debug.P:
        pointer, end = end, end + WORD
    tracks = end
    if flags & Debug.U:
        end += 2 * TRACK
    return Geometry(left, size, right, pointer, tracks, up(end, align))


def slab_order(stride: int, page_size: int) -> int:
    """How long a slab is, a power of two of frames: the shortest that wastes nothing, or little of many."""
    fits = next(order for order in range(64) if page_size << order >= stride)
    for order in range(fits, LARGEST_ORDER + 1):
        length = page_size << order
        waste = length % stride
        if not waste or (length // stride >= 4 and waste * _WASTE <= length):
            return order
    return max(fits, LARGEST_ORDER)
