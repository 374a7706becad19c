"""How pages of files leave memory, where they count as memory, and how they are written back.

    take           unmapped wherever it is shown, flushed on every CPU, written back if it is dirty, and only
                   then dropped: the frame of RAM that stood for it is free
    write_back     it stays, but nobody may store to it without a fault any more (Linux: page_mkclean)

Nothing that was stored is ever lost: a page in the aperture is the host's own page of the file. One that the
host cannot write (a full disk, an I/O error) stays in memory and dirty; the failure is told to whoever syncs
the file next (`FileBacking.failed`).

What stays: pages that are locked, or in use by anything but entries; code once, where reclaim asks (`spare`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from aether_emu.errors import OutOfFrames
from aether_emu.machine.memory.aperture import BackingFailed, BeyondEnd
from aether_emu.mm import rmap
from aether_emu.mm.allocation import LOCKED
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Flags
from aether_emu.mm.markers import watched
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.page_cache import PageCache
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import is_told
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.count import address_bits
from aether_emu.mm.tables.damage import TableDamaged
from aether_emu.mm.tables.owed import owes
from aether_emu.mm.tlb import Gather

BATCH = 32
"""Pages that are dropped together, with one flush for each address space (Linux: SWAP_CLUSTER_MAX)."""
_EXECUTABLE, _UNEVICTABLE = int(Flags.EXECUTABLE), int(Flags.UNEVICTABLE)


class _Row(NamedTuple):
    """Frames of pages in a row of one file."""

    backing: FileBacking
    page: int
    frames: list[int]


class Gathers:
    """One gather for each address space that an operation edits."""

    def __init__(self) -> None:
        self._by_space: dict[int, Gather] = {}

    def of(self, space: AddressSpace) -> Gather:
        """That of a space."""
        gather = self._by_space.get(space.number)
        if gather is None:
            gather = self._by_space[space.number] = space.gather()
        return gather

    def flush(self) -> None:
        """Flush on every CPU; nothing is freed yet."""
        for gather in self._by_space.values():
            gather.flush()

    def finish(self) -> None:
        """Let go of what was dropped."""
        for gather in self._by_space.values():
            gather.finish()


class FilePages:
    """The pages of files of a machine on which they count."""

    def __init__(self, physical: Physical, cache: PageCache) -> None:
        self._physical, self._cache, self._n = physical, cache, physical.counters.n

    def take(self, stand_ins: Sequence[int], spared: Callable[[int], object] | None = None) -> int:
        """Drop those of the pages that may be, by the frames of RAM that stand for them. Returns how many.

        With `spared` code stays once, and it is told of that.
        """
        taken = 0
        for first in range(0, len(stand_ins), BATCH):
            shown = dict[int, list[rmap.Mapping]]()
            for stand_in, frame in zip(
                stand_ins[first : first + BATCH],
                self._cache.pages_of(stand_ins[first : first + BATCH]),
                strict=True,
            ):
                mappings = self._shown(stand_in, frame)
                if mappings is None:
                    continue
                if spared is not None and self._is_spared(frame):
                    spared(stand_in)
                    continue
                shown[frame] = mappings
            taken += self._take_out(shown)
        self._n[Event.FILE_TAKEN] += taken
        return taken

    def _is_spared(self, frame: int) -> bool:
        if not self._physical.frames.flags[frame] & _EXECUTABLE or not self._cache.spare(frame):
            return False
        self._n[Event.FILE_SPARED] += 1
        return True

    def _shown(self, stand_in: int, frame: int) -> list[rmap.Mapping] | None:
        """The entries that show a page, or None if it may not go."""
        frames = self._physical.frames
        try:
            found = list(rmap.mappings(self._physical, frame))
        except TableDamaged:
            return None
        if any(map(is_locked, found)):
            frames.flags[stand_in] |= _UNEVICTABLE
            return None
        return found if len(found) == frames.maps[frame] == frames.refs[frame] else None

    def _take_out(self, shown: dict[int, list[rmap.Mapping]]) -> int:
        """Unmap, flush on every CPU, write back, drop: in this order, so that no store is missed."""
        gathers = Gathers()
        for frame, mappings in shown.items():
            for space, _address, found in mappings:
                assert isinstance(space, AddressSpace), "areas are of such"
                fmt, gather = space.table.format, gathers.of(space)
                entry = watched(fmt) if is_told(fmt, found.entry) else 0
                space.table.write(found.start, 1, found.slot, entry)
                if owes(fmt, found.entry & ~address_bits(fmt, 1), 0, 1):
                    gather.page(found.start)
                gather.drop(frame)
        gathers.flush()
        gathers.finish()
        going = list[int]()
        for row in self._rows(shown):
            waiting = [frame for frame in row.frames if self._cache.is_dirty(frame)]
            failed = {frame for part in self._rows(waiting) for frame in self._write(part)}
            going += [frame for frame in row.frames if frame not in failed]
        self.drop(going)
        return len(going)

    def drop(self, frames: Sequence[int]) -> None:
        """Pages that no entry shows, and that are on disk, leave memory."""
        physical = self._physical
        for row in self._rows(frames):
            physical.aperture.let_go(
                physical.frames.address(row.frames[0]), len(row.frames) << physical.frames.page_shift
            )
        self._cache.drop(frames)

    def _rows(self, frames: Iterable[int]) -> list[_Row]:
        """Frames sorted, those together whose pages are in a row in memory and in their file."""
        table, rows = self._physical.frames, list[_Row]()
        for frame in sorted(frames):
            if rows and rows[-1].frames[-1] == frame - 1 and rows[-1].backing.number == table.owner[frame]:
                rows[-1].frames.append(frame)
                continue
            backing = self._physical.objects.find(table.owner[frame])
            assert isinstance(backing, FileBacking), "its pages are in the cache"
            rows.append(_Row(backing, table.index[frame], [frame]))
        return rows

    # ---- writing back

    def write_back(self, backing: FileBacking, first: int, count: int) -> int:
        """Write the dirty ones of `count` pages of a file from `first` on. Returns how many are written."""
        written = 0
        for _page, frame, length in backing.stretches(self._cache, first, count):
            dirty = self._cache.dirty_among(frame, length)
            self._protect(dirty)
            for row in self._rows(dirty):
                written += len(row.frames) - len(self._write(row))
        return written

    def _protect(self, frames: Iterable[int]) -> None:
        """Nobody may store to these without a fault: entries become clean, and are flushed on every CPU."""
        gathers = Gathers()
        for frame in frames:
            for space, _address, found in list(rmap.mappings(self._physical, frame)):
                assert isinstance(space, AddressSpace), "areas are of such"
                fmt = space.table.format
                if found.entry & fmt.present_mask and fmt.writable(found.entry):
                    entry = fmt.write_protect(fmt.clean(found.entry))
                    space.table.write(found.start, 1, found.slot, entry)
                    gathers.of(space).page(found.start)
        gathers.flush()
        gathers.finish()

    def _write(self, row: _Row) -> list[int]:
        """Write pages that nobody may store to. Returns those that are not written, which stay dirty."""
        failure = row.backing.file.write_back(row.page, len(row.frames))
        if failure:
            row.backing.failed.note(failure)
            return row.frames
        for frame in row.frames:
            self._cache.cleaned(frame)
        self._n[Event.FILE_WRITTEN] += len(row.frames)
        return []

    # ---- what programs ask

    def read(self, backing: FileBacking, first: int, count: int) -> None:
        """Have `count` pages of a file from `first` on in memory, up to its end, while that is not short."""
        reclaim, at = self._physical.reclaim, first
        with suppress(BeyondEnd, BackingFailed, OutOfFrames):
            while at < first + count and (reclaim is None or not reclaim.is_short):
                backing.frames(at, 1, write=False)
                at += 1

    def drop_unused(self, frames: Iterable[int]) -> int:
        """Drop those that no entry shows and that are not dirty (Linux: invalidate_mapping_pages)."""
        table, cache = self._physical.frames, self._cache
        unused = [frame for frame in frames if not table.refs[frame] and not cache.is_dirty(frame)]
        self.drop(unused)
        return len(unused)

    def drop_unused_of(self, backing: FileBacking, first: int, count: int) -> int:
        """Likewise, of `count` pages of a file from `first` on."""
        return sum(
            self.drop_unused((np.flatnonzero(self._cache.there(frame, length)) + frame).tolist())
            for _page, frame, length in backing.stretches(self._cache, first, count)
        )


def is_locked(one: rmap.Mapping) -> bool:
    """Whether the area that shows a page locks it."""
    assert isinstance(one.space, AddressSpace)
    area = one.space.areas.find(one.address)
    return area is not None and bool(area.flags & LOCKED)
