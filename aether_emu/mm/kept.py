"""How many translations a TLB with tags would keep over switches: a model, for statistics alone.

The TLB has `ENTRIES` entries for a page each, in one set, the least recently used replaced first. A program
that runs is taken to use each page that is mapped when its CPU leaves it. So of a space's pages there are
left, when the CPU comes back, as many as what ran meanwhile has left room for. A real TLB has fewer ways, and
a turn may use fewer pages.
"""

from __future__ import annotations

from typing import Any

ENTRIES = 1536
"""As many as the second-level TLB of Intel's Skylake has (Intel 64 optimization manual, 2.6.3)."""


class Kept:
    """The model, for so many CPUs. `translations`: the sum of what was kept at each switch so far."""

    def __init__(self, cpus: int) -> None:
        self.translations = 0
        self._left: list[dict[int, int]] = [{} for _ in range(cpus)]  # tag -> pages, by last use

    def leave(self, index: int, tag: int, pages: int) -> None:
        """CPU `index` leaves a space that has so many pages mapped, and that it ran with under `tag`."""
        left = self._left[index]
        left.pop(tag, None)
        left[tag] = pages
        room = ENTRIES
        for other in reversed(list(left)):
            if room <= 0:
                del left[other]
            else:
                room -= left[other]

    def enter(self, index: int, tag: int, *, keep: bool, broadcast: bool) -> None:
        """CPU `index` changes to `tag`. What it does not keep is the tag's, with `broadcast` everything."""
        left, room = self._left[index], ENTRIES
        if not keep:
            left.pop(tag, None)
            if broadcast:
                left.clear()
            return
        for other in reversed(left):
            if other == tag:
                self.translations += max(0, min(room, left[tag]))
                return
            room -= left[other]

    def capture(self) -> dict[str, Any]:
        """As plain data."""
        return {"translations": self.translations, "left": [list(left.items()) for left in self._left]}

    def restore(self, state: dict[str, Any]) -> None:
        """The way back."""
        self.translations = state["translations"]
        self._left = [dict(left) for left in state["left"]]
