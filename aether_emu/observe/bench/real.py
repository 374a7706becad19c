"""Whole programs of the host: their run on the machine beside the engine's own time for it.

Two runs of the same program belong together. The whole run is our side. Its time without that in our
handlers, and without that of the look at new blocks, is the engine's own: the floor. All of them are of one
run, so that a host that disturbs it disturbs them alike. The floor contains what the engine takes to call a
hook before each block, by which virtual time passes. The second run counts no blocks, and so tells how much
that is. Start-up is apart.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import ParamSpec, TypeVar

from aether_emu.errors import AetherError, ProgramError
from aether_emu.grants import Grants, program_isa
from aether_emu.linux.files.streams import BufferStream
from aether_emu.observe.bench.figure import Figure, NotMeasured, collector_off, now
from aether_emu.observe.bench.guests import same_output
from aether_emu.system import Machine

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Work:
    """What a program of the host is given to do. `reads` is its standard input, `status` how it ends."""

    name: str
    what: str
    arguments: tuple[str, ...]
    reads: Callable[[], bytes] = bytes
    status: int = 0


def _library(name: str) -> str:
    """A file of Python's library: a text that every host has."""
    return str(Path(sysconfig.get_path("stdlib"), name))


def _script() -> bytes:
    functions = (f"export function f{i}(a, b) {{ return a * {i} + b; }}" for i in range(300))
    return "\n".join(functions).encode()


_PARSE = "import textwrap, ast; print(len(ast.dump(ast.parse(open(textwrap.__file__).read()))))"
_SUM = "for ((i = 0; i < 20000; i++)); do ((s += i * i)); done; echo $s"

WORKS: tuple[Work, ...] = (
    Work("python3", "parse a module of 500 lines", ("-I", "-S", "-c", _PARSE)),
    Work(
        "git",
        "compare two modules letter by letter",
        ("diff", "--no-index", "--word-diff-regex=.", _library("argparse.py"), _library("typing.py")),
        status=1,
    ),
    Work(
        "ruff",
        "format a module of 2,500 lines",
        ("format", "--isolated", "--stdin-filename", "module.py", "-"),
        lambda: Path(_library("argparse.py")).read_bytes(),
    ),
    Work("esbuild", "make 300 functions short", ("--minify",), _script),
    Work("bash", "a loop with 20,000 rounds", ("-c", _SUM)),
)

_ROOT = Grants(root=Path("/"))


@dataclass(frozen=True, slots=True)
class Timed:
    """One run: CPU seconds of the whole, in the handlers of faults (and traps) and of calls, and before.

    `scan` are those for the look at new blocks.
    """

    total: float
    faults: float
    calls: float
    scan: float
    start: float
    output: bytes

    @property
    def engine(self) -> float:
        """What is left without our handlers and the scan."""
        return self.total - self.faults - self.calls - self.scan


def find(name: str, isa: str) -> str:
    """The host's program of that name and ISA. Raises NotMeasured."""
    own = Path(sys.executable)
    if name == "python3":
        candidates = [own]
    else:
        candidates = [Path(folder, name) for folder in (str(own.parent), *os.get_exec_path())]
    others = set()
    for path in candidates:
        if not path.is_file():
            continue
        try:
            found = program_isa(str(path.resolve()), _ROOT)
        except ProgramError:
            continue  # a script, or a program of a kind that does not run here
        if found == isa:
            return str(path.resolve())
        others.add(found)
    raise NotMeasured(f"the host's is for {' and '.join(sorted(others))}" if others else "not on this host")


class _Clock:
    """Adds up the time in functions."""

    def __init__(self) -> None:
        self.spent = 0.0

    def around(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """The function, timed."""

        def timed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            start = now()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent += now() - start

        return timed


def run(isa: str, program: str, work: Work, *, counting: bool = True) -> Timed:
    """Run it once. Not `counting`, the CPU counts no blocks.

    Raises NotMeasured when it does not end as it should.
    """
    streams = {name: BufferStream() for name in ("stdout", "stderr")}
    begun = now()
    machine = Machine(isa)
    try:
        cpu, faults, calls = machine.cpu, _Clock(), _Clock()
        looked = cpu.time_looking()
        if not counting:
            machine.kernel.cpus = ()  # whose blocks the clock asks for
        given = {"stdin": BufferStream(work.reads()), **streams}
        machine.load(program, [work.name, *work.arguments], env={}, grants=_ROOT, streams=given)
        cpu.on_fault, cpu.on_trap = faults.around(cpu.on_fault), faults.around(cpu.on_trap)
        cpu.on_system_call = calls.around(cpu.on_system_call)
        with collector_off():
            start = now()
            ended = machine.run()
            total = now() - start
        if ended.status != work.status:
            lines = bytes(streams["stderr"].written).decode(errors="replace").strip().splitlines()
            raise NotMeasured(f"status {ended.status}{f': {lines[0]}' if lines else ''}")
        output = bytes(streams["stdout"].written)
        return Timed(total, faults.spent, calls.spent, looked.seconds, start - begun, output)
    except AetherError as error:
        raise error if isinstance(error, NotMeasured) else NotMeasured(str(error)) from error
    finally:
        machine.close()


_Runs = Sequence[tuple[Timed, Timed]]


def shares(runs: _Runs) -> Mapping[str, float]:
    """CPU seconds of our side by kind, and those before it."""
    wholes = [whole for whole, _ in runs]
    counted, uncounted = (min(run.engine for run in kind) for kind in zip(*runs, strict=True))
    return {
        "engine": uncounted,
        "counting": max(0.0, counted - uncounted),
        "scan": median(whole.scan for whole in wholes),
        "faults": median(whole.faults for whole in wholes),
        "system calls": median(whole.calls for whole in wholes),
        "start, apart": median(whole.start for whole in wholes),
    }


def figure(isa: str, work: Work, goal: float, *, repetitions: int = 5) -> Figure:
    """The figure for one program."""
    wholes: list[Timed] = []
    runs: list[tuple[Timed, Timed]] = []

    def ours() -> float:
        program = find(work.name, isa)
        if not wholes:
            run(isa, program, work)  # so that the host has its files at hand
        wholes.append(run(isa, program, work))
        return wholes[-1].total

    def floor() -> float:
        program, whole = find(work.name, isa), wholes[-1]
        uncounted = run(isa, program, work, counting=False)
        same_output(work.name, whole.output, uncounted.output)
        runs.append((whole, uncounted))
        return whole.engine

    return Figure(
        name=f"real-{work.name}",
        isa=isa,
        what=work.what,
        program=work.name,
        floor_is="the engine's own share of the run, its calls of a hook before each block included",
        unit="run",
        ours=ours,
        floor=floor,
        repetitions=repetitions,
        goal=goal,
        shares=lambda: shares(runs),
    )
