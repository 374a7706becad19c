"""Programs with huge pages, of their own, of shared memory and of pools, go on from captures."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu import state
from aether_emu.grants import Grants
from aether_emu.linux.files.hugetlbfs import Hugetlbfs
from aether_emu.linux.files.streams import BufferStream
from aether_emu.system import Machine
from tests.programs.run import ISAS

_HERE = Path(__file__).resolve().parent
_PROGRAMS = [
    ("shmhuge", "memory", "shmhuge-memory"),
    ("shmhuge", "file", "shmhuge-file"),
    ("hugefs", "/dev/hugepages", "hugefs"),
    ("thpset", "", "thpset"),
]


def _streams() -> dict[str, BufferStream]:
    return {name: BufferStream() for name in ("stdin", "stdout", "stderr")}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("name", "part", "expected"), _PROGRAMS)
def test_a_run_goes_on_from_each_of_several_captures(
    isa: str, name: str, part: str, expected: str, tmp_path: Path
) -> None:
    machine, streams = Machine(isa, ram="128M", uid=0, gid=0, hugepages="2M=4", seed=3), _streams()
    program = _HERE / "bin" / isa / name
    machine.load(program, [name, part], grants=Grants(cwd=tmp_path), streams=streams)
    output, ended, captures = b"", None, 0
    while ended is None:
        ended = machine.run_for(20_000)
        output += bytes(streams["stdout"].written)
        if ended is None:
            snapshot, streams = state.capture(machine), _streams()
            machine.close()
            machine = state.restore(snapshot, grants=Grants(cwd=tmp_path), streams=streams)
            captures += 1
    assert machine.namespace is not None
    (mounted,) = (fs for fs in machine.namespace.tmpfs if isinstance(fs, Hugetlbfs))
    assert mounted.inodes_used == 1  # the root's
    machine.close()
    assert captures > 2
    assert ended.status == 0
    assert output == (_HERE / "expected" / f"{expected}.txt").read_bytes()
