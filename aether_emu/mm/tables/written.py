"""What was written into the tables of one tree above level 1, and whether the bytes still say so.

The MMU walks the bytes; a flipped bit in them leads it astray. So each entry above level 1 is remembered
when it is written, and `judge` compares. Level-1 entries are not remembered: hot paths write them in place.
"""

from __future__ import annotations

from aether_emu.arch.paging import Entries, PageTableFormat
from aether_emu.machine.memory.ram import Ram
from aether_emu.mm.frames.table import FrameTable
from aether_emu.mm.tables.damage import Damaged, TableDamaged, same


class Written:
    """The entries of one tree. A slot is an index of `ram.words`, the root a physical address.

    A tree may borrow root entries of another one, its lender, which alone remembers what lies below them.
    """

    root: int

    def __init__(self, fmt: PageTableFormat, ram: Ram, frames: FrameTable) -> None:
        self.format, self.ram, self.frames = fmt, ram, frames
        # Truncated va >> leaf_span_shift -> slot of the leaf table's first entry.
        self.leaf_tables: dict[int, int] = {}
        self.leaf_span_shift = fmt.levels[0].shift + fmt.levels[0].bits
        self._width = (1 << fmt.virtual_bits) - 1  # the bits of an address that a walk looks at
        # First slot of each table above level 1 -> what was written there: slot -> entry, no zeros.
        self._written: dict[int, dict[int, int]] = {}
        # Root slots that show `_lender`'s subtrees; they are in none of the above.
        self._borrowed: frozenset[int] = frozenset()
        self._lender: Written | None = None
        self.second_root = 0  # physical address of the supervisor's own root (KPTI); 0: there is none

    def write(self, va: int, level: int, slot: int, entry: int) -> None:
        """Store the entry of `va` at `level`, whose slot is `slot`, and remember it above level 1.

        Whether a live entry may become this one is the caller's affair: see `replace`, `exchange`.
        """
        self.ram.words[slot] = entry
        if level == 1:
            return
        if self.second_root and level == self.format.top:
            self._show(slot, entry)
        written = self._written[slot & -(self.format.page_size >> 3)]
        if entry:
            written[slot] = entry
        else:
            written.pop(slot, None)
        if level == 2:
            below = self.format.next_table(entry, level)
            if below is not None:
                self.leaf_tables[self._key(va)] = self._base_slot(below)
            else:
                self.leaf_tables.pop(self._key(va), None)

    def fill(self, table: int, level: int, entries: Entries) -> None:
        """Write all entries of a table of `level` that nothing points at yet."""
        slot = self._base_slot(table)
        self.ram.array[slot : slot + entries.size] = entries
        if level > 1:
            self._written[slot] = {slot + at: entry for at, entry in enumerate(entries.tolist()) if entry}

    def forget_table(self, table: int) -> int:
        """Stop remembering what was written into the table at `table`. Returns its frame."""
        self._written.pop(self._base_slot(table), None)
        return self.frames.number(table)

    def judge(self, va: int) -> Damaged | None:
        """The first entry above level 1 on the way to `va` that differs from what was written."""
        base = self._base_slot(self.root)
        for level in range(self.format.top, 1, -1):
            slot = base + self._index(va, level)
            seen = self.ram.words[slot]
            written = self._expected(base, slot)
            if not same(self.format, level, seen, written):
                return Damaged(level, slot, seen, written)
            if slot in self._borrowed:
                assert self._lender is not None
                return self._lender.judge(va)
            below = self.format.next_table(written, level)
            if below is None:
                return None
            base = self._base_slot(below)
        return None

    # ---- inside

    def _show(self, slot: int, entry: int) -> None:
        """Let the second root show what the root has in `slot`, without the right to execute it."""
        second = slot - self._base_slot(self.root) + self._base_slot(self.second_root)
        self.ram.words[second] = entry | self.format.no_execute_table if entry else 0

    def _index(self, va: int, level: int) -> int:
        spec = self.format.levels[level - 1]
        return va >> spec.shift & spec.entries - 1

    def _key(self, va: int) -> int:
        """The key of `va` in `leaf_tables`."""
        return (va & self._width) >> self.leaf_span_shift

    def _base_slot(self, table: int) -> int:
        return (table - self.ram.base) >> 3

    def _expected(self, base: int, slot: int) -> int:
        """What was written to a slot of the table above level 1 whose first slot is `base`."""
        if slot in self._borrowed:
            assert self._lender is not None
            lent = self._base_slot(self._lender.root)
            return self._lender._written[lent].get(slot - base + lent, 0)
        return self._written[base].get(slot, 0)

    def _damaged(self, va: int, damaged: Damaged) -> TableDamaged:
        return TableDamaged(va, damaged, damaged.describe(self.format))
