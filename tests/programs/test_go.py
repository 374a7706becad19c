"""Go: a program of ours for its runtime and library, and its own compiler as a program of many processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aether_emu.grants import Grants
from tests.programs.run import HOST_ISA, ISAS, Outcome, run_emulated, run_natively

every_isa = pytest.mark.parametrize("isa", ISAS)

_QUIET = (
    *("goroutines", "collector", "timers", "channels", "recovered"),
    *("signals", "killed", "children", "sockets"),
)
_FATAL = ("panic", "nil", "deadlock")


@every_isa
@pytest.mark.parametrize("part", _QUIET)
def test_a_go_program_works_as_on_the_host(part: str, isa: str, go: Path, tmp_path: Path) -> None:
    native = run_natively(go / HOST_ISA / "program", [part], tmp_path)
    assert run_emulated(go / isa / "program", [part], Grants(cwd=tmp_path), isa=isa) == native


@every_isa
@pytest.mark.parametrize("part", _FATAL)
def test_what_go_says_at_its_end_is_what_it_says_on_the_host(
    part: str, isa: str, go: Path, tmp_path: Path
) -> None:
    native = run_natively(go / HOST_ISA / "program", [part], tmp_path)
    emulated = run_emulated(go / isa / "program", [part], Grants(cwd=tmp_path), isa=isa)
    assert native.status == 2
    assert _without_numbers(emulated) == _without_numbers(native)


def _without_numbers(outcome: Outcome) -> Outcome:
    """Without addresses, which differ between machine codes, and goroutines' numbers, which differ by run."""
    errors = re.sub(rb"\+?0x[0-9a-f]+|goroutine \d+", b"", outcome.errors)
    return Outcome(outcome.status, outcome.output, errors)


@every_isa
@pytest.mark.parametrize(
    ("part", "fatal"),
    [("overflow", "stack overflow"), ("memory", "out of memory")],
)
def test_go_says_itself_what_it_ran_out_of(part: str, fatal: str, isa: str, go: Path, tmp_path: Path) -> None:
    """The trace is by machine code, the line that says why is not."""
    native = run_natively(go / HOST_ISA / "program", [part], tmp_path)
    emulated = run_emulated(go / isa / "program", [part], Grants(cwd=tmp_path), isa=isa)
    for outcome in (native, emulated):
        assert outcome.status == 2
        assert f"fatal error: {fatal}\n" in outcome.errors.decode()
        assert "main.main()" in outcome.errors.decode()


@every_isa
def test_a_seed_gives_the_same_fatal_trace_with_its_addresses(isa: str, go: Path, tmp_path: Path) -> None:
    once, again = (
        run_emulated(go / isa / "program", ["nil"], Grants(cwd=tmp_path), isa=isa) for _ in range(2)
    )
    assert once == again
