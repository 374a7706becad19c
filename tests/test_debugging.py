"""Breakpoints, steps and watched memory: where a run stops, what is told, and what the program cannot see."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.arch.paging import Access
from aether_emu.errors import MachineError
from aether_emu.linux.debugging import Halt, Stopped, Why
from aether_emu.linux.task.process import Ended
from aether_emu.linux.watching import AccessSeen
from tests.small_programs import DATA, EXIT, START, assembled, every_isa, loaded

# Counts to 5 in memory, with a read-modify-write that faults the first time, and exits with the count.
COUNT = {
    "x86_64": f"""
        mov rbx, {DATA}
        mov ecx, 5
    again:
        inc qword ptr [rbx]
        dec ecx
        jnz again
        mov edi, [rbx]
    """
    + EXIT["x86_64"],
    "arm64": f"""
        mov x19, #{DATA}
        mov x20, #5
    again:
        ldr x0, [x19]
        add x0, x0, #1
        str x0, [x19]
        subs x20, x20, #1
        b.ne again
        ldr x0, [x19]
    """
    + EXIT["arm64"],
}
COUNTER = {"x86_64": "ecx", "arm64": "x20"}
LOOP = {
    "x86_64": START + len(assembled("x86_64", f"mov rbx, {DATA}; mov ecx, 5")),
    "arm64": START + 8,
}
IN_LOOP = {"x86_64": 3, "arm64": 5}
"""Instructions of one round."""
BEFORE_LOOP = 2


@every_isa
def test_a_run_stops_at_a_breakpoint_every_time_it_comes_by(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, COUNT) as machine:
        first = machine.breakpoint(START)
        machine.breakpoint(LOOP[isa])
        assert machine.process is not None
        for place in (START, *[LOOP[isa]] * 5):
            stopped = machine.run()
            assert isinstance(stopped, Stopped)
            assert (stopped.reason, stopped.pc, machine.process.registers.pc) == (
                Why.BREAKPOINT,
                place,
                place,
            )
            with pytest.raises(MachineError, match="has not ended: stopped at"):
                _ = stopped.status
        first.detach()
        assert machine.run() == Ended(code=5)


@every_isa
def test_a_handler_at_a_breakpoint_changes_registers_and_the_run_goes_on(tmp_path: Path, isa: str) -> None:
    pcs = []

    def shorten(halt: Halt) -> None:
        pcs.append(halt.pc)
        halt.registers["rcx" if isa == "x86_64" else "x20"] = 1

    with loaded(tmp_path, isa, COUNT) as machine:
        machine.breakpoint(LOOP[isa], shorten)
        assert machine.run() == Ended(code=1)
        assert pcs == [LOOP[isa]]


@every_isa
def test_steps_count_instructions_whatever_faults_on_the_way(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, COUNT) as machine:
        assert machine.process is not None
        registers = machine.process.registers
        stopped = machine.step(BEFORE_LOOP)
        assert isinstance(stopped, Stopped)
        assert (stopped.reason, stopped.pc) == (Why.STEP, LOOP[isa])
        for _ in range(2):  # the first round faults, twice
            machine.step(IN_LOOP[isa])
            assert registers.pc == LOOP[isa]
        assert machine.process.read(DATA, 8) == (2).to_bytes(8, "little")
        for _ in range(3 * IN_LOOP[isa]):
            machine.step()
        assert registers.pc > LOOP[isa]
        assert machine.step(100) == Ended(code=5)


@every_isa
def test_a_step_that_meets_a_breakpoint_stops_there(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, COUNT) as machine:
        machine.breakpoint(LOOP[isa])
        stopped = machine.step(BEFORE_LOOP + 1)
        assert isinstance(stopped, Stopped)
        assert (stopped.reason, stopped.pc) == (Why.BREAKPOINT, LOOP[isa])
        stopped = machine.step(IN_LOOP[isa] - 1)
        assert isinstance(stopped, Stopped)
        assert stopped.reason is Why.STEP


@every_isa
def test_every_access_to_watched_bytes_is_told_exactly(tmp_path: Path, isa: str) -> None:
    seen: list[AccessSeen] = []
    with loaded(tmp_path, isa, COUNT) as machine:
        machine.on_access(DATA, 8, seen.append)
        assert machine.run() == Ended(code=5)
        accesses = [(one.kind, one.address, one.size, one.value) for one in seen]
        size = 4 if isa == "x86_64" else 8
        assert accesses == [
            entry
            for count in range(5)
            for entry in ((Access.READ, DATA, 8, count), (Access.WRITE, DATA, 8, count + 1))
        ] + [(Access.READ, DATA, size, 5)]
        assert len({one.pc for one in seen}) == (2 if isa == "x86_64" else 3)
