"""What `aether run --exhaustive` prints."""

from __future__ import annotations

import time
from math import log10
from typing import TYPE_CHECKING

from aether_emu.cli.app import settle
from aether_emu.cli.interrupts import TIMED_OUT, interrupts
from aether_emu.cli.progress import Progress
from aether_emu.cli.replaying import replay_command

if TYPE_CHECKING:
    from aether_emu.explore.exhaustive import Ends
    from aether_emu.explore.search import Budget
    from aether_emu.explore.trial import Job, Told

_MOST_ENDS = 20  # that are listed


def exhausted(job: Job, budget: Budget, expected: Told | None, *, same_output: bool, reduced: bool) -> int:
    """Try every interleaving, say what they end in, and return the exit status: 1 for a finding, 0 when there
    is none in all of them, 124 when the budget was used up before.
    """
    from aether_emu.explore.exhaustive import Exhaustive

    progress = Progress("interleavings", None)
    search = Exhaustive(job, budget, reduced=reduced, expected=expected, same_output=same_output,
                        tell=lambda runs: progress.tell("interleavings", runs))  # fmt: skip
    settle()
    started = time.monotonic()
    with interrupts.reporting():
        try:
            with progress, interrupts.itself():
                search.run()
        except KeyboardInterrupt:
            print(f"interrupted after {time.monotonic() - started:.1f} s: not every interleaving was tried")
            _list(search.known)
            raise
        known = search.known
        _tell(known, reduced, time.monotonic() - started)
        _list(known)
    if known.finding is not None:
        return 1
    return 0 if known.complete else TIMED_OUT


def _tell(known: Ends, reduced: bool, seconds: float) -> None:
    runs = f"{known.runs:,} run{'s' * (known.runs != 1)} of up to {known.steps:,} steps in {seconds:.1f} s"
    if known.abandoned:
        runs += f", {known.abandoned:,} more left half-way as equivalent"
    if known.complete:
        one = ", one of each equivalent kind" if reduced else ""
        print(f"every interleaving was tried{one}: {runs}")
    else:
        estimate = f"; about {_about(known.estimated)} are estimated" if known.estimated else ""
        print(f"not every interleaving was tried, the budget is used up: {runs}{estimate}")


def _about(number: float) -> str:
    """An estimate as a person reads it; beyond a billion only its magnitude says anything."""
    return f"{number:,.0f}" if number < 1e9 else f"10^{log10(number):.0f}"


def _list(known: Ends) -> None:
    """The ends that were met, and the command that replays the first finding."""
    print(f"{len(known.finals):,} final state{'s' * (len(known.finals) != 1)} (end, output, memory):")
    shown: dict[tuple[str, bytes], int] = {}
    for final, runs in known.finals.items():
        key = final.why, final.stdout.begins
        shown[key] = shown.get(key, 0) + runs
    for (why, begins), runs in list(shown.items())[:_MOST_ENDS]:
        line = begins.split(b"\n")[0][:60].decode("utf-8", "backslashreplace")
        print(f"  {runs:>8,} times  {why}" + (f', output "{line}"' if begins else ""))
    if len(shown) > _MOST_ENDS:
        print(f"  and {len(shown) - _MOST_ENDS:,} more")
    if known.finding is not None and known.found_by is not None:
        print(f"finding: {known.finding[1]}, in {known.findings:,} of the runs")
        print(f"replay:\n  {replay_command(str(known.found_by))}", flush=True)
