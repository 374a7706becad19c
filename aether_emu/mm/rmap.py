"""From a frame, or a page of an object, to every address where it is mapped, in all address spaces.

    frame --(owner, index of the frame table)--> object --(interval query)--> areas --> addresses --> entries

Nothing is scanned: the object answers which areas show the page, and the area says at which address. An entry
is looked at last, because an area may show a page without having it mapped, or have a private copy instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple

from aether_emu.address import VirtAddr
from aether_emu.mm import markers
from aether_emu.mm.objects.protocol import MemoryObject, Space, Window
from aether_emu.mm.physical import Physical
from aether_emu.mm.tables.page import Found


class Mapping(NamedTuple):
    """One place where a frame is mapped: the entry `found` of a space, which shows it at `address`."""

    space: Space
    address: VirtAddr
    found: Found


def address_in(area: Window, item: MemoryObject, index: int, page_shift: int) -> int:
    """The address at which `area` shows page `index` of `item`, one of its objects."""
    if item is area.backing:
        return area.start + (index - area.offset << page_shift)
    return index - area.moved << page_shift


def mappings(physical: Physical, frame: int, page: tuple[int, int] | None = None) -> Iterator[Mapping]:
    """Every entry that shows a frame, present or held, in a fixed order.

    With a `page`, the number of an object and an index, only those of areas that show that page of it.
    Nothing for the zero page and for frames that are no object's (tables, the kernel's own).
    """
    frames, merged = physical.frames, physical.merged
    if page is not None:
        pages = [page]
    elif merged is not None and physical.is_merged(frame):
        pages = merged.pages_of(frame)
    else:
        pages = [(frames.owner[frame], frames.index[frame])]
    for number, index in pages:
        item = physical.objects.find(number)
        if item is not None:
            yield from _mappings(physical, frame, item, index)


def _mappings(physical: Physical, frame: int, item: MemoryObject, index: int) -> Iterator[Mapping]:
    frames = physical.frames
    for area in item.windows.over(index, index + 1):
        space = area.space
        assert space is not None, "an area in a map belongs to a space"
        address = address_in(area, item, index, frames.page_shift)
        found = space.table.find(address)
        if found is not None and _shown(space, found, address) == frames.address(frame):
            yield Mapping(space, VirtAddr.of_word(address), found)


def _shown(space: Space, found: Found, address: int) -> int:
    """The physical address that an entry shows at `address`: a leaf's, or what a held entry keeps."""
    fmt = space.table.format
    if found.entry & fmt.present_mask:
        start = fmt.leaf_address(found.entry, found.level)
    else:
        start = found.entry & fmt.address_mask
    return start + address - found.start & -fmt.page_size


def unmap(
    item: MemoryObject, first: int, count: int, *, copies: bool = False, keeps_markers: bool = True
) -> None:
    """Remove the entries that show pages `[first, first + count)` of an object, everywhere, and flush.

    Private copies of those pages stay, unless `copies` (truncation takes them too). Guards stay in any case,
    and with `keeps_markers` what a program asked about stores (`mm.markers`).
    """
    by_space: dict[int, list[Window]] = {}
    for area in item.windows.over(first, first + count):
        by_space.setdefault(id(area.space), []).append(area)
    for areas in by_space.values():
        space = areas[0].space
        assert space is not None, "an area in a map belongs to a space"
        shift = space.table.format.page_shift
        gather = space.gather()
        for area in areas:
            start = max(area.start, address_in(area, item, first, shift))
            end = min(area.end, address_in(area, item, first + count, shift))
            level = markers.level_of(space.table.format, area.huge_size)
            keeps = keeps_markers and area.keeps_markers
            with markers.kept(space.table, start, end, level) if keeps else nullcontext():
                space.clear(gather, area, start, end, own_pages=copies, guards=False)
        space.finish(gather)


def lowest_address(item: MemoryObject, page: int, space: Space) -> int | None:
    """Where `space` shows page `page` of an object, at the lowest address if at several."""
    shift = space.table.format.page_shift
    shown = [
        address_in(area, item, page, shift)
        for area in item.windows.over(page, page + 1)
        if area.space is space
    ]
    return min(shown, default=None)
