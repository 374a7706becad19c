"""What a scan for equal pages keeps in mind of the pages that it looked at: their checksums, in columns.

    pages in order     |##.#....|........|  a bit each, 64 a word     of this pass, and of the one before
    checksums          |a b a   |           four bytes for each of these bits
    twins              |x   x   |           a bit each: whether the same checksum stands there once more

A pass goes through pages in ascending order, of spaces by number and then of addresses. So what it knows is
only ever added at the end, and what the last pass knew is asked for from the front on, and thrown away behind
that. A page waits for an equal one within a pass, and finds it, only if neither has changed since the last:
so they have the same checksum there, too. Only those that had such a twin need to be looked up.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SHIFT = 6
_IN_WORD = 1 << _SHIFT
_STALE = 6  # what is behind is thrown away when it is more than a 64th: so it is moved now and then
_NOWHERE = -1

Place = tuple[int, int]
"""The number of an address space, and a page in it."""


class PageSet:
    """Pages of address spaces, added in ascending order: 16 bytes for each 64 in a row, or fewer."""

    __slots__ = ("_before", "_bits", "_space", "_spaces", "_starts", "_word", "_words", "count")

    def __init__(self, words: Iterable[tuple[Place, int]] = ()) -> None:
        self._spaces, self._starts = array("I"), array("I")  # numbers, and the first word of each
        self._words, self._bits = array("I"), array("Q")  # page >> 6, and which of those 64 pages
        self._before = array("I")  # how many pages lie in front of the word
        self._space = self._word = _NOWHERE  # the last ones
        self.count = 0
        for (space, word), bits in words:
            self._open(space, word)
            self._bits[-1] = bits
            self.count += bits.bit_count()

    def add(self, space: int, page: int) -> bool:
        """One page more. Whether it is new."""
        if page >> _SHIFT != self._word or space != self._space:
            self._open(space, page >> _SHIFT)
        bits, bit = self._bits[-1], 1 << (page & _IN_WORD - 1)
        if bits & bit:
            return False
        self._bits[-1] = bits | bit
        self.count += 1
        return True

    def _open(self, space: int, word: int) -> None:
        if space != self._space:
            self._spaces.append(space)
            self._starts.append(len(self._words))
        self._space, self._word = space, word
        if word >> 32 and self._words.typecode == "I":
            self._words = array("Q", self._words)
        self._words.append(word)
        self._bits.append(0)
        self._before.append(self.count)

    def find(self, space: int, word: int) -> tuple[int, int]:
        """Which of the 64 pages of a word there are, as bits, and how many pages lie in front of them."""
        start, end = self._range(space)
        at = bisect_left(self._words, word, start, end)
        return (self._bits[at], self._before[at]) if at < end and self._words[at] == word else (0, 0)

    def number(self, page: int) -> int:
        """A number for a page of the last word, by which `place` finds it."""
        return len(self._words) - 1 << _SHIFT | page & _IN_WORD - 1

    def place(self, number: int) -> Place:
        """The page with this number."""
        at = number >> _SHIFT
        page = self._words[at] << _SHIFT | number & _IN_WORD - 1
        return self._spaces[bisect_right(self._starts, at) - 1], page

    def _range(self, space: int) -> tuple[int, int]:
        """The words of a space."""
        at = bisect_left(self._spaces, space)
        if at == len(self._spaces) or self._spaces[at] != space:
            return 0, 0
        return self._starts[at], self._starts[at + 1] if at + 1 < len(self._starts) else len(self._words)

    def words_of(self, space: int) -> Iterator[tuple[int, int]]:
        """Each word of a space, and which pages of it there are."""
        start, end = self._range(space)
        return zip(self._words[start:end], self._bits[start:end], strict=True)

    def words(self) -> Iterator[tuple[Place, int]]:
        """Each word of all spaces, and which pages of it there are."""
        for space in self._spaces:
            for word, bits in self.words_of(space):
                yield (space, word), bits

    def kept(self) -> list[NDArray[Any]]:
        """What it takes, to be measured."""
        columns = (self._spaces, self._starts, self._words, self._bits, self._before)
        return [np.array(column) for column in columns]

    def capture(self) -> list[tuple[Place, int]]:
        """It as plain data."""
        return list(self.words())


def union(sets: Iterable[PageSet], space: int) -> dict[int, int]:
    """By word which pages of a space are in some of the sets."""
    found = dict[int, int]()
    for each in sets:
        for word, bits in each.words_of(space):
            found[word] = found.get(word, 0) | bits
    return found


def _pages(word: int, bits: int) -> list[int]:
    first = word << _SHIFT
    return [first + number for number in range(_IN_WORD) if bits >> number & 1]


def _twins(sums: NDArray[np.uint32]) -> bytes:
    """A bit for each of some checksums: whether it stands there more than once."""
    order = np.argsort(sums, kind="stable")
    same = sums[order][1:] == sums[order][:-1]
    several = np.zeros(sums.size, np.bool_)
    several[order[1:]] = same
    several[order[:-1]] |= same
    return np.packbits(several, bitorder="little").tobytes()


class Scanned:
    """What is known of pages, in two passes: the one that goes on, and the one before.

    `merged` are those that showed a merged frame, `zeros` those that the scan let show the zero page.
    """

    def __init__(self) -> None:
        self._plain, self._sums, self._merged = PageSet(), array("I"), PageSet()
        self._zeros = PageSet()  # of this pass
        self._plain_before, self._sums_before, self._merged_before = PageSet(), array("I"), PageSet()
        self._zeros_before = PageSet()  # of all passes before
        self._dropped = 0  # checksums of the last pass that were thrown away
        self._twins = b""  # a bit for each checksum of the last pass
        self._sought, self._who = array("I"), array("I")  # checksums in order, and who waits for them
        self._single = 0  # pages that wait, and whom nobody will find
        self._had: dict[int, int] = {}  # checksums of the last pass, of the word that was asked for last
        self._had_twins: set[int] = set()  # and the pages that had a twin
        self._space = self._word = _NOWHERE
        self._may_pair = False  # whether the page that was noted last had one

    def note(self, space: int, page: int, checksum: int) -> bool:
        """A page has this checksum. Whether it had the same in the last pass."""
        if self._plain.add(space, page):
            self._sums.append(checksum)
        if page >> _SHIFT != self._word or space != self._space:
            self._turn_to(space, page >> _SHIFT)
        self._may_pair = page in self._had_twins
        return self._had.get(page) == checksum

    def _turn_to(self, space: int, word: int) -> None:
        self._space, self._word = space, word
        bits, first = self._plain_before.find(space, word)
        behind = first - self._dropped
        if bits and behind > len(self._sums_before) >> _STALE:
            del self._sums_before[:behind]
            self._dropped, behind = first, 0
        pages = _pages(word, bits) if bits else []
        self._had = dict(zip(pages, self._sums_before[behind : behind + len(pages)], strict=True))
        octets = self._twins[first >> 3 : (first + len(pages) >> 3) + 1]
        twins = int.from_bytes(octets, "little") >> (first & 7)
        self._had_twins = {page for at, page in enumerate(pages) if twins and twins >> at & 1}

    def note_merged(self, space: int, page: int) -> None:
        """A page shows a merged frame."""
        self._merged.add(space, page)

    def note_zero(self, space: int, page: int) -> None:
        """The scan has let a page show the zero page."""
        self._zeros.add(space, page)

    # ---- pages that wait for an equal one

    @property
    def alone(self) -> int:
        """How many wait."""
        return self._single + len(self._who)

    def waits_for(self, checksum: int) -> Place | None:
        """The page that waits for the one that was noted last, which has this checksum, if one does."""
        if not self._may_pair:
            return None
        at = bisect_left(self._sought, checksum)
        there = at < len(self._sought) and self._sought[at] == checksum
        return self._plain.place(self._who[at]) if there else None

    def let_wait(self, page: int, checksum: int) -> None:
        """The page that was noted last waits from now on, instead of who did."""
        if not self._may_pair:
            self._single += 1
            return
        at = bisect_left(self._sought, checksum)
        if at < len(self._sought) and self._sought[at] == checksum:
            self._who[at] = self._plain.number(page)
        else:
            self._sought.insert(at, checksum)
            self._who.insert(at, self._plain.number(page))

    def found(self, checksum: int) -> None:
        """Whoever waited for this checksum waits no longer."""
        at = bisect_left(self._sought, checksum)
        del self._sought[at], self._who[at]

    # ---- accounts

    def known(self, space: int) -> int:
        """How many pages of a space it knows."""
        sets = self._plain, self._merged, self._plain_before, self._merged_before
        return sum(bits.bit_count() for bits in union(sets, space).values())

    def zeros_of(self, space: int) -> list[int]:
        """The pages of a space that it let show the zero page."""
        words = union((self._zeros, self._zeros_before), space).items()
        return [page for word, bits in words for page in _pages(word, bits)]

    def end_pass(self, spaces: Iterable[int]) -> None:
        """What is known now is what was known before. Pages of zeros of other `spaces` are forgotten."""
        zeros = [
            ((space, word), bits & ~(self._plain.find(space, word)[0] | self._merged.find(space, word)[0]))
            for space in sorted(spaces)
            for word, bits in sorted(union((self._zeros, self._zeros_before), space).items())
        ]
        self._zeros, self._zeros_before = PageSet(), PageSet(each for each in zeros if each[1])
        self._plain_before, self._sums_before, self._merged_before = self._plain, self._sums, self._merged
        self._plain, self._sums, self._merged = PageSet(), array("I"), PageSet()
        self._twins = _twins(np.array(self._sums_before, np.uint32))
        self._sought, self._who = array("I"), array("I")
        self._dropped = self._single = 0
        self._space = self._word = _NOWHERE

    # ---- what it takes, and its state

    def kept(self) -> list[NDArray[Any]]:
        """What it takes, to be measured."""
        sums = self._sums, self._sums_before, self._sought, self._who
        columns = [*(np.array(column) for column in sums), np.frombuffer(self._twins, np.uint8)]
        return [*columns, *(one for each in self._sets() for one in each.kept())]

    def _sets(self) -> list[PageSet]:
        before = self._plain_before, self._merged_before, self._zeros_before
        return [self._plain, self._merged, self._zeros, *before]

    def capture(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "pages": [each.capture() for each in self._sets()],
            "sums": (self._sums.tobytes(), self._sums_before.tobytes()),
            "waiting": (self._twins, self._sought.tobytes(), self._who.tobytes(), self._single),
            "dropped": self._dropped,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Know that."""
        self._plain, self._merged, self._zeros, *before = (PageSet(each) for each in state["pages"])
        self._plain_before, self._merged_before, self._zeros_before = before
        self._sums, self._sums_before = (array("I", each) for each in state["sums"])
        self._twins, sought, ranks, self._single = state["waiting"]
        self._sought, self._who = array("I", sought), array("I", ranks)
        self._dropped, self._space, self._word = state["dropped"], _NOWHERE, _NOWHERE
