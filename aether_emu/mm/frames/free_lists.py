"""The free blocks of one range of frames: the binary buddy system proper, under `aether_emu.mm.frames.buddy`.

A block of order k is 2**k frames, aligned to its size by frame number. Taking a smaller block cuts a larger
one in halves; a block that becomes free is joined with its buddy, the other half of the block they make
together, for as long as that one is free. The frame table's `block` column says which block begins where:

    0                       none: inside a block, or not an allocator's
    k + 1                   a block of order k in use
    FREE_BLOCK | (k + 1)    a free block of order k, which is on its list

So the range is always tiled by blocks, and finding out whether a buddy is free is one look.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from aether_emu.errors import FrameError
from aether_emu.mm.frames.free_list import FREE_BLOCK, FreeList
from aether_emu.mm.frames.table import FrameTable

FrameArray = npt.NDArray[np.int64]

MAX_ORDER: Final = 18
"""Order of the largest block: 2**18 frames, which is 1 GiB of 4 KiB pages."""
SINGLE: Final = 1
"""The `block` column of a single frame in use."""

_FEW = 24
"""Up to this many blocks, joining them one by one is cheaper than numpy's fixed cost for each order."""
_LONG = 8
"""From this mean length of a run of frames on, it is cheaper to join them run by run."""


