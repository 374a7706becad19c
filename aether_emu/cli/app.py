"""The `aether` command itself: what all subcommands register at and share."""

from __future__ import annotations

import gc
import sys
from typing import Annotated

import typer

from aether_emu import __version__

app = typer.Typer(
    name="aether",
    help="Run programs on a memory manager that builds genuine page tables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aether_emu {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the subcommand."""


class Errors:
    """Whether an error shows where it came from."""

    traceback = False


def show_tracebacks(wanted: bool) -> None:
    """`--debug`: a subcommand calls this first. What is wrong with the options never has a traceback."""
    Errors.traceback = wanted


def complain(text: str) -> None:
    """Say on stderr, in one line, what is wrong. Names may hold anything: controls are escaped."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
    print(f"aether: {line}", file=sys.stderr)


def settle() -> None:
    """Everything is imported: collect garbage from now on, but never look at what is there already."""
    gc.freeze()
    gc.enable()
