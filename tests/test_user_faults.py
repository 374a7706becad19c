"""userfaultfd: what is not seen by tests/programs/src/userfault.c."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.system import Machine
from tests.guests.running import ISAS

_PROGRAMS = Path(__file__).resolve().parent / "programs" / "bin"


@pytest.mark.parametrize("isa", ISAS)
def test_threads_on_other_cpus_wait_for_the_answers(isa: str) -> None:
    program = _PROGRAMS / isa / "userfault"
    with Machine(isa, ram="64M", cpus=4, tlbsan=True, seed=5) as machine:
        machine.load(program, ["userfault"], grants=Grants(cwd=program.parent))
        assert machine.run(timeout=120).status == 0


def _output(isa: str, arguments: list[str], **options: Any) -> str:
    program, written = _PROGRAMS / isa / "userfault_events", BufferStream()
    with Machine(isa, uid=0, tlbsan=True, **{"ram": "64M", **options}) as machine:
        machine.load(program, arguments, grants=Grants(cwd=program.parent), streams={"stdout": written})
        assert machine.run(timeout=120).status == 0
    return bytes(written.written).decode()


@pytest.mark.parametrize("isa", ISAS)
def test_a_poisoned_page_is_memory_that_failed(isa: str) -> None:
    told = _output(isa, ["userfault_events", "codes"])
    assert told.count("  the memory failed: a page of it: 1\n") == 7
    assert "of another address" not in told


@pytest.mark.parametrize("isa", ISAS)
def test_events_and_protection_with_little_memory(isa: str) -> None:
    expected = (_PROGRAMS.parent / "expected" / "userfault_events.txt").read_text()
    assert _output(isa, ["userfault_events"], ram="8M", swap="64M", cpus=3, seed=4) == expected


@pytest.mark.parametrize("isa", ISAS)
def test_protection_outlives_swap(isa: str) -> None:
    """Pages that are sent away keep the mark, and their next store is told."""
    options = {"ram": "64M", "swap": "64M"}
    told = _output(isa, ["userfault_events"], **options)
    out = told[told.index("page out") :].splitlines()
    assert out[1].split() == ["protected", "00011101"]
