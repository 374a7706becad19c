"""`aether bench`: measure the project's figures beside their floors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aether_emu.cli.app import complain, settle, show_tracebacks
from aether_emu.cli.interrupts import interrupts
from aether_emu.cli.options import FILE, Command, debug_option, text
from aether_emu.output import Output

if TYPE_CHECKING:
    from aether_emu.observe.bench.figure import Figure, Result

_PIPE_WIDTH = 120


def _names() -> Sequence[str]:
    from aether_emu.observe.bench import catalogue, guests

    return [*catalogue.GOALS, *(f"{name}/{isa}" for name in catalogue.GOALS for isa in guests.ABIS)]


@click.command(cls=Command)
@click.argument("benchmark", nargs=-1, type=text("NAME", _names), help="What to measure.")
@click.option("--json", "json_file", type=FILE, help="Every pair as JSON, into a file.")
@debug_option
def bench(benchmark: tuple[str, ...], json_file: Path | None, debug: bool) -> None:
    """Measure each figure beside its floor, in alternating pairs, and print the ratios.

    NAME is fault, map, unmap, batch, start, real or another (a wrong one lists all), for every ISA, or one of
    them with the ISA, such as fault/arm64; without a NAME all are measured. That takes minutes, and more when
    the host is busy with something else. `real` runs programs of the host, and shows them its files: those it
    lacks are named.
    """
    show_tracebacks(debug)
    from rich.console import Console

    from aether_emu import __version__
    from aether_emu.observe.bench import catalogue, report

    settle()
    figures = catalogue.figures(list(benchmark))
    output = None if json_file is None else Output("json", json_file)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    results: list[Result] = []
    left_out: dict[str, str] = {}
    with interrupts.reporting():
        try:
            with interrupts.itself():
                measure_all(figures, results, left_out)
        except KeyboardInterrupt:
            if results:
                console.print(report.as_table(results))
            done = len(results) + len(left_out)
            unwritten = "" if output is None else f"; {output.path} is not written"
            print(f"interrupted: {done} of {len(figures)} figures are complete{unwritten}")
            raise
        if results:
            console.print(report.as_table(results))
        for label, why in left_out.items():
            complain(f"{label} is not measured: {why}")
        if output is not None:
            data = report.as_data(results, report.versions(__version__), left_out)
            output.write(report.as_json(data).encode())


def measure_all(figures: Sequence[Figure], results: list[Result], left_out: dict[str, str]) -> None:
    """Measure the figures one after another; on a terminal a line on stderr tells how far it is.

    `results` grows, and so does `left_out`: why figures were left out, by their labels.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from aether_emu.observe.bench.figure import NotMeasured, measure

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Without a thread of its own, which would take CPU from what is measured.
    quiet = not console.is_terminal
    with Progress(*columns, console=console, auto_refresh=False, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=sum(figure.repetitions for figure in figures))

        def step() -> None:
            progress.advance(task)
            progress.refresh()

        for figure in figures:
            progress.update(task, description=figure.label, refresh=True)
            try:
                results.append(measure(figure, step))
            except NotMeasured as error:
                left_out[figure.label] = str(error)
