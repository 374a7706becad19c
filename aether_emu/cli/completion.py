"""`aether completion`: what makes a shell complete commands and options."""

from __future__ import annotations

import click

from aether_emu.cli.app import COMPLETION, app
from aether_emu.cli.options import Command, one_of


@click.command(cls=Command)
@click.argument("shell", type=one_of("SHELL", ("bash", "zsh", "fish")), help="bash, zsh or fish.")
def completion(shell: str) -> None:
    """Print a shell's functions that complete the words of aether.

    Where the shell reads them when it starts:

    \b
    ~/.bashrc                                eval "$(aether completion bash)"
    ~/.zshrc                                 eval "$(aether completion zsh)"
    ~/.config/fish/completions/aether.fish   aether completion fish | source
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, "Click knows the three"
    click.echo(kind(app, {}, "aether", COMPLETION).source())
