"""Merged pages: frames that several private pages with equal bytes show, until somebody writes.

    frame ──(owner)──▶ this object      its index: checksum << 32 | row
    row: a page, next ──▶ row: a page, next ──▶ ...       page (family, index) ──▶ areas

A frame that is merged has left its family: its owner is this object, of which a machine has one, and its
index says the checksum of its bytes, which never change, and where the list begins of the pages that came to
show it, each by its family and its index there. So the way back from the frame goes on by the families'
windows, and fork, mremap or a cut need no word here: what they do to a page they do to its area. A page that
has left (written to, or unmapped) stays on the list until it is tidied; its entry is looked at last.

A frame that was given back is dead: the frame table no longer names it so. Columns keep all of it: 6 bytes
for each frame, by which it is found by the upper half of its checksum, and 10 for each page on a list. The
first page's row is the lowest of its list, and lies behind those of all older frames.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.mm.objects.protocol import MemoryObject
from aether_emu.mm.objects.registry import Registry

Page = tuple[int, int]
"""The number of a family, and the index of a page in it."""

_ANON = int(Kind.ANON)
_MOST_SHORT = 1 << 16  # windows whose numbers have two bytes
_FEW = 64  # lists that are followed one by one
_HALF, _LOW, _UPPER = 32, (1 << 32) - 1, 16
_NO_PAGE = (0, 0)  # what stands in the row of a frame whose pages are all gone: the machine's, no family's


class _Rows:
    """Pages, each in a row of its own, with the row that comes next on its list, 0 for none.

    A page's family and the upper half of its index are those of a window, of which there are few.
    """

    def __init__(self) -> None:
        self._windows = array("Q")  # family << 32 | index >> 32
        self._of, self._low, self.next = array("H"), array("I"), array("I")
        self._last = 0  # the window that was used last

    def __len__(self) -> int:
        return len(self.next)

    def add(self, page: Page, follower: int = 0) -> int:
        """A new row."""
        window = self._window(page[0] << _HALF | page[1] >> _HALF)  # it may make `_of` another
        self._of.append(window)
        self._low.append(page[1] & _LOW)
        self.next.append(follower)
        return len(self.next) - 1

    def put(self, row: int, page: Page) -> None:
        """Another page in a row."""
        window = self._window(page[0] << _HALF | page[1] >> _HALF)
        self._of[row], self._low[row] = window, page[1] & _LOW

    def _window(self, wanted: int) -> int:
        windows = self._windows
        if not windows or windows[self._last] != wanted:
            try:
                self._last = windows.index(wanted)
            except ValueError:
                windows.append(wanted)
                self._last = len(windows) - 1
                if len(windows) > _MOST_SHORT and self._of.typecode == "H":
                    self._of = array("I", self._of)
        return self._last

    def pages(self, listed: list[int]) -> list[Page]:
        """The pages of a list, each once, in the order in which they came. It is given as it is linked."""
        windows, of, low = self._windows, self._of, self._low
        found = dict[Page, None]()
        for row in (listed[0], *listed[:0:-1]):
            window = windows[of[row]]
            found[window >> _HALF, (window & _LOW) << _HALF | low[row]] = None
        found.pop(_NO_PAGE, None)
        return list(found)

    def of_list(self, first: int) -> list[int]:
        """The rows of a list from one on."""
        following, rows = self.next, [first]
        row = following[first]
        while row:
            rows.append(row)
            row = following[row]
        return rows

    def number(self, page: Page) -> int | None:
        """One number for a page, by which rows are told apart; None for one that stands in no row."""
        try:
            window = self._windows.index(page[0] << _HALF | page[1] >> _HALF)
        except ValueError:
            return None
        return window << _HALF | page[1] & _LOW

    def numbers(self, rows: list[int]) -> set[int]:
        """The numbers of the pages in some rows."""
        of, low = self._of, self._low
        return {of[row] << _HALF | low[row] for row in rows}

    def has(self, family: int) -> bool:
        """Whether there may be pages of a family."""
        return any(window >> _HALF == family for window in self._windows)

    def keep(self, firsts: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Keep the lists that begin in these rows, in order of rows. Returns where they begin now."""
        following, wanted, rows = np.array(self.next), np.zeros(len(self), np.bool_), firsts
        while rows.size > _FEW:
            wanted[rows] = True
            rows = following[rows]
            rows = rows[rows != 0]
        for first in rows.tolist():
            wanted[self.of_list(first)] = True
        number = np.cumsum(wanted, dtype=np.uint32) - np.uint32(1)
        following = following[wanted]
        self.next = array("I", np.where(following != 0, number[following], np.uint32(0)).tobytes())
        windows, of = np.unique(np.array(self._of)[wanted], return_inverse=True)
        self._windows, self._last = array("Q", np.array(self._windows)[windows].tobytes()), 0
        self._of = array("I" if windows.size > _MOST_SHORT else "H", of.tolist())
        self._low = array("I", np.array(self._low)[wanted].tobytes())
        return number[firsts]

    def columns(self) -> list[array[int]]:
        """All of it."""
        return [self._windows, self._of, self._low, self.next]

    def restore(self, columns: list[array[int]]) -> None:
        """Have these."""
        self._windows, self._of, self._low, self.next = columns
        self._last = 0


