"""The `aether` command line: one function for each subcommand, errors as one line."""

from __future__ import annotations

import gc
import os
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


_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # Click's, which typer may carry inside itself


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


class _Errors:
    """Whether an error shows where it came from."""

    traceback = False


def show_tracebacks(wanted: bool) -> None:
    """`--debug`: a subcommand calls this first. What is wrong with the options never has a traceback."""
    _Errors.traceback = wanted


def complain(text: str) -> None:
    """Say on stderr, in one line, what is wrong. Names may hold anything: controls are escaped."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
    print(f"aether: {line}", file=sys.stderr)


def main() -> None:
    """Entry point: exit 2 for a bad option, 126/127 as a shell would, else the guest's status."""
    gc.disable()  # importing makes many objects and no garbage; `settle` ends this
    from aether_emu.cli import bench, pt, run, verify  # noqa: F401  # register their commands

    _fill_standard_streams()
    try:
        status = app(sys.argv[1:] or ["--help"], prog_name="aether", standalone_mode=False) or 0
    except _UsageError as error:
        complain(f"{error.format_message().rstrip(chr(46))} (see aether --help)")  # type: ignore[attr-defined]  # see above
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except AetherError as error:
        if _Errors.traceback:
            raise
        complain(str(error))
        status = _status(error)
    finally:
        gc.enable()
    sys.exit(status)


def settle() -> None:
    """Everything is imported: collect garbage from now on, but never look at what is there already."""
    gc.freeze()
    gc.enable()


def _status(error: AetherError) -> int:
    match error:
        case ProgramError():
            return error.exit_status
        case ConfigError():
            return 2
    return 125


def _fill_standard_streams() -> None:
    """A descriptor that was closed must not become one of the machine's own: the guest has it as a stream."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number


if __name__ == "__main__":
    from aether_emu.cli.main import main as entry  # this file is __main__; commands register at the module

    entry()
