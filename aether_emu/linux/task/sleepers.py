"""Those whom some time wakes, the earliest first; among equals who slept first."""

from __future__ import annotations

from collections.abc import Container, Sized
from heapq import heapify, heappop, heappush
from typing import Protocol

from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import Wait


class _Living(Container[Task], Sized, Protocol):
    """The tasks that have not ended."""


class Sleepers:
    """Tasks of `living` with the wait that ends for each at its deadline, in virtual ns.

    `heap` has more, perhaps: some have woken meanwhile. It is empty where nobody sleeps.
    """

    def __init__(self, living: _Living) -> None:
        self._living = living
        self.heap: list[tuple[int, int, Task, Wait]] = []
        self._slept = 0  # how many there were: who slept earlier is earlier among equals

    def add(self, task: Task, wait: Wait, deadline: int) -> None:
        """It sleeps until then."""
        self._slept += 1
        heappush(self.heap, (deadline, self._slept, task, wait))
        if len(self.heap) > 2 * len(self._living) + 64:
            self.heap = [each for each in self.heap if self._sleeps(*each[2:])]
            heapify(self.heap)

    def first(self) -> int | None:
        """When the earliest wakes."""
        heap = self.heap
        while heap and not self._sleeps(*heap[0][2:]):
            heappop(heap)
        return heap[0][0] if heap else None

    def take(self) -> Task:
        """The one that `first` told of, who sleeps no more."""
        return heappop(self.heap)[2]

    def in_order(self) -> list[Task]:
        """All, as they wake."""
        return [
            task for _at, _number, task, wait in sorted(self.heap, key=_turn_of) if self._sleeps(task, wait)
        ]

    def _sleeps(self, task: Task, wait: Wait) -> bool:
        return task.wait is wait and not wait.woken and task in self._living


def _turn_of(sleeper: tuple[int, int, Task, Wait]) -> tuple[int, int]:
    return sleeper[:2]
