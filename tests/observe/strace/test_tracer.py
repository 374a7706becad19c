"""When lines are written, and that writing them changes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aether_emu.grants import Grants
from aether_emu.linux.observers import SystemCall
from aether_emu.observe.strace.selection import select
from aether_emu.observe.strace.tracer import Tracer
from aether_emu.system import Machine
from tests.guests.running import program
from tests.observe.strace.record import PROGRAMS
from tests.observe.strace.tracing import traced
from tests.programs.workplace import furnish
from tests.small_programs import written

ISAS = ("x86_64", "arm64")


@pytest.mark.parametrize("isa", ISAS)
def test_each_fault_has_a_line_with_what_became_of_it(isa: str, tmp_path: Path) -> None:
    text = traced(program(isa, "tour"), isa, tmp_path, selection=select(["page-fault"]))
    lines = [line.split(" ", 2)[2] for line in text.splitlines()]
    faults = [line for line in lines if line.startswith("page-fault(")]
    assert lines == [*faults, "+++ exited with 0 +++"]
    outcomes = {re.sub("0x[0-9a-f]+", "N", line.split(" = ")[1]) for line in faults}
    assert {
        "file, frame N",
        "demand-zero, frame N",
        "zero-page, frame N",
        "write-upgrade, frame N",
        "stack-growth, demand-zero, frame N",
        "copy-on-write, frame N",
        "denied, not permitted there",
    } <= outcomes, outcomes
    assert any(re.match(r"page-fault\(0x[0-9a-f]+, fetch, user\) = file", line) for line in faults)
    assert any(", call) = " in line for line in faults)
    assert any(", read, user) = zero-page" in line for line in faults)


@pytest.mark.parametrize("isa", ISAS)
def test_a_call_that_waits_is_written_once_when_it_is_done(isa: str, tmp_path: Path) -> None:
    furnish(tmp_path)
    text = traced(
        PROGRAMS / isa / "calls",
        isa,
        tmp_path,
        selection=select(["clock_getres", "nanosleep", "clock_nanosleep"]),
    )
    rows = [line.split(" ", 2) for line in text.splitlines()]
    times = [round(float(time) * 10**9) for _task, time, _text in rows]
    assert times == sorted(times)
    sleeps = [
        index for index, (_, _, text) in enumerate(rows) if "1000000}" in text and "ABSTIME" not in text
    ]
    assert len(sleeps) == 3
    assert all(times[index] - times[index - 1] >= 1_000_000 for index in sleeps)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("call", "arguments"), [("kill", "1000, SIGKILL"), ("tkill", "1000, SIGKILL")])
def test_of_a_kill_there_is_no_answer_and_no_signal_but_the_end(
    isa: str, call: str, arguments: str, tmp_path: Path
) -> None:
    number = {"kill": {"x86_64": 62, "arm64": 129}, "tkill": {"x86_64": 200, "arm64": 130}}[call][isa]
    source = {
        "x86_64": f"mov edi, 1000; mov esi, 9; mov eax, {number}; syscall",
        "arm64": f"mov x0, #1000; mov x1, #9; mov x8, #{number}; svc #0",
    }[isa]
    text = traced(written(tmp_path, isa, source), isa, tmp_path, selection=select([call, "signal"]))
    assert [line.split(" ", 2)[2] for line in text.splitlines()] == [
        f"{call}({arguments})".ljust(39) + " = ?",
        "+++ killed by SIGKILL +++",
    ]


def test_a_call_that_never_ends_is_shown_unfinished(tmp_path: Path) -> None:
    lines: list[str] = []
    machine = Machine("x86_64", ram="64M")
    machine.load(program("x86_64", "touch"), ["touch", "100", "1000"], grants=Grants(cwd=tmp_path))
    tracer = Tracer(machine, lines.append, select(["read"]))
    observers, task = machine.observers, machine.entry.task
    observers.tell(observers.call_entered, SystemCall(task, 0, "read", (0, 4096, 10, 0, 0, 0)))
    tracer.close()
    machine.close()
    assert [line.split(" ", 2)[2] for line in lines] == ["read(0, <unfinished ...>\n"]


def test_nothing_is_told_once_the_tracer_is_closed(tmp_path: Path) -> None:
    lines: list[str] = []
    machine = Machine("x86_64", ram="64M")
    machine.load(program("x86_64", "hello"), ["hello"], grants=Grants(cwd=tmp_path))
    plain = machine.cpu.on_system_call
    tracer = Tracer(machine, lines.append)
    assert machine.cpu.on_system_call != plain
    tracer.close()
    assert machine.cpu.on_system_call == plain
    lines.clear()
    machine.run()
    machine.close()
    assert lines == []
