"""Two processes with equal pages have them merged by the scan, and see no difference but in frame numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aether_emu import state
from aether_emu.config import Config
from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.files.synthetic import Text
from aether_emu.linux.proc import smaps
from aether_emu.linux.proc.texts import ProcessTexts
from aether_emu.linux.task.ended import Ended
from aether_emu.mm.counters import Event
from aether_emu.mm.merging import merged_pages, set_merge_any
from aether_emu.observe import stats
from aether_emu.system import Machine
from tests.guests.running import TARGETS, Target, expected, program, run_guest

every_target = pytest.mark.parametrize("target", TARGETS, ids=str)
SWAP: dict[str, Any] = {"ram": "8M", "swap": "32M"}


def merges_all(machine: Machine) -> None:
    """As if the program had asked for all its memory to be merged."""
    assert machine.process is not None
    set_merge_any(machine.process.mm, on=True)


@every_target
def test_equal_pages_of_two_processes_become_one(target: Target, tmp_path: Path) -> None:
    ran = run_guest(target, "merge", cwd=tmp_path, uid=0, tlbsan=True)
    assert (ran.ended, ran.output) == (Ended(code=0), expected(target.isa, "merge"))


@pytest.mark.parametrize("target", TARGETS[:2], ids=str)
def test_so_they_do_on_two_cpus(target: Target, tmp_path: Path) -> None:
    ran = run_guest(target, "merge", cwd=tmp_path, uid=0, tlbsan=True, cpus=2)
    assert (ran.ended, ran.output) == (Ended(code=0), expected(target.isa, "merge"))


def test_only_root_switches_it_on(tmp_path: Path) -> None:
    output = run_guest(TARGETS[0], "merge", cwd=tmp_path).output
    assert "I switch it on: -13 of 2 bytes; run is 0." in output
    assert "Shared 0, sharing 0." in output


@pytest.mark.parametrize("target", TARGETS[:2], ids=str)
@pytest.mark.parametrize("name", ["tour", "maps", "workset", "family", "smc", "signals"])
@pytest.mark.parametrize("more", [{}, {"cpus": 2}, {"ksm_zero_pages": True}], ids=["one", "two", "zeros"])
def test_programs_print_the_same_while_their_pages_are_merged(
    target: Target, name: str, more: dict[str, Any], tmp_path: Path
) -> None:
    options = {"ksm": True, "ksm_sleep": 1, "ksm_pages": 10_000, "tlbsan": True, **more}
    ran = run_guest(target, name, cwd=tmp_path, before=merges_all, **options)
    assert (ran.ended, ran.output) == (Ended(code=0), expected(target.isa, name))


@pytest.mark.parametrize("target", TARGETS[:2], ids=str)
def test_merged_pages_go_to_swap_and_come_back(target: Target, tmp_path: Path) -> None:
    seen: list[Machine] = []

    def begin(machine: Machine) -> None:
        merges_all(machine)
        seen.append(machine)

    options = {"ksm": True, "ksm_sleep": 1, "ksm_pages": 300, "tlbsan": True, **SWAP}
    ran = run_guest(target, "swap", "fill", "12", cwd=tmp_path, before=begin, **options)
    assert ran.ended == Ended(code=0)
    assert seen[0].physical.counters.n[Event.SWAP_IN] > 0
    assert seen[0].physical.counters.n[Event.MERGE_SCANNED] > 0


def machine(target: Target, **options: Any) -> Machine:
    config = Config.load(overrides={"page_size": target.page_size, "uid": 0, **options})
    made = Machine(target.isa, config=config)
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    made.load(program(target.isa, "merge"), ["merge"], streams=streams, grants=Grants())
    return made


def look_at_texts(made: Machine) -> None:
    """What /proc tells of the pages of the program that are merged now."""
    process = made.process
    assert process is not None
    merged = merged_pages(process.mm)
    assert merged
    assert f"KSM:{merged * 4:>20} kB\n" in smaps.rollup_text(process.mm).decode()
    shown = ProcessTexts(process).find(process.pid)
    assert shown is not None
    text = shown.texts["ksm_stat"]
    assert isinstance(text, Text)
    told = dict(line.split() for line in text.provide().decode().splitlines())
    assert told["ksm_merging_pages"] == str(merged)
    pages = shown.texts["ksm_merging_pages"]
    assert isinstance(pages, Text) and pages.provide() == b"%d\n" % merged
    spared = merged + int(told["ksm_zero_pages"])
    assert int(told["ksm_process_profit"]) == spared * 4096 - 64 * int(told["ksm_rmap_items"])
    assert int(told["ksm_rmap_items"]) >= merged


@pytest.mark.parametrize("target", TARGETS[:2], ids=str)
def test_a_run_goes_on_from_the_middle_of_its_merging(target: Target) -> None:
    def figures(made: Machine) -> dict[str, Any]:
        told = json.loads(stats.as_json(stats.collect(made, 0)))
        assert isinstance(told, dict)
        return told

    one = machine(target, ksm=True, ksm_sleep=1)
    try:
        while one.physical.counters.n[Event.MERGED_PAGES] < 6:
            assert one.run_for(500) is None
        look_at_texts(one)
        snapshot = state.capture(one)
        ended = one.run()
        whole = figures(one)
    finally:
        one.close()
    assert whole["merging"]["merged"] > 6
    assert whole["memory"]["metadata"]["merge_scan_bytes"] > 0
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    other = state.restore(snapshot, grants=Grants(), streams=streams)
    try:
        assert other.run() == ended
        assert figures(other) == whole
    finally:
        other.close()


def test_a_run_without_it_tells_nothing_of_it() -> None:
    made = machine(TARGETS[0], uid=1000)
    try:
        made.run()
        assert "merging" not in stats.collect(made, 0)
    finally:
        made.close()
