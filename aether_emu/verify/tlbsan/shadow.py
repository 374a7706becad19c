"""A copy of every table below a root, beside RAM: comparing the two shows which entries were edited.

Only the user's half is followed: the supervisor's is built before any CPU walks it, and stays as it is.
Whoever edits a table says roughly where (`hint`, before the store); `look` compares there and nowhere else.
`compare` looks everywhere, to prove that no store went by unsaid. A CPU sets accessed and dirty flags by
itself (x86_64), so those that came are no edit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from aether_emu.machine.memory.ram import Ram
from aether_emu.verify.tlbsan.finding import Unseen
from aether_emu.verify.tlbsan.roots import Root, Table
from aether_emu.verify.tlbsan.rules import Rules, Words

Bits = np.ndarray[Any, np.dtype[np.bool_]]

_MANY = 64  # leaf tables in a range from which on those that are known are gone through instead

Edited = Callable[[Root, int, int, list[tuple[int, int, int]]], None]
"""(root, level, address of the table's first entry, [(number, old, new), ...]) of entries that changed."""
Unlinked = Callable[[Root, Table], None]


class Shadow:
    """The copies. `edited` and `unlinked` are told of what `look` finds, in the order of tables."""

    def __init__(self, rules: Rules, ram: Ram, edited: Edited, unlinked: Unlinked) -> None:
        self._rules, self._ram = rules, ram
        self._bytes = ram.bytes
        self._edited, self._unlinked = edited, unlinked
        fmt = rules.format
        self.top = fmt.levels
        self.leaf_shift = fmt.shifts[0] + fmt.widths[0]
        self._page_shift, self._last = fmt.shifts[0], (1 << fmt.widths[0]) - 1
        upper_half = rules.isa == "x86_64"  # one root for both halves
        self._sizes = [fmt.table_size(level) for level in range(1, fmt.levels + 1)]
        self._sizes[-1] >>= upper_half
        width = fmt.shifts[-1] + fmt.widths[-1] - upper_half
        self.keys = (1 << width) - 1 >> self.leaf_shift  # the bits of an address that choose a leaf table
        self._hardware = 0x60 if upper_half else 0  # A and D, which a CPU sets by itself (SDM 3A 4.8)

    def adopt(self, address: int) -> Root:
        """Copy what stands below a root that no CPU walks yet."""
        root = Root(address)
        self._take_in(root, address, self.top, 0)
        return root

    def _take_in(self, root: Root, address: int, level: int, va: int) -> None:
        table = Table(address, level, va, address - self._ram.base, self._sizes[level - 1])
        table.bytes = bytes(self._bytes[table.start : table.end])
        if level == 1:
            root.leaves[va >> self.leaf_shift] = table
            return
        root.uppers[address] = table
        words = np.frombuffer(table.bytes, np.uint64)
        shift = self._rules.format.shifts[level - 1]
        for number in words.nonzero()[0].tolist():
            below = self._rules.table(int(words[number]), level)
            if below is not None and self._in_ram(below):
                self._take_in(root, below, level - 1, va + (number << shift))

    def _in_ram(self, address: int) -> bool:
        return self._ram.base <= address < self._ram.base + self._ram.size

    # ---- what may have been edited

    def hint_page(self, root: Root, va: int) -> bool:
        """The level-1 entry of `va` may be edited next. Whether that is the first of its table."""
        key = va >> self.leaf_shift & self.keys
        number = va >> self._page_shift & self._last
        known = root.hinted.get(key)
        if known is not None:
            if known != number:
                root.hinted[key] = -1
            return False
        self._hint(root, key, number)
        return True

    def hint(self, root: Root, start: int, end: int) -> None:
        """The level-1 entries of `[start, end)` may be edited next: see what was there before."""
        shift, keys = self.leaf_shift, self.keys
        first, last = start >> shift & keys, end - 1 >> shift & keys
        if end - start >> shift >= _MANY or last < first:
            chosen = [key for key in root.leaves if last < first or first <= key <= last]
        else:
            chosen = [key for key in range(first, last + 1) if key in root.leaves]
        for key in chosen:
            if key in root.hinted:
                root.hinted[key] = -1
            else:
                self._hint(root, key, -1)

    def _hint(self, root: Root, key: int, number: int) -> None:
        if key in root.pending:
            if key in root.leaves:
                self._take_fills(root.leaves[key])
            root.pending.discard(key)
        root.hinted[key] = number

    # ---- what was edited

    def look(self, root: Root) -> None:
        """Compare what was hinted at with RAM, and tell of what differs. The hints stay."""
        for key in sorted(root.hinted):
            table = root.leaves.get(key)
            if table is not None:
                self._look_at(root, table, root.hinted[key])
        if root.upper:
            for table in sorted(root.uppers.values(), key=_from_the_root):
                if table.address in root.uppers:  # it may have been unlinked on the way
                    self._look_at(root, table)

    def end(self, root: Root) -> None:
        """The operation is over."""
        root.hinted.clear()
        root.upper = False

    def catch_up(self, root: Root) -> None:
        """Copy the leaf tables that gained entries. Raises Unseen as `compare`."""
        for key in sorted(root.pending):
            if key in root.leaves:
                self._take_fills(root.leaves[key])
        root.pending.clear()

    def _take_fills(self, table: Table) -> None:
        """Copy a leaf table in which absent entries were filled, and nothing else was done."""
        seen, before = bytes(self._bytes[table.start : table.end]), table.bytes
        if seen != before:
            known = np.frombuffer(before, np.uint64)
            self._require_seen(table, np.frombuffer(seen, np.uint64), known, known != 0)
            table.bytes = seen

    def _require_seen(self, table: Table, now: Words, known: Words, where: Bits) -> None:
        """Raises Unseen where an entry differs, flags that a CPU sets aside."""
        ignored = np.where(known & np.uint64(1), np.uint64(self._hardware), np.uint64(0))
        wrong = (((now ^ known) & ~ignored != 0) & where).nonzero()[0]
        if wrong.size:
            at = int(wrong[0])
            va = table.va + (at << self._rules.format.shifts[table.level - 1])
            was, is_now = (self._rules.describe(int(words[at]), table.level) for words in (known, now))
            raise Unseen(f"tlbsan: the entry of {va:#x} became {is_now} unseen; it was {was}")

    def _look_at(self, root: Root, table: Table, number: int = -1) -> None:
        """Compare a table, of which perhaps the entry `number` alone was edited."""
        seen = bytes(self._bytes[table.start : table.end])
        before = table.bytes
        if seen == before:
            return
        table.bytes = seen
        if number >= 0:
            at, behind = 8 * number, 8 * number + 8
            if seen[:at] == before[:at] and seen[behind:] == before[behind:]:
                was, is_now = (int.from_bytes(part[at:behind], "little") for part in (before, seen))
                if was & 1 or self.watches_new:
                    self._edited(root, 1, table.va, [(number, was, is_now)])
                return
        old, new = np.frombuffer(before, np.uint64), np.frombuffer(seen, np.uint64)
        numbers = (old != new).nonzero()[0]
        if table.level > 1:
            self._relink(root, table, numbers.tolist(), old[numbers].tolist(), new[numbers].tolist())
            return
        valid = (old[numbers] & np.uint64(1)).nonzero()[0]
        filled = numbers.size > valid.size
        if valid.size or filled:
            chosen = numbers if filled and self.watches_new else numbers[valid]
            edits = list(zip(chosen.tolist(), old[chosen].tolist(), new[chosen].tolist(), strict=True))
            if edits:
                self._edited(root, 1, table.va, edits)

    watches_new = False  # whether entries that were absent are told of too

    def _relink(self, root: Root, table: Table, numbers: list[int], olds: list[int], news: list[int]) -> None:
        """Entries above level 1 changed: tables come and go below."""
        rules, level, shift = self._rules, table.level, self._rules.format.shifts[table.level - 1]
        edits = []
        for number, old, new in zip(numbers, olds, news, strict=True):
            before, after = rules.table(old, level), rules.table(new, level)
            va = table.va + (number << shift)
            if before != after and before is not None:
                self._let_go(root, before, level - 1, va)
            if before == after or before is None or new & 1:
                edits.append((number, old, new))
            if before != after and after is not None and self._in_ram(after):
                self._take_in(root, after, level - 1, va)
        if edits:
            self._edited(root, level, table.va, edits)

    def _let_go(self, root: Root, address: int, level: int, va: int) -> None:
        """A table is linked no more: neither is what lies below it."""
        gone = root.leaves.pop(va >> self.leaf_shift, None) if level == 1 else root.uppers.pop(address, None)
        self._let_all_go(root, gone, level, va)

    def _let_all_go(self, root: Root, table: Table | None, level: int, va: int) -> None:
        """What lay below a table that was taken out."""
        if table is None:
            return
        words = np.frombuffer(table.bytes, np.uint64)
        shift = self._rules.format.shifts[level - 1]
        edits = []
        for number in (words & np.uint64(1)).nonzero()[0].tolist():
            entry = int(words[number])
            below = self._rules.table(entry, level)
            if below is None:
                edits.append((number, entry, 0))
            else:
                self._let_go(root, below, level - 1, va + (number << shift))
        if edits:
            self._edited(root, level, va, edits)
        self._unlinked(root, table)

    def showing(self, root: Root, address: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(va, level, entry) of every leaf that leads into `[address, address + length)`, as last seen."""
        rules, mask = self._rules, np.uint64(self._rules.address)
        for table in (*root.uppers.values(), *root.leaves.values()):
            words = np.frombuffer(table.bytes, np.uint64)
            leads = words & mask
            inside = (words & np.uint64(1) != 0) & (leads >= address) & (leads < address + length)
            for number in inside.nonzero()[0].tolist():
                entry = int(words[number])
                if rules.table(entry, table.level) is None:
                    yield table.va + (number << rules.format.shifts[table.level - 1]), table.level, entry

    # ---- did a store go by unsaid?

    def compare(self, root: Root) -> None:
        """Raises Unseen where a table differs from RAM though nobody hinted at it."""
        self.catch_up(root)
        self.look(root)
        self.end(root)
        for table in (*root.uppers.values(), *root.leaves.values()):
            seen = np.frombuffer(bytes(self._bytes[table.start : table.end]), np.uint64)
            known = np.frombuffer(table.bytes, np.uint64)
            self._require_seen(table, seen, known, np.ones(known.size, np.bool_))


def _from_the_root(table: Table) -> tuple[int, int]:
    return -table.level, table.va
