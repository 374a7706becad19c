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


class Khugepaged:
    """Wakes each `sleep` ns for a look at the tables of `spaces`. `due` is when it does next."""

    def __init__(self, scan: Scan, sleep: int, spaces: Callable[[], Sequence[AddressSpace]]) -> None:
        self.scan, self._sleep, self._spaces = scan, sleep, spaces
        self.due = sleep

    def look(self, now: int) -> None:
        """Make up for what is due at `now`. Two passes in which there was nothing to do are enough."""
        if now < self.due:
            return
        spaces, idle_since = self._spaces(), self.scan.passes
        while self.due <= now and self.scan.passes < idle_since + 2:
            if self.scan.look(spaces):
                idle_since = self.scan.passes
            self.due += self._sleep
        if self.due <= now:
            self.due += -(-(now + 1 - self.due) // self._sleep) * self._sleep

    def capture(self) -> dict[str, Any]:
        """When it is due, and where it goes on."""
        return {"due": self.due, "scan": self.scan.capture()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.due = state["due"]
        self.scan.restore(state["scan"])
