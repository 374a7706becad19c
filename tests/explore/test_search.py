"""Exploring by chance: a race is found, shrunk to one or two switches, and shows again in their replay."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from aether_emu.explore.guides import Short, few
from aether_emu.explore.schedule import Choice, Departure, Schedule, Switch
from aether_emu.explore.search import Budget, Findings, Patience, Search
from aether_emu.explore.shrink import shrink
from aether_emu.explore.trial import Job, Plan, perform
from aether_emu.explore.workers import Crew
from aether_emu.linux.task.scheduler import LONGEST_TURN
from aether_emu.random import Stream
from tests.explore.jobs import Here, job, orders, race
from tests.guests.running import ISAS
from tests.small_programs import written


def _searched(of: Job, count: int = 200, budget: Budget | None = None, most: int = 0) -> Findings:
    patience = Patience(most=most)
    return Search(Here(of), count, budget or Budget(), same_output=True, patience=patience).run()


# Elsewhere it takes more schedules.
@pytest.mark.parametrize(
    ("isa", "cpus"),
    [("x86_64", 1), ("arm64", 1), ("arm64", 2), pytest.param("x86_64", 2, marks=pytest.mark.slow)],
)
def test_a_lost_update_is_found_shrunk_and_replayed(isa: str, cpus: int) -> None:
    of = race(isa, cpus)
    known = _searched(of)
    assert known.calm is not None and known.last is not None and known.raw is not None
    assert known.calm.stdout.begins == b"120 of 120\n"
    assert known.finding is not None and known.finding[0] == "output"
    assert known.complete
    assert 1 <= len(known.raw.switches) <= 2
    again = perform(of, Plan(schedule=known.raw))
    assert (again.stdout, again.time_ns, again.order) == (
        known.last.stdout,
        known.last.time_ns,
        known.last.order,
    )
    for number in range(len(known.raw.departures)):
        fewer = known.raw.departures[:number] + known.raw.departures[number + 1 :]
        assert perform(of, Plan(schedule=Schedule(fewer))).stdout == known.calm.stdout


@pytest.mark.slow
def test_the_same_is_found_by_several_processes() -> None:
    crew = Crew(race("arm64"), 2)
    try:
        found = Search(crew, 200, Budget(), same_output=True).run()
    finally:
        crew.close()
    alone = _searched(race("arm64"))
    assert (found.first, found.raw, found.finding) == (alone.first, alone.raw, alone.finding)


def test_a_budget_ends_it() -> None:
    known = _searched(race("x86_64", 2), budget=Budget(runs=3))
    assert known.trials == 3 and known.out_of_budget and known.finding is None


def test_a_crash_under_the_calm_schedule_is_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "x86_64", "xor eax, eax; mov rax, [rax]")
    known = _searched(job(path, "x86_64"))
    assert known.trials == 0 and known.finding is not None and known.finding[0] == f"signal {signal.SIGSEGV}"


def test_a_deadlock_is_a_finding(tmp_path: Path) -> None:
    path = written(tmp_path, "x86_64", "mov eax, 34; syscall")  # pause(2), and nobody sends a signal
    known = _searched(job(path, "x86_64"))
    assert known.finding is not None and known.finding[0] == "Deadlock"


# `polite` goes round in step for ever, both at work; `await` alone, with no system call.
@pytest.mark.parametrize(("program", "cpus"), [("polite", 1), ("polite", 2), ("await", 1)])
@pytest.mark.parametrize("isa", ISAS)
def test_a_run_without_an_end_is_found_and_shrunk(isa: str, program: str, cpus: int) -> None:
    of = orders(isa, program, *(["9"] if program == "await" else []), cpus=cpus)
    known = _searched(of, 60, most=50_000)
    assert known.calm is not None and known.calm.status == 0
    assert known.finding is not None and known.raw is not None and known.last is not None
    what, why = known.finding
    assert what == "NoEnd"
    others = "process 1000 (orders), thread 1001 (orders) go on"
    assert why.endswith(others if program == "polite" else "process 1000 (orders) goes on")
    assert known.complete and len(known.raw.switches) == 1
    assert perform(of, Plan(schedule=known.raw, most=known.most)) == replace(known.last, words=())
    assert perform(of, Plan(schedule=Schedule(), most=known.most)).kind == "ended"


def test_who_waits_for_a_cpu_that_stands_still_does_not_count_that_as_work() -> None:
    of = orders("x86_64", "peterson", cpus=2)  # thread 1001 spins until 1000 leaves
    calm = perform(of, Plan(schedule=Schedule()))
    for blocks in range(1, calm.spans[0][2]):
        still = Schedule((Switch(1000, blocks, 0, 1_000_000),))
        tried = perform(of, Plan(schedule=still, most=calm.work + 50_000))
        assert tried.kind == "ended"
        if tried.blocks > 400_000:
            break
    else:
        pytest.fail("nobody waited")


def test_a_worker_that_dies_is_replaced() -> None:
    started: list[int] = []
    crew = Crew(race("x86_64"), 1, started.append)
    try:
        outcomes = crew.perform([Plan(1, "turns"), Plan(2, "turns"), Plan(3, "turns")])
        assert next(outcomes)[1].kind == "ended"
        os.kill(started[0], signal.SIGKILL)
        assert [outcome.kind for _plan, outcome in outcomes] == ["ended", "ended"]
    finally:
        crew.close()
    assert len(started) == 2
    assert len(crew.deaths) == 1 and "signal 9" in crew.deaths[0]


def test_shrinking_leaves_what_is_needed_and_nothing_else() -> None:
    switches = [Switch(1000 + at % 3, 10 * at + 1, at % 4, at) for at in range(40)]
    needed = {(1001, 71), (1002, 291)}
    asked = 0

    def ask(tries: object) -> int | None:
        nonlocal asked
        for number, departures in enumerate(tries):  # type: ignore[arg-type,var-annotated]
            asked += 1
            if needed <= {(one.task, one.blocks) for one in departures}:
                return number
        return None

    found: tuple[Departure, ...] = shrink(switches, ask)
    assert found == (Switch(1001, 71), Switch(1002, 291))
    assert asked < 100


def test_thousands_of_departures_are_shrunk_in_few_runs() -> None:
    every: list[Departure] = [Switch(1000 + at % 3, at + 1, at % 4, at) for at in range(8_000)]
    every += [Choice("shootdown", at, 7) for at in range(500)]
    needed = {Switch(1000, 10).blocks, Switch(1001, 4_211).blocks, Switch(1002, 7_953).blocks}
    asked = 0

    def ask(tries: object) -> int | None:
        nonlocal asked
        for number, departures in enumerate(tries):  # type: ignore[arg-type,var-annotated]
            asked += 1
            if needed <= {one.blocks for one in departures if isinstance(one, Switch)}:
                return number
        return None

    found = shrink(every, ask)
    assert {one.blocks for one in found if isinstance(one, Switch)} == needed and len(found) == 3
    assert asked < 70


def test_short_turns_are_few_in_a_long_program() -> None:
    guide = Short(Stream(5, "short"), [(1000, 0, 1_000_000)])
    own, short, long = 0, 0, 0
    while own < 1_000_000:
        turn = guide.turn(1000, own)
        assert turn is not None
        own += turn[0]
        short += turn[0] <= 4
        long += turn[0] == LONGEST_TURN
    assert 7_000 < short <= 8_001
    assert long > 2
    everywhere = Short(Stream(5, "short"), [(1000, 0, 20_000)])
    assert {(everywhere.turn(1000, own) or (0, 0))[0] for own in range(20_000)} == {1, 2, 3, 4}


def test_few_switches_make_a_cpu_wait_for_as_long_as_others_take() -> None:
    spans = [(1000, 10, 500), (1001, 0, 90), (1002, 0, 90)]
    longest, begins = 0, set[int]()
    for number in range(50):
        guide = few(Stream(number, "few"), spans, 40_000)
        for task, first, last in spans:
            delays = [guide.delay(task, own) for own in range(first, last + 1)]
            longest = max(longest, *delays)
            if delays[1]:
                begins.add(task)
    assert 60_000 < longest < 80_000
    assert begins >= {1001, 1002}
    long = few(Stream(1, "few"), spans, 1 << 40)
    assert (
        max(long.delay(task, own) for task, first, last in spans for own in range(first, last + 1)) < 1 << 24
    )
