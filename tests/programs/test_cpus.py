"""Machines of several CPUs: `cpus.c` spreads over them and sees no stale page, code or time.

Other programs print what they print on one.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aether_emu.errors import ConfigError
from aether_emu.grants import Grants
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.streams import BufferStream
from aether_emu.mm.tlb import Tlb
from aether_emu.observe import stats
from aether_emu.system import Machine
from tests.programs.run import ENVIRONMENT, ISAS

_HERE = Path(__file__).resolve().parent
_SEEN = b"pinned: 1\nstale code: 0\nwhat was unmapped was seen: 0\n"
every_isa = pytest.mark.parametrize("isa", ISAS)


def _run(
    isa: str, cpus: int, program: str = "cpus", *arguments: str, seed: int = 7, grants: Grants | None = None
) -> tuple[bytes, bytes, str]:
    """What it prints on stdout and stderr, and the statistics."""
    out, errors = BufferStream(), BufferStream()
    with Machine(isa, cpus=cpus, ram="256M", seed=seed, tlbsan=cpus > 1) as machine:
        streams = {"stdin": BufferStream(b""), "stdout": out, "stderr": errors}
        path = _HERE / "bin" / isa / program
        machine.load(path, [program, *arguments], env=ENVIRONMENT, grants=grants, streams=streams)
        stats.prepare(machine)
        assert machine.run().status == 0
        collected = stats.collect(machine, 0)
    return bytes(out.written), bytes(errors.written), json.dumps(collected)


@every_isa
@pytest.mark.parametrize("cpus", [1, 2, 4, 8])
def test_threads_spread_over_all_cpus_and_see_nothing_stale(isa: str, cpus: int) -> None:
    out, _spent, _statistics = _run(isa, cpus)
    spread = f"{cpus} CPUs, used {cpus}, atomically 32000, guarded 320, back in time 0\n".encode()
    assert out == spread + _SEEN


@every_isa
def test_a_stale_translation_is_used_where_no_flush_is_sent(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tlb, "_ask", lambda *_self_and_pages, **_how: None)
    out = BufferStream()
    machine = Machine(isa, cpus=2, ram="256M", seed=7)
    try:
        streams = {"stdin": BufferStream(b""), "stdout": out, "stderr": BufferStream()}
        machine.load(_HERE / "bin" / isa / "cpus", ["cpus"], env=ENVIRONMENT, streams=streams)
        ended = machine.run()
    finally:
        machine.abandon()
    assert ended.status or not out.written.endswith(b"unmapped was seen: 0\n")


@every_isa
def test_the_statistics_tell_of_the_cpus(isa: str) -> None:
    alone, together = (json.loads(_run(isa, cpus)[2]) for cpus in (1, 4))
    assert "cpus" not in alone
    cpus = together["cpus"]
    assert cpus["count"] == 4
    assert cpus["migrations"] > 0
    shootdowns = cpus["shootdowns"]
    assert shootdowns["spared_not_in_the_space"] > 0 < shootdowns["waited_ns"]
    sent, broadcast = shootdowns["interrupts_sent"], shootdowns["broadcasts"]
    assert (sent > 0, broadcast > 0) == (isa == "x86_64", isa == "arm64")


@every_isa
def test_one_seed_gives_one_run(isa: str) -> None:
    assert len({_run(isa, 4) for _ in range(3)}) == 1
    assert _run(isa, 4, seed=8)[2] != _run(isa, 4)[2]


@every_isa
def test_what_takes_turns_on_one_cpu_goes_on_side_by_side_on_eight(isa: str) -> None:
    alone, together = (int(_run(isa, cpus)[1]) for cpus in (1, 8))
    assert together < alone


@every_isa
@pytest.mark.parametrize("program", ["clone", "exec", "memory", "notified", "sysv", "threads", "told"])
def test_programs_print_on_four_cpus_what_they_print_on_one(isa: str, program: str, tmp_path: Path) -> None:
    grants = Grants(cwd=tmp_path, binds=[Bind(tmp_path, str(tmp_path), writable=True)])
    out, _errors, _statistics = _run(isa, 4, program, "a b", grants=grants)
    assert out == (_HERE / "expected" / f"{program}.txt").read_bytes()


@every_isa
def test_a_run_of_so_many_blocks_goes_on(isa: str) -> None:
    out = BufferStream()
    with Machine(isa, cpus=3, seed=7, tlbsan=True) as machine:
        streams = {"stdin": BufferStream(b""), "stdout": out, "stderr": BufferStream()}
        machine.load(_HERE / "bin" / isa / "cpus", ["cpus"], env=ENVIRONMENT, streams=streams)
        parts = 0
        while machine.run_for(5_000) is None:
            parts += 1
    assert parts > 10
    assert bytes(out.written).endswith(_SEEN)


@pytest.mark.parametrize("cpus", [0, 65])
def test_a_machine_has_1_to_64(cpus: int) -> None:
    with pytest.raises(ConfigError, match="cpus"):
        Machine("x86_64", cpus=cpus)


@pytest.mark.parametrize("locks", ["space", "leaf"])
def test_modelled_locks_change_no_output(locks: str) -> None:
    out = BufferStream()
    with Machine("x86_64", cpus=4, seed=3, locks=locks) as machine:
        streams = {"stdin": BufferStream(b""), "stdout": out, "stderr": BufferStream()}
        machine.load(_HERE / "bin" / "x86_64" / "clone", ["clone"], env=ENVIRONMENT, streams=streams)
        assert machine.run().status == 0
        assert stats.collect(machine, 0)["locks_modelled"]["scheme"] == locks
    assert bytes(out.written) == (_HERE / "expected" / "clone.txt").read_bytes()
