"""A program that looks at its huge pages sees what it saw on Linux; others see no difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aether_emu import state
from aether_emu.config import Config
from aether_emu.grants import Grants
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.handlers import Fault
from aether_emu.linux.task.ended import Ended
from aether_emu.mm.compaction import migrate
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.physical import Physical
from aether_emu.mm.rmap import mappings
from aether_emu.observe import stats
from aether_emu.system import Machine
from tests.guests.running import TARGETS, Target, expected, program, run_guest

RAM = {4096: "128M", 16384: "1G", 65536: "8G"}
SOME = [pytest.param(each, marks=pytest.mark.slow) if each.page_size > 16384 else each for each in TARGETS]
"""Huge pages of 512M are copied and cleared for seconds."""

every_target = pytest.mark.parametrize("target", SOME, ids=str)


def run(target: Target, *argv: str, cwd: Path, **options: Any) -> str:
    ran = run_guest(target, *argv, cwd=cwd, ram=RAM[target.page_size], **options)
    assert ran.ended == Ended(code=0)
    return ran.output


@every_target
def test_a_program_sees_its_huge_pages_as_on_linux(target: Target, tmp_path: Path) -> None:
    assert run(target, "huge", cwd=tmp_path, thp="madvise", tlbsan=True) == expected(target.isa, "huge")
    assert run(target, "huge", "always", cwd=tmp_path, thp="always", cpus=2) == expected(target.isa, "huge")


@every_target
def test_the_frames_of_a_huge_page_lie_in_a_row(target: Target, tmp_path: Path) -> None:
    output = run(target, "huge", "frames", cwd=tmp_path, thp="madvise", uid=0)
    assert output == "The frames of all pages: aligned 1, out of their row 0.\n"
    output = run(target, "huge", "frames", cwd=tmp_path, thp="never", uid=0)
    assert "out of their row 0" not in output


def test_without_the_setting_only_an_advice_collapses(tmp_path: Path) -> None:
    output = run(TARGETS[0], "huge", cwd=tmp_path)
    assert "Eligible: 0; now there are 0 of them." in output
    assert "I store into the others: 0." in output
    assert "MADV_COLLAPSE: ok, then there are 1; abz." in output


@every_target
@pytest.mark.parametrize("name", ["tour", "maps", "workset", "family", "smc"])
def test_programs_print_the_same_with_huge_pages(target: Target, name: str, tmp_path: Path) -> None:
    options = {"thp": "always", "tlbsan": True, "khugepaged_sleep": 1}
    assert run(target, name, cwd=tmp_path, **options) == expected(target.isa, name)


def machine(target: Target, **options: Any) -> Machine:
    ram = RAM[target.page_size]
    made = Machine(
        target.isa, config=Config.load(overrides={"page_size": target.page_size, "ram": ram, **options})
    )
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    made.load(program(target.isa, "touch"), ["touch", "16384", "2"], streams=streams, grants=Grants())
    return made


def move_all(physical: Physical) -> None:
    """Every page that can move does."""
    frames = np.flatnonzero(physical.frames.kind_array == Kind.ANON)
    shown = [list(mappings(physical, frame)) for frame in frames.tolist()]
    assert [len(each) for each in shown] == physical.frames.maps_array[frames].tolist()
    present = [all(m.found.entry & m.space.table.format.present_mask for m in each) for each in shown]
    frames, shown = frames[present], [each for each, there in zip(shown, present, strict=True) if there]
    assert frames.size
    targets = physical.buddy.alloc_bulk(frames.size)
    migrate(physical, frames, targets, shown)
    physical.give_back(frames.tolist())


@pytest.mark.parametrize("target", TARGETS[:2], ids=str)
@pytest.mark.parametrize("name", ["tour", "family", "smc", "signals"])
def test_programs_go_on_while_their_pages_move(target: Target, name: str, tmp_path: Path) -> None:
    streams = {each: BufferStream() for each in ("stdin", "stdout", "stderr")}
    config = Config.load(overrides={"ram": "32M", "tlbsan": True, "cpus": 2})
    with Machine(target.isa, config=config) as made:
        made.load(program(target.isa, name), [name], streams=streams, grants=Grants(cwd=tmp_path))
        ended = None
        while ended is None:
            ended = made.run_for(500)
            if ended is None:
                move_all(made.physical)
        assert ended == Ended(code=0)
    assert (streams["stdout"].written + streams["stderr"].written).decode() == expected(target.isa, name)


@every_target
def test_a_run_goes_on_from_the_middle_of_its_huge_pages(target: Target) -> None:
    def figures(made: Machine) -> dict[str, Any]:
        told = json.loads(stats.as_json(stats.collect(made, 0)))
        assert isinstance(told, dict)
        return told

    one = machine(target, thp="always", khugepaged_sleep=1)
    try:
        assert one.run_for(20_000) is None
        snapshot = state.capture(one)
        ended = one.run()
        whole = figures(one)
    finally:
        one.close()
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    other = state.restore(snapshot, grants=Grants(), streams=streams)
    try:
        assert other.physical.counters.n[Event.HUGE_FAULT] > 0
        assert other.run() == ended
        assert figures(other) == whole
    finally:
        other.close()


def test_figures_tell_of_huge_pages_where_there_are_some() -> None:
    with machine(TARGETS[0]) as without:
        without.run()
        assert "huge_pages" not in stats.collect(without, 0)
    with machine(TARGETS[0], thp="always") as made:
        made.run_for(40_000)
        told = stats.collect(made, 0)
        shown = told["pages"]["by_size"][str(2 << 20)]
        assert told["huge_pages"]["faults"] >= shown > 0
        assert told["huge_pages"]["page_table_bytes_saved"] == shown * 4096


def test_a_scan_makes_huge_pages_by_and_by(tmp_path: Path) -> None:
    seen: list[Machine] = []
    # What is touched page by page because a huge page does not fit, and fits when the area has grown.
    options = {"thp": "always", "khugepaged_sleep": 1, "before": seen.append}
    output = run(TARGETS[0], "huge", "grown", cwd=tmp_path, **options)
    assert output == "A mapping that grew page by page has 1 huge page after a while.\n"
    assert seen[0].physical.counters.n[Event.HUGE_COLLAPSE] >= 1


@pytest.mark.parametrize("target", TARGETS[:2], ids=str)
def test_watched_memory_in_a_huge_page_is_told_of(target: Target, tmp_path: Path) -> None:
    places: list[int] = []
    seen: list[int] = []

    def look(made: Machine) -> None:
        @made.on_fault
        def note(fault: Fault) -> None:
            if fault.area is not None and fault.area.length == 6 << 20 and not places:
                places.append(fault.area.start + (2 << 20) + 2 * 4096)

    def watch(made: Machine) -> None:
        made.on_access(places[0], 8, lambda access: seen.append(access.address), kinds="r")

    for before in (look, watch):
        output = run(target, "huge", cwd=tmp_path, thp="madvise", aslr=False, before=before)
    assert "The sum of what its pages begin with is 1." in output
    assert seen == places
