"""Huge pages for private anonymous memory: one large leaf of level 2 in the place of a table of small ones.

    a fault finds nothing    HugePages.bring     an aligned block that the area holds whole, if there is one;
                                                 else a shorter run of pages (`orders`), else a single page
    a fault finds a leaf     whole_or_base       permitted as a whole, or split, so that one page decides
    an edit of a part        mm.tables.split     whoever edits a range splits what reaches out of it

A large leaf stands for as many frames as it has pages, and each is the family's own page, with an index, a
reference and a mapping of its own. So nothing changes for the frames when it is split, and each of them goes
back to the allocator alone, which joins what lies in a row. No table is kept in store for a split: one that
finds no frame for its table is refused (ENOMEM; a fault then ends as one without memory does).

A large leaf never lies over the border of two areas: who cuts an area splits it (`AddressSpace.mark`).

A run is a block of pages, of level 1, that came at one fault. Where the format has the contiguous hint, and
the run is as long as that asks for, its entries have it: they say the same, and change together or lose it.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Access, PageTableFormat
from aether_emu.errors import OutOfFrames
from aether_emu.mm.allocation import Area, AreaFlags
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Flags, Kind
from aether_emu.mm.huge_settings import HugeSettings
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.count import has_frame
from aether_emu.mm.tables.split import end_run, flush_large, split
from aether_emu.mm.tables.tree import Found

LEVEL = 2
"""The level of a huge page's leaf: 2M with pages of 4K, 32M of 16K, 512M of 64K."""

# Plain ints: numpy needs 20 us for an operation with an enum.
_WRITE = int(Access.WRITE)
_ANON, _ZERO, _DIRTY = int(Kind.ANON), int(Kind.ZERO), int(Flags.DIRTY)
_HUGE, _NO_HUGE = int(AreaFlags.HUGE), int(AreaFlags.NO_HUGE)


def huge_size(fmt: PageTableFormat) -> int:
    """Bytes of a huge page; 0 where the format has no such leaf."""
    spec = fmt.levels[LEVEL - 1]
    return spec.size if spec.leaf else 0


def huge_order(fmt: PageTableFormat) -> int:
    """The order of a huge page's block: it has as many frames as a leaf table has entries."""
    return fmt.levels[LEVEL - 2].bits


def possible(space: AddressSpace, area: Area, size: int) -> bool:
    """Whether an area may have blocks of `size` bytes at all, whatever the machine's setting is.

    It is private and anonymous, nobody said no or answers its faults, and one fits in between its ends.
    """
    if area.watcher is not None:
        return False
    if area.backing is not None or area.shared or area.flags & _NO_HUGE or space.no_huge or not size:
        return False
    return (area.start + size - 1 & -size) + size <= area.end


