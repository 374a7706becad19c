"""Run one guest program to its end on a fresh machine, and give everything back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aether_emu.config import Config
from aether_emu.grants import Grants
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.streams import BufferStream
from aether_emu.linux.task.ended import Ended
from aether_emu.system import Machine

GUEST = Path(__file__).parents[2] / "guest"
ISAS = ("x86_64", "arm64")


@dataclass(frozen=True)
class Target:
    """A kind of machine: an ISA with one size of pages, in bytes."""

    isa: str
    page_size: int

    def __str__(self) -> str:
        return self.isa if self.isa == "x86_64" else f"{self.isa}-{self.page_size >> 10}K"


TARGETS = (Target("x86_64", 4096), *(Target("arm64", size) for size in (4096, 16384, 65536)))
"""Parametrise over them with `ids=str`."""
LARGE_PAGES = TARGETS[2:]


@dataclass(frozen=True)
class Ran:
    """How a program ended and what it printed."""

    ended: Ended
    output: str


def program(isa: str, name: str) -> Path:
    """Where a guest program lies."""
    return GUEST / "bin" / isa / name


def expected(isa: str, name: str) -> str:
    """What the program prints under real Linux on that ISA, whatever the size of its pages."""
    own = GUEST / "expected" / isa / f"{name}.txt"
    return (own if own.exists() else GUEST / "expected" / f"{name}.txt").read_text()


def run_guest(
    target: Target,
    *argv: str,
    cwd: Path,
    before: Callable[[Machine], None] = lambda _machine: None,
    live_state: bool = True,
    writable: bool = False,
    **options: object,
) -> Ran:
    """Run `argv[0]` of guest/bin in the host folder `cwd`. Raises LeakError when a frame is left.

    `before` sees the machine with the program loaded; `options` are those of `Config`.
    """
    streams = {name: BufferStream() for name in ("stdin", "stdout", "stderr")}
    config = Config.load(overrides={"page_size": target.page_size, **options})
    machine = Machine(target.isa, config=config, live_state=live_state)
    grants = Grants(cwd=cwd, binds=[Bind(cwd, str(cwd), writable=True)] if writable else [])
    try:
        machine.load(program(target.isa, argv[0]), list(argv), streams=streams, grants=grants)
        before(machine)
        ended = machine.run()
        assert isinstance(ended, Ended)
    finally:
        machine.close()
    return Ran(ended, (streams["stdout"].written + streams["stderr"].written).decode())
