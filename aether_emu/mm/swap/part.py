"""One file of the swap area: which of its slots are free, and who keeps their bytes.

    slot            31..27   26..0
                    part     place in it

On Linux these are the type and the offset of a swap entry. The part of the machine's own file is number 0;
programs may add others (swapon(2)).

What is known of a slot stands in columns, 24 bytes for each that was ever used: Python's own numbers would
take five times as much.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aether_emu.mm.swap.store import Store

PLACE_BITS = 27
MOST_PARTS = 1 << 32 - PLACE_BITS
MOST_PLACES = (1 << PLACE_BITS) - 1  # one less, so that a slot plus one has 32 bits too (`objects/pages`)

_COLUMNS = {"users": np.uint32, "frames": np.uint32, "objects": np.uint64, "went": np.uint64}


class Part:
    """`slots` slots, whose bytes `store` keeps. `name` is what /proc/swaps shows.

    `on`: slots are given out, those of a higher `priority` first. `key` is whatever the personality knows the
    file by, if it is a program's. The columns, by place:

        users     entries and objects that name the slot
        frames    the frame that is cached for it, plus one; 0: none
        objects   the address of the kernel's object for it, while it is cached; 0: none
        went      how many pages reclaim had taken when it took this one; 0: it is not away
    """

    users: memoryview
    frames: memoryview
    objects: memoryview
    went: memoryview

    def __init__(
        self, number: int, name: str, slots: int, store: Store, *, priority: int, key: object
    ) -> None:
        self.number, self.name, self.slots, self.store = number, name, slots, store
        self.priority, self.key, self.on = priority, key, True
        self.used = 0
        self.first = number << PLACE_BITS
        self._columns: dict[str, NDArray[Any]] = {}
        self._bind({name: np.zeros(slots, dtype) for name, dtype in _COLUMNS.items()})
        self.free: list[int] = []  # given back, the last one first
        self._unused = 0  # from here on no slot was ever used

    def _bind(self, columns: dict[str, NDArray[Any]]) -> None:
        self._columns = columns
        for name, column in columns.items():
            setattr(self, name, column.data)

    def column(self, name: str) -> NDArray[Any]:
        """One of the columns, of the places that were ever used."""
        return self._columns[name][: self._unused]

    @property
    def kept(self) -> list[Any]:
        """What is kept for its slots, to be measured: no view, whose size nobody could tell."""
        return [self.free, *(self.column(name).copy() for name in _COLUMNS)]

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
        return self.first + self._unused - 1

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
            "columns": {name: self.column(name).copy() for name in _COLUMNS},
            "store": self.store.capture(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one."""
        self.on, self.priority = state["on"], state["priority"]
        self.free, self._unused = list(state["free"]), state["unused"]
        self.used = self._unused - len(self.free)
        for name, column in state["columns"].items():
            self.column(name)[:] = column
        self.store.restore(state["store"])
