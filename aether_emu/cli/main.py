"""The `aether` command line: the entry point, with errors as one line."""

from __future__ import annotations

import gc
import os
import sys

from aether_emu.cli.early import INTERRUPTED, listen

TYPE_CHECKING = False  # without `typing`, which takes milliseconds of the time before `listen`
if TYPE_CHECKING:
    import click

    from aether_emu.errors import AetherError


def main(program: str = "aether") -> None:
    """Entry point: the status of what was done, 2 for a bad option or other trouble.

    `run` has 125 for trouble that is not the options', 126 and 127 as a shell. `program` is how the user
    called it.
    """
    listen()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy would start threads, which spin for a while
    gc.disable()  # importing makes many objects and no garbage; `settle` ends this
    _fill_standard_streams()
    import contextlib

    import click

    from aether_emu.cli.app import Errors, complain
    from aether_emu.cli.interrupts import interrupts
    from aether_emu.errors import AetherError

    interrupts.watch()
    try:
        with interrupts.itself():
            status = _perform(program)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        with contextlib.suppress(OSError):  # nobody takes it
            error.show()
        status = error.exit_code
    except click.UsageError as error:
        complain(_with_hint(error, program))
        status = error.exit_code
    except KeyboardInterrupt:
        status = INTERRUPTED
    except AetherError as error:
        if Errors.traceback:
            raise
        complain(_with_option(error))
        status = _status(error)
    except OSError as error:
        if Errors.traceback:
            raise
        status = _unwritten(error)
    finally:
        gc.enable()
    interrupts.leave(status)


def _perform(program: str) -> int:
    """Do what the arguments say, or what the shell asks in order to complete them. The exit status."""
    from click.exceptions import Exit

    from aether_emu.cli.app import COMPLETION, app

    if instruction := os.environ.get(COMPLETION):
        from click.shell_completion import shell_complete

        return shell_complete(app, {}, "aether", COMPLETION, instruction)
    try:
        with app.make_context(program, sys.argv[1:]) as context:
            app.invoke(context)
    except Exit as ended:
        return ended.exit_code
    return 0


def _with_hint(error: click.UsageError, program: str) -> str:
    """What is wrong, and where to look: the help of the command that was used."""
    from aether_emu.cli.app import Wrong

    see = f"{program if error.ctx is None else error.ctx.command_path} --help"
    if isinstance(error, Wrong):
        return f"{error.format_message()} (see {error.see or see})"
    return f"{error.format_message().removesuffix('.')} (see {see})"  # Click's own is a sentence


def _with_option(error: AetherError) -> str:
    """What is wrong; of an output, under the name of its option."""
    from aether_emu.output import OutputError

    return f"--{error}" if isinstance(error, OutputError) else str(error)


def _status(error: AetherError) -> int:
    from aether_emu.cli.app import Errors
    from aether_emu.errors import ConfigError, ProgramError

    match error:
        case ProgramError():
            return error.exit_status
        case ConfigError():
            return 2
    return Errors.status


def _unwritten(error: OSError) -> int:
    """The host refuses what we say ourselves: a full disk, a reader who has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in the buffer has nowhere to go
    if isinstance(error, BrokenPipeError):
        return 1  # as Click does when it meets this
    from aether_emu.cli.app import Errors, complain

    complain(f"write error: {error.strerror or error}")
    return Errors.status


def _fill_standard_streams() -> None:
    """A descriptor that was closed must not become one of the machine's own: the guest has it as a stream.

    What is there instead answers as a closed one, with EBADF, and is closed to the guest (`own_streams`).
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_PATH)  # the lowest free number
    if sys.stdout is None:  # Python's for a closed one would take everything without a word
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # as long as the process
