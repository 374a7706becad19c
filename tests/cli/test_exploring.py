"""`aether run --explore`, `--exhaustive`, `--schedule`: what they print, and that it can be typed again."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.command import aether, one_line

_ROOT = Path(__file__).parents[2]
_RACE = str(_ROOT / "tests/programs/bin/x86_64/threads")
_ORDERS = str(_ROOT / "guest/bin/arm64/orders")
_FAULTS = str(_ROOT / "guest/bin/x86_64/faults")


def _replayed(printed: bytes) -> list[str]:
    """The arguments of the command that was printed."""
    command = shlex.split(printed.decode().rstrip().splitlines()[-1])
    assert command[1] == "run"
    return command[1:]


def test_what_is_found_can_be_replayed_as_printed(tmp_path: Path) -> None:
    file = tmp_path / "found"
    found = aether(
        *("run", "--ram", "64M", "--explore", "200", "--same-output", "--save", str(file)),
        *(_RACE, "race", "60"),
    )
    assert found.returncode == 1, found.stderr
    assert found.stderr == b""
    assert b'finding: another output: "60 of 120" in line 1, not "120 of 120"' in found.stdout
    again = _replayed(found.stdout)
    assert again == ["run", "--ram", "64M", "--schedule", str(file), _RACE, "race", "60"]
    assert "stops in front of" in file.read_text()
    assert aether(*again).stdout == b"60 of 120\n"


def test_a_run_without_an_end_is_replayed_and_ends_where_it_did() -> None:
    found = aether("run", "--explore", "9", "--jobs", "1", "--stuck-after", "60x", _ORDERS, "await", "9")
    assert found.returncode == 1, found.stderr
    told = re.search(rb"^finding: (no end: after .* goes on)$", found.stdout, re.MULTILINE)
    assert told is not None
    again = _replayed(found.stdout)
    one_line(aether(*again), 125, [told[1].decode()])
    at = again.index("--stuck-after") + 1
    sooner = aether(*again[:at], "9000", *again[at + 1 :])
    assert b"no end: after " in sooner.stderr and told[1] not in sooner.stderr


def test_a_budget_without_a_single_trial_is_no_success() -> None:
    found = aether("run", "--explore", "5", "--jobs", "1", "--budget", "0.001s", _ORDERS, "message")
    assert found.returncode == 124
    assert found.stdout.startswith(b"0 schedules of 5 tried")


def test_an_exploration_that_would_not_end_says_how_much_there_is() -> None:
    found = aether("run", "--exhaustive", "--budget", "5", _ORDERS, "peterson")
    assert found.returncode == 124
    assert found.stdout.startswith(b"not every interleaving was tried, the budget is used up: 5 runs")
    assert b"are estimated" in found.stdout


@pytest.mark.parametrize(
    ("options", "status", "why"),
    [
        (["--explore", "2", "--budget", "soon"], 2, "--budget soon is not allowed: seconds such as 90s"),
        (["--explore", "2", "--bind", "/tmp:/tmp:rw"], 2, "read-only with --explore"),
        (["--explore", "2", "--stats"], 2, "are for one run"),
        (["--exhaustive", "--cpus", "2"], 2, "1 with --exhaustive"),
        (["--stuck-after", "50x"], 2, "--stuck-after 50x is not allowed: only with --explore or --schedule"),
        (["--explore", "2", "--stuck-after", "0x"], 2, "a factor of the calm run's work such as 50x"),
        (["--schedule", "calm", "--stuck-after", "50x"], 2, "a number of blocks with --schedule"),
        (["--schedule", "1000x2", "--stuck-after", "50"], 2, "left out with a schedule of steps"),
        (["--exhaustive", "--stuck-after", "50"], 2, "left out with --exhaustive"),
        (["--jobs", "2"], 2, "--jobs 2 is not allowed: only with --explore"),
        (["--schedule", "nothing"], 125, "--schedule nothing cannot be read"),
        (["--schedule", "other:0=1"], 125, "schedule other:0=1: only shootdown and tlb_fault have decisions"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(options: list[str], status: int, why: str) -> None:
    one_line(aether("run", *options, _ORDERS, "lost"), status, [why])


def test_a_decision_that_a_replay_never_comes_to_is_told() -> None:
    found = aether("run", "--schedule", "tlb_fault:0=1", _ORDERS, "message")
    assert b"never came to 1 of the schedule's decisions, the first tlb_fault:0=1" in found.stderr


def test_a_schedule_that_cannot_be_saved_is_printed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("something else\n")
    found = aether(
        *("run", "--explore", "2", "--jobs", "1", "--expect", str(other), "--save", "/dev/full"),
        *(_ORDERS, "message"),
    )
    assert found.returncode == 125
    assert found.stderr == b"aether: --save /dev/full cannot be written: No space left on device\n"
    assert found.stdout.rstrip().endswith(b"--schedule calm " + _ORDERS.encode() + b" message")


def test_a_program_that_fails_under_every_schedule_is_told_so() -> None:
    found = aether("run", "--explore", "1", "--jobs", "1", _FAULTS, "nonsense")
    assert found.returncode == 0
    assert b"does not succeed, under any of them: exit status" in found.stdout
    assert (
        b"does not succeed" not in aether("run", "--explore", "1", "--jobs", "1", _ORDERS, "message").stdout
    )
