"""`aether pt`: page tables in a physical memory image, whoever made it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aether_emu.cli.app import app, settle, show_tracebacks
from aether_emu.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aether_emu.verify.tables.survey import Survey
    from aether_emu.verify.tables.walking import Tables

pt = typer.Typer(help="Look at the page tables in a physical memory image.", no_args_is_help=True)
app.add_typer(pt, name="pt")

_Image = Annotated[str, typer.Argument(metavar="IMAGE", help="Raw memory, an ELF core or LiME.")]
_Root = Annotated[
    str | None, typer.Option(help="CR3 or TTBR0_EL1, hexadecimal. A core of aether or QEMU may tell it.")
]
_Root1 = Annotated[str | None, typer.Option(help="TTBR1_EL1: arm64's upper half.")]
_Format = Annotated[
    str | None,
    typer.Option(
        help="x86_64-4level, x86_64-5level, arm64-4K, -16K, -64K; arm64 also with -39bit and so on, -lpa2."
    ),
]
_Base = Annotated[
    str | None, typer.Option(help="The image is raw, and begins at that physical address, hexadecimal.")
]
_Bits = Annotated[
    int | None,
    typer.Option(help="Width of physical addresses, else the core's or 52 (48 on arm64 without LPA)."),
]
_Encryption = Annotated[
    int | None,
    typer.Option(help="The address bit that tells encrypted or shared pages (SME, SEV, TDX) from others."),
]
_Types = Annotated[str | None, typer.Option(help="IA32_PAT or MAIR_EL1, hexadecimal, to name memory types.")]
_Limit = Annotated[int, typer.Option(min=1, help="The most entries of one level to look at.")]
_Execute = Annotated[
    bool, typer.Option("--execute", help="Ask the emulated CPU's MMU the same, page by page, and compare.")
]
_Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback for an error.")]
_LIMIT = 1 << 23


@pt.command()
def show(
    image: _Image, root: _Root = None, root1: _Root1 = None, format: _Format = None, base: _Base = None,
    physical_bits: _Bits = None, encryption_bit: _Encryption = None, memory_types: _Types = None,
    limit: _Limit = _LIMIT, execute: _Execute = False, debug: _Debug = False,
) -> None:  # fmt: skip
    """Print what is mapped, as ranges of pages that are alike, and totals."""
    show_tracebacks(debug)
    from aether_emu.verify.tables import show as shown
    from aether_emu.verify.tables.listing import listing
    from aether_emu.verify.tables.survey import survey

    tables = _tables(image, root, root1, format, base, physical_bits, encryption_bit, memory_types)
    if execute:
        _check(tables)
    settle()
    found = survey(tables, limit=limit)
    terminal = os.isatty(1)
    width = shutil.get_terminal_size().columns if terminal else None
    sys.stdout.flush()
    for text in shown.table(listing(found), width=width, colour=terminal):
        sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()
    _print(shown.totals(found))
    if execute:
        raise typer.Exit(_execute(found))


@pt.command()
def walk(
    image: _Image,
    addresses: Annotated[list[str], typer.Argument(metavar="ADDR...", help="Virtual, hexadecimal.")],
    root: _Root = None, root1: _Root1 = None, format: _Format = None, base: _Base = None,
    physical_bits: _Bits = None, encryption_bit: _Encryption = None, memory_types: _Types = None,
    debug: _Debug = False,
) -> None:  # fmt: skip
    """Print every level's entry on the way to each ADDR, decoded, and where it leads.

    Exit status 1 when an address leads nowhere.
    """
    show_tracebacks(debug)
    from aether_emu.verify.tables.show import walk_lines
    from aether_emu.verify.tables.walking import walk as walked

    tables = _tables(image, root, root1, format, base, physical_bits, encryption_bit, memory_types)
    settle()
    walks = [walked(tables, _number("address", text)) for text in addresses]
    for found in walks:
        _print(walk_lines(found, tables.title))
    raise typer.Exit(int(any(found.physical is None for found in walks)))


@pt.command()
def lint(
    image: _Image, root: _Root = None, root1: _Root1 = None, format: _Format = None, base: _Base = None,
    physical_bits: _Bits = None, encryption_bit: _Encryption = None, memory_types: _Types = None,
    limit: _Limit = _LIMIT, execute: _Execute = False,
    as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON.")] = False,
    debug: _Debug = False,
) -> None:  # fmt: skip
    """Find what is suspicious: each finding with its address, entry, why it matters and how bad it is.

    Exit status 1 when there are errors.
    """
    show_tracebacks(debug)
    from aether_emu.verify.tables.lint import as_data, counted, lines
    from aether_emu.verify.tables.lint import lint as findings_of
    from aether_emu.verify.tables.lint_rules import Severity
    from aether_emu.verify.tables.survey import survey

    tables = _tables(image, root, root1, format, base, physical_bits, encryption_bit, memory_types)
    if execute:
        _check(tables)
    settle()
    found = survey(tables, limit=limit)
    findings = findings_of(found)
    if as_json:
        print(json.dumps(as_data(findings), indent=1))
    else:
        _print([*lines(findings), counted(findings)])
    failed = any(finding.severity is Severity.ERROR for finding in findings)
    if execute:
        failed |= bool(_execute(found, error=as_json))
    raise typer.Exit(int(failed))


def _tables(
    image: str, root: str | None, root1: str | None, format: str | None, base: str | None,
    physical_bits: int | None, encryption_bit: int | None, memory_types: str | None,
) -> Tables:  # fmt: skip
    from dataclasses import replace

    from aether_emu.verify.tables.images import open_image
    from aether_emu.verify.tables.walking import open_tables

    opened = open_image(Path(image), None if base is None else _number("base", base))
    registers = opened.registers
    if physical_bits is not None:
        if not 32 <= physical_bits <= 52:
            raise ConfigError("physical-bits", physical_bits, "32 to 52")
        registers = replace(registers, physical_bits=physical_bits)
    if encryption_bit is not None:
        registers = replace(registers, encryption_bit=encryption_bit)
    if memory_types is not None:
        registers = replace(registers, memory_types=_number("memory-types", memory_types))
    return open_tables(
        opened,
        root=None if root is None else _number("root", root),
        root1=None if root1 is None else _number("root1", root1),
        format=format,
        registers=registers,
    )


def _check(tables: Tables) -> None:
    """Refuse what cannot be executed before anything is printed."""
    from aether_emu.verify.tables.execute import check

    check(tables)


def _execute(found: Survey, *, error: bool = False) -> int:
    """Compare with the emulated CPU and say so; 1 when it differs."""
    from aether_emu.verify.tables.execute import execute

    agreement = execute(found)
    for line in agreement.lines():
        typer.echo(line, err=error)
    return int(bool(agreement.differences))


def _number(name: str, text: str) -> int:
    try:
        value = int(text, 16)
    except ValueError:
        raise ConfigError(name, text, "a hexadecimal number") from None
    if not 0 <= value < 1 << 64:
        raise ConfigError(name, text, "64 bits")
    return value


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
