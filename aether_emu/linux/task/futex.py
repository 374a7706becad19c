"""Futexes: the wait queue of each word of user memory that somebody waits at (futex(2)).

A private futex is named by its address space and address; a shared one by what is mapped there, so that two
processes, or two addresses of one, mean the same word:

    private                                   (address space, address)
    shared, in memory of one process alone    (address space, address), but another futex than the private one
    shared, in a shared mapping               (object, offset in bytes)
"""

from __future__ import annotations

import errno
import weakref
from collections.abc import Sequence
from typing import Any

from aether_emu.linux.task.wait import Restart, Wait
from aether_emu.mm.space import AddressSpace
from aether_emu.waiting import WaitQueue

Key = tuple[int, int, int]
_PRIVATE, _IN_OBJECT, _OF_SPACE = range(3)
OWNER, OWNER_DIED, WAITERS = 0x3FFF_FFFF, 0x4000_0000, 0x8000_0000
"""What the word of a lock says: the owner's thread id, that it died with the lock, that somebody waits."""


class Futexes:
    """The queues by key. A queue lives as long as a wait holds it."""

    def __init__(self) -> None:
        self._queues: weakref.WeakValueDictionary[Key, WaitQueue] = weakref.WeakValueDictionary()
        self._locks: weakref.WeakValueDictionary[Key, WaitQueue] = weakref.WeakValueDictionary()

    def key(self, mm: AddressSpace, address: int, *, private: bool) -> Key:
        """The name of the word at `address`."""
        area = None if private else mm.areas.find(address)
        if area is None or area.backing is None or not area.shared:
            return _PRIVATE if private else _OF_SPACE, mm.number, address
        offset = (area.offset << mm.table.format.page_shift) + address - area.start
        return _IN_OBJECT, area.backing.number, offset

    def queue(self, key: Key) -> WaitQueue:
        """The queue to wait in; keep it as long as the wait lasts."""
        found = self._queues.get(key)
        if found is None:
            found = self._queues[key] = WaitQueue()
        return found

    def lock_queue(self, key: Key) -> WaitQueue:
        """The same for a lock with priority inheritance, which its owner may die with."""
        queue = self._locks[key] = self.queue(key)
        return queue

    def locks(self) -> list[WaitQueue]:
        """The queues of such locks."""
        return [self._locks[key] for key in sorted(self._locks)] if self._locks else []

    def names(self, queues: Sequence[WaitQueue]) -> list[tuple[Key, bool]]:
        """The words that queues belong to, and whether those are locks of `locks`."""
        keys = {id(queue): key for key, queue in self._queues.items()}
        return [(keys[id(queue)], self._locks.get(keys[id(queue)]) is queue) for queue in queues]

    def named(self, names: Sequence[tuple[Key, bool]]) -> list[WaitQueue]:
        """Their queues."""
        return [self.lock_queue(key) if locks else self.queue(key) for key, locks in names]

    def waiting(self, key: Key) -> WaitQueue | None:
        """The queue to wake; None if nobody waits there."""
        return self._queues.get(key)


class FutexWait(Wait):
    """A wait at one word or several, for a wake that has one of `bits`.

    `addresses` are the words' in the waiter's memory. Whoever wakes it says by which of `queues`: `progress`
    is (bits, index). `locks` is the word of a lock (priority inheritance) that the waiter is to own: it waits
    for that, or until somebody moves it there.
    """

    def __init__(
        self,
        queues: Sequence[WaitQueue],
        addresses: Sequence[int],
        deadline: int | None,
        bits: int,
        *,
        index: int = 0,
        locks: Key | None = None,
        restart: Restart | None = None,
    ) -> None:
        self.addresses = tuple(addresses)
        words = ", ".join(hex(address) for address in addresses)
        what = f"{'a futex' if locks is None else 'a lock'} at {words}"
        if restart is None:
            restart = Restart.BY_ACTION if deadline is None else Restart.WITHOUT_HANDLER
        super().__init__(queues, what, deadline=deadline, progress=(bits, index), restart=restart)
        self.locks = locks

    def capture(self, futexes: Futexes) -> dict[str, Any]:
        """The wait itself, for the call cannot be made again: the word may have changed since."""
        return {
            "kind": "futex",
            "words": futexes.names(self.queues),
            "addresses": self.addresses,
            "deadline": self.deadline,
            "progress": self.progress,
            "locks": self.locks,
            "restart": self.restart,
        }

    @classmethod
    def restored(cls, futexes: Futexes, state: dict[str, Any]) -> FutexWait:
        """The captured wait."""
        bits, index = state["progress"]
        queues, addresses = futexes.named(state["words"]), state["addresses"]
        where = {"index": index, "locks": state["locks"], "restart": state["restart"]}
        return cls(queues, addresses, state["deadline"], bits, **where)

    @property
    def bits(self) -> int:
        """What a wake must have one of."""
        return self.progress[0]

    def woken_by(self, queue: WaitQueue) -> None:
        """It is woken by this one of its queues."""
        self.progress = (self.bits, self.queues.index(queue))

    def move(self, source: WaitQueue, target: WaitQueue, address: int) -> None:
        """Wait in `target`, the queue of the word at `address`, from now on, and no longer in `source`."""
        self.addresses = (address,)
        self.what = f"{'a futex' if self.locks is None else 'a lock'} at {address:#x}"
        self.queues = tuple(target if queue is source else queue for queue in self.queues)
        if self.locks is not None:  # it cannot be made anew: the first word has changed
            self.interrupted, self.restart = -errno.EAGAIN, Restart.NEVER
