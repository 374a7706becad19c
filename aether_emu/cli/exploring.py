"""The options of `aether run` that try other schedules, and what they print."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aether_emu.cli.app import complain, settle
from aether_emu.cli.interrupts import TIMED_OUT, interrupts
from aether_emu.cli.options import FILE, Form, text, whole
from aether_emu.cli.progress import Progress
from aether_emu.cli.replaying import program_input, replay_command
from aether_emu.config import Config
from aether_emu.errors import AetherError, ConfigError, MachineError

if TYPE_CHECKING:
    from aether_emu.explore.schedule import Choice
    from aether_emu.explore.search import Findings, Search
    from aether_emu.explore.trial import Job, Told
    from aether_emu.grants import Grants

_LONGEST_WORD = 1_000  # characters of a schedule on a command line; a longer one goes into a file
_TIMEOUT = 60.0  # seconds for one trial, without --timeout
_F = TypeVar("_F", bound=Callable[..., Any])


def _budget(written: str) -> tuple[int | None, float | None]:
    units = {"s": 1, "m": 60, "h": 3600}
    if written[-1:] in units:
        seconds = float(written[:-1]) * units[written[-1]]
        if not 0 < seconds < 1e9:
            raise ValueError(written)
        return None, seconds
    if not written.isascii() or not written.isdigit() or int(written) < 1:
        raise ValueError(written)
    return int(written), None


def _stuck_after(written: str) -> tuple[float, int]:
    if written[-1:] == "x":
        factor = float(written[:-1])
        if not 1 <= factor <= 1e6:
            raise ValueError(written)
        return factor, 0
    if not written.isascii() or not written.isdigit() or not 1 <= int(written) < 1 << 62:
        raise ValueError(written)
    return 0.0, int(written)


_STUCK_AFTER = Form(
    "FACTORx|BLOCKS", "a factor of the calm run's work such as 50x, or a number of blocks", _stuck_after
)
_BUDGET = Form("SECONDS|RUNS", "seconds such as 90s (or 5m, 2h), or a number of runs such as 500", _budget)

_OPTIONS = [
    click.option(
        "--schedule", type=text("SCHEDULE"), help="Replay a schedule that --explore printed or saved."
    ),
    click.option(
        "--explore",
        type=whole(1),
        metavar="N",
        help="Try N schedules; stop at the first run that crashes, deadlocks or ends with another status.",
    ),
    click.option(
        "--exhaustive",
        is_flag=True,
        help="Try every interleaving of a small program, or as many as --budget allows.",
    ),
    click.option("--jobs", type=whole(1, 1024), help="Processes for --explore; as many as CPUs by default."),
    click.option("--budget", type=_BUDGET, help="Stop an exploration after so long, or so many runs."),
    click.option("--same-output", is_flag=True, help="Another output than the calm schedule's is a finding."),
    click.option("--expect", type=FILE, help="Another output than this file is a finding."),
    click.option(
        "--stuck-after",
        type=_STUCK_AFTER,
        help="A run that works for so long and goes on has no end, a finding; 50x the calm run by default.",
    ),
    click.option("--keep-going", is_flag=True, help="Try all N schedules, and count the findings."),
    click.option("--save", type=FILE, help="Write the schedule that was found there, told in words."),
    click.option("--no-reduction", is_flag=True, help="With --exhaustive: equivalent interleavings too."),
]


def explore_options(command: _F) -> _F:
    """Add them to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def refuse_alone(given: Mapping[str, Any], schedule: str | None) -> None:
    """Raises ConfigError for an option that says nothing without --explore, or without a `schedule`."""
    for name, value in given.items():
        if name == "stuck_after" and value is not None:
            if schedule is None:
                raise ConfigError(name, value, "only with --explore or --schedule")
        elif value not in (None, False):
            raise ConfigError(name, value, "only with --explore or --exhaustive")


