"""Turns of tasks that share a CPU: their lengths by the seed, what ends them, what they cost."""

from __future__ import annotations

import struct

import pytest

from aether_emu.linux.abi.signal import SIGKILL, SignalInfo
from aether_emu.linux.debugging import Halt
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task.scheduler import LONGEST_TURN
from aether_emu.linux.task.task import Task
from aether_emu.system import Machine
from tests.guests.running import ISAS, program
from tests.linux.task.scripts import CODE, DATA, SPIN, Several, count_loop

TIMES = 2000
FUTEX_WAIT, PRIVATE = 0, 128
every_isa = pytest.mark.parametrize("isa", ISAS)


ADDITION = {"x86_64": 22, "arm64": 36}  # where in `count_loop`


def raced(isa: str, seed: int, slices: int | None = None, *, watched: bool = False) -> tuple[int, int]:
    """Two threads count in one word, without a lock: (what it holds at the end, virtual blocks).

    The run may come back after some blocks each time, or stop at each addition.
    """
    with Several(isa, seed=seed) as several:
        first = several.calls(code=count_loop(isa, DATA, TIMES))
        several.thread(first, code=count_loop(isa, DATA, TIMES))
        several.machine.cpu.count_blocks()
        halts: list[Halt] = []
        if watched:
            several.machine.breakpoint(CODE + ADDITION[isa], halts.append)
        while not several.machine.scheduler.run(slices):
            pass
        assert first.process.ended is not None
        assert len(halts) == TIMES * watched
        return int.from_bytes(first.process.read(DATA, 4), "little"), several.machine.cpu.blocks


@every_isa
def test_a_lost_update_shows_for_some_seed_and_shows_again_for_that(isa: str) -> None:
    seed, found = next((seed, found) for seed in range(50) if (found := raced(isa, seed))[0] < 2 * TIMES)
    assert raced(isa, seed) == found
    assert raced(isa, seed, slices=37) == found, "a run that returns now and then is the same run"
    assert raced(isa, seed, watched=True) == found, "nor is it another when it is looked at"
    assert found[1] == raced(isa, seed + 1)[1], "virtual time is no matter of where turns end"


@every_isa
def test_a_seed_is_an_interleaving(isa: str) -> None:
    def written(seed: int) -> bytes:
        with Several(isa, seed=seed) as several:
            first = several.calls(("nanosleep", DATA, 0), data=struct.pack("<qq", 1, 0) + b"ab")
            for letter in (DATA + 16, DATA + 17):
                several.thread(first, *[("write", 1, letter, 1)] * 20)
            several.run()
            return bytes(several.out.written)

    several_seeds = [written(seed) for seed in range(12)]
    assert len(set(several_seeds)) > 3
    assert several_seeds[:3] == [written(seed) for seed in range(3)]


CLOCK_LOOP = {  # read the counter, do nothing for some instructions; 2000 times, then end the thread
    "x86_64": "bed0070000 0f31 909090909090 ffce 75f4 31ff b83c000000 0f05",
    "arm64": "01fa80d2 40e03bd5 1f2003d5 1f2003d5 1f2003d5 21040071 61ffff54 000080d2 a80b80d2 010000d4",
}


@every_isa
def test_a_turn_may_end_in_the_block_that_read_a_clock(isa: str) -> None:
    """That block is entered anew and counts once; what was read of it stands until it is over."""
    for seed in range(4):
        with Several(isa, seed=seed) as several:
            first = several.calls(("nanosleep", DATA, 0), data=struct.pack("<qq", 1, 0))  # time is looked at
            for _ in range(2):
                several.thread(first, code=bytes.fromhex(CLOCK_LOOP[isa]))
            several.run()
            assert first.process.ended is not None
            assert first.process.ended.signal == 0


@every_isa
def test_tasks_that_wait_are_not_looked_at_when_others_take_turns(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Task] = []

    def can_go_on(task: Task, truly: object = Task.can_go_on) -> bool:
        looks.append(task)
        assert callable(truly)
        return bool(truly(task))

    with Several(isa) as several:
        first = several.calls(code=SPIN[isa])
        several.thread(first, code=SPIN[isa])
        waiting = [several.thread(first, ("futex", DATA, FUTEX_WAIT | PRIVATE, 0, 0)) for _ in range(12)]
        assert not several.machine.scheduler.run(9 * LONGEST_TURN)
        assert all(task.wait is not None for task in waiting)
        monkeypatch.setattr(Task, "can_go_on", can_go_on)
        assert not several.machine.scheduler.run(9 * LONGEST_TURN)
        assert looks
        assert not {*looks} & {*waiting}


@every_isa
@pytest.mark.parametrize("name", ["family", "signals", "clock"])
def test_a_run_of_many_short_parts_is_the_same_run(isa: str, name: str) -> None:
    """Forks, signals and timers fall between the parts, and into them."""

    def ran(slices: int | None) -> tuple[bytes, int, int, list[int]]:
        out = BufferStream()
        with Machine(isa, seed=5) as machine:
            machine.load(program(isa, name), [name], streams={"stdin": BufferStream(), "stdout": out})
            machine.cpu.count_blocks()
            while not machine.scheduler.run(slices):
                pass
            usage = machine.kernel.physical.counters.n.copy()
            return bytes(out.written), machine.cpu.blocks, machine.kernel.time_now(), usage

    whole = ran(None)
    assert whole[0]
    for slices in (61, 7):
        assert ran(slices) == whole


@every_isa
def test_who_is_alone_goes_on_without_a_way_through_the_scheduler(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until there is something to do: here a signal, which came between two runs."""
    with Several(isa) as several:
        alone = several.calls(code=SPIN[isa])
        scheduler = several.machine.scheduler
        looks: list[bool] = []
        settle = scheduler.settle

        def noted() -> bool:
            looks.append(settle())
            return looks[-1]

        monkeypatch.setattr(scheduler, "settle", noted)
        for _ in range(5):
            assert not scheduler.run(100)
        assert looks == [True]
        alone.process.post(SignalInfo(SIGKILL))
        assert scheduler.run(100)
        assert looks == [True, False]
