"""Exploring: trials until one finds something, then that one shrunk.

calm run         what the others are compared with
trial 1, 2, ...  strategies by turns; the first finding in this order counts, however many run at once
shrinking        the finding's schedule, until nothing more can be left out
one more run     of what is left, which is told
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from aether_emu.explore.guides import MOST_SWITCHES, STRATEGIES
from aether_emu.explore.schedule import Departure, Schedule
from aether_emu.explore.shrink import shrink
from aether_emu.explore.trial import Outcome, Plan, Told
from aether_emu.linux.task.scheduler import LONGEST_TURN

Signature = tuple[str, str]
_MOST_SHRINKING = 2_000  # runs, without a budget
_SPARE = MOST_SWITCHES * LONGEST_TURN  # of work for each task: one spins while another was made to wait


@dataclass(frozen=True, slots=True)
class Judge:
    """What is a finding. `expected` is the output that every trial must have, if one must."""

    calm: Outcome
    expected: Told | None = None

    def finding(self, outcome: Outcome) -> Signature | None:
        """(what, in words) of a run that ended as it must not; None for others, and without an end."""
        if outcome.kind == "error":
            return outcome.error, outcome.why
        if outcome.kind != "ended":
            return None
        if outcome.signal:
            return f"signal {outcome.signal}", outcome.why
        if self.calm.kind == "ended" and outcome.status != self.calm.status:
            return f"status {outcome.status}", f"{outcome.why}, and {self.calm.status} of the calm schedule"
        if self.expected is not None and outcome.stdout.digest != self.expected.digest:
            return "output", f"another output{_first_difference(outcome.stdout.begins, self.expected.begins)}"
        return None


def _first_difference(found: bytes, wanted: bytes) -> str:
    """`: "119 of 120" in line 1, not "120 of 120"`."""
    lines, others = found.split(b"\n"), wanted.split(b"\n")
    for number in range(max(len(lines), len(others))):
        one, other = (each[number] if number < len(each) else None for each in (lines, others))
        if one != other:
            return f": {_quoted(one)} in line {number + 1}, not {_quoted(other)}"
    return ""


def _quoted(line: bytes | None) -> str:
    if line is None:
        return "nothing"
    text = line[:60].decode("utf-8", "backslashreplace")
    return f'"{text}{"..." if len(line) > 60 else ""}"'


class Budget:
    """How many runs there may be, and until when; None is no limit."""

    def __init__(self, runs: int | None = None, seconds: float | None = None) -> None:
        self._runs, self._until = runs, None if seconds is None else time.monotonic() + seconds

    def take(self) -> bool:
        """Whether there may be one more run."""
        if self.spent:
            return False
        if self._runs is not None:
            self._runs -= 1
        return True

    @property
    def left(self) -> float:
        """Seconds until its end."""
        return float("inf") if self._until is None else max(self._until - time.monotonic(), 0.0)

    @property
    def spent(self) -> bool:
        """Whether it is used up."""
        late = self._until is not None and time.monotonic() >= self._until
        return late or (self._runs is not None and self._runs <= 0)


@dataclass(frozen=True, slots=True)
class Patience:
    """From how much work on a run counts as one without an end: `factor` times the calm run's and some turns
    of each task, or `most`.
    """

    factor: float = 50.0
    most: int = 0

    def limit(self, calm: Outcome) -> int:
        """In the unit of `Outcome.work`."""
        return self.most or round(self.factor * calm.work) + len(calm.spans) * _SPARE


@dataclass(slots=True)
class Strategy:
    """How often a strategy was tried and, among these, found something."""

    trials: int = 0
    findings: int = 0


@dataclass(slots=True)
class Findings:
    """What is known so far: of the trials, and of the first finding, whose schedule had `size` departures and
    has become `raw` in so many runs of `shrinking`. `complete`: nothing more can be left out of it. `most` is
    how much work a run may have.
    """

    calm: Outcome | None = None
    most: int = 0
    trials: int = 0
    timeouts: int = 0
    lost: int = 0
    strategies: dict[str, Strategy] = field(default_factory=lambda: {each: Strategy() for each in STRATEGIES})
    orders: set[bytes] = field(default_factory=set)
    first: Plan | None = None
    finding: Signature | None = None
    raw: Schedule | None = None
    size: int = 0
    shrinking: int = 0
    complete: bool = False
    last: Outcome | None = None
    out_of_budget: bool = False

    @property
    def findings(self) -> int:
        """How many trials found something."""
        return sum(each.findings for each in self.strategies.values())


class Performs(Protocol):
    """Who runs trials, such as `workers.Crew`."""

    def perform(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, Outcome]]:
        """Each plan with its outcome, in their order."""


class Search:
    """Explores by `crew`, for at most `count` trials. `expected` None: an output is compared with the calm
    one's if `same_output`. `keeps_on` looks at all trials, and shrinks the first finding then.

    `tell(phase, done)` hears how far it is. `known` may be looked at whenever this is interrupted.
    """

    def __init__(
        self,
        crew: Performs,
        count: int,
        budget: Budget,
        *,
        expected: Told | None = None,
        same_output: bool = False,
        keeps_on: bool = False,
        patience: Patience | None = None,
        tell: Callable[[str, int], None] = lambda _phase, _done: None,
    ) -> None:
        self._crew, self._count, self._budget = crew, count, budget
        self._expected, self._same_output, self._keeps_on, self._tell = expected, same_output, keeps_on, tell
        self._patience = patience or Patience()
        self.known = Findings()

    def run(self) -> Findings:
        """All of it. Raises what makes the program impossible to run."""
        known = self.known
        calm = self._one(Plan(schedule=Schedule(), describes=True, most=self._patience.most))
        known.calm, known.most = calm, self._patience.limit(calm)
        expected = calm.stdout if self._same_output and self._expected is None else self._expected
        judge = Judge(calm, expected)
        found = judge.finding(calm)
        if found is not None:
            known.finding, known.raw, known.last = found, Schedule(), calm
            known.complete = True
            return known
        self._try(judge, calm)
        if known.first is not None and known.raw is not None:
            self._shrink(judge, known.raw)
        return known

    def _one(self, plan: Plan) -> Outcome:
        return next(iter(self._crew.perform([plan])))[1]

    def _plans(self, calm: Outcome) -> Iterator[Plan]:
        for number in range(1, self._count + 1):
            if not self._budget.take():
                self.known.out_of_budget = True
                return
            yield Plan(
                number,
                STRATEGIES[number % len(STRATEGIES)],
                spans=calm.spans,
                time_ns=calm.time_ns,
                most=self.known.most,
            )

    def _try(self, judge: Judge, calm: Outcome) -> None:
        known = self.known
        for plan, outcome in self._crew.perform(self._plans(calm)):
            known.trials += 1
            known.orders.add(outcome.order)
            known.timeouts += outcome.kind == "timeout"
            known.lost += outcome.kind == "lost"
            strategy = known.strategies[plan.strategy]
            strategy.trials += 1
            self._tell("schedules", known.trials)
            found = judge.finding(outcome)
            if found is None:
                continue
            strategy.findings += 1
            if known.first is None:
                known.first, known.finding, known.raw = plan, found, outcome.schedule
            if not self._keeps_on:
                return

    def _shrink(self, judge: Judge, raw: Schedule) -> None:
        known = self.known
        assert known.finding is not None
        wanted, best = known.finding[0], raw

        def ask(tries: Iterable[tuple[Departure, ...]]) -> int | None:
            nonlocal best
            for plan, outcome in self._crew.perform(self._shorter(tries)):
                known.shrinking += 1
                self._tell("shrinking", known.shrinking)
                found = judge.finding(outcome)
                if found is not None and found[0] == wanted and plan.schedule is not None:
                    best = plan.schedule
                    known.raw, known.finding = best, found
                    return plan.number
            return None

        known.size = len(raw.departures)
        departures = shrink(raw.departures, ask)
        known.complete = not known.out_of_budget
        known.raw = Schedule(departures)
        known.last = self._one(Plan(schedule=known.raw, describes=True, most=known.most))
        known.finding = judge.finding(known.last) or known.finding
        known.raw = known.last.schedule  # in the order in which they are met, and none that is not

    def _shorter(self, tries: Iterable[tuple[Departure, ...]]) -> Iterator[Plan]:
        for number, departures in enumerate(tries):
            if self.known.shrinking >= _MOST_SHRINKING or not self._budget.take():
                self.known.out_of_budget = True
                return
            yield Plan(number, schedule=Schedule(departures), most=self.known.most)
