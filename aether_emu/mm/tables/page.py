"""The page table: map, unmap and protect, written once for every format, on the tree and its edits.

These three refuse what reaches out of their range; the edits of areas (`mm.tables.edits`) split it first.
Ranges are written with numpy, one store per run of leaf tables. Flushing is not this file's business:
nothing here is live yet, or the caller flushes what it is told of.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from aether_emu.arch.paging import Attributes
from aether_emu.errors import MappingError
from aether_emu.mm.tables.edits import clear, rewrite
from aether_emu.mm.tables.tree import Found, Tree

__all__ = ["Found", "PageTable"]


class PageTable(Tree):
    """A tree of tables that ranges are mapped in. All numbers are in bytes and multiples of the page size."""

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
        bits: dict[tuple[int, bool], int] = {}  # what large leaves have beside their address
        slot, level_before = 0, 1
        try:
            while va < end:
                level = self._largest_level(va, address, end - va, limit)
                size = self.format.levels[level - 1].size
                if level == 1:
                    upto = min(end, self._next_larger(va, address, end, limit))
                    self._map_pages(va, address, (upto - va) // size, attributes)
                    va, address = upto, address + upto - va
                    level_before = level
                    continue
                in_same_table = level == level_before and self._index(va, level)
                slot, level_before = slot + 1 if in_same_table else self.slot(va, level), level
                entry = self.ram.words[slot]
                if self.format.next_table(entry, level) is not None:
                    smaller = self.format.levels[level - 2].size
                    self.map(va, address, size, attributes, largest=smaller)
                elif entry:
                    raise MappingError(f"{va:#x} is already mapped at level {level}")
                else:
                    kind = level, self._within_run(va, address, start, end, level)
                    if kind not in bits:
                        bits[kind] = self._large_leaf(address, attributes, *kind) - address
                    self.write(va, level, slot, bits[kind] + address)
                va, address = va + size, address + size
        except BaseException:
            self._forget(start, va)
            raise

    def unmap(self, va: int, length: int) -> list[Found]:
        """Clear every entry of the range and return what stood there, in address order.

        A large leaf that reaches out of the range raises MappingError before anything changes.
        """
        found = self._whole(va, length)
        for item in self.visit(va, va + length):
            clear(self, item)
        return found

    def protect(self, va: int, length: int, attributes: Attributes) -> list[Found]:
        """Give every present leaf of the range new attributes, keeping its address.

        Returns the entries as they were. Raises MappingError as `unmap`, and BreakBeforeMake, with
        nothing changed, where the architecture forbids the change of a live entry (its memory type).
        """
        fmt = self.format
        found = [item for item in self._whole(va, length) if item.entry & fmt.present_mask]

        def changed(entry: int, level: int) -> int:
            return fmt.leaf_bits(attributes, level) if entry & fmt.present_mask else entry

        rewrite(self, self.visit(va, va + length), changed, None)
        return found

    # ---- inside

    def _largest_level(self, va: int, address: int, length: int, limit: int) -> int:
        levels, most = self.format.levels, min(limit, length)
        for number in range(len(levels), 1, -1):
            level = levels[number - 1]
            if level.leaf and (size := level.size) <= most and not (va | address) & (size - 1):
                return number
        return 1

    def _large_leaf(self, address: int, attributes: Attributes, level: int, hinted: bool) -> int:
        if hinted:
            attributes = dataclasses.replace(attributes, contiguous=True)
        return self.format.leaf_entry(address, attributes, level)

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
            if self.ram.words[slot]:
                raise MappingError(f"{va:#x} is already mapped")
            self.ram.words[slot] = first_entry
            return
        fresh = self.add_leaf_tables(va, va + count * size)
        words = self.ram.array
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

    def _forget(self, start: int, end: int) -> None:
        """Undo a failed `map`: what it had written so far is exactly `[start, end)`, maybe nothing."""
        for item in self.visit(start, end):
            clear(self, item)

    def _whole(self, va: int, length: int) -> list[Found]:
        """The entries of a range that nothing reaches out of; MappingError if something does."""
        self._check_range(va, length)
        found = list(self.cursor(va, va + length))
        self._refuse_partial(found, va, va + length)
        return found

    def _check_range(self, va: int, length: int) -> None:
        if length <= 0 or (va | length) & (self.format.page_size - 1):
            raise MappingError(f"range {va:#x}+{length:#x} is empty or not page aligned")
        if (va ^ va + length - 1) & ~self._width:
            bits = self.format.virtual_bits
            raise MappingError(f"range {va:#x}+{length:#x} is not within {bits} virtual bits")

    def _refuse_partial(self, found: list[Found], start: int, end: int) -> None:
        for item in found:
            spec, what = self.format.levels[item.level - 1], "leaf"
            first, size = item.start, spec.size
            if item.entry & self.format.contiguous_bit and item.entry & self.format.present_mask:
                what, size = "run of contiguous leaves", spec.size * spec.contiguous
                first &= -size
            if first < start or first + size > end:
                raise MappingError(f"a {size:#x} byte {what} at {first:#x} reaches out of the range")
