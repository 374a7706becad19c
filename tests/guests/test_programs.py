"""Whole programs print what real Linux printed, on both ISAs and by both ways to the CPU's state."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from aether_emu.linux.kernel import Interrupted
from aether_emu.linux.process import Ended
from aether_emu.system import Machine
from tests.guests.running import ISAS, expected, program, run_guest

COMMANDS = ("hello", "tour", "signals", "smc", "wild", "privilege", "clock", "maps", "faults all")
RUNS = [*((arch, command) for arch in ISAS for command in COMMANDS), ("x86_64", "avx")]
DEATHS = [
    (arch, name, signal_name)
    for arch in ISAS
    for name, signal_name in (line.split()[:2] for line in expected(arch, "faults-all").splitlines())
]
# Of what only a strict CPU checks, the part whose signal this engine gets right.
STRICT_KNOWN = {
    "x86_64": {"noncanonicaljump": "SIGSEGV", "readmodifywild": "SIGSEGV"},
    "arm64": {},
}


@pytest.mark.parametrize("live_state", [True, False], ids=["live state", "state by API"])
@pytest.mark.parametrize(("arch", "command"), RUNS)
def test_a_program_prints_what_linux_printed(
    arch: str, command: str, live_state: bool, tmp_path: Path
) -> None:
    ran = run_guest(arch, *command.split(), cwd=tmp_path, live_state=live_state)
    assert ran.output == expected(arch, command.replace(" ", "-"))
    assert ran.ended == Ended(code=0)


@pytest.mark.parametrize(("arch", "name", "signal_name"), DEATHS)
def test_an_unhandled_fault_ends_a_program_by_its_signal(
    arch: str, name: str, signal_name: str, tmp_path: Path
) -> None:
    ran = run_guest(arch, "faults", name, cwd=tmp_path)
    assert ran.ended.status == 128 + signal.Signals[signal_name]


@pytest.mark.parametrize("arch", ISAS)
def test_strict_checks_that_the_engine_lacks_end_nothing_but_the_instruction(
    arch: str, tmp_path: Path
) -> None:
    ran = run_guest(arch, "faults", "strict", cwd=tmp_path)
    rows = dict(line.split()[:2] for line in ran.output.splitlines())
    assert ran.ended == Ended(code=0)
    assert (
        rows.keys() == dict(line.split()[:2] for line in expected(arch, "faults-strict").splitlines()).keys()
    )
    assert rows.items() >= STRICT_KNOWN[arch].items()


def test_vector_code_that_the_cpu_does_not_have_is_an_illegal_instruction(tmp_path: Path) -> None:
    assert run_guest("x86_64", "avx", "bare", cwd=tmp_path).ended.status == 128 + signal.SIGILL


@pytest.mark.parametrize("arch", ISAS)
def test_one_seed_gives_one_run_and_another_seed_another(arch: str, tmp_path: Path) -> None:
    first, again, other = (
        run_guest(arch, "clock", "raw", cwd=tmp_path, seed=seed).output for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("arch", ISAS)
def test_a_spinning_program_is_ended_from_another_thread(arch: str, tmp_path: Path) -> None:
    over = threading.Event()

    def ask_until_it_is_over(machine: Machine) -> None:
        while not over.wait(0.001):
            machine.cpu.interrupt()

    def begin(machine: Machine) -> None:
        threading.Thread(target=ask_until_it_is_over, args=(machine,), daemon=True).start()

    try:
        with pytest.raises(Interrupted):
            run_guest(arch, "spin", "quiet", cwd=tmp_path, before=begin)
    finally:
        over.set()


@pytest.mark.parametrize("arch", ISAS)
@pytest.mark.parametrize("how", ["refused", "killed"])
def test_a_program_that_wants_all_memory_gets_no_more_than_there_is(
    arch: str, how: str, tmp_path: Path
) -> None:
    machines: list[Machine] = []
    arguments = ["touch"] if how == "killed" else []
    ran = run_guest(arch, "hog", *arguments, cwd=tmp_path, before=machines.append, ram="16M")
    assert ran.ended == Ended(code=0) if "ENOMEM" in ran.output else ran.ended.signal == signal.SIGKILL
    assert 12 << 20 < machines[0].kernel.peak_memory() <= 16 << 20


def test_every_program_of_one_isa_is_run_here_or_named_as_a_workload() -> None:
    workloads = {"alu", "stream", "randload", "touch", "getppid"}  # what the benchmarks run
    named = {command.split()[0] for command in COMMANDS} | {"avx", "spin", "hog"}
    assert {path.name for path in program("x86_64", "hello").parent.iterdir()} == named | workloads
