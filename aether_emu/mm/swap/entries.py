"""What an entry says of a page that is in swap: its slot, and whether no other entry names that.

The value is that of a held entry (`HeldKind.SWAP`), which each format keeps from its page shift on:

                    43      42      41         40..32   31..0
    value           told    clean   exclusive  zero     slot
    x86_64          bit 55  bit 54  bit 53     52..44   43..12    P=0 in bit 0, kind 1 in bits 4..1
    arm64, 4K       bit 55  bit 54  bit 53     52..44   43..12    V=0 in bit 0, kind 1 in bits 4..1
    arm64, 16K      bit 57  bit 56  bit 55     54..46   45..14
    arm64, 64K      bit 59  bit 58  bit 57     56..48   47..16

Exclusive means what it means on Linux, which has it in bit 3 on x86_64 and in bit 2 on arm64: the page was
mapped by this entry alone when it went out. A fork takes it from both sides.
Clean is `mm.protection.clean_mark` of a page that is out: nobody wrote to it since that was last asked.
Told is `user_mark`: a program is to hear of the next write.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Entries, Held, HeldKind, PageTableFormat
from aether_emu.mm.protection import NOTED_CLEAN, NOTED_USER

SLOT_BITS = 32
"""The width of a slot's number."""
EXCLUSIVE = 1 << 41


class SwapEntries:
    """The codec for one format. Made by `swap_entries`."""

    def __init__(self, fmt: PageTableFormat) -> None:
        self._empty = fmt.held_entry(Held(HeldKind.SWAP, 0))
        unit = fmt.held_entry(Held(HeldKind.SWAP, 1)) ^ self._empty
        self._shift, self._kind = unit.bit_length() - 1, unit - 1 | fmt.present_mask
        self.exclusive = fmt.held_entry(Held(HeldKind.SWAP, EXCLUSIVE)) ^ self._empty
        self.clean = fmt.held_entry(Held(HeldKind.SWAP, NOTED_CLEAN)) ^ self._empty
        self.told = fmt.held_entry(Held(HeldKind.SWAP, NOTED_USER)) ^ self._empty
        self._slots = (1 << SLOT_BITS) - 1

    def make(self, slot: int, *, exclusive: bool, clean: bool = False, told: bool = False) -> int:
        """The entry of a page in `slot`."""
        marks = (self.exclusive if exclusive else 0) | (self.clean if clean else 0)
        marks |= self.told if told else 0
        return self._empty | slot << self._shift | marks

    def holds(self, entry: int) -> bool:
        """Whether an entry is of this kind."""
        return entry & self._kind == self._empty

    def slot(self, entry: int) -> int:
        """Which slot it names."""
        return entry >> self._shift & self._slots

    def shared(self, entry: int) -> int:
        """The entry once another one names the slot as well. Those of other kinds are as they were."""
        return entry & ~self.exclusive if self.holds(entry) else entry

    def which(self, entries: Entries) -> NDArray[np.bool_]:
        """`holds`, for each of an array."""
        chosen: NDArray[np.bool_] = entries & np.uint64(self._kind) == np.uint64(self._empty)
        return chosen

    def slots(self, entries: Entries) -> NDArray[np.int64]:
        """`slot`, for each of an array of such entries."""
        return (entries >> np.uint64(self._shift) & np.uint64(self._slots)).astype(np.int64)


@lru_cache(maxsize=16)
def swap_entries(fmt: PageTableFormat) -> SwapEntries:
    """The codec of a format."""
    return SwapEntries(fmt)
