"""The tree of tables: how it grows and is pruned, and the ways down: one for ranges, four to an address.

    va:  | index level n | ... | index level 2 | index level 1 | page offset |
             |                      |               |
    root --> table  --->  ...  ---> table  ------> table ---> frame

Entries are genuine bytes in emulated RAM, read by the emulated CPU's own walker. A *slot* is the index of
an entry in `ram.words`; the hot paths speak in slots. Level-1 entries are written in place by whoever has
a slot. Entries above are remembered too (`mm.tables.written`): `write` stores one entry, `fill` all entries
of a new table, `add_leaf_tables` the entries that lead to many new tables. `salvage` stores again what is
remembered. Borrowed root entries, which the lender remembers, are stored by `borrow_upper` and cleared by
`destroy`.

    visit   a range        goes by what was written, and compares each entry with its bytes
    slot    an address     the same, and adds missing tables (`leaf_slot` asks `leaf_tables` first)
    find    an address     goes by the bytes, and compares where they led: for the fault path
    walk    an address     goes by the bytes alone, as the MMU does
    judge   an address     goes by what was written, and says where the bytes first differ

Where bytes lead elsewhere than what was written there, `find` and `visit` raise TableDamaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import field
from typing import Any

import numpy as np

from aether_emu.arch.paging import PageTableFormat, Reach
from aether_emu.errors import MappingError
from aether_emu.machine.memory.ram import Ram
from aether_emu.mm.frames.buddy import Buddy
from aether_emu.mm.frames.table import Flags, FrameTable, Kind
from aether_emu.mm.tables.damage import Damaged, same
from aether_emu.mm.tables.live import refuse_live
from aether_emu.mm.tables.walk import Walk, walk
from aether_emu.mm.tables.written import Written
from aether_emu.records import dataclass

_FEW = 8  # up to so many entries a loop of plain ints is quicker than numpy's fixed cost
_DIRTY = int(Flags.DIRTY)  # plain: numpy needs 20 us for an operation with an enum
JOINED = 1 << 13  # entries in one stretch at most, so that the arrays made of it stay in the CPU's cache


@dataclass(frozen=True, slots=True)
class Found:
    """A non-zero entry: a leaf, a held entry, or (where asked for) a table."""

    start: int
    level: int
    slot: int
    entry: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """`count` level-1 entries in a row, absent ones among them: `ram.array[slot : slot + count]`.

    It may go over the end of a leaf table, where the next one lies behind it in memory too.
    """

    va: int
    slot: int
    count: int


@dataclass(slots=True)
class _Visit:
    """One descent: what it found, and what it does on the way."""

    origin: int  # the bits of the addresses that a walk does not look at
    tables: bool = False  # tables are shown too, each after what lies below it
    damages: list[Damaged] | None = None  # collected here; None: the first one is raised
    own: bool = False  # what is borrowed is not looked at
    items: list[Stretch | Found] = field(default_factory=list)
    va: int = 0  # the stretch that may still grow: `count` entries, 0 if there is none
    slot: int = 0
    count: int = 0

    def stretch(self, va: int, slot: int, count: int, page_shift: int) -> None:
        """Level-1 entries, joined to those before where order and memory allow."""
        length = self.count
        follows = length and slot == self.slot + length and va == self.va + (length << page_shift)
        if follows and length + count <= JOINED:
            self.count = length + count
            return
        self.end_stretch()
        self.va, self.slot, self.count = va, slot, count

    def end_stretch(self) -> None:
        """Whatever follows is another item."""
        if self.count:
            self.items.append(Stretch(self.va, self.slot, self.count))
            self.count = 0

    def add(self, item: Stretch | Found) -> None:
        self.end_stretch()
        self.items.append(item)


class Tree(Written):
    """One tree. `owner` is written into the frame table for every table page it takes.

    `reach` says whom its leaves serve: table entries deny the others what the leaves deny them too.
    Addresses are plain ints whose bits above the format's virtual width are ignored, so that a canonical
    kernel address and its truncated form mean the same entry.
    """

    _lender: Tree | None

    def __init__(
        self,
        fmt: PageTableFormat,
        ram: Ram,
        frames: FrameTable,
        buddy: Buddy,
        owner: int,
        reach: Reach = Reach.ANY,
    ) -> None:
        super().__init__(fmt, ram, frames)
        self.owner = owner
        self.reach = reach
        self._buddy = buddy
        self.tables = 0  # table pages taken, the root included
        # Told of each entry that is split, by its level, and of each contiguous run that ends (0).
        self.noted_split: Callable[[int], None] = lambda _level: None
        # What `find` asks of the format at each step: (level, shift, last index), from the root to level 2.
        self._way = [
            (level, fmt.levels[level - 1].shift, fmt.levels[level - 1].entries - 1)
            for level in range(fmt.top, 1, -1)
        ]
        self._page_shift, self._last_entry = fmt.page_shift, fmt.levels[0].entries - 1
        # The leaf table that `find` came to last: its key, where it begins, and what stood on the way there.
        self._near, self._near_base, self._near_way = -1, 0, list[tuple[int, int]]()
        self.root = self.new_table(fmt.top)

    # ---- single entries

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.format.name} at {self.root:#x}>"

    def leaf_slot(self, va: int) -> int:
        """The level-1 slot of `va`; tables on the way are created.

        Raises OutOfFrames, MappingError when a large leaf stands in the way, and TableDamaged.
        """
        key = self._key(va)
        base = self.leaf_tables.get(key)
        if base is None:
            base = self._descend(va, 1)
        return base + (va >> self.format.page_shift & self.format.levels[0].entries - 1)

    def slot(self, va: int, level: int) -> int:
        """The slot of `va` at `level`; tables on the way are created. Raises as `leaf_slot`."""
        if level == 1:
            return self.leaf_slot(va)
        return self._descend(va, level) + self._index(va, level)

    def find(self, va: int) -> Found | None:
        """The leaf or held entry that decides about `va`, or None when the walk meets nothing.

        Raises TableDamaged when the bytes lead elsewhere than what was written. Damage that changes what a
        table permits, and not where it leads, is for `judge`: ask it when a fault repeats without progress.
        """
        words, key = self.ram.words, (va & self._width) >> self.leaf_span_shift
        index = va >> self._page_shift & self._last_entry
        if key == self._near and self._is_near(words, key):
            slot = self._near_base + index
            entry = words[slot]
            return Found(va >> self._page_shift << self._page_shift, 1, slot, entry) if entry else None
        next_table, ram_base, way = self.format.next_table, self.ram.base, list[tuple[int, int]]()
        table = self.root
        try:
            for level, shift, mask in self._way:
                slot = (table - ram_base >> 3) + (va >> shift & mask)
                entry = words[slot]
                below = next_table(entry, level)
                if below is None:
                    return self._stopped(va, level, slot, entry)
                if below < ram_base:  # `words` would count from its end
                    return self._astray(va)
                table = below
                way.append((slot, entry))
            slot = (table - ram_base >> 3) + index
            entry = words[slot]
        except IndexError:  # a damaged entry leads out of RAM
            return self._astray(va)
        if self.leaf_tables.get(key) != slot - index:
            return self._astray(va)
        self._near, self._near_base, self._near_way = key, slot - index, way
        return Found(va >> self._page_shift << self._page_shift, 1, slot, entry) if entry else None

    def _is_near(self, words: memoryview, key: int) -> bool:
        """Whether the bytes lead to the leaf table that `find` came to last as they did then."""
        for slot, entry in self._near_way:
            if words[slot] != entry:
                return False
        return self.leaf_tables.get(key) == self._near_base

    def walk(self, va: int) -> Walk:
        """Translate `va` as the MMU would, keeping every entry read."""
        return walk(self.format, self.ram, self.root, va)

    def replace(self, va: int, found: Found, entry: int) -> None:
        """Make the present leaf or table `found`, which decides about `va`, another entry at once.

        Raises BreakBeforeMake, with nothing changed, where the architecture demands that the entry is
        absent, and flushed, in between: see `exchange`.
        """
        refuse_live(self.format, va, found.level, self.ram.words[found.slot], entry)
        self.write(va, found.level, found.slot, entry)

    def exchange(self, found: Found, entry: int, flush: Callable[[], object]) -> None:
        """Make the live entry `found` another one, and drop what TLBs hold of it by `flush`.

        Where the architecture demands it the entry is absent, and flushed, in between.
        """
        self.write(found.start, found.level, found.slot, 0 if self.format.frozen_bits else entry)
        flush()
        self.write(found.start, found.level, found.slot, entry)

    # ---- ranges

    def visit(self, start: int, end: int, *, tables: bool = False) -> list[Stretch | Found]:
        """What stands in `[start, end)`, in the order of addresses: the one way down for ranges.

        Level-1 entries come as stretches, cut to the range; leaves and held entries above come one by one,
        also where they reach out of it. With `tables` each table entry that meets the range follows what
        lies below it. Raises TableDamaged, before the caller can have changed anything of the range.
        """
        stretch = None if tables else self._one_stretch(start, end)
        if stretch is not None:
            return [stretch]
        found = _Visit(start & ~self._width, tables)
        if start < end:
            self._visit(self.root, self.format.top, start - found.origin, end - found.origin, found)
        found.end_stretch()
        return found.items

    def _one_stretch(self, start: int, end: int) -> Stretch | None:
        """What `visit` answers in the usual case: a range in one leaf table, no damage on the way."""
        if start >= end or start >> self.leaf_span_shift != end - 1 >> self.leaf_span_shift:
            return None
        words, written = self.ram.words, self._written
        base = self._base_slot(self.root)
        for level, shift, last in self._way:
            slot = base + (start >> shift & last)
            entry = written[base].get(slot)
            if entry is None or (words[slot] != entry and not same(self.format, level, words[slot], entry)):
                return None
            below = self.format.next_table(entry, level)
            if below is None:
                return None
            base = self._base_slot(below)
        first = base + (start >> self._page_shift & self._last_entry)
        return Stretch(start, first, end - start >> self._page_shift)

    def cursor(self, start: int, end: int) -> Iterator[Found]:
        """Every non-zero leaf or held entry that overlaps `[start, end)`, in the order of addresses.

        The entry just returned may be changed while iterating. Raises TableDamaged as `visit`.
        """
        words, shift = self.ram.words, self.format.page_shift
        for item in self.visit(start, end):
            if isinstance(item, Found):
                yield item
                continue
            used = self.ram.array[item.slot : item.slot + item.count].nonzero()[0]
            for number in used.tolist():
                slot = item.slot + number
                yield Found(item.va + (number << shift), 1, slot, words[slot])

    def prune(self, start: int, end: int, floor: int, ceiling: int) -> list[int]:
        """Detach tables that serve only addresses within `[floor, ceiling)` and meet `[start, end)`.

        The caller knows that nothing is mapped between floor and ceiling. Returns the frames of
        the detached tables: free them by `free_tables` once the TLBs no longer walk them.
        """
        detached: list[int] = []
        for item in self.visit(start, end, tables=True):
            if isinstance(item, Found):
                below = self.format.next_table(item.entry, item.level)
                size = self.format.levels[item.level - 1].size
                if below is not None and floor <= item.start and item.start + size <= ceiling:
                    detached.append(self.detach(item))
        return detached

    def detach(self, found: Found) -> int:
        """Make the table entry `found` absent. Returns the table's frame, as `prune` does."""
        below = self.format.next_table(found.entry, found.level)
        assert below is not None, "a table is detached"
        self.write(found.start, found.level, found.slot, 0)
        return self.forget_table(below)

    def free_tables(self, detached: list[int]) -> None:
        """Give back table frames that were detached."""
        for frame in detached:
            self.frames.put(frame)
            self._buddy.free(frame)
        self.tables -= len(detached)

    # ---- are the bytes as written?

    def check(self, start: int, end: int, *, own: bool = False) -> list[Damaged]:
        """Every entry above level 1 of `[start, end)` that differs from what was written.

        With `own` those of this tree alone, and none that its lender wrote.
        """
        found = _Visit(start & ~self._width, damages=[], own=own)
        if start < end:
            self._visit(self.root, self.format.top, start - found.origin, end - found.origin, found)
        assert found.damages is not None
        return found.damages

    def salvage(self) -> list[Damaged]:
        """Write every damaged entry above level 1 again as it was, and return what was found.

        After it every table and every large leaf can be reached and given back. What TLBs made of the
        damaged entries is the caller's to flush. The tables of a borrowed half are its lender's to mend.
        """
        damages = self.check(0, self._width + 1, own=True)
        for damaged in damages:
            self.ram.words[damaged.slot] = damaged.expected
        return damages

    # ---- a borrowed half, state, the end

    def borrow_upper(self, other: Tree, start: int) -> None:
        """Share `other`'s root entries from `start` upward (the kernel half of a single-root ISA)."""
        first, count = self._index(start, self.format.top), self.format.levels[-1].entries
        entries = self.ram.array
        lent, shown = self._base_slot(other.root), self._base_slot(self.root)
        used = entries[lent + first : lent + count].nonzero()[0] + first
        entries[shown + used] = entries[lent + used]
        self._borrowed, self._lender = frozenset((shown + used).tolist()), other

    def split_off(self, other: Tree, start: int) -> None:
        """Make a second root for the supervisor (KPTI), in a format with one root for both halves.

        It has `other`'s root entries from `start` upward, and below them this tree's own, which it follows
        from now on, and of which it lets nothing be executed. Raises OutOfFrames.
        """
        second = self.new_table(self.format.top)
        first, count = self._index(start, self.format.top), self.format.levels[-1].entries
        entries, lent, shown = self.ram.array, self._base_slot(other.root), self._base_slot(second)
        entries[shown + first : shown + count] = entries[lent + first : lent + count]
        self.second_root = second
        for slot, entry in self._written[self._base_slot(self.root)].items():
            self._show(slot, entry)

    def capture(self) -> dict[str, object]:
        """What this object knows beyond the bytes in RAM."""
        return {
            "root": self.root,
            "second_root": self.second_root,
            "owner": self.owner,
            "tables": self.tables,
            "leaf_tables": dict(self.leaf_tables),
            "written": {base: dict(entries) for base, entries in self._written.items()},
            "borrowed": sorted(self._borrowed),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured table, whose bytes are in RAM and whose frames are accounted for."""
        self.root, self.owner, self.tables = state["root"], state["owner"], state["tables"]
        self.second_root = state["second_root"]
        self.leaf_tables.clear()
        self.leaf_tables.update(state["leaf_tables"])
        self._written = {base: dict(entries) for base, entries in state["written"].items()}
        self._borrowed = frozenset(state["borrowed"])

    def destroy(self) -> list[Damaged]:
        """Give back every table page, damaged or not, and return the damage that was found.

        Leaves must have been unmapped (their frames are the caller's).
        """
        for slot in sorted(self._borrowed):
            self.ram.words[slot] = 0
        self._borrowed, self._lender = frozenset(), None
        damages = self.salvage()
        span = 1 << self.format.virtual_bits
        detached = self.prune(0, span, 0, span)
        detached.append(self.forget_table(self.root))
        if self.second_root:
            detached.append(self.forget_table(self.second_root))
            self.second_root = 0
        self.free_tables(detached)
        return damages

    # ---- for the edits beside this file

    def new_table(self, level: int) -> int:
        """Physical address of a fresh, zeroed table. The frame's index keeps `level` for inspection."""
        frames = self.frames
        frame = self._buddy.alloc()
        address = frames.address(frame)
        if frames.flags[frame] & _DIRTY:
            self.ram.zero(address, self.format.page_size)
        frames.kind[frame] = Kind.TABLE
        frames.owner[frame] = self.owner
        frames.index[frame] = level
        frames.refs[frame] = 1
        frames.flags[frame] |= _DIRTY
        self.tables += 1
        if level > 1:
            self._written[self._base_slot(address)] = {}
        return address

    def add_leaf_tables(self, start: int, end: int) -> set[int]:
        """Create the missing leaf tables of a range together, adjacent in memory where possible.

        Returns their keys in `leaf_tables`.
        """
        span = 1 << self.leaf_span_shift
        wanted = [va for va in range(start & -span, end, span) if self._key(va) not in self.leaf_tables]
        places = [(va, slot) for va in wanted if not self.ram.words[slot := self.slot(va, 2)]]
        if not places:
            return set()
        frames, fresh = self.frames, self._buddy.alloc_bulk(len(places))
        for frame in fresh[(frames.flags_array[fresh] & _DIRTY) != 0].tolist():
            self.ram.zero(frames.address(frame), self.format.page_size)
        frames.kind_array[fresh] = Kind.TABLE
        frames.owner_array[fresh] = self.owner
        frames.index_array[fresh] = 1
        frames.refs_array[fresh] = 1
        frames.flags_array[fresh] |= np.uint8(_DIRTY)
        self.tables += len(places)
        words, page = self.ram.words, -(self.format.page_size >> 3)
        keys: set[int] = set()
        for (va, slot), frame in zip(places, fresh.tolist(), strict=True):  # as `write`, in short
            address, key = frames.address(frame), self._key(va)
            entry = self.format.table_entry(address, self.reach)
            words[slot] = self._written[slot & page][slot] = entry
            self.leaf_tables[key] = self._base_slot(address)
            keys.add(key)
        return keys

    # ---- inside

    def _descend(self, va: int, to_level: int) -> int:
        """First slot of the table of `to_level` that serves `va`, created if need be."""
        fmt = self.format
        base = self._base_slot(self.root)
        for level in range(fmt.top, to_level, -1):
            slot = base + self._index(va, level)
            seen, written = self.ram.words[slot], self._expected(base, slot)
            if not same(fmt, level, seen, written):
                raise self._damaged(va, Damaged(level, slot, seen, written))
            below = fmt.next_table(written, level)
            if below is None:
                if written:
                    what = "mapped by a leaf" if written & fmt.present_mask else "taken: a held entry stands"
                    raise MappingError(f"{va:#x} is already {what} at level {level}")
                below = self.new_table(level - 1)
                self.write(va, level, slot, fmt.table_entry(below, self.reach))
            base = self._base_slot(below)
        return base

    def _stopped(self, va: int, level: int, slot: int, entry: int) -> Found | None:
        """The walk of `find` ended above level 1: rightly so, if the entries on the way are as written."""
        damaged = self.judge(va)
        if damaged is not None:
            raise self._damaged(va, damaged)
        return Found(va & -self.format.levels[level - 1].size, level, slot, entry) if entry else None

    def _astray(self, va: int) -> Found | None:
        """The walk of `find` ended in no leaf table of this tree: in its lender's, or by damage."""
        damaged = self.judge(va)
        if damaged is not None:
            raise self._damaged(va, damaged)
        assert self._lender is not None, (
            "the bytes are as written, and lead to a leaf table that is not known"
        )
        return self._lender.find(va)

    def _slots(self, base: int, first: int, last: int) -> list[int]:
        """The slots `[first, last)` of a table above level 1 that hold, or should hold, an entry."""
        words, written = self.ram.words, self._written[base]
        if last - first <= _FEW:
            return [slot for slot in range(first, last) if words[slot] or slot in written]
        slots: list[int] = (self.ram.array[first:last].nonzero()[0] + first).tolist()
        missing = [slot for slot in written if first <= slot < last and not words[slot]]
        return sorted(slots + missing) if missing else slots

    def _visit(self, table: int, level: int, start: int, end: int, visit: _Visit) -> None:
        """Below the table at `table`, whose span `[start, end)` lies in; addresses are truncated."""
        fmt, words, base = self.format, self.ram.words, self._base_slot(table)
        spec = fmt.levels[level - 1]
        origin = start >> spec.shift + spec.bits << spec.shift + spec.bits
        first = base + (start - origin >> spec.shift)
        last = base + min(-(-(end - origin) // spec.size), spec.entries)
        borrowed = self._borrowed if level == fmt.top else ()
        written, size, next_table = self._written[base], spec.size, fmt.next_table
        ram_base, page_shift, small = self.ram.base, fmt.page_shift, fmt.levels[0].entries
        for slot in self._slots(base, first, last):
            va = origin + (slot - base) * size
            seen = words[slot]
            entry = self._expected(base, slot) if slot in borrowed else written.get(slot, 0)
            if seen != entry and not same(fmt, level, seen, entry):
                damaged = Damaged(level, slot, seen, entry)
                if visit.damages is None:
                    raise self._damaged(visit.origin + va, damaged)
                visit.damages.append(damaged)
            low = va if va > start else start  # quicker than `max`, and asked for each table of a range
            high = va + size if va + size < end else end
            below = next_table(entry, level)
            if borrowed and slot in borrowed:
                self._visit_lent(low, high, visit)
                continue
            if below is None:
                if entry:
                    visit.add(Found(visit.origin + va, level, slot, seen))
                continue
            if level == 2:
                at = (below - ram_base >> 3) + (low >> page_shift & small - 1)
                visit.stretch(visit.origin + low, at, high - low >> page_shift, page_shift)
            else:
                self._visit(below, level - 1, low, high, visit)
            if visit.tables:
                visit.add(Found(visit.origin + va, level, slot, entry))

    def _visit_lent(self, start: int, end: int, visit: _Visit) -> None:
        """Show a borrowed range as its lender does, but none of the tables there: they are not ours."""
        assert self._lender is not None
        if visit.tables or visit.own:
            return
        if visit.damages is not None:
            visit.damages += self._lender.check(start, end)
            return
        for item in self._lender.visit(visit.origin + start, visit.origin + end):
            visit.add(item)
