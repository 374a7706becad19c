"""`aether pt`: page tables in a physical memory image, whoever made it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from aether_emu.cli.app import Ordered, Wrong, settle, show_tracebacks
from aether_emu.cli.options import FILE, HEX, Command, Form, debug_option, hexadecimal, text, whole
from aether_emu.cli.pager import Terminal
from aether_emu.errors import ConfigError

if TYPE_CHECKING:
    from aether_emu.verify.tables.filters import Filter
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


def _spans(written: str) -> tuple[int, int]:
    from aether_emu.verify.tables.filters import span_of

    return span_of(written)


_FILTERS = (
    click.option("--writable", is_flag=True, help="Only what may be written; with --user by users."),
    click.option("--executable", is_flag=True, help="Only what may be executed; with --user by users."),
    click.option("--user", is_flag=True, help="Only what users reach."),
    click.option(
        "--range",
        "spans",
        multiple=True,
        type=Form("START-END", "START-END or START+SIZE, hexadecimal and not empty", _spans),
        help="Only what maps these virtual addresses, hexadecimal, without END; also START+SIZE. Repeatable.",
    ),
)


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that choose what it tells, as one `wanted`."""

    @functools.wraps(command)
    def with_filter(writable: bool, executable: bool, user: bool, spans: Any, **given: Any) -> None:
        from aether_emu.verify.tables.filters import Filter

        command(wanted=Filter(writable, executable, user, spans), **given)

    decorated: Callable[..., None] = with_filter
    for option in reversed(_FILTERS):
        decorated = option(decorated)
    return decorated


_limit = click.option(
    "--limit", type=whole(1), default=1 << 23, help="The most entries of one level to look at."
)
_execute_too = click.option(
    "--execute", is_flag=True, help="Ask the emulated CPU's MMU the same, page by page, and compare."
)
_json = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document; docs/verify.md describes it."
)
_pager = click.option(
    "--no-pager", "pager", is_flag=True, flag_value=False, default=True, show_default=False,
    help="Long output at a terminal is not piped through PAGER.",
)  # fmt: skip


@click.group(cls=Ordered, help="Look at the page tables in a physical memory image.", no_args_is_help=True)
def pt() -> None:
    """What its commands share: nothing."""


@pt.command(cls=Command, short_help="What is mapped, as ranges of pages that are alike.")
@_reads_an_image
@_filters
@_limit
@_execute_too
@_json
@_pager
@debug_option
def show(
    image: Path, reading: _Reading, wanted: Filter, limit: int, execute: bool, as_json: bool, pager: bool,
    debug: bool,
) -> None:  # fmt: skip
    """Print what is mapped, as ranges of pages that are alike, and totals."""
    show_tracebacks(debug)
    from aether_emu.verify.tables import documents
    from aether_emu.verify.tables import show as shown
    from aether_emu.verify.tables.filters import filtered
    from aether_emu.verify.tables.listing import listing
    from aether_emu.verify.tables.survey import survey

    tables = _tables(image, reading)
    if execute:
        _check(tables)
    settle()
    found = survey(tables, limit=limit)
    items = listing(filtered(found, wanted))
    status, executed = _execute(found) if execute else (0, [])
    terminal = Terminal(pager=pager)
    if as_json:
        terminal.write(_ended(documents.shown(items)))
        _tell(executed)
    else:
        below = [*([shown.counted(items)] if wanted else []), *shown.totals(found), *executed]
        table = shown.table(items, width=terminal.width, colour=terminal.colour)
        terminal.write(_joined(table, _text(below, terminal)))
    raise click.exceptions.Exit(status)


@pt.command(cls=Command, short_help="Each level's entry on the way to an address.")
@_reads_an_image
@click.argument("addresses", nargs=-1, required=True, type=hexadecimal("ADDR"), help="Virtual, hexadecimal.")
@_json
@_pager
@debug_option
def walk(
    image: Path, reading: _Reading, addresses: tuple[int, ...], as_json: bool, pager: bool, debug: bool
) -> None:
    """Print every level's entry on the way to each ADDR, decoded, and where it leads.

    Exit status 1 when an address leads nowhere.
    """
    show_tracebacks(debug)
    from aether_emu.verify.tables import documents
    from aether_emu.verify.tables.show import walk_lines
    from aether_emu.verify.tables.walking import walk as walked

    tables = _tables(image, reading)
    settle()
    walks = [walked(tables, address) for address in addresses]
    terminal = Terminal(pager=pager)
    if as_json:
        terminal.write(_ended(documents.walked(tables, walks)))
    else:
        terminal.write(_text((line for one in walks for line in walk_lines(one, tables.title)), terminal))
    raise click.exceptions.Exit(int(any(found.physical is None for found in walks)))


