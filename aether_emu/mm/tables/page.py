"""The page table: map, unmap, protect, walk and a range cursor, written once for every format.

    va:  | index level n | ... | index level 2 | index level 1 | page offset |
             |                      |               |
    root --> table  --->  ...  ---> table  ------> table ---> frame

Entries are genuine bytes in emulated RAM, read by the emulated CPU's own walker. Single entries
are written through `ram.words` (a memoryview of 64-bit words), ranges with numpy, one store per
run of leaf tables. A *slot* is the index of an entry in `ram.words`; the hot paths speak in slots.

Flushing is not this file's business: `mm.tlb` decides what an edit obliges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from aether_emu.arch.paging import (
    Attributes,
    Entries,
    PageTableFormat,
    Reach,
)
from aether_emu.errors import BreakBeforeMake, MappingError
from aether_emu.machine.memory.ram import Ram
from aether_emu.mm.frames.buddy import Buddy
from aether_emu.mm.frames.table import Flags, FrameTable, Kind
from aether_emu.mm.tables.walk import Walk, walk


@dataclass(frozen=True, slots=True)
class Found:
    """A non-zero leaf or held entry that the cursor stopped at."""

    start: int
    level: int
    slot: int
    entry: int


@dataclass(frozen=True, slots=True)
class _Pruned:
    """The bounds within which `prune` may detach tables, and those that it did detach."""

    floor: int
    ceiling: int
    detached: list[int]


class PageTable:
    """One tree of tables. `owner` is written into the frame table for every table page it takes.

    `reach` says whom its leaves serve; tables then lock the others out once more. Addresses are plain
    ints whose bits above the format's virtual width are ignored, so that a canonical kernel address and
    its truncated form mean the same entry.
    """

    def __init__(
        self,
        fmt: PageTableFormat,
        ram: Ram,
        frames: FrameTable,
        buddy: Buddy,
        owner: int,
        reach: Reach = Reach.ANY,
    ) -> None:
        self.format = fmt
        self.owner = owner
        self.reach = reach
        self._ram, self._frames, self._buddy = ram, frames, buddy
        self.tables = 0  # table pages taken, the root included
        # Truncated va >> leaf_span_shift -> slot of the leaf table's first entry.
        self.leaf_tables: dict[int, int] = {}
        self.leaf_span_shift = fmt.levels[0].shift + fmt.levels[0].bits
        self._width = (1 << fmt.virtual_bits) - 1  # the bits of an address that a walk looks at
        self._borrowed: frozenset[int] = frozenset()  # root slots whose subtrees belong to another table
        self.root = self.new_table(fmt.top)

    # ---- single entries

    def leaf_slot(self, va: int) -> int:
        """The level-1 slot of `va`; tables on the way are created.

        Raises OutOfFrames, or MappingError when a large leaf stands in the way.
        """
        key = self._key(va)
        base = self.leaf_tables.get(key)
        if base is None:
            base = self.leaf_tables[key] = self._descend(va, 1)
        return base + (va >> self.format.page_shift & self.format.levels[0].entries - 1)

    def slot(self, va: int, level: int) -> int:
        """The slot of `va` at `level`; tables on the way are created. Raises as `leaf_slot`."""
        if level == 1:
            return self.leaf_slot(va)
        return self._descend(va, level) + self._index(va, level)

    def find(self, va: int) -> Found | None:
        """The leaf or held entry that decides about `va`, or None when the walk meets nothing."""
        words, fmt = self._ram.words, self.format
        table = self.root
        for level in range(fmt.top, 0, -1):
            slot = self._slot_in(table, va, level)
            entry = words[slot]
            if level > 1:
                below = fmt.next_table(entry, level)
                if below is not None:
                    table = below
                    continue
            if not entry:
                return None
            return Found(va & -fmt.levels[level - 1].size, level, slot, entry)
        return None

    def walk(self, va: int) -> Walk:
        """Translate `va` as the MMU would, keeping every entry read."""
        return walk(self.format, self._ram, self.root, va)

    def replace(self, va: int, found: Found, entry: int) -> None:
        """Make the present leaf or table `found`, which decides about `va`, another entry at once.

        Raises BreakBeforeMake, with nothing changed, where the architecture demands that the entry is
        absent, and flushed, in between: see `exchange`.
        """
        self._refuse_live(va, found.level, self._ram.words[found.slot], entry)
        self._ram.words[found.slot] = entry

    def exchange(self, found: Found, entry: int, flush: Callable[[], object]) -> None:
        """Make the live entry `found` another one, and drop what TLBs hold of it by `flush`.

        Where the architecture demands it the entry is absent, and flushed, in between.
        """
        words = self._ram.words
        words[found.slot] = 0 if self.format.frozen_bits else entry
        flush()
        words[found.slot] = entry

    def replace_many(self, va: int, slot: int, entries: Entries) -> None:
        """As `replace`, for the level-1 entries of the pages from `va` on, whose first slot is `slot`.

        Absent entries among the old or the new ones are no obstacle.
        """
        old = self._ram.array[slot : slot + entries.size]
        if self.format.frozen_bits:
            present = old & entries & np.uint64(self.format.present_mask)
            broken = ((old ^ entries) & np.uint64(self.format.frozen_bits) != 0) & (present != 0)
            if broken.any():
                at = int(broken.argmax())
                self._refuse_live(va + (at << self.format.page_shift), 1, int(old[at]), int(entries[at]))
        old[:] = entries

    # ---- ranges

    def map(
        self, va: int, address: int, length: int, attributes: Attributes, *, largest: int | None = None
    ) -> None:
        """Map `[va, va+length)` to physical `[address, ...)` with leaves of at most `largest` bytes.

        `largest` defaults to one page. All three numbers are multiples of the page size. Where an
        emptied table still stands, smaller leaves fill it. Whole runs of large leaves carry the
        contiguous hint, where the format has one. Raises MappingError when an entry of the
        range is in use, OutOfFrames when a table cannot be had, EncodingError as the format does;
        whichever it is, nothing of the range stays mapped (tables made on the way stay, empty).
        """
        self._check_range(va, length)
        if address & (self.format.page_size - 1) or address + length - 1 >> self.format.physical_bits:
            raise MappingError(f"physical {address:#x}+{length:#x} is misaligned or wider than the format's")
        start, end, limit = va, va + length, largest or self.format.page_size
        try:
            while va < end:
                level = self._largest_level(va, address, end - va, limit)
                size = self.format.levels[level - 1].size
                if level == 1:
                    upto = min(end, self._next_larger(va, address, end, limit))
                    self._map_pages(va, address, (upto - va) // size, attributes)
                    va, address = upto, address + upto - va
                    continue
                slot = self.slot(va, level)
                entry = self._ram.words[slot]
                if self.format.next_table(entry, level) is not None:
                    smaller = self.format.levels[level - 2].size
                    self.map(va, address, size, attributes, largest=smaller)
                elif entry:
                    raise MappingError(f"{va:#x} is already mapped at level {level}")
                else:
                    if not self._within_run(va, address, start, end, level):
                        chosen = attributes
                    else:
                        chosen = dataclasses.replace(attributes, contiguous=True)
                    self._ram.words[slot] = self.format.leaf_entry(address, chosen, level)
                va, address = va + size, address + size
        except BaseException:
            self._forget(start, va)
            raise

    def unmap(self, va: int, length: int) -> list[Found]:
        """Clear every entry of the range and return what stood there, in address order.

        A large leaf that reaches out of the range raises MappingError before anything changes.
        """
        self._check_range(va, length)
        found = list(self.cursor(va, va + length))
        self._refuse_partial(found, va, va + length)
        words = self._ram.words
        for item in found:
            words[item.slot] = 0
        return found

    def protect(self, va: int, length: int, attributes: Attributes) -> list[Found]:
        """Give every present leaf of the range new attributes, keeping its address.

        Returns the entries as they were. Raises MappingError as `unmap`, and BreakBeforeMake, with
        nothing changed, where the architecture forbids the change of a live entry (its memory type).
        """
        self._check_range(va, length)
        found = [f for f in self.cursor(va, va + length) if f.entry & self.format.present_mask]
        self._refuse_partial(found, va, va + length)
        fresh = [
            self.format.leaf_address(item.entry, item.level) | self.format.leaf_bits(attributes, item.level)
            for item in found
        ]
        for item, entry in zip(found, fresh, strict=True):
            self._refuse_live(item.start, item.level, item.entry, entry)
        for item, entry in zip(found, fresh, strict=True):
            self._ram.words[item.slot] = entry
        return found

    def cursor(self, start: int, end: int) -> Iterator[Found]:
        """Every non-zero leaf or held entry that overlaps `[start, end)`, in address order.

        The entry just returned may be changed while iterating. Absent subtrees cost one read.
        """
        if start < end:
            yield from self._visit(self.root, self.format.top, start, end)

    def spans(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(va, slot, pages) of each stretch of level-1 entries of `[start, end)` whose table exists.

        For edits of whole stretches with numpy: `ram.array[slot : slot + pages]`. Large leaves and
        held entries above level 1 are not shown: the caller must know that there are none.
        """
        entries, shift = self.format.levels[0].entries, self.format.page_shift
        span = 1 << self.leaf_span_shift
        origin = start & ~self._width
        start, end = start - origin, end - origin
        if end - start > span * len(self.leaf_tables):
            keys = sorted(k for k in self.leaf_tables if k << self.leaf_span_shift < end)
        else:
            keys = list(range(start >> self.leaf_span_shift, (end - 1 >> self.leaf_span_shift) + 1))
        for key in keys:
            base = self.leaf_tables.get(key)
            low = max(start, key << self.leaf_span_shift)
            high = min(end, (key + 1) << self.leaf_span_shift)
            if base is not None and low < high:
                yield origin + low, base + (low >> shift & entries - 1), (high - low) >> shift

    def prune(self, start: int, end: int, floor: int, ceiling: int) -> list[int]:
        """Detach tables that serve only addresses within `[floor, ceiling)` and meet `[start, end)`.

        The caller knows that nothing is mapped between floor and ceiling. Returns the frames of
        the detached tables: free them by `free_tables` once the TLBs no longer walk them.
        """
        detached: list[int] = []
        self._prune(self.root, self.format.top, start, end, _Pruned(floor, ceiling, detached))
        return detached

    def free_tables(self, detached: list[int]) -> None:
        """Give back table frames that `prune` detached."""
        for frame in detached:
            self._frames.put(frame)
            self._buddy.free(frame)
        self.tables -= len(detached)

    def borrow_upper(self, other: PageTable, start: int) -> None:
        """Share `other`'s root entries from `start` upward (the kernel half of a single-root ISA)."""
        words = self._ram.words
        first = self._index(start, self.format.top)
        borrowed = []
        for index in range(first, self.format.levels[-1].entries):
            entry = words[self._base_slot(other.root) + index]
            if entry:
                words[self._base_slot(self.root) + index] = entry
                borrowed.append(self._base_slot(self.root) + index)
        self._borrowed = frozenset(borrowed)

    def capture(self) -> dict[str, object]:
        """What this object knows beyond the bytes in RAM."""
        return {
            "root": self.root,
            "owner": self.owner,
            "tables": self.tables,
            "leaf_tables": dict(self.leaf_tables),
            "borrowed": sorted(self._borrowed),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured table, whose bytes are in RAM and whose frames are accounted for."""
        self.root, self.owner, self.tables = state["root"], state["owner"], state["tables"]
        self.leaf_tables.clear()
        self.leaf_tables.update(state["leaf_tables"])
        self._borrowed = frozenset(state["borrowed"])

    def note_leaf_table(self, va: int, level: int, slot: int) -> None:
        """A table of `level` for `va`, whose first entry is `slot`, was put in a large leaf's place."""
        if level == 1:
            self.leaf_tables[self._key(va)] = slot

    def destroy(self) -> None:
        """Give back every table page. Leaves must have been unmapped (their frames are the caller's)."""
        for slot in sorted(self._borrowed):
            self._ram.words[slot] = 0
        self._borrowed = frozenset()
        span = 1 << self.format.virtual_bits
        detached = self.prune(0, span, 0, span)
        detached.append(self._frames.number(self.root))
        self.leaf_tables.clear()
        self.free_tables(detached)

    # ---- inside

    def _index(self, va: int, level: int) -> int:
        spec = self.format.levels[level - 1]
        return va >> spec.shift & spec.entries - 1

    def _key(self, va: int) -> int:
        """The key of `va` in `leaf_tables`."""
        return (va & self._width) >> self.leaf_span_shift

    def _base_slot(self, table: int) -> int:
        return (table - self._ram.base) >> 3

    def _slot_in(self, table: int, va: int, level: int) -> int:
        return self._base_slot(table) + self._index(va, level)

    def new_table(self, level: int) -> int:
        """Physical address of a fresh, zeroed table. The frame's index keeps `level` for inspection."""
        frames = self._frames
        frame = self._buddy.alloc()
        address = frames.address(frame)
        if frames.flags[frame] & Flags.DIRTY:
            self._ram.zero(address, self.format.page_size)
        frames.kind[frame] = Kind.TABLE
        frames.owner[frame] = self.owner
        frames.index[frame] = level
        frames.refs[frame] = 1
        frames.flags[frame] |= Flags.DIRTY
        self.tables += 1
        return address

    def _descend(self, va: int, to_level: int) -> int:
        """First slot of the table of `to_level` that covers `va`, creating what is missing."""
        words, fmt = self._ram.words, self.format
        table = self.root
        for level in range(fmt.top, to_level, -1):
            slot = self._slot_in(table, va, level)
            entry = words[slot]
            if not entry & fmt.present_mask:
                if entry:
                    raise MappingError(f"{va:#x}: a held entry stands at level {level}")
                table = self.new_table(level - 1)
                words[slot] = fmt.table_entry(table, self.reach)
                continue
            below = fmt.next_table(entry, level)
            if below is None:
                raise MappingError(f"{va:#x} is already mapped by a leaf at level {level}")
            table = below
        return self._base_slot(table)

    def _largest_level(self, va: int, address: int, length: int, limit: int) -> int:
        best = 1
        for number, level in enumerate(self.format.levels, 1):
            fits = level.size <= min(limit, length) and not (va | address) & (level.size - 1)
            if level.leaf and fits:
                best = number
        return best

    def _within_run(self, va: int, address: int, start: int, end: int, level: int) -> bool:
        """Whether the leaf at `va` is one of a whole run that `[start, end)` maps with such leaves."""
        spec = self.format.levels[level - 1]
        run = spec.contiguous * spec.size
        first = va & -run
        return spec.contiguous > 1 and not (va - address) & run - 1 and start <= first and first + run <= end

    def _next_larger(self, va: int, address: int, end: int, limit: int) -> int:
        """Where a run of pages that starts at `va` gives way to a larger leaf, at the latest `end`."""
        for level in self.format.levels[1:]:
            if level.leaf and level.size <= limit and not (va - address) & (level.size - 1):
                boundary = -(-va // level.size) * level.size
                if boundary + level.size <= end:
                    return boundary
        return end

    def _map_pages(self, va: int, address: int, count: int, attributes: Attributes) -> None:
        """Level-1 entries for `count` pages, one numpy store per run of adjacent leaf tables."""
        size = self.format.page_size
        first_entry = self.format.leaf_entry(address, attributes)
        if count == 1:
            slot = self.leaf_slot(va)
            if self._ram.words[slot]:
                raise MappingError(f"{va:#x} is already mapped")
            self._ram.words[slot] = first_entry
            return
        fresh = self._add_leaf_tables(va, va + count * size)
        words = self._ram.array
        runs = self._runs(va, count, fresh)
        for slot, done, run in runs:
            # A table made just now is empty; reading it would touch its host memory once more.
            if self._key(va + done * size) not in fresh and words[slot : slot + run].any():
                raise MappingError(f"{va + done * size:#x} and {run} pages on: already mapped")
        for slot, done, run in runs:
            begin = first_entry + done * size
            words[slot : slot + run] = np.arange(begin, begin + run * size, size, dtype=np.uint64)

    def _runs(self, va: int, count: int, fresh: set[int]) -> list[tuple[int, int, int]]:
        """(slot, pages before, pages) for each run of level-1 entries adjacent in memory.

        Only fresh tables are joined to one run.
        """
        entries, size = self.format.levels[0].entries, self.format.page_size
        runs: list[tuple[int, int, int]] = []
        done = 0
        while done < count:
            slot = self.leaf_slot(va + done * size)
            run = min(count - done, entries - (slot & entries - 1))
            key = self._key(va + done * size)
            adjacent = runs and runs[-1][0] + runs[-1][2] == slot
            if adjacent and key in fresh and key - 1 in fresh:
                runs[-1] = (runs[-1][0], runs[-1][1], runs[-1][2] + run)
            else:
                runs.append((slot, done, run))
            done += run
        return runs

    def _add_leaf_tables(self, start: int, end: int) -> set[int]:
        """Create the missing leaf tables of a range together, adjacent in memory where possible.

        Returns their keys in `leaf_tables`.
        """
        span = 1 << self.leaf_span_shift
        wanted = [va for va in range(start & -span, end, span) if self._key(va) not in self.leaf_tables]
        slots = [(self._key(va), slot) for va in wanted if not self._ram.words[slot := self.slot(va, 2)]]
        if not slots:
            return set()
        frames, table = self._buddy.alloc_bulk(len(slots)), self._frames
        for frame in frames[(table.flags_array[frames] & Flags.DIRTY) != 0].tolist():
            self._ram.zero(table.address(frame), self.format.page_size)
        table.kind_array[frames] = Kind.TABLE
        table.owner_array[frames] = self.owner
        table.index_array[frames] = 1
        table.refs_array[frames] = 1
        table.flags_array[frames] |= np.uint8(Flags.DIRTY)
        self.tables += len(slots)
        for (key, slot), frame in zip(slots, frames.tolist(), strict=True):
            address = table.address(frame)
            self._ram.words[slot] = self.format.table_entry(address, self.reach)
            self.leaf_tables[key] = self._base_slot(address)
        return {key for key, _slot in slots}

    def _forget(self, start: int, end: int) -> None:
        """Undo a failed `map`: what it had written so far is exactly `[start, end)`, maybe nothing."""
        for item in list(self.cursor(start, end)):
            self._ram.words[item.slot] = 0

    def _check_range(self, va: int, length: int) -> None:
        if length <= 0 or (va | length) & (self.format.page_size - 1):
            raise MappingError(f"range {va:#x}+{length:#x} is empty or not page aligned")
        if (va ^ va + length - 1) & ~self._width:
            bits = self.format.virtual_bits
            raise MappingError(f"range {va:#x}+{length:#x} is not within {bits} virtual bits")

    def _refuse_live(self, va: int, level: int, old: int, new: int) -> None:
        fmt = self.format
        if old & new & fmt.present_mask and (old ^ new) & fmt.frozen_bits:
            raise BreakBeforeMake(va, fmt.describe(old, level), fmt.describe(new, level))

    def _refuse_partial(self, found: list[Found], start: int, end: int) -> None:
        for item in found:
            spec, what = self.format.levels[item.level - 1], "leaf"
            first, size = item.start, spec.size
            if item.entry & self.format.contiguous_bit and item.entry & self.format.present_mask:
                what, size = "run of contiguous leaves", spec.size * spec.contiguous
                first &= -size
            if first < start or first + size > end:
                raise MappingError(f"a {size:#x} byte {what} at {first:#x} reaches out of the range")

    def _visit(self, table: int, level: int, start: int, end: int) -> Iterator[Found]:
        fmt, words = self.format, self._ram.words
        spec = fmt.levels[level - 1]
        origin = start >> spec.shift + spec.bits << spec.shift + spec.bits
        base = self._base_slot(table)
        first = start - origin >> spec.shift
        last = min(-(-(end - origin) // spec.size), spec.entries)
        present = self._ram.array[base + first : base + last].nonzero()[0]
        for offset in present.tolist():
            slot = base + first + offset
            entry = words[slot]
            va = origin + ((first + offset) << spec.shift)
            below = fmt.next_table(entry, level) if level > 1 else None
            if below is not None:
                yield from self._visit(below, level - 1, max(va, start), min(va + spec.size, end))
            elif entry:
                yield Found(va, level, slot, entry)

    def _prune(self, table: int, level: int, start: int, end: int, pruned: _Pruned) -> None:
        if level == 1:
            return
        fmt, words = self.format, self._ram.words
        spec = fmt.levels[level - 1]
        origin = start >> spec.shift + spec.bits << spec.shift + spec.bits
        base = self._base_slot(table)
        last = min(-(-(end - origin) // spec.size), spec.entries)
        for index in range(start - origin >> spec.shift, last):
            slot = base + index
            if not words[slot] or slot in self._borrowed:
                continue
            below = fmt.next_table(words[slot], level)
            if below is None:
                continue
            va = origin + (index << spec.shift)
            self._prune(below, level - 1, max(va, start), min(va + spec.size, end), pruned)
            if pruned.floor <= va and va + spec.size <= pruned.ceiling:
                words[slot] = 0
                pruned.detached.append(self._frames.number(below))
                if level == 2:
                    self.leaf_tables.pop(self._key(va), None)
