"""Every figure by name, with the ratio to its floor that the project wants at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aether_emu.errors import ConfigError
from aether_emu.observe.bench import calls, execution, faults, guests, startup, tables
from aether_emu.observe.bench.figure import Figure

GOALS: Mapping[str, Mapping[str, float]] = {
    "fault": {"fault": 4.0, "fault-resident": 4.0},
    "syscall": {"syscall": 3.0},
    "exec": {"exec-alu": 1.05, "exec-stream": 1.0, "exec-randload": 1.5},
    "map": {"map": 5.0},
    "start": {"start": 1.6},
}
"""What can be asked for, and the goal of each figure that it means."""


def figures(names: Sequence[str] = (), isa: str = "x86_64") -> list[Figure]:
    """The figures that `names` mean, all when there are none, always in the catalogue's order.

    Raises ConfigError for an unknown name or ISA, ProgramError without the guest programs.
    """
    if isa not in guests.ABIS:
        raise ConfigError("isa", isa, " or ".join(guests.ABIS))
    for name in names:
        if name not in GOALS:
            raise ConfigError("benchmark", name, "one of " + ", ".join(GOALS))
    chosen: list[Figure] = []
    for name, goals in GOALS.items():
        if names and name not in names:
            continue
        for figure, goal in goals.items():
            chosen.append(_make(figure, isa, goal))
    return chosen


def _make(name: str, isa: str, goal: float) -> Figure:
    match name:
        case "fault":
            return faults.figure(isa, goal)
        case "fault-resident":
            return faults.figure(isa, goal, resident=True)
        case "syscall":
            return calls.figure(isa, goal)
        case "map":
            return tables.figure(isa, goal)
        case "start":
            return startup.figure(isa, goal)
    work = next(work for work in execution.WORKS if name == f"exec-{work.name}")
    return execution.figure(isa, work, goal)
