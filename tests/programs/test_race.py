"""One seed is one interleaving: an update is lost for some seed, and again for that one under any load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aether_emu.linux.files.streams import BufferStream
from aether_emu.observe import stats
from aether_emu.system import Machine
from tests.programs.run import ISAS

_BIN = Path(__file__).resolve().parent / "bin"
_ROUNDS = 60
_SEEDS = 50
_BUSY = "while True: pass"


def _race(isa: str, seed: int) -> tuple[bytes, str]:
    """What it prints, and its statistics but for the host's time."""
    out = BufferStream()
    with Machine(isa, ram="16M", aperture="4M", seed=seed) as machine:
        streams = {"stdin": BufferStream(), "stdout": out, "stderr": BufferStream()}
        machine.load(_BIN / isa / "threads", ["threads", "race", str(_ROUNDS)], streams=streams)
        stats.prepare(machine)
        assert machine.run().status == 0
        collected = stats.collect(machine, 0)
    return bytes(out.written), json.dumps(collected)


@pytest.mark.parametrize("isa", ISAS)
def test_some_seed_in_fifty_loses_an_update_and_loses_it_again_under_load(isa: str) -> None:
    whole = b"%d of %d\n" % (2 * _ROUNDS, 2 * _ROUNDS)
    losing = next(seed for seed in range(1, _SEEDS + 1) if _race(isa, seed)[0] != whole)
    busy = subprocess.Popen([sys.executable, "-c", _BUSY])
    try:
        runs = {_race(isa, losing) for _ in range(10)}
    finally:
        busy.kill()
        busy.wait()
    assert len(runs) == 1
    ((printed, _statistics),) = runs
    assert printed != whole


@pytest.mark.parametrize("isa", ISAS)
def test_seeds_find_other_interleavings(isa: str) -> None:
    assert len({_race(isa, seed)[1] for seed in range(1, 6)}) > 1
