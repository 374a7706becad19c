"""Memory of a device that programs may show: frames in a row, of one memory type, kept as long as the device.

    DeviceMemory(physical, "/dev/fb0", pages, MemoryType.WRITE_COMBINING)     frames of RAM
    DeviceMemory(physical, "/dev/timer0", pages, MemoryType.UNCACHED, first)  registers: frames outside RAM

Its frames are RESERVED: nobody moves, reclaims or counts them as memory of programs. Every entry that shows
one carries the device's type (`mm.memory_types`), so an area shows them shared or not at all.
"""

from __future__ import annotations

import errno
from typing import Any

from aether_emu.arch.paging import MemoryType
from aether_emu.errors import Refused
from aether_emu.machine.memory.aperture import BeyondEnd
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.objects.protocol import Backing
from aether_emu.mm.physical import Physical


class DeviceMemory(Backing):
    """`pages` pages, called `name`, from frame `first` on; without one they are taken from RAM, zeroed.

    Raises OutOfFrames; and Refused(EBUSY) if the frames have another memory type. `close` ends it.
    """

    in_place = False
    in_device = True

    def __init__(
        self, physical: Physical, name: str, pages: int, memory: MemoryType, first: int | None = None
    ) -> None:
        super().__init__(physical.objects)
        self._physical, self._name, self.pages, self.memory = physical, name, pages, memory
        self.in_ram = first is None
        self.first = self._take(pages) if first is None else first
        frames = physical.frames
        frames.claim(self.first, pages, Kind.RESERVED, self.number)
        frames.refs_array[self.first : self.first + pages] = 1
        self.hold()
        try:
            physical.memory_types.reserve(self.first, pages, memory, name)
        except BaseException:
            self._forget()
            raise

    def _take(self, pages: int) -> int:
        """Frames of RAM in a row. Raises OutOfFrames."""
        physical, order = self._physical, (pages - 1).bit_length()
        first = physical.buddy.alloc(order)
        physical.buddy.split(first, order)
        for frame in range(first + pages, first + (1 << order)):
            physical.buddy.free(frame)
        for frame in range(first, first + pages):
            physical.prepare(frame)
        return first

    @property
    def name(self) -> str:
        """See `Backing.name`."""
        return self._name

    @property
    def writable(self) -> bool:
        """See `Backing.writable`."""
        return True

    @property
    def address(self) -> int:
        """The guest-physical address of its first byte."""
        return self._physical.frames.address(self.first)

    @property
    def bytes(self) -> memoryview:
        """What a device in RAM has, writable in place."""
        assert self.in_ram, "registers are no bytes"
        ram = self._physical.ram
        start = self.address - ram.base
        return ram.bytes[start : start + self.pages * ram.page_size]

    def frames(self, index: int, count: int, *, write: bool) -> tuple[int, int]:
        """See `Backing.frames`."""
        if index >= self.pages:
            raise BeyondEnd(index, f"the device has {self.pages} pages")
        return self.first + index, 1

    def require_window(self, first: int, count: int, *, shared: bool) -> None:
        """See `Backing.require_window`. EINVAL: behind its end (Linux: vm_iomap_memory), or private."""
        if first + count > self.pages:
            raise Refused(errno.EINVAL, f"{self._name} has {self.pages} pages")
        if not shared:
            why = "a copy of a page would be write-back memory"
            raise Refused(errno.EINVAL, f"{self._name} is shown shared or not at all: {why}")

    def copy_page(self, index: int, into: memoryview) -> None:
        """See `Backing.copy_page`: nobody shows it private."""
        raise AssertionError("a device has no copies")

    def sync(self) -> None:
        """A store has reached the device."""

    def release(self) -> None:
        """See `MemoryObject.release`."""
        physical, table = self._physical, self._physical.frames
        physical.memory_types.release(self.first, self.pages)
        self._forget()
        assert not table.maps_array[self.first : self.first + self.pages].any(), "somebody shows it"

    def _forget(self) -> None:
        table, end = self._physical.frames, self.first + self.pages
        table.refs_array[self.first : end] = 0
        if self.in_ram:
            table.kind_array[self.first : end] = Kind.KERNEL
            self._physical.give_back(list(range(self.first, end)))

    def close(self) -> None:
        """The device is gone: its frames go when no area shows them."""
        self.let_go()

    def capture(self) -> dict[str, Any]:
        """See `Backing.capture`. Its bytes are in RAM; the machine makes the device again by its name."""
        return {"kind": "device", "number": self.number, "name": self._name}
