"""Intervals of page numbers, and the question which of them meet a given range.

A memory object keeps one interval for each area that shows it. Areas of one object may overlap (the same page
mapped twice, or by two processes), so a list ordered by first page does not answer the question alone. The
rows therefore stand in blocks, each of which knows an end that none of its rows goes beyond: a query skips
the blocks that end before its range begins and stops at the first block that begins behind it.

    block   [0,4) [0,9) [2,3) ...  reach 9    |    [12,20) [15,16) ...  reach 20    |   ...
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Generic, TypeVar

BLOCK = 256
"""Rows that a block holds before it is cut in two."""

T = TypeVar("T")
_Row = tuple[int, int, int, T]


class _Block(Generic[T]):
    """Rows in order: (first, order of arrival, end, item). None ends behind `reach`.

    The first two are a row's key, which no other has: a key sorts right before its row.
    """

    __slots__ = ("reach", "rows")

    def __init__(self, rows: list[_Row[T]]) -> None:
        self.rows = rows
        self.reach = max(row[2] for row in rows)


class Intervals(Generic[T]):
    """Half-open intervals, each with an item. An item has one interval at a time.

    Queries answer by first page, intervals that begin together in the order of their arrival: what they
    answer never depends on hashing.
    """

    __slots__ = ("_arrived", "_blocks", "_where")

    def __init__(self) -> None:
        self._blocks: list[_Block[T]] = []
        self._where: dict[T, tuple[int, int]] = {}
        self._arrived = 0

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[T]:
        for block in self._blocks:
            for row in block.rows:
                yield row[3]

    def add(self, first: int, end: int, item: T) -> None:
        """Give `item`, which has none, the interval `[first, end)`."""
        assert item not in self._where, f"{item} has an interval already"
        key = (first, self._arrived)
        self._arrived += 1
        self._where[item] = key
        row: _Row[T] = (*key, end, item)
        if not self._blocks:
            self._blocks.append(_Block([row]))
            return
        at = self._block_of(key)
        block = self._blocks[at]
        block.rows.insert(bisect_left(block.rows, key), row)
        block.reach = max(block.reach, end)
        if len(block.rows) > BLOCK:
            half = len(block.rows) // 2
            self._blocks[at : at + 1] = [_Block(block.rows[:half]), _Block(block.rows[half:])]

    def remove(self, item: T) -> None:
        """Take `item`'s interval away."""
        key = self._where.pop(item)
        at = self._block_of(key)
        block = self._blocks[at]
        row = block.rows.pop(bisect_left(block.rows, key))
        assert row[3] == item, f"{item} is not where its interval was put"
        if not block.rows:
            del self._blocks[at]

    def over(self, first: int, end: int) -> list[T]:
        """The items whose intervals meet `[first, end)`."""
        found = []
        for block in self._blocks:
            if block.rows[0][0] >= end:
                break
            if block.reach > first:
                found += [row[3] for row in block.rows if row[0] < end and row[2] > first]
        return found

    def _block_of(self, key: tuple[int, int]) -> int:
        """The block where a row of this key stands or belongs."""
        if len(self._blocks) == 1:
            return 0
        return max(0, bisect_left(self._blocks, (key[0], key[1] + 1), key=_begin) - 1)


def _begin(block: _Block[T]) -> tuple[int, int]:
    return block.rows[0][:2]
