"""Wait queues: who is woken, in which order, and how many."""

from __future__ import annotations

from aether_emu.waiting import HostQueue, Waiter, WaitQueue


class Named:
    """Writes its name down when it is woken, and leaves the queue or stays."""

    def __init__(self, name: str, log: list[str], leaves: WaitQueue | None = None) -> None:
        self.name, self._log, self._leaves = name, log, leaves

    def wake(self) -> None:
        self._log.append(self.name)
        if self._leaves is not None:
            self._leaves.remove(self)


def test_the_longest_waiting_is_woken_first_and_no_more_than_asked() -> None:
    queue, log = WaitQueue(), list[str]()
    waiters = [Named(name, log, queue) for name in "abcd"]
    for waiter in waiters:
        queue.add(waiter)
    queue.add(waiters[0])  # who stands there already keeps the place
    assert queue.wake(0) == 0
    assert queue.wake(2) == 2
    assert log == ["a", "b"]
    assert queue.wake() == 2 and len(queue) == 0
    assert log == ["a", "b", "c", "d"]
    assert queue.wake() == 0


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
    assert queue.wake() == 0


def test_only_the_chosen_are_woken_and_counted() -> None:
    queue, log = WaitQueue(), list[str]()
    for name in "abc":
        queue.add(Named(name, log, queue))

    def not_a(waiter: Waiter) -> bool:
        return isinstance(waiter, Named) and waiter.name != "a"

    assert queue.wake(1, not_a) == 1
    assert log == ["b"] and len(queue) == 2


def test_a_host_queue_says_whether_the_host_has_brought_something() -> None:
    brought = [False]
    queue = HostQueue(lambda: brought[0])
    assert not queue.arrived()
    brought[0] = True
    assert queue.arrived()
