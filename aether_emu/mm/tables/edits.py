"""Edits of a range in its place: zap, protect, age and clean, each over whatever stands there.

    visit        what stands in the range: stretches of level-1 entries, and large ones   (tree)
    kinds        the few kinds of entries there, each judged once                          (count)
    owes         whether a TLB must forget what an entry of that kind said                 (owed)
    gather       takes the pages and the frames; its owner finishes it

A large leaf or held entry that reaches out of the range is split first, at whatever level. Every edit
raises TableDamaged for damage in its range, and OutOfFrames when the table for a split cannot be had:
then leaves at the ends of the range may be smaller, and nothing else is changed. The gather must be
finished either way.

Level-1 entries are not remembered, so damage there is not seen as such. What is neither present nor a
held kind has no frame that anybody could know: zap clears and returns it, the others leave it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Entries, Held, HeldKind, Leaf, PageFlags, PageTableFormat
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.protection import LeafBits, clean_mark, noted, takes_notes, user_mark, user_note
from aether_emu.mm.tables.count import (
    Chosen,
    Frames,
    Used,
    address_bits,
    adjoined,
    counted,
    entries_of,
    few_used,
    first_frames,
    frames_of,
    has_frame,
    kinds,
    numbers_of,
    of_kind,
    used_in,
)
from aether_emu.mm.tables.live import refuse_live
from aether_emu.mm.tables.owed import Gathering, owes
from aether_emu.mm.tables.split import cut
from aether_emu.mm.tables.tree import JOINED, Found, Stretch, Tree
from aether_emu.records import dataclass

Change = Callable[[int, int], int]
"""What an entry of a kind (its address cleared) becomes at a level; its address stays."""

# ---- the two ways in which entries change


@dataclass(frozen=True, slots=True)
class _Change:
    """Entries of one kind that become another: `bits` are those that differ."""

    item: Stretch | Found
    chosen: Chosen
    bits: int
    owes: bool


def clear(table: Tree, item: Stretch | Found, chosen: Chosen = None) -> None:
    """Make the chosen entries of the item absent."""
    if isinstance(item, Found):
        table.write(item.start, item.level, item.slot, 0)
        return
    entries = table.ram.array[item.slot : item.slot + item.count]
    if chosen is None:
        entries[:] = 0
    else:
        entries[chosen] = 0


def rewrite(table: Tree, items: list[Stretch | Found], change: Change, gather: Gathering | None) -> int:
    """Let `change` say what entries that are not absent become. Returns how many pages became others.

    Raises BreakBeforeMake, with nothing changed, where the architecture forbids one of the changes.
    What is owed goes into the gather; without one, nothing of the table is live, or the caller flushes.
    """
    fmt, known = table.format, dict[tuple[int, int], tuple[int, bool]]()
    changes: list[_Change] = []
    singles: list[tuple[Found, int, bool]] = []  # of short stretches: entry, bits, owes

    def judged(kind: int, level: int) -> tuple[int, bool]:
        """The bits that change in an entry of this kind, and whether a flush is owed."""
        if (kind, level) not in known:
            new = change(kind, level)
            known[kind, level] = kind ^ new, owes(fmt, kind, new, level)
        return known[kind, level]

    for item in items:
        if isinstance(item, Stretch) and few_used(table, item) is not None:
            kind_bits = ~address_bits(fmt, 1)
            for found in found_in(table, item, entries_of(table, item)[0] != 0):
                bits, owing = judged(found.entry & kind_bits, 1)
                if bits:
                    refuse_live(fmt, found.start, 1, found.entry, found.entry ^ bits)
                    singles.append((found, bits, owing))
            continue
        entries, level = entries_of(table, item)
        for kind, chosen in kinds(fmt, entries, level):
            bits, owing = judged(kind, level)
            if bits:
                refuse_live(fmt, _start(table, item, chosen), level, kind, kind ^ bits)
                changes.append(_Change(item, chosen, bits, owing))
    for found, bits, owing in singles:
        table.ram.words[found.slot] = found.entry ^ bits
        if owing and gather is not None:
            gather.page(found.start)
    return len(singles) + sum(_apply(table, each, gather) for each in changes)


def _apply(table: Tree, change: _Change, gather: Gathering | None) -> int:
    item, bits = change.item, np.uint64(change.bits)
    entries, level = entries_of(table, item)
    if change.owes and gather is not None:
        gather_pages(table, gather, item, change.chosen)
    if isinstance(item, Found):
        table.write(item.start, level, item.slot, int(entries[0] ^ bits))
        return table.format.levels[level - 1].size >> table.format.page_shift
    if change.chosen is None:  # the entries of a stretch are a view of the table: see `entries_of`
        entries ^= bits
        return item.count
    entries ^= change.chosen * bits
    return int(np.count_nonzero(change.chosen))


def _start(table: Tree, item: Stretch | Found, chosen: Chosen) -> int:
    """The address of the first chosen entry."""
    if isinstance(item, Found):
        return item.start
    return item.va + (0 if chosen is None else int(chosen.argmax()) << table.format.page_shift)


def gather_pages(table: Tree, gather: Gathering, item: Stretch | Found, chosen: Chosen) -> None:
    """A flush is owed for the chosen entries of an item."""
    if isinstance(item, Found):
        gather.page(item.start, table.format.levels[item.level - 1].size)
    else:
        gather.pages(item.va, numbers_of(entries_of(table, item)[0], chosen))


def whole(table: Tree, gather: Gathering, start: int, end: int) -> list[Stretch | Found]:
    """What stands in `[start, end)`, after what reaches out of it was split."""
    items = table.visit(start, end)
    if not any(_reaches_out(table, item, start, end) for item in items):
        return items
    cut(table, gather, start)
    cut(table, gather, end)
    return table.visit(start, end)


def _reaches_out(table: Tree, item: Stretch | Found, start: int, end: int) -> bool:
    """Whether an item, or a contiguous run that it belongs to, goes beyond `[start, end)`."""
    fmt = table.format
    if isinstance(item, Found):
        spec = fmt.levels[item.level - 1]
        run = spec.size * spec.contiguous if item.entry & fmt.contiguous_bit else spec.size
        first = item.start & -run
        return first < start or first + run > end
    if not fmt.contiguous_bit:
        return False
    words = table.ram.words
    return bool((words[item.slot] | words[item.slot + item.count - 1]) & fmt.contiguous_bit)


# ---- the edits


def zap(
    table: Tree,
    gather: Gathering,
    start: int,
    end: int,
    spare: Kind | None = None,
    inspect: Callable[[Stretch], object] | None = None,
    guard: int = 0,
) -> list[Found]:
    """Clear the entries of `[start, end)`, and drop their frames into the gather.

    `spare` leaves entries alone whose first frame is of that kind, and those without a frame; `guard` leaves
    those that are this entry. `inspect` sees each stretch before, and may put damaged entries of it right.
    Returns the entries that named no frame (swapped, poisoned, awaited by a user, damaged): what they stood
    for is for their owner to settle.
    """
    fmt, frameless = table.format, list[Found]()
    for item in whole(table, gather, start, end):
        if inspect is not None and isinstance(item, Stretch):
            inspect(item)
        if isinstance(item, Stretch) and (used := few_used(table, item)) is not None:
            frameless += _zap_few(table, gather, item, used, spare, guard)
            continue
        entries, level = entries_of(table, item)
        for kind, alike in kinds(fmt, entries, level):
            framed, chosen = has_frame(fmt, kind, level), alike
            if guard and kind == guard:
                continue
            if spare is not None:
                if not framed:
                    continue
                chosen = _others(table, entries, level, alike, spare)
                if not chosen.any():
                    continue
            if framed:
                shown = frames_of(fmt, table.frames, of_kind(entries, chosen), level)
                gather.drop_many(counted(table.frames, shown))
            else:
                frameless += found_in(table, item, chosen)
            if owes(fmt, kind, 0, level):
                gather_pages(table, gather, item, chosen)
            clear(table, item, chosen)
    return frameless


def zap_all(
    table: Tree,
    gather: Gathering,
    ranges: Iterable[tuple[int, int]],
    inspect: Callable[[Used], object],
) -> list[Found]:
    """`zap` of many ascending ranges, whose level-1 entries are looked at together.

    `inspect` sees these before, and may put damaged ones right.
    """
    frameless, rest, stretches = list[Found](), list[tuple[int, int]](), list[Stretch]()
    for start, end in adjoined(ranges):
        items = whole(table, gather, start, end)
        stretches += [item for item in items if isinstance(item, Stretch)]
        if any(isinstance(item, Found) for item in items):
            rest.append((start, end))
    for batch in _batches(stretches):
        used = used_in(table, batch)
        inspect(used)
        frameless += _zap_used(table, gather, used)
    for start, end in rest:
        frameless += zap(table, gather, start, end)
    return frameless


def _batches(stretches: list[Stretch]) -> Iterator[list[Stretch]]:
    """Those together that are as long as one may be."""
    batch, size = list[Stretch](), 0
    for item in stretches:
        if batch and size + item.count > JOINED:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.count
    if batch:
        yield batch


def _zap_used(table: Tree, gather: Gathering, used: Used) -> list[Found]:
    """`zap` for level-1 entries in use, wherever they stand. Those that are absent by now are left out."""
    fmt, frameless = table.format, list[Found]()
    entries: Entries = table.ram.array[used.slots]
    if not entries.size:
        return frameless
    framed, owing = np.zeros(entries.size, np.bool_), np.zeros(entries.size, np.bool_)
    for kind, alike in kinds(fmt, entries):
        chosen = slice(None) if alike is None else alike
        if has_frame(fmt, kind, 1):
            framed[chosen] = True
        else:
            frameless += _each(table, used.slots[chosen], used.pages[chosen])
        if owes(fmt, kind, 0, 1):
            owing[chosen] = True
    gather.drop_many(counted(table.frames, frames_of(fmt, table.frames, entries[framed])))
    gather.pages(0, used.pages[owing])
    table.ram.array[used.slots] = 0
    return frameless


def _each(table: Tree, slots: Frames, pages: Frames) -> list[Found]:
    words, shift = table.ram.words, table.format.page_shift
    return [
        Found(page << shift, 1, slot, words[slot])
        for slot, page in zip(slots.tolist(), pages.tolist(), strict=True)
    ]


def _zap_few(
    table: Tree, gather: Gathering, item: Stretch, used: Iterable[int], spare: Kind | None, guard: int
) -> list[Found]:
    """`zap` for a few entries, those of the numbers `used`, one by one."""
    fmt, frames, words = table.format, table.frames, table.ram.words
    kind_bits, frameless = ~address_bits(fmt, 1), list[Found]()
    for number in used:
        slot = item.slot + number
        entry = words[slot]
        if not entry or entry == guard:
            continue
        va = item.va + (number << fmt.page_shift)
        kind = entry & kind_bits
        framed = has_frame(fmt, kind, 1)
        frame = (entry & fmt.address_mask) - frames.base >> frames.page_shift
        known = framed and 0 <= frame < frames.count
        if spare is not None and not (known and frames.kind[frame] != spare):
            continue
        if not framed:
            frameless.append(Found(va, 1, slot, entry))
        elif known and frames.kind[frame] != Kind.ZERO:
            gather.drop(frame)
        if owes(fmt, kind, 0, 1):
            gather.page(va)
        words[slot] = 0
    return frameless


def _others(table: Tree, entries: Entries, level: int, chosen: Chosen, kind: Kind) -> NDArray[np.bool_]:
    """Those of the chosen entries whose first frame is not of this kind."""
    numbers = numbers_of(entries, chosen)
    first = first_frames(table.format, table.frames, entries[numbers], level)
    shown = first < table.frames.count
    shown[shown] = table.frames.kind_array[first[shown]] != kind
    result = np.zeros(entries.size, np.bool_)
    result[numbers[shown]] = True
    return result


def found_in(table: Tree, item: Stretch | Found, chosen: Chosen) -> list[Found]:
    """The chosen entries of an item, one by one."""
    if isinstance(item, Found):
        return [item]
    shift, words = table.format.page_shift, table.ram.words
    numbers = numbers_of(entries_of(table, item)[0], chosen)
    return [
        Found(item.va + (number << shift), 1, item.slot + number, words[item.slot + number])
        for number in numbers.tolist()
    ]


def protect(table: Tree, gather: Gathering, start: int, end: int, bits: LeafBits) -> Frames:
    """Give leaves, and pages held by NO_ACCESS, the bits of another protection; other entries stay.

    They stay as accessed and dirty as they were. Writing is granted again by a fault. Returns the frames
    that the range shows now if `bits` permit executing (the zero page among them), else none.
    """
    fmt = table.format
    items = whole(table, gather, start, end)
    rewrite(table, items, lambda entry, level: _protected(fmt, bits, entry, level), gather)
    code = fmt.decode(bits.read, 1)
    if not isinstance(code, Leaf) or not code.attributes.flags & PageFlags.EXECUTE:
        return np.zeros(0, np.int64)
    shown = [np.zeros(0, np.int64)]
    for item in items:
        entries, level = entries_of(table, item)
        for kind, chosen in kinds(fmt, entries, level):
            if kind & fmt.present_mask:
                shown.append(frames_of(fmt, table.frames, of_kind(entries, chosen), level))
    return np.concatenate(shown)


def _protected(fmt: PageTableFormat, bits: LeafBits, entry: int, level: int) -> int:
    """What an entry with address 0 becomes."""
    noted_accessed, noted_dirty, noted_clean = noted(fmt)
    mark, kept = clean_mark(fmt), 0
    if entry & fmt.present_mask:
        accessed, dirty = fmt.accessed(entry), fmt.dirty(entry)
        kept = entry & (fmt.contiguous_bit | user_mark(fmt) | mark)
    else:
        held = fmt.decode(entry, level)
        if not isinstance(held, Held) or held.kind is not HeldKind.NO_ACCESS:
            return entry
        accessed, dirty = entry & noted_accessed, entry & noted_dirty
        kept = (mark if entry & noted_clean else 0) | (user_mark(fmt) if entry & user_note(fmt) else 0)
    new = bits.read_at(level)
    if not bits.present:
        notes = (noted_accessed if accessed else 0) | (noted_dirty if dirty else 0)
        notes |= user_note(fmt) if kept & user_mark(fmt) else 0
        return new | notes | (noted_clean if kept & mark else 0)
    new = new & ~mark | kept
    new = new if accessed else fmt.age(new)
    return fmt.soil(new) if dirty else new


def age(table: Tree, gather: Gathering, start: int, end: int) -> int:
    """Clear ACCESSED on the leaves of the range. Returns how many pages had it."""
    fmt = table.format

    def change(entry: int, _level: int) -> int:
        return fmt.age(entry) if entry & fmt.present_mask else entry

    return rewrite(table, whole(table, gather, start, end), change, gather)


def clean(table: Tree, gather: Gathering, start: int, end: int) -> int:
    """Clear DIRTY on the leaves of the range, which stay writable. Returns how many pages had it."""
    fmt = table.format

    def change(entry: int, _level: int) -> int:
        return fmt.clean(entry) if entry & fmt.present_mask else entry

    return rewrite(table, whole(table, gather, start, end), change, gather)


def forget_writes(table: Tree, gather: Gathering, start: int, end: int) -> int:
    """Mark the leaves of the range as clean, and note it of pages that are held: the next write is a fault.

    Returns how many were not.
    """
    fmt, mark, note = table.format, clean_mark(table.format), noted(table.format)[2]

    def change(entry: int, level: int) -> int:
        if entry & fmt.present_mask:
            return fmt.write_protect(entry) | mark
        return entry | note if takes_notes(fmt, entry, level) else entry

    return rewrite(table, whole(table, gather, start, end), change, gather)


def count_as_written(table: Tree, start: int, end: int) -> None:
    """Take the marks of `forget_writes` away; the pages are no more writable than before."""
    fmt, mark, note = table.format, clean_mark(table.format), noted(table.format)[2]

    def change(entry: int, level: int) -> int:
        if entry & fmt.present_mask:
            return entry & ~mark
        return entry & ~note if takes_notes(fmt, entry, level) else entry

    rewrite(table, table.visit(start, end), change, None)
