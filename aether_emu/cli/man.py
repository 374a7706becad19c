"""`aether man`: the manual page, made of what --help says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from aether_emu.cli.options import Command


@click.command(cls=Command)
def man() -> None:
    """Print the manual page, all commands in one.

    \b
    aether man | man -l -
    aether man > ~/.local/share/man/man1/aether.1
    """
    from aether_emu.cli.app import app

    context = click.Context(app, info_name="aether", **app.context_settings)
    click.echo("\n".join(_page(app, context)))


def _page(app: click.Group, context: click.Context) -> Iterator[str]:
    """The lines of the page in the language of man(7)."""
    from aether_emu import __version__

    yield f'.TH AETHER 1 "" "aether_emu {_text(__version__)}" "User Commands"'
    yield from (".SH NAME", rf"aether \- {_text(app.help or '').rstrip('.')}")
    yield from (".SH SYNOPSIS", *_synopsis(app, context))
    yield from (".SH OPTIONS", *_parameters(app, context))
    yield ".SH COMMANDS"
    yield from _commands(app, context)


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, "it is listed"
        inner = click.Context(command, info_name=name, parent=context, **command.context_settings)
        yield from (f".SS {_text(inner.command_path)}", *_synopsis(command, inner))
        yield from _paragraphs(command.help or "")
        if isinstance(command, click.Group):
            yield from _commands(command, inner)
            continue
        yield from _parameters(command, inner)
        yield from _paragraphs(command.epilog or "")


def _synopsis(command: click.Command, context: click.Context) -> Iterator[str]:
    yield rf"\fB{_text(context.command_path)}\fR {_text(' '.join(command.collect_usage_pieces(context)))}"


def _parameters(command: click.Command, context: click.Context) -> Iterator[str]:
    for param in command.get_params(context):
        record = param.get_help_record(context)
        if record is not None:
            yield from (".TP", rf"\fB{_text(record[0])}\fR", _text(record[1]))


def _paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a help; those that begin with a line of \\b keep their lines."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield from (".PP", ".nf", *map(_text, paragraph[2:].splitlines()), ".fi")
        elif paragraph:
            yield from (".PP", _text(" ".join(paragraph.split())))


def _text(text: str) -> str:
    """Text as it is: nothing of it is a request or an escape of roff."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped
