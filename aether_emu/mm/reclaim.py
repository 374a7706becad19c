"""Reclaim: pages that were not used lately leave memory, so that others have room.

    balance              whether pages of files are tried next, or those that go to swap (`mm.balance`)
    order (a policy)     which frames of that kind to try, one after the other
    shown                who shows a frame, and whether it may be taken
    take                 entries that name a slot, flushed on every CPU; then the bytes are stored, and only
                         then is the frame free

When it runs, and up to where, says `mm.room`; pages that a program has freed lazily go before these.
What was found locked is not tried again until that is unlocked (Linux: the unevictable list), and where
swap has no slot nothing is scanned: else each fault would go through all memory for nothing.

What stays: pages that are locked, executable or shown by anything but entries; page tables; the zero page;
the kernel's own. A page of a large leaf or a contiguous run is cut out of it first. Pages of host files go
where they count as memory (`mm.page_cache`): `mm.file_reclaim` takes them, by the frames that stand for them.
Those of memory files stand in the aperture and are no RAM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from aether_emu.errors import OutOfFrames
from aether_emu.mm import ageing, rmap
from aether_emu.mm.balance import Balance
from aether_emu.mm.counters import Event
from aether_emu.mm.file_reclaim import FilePages, is_locked
from aether_emu.mm.frames.table import Flags, Kind
from aether_emu.mm.markers import watched
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import is_clean, is_told
from aether_emu.mm.room import BATCH, Room
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.area import SwapArea, SwapFull
from aether_emu.mm.tables.count import address_bits
from aether_emu.mm.tables.damage import TableDamaged
from aether_emu.mm.tables.edits import whole
from aether_emu.mm.tables.owed import owes
from aether_emu.mm.tables.tree import Found
from aether_emu.mm.tlb import Gather

_ANON, _SHARED, _CACHE = int(Kind.ANON), int(Kind.SHARED), int(Kind.CACHE)
_EXECUTABLE, _UNEVICTABLE = int(Flags.EXECUTABLE), int(Flags.UNEVICTABLE)
_EVICTABLE = 255 ^ _UNEVICTABLE


class Order(Protocol):
    """A policy: in which order pages are tried. Deterministic."""

    def candidates(self, *, files: bool) -> list[int]:
        """Some frames to try next; none when all were looked at.

        Those that stand for pages of files, or others: frames of any kind may be among these.
        """

    def begin(self) -> None:
        """A reclaim begins: all may be looked at anew."""

    def deactivate(self, frames: Sequence[int]) -> None:
        """These are not expected to be used soon (MADV_COLD)."""

    def spared(self, frame: int) -> None:
        """It was tried, and stays this time."""

    def freed(self, frames: Sequence[int]) -> None:
        """Nobody uses these any more; what becomes of them is new."""

    def capture(self) -> dict[str, Any]:
        """Its state, as plain data."""

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one."""


class _Shown(NamedTuple):
    """One entry that shows a frame."""

    space: AddressSpace
    found: Found


class _Going(NamedTuple):
    """A frame that is taken, with the slot that it goes to, and whether that has its bytes already."""

    frame: int
    slot: int
    clean: bool
    shown: list[_Shown]
    memory: SharedMemory | None


