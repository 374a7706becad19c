"""Which part of a device a program may be shown, for `AddressSpace.map_device`.

As mmap of a device in /dev, with the address and the memory type chosen by the caller. The type is checked
against what the frames have: one frame has one type (`mm.memory_types`).
"""

from __future__ import annotations

import errno

from aether_emu.arch.paging import MemoryType
from aether_emu.errors import ConfigError, Refused, whole
from aether_emu.mm.limits import Limits
from aether_emu.mm.objects.device import DeviceMemory
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import Protection


def part_of_device(
    physical: Physical,
    limits: Limits,
    device: DeviceMemory | int,
    place: tuple[int, int],
    memory: MemoryType | None,
    protection: Protection,
) -> tuple[DeviceMemory, int, int]:
    """The device, which of its pages comes first, and how many bytes it is, in whole pages.

    `place` is where it is to be shown: address and size. Raises as `AddressSpace.map_device`.
    """
    address, size = whole("address", place[0]), whole("size", place[1])
    if not isinstance(protection, Protection):
        raise ConfigError("protection", protection, "a Protection, such as Protection.READ")
    if memory is not None and not isinstance(memory, MemoryType):
        raise ConfigError("memory", memory, "a MemoryType, such as MemoryType.UNCACHED")
    if protection & Protection.EXECUTE:
        raise Refused(errno.EPERM, "nobody executes a device")
    shift, first = physical.frames.page_shift, 0
    if not isinstance(device, DeviceMemory):
        device, first = device_at(physical, whole("device", device))
    length = size + (1 << shift) - 1 >> shift << shift
    if address & (1 << shift) - 1 or length <= 0:
        raise Refused(errno.EINVAL, "the address must be page aligned, the size positive")
    if not limits.user_base <= address <= limits.user_end - length:
        raise Refused(errno.ENOMEM, "the range leaves the user half")
    device.require_window(first, length >> shift, shared=True)
    wanted = device.memory if memory is None else memory
    physical.memory_types.require(device.first + first, length >> shift, wanted)
    return device, first, length


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
