"""Which part of a host file a program may be shown, for `AddressSpace.map_file`."""

from __future__ import annotations

import errno
import os
from typing import IO, Any

from aether_emu.errors import ConfigError, Refused, whole
from aether_emu.mm.limits import Limits
from aether_emu.mm.objects.file import HostFiles
from aether_emu.mm.objects.handed import opened
from aether_emu.mm.protection import Protection

_READ_EXECUTE = Protection.READ | Protection.EXECUTE


def part_of_file(
    files: HostFiles,
    limits: Limits,
    shift: int,
    file: IO[bytes] | str | os.PathLike[str],
    place: tuple[int, int, int],
    protection: Protection,
) -> tuple[int, dict[str, Any]]:
    """How many bytes it is, in whole pages of `1 << shift`, and what its area is, for `new_area`.

    `place` is where it is to be shown, and what: address, size, offset in the file. Raises as
    `AddressSpace.map_file`.
    """
    address, size, offset = whole("address", place[0]), whole("size", place[1]), whole("offset", place[2])
    if not isinstance(protection, Protection):
        raise ConfigError("protection", protection, "a Protection, such as Protection.READ")
    if not 0 <= offset <= offset + size < 1 << 63:
        raise Refused(errno.EINVAL, f"no file has {size} bytes from {offset} on")
    length = size + (1 << shift) - 1 >> shift << shift
    if (address | offset) & (1 << shift) - 1 or length <= 0 or offset < 0:
        raise Refused(errno.EINVAL, "address and offset must be page aligned, the size positive")
    if not limits.user_base <= address <= limits.user_end - length:
        raise Refused(errno.ENOMEM, "the range leaves the user half")
    with opened(file, writable=bool(protection & Protection.WRITE)) as (fd, access, name):
        status = os.fstat(fd)
        key, writable = (status.st_dev, status.st_ino), access == os.O_RDWR
        backing = files.open(fd, key, name, writable=writable)
    maximum = _READ_EXECUTE | Protection.WRITE if writable else _READ_EXECUTE
    what = {"shared": True, "backing": backing, "offset": offset >> shift, "maximum": maximum, "name": name}
    return length, what
