"""A process's memory as it is, for those who only look: no page is brought, no entry and no count changes.

What a program has mapped and not touched is answered from what stands behind it: zeros, or the file.
"""

from __future__ import annotations

from aether_emu.errors import AddressError, Refused
from aether_emu.mm.allocation import Area
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.objects.special import SpecialMapping
from aether_emu.mm.protection import READABLE
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.count import has_frame
from aether_emu.mm.tables.damage import TableDamaged


class Unreadable(Exception):
    """There is no memory at an address, or it may not be read."""


class PeekMemory:
    """The memory of `space`. With `forced` the protection of areas does not count, as for a debugger."""

    def __init__(self, space: AddressSpace, *, forced: bool = False) -> None:
        self._space, self._forced = space, forced

    def read(self, va: int, length: int) -> bytes:
        """`length` bytes from `va` on. Raises Unreadable unless all of them are there."""
        data = self.read_up_to(va, length)
        if len(data) < length:
            raise Unreadable(f"{va + len(data):#x}")
        return data

    def read_up_to(self, va: int, length: int) -> bytes:
        """As many bytes from `va` on as there are in a row, at most `length`."""
        data, size = bytearray(), self._space.page_size
        while len(data) < length:
            at = va + len(data)
            page = self._page(at & -size)
            if page is None:
                break
            offset = at & size - 1
            data += page[offset : offset + length - len(data)]
        return bytes(data)

    def string(self, va: int, most: int) -> tuple[bytes, bool]:
        """Bytes up to a zero, and whether that was met within `most` bytes. Raises Unreadable before both."""
        data, size = b"", self._space.page_size
        while len(data) < most:
            at = va + len(data)
            count = min(size - at % size, most - len(data))
            piece = self.read_up_to(at, count)
            if len(piece) < count and b"\0" not in piece:
                raise Unreadable(f"{at:#x}")
            data += piece.partition(b"\0")[0]
            if b"\0" in piece:
                return data, True
        return data, False

    def _page(self, page: int) -> bytes | memoryview | None:
        """The bytes of a page."""
        space = self._space
        area = space.areas.find(page)
        if area is None or not (self._forced or area.protection & READABLE):
            return None
        fmt, frames = space.table.format, space.physical.frames
        try:
            found, swap = space.table.find(page), space.physical.swap
            if found is not None and swap is not None and swap.entries.holds(found.entry):
                return swap.look(swap.entries.slot(found.entry))
            if found is None or not has_frame(fmt, found.entry, found.level):
                return self._behind(area, area.offset + (page - area.start >> fmt.page_shift))
            frame = frames.number((found.entry & fmt.address_mask) + page - found.start)
            if frames.kind[frame] != Kind.FILE:
                return space.physical.page_bytes(frame)
            file, index = space.physical.aperture.owner_of(frames.address(frame))
            return file.read(index * space.page_size, space.page_size).ljust(space.page_size, b"\0")
        except (TableDamaged, AddressError, Refused, IndexError):  # a damaged entry, a file that went away
            return None

    def _behind(self, area: Area, index: int) -> bytes | memoryview | None:
        """What a first touch of a page would show; None where there is nothing."""
        size, physical = self._space.page_size, self._space.physical
        match area.backing:
            case None:
                return bytes(size)
            case FileBacking() as backing:
                if index * size >= backing.file.size:
                    return None
                return backing.file.read(index * size, size).ljust(size, b"\0")
            case SharedMemory() as backing:
                frame = backing.frames_by_page().get(index)
                slot = backing.slots_by_page().get(index)
                if frame is not None:
                    return physical.page_bytes(frame)
                if slot is not None and physical.swap is not None:
                    return physical.swap.look(slot)
                return bytes(size) if index < backing.pages else None
            case SpecialMapping() as backing:
                data = backing.pages[index] if index < len(backing.pages) else None
                return None if data is None else data.ljust(size, b"\0")
        return None
