"""Edits that bring a range to another place: move (mremap) and copy (fork).

Tables for the target are made first, so that nothing is moved or copied when one cannot be had. What
reaches out of the range is split first, as `mm.tables.edits` says; so is what is aligned otherwise at
the target, or finds a table in its place there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Entries
from aether_emu.errors import MappingError
from aether_emu.mm.tables.count import adjoined, counted, entries_of, frames_of, has_frame, kinds, of_kind
from aether_emu.mm.tables.edits import clear, found_in, gather_pages, rewrite, whole
from aether_emu.mm.tables.owed import Gathering, owes
from aether_emu.mm.tables.split import flush_large, split
from aether_emu.mm.tables.tree import JOINED, Found, Stretch, Tree
from aether_emu.records import dataclass

_Piece = tuple[int, int, int]  # address, slot and number of some level-1 entries
_ONE = np.uint32(1)  # of the columns' type, or numpy takes the slow way


@dataclass(frozen=True, slots=True)
class _Part:
    """An item, and the slot in the target that its first entry goes to."""

    item: Stretch | Found
    target: int
    va: int  # of the target

    def there(self, entry: int) -> Stretch | Found:
        """The item as it stands in the target; `entry` is a large one's."""
        if isinstance(self.item, Found):
            return Found(self.va, self.item.level, self.target, entry)
        return Stretch(self.va, self.target, self.item.count)


def move(table: Tree, gather: Gathering, start: int, end: int, to: int) -> None:
    """Move every entry of `[start, end)` to the range at `to`, which has none and does not overlap.

    No count changes, and held entries move too. Raises OutOfFrames and TableDamaged with nothing moved;
    MappingError, as well, where something stands in the target.
    """
    fmt = table.format
    _refuse_taken(table, to, to + end - start)
    parts = _parts(table, gather, start, end, table, to)
    for part in parts:
        entries, level = entries_of(table, part.item)
        for kind, chosen in kinds(fmt, entries, level):
            if owes(fmt, kind, 0, level):
                gather_pages(table, gather, part.item, chosen)
        _store(table, part, _unhinted(table, entries, level, to - start))
        clear(table, part.item)


def copy(
    parent: Tree,
    child: Tree,
    gather: Gathering,
    ranges: Iterable[tuple[int, int]],
    *,
    private: bool,
    shared: Callable[[int], int] | None = None,
) -> list[Found]:
    """Give `child`, which has nothing there, the entries of some ascending ranges `[start, end)` of `parent`.

    Each copied entry counts as one more reference and mapping of its frames. Where the pages are `private`
    neither side may write to them any more until a fault says so; what that takes from the parent goes
    into the gather. `shared` says what an entry that is not present becomes on both sides. Returns the
    child's entries without a frame, which their owner must count (swap).
    Raises OutOfFrames and TableDamaged with nothing copied.
    """
    fmt, frames, ranges = parent.format, parent.frames, adjoined(ranges)
    if child.tables > 1:
        for start, end in ranges:
            _refuse_taken(child, start, end)
    parts = [part for start, end in ranges for part in _parts(parent, gather, start, end, child, start)]
    if private:

        def lock(entry: int, _level: int) -> int:
            if entry & fmt.present_mask:
                return fmt.write_protect(entry)
            return entry if shared is None else shared(entry)

        rewrite(parent, [part.item for part in parts], lock, gather)
    frameless: list[Found] = []
    for batch in _batches(parts):
        each = [entries_of(parent, part.item) for part in batch]
        for part, (entries, _level) in zip(batch, each, strict=True):
            _store(child, part, entries)
        level = each[0][1]
        joined = each[0][0] if len(each) == 1 else np.concatenate([entries for entries, _level in each])
        for kind, chosen in kinds(fmt, joined, level):
            if has_frame(fmt, kind, level):
                shown = counted(frames, frames_of(fmt, frames, of_kind(joined, chosen), level))
                np.add.at(frames.refs_array, shown, _ONE)
                np.add.at(frames.maps_array, shown, _ONE)
            else:
                alike = np.ones(joined.size, np.bool_) if chosen is None else chosen
                frameless += _frameless(child, batch, alike)
    return frameless


def _batches(parts: list[_Part]) -> Iterator[list[_Part]]:
    """Parts whose entries are counted together: many small stretches cost as much as one of their length."""
    batch, size = list[_Part](), 0
    for part in parts:
        if isinstance(part.item, Found):
            yield [part]
            continue
        if batch and size + part.item.count > JOINED:
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += part.item.count
    if batch:
        yield batch


