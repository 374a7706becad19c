"""The swap area, of one file or more: which slots are used, by how many entries, and which frames still hold
what a slot has.

    users    how many entries, or shared objects, name the slot
    cache    the frame that shows the slot's bytes, unchanged: the swap cache

A slot is free when nobody names it and no frame is cached for it. A cached frame is one that came back and
was not written to since: no entry that shows it permits writing. To take it again costs nothing, and another
process whose entry names the slot gets that frame. The cache holds no reference; who frees the frame, or is
about to let somebody write to it, tells `frame_goes`. Each slot that is cached has an object of the
kernel's, but for those that came into the cache when there was no memory for one.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import PageTableFormat
from aether_emu.errors import AetherError, OutOfFrames
from aether_emu.mm.counters import Event
from aether_emu.mm.slab.layouts import CACHED
from aether_emu.mm.slab.slabs import Slabs
from aether_emu.mm.swap.cached import CachedSlots
from aether_emu.mm.swap.entries import SwapEntries, swap_entries
from aether_emu.mm.swap.file import SwapLost
from aether_emu.mm.swap.part import MOST_PARTS, PLACE_BITS, Part
from aether_emu.mm.swap.store import Store
from aether_emu.mm.tables.tree import Found

OWN_NAME = "/swapfile"
"""What programs know the machine's own file by."""
_PLACE = (1 << PLACE_BITS) - 1


class SwapFull(AetherError):
    """There is no slot for another page: all are used, the area is off, or the host takes no more."""


