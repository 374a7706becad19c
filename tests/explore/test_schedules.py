"""Schedules: as words, as files, and run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.explore import schedule as schedules
from aether_emu.explore.guides import STRATEGIES, DecidedStreams
from aether_emu.explore.schedule import Choice, Schedule, ScheduleError, Steps, Switch
from aether_emu.explore.trial import Plan, perform
from aether_emu.random import Stream
from tests.explore.jobs import race
from tests.guests.running import ISAS

_ALL = Schedule((Switch(1000, 5), Switch(1001, 7, 3), Switch(1001, 9, 0, 40), Choice("shootdown", 2, 9)))


@pytest.mark.parametrize("one", [Schedule(), _ALL, Schedule((Steps(1000, 3), Steps(1001, 4)))])
def test_a_schedule_is_read_as_it_was_written(one: Schedule, tmp_path: Path) -> None:
    assert schedules.read(str(one)) == one
    file = tmp_path / "found"
    schedules.save(one, file, finding='a "quoted" one', words=["why"], isa="x86_64", cpus=2)
    again = schedules.read(str(file))
    assert again == one
    with pytest.raises(ScheduleError, match="cpus = 2, and this machine has 1"):
        again.require("x86_64", 1)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[switch]]\ntask = 1", "'blocks' is missing"),
        ("[[switch]]\ntask = -1\nblocks = 2", "-1 is no whole number"),
        ("switches = 3", "'switches' is no part"),
        ("= 3", "Invalid"),
        ("switch = 3", "no schedule"),
        ("# nothing\n", "it is empty; the one without departures is called calm"),
    ],
)
def test_a_file_that_is_none_is_refused_in_a_line(text: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "found"
    file.write_text(text)
    with pytest.raises(ScheduleError, match=why) as refused:
        schedules.read(str(file))
    assert "\n" not in str(refused.value)


def test_steps_stand_alone() -> None:
    for other in ("1000@10+2", "shootdown:0=3"):
        with pytest.raises(ScheduleError, match="nothing else can stand beside steps such as 1001x3"):
            schedules.read(f"{other},1001x3").require("x86_64", 1)
    schedules.read("1000x2,1001x3").require("x86_64", 1)


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("isa", ISAS)
def test_what_a_trial_did_is_done_again_by_its_schedule(isa: str, cpus: int) -> None:
    job = race(isa, cpus)
    calm = perform(job, Plan(schedule=Schedule()))
    assert calm.schedule == Schedule()
    seen = set()
    for number in range(1, 5):
        strategy = STRATEGIES[number % len(STRATEGIES)]
        tried = perform(job, Plan(number, strategy, spans=calm.spans))
        assert perform(job, Plan(schedule=tried.schedule)) == tried
        seen.add(tried.order)
    assert len(seen) > 2


def test_decisions_of_other_streams_are_drawn_kept_and_given() -> None:
    drawn = DecidedStreams(7, trial=3)
    stream = drawn.stream("shootdown")
    numbers = [stream.below(4) for _ in range(8)] + [stream.u64()]
    made = drawn.decisions[0].made
    assert [Choice("shootdown", at, value) for at, value in enumerate(numbers) if value] == made
    again = DecidedStreams(7, trial=None, given=made[1:]).stream("shootdown")
    first = made[0].index
    repeated = [again.below(4) for _ in range(8)] + [again.u64()]
    assert repeated == [0 if at == first else value for at, value in enumerate(numbers)]
    assert drawn.stream("getrandom").bytes(8) == Stream(7, "getrandom").bytes(8)
