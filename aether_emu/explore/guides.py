"""Who says how long turns are: the ways in which trials choose, and a schedule that is replayed.

    turns    as the scheduler itself draws them: most of each length there is
    few      one to five switches, each anywhere in some task, some tasks that begin later, long turns else
             (after PCT, probabilistic concurrency testing: most bugs need few)
    short    turns of one to four blocks, half of them ending inside a block; in programs of more than 20,000
             blocks from anywhere in some task on, and 8,000 turns of all tasks long

After these switches `few` and `short` are calm: what goes on for ever then does so by itself.

On several CPUs a task that gives up its own is often the only one there, and goes on at once. So there the
CPU also stands still for a while: nothing to tens of us, each magnitude as likely (`Guide.delay`), for `few`
up to twice the time of the calm run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from aether_emu.explore.schedule import DECIDED, Choice, Switch
from aether_emu.linux.task.scheduler import LONGEST_TURN
from aether_emu.random import Stream, Streams

STRATEGIES = ("turns", "few", "short")
MOST_SWITCHES = 5
"""That `few` makes."""
_SHORTEST = 4  # blocks of the longest of the short turns
_MOST_SHORT = 8_000  # turns: a few seconds of the host
_ALL_SHORT = 20_000  # blocks of a program that has short turns throughout, and no more of them than that
_DEEPEST_CUT = 8  # instructions of a block after which it ends at the latest
_MAGNITUDES = {"turns": 16, "short": 12}  # of delays in ns: powers of two below this one
_SHORTEST_STILL, _LONGEST_STILL = 1 << 12, 1 << 24  # ns: of the longest that `few` draws
_LONGEST_STILL = 1 << 24  # ns

Span = tuple[int, int, int]
"""A task, and from which to which of its own blocks it shared the machine with others."""


class Guide(ABC):
    """Says how long turns are."""

    @abstractmethod
    def turn(self, task: int, own: int) -> tuple[int, int] | None:
        """(blocks, instructions of the one after) of the turn that begins; None: as the scheduler draws.

        `own` is how many blocks the task has executed.
        """

    @abstractmethod
    def delay(self, task: int, own: int) -> int:
        """For how many ns its CPU stands still, when a turn of that task has ended there."""


class Chosen(Guide):
    """By chance."""

    def __init__(self, strategy: str, chance: Stream) -> None:
        self._chance, self._magnitudes = chance, _MAGNITUDES[strategy]

    def delay(self, task: int, own: int) -> int:
        """See `Guide`: none for every other turn."""
        return _delay(self._chance, self._magnitudes)


class Drawn(Chosen):
    """As the scheduler draws them."""

    def __init__(self, chance: Stream) -> None:
        super().__init__("turns", chance)

    def turn(self, task: int, own: int) -> tuple[int, int] | None:
        """See `Guide`."""
        return None


class Replayed(Guide):
    """Calm but for these switches. With none it is the calm schedule."""

    def __init__(self, switches: Iterable[Switch] = ()) -> None:
        self._switches: dict[int, dict[int, Switch]] = {}
        for one in switches:
            self._switches.setdefault(one.task, {})[one.blocks] = one
        self._places = {task: sorted(places) for task, places in self._switches.items()}

    def turn(self, task: int, own: int) -> tuple[int, int] | None:
        """See `Guide`."""
        places = self._places.get(task)
        if places is None or (at := bisect_right(places, own)) == len(places):
            return LONGEST_TURN, 0
        length, cut = places[at] - own, self._switches[task][places[at]].instructions
        return (length, cut) if length <= LONGEST_TURN else (LONGEST_TURN, 0)

    def delay(self, task: int, own: int) -> int:
        """See `Guide`."""
        found = self._switches.get(task, {}).get(own)
        return 0 if found is None else found.delay


class Short(Chosen):
    """Turns of few blocks; in a long program a number of them, in a part of it."""

    def __init__(self, chance: Stream, spans: Sequence[Span] = ()) -> None:
        super().__init__("short", chance)
        self._begin: tuple[int, int] | None = None  # task, and how many blocks of its own it has then
        self._left = _ALL_SHORT  # turns
        if sum(last - first for _task, first, last in spans) > _ALL_SHORT:
            task, first, last = spans[chance.below(len(spans))]
            self._begin, self._left = (task, first + chance.below(max(1, last - first))), _MOST_SHORT

    def turn(self, task: int, own: int) -> tuple[int, int] | None:
        """See `Guide`."""
        if self._begin is not None:
            its, place = self._begin
            if task != its or own < place:
                return (min(LONGEST_TURN, place - own) if task == its else LONGEST_TURN), 0
            self._begin = None
        if self._left == 0:
            return LONGEST_TURN, 0
        self._left -= 1
        return 1 + self._chance.below(_SHORTEST), _cut(self._chance)


def few(chance: Stream, spans: Sequence[Span], time_ns: int) -> Replayed:
    """A schedule of few switches within these parts of tasks, of a run that takes `time_ns`.

    In PCT priorities are drawn at the start, and who is switched from runs again when all others wait. Here
    some tasks wait before they begin, and a CPU stands still for up to twice the whole run's time at one
    switch in two, at the others for less.
    """
    longest = min(max(2 * time_ns, _SHORTEST_STILL), _LONGEST_STILL)
    switches = [
        Switch(task, first + 1, 0, chance.below(longest))
        for task, first, _last in spans[1:]
        if chance.one_in(2)
    ]
    for _ in range(1 + chance.below(MOST_SWITCHES)):
        task, first, last = spans[chance.below(len(spans))]
        place = first + 1 + chance.below(max(1, last - first))
        cut = _cut(chance)
        delay = chance.below(longest) if chance.one_in(2) else _delay(chance, longest.bit_length() - 1)
        switches.append(Switch(task, place, cut, delay))
    return Replayed(switches)


def _delay(chance: Stream, magnitudes: int) -> int:
    drawn = chance.below(2 * magnitudes)
    return (1 << drawn) + chance.below(1 << drawn) if drawn < magnitudes else 0


def _cut(chance: Stream) -> int:
    drawn = chance.below(2 * _DEEPEST_CUT)
    return drawn + 1 if drawn < _DEEPEST_CUT else 0


class Decisions(Stream):
    """A stream whose every number is a decision: `given` ones first, the others drawn if it `draws`, else 0.

    `made` has those that are not 0.
    """

    def __init__(self, seed: int, name: str, *, draws: bool, given: Iterable[Choice] = ()) -> None:
        super().__init__(seed, name)
        self._draws = draws
        self._given = {one.index: one.value for one in given if one.name == name}
        self._count = 0
        self.made: list[Choice] = []

    def u64(self) -> int:
        """The next decision."""
        return self._decided(super().u64() if self._draws else 0, 1 << 64)

    def below(self, bound: int) -> int:
        """Likewise, below `bound`."""
        return self._decided(super().below(bound) if self._draws else 0, bound)

    def one_in(self, count: int) -> bool:
        """Likewise: 1 for True."""
        return self._decided(int(super().below(count) == 0) if self._draws else 0, 2) == 1

    def _decided(self, drawn: int, bound: int) -> int:
        value = self._given.get(self._count, drawn) % bound
        if value:
            self.made.append(Choice(self.name, self._count, value))
        self._count += 1
        return value


class DecidedStreams(Streams):
    """The streams of `seed`, but for those that are decisions: drawn for a trial, or given."""

    __slots__ = ("decisions",)

    def __init__(self, seed: int, *, trial: int | None, given: Iterable[Choice] = ()) -> None:
        super().__init__(seed)
        choices = list(given)
        self.decisions = [
            Decisions(seed if trial is None else trial, name, draws=trial is not None, given=choices)
            for name in DECIDED
        ]
        for each in self.decisions:
            self._streams[each.name] = each
