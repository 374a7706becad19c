"""Run one guest program to its end on a fresh machine, and give everything back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aether_emu.config import Config
from aether_emu.linux.process import Ended
from aether_emu.linux.vfs.streams import BufferStream
from aether_emu.system import Grants, Machine

GUEST = Path(__file__).parents[2] / "guest"
ISAS = ("x86_64", "arm64")


@dataclass(frozen=True)
class Ran:
    """How a program ended and what it printed."""

    ended: Ended
    output: str


def program(arch: str, name: str) -> Path:
    """Where a guest program lies."""
    return GUEST / "bin" / arch / name


def expected(arch: str, name: str) -> str:
    """What the program prints under real Linux on that ISA."""
    own = GUEST / "expected" / arch / f"{name}.txt"
    return (own if own.exists() else GUEST / "expected" / f"{name}.txt").read_text()


def run_guest(
    arch: str,
    *argv: str,
    cwd: Path,
    before: Callable[[Machine], None] = lambda _machine: None,
    live_state: bool = True,
    **options: object,
) -> Ran:
    """Run `argv[0]` of guest/bin in the host folder `cwd`. Raises LeakError when a frame is left.

    `before` sees the machine with the program loaded; `options` are those of `Config`.
    """
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    machine = Machine(arch, config=Config.load(overrides=options), live_state=live_state)
    try:
        path = program(arch, argv[0])
        machine.load(path, list(argv), streams=streams, grants=Grants(cwd=cwd))
        before(machine)
        ended = machine.run()
    finally:
        machine.close()
    return Ran(ended, (streams["stdout"].written + streams["stderr"].written).decode())
