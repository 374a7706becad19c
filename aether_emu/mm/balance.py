"""Which pages are tried next where both may go: those of files, or those that go to swap.

`swappiness`, 0 to 200, says what it costs to read a page of a file again, against one of swap: at 100 both
are tried equally, at 0 files' pages alone while there are any. What each kind has cost lately weighs against
it: pages that were written, and pages that came back so soon that they should have stayed. The weights are
Linux's (mm/vmscan.c, get_scan_count; mm/swap.c, lru_note_cost).
"""

from __future__ import annotations

from typing import Any

from aether_emu.mm.counters import Event

MOST, DEFAULT = 200, 60
"""The most that swappiness can be, and Linux's own."""
_IO = 32  # what a page costs that was written, or came back soon (Linux: SWAP_CLUSTER_MAX)
_COSTS = (
    (Event.SWAP_OUT, Event.REFAULT_SOON),
    (Event.FILE_WRITTEN, Event.FILE_REFAULT_SOON),
)


class Balance:
    """That of one machine, by its counters `n`."""

    def __init__(self, n: list[int]) -> None:
        self._n = n
        self._costs, self._counted = [0, 0], [0, 0]  # of swap's kind, of files
        self._owed = [0, 0]

    def look(self, pages: int) -> None:
        """Note what both have cost since the last look.

        What lies back counts less, and the less the fewer `pages` are in use.
        """
        for kind, events in enumerate(_COSTS):
            counted = sum(self._n[event] for event in events)
            self._costs[kind] += (counted - self._counted[kind]) * _IO
            self._counted[kind] = counted
        while sum(self._costs) > pages >> 2:
            self._costs = [cost >> 1 for cost in self._costs]

    def shares(self, swappiness: int) -> tuple[int, int]:
        """How much is tried of swap's kind, and of files, in relation to each other."""
        both = sum(self._costs)
        swap, files = both + self._costs[0], both + self._costs[1]
        whole = swap + files + 1
        return swappiness * whole // (swap + 1), (MOST - swappiness) * whole // (files + 1)

    def files_next(self, swappiness: int) -> bool:
        """Whether files' pages are next: by turns, as often as their share says."""
        shares = self.shares(swappiness)
        for kind in (0, 1):
            self._owed[kind] += shares[kind]
        files = self._owed[1] >= self._owed[0]
        self._owed[files] -= sum(shares)
        return files

    def capture(self) -> dict[str, Any]:
        """All of it, as plain data."""
        return {"costs": list(self._costs), "counted": list(self._counted), "owed": list(self._owed)}

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one."""
        self._costs, self._counted = list(state["costs"]), list(state["counted"])
        self._owed = list(state["owed"])
