"""A machine whose processes talk by sockets, named pipes and terminals is cut at seeded moments, and goes on.

Output, status, statistics and virtual time are those of a run without a break. What the program prints is
what it prints on the host (`python -m tests.programs.build` makes it of src/wires.c).
"""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from aether_emu import state
from aether_emu.linux.files.streams import BufferStream
from aether_emu.observe import stats
from aether_emu.system import Machine
from tests.programs.run import HOST_ISA, ISAS, run_natively

_HERE = Path(__file__).resolve().parent / "programs"
_EXPECTED = (_HERE / "expected" / "wires.txt").read_text()
KINDS = [line.removeprefix("== ") for line in _EXPECTED.splitlines() if line.startswith("== ")]
_FEW, _MANY = 3, 60


def _expected(kind: str) -> bytes:
    """What the program prints of one kind."""
    _before, found, after = _EXPECTED.partition(f"== {kind}\n")
    return (found + after.partition("== ")[0]).encode()


def _streams(output: BufferStream) -> dict[str, BufferStream]:
    return {"stdin": BufferStream(), "stdout": output, "stderr": BufferStream()}


def _loaded(isa: str, kind: str, seed: int) -> tuple[Machine, BufferStream]:
    output = BufferStream()
    machine = Machine(isa, ram="64M", aperture="8M", seed=seed)
    machine.load(_HERE / "bin" / isa / "wires", ["wires", kind], streams=_streams(output))
    stats.prepare(machine)
    return machine, output


def _end_of(machine: Machine) -> tuple[int, dict[str, object], int]:
    """Run to the end: status, statistics, virtual time."""
    with machine:
        status = machine.run().status
        assert status is not None
        return status, stats.collect(machine, 0), machine.clock.now_ns


def _cut(isa: str, kind: str, count: int, seed: int = 5) -> None:
    machine, output = _loaded(isa, kind, seed)
    whole = _end_of(machine)
    assert (whole[0], bytes(output.written)) == (0, _expected(kind))
    blocks = whole[1]["blocks_executed"]
    assert isinstance(blocks, int)
    chance = random.Random(f"{isa} {kind} {count}")
    moments = sorted(chance.randrange(1, blocks) for _ in range(count))
    machine, output = _loaded(isa, kind, seed)
    for done, moment in pairwise([0, *moments]):
        if moment == done:
            continue
        assert machine.run_for(moment - done) is None
        snapshot = state.capture(machine)
        machine.close()
        machine = state.restore(snapshot, streams=_streams(output))
    assert _end_of(machine) == whole, moments
    assert bytes(output.written) == _expected(kind), moments


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_goes_on_from_any_moment_as_without_a_break(isa: str, kind: str) -> None:
    _cut(isa, kind, _FEW)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_goes_on_from_many_moments(isa: str, kind: str) -> None:
    for seed in (5, 6):
        _cut(isa, kind, _MANY // 2, seed)


# Of terminals the host's own answer depends on when its kernel brings on what was typed.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "terminals"])
def test_the_host_prints_what_is_expected(kind: str, tmp_path: Path) -> None:
    outcome = run_natively(_HERE / "bin" / HOST_ISA / "wires", [kind], tmp_path)
    assert (outcome.status, outcome.output) == (0, _expected(kind))
