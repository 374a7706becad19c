"""What a collapse is asked to accept, and what becomes of it: of private memory and of shared memory."""

from __future__ import annotations

from enum import Enum

from aether_emu.records import dataclass


class Ending(Enum):
    """What became of a range."""

    DONE = "it is a huge page now"
    HUGE = "it was one before"
    EMPTY = "nothing is mapped there"
    UNFIT = "something there is no page of the area's own, or too many are absent, shared or in swap"
    UNUSED = "nobody has used it lately"
    BUSY = "somebody else holds a page of it for a while"
    NO_BLOCK = "there is no block of frames in a row"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a range must be like: at most so many pages absent, shared, and `swapped`, in swap.

    `used`: one of them accessed, and half of all, if some are in swap. `moves`: other pages may move, to make
    room for the block.
    """

    absent: int
    shared: int
    swapped: int = 0
    used: bool = False
    moves: bool = True
