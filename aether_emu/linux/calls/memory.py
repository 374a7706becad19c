"""The mmap family as system calls: arguments to `mm.mapping`."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from aether_emu.errors import Refused
from aether_emu.linux.calls.mappable import mappable
from aether_emu.linux.calls.user import s32
from aether_emu.mm import mapping
from aether_emu.mm.protection import Protection

if TYPE_CHECKING:
    from aether_emu.linux.task.process import Process

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_MLOCK_ONFAULT = 1


class MemoryCalls:
    """mmap(2) and its relatives."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._space = process.space

    def sys_mmap(self, address: int, length: int, protection: int, flags: int, fd: int, offset: int) -> int:
        if offset & self._space.page_size - 1:
            raise Refused(errno.EINVAL, "the offset is not page aligned")
        file = None
        if not flags & mapping.MAP_ANONYMOUS:
            file = mappable(self._process, s32(fd))
        elif offset:
            offset = 0  # anonymous memory has no offset
        request = mapping.Request(address, length, protection, flags, file, offset)
        return mapping.map_memory(self._space, request)

    def sys_munmap(self, address: int, length: int, *_: int) -> int:
        mapping.unmap_memory(self._space, address, length)
        return 0

    def sys_mprotect(self, address: int, length: int, protection: int, *_: int) -> int:
        mapping.protect_memory(self._space, address, length, protection)
        return 0

    def sys_mremap(self, address: int, old: int, new: int, flags: int, target: int, *_: int) -> int:
        request = mapping.Remap(address, old, new, flags, target)
        return mapping.remap_memory(self._space, request)

    def sys_madvise(self, address: int, length: int, advice: int, *_: int) -> int:
        mapping.advise_memory(self._space, address, length, s32(advice))
        return 0

    def sys_msync(self, address: int, length: int, flags: int, *_: int) -> int:
        mapping.sync_memory(self._space, address, length, s32(flags))
        return 0

    def sys_mincore(self, address: int, length: int, vector: int, *_: int) -> int:
        self._process.cpu.copy_to_user(vector, mapping.residency(self._space, address, length))
        return 0

    def sys_brk(self, address: int, *_: int) -> int:
        return mapping.set_break(self._space, address)

    def sys_mlock(self, address: int, length: int, *_: int) -> int:
        return self.sys_mlock2(address, length, 0)

    def sys_mlock2(self, address: int, length: int, flags: int, *_: int) -> int:
        """Pages stay resident here once they are (there is no swap): locking is populating."""
        if flags & ~_MLOCK_ONFAULT:
            raise Refused(errno.EINVAL, "unknown flags")
        start = address & -self._space.page_size
        end = address + length
        end += -end % self._space.page_size
        if end < start:
            raise Refused(errno.EINVAL, "the range wraps around")
        if not self._space.areas.covered(start, end):
            raise Refused(errno.ENOMEM, "part of the range is not mapped")
        if not flags & _MLOCK_ONFAULT:
            for area in self._space.areas.overlapping(start, end):
                write = bool(area.protection & Protection.WRITE) and not area.shared
                low, high = max(area.start, start), min(area.end, end)
                if area.protection and mapping.populate(self._space, low, high, write=write) is not None:
                    raise Refused(errno.ENOMEM, "a page cannot be had")
        return 0

    def sys_munlock(self, address: int, length: int, *_: int) -> int:
        start = address & -self._space.page_size
        end = address + length + (-(address + length) % self._space.page_size)
        if not self._space.areas.covered(start, end):
            raise Refused(errno.ENOMEM, "part of the range is not mapped")
        return 0

    def sys_mlockall(self, flags: int, *_: int) -> int:
        """Refused as for a user without the right to lock so much."""
        if not flags or flags & ~(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) or flags == _MCL_ONFAULT:
            raise Refused(errno.EINVAL, "bad flags")
        raise Refused(errno.EPERM, "locking all memory needs a privilege")

    def sys_munlockall(self, *_: int) -> int:
        return 0
