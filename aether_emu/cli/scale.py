"""`aether scale`: throughput against CPUs under schemes of locks, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aether_emu.cli.app import settle, show_tracebacks
from aether_emu.cli.interrupts import interrupts
from aether_emu.cli.options import FILE, Command, debug_option, one_of, several, text, whole
from aether_emu.errors import ConfigError
from aether_emu.output import Output

if TYPE_CHECKING:
    from aether_emu.observe.scaling.sweep import Point, Work

_MOST = 64


def _works() -> Sequence[str]:
    from aether_emu.observe.scaling.sweep import WORKS

    return [work.name for work in WORKS]


def _schemes() -> Sequence[str]:
    from aether_emu.observe.scaling.sweep import SCHEMES

    return SCHEMES


@click.command(cls=Command)
@click.argument("work", nargs=-1, type=text("WORK", _works))
@click.option("--cpus", type=text("N,N..."), default="1,2,4,8,16,32,64", help="Numbers of CPUs, 1 to 64.")
@click.option(
    "--locks", type=several("NAME,NAME...", _schemes), default="space,area,leaf", help="Schemes of locks."
)
@click.option("--isa", type=one_of("ISA", ("x86_64", "arm64")), default="x86_64", help="x86_64 or arm64.")
@click.option(
    "--seed", type=whole(0, (1 << 64) - 1), default=0, help="The source of all chance; same seed, same bytes."
)
@click.option("--json", "json_file", type=FILE, help="Every point as JSON, into a file.")
@click.option("--report", type=FILE, help="The figure: SVG if the name ends so, else a page (HTML).")
@debug_option
def scale(
    work: tuple[str, ...],
    cpus: str,
    locks: str,
    isa: str,
    seed: int,
    json_file: Path | None,
    report: Path | None,
    debug: bool,
) -> None:
    """Run threads that all want the same of the kernel, on 1 to 64 CPUs, and compare schemes of locks.

    WORK is own, shared (page faults), disjoint, neighbours (mmap and munmap) or fork; without one all run.
    Programs execute; locks, interrupts between CPUs and time are modelled. The table has million operations
    in a second of virtual time. All of it takes minutes.
    """
    show_tracebacks(debug)
    from aether_emu.observe.scaling import plot, sweep

    works = _wanted(work)
    counts, schemes = _counts(cpus), _named("locks", locks, sweep.SCHEMES)
    json_output = None if json_file is None else Output("json", json_file)
    picture = None if report is None else Output("report", report)
    settle()
    print(f"{isa}, seed {seed}: million operations per second of virtual time. Locks and time are modelled.")
    points: list[Point] = []
    with interrupts.reporting():
        try:
            with interrupts.itself():
                for each in works:
                    of_work = [
                        sweep.measure(isa, each, scheme, n, seed) for scheme in schemes for n in counts
                    ]
                    print("\n".join(sweep.as_lines(of_work)), flush=True)
                    points += of_work
        except KeyboardInterrupt:
            done = len({point.work for point in points})
            print(f"interrupted: {done} of {len(works)} works are complete; no file is written")
            raise
        if json_output is not None:
            json_output.write(sweep.as_json(isa, seed, points).encode())
        if picture is not None:
            drawn = plot.as_svg if picture.path.suffix == ".svg" else plot.as_html
            picture.write(drawn(isa, seed, points).encode())


def _wanted(names: Sequence[str]) -> list[Work]:
    from aether_emu.observe.scaling.sweep import WORKS

    known = [work.name for work in WORKS]
    for name in names:
        if name not in known:
            raise ConfigError("work", name, f"one of {', '.join(known)}")
    return [work for work in WORKS if not names or work.name in names]


def _named(option: str, asked: str, known: Sequence[str]) -> list[str]:
    words = asked.split(",")
    if not set(words) <= set(known):
        raise ConfigError(option, asked, f"some of {', '.join(known)}, separated by commas")
    return [name for name in known if name in words]


def _counts(asked: str) -> list[int]:
    """The numbers of CPUs that a text names, ascending."""
    words = asked.split(",")
    if not all(word.isascii() and word.isdigit() and 1 <= int(word) <= _MOST for word in words):
        raise ConfigError("cpus", asked, f"whole numbers from 1 to {_MOST}, separated by commas")
    return sorted(set(map(int, words)))
