"""The mmap family as system calls: arguments to `mm.mapping`, `mm.remap` and `mm.locking`.

Pages that are to be there when a call returns come in batches, after the areas are as they should be.
An address of arm64 may carry a tag in its top byte: calls on memory that is there ignore it, and those that
choose where memory is to be (mmap, brk, the target of mremap) do not (Documentation/arch/arm64).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from aether_emu.errors import Refused
from aether_emu.linux.calls.arguments import is_arm64, untagged
from aether_emu.linux.calls.batches import batches
from aether_emu.linux.calls.user import require_user, s32
from aether_emu.linux.calls.user_fault_events import REMOVALS, before_removal, settle
from aether_emu.linux.mappable import mappable
from aether_emu.linux.task.process import READ_IMPLIES_EXEC
from aether_emu.linux.task.task import Task
from aether_emu.mm import locking, mapping, remap
from aether_emu.mm.allocation import LOCK_ON_FAULT, LOCKED, LOCKS
from aether_emu.mm.fault import OutOfMemory
from aether_emu.mm.mapping import MADV_POPULATE_READ, MADV_POPULATE_WRITE, MAP_POPULATE
from aether_emu.mm.populate import populate
from aether_emu.mm.protection import READABLE, Protection

_MLOCK_ONFAULT = 1
_X86_FLAGS = mapping.MAP_32BIT | mapping.MAP_ABOVE4G  # arm64 ignores them
_FILLING = 2  # numbers that mremap has noted once it is at that
_GUARDED = 1 << 16  # pages that are guarded between two such looks: 128 tables on x86_64
_BATCH = 1024  # pages that are faulted in between two looks at whether the run is to end


def _implied(task: Task, protection: int) -> int:
    """What a protection means for the process: what it may read it may execute, if it said so."""
    if protection & Protection.READ and task.process.personality & READ_IMPLIES_EXEC:
        return protection | Protection.EXECUTE
    return protection


def sys_mmap(task: Task, address: int, length: int, protection: int, flags: int, fd: int, offset: int) -> int:
    """mmap(2). Pages that are to be there at once come in batches, after the mapping."""
    mm = task.process.mm
    if task.progress:
        start, position = task.progress
    else:
        request = mapping.Request(address, length, _implied(task, protection), flags, None, offset)
        start = position = _map(task, request, fd)
    if flags & MAP_POPULATE or mm.new_flags or flags & mapping.MAP_LOCKED:
        area = mm.areas.find(start)
        if area is not None and mapping.populates(flags, area.flags):
            _fault_in(task, position, start + mm.page_up(length), start)
    return settle(task, start) if mm.untold else start


def _map(task: Task, asked: mapping.Request, fd: int) -> int:
    mm, flags, offset = task.process.mm, asked.flags, asked.offset
    if offset & mm.page_size - 1:
        raise Refused(errno.EINVAL, "the offset is not page aligned")
    file = None
    if not flags & mapping.MAP_ANONYMOUS:
        file = mappable(task, s32(fd))
    elif offset:
        offset = 0  # anonymous memory has no offset
    if is_arm64(task) and (flags & mapping.MAP_TYPE != mapping.MAP_SHARED_VALIDATE or file is None):
        flags &= ~_X86_FLAGS
    request = mapping.Request(asked.address, asked.length, asked.protection, flags, file, offset)
    return mapping.map_memory(mm, request, populate_now=False)


def _fault_in(task: Task, position: int, end: int, *before: int, strict: bool = False) -> None:
    """Have every page of a range there, as far as its areas permit.

    Begins at `position`. When the run is to end it raises Unfinished(*before, position). With `strict` a page
    that cannot be had is refused, as mlock does: ENOMEM, and EAGAIN where there is no memory.
    """
    mm = task.process.mm
    batch = _BATCH * mm.page_size
    for area in mm.areas.overlapping(position, end):
        if area.flags & LOCK_ON_FAULT:
            continue
        if not area.protection & READABLE:
            if strict:
                raise Refused(errno.ENOMEM, "no access to the memory is permitted")
            continue
        high = min(area.end, end)
        for low in range(max(area.start, position), high, batch):
            task.checkpoint(*before, low)
            failed = populate(mm, low, min(low + batch, high), write=mapping.prefers_write(area))
            if failed is not None:
                if strict:
                    number = errno.EAGAIN if isinstance(failed, OutOfMemory) else errno.ENOMEM
                    raise Refused(number, "a page cannot be had")
                break


def sys_munmap(task: Task, address: int, length: int, *_: int) -> int:
    """munmap(2): all of a range, or nothing where part of it is sealed."""
    address, mm = untagged(task, address), task.process.mm
    if not task.progress:
        mapping.require_unsealed(mm, address, address + mm.page_up(length))
    for low, part in batches(task, address, length):
        mapping.unmap_memory(task.process.mm, low, part)
    return settle(task, 0) if task.process.mm.untold else 0


def sys_mprotect(task: Task, address: int, length: int, protection: int, *_: int) -> int:
    address, wanted = untagged(task, address), _implied(task, protection)
    grows = protection & (mapping.PROT_GROWSDOWN | mapping.PROT_GROWSUP)  # such a range begins elsewhere
    parts = [(address, length)] if grows else batches(task, address, length)
    for low, part in parts:
        mapping.protect_memory(task.process.mm, low, part, wanted)
    return 0


def stores_by_key(task: Task) -> mapping.MayStore:
    """Whether the calling thread's rights permit stores to pages of a protection key."""
    return lambda key: is_arm64(task) or not task.cpu.read("pkru") >> 2 * key & 3


