"""The guest program `scale` on 1 to 64 CPUs, under each scheme of locks: what a point is, how it is measured.

The program executes; the locks that it would wait for, and the time of everything, are modelled (`mm.locks`,
`clock`). One seed gives the same points, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aether_emu.linux.files.streams import BufferStream
from aether_emu.observe.bench.figure import BenchError
from aether_emu.observe.bench.guests import path_of
from aether_emu.records import dataclass
from aether_emu.system import Machine

CPUS = (1, 2, 4, 8, 16, 32, 64)
SCHEMES = ("space", "area", "leaf")
_RAM = "512M"


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of `guest/src/scale.c`. `operations` is how many each thread does."""

    name: str
    what: str
    operations: int


WORKS = (
    Work("own", "page faults, each thread in an area of its own", 100),
    Work("shared", "page faults of all threads in one area", 100),
    Work("disjoint", "mmap, a write, munmap: ranges below leaf tables of their own", 10),
    Work("neighbours", "mmap, a write, munmap: ranges below one leaf table", 10),
    Work("fork", "fork, exit and wait, in threads of one process", 2),
)


@dataclass(frozen=True, slots=True)
class Point:
    """`operations` of all threads took `ns` of virtual time. `locks` are the counts of `mm.locks` by kind."""

    work: str
    scheme: str
    cpus: int
    operations: int
    ns: int
    locks: Mapping[str, Mapping[str, int]]
    interrupts: int

    @property
    def throughput(self) -> float:
        """Operations in a microsecond of virtual time: millions a second."""
        return self.operations * 1000 / self.ns

    @property
    def waited(self) -> int:
        """How many ns of virtual time its CPUs waited for locks, in sum."""
        return sum(each["waited_ns"] for each in self.locks.values())


def measure(isa: str, work: Work, scheme: str, cpus: int, seed: int = 0) -> Point:
    """One point. Raises BenchError when the program fails, ProgramError where it is not there."""
    output = BufferStream()
    with Machine(isa, cpus=cpus, ram=_RAM, seed=seed, locks=scheme) as machine:
        streams = {"stdin": BufferStream(), "stdout": output, "stderr": output}
        command = ["scale", work.name, str(cpus), str(work.operations)]
        machine.load(path_of(isa, "scale"), command, streams=streams)
        ended = machine.run()
        contention = machine.kernel.contention
        assert contention is not None, "the scheme is not none"
        locks = {kind: each.as_dict() for kind, each in contention.locks.counted.items()}
        way = machine.physical.tlb.way
    said = bytes(output.written).decode(errors="replace")
    if ended.status:
        raise BenchError(f"{' '.join(command)}: status {ended.status}: {said.strip()}")
    operations, _operations, _in, ns, _unit = said.split()
    return Point(work.name, scheme, cpus, int(operations), int(ns), locks, way.sent + way.broadcasts)


def as_json(isa: str, seed: int, points: Sequence[Point]) -> str:
    """All points as indented JSON, with a final newline."""
    data: dict[str, Any] = {
        "isa": isa,
        "seed": seed,
        "time": "virtual, modelled",
        "locks": "modelled",
        "points": [
            {
                "work": point.work,
                "scheme": point.scheme,
                "cpus": point.cpus,
                "operations": point.operations,
                "ns": point.ns,
                "shootdowns": point.interrupts,
                "locks": {kind: dict(counts) for kind, counts in point.locks.items()},
            }
            for point in points
        ],
    }
    return json.dumps(data, indent=2) + "\n"


def as_lines(points: Sequence[Point]) -> list[str]:
    """A table: throughput by CPUs for each scheme, and what its locks did at the most CPUs."""
    lines: list[str] = []
    for work in WORKS:
        of_work = [point for point in points if point.work == work.name]
        if not of_work:
            continue
        counts = sorted({point.cpus for point in of_work})
        lines += ["", work.what]
        lines.append(f"{'locks':<8}" + "".join(f"{count:>8}" for count in counts) + "   at the most CPUs")
        for scheme in SCHEMES:
            row = [point for point in of_work if point.scheme == scheme]
            if row:
                values = "".join(f"{point.throughput:>8.3g}" for point in sorted(row, key=lambda p: p.cpus))
                lines.append(f"{scheme:<8}{values}   {_summary(max(row, key=lambda p: p.cpus))}")
    return lines


def _summary(point: Point) -> str:
    """Which locks were waited for, those with the longest waits first."""
    contended = [(kind, each) for kind, each in point.locks.items() if each["contended"]]
    contended.sort(key=lambda item: -item[1]["waited_ns"])
    parts = [
        f"{kind}: {each['contended']:,} of {each['taken']:,} waited, {each['waited_ns'] / 1000:,.0f} us"
        for kind, each in contended[:2]
    ]
    return "; ".join(parts) or "no lock was waited for"
