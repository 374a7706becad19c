"""Whole programs print what real Linux printed, on every kind of machine, by both ways to the CPU's state."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.scheduler import Interrupted
from aether_emu.system import Machine
from tests.guests.running import ISAS, LARGE_PAGES, TARGETS, Ran, Target, expected, program, run_guest

COMMANDS = (
    *("hello", "tour", "signals", "frames", "smc", "wild", "wide", "privilege", "clock", "maps", "workset"),
    "vdso",
    "freed",
    "family",
    "faults all",
    *("maps file", "workset file"),
)
ONE_ISA = [(TARGETS[0], "avx"), (TARGETS[0], "vsyscall")]
RUNS = [*((target, command) for target in TARGETS for command in COMMANDS), *ONE_ISA]
# By the API the state is the same whatever the size of pages: a few programs are enough for the larger ones.
BY_API = [(t, c) for t, c in RUNS if t not in LARGE_PAGES or c in ("tour", "signals", "workset file")]
DEATHS = [
    (target, name, signal_name)
    for target in TARGETS
    for name, signal_name in (line.split()[:2] for line in expected(target.isa, "faults-all").splitlines())
]
# Of what only a strict CPU checks, the part whose signal this engine gets right.
STRICT_KNOWN = {
    "x86_64": {
        "noncanonicaljump": "SIGSEGV",
        "noncanonicalstack": "SIGBUS",
        "readmodifywild": "SIGSEGV",
        "icebp": "SIGTRAP",
    },
    "arm64": {},
}

every_target = pytest.mark.parametrize("target", TARGETS, ids=str)


def _prints_what_linux_printed(target: Target, command: str, cwd: Path, *, live_state: bool) -> None:
    ran = run_guest(target, *command.split(), cwd=cwd, live_state=live_state, writable=True)
    assert ran.output == expected(target.isa, command.replace(" ", "-"))
    assert ran.ended == Ended(code=0)


@pytest.mark.parametrize(("target", "command"), RUNS, ids=str)
def test_a_program_prints_what_linux_printed(target: Target, command: str, tmp_path: Path) -> None:
    _prints_what_linux_printed(target, command, tmp_path, live_state=True)


@pytest.mark.parametrize(("target", "command"), BY_API, ids=str)
def test_it_prints_the_same_where_state_is_reached_by_the_api(
    target: Target, command: str, tmp_path: Path
) -> None:
    _prints_what_linux_printed(target, command, tmp_path, live_state=False)


@pytest.mark.parametrize(("target", "name", "signal_name"), DEATHS, ids=str)
def test_an_unhandled_fault_ends_a_program_by_its_signal(
    target: Target, name: str, signal_name: str, tmp_path: Path
) -> None:
    ran = run_guest(target, "faults", name, cwd=tmp_path)
    assert ran.ended.status == 128 + signal.Signals[signal_name]


@every_target
def test_strict_checks_that_the_engine_lacks_end_nothing_but_the_instruction(
    target: Target, tmp_path: Path
) -> None:
    ran = run_guest(target, "faults", "strict", cwd=tmp_path)
    rows = dict(line.split()[:2] for line in ran.output.splitlines())
    on_linux = dict(line.split()[:2] for line in expected(target.isa, "faults-strict").splitlines())
    assert ran.ended == Ended(code=0)
    assert rows.keys() == on_linux.keys()
    assert rows.items() >= STRICT_KNOWN[target.isa].items()


@every_target
def test_a_frame_below_an_alternate_stack_kills_on_x86_64_and_lies_there_on_arm64(
    target: Target, tmp_path: Path
) -> None:
    ran = run_guest(target, "frames", "overflow", cwd=tmp_path)
    if target.isa == "x86_64":
        assert ran == Ran(Ended(signal=signal.SIGSEGV, why="SIGSEGV"), "")
    else:
        assert ran == Ran(Ended(code=0), "2 frames\n")


def test_vector_code_that_the_cpu_does_not_have_is_an_illegal_instruction(tmp_path: Path) -> None:
    assert run_guest(TARGETS[0], "avx", "bare", cwd=tmp_path).ended.status == 128 + signal.SIGILL


@every_target
def test_one_seed_gives_one_run_and_another_seed_another(target: Target, tmp_path: Path) -> None:
    first, again, other = (
        run_guest(target, "clock", "raw", cwd=tmp_path, seed=seed).output for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


@every_target
def test_a_spinning_program_is_ended_from_another_thread(target: Target, tmp_path: Path) -> None:
    over = threading.Event()

    def ask_until_it_is_over(machine: Machine) -> None:
        while not over.wait(0.001):
            machine.cpu.interrupt()

    def begin(machine: Machine) -> None:
        threading.Thread(target=ask_until_it_is_over, args=(machine,), daemon=True).start()

    try:
        with pytest.raises(Interrupted):
            run_guest(target, "spin", "quiet", cwd=tmp_path, before=begin)
    finally:
        over.set()


@every_target
@pytest.mark.parametrize("how", ["refused", "killed"])
def test_a_program_that_wants_all_memory_gets_no_more_than_there_is(
    target: Target, how: str, tmp_path: Path
) -> None:
    machines: list[Machine] = []
    arguments = ["touch"] if how == "killed" else []
    ran = run_guest(target, "hog", *arguments, cwd=tmp_path, before=machines.append, ram="16M")
    assert ran.ended == Ended(code=0) if "ENOMEM" in ran.output else ran.ended.signal == signal.SIGKILL
    assert 12 << 20 < machines[0].kernel.peak_memory() <= 16 << 20


def test_every_program_of_one_isa_is_run_here_or_named_as_a_workload() -> None:
    workloads = {"alu", "stream", "randload", "touch", "getppid", "scale"}  # what the benchmarks run
    named = {command.split()[0] for command in COMMANDS} | {
        "avx",
        "vsyscall",
        "spin",
        "hog",
        "orders",
        "swap",
        "picture",  # these three in test_devices
        "registers",
        "copier",
    }
    named |= {"huge", "merge"}  # in test_huge and test_merge
    assert {path.name for path in program("x86_64", "hello").parent.iterdir()} == named | workloads


@pytest.mark.parametrize("isa", ISAS)
def test_what_linux_printed_is_all_compared_with(isa: str) -> None:
    """A recorded output that no run is held against would only look like a proof."""
    folder = program(isa, "hello").parents[2] / "expected"
    recorded = {path.stem for path in (*folder.glob("*.txt"), *(folder / isa).glob("*.txt"))}
    assert recorded == {command.replace(" ", "-") for _, command in RUNS} | {
        "faults-strict",
        "wide-la57",  # in test_la57
        "huge",  # in test_huge
        "merge",  # in test_merge
    }
