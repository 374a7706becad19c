"""Wait queues: who is woken, in which order, and how many."""

from __future__ import annotations

from aether_emu.waiting import HostQueue, WaitQueue


class Named:
    """Writes its name down when it is woken, and leaves the queue or stays."""

    def __init__(self, name: str, log: list[str], leaves: WaitQueue | None = None) -> None:
        self.name, self._log, self._leaves = name, log, leaves

    def wake(self) -> None:
        self._log.append(self.name)
        if self._leaves is not None:
            self._leaves.remove(self)


def test_the_longest_waiting_is_woken_first() -> None:
    queue, log = WaitQueue(), list[str]()
    waiters = [Named(name, log, queue) for name in "abcd"]
    for waiter in waiters:
        queue.add(waiter)
    queue.add(waiters[0])  # who stands there already keeps the place
    assert list(queue) == waiters
    queue.wake()
    assert log == ["a", "b", "c", "d"] and len(queue) == 0
    queue.wake()
    assert log == ["a", "b", "c", "d"]


def test_who_stays_is_woken_each_time() -> None:
    queue, log = WaitQueue(), list[str]()
    ear = Named("ear", log)
    queue.add(ear)
    queue.add(Named("task", log, queue))
    queue.wake()
    queue.wake()
    assert log == ["ear", "task", "ear"]
    queue.remove(ear)
    queue.remove(ear)
    queue.wake()
    assert log == ["ear", "task", "ear"]


def test_a_host_queue_says_whether_the_host_has_brought_something() -> None:
    brought = [False]
    queue = HostQueue(lambda: brought[0])
    assert not queue.arrived()
    brought[0] = True
    assert queue.arrived()
