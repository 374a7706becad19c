"""Every figure by name and ISA, with the ratio to its floor that the project wants at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aether_emu.errors import ConfigError
from aether_emu.observe.bench import (
    batch,
    calls,
    edits,
    execution,
    faults,
    growth,
    guests,
    hugepages,
    migrate,
    real,
    sanitizer,
    shootdown,
    startup,
    swap,
    switching,
    tables,
)
from aether_emu.observe.bench.figure import Figure

GOALS: Mapping[str, Mapping[str, float]] = {
    "fault": {"fault": 4.0, "fault-resident": 4.0},
    "syscall": {"syscall": 3.0},
    "exec": {"exec-alu": 1.05, "exec-stream": 1.0, "exec-stream-paged": 1.05, "exec-randload": 1.5},
    "map": {"map": 5.0},
    "unmap": {"unmap": 5.0},
    "protect": {"protect": 5.0, "protect-exec": 5.0},
    "move": {"move": 5.0},
    "fork": {"fork": 5.0},
    "populate": {"populate": 8.0},
    "batch": {f"batch-{work}-{pages}": goal for work in batch.WORKS for pages, goal in batch.SIZES.items()},
    "growth": {
        "growth-protect": 1.5,
        "growth-move": 1.5,
        "growth-unmap": 1.5,
        "growth-fork": 1.5,
        "growth-page": 1.5,
        "growth-swap": 1.3,
        "growth-collapse": 1.3,
        "growth-split": 1.3,
        "growth-migrate": 1.3,
        "sparse": 1.3,
    },
    "swap": {"swap": 4.0},
    "collapse": {"collapse": 3.0},
    "split": {"split": 10.0},
    "migrate": {"migrate": 30.0},
    "switch": {"switch-threads": 3.0, "switch-processes": 3.0},
    "process": {"process": 50.0},
    "signal": {"signal": 40.0},
    "pipe": {"pipe": 6.0},
    "start": {"start": 1.4},
    "shootdown": {"shootdown-1": 60.0, "shootdown-8": 10.0, "shootdown-64": 4.0},
    "cpus": {"slices-loads": 1.3, "slices-loop": 4.0, "slices-counted": 1.3},
    "real": {f"real-{work.name}": 1.15 for work in real.WORKS},
    "tlbsan": {"tlbsan": 3.0},
}
"""What can be asked for, and the goal of each figure that it means: the same on every ISA."""


def figures(names: Sequence[str] = ()) -> list[Figure]:
    """The figures that `names` mean, all when there are none, always in the catalogue's order.

    A name means its figures on every ISA, `name/isa` on one. Raises ConfigError for an unknown name
    or ISA, ProgramError without the guest programs.
    """
    asked = {pair for name in names or GOALS for pair in _meant(name)}
    return [
        _make(figure, isa, goal)
        for name, goals in GOALS.items()
        for figure, goal in goals.items()
        for isa in guests.ABIS
        if (name, isa) in asked
    ]


def _meant(name: str) -> list[tuple[str, str]]:
    """The groups of figures and the ISAs that one name on the command line asks for."""
    group, slash, isa = name.partition("/")
    if group not in GOALS or (slash and isa not in guests.ABIS):
        endings = " or ".join(f"/{isa}" for isa in guests.ABIS)
        raise ConfigError("benchmark", name, f"one of {', '.join(GOALS)}, alone or with {endings}")
    return [(group, isa)] if slash else [(group, each) for each in guests.ABIS]


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
        case "protect" | "protect-exec" | "move" | "unmap" | "fork":
            return edits.figure(isa, name, goal)
        case "growth-protect" | "growth-move" | "growth-unmap" | "growth-fork":
            return growth.figure(isa, name.removeprefix("growth-"), goal)
        case "growth-page":
            return growth.page(isa, goal)
        case "growth-migrate":
            return migrate.growth(isa, goal)
        case "growth-swap":
            return swap.growth(isa, goal)
        case "growth-collapse" | "growth-split":
            return hugepages.growth(isa, name.removeprefix("growth-"), goal)
        case "migrate":
            return migrate.figure(isa, goal)
        case "sparse":
            return growth.sparse(isa, goal)
        case "collapse" | "split":
            return hugepages.figure(isa, name, goal)
        case "switch-threads" | "switch-processes" | "process" | "signal" | "pipe":
            return switching.figure(isa, name, goal)
        case "populate":
            return batch.populated(isa, goal)
        case "swap":
            return swap.figure(isa, goal)
        case "start":
            return startup.figure(isa, goal)
        case "shootdown-1" | "shootdown-8" | "shootdown-64":
            return shootdown.figure(isa, int(name.removeprefix("shootdown-")), goal)
        case "slices-loads" | "slices-loop" | "slices-counted":
            return shootdown.slices(isa, name, goal)
        case "tlbsan":
            return sanitizer.figure(isa, goal)
    if name.startswith("batch-"):
        _batch, work_name, pages = name.split("-")
        return batch.figure(isa, work_name, goal, pages=int(pages))
    if name.startswith("real-"):
        return real.figure(isa, next(work for work in real.WORKS if name == f"real-{work.name}"), goal)
    work = next(work for work in execution.WORKS if name == f"exec-{work.name}")
    return execution.figure(isa, work, goal)
