"""Enumerating interleavings by running the program again and again, with dynamic partial-order reduction.

Two interleavings that differ only in the order of steps that do not depend on each other end alike: one of
them is enough. After each run its races are looked for: pairs of dependent steps of two tasks that nothing
else orders. For each, a task is noted at the earlier step's place that leads to the other order (source sets:
Abdulla, Aronsson, Jonsson and Sagonas 2014), and sleep sets keep from trying what was tried (Godefroid 1996).
Without reduction every task that can go on is tried at every place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aether_emu.explore.stepping import Abandoned, Event, Unit, by_itself


@dataclass(slots=True)
class _Place:
    """A point of the run at hand: who can go on, whom to try, who was, and who is asleep with which step."""

    ready: tuple[int, ...]
    chosen: int
    wanted: list[int]
    tried: list[int] = field(default_factory=list)
    asleep: dict[int, Event] = field(default_factory=dict)


class Enumeration:
    """Says whose step is next (`stepping.Choose`), through all interleavings: call `next_run` after each run.

    `runs` were to an end, `abandoned` found to be like another one before theirs.
    """

    def __init__(self, *, reduced: bool = True) -> None:
        self._reduced = reduced
        self._places: list[_Place] = []
        self._fixed = 0  # how many places are as in the run before
        self._events: list[Event] = []
        self.runs = self.abandoned = 0

    def __call__(self, ready: Sequence[int], events: list[Event]) -> int:
        """See `Choose`."""
        self._events, at = events, len(events)
        if at < len(self._places):
            place = self._places[at]
            if place.chosen in ready:
                return place.chosen
            raise AssertionError(f"step {at} cannot be made again: the run is not repeatable")
        asleep = self._asleep(events)
        awake = [task for task in ready if task not in asleep]
        if not awake:
            raise Abandoned
        chosen = by_itself(awake, events)
        wanted = [chosen] if self._reduced else list(ready)
        self._places.append(_Place(tuple(ready), chosen, wanted, [chosen], asleep))
        return chosen

    def _asleep(self, events: list[Event]) -> dict[int, Event]:
        """Whose step was tried before and would still be the same."""
        if not self._places or not self._reduced:
            return {}
        last, event = self._places[-1], events[-1]
        return {task: step for task, step in last.asleep.items() if not step.depends(event)}

    def next_run(self, *, abandoned: bool) -> bool:
        """Learn from the run that is over, and prepare another one. Whether there is one."""
        self.runs += not abandoned
        self.abandoned += abandoned
        events = self._events[: len(self._places)]
        if self._reduced:
            self._find_races(events)
        while self._places:
            at = len(self._places) - 1
            place = self._places[at]
            if self._reduced and at < len(events):
                place.asleep[place.chosen] = events[at]
            left = [task for task in place.wanted if task not in place.tried and task not in place.asleep]
            if left:
                place.chosen = left[0]
                place.tried.append(left[0])
                self._fixed = at
                self._events = []
                return True
            self._places.pop()
        return False

    @property
    def share(self) -> float:
        """How much of what is known to be there has been tried, from 0 to 1."""
        share, weight = 0.0, 1.0
        for place in self._places:
            known = max(len({*place.wanted, *place.tried}), 1)
            share += weight * (len(place.tried) - 1) / known
            weight /= known
        return share

    # ---- races

    def _find_races(self, events: list[Event]) -> None:
        clocks: list[dict[int, int]] = []  # task -> its last step that comes before
        last_of: dict[int, int] = {}
        touched = Touched()
        for at, event in enumerate(events):
            if event.ends:  # the others may do something before
                place = self._places[at]
                place.wanted += [task for task in place.ready if task not in place.wanted]
            own = last_of.get(event.task)
            past = {} if own is None else clocks[own]
            before = dict(past)
            if event.enabled_by is not None and event.enabled_by < at:
                _join(before, clocks[event.enabled_by])
            for earlier in touched.dependent(event, at):
                other = events[earlier]
                _join(before, clocks[earlier])
                # What let it go on comes first in any case. But what comes in between does not settle the
                # order of the two: it may be an unlock, which could not come after this lock.
                is_race = earlier != event.enabled_by and past.get(other.task, -1) < earlier
                if is_race and at >= self._fixed:
                    self._note_race(events, clocks, earlier, at)
            before[event.task] = at
            clocks.append(before)
            last_of[event.task] = at

    def _note_race(self, events: list[Event], clocks: list[dict[int, int]], earlier: int, at: int) -> None:
        """Have somebody tried at the place of `earlier` who leads to the other order."""
        place = self._places[earlier]
        first = events[earlier].task
        free = [
            number
            for number in range(earlier + 1, at)
            if clocks[number].get(first, -1) < earlier  # it does not come after `earlier`
        ]
        sequence = [*free, at]
        initials: list[int] = []
        for position, number in enumerate(sequence):
            task = events[number].task
            if task in initials or any(events[one].task == task for one in sequence[:position]):
                continue
            if not any(self._precedes(events, clocks, one, number, at) for one in sequence[:position]):
                initials.append(task)
        if any(task in place.wanted for task in initials):
            return
        possible = [task for task in initials if task in place.ready]
        if possible:
            own = events[at].task
            place.wanted.append(own if own in possible else possible[0])
        else:
            place.wanted += [task for task in place.ready if task not in place.wanted]

    def _precedes(
        self, events: list[Event], clocks: list[dict[int, int]], one: int, number: int, at: int
    ) -> bool:
        """Whether step `one` comes before `number` in every equivalent run. `at` has no clock yet."""
        if number < at:
            return clocks[number].get(events[one].task, -1) >= one
        event = events[at]
        return any(
            clocks[each].get(events[one].task, -1) >= one
            for each in range(one, at)
            if events[each].task == event.task or event.enabled_by == each or event.depends(events[each])
        )


class Touched:
    """The steps so far by what they touched: a run may have thousands, few of which depend on one."""

    def __init__(self) -> None:
        self._all: list[tuple[int, int]] = []  # (its place in the run, its task), of this and the others
        self._touching: list[tuple[int, int]] = []
        self._calls: list[tuple[int, int]] = []
        self._unknown: list[tuple[int, int]] = []
        self._ends: list[tuple[int, int]] = []
        self._reading: dict[Unit, list[tuple[int, int]]] = {}
        self._writing: dict[Unit, list[tuple[int, int]]] = {}

    def dependent(self, event: Event, at: int) -> list[int]:
        """The places of earlier steps of other tasks that `event` depends on (`Event.depends`), the last
        first. It is then one of the earlier ones itself, with place `at`.
        """
        found: set[tuple[int, int]] = set()
        if event.ends:
            found.update(self._all)
        else:
            found.update(self._ends)
            found.update(self._touching if event.unknown else self._unknown if event.touches else ())
            found.update(self._calls if event.calls else ())
            for unit in event.writes:
                found.update(self._writing.get(unit, ()), self._reading.get(unit, ()))
            for unit in event.reads:
                found.update(self._writing.get(unit, ()))
        self._add(event, (at, event.task))
        return sorted((place for place, task in found if task != event.task), reverse=True)

    def _add(self, event: Event, step: tuple[int, int]) -> None:
        self._all.append(step)
        for kind, steps in (
            (event.touches, self._touching),
            (event.calls, self._calls),
            (event.unknown, self._unknown),
            (event.ends, self._ends),
        ):
            if kind:
                steps.append(step)
        for units, by_unit in ((event.reads, self._reading), (event.writes, self._writing)):
            for unit in units:
                by_unit.setdefault(unit, []).append(step)


def _join(into: dict[int, int], other: dict[int, int]) -> None:
    for task, at in other.items():
        if into.get(task, -1) < at:
            into[task] = at
