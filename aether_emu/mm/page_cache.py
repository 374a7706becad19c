"""The page cache as RAM pays for it: which pages of host files are in memory, and what each of them costs.

The bytes of a file's page stand in the aperture, where the host has them (`machine.memory.aperture`): nothing
is copied, and RAM holds none of it. Where `page_cache` is "counted", a page that is in memory takes its share
all the same: a frame of RAM is set aside for it, its *stand-in*, and is free again when the page is dropped.

    frame of the aperture        kind FILE    shown by entries; `stands` says which frame of RAM pays for it
    stand-in, a frame of RAM     kind CACHE   nobody's bytes; its index is the frame of the aperture

So free memory, watermarks, and what happens when nothing is free need to know nothing of files, and reclaim
finds files' pages among the frames of RAM. That is a model: the host caches files as it sees fit.

A page is *dirty* from the fault that lets a program store to it (Linux: page_mkwrite) until it is written
back, which takes the right to store away again (page_mkclean). So no edit of entries need look for that.

A file that no area shows any more keeps its pages in memory until they are dropped, as long as it has a name
and not too many others came after it (`keep`).

Of a page that reclaim has dropped it is kept when that was (Linux: shadow entries, mm/workingset.c). One that
comes back before as many others went as memory holds was dropped too early: that is thrashing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aether_emu.machine.memory.aperture import Aperture
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.buddy import Buddy
from aether_emu.mm.frames.table import Flags, FrameTable, Kind

Numbers = NDArray[np.int64]

READ_AROUND = 128 << 10
"""Bytes of a file that one major fault reads, as far as memory is not short (Linux: VM_READAHEAD_PAGES)."""

MOST_UNUSED = 64
"""Files that are kept though no area shows them: each takes a descriptor of the host."""

_GONE = 1 << 31  # of an entry of `_stands`: the page was dropped, as the so-manieth in the other bits
_CACHE = int(Kind.CACHE)
# Plain numbers: numpy needs 20 us for an operation with an enum.
_TO_WRITE, _SPARED = int(Flags.TO_WRITE), int(Flags.SPARED)
_NEITHER = 255 ^ (_TO_WRITE | _SPARED)


class Unused(Protocol):
    """A file that no area shows: `mm.objects.file.FileBacking`."""

    number: int

    def has_name(self) -> bool:
        """Whether it can be opened again."""

    def end(self) -> None:
        """Let go of the file, and of its pages."""


class PageCache:
    """The pages of files of one machine that are in memory. Frames are the aperture's, unless it is said.

    `pages` are how many there are, `dirty` how many of them wait to be written. `free` gives frames of RAM
    back.
    """

    def __init__(
        self,
        frames: FrameTable,
        buddy: Buddy,
        aperture: Aperture,
        n: list[int],
        free: Callable[[list[int]], None],
    ) -> None:
        self._frames, self._buddy, self._n, self._free = frames, buddy, n, free
        self.base = frames.number(aperture.base)
        count = aperture.size >> frames.page_shift
        self._stands: NDArray[np.uint32] = np.zeros(count, np.uint32)
        """For each frame: 0, a stand-in's number and 1, or when the page was dropped."""
        self.pages = self.dirty = 0
        self._gone = 0  # pages that reclaim has dropped
        self.around = READ_AROUND >> frames.page_shift
        self.unused: dict[int, Unused] = {}
        """Files that are kept, by their numbers, the one first that was used longest ago."""
        self._keeps = True

    # ---- what is there

    def has(self, frame: int) -> bool:
        """Whether the page of a frame is in memory."""
        return 0 < int(self._stands[frame - self.base]) < _GONE

    def there(self, first: int, count: int) -> NDArray[np.bool_]:
        """Likewise, for each of `count` frames from `first` on."""
        stands = self._stands[first - self.base : first - self.base + count]
        present: NDArray[np.bool_] = (stands != 0) & (stands < _GONE)
        return present

    def row(self, first: int, count: int) -> int:
        """How many pages from `first` on are in memory, up to the first that is not."""
        absent = np.flatnonzero(~self.there(first, count))
        return int(absent[0]) if absent.size else count

    def stand_ins(self, frames: Numbers) -> Numbers:
        """The frames of RAM that stand for some frames; nothing for those whose pages are not in memory."""
        inside = frames[(frames >= self.base) & (frames < self.base + self._stands.size)]
        stands = self._stands[inside - self.base]
        found: Numbers = stands[(stands != 0) & (stands < _GONE)].astype(np.int64) - 1
        return found

    def pages_of(self, stand_ins: Sequence[int]) -> list[int]:
        """The frames that some frames of RAM stand for."""
        index = self._frames.index
        return [index[stand_in] for stand_in in stand_ins]

    def all_pages(self) -> Numbers:
        """Every frame whose page is in memory, in order."""
        found: Numbers = np.flatnonzero((self._stands != 0) & (self._stands < _GONE)) + self.base
        return found

    def dirty_among(self, first: int, count: int) -> list[int]:
        """Those of `count` frames from `first` on that are in memory and wait to be written."""
        waiting = self.there(first, count) & (
            self._frames.flags_array[first : first + count] & np.uint8(_TO_WRITE) != 0
        )
        found: list[int] = (np.flatnonzero(waiting) + first).tolist()
        return found

    # ---- files that nobody shows

    def keep(self, file: Unused) -> bool:
        """No area shows a file any more. Whether it stays, until `end` of it."""
        if not self._keeps or not file.has_name():
            return False
        self.unused[file.number] = file
        if len(self.unused) > MOST_UNUSED:
            self.end(next(iter(self.unused.values())))
        return True

    def end(self, file: Unused) -> None:
        """One that is kept is let go."""
        del self.unused[file.number]
        file.end()

    def end_nameless(self) -> None:
        """Names of files were taken away: let go of those that have none left."""
        for file in list(self.unused.values()):
            if not file.has_name():
                self.end(file)

    def close(self) -> None:
        """No file is kept any more."""
        self._keeps = False
        for file in list(self.unused.values()):
            self.end(file)

    # ---- pages come

    def bring(self, frame: int) -> None:
        """The page of a frame, which its object has claimed, comes into memory. Raises OutOfFrames."""
        frames, place = self._frames, frame - self.base
        stand_in = self._buddy.alloc()
        frames.kind[stand_in] = _CACHE
        frames.owner[stand_in], frames.index[stand_in] = frames.owner[frame], frame
        frames.refs[stand_in] = 1
        before = int(self._stands[place])
        self._stands[place] = stand_in + 1
        self.pages += 1
        self._n[Event.FILE_READ] += 1
        if before:
            self._n[Event.FILE_REFAULT] += 1
            self._n[Event.FILE_REFAULT_SOON] += self._since(before) < self._buddy.total

    def _since(self, shadow: int) -> int:
        """How many pages were dropped after one, by what was kept of it."""
        return self._gone - shadow & _GONE - 1

    def soil(self, frame: int) -> None:
        """A program may store to a page from now on, which is in memory."""
        flags = self._frames.flags
        if not flags[frame] & _TO_WRITE:
            flags[frame] |= _TO_WRITE
            self.dirty += 1
            self._n[Event.FILE_DIRTIED] += 1

    def is_dirty(self, frame: int) -> bool:
        """Whether a page waits to be written."""
        return bool(self._frames.flags[frame] & _TO_WRITE)

    def cleaned(self, frame: int) -> None:
        """A dirty page is about to be written, and nobody may store to it."""
        self._frames.flags[frame] &= ~_TO_WRITE & 0xFF
        self.dirty -= 1

    # ---- a second chance

    def spare(self, frame: int) -> bool:
        """Let a page of code stay once more. False if it was spared before, and not used since."""
        flags = self._frames.flags
        if flags[frame] & _SPARED:
            return False
        flags[frame] |= _SPARED
        return True

    def touched(self, frames: Numbers) -> None:
        """These were used, or are other memory."""
        self._frames.flags_array[frames[frames >= self.base]] &= np.uint8(255 ^ _SPARED)

    # ---- pages go

    def drop(self, frames: Sequence[int]) -> None:
        """Pages that no entry shows, and that are as the file has them, leave memory: reclaim took them."""
        self._leave(frames)
        for frame in frames:
            self._gone = self._gone + 1 & _GONE - 1
            self._stands[frame - self.base] = _GONE | self._gone

    def forget(self, first: int, count: int) -> None:
        """`count` frames from `first` on show other pages from now on, or the file has lost them."""
        self._leave((np.flatnonzero(self.there(first, count)) + first).tolist())
        self._stands[first - self.base : first - self.base + count] = 0

    def _leave(self, frames: Sequence[int]) -> None:
        refs, flags, unused = self._frames.refs, self._frames.flags, list[int]()
        for frame in frames:
            stand_in = int(self._stands[frame - self.base]) - 1
            self._stands[frame - self.base] = 0
            self.dirty -= bool(flags[frame] & _TO_WRITE)
            flags[frame] &= _NEITHER
            refs[stand_in] = 0
            unused.append(stand_in)
        self.pages -= len(unused)
        self._free(unused)

    def moved(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Stand-ins are other frames of RAM from now on (`mm.compaction`)."""
        for before, after in zip(old, new, strict=True):
            frame = self._frames.index[after]
            assert self._stands[frame - self.base] == before + 1, "it stood for that"
            self._stands[frame - self.base] = after + 1

    # ---- state

    def kept(self) -> NDArray[np.uint32]:
        """What it keeps for each frame of the aperture, to be measured."""
        return self._stands

    def capture(self) -> dict[str, Any]:
        """What the frame table does not know: which pages were dropped, and when."""
        dropped = np.flatnonzero(self._stands >= _GONE)
        return {"gone": self._gone, "dropped": (dropped, self._stands[dropped].copy())}

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one. The frame table was restored."""
        frames, (dropped, when) = self._frames, state["dropped"]
        self._stands[:] = 0
        self._stands[dropped], self._gone = when, state["gone"]
        stand_ins = np.flatnonzero(frames.kind_array == _CACHE)
        pages = frames.index_array[stand_ins].astype(np.int64)
        self._stands[pages - self.base] = stand_ins + 1
        self.pages = stand_ins.size
        self.dirty = int(np.count_nonzero(frames.flags_array[pages] & np.uint8(_TO_WRITE)))
