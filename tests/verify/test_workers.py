"""Tasks in processes of their own: the same outcomes, and nobody left whatever happens."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from aether_emu.errors import EngineError
from aether_emu.verify.cases import suites
from aether_emu.verify.cases.suites import Task
from aether_emu.verify.cases.workers import InTurn, Workers

TASKS = [Task("x86_64-4level", suite, 300, 0) for suite in ("permissions", "entries")]
ARM = Task("arm64-64K-42bit", "tlb", 300, 0, "write removed")
ALARMS = 25
ENDLESS = Task("x86_64-4level", "permissions", None, 0)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Crew:
    """The process IDs of workers, and what is done when one starts."""

    def __init__(self, then: Callable[[int], None] = lambda _pid: None) -> None:
        self.pids: list[int] = []
        self.ended: list[int] = []
        self._then = then

    def started(self, pid: int) -> None:
        self.pids.append(pid)
        self._then(pid)


def test_outcomes_are_those_of_this_process_in_the_order_of_the_tasks() -> None:
    crew, heard = Crew(), []
    apart = list(Workers(TASKS, 2, crew.started, crew.ended.append).perform())
    here = list(InTurn(TASKS, lambda task, cases: heard.append((task, cases))).perform())
    assert [outcome.task for outcome in apart] == TASKS
    assert [outcome.tally for outcome in apart] == [outcome.tally for outcome in here]
    assert {task for task, _ in heard} == set(TASKS)
    assert len(crew.pids) == 2
    assert sorted(crew.ended) == sorted(crew.pids)
    assert not any(map(alive, crew.pids))


def test_whoever_leaves_early_leaves_no_worker_and_knows_how_far_they_came() -> None:
    crew = Crew()
    workers = Workers([TASKS[0], ENDLESS], 2, crew.started, crew.ended.append)
    for outcome in workers.perform():
        assert outcome.task == TASKS[0]
        break  # as an exception does
    assert list(workers.outcomes) == [TASKS[0]]
    assert list(workers.under_way) == [ENDLESS]
    assert not any(map(alive, crew.pids))


def test_a_worker_that_dies_is_an_error_that_names_its_task() -> None:
    crew = Crew(lambda pid: os.kill(pid, signal.SIGKILL))
    workers = Workers(TASKS[:1], 1, crew.started, crew.ended.append)
    with pytest.raises(EngineError, match="the worker for x86_64-4level permissions ended with status -9"):
        list(workers.perform())


def test_a_worker_that_is_dead_before_it_is_given_a_task_is_the_same_error() -> None:
    def kill(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    workers = Workers(TASKS[:1], 1, kill)
    with pytest.raises(EngineError, match="the worker for x86_64-4level permissions ended with status -9"):
        list(workers.perform())


def test_an_error_of_a_task_is_raised_here() -> None:
    wrong = Task("x86_64-4level", "permissions", 300, -1)  # no seed of numpy's
    with pytest.raises(EngineError, match="ended with status 1"):
        list(Workers([wrong], 1).perform())


def test_ctrl_c_of_the_terminal_does_not_reach_a_worker() -> None:
    groups: list[int] = []
    list(Workers(TASKS[:1], 1, lambda pid: groups.append(os.getpgid(pid))).perform())
    assert groups[0] != os.getpgrp()


@pytest.mark.parametrize(
    "task", [*TASKS, Task("x86_64-4level", "encodings", 300, 0), ARM], ids=lambda task: task.suite
)
def test_no_exception_of_a_signal_handler_is_lost(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """An alarm at any moment of a suite: each is raised, also when it comes in an engine's callback.

    Python itself loses what is raised in a finalizer, such as that of an engine's saved state.
    """
    lost: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)

    class Alarm(Exception):
        pass

    rang: list[int] = []

    def ring(number: int, _frame: object) -> None:
        rang.append(number)
        raise Alarm

    before, caught = signal.signal(signal.SIGALRM, ring), 0
    try:
        for moment in range(1, ALARMS + 1):
            outcome = suites.nothing_yet(task)
            try:
                signal.setitimer(signal.ITIMER_REAL, moment / 500)
                while len(rang) < moment:
                    suites.perform(task, into=outcome)
            except Alarm:
                caught += 1
            tally = outcome.tally
            assert tally.cases == tally.cells.total()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert {getattr(one.object, "__name__", "") for one in lost} <= {"__del__"}
    assert caught + len(lost) == len(rang) == ALARMS
