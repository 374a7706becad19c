"""Numbers by page, four bytes each where pages lie together: where the pages of shared memory are."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping

_SHIFT = 6
_IN_CHUNK = 1 << _SHIFT  # pages of a chunk: large enough for its head not to count, small enough to be sparse
_EMPTY = array("I", bytes(4 * _IN_CHUNK))


class PageNumbers:
    """A number, of a frame or a slot, for some pages of an object."""

    def __init__(self, known: Mapping[int, int] | None = None) -> None:
        self._chunks: dict[int, array[int]] = {}  # what is there plus one, 0 for nothing
        for page, number in (known or {}).items():
            self[page] = number

    def get(self, page: int) -> int | None:
        """The number of a page, None where there is none."""
        chunk = self._chunks.get(page >> _SHIFT)
        found = chunk[page & _IN_CHUNK - 1] if chunk is not None else 0
        return found - 1 if found else None

    def __contains__(self, page: int) -> bool:
        return self.get(page) is not None

    def __setitem__(self, page: int, number: int) -> None:
        chunk = self._chunks.get(page >> _SHIFT)
        if chunk is None:
            chunk = self._chunks[page >> _SHIFT] = _EMPTY[:]
        chunk[page & _IN_CHUNK - 1] = number + 1

    def pop(self, page: int) -> int:
        """The number of a page, which has none from now on. Raises KeyError if it had none."""
        found = self.get(page)
        if found is None:
            raise KeyError(page)
        chunk = self._chunks[page >> _SHIFT]
        chunk[page & _IN_CHUNK - 1] = 0
        if chunk == _EMPTY:
            del self._chunks[page >> _SHIFT]
        return found

    def __iter__(self) -> Iterator[int]:
        """The pages that have a number, in order."""
        return self.within(0, 1 << 64)

    def within(self, first: int, count: int) -> Iterator[int]:
        """Those of `count` pages from `first` on."""
        low, high = first >> _SHIFT, first + count - 1 >> _SHIFT
        for key in sorted(key for key in self._chunks if low <= key <= high):
            for number, found in enumerate(self._chunks[key]):
                if found and first <= (key << _SHIFT) + number < first + count:
                    yield (key << _SHIFT) + number

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def as_dict(self) -> dict[int, int]:
        """All of them by page."""
        return {
            (key << _SHIFT) + number: found - 1
            for key in sorted(self._chunks)
            for number, found in enumerate(self._chunks[key])
            if found
        }

    def kept(self) -> dict[int, array[int]]:
        """What it takes, to be measured."""
        return self._chunks
