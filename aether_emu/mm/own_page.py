"""A page of the caller's making, put where a fault found none: for handlers that decide a fault themselves.

The page becomes one of the area's own, as if the manager had brought it: forks share it, `munmap` gives it
back. Its entry has whatever bits the caller chose. Nothing is counted and nothing costs virtual time.
"""

from __future__ import annotations

from aether_emu.errors import MappingError
from aether_emu.mm.allocation import Area
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace


def put_page(space: AddressSpace, area: Area, va: int, content: bytes | int, bits: int | None) -> None:
    """Show `content` at the page of `va` in a private area: bytes, zeros behind them, or a frame's number.

    A frame is one that `Physical.take` gave and nobody else knows (Kind.ANON, one reference, not mapped).
    `bits` are the entry's, without its address; None is what the area's protection gives a page of its own.
    What was shown there is let go. Raises MappingError for an area or content that this cannot be done with,
    OutOfFrames, and TableDamaged, with nothing changed.
    """
    physical, fmt = space.physical, space.table.format
    page, frames = va & -fmt.page_size, physical.frames
    if area.shared or area.family is None:
        raise MappingError(f"{area} is shared: its pages are its object's, and so none of its own fits")
    if isinstance(content, bytes | bytearray | memoryview) and len(content) > fmt.page_size:
        raise MappingError(f"{len(content)} bytes do not fit into a page of {fmt.page_size}")
    if physical.reclaim is not None:
        physical.reclaim.balance()
    old, slot = space.table.find(page), space.table.leaf_slot(page)
    if old is not None and (old.level != 1 or not old.entry & fmt.present_mask):
        raise MappingError(f"{fmt.describe(old.entry, old.level)} stands at {va:#x}: there is a page already")
    number = (page >> fmt.page_shift) + area.moved
    if isinstance(content, int):
        frame = content
        known = 0 <= frame < frames.count and frames.kind[frame] == Kind.ANON
        if not known or frames.refs[frame] != 1 or frames.maps[frame]:
            raise MappingError(f"frame {frame} is not one that was taken for this and that nobody uses")
        frames.owner[frame], frames.index[frame] = area.owner, number
    else:
        frame = physical.take(Kind.ANON, area.owner, number)
        physical.page_bytes(frame)[: len(content)] = content
    frames.maps[frame] = 1
    if area.protection & Protection.EXECUTE:
        physical.code.written(frame)
        physical.code.executable(frame, mutable=True)
    entry = frames.address(frame) | (area.bits.write if bits is None else bits)
    if old is None:
        physical.ram.words[slot] = entry
        return
    shown = frames.number(fmt.leaf_address(old.entry, 1))
    space.replace_entry(page, slot, entry, None if frames.kind[shown] == Kind.ZERO else shown)
