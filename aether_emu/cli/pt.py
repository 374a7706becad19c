"""`aether pt`: page tables in a physical memory image, whoever made it."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from aether_emu.cli.app import Ordered, settle, show_tracebacks
from aether_emu.cli.options import FILE, HEX, Command, debug_option, hexadecimal, text, whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aether_emu.verify.tables.show import Range, Repeat
    from aether_emu.verify.tables.survey import Survey
    from aether_emu.verify.tables.walking import Tables


class _Reading(NamedTuple):
    """How the image is to be read, as the options tell."""

    root: int | None
    root1: int | None
    format: str | None
    base: int | None
    physical_bits: int | None
    encryption_bit: int | None
    memory_types: int | None


def _formats() -> Sequence[str]:
    from aether_emu.verify.tables.format_names import NAMES

    return NAMES


_READING = (
    click.option("--root", type=HEX, help="CR3 or TTBR0_EL1. A core of aether or QEMU may tell it."),
    click.option("--root1", type=HEX, help="TTBR1_EL1: arm64's upper half."),
    click.option(
        "--format",
        type=text("FORMAT", _formats),
        help="x86_64-4level, x86_64-5level, arm64-4K, -16K, -64K; arm64 also with -39bit and so on, -lpa2.",
    ),
    click.option("--base", type=HEX, help="The image is raw, and begins at that physical address."),
    click.option(
        "--physical-bits",
        type=whole(32, 52),
        help="Width of physical addresses, else the core's or 52 (48 on arm64 without LPA).",
    ),
    click.option(
        "--encryption-bit",
        type=whole(0),
        help="The address bit that tells encrypted or shared pages (SME, SEV, TDX) from others.",
    ),
    click.option("--memory-types", type=HEX, help="IA32_PAT or MAIR_EL1, to name memory types."),
)


def _reads_an_image(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its IMAGE, and the options that say how to read it as one `reading`."""

    @functools.wraps(command)
    def with_reading(**given: Any) -> None:
        command(reading=_Reading(*(given.pop(name) for name in _Reading._fields)), **given)

    decorated: Callable[..., None] = with_reading
    for option in reversed(_READING):
        decorated = option(decorated)
    return click.argument("image", type=FILE, help="Raw memory, an ELF core or LiME.")(decorated)


_limit = click.option(
    "--limit", type=whole(1), default=1 << 23, help="The most entries of one level to look at."
)
_execute_too = click.option(
    "--execute", is_flag=True, help="Ask the emulated CPU's MMU the same, page by page, and compare."
)


@click.group(cls=Ordered, help="Look at the page tables in a physical memory image.", no_args_is_help=True)
def pt() -> None:
    """What its commands share: nothing."""


_MOST_DRAWN = 5_000  # lines of a table that a terminal gets in colour; more take too long to lay out


@pt.command(cls=Command, short_help="What is mapped, as ranges of pages that are alike.")
@_reads_an_image
@_limit
@_execute_too
@debug_option
def show(image: Path, reading: _Reading, limit: int, execute: bool, debug: bool) -> None:
    """Print what is mapped, as ranges of pages that are alike, and totals."""
    show_tracebacks(debug)
    from aether_emu.verify.tables import show as shown
    from aether_emu.verify.tables.survey import survey

    tables = _tables(image, reading)
    if execute:
        _check(tables)
    settle()
    found = survey(tables, limit=limit)
    items = shown.listed(found)
    if os.isatty(1) and len(items) <= _MOST_DRAWN:
        _print_table(items)
    else:
        _print(shown.columns([shown.COLUMNS, *map(shown.row, items)]))
    _print(shown.totals(found))
    if execute:
        raise click.exceptions.Exit(_execute(found))


@pt.command(cls=Command, short_help="Each level's entry on the way to an address.")
@_reads_an_image
@click.argument("addresses", nargs=-1, required=True, type=hexadecimal("ADDR"), help="Virtual, hexadecimal.")
@debug_option
def walk(image: Path, reading: _Reading, addresses: tuple[int, ...], debug: bool) -> None:
    """Print every level's entry on the way to each ADDR, decoded, and where it leads.

    Exit status 1 when an address leads nowhere.
    """
    show_tracebacks(debug)
    from aether_emu.verify.tables.show import walk_lines
    from aether_emu.verify.tables.walking import walk as walked

    tables = _tables(image, reading)
    settle()
    walks = [walked(tables, address) for address in addresses]
    for found in walks:
        _print(walk_lines(found, tables.title))
    raise click.exceptions.Exit(int(any(found.physical is None for found in walks)))


@pt.command(cls=Command, short_help="What is suspicious, and how bad it is.")
@_reads_an_image
@_limit
@_execute_too
@click.option("--json", "as_json", is_flag=True, help="Findings as JSON.")
@debug_option
def lint(image: Path, reading: _Reading, limit: int, execute: bool, as_json: bool, debug: bool) -> None:
    """Find what is suspicious: each finding with its address, entry, why it matters and how bad it is.

    Exit status 1 when there are errors.
    """
    show_tracebacks(debug)
    from aether_emu.verify.tables.lint import as_data, counted, lines
    from aether_emu.verify.tables.lint import lint as findings_of
    from aether_emu.verify.tables.lint_rules import Severity
    from aether_emu.verify.tables.survey import survey

    tables = _tables(image, reading)
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
    raise click.exceptions.Exit(int(failed))


def _tables(image: Path, reading: _Reading) -> Tables:
    from dataclasses import replace

    from aether_emu.verify.tables.images import open_image
    from aether_emu.verify.tables.walking import open_tables

    opened = open_image(image, reading.base)
    told = {name: getattr(reading, name) for name in ("physical_bits", "encryption_bit", "memory_types")}
    registers = replace(
        opened.registers, **{name: value for name, value in told.items() if value is not None}
    )
    return open_tables(
        opened, root=reading.root, root1=reading.root1, format=reading.format, registers=registers
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
        click.echo(line, err=error)
    return int(bool(agreement.differences))


def _print_table(items: Sequence[Range | Repeat]) -> None:
    """The ranges for a terminal; what can be written and executed stands out."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from aether_emu.verify.tables import show as shown

    table = Table(*shown.COLUMNS, box=box.SIMPLE_HEAD, pad_edge=False)
    for item in items:
        style = "bold red" if shown.writable_executable(item) else ""
        table.add_row(*(Text(cell, style) for cell in shown.row(item)))
    Console().print(table)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
