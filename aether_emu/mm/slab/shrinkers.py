"""Shrinkers: those who keep memory that they could do without, and give it back when it is short.

Reclaim asks them before it takes pages of programs, the allocator before it refuses (Linux: `shrink_slab`).
"""

from __future__ import annotations

from typing import Protocol

from aether_emu.mm.counters import Event


class Shrinker(Protocol):
    """Somebody who keeps things that nobody uses now."""

    def count(self) -> int:
        """How many there are."""

    def scan(self, wanted: int) -> tuple[int, int]:
        """Look at about so many, and give back what can be. (Things looked at, frames given back.)"""


class Shrinkers:
    """Those of a machine, in the order in which they were entered. `counts` are its counters."""

    def __init__(self, counts: list[int]) -> None:
        self._counts = counts
        self._all: list[Shrinker] = []
        self._at_work = False

    def enter(self, one: Shrinker) -> None:
        """It is asked from now on."""
        self._all.append(one)

    def shrink(self, wanted: int) -> int:
        """Have all give back so many frames together, if they have them. Returns how many came."""
        if self._at_work:  # one of them needs memory itself
            return 0
        self._at_work, came = True, 0
        try:
            for one in self._all:
                if came < wanted and one.count():
                    looked, given = one.scan(wanted - came)
                    self._counts[Event.SLABS_SCANNED] += looked
                    came += given
        finally:
            self._at_work = False
        return came