@dataclass(frozen=True)
class Given:
    """What the other options of the run say."""

    program: str
    args: tuple[str, ...]
    env: dict[str, str]
    grants: Grants
    config: Config
    timeout: float | None
    schedule: str | None
    watched: bool


def explored(given: Given, count: int | None, exhaustive: bool, *, jobs: int | None,
             budget: tuple[int | None, float | None] | None, same_output: bool, expect: Path | None,
             keep_going: bool, save: Path | None, no_reduction: bool,
             stuck_after: tuple[float, int] | None) -> int:  # fmt: skip
    """Explore, print what was found, and return the exit status: 1 for a finding, 0 for none."""
    _refuse(given, count, exhaustive, no_reduction, stuck_after)
    from aether_emu.explore.search import Budget, Patience, Search
    from aether_emu.explore.workers import Crew

    if save is not None:
        from aether_emu.output import Output

        Output("save", save)
    job, expected = _job(given), _expected(expect)
    limit = Budget(*(budget or (None, None)))
    if exhaustive:
        from aether_emu.cli.exhausting import exhausted

        return exhausted(job, limit, expected, same_output=same_output, reduced=not no_reduction)
    assert count is not None
    crew = Crew(job, jobs or len(os.sched_getaffinity(0)), interrupts.workers.add, interrupts.workers.discard)
    progress = Progress("schedules", count)
    patience = Patience() if stuck_after is None else Patience(*stuck_after)
    search = Search(crew, count, limit, expected=expected, same_output=same_output, keeps_on=keep_going,
                    patience=patience,
                    tell=progress.tell)  # fmt: skip
    started = time.monotonic()
    settle()
    with interrupts.reporting():
        try:
            with progress, interrupts.itself():
                search.run()
        except KeyboardInterrupt:
            _say_so_far(search, time.monotonic() - started)
            raise
        finally:
            crew.close()
        for line in crew.deaths:
            complain(line)
        return _report(job, search, count, time.monotonic() - started, save)


def _refuse(
    given: Given, count: int | None, exhaustive: bool, no_reduction: bool, stuck_after: object
) -> None:
    """Raises ConfigError for what does not go together."""
    option = "--exhaustive" if exhaustive else "--explore"
    if count is not None and exhaustive:
        raise ConfigError("explore", count, "either --explore or --exhaustive")
    if exhaustive and given.config.cpus > 1:
        raise ConfigError(
            "cpus", given.config.cpus, "1 with --exhaustive, which interleaves tasks step by step"
        )
    if exhaustive and stuck_after is not None:
        raise ConfigError("stuck_after", stuck_after, "left out with --exhaustive, which counts steps")
    if no_reduction and not exhaustive:
        raise ConfigError("no_reduction", True, "only with --exhaustive")
    if given.schedule is not None:
        raise ConfigError("schedule", given.schedule, f"left out with {option}, which makes schedules")
    if given.config.real_time:
        raise ConfigError("real_time", True, f"left out with {option}: nothing could be repeated")
    for bind in given.grants.binds:
        if bind.writable:
            raise ConfigError(
                "bind",
                f"{bind.host}:{bind.guest}:rw",
                f"read-only with {option}: trials would share what they write",
            )
    if given.watched:
        raise click.UsageError(
            f"--strace, --stats, --inject and --core are for one run, such as the replay that {option} prints"
        )


def _job(given: Given) -> Job:
    from aether_emu.explore.trial import Job
    from aether_emu.grants import program_isa

    isa = program_isa(given.program, given.grants, executable=True)
    argv = (given.program, *given.args)
    timeout = given.timeout or _TIMEOUT
    return Job(isa, given.program, argv, given.env, given.grants, given.config, program_input(), timeout)


def _expected(expect: Path | None) -> Told | None:
    from aether_emu.explore.trial import digest

    if expect is None:
        return None
    try:
        return digest(expect.read_bytes())
    except OSError as error:
        raise ConfigError(
            "expect", str(expect), error.strerror or str(error), refusal="cannot be read"
        ) from None


