"""The mmap family as system calls: arguments to `mm.mapping`."""

from __future__ import annotations

import errno
from collections.abc import Callable

from aether_emu.errors import Refused
from aether_emu.linux.calls.batches import batches
from aether_emu.linux.calls.mappable import mappable
from aether_emu.linux.calls.user import s32
from aether_emu.linux.task.task import Task
from aether_emu.mm import mapping
from aether_emu.mm.mapping import (
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_POPULATE,
)
from aether_emu.mm.protection import Protection

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_MLOCK_ONFAULT = 1
_BATCH = 1024  # pages that are faulted in between two looks at whether the run is to end
_ANSWERS = 4096  # pages of which mincore tells at once


def sys_mmap(task: Task, address: int, length: int, protection: int, flags: int, fd: int, offset: int) -> int:
    """mmap(2). Pages that are to be there at once come in batches, after the mapping."""
    mm = task.process.mm
    populated = bool(flags & MAP_LOCKED) or flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE
    if task.progress:
        start, position = task.progress
    else:
        start = position = _map(task, mapping.Request(address, length, protection, flags, None, offset), fd)
    if populated:
        _fault_in(task, position, start + mm.page_up(length), start)
    return start


def _map(task: Task, asked: mapping.Request, fd: int) -> int:
    mm, flags, offset = task.process.mm, asked.flags, asked.offset
    if offset & mm.page_size - 1:
        raise Refused(errno.EINVAL, "the offset is not page aligned")
    file = None
    if not flags & mapping.MAP_ANONYMOUS:
        file = mappable(task.process, s32(fd))
    elif offset:
        offset = 0  # anonymous memory has no offset
    flags &= ~(MAP_LOCKED | MAP_POPULATE)
    request = mapping.Request(asked.address, asked.length, asked.protection, flags, file, offset)
    return mapping.map_memory(mm, request)


def _fault_in(task: Task, position: int, end: int, *before: int) -> bool:
    """Have every page of a range there, as far as its areas permit. False where one cannot be had.

    Begins at `position`. When the run is to end it raises Unfinished(*before, position).
    """
    mm = task.process.mm
    batch = _BATCH * mm.page_size
    for area in mm.areas.overlapping(position, end):
        write = bool(area.protection & Protection.WRITE) and not area.shared
        if not area.protection:
            continue
        high = min(area.end, end)
        for low in range(max(area.start, position), high, batch):
            task.checkpoint(*before, low)
            if mapping.populate(mm, low, min(low + batch, high), write=write) is not None:
                return False
    return True


def sys_munmap(task: Task, address: int, length: int, *_: int) -> int:
    for low, part in batches(task, address, length):
        mapping.unmap_memory(task.process.mm, low, part)
    return 0


def sys_mprotect(task: Task, address: int, length: int, protection: int, *_: int) -> int:
    grows = protection & (mapping.PROT_GROWSDOWN | mapping.PROT_GROWSUP)  # such a range begins elsewhere
    parts = [(address, length)] if grows else batches(task, address, length)
    for low, part in parts:
        mapping.protect_memory(task.process.mm, low, part, protection)
    return 0


def sys_mremap(task: Task, address: int, old: int, new: int, flags: int, target: int, *_: int) -> int:
    request = mapping.Remap(address, old, new, flags, target)
    return mapping.remap_memory(task.process.mm, request)


def sys_madvise(task: Task, address: int, length: int, advice: int, *_: int) -> int:
    mm, advice = task.process.mm, s32(advice)
    batch, whole = _BATCH * mm.page_size, mm.page_up(length)
    wraps = address + whole >= 1 << 64 or (length and not whole)
    if advice not in (MADV_POPULATE_READ, MADV_POPULATE_WRITE) or wraps:
        return _past_holes(
            task, address, length, lambda low, part: mapping.advise_memory(mm, low, part, advice)
        )
    (first,) = task.progress or (0,)
    for done in range(first, max(whole, 1), batch):  # an empty range is checked too
        task.checkpoint(done)
        mapping.advise_memory(mm, address + done, min(batch, whole - done), advice)
    return 0


def _past_holes(task: Task, address: int, length: int, edit: Callable[[int, int], None]) -> int:
    """An edit of (address, length) that goes on behind a hole, and is refused for it at the end (ENOMEM)."""
    mm, refused = task.process.mm, None
    for low, part in batches(task, address, length):
        try:
            edit(low, part)
        except Refused as error:
            if error.errno != errno.ENOMEM:
                raise
            refused = error
    if refused is not None:
        raise refused
    if task.progress and not mm.areas.covered(address, address + mm.page_up(length)):
        raise Refused(errno.ENOMEM, "part of the range is not mapped")
    return 0


def sys_msync(task: Task, address: int, length: int, flags: int, *_: int) -> int:
    mm, how = task.process.mm, s32(flags)
    return _past_holes(task, address, length, lambda low, part: mapping.sync_memory(mm, low, part, how))


def sys_mincore(task: Task, address: int, length: int, vector: int, *_: int) -> int:
    """mincore(2), a page of answers at a time, as Linux: what comes before a hole is answered."""
    mm = task.process.mm
    for low, part in batches(task, address, length, pages=_ANSWERS):
        answers = mapping.residency(mm, low, part)
        task.cpu.copy_to_user(vector + (low - address) // mm.page_size, answers)
    return 0


def sys_brk(task: Task, address: int, *_: int) -> int:
    return mapping.set_break(task.process.mm, address)


def sys_mlock(task: Task, address: int, length: int, *_: int) -> int:
    return sys_mlock2(task, address, length, 0)


def sys_mlock2(task: Task, address: int, length: int, flags: int, *_: int) -> int:
    """Pages stay resident here once they are (there is no swap): locking is populating."""
    if flags & ~_MLOCK_ONFAULT:
        raise Refused(errno.EINVAL, "unknown flags")
    start = address & -task.process.mm.page_size
    end = address + length
    end += -end % task.process.mm.page_size
    if end < start:
        raise Refused(errno.EINVAL, "the range wraps around")
    if not task.process.mm.areas.covered(start, end):
        raise Refused(errno.ENOMEM, "part of the range is not mapped")
    if not flags & _MLOCK_ONFAULT:
        (position,) = task.progress or (start,)
        if not _fault_in(task, position, end):
            raise Refused(errno.ENOMEM, "a page cannot be had")
    return 0


def sys_munlock(task: Task, address: int, length: int, *_: int) -> int:
    start = address & -task.process.mm.page_size
    end = address + length + (-(address + length) % task.process.mm.page_size)
    if not task.process.mm.areas.covered(start, end):
        raise Refused(errno.ENOMEM, "part of the range is not mapped")
    return 0


def sys_mlockall(task: Task, flags: int, *_: int) -> int:
    """Refused as for a user without the right to lock so much."""
    if not flags or flags & ~(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) or flags == _MCL_ONFAULT:
        raise Refused(errno.EINVAL, "bad flags")
    raise Refused(errno.EPERM, "locking all memory needs a privilege")


def sys_munlockall(task: Task, *_: int) -> int:
    return 0
