"""The `aether` command line: the entry point, with errors as one line."""

from __future__ import annotations

import contextlib
import gc
import os
import sys

import typer

from aether_emu.cli.app import Errors, app, complain
from aether_emu.errors import AetherError, ConfigError, ProgramError

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # Click's, which typer may carry inside itself


def main() -> None:
    """Entry point: exit 2 for a bad option, 126/127 as a shell would, else the guest's status."""
    gc.disable()  # importing makes many objects and no garbage; `settle` ends this
    from aether_emu.cli import bench, pt, run, verify  # noqa: F401  # register their commands

    _fill_standard_streams()
    try:
        status = app(sys.argv[1:] or ["--help"], prog_name="aether", standalone_mode=False) or 0
        if sys.stdout is not None:  # as when it was closed
            sys.stdout.flush()
    except _UsageError as error:
        complain(f"{error.format_message().rstrip(chr(46))} (see aether --help)")  # type: ignore[attr-defined]  # see above
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except AetherError as error:
        if Errors.traceback:
            raise
        complain(str(error))
        status = _status(error)
    except OSError as error:
        if Errors.traceback:
            raise
        status = _unwritten(error)
    finally:
        gc.enable()
    sys.exit(status)


def _status(error: AetherError) -> int:
    match error:
        case ProgramError():
            return error.exit_status
        case ConfigError():
            return 2
    return 125


def _unwritten(error: OSError) -> int:
    """The host refuses what we say ourselves: a full disk, a reader who has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in the buffer has nowhere to go
    if isinstance(error, BrokenPipeError):
        return 1  # as Click does when it meets this
    with contextlib.suppress(OSError):
        complain(f"output: {error.strerror or error}")
    return 125


def _fill_standard_streams() -> None:
    """A descriptor that was closed must not become one of the machine's own: the guest has it as a stream."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number


if __name__ == "__main__":
    main()
