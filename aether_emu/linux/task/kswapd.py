"""The reclaimer in the background (Linux: kswapd): tasks wake it so that they need not wait, in virtual time.

As `khugepaged` it is no task. Who finds fewer frames free than the low mark wakes it, and its own turn is
interrupted: before the next one, the scheduler has frames taken up to the high mark. What is stored takes
time on the CPU that works then, but nobody counts as having stood still for it.
"""

from __future__ import annotations

from collections.abc import Callable

from aether_emu.mm.counters import Event
from aether_emu.mm.room import Room


class Kswapd:
    """Serves the `Room` of one machine. `due`: it was woken.

    `interrupt` ends the turn of whoever runs; `aside(work)` does work for which nobody stands still.
    """

    def __init__(
        self, n: list[int], interrupt: Callable[[], object], aside: Callable[[Callable[[], int]], object]
    ) -> None:
        self._n, self._interrupt, self._aside = n, interrupt, aside
        self._room: Room | None = None
        self.due = False

    def serve(self, room: Room) -> None:
        """From now on for this one, which wakes it."""
        self._room, room.wake = room, self._woken

    def _woken(self) -> None:
        if not self.due:
            self.due = True
            self._interrupt()

    def look(self) -> None:
        """It is due: make room."""
        self.due = False
        self._n[Event.KSWAPD_RUNS] += 1
        assert self._room is not None, "who woke it?"
        self._aside(self._room.in_background)
