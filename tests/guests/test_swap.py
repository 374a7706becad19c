"""Programs with more memory than there is: every byte right, every figure told, and the same in every run."""

from __future__ import annotations

import os
from pathlib import Path
from signal import SIGBUS
from typing import Any

import pytest

from aether_emu import state
from aether_emu.config import Config
from aether_emu.errors import ConfigError
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.ipc.segments import LOCKED, SmallSegment
from aether_emu.linux.task.ended import Ended
from aether_emu.mm.counters import Event
from aether_emu.observe import stats
from aether_emu.system import Machine
from tests.guests.running import TARGETS, Ran, Target, program, run_guest

HERE = Path(__file__).parent
MIB = 1 << 20
every_target = pytest.mark.parametrize("target", TARGETS, ids=str)


def ram_of(target: Target) -> int:
    """MiB that hold half of what `work` asks for."""
    return {4096: 2, 16384: 4, 65536: 8}[target.page_size]


def work(target: Target) -> tuple[str, ...]:
    return "swap", "fill", str(2 * ram_of(target)), "2"


def text(target: Target) -> str:
    return (
        f"every word of {2 * ram_of(target)} MiB is right after 2 rounds\n"
        "parent and child, both right: the child ended with 0\n"
    )


def machine(target: Target, **options: Any) -> tuple[Machine, BufferStream]:
    """One that has the work to do, and what it prints."""
    ram = f"{ram_of(target)}M"
    asked = {"ram": ram, "swap": "64M", "swap_pool": "128K", "page_size": target.page_size} | options
    made = Machine(target.isa, config=Config.load(overrides=asked))
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    made.load(program(target.isa, "swap"), list(work(target)), streams=streams)
    return made, streams["stdout"]


def statistics(made: Machine) -> dict[str, Any]:
    return stats.collect(made, 0.0)


@pytest.mark.parametrize("order", ["mglru", "clock"])
@pytest.mark.parametrize("cpus", [1, 2])
@every_target
def test_a_working_set_of_twice_the_memory_keeps_every_byte(target: Target, cpus: int, order: str) -> None:
    made, out = machine(target, cpus=cpus, reclaim=order, tlbsan=True)
    ended = made.run()
    n = made.physical.counters.n
    assert (ended, bytes(out.written).decode()) == (Ended(code=0), text(target))
    for event in (
        *(Event.FAULT_SWAP, Event.FAULT_SWAP_CACHE, Event.SWAP_AHEAD, Event.SWAP_WRITTEN, Event.SWAP_READ),
        *(Event.REFAULT, Event.REFAULT_SOON, Event.RECLAIM_TAKEN, Event.RECLAIM_CLEAN),
    ):
        assert n[event], event
    made.close()
    assert made.physical.swap is not None
    assert not made.physical.swap.used


@every_target
def test_runs_of_pages_need_no_memory_for_a_huge_page(target: Target) -> None:
    runs = f"{4 * target.page_size >> 10}K"
    made, out = machine(target, thp="always", shmem_thp="always", mthp=runs, khugepaged_sleep=1)
    ended = made.run()
    assert (ended, bytes(out.written).decode()) == (Ended(code=0), text(target))
    huge = statistics(made)["huge_pages"]
    assert huge["runs"] > 50
    assert huge["faults"] == huge["collapses"] == 0
    made.close()


@every_target
def test_two_threads_lose_no_store_to_pages_that_go(target: Target, tmp_path: Path) -> None:
    ram = ram_of(target)
    argv = ("swap", "threads", str(2 * ram), "2")
    ran = run_guest(target, *argv, cwd=tmp_path, ram=f"{ram}M", swap="64M", cpus=2, tlbsan=True)
    assert ran == Ran(Ended(code=0), f"two threads have added up {2 * ram} MiB 2 times\n")


@every_target
def test_the_same_run_takes_the_same_pages(target: Target) -> None:
    seen = []
    for _ in range(2):
        made, _out = machine(target, cpus=2, seed=5)
        stats.prepare(made)
        made.run()
        seen.append(statistics(made))
        made.close()
    assert seen[0] == seen[1]
    assert seen[0]["swap"]["pages_out"] > 100
    rows = [str(cell) for cell in stats.as_table(seen[0]).columns[0]._cells]
    assert {"swap: pages out", "reclaim: frames taken", "faults: swap"} <= set(rows)


@every_target
def test_a_machine_is_captured_with_what_is_in_swap(target: Target) -> None:
    through, _out = machine(target)
    stats.prepare(through)
    through.run()
    made, out = machine(target)
    stats.prepare(made)
    used = 0
    for _ in range(3):
        assert made.run_for(2_000_000) is None
        captured = state.capture(made)
        streams = {"stdout": out, "stdin": BufferStream(), "stderr": BufferStream()}
        restored = state.restore(captured, streams=streams)
        assert restored.physical.swap is not None
        used = max(used, restored.physical.swap.used)
        made.close()
        made = restored
    assert used
    assert made.run() == Ended(code=0)
    assert bytes(out.written).decode() == text(target)
    assert statistics(made) == statistics(through)
    made.close()
    through.close()


