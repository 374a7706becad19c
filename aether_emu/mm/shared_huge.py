"""Huge pages of shared memory: one block of frames in the object, shown by a large leaf where that fits.

    the object has a huge page   `folios`   pages from an aligned index on, whose frames lie in a row
    a fault finds nothing        bring      the huge page over it, by one leaf where the area is aligned as
                                            the object is, and holds it whole; elsewhere page by page
    nothing is there yet         _fresh     a block, if the machine's setting has one here

A huge page is the object's, and a leaf is a mapping of it. So a leaf may be split in one address space while
another shows it whole. What takes a single page from the object (a hole, swap) ends the huge page, and the
rest of its frames stay where they are. A memory file's pages stand in the aperture, a slot of which is one
block: there one is always at hand, and a huge page means that all of its pages take memory.

A run of pages (`orders`) comes likewise; where the frames lie in a row it is shown as one, with the hint
*contiguous* where the format has that.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from aether_emu.arch.paging import PageTableFormat
from aether_emu.machine.memory.aperture import SLOT_SIZE
from aether_emu.mm.allocation import Area, AreaFlags
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.huge_settings import HugeSettings
from aether_emu.mm.hugepage import LEVEL, cleared, huge_order, huge_size, large_slot
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace

_SHARED = int(Kind.SHARED)  # plain: numpy needs 20 us for an operation with an enum
_HUGE, _NO_HUGE = int(AreaFlags.HUGE), int(AreaFlags.NO_HUGE)
_ONE = np.uint32(1)


class SharedHugePages(HugeSettings):
    """Where shared memory gets huge pages, or runs of pages of `orders`, as `HugePages`."""

    WORDS: ClassVar[tuple[str, ...]] = ("always", "within_size", "advise", "never", "deny", "force")
    MODES: ClassVar[tuple[str, ...]] = ("always", "inherit", "within_size", "advise", "never")

    def __init__(
        self,
        physical: Physical,
        fmt: PageTableFormat,
        *,
        setting: str,
        orders: tuple[int, ...] = (),
        compacts: str = "never",
    ) -> None:
        self._physical, self._format = physical, fmt
        self.size, self.order = huge_size(fmt), huge_order(fmt)
        self.count = 1 << self.order
        super().__init__(range(1, self.order + 1), (*orders, self.order), setting, compacts)
        self.on = False
        """Whether some faults bring huge pages, or runs."""
        self._settle()

    def _settle(self) -> None:
        """What the settings come to, by order: `deny` is against all sizes."""
        told, denied = self.by_order(), self.setting == "deny"
        self._told = {order: "never" if denied else mode for order, mode in told.items()}
        wanted = [order for order in sorted(told, reverse=True) if self._told[order] != "never"]
        self.orders = tuple(order for order in wanted if order != self.order)
        self.on = bool(wanted)

    # ---- where

    def first_page(self, space: AddressSpace, area: Area, page: int) -> int | None:
        """The object's first page of the huge page over an address, if a leaf may show one there."""
        start, shift = page & -self.size, self._format.page_shift
        if not self.size or start < area.start or start + self.size > area.end:
            return None
        if area.watcher is not None or area.flags & _NO_HUGE or space.no_huge:
            return None
        first = area.offset + (start - area.start >> shift)
        return None if first & self.count - 1 or not self.fits(area) else first

    def possible(self, space: AddressSpace, area: Area) -> bool:
        """Whether a leaf may show one somewhere in an area, where the setting is not against all."""
        return self.setting != "deny" and self.first_page(space, area, area.end - self.size) is not None

    def fits(self, area: Area) -> bool:
        """Whether an area shows an object that may have huge pages: shared memory, or a memory file."""
        backing = area.backing
        if isinstance(backing, SharedMemory):
            return True
        return isinstance(backing, FileBacking) and backing.contents is not None and self.size == SLOT_SIZE

    def wants(self, area: Area, end: int, order: int) -> bool:
        """Whether a fault in an area is to bring a block of pages up to `end` of the object."""
        backing, setting = area.backing, self._told[order]
        if setting == "force":
            return True
        mounted = (
            isinstance(backing, FileBacking) and backing.contents is not None and backing.contents.mounted
        )
        if (
            setting == "never" or mounted
        ):  # a mount has an option of its own for that: never, unless it is given
            return False
        if setting == "within_size" and backing is not None and end <= backing.length_in_pages:
            return True
        return setting == "always" or bool(area.flags & _HUGE)

    def eligible(self, space: AddressSpace, area: Area) -> bool:
        """Whether an area may have a huge page at a fault (smaps: THPeligible)."""
        if not self.size:
            return False
        start = area.start + self.size - 1 & -self.size
        first = self.first_page(space, area, start)
        return first is not None and self.wants(area, first + self.count, self.order)

    def permits(self, space: AddressSpace, area: Area, start: int) -> bool:
        """Whether the scan may make a huge page at `start`, which is aligned."""
        first = self.first_page(space, area, start)
        return first is not None and area.shared and self.wants(area, first + self.count, self.order)

    # ---- at a fault where nothing is mapped

    def bring(self, space: AddressSpace, area: Area, page: int, *, write: bool) -> bool:
        """Have a huge page, or a run of pages, over `page`. Whether that could be done.

        Raises OutOfFrames where there is no room for a table on the way, with the huge page in the object.
        """
        backing = area.backing
        assert backing is not None, "a fault of private memory is another's"
        first = self.first_page(space, area, page)
        if first is not None and self._is_empty(space, page):
            if first in backing.folios:
                block = self._known(area, first, write=write)
            else:
                block = self._fresh(area, first, write=write)
            if block is not None:
                self.show(space, area, page & -self.size, block, write=write)
                event = Event.FAULT_FILE if backing.in_place else Event.FAULT_SHARED
                self._physical.counters.n[event] += 1
                return True
        runs = self.orders if isinstance(backing, SharedMemory) else ()
        return any(self._bring_run(space, area, page, order, write=write) for order in runs)

    def _is_empty(self, space: AddressSpace, page: int) -> bool:
        """Whether nothing is mapped where a huge page's leaf would stand."""
        table = space.leaf_tables.get(page >> space.table.leaf_span_shift)
        return table is None or not self._physical.ram.array[table : table + self.count].any()

    def _known(self, area: Area, first: int, *, write: bool) -> int | None:
        """The first frame of a huge page that the object has."""
        backing = area.backing
        if isinstance(backing, SharedMemory):
            return backing.row(first, self.count)
        assert isinstance(backing, FileBacking), "it has huge pages"
        return backing.block(first, self.count, write=write and area.shared)

    def _fresh(self, area: Area, first: int, *, write: bool) -> int | None:
        """The first frame of a huge page that the object has from now on; None if it gets none."""
        backing, n = area.backing, self._physical.counters.n
        if not self.wants(area, first + self.count, self.order):
            return None
        if isinstance(backing, SharedMemory):
            if first + self.count > backing.pages or backing.is_used(first, self.count):
                return None
            block = self._take(area, backing, first, self.order)
        else:
            assert isinstance(backing, FileBacking), "it may have huge pages"
            if any(backing.resident(first, self.count)):
                return None
            block = backing.block(first, self.count, write=write and area.shared)
        n[Event.SHARED_HUGE_FALLBACK if block is None else Event.SHARED_HUGE] += 1
        return block

    def _take(self, area: Area, memory: SharedMemory, first: int, order: int) -> int | None:
        """A block of zeros for pages of an object that has none of them."""
        moves = order == self.order and self.moves_others(area)
        block = cleared(self._physical, order, compacts=moves)
        if block is None:
            return None
        own(self._physical, memory, first, block, 1 << order)
        memory.put(first, block, 1 << order, folio=order == self.order)
        return block

    def show(self, space: AddressSpace, area: Area, start: int, block: int, *, write: bool) -> None:
        """Write the leaf at `start`, where no entry stands. Raises OutOfFrames."""
        slot, physical, bits = large_slot(space, start, LEVEL), self._physical, area.bits
        in_place = area.backing is not None and area.backing.in_place
        if not area.shared or (in_place and not write):
            leaf = bits.read_at(LEVEL)
        else:
            leaf = bits.write_at(LEVEL) if write else bits.clean_at(LEVEL)
        space.table.write(start, LEVEL, slot, physical.frames.address(block) | leaf)
        self._count(area, block, self.count)
        physical.counters.n[Event.SHARED_HUGE_MAPPED] += 1

    def _count(self, area: Area, block: int, count: int) -> None:
        """Entries of an area show frames in a row from now on."""
        frames, span = self._physical.frames, slice(block, block + count)
        frames.refs_array[span] += _ONE
        frames.maps_array[span] += _ONE
        if area.protection & Protection.EXECUTE:
            self._physical.code.executable(block, count, mutable=True, shared=True)

    def _bring_run(self, space: AddressSpace, area: Area, page: int, order: int, *, write: bool) -> bool:
        memory, fmt, words = area.backing, self._format, self._physical.ram.array
        assert isinstance(memory, SharedMemory), "others have no runs"
        size, count = fmt.page_size << order, 1 << order
        start = page & -size
        first = area.offset + (start - area.start >> fmt.page_shift)
        if start < area.start or start + size > area.end or first & count - 1:
            return False
        if area.watcher is not None or area.flags & _NO_HUGE or space.no_huge:
            return False
        block = memory.row(first, count)
        if block is None and (not self.wants(area, first + count, order) or memory.is_used(first, count)):
            return False
        if (block or 0) & count - 1 or first + count > memory.pages:
            return False
        slot = space.table.leaf_slot(start)
        if words[slot : slot + count].any():
            return False
        if block is None:
            block = self._take(area, memory, first, order)
        if block is None:
            return False
        bits = area.bits.write if write else area.bits.clean
        hint = fmt.contiguous_bit if area.bits.present and 1 < fmt.levels[0].contiguous <= count else 0
        entry = self._physical.frames.address(block) | (bits if area.shared else area.bits.read) | hint
        words[slot : slot + count] = np.arange(entry, entry + size, fmt.page_size, dtype=np.uint64)
        self._count(area, block, count)
        self._physical.counters.n[Event.HUGE_RUN] += 1
        return True

    # ---- state


def own(physical: Physical, memory: SharedMemory, first: int, block: int, count: int) -> None:
    """Frames in a row are those of an object's pages, with its reference."""
    physical.frames.claim(block, count, Kind.SHARED, memory.number, first)
    span = slice(block, block + count)
    physical.frames.refs_array[span] = 1
    physical.frames.maps_array[span] = 0
    physical.counters.n[Event.HUGE_PAGES] += count
