"""Protection keys: on a CPU that has them the program prints the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.state import capture, restore
from aether_emu.system import Machine
from tests.programs.run import run_emulated, run_natively
from tests.programs.test_c import _HERE as HERE

_EXPECTED = (HERE / "expected" / "keys.txt").read_bytes()
_PROGRAM = HERE / "bin" / "x86_64" / "keys"


@pytest.mark.parametrize("live_state", [True, False], ids=["live", "copied"])
def test_keys_are_what_the_mmu_obeys(live_state: bool, tmp_path: Path) -> None:
    outcome = run_emulated(_PROGRAM, [], Grants(cwd=tmp_path), isa="x86_64", live_state=live_state)
    assert (outcome.status, outcome.output) == (0, _EXPECTED)


@pytest.mark.skipif(
    b" pku " not in Path("/proc/cpuinfo").read_bytes().replace(b"\n", b" "), reason="this CPU has no keys"
)
def test_the_host_prints_the_same(tmp_path: Path) -> None:
    assert run_natively(_PROGRAM, [], tmp_path).output == _EXPECTED


def test_arm64_has_no_such_calls(tmp_path: Path) -> None:
    outcome = run_emulated(HERE / "bin" / "arm64" / "keys", [], Grants(cwd=tmp_path), isa="arm64")
    assert outcome.output.endswith(b"ENOSYS\n")
    assert outcome.status == 0


def test_keys_and_rights_are_captured() -> None:
    output = BufferStream()
    streams = {"stdin": BufferStream(), "stdout": output, "stderr": BufferStream()}
    grants = Grants(cwd=_PROGRAM.parent)
    with Machine("x86_64", ram="32M", cpus=2, tlbsan=True) as first:
        first.load(_PROGRAM, ["keys"], streams=streams, grants=grants)
        while "pkey_mprotect" not in first.kernel.calls_by_name():
            first.run_for(300)
        first.run_for(300)
        captured = capture(first)
    after = {"stdin": BufferStream(), "stdout": BufferStream(), "stderr": BufferStream()}
    with restore(captured, streams=after, grants=grants) as again:
        assert again.run(timeout=60).status == 0
    assert bytes(output.written + after["stdout"].written) == _EXPECTED
