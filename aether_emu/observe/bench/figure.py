"""A figure: one thing measured beside its floor, in alternating pairs, so that what counts is a ratio.

The host is shared and noisy. So time is the CPU time of the measuring thread, which waiting does
not add to; the two sides take turns; the figure's ratio is the median of the pairs' ratios, and
the spread is told with it. Garbage collection is off while the clock runs, on both sides.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from aether_emu.errors import AetherError

now = time.thread_time
"""CPU seconds that this thread has used."""


class BenchError(AetherError):
    """A benchmark did not do the work that it was to measure."""


class NotMeasured(BenchError):
    """This host has not what a figure is about: the other figures can still be measured."""


def _undivided() -> Mapping[str, float]:
    return {}


@dataclass(frozen=True, slots=True)
class Figure:
    """What is measured. `ours` and `floor` do the work once and return its CPU seconds per `unit`.

    `shares` tells afterwards what our side consists of, in CPU seconds by kind, where that is known.
    """

    name: str
    isa: str
    what: str
    program: str  # with its arguments, which are the size
    floor_is: str
    unit: str
    ours: Callable[[], float]
    floor: Callable[[], float]
    repetitions: int
    goal: float  # the ratio that the project wants at most
    shares: Callable[[], Mapping[str, float]] = _undivided

    @property
    def label(self) -> str:
        """Name and ISA as people tell figures apart."""
        return f"{self.name}/{self.isa}"


@dataclass(frozen=True, slots=True)
class Result:
    """A measured figure. `pairs` are (ours, floor) in CPU seconds per unit, in the order measured."""

    figure: Figure
    pairs: tuple[tuple[float, float], ...]

    @property
    def ratios(self) -> list[float]:
        """Ours as a multiple of the floor, pair by pair."""
        return [ours / floor for ours, floor in self.pairs]

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios."""
        return median(self.ratios)

    @property
    def ours(self) -> float:
        """Median of our side, in CPU seconds per unit."""
        return median(ours for ours, _ in self.pairs)

    @property
    def floor(self) -> float:
        """Median of the floor, in CPU seconds per unit."""
        return median(floor for _, floor in self.pairs)

    @property
    def met(self) -> bool:
        """Whether the ratio is within the goal."""
        return self.ratio <= self.figure.goal


def measure(figure: Figure, step: Callable[[], None] = lambda: None) -> Result:
    """Measure a figure: ours, floor, ours, floor, ... `step` is called after each pair.

    Raises BenchError when a side takes no time at all, which no work does, NotMeasured when this host lacks
    what it takes.
    """
    pairs = []
    for _ in range(figure.repetitions):
        pair = (figure.ours(), figure.floor())
        if min(pair) <= 0:
            raise BenchError(f"{figure.label}: no time passed ({pair[0]:.3g} s and {pair[1]:.3g} s)")
        pairs.append(pair)
        step()
    return Result(figure, tuple(pairs))


@contextmanager
def collector_off() -> Iterator[None]:
    """Collect garbage now, and not again until the block ends."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