class HugePages(HugeSettings):
    """What a machine does by itself at faults: for memory that asked for it, and with `always` for all.

    `orders` are those of the runs of pages that take the place of a huge page where none fits, the largest
    first. `zero_page`: what is only read shows a huge page of zeros, one for all. While it does nothing,
    `Physical.huge` is None.
    """

    WORDS: ClassVar[tuple[str, ...]] = ("always", "madvise", "never")
    MODES: ClassVar[tuple[str, ...]] = ("always", "inherit", "madvise", "never")

    def __init__(
        self,
        physical: Physical,
        fmt: PageTableFormat,
        *,
        setting: str,
        orders: tuple[int, ...] = (),
        zero_page: bool = True,
        compacts: str = "never",
    ) -> None:
        self._physical, self._format = physical, fmt
        self.size, self.order = huge_size(fmt), huge_order(fmt)
        super().__init__(range(2, self.order + 1), (*orders, self.order), setting, compacts)
        self.zero_page = zero_page
        self.zero_block = -1  # the first frame of the huge page of zeros, once one was read
        physical.thp = self
        self._settle()

    # ---- settings

    def _settle(self) -> None:
        """What the settings come to: the sizes that blocks may have, and of each whether it is for all."""
        page, physical = self._format.page_size, self._physical
        wanted = {order: mode == "always" for order, mode in self.by_order().items() if mode != "never"}
        self._always = {page << order: always for order, always in wanted.items()}
        self.orders = tuple(order for order in sorted(wanted, reverse=True) if order != self.order)
        physical.huge = self if wanted else None
        if self.orders:  # areas that are there: each fault decides whether it brings a run of pages
            for item in physical.objects:
                for area in item.windows:
                    if isinstance(area, Area):
                        area.simple = False

    def permits(self, space: AddressSpace, area: Area, size: int = 0) -> bool:
        """Whether an area is to have blocks of `size` bytes (0: huge pages), if one fits."""
        always = self._always.get(size or self.size)
        if always is None or not (always or area.flags & _HUGE):
            return False
        return possible(space, area, size or self.size)

    def eligible(self, space: AddressSpace, area: Area) -> bool:
        """Whether an area may have a block of any size at a fault (smaps: THPeligible)."""
        page = self._format.page_size
        if area.end - area.start < (page << self.orders[-1] if self.orders else self.size):
            return False  # the smallest block is larger
        return any(self.permits(space, area, size) for size in (0, *(page << order for order in self.orders)))

    # ---- at a fault where nothing is mapped

    def bring(self, space: AddressSpace, area: Area, page: int, *, write: bool) -> bool:
        """Have a huge page, or a run of pages, over `page`, where nothing is. Whether that could be done.

        Raises OutOfFrames where there is no room for a table on the way.
        """
        start = page & -self.size
        empty = page >> space.table.leaf_span_shift not in space.leaf_tables
        if empty and start >= area.start and start + self.size <= area.end and self.permits(space, area):
            if self._bring_huge(space, area, start, write=write):
                return True
            self._physical.counters.n[Event.HUGE_FALLBACK] += 1
        return write and any(self._bring_run(space, area, page, order) for order in self.orders)

    def _bring_huge(self, space: AddressSpace, area: Area, start: int, *, write: bool) -> bool:
        slot = space.table.slot(start, LEVEL)
        n = self._physical.counters.n
        if write or not self.zero_page:
            block = take_block(self._physical, area, start, self.order, compacts=self.moves_others(area))
            bits, event = area.bits.write_at(LEVEL), Event.HUGE_FAULT
        else:
            block = self._zeros()
            bits, event = area.bits.read_at(LEVEL), Event.HUGE_ZERO_PAGE
        if block is None:
            return False
        space.table.write(start, LEVEL, slot, self._physical.frames.address(block) | bits)
        n[event] += 1
        return True

    def _bring_run(self, space: AddressSpace, area: Area, page: int, order: int) -> bool:
        fmt, words = self._format, self._physical.ram.array
        size, count = fmt.page_size << order, 1 << order
        start = page & -size
        if start < area.start or start + size > area.end or not self.permits(space, area, size):
            return False
        slot = space.table.leaf_slot(start)
        if words[slot : slot + count].any():
            return False
        block = take_block(self._physical, area, start, order)
        n = self._physical.counters.n
        if block is None:
            n[Event.HUGE_FALLBACK] += 1
            return False
        hint = fmt.contiguous_bit if 1 < fmt.levels[0].contiguous <= count else 0
        first = self._physical.frames.address(block) | area.bits.write | hint
        words[slot : slot + count] = np.arange(first, first + size, fmt.page_size, dtype=np.uint64)
        n[Event.HUGE_RUN] += 1
        return True

    def _zeros(self) -> int | None:
        """The first frame of the huge page of zeros. None if there is no block for it."""
        if self.zero_block < 0:
            block = cleared(self._physical, self.order)
            if block is None:
                return None
            frames, span = self._physical.frames, slice(block, block + (1 << self.order))
            frames.kind_array[span] = _ZERO
            frames.refs_array[span] = 1
            self.zero_block = block
        return self.zero_block

    # ---- state

    def close(self) -> None:
        """Give the huge page of zeros back."""
        if self.zero_block >= 0:
            give_block(self._physical, self.zero_block, self.order)
            self.zero_block = -1

    def capture(self) -> dict[str, Any]:
        """What is to be known of it."""
        settings = self.capture_settings()
        return {"zero_block": self.zero_block, "zero_page": self.zero_page, "settings": settings}

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one; the frame table knows the rest."""
        self.zero_block, self.zero_page = state["zero_block"], state["zero_page"]
        self.restore_settings(state["settings"])


# ---- at a fault where a large leaf, or one of a contiguous run, stands


def whole_or_base(
    physical: Physical, space: AddressSpace, area: Area, page: int, access: int, found: Found, *, forced: bool
) -> Found | None:
    """What decides about a fault whose entry is large, or has the contiguous hint: `found` itself, or the
    entry of the one page after it was split. None: it permits the access now.

    Raises OutOfFrames where there is no room for the table of a split.
    """
    fmt, frames = space.table.format, physical.frames
    if not found.entry & fmt.present_mask:
        if found.level == 1 or not forced or not has_frame(fmt, found.entry, found.level):
            return found
        return split_at(space, page, found)
    if not access & _WRITE or fmt.writable(found.entry):
        return found if found.level > 1 else _noted(space, found, access)
    first, count = _block(space, physical, found)
    span = slice(first, first + count)
    if frames.kind[first] == _ZERO:
        if physical.huge is not None and _fill(physical, space, area, found):
            return None
    elif area.shared:
        if _may_be_written(space, area, found, count):
            _permit_writing(physical, space, area, found, count)
            return None
    elif (frames.refs_array[span] == 1).all() and (frames.kind_array[span] == _ANON).all():
        _permit_writing(physical, space, area, found, count)
        return None
    return split_at(space, page, found)


def _may_be_written(space: AddressSpace, area: Area, found: Found, count: int) -> bool:
    """Whether all pages of a large leaf, or of a run, of a shared area can be stored to now."""
    backing = area.backing
    if backing is None or not backing.in_place:
        return True
    assert isinstance(backing, FileBacking) and found.level > 1, "files have no runs"
    first = area.offset + (found.start - area.start >> space.table.format.page_shift)
    return backing.block(first, count, write=True) is not None


def _block(space: AddressSpace, physical: Physical, found: Found) -> tuple[int, int]:
    """The first frame, and how many there are, of a large leaf or of the run that an entry is one of."""
    fmt = space.table.format
    spec = fmt.levels[found.level - 1]
    frame = physical.frames.number(fmt.leaf_address(found.entry, found.level))
    if found.level > 1:
        return frame, spec.size >> fmt.page_shift
    return frame & -spec.contiguous, spec.contiguous


def _permit_writing(physical: Physical, space: AddressSpace, area: Area, found: Found, count: int) -> None:
    """All its frames are the area's alone: they are written where they are."""
    table = space.table
    if found.level > 1:
        address = table.format.leaf_address(found.entry, found.level)
        table.replace(found.start, found, address | area.bits.write_at(found.level))
    else:
        entries = _run(space, found)
        mask = np.uint64(table.format.address_mask)
        entries[:] = entries & mask | np.uint64(area.bits.write | table.format.contiguous_bit)
    physical.counters.n[Event.FAULT_UPGRADE] += 1