class FreeLists:
    """One list for each order, last in first out."""

    def __init__(self, frames: FrameTable, name: str, first: int, end: int) -> None:
        """Begin with all of [first, end) free, in the largest blocks that fit."""
        self.frames = frames
        self.name = name
        self.first = first
        self.end = end
        self.free = 0
        """Frames in all free blocks."""
        self.splits = 0
        """Cuts in halves; a block turned into single frames is cut one time less than it has frames."""
        self.merges = 0
        """Pairs of free buddies joined."""
        self.blocks = [FreeList(frames, order) for order in range(MAX_ORDER + 1)]
        blocks = list(_aligned_blocks(first, end))
        self._initial_blocks = len(blocks)
        for frame, order in reversed(blocks):  # so that the lowest is taken first
            self._insert(frame, order)

    def take(self, order: int) -> int | None:
        """Take a block: the lowest part of the smallest free one that holds it. None if there is none."""
        larger = order
        while not self.blocks[larger].count:
            if larger == MAX_ORDER:
                return None
            larger += 1
        frame = self.blocks[larger].pop()
        self.free -= 1 << larger
        self.splits += larger - order
        while larger > order:
            larger -= 1
            self._insert(frame + (1 << larger), larger)
        self.frames.block[frame] = order + 1
        return frame

    def take_singles(self, count: int) -> Iterator[FrameArray]:
        """Take `count` single frames, no more than are free, in the largest blocks there are."""
        order = MAX_ORDER
        while count:
            order = min(order, count.bit_length() - 1)
            whole = min(self.blocks[order].count, count >> order)
            heads = [self.blocks[order].pop() for _ in range(whole)]
            self.free -= whole << order
            if not heads:
                cut = self.take(order)
                if cut is None:
                    order -= 1
                    continue
                heads.append(cut)
            frames = (np.array(heads, dtype=np.int64)[:, None] + np.arange(1 << order)).reshape(-1)
            self.frames.block_array[frames] = SINGLE
            self.splits += frames.size - len(heads)
            count -= frames.size
            yield frames

    def take_smallest(self, count: int) -> list[int]:
        """Take `count` single frames, or all there are, off the smallest blocks: large ones stay whole."""
        frames: list[int] = []
        order = 0
        while count and order <= MAX_ORDER:
            if not self.blocks[order].count:
                order += 1
                continue
            order = min(order, count.bit_length() - 1)  # a cut leaves its rest from this order on
            block = self.take(order)
            assert block is not None, "a block on a list cannot be taken"
            self.make_single(block, 1 << order)
            frames.extend(range(block, block + (1 << order)))
            count -= 1 << order
        return frames

    def take_within(self, first: int, count: int) -> FrameArray:
        """Take all that is free of an aligned range, as single frames. No free block reaches out of it."""
        column = self.frames.block_array[first : first + count]
        heads = np.flatnonzero(column & np.uint8(FREE_BLOCK)) + first
        orders = (self.frames.block_array[heads] & ~np.uint8(FREE_BLOCK)).astype(np.int64) - 1
        parts: list[FrameArray] = [np.empty(0, np.int64)]
        for head, order in zip(heads.tolist(), orders.tolist(), strict=True):
            self.blocks[order].leave()
            self.free -= 1 << order
            self.splits += (1 << order) - 1
            parts.append(np.arange(head, head + (1 << order)))
        taken = np.concatenate(parts)
        self.frames.block_array[taken] = SINGLE
        return taken

    def make_single(self, first: int, count: int) -> None:
        """Turn the first `count` frames of a block in use into single frames."""
        if count > 1:  # a block of one frame is a single frame already
            self.frames.block_array[first : first + count] = SINGLE
            self.splits += count - 1

    def give(self, frame: int, order: int) -> None:
        """Make a block in use free, joined with its free buddies."""
        first, end, block = self.first, self.end, self.frames.block
        while order < MAX_ORDER:
            buddy = frame ^ (1 << order)
            if not first <= buddy < end or block[buddy] != FREE_BLOCK | (order + 1):
                break
            self.blocks[order].leave()
            self.free -= 1 << order
            self.merges += 1
            block[frame] = block[buddy] = 0
            frame &= ~(1 << order)
            order += 1
        self._insert(frame, order)

    def give_singles(self, frames: FrameArray) -> None:
        """As `give`, for ascending single frames, which are joined with each other too."""
        starts = np.flatnonzero(np.diff(frames, prepend=-2) != 1)
        if starts.size * _LONG < frames.size:
            ends = frames[np.append(starts[1:], frames.size) - 1] + 1
            for start, end in zip(frames[starts].tolist(), ends.tolist(), strict=True):
                self._give_run(start, end)
            return
        order = 0
        while frames.size > _FEW and order < MAX_ORDER:
            frames = self._give_order(frames, order)
            order += 1
        for frame in reversed(frames.tolist()):
            self.give(frame, order)

    def _give_run(self, start: int, end: int) -> None:
        """As `give`, for the single frames of [start, end)."""
        self.frames.block_array[start:end] = 0
        for block, order in _aligned_blocks(start, end):
            self.merges += (1 << order) - 1
            self.give(block, order)

    def _give_order(self, heads: FrameArray, order: int) -> FrameArray:
        """List the blocks that have no free buddy. Returns the others, joined: blocks of the next order."""
        size = 1 << order
        block = self.frames.block_array
        upper = np.zeros(heads.size, dtype=np.bool_)  # its lower half is in `heads` too, just before it
        upper[1:] = (heads[1:] ^ heads[:-1]) == size
        joined = np.zeros_like(upper)
        joined[:-1] = upper[1:]
        buddies = heads ^ size
        inside = (self.first <= buddies) & (buddies < self.end)
        listed = np.zeros_like(upper)
        listed[inside] = block[buddies[inside]] == FREE_BLOCK | (order + 1)
        self.blocks[order].leave(int(listed.sum()))
        block[buddies[listed]] = 0
        joined |= listed
        alone = heads[~(joined | upper)]
        block[alone] = FREE_BLOCK | (order + 1)
        self.blocks[order].extend(alone[::-1].tolist())
        self.free += (alone.size - int(listed.sum())) << order
        self.merges += int(joined.sum())
        block[heads[joined] | size] = 0
        larger: FrameArray = heads[joined] & ~size
        return larger

    def _insert(self, frame: int, order: int) -> None:
        self.frames.block[frame] = FREE_BLOCK | (order + 1)
        self.blocks[order].add(frame)
        self.free += 1 << order

    def check(self) -> npt.NDArray[np.bool_]:
        """Verify that aligned blocks tile the range, that the lists and counts agree with them, and that no
        two buddies are both free. Returns which frames of the range are free. Raises FrameError.
        """
        column = self.frames.block_array
        heads = np.flatnonzero(column[self.first : self.end]) + self.first
        orders = (column[heads] & ~np.uint8(FREE_BLOCK)).astype(np.int64) - 1
        free = column[heads] >= FREE_BLOCK
        self._demand(bool(((orders >= 0) & (orders <= MAX_ORDER)).all()), "a block has no valid order")
        sizes = np.int64(1) << orders
        self._demand(not (heads & (sizes - 1)).any(), "a block is not aligned")
        tiled = np.array_equal(np.append(heads, self.end), np.insert(heads + sizes, 0, self.first))
        self._demand(tiled, "blocks overlap or leave a gap")
        for order, blocks in enumerate(self.blocks):
            those = heads[free & (orders == order)]
            right = blocks.count == those.size and sorted(blocks) == those.tolist()
            self._demand(right, f"the list of order {order} is wrong")
            halves = np.isin(those ^ (1 << order), those)
            self._demand(order == MAX_ORDER or not halves.any(), f"free buddies of order {order} are apart")
        self._demand(int(sizes[free].sum()) == self.free, "the count of free frames is wrong")
        blocks_now = self._initial_blocks + self.splits - self.merges
        self._demand(heads.size == blocks_now, "splits and merges do not explain the number of blocks")
        return np.repeat(free, sizes)

    def _demand(self, true: bool, otherwise: str) -> None:
        if not true:
            raise FrameError(f"zone {self.name} is corrupt: {otherwise}")


def _aligned_blocks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Tile [start, end) with the largest aligned blocks: (first frame, order), ascending."""
    while start < end:
        alignment = (start & -start).bit_length() - 1 if start else MAX_ORDER
        order = min(alignment, (end - start).bit_length() - 1, MAX_ORDER)
        yield start, order
        start += 1 << order
