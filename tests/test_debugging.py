"""Breakpoints, steps and watched memory: where a run stops, what is told, and what the program cannot see."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.arch.paging import Access
from aether_emu.errors import MachineError
from aether_emu.grants import Grants
from aether_emu.linux.debugging import Halt, Stopped, Why
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.watching import AccessSeen
from aether_emu.system import Machine
from tests.guests.running import program
from tests.small_programs import DATA, EXIT, START, assembled, every_isa, loaded, streams

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


@every_isa
def test_a_run_without_a_handler_stops_behind_the_access(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, COUNT) as machine:
        attached = machine.on_access(DATA, 8, kinds="w")
        stopped = machine.run()
        assert isinstance(stopped, Stopped)
        assert stopped.reason is Why.ACCESS
        assert stopped.access is not None
        assert (stopped.access.kind, stopped.access.address, stopped.access.value) == (Access.WRITE, DATA, 1)
        assert stopped.access.pc < stopped.pc
        assert "write of 8 bytes" in str(stopped)
        attached.detach()
        assert machine.run() == Ended(code=5)


@every_isa
def test_only_what_overlaps_the_range_is_told(tmp_path: Path, isa: str) -> None:
    store = {
        "x86_64": f"mov ebx, {DATA}; mov rax, 0x1122334455667788; mov [rbx + 0x100], rax; mov [rbx + 4], rax;"
        f"mov [rbx + 0xffc], rax; mov edi, 0; {EXIT['x86_64']}",
        "arm64": f"mov x1, #{DATA}; movz x0, #0x7788; str x0, [x1, #0x100]; add x2, x1, #4; str x0, [x2];"
        f"add x2, x1, #0xffc; str x0, [x2]; mov x0, #0; {EXIT['arm64']}",
    }
    seen: list[AccessSeen] = []
    with loaded(tmp_path, isa, store) as machine:
        machine.on_access(DATA + 8, 4, seen.append)
        machine.on_access(DATA + 0x1002, 1, seen.append)
        assert machine.run() == Ended(code=0)
        where = [(one.address, one.size) for one in seen]
        assert where[0] == (DATA + 4, 8)
        assert where[1:] == [(DATA + 0xFFC, 8)] or where[1][0] <= DATA + 0x1002 < where[1][0] + where[1][1]


@every_isa
def test_execution_in_a_range_is_told(tmp_path: Path, isa: str) -> None:
    seen: list[int] = []
    with loaded(tmp_path, isa, COUNT) as machine:
        machine.on_access(LOOP[isa], 1, lambda access: seen.append(access.pc), kinds="x")
        assert machine.run() == Ended(code=5)
        assert seen == [LOOP[isa]] * 5


@every_isa
@pytest.mark.parametrize("name", ["hello", "faults"])
def test_a_program_cannot_see_that_it_is_watched(tmp_path: Path, isa: str, name: str) -> None:
    def run(debugged: bool) -> tuple[object, ...]:
        output = streams()
        with Machine(isa, ram="64M") as machine:
            process = machine.load(program(isa, name), [name], streams=output, grants=Grants(cwd=tmp_path))
            told: list[object] = []
            if debugged:
                machine.breakpoint(process.program.entry, told.append)
                machine.on_access(process.program.stack_pointer, 8, told.append)
                if name == "hello":
                    machine.step(20)
            ended = machine.run()
            assert bool(told) == debugged
            machine.kernel.charge()
            counted = machine.physical.counters.n, machine.kernel.calls_made, machine.clock.now_ns
            return ended, output["stdout"].written, *counted

    assert run(True) == run(False)


@every_isa
def test_executed_blocks_count_as_if_nobody_watched(tmp_path: Path, isa: str) -> None:
    def blocks(*, breaks: bool = False, watches: str = "", steps: int = 0) -> int:
        with loaded(tmp_path, isa, COUNT) as machine:
            machine.kernel.observe_time()
            if breaks:
                machine.breakpoint(LOOP[isa], lambda _halt: None)
                machine.breakpoint(START, lambda _halt: None)
            if watches == "x":
                machine.on_access(START, 4096, lambda _access: None, kinds=watches)
            elif watches:
                machine.on_access(DATA, 8, lambda _access: None, kinds=watches)
            for _ in range(steps):
                machine.step()
            assert machine.run() == Ended(code=5)
            return machine.cpu.blocks

    plain = blocks()
    assert blocks(breaks=True) == plain
    assert blocks(watches="rw") == plain
    assert blocks(watches="x") == plain
    assert blocks(steps=8) == plain
    assert blocks(breaks=True, watches="rw", steps=3) == plain


@every_isa
def test_a_handler_that_raises_ends_the_run_and_another_goes_on(tmp_path: Path, isa: str) -> None:
    def fail(_seen: object) -> None:
        raise OSError("mine")

    with loaded(tmp_path, isa, COUNT) as machine:
        for attached in (machine.breakpoint(LOOP[isa], fail), machine.on_access(DATA, 8, fail)):
            with pytest.raises(OSError, match="mine"):
                machine.run()
            attached.detach()
        assert machine.run() == Ended(code=5)


@every_isa
def test_a_handler_may_stop_the_run(tmp_path: Path, isa: str) -> None:
    with loaded(tmp_path, isa, COUNT) as machine:
        machine.breakpoint(LOOP[isa], lambda _halt: machine.stop())
        stopped = machine.run()
        assert isinstance(stopped, Stopped)
        assert (stopped.reason, stopped.pc) == (Why.ASKED, LOOP[isa])
        with machine.observers.attach(call_entered=lambda _call: machine.stop()):
            machine.debugger.end_steps()
            stopped = machine.run()
            assert isinstance(stopped, Stopped)


@every_isa
def test_a_breakpoint_stands_at_a_symbol(tmp_path: Path, isa: str) -> None:
    with Machine(isa, ram="64M") as machine:
        process = machine.load(
            program(isa, "hello"), ["hello"], streams=streams(), grants=Grants(cwd=tmp_path)
        )
        symbols = process.symbols
        if "main" in symbols:
            machine.breakpoint("main")
            stopped = machine.run()
            assert isinstance(stopped, Stopped)
            assert stopped.pc == symbols["main"]
        else:
            with pytest.raises(MachineError, match="no symbol 'main'"):
                machine.breakpoint("main")


def test_watched_memory_takes_signals_and_calls(tmp_path: Path) -> None:
    """The kernel writes a signal's frame to a watched stack, and reads a watched buffer."""
    source = f"""
        jmp start
        handler: add qword ptr [rdx + 40 + 128], 4
        ret
        back: mov eax, 15; syscall
    start:
        mov ebx, {DATA}
        lea rax, [rip + handler]; mov [rbx], rax
        mov dword ptr [rbx + 8], 0x04000004; lea rax, [rip + back]; mov [rbx + 16], rax
        mov eax, 13; mov edi, 11; mov rsi, rbx; xor edx, edx; mov r10d, 8; syscall
        xor eax, eax; mov rax, [rax + 16]
        mov eax, 1; mov edi, 1; mov rsi, rbx; mov edx, 1; syscall
        push rax
        pop rdi
        {EXIT["x86_64"]}
    """
    seen: list[AccessSeen] = []
    with loaded(tmp_path, "x86_64", source) as machine:
        assert machine.process is not None
        pointer = machine.process.registers.sp
        machine.on_access(pointer - 0x1000, 0x1000, seen.append)
        machine.on_access(DATA, 8, seen.append)
        assert machine.run() == Ended(code=1)
        kinds = {(one.kind, one.size) for one in seen if one.address == pointer - 8}
        assert kinds == {(Access.WRITE, 8), (Access.READ, 8)}
