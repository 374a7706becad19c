"""Several processes on one machine, by the Python API: who is there, and whose what is told is."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_emu.linux.debugging import Halt, Stopped
from aether_emu.linux.handlers import Call
from aether_emu.system import Machine
from tests.guests.running import ISAS
from tests.small_programs import DATA, EXIT, START, assembled, loaded

# A fork; both go on behind it and store to DATA, the child exits, the first waits for it and asks getppid.
_FORK = {
    "x86_64": "mov eax, 57; syscall",
    "arm64": "mov x0, #17\nmov x1, #0\nmov x2, #0\nmov x3, #0\nmov x4, #0\nmov x8, #220\nsvc #0",
}
_BEHIND = {
    "x86_64": f"""
        mov rbx, {DATA}
        mov [rbx], rax
        test eax, eax
        jz over
        mov rdi, -1; xor esi, esi; xor edx, edx; xor r10, r10
        mov eax, 61; syscall
        mov eax, 110; syscall
        xor edi, edi
    over:
        {EXIT["x86_64"]}
    """,
    "arm64": f"""
        mov x19, #{DATA}
        str x0, [x19]
        cbz x0, over
        mov x0, #-1
        mov x1, #0
        mov x2, #0
        mov x3, #0
        mov x8, #260
        svc #0
        mov x8, #173
        svc #0
        mov x0, #0
    over:
        {EXIT["arm64"]}
    """,
}


def _source(isa: str) -> str:
    return f"{_FORK[isa]}\n{_BEHIND[isa]}"


@pytest.mark.parametrize("isa", ISAS)
def test_processes_come_and_go(tmp_path: Path, isa: str) -> None:
    with Machine(isa, ram="8M", aperture="4M") as empty:
        assert empty.processes == []
    with loaded(tmp_path, isa, _source(isa)) as machine:
        seen: list[tuple[str, list[int], list[bool]]] = []

        def look(call: Call) -> None:
            processes = machine.processes
            seen.append(
                (call.name, [each.pid for each in processes], [each.ended is None for each in processes])
            )

        machine.on_system_call(look, ["wait4", "exit_group", "getppid"])
        first = machine.process
        assert first is not None and machine.processes == [first]
        assert machine.run().status == 0
        assert machine.processes == [first]
    assert sorted(seen) == [
        ("exit_group", [1000], [True]),
        ("exit_group", [1000, 1001], [True, True]),
        ("getppid", [1000], [True]),
        ("wait4", [1000, 1001], [True, True]),
    ]


@pytest.mark.parametrize("isa", ISAS)
def test_a_breakpoint_and_watched_memory_are_those_of_every_process(tmp_path: Path, isa: str) -> None:
    behind = START + len(assembled(isa, _FORK[isa]))
    with loaded(tmp_path, isa, _source(isa)) as machine:
        halted: list[int] = []
        stored: list[tuple[int, int | None]] = []

        def halt(seen: Halt) -> None:
            halted.append(seen.process.pid)

        machine.breakpoint(behind, halt)
        machine.on_access(DATA, 8, lambda seen: stored.append((seen.process.pid, seen.value)), kinds="w")
        assert not isinstance(machine.run(), Stopped)
    assert sorted(halted) == [1000, 1001]
    assert sorted(stored) == [(1000, 1001), (1001, 0)]


@pytest.mark.parametrize("isa", ISAS)
def test_a_stop_says_whose_it_is(tmp_path: Path, isa: str) -> None:
    behind = START + len(assembled(isa, _FORK[isa]))
    with loaded(tmp_path, isa, _source(isa)) as machine:
        machine.breakpoint(behind)
        stops = [machine.run(), machine.run()]
        assert all(isinstance(stop, Stopped) for stop in stops)
        assert sorted(stop.process.pid for stop in stops if isinstance(stop, Stopped)) == [1000, 1001]
        child = machine.processes[1]
        child.write(DATA + 64, b"the child's")
        assert machine.processes[0].read(DATA + 64, 11) == bytes(11)
        assert machine.run().status == 0
