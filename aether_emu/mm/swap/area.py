"""The swap area: which slots are used, by how many entries, and which frames still hold what a slot has.

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

from aether_emu.arch.paging import PageTableFormat
from aether_emu.errors import AetherError, OutOfFrames
from aether_emu.mm.counters import Event
from aether_emu.mm.slab.layouts import CACHED
from aether_emu.mm.slab.slabs import Slabs
from aether_emu.mm.swap.entries import SwapEntries, swap_entries
from aether_emu.mm.swap.file import SwapLost
from aether_emu.mm.swap.store import Store
from aether_emu.mm.tables.tree import Found


class SwapFull(AetherError):
    """There is no slot for another page: all are used, the area is off, or the host takes no more."""


class SlotLeak(AetherError):
    """Slots of the swap area were still in use after everything was given back."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        super().__init__(f"{slots} slot(s) of the swap area leaked")


class SwapArea:
    """`slots` slots, whose bytes a store keeps. `name` is what /proc/swaps shows; `on`: slots are given out.

    `memory` is how many frames the machine has: what comes back before as many others went is thrashing.
    """

    name = "/swapfile"

    def __init__(self, fmt: PageTableFormat, slots: int, store: Store, n: list[int], memory: int) -> None:
        self.slots, self.store, self._n, self._memory = slots, store, n, memory
        self.entries: SwapEntries = swap_entries(fmt)
        self.on = True
        self._users: dict[int, int] = {}
        self._frames: dict[int, int] = {}  # slot -> cached frame, in the order of arrival
        self._cached: dict[int, int] = {}  # frame -> slot
        self.objects: dict[int, int] = {}  # slot -> the kernel's object for it, while it is cached
        self.slabs: Slabs | None = None
        self._free: list[int] = []  # given back, the last one first
        self._unused = 0  # from here on no slot was ever used
        self._gone = 0  # pages that reclaim has taken
        self._gone_at: dict[int, int] = {}  # slot -> how many were before it

    # ---- accounts

    @property
    def used(self) -> int:
        """Slots in use."""
        return self._unused - len(self._free)

    @property
    def cached(self) -> int:
        """Frames that are cached for a slot."""
        return len(self._frames)

    @property
    def has_room(self) -> bool:
        """Whether another page may find a slot: one that is free, or that the cache gives up."""
        return self.on and (bool(self._free) or self._unused < self.slots or bool(self._frames))

    def users(self, slot: int) -> int:
        """How many entries and objects name a slot; 0 for one that nobody knows."""
        return self._users.get(slot, 0)

    # ---- slots

    def take(self, chosen: Container[int] = ()) -> int:
        """A free slot, which its taker has `named` or gives back. Raises SwapFull.

        Where none is free the cache gives up some of its own, but none that is `chosen`.
        """
        if not self.on or (self.store.refused and not self.store.has_room()):
            raise SwapFull(self.store.refused or "the swap area is off")
        if not self._free and self._unused >= self.slots:
            self._free_cached(chosen)
        if self._free:
            return self._free.pop()
        if self._unused >= self.slots:
            raise SwapFull("all slots are used")
        self._unused += 1
        return self._unused - 1

    def named(self, slot: int, more: int = 1) -> None:
        """So many more entries or objects name a slot."""
        self._users[slot] = self._users.get(slot, 0) + more

    def unnamed(self, slot: int) -> None:
        """One names it no longer."""
        left = self._users[slot] - 1
        if left:
            self._users[slot] = left
            return
        del self._users[slot]
        if slot not in self._frames:
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
        self.store.put(slot, page)

    def went(self, slot: int) -> None:
        """Reclaim has taken the page of a slot."""
        self._gone += 1
        self._gone_at[slot] = self._gone

    def load(self, slot: int, into: memoryview) -> None:
        """Bring the bytes of a slot, which stays as it is. Raises SwapLost."""
        into[:] = self.store.get(slot)
        self.came_back(slot)

    def look(self, slot: int) -> bytes | None:
        """The bytes of a slot, for who only looks: nothing is counted. None for what is not there."""
        try:
            return self.store.look(slot) if slot in self._users else None
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

    def cache(self, slot: int, frame: int) -> None:
        """From now on the frame shows what the slot has, and nobody may write to it."""
        self._frames[slot], self._cached[frame] = frame, slot
        if self.slabs is not None:
            with suppress(OutOfFrames):
                self.objects[slot] = self.slabs.take(CACHED, slot=slot, frame=frame)

    def frame_goes(self, frame: int) -> None:
        """A frame is freed, or will be written to: it is cached no longer."""
        slot = self._cached.pop(frame, None)
        if slot is None:
            return
        del self._frames[slot]
        if self.slabs is not None and slot in self.objects:
            self.slabs.put(CACHED, self.objects.pop(slot))
        if slot not in self._users:
            self._give_back(slot)

    def frames_go(self, frames: Iterable[int]) -> None:
        """`frame_goes`, of many."""
        if self._cached:
            for frame in frames:
                self.frame_goes(frame)

    def forget_cached(self) -> None:
        """No frame is cached any more."""
        for frame in list(self._cached):
            self.frame_goes(frame)

    def _free_cached(self, but: Container[int]) -> None:
        """Give up slots that only the cache has: their frames are as good without."""
        idle = [(slot, frame) for slot, frame in self._frames.items() if slot not in self._users]
        for frame in [frame for slot, frame in idle if slot not in but]:
            self.frame_goes(frame)
            if len(self._free) >= _MANY:
                return

    def _give_back(self, slot: int) -> None:
        self.store.forget(slot)
        self._gone_at.pop(slot, None)
        self._free.append(slot)

    def give_back(self, slot: int) -> None:
        """A slot that was taken is not needed after all."""
        self._free.append(slot)

    # ---- what it takes, to be measured

    def kept_for_frames(self) -> list[Any]:
        """What is kept for frames: those that are cached."""
        return [self._frames, self._cached]

    def kept_for_slots(self) -> list[Any]:
        """What is kept for slots, beside the bytes of their pages."""
        return [self._users, self._free, self._gone_at]

    # ---- state

    def capture(self) -> dict[str, Any]:
        """All of it as plain data, the bytes included."""
        return {
            "on": self.on,
            "users": dict(self._users),
            "frames": dict(self._frames),
            "objects": dict(self.objects),
            "free": list(self._free),
            "unused": self._unused,
            "gone": (self._gone, dict(self._gone_at)),
            "store": self.store.capture(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one."""
        self.on, self._users, self._frames = state["on"], dict(state["users"]), dict(state["frames"])
        self._cached = {frame: slot for slot, frame in self._frames.items()}
        self.objects = dict(state["objects"])
        self._free, self._unused = list(state["free"]), state["unused"]
        self._gone, gone_at = state["gone"]
        self._gone_at = dict(gone_at)
        self.store.restore(state["store"])

    def close(self) -> None:
        """The machine ends: let go of the host's file."""
        self.store.file.close()


_MANY = 64  # slots that are freed at once
