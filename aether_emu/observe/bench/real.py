"""Whole programs of the host: their run on the machine beside the engine's own time for it.

Three runs of the same program belong together. The whole run is our side. Its time without that in our
handlers, and without that of the scan of new blocks, is the engine's own: the floor. Both sides are of one
run, so that a host that disturbs it disturbs them alike. In the second run new blocks are not looked at: by
how much the quickest of those is quicker than the quickest whole run is the scan's time. The floor contains
what the engine takes to call a hook before each block, by which virtual time passes; the third run, which
counts no blocks, tells how much of it that is. Start-up is apart.
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
    """One run: CPU seconds of the whole, in the handlers of faults (and traps) and of calls, and before."""

    total: float
    faults: float
    calls: float
    start: float
    output: bytes

    @property
    def engine(self) -> float:
        """What is left without our handlers."""
        return self.total - self.faults - self.calls


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


def run(isa: str, program: str, work: Work, *, looking: bool = True, counting: bool = True) -> Timed:
    """Run it once. Not `looking`, the CPU runs new blocks unseen; not `counting`, it counts no blocks.

    Raises NotMeasured when it does not end as it should.
    """
    streams = {name: BufferStream() for name in ("stdout", "stderr")}
    begun = now()
    machine = Machine(isa)
    try:
        cpu, faults, calls = machine.cpu, _Clock(), _Clock()
        if not looking:
            cpu.stop_looking()
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
        return Timed(total, faults.spent, calls.spent, start - begun, bytes(streams["stdout"].written))
    except AetherError as error:
        raise error if isinstance(error, NotMeasured) else NotMeasured(str(error)) from error
    finally:
        machine.close()


_Runs = Sequence[tuple[Timed, Timed, Timed]]


def _quickest(runs: _Runs) -> tuple[float, float, float]:
    """The engine's CPU seconds in the quickest run of each kind: what disturbs runs only makes them slow."""
    seen, unseen, uncounted = (min(run.engine for run in kind) for kind in zip(*runs, strict=True))
    return seen, unseen, uncounted


def _scan(runs: _Runs) -> float:
    """CPU seconds for which a run looks at new blocks."""
    seen, unseen, _ = _quickest(runs)
    return max(0.0, seen - unseen)


def shares(runs: _Runs) -> Mapping[str, float]:
    """CPU seconds of our side by kind, and those before it."""
    _, unseen, uncounted = _quickest(runs)
    wholes = [whole for whole, _, _ in runs]
    return {
        "engine": uncounted,
        "counting": max(0.0, unseen - uncounted),
        "scan": _scan(runs),
        "faults": median(whole.faults for whole in wholes),
        "system calls": median(whole.calls for whole in wholes),
        "start, apart": median(whole.start for whole in wholes),
    }


def figure(isa: str, work: Work, goal: float, *, repetitions: int = 5) -> Figure:
    """The figure for one program."""
    wholes: list[Timed] = []
    runs: list[tuple[Timed, Timed, Timed]] = []

    def ours() -> float:
        program = find(work.name, isa)
        if not wholes:
            run(isa, program, work)  # so that the host has its files at hand
        wholes.append(run(isa, program, work))
        return wholes[-1].total

    def floor() -> float:
        program, whole = find(work.name, isa), wholes[-1]
        unseen = run(isa, program, work, looking=False)
        uncounted = run(isa, program, work, looking=False, counting=False)
        for other in (unseen, uncounted):
            same_output(work.name, whole.output, other.output)
        runs.append((whole, unseen, uncounted))
        return whole.engine - _scan(runs)

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
