"""Breakpoints, steps and watched memory on several CPUs: they hold on each, and no program sees them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from aether_emu.linux.debugging import Stopped, Why
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.watching import AccessSeen
from aether_emu.observe import stats
from aether_emu.system import Machine
from tests.moments import PROGRAMS
from tests.small_programs import every_isa

_WORDS = {"flushed": ["threads"], "deferred": ["shootdown", "2"]}
_DELAY = {"shootdown_delay": 5000}


def _machine(isa: str, words: list[str], **options: Any) -> tuple[Machine, dict[str, BufferStream]]:
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    machine = Machine(isa, ram="32M", aperture="8M", seed=5, cpus=2, **options)
    machine.load(PROGRAMS / isa / words[0], words, streams=streams)
    stats.prepare(machine)
    return machine, streams


def _told(machine: Machine, streams: dict[str, BufferStream], status: int) -> tuple[object, ...]:
    written = bytes(streams["stdout"].written), bytes(streams["stderr"].written)
    return status, written, stats.collect(machine, 0)


def _plain(isa: str, words: list[str], **options: Any) -> tuple[tuple[object, ...], list[int]]:
    """What the run leaves, and where calls were made from, the most frequent place first."""
    places: Counter[int] = Counter()
    machine, streams = _machine(isa, words, **options)
    with machine:
        machine.observers.attach(call_entered=lambda call: places.update([call.task.cpu.pc]))
        status = machine.run().status
        return _told(machine, streams, status), [place for place, _times in places.most_common()]


def _in_loops(isa: str, words: list[str], **options: Any) -> set[int]:
    """Where each CPU is in the midst of the run."""
    machine, _streams = _machine(isa, words, **options)
    places: set[int] = set()
    with machine:
        while machine.run_for(9_000) is None:
            places |= {entry.cpu.pc for entry in machine.entries if entry.percpu.inside}
    return places


@every_isa
@pytest.mark.parametrize("rule", ["flushed", "deferred"])
def test_stops_and_steps_change_nothing_that_the_program_does(isa: str, rule: str) -> None:
    """In loops and behind calls, on both CPUs, also while one of them goes on stale."""
    options = {"shootdown": rule, **_DELAY}
    plain, places = _plain(isa, _WORDS[rule], **options)
    machine, streams = _machine(isa, _WORDS[rule], **options)
    seen: list[tuple[int | None, int]] = []
    with machine:
        breaks = [
            machine.breakpoint(place) for place in (*places[1:8], *_in_loops(isa, _WORDS[rule], **options))
        ]
        ended = machine.run()
        while isinstance(ended, Stopped):
            seen.append((ended.cpu, ended.task.tid))
            if len(seen) == 60:
                for each in breaks:
                    each.detach()
            ended = machine.step(7) if len(seen) % 3 == 0 and len(seen) < 60 else machine.run()
        assert _told(machine, streams, ended.status) == plain
    if rule == "deferred":
        assert {cpu for cpu, _task in seen} == {0, 1}
        assert len({task for _cpu, task in seen}) > 1
    assert len(seen) > 2


@every_isa
def test_a_step_is_of_the_task_that_stopped(isa: str) -> None:
    _plain_run, places = _plain(isa, ["threads"])
    machine, _streams = _machine(isa, ["threads"])
    with machine:
        stop = machine.breakpoint(places[0])
        tasks = set()
        for _ in range(12):
            stopped = machine.run()
            assert isinstance(stopped, Stopped)
            stop.detach()
            tasks.add(stopped.task)
            stepped = machine.step(400)
            assert isinstance(stepped, Stopped)
            assert (stepped.reason, stepped.task) == (Why.STEP, stopped.task)
            assert f"in task {stopped.task.tid} on CPU {stepped.cpu}" in str(stepped)
            assert machine.run_for(1500) is None
            stop = machine.breakpoint(places[0])
        stop.detach()
        assert machine.run().status == 0
    assert len(tasks) > 1


@every_isa
def test_accesses_of_every_cpu_are_told_and_change_nothing(isa: str) -> None:
    """The stack of the first thread, which goes from one CPU to another."""
    words = ["threads"]
    plain, _places = _plain(isa, words)
    machine, streams = _machine(isa, words)
    seen: list[AccessSeen] = []
    cpus = set()

    def note(access: AccessSeen) -> None:
        seen.append(access)
        cpus.add(machine.entry.percpu.index)
        if len(cpus) == 2:
            watched.detach()

    with machine:
        assert machine.process is not None
        watched = machine.on_access(machine.process.registers.sp - 256, 512, note, kinds="w")
        status = machine.run().status
        assert _told(machine, streams, status) == plain
    assert seen
    assert cpus == {0, 1}
