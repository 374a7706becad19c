"""Leaf sizes of what is live: one large entry split into smaller ones, a table of small ones collapsed.

    split      [ leaf of 1G ]                         ->   [ table ] -> 512 leaves of 2M
    collapse   [ table ] -> 512 like leaves in a row  ->   [ leaf ]
    where the architecture demands break before make, the entry is absent, and flushed, in between

Both translate alike before and after, and leave every reference and map count as it is. Which leaf a
range gets when it is mapped, `PageTable.map` decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np

from aether_emu.arch.paging import Entries, Held, Leaf, PageTableFormat
from aether_emu.errors import MappingError
from aether_emu.mm.tables.owed import Gathering
from aether_emu.mm.tables.tree import Found, Tree

Flush = Callable[[], object]


def split(table: Tree, va: int, flush: Flush) -> None:
    """Put a table of the next smaller entries in the place of the large leaf or held entry over `va`.

    `flush` must drop all that any TLB holds of it; it is called once or, if the leaf is one of a
    contiguous run (which ends), twice, and not for a held entry. Nobody may need the range while it runs.
    Raises MappingError where there is no large entry, and OutOfFrames, with nothing changed.
    """
    found = table.find(va)
    if found is None or found.level == 1:
        raise MappingError(f"there is nothing large at {va:#x}")
    below = found.level - 1
    entries = smaller(table.format, found.entry, found.level)
    fresh = table.new_table(below)
    if _hinted(table.format, found.entry):
        end_run(table, found, flush)
        found = dataclasses.replace(found, entry=table.ram.words[found.slot])
    table.fill(fresh, below, entries)
    table.noted_split(found.level)
    entry = table.format.table_entry(fresh, table.reach)
    if found.entry & table.format.present_mask:
        table.exchange(found, entry, flush)
    else:
        table.write(found.start, found.level, found.slot, entry)


def split_down(table: Tree, va: int, flush: Flush) -> None:
    """Split until `va` is mapped by a leaf of one page. Raises as `split`; what was split stays so."""
    while True:
        found = table.find(va)
        if found is None:
            raise MappingError(f"nothing is mapped at {va:#x}")
        if found.level == 1:
            return
        split(table, va, flush)


def cut(table: Tree, gather: Gathering, at: int) -> None:
    """Split what lies over both sides of the address `at`, and end a contiguous run that does."""
    while (found := table.find(at)) is not None:
        spec = table.format.levels[found.level - 1]
        run = spec.size * spec.contiguous
        flush = partial(flush_large, gather, at & -run, run)
        if found.start < at:
            split(table, at, flush)
            continue
        if _hinted(table.format, found.entry) and at & run - 1:
            end_run(table, found, flush)
        return


def flush_large(gather: Gathering, va: int, size: int) -> None:
    """Flush a large leaf or a run, and what was gathered before, now."""
    gather.page(va, size)
    gather.flush()


def collapse(table: Tree, gather: Gathering, va: int, level: int) -> bool:
    """Put one leaf of `level` in the place of the table over `va`, if all its entries make one together.

    They must be present leaves of like attributes, accessed and dirty aside, whose frames lie in a row and
    are aligned as the large leaf's must be. That one is accessed, and dirty, if one of them was. The table
    goes into the gather, which the caller finishes. Returns whether it was done.
    """
    fmt, spec = table.format, table.format.levels[level - 1]
    start = va & -spec.size
    shown = table.visit(start, start + spec.size, tables=True)
    entry = next((item for item in shown if isinstance(item, Found) and item.level == level), None)
    below = fmt.next_table(entry.entry, level) if entry is not None and spec.leaf else None
    if entry is None or below is None:
        return False
    slot, count = below - table.ram.base >> 3, fmt.levels[level - 2].entries
    leaf = _larger(fmt, table.ram.array[slot : slot + count], level)
    if leaf is None:
        return False
    table.exchange(entry, leaf, partial(flush_large, gather, start, spec.size))
    gather.detach([table.forget_table(below)])
    return True


def _hinted(fmt: PageTableFormat, entry: int) -> bool:
    return bool(entry & fmt.present_mask and entry & fmt.contiguous_bit)


def smaller(fmt: PageTableFormat, entry: int, level: int) -> Entries:
    """The entries of the level below that say together what a large `entry` says."""
    below = fmt.levels[level - 2]
    if entry & fmt.present_mask and fmt.next_table(entry, level) is None:
        address = fmt.leaf_address(entry, level)
        return _steps(below.entries, below.size) + np.uint64(
            address | _smaller_bits(fmt, entry ^ address, level)
        )
    match fmt.decode(entry, level):
        case Held(kind) if kind.counts_pages:
            return _steps(below.entries, below.size) + np.uint64(entry)
        case Held():
            return np.full(below.entries, entry, np.uint64)
    raise MappingError(f"{fmt.describe(entry, level)} cannot be split")


@lru_cache(maxsize=16)
def _steps(entries: int, size: int) -> Entries:
    """What the entries of a table differ by whose pages lie in a row."""
    steps = np.arange(entries, dtype=np.uint64) * np.uint64(size)
    steps.flags.writeable = False
    return steps


@lru_cache(maxsize=1 << 10)
def _smaller_bits(fmt: PageTableFormat, bits: int, level: int) -> int:
    """What a leaf of the level below has beside its address, that is as one with these bits."""
    leaf = fmt.decode(bits, level)
    if not isinstance(leaf, Leaf):
        raise MappingError(f"{fmt.describe(bits, level)} cannot be split")
    return fmt.leaf_entry(0, dataclasses.replace(leaf.attributes, contiguous=False), level - 1)


def _larger(fmt: PageTableFormat, entries: Entries, level: int) -> int | None:
    """The leaf of `level` that says what the entries of a whole table below say, or None."""
    if (entries & np.uint64(fmt.present_mask) == 0).any():
        return None
    spec, below = fmt.levels[level - 1], fmt.levels[level - 2]
    steps = np.arange(entries.size, dtype=np.uint64) * np.uint64(below.size)
    accessed, dirty = bool(fmt.accessed(entries).any()), bool(fmt.dirty(entries).any())
    plain = fmt.soil(fmt.touch(entries)) & np.uint64((1 << 64) - 1 ^ fmt.contiguous_bit)
    first = fmt.decode(int(plain[0]), level - 1)
    if not isinstance(first, Leaf) or first.address & spec.size - 1 or (plain != plain[0] + steps).any():
        return None
    leaf = fmt.leaf_entry(first.address, first.attributes, level)
    leaf = leaf if accessed else fmt.age(leaf)
    return leaf if dirty else fmt.clean(leaf)


def end_run(table: Tree, found: Found, flush: Flush) -> None:
    """Take the hint from a whole run: a change that is itself forbidden on live entries."""
    fmt = table.format
    spec = fmt.levels[found.level - 1]
    first, start = found.slot & -spec.contiguous, found.start & -spec.size * spec.contiguous
    places = [(start + n * spec.size, first + n) for n in range(spec.contiguous)]
    entries = [table.ram.words[slot] for _va, slot in places]
    for va, slot in places:
        table.write(va, found.level, slot, 0)
    flush()
    for (va, slot), entry in zip(places, entries, strict=True):
        table.write(va, found.level, slot, entry & ~fmt.contiguous_bit)
    table.noted_split(0)
