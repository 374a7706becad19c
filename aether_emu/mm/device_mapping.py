"""Showing a device's memory to a program, from Python: `AddressSpace.map_device`.

As mmap of a device in /dev, with the address and the memory type chosen by the caller. The type is checked
against what the frames have: one frame has one type (`mm.memory_types`).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from aether_emu.address import VirtAddr
from aether_emu.arch.paging import MemoryType
from aether_emu.errors import ConfigError, Refused, whole
from aether_emu.mm.objects.device import DeviceMemory
from aether_emu.mm.protection import Protection

if TYPE_CHECKING:
    from aether_emu.mm.physical import Physical
    from aether_emu.mm.space import AddressSpace


def map_device(
    space: AddressSpace,
    device: DeviceMemory | int,
    address: int,
    size: int,
    memory: MemoryType | None,
    protection: Protection,
) -> VirtAddr:
    """See `AddressSpace.map_device`."""
    address, size = whole("address", address), whole("size", size)
    if not isinstance(protection, Protection):
        raise ConfigError("protection", protection, "a Protection, such as Protection.READ")
    if memory is not None and not isinstance(memory, MemoryType):
        raise ConfigError("memory", memory, "a MemoryType, such as MemoryType.UNCACHED")
    if protection & Protection.EXECUTE:
        raise Refused(errno.EPERM, "nobody executes a device")
    physical, page = space.physical, space.page_size
    offset = 0
    if not isinstance(device, DeviceMemory):
        device, offset = device_at(physical, whole("device", device))
    length = space.page_up(size)
    if address & page - 1 or length <= 0:
        raise Refused(errno.EINVAL, "the address must be page aligned, the size positive")
    if not space.limits.user_base <= address <= space.limits.user_end - length:
        raise Refused(errno.ENOMEM, "the range leaves the user half")
    shift = space.table.format.page_shift
    device.require_window(offset, length >> shift, shared=True)
    physical.memory_types.require(
        device.first + offset, length >> shift, device.memory if memory is None else memory
    )
    area = space.new_area(
        address,
        address + length,
        protection,
        shared=True,
        backing=device,
        offset=offset,
        maximum=Protection.READ | Protection.WRITE,
        name=device.name,
    )
    space.replace(area)
    return VirtAddr(address, space.table.format.virtual_bits + 1)


def device_at(physical: Physical, address: int) -> tuple[DeviceMemory, int]:
    """The device that has the page at a guest-physical address, and which of its pages that is.

    Raises Refused(EINVAL) for RAM that no device has (Linux refuses to remap that: EINVAL of `ioremap`'s
    kin), and for addresses where nothing is.
    """
    frames = physical.frames
    if address & (1 << frames.page_shift) - 1:
        raise Refused(errno.EINVAL, f"physical address {address:#x} is not page aligned")
    if frames.base <= address < frames.base + frames.size:
        frame = frames.number(address)
        found = physical.objects.find(frames.owner[frame])
        if isinstance(found, DeviceMemory) and found.first <= frame < found.first + found.pages:
            return found, frame - found.first
        if frame < physical.ram.size >> frames.page_shift:
            raise Refused(errno.EINVAL, f"physical address {address:#x} is RAM, of no device")
    raise Refused(errno.EINVAL, f"there is no device at physical address {address:#x}")
