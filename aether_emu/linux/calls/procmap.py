"""The PROCMAP_QUERY ioctl of /proc/PID/maps: one area, found by an address, as numbers (Linux 6.11).

Checks and their order are those of Linux 6.18 (fs/proc/task_mmu.c).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable

from aether_emu.errors import Refused
from aether_emu.linux.exec.build_id import build_id
from aether_emu.linux.maps import record_of
from aether_emu.linux.task.task import Task
from aether_emu.machine.memory.aperture import BackingFailed, BeyondEnd
from aether_emu.mm.allocation import Area
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.records import dataclass

PROCMAP_QUERY = 0xC068_6611
_READABLE, _WRITABLE, _EXECUTABLE, _SHARED, _OR_NEXT, _OF_FILE = (1 << bit for bit in range(6))
_ASKED = _READABLE | _WRITABLE | _EXECUTABLE | _SHARED
_KNOWN = _ASKED | _OR_NEXT | _OF_FILE
_ARGUMENT = struct.Struct("<9Q4I2Q")
_LEAST = 24  # bytes: size, flags and address
_AREAS_PER_LOOK = 1024
_LONGEST_NAME = 4096  # with its zero (PATH_MAX)


@dataclass(frozen=True, slots=True)
class _Query:
    """The argument (struct procmap_query)."""

    size: int
    flags: int
    address: int
    start: int
    end: int
    area_flags: int
    page_size: int
    offset: int
    inode: int
    major: int
    minor: int
    name_size: int
    id_size: int
    name_at: int
    id_at: int


def control(task: Task, areas: Callable[[], AddressSpace], request: int, argument: int) -> int:
    """ioctl(2) on /proc/PID/maps."""
    if request != PROCMAP_QUERY:
        raise Refused(errno.ENOTTY, f"no ioctl {request:#x}")
    query = _read(task, argument)
    if query.flags & ~_KNOWN:
        raise Refused(errno.EINVAL, f"flags {query.flags:#x}")
    if bool(query.name_size) != bool(query.name_at) or bool(query.id_size) != bool(query.id_at):
        raise Refused(errno.EINVAL, "a buffer without a size, or a size without one")
    space = areas()
    area = _find(task, space, query)
    identity = _build_id(space, area) if query.id_size else b""
    if len(identity) > query.id_size:
        raise Refused(errno.ENAMETOOLONG, "the build ID is longer")
    name = _name(area, query.name_size) if query.name_size else b""
    if name:
        task.cpu.copy_to_user(query.name_at, name)
    if identity:
        task.cpu.copy_to_user(query.id_at, identity)
    record = record_of(space, area)
    answer = _ARGUMENT.pack(
        *(query.size, query.flags, query.address, area.start, area.end),
        *(_flags(area), area.huge_size or space.page_size, record.offset, record.inode),
        *(os.major(record.device), os.minor(record.device), len(name), len(identity)),
        *(query.name_at, query.id_at),
    )
    task.cpu.copy_to_user(argument, answer[: query.size])
    return 0


def _read(task: Task, argument: int) -> _Query:
    """The argument, of a program that may know fewer fields, or more."""
    (size,) = struct.unpack("<Q", task.cpu.copy_from_user(argument, 8))
    if size > task.process.mm.page_size:
        raise Refused(errno.E2BIG, f"{size} bytes")
    if size < _LEAST:
        raise Refused(errno.EINVAL, f"{size} bytes")
    given = task.cpu.copy_from_user(argument, size)
    if any(given[_ARGUMENT.size :]):
        raise Refused(errno.E2BIG, "fields that are not known")
    return _Query(*_ARGUMENT.unpack(given[: _ARGUMENT.size].ljust(_ARGUMENT.size, b"\0")))


def _find(task: Task, space: AddressSpace, query: _Query) -> Area:
    """The area that covers the address, or the next, that is as was asked. ENOENT."""
    area, looked = space.areas.following(query.address), 0
    while area is not None:
        if not looked % _AREAS_PER_LOOK:
            task.process.kernel.checkpoint()
        looked += 1
        fits = _flags(area) & query.flags & _ASKED == query.flags & _ASKED
        if fits and (not query.flags & _OF_FILE or _is_of_file(area)):
            if query.flags & _OR_NEXT or area.start <= query.address:
                return area
            break
        if not query.flags & _OR_NEXT:
            break
        area = space.areas.following(area.end)
    raise Refused(errno.ENOENT, "no such area")


def _is_of_file(area: Area) -> bool:
    """Whether Linux has a file for it: also of shared memory, and of huge pages."""
    return area.backing is not None and not area.backing.whole


def _flags(area: Area) -> int:
    permitted = (
        (_READABLE, Protection.READ),
        (_WRITABLE, Protection.WRITE),
        (_EXECUTABLE, Protection.EXECUTE),
    )
    flags = sum(flag for flag, bit in permitted if area.protection & bit)
    return flags | (_SHARED if area.shared else 0)


def _name(area: Area, room: int) -> bytes:
    """Its name with a zero, nothing for none. Raises Refused(ENAMETOOLONG) if there is no room for that."""
    name = area.name.encode("utf-8", "surrogateescape")
    if not name:
        return b""
    if len(name) + 1 > min(room, _LONGEST_NAME):
        raise Refused(errno.ENAMETOOLONG, f"{area.name} is longer")
    return name + b"\0"


def _build_id(space: AddressSpace, area: Area) -> bytes:
    """The build ID of the file that it shows, nothing if it has none. Raises NotReady as reading does."""
    backing, size = area.backing, space.page_size
    if not isinstance(backing, FileBacking):
        return b""

    def read(offset: int, length: int) -> bytes:
        first, last = offset // size, (offset + length - 1) // size
        page, found = bytearray(size), b""
        for index in range(first, last + 1):
            backing.copy_page(index, memoryview(page))
            found += page
        return found[offset - first * size :][:length]

    try:
        return build_id(read)
    except (BeyondEnd, BackingFailed):
        return b""
