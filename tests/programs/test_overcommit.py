"""Overcommit: what counts as promised, natively too; and what the three modes refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.state import capture, restore
from aether_emu.system import Machine
from tests.programs.run import ENVIRONMENT, HOST_ISA, ISAS, run_emulated, run_natively
from tests.programs.test_c import _HERE as HERE

_ACCOUNTED = (HERE / "expected" / "overcommit.txt").read_bytes()
_MODES = (HERE / "expected" / "overcommit-modes.txt").read_bytes()


def _streams() -> dict[str, BufferStream]:
    return {name: BufferStream() for name in ("stdin", "stdout", "stderr")}


def _loaded(isa: str, uid: int = 0) -> tuple[Machine, dict[str, BufferStream]]:
    program, streams = HERE / "bin" / isa / "overcommit", _streams()
    machine = Machine(isa, ram="64M", uid=uid, gid=uid)
    grants = Grants(cwd=HERE)
    machine.load(program, ["overcommit", "modes"], env=ENVIRONMENT, grants=grants, streams=streams)
    return machine, streams


@pytest.mark.parametrize("isa", ISAS)
def test_which_areas_are_accounted(isa: str, tmp_path: Path) -> None:
    program = HERE / "bin" / isa / "overcommit"
    assert run_emulated(program, [], Grants(cwd=tmp_path), isa=isa).output == _ACCOUNTED


@pytest.mark.skipif(
    Path("/proc/sys/vm/overcommit_memory").read_text() != "0\n", reason="the host has another mode"
)
def test_the_host_accounts_for_the_same(tmp_path: Path) -> None:
    assert run_natively(HERE / "bin" / HOST_ISA / "overcommit", [], tmp_path).output == _ACCOUNTED


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_counted_and_what_each_mode_refuses(isa: str) -> None:
    machine, streams = _loaded(isa)
    assert machine.run().code == 0
    physical = machine.kernel.physical
    machine.close()
    assert bytes(streams["stdout"].written) == _MODES
    assert physical.overcommit.committed == 0, "nobody is left who was promised anything"


def test_another_user_sets_nothing() -> None:
    machine, streams = _loaded("x86_64", uid=1000)
    machine.run()
    machine.close()
    assert b"overcommit_memory = 1: EACCES\n" in bytes(streams["stdout"].written)


def test_the_mode_and_the_promises_are_captured() -> None:
    machine, _streams_before = _loaded("x86_64")
    overcommit = machine.kernel.physical.overcommit
    overcommit.mode, overcommit.ratio = 2, 70
    again = restore(capture(machine), streams=_streams(), grants=Grants(cwd=HERE))
    restored = again.kernel.physical.overcommit
    assert (restored.mode, restored.ratio) == (2, 70)
    assert restored.committed == overcommit.committed > 0
    for each in (machine, again):
        each.close()