class Reclaim(Room):
    """Takes pages of one machine out of memory, in the order that `order` says.

    They go to its swap area, if it has one; those of files are dropped, where they count.
    """

    def __init__(self, physical: Physical, swap: SwapArea | None, order: Callable[[Reclaim], Order]) -> None:
        super().__init__(physical)
        self.swap = swap
        self.files: FilePages | None = None  # where files count
        self.balance_of = Balance(self._n)
        self.order = order(self)

    def cool(self, frames: Sequence[int]) -> None:
        """See `Reclaiming`."""
        self.order.deactivate(self._paying(frames))

    def _paying(self, frames: Sequence[int] | NDArray[np.int64]) -> list[int]:
        """The frames of RAM behind some pages: those that stand for files' pages too, where these count."""
        shown = np.asarray(frames, np.int64)
        own: list[int] = shown[shown < self._buddy.total].tolist()
        cache = self._physical.cache
        return own if cache is None else own + cache.stand_ins(shown).tolist()

    def unlocked(self, frames: NDArray[np.int64]) -> None:
        """See `Reclaiming`."""
        self._physical.frames.flags_array[self._paying(frames)] &= _EVICTABLE

    def freed(self, frames: Sequence[int]) -> None:
        """See `Reclaiming`."""
        super().freed(frames)
        self._physical.frames.flags_array[frames] &= _EVICTABLE
        if self.swap is not None:
            self.swap.frames_go(frames)
        self.order.freed(frames)

    def _reclaim(self, wanted: int) -> int:
        """Take at least so many frames, if there are. Returns how many."""
        taken = super()._reclaim(wanted)
        taken += self._physical.shrinkers.shrink(wanted)
        spared = self._n[Event.FILE_SPARED]
        taken += self._in_order(wanted - taken)
        if not taken and self._n[Event.FILE_SPARED] > spared:  # all that is left is code: it goes after all
            taken = self._in_order(wanted)
        if taken < wanted and self.swap is not None and self.swap.on and self.swap.cached:
            taken += self._take_cached(wanted - taken)
        return taken

    def _take_cached(self, wanted: int) -> int:
        """Take frames that swap has the bytes of, and so need no slot; those last that were used lately."""
        assert self.swap is not None, "the caller asked"
        frames, used, taken = self.swap.cached_frames(), list[int](), 0
        frames = frames[self._physical.frames.flags_array[frames] & _UNEVICTABLE == 0]
        for first in range(0, frames.size, BATCH):
            some = frames[first : first + BATCH].tolist()
            lately = [frame for frame in some if ageing.was_accessed(self._physical, frame)]
            ageing.forget_frames(self._physical, lately)
            self._n[self._scanned] += len(some)
            taken += self._take_own([frame for frame in some if frame not in lately])[0]
            if taken >= wanted:
                return taken
            used += lately
        for first in range(0, len(used), BATCH):
            if taken < wanted:
                taken += self._take_own(used[first : first + BATCH])[0]
        return taken

    def _in_order(self, wanted: int) -> int:
        """Take so many frames of the order's choice."""
        taken, order, left = 0, self.order, {False, True}
        order.begin()
        if self.files is not None:
            self.balance_of.look(self._buddy.total - self._buddy.free_frames)
        while taken < wanted:
            if self.files is None:
                left.discard(True)
            if self.swap is None or not self.swap.has_room:
                left.discard(False)
            if not left:
                break
            files = self._files_next(left)
            frames = order.candidates(files=files)
            if not frames:
                left.discard(files)
                continue
            self._n[self._scanned] += len(frames)
            if files:
                self._n[Event.FILE_SCANNED] += len(frames)
                taken += self._take_files(frames, spares=True)
            else:
                more, full = self._take_own(frames)
                taken += more
                if full:
                    left.discard(False)
        return taken

    def _files_next(self, left: set[bool]) -> bool:
        """Which kind is tried next, of those that are left. Not files where hardly any are there."""
        cache = self._physical.cache
        if len(left) == 1 or cache is None:
            return True in left
        if cache.pages + self._buddy.free_frames <= self.marks.high:
            return False
        return self.balance_of.files_next(self._physical.swappiness)

    # ---- one batch

    def take(self, frames: Sequence[int]) -> int:
        """Take those of the frames that may be taken. Returns how many; fewer when swap is full."""
        kinds, paying = self._physical.frames.kind, self._paying(frames)
        of_files = [frame for frame in paying if kinds[frame] == _CACHE]
        taken, _full = self._take_own([frame for frame in paying if kinds[frame] != _CACHE])
        return taken + (self._take_files(of_files, spares=False) if of_files else 0)

    def _take_files(self, stand_ins: Sequence[int], *, spares: bool) -> int:
        """`take` of pages of files, by the frames that stand for them."""
        assert self.files is not None, "none stands for any"
        taken = self.files.take(stand_ins, self.order.spared if spares else None)
        self._n[self._taken] += taken
        return taken

    def _take_own(self, frames: Sequence[int]) -> tuple[int, bool]:
        """How many went to swap; and whether a slot was missing: then others find none either."""
        taken, full = 0, False
        for first in range(0, len(frames), BATCH):
            going, full = self._chosen(frames[first : first + BATCH])
            self._take_out(going)
            taken += len(going)
            if full:
                break
        self._n[self._taken] += taken
        return taken, full

    def _chosen(self, frames: Sequence[int]) -> tuple[list[_Going], bool]:
        """What of the frames is taken, each with a slot; and whether a slot was missing."""
        going, swap, clean_slots = list[_Going](), self.swap, set[int]()
        if swap is None or not swap.on:
            return going, True
        for frame in dict.fromkeys(frames):
            shown = self.shown(frame)
            if shown is None:
                continue
            slot = swap.slot_to_keep(frame)
            clean = slot is not None
            if slot is None:
                try:
                    slot = swap.take(clean_slots)
                except SwapFull:
                    return going, True
            else:
                clean_slots.add(slot)
            item = self._physical.objects.find(self._physical.frames.owner[frame])
            going.append(_Going(frame, slot, clean, shown, item if isinstance(item, SharedMemory) else None))
        return going, False

    def shown(self, frame: int) -> list[_Shown] | None:
        """The entries that show a frame, or None if it may not be taken."""
        frames = self._physical.frames
        kind = frames.kind[frame]
        if kind not in (_ANON, _SHARED) or frames.flags[frame] & _EXECUTABLE:
            return None
        extra = 0
        if kind == _SHARED:
            item = self._physical.objects.find(frames.owner[frame])
            if not isinstance(item, SharedMemory) or item.stays:
                return None
            extra = 1  # the object's own reference
        try:
            mappings = list(rmap.mappings(self._physical, frame))
            if any(map(is_locked, mappings)):
                frames.flags[frame] |= _UNEVICTABLE
                return None
            found_all = [self._small(one) for one in mappings]
        except (TableDamaged, OutOfFrames):
            return None
        shown = [one for one in found_all if one is not None]
        mapped = len(shown)
        known = mapped == len(found_all) == frames.maps[frame] and frames.refs[frame] == mapped + extra
        return shown if known and mapped + extra else None

    def _small(self, one: rmap.Mapping) -> _Shown | None:
        """The entry of the page alone, cut out of a large leaf or a run. None for a page that stays.

        Raises OutOfFrames where the table for that cannot be had, and TableDamaged.
        """
        space, address, found = one
        assert isinstance(space, AddressSpace)
        if space.areas.find(address) is None:
            return None
        fmt = space.table.format
        if found.level == 1 and not (found.entry & fmt.present_mask and found.entry & fmt.contiguous_bit):
            return _Shown(space, found)
        gather = space.gather()
        try:
            whole(space.table, gather, int(address), int(address) + fmt.page_size)
        finally:
            gather.finish_at_once()
        cut = space.table.find(int(address))
        return None if cut is None else _Shown(space, cut)

    def _take_out(self, going: list[_Going]) -> None:
        """Unmap, flush on every CPU, store, free: in this order, so that no store is lost."""
        gathers: dict[int, Gather] = {}
        for each in going:
            for one in each.shown:
                gather = gathers.get(one.space.number)
                if gather is None:
                    gather = gathers[one.space.number] = one.space.gather()
                self._unmap(one, each, gather)
        for gather in gathers.values():
            gather.flush()
        for each in going:
            self._store(each)
        for gather in gathers.values():
            gather.finish()
        self._physical.give_back([each.frame for each in going if each.memory is not None and not each.shown])

    def _unmap(self, one: _Shown, each: _Going, gather: Gather) -> None:
        """Let an entry name the slot; in shared memory nothing, for the object knows."""
        table, swap, found = one.space.table, self.swap, one.found
        assert swap is not None, "the page has a slot"
        fmt, told = table.format, is_told(table.format, found.entry)
        entry = watched(fmt) if told else 0
        if each.memory is None:
            alone = len(each.shown) == 1 and not swap.users(each.slot)
            clean = is_clean(fmt, found.entry)
            entry = swap.entries.make(each.slot, exclusive=alone, clean=clean, told=told)
            swap.named(each.slot)
        kind = found.entry & ~address_bits(fmt, 1)
        table.write(found.start, 1, found.slot, entry)
        if owes(fmt, kind, 0, 1):
            gather.page(found.start)
        gather.drop(each.frame)

    def _store(self, each: _Going) -> None:
        swap, frames = self.swap, self._physical.frames
        assert swap is not None, "the page has a slot"
        if each.clean:
            self._n[Event.RECLAIM_CLEAN] += 1
            swap.frame_goes(each.frame)
        else:
            swap.store_page(each.slot, self._physical.page_bytes(each.frame))
        swap.went(each.slot)
        if each.memory is not None:
            swap.named(each.slot)
            each.memory.went(frames.index[each.frame], each.slot)
            frames.refs[each.frame] -= 1

    # ---- state

    def capture(self) -> dict[str, Any]:
        """All that goes on."""
        return {
            **super().capture(),
            "order": self.order.capture(),
            "balance": self.balance_of.capture(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one."""
        super().restore(state)
        self.order.restore(state["order"])
        self.balance_of.restore(state["balance"])
