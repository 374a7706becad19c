"""The reduction on small models: whatever their tasks do, no final state is lost, and fewer runs are made."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from aether_emu.explore.reduction import Enumeration, Touched
from aether_emu.explore.stepping import Abandoned, Event, Unit

Operation = tuple[str, int]
"""What is done with a word: "load", "store", "add" (both); "lock", "unlock": calls; "await": a load when the
word is not 0, and none before; "end": the whole process."""


@dataclass
class _Model:
    """Tasks by number, and what they share."""

    programs: dict[int, list[Operation]]
    words: dict[int, int] = field(default_factory=dict)
    at: dict[int, int] = field(default_factory=dict)
    loaded: dict[int, int] = field(default_factory=dict)
    over: bool = False

    def ready(self) -> list[int]:
        return [task for task in sorted(self.programs) if self._can(task)]

    def _can(self, task: int) -> bool:
        at = self.at.get(task, 0)
        if self.over or at == len(self.programs[task]):
            return False
        what, word = self.programs[task][at]
        if what == "lock":
            return not self.words.get(word)
        return bool(self.words.get(word)) if what == "await" else True

    def step(self, task: int, event: Event) -> None:
        what, word = self.programs[task][self.at.get(task, 0)]
        self.at[task] = self.at.get(task, 0) + 1
        unit: Unit = (1, 0, word)
        if what in ("load", "add", "await"):
            event.reads.add(unit)
            self.loaded[task] = self.loaded.get(task, 0) * 3 + self.words.get(word, 0)
        if what in ("store", "add"):
            event.writes.add(unit)
            self.words[word] = self.loaded.get(task, 0) + task
        if what in ("lock", "unlock"):
            event.calls = True
            self.words[word] = int(what == "lock")
        if what == "end":
            event.ends = self.over = True


def _run(programs: dict[int, list[Operation]], choose: Enumeration) -> object:
    """One run as the scheduler makes it: what it ends in, or None when it was left."""
    model, events = _Model(programs), list[Event]()
    enabled: set[int] = set()
    enabled_by: dict[int, int] = {}
    while ready := model.ready():
        for task in ready:
            if task not in enabled and events:
                enabled_by[task] = len(events) - 1
        enabled = set(ready)
        try:
            task = choose(ready, events)
        except Abandoned:
            return None
        event = Event(task, enabled_by=enabled_by.pop(task, None))
        model.step(task, event)
        events.append(event)
    return (
        tuple(sorted(model.words.items())),
        tuple(sorted(model.loaded.items())),
        tuple(sorted(model.at.items())),
    )


def _finals(programs: dict[int, list[Operation]], *, reduced: bool) -> tuple[set[object], int]:
    choose, finals, more = Enumeration(reduced=reduced), set[object](), True
    while more:
        final = _run(programs, choose)
        if final is not None:
            finals.add(final)
        more = choose.next_run(abandoned=final is None)
    return finals, choose.runs + choose.abandoned


def _program(chance: random.Random, most: int) -> list[Operation]:
    operations: list[Operation] = []
    for _ in range(chance.randint(1, most)):
        word = chance.randrange(3)
        what = chance.choice(["load", "load", "store", "store", "add", "lock", "await"])
        if what == "lock":
            inner = (chance.choice(["load", "store", "add"]), chance.randrange(3))
            operations += [("lock", 9), inner, ("unlock", 9)]
        else:
            operations.append((what, word))
    if chance.random() < 0.15:
        operations.append(("end", 0))
    return operations


@pytest.mark.parametrize(("tasks", "most", "count"), [(2, 4, 100), (3, 2, 40)])
def test_no_final_state_is_lost(tasks: int, most: int, count: int) -> None:
    chance, all_runs, reduced_runs = random.Random(tasks), 0, 0
    for _ in range(count):
        programs = {task: _program(chance, most) for task in range(1, tasks + 1)}
        everything, runs = _finals(programs, reduced=False)
        found, fewer = _finals(programs, reduced=True)
        assert found == everything, programs
        all_runs += runs
        reduced_runs += fewer
    assert reduced_runs * 3 < all_runs


def test_independent_tasks_need_one_run() -> None:
    programs: dict[int, list[Operation]] = {task: [("store", task)] * 3 for task in (1, 2, 3)}
    assert _finals(programs, reduced=True)[1] == 1
    assert _finals(programs, reduced=False)[1] == 1680  # 9! / (3! 3! 3!)


def test_the_steps_that_one_depends_on_are_found_as_a_comparison_of_each_finds_them() -> None:
    chance = random.Random(1)

    def units() -> set[Unit]:
        return {(1, 0, chance.randrange(6)) for _ in range(chance.choice([0, 0, 1, 2]))}

    for _ in range(100):
        touched, events = Touched(), list[Event]()
        for at in range(30):
            rare = (chance.random() < 0.1 for _ in range(3))
            event = Event(chance.randrange(3), units(), units(), *rare)
            expected = [
                earlier
                for earlier in range(at - 1, -1, -1)
                if events[earlier].task != event.task and event.depends(events[earlier])
            ]
            assert touched.dependent(event, at) == expected
            events.append(event)


def test_a_long_run_is_not_compared_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, depends = 0, Event.depends

    def counted(self: Event, other: Event) -> bool:
        nonlocal compared
        compared += 1
        return depends(self, other)

    monkeypatch.setattr(Event, "depends", counted)
    programs: dict[int, list[Operation]] = {task: [("store", task)] * 500 for task in (1, 2)}
    assert _finals(programs, reduced=True)[1] == 1
    assert compared < 5000
