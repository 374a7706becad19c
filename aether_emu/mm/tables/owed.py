"""What an edit owes the TLB: the one rule, for one entry and for many.

An edit that takes something away (a page, a permission, a frame) leaves a translation behind that is
wrong from now on; one that only adds (absent to present, read-only to writable of the same frame) does
not. `verify --suite tlb` holds `owes_flush` against what CPUs do; every edit of this folder asks `owed`,
which asks `owes_flush` for each kind of change that a range shows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Entries, Leaf, PageFlags, PageTableFormat


class Gathering(Protocol):
    """Who collects what an edit took away, and flushes before it frees: `mm.tlb.Gather`."""

    def page(self, va: int, size: int = 0) -> None: ...
    def pages(self, va: int, numbers: NDArray[np.int64]) -> None: ...
    def drop_many(self, frames: NDArray[np.int64]) -> None: ...
    def detach(self, tables: list[int]) -> None: ...
    def flush(self) -> None: ...


def owes_flush(fmt: PageTableFormat, old: int, new: int, level: int, *, moved: bool) -> bool:
    """The rule for one leaf that became another entry; `moved` to another page.

    A translation that was present may be cached, unless the MMU faults on it because software notes
    accesses and has not noted one. What takes a permission from it, or lets accesses go
    by unnoticed (accessed, dirty), or names another page or memory type, must drop it.
    """
    was, now = fmt.decode(old, level), fmt.decode(new, level)
    if not isinstance(was, Leaf):
        return False
    if not fmt.hardware_accessed and not was.attributes.flags & PageFlags.ACCESSED:
        return False
    if moved or not isinstance(now, Leaf):
        return True
    before, after = was.attributes, now.attributes
    return bool(before.flags & ~after.flags) or before.memory != after.memory


def owed(fmt: PageTableFormat, old: Entries, new: Entries, level: int = 1) -> NDArray[np.bool_]:
    """For each entry of `old`, whether its becoming that of `new` owes a flush.

    Entries that differ from one another in nothing but a valid address are judged once: a range has few
    kinds of them.
    """
    address = np.uint64(fmt.address_mask & (1 << fmt.physical_bits) - 1 & -fmt.levels[level - 1].size)
    old_kind, new_kind = old & ~address, new & ~address
    left = old & np.uint64(fmt.present_mask) != 0
    result = np.zeros(old.size, np.bool_)
    while left.any():
        at = int(left.argmax())
        alike = left & (old_kind == old_kind[at]) & (new_kind == new_kind[at])
        before, after = int(old[at]), int(new[at])
        if _owes(fmt, before, after, level, False):
            result |= alike
        elif _owes(fmt, before, after, level, True):
            result |= alike & ((old ^ new) & address != 0)
        left &= ~alike
    return result


@lru_cache(maxsize=1 << 12)
def _owes(fmt: PageTableFormat, old: int, new: int, level: int, moved: bool) -> bool:
    return owes_flush(fmt, old, new, level, moved=moved)
