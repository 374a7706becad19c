"""The supervisor's half of the address space: a direct map of RAM, and the CPUs' own pages.

    kernel_base + pa       all of RAM: read-write, never executable, global, in the largest leaves that fit
    TEXT                   the CPUs' stubs: read-execute, and read-only in the direct map too
    DATA                   tables and a stack for each CPU, a page each: read-write

No entry has the user bit, so a program reaches none of it.

Split (KPTI), a second table has the CPUs' own pages alone: what a CPU needs to get into the supervisor and
out. It is all that is mapped of this half while a program runs. The direct map is then not global, or a TLB
would go on to translate it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from aether_emu.arch.paging import Attributes, Leaf, MemoryType, PageFlags, PageTableFormat, Reach
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.physical import Physical
from aether_emu.mm.tables.page import PageTable
from aether_emu.mm.tables.split import cut, split_down
from aether_emu.mm.tlb import Gather

TEXT = 0xFFFF_FFFF_8000_0000
DATA = 0xFFFF_FFFF_8020_0000

_COMMON = PageFlags.READ | PageFlags.GLOBAL | PageFlags.ACCESSED
_DATA = Attributes(_COMMON | PageFlags.WRITE | PageFlags.DIRTY)
_NOT_GLOBAL = Attributes(_DATA.flags & ~PageFlags.GLOBAL)
_TEXT = Attributes(_COMMON | PageFlags.EXECUTE)


class KernelHalf:
    """Built once for a machine; every address space borrows it or the CPU walks it by its own root.

    `entry_table` is what a program's address space shows of it: `table` itself, or the second one if `split`.
    Raises OutOfFrames, and MappingError when RAM does not fit above `base`, taking nothing.
    """

    def __init__(
        self,
        physical: Physical,
        fmt: PageTableFormat,
        base: int,
        text: bytes,
        data: Callable[[int, int], bytes],
        cpus: int = 1,
        *,
        split: bool = False,
    ) -> None:
        self.base = base
        self._physical = physical
        self._sealed = Attributes(_COMMON & ~PageFlags.GLOBAL if split else _COMMON)

        def fresh() -> PageTable:
            return PageTable(
                fmt, physical.ram, physical.frames, physical.buddy, owner=0, reach=Reach.SUPERVISOR
            )

        self.table = self.entry_table = fresh()
        places = [DATA + number * fmt.page_size for number in range(cpus)]
        self.pages = [(TEXT, va) for va in places]  # where each CPU finds its own two pages
        self._frames: list[int] = []
        ram = physical.ram
        try:
            if split:
                self.entry_table = fresh()
            direct = _NOT_GLOBAL if split else _DATA
            self.table.map(base + ram.base, ram.base, ram.size, direct, largest=fmt.leaf_sizes()[-1])
            self._seal(self._page(TEXT, text, _TEXT))
            for number, va in enumerate(places):
                self._page(va, data(va, number), _DATA)
        except BaseException:
            self.close()
            raise
        physical.memory_types.direct_map = self

    def _seal(self, frame: int) -> None:
        """Make a frame of code read-only in the direct map too, where it has a second address.

        No CPU walks the tables yet: there is nothing to flush.
        """
        va = self.base + self._physical.frames.address(frame)
        split_down(self.table, va, lambda: None)
        self.table.protect(va, self.table.format.page_size, self._sealed)

    def retype(self, address: int, size: int, memory: MemoryType) -> None:
        """Give the direct map over physical `[address, address + size)`, whole pages, another memory type.

        On live memory: large leaves over the ends are split, every entry is absent and flushed on all CPUs
        before it is made anew. Raises OutOfFrames, with nothing but leaves split.
        """
        physical, table, fmt = self._physical, self.table, self.table.format
        start, end = self.base + address, self.base + address + size
        everywhere = (1 << len(physical.cpus)) - 1
        gather = Gather(physical.tlb, everywhere, table, physical.frames, physical.free)
        cut(table, gather, start)
        cut(table, gather, end)
        broken = list(table.cursor(start, end))
        for found in broken:
            table.write(found.start, found.level, found.slot, 0)
            gather.page(found.start, fmt.levels[found.level - 1].size)
        gather.flush()
        for found in broken:
            leaf = fmt.decode(found.entry, found.level)
            assert isinstance(leaf, Leaf), "the direct map has nothing else"
            attributes = dataclasses.replace(leaf.attributes, memory=memory)
            entry = fmt.leaf_entry(leaf.address, attributes, found.level)
            table.write(found.start, found.level, found.slot, entry)
        gather.finish()

    def _page(self, va: int, content: bytes, attributes: Attributes) -> int:
        physical = self._physical
        frame = physical.take(Kind.KERNEL, 0, 0)
        self._frames.append(frame)
        physical.page_bytes(frame)[: len(content)] = content
        size = self.table.format.page_size
        for table in self._tables():
            physical.frames.maps[frame] += 1
            table.map(va, physical.frames.address(frame), size, attributes)
        return frame

    def _tables(self) -> list[PageTable]:
        return [self.table] if self.entry_table is self.table else [self.table, self.entry_table]

    def close(self) -> None:
        """Give back tables and pages."""
        frames = self._physical.frames
        for frame in self._frames:
            frames.maps[frame] = 0
            frames.refs[frame] = 0
            self._physical.buddy.free(frame)
        for table in self._tables():
            table.destroy()
