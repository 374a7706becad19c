"""Collapse: a table of small pages becomes one huge page, which has copies of them in a row.

    [ table ] -> pages here and there, some shared, some absent     what stands there, and who has it
         |  absent, and flushed on every CPU                        nobody stores meanwhile
         |  copied into an aligned block, zeros where nothing was
    [ leaf  ] -> the block                                          the table and the old pages are let go

A program asks for it (MADV_COLLAPSE), or a scan does it by and by (Linux: khugepaged). Nobody writes to a
page between its copy and the new leaf, since no CPU can translate the range then: it is broken before it is
made, on every ISA. Pages that are in swap come back before, and stay if nothing comes of it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.mm.allocation import Area
from aether_emu.mm.collapse_terms import Ending, Terms
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import Faults
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.hugepage import LEVEL, huge_order, huge_size, possible, take_block
from aether_emu.mm.physical import Physical
from aether_emu.mm.shared_collapse import collapse_shared
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.count import first_frames
from aether_emu.mm.tables.damage import TableDamaged
from aether_emu.mm.tables.tree import Found, Stretch
from aether_emu.records import dataclass

_ANON, _ZERO = int(Kind.ANON), int(Kind.ZERO)  # plain: numpy needs 20 us to compare with an enum


@dataclass(frozen=True, slots=True)
class _Pages:
    """The pages of a range that are there: their numbers in it, and their frames."""

    numbers: NDArray[np.int64]
    frames: NDArray[np.int64]
    away: NDArray[np.int64]
    """The numbers of those in swap, which are none of them."""


def collapse(space: AddressSpace, area: Area, start: int, terms: Terms) -> Ending:
    """Make the range of a huge page at `start`, which `area` holds whole, one. Raises TableDamaged."""
    table, physical = space.table, space.physical
    fmt, size = table.format, huge_size(table.format)
    shown = table.visit(start, start + size)
    if not shown:
        return Ending.EMPTY
    stretch = shown[0]
    if not isinstance(stretch, Stretch):
        return Ending.HUGE if stretch.level == LEVEL and stretch.entry & fmt.present_mask else Ending.UNFIT
    entries = physical.ram.array[stretch.slot : stretch.slot + stretch.count]
    pages = _judged(space, entries, terms)
    if isinstance(pages, Ending):
        return pages
    if pages.away.size:
        if not _bring(space, start, pages.away):
            return Ending.NO_BLOCK
        return collapse(space, area, start, replace(terms, swapped=0))  # it may be another range now
    block = take_block(physical, area, start, huge_order(fmt), copied=pages.numbers, compacts=terms.moves)
    if block is None:
        physical.counters.n[Event.HUGE_COLLAPSE_FAILED] += 1
        return Ending.NO_BLOCK
    moved = first_frames(fmt, physical.frames, entries[pages.numbers])  # perhaps: to make room
    pages = _Pages(pages.numbers, moved, pages.away)
    slot = table.slot(start, LEVEL)
    above = Found(start, LEVEL, slot, physical.ram.words[slot])
    gather = space.gather()
    table.write(start, LEVEL, slot, 0)
    gather.page(start, size)
    gather.flush()
    _copy(space, pages, block)
    table.write(start, LEVEL, slot, physical.frames.address(block) | area.bits.write_at(LEVEL))
    below = fmt.next_table(above.entry, LEVEL)
    assert below is not None, "a stretch stands in a table"
    gather.detach([table.forget_table(below)])
    gather.drop_many(pages.frames)
    gather.finish()
    physical.counters.n[Event.HUGE_COLLAPSE] += 1
    return Ending.DONE


def _judged(space: AddressSpace, entries: NDArray[np.uint64], terms: Terms) -> _Pages | Ending:
    """The pages that a table's entries show, if they can be collapsed on these terms."""
    fmt, frames = space.table.format, space.physical.frames
    numbers = np.flatnonzero(entries)
    shown = entries[numbers]
    present = shown & np.uint64(fmt.present_mask) != 0
    away, held = numbers[~present], shown[~present]
    if away.size and (away.size > terms.swapped or not _can_come_back(space.physical, held)):
        return Ending.UNFIT
    numbers, shown = numbers[present], shown[present]
    of = first_frames(fmt, frames, shown)
    if (of >= frames.count).any():
        return Ending.UNFIT
    kinds = frames.kind_array[of]
    own = kinds == _ANON
    if (kinds[~own] != _ZERO).any():
        return Ending.UNFIT
    pages = _Pages(numbers[own], of[own], away)
    if not pages.numbers.size and not away.size:
        return Ending.EMPTY
    refs = frames.refs_array[pages.frames]
    if (refs != frames.maps_array[pages.frames]).any():
        return Ending.BUSY
    absent = entries.size - pages.numbers.size - away.size
    shared = int(np.count_nonzero(refs > 1))
    if absent > terms.absent or shared > terms.shared:
        return Ending.UNFIT
    used = int(np.count_nonzero(fmt.accessed(shown))) if terms.used else entries.size
    if not used or (away.size and used < entries.size >> 1):
        return Ending.UNUSED
    return pages


def _can_come_back(physical: Physical, held: NDArray[np.uint64]) -> bool:
    """Whether entries name pages in swap, all of them, of whose stores nobody is to be told."""
    swap = physical.swap
    if swap is None or not swap.entries.which(held).all():
        return False
    return not (held & np.uint64(swap.entries.told)).any()


