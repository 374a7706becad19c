"""Whatever processes are about to do or wait for: a run that is cut goes on as if it had not been."""

from __future__ import annotations

import pytest

from tests.moments import run, seeded

_FEW, _MANY = 9, 400
_WORDS = {
    "semaphores": "shared s",
    "lists of what is taken back": "shared u",
    "message queues": "shared q",
    "segments": "shared m",
    "POSIX message queues": "queues p",
    "their waits": "queues w",
    "vfork": "moments v",
    "stopped jobs": "moments j",
    "timers": "moments t",
    "sleeps": "moments n",
    "signals": "moments s",
    "ends of processes": "moments w",
    "limits of a processor's time": "moments l",
    "futexes": "waits f",
    "locks": "waits l",
    "descriptors": "waits d",
    "memory": "waits m",
}

every_isa = pytest.mark.parametrize("isa", ["x86_64", "arm64"])
every_kind = pytest.mark.parametrize("kind", _WORDS)


def _cut(isa: str, kind: str, count: int) -> None:
    words = _WORDS[kind].split()
    block = 1_000_000 if words == ["moments", "l"] else 2  # ns: seconds would take long
    whole = run(isa, words, block=block)
    assert whole.status == 0
    assert run(isa, words, seeded(whole.blocks, count, isa, words), block=block) == whole


@every_isa
@every_kind
def test_a_run_goes_on_from_any_moment_as_without_a_break(isa: str, kind: str) -> None:
    """Seeded moments, others for each kind and ISA; hundreds below, marked slow."""
    _cut(isa, kind, _FEW)


@pytest.mark.slow
@every_isa
@every_kind
def test_a_run_goes_on_from_many_moments(isa: str, kind: str) -> None:
    _cut(isa, kind, _MANY)
