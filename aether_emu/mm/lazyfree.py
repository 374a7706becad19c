"""Pages that a program needs no longer but may go on with (MADV_FREE): taken only when memory is short.

    mark     the page stays where it is; its entry becomes clean, and is flushed on every CPU
    store    the MMU makes the entry dirty: the page is the program's again, as if nothing had been asked
    drop     memory is short: what is still clean is unmapped and freed, without a slot in swap; the next
             touch finds zeros

Pages go in the order in which they were marked, and before any others. A huge page is marked as one and
goes as one; one that only a part was asked of is split at the call. Swapped pages go at once, merged ones are
not marked. As on Linux (mm/madvise.c, mm/rmap.c) a page that several processes show goes when it is clean for
all of them; what one stored before the fork is dirty for the other still.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from aether_emu.errors import OutOfFrames
from aether_emu.mm import ageing, rmap
from aether_emu.mm.allocation import LOCKED
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import user_mark
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.seen import in_swap
from aether_emu.mm.tables import edits
from aether_emu.mm.tables.count import Frames
from aether_emu.mm.tables.damage import TableDamaged
from aether_emu.mm.tables.tree import Found
from aether_emu.mm.tlb import Gather

BATCH = 32
"""Pages that are dropped together, with one flush for each address space."""
_ANON = int(Kind.ANON)


class _Shown(NamedTuple):
    """One entry that shows a frame."""

    space: AddressSpace
    found: Found


class LazyPages:
    """The frames of one machine that were marked, in the order in which they were."""

    def __init__(self, physical: Physical) -> None:
        self._physical, self._n = physical, physical.counters.n
        self._frames: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._frames)

    def among(self, frames: Frames) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of the frames are marked."""
        return np.isin(frames, np.fromiter(self._frames, np.int64, len(self._frames)))

    def forget(self, frames: Iterable[int]) -> None:
        """These are freed, or somebody stored to them past their entries."""
        if self._frames:
            for frame in frames:
                self._frames.pop(frame, None)

    def mark(self, space: AddressSpace, start: int, end: int) -> None:
        """The program needs no page of `[start, end)`, of private anonymous memory, any longer.

        Raises OutOfFrames, with nothing changed, if a huge page cannot be split, and TableDamaged.
        """
        physical, frames = self._physical, self._physical.frames
        gather = space.gather()
        try:
            edits.whole(space.table, gather, start, end)
            edits.clean(space.table, gather, start, end)
            edits.age(space.table, gather, start, end)
        finally:
            gather.finish_at_once()  # no CPU stores any more by what it holds, without making the entry dirty
        swap = physical.swap
        if swap is not None:
            for page, slot in zip(*in_swap(space, start, end)[:2], strict=True):
                found = space.table.find(int(page) << space.table.format.page_shift)
                assert found is not None, "an entry names a slot there"
                space.table.write(found.start, 1, found.slot, 0)
                swap.unnamed(int(slot))
        shown = ageing.look(space, start, end).frames
        own = frames.kind_array[shown] == _ANON
        if physical.merged is not None:
            own &= frames.owner_array[shown] != physical.merged.number
        chosen: list[int] = shown[own].tolist()
        if swap is not None:
            chosen = [each for each in chosen if frames.maps[each] == 1 or swap.slot_of(each) is None]
            swap.frames_go(chosen)
        before = len(self._frames)
        self._frames.update(dict.fromkeys(chosen))
        self._n[Event.LAZY_FREE] += len(self._frames) - before

    def drop(self, wanted: int) -> int:
        """Give so many frames back, if there are. Returns how many. No edit of a page table is under way."""
        dropped = 0
        while self._frames and dropped < wanted:
            dropped += self.drop_of(list(islice(self._frames, BATCH)))
        return dropped

    def drop_of(self, frames: Sequence[int]) -> int:
        """Give those of some frames back that are marked and still clean. Returns how many."""
        gathers: dict[int, Gather] = {}
        dropped = 0
        for frame in frames:
            if frame in self._frames:
                dropped += self._let_go(frame, gathers)
        for gather in gathers.values():
            gather.finish_at_once()
        self._n[Event.LAZY_FREED] += dropped
        return dropped

    def _let_go(self, frame: int, gathers: dict[int, Gather]) -> int:
        """Unmap a frame, with its huge page. How many pages go: none that is locked, held or dirty."""
        del self._frames[frame]
        frames = self._physical.frames
        if frames.kind[frame] != _ANON or self._physical.is_merged(frame):
            return 0
        try:
            shown = [self._clean(one) for one in list(rmap.mappings(self._physical, frame))]
        except (TableDamaged, OutOfFrames):
            return 0
        clean = [one for one in shown if one is not None]
        if not len(clean) == len(shown) == frames.maps[frame] == frames.refs[frame]:
            return 0
        gone = 1
        for space, found in clean:
            table, gather = space.table, gathers.get(space.number)
            if gather is None:
                gather = gathers[space.number] = space.gather()
            size = table.format.levels[found.level - 1].size
            table.write(found.start, found.level, found.slot, 0)
            gather.page(found.start, size)
            first = frames.number(table.format.leaf_address(found.entry, found.level))
            gone = size >> table.format.page_shift
            for each in range(first, first + gone):
                self._frames.pop(each, None)
                gather.drop(each)
        return gone

    def _clean(self, one: rmap.Mapping) -> _Shown | None:
        """The entry to clear: a huge page's if all of it was marked, else that of the page alone.

        None for what stays. Raises OutOfFrames and TableDamaged.
        """
        space, address, found = one
        assert isinstance(space, AddressSpace)
        fmt, area = space.table.format, space.areas.find(address)
        entry = found.entry
        if area is None or area.flags & LOCKED or not entry & fmt.present_mask:
            return None
        if fmt.dirty(entry) or entry & user_mark(fmt):
            return None
        if found.level > 1 and self._is_all_marked(space, found):
            return _Shown(space, found)
        if found.level > 1 or entry & fmt.contiguous_bit:
            gather = space.gather()
            try:
                edits.whole(space.table, gather, int(address), int(address) + fmt.page_size)
            finally:
                gather.finish_at_once()
            cut = space.table.find(int(address))
            return None if cut is None else _Shown(space, cut)
        return _Shown(space, found)

    def _is_all_marked(self, space: AddressSpace, found: Found) -> bool:
        """Whether a large leaf shows marked pages alone, and nobody else does. One was taken out just now."""
        fmt, frames = space.table.format, self._physical.frames
        first = frames.number(fmt.leaf_address(found.entry, found.level))
        count = fmt.levels[found.level - 1].size >> fmt.page_shift
        marked = sum(frame in self._frames for frame in range(first, first + count))
        return marked == count - 1 and bool((frames.refs_array[first : first + count] == 1).all())

    def capture(self) -> list[int]:
        """Which frames, in their order."""
        return list(self._frames)

    def restore(self, state: list[int]) -> None:
        """Become the captured one."""
        self._frames = dict.fromkeys(state)
