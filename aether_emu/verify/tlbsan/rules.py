"""What a page-table entry is, and what a TLB may wrongly go on to do when it has become another one.

Everything here comes from `verify`'s reading of the manuals: the walkers of `verify.spec`, and the formats of
`verify.tables` for where an entry leads. Nothing is asked of the memory manager's own rule.

An edit *takes away* where some access would succeed by the old entry and not do the same by the new one: it
faults, reaches other bytes, by another memory type, or would have to note a store (the dirty flag) that the
old translation has noted already. Clearing an accessed flag alone is no more than a hint to whoever ages
pages (Intel SDM 3A 4.10.4.3): its flush is allowed to be missing. What is absent, or faults on its access
flag on ARM64, is never kept (SDM 3A 4.10.2.3; Arm ARM R_XCLRD).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from aether_emu.verify.spec import arm64, x86_64
from aether_emu.verify.tables.format_names import format_of
from aether_emu.verify.tables.formats import Format, Kind

Words = np.ndarray[Any, np.dtype[np.uint64]]
Outcomes = list[tuple[int, ...] | None]


class Loss(IntEnum):
    """What an edit took away."""

    NOTHING = 0
    NOTICE = 1  # no more than that an access is noted anew
    RIGHT = 2  # an access that succeeds by the old translation must not, or must do something else


_ACCESSES = 3  # read, write, fetch
_CASES = 2 * _ACCESSES  # each by the user and by the supervisor
_VALID = 1
_ACCESS_FLAG = 1 << 10  # AF of ARM64's block and page descriptors


class Rules:
    """The rules of one format of stage-1 tables, by its name. Levels count from the page's own, 1, up."""

    def __init__(self, name: str) -> None:
        self.format: Format = format_of(name)
        self.isa = self.format.isa
        ones = np.array([(1 << 64) - 1], np.uint64)
        self.address = int(self.format.addresses(ones)[0])
        self._kinds: dict[tuple[int, int], Kind] = {}
        self._losses: dict[tuple[int, int, bool, int], Loss] = {}

    def table(self, entry: int, level: int) -> int | None:
        """Where a present entry leads, if it is one of a table."""
        if not entry & _VALID or level == 1 or self._kind(entry, level) is not Kind.TABLE:
            return None
        return entry & self.address

    def _kind(self, entry: int, level: int) -> Kind:
        key = entry & ~self.address | entry & self._low(level), level
        if key not in self._kinds:
            kinds, _wrong = self.format.kinds(np.array([key[0]], np.uint64), level)
            self._kinds[key] = Kind(int(kinds[0]))
        return self._kinds[key]

    def _low(self, level: int) -> int:
        """The address bits of an entry that are attributes, or reserved, in a large leaf."""
        return self.address & (1 << self.format.shifts[level - 1]) - 1

    def loss(self, old: int, new: int, level: int) -> Loss:
        """What the edit of one entry took away. That a table entry leads elsewhere is not judged here."""
        if not old & _VALID:
            return Loss.NOTHING
        moved = bool(new & _VALID) and bool((old ^ new) & self.address & ~self._low(level))
        bits = ~self.address | self._low(level)
        key = old & bits, new & bits if new & _VALID else 0, moved, level
        found = self._losses.get(key)
        if found is None:
            found = self._losses[key] = self._judge(*key)
        return found

    def _judge(self, old: int, new: int, moved: bool, level: int) -> Loss:
        if moved:
            new |= 1 << self.format.shifts[level - 1]
        if self.isa == "arm64" and old & _ACCESS_FLAG and new & _VALID and not new & _ACCESS_FLAG:
            return max(Loss.NOTICE, self._judge(old, new | _ACCESS_FLAG, moved, level))
        judge = _x86_outcomes if self.isa == "x86_64" else _arm_outcomes
        before, after = (judge(self.format, entry, level) for entry in (old, new))
        loss = Loss.NOTHING
        for was, now in zip(before, after, strict=True):
            if was is None:
                continue
            if now is None or was[2:] != now[2:] or was[1] > now[1]:
                return Loss.RIGHT
            if was[0] > now[0]:
                loss = Loss.NOTICE
        return loss

    def needs_break(self, old: int, new: int, level: int) -> bool:
        """Whether a valid entry may become this valid one only by way of an invalid one (R_WHZWS).

        That is so where the address, the size, the memory type, the shareability, nG or the contiguous bit
        change. Pages that are read-only before and after, with the same bytes, would need none: they are not
        told apart here. A page without its access flag is in no TLB, so nobody need flush between (R_XCLRD).
        """
        if self.isa != "arm64" or not old & new & _VALID:
            return False
        was_table = self.table(old, level) is not None
        if not was_table and not old & _ACCESS_FLAG:
            return False
        both_tables = was_table and self.table(new, level) is not None
        frozen = self.address | 2 if both_tables else self.address | 2 | 7 << 2 | 3 << 8 | 1 << 11 | 1 << 52
        return bool((old ^ new) & frozen)

    def describe(self, entry: int, level: int) -> str:
        """An entry in the manual's words."""
        if not entry & _VALID:
            return "absent" if not entry else f"not present ({entry:#x})"
        table = self.table(entry, level) is not None
        words = self.format.fields(entry, level, leaf=not table)
        name = self.format.level_names[level - 1]
        return f"{entry & self.address & ~self._low(level):#x} {words} ({name} entry)"


