"""`aether config`: every parameter of a machine with its type, default and meaning."""

from __future__ import annotations

import click

from aether_emu.cli.options import Command, debug_option
from aether_emu.config import Config, Parameter

_WIDTH = 80
_PAGE = """\
# Configuration

Made by `aether config --markdown`. Each key is a parameter of a machine. Its value comes from the first of
these that has one:

1. an option of `aether run`, such as `--ram 1G`, or a keyword of `aether_emu.Machine`, such as `ram="1G"`;
2. a TOML file: `aether run --config machine.toml`, or `Config.load("machine.toml")`;
3. the default.

`aether config > machine.toml` writes a file with all of them at their defaults. A key that is not here is an
error, and so is a value that is not allowed. Sizes may be strings with a unit, powers of 1024: `"512M"`,
`"2 GiB"`; sizes and addresses may be hexadecimal strings: `"0x1000"`.

| key | type | default | allowed | meaning |
|---|---|---|---|---|
"""


@click.command(cls=Command)
@click.option("--markdown", is_flag=True, help="A page for the documentation, not a TOML file.")
@debug_option
def config(markdown: bool, debug: bool) -> None:
    """Print all parameters at their defaults, as a TOML file for aether run --config."""
    click.echo(page() if markdown else toml(), nl=False)


def page() -> str:
    """The parameters as a page of Markdown."""
    rows = (
        f"| `{row.name}` | {row.type} | {row.default} | {row.allowed} | {row.meaning} |\n"
        for row in Config.describe()
    )
    return _PAGE + "".join(rows)


def toml() -> str:
    """The parameters as a TOML file that says what they mean. Loading it changes nothing."""
    lines = ["# Parameters of a machine, for aether run --config FILE, at their defaults."]
    table = ""
    for row in Config.describe():
        inside, _, key = row.name.rpartition(".")
        if inside != table:
            lines += ["", f"[{inside}]"]
            table = inside
        lines += ["", *_comment(row), f"# {key} =" if row.optional else f"{key} = {_value(row)}"]
    return "\n".join(lines) + "\n"


def _comment(row: Parameter) -> list[str]:
    from textwrap import wrap

    words = f"{row.meaning}. {row.type.capitalize()}: {row.allowed}."
    return wrap(
        words[0].upper() + words[1:],
        _WIDTH,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
    )


def _value(row: Parameter) -> str:
    """The default as TOML has it."""
    plain = row.type in ("boolean", "integer") or row.default.startswith("0x")
    return row.default if plain else f'"{row.default}"'
