"""Whatever calls a guest makes, each gets an answer that Linux knows, and every frame comes back."""

from __future__ import annotations

import errno
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.guests.running import TARGETS, Target
from tests.linux.calls.fuzzing import Fuzzed, Outcome
from tests.linux.calls.looks import Looks

ROOT = Path(__file__).parents[3]
CALLS, LOOKS = 60, 300
_LARGEST_ERROR = 4095
_OF_GUEST_ONLY = {512, 513, 514, 516}  # ERESTARTSYS and its like, which no program may see

every_target = pytest.mark.parametrize("target", TARGETS, ids=str)


def outcome(
    target: Target, seed: int, monkeypatch: pytest.MonkeyPatch, *, interrupted: bool = False
) -> Outcome:
    """How the calls of a seed went, perhaps with the run ended at every other of the first looks."""
    with tempfile.TemporaryDirectory() as base, monkeypatch.context() as patch:
        fuzzed = Fuzzed(target.isa, seed, CALLS, Path(base), target.page_size)
        looks = Looks(fuzzed.machine.cpu, patch)
        if interrupted:
            looks.stop_every, looks.stops_until = 2, LOOKS
        else:
            looks.ends_at = LOOKS
        try:
            return fuzzed.run(looks)
        finally:
            fuzzed.close()


def compare(target: Target, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted calls go on as if they were not, unless they take so long that they are given up."""
    whole = outcome(target, seed, monkeypatch)
    judge(whole)
    if not whole.given_up:
        assert outcome(target, seed, monkeypatch, interrupted=True) == whole, seed


def judge(outcome: Outcome) -> None:
    """Each answer is a result or an errno."""
    for answer in outcome.answers:
        if -_LARGEST_ERROR <= answer < 0:
            assert -answer in errno.errorcode and -answer not in _OF_GUEST_ONLY, answer
        else:
            assert answer >= 0, answer


@every_target
def test_a_sample_of_calls_is_answered(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [outcome(target, seed, monkeypatch) for seed in range(20)]
    for each in made:
        judge(each)
    assert sum(len(each.answers) for each in made) > 20 * CALLS // 2, "most programs live to make most calls"


def compare_some(number: int) -> None:
    """Compare a few sequences on one of the targets: what the process below does."""
    with pytest.MonkeyPatch.context() as patch:
        for seed in range(100, 105):
            compare(TARGETS[number], seed, patch)


@every_target
def test_calls_that_are_interrupted_go_on_as_if_they_were_not(target: Target) -> None:
    """In a process of its own: an engine that such a sequence ends takes no other test with it."""
    code = f"from tests.linux.calls.test_fuzz import compare_some; compare_some({TARGETS.index(target)})"
    command = [sys.executable, "-X", "faulthandler", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@every_target
@pytest.mark.parametrize("part", range(10))
def test_thousands_of_sequences_are_answered(
    target: Target, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(1000 * part, 1000 * part + 200):
        compare(target, seed, monkeypatch)
