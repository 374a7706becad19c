"""Many translations side by side: each case has a path of its own from the root to its page.

    root --slot i--> table --> ... --> table --> page i          for i = 1 .. count

No two cases share an entry, so that a whole batch is tried in one entry of a CPU, and what an access
leaves in the entries can be read back case by case. The entry in front of a page's own maps a
neighbour, through the same tables, for accesses that cross into the page. Memory is divided so that
altered entries harm nobody: every word of the data half holds its own physical address, which is not
present as an entry.

    0               tables        half way      data: neighbour, page, neighbour, page, ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aether_emu.errors import ConfigError

Words = np.ndarray[Any, np.dtype[np.uint64]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]
Bits = np.ndarray[Any, np.dtype[np.bool_]]

_ONES = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Geometry:
    """A format's levels, level 1 (the page) first: offset bits below the index, and index bits."""

    shifts: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def page(self) -> int:
        """Bytes of the smallest page, which is also a table's."""
        return 1 << self.shifts[0]

    @property
    def levels(self) -> int:
        return len(self.shifts)


class Paths:
    """`count` paths through tables of `geometry` in `memory`, whose word 0 is physical address 0.

    `landing` is code for fetches, put into every page at `landing_offset`. The root's slots below
    `first_slot` and its last `first_slot` slots stay free. ConfigError when root or memory have no room.
    `high` is laid over every address: the bits that choose the half.
    """

    def __init__(
        self,
        memory: Words,
        geometry: Geometry,
        count: int,
        landing: bytes,
        landing_offset: int,
        *,
        first_slot: int = 0,
        high: int = 0,
    ) -> None:
        page, levels = geometry.page, geometry.levels
        self.memory, self.geometry, self.count = memory, geometry, count
        self.size = memory.nbytes
        self.data = self.size // 2
        tables_end = (2 + count * (levels - 1)) * page
        roomy = tables_end <= self.data and 2 * count * page <= self.data
        if not 0 < count <= (1 << geometry.widths[-1]) - 2 * first_slot or not roomy:
            raise ConfigError(
                "paths", count, f"what a root of {geometry.widths[-1]} bits and memory have room for"
            )
        memory[:] = np.arange(memory.size, dtype=np.uint64) << np.uint64(3)
        memory[: tables_end // 8] = 0
        code = int.from_bytes(landing.ljust(8, b"\0"), "little")
        memory[(self.data + landing_offset) // 8 :: page // 8] = code
        self.root = page
        case = np.arange(count, dtype=np.uint64)
        self.pages: Words = np.uint64(self.data) + (np.uint64(2) * case + np.uint64(1)) * np.uint64(page)
        slot = case + np.uint64(first_slot)
        self.addresses: Words = np.uint64(high) | (slot << np.uint64(geometry.shifts[-1])) | self.pages
        first = np.uint64(2 * page) + case * np.uint64((levels - 1) * page)
        tables = [first + np.uint64(k * page) for k in range(levels - 1)]
        # links[k]: what the entry of level k+1 points at; slots[k]: the word of memory where it stands.
        self.links: list[Words] = [self.pages, *tables]
        homes = [*tables, np.full(count, self.root, np.uint64)]
        self.slots: list[Words] = [
            (home >> np.uint64(3)) + (self.addresses >> np.uint64(shift) & np.uint64((1 << width) - 1))
            for home, shift, width in zip(homes, geometry.shifts, geometry.widths, strict=True)
        ]

    def address_bits(self, level: int, leaf: Bits) -> Words:
        """The right address of each path's entry at `level`: of a leaf there, or of the next table."""
        size = np.uint64(_ONES & -(1 << self.geometry.shifts[level - 1]))
        return np.where(leaf, self.pages & size, self.links[level - 1])

    def harmless(self, level: int, leaf: Bits) -> Words:
        """The bits of an entry that a case may alter: never those that would lead into other cases' memory.

        They choose another page or table of the same kind, which says nothing about the format.
        """
        top = self.size.bit_length() - 1
        inside = (1 << top) - self.geometry.page
        large = inside & -(1 << self.geometry.shifts[level - 1])
        return np.where(leaf, np.uint64(_ONES & ~large), np.uint64(_ONES & ~inside))

    def install(self, entries: list[Words], neighbour: int, own: dict[int, int]) -> None:
        """Put entries in place, level 1 first, for the first of the paths; `neighbour` are a page's bits.

        `own` are entries of the root.
        """
        count = entries[0].size
        in_front = self.pages[:count] - np.uint64(self.geometry.page)
        self.memory[self.slots[0][:count] - np.uint64(1)] = in_front | np.uint64(neighbour)
        self.edit(entries)
        for slot, entry in own.items():
            self.memory[self.root // 8 + slot] = entry

    def edit(self, entries: list[Words]) -> None:
        """Change the entries of the first paths, level 1 first, and nothing else."""
        for slots, words in zip(self.slots, entries, strict=True):
            self.memory[slots[: words.size]] = words

    def read_back(self, count: int) -> list[Words]:
        """The entries of the first `count` paths as they are now, level 1 first."""
        return [self.memory[slots[:count]] for slots in self.slots]

    def elsewhere(self, addresses: Words) -> Words:
        """What a walker reads at addresses that are no case's table: the words themselves, 0 in a hole."""
        return np.where(addresses < np.uint64(self.size), addresses & np.uint64(_ONES ^ 7), np.uint64(0))

    def restore(self, physical: Words) -> None:
        """Undo stores to words of the data half."""
        ours = physical[(physical >= np.uint64(self.data)) & (physical < np.uint64(self.size))]
        self.memory[ours >> np.uint64(3)] = ours & np.uint64(_ONES ^ 7)