class SlotLeak(AetherError):
    """Slots of the swap area were still in use after everything was given back."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        super().__init__(f"{slots} slot(s) of the swap area leaked")


class SwapArea:
    """The slots of all files. `slots` and `store` are of the machine's own file, which `parts` has first.

    `memory` is how many frames the machine has: what comes back before as many others went is thrashing.
    """

    def __init__(self, fmt: PageTableFormat, slots: int, store: Store, n: list[int], memory: int) -> None:
        self._n, self._memory = n, memory
        self._slot_of = CachedSlots(memory)
        self.cached = 0
        """Frames that are cached for a slot."""
        self.idle = 0
        """Those of them whose slot nothing else names: the cache can give it up."""
        self.entries: SwapEntries = swap_entries(fmt)
        self.store = store
        self.own = Part(0, OWN_NAME, slots, store, priority=-2, key=None)
        self.own.on = slots > 0
        self.parts = [self.own]  # in the order in which they were added
        self._order = [self.own]  # that in which slots are given out
        self._by_number = {0: self.own}
        self._least = self.own.priority if slots else -1  # the priority that was given out last
        self.slabs: Slabs | None = None
        self._gone = 0  # pages that reclaim has taken

    # ---- accounts

    @property
    def on(self) -> bool:
        """Whether slots of some file are given out."""
        return any(part.on for part in self.parts)

    @property
    def slots(self) -> int:
        """Slots of the files that are on."""
        return sum(part.slots for part in self.parts if part.on)

    @property
    def used(self) -> int:
        """Slots in use, of all files."""
        return sum(part.used for part in self.parts)

    @property
    def has_room(self) -> bool:
        """Whether another page may find a slot: one that is free, or that the cache gives up."""
        return any(part.on and (part.used < part.slots or bool(self.idle)) for part in self.parts)

    def users(self, slot: int) -> int:
        """How many entries and objects name a slot; 0 for one that nobody knows."""
        part, place = self._by_number.get(slot >> PLACE_BITS), slot & _PLACE
        return 0 if part is None or place >= part.slots else int(part.users[place])

    @property
    def objects(self) -> dict[int, int]:
        """The kernel's object for each slot that is cached and has one."""
        found = dict[int, int]()
        for part in self.parts:
            column = part.column("objects")
            places = np.flatnonzero(column)
            found.update(zip((part.first + places).tolist(), column[places].tolist(), strict=True))
        return found

    # ---- slots

    def take(self, chosen: Container[int] = ()) -> int:
        """A free slot, which its taker has `named` or gives back. Raises SwapFull.

        Where none is free the cache gives up some of its own, but none that is `chosen`.
        """
        part = self._roomy()
        if part is None and any(part.used == part.slots for part in self.parts if part.on):
            self._free_cached(chosen)
            part = self._roomy()
        if part is None:
            raise SwapFull("no file of the swap area has a free slot")
        return part.take()

    def _roomy(self) -> Part | None:
        """The file that gives out the next slot. Those of one priority take turns."""
        for place, part in enumerate(self._order):
            if part.on and part.has_free:
                behind = place + 1
                while behind < len(self._order) and self._order[behind].priority == part.priority:
                    behind += 1
                if behind > place + 1:
                    self._order.insert(behind - 1, self._order.pop(place))
                return part
        return None

    def named(self, slot: int, more: int = 1) -> None:
        """So many more entries or objects name a slot."""
        part, place = self._by_number[slot >> PLACE_BITS], slot & _PLACE
        if part.frames[place] and not part.users[place]:
            self.idle -= 1
        part.users[place] += more

    def unnamed(self, slot: int) -> None:
        """One names it no longer."""
        part, place = self._by_number[slot >> PLACE_BITS], slot & _PLACE
        left = part.users[place] = part.users[place] - 1
        if not left and part.frames[place]:
            self.idle += 1
        elif not left:
            self._give_back(slot)

    def is_out(self, entry: int) -> bool:
        """Whether an entry names a slot whose page is not in memory."""
        return self.entries.holds(entry) and self.frame_of(self.entries.slot(entry)) is None

    def shared(self, found: Iterable[Found]) -> None:
        """Entries were copied: those that name a slot count once more."""
        for one in found:
            if self.entries.holds(one.entry):
                self.named(self.entries.slot(one.entry))

    def dropped(self, found: Iterable[Found]) -> None:
        """Entries were cleared: those that named a slot name it no longer."""
        for one in found:
            if self.entries.holds(one.entry) and self.users(self.entries.slot(one.entry)):
                self.unnamed(self.entries.slot(one.entry))

    # ---- bytes

    def store_page(self, slot: int, page: memoryview) -> None:
        """The bytes of a slot that was taken."""
        self._store_of(slot).put(slot & _PLACE, page)

    def _store_of(self, slot: int) -> Store:
        return self._by_number[slot >> PLACE_BITS].store

    def went(self, slot: int) -> None:
        """Reclaim has taken the page of a slot."""
        self._gone += 1
        self._by_number[slot >> PLACE_BITS].went[slot & _PLACE] = self._gone

    def load(self, slot: int, into: memoryview) -> None:
        """Bring the bytes of a slot, which stays as it is. Raises SwapLost."""
        into[:] = self._store_of(slot).get(slot & _PLACE)
        self.came_back(slot)

    def look(self, slot: int) -> bytes | None:
        """The bytes of a slot, for who only looks: nothing is counted. None for what is not there."""
        try:
            return self._store_of(slot).look(slot & _PLACE) if self.users(slot) else None
        except SwapLost:
            return None

    def came_back(self, slot: int) -> None:
        """The page of a slot is needed again."""
        part, place = self._by_number[slot >> PLACE_BITS], slot & _PLACE
        at, part.went[place] = part.went[place], 0
        if at:
            self._n[Event.REFAULT] += 1
            self._n[Event.REFAULT_SOON] += self._gone - at < self._memory

    # ---- the cache

    def frame_of(self, slot: int) -> int | None:
        """The frame that is cached for a slot."""
        part, place = self._by_number.get(slot >> PLACE_BITS), slot & _PLACE
        frame = 0 if part is None or place >= part.slots else part.frames[place]
        return frame - 1 if frame else None

    def slot_of(self, frame: int) -> int | None:
        """The slot that a frame is cached for."""
        slot = self._slot_of[frame] if frame < self._memory else 0
        return slot - 1 if slot else None

    def cached_frames(self) -> NDArray[np.int64]:
        """The frames that are cached, in ascending order."""
        return self._slot_of.frames()

    def slot_to_keep(self, frame: int) -> int | None:
        """Likewise, for a frame that may go there again; it is cached no longer for a file that is off."""
        slot = self.slot_of(frame)
        if slot is None or self._by_number[slot >> PLACE_BITS].on:
            return slot
        self.frame_goes(frame)
        return None

    def cache(self, slot: int, frame: int) -> None:
        """From now on the frame shows what the slot has, and nobody may write to it."""
        part, place = self._by_number[slot >> PLACE_BITS], slot & _PLACE
        part.frames[place] = frame + 1
        self._slot_of.set(frame, slot + 1)
        self.cached += 1
        self.idle += not part.users[place]
        if self.slabs is not None:
            with suppress(OutOfFrames):
                part.objects[place] = self.slabs.take(CACHED, slot=slot, frame=frame)

    def frame_goes(self, frame: int) -> None:
        """A frame is freed, or will be written to: it is cached no longer."""
        slot = self.slot_of(frame)
        if slot is None:
            return
        part, place = self._by_number[slot >> PLACE_BITS], slot & _PLACE
        part.frames[place] = 0
        self._slot_of.clear(frame)
        self.cached -= 1
        if part.objects[place]:
            assert self.slabs is not None, "they made it"
            self.slabs.put(CACHED, part.objects[place])
            part.objects[place] = 0
        if not part.users[place]:
            self.idle -= 1
            self._give_back(slot)

    def frames_go(self, frames: Iterable[int]) -> None:
        """`frame_goes`, of many."""
        if self.cached:
            for frame in frames:
                self.frame_goes(frame)

    def forget_cached(self, part: Part) -> None:
        """No frame is cached any more for a slot of a file."""
        frames = part.column("frames")
        for frame in frames[frames != 0].tolist():
            self.frame_goes(frame - 1)

    def _free_cached(self, but: Container[int]) -> None:
        """Give up slots that only the cache has: their frames are as good without."""
        idle = list[int]()
        for part in self.parts if self.idle else ():
            frames = part.column("frames")
            alone = np.flatnonzero((frames != 0) & (part.column("users") == 0)).tolist()
            idle += [int(frames[place]) - 1 for place in alone if part.first + place not in but]
        for frame in idle[:_MANY]:
            self.frame_goes(frame)

    def _give_back(self, slot: int) -> None:
        part, place = self._by_number[slot >> PLACE_BITS], slot & _PLACE
        part.store.forget(place)
        part.went[place] = 0
        part.give_back(slot)

    def give_back(self, slot: int) -> None:
        """A slot that was taken is not needed after all."""
        self._by_number[slot >> PLACE_BITS].give_back(slot)

    # ---- files

    def add(self, name: str, slots: int, store: Store, *, priority: int | None, key: object) -> Part | None:
        """Give out slots of another file, before those of lower priorities; None: its priority is below all
        that others were given so. Returns None if there are as many files as there can be.
        """
        number = next((number for number in range(1, MOST_PARTS) if number not in self._by_number), None)
        if number is None:
            return None
        part = Part(number, name, slots, store, priority=0, key=key)
        self._by_number[number] = part
        self.parts.append(part)
        self.turn_on(part, priority)
        return part

    def turn_on(self, part: Part, priority: int | None) -> None:
        """Give out slots of a file. Its priority is as for `add`."""
        if priority is None:
            self._least -= 1
            priority = self._least
        part.priority, part.on = priority, True
        self._order = sorted(self.parts, key=lambda part: -part.priority)

    def remove(self, part: Part) -> None:
        """Forget a file of a program, none of whose slots is used."""
        assert part is not self.own, "the machine's own stays"
        assert not part.used, f"{part.used} slots are used"
        del self._by_number[part.number]
        self.parts.remove(part)
        self._order.remove(part)
        part.store.file.close()

    def cached_of(self, part: Part) -> int:
        """Frames that are cached for slots of a file."""
        return int(np.count_nonzero(part.column("frames")))

    def is_of(self, slot: int, part: Part) -> bool:
        """Whether a file has that slot."""
        return slot >> PLACE_BITS == part.number

    # ---- what it takes, to be measured

    def kept_for_frames(self) -> int:
        """Bytes of what is kept for frames: those that are cached."""
        return self._slot_of.kept

    def kept_for_slots(self) -> list[Any]:
        """What is kept for slots, beside the bytes of their pages."""
        return [kept for part in self.parts for kept in part.kept]

    # ---- state

    def capture(self) -> dict[str, Any]:
        """All of it as plain data, the bytes included, while the machine's own file is the only one."""
        assert self.parts == [self.own], "files of programs are refused before"
        return {
            "own": self.own.capture(),
            "least": self._least,
            "gone": self._gone,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one."""
        self._least, self._gone = state["least"], state["gone"]
        self.own.restore(state["own"])
        frames = self.own.column("frames")
        places = np.flatnonzero(frames)
        self._slot_of = CachedSlots(self._memory)
        for place in places.tolist():
            self._slot_of.set(int(frames[place]) - 1, place + 1)
        self.cached = places.size
        self.idle = int(np.count_nonzero(self.own.column("users")[places] == 0))

    def close(self) -> None:
        """The machine ends: let go of the host's files."""
        for part in self.parts:
            part.store.file.close()


_MANY = 64  # slots that are freed at once
