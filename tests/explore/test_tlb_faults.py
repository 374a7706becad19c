"""Shootdowns that go wrong: TLBSan finds each, it is shrunk to the one that matters, and shows again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aether_emu.config import Config
from aether_emu.errors import ConfigError
from aether_emu.explore.schedule import Choice, Schedule
from aether_emu.explore.search import Budget, Search
from aether_emu.explore.trial import Job, Plan, perform
from aether_emu.system import Machine
from tests.explore.jobs import ROOT, Here, job

_TAKEN = "a program goes on with a translation that was taken away"
_FREED = "a frame is given back before its flush"


def _job(program: str, isa: str, *arguments: str, cpus: int = 3, **options: Any) -> Job:
    of = job(ROOT / "tests/programs/bin" / isa / program, isa, *arguments)
    overrides = {"ram": "32M", "cpus": cpus, "tlbsan": True, **options}
    return replace(of, config=Config.load(overrides=overrides))


@pytest.mark.parametrize(
    ("fault", "isa", "program", "rule"),
    [
        ("drop", "x86_64", "flushes protect", _TAKEN),
        ("late", "arm64", "flushes protect", _TAKEN),
        ("narrow", "arm64", "flushes unmap", _FREED),
        ("free-early", "x86_64", "flushes discard", _FREED),
        ("no-break", "arm64", "flushes share", "break before make is skipped"),
        ("no-wake", "x86_64", "sleepers", _TAKEN),
    ],
)
def test_a_wrong_shootdown_is_found_shrunk_and_replayed(
    fault: str, isa: str, program: str, rule: str
) -> None:
    name, *arguments = program.split()
    of = _job(name, isa, *arguments, tlb_fault=fault, tlb_fault_one_in=2)
    known = Search(Here(of), 10, Budget(runs=100)).run()
    assert known.calm is not None and known.calm.status == 0, "none strikes under the calm schedule"
    assert known.finding is not None and known.finding[0] == "Finding" and rule in known.finding[1]
    assert known.complete and known.raw is not None
    strikes = [one for one in known.raw.choices if one.name == "tlb_fault"]
    assert strikes == [Choice("tlb_fault", strikes[0].index, 1)]
    assert len(known.raw.departures) <= 4
    again = perform(of, Plan(schedule=known.raw))
    assert again == known.last
    without = tuple(one for one in known.raw.departures if one not in strikes)
    assert perform(of, Plan(schedule=Schedule(without))).status == 0


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
@pytest.mark.parametrize("count", [3, pytest.param(1_000, marks=pytest.mark.slow)])
def test_threads_on_four_cpus_see_what_is_there_under_every_schedule(isa: str, count: int) -> None:
    known = Search(Here(_job("sleepers", isa, cpus=4)), count, Budget(), same_output=True).run()
    assert known.calm is not None
    assert known.calm.stdout.begins.endswith(b"copied on write: 0 wrong\nthe child had 3\n")
    assert (known.trials, known.timeouts, known.lost, known.finding) == (count, 0, 0, None)
    assert len(known.orders) > 0.9 * count, "schedules are not the same again and again"


@pytest.mark.parametrize(("fault", "isa"), [("no-wake", "arm64"), ("no-break", "x86_64")])
def test_a_fault_that_the_isa_cannot_have_is_refused(fault: str, isa: str) -> None:
    with pytest.raises(ConfigError, match=f"is not possible on {isa}"):
        Machine(isa, cpus=2, tlb_fault=fault)
