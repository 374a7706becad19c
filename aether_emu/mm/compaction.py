"""Compaction: pages move to other frames, so that a long row of frames becomes free.

    an aligned row of frames     | free | page | free | page |     the one with the fewest pages in use,
                                           |             |         which all can move
    free frames elsewhere                  v             v

A page can move if only entries of page tables refer to it, and all of these are known: private memory, each
reference a mapping that the reverse map finds. Its entries become held ones (MIGRATION) first, on all CPUs;
nobody stores meanwhile; then its bytes are copied, and the entries show the new frame as they showed the old.
Large leaves and contiguous runs stay where they are: they are rows themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Held, HeldKind
from aether_emu.errors import OutOfFrames
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Flags, Kind
from aether_emu.mm.objects.protocol import Space
from aether_emu.mm.physical import Physical
from aether_emu.mm.rmap import Mapping, mappings
from aether_emu.mm.tables.damage import TableDamaged

# Plain ints: numpy needs 20 us for an operation with an enum.
_FREE, _ANON, _CACHE = int(Kind.FREE), int(Kind.ANON), int(Kind.CACHE)
_EXECUTABLE = int(Flags.EXECUTABLE)
_TRIED = 4  # rows, before it is given up
_MOST_PASSED = 64  # wishes that are passed over after failures


class Compaction:
    """Makes rows of free frames. After a failure it passes over one wish, after the next three, then more."""

    def __init__(self, physical: Physical) -> None:
        self._physical = physical
        self._failures = self._passed = 0

    def make(self, order: int) -> int | None:
        """The first of 2**order frames in a row, single ones in use; None if no such row can be made."""
        if self._passed < min(1 << self._failures, _MOST_PASSED) - 1:
            self._passed += 1
            return None
        self._passed = 0
        block = self._make(order)
        self._failures = 0 if block is not None else self._failures + 1
        self._physical.counters.n[Event.COMPACTED if block is not None else Event.COMPACTION_FAILED] += 1
        return block

    def _make(self, order: int) -> int | None:
        self._physical.tlb.settle()
        self._physical.buddy.gather_ready()
        for first in self._rows(order)[:_TRIED]:
            if self._clear(first, 1 << order):
                return first
        return None

    def _rows(self, order: int) -> list[int]:
        """The first frames of the rows that may be cleared, those with the fewest pages in use first.

        Those without any are the allocator's to hand out.
        """
        frames, count, rows = self._physical.frames, 1 << order, list[tuple[int, int]]()
        for start, end in self._physical.buddy.zones:
            low, high = start + count - 1 & -count, end & -count
            if low >= high:
                continue
            kinds = frames.kind_array[low:high].reshape(-1, count)
            refs = frames.refs_array[low:high].reshape(-1, count)
            free = kinds == _FREE
            can_move = (
                (kinds == _ANON) & (refs > 0) & (refs == frames.maps_array[low:high].reshape(-1, count))
            ) | (kinds == _CACHE)
            fitting = np.flatnonzero((free | can_move).all(axis=1))
            used = count - np.count_nonzero(free[fitting], axis=1)
            rows += zip(used.tolist(), (low + fitting * count).tolist(), strict=True)
        return [first for used, first in sorted(rows) if 0 < used < count]

    def _clear(self, first: int, count: int) -> bool:
        """Move what is in a row elsewhere. The row is taken then; else nothing has changed."""
        physical = self._physical
        frames, buddy = physical.frames, physical.buddy
        used = np.flatnonzero(frames.kind_array[first : first + count] != _FREE) + first
        shown = list(self._movable(used.tolist()))
        if len(shown) != used.size:
            return False
        free = buddy.take_within(first, count)
        try:
            targets = buddy.alloc_bulk(used.size)
        except OutOfFrames:
            buddy.free_bulk(free)
            return False
        migrate(physical, used, targets, shown)
        physical.counters.n[Event.MIGRATED_PAGES] += used.size
        return True

    def _movable(self, used: Sequence[int]) -> Iterator[list[Mapping]]:
        """The entries that show each of the frames, up to the first that cannot move."""
        physical = self._physical
        for frame in used:
            if physical.frames.kind[frame] == _CACHE:  # no entry shows what stands for a page of a file
                yield []
                continue
            try:
                found = list(mappings(physical, frame))
            except TableDamaged:
                return
            if len(found) != physical.frames.maps[frame] or not all(map(_can_be_held, found)):
                return
            yield found

    def capture(self) -> tuple[int, int]:
        """What it has learnt."""
        return self._failures, self._passed

    def restore(self, state: tuple[int, int]) -> None:
        """Know that."""
        self._failures, self._passed = state


def _can_be_held(mapping: Mapping) -> bool:
    """Whether an entry can be changed for a moment: one small page, present, and no run."""
    fmt, found = mapping.space.table.format, mapping.found
    present = bool(found.entry & fmt.present_mask)
    return found.level == 1 and present and not found.entry & fmt.contiguous_bit


def migrate(
    physical: Physical, old: NDArray[np.int64], new: NDArray[np.int64], shown: Sequence[Sequence[Mapping]]
) -> None:
    """Let pages stand in other frames, which were taken for them; the old ones are in use, and nobody's.

    `shown` are the entries of each page: all that there are.
    """
    frames, ram = physical.frames, physical.ram
    _hold(physical, shown)
    by_page: NDArray[Any] = ram.array.reshape(-1, ram.page_size >> 3)
    by_page[new] = by_page[old]
    for column in (frames.kind_array, frames.owner_array, frames.index_array):
        column[new] = column[old]
    frames.refs_array[new], frames.maps_array[new] = frames.refs_array[old], frames.maps_array[old]
    frames.flags_array[new] |= np.uint8(int(Flags.DIRTY))
    if physical.cache is not None:
        stand_ins = frames.kind_array[new] == _CACHE
        physical.cache.moved(old[stand_ins].tolist(), new[stand_ins].tolist())
    code = new[frames.flags_array[old] & np.uint8(_EXECUTABLE) != 0]
    frames.refs_array[old] = frames.maps_array[old] = 0
    frames.kind_array[old] = int(Kind.KERNEL)
    if physical.reclaim is not None:
        physical.reclaim.freed(old.tolist())
    physical.code.retire(old.tolist())
    physical.code.executable_each(code, mutable=True)
    if physical.merged is not None:
        physical.merged.moved(old.tolist(), new.tolist())
    moved = zip(shown, old.tolist(), new.tolist(), strict=True)
    for found, before, after in moved:
        change = frames.address(before) ^ frames.address(after)
        for mapping in found:
            at = mapping.found
            mapping.space.table.write(at.start, 1, at.slot, at.entry ^ change)


def _hold(physical: Physical, shown: Sequence[Sequence[Mapping]]) -> None:
    """Make entries held ones, which no CPU translates by any more."""
    spaces: dict[int, tuple[Space, list[Mapping]]] = {}
    for found in shown:
        for mapping in found:
            spaces.setdefault(id(mapping.space), (mapping.space, []))[1].append(mapping)
    for space, entries in spaces.values():
        fmt, gather = space.table.format, space.gather()
        for mapping in entries:
            at = mapping.found
            frame = fmt.leaf_address(at.entry, 1) >> fmt.page_shift
            space.table.write(at.start, 1, at.slot, fmt.held_entry(Held(HeldKind.MIGRATION, frame)))
            gather.page(at.start)
        gather.flush()
        gather.finish()
    physical.tlb.settle()
