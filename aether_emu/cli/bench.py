"""`aether bench`: measure the project's figures beside their floors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aether_emu import __version__
from aether_emu.cli.app import app, settle, show_tracebacks
from aether_emu.errors import ConfigError

if TYPE_CHECKING:
    from aether_emu.observe.bench.figure import Figure, Result

_PIPE_WIDTH = 120


@app.command()
def bench(
    name: Annotated[list[str] | None, typer.Argument(help="What to measure.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Every pair as JSON, into a file.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback for an error.")] = False,
) -> None:
    """Measure each figure beside its floor, in alternating pairs, and print the ratios.

    NAME is fault, syscall, exec, map or start, for every ISA, or one of them with the ISA, such as
    fault/arm64; without a NAME all are measured. That takes minutes, and more when the host is busy
    with something else.
    """
    show_tracebacks(debug)
    from rich.console import Console

    from aether_emu.observe.bench import catalogue, report

    settle()
    figures = catalogue.figures(name or [])
    if json_file is not None:
        _write(json_file, "", "a")  # refused now rather than in some minutes, an older file still whole
    results = measure_all(figures)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    console.print(report.as_table(results))
    if json_file is not None:
        _write(json_file, report.as_json(report.as_data(results, report.versions(__version__))))


def measure_all(figures: Sequence[Figure]) -> list[Result]:
    """Measure the figures one after another; on a terminal a line on stderr tells how far it is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from aether_emu.observe.bench.figure import measure

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Without a thread of its own, which would take CPU from what is measured.
    quiet = not console.is_terminal
    with Progress(*columns, console=console, auto_refresh=False, transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=sum(figure.repetitions for figure in figures))

        def step() -> None:
            progress.advance(task)
            progress.refresh()

        results = []
        for figure in figures:
            progress.update(task, description=figure.label, refresh=True)
            results.append(measure(figure, step))
        return results


def _write(path: Path, text: str, mode: str = "w") -> None:
    try:
        with path.open(mode) as file:
            file.write(text)
    except OSError as error:
        raise ConfigError("json", str(path), f"cannot be written: {error.strerror}") from None
