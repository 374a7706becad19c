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
from itertools import islice
from typing import Any

from aether_emu.arch.paging import PageTableFormat
from aether_emu.errors import AetherError, OutOfFrames
from aether_emu.mm.counters import Event
from aether_emu.mm.slab.layouts import CACHED
from aether_emu.mm.slab.slabs import Slabs
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
        self.entries: SwapEntries = swap_entries(fmt)
        self.store = store
        self.own = Part(0, OWN_NAME, slots, store, priority=-2, key=None)
        self.own.on = slots > 0
        self.parts = [self.own]  # in the order in which they were added
        self._order = [self.own]  # that in which slots are given out
        self._by_number = {0: self.own}
        self._least = self.own.priority if slots else -1  # the priority that was given out last
        self._users: dict[int, int] = {}
        self._frames: dict[int, int] = {}  # slot -> cached frame, in the order of arrival
        self._cached: dict[int, int] = {}  # frame -> slot
        self._idle: dict[
            int, None
        ] = {}  # cached slots that nothing names, in the order in which they came so
        self.objects: dict[int, int] = {}  # slot -> the kernel's object for it, while it is cached
        self.slabs: Slabs | None = None
        self._gone = 0  # pages that reclaim has taken
        self._gone_at: dict[int, int] = {}  # slot -> how many were before it

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
    def cached(self) -> int:
        """Frames that are cached for a slot."""
        return len(self._frames)

    @property
    def has_room(self) -> bool:
        """Whether another page may find a slot: one that is free, or that the cache gives up."""
        return any(part.on and (part.used < part.slots or bool(self._idle)) for part in self.parts)

    def users(self, slot: int) -> int:
        """How many entries and objects name a slot; 0 for one that nobody knows."""
        return self._users.get(slot, 0)

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
        self._users[slot] = self._users.get(slot, 0) + more
        self._idle.pop(slot, None)

    def unnamed(self, slot: int) -> None:
        """One names it no longer."""
        left = self._users[slot] - 1
        if left:
            self._users[slot] = left
            return
        del self._users[slot]
        if slot in self._frames:
            self._idle[slot] = None
        else:
            self._give_back(slot)

    def is_out(self, entry: int) -> bool:
        """Whether an entry names a slot whose page is not in memory."""
        return self.entries.holds(entry) and self.entries.slot(entry) not in self._frames

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
        self._gone_at[slot] = self._gone

    def load(self, slot: int, into: memoryview) -> None:
        """Bring the bytes of a slot, which stays as it is. Raises SwapLost."""
        into[:] = self._store_of(slot).get(slot & _PLACE)
        self.came_back(slot)

    def look(self, slot: int) -> bytes | None:
        """The bytes of a slot, for who only looks: nothing is counted. None for what is not there."""
        try:
            return self._store_of(slot).look(slot & _PLACE) if slot in self._users else None
        except SwapLost:
            return None

    def came_back(self, slot: int) -> None:
        """The page of a slot is needed again."""
        at = self._gone_at.pop(slot, None)
        if at is not None:
            self._n[Event.REFAULT] += 1
            self._n[Event.REFAULT_SOON] += self._gone - at < self._memory

    # ---- the cache

    def frame_of(self, slot: int) -> int | None:
        """The frame that is cached for a slot."""
        return self._frames.get(slot)

    def slot_of(self, frame: int) -> int | None:
        """The slot that a frame is cached for."""
        return self._cached.get(frame)

    def slot_to_keep(self, frame: int) -> int | None:
        """Likewise, for a frame that may go there again; it is cached no longer for a file that is off."""
        slot = self._cached.get(frame)
        if slot is None or self._by_number[slot >> PLACE_BITS].on:
            return slot
        self.frame_goes(frame)
        return None

    def cache(self, slot: int, frame: int) -> None:
        """From now on the frame shows what the slot has, and nobody may write to it."""
        self._frames[slot], self._cached[frame] = frame, slot
        if slot not in self._users:
            self._idle[slot] = None
        if self.slabs is not None:
            with suppress(OutOfFrames):
                self.objects[slot] = self.slabs.take(CACHED, slot=slot, frame=frame)

    def frame_goes(self, frame: int) -> None:
        """A frame is freed, or will be written to: it is cached no longer."""
        slot = self._cached.pop(frame, None)
        if slot is None:
            return
        del self._frames[slot]
        self._idle.pop(slot, None)
        if self.slabs is not None and slot in self.objects:
            self.slabs.put(CACHED, self.objects.pop(slot))
        if slot not in self._users:
            self._give_back(slot)

    def frames_go(self, frames: Iterable[int]) -> None:
        """`frame_goes`, of many."""
        if self._cached:
            for frame in frames:
                self.frame_goes(frame)

    def forget_cached(self, part: Part) -> None:
        """No frame is cached any more for a slot of a file."""
        for frame, slot in list(self._cached.items()):
            if self.is_of(slot, part):
                self.frame_goes(frame)

    def _free_cached(self, but: Container[int]) -> None:
        """Give up slots that only the cache has: their frames are as good without."""
        for slot in list(islice((slot for slot in self._idle if slot not in but), _MANY)):
            self.frame_goes(self._frames[slot])

    def _give_back(self, slot: int) -> None:
        self._store_of(slot).forget(slot & _PLACE)
        self._gone_at.pop(slot, None)
        self.give_back(slot)

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
        return sum(slot >> PLACE_BITS == part.number for slot in self._frames)

    def is_of(self, slot: int, part: Part) -> bool:
        """Whether a file has that slot."""
        return slot >> PLACE_BITS == part.number

    # ---- what it takes, to be measured

    def kept_for_frames(self) -> list[Any]:
        """What is kept for frames: those that are cached."""
        return [self._frames, self._cached, self._idle]

    def kept_for_slots(self) -> list[Any]:
        """What is kept for slots, beside the bytes of their pages."""
        return [self._users, *(part.free for part in self.parts), self._gone_at]

    # ---- state

    def capture(self) -> dict[str, Any]:
        """All of it as plain data, the bytes included, while the machine's own file is the only one."""
        assert self.parts == [self.own], "files of programs are refused before"
        return {
            "own": self.own.capture(),
            "least": self._least,
            "users": dict(self._users),
            "frames": dict(self._frames),
            "idle": list(self._idle),
            "objects": dict(self.objects),
            "gone": (self._gone, dict(self._gone_at)),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one."""
        self._users, self._frames = dict(state["users"]), dict(state["frames"])
        self._cached = {frame: slot for slot, frame in self._frames.items()}
        self._idle = dict.fromkeys(state["idle"])
        self.objects = dict(state["objects"])
        self._least = state["least"]
        self._gone, gone_at = state["gone"]
        self._gone_at = dict(gone_at)
        self.own.restore(state["own"])

    def close(self) -> None:
        """The machine ends: let go of the host's files."""
        for part in self.parts:
            part.store.file.close()


_MANY = 64  # slots that are freed at once
