"""Where tasks go that can run, on several CPUs: the lines alone, with tasks made by hand."""

from __future__ import annotations

from dataclasses import dataclass

from aether_emu.linux.task.lines import Lines
from aether_emu.linux.task.scheduling import ORDINARY, Scheduling


@dataclass(eq=False)
class _Task:
    affinity: int = 0b1111
    home: int = 0
    ready_at: int = 0
    in_line: bool = False
    scheduling: Scheduling = ORDINARY


def _lines(now: int = 100) -> Lines[_Task, object]:
    return Lines(4, lambda: now)


def test_a_task_goes_where_it_was_or_where_nobody_is() -> None:
    lines = _lines()
    first, second, third = _Task(home=2), _Task(home=2), _Task(home=2, affinity=0b0100)
    for task in (first, second, third):
        lines.add(task)
    assert [first.home, second.home, third.home] == [2, 3, 2]
    assert lines.migrations == 1


def test_who_works_is_busy() -> None:
    lines = _lines()
    lines.working = True
    task = _Task()
    lines.add(task)
    assert task.home == 1


def test_an_idle_cpu_begins_no_earlier_than_what_woke_its_task() -> None:
    lines = _lines()
    lines.times = [100, 50, 0, 0]
    lines.add(_Task(home=1))
    assert lines.times == [100, 100, 0, 0]


def test_the_cpu_that_has_come_least_far_is_next() -> None:
    lines = _lines(0)
    assert lines.earliest() is None
    lines.add(_Task(home=1))
    lines.add(_Task(home=3))
    lines.times = [0, 7, 0, 5]
    assert lines.earliest() == 3


def test_idle_cpus_take_over_whom_they_may_run() -> None:
    lines = _lines()
    for affinity in (0b0001, 0b1001, 0b0001):
        lines.join(_Task(affinity=affinity), 0)
    lines.balance()
    assert [len(line) for line in lines.lines] == [2, 0, 0, 1]


def test_who_stands_alone_stays() -> None:
    lines = _lines()
    lines.join(_Task(), 0)
    lines.balance()
    assert [len(line) for line in lines.lines] == [1, 0, 0, 0]