def _cases() -> tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.bool_]]]:
    numbers = np.arange(_CASES)
    return (numbers % _ACCESSES).astype(np.int64), numbers >= _ACCESSES


def _x86_outcomes(fmt: Format, entry: int, level: int) -> Outcomes:
    """What each access ends in: (accessed, dirty if it stores, physical, memory type, key); None: a fault.

    Levels above have entries that permit everything, those below likewise, so a table's entry is judged too.
    """
    everything = 0x67  # P, R/W, U/S, A, D

    def fetch(at: int, addresses: Words, _cases: Any) -> Words:
        return np.full(addresses.shape, entry if at == level else everything, np.uint64)

    mode = x86_64.Mode(fmt.levels)
    access, by_user = _cases()
    found = x86_64.translate(fetch, 0, np.zeros(_CASES, np.uint64), mode)
    verdict = x86_64.judge(found, access, by_user, x86_64.Controls(), mode)
    outcomes: Outcomes = []
    for case in range(_CASES):
        if verdict.fault[case]:
            outcomes.append(None)
            continue
        dirty = bool(found.dirty[case]) and access[case] == x86_64.Access.WRITE
        physical, memory, key = (int(part[case]) for part in (found.physical, found.memory, found.key))
        outcomes.append((int(found.accessed[case]), int(dirty), physical, memory, key))
    return outcomes


def _arm_outcomes(fmt: Format, entry: int, level: int) -> Outcomes:
    """As `_x86_outcomes`, with nothing of a dirty flag: (1, 0, physical, memory type, shareability)."""
    page = 1 | 2 | 1 << 6 | 1 << 10  # valid, a page or table, AP[1], AF

    def fetch(at: int, addresses: Words, _cases: Any) -> Words:
        return np.full(addresses.shape, entry if 4 - at == level else page, np.uint64)

    shift = fmt.shifts[0]
    width = fmt.shifts[-1] + fmt.widths[-1]
    mode = arm64.Mode(shift, (width, width))
    access, by_user = _cases()
    found = arm64.translate(fetch, (0, 0), np.zeros(_CASES, np.uint64), mode)
    verdict = arm64.judge(found, access, by_user, arm64.Controls())
    parts = found.physical, found.memory, found.shareability
    return [
        None if verdict.fault[case] else (1, 0, *(int(part[case]) for part in parts))
        for case in range(_CASES)
    ]
