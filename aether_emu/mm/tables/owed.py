"""What an edit owes the TLB: the one rule.

An edit that takes something away (a page, a permission, a frame) leaves a translation behind that is
wrong from now on; one that only adds (absent to present, read-only to writable of the same frame) does
not. `verify --suite tlb` holds `owes_flush` against what CPUs do; the edits of this folder ask it once for
each kind of entry that a range shows (`mm.tables.count.kinds`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Leaf, PageFlags, PageTableFormat


class Gathering(Protocol):
    """Who collects what an edit took away, and flushes before it frees: `mm.tlb.Gather`."""

    def page(self, va: int, size: int = 0) -> None: ...
    def pages(self, va: int, numbers: NDArray[np.int64]) -> None: ...
    def drop(self, frame: int) -> None: ...
    def drop_many(self, frames: NDArray[np.int64]) -> None: ...
    def detach(self, tables: list[int]) -> None: ...
    def flush(self) -> None: ...


def owes_flush(fmt: PageTableFormat, old: int, new: int, level: int, *, moved: bool) -> bool:
    """The rule for one leaf that became another entry; `moved` to another page.

    A translation that was present may be cached, unless the MMU faults on it because software notes accesses
    and has not noted one. What takes a permission from it, or lets accesses go by unnoticed (accessed,
    dirty), or names another page, memory type or protection key, must drop it.
    """
    was, now = fmt.decode(old, level), fmt.decode(new, level)
    if not isinstance(was, Leaf):
        return False
    if not fmt.hardware_accessed and not was.attributes.flags & PageFlags.ACCESSED:
        return False
    if moved or not isinstance(now, Leaf):
        return True
    before, after = was.attributes, now.attributes
    return bool(before.flags & ~after.flags) or (before.memory, before.key) != (after.memory, after.key)


@lru_cache(maxsize=1 << 12)
def owes(fmt: PageTableFormat, old: int, new: int, level: int) -> bool:
    """`owes_flush` for an entry that keeps its address; its answers are remembered.

    The addresses of both do not matter, so one answer serves every entry that differs in nothing else.
    """
    return owes_flush(fmt, old, new, level, moved=False)