# ---- telling


def _say_so_far(search: Search, seconds: float) -> None:
    known = search.known
    print(f"interrupted after {_counted(known.trials, 'schedule')} in {seconds:.1f} s", end="")
    if known.finding is None or known.raw is None:
        print(": nothing was found so far", flush=True)
        return
    print(
        f"\nfinding: {known.finding[1]}\nreplay (not fully shrunk):\n"
        f"  {replay_command(str(known.raw), _most(known))}",
        flush=True,
    )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _report(job: Job, search: Search, count: int, seconds: float, save: Path | None) -> int:
    known = search.known
    calm = known.calm
    assert calm is not None
    if calm.kind == "timeout":
        raise MachineError(
            f"under the calm schedule the program did not end within {job.timeout:g} s (--timeout)"
        )
    if calm.kind == "lost":
        raise MachineError(f"under the calm schedule {calm.why}")
    orders = known.orders | {calm.order}
    print(f"{_counted(known.trials, 'schedule')} of {count:,} tried in {seconds:.1f} s: "
          f"{_counted(len(orders), 'interleaving')}, {_counted(known.findings, 'finding')}"
          + (f", {known.timeouts:,} not ended within {job.timeout:g} s" if known.timeouts else "")
          + (f", {known.lost:,} lost" if known.lost else "")
          + ("; the budget is used up" if known.out_of_budget else ""))  # fmt: skip
    for name, strategy in known.strategies.items():
        if strategy.trials:
            print(f"  {name:<8}{strategy.trials:>8,} tried {strategy.findings:>8,} with a finding")
    if known.finding is None or known.raw is None or known.last is None:
        if calm.status:
            print(f"the program itself does not succeed, under any of them: {calm.why}")
        return TIMED_OUT if known.out_of_budget and not known.trials else 0
    print(f"finding: {known.finding[1]}")
    if known.first is None:
        print("  under the calm schedule already: every task runs until it waits or ends")
    else:
        least = "" if known.complete else ", perhaps not the fewest"
        shrunk = f"shrunk to {len(known.raw.departures):,} in {_counted(known.shrinking, 'run')}{least}"
        where = f"in trial {known.first.number} ({known.first.strategy})"
        print(f"  {where}: {_counted(known.size, 'departure')} from the calm schedule, {shrunk}:")
        for line in known.last.words:
            print(f"  - {line}")
        for choice in known.raw.choices:
            print(f"  - {_in_words(choice)}")
    try:
        named = _written(job, known, save)
    except AetherError:  # hours of work are not lost with a full disk
        print(f"replay:\n  {replay_command(str(known.raw), _most(known))}", flush=True)
        raise
    print(f"replay:\n  {replay_command(named, _most(known))}", flush=True)
    return 1


def _most(known: Findings) -> int:
    """How much the replay may work, if that ends it; 0: any amount."""
    return known.most if known.finding is not None and known.finding[0] == "NoEnd" else 0


def _in_words(choice: Choice) -> str:
    if choice.name == "tlb_fault":
        return f"tlb_fault strikes at its opportunity number {choice.index}, from 0"
    return f"decision {choice.index} of {choice.name} is {choice.value}"


def _written(job: Job, known: Findings, save: Path | None) -> str:
    """The schedule as it stands in a command: itself, or the file that it was saved in."""
    assert known.raw is not None and known.finding is not None and known.last is not None
    word = str(known.raw)
    if save is None and len(word) <= _LONGEST_WORD:
        return word
    from aether_emu.explore import schedule

    path = save or Path(f"{Path(job.program).name}.schedule")
    machine = {"isa": job.isa, "cpus": job.config.cpus, "seed": job.config.seed}
    schedule.save(known.raw, path, finding=known.finding[1], words=known.last.words, **machine)
    return str(path)