class MergedMemory(MemoryObject):
    """All merged frames of a machine."""

    def __init__(self, registry: Registry[MemoryObject], frames: FrameTable) -> None:
        super().__init__(registry)
        self._frames = frames
        self._sums, self._at = array("H"), array("I")  # upper halves in order, and whose; the oldest first
        self._rows = _Rows()
        self.hold()

    # ---- frames

    def has(self, frame: int) -> bool:
        """Whether a frame is a merged one, and alive."""
        frames = self._frames
        return frames.owner[frame] == self.number and frames.kind[frame] == _ANON and frames.refs[frame] > 0

    def adopt(self, frame: int, checksum: int) -> None:
        """Take a frame out of its family. Every entry that shows it must refuse writes by now."""
        frames = self._frames
        page = frames.owner[frame], frames.index[frame]
        first, behind = self._alike(checksum)
        for at in reversed(range(first, behind)):
            named = frames.index[self._at[at]] >> _HALF
            if not self.has(self._at[at]) or named >> _UPPER != checksum >> _UPPER:
                del self._sums[at], self._at[at]  # it is dead, and could seem alive later
                behind -= 1
        self._sums.insert(behind, checksum >> _UPPER)
        self._at.insert(behind, frame)
        frames.owner[frame], frames.index[frame] = self.number, checksum << _HALF | self._rows.add(page)

    def _alike(self, checksum: int) -> tuple[int, int]:
        """Where the frames stand that have the upper half of a checksum."""
        first = bisect_left(self._sums, checksum >> _UPPER)
        return first, bisect_right(self._sums, checksum >> _UPPER, first)

    def alike(self, checksum: int, most: int) -> Iterator[int]:
        """The living frames whose bytes have this checksum, the oldest first, that fewer than `most` show."""
        upper = checksum >> _UPPER
        first = bisect_left(self._sums, upper)
        if first < len(self._sums) and self._sums[first] == upper:
            maps, index = self._frames.maps, self._frames.index
            for frame in self._at[first : bisect_right(self._sums, upper, first)]:
                if index[frame] >> _HALF == checksum and maps[frame] < most and self.has(frame):
                    yield frame

    def living(self) -> list[int]:
        """The frames that are alive, the oldest first; the others are forgotten."""
        frames, at = self._frames, np.array(self._at, np.int64)
        sums, index = np.array(self._sums, np.uint64), frames.index_array[at]
        alive = (frames.owner_array[at] == self.number) & (frames.kind_array[at] == _ANON)
        alive &= (frames.refs_array[at] > 0) & (index >> np.uint64(_HALF + _UPPER) == sums)
        if not alive.all():
            at = at[alive]
            self._sums = array("H", sums[alive].astype(np.uint16).tobytes())
            self._at = array("I", at.astype(np.uint32).tobytes())
            self._pack(at)
        by_age: list[int] = at[np.argsort(frames.index_array[at] & np.uint64(_LOW))].tolist()
        return by_age

    def moved(self, old: Iterable[int], new: Iterable[int]) -> None:
        """Frames have taken the place of others, whose owner and index they have."""
        table = self._frames
        for before, after in zip(old, new, strict=True):
            if table.owner[after] == self.number and table.kind[after] == _ANON:
                first, behind = self._alike(table.index[after] >> _HALF)
                for at in reversed(range(first, behind)):
                    if self._at[at] == after:  # it was a merged one before it was free
                        del self._sums[at], self._at[at]
                    elif self._at[at] == before:
                        self._at[at] = after

    # ---- the pages that show them

    def join(self, frame: int, page: Page) -> None:
        """A page came to show a merged frame."""
        first = self._frames.index[frame] & _LOW
        self._rows.next[first] = self._rows.add(page, self._rows.next[first])

    def pages_of(self, frame: int) -> list[Page]:
        """The pages that came to show a merged frame, the first one first. None for a dead one."""
        if not self.has(frame):
            return []
        return self._rows.pages(self._rows.of_list(self._frames.index[frame] & _LOW))

    def shows(self, frames: NDArray[np.int64], pages: Sequence[Page]) -> NDArray[np.bool_]:
        """Of each frame, whether it is a merged one, and the page beside it came to show it."""
        rows, shown = self._rows, np.zeros(frames.size, np.bool_)
        came = dict[int, set[int]]()
        for at, (frame, page) in enumerate(zip(frames.tolist(), pages, strict=True)):
            if self.has(frame):
                if frame not in came:
                    came[frame] = rows.numbers(rows.of_list(self._frames.index[frame] & _LOW))
                shown[at] = rows.number(page) in came[frame]
        return shown

    def frames_of(self, page: Page) -> list[int]:
        """The merged frames that a page may show, the oldest first."""
        return [frame for frame in self.living() if page in self.pages_of(frame)]

    def frames_of_family(self, family: int) -> list[int]:
        """The merged frames that pages of a family may show, the oldest first."""
        living = self.living()
        if not self._rows.has(family):
            return []
        return [frame for frame in living if any(owner == family for owner, _index in self.pages_of(frame))]

    def tidy(self, still_shows: Callable[[int, list[Page]], list[Page]]) -> None:
        """Keep of the pages on each list those that `still_shows` says; one that is alone stays."""
        index, living, rows = self._frames.index, self.living(), self._rows
        following, dropped = rows.next, False
        for frame in living:
            first = index[frame] & _LOW
            if not following[first]:
                continue
            listed = rows.of_list(first)
            pages = rows.pages(listed)
            kept = (still_shows(frame, pages) if len(pages) > 1 else pages) or [_NO_PAGE]
            if len(kept) < len(listed):
                listed[1:] = listed[:0:-1]
                for row, page in zip(listed, kept, strict=False):
                    rows.put(row, page)
                following[first] = listed[len(kept) - 1] if len(kept) > 1 else 0
                dropped = True
        if dropped:
            self._pack(np.array(living, np.int64))

    def _pack(self, living: NDArray[np.int64]) -> None:
        """Forget all rows but those of living frames."""
        index = self._frames.index_array
        rows = self._rows.keep((index[living] & np.uint64(_LOW)).astype(np.uint32))
        index[living] = index[living] & ~np.uint64(_LOW) | rows

    # ---- what it takes, and its state

    def kept(self) -> tuple[int, int]:
        """Bytes that it takes for frames, the first page of each included; and for the pages beyond these."""
        frames = len(self.living())
        windows, *columns = self._rows.columns()
        each, beyond = sum(column.itemsize for column in columns), len(self._rows) - frames
        own = sum(column.itemsize for column in (self._sums, self._at)) + each
        return frames * own + len(windows) * windows.itemsize, beyond * each

    def release(self) -> None:
        """The frames went with the entries that showed them."""

    def capture(self) -> dict[str, Any]:
        """The object as plain data."""
        columns = [(column.typecode, column.tobytes()) for column in self._columns()]
        return {"number": self.number, "columns": columns}

    def _columns(self) -> list[array[int]]:
        return [self._sums, self._at, *self._rows.columns()]

    def restore(self, state: dict[str, Any]) -> None:
        """Be the captured one, whose frames the frame table knows already."""
        self.renumber(state["number"])
        self._sums, self._at, *rows = (array(kind, data) for kind, data in state["columns"])
        self._rows.restore(rows)
