"""`aether verify`: page-table encodings against a specification, an MMU, and silicon where there is some."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aether_emu.cli.app import settle, show_tracebacks
from aether_emu.cli.options import FILE, Command, Option, debug_option, text, whole
from aether_emu.errors import ConfigError

if TYPE_CHECKING:
    from aether_emu.verify.cases.suites import Outcome, Task

_CASES = 20_000


def _formats() -> Sequence[str]:
    from aether_emu.verify.cases.suites import FORMATS

    return ["x86_64", "arm64", "all", *FORMATS]


def _suites() -> Sequence[str]:
    from aether_emu.verify.cases.suites import SUITES

    return [*SUITES, "all"]


@click.command(cls=Command)
@click.argument("what", type=text("WHAT", _formats), default="all", help="x86_64, arm64, all, or one format.")
@click.option(
    "--suite", type=text("SUITE", _suites), default="all", help="encodings, entries, permissions, tlb or all."
)
@click.option(
    "--cases", cls=Option, type=whole(1), show_default=str(_CASES), help="Cases for each format and suite."
)
@click.option("--full", is_flag=True, help="All permissions there are, and a million entries of each format.")
@click.option("--seed", type=whole(0), default=0, help="Chooses sample and combinations.")
@click.option(
    "--only",
    type=text("TEXT"),
    default="",
    show_default=False,
    help="Only features whose name contains this.",
)
@click.option("--jobs", type=whole(1), default=1, help="Processes; the result is the same.")
@click.option("--junit", type=FILE, help="JUnit XML.")
@click.option("--report", type=FILE, metavar="FILE.html", help="A page to read.")
@debug_option
def verify(
    what: str,
    suite: str,
    cases: int | None,
    full: bool,
    seed: int,
    only: str,
    jobs: int,
    junit: Path | None,
    report: Path | None,
    debug: bool,
) -> None:
    """Put page-table entries to the specification's walker and to the emulated CPU, and compare.

    Exit status 1 when something differs that is not known, or something known has gone. The suite tlb
    always runs whole: neither --cases nor --seed has a part in it.
    """
    show_tracebacks(debug)
    from aether_emu.verify.cases import suites
    from aether_emu.verify.report import html
    from aether_emu.verify.report import junit as junit_xml

    if full and cases is not None:
        raise ConfigError("cases", cases, "left out with --full")
    wanted = suites.tasks(what, suite, None if full else cases or _CASES, seed, only)
    files = [path for path in (junit, report) if path is not None]
    made = [path for path in files if not path.exists()]
    try:
        for path in files:
            _write(path, b"", "ab")  # refused now rather than in some minutes
        settle()
        outcomes = _outcomes(wanted, jobs, only)
        if junit is not None:
            _write(junit, junit_xml.as_xml(outcomes))
        if report is not None:
            _write(report, html.as_html(outcomes).encode())
    finally:
        for path in made:  # what was refused or stopped leaves no empty file
            if path.is_file() and not path.stat().st_size:
                path.unlink()
    total, clean = sum(item.tally.cases for item in outcomes), all(map(suites.verdict, outcomes))
    print(f"{total:,} cases: " + ("nothing is left to explain" if clean else "there are differences"))
    raise click.exceptions.Exit(0 if clean else 1)


def _outcomes(wanted: Sequence[Task], jobs: int, only: str) -> list[Outcome]:
    """Perform the tasks and say what came of each. ConfigError where no feature contains `only`."""
    outcomes = []
    for outcome in _perform(wanted, jobs):
        outcomes.append(outcome)
        if outcome.tally.cases or not only:
            _say(outcome)
    if only and not any(outcome.tally.cases for outcome in outcomes):
        raise ConfigError("only", only, "part of a feature's name, as the report has them")
    return outcomes


def _perform(wanted: Sequence[Task], jobs: int) -> Iterator[Outcome]:
    """The outcomes in the order of the tasks; a bar on stderr tells how far they are, on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from aether_emu.verify.cases.suites import perform

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        if jobs == 1:
            for task in wanted:
                bar = progress.add_task(f"{task.format} {task.suite}", total=task.cases)
                yield perform(task, lambda done, bar=bar: progress.advance(bar, done))  # type: ignore[misc]  # bound now
                progress.remove_task(bar)
            return
        bar = progress.add_task("formats and suites", total=len(wanted))
        for outcome in _in_processes(wanted, jobs):
            progress.advance(bar)
            yield outcome


def _in_processes(wanted: Sequence[Task], jobs: int) -> Iterator[Outcome]:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from aether_emu.verify.cases.suites import perform

    with ProcessPoolExecutor(min(jobs, len(wanted)), get_context("spawn")) as pool:  # engines do not fork
        yield from pool.map(perform, wanted)


def _say(outcome: Outcome) -> None:
    from aether_emu.verify.cases.tlb import TlbTally

    task, tally = outcome.task, outcome.tally
    parts = [f"{tally.cases:>11,} cases", f"{tally.different:,} differences"]
    if tally.set_aside:
        parts.append(f"{tally.set_aside:,} set aside")
    parts += [f"{name} {count:,}" for name, count in tally.known.items() if count]
    parts += [f"GONE: {name} in {count:,}" for name, count in tally.gone.items() if count]
    print(f"{task.format:<18} {task.suite:<12}" + ", ".join(parts))
    for line in outcome.lines:
        print(f"  {line}")
    if isinstance(tally, TlbTally):
        for edit, found in tally.findings.items():
            if found.missing or found.needless:
                print(f"  {edit}: flush missing after {found.missing}, needless after {found.needless} edits")
    for case in tally.differences[:3]:
        from aether_emu.verify.report.junit import as_text

        print(f"  {as_text(case)}")


def _write(path: Path, content: bytes, mode: str = "wb") -> None:
    try:
        with path.open(mode) as file:
            file.write(content)
            file.flush()
            if content:
                os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(path.name, str(path), f"cannot be written: {error.strerror}") from None
