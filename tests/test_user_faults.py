"""userfaultfd: what is not seen by tests/programs/src/userfault.c."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.files.tmp_capture import CaptureError
from aether_emu.state import capture
from aether_emu.system import Machine
from tests.guests.running import ISAS

_PROGRAMS = Path(__file__).resolve().parent / "programs" / "bin"


@pytest.mark.parametrize("isa", ISAS)
def test_a_machine_with_an_open_one_is_not_captured(isa: str) -> None:
    program = _PROGRAMS / isa / "userfault"
    with Machine(isa, ram="64M") as machine:
        machine.load(program, ["userfault"], grants=Grants(cwd=program.parent))
        calls = machine.kernel.calls_by_name
        while "userfaultfd" not in calls():
            machine.run_for(200)
        with pytest.raises(CaptureError, match="a userfaultfd is open as descriptor 3"):
            capture(machine)


@pytest.mark.parametrize("isa", ISAS)
def test_threads_on_other_cpus_wait_for_the_answers(isa: str) -> None:
    program = _PROGRAMS / isa / "userfault"
    with Machine(isa, ram="64M", cpus=4, tlbsan=True, seed=5) as machine:
        machine.load(program, ["userfault"], grants=Grants(cwd=program.parent))
        assert machine.run(timeout=120).status == 0
