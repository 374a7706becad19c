"""The `aether` command itself: its subcommands, and what they share."""

from __future__ import annotations

import contextlib
import gc
import sys
from importlib import import_module

import click

from aether_emu.errors import shown

COMPLETION = "_AETHER_COMPLETE"
"""By this variable a shell asks for the words that complete a line."""


class Ordered(click.Group):
    """A group that lists its commands as they were defined."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which newcomers meet them."""
        return list(self.commands)


class Subcommands(click.Group):
    """A group whose commands are imported when they are used. Naming them all costs nothing.

    `listed` has each command's name with its short help. The command is what has that name in the module
    of that name, beside this one.
    """

    def __init__(self, name: str, listed: dict[str, str], **settings: object) -> None:
        super().__init__(name, **settings)  # type: ignore[arg-type]  # handed on as they came
        self._listed = listed

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which newcomers meet them."""
        return list(self._listed)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now, or None when there is none of that name."""
        if cmd_name not in self._listed:
            return None
        command = getattr(import_module(f"aether_emu.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command), f"{command!r} is no command"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments begin with; the error for a wrong name has the nearest ones."""
        name = args[0]
        if name not in self._listed and not name.startswith("-") and not ctx.resilient_parsing:
            raise click.exceptions.NoSuchCommand(name, possibilities=self._listed, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in the help, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._listed.items()))


def _version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from aether_emu import __version__  # asks git in a work tree

        click.echo(f"aether_emu {__version__}")
        ctx.exit()


app = Subcommands(
    "aether",
    {
        "run": "Run a program.",
        "demo": "Run a program that comes with aether: a tour of virtual memory.",
        "pt": "Look at the page tables in a physical memory image.",
        "verify": "Compare page tables with a specification, an MMU and silicon.",
        "litmus": "Run page-table litmus tests beside their published verdicts.",
        "bench": "Measure the project's figures beside their floors.",
        "scale": "Compare schemes of locks on 1 to 64 CPUs (modelled).",
        "config": "Print all parameters of a machine, for --config.",
        "completion": "Print what makes a shell complete aether's options.",
        "man": "Print the manual page.",
    },
    help="Run programs on a memory manager that builds genuine page tables.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    params=[
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version,
            help="Print the version.",
        )
    ],
)  # fmt: skip


class Wrong(click.UsageError):
    """What the user typed cannot be. `see` is the command that tells more, else the help of this one."""

    def __init__(self, message: str, ctx: click.Context | None = None, *, see: str | None = None) -> None:
        super().__init__(message, ctx)
        self.see = see


class Errors:
    """What becomes of an error: whether it shows where it came from, and the exit status.

    2 is trouble, with an image, a disk, a full disk behind stdout: 0 and 1 are answers. Of a program's run
    everything up to 124 is the program's own.
    """

    traceback = False
    status = 2


def show_tracebacks(wanted: bool) -> None:
    """`--debug`: a subcommand calls this first. What is wrong with the options never has a traceback."""
    Errors.traceback = wanted


def complain(text: str) -> None:
    """Say on stderr, in one line, what is wrong. Names may hold anything: controls are escaped.

    If nobody takes it, the exit status tells alone.
    """
    line = shown(text)
    if sys.stderr is not None:  # as when it was closed; `print` would choose stdout
        with contextlib.suppress(OSError):
            print(f"aether: {line}", file=sys.stderr, flush=True)


def settle() -> None:
    """Everything is imported: collect garbage from now on, but never look at what is there already."""
    gc.freeze()
    gc.enable()
