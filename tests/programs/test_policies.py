"""On which node memory is to be: with one node, both ISAs answer as the host does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aether_emu import state
from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.system import Machine
from tests.programs.run import HOST_ISA, ISAS, LARGER_PAGES, run_emulated, run_natively
from tests.programs.test_c import _HERE as HERE

_EXPECTED = (HERE / "expected" / "policies.txt").read_bytes()
_WEIGHTS = Path("/sys/kernel/mm/mempolicy/weighted_interleave")  # since Linux 6.9


def _check(isa: str, granule: int, directory: Path) -> None:
    program, grants = HERE / "bin" / isa / "policies", Grants(cwd=directory)
    outcome = run_emulated(program, [], grants, isa=isa, granule=granule, uid=0, gid=0)
    assert (outcome.status, outcome.output, outcome.errors) == (0, _EXPECTED, b"")


@pytest.mark.parametrize("isa", ISAS)
def test_policies_are_checked_kept_and_told(isa: str, tmp_path: Path) -> None:
    _check(isa, 4096, tmp_path)


@pytest.mark.parametrize(("isa", "granule"), LARGER_PAGES)
def test_larger_pages_change_nothing(isa: str, granule: int, tmp_path: Path) -> None:
    _check(isa, granule, tmp_path)


@pytest.mark.skipif(
    not (_WEIGHTS / "node0").exists() or (_WEIGHTS / "node1").exists() or os.geteuid() != 0,
    reason="the host's Linux is older, has several nodes, or other rights",
)
def test_the_host_says_the_same(tmp_path: Path) -> None:
    assert run_natively(HERE / "bin" / HOST_ISA / "policies", [], tmp_path).output == _EXPECTED


def test_a_run_goes_on_from_captures(tmp_path: Path) -> None:
    def streams() -> dict[str, BufferStream]:
        return {name: BufferStream() for name in ("stdin", "stdout", "stderr")}

    machine, shown, output, captures = Machine("x86_64", ram="32M", uid=0, gid=0), streams(), b"", 0
    machine.load(
        HERE / "bin" / "x86_64" / "policies", ["policies"], grants=Grants(cwd=tmp_path), streams=shown
    )
    while machine.run_for(3_000) is None:
        output += bytes(shown["stdout"].written)
        snapshot, shown = state.capture(machine), streams()
        machine.close()
        machine = state.restore(snapshot, grants=Grants(cwd=tmp_path), streams=shown)
        captures += 1
    output += bytes(shown["stdout"].written)
    machine.close()
    assert captures > 3
    assert output == _EXPECTED


def test_others_may_not_move_what_others_share(tmp_path: Path) -> None:
    program, grants = HERE / "bin" / "x86_64" / "policies", Grants(cwd=tmp_path)
    outcome = run_emulated(program, [], grants, isa="x86_64", uid=1000, gid=1000)
    expected = _EXPECTED.replace(b"migrate: EINVAL\nmigrate: ESRCH", b"migrate: EPERM\nmigrate: ESRCH")
    assert outcome.output == expected != _EXPECTED
