"""`shootdown.c`: pages are taken away while other CPUs use them, by every way to acknowledge, and wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aether_emu.linux.files.streams import BufferStream
from aether_emu.observe import stats
from aether_emu.system import Machine
from tests.programs.run import ENVIRONMENT, ISAS

_HERE = Path(__file__).resolve().parent
_RIGHT = b"late 0, stray 0, torn 0\n"
every_isa = pytest.mark.parametrize("isa", ISAS)


def _run(
    isa: str, *, seed: int = 4, cpus: int = 2, blocks: int | None = None, **options: Any
) -> tuple[bytes, Any]:
    """What it prints, and the statistics of the shootdowns; of an unfinished run, what there is."""
    out = BufferStream()
    machine = Machine(isa, cpus=cpus, ram="64M", seed=seed, **options)
    try:
        streams = {"stdin": BufferStream(b""), "stdout": out, "stderr": BufferStream()}
        machine.load(_HERE / "bin" / isa / "shootdown", ["shootdown", "8"], env=ENVIRONMENT, streams=streams)
        stats.prepare(machine)
        if blocks is None:
            machine.run()
        else:
            machine.run_for(blocks)
        collected = json.loads(json.dumps(stats.collect(machine, 0)))
    finally:
        machine.abandon()
    return bytes(out.written), collected["cpus"]["shootdowns"]


@every_isa
@pytest.mark.parametrize("rule", ["flushed", "early"])
def test_nothing_that_was_taken_away_is_used_once_the_call_is_over(isa: str, rule: str) -> None:
    out, shootdowns = _run(isa, shootdown=rule)
    assert out == _RIGHT
    assert shootdowns["blocks_executed_meanwhile"] > 0 < shootdowns["waited_ns"]
    assert shootdowns["deferred"] == 0


@every_isa
def test_without_a_delay_nobody_goes_on_with_what_was_taken_away(isa: str) -> None:
    out, shootdowns = _run(isa, shootdown_delay=0)
    assert out == _RIGHT
    assert shootdowns["blocks_executed_meanwhile"] == 0


@every_isa
def test_deferred_memory_is_not_given_to_others_before_it_is_flushed(isa: str) -> None:
    """A store may go through for a while, as with lazily freed memory of LATR; it hits nobody else's page."""
    out, shootdowns = _run(isa, shootdown="deferred", shootdown_delay=20_000)
    assert out.endswith(b"stray 0, torn 0\n")
    assert not out.startswith(b"late 0,")
    assert shootdowns["deferred"] > 0


@every_isa
def test_three_cpus_are_interrupted_or_reached_by_broadcasts(isa: str) -> None:
    out, shootdowns = _run(isa, cpus=3)
    assert out == _RIGHT
    assert (shootdowns["interrupts_sent"] > 0) == (isa == "x86_64")
    assert (shootdowns["broadcasts"] > 0) == (isa == "arm64")


@every_isa
def test_one_seed_gives_one_run_and_another_other_delays(isa: str) -> None:
    assert _run(isa) == _run(isa)
    assert _run(isa)[1] != _run(isa, seed=5)[1]


@every_isa
@pytest.mark.parametrize("fault", ["drop", "late"])
def test_a_wrong_shootdown_is_seen_by_the_program(isa: str, fault: str) -> None:
    out, _shootdowns = _run(isa, tlb_fault=fault, blocks=2_000_000)
    assert out != _RIGHT


def _lazy(isa: str, **options: Any) -> list[bytes]:
    """What the threads of `lazy.c` find when they wake."""
    out = BufferStream()
    machine = Machine(isa, ram="64M", **options)
    try:
        streams = {"stdin": BufferStream(b""), "stdout": out, "stderr": BufferStream()}
        machine.load(_HERE / "bin" / isa / "lazy", ["lazy"], env=ENVIRONMENT, streams=streams)
        assert machine.run().status == 0
        assert machine.physical.tlb.way.lazily > 0 or isa == "arm64" or len(machine.entries) == 1
    finally:
        machine.abandon()
    return bytes(out.written).splitlines()


@every_isa
@pytest.mark.parametrize("cpus", [1, 3])
def test_threads_that_slept_find_nothing_that_was_taken_away(isa: str, cpus: int) -> None:
    assert _lazy(isa, cpus=cpus) == [
        b"unmapped: 0 found",
        b"protected: 0 found",
        b"discarded: 0 found",
    ]


def test_a_lazy_cpu_that_forgets_to_flush_when_it_wakes_is_seen_by_the_program() -> None:
    for seed in (1, 2):
        assert _lazy("x86_64", cpus=2, seed=seed, tlb_fault="no-wake") == [
            b"unmapped: 84 found",
            b"protected: 84 found",
            b"discarded: 84 found",
        ]