def test_a_segment_of_system_v_goes_unless_it_is_locked_and_is_captured_away() -> None:
    made, out = machine(TARGETS[0], ram="16M")
    segment = made.kernel.with_system_v().segments.make(7, 8192, 0o600, 1000)
    frame, _count = segment.frames(0, 1, write=True)
    made.physical.page_bytes(frame)[:5] = b"words"
    reclaim = made.physical.reclaim
    assert reclaim is not None
    segment.mode |= LOCKED
    assert reclaim.take([frame]) == 0
    segment.mode &= ~LOCKED
    assert reclaim.take([frame]) == 1
    streams = {"stdout": out, "stdin": BufferStream(), "stderr": BufferStream()}
    restored = state.restore(state.capture(made), streams=streams)
    (again,) = restored.kernel.with_system_v().segments.all()
    assert isinstance(again, SmallSegment)
    assert (again.frames_by_page(), list(again.slots_by_page())) == ({}, [0])
    frame, _count = again.frames(0, 1, write=False)
    assert bytes(restored.physical.page_bytes(frame)[:5]) == b"words"
    restored.close()
    made.close()


@every_target
def test_what_is_told_of_pages_that_are_away(target: Target, tmp_path: Path) -> None:
    ran = run_guest(target, "swap", "tell", cwd=tmp_path, swap="64M", swap_readahead=1)
    assert ran.output == (HERE / "swap-tell.txt").read_text()
    assert ran.ended == Ended(code=0)


@every_target
def test_root_turns_the_area_off_and_on(target: Target, tmp_path: Path) -> None:
    ran = run_guest(target, "swap", "off", cwd=tmp_path, swap="64M", uid=0)
    assert ran.output == (HERE / "swap-off.txt").read_text()
    assert run_guest(target, "swap", "off", cwd=tmp_path, swap="64M").output == "swapoff: EPERM\n"


def test_without_a_swap_area_nothing_goes(tmp_path: Path) -> None:
    target = TARGETS[0]
    ran = run_guest(target, *work(target), cwd=tmp_path, ram="2M")
    assert ran.ended.status == 137


@every_target
def test_the_process_that_has_most_goes_when_memory_is_out(target: Target, tmp_path: Path) -> None:
    told: list[str] = []

    def listen(made: Machine) -> None:
        made.kernel.tell = told.append

    ran = run_guest(target, "hog", "pair", "5", cwd=tmp_path, before=listen, ram="8M")
    assert ran.output == "the child ended with signal 9, the parent has what it needs\n"
    (table,) = told
    head, _columns, parent, child, killed = table.splitlines()
    assert head.startswith("out of memory: hog (1000) needs a page")
    assert parent.split()[:4] == ["[", "1000]", "1000", "1000"]
    assert int(child.split()[5]) > int(parent.split()[5])
    assert killed.startswith("killed: hog (1001), which counts most")


@every_target
def test_what_the_first_process_had_serves_those_that_outlive_it(target: Target, tmp_path: Path) -> None:
    ran = run_guest(target, "hog", "orphan", "5", cwd=tmp_path, ram="8M", tlbsan=True)
    assert ran == Ran(Ended(code=0), "the parent has ended, and its memory is the child's\n")


def test_that_process_can_be_looked_at_and_shows_nothing_while_others_go_on() -> None:
    made = Machine("x86_64", config=Config.load(overrides={"ram": "8M"}))
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    process = made.load(program("x86_64", "hog"), ["hog", "orphan", "5"], streams=streams)
    while not process.released:
        assert made.run_for(1000) is None
    assert statistics(made)["pages"]["by_state"]["anonymous"] == len(process.areas) == 0
    assert made.run() == Ended(code=0)
    made.close()


# ---- the file of the host


@pytest.fixture
def swap_file(tmp_path: Path) -> Path:
    path = tmp_path / "swap"
    path.touch()
    os.truncate(path, 64 * MIB)
    return path


@every_target
def test_a_swap_file_of_the_host_is_used_and_left_as_long_as_it_was(target: Target, swap_file: Path) -> None:
    made, out = machine(target, swap_file=str(swap_file))
    with pytest.raises(ConfigError, match="is taken: one that no other machine uses"):
        machine(target, swap_file=str(swap_file))
    assert made.run() == Ended(code=0)
    assert bytes(out.written).decode() == text(target)
    made.close()
    assert swap_file.stat().st_size == 64 * MIB
    assert swap_file.stat().st_blocks
    machine(target, swap_file=str(swap_file))[0].close()  # it is nobody's any more


def test_a_file_that_does_not_serve_is_refused_in_a_line(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(b"x")
    for path, why in (
        (tmp_path / "none", "cannot be opened"),
        (short, "at least 64M long"),
        (tmp_path, "cannot be opened"),
        (Path("/dev/null"), "a regular file"),
    ):
        with pytest.raises(ConfigError, match=why):
            machine(TARGETS[0], swap_file=str(path))


@every_target
def test_pages_of_a_file_that_somebody_cuts_off_are_lost_with_sigbus(target: Target, swap_file: Path) -> None:
    made, _out = machine(target, swap_file=str(swap_file))
    told: list[str] = []
    made.kernel.tell = told.append
    while not made.physical.counters.n[Event.SWAP_READ]:
        assert made.run_for(200_000) is None
    os.truncate(swap_file, 4096)
    ended = made.run()
    assert isinstance(ended, Ended)
    assert ended.signal == SIGBUS
    assert told == [
        "the swap file was cut off or changed: programs get SIGBUS where they touch pages that are lost\n"
    ]
    made.close()


@every_target
def test_a_full_disk_is_told_once_and_pages_stay_in_memory(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _out = machine(target, swap_pool=1 << 16)

    def refuse(_fd: int, _data: bytes, _offset: int) -> int:
        raise OSError(28, "No space left on device")

    told: list[str] = []
    made.kernel.tell = told.append
    monkeypatch.setattr(os, "pwrite", refuse)
    ended = made.run()
    assert ended == Ended(signal=9, why="out of memory")
    assert told[0] == "the swap file takes no more pages: No space left on device\n"
    assert "needs a page" in told[1]
    made.close()
