"""Whatever processes are about to do or wait for: a run that is cut goes on as if it had not been."""

from __future__ import annotations

import pytest

from tests.moments import run, seeded

_FEW, _MANY = 24, 400
_WORDS = {
    "semaphores": "shared s",
    "lists of what is taken back": "shared u",
    "message queues": "shared q",
    "segments": "shared m",
}

every_isa = pytest.mark.parametrize("isa", ["x86_64", "arm64"])
every_kind = pytest.mark.parametrize("kind", _WORDS)


def _cut(isa: str, kind: str, count: int) -> None:
    words = _WORDS[kind].split()
    whole = run(isa, words)
    assert whole.status == 0
    assert run(isa, words, seeded(whole.blocks, count, isa, words)) == whole


@every_isa
@every_kind
def test_a_run_goes_on_from_any_moment_as_without_a_break(isa: str, kind: str) -> None:
    _cut(isa, kind, _FEW)


@pytest.mark.slow
@every_isa
@every_kind
def test_a_run_goes_on_from_many_moments(isa: str, kind: str) -> None:
    _cut(isa, kind, _MANY)