@pt.command(cls=Command, short_help="Which virtual addresses lead to a physical one.")
@_reads_an_image
@click.argument(
    "addresses", nargs=-1, required=True, type=hexadecimal("PADDR"), help="Physical, hexadecimal."
)
@_limit
@_json
@_pager
@debug_option
def who(
    image: Path, reading: _Reading, addresses: tuple[int, ...], limit: int, as_json: bool, pager: bool,
    debug: bool,
) -> None:  # fmt: skip
    """Print all virtual addresses that are mapped to each PADDR, and the page tables that it is in.

    Exit status 1 when there is neither for one of them.
    """
    show_tracebacks(debug)
    from aether_emu.verify.tables import documents
    from aether_emu.verify.tables import who as owners_of
    from aether_emu.verify.tables.survey import survey

    for address in addresses:
        if address >> 52:
            raise ConfigError("addresses", f"{address:x}", "physical addresses have 52 bits")
    tables = _tables(image, reading)
    settle()
    found = survey(tables, limit=limit)
    owners = [owners_of.who(found, address) for address in addresses]
    terminal = Terminal(pager=pager)
    if as_json:
        terminal.write(_ended(documents.owned(tables, owners)))
    else:
        terminal.write(_joined(*(owners_of.lines(one, terminal.width) for one in owners)))
    raise click.exceptions.Exit(int(any(not one.address.size and not one.tables for one in owners)))


@pt.command(cls=Command, short_help="What differs between two images or two roots.")
@_reads_an_image
@click.argument("other", required=False, type=FILE, metavar="[OTHER]", help="What is compared with IMAGE.")
@click.option("--other-root", type=HEX, help="--root of OTHER, or a second root of IMAGE.")
@click.option("--other-root1", type=HEX, help="--root1 of OTHER, or a second one of IMAGE.")
@click.option("--ignore-accessed", is_flag=True, help="Accessed and dirty flags alone are no difference.")
@_filters
@_limit
@_json
@_pager
@debug_option
def diff(
    image: Path, reading: _Reading, other: Path | None, other_root: int | None, other_root1: int | None,
    ignore_accessed: bool, wanted: Filter, limit: int, as_json: bool, pager: bool, debug: bool,
) -> None:  # fmt: skip
    """Print what OTHER maps otherwise than IMAGE.

    Ranges with - are gone, those with + are new, and those with ~ have changed. All options are for both,
    but for the roots where --other-root says so. Exit status 0 when both map the same, 1 when they differ,
    2 for trouble.
    """
    show_tracebacks(debug)
    from aether_emu.verify.tables import diff_lines, documents
    from aether_emu.verify.tables.diff import difference
    from aether_emu.verify.tables.survey import survey

    if other is None and other_root is other_root1 is None:
        raise Wrong("OTHER or --other-root is needed", click.get_current_context())
    second = reading
    if other_root is not None or other_root1 is not None:
        second = reading._replace(root=other_root, root1=other_root1)
    tables = _tables(image, reading), _tables(image if other is None else other, second)
    settle()
    surveys = [survey(each, limit=limit) for each in tables]
    found = difference(*surveys, ignore_accessed=ignore_accessed, wanted=wanted, limit=limit)
    terminal = Terminal(pager=pager)
    if as_json:
        terminal.write(_ended(documents.differing(*tables, found)))
    else:
        terminal.write(diff_lines.table(found, terminal.width))
    raise click.exceptions.Exit(int(len(found) > 0))


@pt.command(cls=Command, short_help="What is suspicious, and how bad it is.")
@_reads_an_image
@_limit
@_execute_too
@click.option("--json", "as_json", is_flag=True, help="Findings as JSON.")
@_pager
@debug_option
def lint(
    image: Path, reading: _Reading, limit: int, execute: bool, as_json: bool, pager: bool, debug: bool
) -> None:
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
    status, executed = _execute(found) if execute else (0, [])
    terminal = Terminal(pager=pager)
    if as_json:
        terminal.write([json.dumps(as_data(findings), indent=1).encode() + b"\n"])
        _tell(executed)
    else:
        terminal.write(_text([*lines(findings), counted(findings), *executed], terminal))
    failed = any(finding.severity is Severity.ERROR for finding in findings)
    raise click.exceptions.Exit(int(failed or status))


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


def _execute(found: Survey) -> tuple[int, list[str]]:
    """Compare with the emulated CPU: 1 when it differs, and what is to be said of it."""
    from aether_emu.verify.tables.execute import execute

    agreement = execute(found)
    return int(bool(agreement.differences)), list(agreement.lines())


def _tell(lines: Iterable[str]) -> None:
    """Say beside a document what is no part of it."""
    for line in lines:
        click.echo(line, err=True)


def _text(lines: Iterable[str], terminal: Terminal) -> Iterator[bytes]:
    """Lines as the terminal has room for them."""
    from aether_emu.verify.tables.layout import wrapped

    for line in wrapped(lines, terminal.width):
        yield line.encode() + b"\n"


def _ended(document: Iterable[bytes]) -> Iterator[bytes]:
    """A document as a file: its last line has an end."""
    yield from document
    yield b"\n"


def _joined(*parts: Iterable[bytes]) -> Iterator[bytes]:
    for part in parts:
        yield from part
