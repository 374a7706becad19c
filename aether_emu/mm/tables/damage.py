"""Damage: an entry above the leaves whose bytes are not what was written there.

The bytes are what the MMU walks. Beside them `mm.tables.written` remembers what was written above level 1, so
that a flipped bit is told from a mapping. Bits that the MMU itself sets (accessed, dirty) are no damage.
"""

from __future__ import annotations

from aether_emu.address import VirtAddr
from aether_emu.arch.paging import PageTableFormat
from aether_emu.errors import AetherError
from aether_emu.records import dataclass


@dataclass(frozen=True, slots=True)
class Damaged:
    """In `slot` (an index of `ram.words`) of a table of `level` stands `seen`; `expected` was written."""

    level: int
    slot: int
    seen: int
    expected: int

    def describe(self, fmt: PageTableFormat) -> str:
        """One line for people: both entries, and the bits that differ."""
        seen, expected = fmt.describe(self.seen, self.level), fmt.describe(self.expected, self.level)
        return f"{seen} where {expected} was written, bits {self.seen ^ self.expected:#x} differ"


class TableDamaged(AetherError):
    """The way down to `va`, as it was given, leads through an entry that is `damaged`."""

    def __init__(self, va: int, damaged: Damaged, what: str) -> None:
        self.va, self.damaged = VirtAddr(va, 64), damaged
        super().__init__(f"the page table is damaged on the way to {va:#x}: {what}")


def same(fmt: PageTableFormat, level: int, seen: int, written: int) -> bool:
    """Whether `seen` is `written`, what the MMU notes in it by itself aside."""
    if seen == written:
        return True
    if not (seen & written & fmt.present_mask and fmt.hardware_accessed):
        return False
    seen, written = fmt.touch(seen), fmt.touch(written)
    if fmt.hardware_dirty and fmt.next_table(written, level) is None:
        seen, written = fmt.soil(seen), fmt.soil(written)
    return seen == written
