"""Futexes: the wait queue of each word of user memory that somebody waits at (futex(2)).

A private futex is named by its address space and address; a shared one by what is mapped there, so that two
processes, or two addresses of one, mean the same word:

    private, or memory of one process alone   (address space, address)
    in a shared mapping                       (object, offset in bytes)
"""

from __future__ import annotations

import weakref

from aether_emu.mm.space import AddressSpace
from aether_emu.waiting import WaitQueue

Key = tuple[int, int, int]


class Futexes:
    """The queues by key. A queue lives as long as a wait holds it."""

    def __init__(self) -> None:
        self._queues: weakref.WeakValueDictionary[Key, WaitQueue] = weakref.WeakValueDictionary()

    def key(self, mm: AddressSpace, address: int, *, private: bool) -> Key:
        """The name of the word at `address`."""
        area = None if private else mm.areas.find(address)
        if area is None or area.backing is None or not area.shared:
            return 0, mm.number, address
        offset = (area.offset << mm.table.format.page_shift) + address - area.start
        return 1, area.backing.number, offset

    def queue(self, key: Key) -> WaitQueue:
        """The queue to wait in; keep it as long as the wait lasts."""
        found = self._queues.get(key)
        if found is None:
            found = self._queues[key] = WaitQueue()
        return found

    def waiting(self, key: Key) -> WaitQueue | None:
        """The queue to wake; None if nobody waits there."""
        return self._queues.get(key)
