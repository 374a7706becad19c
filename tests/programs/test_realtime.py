"""Real-time threads and RLIMIT_RTTIME: what the host says of a program that only the superuser may run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aether_emu.config import CostOptions
from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.state import capture, restore
from aether_emu.system import Machine
from tests.programs.run import HOST_ISA, ISAS, run_natively

_HERE = Path(__file__).resolve().parent
_EXPECTED = (_HERE / "expected" / "realtime.txt").read_bytes()
_SLOW: CostOptions = {"block": 1000}  # ns, so that few blocks are a long time
_GRANTS = Grants(cwd=_HERE / "bin")
_PERMITTED = [HOST_ISA] if os.getuid() == 0 else []


@pytest.mark.parametrize("isa", _PERMITTED)
def test_the_host_prints_what_is_expected(isa: str, tmp_path: Path) -> None:
    outcome = run_natively(_HERE / "bin" / isa / "realtime", [], tmp_path)
    assert (outcome.status, outcome.output, outcome.errors) == (0, _EXPECTED, b"")


def _run(isa: str, *, live_state: bool = True, slice_: int | None = None) -> bytes:
    """What the program prints; captured, and gone on with as another machine, every `slice_` blocks."""
    said = b""
    machine = Machine(isa, ram="64M", seed=7, uid=0, gid=0, clock=_SLOW, live_state=live_state)
    output = BufferStream()
    streams = {"stdin": BufferStream(), "stdout": output, "stderr": output}
    try:
        machine.load(_HERE / "bin" / isa / "realtime", ["realtime"], grants=_GRANTS, streams=streams)
        ended = machine.run() if slice_ is None else machine.run_for(slice_)
        while ended is None:
            said += bytes(output.written)
            captured = capture(machine)
            machine.close()
            output = BufferStream()
            streams = {"stdin": BufferStream(), "stdout": output, "stderr": output}
            machine = restore(captured, grants=_GRANTS, streams=streams)
            ended = machine.run_for(slice_ or 0)
        assert ended.status == 0
    finally:
        machine.close()
    return said + bytes(output.written)


@pytest.mark.parametrize("live_state", [True, False], ids=["live", "copied"])
@pytest.mark.parametrize("isa", ISAS)
def test_the_machine_prints_what_the_host_prints(isa: str, live_state: bool) -> None:
    assert _run(isa, live_state=live_state) == _EXPECTED


@pytest.mark.parametrize("isa", ISAS)
def test_counts_go_on_after_a_restore(isa: str) -> None:
    """Restored a few times, once in the midst of a count that sleep ends; many times below, marked slow."""
    assert _run(isa, slice_=67_000) == _EXPECTED


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
def test_counts_go_on_after_many_restores(isa: str) -> None:
    assert _run(isa, slice_=17_000) == _EXPECTED
