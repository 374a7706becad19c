"""`aether demo`: a program that comes with the package, run as any other."""

from __future__ import annotations

from pathlib import Path

import click

from aether_emu.cli.options import Command, debug_option, one_of

_PROGRAMS = Path(__file__).with_name("programs")


@click.command(cls=Command)
@click.argument("isa", type=one_of("ISA", ("x86_64", "arm64")), default="x86_64", help="x86_64 or arm64.")
@debug_option
@click.pass_context
def demo(context: click.Context, isa: str, debug: bool) -> None:
    """Run a tour of virtual memory, a guest program that comes with aether.

    It touches fresh pages, shares and copies them, hits a guard page and is kept out of the kernel's half.
    The first line says how to run it yourself, with other options.
    """
    from aether_emu.cli.run import run

    program = _PROGRAMS / f"tour.{isa}"
    click.echo(f"$ {context.find_root().info_name} run --stats {program}", err=True)
    context.invoke(run, program=str(program), stats=True, debug=debug)
