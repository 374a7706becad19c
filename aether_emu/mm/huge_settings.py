"""Where huge pages come by themselves, in private memory and in shared: a word for all, and one by size.

It is what /sys/kernel/mm/transparent_hugepage shows, and what root writes there.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from aether_emu.errors import Refused
from aether_emu.mm.allocation import Area, AreaFlags

COMPACTS = ("always", "defer", "defer+madvise", "madvise", "never")
"""What `defrag` may be, in its order. What is deferred no fault does, and nobody else."""

_HUGE = int(AreaFlags.HUGE)


def chosen(word: str, words: tuple[str, ...]) -> str:
    """The word, if it is one of these. Raises Refused(EINVAL)."""
    if word not in words:
        raise Refused(errno.EINVAL, f"that is one of {', '.join(words)}")
    return word


class HugeSettings(ABC):
    """`setting`, one of `WORDS`, says where; so do `modes`, each of `MODES`, by the order of a block, where
    `inherit` is the setting for all. `compacts`, one of COMPACTS: where a fault moves pages to make room.
    """

    WORDS: ClassVar[tuple[str, ...]]
    MODES: ClassVar[tuple[str, ...]]

    def __init__(self, orders: range, used: Sequence[int], setting: str, compacts: str) -> None:
        """Blocks have `orders`; those of the orders `used` inherit the setting, others never come."""
        self.setting, self.compacts = setting, compacts
        self.modes = {order: "inherit" if order in used else "never" for order in orders}

    def change(self, setting: str) -> None:
        """Have another setting for all. Raises Refused(EINVAL) for a word that is none."""
        self.setting = chosen(setting, self.WORDS)
        self._settle()

    def change_mode(self, order: int, mode: str) -> None:
        """Have another setting for blocks of an order. Likewise."""
        self.modes[order] = chosen(mode, self.MODES)
        self._settle()

    def by_order(self) -> dict[int, str]:
        """What the settings come to, by the order of blocks."""
        return {order: self.setting if mode == "inherit" else mode for order, mode in self.modes.items()}

    def moves_others(self, area: Area) -> bool:
        """Whether a fault of an area moves pages to make room."""
        asked = self.compacts in ("madvise", "defer+madvise")
        return self.compacts == "always" or (asked and bool(area.flags & _HUGE))

    def capture_settings(self) -> tuple[str, dict[int, str], str]:
        """All of it."""
        return self.setting, dict(self.modes), self.compacts

    def restore_settings(self, state: tuple[str, dict[int, str], str]) -> None:
        """Become the captured one."""
        self.setting, modes, self.compacts = state
        self.modes = dict(modes)
        self._settle()

    @abstractmethod
    def _settle(self) -> None:
        """The settings are others now."""
