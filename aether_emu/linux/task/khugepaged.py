"""The scan that makes huge pages by and by (Linux: khugepaged), in virtual time.

It is no task: between two turns the scheduler asks whether its time has come. Then it looks at some tables,
and sleeps again. What it copies and flushes takes time as anywhere; that it looks takes none. While nothing
runs it sleeps on, and afterwards makes up for what it has missed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aether_emu.mm.collapse import Scan
from aether_emu.mm.space import AddressSpace

_MS = 10**6
_ALLOC_SLEEP = 60_000  # ms, as Linux has it


class Khugepaged:
    """Wakes each `sleep` ms for a look at the tables of `spaces`. `due` is when it does next.

    It `runs` while some huge pages are wanted, unless it began with a `sleep` of 0 and was told no other.
    `alloc_sleep`: ms that it sleeps where it found no room for a huge page.
    """

    def __init__(self, scan: Scan, sleep: int, spaces: Callable[[], Sequence[AddressSpace]]) -> None:
        self.scan, self.sleep, self._spaces = scan, sleep, spaces
        self.alloc_sleep = _ALLOC_SLEEP
        self._may_run, self.runs = bool(sleep), False
        self.due = 0
        self.consider(0)

    def consider(self, now: int) -> None:
        """Whether huge pages are wanted may have changed."""
        runs, physical = self.runs, self.scan.physical
        shared = physical.shared_huge
        wanted = physical.huge is not None or (shared is not None and shared.on)
        self.runs = wanted and self._may_run
        if self.runs and not runs:
            self.due = now + max(self.sleep, 1) * _MS

    def set_sleep(self, wanted: int, now: int) -> None:
        """A write to `scan_sleep_millisecs`."""
        self.sleep, self._may_run = wanted, True
        self.consider(now)
        self.due = now + max(wanted, 1) * _MS

    def look(self, now: int) -> None:
        """Make up for what is due at `now`. Two passes in which there was nothing to do are enough."""
        if now < self.due:
            return
        spaces, idle_since, sleep = self._spaces(), self.scan.passes, max(self.sleep, 1) * _MS
        while self.due <= now and self.scan.passes < idle_since + 2:
            if self.scan.look(spaces):
                idle_since = self.scan.passes
            self.due += max(self.alloc_sleep * _MS, sleep) if self.scan.starved else sleep
        if self.due <= now:
            self.due += -(-(now + 1 - self.due) // sleep) * sleep

    def capture(self) -> dict[str, Any]:
        """What it was told, when it is due, and where it goes on."""
        told = self.sleep, self.alloc_sleep, self._may_run, self.runs
        return {"told": told, "due": self.due, "scan": self.scan.capture()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.sleep, self.alloc_sleep, self._may_run, self.runs = state["told"]
        self.due = state["due"]
        self.scan.restore(state["scan"])
