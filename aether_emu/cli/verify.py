"""`aether verify`: page-table encodings against a specification, an MMU, and silicon where there is some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aether_emu.cli.app import settle, show_tracebacks
from aether_emu.cli.interrupts import interrupts
from aether_emu.cli.options import FILE, Command, Option, debug_option, text, whole
from aether_emu.errors import ConfigError
from aether_emu.output import Output

if TYPE_CHECKING:
    from rich.progress import TaskID

    from aether_emu.verify.cases.suites import Outcome, Task
    from aether_emu.verify.cases.workers import InTurn, Workers

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
    xml = None if junit is None else Output("junit", junit)
    page = None if report is None else Output("report", report)
    settle()
    with interrupts.reporting():
        try:
            outcomes = _outcomes(wanted, jobs, only)
        except KeyboardInterrupt:
            for output in filter(None, (xml, page)):
                print(f"{output.path} is not written")
            raise
        if xml is not None:
            xml.write(junit_xml.as_xml(outcomes))
        if page is not None:
            page.write(html.as_html(outcomes).encode())
    total, clean = sum(item.tally.cases for item in outcomes), all(map(suites.verdict, outcomes))
    print(f"{total:,} cases: " + ("nothing is left to explain" if clean else "there are differences"))
    raise click.exceptions.Exit(0 if clean else 1)


def _outcomes(wanted: Sequence[Task], jobs: int, only: str) -> list[Outcome]:
    """Perform the tasks and say what came of each. ConfigError where no feature contains `only`."""
    from aether_emu.verify.cases.workers import InTurn, Workers

    outcomes: list[Outcome] = []
    bars = _Bars(len(wanted))
    workers = interrupts.workers
    crew = InTurn(wanted, bars.hear) if jobs == 1 else Workers(wanted, jobs, workers.add, workers.discard)
    try:
        with bars, interrupts.itself():
            for outcome in crew.perform():
                outcomes.append(outcome)
                bars.complete()
                if outcome.tally.cases or not only:
                    _say(outcome)
    except KeyboardInterrupt:
        _say_so_far(wanted, outcomes, crew)
        raise
    if only and not any(outcome.tally.cases for outcome in outcomes):
        raise ConfigError("only", only, "part of a feature's name, as the report has them")
    return outcomes


def _say_so_far(wanted: Sequence[Task], said: Sequence[Outcome], crew: InTurn | Workers) -> None:
    """Ctrl-C: what is complete and not told yet, how far the others are, and that this is no verdict."""
    for task in wanted:
        if task in crew.outcomes and all(outcome.task != task for outcome in said):
            _say(crew.outcomes[task])
        elif task in crew.under_way:
            tally = crew.under_way[task].tally
            print(
                f"{task.format:<18} {task.suite:<12}stopped after {tally.cases:,} cases, "
                f"{tally.different:,} differences so far"
            )
    print(
        f"interrupted: {len(crew.outcomes)} of {len(wanted)} suites are complete; "
        "nothing is said about the rest"
    )


class _Bars:
    """How far the work is, on stderr if that is a terminal."""

    def __init__(self, suites: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        quiet = not console.is_terminal
        self._progress = Progress(*columns, console=console, transient=True, disable=quiet)
        self._whole = self._progress.add_task("formats and suites", total=suites)
        self._bar: TaskID | None = None
        self._shown: Task | None = None

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def hear(self, task: Task, cases: int) -> None:
        """So many cases of a task were done in this process."""
        if self._shown != task or self._bar is None:
            self._shown = task
            sized = task.suite in ("entries", "permissions")  # the others have as many cases as they have
            total = task.cases if sized else None
            self._bar = self._progress.add_task(f"{task.format} {task.suite}", total=total)
        self._progress.advance(self._bar, cases)

    def complete(self) -> None:
        """A task was."""
        self._progress.advance(self._whole)
        if self._bar is not None:
            self._progress.remove_task(self._bar)
            self._bar = None


def _say(outcome: Outcome) -> None:
    from aether_emu.verify.cases.tlb import TlbTally

    task, tally = outcome.task, outcome.tally
    parts = [f"{tally.cases:>11,} cases", f"{tally.different:,} differences"]
    if tally.set_aside:
        parts.append(f"{tally.set_aside:,} set aside")
    parts += [f"{name} {count:,}" for name, count in tally.known.items() if count]
    parts += [f"GONE: {name} in {count:,}" for name, count in tally.gone.items() if count]
    print(f"{task.format:<18} {task.suite:<12}" + ", ".join(parts), flush=True)
    for line in outcome.lines:
        print(f"  {line}")
    if isinstance(tally, TlbTally):
        for edit, found in tally.findings.items():
            if found.missing or found.needless:
                print(f"  {edit}: flush missing after {found.missing}, needless after {found.needless} edits")
    for case in tally.differences[:3]:
        from aether_emu.verify.report.junit import as_text

        print(f"  {as_text(case)}")