def _bring(space: AddressSpace, start: int, numbers: NDArray[np.int64]) -> bool:
    """Bring pages back from swap, while memory is not short: a huge page takes more yet. Whether all came."""
    faults, reclaim, shift = Faults(space.physical), space.physical.reclaim, space.table.format.page_shift
    try:
        for number in numbers.tolist():
            if reclaim is not None and reclaim.is_short:
                return False
            faults.bring(space, start + (number << shift))
    except OutOfFrames:
        return False
    return True


def _copy(space: AddressSpace, pages: _Pages, block: int) -> None:
    """Bring the bytes of the pages to their places in a block, whose other pages are zero."""
    ram = space.physical.ram
    by_page: NDArray[Any] = ram.array.reshape(-1, ram.page_size >> 3)
    count = pages.numbers.size
    first = int(pages.numbers[0])
    if int(pages.numbers[-1]) - first + 1 == count:
        np.take(
            by_page, pages.frames, axis=0, out=by_page[block + first : block + first + count], mode="clip"
        )
    else:
        by_page[block + pages.numbers] = by_page[pages.frames]


# ---- a program asks for it


_ERRNO = {Ending.NO_BLOCK: errno.ENOMEM, Ending.BUSY: errno.EAGAIN}


def collapse_advised(space: AddressSpace, area: Area, start: int, end: int) -> None:
    """MADV_COLLAPSE of a part of an area, whatever the machine's setting is.

    Each huge page in the range is tried; a block that is not there ends it. Raises Refused(ENOMEM) then,
    EAGAIN where a later try may succeed, else EINVAL: also for an area that has no room for one, and for a
    range between two borders of huge pages (Linux: `madvise_collapse`).
    """
    size = huge_size(space.table.format)
    shared = space.physical.shared_huge
    of_object = area.shared and shared is not None and shared.possible(space, area)
    if not of_object and not possible(space, area, size):
        raise Refused(errno.EINVAL, "no huge page is possible in this mapping")
    make = collapse_shared if of_object else collapse
    every, thp, failed = 1 << huge_order(space.table.format), space.physical.thp, None
    terms = Terms(absent=every, shared=every, swapped=every, moves=thp is None or thp.compacts != "never")
    first, last = start + size - 1 & -size, end & -size
    if first > last:
        raise Refused(errno.EINVAL, "the range lies within one huge page")
    for at in range(first, last, size):
        ending = make(space, area, at, terms)
        if ending not in (Ending.DONE, Ending.HUGE):
            failed = ending
        if ending is Ending.NO_BLOCK:
            break
    if failed is not None:
        raise Refused(_ERRNO.get(failed, errno.EINVAL), failed.value)


# ---- the scan


class Scan:
    """Looks at tables of all address spaces in turn, some at a time, and collapses those on its terms.

    `position` is where it goes on: the number of a space, and an address there.
    """

    def __init__(self, physical: Physical, terms: Terms, pages: int) -> None:
        self.physical, self.terms, self.pages = physical, terms, pages
        self.position = (0, 0)
        self.starved = False  # whether the last look found no block for a huge page
        self.passes = 0  # through all spaces, from the first to the last

    def look(self, spaces: Sequence[AddressSpace]) -> int:
        """Look at so many pages as it does at once, or at all. Returns how many ranges it collapsed."""
        left, done, self.starved = self.pages, 0, False
        for space, area, start in self._from_here(spaces):
            fmt = space.table.format
            self.position = (space.number, start + huge_size(fmt))
            self.physical.counters.n[Event.HUGE_SCANNED] += 1
            make = collapse if area.backing is None else collapse_shared
            with suppress(TableDamaged):  # whoever needs the range finds that
                ending = make(space, area, start, self.terms)
                done += ending is Ending.DONE
                self.starved |= ending is Ending.NO_BLOCK
            left -= 1 << huge_order(fmt)
            if left <= 0:
                return done
        self.position = (0, 0)
        self.passes += 1
        return done

    def _from_here(self, spaces: Sequence[AddressSpace]) -> Iterator[tuple[AddressSpace, Area, int]]:
        """Each range that may become a huge page and has a table, from the position on."""
        number, address = self.position
        for space in sorted(spaces, key=lambda each: each.number):
            if space.number < number:
                continue
            size = huge_size(space.table.format)
            at = address if space.number == number else 0
            while (area := space.areas.following(at)) is not None:
                at = max(at, area.start)
                end = area.end & -size
                for start in range(at + size - 1 & -size, end, size):
                    if not self._permits(space, area, start):
                        break
                    if start >> space.table.leaf_span_shift in space.leaf_tables:
                        yield space, area, start
                at = area.end

    def _permits(self, space: AddressSpace, area: Area, start: int) -> bool:
        """Whether the machine's settings have huge pages there."""
        own, shared = self.physical.huge, self.physical.shared_huge
        if area.backing is None:
            return own is not None and own.permits(space, area)
        return shared is not None and shared.permits(space, area, start)

    def capture(self) -> tuple[Any, ...]:
        """Where it is, and what it was told."""
        return self.position, self.passes, self.pages, astuple(self.terms)

    def restore(self, state: tuple[Any, ...]) -> None:
        """Be there."""
        self.position, self.passes, self.pages, terms = state
        self.terms = Terms(*terms)