def _run(space: AddressSpace, found: Found) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The entries of the run that `found` is one of: a view of the table."""
    count = space.table.format.levels[0].contiguous
    first = found.slot & -count
    return space.physical.ram.array[first : first + count]


def _noted(space: AddressSpace, found: Found, access: int) -> Found | None:
    """Note an access in all entries of a run, which its TLB entry stands for. `found`, if it was noted."""
    fmt, entries = space.table.format, _run(space, found)
    noted = fmt.soil(fmt.touch(entries)) if access & _WRITE else fmt.touch(entries)
    if int(noted[found.slot % entries.size]) == found.entry:
        return found
    entries[:] = noted
    space.physical.counters.n[Event.FAULT_ACCESS_FLAG] += 1
    return None


def split_at(space: AddressSpace, page: int, found: Found) -> Found | None:
    """Cut a large leaf into pages, or end the run that an entry is one of; then what stands at `page`.

    Raises OutOfFrames where there is no room for the table.
    """
    table, gather = space.table, space.gather()
    spec = table.format.levels[found.level - 1]
    try:
        if found.level > 1:
            split(table, page, partial(flush_large, gather, found.start, spec.size))
        else:
            size = spec.size * spec.contiguous
            end_run(table, found, partial(flush_large, gather, found.start & -size, size))
    finally:
        gather.finish()
    return table.find(page)


def _fill(physical: Physical, space: AddressSpace, area: Area, found: Found) -> bool:
    """A store to the huge page of zeros: a huge page of the area's own takes its place, if one can be had."""
    table, huge = space.table, physical.huge
    assert huge is not None, "its page of zeros is shown"
    block = take_block(physical, area, found.start, huge.order)
    if block is None:
        physical.counters.n[Event.HUGE_FALLBACK] += 1
        return False
    gather = space.gather()
    gather.page(found.start, huge.size)
    table.exchange(found, physical.frames.address(block) | area.bits.write_at(LEVEL), gather.flush)
    gather.finish()
    physical.counters.n[Event.HUGE_FAULT] += 1
    return True


