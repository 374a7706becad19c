"""What a shootdown means for those who run CPUs: who executes meanwhile, who waits, and how long.

The CPU that asks sends interrupts (`clock.interrupt` each), stops behind the operation that it is in, and
goes on when the last of the others has acknowledged. Its time is then that of the last acknowledgement, but
at least `clock.interrupt_delivery` behind the sending. While it waits it executes nothing, takes interrupts
itself, and the task that asked does not leave it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from aether_emu.linux.task.lines import Lines
from aether_emu.machine.cpu import Cpu
from aether_emu.mm.shootdown import Runner


class Interrupts(Runner):
    """Between the TLBs and the lines of tasks. `now` is the time of the CPU that works, `delivery` in ns.

    `advance` lets time pass for the CPU that works.
    """

    def __init__(
        self,
        lines: Lines[Any, Any],
        cpus: tuple[Cpu, ...],
        now: Callable[[], int],
        advance: Callable[[int], None],
        delivery: int,
    ) -> None:
        self._lines, self._cpus = lines, cpus
        self._now, self._advance, self._delivery = now, advance, delivery

    def executes(self, index: int) -> bool:
        """See `Runner`. A CPU that waits for others takes interrupts at once."""
        lines = self._lines
        return bool(len(lines.lines[index])) and not lines.held[index]

    def idles(self, index: int) -> bool:
        """See `Runner`."""
        return not len(self._lines.lines[index])

    def hold(self, index: int) -> Callable[[], None]:
        """See `Runner`."""
        lines = self._lines
        lines.held[index] += 1
        lines.holding += 1
        self._cpus[index].stop()
        return partial(self._release, index, self._now())

    def _release(self, index: int, since: int) -> None:
        lines = self._lines
        lines.held[index] -= 1
        lines.holding -= 1
        now = self._now()
        until = max(now, since + self._delivery)
        if index == lines.at:
            self._advance(until - now)
            lines.waited += until - since
        else:
            lines.waited += max(0, until - max(since, lines.times[index]))
            lines.times[index] = max(lines.times[index], until)
