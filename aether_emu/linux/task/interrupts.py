"""What a shootdown means for those who run CPUs: who executes meanwhile, who waits, and how long.

The CPU that asks sends interrupts (`clock.interrupt` each), stops behind the operation that it is in, and
goes on when the last of the others has acknowledged. That takes the delivery (`clock.interrupt_delivery`),
what the slowest of them executed meanwhile, and what it costs that one to take the interrupt and to flush; a
broadcast costs what is executed meanwhile, beside `clock.broadcast`. While a CPU waits it executes nothing,
takes interrupts itself, and the task that asked does not leave it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from aether_emu.config import ClockCosts
from aether_emu.linux.task.lines import Lines
from aether_emu.machine.cpu import Cpu
from aether_emu.mm.shootdown import Asked, Runner, Shootdown


class Interrupts(Runner):
    """Between the TLBs, which flush by `way`, and the lines of tasks. `now` is the time of the CPU that
    works; `advance` lets time pass for it. `draw(bound)` gives a number below `bound`.
    """

    def __init__(
        self,
        lines: Lines[Any, Any],
        cpus: tuple[Cpu, ...],
        now: Callable[[], int],
        advance: Callable[[int], None],
        costs: ClockCosts,
        way: Shootdown,
        draw: Callable[[int], int],
    ) -> None:
        self._lines, self._cpus = lines, cpus
        self._now, self._advance, self._costs = now, advance, costs
        self._way, self._draw = way, draw

    def meanwhile(self, index: int) -> int:
        """See `Runner`."""
        delay = self._way.delay
        return self._draw(delay + 1) if delay and self.executes(index) else 0

    def executes(self, index: int) -> bool:
        """See `Runner`. A CPU that waits for others takes interrupts at once."""
        lines = self._lines
        return bool(len(lines.lines[index])) and not lines.held[index]

    def idles(self, index: int) -> bool:
        """See `Runner`."""
        return not len(self._lines.lines[index])

    def hold(self, index: int, asked: Asked) -> Callable[[], None]:
        """See `Runner`."""
        lines = self._lines
        lines.held[index] += 1
        lines.holding += 1
        self._cpus[index].stop()
        return partial(self._release, index, self._now(), asked)

    def _release(self, index: int, since: int, asked: Asked) -> None:
        lines = self._lines
        lines.held[index] -= 1
        lines.holding -= 1
        until = since + self._time_of(asked)
        before = self._now() if index == lines.at else lines.times[index]
        lines.waited += max(0, until - since)
        if index == lines.at:
            self._advance(max(0, until - before))
        else:
            lines.times[index] = max(before, until)

    def _time_of(self, asked: Asked) -> int:
        """From the asking to the last acknowledgement, in ns."""
        costs = self._costs
        meanwhile = asked.blocks * costs.block
        if self._way.broadcast:
            return meanwhile
        taken = costs.interrupt_delivery + costs.interrupt_taken
        if self._way.acknowledged == "early":
            return meanwhile + taken
        flush = costs.flush_all if asked.pages is None else len(asked.pages) * costs.flush_page
        return meanwhile + taken + flush
