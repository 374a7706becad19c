"""Which memory type each range of frames has: one, whoever shows it (Linux: the memtype tree of PAT).

Two entries that give one frame different types let a cache hold what another entry says is never cached: the
Intel SDM (3A 12.12.4, "Programming the PAT") and the Arm ARM ("Mismatched memory attributes") leave open
what is read then. So a range is reserved with a type before anything shows it, and a second wish for another
type is refused. What nobody has reserved is write-back.

RAM has one more address: the supervisor's direct map. It gets the type first, while no program shows a frame
of the range, by breaking its entries before making them (`KernelHalf.retype`).
"""

from __future__ import annotations

import errno
from typing import NamedTuple, Protocol

from aether_emu.arch.paging import MemoryType
from aether_emu.errors import Refused
from aether_emu.mm.frames.table import FrameTable

WORDS = {
    MemoryType.WRITE_BACK: "write-back",
    MemoryType.WRITE_THROUGH: "write-through",
    MemoryType.UNCACHED_MINUS: "uncached-minus",
    MemoryType.UNCACHED: "uncached",
    MemoryType.WRITE_COMBINING: "write-combining",
    MemoryType.WRITE_PROTECTED: "write-protected",
}
"""The types as Linux's /sys/kernel/debug/x86/pat_memtype_list names them."""


class DirectMap(Protocol):
    """The supervisor's second address of RAM."""

    def retype(self, address: int, size: int, memory: MemoryType) -> None:
        """Give the entries over physical `[address, address + size)` another type, on live memory."""


class Reservation(NamedTuple):
    """Frames `[first, end)` have a type, because `name` wants it so."""

    first: int
    end: int
    memory: MemoryType
    name: str


class MemoryTypes:
    """The reservations of one computer, in the order of their making. The first `ram` frames are RAM."""

    def __init__(self, frames: FrameTable, ram: int) -> None:
        self._frames, self._ram = frames, ram
        self.reservations: list[Reservation] = []
        self.direct_map: DirectMap | None = None

    def over(self, first: int, count: int) -> list[Reservation]:
        """The reservations that meet `count` frames from `first` on."""
        return [each for each in self.reservations if each.first < first + count and first < each.end]

    def of(self, frame: int) -> MemoryType:
        """The type of a frame."""
        found = self.over(frame, 1)
        return found[0].memory if found else MemoryType.WRITE_BACK

    def require(self, first: int, count: int, memory: MemoryType) -> None:
        """Raise Refused(EINVAL) where one of the frames has another type (Linux: `reserve_pfn_range`)."""
        found = self.over(first, count)
        covered = sum(min(each.end, first + count) - max(each.first, first) for each in found)
        held = {each.memory for each in found} | ({MemoryType.WRITE_BACK} if covered < count else set())
        if held != {memory}:
            other = min(held - {memory})
            name = f" for {found[0].name}" if found else ""
            raise Refused(errno.EINVAL, f"the frames are {WORDS[other]}{name}, not {WORDS[memory]}")

    def reserve(self, first: int, count: int, memory: MemoryType, name: str) -> None:
        """Let `count` frames from `first` on have this type, until `release`.

        Raises Refused(EBUSY), changing nothing: another type is reserved there, or a program shows a frame as
        write-back. Raises OutOfFrames where the direct map cannot be split.
        """
        for each in self.over(first, count):
            if each.memory != memory:
                raise Refused(
                    errno.EBUSY,
                    f"{name} wants {WORDS[memory]} frames that are {WORDS[each.memory]} for {each.name}",
                )
        if not self.over(first, count) and memory is not MemoryType.WRITE_BACK:
            if self._frames.maps_array[first : first + count].any():
                raise Refused(
                    errno.EBUSY, f"{name} wants {WORDS[memory]} frames that a program shows write-back"
                )
            self._retype(first, count, memory)
        self.reservations.append(Reservation(first, first + count, memory, name))

    def release(self, first: int, count: int) -> None:
        """Nobody wants the type of this range, which was reserved, any more: RAM is write-back again."""
        found = next(each for each in self.reservations if (each.first, each.end) == (first, first + count))
        self.reservations.remove(found)
        if not self.over(first, count) and found.memory is not MemoryType.WRITE_BACK:
            self._retype(first, count, MemoryType.WRITE_BACK)

    def _retype(self, first: int, count: int, memory: MemoryType) -> None:
        if first < self._ram and self.direct_map is not None:
            shift = self._frames.page_shift
            self.direct_map.retype(self._frames.address(first), count << shift, memory)
