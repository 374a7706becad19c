"""System V shared memory: shmget(2), shmat(2), shmdt(2), shmctl(2), in the order of Linux 6.6 (ipc/shm.c)."""

from __future__ import annotations

import errno
import struct

from aether_emu.errors import Refused
from aether_emu.linux.calls.sysv import permissions
from aether_emu.linux.calls.user import read_struct, s32, write_struct
from aether_emu.linux.credentials import IPC_LOCK
from aether_emu.linux.ipc.segments import LARGEST, LOCKED, MOST_SEGMENTS, Segment, Segments
from aether_emu.linux.task.resource_limits import RLIMIT_MEMLOCK
from aether_emu.linux.task.task import Task
from aether_emu.mm import hugetlb, mapping
from aether_emu.mm.allocation import Area
from aether_emu.mm.huge_pools import Pools
from aether_emu.mm.objects.hugetlb import HugePool
from aether_emu.mm.protection import Protection

_HUGE, _HUGE_SHIFT, _HUGE_MASK = 0o4000, 26, 63
_READ_ONLY, _ROUNDED, _REPLACES, _EXECUTABLE = 0o10000, 0o20000, 0o40000, 0o100000
_REMOVE, _SET, _STAT, _INFO, _LOCK, _UNLOCK, _STAT_AT, _USAGE, _STAT_ANY = 0, 1, 2, 3, 11, 12, 13, 14, 15
_READABLE = 0o444


class _Attached:
    """A segment as `mapping.Mappable`."""

    readable = True

    def __init__(self, segment: Segment, *, writable: bool) -> None:
        self.huge_size, self.in_memory = segment.huge_size, not segment.huge_size
        self._segment, self.writable = segment, writable

    def may_store(self, protection: int) -> bool:
        return self.writable

    def open_backing(self, *, shared_writable: bool) -> Segment:
        return self._segment


def _segments(task: Task) -> Segments:
    return task.process.kernel.with_system_v().segments


def sys_shmget(task: Task, key: int, size: int, flags: int, *_: int) -> int:
    key, flags, segments = s32(key), s32(flags), _segments(task)

    def make() -> Segment:
        pool = _pool(task, size, flags) if flags & _HUGE else None
        return segments.make(key, size, flags, task.process.pid, pool)

    def check(found: Segment) -> None:
        if size > found.size:
            raise Refused(errno.EINVAL, f"the segment has {found.size} bytes")

    return segments.get(key, flags, make, check).identifier