def _frameless(child: Tree, batch: list[_Part], chosen: NDArray[np.bool_]) -> list[Found]:
    """The chosen entries of a batch as they stand in the child."""
    found, begin = list[Found](), 0
    for part in batch:
        count = part.item.count if isinstance(part.item, Stretch) else 1
        there = part.there(int(child.ram.words[part.target]))
        if chosen[begin : begin + count].any():
            found += found_in(child, there, chosen[begin : begin + count])
        begin += count
    return found


def _parts(source: Tree, gather: Gathering, start: int, end: int, target: Tree, to: int) -> list[_Part]:
    """What stands in a range, each with its place in the target, whose tables are there afterwards."""
    items, offset = _fitting(source, gather, start, end, target, to - start), to - start
    pieces = [piece for item in items if isinstance(item, Stretch) for piece in _pieces(source, item, offset)]
    _make_leaf_tables(target, [va + offset for va, _slot, _count in pieces])
    parts = [
        _Part(item, target.slot(item.start + offset, item.level), item.start + offset)
        for item in items
        if isinstance(item, Found)
    ]
    parts += _joined(source, target, pieces, offset)
    return parts


def _refuse_taken(target: Tree, start: int, end: int) -> None:
    for item in target.visit(start, end):
        if entries_of(target, item)[0].any():
            va = item.va if isinstance(item, Stretch) else item.start
            raise MappingError(f"something stands at or behind {va:#x} already")


def _fitting(
    source: Tree, gather: Gathering, start: int, end: int, target: Tree, offset: int
) -> list[Stretch | Found]:
    """What stands in a range, after large entries that cannot stand in the target were split."""
    while True:
        items = whole(source, gather, start, end)
        wide = [item for item in items if isinstance(item, Found) and not _fits(item, target, offset)]
        if not wide:
            return items
        for item in wide:
            size = source.format.levels[item.level - 1].size
            split(source, item.start, partial(flush_large, gather, item.start, size))


def _fits(item: Found, target: Tree, offset: int) -> bool:
    """Whether a large entry can stand where it goes: aligned, and with no table in its place."""
    size = target.format.levels[item.level - 1].size
    return not offset % size and not target.visit(item.start + offset, item.start + offset + size)


def _pieces(source: Tree, item: Stretch, offset: int) -> list[_Piece]:
    """The stretch cut to what one leaf table of the target takes, without the pieces that are empty."""
    shift, most = source.format.page_shift, source.format.levels[0].entries
    entries, pieces, done = entries_of(source, item)[0], list[_Piece](), 0
    full = bool(entries.all())
    while done < item.count:
        va = item.va + (done << shift)
        count = min(item.count - done, most - (va + offset >> shift & most - 1))
        if full or entries[done : done + count].any():
            pieces.append((va, item.slot + done, count))
        done += count
    return pieces


def _make_leaf_tables(target: Tree, places: list[int]) -> None:
    """Make the leaf tables for these ascending addresses, those of a row together."""
    span = 1 << target.leaf_span_shift
    first = last = None
    for va in [*(place & -span for place in places), None]:
        if first is not None and last is not None and va != last and va != last + span:
            target.add_leaf_tables(first, last + span) if last > first else target.leaf_slot(first)
            first = None
        first, last = va if first is None else first, va


def _joined(source: Tree, target: Tree, pieces: list[_Piece], offset: int) -> list[_Part]:
    """The pieces with their places; those that lie in a row in both places are one again."""
    shift, runs = source.format.page_shift, list[list[int]]()  # va, slot, slot in the target, count
    va_after = slot_after = target_after = 0  # what would go on with the last run
    for va, slot, count in pieces:
        place = target.leaf_slot(va + offset)
        follows = runs and (va, slot, place) == (va_after, slot_after, target_after)
        if follows and runs[-1][3] + count <= JOINED:
            runs[-1][3] += count
        else:
            runs.append([va, slot, place, count])
        va_after, slot_after, target_after = va + (count << shift), slot + count, place + count
    return [_Part(Stretch(va, slot, count), place, va + offset) for va, slot, place, count in runs]


def _store(target: Tree, part: _Part, entries: Entries) -> None:
    if isinstance(part.item, Found):
        target.write(part.va, part.item.level, part.target, int(entries[0]))
    else:
        target.ram.array[part.target : part.target + entries.size] = entries


def _unhinted(table: Tree, entries: Entries, level: int, offset: int) -> Entries:
    """The entries without the contiguous hint if whole runs of them are none any more `offset` bytes on."""
    fmt = table.format
    spec = fmt.levels[level - 1]
    if not fmt.contiguous_bit or not offset % (spec.size * spec.contiguous):
        return entries
    hinted = entries & np.uint64(fmt.present_mask) != 0
    return np.where(hinted, entries & ~np.uint64(fmt.contiguous_bit), entries)
