"""Wait queues: who waits for one thing, and how the one who brings it about tells them.

    waiter:  queue.add(waiter)                       a file's bytes, a futex, a page that is on its way
    bringer: queue.wake()  --> waiter.wake()         in the order in which they came

A waiter stays in a queue until it is removed. What being woken means is the waiter's business: a task
becomes runnable and leaves its queues, an epoll set notes an edge and stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol


class Waiter(Protocol):
    """Whoever stands in a queue. Told apart by identity."""

    def wake(self) -> None:
        """What was waited for may have come."""


class OneOfMany(Protocol):
    """Who is woken only if nobody like it before it in the queue has taken the wake."""

    def wake_one(self) -> bool:
        """What was waited for may have come. Whether that woke somebody."""


class WaitQueue:
    """The waiters for one thing, the longest-waiting first. Of those `for_one` each wake reaches one."""

    def __init__(self) -> None:
        self._waiters: dict[Waiter, None] = {}
        self.for_one: dict[OneOfMany, None] | None = None
        self.for_programs = False
        """Of a page that is on its way: only a program's own access waits, a system call gets EFAULT."""

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, waiter: Waiter) -> None:
        """Stand in the queue. Who stands there already keeps the place."""
        self._waiters.setdefault(waiter)

    def remove(self, waiter: Waiter) -> None:
        """Leave the queue. Nothing happens to who is not in it."""
        self._waiters.pop(waiter, None)

    def __iter__(self) -> Iterator[Waiter]:
        """Who stands in it now, the longest-waiting first; they may leave on the way."""
        return iter(list(self._waiters))

    def stand_at(self, waiter: Waiter, place: int) -> None:
        """Stand behind so many others, and before the rest."""
        others = [other for other in self._waiters if other is not waiter]
        self._waiters = dict.fromkeys([*others[:place], waiter, *others[place:]])

    def place_of(self, waiter: Waiter) -> int:
        """Behind how many others it stands."""
        return list(self._waiters).index(waiter)

    def wake(self) -> None:
        """Wake them all."""
        for waiter in self:
            waiter.wake()
        if self.for_one:
            for one in list(self.for_one):
                if one.wake_one():
                    break

    def add_one(self, waiter: OneOfMany) -> None:
        """Stand among those of whom each wake reaches one."""
        if self.for_one is None:
            self.for_one = {}
        self.for_one[waiter] = None

    def remove_one(self, waiter: OneOfMany) -> None:
        """Leave them."""
        if self.for_one is not None:
            self.for_one.pop(waiter, None)


class HostQueue(WaitQueue):
    """A queue for what only the host brings, which tells nobody: the scheduler asks `arrived`, and wakes it.

    A stream wakes it after each read too, so that an edge-triggered epoll set looks again.
    """

    def __init__(self, arrived: Callable[[], bool]) -> None:
        super().__init__()
        self.arrived = arrived
