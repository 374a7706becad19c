"""Merged pages: frames that several private pages with equal bytes show, until somebody writes.

    frame ──(owner)──▶ this object      its index: checksum << 32 | row
    row    family  index  next ──▶ row  family  index  next ──▶ ...      (family, page) ──▶ areas

A frame that is merged has left its family: its owner is this object, of which a machine has one, and its
index says the checksum of its bytes, which never change, and where the list begins of the pages that came to
show it, each by its family and its index there. So the way back from the frame goes on by the families'
windows, and fork, mremap or a cut need no word here: what they do to a page they do to its area. A page that
has left (written to, or unmapped) stays on the list until it is tidied; its entry is looked at last.

A frame that was given back is dead: the frame table no longer names it so. Columns keep all of it: 8 bytes
for each frame, by which it is found by its checksum, and 16 for each page on a list. The first page's row is
the lowest of its list, and lies behind those of all older frames.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.mm.objects.protocol import MemoryObject
from aether_emu.mm.objects.registry import Registry

Page = tuple[int, int]
"""The number of a family, and the index of a page in it."""

_ANON = int(Kind.ANON)
_ROW_BITS = 32
_ROW = (1 << _ROW_BITS) - 1
_NO_PAGE = (0, 0)  # what stands in the row of a frame whose pages are all gone: the machine's, no family's


class MergedMemory(MemoryObject):
    """All merged frames of a machine."""

    def __init__(self, registry: Registry[MemoryObject], frames: FrameTable) -> None:
        super().__init__(registry)
        self._frames = frames
        self._sums, self._at = array("I"), array("I")  # checksums in order, and whose; the oldest first
        self._families, self._indexes, self._next = array("I"), array("Q"), array("I")
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
            if not self._names(self._at[at], checksum):  # it is dead, and could seem alive later
                del self._sums[at], self._at[at]
                behind -= 1
        self._sums.insert(behind, checksum)
        self._at.insert(behind, frame)
        frames.owner[frame], frames.index[frame] = self.number, checksum << _ROW_BITS | self._row(page)

    def _alike(self, checksum: int) -> tuple[int, int]:
        """Where the frames with a checksum stand."""
        first = bisect_left(self._sums, checksum)
        return first, bisect_right(self._sums, checksum, first)

    def _names(self, frame: int, checksum: int) -> bool:
        return self.has(frame) and self._frames.index[frame] >> _ROW_BITS == checksum

    def alike(self, checksum: int) -> list[int]:
        """The living frames whose bytes have this checksum, the oldest first."""
        first = bisect_left(self._sums, checksum)
        if first == len(self._sums) or self._sums[first] != checksum:
            return []
        behind = bisect_right(self._sums, checksum, first)
        return [frame for frame in self._at[first:behind] if self._names(frame, checksum)]

    def living(self) -> list[int]:
        """The frames that are alive, the oldest first; the others are forgotten."""
        frames, at = self._frames, np.array(self._at, np.int64)
        sums, index = np.array(self._sums, np.uint64), frames.index_array[at]
        alive = (frames.owner_array[at] == self.number) & (frames.kind_array[at] == _ANON)
        alive &= (frames.refs_array[at] > 0) & (index >> np.uint64(_ROW_BITS) == sums)
        if not alive.all():
            at = at[alive]
            self._sums = array("I", sums[alive].astype(np.uint32).tobytes())
            self._at = array("I", at.astype(np.uint32).tobytes())
            self._forget_rows(at)
        by_age: list[int] = at[np.argsort(frames.index_array[at] & np.uint64(_ROW))].tolist()
        return by_age

    def moved(self, old: Iterable[int], new: Iterable[int]) -> None:
        """Frames have taken the place of others, whose owner and index they have."""
        table = self._frames
        for before, after in zip(old, new, strict=True):
            if table.owner[after] == self.number and table.kind[after] == _ANON:
                first, behind = self._alike(table.index[after] >> _ROW_BITS)
                for at in reversed(range(first, behind)):
                    if self._at[at] == after:  # it was a merged one before it was free
                        del self._sums[at], self._at[at]
                    elif self._at[at] == before:
                        self._at[at] = after

    # ---- the pages that show them

    def join(self, frame: int, page: Page) -> None:
        """A page came to show a merged frame."""
        first = self._frames.index[frame] & _ROW
        self._next[first] = self._row(page, self._next[first])

    def _row(self, page: Page, follower: int = 0) -> int:
        """A new row."""
        self._families.append(page[0])
        self._indexes.append(page[1])
        self._next.append(follower)
        return len(self._next) - 1

    def pages_of(self, frame: int) -> list[Page]:
        """The pages that came to show a merged frame, the first one first. None for a dead one."""
        if not self.has(frame):
            return []
        families, indexes, following = self._families, self._indexes, self._next
        first = row = self._frames.index[frame] & _ROW
        others = list[Page]()  # the newest first
        while row := following[row]:
            others.append((families[row], indexes[row]))
        found = dict.fromkeys([(families[first], indexes[first]), *reversed(others)])
        found.pop(_NO_PAGE, None)
        return list(found)

    def shows(self, frames: NDArray[np.int64], pages: Sequence[Page]) -> NDArray[np.bool_]:
        """Of each frame, whether it is a merged one, and the page beside it came to show it."""
        numbers, shown = frames.tolist(), np.zeros(frames.size, np.bool_)
        came = {frame: set(self.pages_of(frame)) for frame in set(numbers)}
        for number, (frame, page) in enumerate(zip(numbers, pages, strict=True)):
            shown[number] = page in came[frame]
        return shown

    def frames_of(self, page: Page) -> list[int]:
        """The merged frames that a page may show, the oldest first."""
        return [frame for frame in self.living() if page in self.pages_of(frame)]

    def frames_of_family(self, family: int) -> list[int]:
        """The merged frames that pages of a family may show, the oldest first."""
        living = self.living()
        if family not in self._families:
            return []
        return [frame for frame in living if any(owner == family for owner, _index in self.pages_of(frame))]

    def tidy(self, still_shows: Callable[[int, list[Page]], list[Page]]) -> None:
        """Keep of the pages on each list those that `still_shows` says; one that is alone stays."""
        table, living = self._frames, self.living()
        rows, firsts = (array("I"), array("Q"), array("I")), array("I")
        for frame in living:
            pages = self.pages_of(frame)
            kept = (still_shows(frame, pages) if len(pages) > 1 else pages) or [_NO_PAGE]
            first, last = len(rows[0]), len(rows[0]) + len(kept) - 1
            firsts.append(first)
            rows[0].extend([family for family, _index in kept])
            rows[1].extend([index for _family, index in kept])
            rows[2].extend(
                [last if last > first else 0, *([0] if last > first else []), *range(first + 1, last)]
            )
        self._families, self._indexes, self._next = rows
        for frame, first in zip(living, firsts, strict=True):
            table.index[frame] = table.index[frame] >> _ROW_BITS << _ROW_BITS | first

    def _forget_rows(self, living: NDArray[np.int64]) -> None:
        """Keep the rows of living frames, in their order."""
        index = self._frames.index_array
        following, wanted = np.array(self._next, np.uint32), np.zeros(len(self._next), np.bool_)
        firsts = rows = (index[living] & np.uint64(_ROW)).astype(np.uint32)
        while rows.size:
            wanted[rows] = True
            rows = following[rows]
            rows = rows[rows != 0]
        number = np.cumsum(wanted, dtype=np.uint32) - np.uint32(1)
        following = following[wanted]
        self._next = array("I", np.where(following != 0, number[following], np.uint32(0)).tobytes())
        self._families = array("I", np.array(self._families)[wanted].tobytes())
        self._indexes = array("Q", np.array(self._indexes)[wanted].tobytes())
        index[living] = index[living] & ~np.uint64(_ROW) | number[firsts]

    # ---- what it takes, and its state

    def kept(self) -> tuple[int, int]:
        """Bytes that it takes for frames, the first page of each included; and for the pages beyond these."""
        frames, rows = len(self.living()), len(self._next)
        each = self._families.itemsize + self._indexes.itemsize + self._next.itemsize
        return frames * (self._sums.itemsize + self._at.itemsize + each), (rows - frames) * each

    def release(self) -> None:
        """The frames went with the entries that showed them."""

    def capture(self) -> dict[str, Any]:
        """The object as plain data."""
        return {"number": self.number, "columns": [column.tobytes() for column in self._columns()]}

    def _columns(self) -> list[array[int]]:
        return [self._sums, self._at, self._families, self._indexes, self._next]

    def restore(self, state: dict[str, Any]) -> None:
        """Be the captured one, whose frames the frame table knows already."""
        self.renumber(state["number"])
        for column, data in zip(self._columns(), state["columns"], strict=True):
            column[:] = array(column.typecode, data)
