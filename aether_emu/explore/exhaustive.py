"""Trying every interleaving of a program of a few tasks and steps, and what its runs end in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b

from aether_emu.errors import AetherError, TimedOut
from aether_emu.explore.reduction import Enumeration
from aether_emu.explore.schedule import Schedule
from aether_emu.explore.search import Budget, Judge, Signature
from aether_emu.explore.stepping import Abandoned, SteppingScheduler, TooLong, in_steps
from aether_emu.explore.trial import Digested, Job, Outcome, Told
from aether_emu.linux.files.streams import BufferStream
from aether_emu.mm.protection import Protection
from aether_emu.system import Machine


@dataclass(frozen=True, slots=True)
class Final:
    """What a run ends in: how, what it has printed, and what its memory holds (a digest)."""

    why: str
    stdout: Told
    memory: bytes


@dataclass(slots=True)
class Ends:
    """What is known so far: how often each end was met and by which schedule first, and the finding with the
    fewest switches.

    `complete`: every interleaving was tried, or one that is equivalent. `estimated` is how many runs there
    would be, as far as one can tell.
    """

    runs: int = 0
    abandoned: int = 0
    steps: int = 0
    finals: dict[Final, int] = field(default_factory=dict)
    first_of: dict[Final, Schedule] = field(default_factory=dict)
    finding: Signature | None = None
    found_by: Schedule | None = None
    findings: int = 0
    complete: bool = False
    estimated: float = 0.0


_LEAST = 0.001  # seconds that a run is given


class _OutOfBudget(Exception):
    """The budget was used up in the middle of a run."""


class Exhaustive:
    """Runs `job` under every interleaving, as long as `budget` allows. `known` has what was found so far."""

    def __init__(
        self,
        job: Job,
        budget: Budget,
        *,
        reduced: bool = True,
        expected: Told | None = None,
        same_output: bool = False,
        tell: Callable[[int], None] = lambda _runs: None,
    ) -> None:
        self._job, self._budget, self._tell = job, budget, tell
        self._expected, self._same_output = expected, same_output
        self._enumeration = Enumeration(reduced=reduced)
        self._judge: Judge | None = None
        self.known = Ends()

    def run(self) -> Ends:
        """All of it. Raises what makes the program impossible to run, TooLong, TimedOut."""
        known, more = self.known, True
        while more and self._budget.take():
            try:
                found = self._one()
            except _OutOfBudget:
                break
            if found is not None:
                self._note(*found)
            more = self._enumeration.next_run(abandoned=found is None)
            known.runs, known.abandoned = self._enumeration.runs, self._enumeration.abandoned
            self._tell(known.runs)
        known.complete = not more
        share = 1.0 if known.complete else self._enumeration.share
        known.estimated = known.runs / share if share else 0.0
        return known

    def _note(self, outcome: Outcome, final: Final) -> None:
        known = self.known
        known.finals[final] = known.finals.get(final, 0) + 1
        known.first_of.setdefault(final, outcome.schedule)
        if self._judge is None:
            expected = outcome.stdout if self._same_output and self._expected is None else self._expected
            self._judge = Judge(outcome, expected)
        finding = self._judge.finding(outcome)
        if finding is not None:
            known.findings += 1
            length = len(outcome.schedule.departures)
            if known.found_by is None or length < len(known.found_by.departures):
                known.finding, known.found_by = finding, outcome.schedule

    def _one(self) -> tuple[Outcome, Final] | None:
        """One run, and what it ended in; None of one that was left when it turned out to be like another."""
        job = self._job
        scheduler = partial(SteppingScheduler, choose=self._enumeration)
        machine = Machine(job.isa, config=job.config, scheduler=scheduler)
        out = Digested()
        streams = {"stdin": BufferStream(job.stdin), "stdout": out, "stderr": Digested()}
        try:
            machine.load(job.program, job.argv, env=job.env, grants=job.grants, streams=streams)
            outcome = self._outcome(machine, out)
            return None if outcome is None else (outcome, Final(outcome.why, out.told, _memory(machine)))
        finally:
            machine.abandon()

    def _outcome(self, machine: Machine, out: Digested) -> Outcome | None:
        scheduler = machine.scheduler
        assert isinstance(scheduler, SteppingScheduler), "it was made so"
        kind, status, signal, error = "ended", 0, 0, ""
        try:
            ended = machine.run(timeout=min(self._job.timeout, max(self._budget.left, _LEAST)))
            status, signal, why = ended.status, ended.signal, str(ended)
        except Abandoned:
            return None
        except TimedOut:
            if self._budget.spent:
                raise _OutOfBudget from None
            raise
        except TooLong:
            raise
        except AetherError as raised:
            kind, error, why = "error", type(raised).__name__, str(raised)
        finally:
            self.known.steps = max(self.known.steps, len(scheduler.events))
        return Outcome(kind, status, signal, error, why, out.told, in_steps(scheduler.events))


def _memory(machine: Machine) -> bytes:
    """A digest of what the first process can write to, as it left it."""
    process = machine.process
    assert process is not None, "it was loaded"
    digest = blake2b(digest_size=16)
    mm, ram = process.mm, machine.ram
    for area in mm.areas:
        if not area.protection & Protection.WRITE:
            continue
        for page in range(area.start, area.end, mm.page_size):
            found = mm.table.find(page)
            if found is None or not found.entry & mm.table.format.present_mask:
                continue
            at = mm.table.format.leaf_address(found.entry, found.level) + page - found.start - ram.base
            if 0 <= at <= ram.size - mm.page_size:
                content = bytes(ram.bytes[at : at + mm.page_size])
                if any(content):
                    digest.update(page.to_bytes(8, "little") + content)
    return digest.digest()
