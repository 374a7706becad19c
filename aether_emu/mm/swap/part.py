"""One file of the swap area: which of its slots are free, and who keeps their bytes.

    slot            31..27   26..0
                    part     place in it

On Linux these are the type and the offset of a swap entry. The part of the machine's own file is number 0;
programs may add others (swapon(2)).
"""

from __future__ import annotations

from typing import Any

from aether_emu.mm.swap.store import Store

PLACE_BITS = 27
MOST_PARTS = 1 << 32 - PLACE_BITS
MOST_PLACES = (1 << PLACE_BITS) - 1  # one less, so that a slot plus one has 32 bits too (`objects/pages`)


class Part:
    """`slots` slots, whose bytes `store` keeps. `name` is what /proc/swaps shows.

    `on`: slots are given out, those of a higher `priority` first. `key` is whatever the personality knows the
    file by, if it is a program's.
    """

    def __init__(
        self, number: int, name: str, slots: int, store: Store, *, priority: int, key: object
    ) -> None:
        self.number, self.name, self.slots, self.store = number, name, slots, store
        self.priority, self.key, self.on = priority, key, True
        self.used = 0
        self._first = number << PLACE_BITS
        self.free: list[int] = []  # given back, the last one first
        self._unused = 0  # from here on no slot was ever used

    @property
    def has_free(self) -> bool:
        """Whether a slot is free, of a file that takes pages."""
        return self.used < self.slots and not (self.store.refused and not self.store.has_room())

    def take(self) -> int:
        """A free slot; there is one."""
        self.used += 1
        if self.free:
            return self.free.pop()
        self._unused += 1
        return self._first + self._unused - 1

    def give_back(self, slot: int) -> None:
        """It is free again."""
        self.used -= 1
        self.free.append(slot)

    def capture(self) -> dict[str, Any]:
        """As plain data, the bytes included."""
        return {
            "on": self.on,
            "priority": self.priority,
            "free": list(self.free),
            "unused": self._unused,
            "store": self.store.capture(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one."""
        self.on, self.priority = state["on"], state["priority"]
        self.free, self._unused = list(state["free"]), state["unused"]
        self.used = self._unused - len(self.free)
        self.store.restore(state["store"])
