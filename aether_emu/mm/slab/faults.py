"""Kernel objects that are misused on purpose, for whoever looks for such faults: the parameter `slab_fault`.

    overrun          a store to an object goes a word beyond its end
    use-after-free   an object is stored to once more after it was freed, as by a count that falls to 0 late
    double-free      an object is freed, and freed again
    free-list        the pointer in a free object of a slab is overwritten, as through a stale address

Each opportunity (a store, a free) is taken with a chance of one in `rare`, by the stream "slab_fault".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aether_emu.mm.slab.geometry import WORD
from aether_emu.mm.slab.layout import Layout
from aether_emu.mm.slab.slabs import Slabs

_STRAY = b"overrun!"
_FORGED = 0x4141_4141_4141_4141


class FaultySlabs(Slabs):
    """`Slabs` with one kind of fault. `struck` counts how often it has occurred."""

    def __init__(self, kind: str, rare: int, one_in: Callable[[int], bool], *slabs: Any) -> None:
        super().__init__(*slabs)
        self._kind, self._rare, self._one_in = kind, rare, one_in
        self.struck = 0

    def _strikes(self, *kinds: str) -> bool:
        strikes = self.opened and self._kind in kinds and self._one_in(self._rare)
        self.struck += strikes
        return strikes

    def store(self, layout: Layout, address: int, **fields: Any) -> None:
        """See `Slabs.store`."""
        super().store(layout, address, **fields)
        if address and self._strikes("overrun"):
            at = address - self.bias + layout.size
            self.memory[at : at + WORD] = _STRAY

    def put(self, layout: Layout, address: int) -> None:
        """See `Slabs.put`."""
        super().put(layout, address)
        if not address or not self._strikes("use-after-free", "double-free", "free-list"):
            return
        if self._kind == "double-free":
            super().put(layout, address)
        elif self._kind == "use-after-free":
            at = address - self.bias
            self.memory[at : at + WORD] = bytes(WORD)
        else:
            self._overwrite(layout)

    def _overwrite(self, layout: Layout) -> None:
        cache = self._named[layout.name]
        slab = cache.next_slab
        if slab is not None:
            at = slab.free - cache.shape.left + cache.shape.pointer - self.bias
            self.memory[at : at + WORD] = _FORGED.to_bytes(WORD, "little")

    def capture(self) -> dict[str, Any]:
        """See `Slabs.capture`."""
        return super().capture() | {"struck": self.struck}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Slabs.restore`."""
        super().restore(state)
        self.struck = state["struck"]