def sys_pkey_mprotect(task: Task, address: int, length: int, protection: int, key: int, *_: int) -> int:
    _require_keys(task)
    wanted, number = _implied(task, protection), s32(key)
    if number == -1:
        return sys_mprotect(task, address, length, protection)
    parts = [(address, length)] if protection & mapping.PROT_GROWSDOWN else batches(task, address, length)
    for low, part in parts:
        mapping.protect_memory(task.process.mm, low, part, wanted, number)
    return 0


def sys_pkey_alloc(task: Task, flags: int, rights: int, *_: int) -> int:
    """pkey_alloc(2): the lowest key that is free, and what the calling thread may do by it."""
    _require_keys(task)
    if flags or rights & ~3:
        raise Refused(errno.EINVAL, "unknown flags or rights")
    mm, cpu = task.process.mm, task.cpu
    key = next((key for key in range(1, mapping.KEYS) if not mm.keys >> key & 1), None)
    if key is None:
        raise Refused(errno.ENOSPC, "all protection keys are in use")
    mm.keys |= 1 << key
    cpu.write("pkru", cpu.read("pkru") & ~(3 << 2 * key) | rights << 2 * key)
    return key


def sys_pkey_free(task: Task, key: int, *_: int) -> int:
    """pkey_free(2). Pages keep the key, and threads what they may do by it."""
    _require_keys(task)
    mm, number = task.process.mm, s32(key)
    if not 0 <= number < mapping.KEYS or not mm.keys >> number & 1:
        raise Refused(errno.EINVAL, f"no key {number} was allocated")
    mm.keys &= ~(1 << number)
    return 0


def _require_keys(task: Task) -> None:
    """arm64 had no such calls before Linux 6.12."""
    if is_arm64(task):
        raise Refused(errno.ENOSYS, "no protection keys")


def sys_mremap(task: Task, address: int, old: int, new: int, flags: int, target: int, *_: int) -> int:
    """mremap(2). What a locked area grows by is brought in afterwards."""
    mm, left = task.process.mm, task.progress
    if len(left) == _FILLING:
        start, position = left
    else:
        request = remap.Remap(untagged(task, address), old, new, flags, target)
        start = remap.remap_memory(mm, request, task.checkpoint, left)
        position = start + mm.page_up(old)
    if mm.account.locked and mm.page_up(new) > mm.page_up(old):
        area = mm.areas.find(position)
        if area is not None and area.flags & LOCKS == LOCKED:
            _fault_in(task, position, start + mm.page_up(new), start)
    return settle(task, start) if mm.untold else start


def sys_remap_file_pages(
    task: Task, address: int, length: int, protection: int, page: int, flags: int, *_: int
) -> int:
    """remap_file_pages(2): the part is mapped anew, and its pages are brought."""
    mm, start = task.process.mm, address & -task.process.mm.page_size
    if task.progress:
        (position,) = task.progress
    else:
        populates = remap.remap_pages(mm, address, length, protection, page, flags)
        mm.untold.clear()  # nobody is told of what it replaces
        if not populates:
            return 0
        position = start
    _fault_in(task, position, start + (length & -mm.page_size))
    return 0


