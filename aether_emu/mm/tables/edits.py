"""Edits of a range in its place: zap, protect, age and clean, each over whatever stands there.

    visit        what stands in the range: stretches of level-1 entries, and large ones   (tree)
    counted      the frames that lose or gain a reference                                  (count)
    owed         which of the pages a TLB must forget                                      (owed)
    gather       takes the pages and the frames; its owner finishes it

A large leaf or held entry that reaches out of the range is split first, at whatever level. Every edit
raises TableDamaged before it has changed anything of its range, and OutOfFrames when the table for a
split cannot be had: then leaves are smaller, and nothing else is changed. The gather must be finished
either way.

Level-1 entries are not remembered, so damage there is not seen as such. What is neither present nor a
held kind has no frame that anybody could know: zap clears and returns it, the others leave it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Entries, HeldKind, Leaf, PageFlags, PageTableFormat
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.protection import LeafBits, noted
from aether_emu.mm.tables.count import Frames, counted, entries_of, first_frames, has_frame, is_held
from aether_emu.mm.tables.owed import Gathering, owed
from aether_emu.mm.tables.split import cut
from aether_emu.mm.tables.tree import Found, Stretch, Tree

Change = Callable[[Entries, int], Entries]
"""What entries that are not zero become, at a level."""


# ---- the two ways in which entries change


@dataclass(frozen=True, slots=True)
class _Change:
    """New entries for one item: those with the numbers `used` (all others are absent)."""

    item: Stretch | Found
    used: NDArray[np.int64]
    old: Entries
    new: Entries


def clear(table: Tree, item: Stretch | Found, used: NDArray[np.int64] | None = None) -> None:
    """Make the entries of the item absent: all of them, or those with the numbers `used`."""
    if isinstance(item, Found):
        table.write(item.start, item.level, item.slot, 0)
    elif used is None or used.size == item.count:
        table.ram.array[item.slot : item.slot + item.count] = 0
    else:
        table.ram.array[item.slot : item.slot + item.count][used] = 0


def rewrite(table: Tree, items: list[Stretch | Found], change: Change, gather: Gathering | None) -> int:
    """Let `change` make other entries of those that are not zero. Returns how many entries became others.

    Raises BreakBeforeMake, with nothing changed, where the architecture forbids one of the changes.
    What is owed goes into the gather; without one, nothing of the table is live, or the caller flushes.
    """
    planned = [planned for item in items if (planned := _plan(table, item, change)) is not None]
    changed = 0
    for plan in planned:
        item, used, old, new = plan.item, plan.used, plan.old, plan.new
        if isinstance(item, Found):
            table.write(item.start, item.level, item.slot, int(new[0]))
        elif used.size == item.count:
            table.ram.array[item.slot : item.slot + item.count] = new
        else:
            table.ram.array[item.slot : item.slot + item.count][used] = new
        changed += int(np.count_nonzero(old != new))
        if gather is not None:
            gather_owed(table, gather, item, used, owed(table.format, old, new, _level(item)))
    return changed


def _plan(table: Tree, item: Stretch | Found, change: Change) -> _Change | None:
    entries, level = entries_of(table, item)
    used = entries.nonzero()[0]
    old = entries[used]
    new = change(old, level)
    if not (old != new).any():
        return None
    at = table.first_refused(old, new)
    if at is not None:
        va = item.start if isinstance(item, Found) else item.va + (int(used[at]) << table.format.page_shift)
        table.refuse_live(va, level, int(old[at]), int(new[at]))
    return _Change(item, used, old, new)


def _level(item: Stretch | Found) -> int:
    return 1 if isinstance(item, Stretch) else item.level


def gather_owed(
    table: Tree, gather: Gathering, item: Stretch | Found, used: NDArray[np.int64], owes: NDArray[np.bool_]
) -> None:
    """Gather the pages of an item for whose entries (those numbered `used`) a flush is owed."""
    if not owes.any():
        return
    if isinstance(item, Stretch):
        gather.pages(item.va, used[owes])
    else:
        gather.page(item.start, table.format.levels[item.level - 1].size)


def whole(table: Tree, gather: Gathering, start: int, end: int) -> list[Stretch | Found]:
    """What stands in `[start, end)`, after what reaches out of it was split."""
    cut(table, gather, start)
    cut(table, gather, end)
    return table.visit(start, end)


# ---- the edits


def zap(table: Tree, gather: Gathering, start: int, end: int, only: Kind | None = None) -> list[Found]:
    """Clear the entries of `[start, end)`, and drop their frames into the gather.

    `only` spares entries whose first frame is of another kind, and those without a frame. Returns the
    entries that named no frame (swapped, poisoned, awaited by a user, damaged): what they stood for is
    for their owner to settle.
    """
    fmt, frameless = table.format, list[Found]()
    for item in whole(table, gather, start, end):
        entries, level = entries_of(table, item)
        used = entries.nonzero()[0]
        if only is not None:
            used = used[_shows(table, entries[used], level, only)]
        if not used.size:
            continue
        old = entries[used]
        framed = has_frame(fmt, old)
        if not framed.all():
            frameless += found_in(table, item, used[~framed])
            dropped = counted(fmt, table.frames, old[framed], level)
        else:
            dropped = counted(fmt, table.frames, old, level)
        gather_owed(table, gather, item, used, owed(fmt, old, np.zeros_like(old), level))
        gather.drop_many(dropped)
        clear(table, item, used)
    return frameless


def found_in(table: Tree, item: Stretch | Found, numbers: NDArray[np.int64]) -> list[Found]:
    """The entries of an item that have these numbers, one by one."""
    if isinstance(item, Found):
        return [item]
    shift, words = table.format.page_shift, table.ram.words
    return [
        Found(item.va + (number << shift), 1, item.slot + number, words[item.slot + number])
        for number in numbers.tolist()
    ]


def _shows(table: Tree, entries: Entries, level: int, kind: Kind) -> NDArray[np.bool_]:
    """Which entries have a frame of this kind behind them."""
    known = has_frame(table.format, entries)
    numbers = first_frames(table.format, table.frames, entries, level)
    known &= numbers < table.frames.count
    known[known] = table.frames.kind_array[numbers[known]] == kind
    return known


def protect(table: Tree, gather: Gathering, start: int, end: int, bits: LeafBits) -> Frames:
    """Give leaves, and pages held by NO_ACCESS, the bits of another protection; other entries stay.

    They stay as accessed and dirty as they were. Writing is granted again by a fault. Returns the frames
    that the range shows now if `bits` permit executing (the zero page among them), else none.
    """
    fmt = table.format
    items = whole(table, gather, start, end)
    rewrite(table, items, lambda entries, level: _protected(fmt, bits, entries, level), gather)
    code = fmt.decode(bits.read, 1)
    if not isinstance(code, Leaf) or not code.attributes.flags & PageFlags.EXECUTE:
        return np.zeros(0, np.int64)
    shown = [_frames_shown(table, item) for item in table.visit(start, end)]
    return np.concatenate([np.zeros(0, np.int64), *shown])


def _frames_shown(table: Tree, item: Stretch | Found) -> Frames:
    """Every frame of RAM or of the aperture that a present entry of the item shows."""
    entries, level = entries_of(table, item)
    leaves = entries[entries & np.uint64(table.format.present_mask) != 0]
    numbers = first_frames(table.format, table.frames, leaves, level)
    if level > 1:
        pages = table.format.levels[level - 1].size >> table.format.page_shift
        numbers = (numbers[:, None] + np.arange(pages)).ravel()
    return numbers[numbers < table.frames.count]


def _protected(fmt: PageTableFormat, bits: LeafBits, old: Entries, level: int) -> Entries:
    present = old & np.uint64(fmt.present_mask) != 0
    noted_accessed, noted_dirty = (np.uint64(bit) for bit in noted(fmt))
    accessed, dirty = fmt.accessed(old), fmt.dirty(old)
    chosen = present
    if not present.all():
        held = is_held(fmt, old, (HeldKind.NO_ACCESS,)) & ~present
        accessed = np.where(held, (old & noted_accessed != 0).astype(np.uint64), accessed)
        dirty = np.where(held, (old & noted_dirty != 0).astype(np.uint64), dirty)
        chosen = present | held
    new = old & np.uint64(fmt.address_mask & -fmt.levels[level - 1].size) | np.uint64(bits.read_at(level))
    if bits.present:
        if fmt.contiguous_bit:
            new |= np.where(present, old & np.uint64(fmt.contiguous_bit), np.uint64(0))
        new = _where(accessed, new, fmt.age)
        new = _where(dirty ^ np.uint64(1), new, fmt.soil)
    else:
        new |= accessed * noted_accessed | dirty * noted_dirty
    return new if chosen.all() else np.where(chosen, new, old)


def _where(stays: Entries, entries: Entries, change: Callable[[Entries], Entries]) -> Entries:
    """`entries`, changed where `stays` is 0."""
    if stays.all():
        return entries
    return np.where(stays != 0, entries, change(entries)) if stays.any() else change(entries)


def age(table: Tree, gather: Gathering, start: int, end: int) -> int:
    """Clear ACCESSED on the leaves of the range. Returns how many pages had it."""
    fmt = table.format
    return _forget(table, gather, start, end, fmt.accessed, fmt.age)


def clean(table: Tree, gather: Gathering, start: int, end: int) -> int:
    """Clear DIRTY on the leaves of the range, which stay writable. Returns how many pages had it."""
    fmt = table.format
    return _forget(table, gather, start, end, fmt.dirty, fmt.clean)


def _forget(
    table: Tree,
    gather: Gathering,
    start: int,
    end: int,
    noted_in: Callable[[Entries], Entries],
    forget: Callable[[Entries], Entries],
) -> int:
    present, pages = np.uint64(table.format.present_mask), 0

    def change(entries: Entries, level: int) -> Entries:
        nonlocal pages
        chosen = (entries & present != 0) & (noted_in(entries) != 0)
        size = table.format.levels[level - 1].size
        pages += int(np.count_nonzero(chosen)) * (size >> table.format.page_shift)
        return np.where(chosen, forget(entries), entries)

    rewrite(table, whole(table, gather, start, end), change, gather)
    return pages
