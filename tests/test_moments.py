"""Whatever processes are about to do or wait for: a run that is cut goes on as if it had not been."""

from __future__ import annotations

from typing import Any

import pytest

from aether_emu.computer import LeakError
from aether_emu.verify.tlbsan import Finding
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


_ON_SEVERAL = {"cpus": 4, "threads": 2, "shootdown 8": 2, "clone": 4}
_SOON = 48_000  # blocks, which all of these execute


def _cut_several(isa: str, words: list[str], cpus: int, moments: list[int], **options: Any) -> None:
    """A pause empties the TLBs, and ends shootdowns: a run with the same pauses is what to compare with."""
    paused = run(isa, words, moments, captured=False, switches=True, cpus=cpus, **options)
    assert run(isa, words, moments, switches=True, cpus=cpus, **options) == paused


@pytest.mark.parametrize(
    ("isa", "kind"),
    [
        ("arm64", "cpus"),
        ("x86_64", "threads"),
        ("x86_64", "shootdown 8"),
        ("arm64", "shootdown 8"),
        ("arm64", "clone"),
    ],
)
def test_a_run_on_several_cpus_goes_on_from_a_pause_as_without_a_break(isa: str, kind: str) -> None:
    """Output, statistics (shootdowns, migrations, TLB flushes) and virtual time."""
    cpus = _ON_SEVERAL[kind]
    _cut_several(isa, kind.split(), cpus, seeded(_SOON, 2, isa, kind, cpus))


@pytest.mark.slow
@every_isa
@pytest.mark.parametrize("cpus", [2, 3, 4])
@pytest.mark.parametrize("rule", ["flushed", "early", "deferred"])
@pytest.mark.parametrize("kind", _ON_SEVERAL)
def test_a_run_on_several_cpus_goes_on_from_many_pauses(isa: str, cpus: int, rule: str, kind: str) -> None:
    words = kind.split()
    options: dict[str, Any] = {"shootdown": rule, "kpti": cpus == 3}
    blocks = run(isa, words, cpus=cpus, **options).blocks
    _cut_several(isa, words, cpus, seeded(blocks, 25, isa, kind, cpus, rule), **options)


@every_isa
def test_tlbsan_finds_a_lost_flush_in_a_restored_machine(isa: str) -> None:
    moments = [20_000]
    options: dict[str, Any] = {"cpus": 2, "tlbsan": True}
    words = ["shootdown", "8"]
    told = run(isa, words, moments, **options)
    assert told.status == 0
    assert told.statistics["tlbsan"]["stale_translations"] > 0  # type: ignore[index]
    with pytest.raises(LeakError) as raised:  # the run ends where it was found, and nothing is given back
        run(isa, words, moments, **options, tlb_fault="drop")
    assert isinstance(raised.value.__context__, Finding)


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
