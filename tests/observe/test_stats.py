"""Statistics: true, and the same on every repetition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aether_emu.config import Config
from aether_emu.linux.procfs import maps_text
from aether_emu.linux.vfs.streams import BufferStream
from aether_emu.observe import stats
from aether_emu.system import Grants, Machine
from tests.linux.crafted import ISAS, PROGRAMS


def _run(
    isa: str, name: str, cwd: Path, *argv: str, live_state: bool = True, **options: object
) -> tuple[dict[str, Any], bytes]:
    """The statistics of a run to its end, and its maps then."""
    config = Config.load(overrides={"ram": "32M", "aperture": "4M", **options})
    machine = Machine(isa, config=config, live_state=live_state)
    streams = {stream: BufferStream() for stream in ("stdin", "stdout", "stderr")}
    try:
        process = machine.load(PROGRAMS / isa / name, [name, *argv], grants=Grants(cwd=cwd), streams=streams)
        stats.prepare(machine)
        machine.run()
        return stats.collect(machine, 1.25), maps_text(process)
    finally:
        machine.close()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["hello", "tour", "signals"])
def test_one_seed_gives_one_report_in_both_ways_to_reach_cpu_state(
    tmp_path: Path, isa: str, name: str
) -> None:
    reports = [_run(isa, name, tmp_path, seed=9, live_state=live_state) for live_state in (True, True, False)]
    texts = [stats.as_json(report) for report, _maps in reports]
    assert texts[0] == texts[1] == texts[2]
    assert len({maps for _report, maps in reports}) == 1


@pytest.mark.parametrize("isa", ISAS)
def test_another_seed_gives_other_addresses(tmp_path: Path, isa: str) -> None:
    maps = {_run(isa, "hello", tmp_path, seed=seed)[1] for seed in range(4)}
    assert len(maps) == 4
    assert len({_run(isa, "hello", tmp_path, seed=seed, aslr=False)[1] for seed in range(4)}) == 1


@pytest.mark.parametrize("isa", ISAS)
def test_without_chance_the_stack_ends_where_the_address_space_does(tmp_path: Path, isa: str) -> None:
    maps = _run(isa, "hello", tmp_path, aslr=False)[1].decode()
    end = {"x86_64": "7ffffffff000", "arm64": "1000000000000"}[isa]
    assert f"-{end} rw-p 00000000 00:00 0" in maps


@pytest.mark.parametrize("isa", ISAS)
def test_counts_are_true(tmp_path: Path, isa: str) -> None:
    few, _ = _run(isa, "getppid", tmp_path, "10")
    many, _ = _run(isa, "getppid", tmp_path, "1010")
    assert few["system_calls"]["getppid"] == 11
    assert many["system_calls"]["getppid"] == 1011
    cost = Config().clock
    blocks = many["blocks_executed"] - few["blocks_executed"]
    assert blocks >= 1000
    assert many["virtual_ns"] - few["virtual_ns"] == 1000 * cost.system_call + blocks * cost.block
    assert many["exit_status"] == 0
    assert many["isa"] == isa
    assert many["memory"]["ram_bytes"] == 32 << 20
    assert 0 < many["memory"]["peak_bytes"] < 32 << 20
    assert many["pages"]["by_size"]["4096"] == sum(many["pages"]["by_state"].values()) > 0


def test_json_has_its_own_order_and_the_wall_time_apart(tmp_path: Path) -> None:
    report, _ = _run("x86_64", "hello", tmp_path)
    text = stats.as_json(report)
    assert text.endswith("}\n")
    assert json.loads(text) == report
    assert list(report)[-1] == "wall_seconds"
    assert report["wall_seconds"] == 1.25


def test_the_table_leaves_out_what_did_not_happen(tmp_path: Path) -> None:
    from rich.console import Console  # noqa: PLC0415  # only this test looks

    report, _ = _run("x86_64", "hello", tmp_path)
    console = Console(width=120, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    console.print(stats.as_table(report))
    text = console.export_text()
    assert "blocks executed" in text
    assert report["faults"]["bus"] == 0
    assert "faults: bus" not in text
