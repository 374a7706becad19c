"""Shrinking a schedule to what its finding needs, by delta debugging (Zeller and Hildebrandt 2002).

Parts of the list of departures are left out as long as the finding stays; then each switch is tried without
its instructions and without its delay. The result is 1-minimal, unless the budget was used up: leaving out
any one departure loses the finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from aether_emu.explore.schedule import Departure, Switch

Ask = Callable[[Iterable[tuple[Departure, ...]]], int | None]
"""The number of the first of these that shows the finding; None when none does, or no run is left."""


def shrink(departures: Sequence[Departure], ask: Ask) -> tuple[Departure, ...]:
    """The fewest departures that were found to show it."""
    found, parts = tuple(departures), 2
    while len(found) > 1:
        pieces = _pieces(found, parts)
        smaller = [*pieces, *_complements(pieces)] if parts > 2 else pieces
        which = ask(smaller)
        if which is not None:
            found = smaller[which]
            parts = 2 if which < len(pieces) else max(2, parts - 1)
        elif parts >= len(found):
            break
        else:
            parts = min(2 * parts, len(found))
    return _simpler(found, ask)


def _pieces(found: tuple[Departure, ...], parts: int) -> list[tuple[Departure, ...]]:
    bounds = [len(found) * number // parts for number in range(parts + 1)]
    return [found[start:end] for start, end in pairwise(bounds)]


def _complements(pieces: list[tuple[Departure, ...]]) -> Iterator[tuple[Departure, ...]]:
    for number in range(len(pieces)):
        yield tuple(one for other, piece in enumerate(pieces) if other != number for one in piece)


def _simpler(found: tuple[Departure, ...], ask: Ask) -> tuple[Departure, ...]:
    """With switches that say less, where they do as well."""
    for number, one in enumerate(found):
        if not isinstance(one, Switch):
            continue
        ways = [replace(one, instructions=0, delay=0), replace(one, instructions=0), replace(one, delay=0)]
        ways = [way for way in dict.fromkeys(ways) if way != one]
        tries = [(*found[:number], way, *found[number + 1 :]) for way in ways]
        which = ask(tries) if tries else None
        if which is not None:
            found = tries[which]
    return found