# ---- blocks


def take_block(
    physical: Physical,
    area: Area,
    start: int,
    order: int,
    copied: NDArray[np.int64] | None = None,
    *,
    compacts: bool = False,
) -> int | None:
    """The first of 2**order zeroed frames in a row, single ones of the area's family, mapped once each from
    the address `start` on. None if there is no such block.

    Those of the numbers `copied` need not be zeroed. With `compacts` pages may move, to make such a block.
    """
    block = cleared(physical, order, copied, compacts=compacts)
    if block is None:
        return None
    frames, count = physical.frames, 1 << order
    index = (start >> frames.page_shift) + area.moved
    frames.claim(block, count, Kind.ANON, area.owner, index)
    span = slice(block, block + count)
    frames.refs_array[span] = frames.maps_array[span] = 1
    if area.protection & Protection.EXECUTE:
        physical.code.executable(block, count, mutable=True)
    physical.counters.n[Event.HUGE_PAGES] += count
    return block


def in_a_row(physical: Physical, order: int, *, compacts: bool) -> int | None:
    """The first of 2**order frames in a row, single ones that are nobody's. None: no such block."""
    try:
        block = physical.buddy.alloc(order)
    except OutOfFrames:
        return physical.compaction.make(order) if compacts and physical.compaction is not None else None
    physical.buddy.split(block, order)
    return block


def cleared(
    physical: Physical, order: int, copied: NDArray[np.int64] | None = None, *, compacts: bool = False
) -> int | None:
    """As `in_a_row`, and zeroed but for those of the numbers `copied`."""
    block = in_a_row(physical, order, compacts=compacts)
    if block is None:
        return None
    frames, count = physical.frames, 1 << order
    flags = frames.flags_array[block : block + count]
    soiled = flags & np.uint8(_DIRTY) != 0
    if copied is not None:
        soiled[copied] = False
    used = np.flatnonzero(soiled)
    if copied is None and used.size > count // 8:
        physical.ram.zero(frames.address(block), count << frames.page_shift)
    else:
        for frame in used.tolist():
            physical.ram.zero(frames.address(block + frame), physical.ram.page_size)
    physical.counters.n[Event.ZEROED_PAGES] += used.size
    flags |= np.uint8(_DIRTY)
    return block


def give_block(physical: Physical, block: int, order: int) -> None:
    """Give back frames in a row that nothing shows."""
    span = slice(block, block + (1 << order))
    physical.frames.refs_array[span] = physical.frames.maps_array[span] = 0
    physical.give_back(list(range(block, block + (1 << order))))


def large_slot(space: AddressSpace, start: int, level: int) -> int:
    """Where a large leaf is written; a table of small pages that was left there, empty, is taken out.

    Raises OutOfFrames where there is no room for a table on the way.
    """
    slot, table = space.table.slot(start, level), space.table
    if table.ram.words[slot]:
        gather, size = space.gather(), table.format.levels[level - 1].size
        gather.detach(table.prune(start, start + size, start, start + size))
        gather.finish()
    return slot


def leaves(space: AddressSpace, kinds: Collection[int] = (_ANON,)) -> list[tuple[int, int]]:
    """(address, first frame) of each huge page that a space shows whole: its own, or of other `kinds`."""
    if not space.physical.gave_large:
        return []
    fmt, frames = space.table.format, space.physical.frames
    found = (item for item in space.table.visit(0, space.limits.user_end) if isinstance(item, Found))
    shown = []
    for item in found:
        if has_frame(fmt, item.entry, item.level):
            frame = frames.number(item.entry & fmt.address_mask & -fmt.levels[item.level - 1].size)
            if frames.kind[frame] in kinds:
                shown.append((item.start, frame))
    return shown
