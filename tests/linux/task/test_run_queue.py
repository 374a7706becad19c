"""The line of tasks that can run, beside a plain one that is sorted before each pick."""

from __future__ import annotations

import random
from collections import deque
from itertools import count

import pytest

from aether_emu.linux.task.run_queue import RunQueue
from aether_emu.linux.task.scheduling import FIFO, NICE_0_WEIGHT, ORDINARY, Scheduling


class Runner:
    """A task that counts how often it is looked at."""

    def __init__(self, number: int) -> None:
        self.number, self.in_line, self.looks, self.how = number, False, 0, ORDINARY

    @property
    def scheduling(self) -> Scheduling:
        self.looks += 1
        return self.how

    def __repr__(self) -> str:
        return f"{self.number}:{self.how.priority}"


class Plain:
    """What the line does, said in the plainest way."""

    def __init__(self) -> None:
        self.line: deque[Runner] = deque()

    def take(self) -> Runner | None:
        if any(runner.how.priority for runner in RUNNERS):
            self.line = deque(sorted(self.line, key=lambda runner: -runner.how.priority))
        return self.line.popleft() if self.line else None

    @property
    def heaviest(self) -> int:
        return max((min(runner.how.weight, NICE_0_WEIGHT) for runner in self.line), default=0)


RUNNERS: list[Runner] = []


def change(queue: RunQueue[Runner, str], runner: Runner, how: Scheduling) -> None:
    before, runner.how = runner.how, how
    queue.reschedule(runner, before)


@pytest.mark.parametrize("seed", range(40))
def test_the_line_is_that_of_a_stable_sort_before_each_pick(seed: int) -> None:
    chance, queue, plain = random.Random(seed), RunQueue[Runner, str](), Plain()
    RUNNERS[:] = [Runner(number) for number in range(9)]
    priorities = [0, 0, 10, 20] if seed % 4 else [0]
    for _step in range(600):
        runner, action = chance.choice(RUNNERS), chance.randrange(10)
        if action < 3 and not runner.in_line:
            queue.add(runner)
            plain.line.append(runner)
        elif action == 3 and not runner.in_line:
            queue.put_first(runner)
            plain.line.appendleft(runner)
        elif action == 4 and runner.in_line and chance.random() < 0.2:
            queue.remove(runner)
            plain.line.remove(runner)
        elif action < 7:
            priority = chance.choice(priorities)
            how = ORDINARY if chance.random() < 0.3 else Scheduling(nice=chance.randrange(-20, 20))
            change(queue, runner, Scheduling(FIFO, priority) if priority else how)
        elif action > 7:
            assert queue.take() is plain.take()
        assert list(queue) == list(plain.line)
        assert queue.first is (plain.line[0] if plain.line else None)
        assert (len(queue), queue.heaviest) == (len(plain.line), plain.heaviest)
        assert all(runner.in_line == (runner in plain.line) for runner in RUNNERS)
        assert queue.real_time == sum(runner.how.priority > 0 for runner in RUNNERS)


@pytest.mark.parametrize("priority", [0, 50])
def test_a_pick_looks_at_nobody_else_in_a_long_line(priority: int) -> None:
    queue, numbers = RunQueue[Runner, str](), count()
    for _each in range(1000):
        runner = Runner(next(numbers))
        change(queue, runner, Scheduling(FIFO, priority) if priority else Scheduling(nice=5))
        queue.add(runner)
    queue.take()
    everybody = list(queue)
    before = sum(runner.looks for runner in everybody)
    taken = queue.take()
    assert taken is not None and queue.heaviest > 0
    queue.add(taken)
    assert sum(runner.looks for runner in everybody) - before < 10
