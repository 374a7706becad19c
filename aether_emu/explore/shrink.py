"""Shrinking a schedule to what its finding needs. Whatever is left out, the finding must stay.

1. Whole kinds of departures: all delays, all switches, all decisions of one stream.
2. From the end: the shortest beginning that shows it is looked for by halves. Its last departure is needed.
   Then the shortest beginning that shows it together with what is needed, and so on: for k departures out of
   n about k log n runs.
3. What is left, by delta debugging (Zeller and Hildebrandt 2002): the second step takes it that a longer
   beginning shows what a shorter one does, and this need not be so.
4. Each switch without its instructions and without its delay.

The result is 1-minimal, unless the budget was used up: leaving out any one departure loses the finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from aether_emu.explore.schedule import Choice, Departure, Switch

Departures = tuple[Departure, ...]
Ask = Callable[[Iterable[Departures]], int | None]
"""The number of the first of these that shows the finding; None when none does, or no run is left."""

_FEW = 4  # departures that are tried one by one at once


def shrink(departures: Sequence[Departure], ask: Ask) -> Departures:
    """The fewest departures that were found to show it."""
    found = tuple(departures)
    if len(found) > _FEW:
        found = _last_needed(_without_kinds(found, ask), ask)
    return _simpler(_minimal(found, ask), ask)


def _kind(one: Departure) -> str:
    return one.name if isinstance(one, Choice) else type(one).__name__


def _without_kinds(found: Departures, ask: Ask) -> Departures:
    calm = tuple(replace(one, delay=0) if isinstance(one, Switch) else one for one in found)
    if calm != found and ask([calm]) is not None:
        found = calm
    while len(kinds := dict.fromkeys(map(_kind, found))) > 1:
        tries = [tuple(one for one in found if _kind(one) != kind) for kind in kinds]
        which = ask(tries)
        if which is None:
            break
        found = tries[which]
    return found


def _last_needed(found: Departures, ask: Ask) -> Departures:
    needed: Departures = ()
    while len(found) > len(needed):
        if needed and ask([needed]) is not None:
            return needed
        too_short, enough = 0, len(found) - len(needed)
        while enough - too_short > 1:
            middle = (too_short + enough) // 2
            if ask([(*found[:middle], *needed)]) is None:
                too_short = middle
            else:
                enough = middle
        needed = (found[enough - 1], *needed)
        found = (*found[: enough - 1], *needed)
    return found


def _minimal(found: Departures, ask: Ask) -> Departures:
    parts = 2
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
    return found


def _pieces(found: Departures, parts: int) -> list[Departures]:
    bounds = [len(found) * number // parts for number in range(parts + 1)]
    return [found[start:end] for start, end in pairwise(bounds)]


def _complements(pieces: list[Departures]) -> Iterator[Departures]:
    for number in range(len(pieces)):
        yield tuple(one for other, piece in enumerate(pieces) if other != number for one in piece)


def _simpler(found: Departures, ask: Ask) -> Departures:
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
