"""A guest program, run with a tracer."""

from __future__ import annotations

from pathlib import Path

from aether_emu.grants import Grants
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.streams import BufferStream
from aether_emu.observe.strace.selection import EVERYTHING, Selection
from aether_emu.observe.strace.tracer import Tracer
from aether_emu.system import Machine
from tests.programs.run import ENVIRONMENT


def traced(
    program: Path,
    isa: str,
    cwd: Path,
    *arguments: str,
    selection: Selection = EVERYTHING,
    source: bytes = b"",
) -> str:
    """What the tracer writes of a run, as the superuser in the folder `cwd`, to its end."""
    lines: list[str] = []
    streams = {"stdin": BufferStream(source), "stdout": BufferStream(), "stderr": BufferStream()}
    machine = Machine(isa, ram="256M", seed=7, uid=0, gid=0)
    try:
        grants = Grants(cwd=cwd, binds=[Bind(cwd, str(cwd), writable=True)])
        machine.load(program, [str(program), *arguments], env=ENVIRONMENT, grants=grants, streams=streams)
        tracer = Tracer(machine, lines.append, selection)
        machine.run()
        tracer.close()
    finally:
        machine.close()
    return "".join(lines)
