"""Statistics: true, and the same on every repetition."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aether_emu.config import Config
from aether_emu.grants import Grants
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.proc.texts import maps_text
from aether_emu.observe import stats
from aether_emu.system import Machine
from tests.guests.running import TARGETS, Target, program

X86_64 = TARGETS[0]

every_target = pytest.mark.parametrize("target", TARGETS, ids=str)


@dataclass(frozen=True)
class _Ran:
    """A run to its end: its statistics, its maps then, and what it printed."""

    report: dict[str, Any]
    maps: bytes
    output: bytes


def _run(target: Target, command: str, cwd: Path, *, live_state: bool = True, **options: object) -> _Ran:
    argv, size = command.split(), target.page_size
    config = Config.load(overrides={"ram": "32M", "aperture": "4M", "page_size": size, **options})
    machine = Machine(target.isa, config=config, live_state=live_state)
    streams = {stream: BufferStream() for stream in ("stdin", "stdout", "stderr")}
    grants = Grants(cwd=cwd, binds=[Bind(cwd, str(cwd), writable=True)])
    try:
        process = machine.load(program(target.isa, argv[0]), argv, grants=grants, streams=streams)
        stats.prepare(machine)
        machine.run()
        return _Ran(stats.collect(machine, 1.25), maps_text(process), bytes(streams["stdout"].written))
    finally:
        machine.close()


@every_target
@pytest.mark.parametrize("command", ["hello", "signals", "clock raw", "workset file"])
def test_one_seed_gives_one_run_in_both_ways_to_reach_cpu_state(
    tmp_path: Path, target: Target, command: str
) -> None:
    runs = [_run(target, command, tmp_path, seed=9, live_state=live) for live in (True, True, False)]
    assert len({stats.as_json(ran.report) for ran in runs}) == 1
    assert len({(ran.maps, ran.output) for ran in runs}) == 1
    assert runs[0].report["exit_status"] == 0


@every_target
def test_chance_from_the_cpu_comes_from_the_seed(tmp_path: Path, target: Target) -> None:
    """RDRAND, and RNDR where the program is told that it has it."""
    lines = [_run(target, "clock raw", tmp_path, seed=seed).output.splitlines() for seed in (1, 2)]
    numbers = [line.split()[1:] for run in lines for line in run if line.startswith(b"hardware ")]
    assert len({number for pair in numbers for number in pair} - {b"0" * 16}) == 4


@every_target
def test_another_seed_gives_other_addresses(tmp_path: Path, target: Target) -> None:
    maps = {_run(target, "hello", tmp_path, seed=seed).maps for seed in range(4)}
    assert len(maps) == 4
    assert len({_run(target, "hello", tmp_path, seed=seed, aslr=False).maps for seed in range(4)}) == 1


@every_target
def test_without_chance_the_stack_ends_where_the_address_space_does(tmp_path: Path, target: Target) -> None:
    maps = _run(target, "hello", tmp_path, aslr=False).maps.decode()
    end = {"x86_64": "7ffffffff000", "arm64": "1000000000000"}[target.isa]
    assert f"-{end} rw-p 00000000 00:00 0" in maps


@every_target
def test_counts_are_true(tmp_path: Path, target: Target) -> None:
    few, many = (_run(target, f"getppid {count}", tmp_path).report for count in (10, 1010))
    assert few["system_calls"]["getppid"] == 11
    assert many["system_calls"]["getppid"] == 1011
    cost = Config().clock
    blocks = many["blocks_executed"] - few["blocks_executed"]
    assert blocks >= 1000
    assert many["virtual_ns"] - few["virtual_ns"] == 1000 * cost.system_call + blocks * cost.block
    assert many["exit_status"] == 0
    assert (many["isa"], many["page_size"]) == (target.isa, target.page_size)
    assert many["memory"]["ram_bytes"] == 32 << 20
    assert 0 < many["memory"]["peak_bytes"] < 32 << 20
    by_size = {str(target.page_size): sum(many["pages"]["by_state"].values())}
    assert many["pages"]["by_size"] == by_size
    assert many["faults"]["access_flag"] == many["pages_written_back"] == 0


@every_target
def test_pages_that_msync_writes_back_and_later_accesses_are_counted(tmp_path: Path, target: Target) -> None:
    """By its own story the program writes 3 pages back, and touches 5 after all were forgotten.

    The MMU of x86_64 notes that by itself. On arm64 each is a fault, and so are the first accesses to the
    pages that the program runs on, which were forgotten too.
    """
    report = _run(target, "workset file", tmp_path).report
    assert report["pages_written_back"] == 3
    if target.isa == "x86_64":
        assert report["faults"]["access_flag"] == 0
    else:
        assert report["faults"]["access_flag"] > 5


def test_json_has_its_own_order_and_the_wall_time_apart(tmp_path: Path) -> None:
    report = _run(X86_64, "hello", tmp_path).report
    text = stats.as_json(report)
    assert text.endswith("}\n")
    assert json.loads(text) == report
    assert list(report)[-1] == "wall_seconds"
    assert report["wall_seconds"] == 1.25


def test_the_table_leaves_out_what_did_not_happen(tmp_path: Path) -> None:
    from rich.console import Console  # noqa: PLC0415  # only this test looks

    report = _run(X86_64, "hello", tmp_path).report
    console = Console(width=120, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    console.print(stats.as_table(report))
    text = console.export_text()
    assert "blocks executed" in text
    assert report["faults"]["bus"] == 0
    assert "faults: bus" not in text
    assert "written back" not in text


def test_the_table_shows_what_happened_to_pages(tmp_path: Path) -> None:
    from rich.console import Console  # noqa: PLC0415  # as above

    report = _run(TARGETS[2], "workset file", tmp_path).report
    console = Console(width=120, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    console.print(stats.as_table(report))
    rows = [line.split() for line in console.export_text().splitlines()]
    flags = str(report["faults"]["access_flag"])
    assert ["│", "faults:", "access", "flag", "│", flags, "│"] in rows
    assert ["│", "pages", "written", "back", "│", "3", "│"] in rows
    assert ["│", "page", "size,", "KiB", "│", "16", "│"] in rows
