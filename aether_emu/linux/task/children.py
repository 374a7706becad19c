"""The children that a process has not waited for, and which of them have something to tell.

Nobody looks through all of them: a wait for any child asks those with news, the oldest first.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

P = TypeVar("P")


class Children(Generic[P]):
    """Children in the order in which they came. One with `news` has ended, stopped or gone on, untold."""

    def __init__(self) -> None:
        self._places: dict[P, int] = {}
        self._news: list[tuple[int, P]] = []
        self._last = 0

    def __iter__(self) -> Iterator[P]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, child: P) -> bool:
        return child in self._places

    def add(self, child: P) -> None:
        """Another child, the youngest."""
        self._last += 1
        self._places[child] = self._last

    def remove(self, child: P) -> None:
        """It is none of them any more, if it was."""
        self.hush(child)
        self._places.pop(child, None)

    def tell(self, child: P) -> None:
        """A child has news."""
        place = self._places.get(child)
        if place is not None and self._index(place) is None:
            insort(self._news, (place, child), key=_place)

    def hush(self, child: P) -> None:
        """The child's news was told."""
        place = self._places.get(child)
        index = None if place is None else self._index(place)
        if index is not None:
            del self._news[index]

    def news(self) -> list[P]:
        """Those with news, the oldest first."""
        return [child for _place, child in self._news]

    def _index(self, place: int) -> int | None:
        at = bisect_left(self._news, place, key=_place)
        return at if at < len(self._news) and self._news[at][0] == place else None


def _place(entry: tuple[int, object]) -> int:
    return entry[0]