def _pool(task: Task, size: int, flags: int) -> HugePool:
    """The pool of a new segment of huge pages. EINVAL; EPERM for who may lock too little memory.

    Linux: CAP_IPC_LOCK, the group of vm.hugetlb_shm_group, or RLIMIT_MEMLOCK admits the segment.
    """
    physical = task.process.kernel.physical
    pool = hugetlb.chosen_pool(physical, flags >> _HUGE_SHIFT & _HUGE_MASK)
    assert isinstance(physical.pools, Pools), "it has one of them"
    who, limit = task.credentials, task.process.limits[RLIMIT_MEMLOCK][0]
    if not (
        who.has(IPC_LOCK)
        or who.in_group(physical.pools.segment_group)
        or -(-size // pool.size) * pool.size <= limit
    ):
        raise Refused(errno.EPERM, "huge pages are locked memory, and RLIMIT_MEMLOCK admits less")
    return pool


def sys_shmat(task: Task, number: int, address: int, flags: int, *_: int) -> int:
    flags, mm = s32(flags), task.process.mm
    if s32(number) < 0:
        raise Refused(errno.EINVAL, "a negative number")
    if address & mm.page_size - 1:
        if not flags & _ROUNDED:
            raise Refused(errno.EINVAL, "the address is not page aligned")
        address &= -mm.page_size
        if not address and flags & _REPLACES:
            raise Refused(errno.EINVAL, "nowhere to replace anything")
    how = mapping.MAP_SHARED
    if address:
        how |= mapping.MAP_FIXED
    elif flags & _REPLACES:
        raise Refused(errno.EINVAL, "nowhere to replace anything")
    protection, wanted = Protection.READ, 0o444
    if not flags & _READ_ONLY:
        protection, wanted = protection | Protection.WRITE, 0o666
    if flags & _EXECUTABLE:
        protection, wanted = protection | Protection.EXECUTE, wanted | 0o111
    segment = _segments(task).numbered(s32(number))
    segment.require(wanted)
    if address and not flags & _REPLACES:
        end = address + (segment.pages << mm.table.format.page_shift)
        if end > 1 << 64 or any(mm.areas.overlapping(address, end)):
            raise Refused(errno.EINVAL, "something is mapped there")
    file = _Attached(segment, writable=not flags & _READ_ONLY)
    where = mapping.map_memory(mm, mapping.Request(address, segment.size, int(protection), how, file, 0))
    segment.user = task.process.pid
    return where


def sys_shmdt(task: Task, address: int, *_: int) -> int:
    """shmdt(2): all areas that are left of what shmat gave this address."""
    mm = task.process.mm
    if address & mm.page_size - 1:
        raise Refused(errno.EINVAL, "the address is not page aligned")
    shift = mm.table.format.page_shift
    first = next((a for a in mm.areas if _shows(a) and a.start - (a.offset << shift) == address), None)
    if first is None or not isinstance(first.backing, Segment):
        raise Refused(errno.EINVAL, "no segment was attached there")
    segment = first.backing
    segment.user = task.process.pid
    for area in list(mm.areas.overlapping(address, address + (segment.pages << shift))):
        if area.backing is segment and area.start - (area.offset << shift) == address:
            mm.unmap(area.start, area.end)
    return 0


def _shows(area: Area) -> bool:
    return isinstance(area.backing, Segment)


def sys_shmctl(task: Task, number: int, command: int, buffer: int, *_: int) -> int:
    command, number, segments = s32(command), s32(number), _segments(task)
    if command < 0 or number < 0:
        raise Refused(errno.EINVAL, "a negative number")
    if command == _INFO:
        write_struct(task.cpu, buffer, "5Q32x", LARGEST, 1, MOST_SEGMENTS, MOST_SEGMENTS, LARGEST)
        return segments.highest
    if command == _USAGE:
        there = segments.all()
        pages, present = sum(each.pages for each in there), sum(each.present() for each in there)
        swapped = sum(each.in_swap() for each in there)
        write_struct(task.cpu, buffer, "i4x5Q", len(there), pages, present, swapped, 0, 0)
        return segments.highest
    if command in (_STAT, _STAT_AT, _STAT_ANY):
        return _tell(task, segments, number, command, buffer)
    if command not in (_REMOVE, _SET, _LOCK, _UNLOCK):
        raise Refused(errno.EINVAL, f"no command {command}")
    wanted = read_struct(task.cpu, buffer, "iIIIII") if command == _SET else ()
    segment = segments.numbered(number)
    if command in (_LOCK, _UNLOCK):
        _require_right_to_lock(task, segment, locks=command == _LOCK)
        segment.mode = segment.mode | LOCKED if command == _LOCK else segment.mode & ~LOCKED
        return 0
    segment.require_owner()
    if command == _REMOVE:
        segment.destroy()
        return 0
    _key, uid, gid, _cuid, _cgid, mode = wanted
    segment.change(uid, gid, mode, segments.now())
    return 0


def _require_right_to_lock(task: Task, segment: Segment, *, locks: bool) -> None:
    """EPERM unless the segment is the caller's, who may lock memory."""
    who = task.credentials
    if who.has(IPC_LOCK):
        return
    if who.euid not in (segment.uid, segment.creator_uid):
        raise Refused(errno.EPERM, "the segment is another user's")
    if locks and not task.process.limits[RLIMIT_MEMLOCK][0]:
        raise Refused(errno.EPERM, "RLIMIT_MEMLOCK admits nothing")


def _tell(task: Task, segments: Segments, number: int, command: int, buffer: int) -> int:
    """struct shmid64_ds of a segment, by its number or its index."""
    segment = segments.numbered(number) if command == _STAT else segments.at(number)
    if command != _STAT_ANY:
        segment.require(_READABLE)
    times = (segment.attach_time, segment.detach_time, segment.change_time)
    rest = struct.pack("<Q3qiiQQQ", segment.size, *times, segment.maker, segment.user, segment.attached, 0, 0)
    task.cpu.copy_to_user(buffer, permissions(segment) + rest)
    return 0 if command == _STAT else segment.identifier
