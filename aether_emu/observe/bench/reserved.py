"""Address space that is mapped beside what is measured, and never touched: it must cost nothing."""

from __future__ import annotations

from aether_emu.mm import mapping
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, Request
from aether_emu.mm.space import AddressSpace

BESIDE = 64 << 30
"""Bytes, where a figure is about that."""
_RW = 3


def reserve(space: AddressSpace, length: int) -> None:
    """Map `length` bytes where there is room; nothing for 0."""
    if length:
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        mapping.map_memory(space, Request(0, length, _RW, flags, None, 0))
