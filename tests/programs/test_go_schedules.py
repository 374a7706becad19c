"""Go on four CPUs under other schedules: the same output, and a finding only where a shootdown goes wrong.

Its pthread counterpart is in tests/explore/test_tlb_faults.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aether_emu.config import Config
from aether_emu.explore.search import Budget, Search
from aether_emu.explore.trial import Job, Plan, perform
from aether_emu.explore.workers import Crew
from aether_emu.grants import Grants
from tests.programs.run import HOST_ISA, ISAS, run_natively

_PROCESSES = 2
_PRINTED = b"written 24\nrefused 12\nwrong 0\nkept 127\n"


def _job(go: Path, isa: str, **options: Any) -> Job:
    config = Config.load(overrides={"ram": "64M", "cpus": 4, "tlbsan": True, **options})
    return Job(isa, str(go / isa / "shared"), ("shared",), {}, Grants(), config)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [3, pytest.param(1_000, marks=pytest.mark.slow)])
def test_goroutines_on_four_cpus_see_what_is_there_under_every_schedule(
    isa: str, count: int, go: Path, tmp_path: Path
) -> None:
    crew = Crew(_job(go, isa), _PROCESSES)
    try:
        known = Search(crew, count, Budget(), same_output=True).run()
    finally:
        crew.close()
    assert known.calm is not None and known.calm.status == 0
    assert known.calm.stdout.begins == _PRINTED
    assert run_natively(go / HOST_ISA / "shared", [], tmp_path).output == _PRINTED
    assert (known.trials, known.timeouts, known.lost, known.finding) == (count, 0, 0, None)
    assert len(known.orders) > 0.9 * count, "schedules are not the same again and again"


@pytest.mark.parametrize(
    ("isa", "fault"), [("x86_64", "drop"), ("x86_64", "no-wake"), ("arm64", "drop"), ("arm64", "no-break")]
)
def test_a_wrong_shootdown_of_goroutines_is_found(isa: str, fault: str, go: Path) -> None:
    of = _job(go, isa, tlb_fault=fault, tlb_fault_one_in=4)
    for number in range(1, 4):
        outcome = perform(of, Plan(number, "turns"))
        assert (outcome.kind, outcome.error) == ("error", "Finding"), outcome.why