def sys_madvise(task: Task, address: int, length: int, advice: int, *_: int) -> int:
    mm, advice, address = task.process.mm, s32(advice), untagged(task, address)
    batch, whole = _BATCH * mm.page_size, mm.page_up(length)
    wraps = address + whole >= 1 << 64 or (length and not whole)
    if mm.watched and advice in REMOVALS and not (wraps or address & mm.page_size - 1):
        return _remove_told(task, address, address + whole, advice)
    if advice not in (MADV_POPULATE_READ, MADV_POPULATE_WRITE) or wraps:
        pages = _GUARDED if advice == mapping.MADV_GUARD_INSTALL else None
        by_key = stores_by_key(task)
        return _past_holes(
            task,
            address,
            length,
            lambda low, part: mapping.advise_memory(mm, low, part, advice, by_key),
            pages,
        )
    (first,) = task.progress or (0,)
    for done in range(first, max(whole, 1), batch):  # an empty range is checked too
        task.checkpoint(done)
        mapping.advise_memory(mm, address + done, min(batch, whole - done), advice)
    return 0


def _remove_told(task: Task, address: int, end: int, advice: int) -> int:
    """madvise for what drops pages, where some areas tell of that before: one area after the other."""
    mm, refused = task.process.mm, None
    low, told = task.progress or (address, 0)
    while low < end:
        task.checkpoint(low, told)
        area = mm.areas.following(low)
        high = end if area is None or area.start >= end else min(area.end, end)
        if area is not None and area.start < end and not told:
            before_removal(task, area, max(area.start, low), high, advice)
        try:
            mapping.advise_memory(mm, low, high - low, advice, stores_by_key(task))
        except Refused as error:
            if error.errno != errno.ENOMEM:
                raise
            refused = error
        low, told = high, 0
    if refused is not None or not mm.areas.covered(address, end):
        raise Refused(errno.ENOMEM, "part of the range is not mapped")
    return 0


def _past_holes(
    task: Task, address: int, length: int, edit: Callable[[int, int], None], pages: int | None = None
) -> int:
    """An edit of (address, length) that goes on behind a hole, and is refused for it at the end (ENOMEM).

    In parts, which have at most so many pages if a number is given.
    """
    mm, refused = task.process.mm, None
    for low, part in batches(task, address, length, pages):
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
    mm, how, address = task.process.mm, s32(flags), untagged(task, address)
    return _past_holes(task, address, length, lambda low, part: mapping.sync_memory(mm, low, part, how))


def sys_mincore(task: Task, address: int, length: int, vector: int, *_: int) -> int:
    """mincore(2), an area after the other: what comes before a hole is told."""
    mm = task.process.mm
    address = untagged(task, address)
    (done,) = task.progress or (0,)
    while True:
        task.checkpoint(done)
        passed = done * mm.page_size
        resident = mapping.residency(mm, address + passed, max(0, length - passed))
        if not resident:
            return 0
        require_user(vector + done, len(resident), task.process.abi.user_end)
        task.cpu.copy_to_user(vector + done, resident)
        done += len(resident)


def sys_brk(task: Task, address: int, *_: int) -> int:
    """brk(2). With everything locked for the future, the new part of the heap is brought in."""
    mm = task.process.mm
    if task.progress:
        end, position = task.progress
    else:
        executable = bool(task.process.personality & READ_IMPLIES_EXEC)
        position = mm.page_up(mm.heap_end)
        end = mapping.set_break(mm, address, executable=executable)
    if mm.new_flags & LOCKS == LOCKED:
        _fault_in(task, position, mm.page_up(end), end)
    return settle(task, end) if mm.untold else end


def sys_mlock(task: Task, address: int, length: int, *_: int) -> int:
    return sys_mlock2(task, address, length, 0)


def sys_mlock2(task: Task, address: int, length: int, flags: int, *_: int) -> int:
    """mlock2(2): the areas are marked, then their pages are brought."""
    flags = s32(flags)
    if flags & ~_MLOCK_ONFAULT:
        raise Refused(errno.EINVAL, "unknown flags")
    wanted = LOCKS if flags else LOCKED
    if task.progress:
        position, end = task.progress[1], task.progress[0]
    else:
        position, end = locking.lock_memory(task.process.mm, untagged(task, address), length, wanted)
    _fault_in(task, position, end, end, strict=True)
    return 0


def sys_mseal(task: Task, address: int, length: int, flags: int, *_: int) -> int:
    mapping.seal_memory(task.process.mm, untagged(task, address), length, flags)
    return 0


def sys_munlock(task: Task, address: int, length: int, *_: int) -> int:
    locking.unlock_memory(task.process.mm, untagged(task, address), length)
    return 0


def sys_mlockall(task: Task, flags: int, *_: int) -> int:
    flags, mm = s32(flags), task.process.mm
    if not task.progress:
        locking.lock_all(mm, flags)
    if flags & locking.MCL_CURRENT:
        (position,) = task.progress or (0,)
        _fault_in(task, position, mm.limits.user_end)
    return 0


def sys_munlockall(task: Task, *_: int) -> int:
    locking.unlock_all(task.process.mm)
    return 0
