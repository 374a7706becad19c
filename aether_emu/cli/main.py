"""The `aether` command line: one function for each subcommand, errors as one line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aether_emu import __version__
from aether_emu.errors import AetherError, ConfigError, ProgramError

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


def main() -> None:
    """Entry point: exit 2 for a bad option, 126/127 as a shell would, else the guest's status."""
    from aether_emu.cli import run  # noqa: F401  # registers its command

    debug = "--debug" in sys.argv[1:]
    try:
        app(prog_name="aether")
    except ProgramError as error:
        status = _complain(error, debug, error.exit_status)
    except ConfigError as error:
        status = _complain(error, debug, 2)
    except AetherError as error:
        status = _complain(error, debug, 125)
    else:
        status = 0
    sys.exit(status)


def _complain(error: AetherError, debug: bool, status: int) -> int:
    if debug:
        raise error
    print(f"aether: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
