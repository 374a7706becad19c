"""What tasks and processes have used: time and faults add up, whoever was on the CPU."""

from __future__ import annotations

from copy import copy

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.task import family
from aether_emu.mm.counters import Event
from aether_emu.state import capture, restore
from aether_emu.system import Machine
from tests.guests.running import program
from tests.linux.task.scripts import SPIN, Several

every_isa = pytest.mark.parametrize("isa", ["x86_64", "arm64"])


@every_isa
def test_the_time_of_all_that_ran_is_what_has_passed(isa: str) -> None:
    with Several(isa) as several:
        tasks = [several.calls(code=SPIN[isa]) for _ in range(3)]
        kernel = several.machine.kernel
        kernel.observe_time()
        assert not several.machine.scheduler.run(400_000)
        kernel.observe_time()
        used = [task.process.used().time for task in tasks]
        assert sum(used) == kernel.clock.busy_ns
        assert all(used)
        assert used == [task.usage.time for task in tasks]
        assert all(task.usage.preemptions for task in tasks)


@every_isa
def test_a_parent_gets_what_its_child_used_when_it_waits_for_it(isa: str) -> None:
    with Several(isa) as several:
        parent, child = (several.calls(code=SPIN[isa]).process for _ in range(2))
        family.adopt(parent, child)
        assert not several.machine.scheduler.run(100_000)
        child.usage_of_children.time = 5
        family.parent_takes_usage(child)
        assert parent.usage_of_children.time == child.usage.time + 5
        assert parent.usage_of_children.faults == child.usage.faults


@every_isa
def test_who_uses_the_machine_is_known_to_a_restored_one(isa: str) -> None:
    path = program(isa, "hello")
    grants = Grants(cwd=path.parent)
    with Machine(isa, ram="8M", aperture="4M") as machine:
        process = machine.load(path, grants=grants)
        assert machine.run_for(20) is None
        kept, before = capture(machine), copy(process.used())
        with restore(kept, grants=grants) as again:
            assert again.process is not None
            assert again.process.used() == before
            for each in (machine, again):
                each.physical.counters.n[Event.FLUSH_ALL] += 1000  # whose is that?
            assert again.process.used() == process.used()
            assert process.used().system > before.system
