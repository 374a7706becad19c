"""Files larger than memory, where their pages count: every byte is right, and what comes back shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aether_emu import state
from aether_emu.grants import Grants
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.streams import BufferStream
from aether_emu.mm.counters import Event
from aether_emu.observe import stats
from aether_emu.system import Machine
from tests.programs.run import HOST_ISA, ISAS, LARGER_PAGES, run_natively

_HERE = Path(__file__).resolve().parent
_MIB = 1 << 20
every_size = pytest.mark.parametrize(("isa", "granule"), [*((isa, 4096) for isa in ISAS), *LARGER_PAGES])

_WAYS: dict[str, dict[str, Any]] = {
    "mglru": {},
    "clock": {"reclaim": "clock", "kswapd": False},
    "cpus": {"cpus": 2, "swap": "8M", "tlbsan": True},
}


def _program(isa: str) -> Path:
    return _HERE / "bin" / isa / "file_pages"


def _expected() -> bytes:
    return (_HERE / "expected" / "file_pages.txt").read_bytes()


def _machine(isa: str, granule: int, disk: Path, mib: int, out: BufferStream, **options: Any) -> Machine:
    options = {"ram": f"{mib // 2}M", "page_cache": "counted", "uid": 0, "gid": 0, **options}
    machine = Machine(isa, page_size=granule, seed=7, **options)
    streams = {"stdin": BufferStream(b""), "stdout": out, "stderr": BufferStream()}
    grants = Grants(binds=[Bind(disk, "/disk", writable=True)])
    machine.load(_program(isa), ["file_pages", "/disk", str(mib), "2"], grants=grants, streams=streams)
    return machine


def _mib(granule: int) -> int:
    """A file of twice the memory that fewer pages still fit in."""
    return {4096: 8, 16384: 16, 65536: 48}[granule]


def test_the_host_prints_what_is_expected(tmp_path: Path) -> None:
    ran = run_natively(_program(HOST_ISA), [str(tmp_path), "8", "2"], tmp_path)
    assert (ran.status, ran.output) == (0, _expected())


@pytest.mark.parametrize("way", _WAYS)
@every_size
def test_a_file_of_twice_the_memory_keeps_every_byte(
    isa: str, granule: int, way: str, tmp_path: Path
) -> None:
    out, mib = BufferStream(), _mib(granule)
    machine = _machine(isa, granule, tmp_path, mib, out, **_WAYS[way])
    ended = machine.run()
    n = machine.physical.counters.n
    assert (ended.status, bytes(out.written)) == (0, _expected())
    assert n[Event.FILE_TAKEN] > mib * _MIB // granule
    assert n[Event.FILE_REFAULT] > 0
    assert n[Event.FILE_WRITTEN] > 0
    told = stats.collect(machine, 0)
    assert told["memory"]["peak_bytes"] <= mib // 2 * _MIB
    assert told["page_cache"]["refaults"] == n[Event.FILE_REFAULT]
    machine.close()


def test_a_seed_gives_the_same_figures_to_the_last(tmp_path: Path) -> None:
    told = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        machine = _machine("x86_64", 4096, folder, 8, BufferStream(), cpus=2)
        stats.prepare(machine)
        machine.run()
        told.append(json.dumps(stats.collect(machine, 0)))
        machine.close()
    assert told[0] == told[1]


@every_size
def test_a_machine_in_the_midst_of_it_is_captured(isa: str, granule: int, tmp_path: Path) -> None:
    mib = _mib(granule)
    told = []
    for captures in (False, True):
        out = BufferStream()
        machine = _machine(isa, granule, tmp_path, mib, out)
        before = 0
        for _part in range(6):
            assert machine.run_for(1200) is None
            if captures:
                kept = state.capture(machine)
                before = machine.physical.counters.n[Event.FILE_TAKEN]
                machine.abandon()
                streams = {"stdin": BufferStream(b""), "stdout": out, "stderr": BufferStream()}
                grants = Grants(binds=[Bind(tmp_path, "/disk", writable=True)])
                machine = state.restore(kept, grants=grants, streams=streams)
                assert machine.physical.cache is not None
                assert machine.physical.counters.n[Event.FILE_TAKEN] == before
        assert not captures or before > 0
        machine.run()
        assert bytes(out.written) == _expected()
        told.append(machine.physical.counters.n.copy())
        machine.close()
    assert told[0] == told[1]
