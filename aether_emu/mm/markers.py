"""What the entry of a page that is not there can say of it, for a program that answers its own faults.

    USERFAULT   a store to the page is to be told, once the page is there (write protection of an absent page)
    POISON      every access is refused, as if the memory had failed (UFFDIO_POISON)

Both are held entries without a frame, of level 1, or of the level of a pool's huge pages. What drops the
pages of private memory drops them too; those of an object, and any of a pool's, drop POISON alone, for the
object keeps the page and what was asked about it stays true. A page that is there, or in swap, has a mark
of its entry instead (`protection.user_mark`). Linux: PTE markers.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Entries, Held, HeldKind, PageTableFormat
from aether_emu.errors import OutOfFrames, Refused
from aether_emu.mm.protection import takes_notes, user_mark, user_note
from aether_emu.mm.tables import edits
from aether_emu.mm.tables.count import entries_of
from aether_emu.mm.tables.owed import Gathering
from aether_emu.mm.tables.tree import Found, Stretch, Tree

Numbers = NDArray[np.int64]


@cache
def watched(fmt: PageTableFormat) -> int:
    """The entry of an absent page whose first store is to be told."""
    return fmt.held_entry(Held(HeldKind.USERFAULT, 0))


@cache
def poisoned(fmt: PageTableFormat) -> int:
    """The entry of a page that counts as failed."""
    return fmt.held_entry(Held(HeldKind.POISON, 0))


def is_marker(fmt: PageTableFormat, entry: int) -> bool:
    """Whether an entry is one of both."""
    return entry in (watched(fmt), poisoned(fmt))


def watch_writes(table: Tree, gather: Gathering | None, start: int, end: int, *, on: bool) -> None:
    """Take the pages of a range from who writes, with a mark, or take the marks away. Absent ones stay so.

    Raises OutOfFrames, if a large leaf cannot be split, and TableDamaged.
    """
    fmt = table.format
    mark, note, marker = user_mark(fmt), user_note(fmt), watched(fmt)

    def change(entry: int, level: int) -> int:
        if entry & fmt.present_mask:
            return fmt.write_protect(entry) | mark if on else entry & ~mark
        if entry == marker:
            return entry if on else 0
        if not takes_notes(fmt, entry, level):
            return entry
        return entry | note if on else entry & ~note

    items = table.visit(start, end) if gather is None else edits.whole(table, gather, start, end)
    edits.rewrite(table, items, change, gather)


@contextmanager
def away(table: Tree, found: Found) -> Iterator[None]:
    """A page comes where the marker `found` stands, which is gone meanwhile, and back if nothing came."""
    table.write(found.start, found.level, found.slot, 0)
    try:
        yield
    except BaseException:
        if not table.ram.words[found.slot]:
            table.write(found.start, found.level, found.slot, found.entry)
        raise


def level_of(fmt: PageTableFormat, huge_size: int) -> int:
    """The level of entries of huge pages of so many bytes; 1 for 0."""
    return next((level for level, spec in enumerate(fmt.levels, 1) if spec.size == huge_size), 1)


def watch_absent(table: Tree, start: int, end: int) -> None:
    """Let the entries of absent pages in a range say that a store is to be told.

    Raises Refused(ENOMEM) where there is no memory for page tables; and TableDamaged.
    """
    for low, high in _leaf_ranges(table, start, end):
        try:
            slot = table.leaf_slot(low)
        except OutOfFrames:
            raise Refused(errno.ENOMEM, "no memory for page tables") from None
        entries = table.ram.array[slot : slot + (high - low >> table.format.page_shift)]
        entries[entries == 0] = watched(table.format)


def _leaf_ranges(table: Tree, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a range that have a leaf table each, or may have one."""
    span = 1 << table.leaf_span_shift
    for at in range(start & -span, end, span):
        low, high = max(at, start), min(at + span, end)
        found = table.find(low)
        if found is None or found.level == 1:
            yield low, high


class Marked:
    """The pages of a range that say something to who answers faults, by their numbers.

    `told` are there, or in swap; `absent` and `failed` are not, and `pooled` those of them in huge pages.
    """

    def __init__(self, table: Tree, start: int, end: int) -> None:
        fmt = table.format
        told, markers, failed, pooled = ([np.zeros(0, np.int64)] for _ in range(4))
        for item in table.visit(start, end):
            entries, level = entries_of(table, item)
            at = (item.va if isinstance(item, Stretch) else item.start) >> fmt.page_shift
            pages = fmt.levels[level - 1].size >> fmt.page_shift
            for which, into in (
                (_told(fmt, entries), told),
                (entries == watched(fmt), markers),
                (entries == poisoned(fmt), failed),
            ):
                into.append(_each(which.nonzero()[0] * pages + at, pages))
            if level > 1:
                pooled += markers[-1], failed[-1]
        first, last = start >> fmt.page_shift, end >> fmt.page_shift
        self.told, self.absent, self.failed, self.pooled = (
            _inside(np.concatenate(parts), first, last) for parts in (told, markers, failed, pooled)
        )


def _told(fmt: PageTableFormat, entries: Entries) -> NDArray[np.bool_]:
    """Which entries have the mark of `user_mark`, or the note of it."""
    present = entries & np.uint64(fmt.present_mask) != 0
    marked: NDArray[np.bool_] = present & (entries & np.uint64(user_mark(fmt)) != 0)
    noted = entries & np.uint64(user_note(fmt)) != 0
    for held in (HeldKind.NO_ACCESS, HeldKind.SWAP):
        kind = np.uint64(fmt.held_entry(Held(held, 0)))
        marked |= ~present & noted & (entries & np.uint64(_kind_bits(fmt)) == kind)
    return marked


@cache
def _kind_bits(fmt: PageTableFormat) -> int:
    """The bits below a held entry's value."""
    unit = fmt.held_entry(Held(HeldKind.SWAP, 1)) ^ fmt.held_entry(Held(HeldKind.SWAP, 0))
    return unit - 1


def _each(firsts: Numbers, count: int) -> Numbers:
    return (firsts[:, None] + np.arange(count)).ravel() if count > 1 else firsts


def _inside(pages: Numbers, first: int, last: int) -> Numbers:
    return pages[(pages >= first) & (pages < last)]


@contextmanager
def kept(table: Tree, start: int, end: int, level: int = 1) -> Iterator[None]:
    """Whatever empties the entries of an object's pages meanwhile: what was asked about stores stays.

    The entries are of `level`.
    """
    before = Marked(table, start, end)
    try:
        yield
    finally:
        shift, size, marker = (
            table.format.page_shift,
            table.format.levels[level - 1].size,
            watched(table.format),
        )
        for page in np.concatenate([before.told, before.absent]).tolist():
            va = page << shift
            if not va % size and table.find(va) is None:
                table.write(va, level, table.slot(va, level), marker)
