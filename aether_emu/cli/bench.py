"""`aether bench`: measure the project's figures beside their floors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aether_emu import __version__
from aether_emu.cli.app import complain, settle, show_tracebacks
from aether_emu.cli.options import FILE, Command, debug_option, text
from aether_emu.errors import ConfigError

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

    NAME is fault, syscall, exec, map, edit, start or real, for every ISA, or one of them with the ISA, such
    as fault/arm64; without a NAME all are measured. That takes minutes, and more when the host is busy with
    something else. `real` runs programs of the host, and shows them its files: those it lacks are named.
    """
    show_tracebacks(debug)
    from rich.console import Console

    from aether_emu.observe.bench import catalogue, report

    settle()
    figures = catalogue.figures(list(benchmark))
    if json_file is not None:
        _write(json_file, "", "a")  # refused now rather than in some minutes, an older file still whole
    results, left_out = measure_all(figures)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    if results:
        console.print(report.as_table(results))
    for label, why in left_out.items():
        complain(f"{label} is not measured: {why}")
    if json_file is not None:
        data = report.as_data(results, report.versions(__version__), left_out)
        _write(json_file, report.as_json(data))


def measure_all(figures: Sequence[Figure]) -> tuple[list[Result], dict[str, str]]:
    """Measure the figures one after another; on a terminal a line on stderr tells how far it is.

    The second part of the answer is why figures were left out, by their labels.
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

        results, left_out = [], {}
        for figure in figures:
            progress.update(task, description=figure.label, refresh=True)
            try:
                results.append(measure(figure, step))
            except NotMeasured as error:
                left_out[figure.label] = str(error)
        return results, left_out


def _write(path: Path, text: str, mode: str = "w") -> None:
    try:
        with path.open(mode) as file:
            file.write(text)
    except OSError as error:
        raise ConfigError("json", str(path), f"cannot be written: {error.strerror}") from None
