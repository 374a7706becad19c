"""The mmap family on an address space, with Linux's rules, refusals and order of checks.

Flag values are Linux's (asm-generic, the same on x86_64 and arm64). Each function raises
`Refused(errno)` exactly where Linux returns it. Sources: mmap(2), mremap(2), madvise(2), msync(2),
brk(2), mprotect(2), mincore(2). mremap has a module of its own (`mm.remap`), and so has mlock (`mm.locking`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.mm import ageing, guards, hugetlb, rmap
from aether_emu.mm.allocation import (
    LOCK_ON_FAULT,
    LOCKED,
    LOCKS,
    SEALED,
    TOLD_UNMAP,
    Area,
    AreaFlags,
    Watcher,
)
from aether_emu.mm.collapse import collapse_advised
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import AccessError, BusError, OutOfMemory
from aether_emu.mm.markers import is_marker
from aether_emu.mm.merging import unmerge_advised
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.objects.hugetlb import HugeMemory
from aether_emu.mm.objects.protocol import Backing
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.overcommit import NEVER
from aether_emu.mm.populate import populate
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.advice import cool, page_in, page_out
from aether_emu.records import dataclass

MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE, MAP_TYPE = 1, 2, 3, 15
MAP_FIXED, MAP_ANONYMOUS, MAP_32BIT = 0x10, 0x20, 0x40
MAP_GROWSDOWN, MAP_LOCKED, MAP_NORESERVE, MAP_POPULATE = 0x100, 0x2000, 0x4000, 0x8000
MAP_NONBLOCK, MAP_STACK, MAP_HUGETLB = 0x10000, 0x20000, 0x40000
MAP_FIXED_NOREPLACE, MAP_ABOVE4G = 0x100000, 0x80
_MAP_HUGE_SHIFT, _MAP_HUGE_MASK = 26, 63  # where MAP_HUGETLB has the binary logarithm of a page's size
# What MAP_SHARED_VALIDATE lets through: the flags that are older than it (LEGACY_MAP_MASK).
_MAP_VALIDATED = (
    MAP_SHARED_VALIDATE | MAP_FIXED | MAP_ANONYMOUS | MAP_32BIT | MAP_ABOVE4G | MAP_GROWSDOWN | MAP_LOCKED
    | MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_STACK | MAP_HUGETLB | 31 << _MAP_HUGE_SHIFT
    | 0x800 | 0x1000  # MAP_DENYWRITE, MAP_EXECUTABLE: without a meaning
)  # fmt: skip
_LOW = (0x4000_0000, 0x8000_0000)  # where MAP_32BIT searches
_4G = 1 << 32
_LARGEST_FILE = (1 << 63) - 1
_ZERO_DEVICE = "/dev/zero"
_WORD = (1 << 64) - 1
_ERRORS = (1 << 64) - 4096  # greater values are negative errnos (MAX_ERRNO)

KEYS = 16
"""Protection keys that there are, 0 included (Intel SDM 3A 4.6.2)."""

PROT_GROWSDOWN, PROT_GROWSUP, PROT_SEM = 0x0100_0000, 0x0200_0000, 8
_PROT = 7

MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4

MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED, MADV_FREE = 0, 1, 2, 3, 4, 8
MADV_REMOVE, MADV_DONTFORK, MADV_DOFORK, MADV_MERGEABLE, MADV_UNMERGEABLE = 9, 10, 11, 12, 13
MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DODUMP = 14, 15, 16, 17
MADV_WIPEONFORK, MADV_KEEPONFORK, MADV_COLD, MADV_PAGEOUT = 18, 19, 20, 21
MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_DONTNEED_LOCKED, MADV_COLLAPSE = 22, 23, 24, 25
MADV_GUARD_INSTALL, MADV_GUARD_REMOVE = 102, 103
# Advice that an area keeps: the flags that come, and those that go.
_KEPT = {
    MADV_NORMAL: (0, AreaFlags.RANDOM | AreaFlags.SEQUENTIAL),
    MADV_RANDOM: (AreaFlags.RANDOM, AreaFlags.SEQUENTIAL),
    MADV_SEQUENTIAL: (AreaFlags.SEQUENTIAL, AreaFlags.RANDOM),
    MADV_DONTFORK: (AreaFlags.NO_FORK, 0),
    MADV_DOFORK: (0, AreaFlags.NO_FORK),
    MADV_MERGEABLE: (AreaFlags.MERGEABLE, 0),
    MADV_UNMERGEABLE: (0, AreaFlags.MERGEABLE),
    MADV_HUGEPAGE: (AreaFlags.HUGE, AreaFlags.NO_HUGE),
    MADV_NOHUGEPAGE: (AreaFlags.NO_HUGE, AreaFlags.HUGE),
    MADV_DONTDUMP: (AreaFlags.NO_DUMP, 0),
    MADV_DODUMP: (0, AreaFlags.NO_DUMP),
    MADV_WIPEONFORK: (AreaFlags.WIPE_ON_FORK, 0),
    MADV_KEEPONFORK: (0, AreaFlags.WIPE_ON_FORK),
}
_MOST_RESIDENCY = 1 << 12  # pages of which one step of mincore tells, a page of answers as in Linux
_TAKES_PAGES = (MADV_DONTNEED, MADV_FREE, MADV_REMOVE, MADV_COLD, MADV_PAGEOUT)  # what is locked stays
# What changes what a program reads: refused for sealed memory that it may not write.
_CHANGES = (
    MADV_DONTNEED, MADV_FREE, MADV_REMOVE, MADV_DONTNEED_LOCKED, MADV_DONTFORK, MADV_WIPEONFORK,
    MADV_GUARD_INSTALL,
)  # fmt: skip
# What Linux has for memory that it could give up or merge, or split: none of it for a pool's pages.
_NOT_OF_HUGE = (
    MADV_FREE, MADV_COLD, MADV_PAGEOUT, MADV_COLLAPSE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE,
)  # fmt: skip
# What Linux has for pages that are memory of its own, and what would undo that a device's area is not dumped.
_NOT_OF_DEVICES = (
    MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_COLD, MADV_PAGEOUT, MADV_DOFORK, MADV_DODUMP,
)  # fmt: skip
_POPULATES = (MADV_POPULATE_READ, MADV_POPULATE_WRITE)
_ADVICE = {*_KEPT, *_TAKES_PAGES, *_POPULATES, MADV_WILLNEED, MADV_DONTNEED_LOCKED, MADV_COLLAPSE}
_ADVICE |= {MADV_GUARD_INSTALL, MADV_GUARD_REMOVE}
FLUSH_LATER = frozenset(
    {*_KEPT, MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_COLD} - {MADV_UNMERGEABLE}
)
"""Advice whose flush may be one with that of others (`mm.joint`), but for pages of a pool."""
IN_PARTS = FLUSH_LATER | {MADV_POPULATE_READ, MADV_POPULATE_WRITE}
"""Advice that does the same to a range at once and to its parts one by one, and again to what has it."""


MayStore = Callable[[int], bool]
"""Whether rights permit stores to pages of a protection key."""


class Mappable(Protocol):
    """An open file as mmap needs it. `open_backing` may refuse (ENODEV, EACCES of the host).

    It answers None for /dev/zero: such a mapping is anonymous. `may_store` says whether a shared mapping that
    is made now may ever be written, and refuses (EPERM) what a seal forbids to make with this protection.
    """

    readable: bool
    writable: bool
    huge_size: int  # bytes of its huge pages, if it has nothing else: 0 of other files
    in_memory: bool  # whether it is shared memory that may get huge pages (`mm.shared_huge`)

    def may_store(self, protection: int) -> bool: ...

    def open_backing(self, *, shared_writable: bool) -> Backing | None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of one mmap call; `file` is None for anonymous memory."""

    address: int
    length: int
    protection: int
    flags: int
    file: Mappable | None
    offset: int  # bytes


def map_memory(space: AddressSpace, request: Request, *, populate_now: bool = True) -> int:
    """mmap(2). Returns the address.

    Without `populate_now` the caller brings the pages that are to be there at once (MAP_POPULATE, or locked).
    """
    flags, length = request.flags, request.length
    if request.offset & space.page_size - 1:
        raise Refused(errno.EINVAL, "the offset is not page aligned")
    if length == 0:
        raise Refused(errno.EINVAL, "the length is zero")
    if flags & MAP_HUGETLB:
        request = _of_huge_pages(space, request)
    huge = request.file.huge_size if request.file is not None else 0
    length = length + huge - 1 & -huge & _WORD if huge else space.page_up(length)
    if huge and request.offset & huge - 1:
        raise Refused(errno.EINVAL, "the offset is not at the beginning of a huge page")
    if length == 0 or length > space.limits.user_end:
        raise Refused(errno.ENOMEM, "longer than the address space")
    address = choose_address(space, request, length, huge)
    protection = Protection(request.protection & _PROT)
    area_flags = _first_flags(space, flags, length)
    shared, maximum = _check_kind(request, length)
    _check_exec_gain(space, protection, protection)
    never = space.physical.overcommit.mode == NEVER  # then all is promised, whatever is asked
    no_reserve = bool(flags & MAP_NORESERVE) and (bool(huge) or not never)
    if not shared and not huge and not no_reserve and protection & Protection.WRITE:
        space.account.require_promise(length - (_promised(space, address, length) if never else 0))
    backing: Backing | None = None
    if request.file is not None:
        backing = request.file.open_backing(shared_writable=shared and bool(maximum & Protection.WRITE))
    offset = request.offset >> space.table.format.page_shift if backing is not None else 0
    if backing is not None:
        backing.require_window(offset, length >> space.table.format.page_shift, shared=shared)
        if backing.in_device:
            if protection & Protection.EXECUTE:
                raise Refused(errno.EPERM, f"nobody executes {backing.name}")
            maximum &= ~Protection.EXECUTE
    name = _ZERO_DEVICE if request.file is not None and backing is None else ""
    if backing is None and shared:
        space.account.require_promise(length)
        backing = SharedMemory(space.physical, length >> space.table.format.page_shift)
        name = name if not maximum & Protection.WRITE else ""
    area = space.new_area(
        address,
        address + length,
        protection,
        shared=shared,
        backing=backing,
        offset=offset,
        maximum=maximum,
        grows_down=bool(flags & MAP_GROWSDOWN),
        no_reserve=no_reserve,
        flags=area_flags & ~LOCKS if huge else area_flags,
        name=name or (backing.name if backing is not None else ""),
    )
    require_unsealed(space, address, address + length)
    watchers = watchers_of(space, address, address + length)
    if huge:
        hugetlb.place(space, area)
    else:
        space.replace(area)
    tell_unmapped(watchers, address, address + length)
    if populate_now and populates(flags, area_flags) and protection:
        populate(space, address, address + length, write=prefers_write(area))
    return address


def populates(flags: int, area_flags: int) -> bool:
    """Whether mmap with `flags` brings the pages of an area with `area_flags` at once."""
    if area_flags & LOCK_ON_FAULT:
        return False
    return bool(area_flags & LOCKED) or flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE


def _of_huge_pages(space: AddressSpace, request: Request) -> Request:
    """A request with MAP_HUGETLB: for anonymous memory of a pool, or a file that has huge pages anyway."""
    if request.file is not None:
        if not request.file.huge_size:
            raise Refused(errno.EINVAL, "the file has no huge pages")
        return request
    pool = hugetlb.chosen_pool(space.physical, request.flags >> _MAP_HUGE_SHIFT & _MAP_HUGE_MASK)
    if request.flags & MAP_TYPE not in (MAP_SHARED, MAP_PRIVATE):
        raise Refused(errno.EINVAL, f"no mapping type {request.flags & MAP_TYPE}")
    file = hugetlb.AnonymousHuge(space.physical, pool, request.length)
    return Request(request.address, request.length, request.protection, request.flags, file, 0)


def _first_flags(space: AddressSpace, flags: int, length: int) -> int:
    """What a new area begins with: locked, if the call or an earlier mlockall says so; no huge stacks."""
    area_flags = space.new_flags
    if flags & MAP_LOCKED:
        if space.limits.locked == 0:
            raise Refused(errno.EPERM, "nothing may be locked")
        area_flags |= LOCKED
    space.account.require_lockable(length, area_flags)
    if flags & MAP_STACK and space.physical.huge is not None:
        area_flags |= AreaFlags.NO_HUGE  # Linux since 6.7
    return int(area_flags)


def prefers_write(area: Area) -> bool:
    """Whether populating an area faults for writing: a writable private one gets its own copies at once."""
    return bool(area.protection & Protection.WRITE) and not area.shared


def choose_address(space: AddressSpace, request: Request, length: int, huge: int = 0) -> int:
    """Where a mapping goes; at a multiple of `huge`, if its pages have that many bytes."""
    flags, address = request.flags, request.address
    limits = space.limits
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        if address > _ERRORS:  # Linux takes what it was asked for as the answer of its own search
            raise Refused((1 << 64) - address, "the address is an error number")
        if address > limits.user_end - length:
            raise Refused(errno.ENOMEM, "beyond the user half")
        if address & (huge or space.page_size) - 1:
            raise Refused(errno.EINVAL, "a fixed address is not page aligned")
        if address < limits.user_base:
            raise Refused(errno.EPERM, f"below the lowest address {limits.user_base:#x}")
        if flags & MAP_FIXED_NOREPLACE and space.areas.overlapping(address, address + length):
            raise Refused(errno.EEXIST, "something is mapped there")
        return address
    lowest = max(
        limits.user_base, space.page_size
    )  # the page at 0 is given only to those who ask with MAP_FIXED
    hint = address + huge - 1 & -huge if huge else address & -space.page_size
    asks_for_more = hint > limits.window
    if hint:
        hint = max(hint, lowest)
        following = space.areas.following(hint)
        within = hint <= (_LOW[1] if flags & MAP_32BIT else limits.user_end) - length
        if (
            within
            and asks_for_more == (hint + length > limits.window)
            and (following is None or hint + length <= space.areas.lowest(following))
        ):
            return hint
    if huge:  # a gap that has an aligned one in it
        low, high = _LOW if flags & MAP_32BIT else (lowest, space.mmap_base)
        found = space.areas.gap_below(length + huge - space.page_size, low, high)
        found = None if found is None else found + huge - 1 & -huge
    elif flags & MAP_32BIT:
        found = space.areas.gap_above(length, *_LOW)
    else:
        lowest = max(lowest, _4G) if flags & MAP_ABOVE4G else lowest
        more = limits.user_end - limits.window if asks_for_more else 0
        found = _aligned_gap(space, request, length, lowest, space.mmap_base + more)
        if found is None:  # Linux then searches upwards from the bottom
            found = space.areas.gap_above(length, lowest, limits.window + more)
    if found is None:
        raise Refused(errno.ENOMEM, "no free range is long enough")
    return found


def _aligned_gap(space: AddressSpace, request: Request, length: int, lowest: int, ceiling: int) -> int | None:
    """The highest free range below `ceiling`. Anonymous memory of whole huge pages begins where one may.

    As in Linux since 6.7, where nobody asked for an address; only where programs get huge pages.
    """
    kind = request.flags & MAP_TYPE
    if kind != MAP_PRIVATE if request.file is None else request.file.in_memory:
        found = _aligned_as_object(space, request, length, lowest, ceiling)
        if found is not None:
            return found
    huge = space.physical.huge
    if huge is not None and request.file is None and not request.address and not length % huge.size:
        found = space.areas.gap_below(length + huge.size, lowest, ceiling)
        if found is not None:
            return found + huge.size & -huge.size
    return space.areas.gap_below(length, lowest, ceiling)


def _aligned_as_object(
    space: AddressSpace, request: Request, length: int, lowest: int, ceiling: int
) -> int | None:
    """The highest free range where huge pages of shared memory lie in the address space as in the object.

    As in Linux (`shmem_get_unmapped_area`), where shared memory gets some, and the range is long enough.
    """
    huge = space.physical.shared_huge
    if huge is None or not huge.on or request.address or length < huge.size:
        return None
    offset = request.offset & huge.size - 1
    if offset and offset + length < 2 * huge.size:
        return None
    found = space.areas.gap_below(length + huge.size - space.page_size, lowest, ceiling)
    return None if found is None else found + (offset - found & huge.size - 1)


def _check_kind(request: Request, length: int) -> tuple[bool, Protection]:
    """(shared, the most protection mprotect may give later)."""
    kind, flags, file = request.flags & MAP_TYPE, request.flags, request.file
    everything = Protection.READ | Protection.WRITE | Protection.EXECUTE
    if file is None:
        if kind not in (MAP_SHARED, MAP_PRIVATE):
            raise Refused(errno.EINVAL, f"no mapping type {kind}")
        if kind == MAP_SHARED and flags & MAP_GROWSDOWN:
            raise Refused(errno.EINVAL, "shared memory does not grow")
        return kind == MAP_SHARED, everything
    if length + request.offset > _LARGEST_FILE:
        raise Refused(errno.EOVERFLOW, "the mapping would reach behind the largest offset of a file")
    if kind not in (MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE):
        raise Refused(errno.EINVAL, f"no mapping type {kind}")
    if kind == MAP_SHARED_VALIDATE and flags & ~_MAP_VALIDATED:
        raise Refused(errno.EOPNOTSUPP, "a flag is not supported for this file")
    shared = kind != MAP_PRIVATE
    if shared and request.protection & Protection.WRITE and not file.writable:
        raise Refused(errno.EACCES, "the file is not open for writing")
    if not file.readable:
        raise Refused(errno.EACCES, "the file is not open for reading")
    if flags & MAP_GROWSDOWN:
        raise Refused(errno.EINVAL, "files do not grow down")
    if shared and not file.may_store(request.protection):
        return True, everything & ~Protection.WRITE
    return shared, everything


def _check_exec_gain(space: AddressSpace, before: Protection, after: Protection) -> None:
    """Refuse (EACCES) what may be executed and is written too, or was not executed before (PR_SET_MDWE)."""
    if (
        space.exec_gain
        and after & Protection.EXECUTE
        and (after & Protection.WRITE or not before & Protection.EXECUTE)
    ):
        raise Refused(errno.EACCES, "no memory becomes executable, as the program has asked")


def _promised(space: AddressSpace, start: int, length: int) -> int:
    """Bytes of charged areas in a range that a new one replaces."""
    end, areas = start + length, space.areas.overlapping(start, start + length)
    return sum(min(area.end, end) - max(area.start, start) for area in areas if area.charged)


def unmap_memory(space: AddressSpace, address: int, length: int) -> None:
    """munmap(2)."""
    end = space.limits.user_end
    if address & space.page_size - 1 or address > end or length > end - address:
        raise Refused(errno.EINVAL, "the range is not page aligned or leaves the user half")
    length = space.page_up(length)
    if length == 0:
        raise Refused(errno.EINVAL, "the length is zero")
    require_unsealed(space, address, address + length)
    watchers = watchers_of(space, address, address + length)
    space.unmap(address, address + length)
    tell_unmapped(watchers, address, address + length)


def watchers_of(space: AddressSpace, start: int, end: int) -> list[Watcher]:
    """Who answers faults in a range: each once."""
    if not space.watched:
        return []
    areas = space.areas.overlapping(start, end)
    return list(dict.fromkeys(area.watcher for area in areas if area.watcher is not None))


def tell_unmapped(watchers: list[Watcher], start: int, end: int) -> None:
    """What they watched in a range is gone, by a call of the program."""
    for each in watchers:
        each.tell(TOLD_UNMAP, start, end)


def require_unsealed(space: AddressSpace, start: int, end: int) -> None:
    """Raise Refused(EPERM) if an area that meets `[start, end)` is sealed (mseal)."""
    for area in space.areas.overlapping(start, end):
        if area.flags & SEALED:
            raise Refused(errno.EPERM, f"the area at {area.start:#x} is sealed")


def seal_memory(space: AddressSpace, address: int, length: int, flags: int) -> None:
    """mseal(2): what is mapped there stays mapped, as it is, until the process ends. There is no way back."""
    if flags:
        raise Refused(errno.EINVAL, f"flags {flags:#x}")
    if address & space.page_size - 1:
        raise Refused(errno.EINVAL, "the address is not page aligned")
    rounded = space.page_up(length)
    if (length and not rounded) or address + rounded >= 1 << 64:
        raise Refused(errno.EINVAL, "the range wraps around")
    end = address + rounded
    if not space.areas.covered(address, end):
        raise Refused(errno.ENOMEM, "part of the range is not mapped")
    for area in space.areas.overlapping(address, end):
        space.mark(area, max(area.start, address), min(area.end, end), area.flags | SEALED)


def protect_memory(
    space: AddressSpace, address: int, length: int, protection: int, key: int | None = None
) -> None:
    """mprotect(2), pkey_mprotect(2). On a hole or a forbidden permission, what came before it stays changed.

    EINVAL for a key that is not in use.
    """
    grows = protection & (PROT_GROWSDOWN | PROT_GROWSUP)
    protection &= ~grows
    if grows == PROT_GROWSDOWN | PROT_GROWSUP:
        raise Refused(errno.EINVAL, "grows both ways")
    if address & space.page_size - 1:
        raise Refused(errno.EINVAL, "the address is not page aligned")
    if length == 0:
        return
    end = address + space.page_up(length)
    if space.page_up(length) == 0 or end >= 1 << 64:
        raise Refused(errno.ENOMEM, "the range wraps around")
    if protection & ~(_PROT | PROT_SEM):
        raise Refused(errno.EINVAL, f"unknown protection bits {protection:#x}")
    wanted = Protection(protection & _PROT)
    if key is not None and not (0 <= key < KEYS and space.keys >> key & 1):
        raise Refused(errno.EINVAL, f"no key {key} was allocated")
    first = space.areas.following(address)
    if first is None or (first.start >= end and grows):
        raise Refused(errno.ENOMEM, "nothing is mapped there")
    if grows == PROT_GROWSDOWN:
        if not first.grows_down:
            raise Refused(errno.EINVAL, "the area does not grow down")
        address = first.start
    elif grows:
        raise Refused(errno.EINVAL, "no area grows up")
    while address < end:
        area = space.areas.find(address)
        if area is None:
            raise Refused(errno.ENOMEM, f"nothing is mapped at {address:#x}")
        if wanted & ~area.maximum:
            raise Refused(errno.EACCES, "the file does not permit it")
        _check_exec_gain(space, area.protection, wanted)
        upto = min(area.end, end)
        require_unsealed(space, address, upto)
        if wanted != area.protection or key not in (None, area.key):
            _check_becomes_data(space, area, upto - address, wanted)
            promised = area.charged or area.shared or area.no_reserve
            if wanted & Protection.WRITE and not promised:
                space.account.require_promise(upto - address)
            locked = area.flags & LOCKS == LOCKED and not area.shared
            copies = locked and wanted & ~area.protection & Protection.WRITE
            space.protect(area, address, upto, wanted, key)
            if copies:  # of locked pages, which are made now and not at a fault
                populate(space, address, upto, write=True)
        address = upto


def _check_becomes_data(space: AddressSpace, area: Area, length: int, wanted: Protection) -> None:
    """The limit of data, where an area turns into data. As in Linux, one over the other limit hides it."""
    if wanted & Protection.WRITE and not area.is_data and not area.shared and not area.grows_down:
        try:
            space.account.require(length)
        except Refused:
            return
        space.account.require(length, data=True)


def advise_memory(
    space: AddressSpace, address: int, length: int, advice: int, may_store: MayStore | None = None
) -> None:
    """madvise(2). Unknown advice, and that to memory that failed (MADV_HWPOISON), gets EINVAL.

    `may_store` says whether the caller's rights permit stores by a protection key (pkeys(7)); without it all
    do.
    """
    if advice not in _ADVICE:
        raise Refused(errno.EINVAL, f"no advice {advice}")
    if address & space.page_size - 1:
        raise Refused(errno.EINVAL, "the address is not page aligned")
    rounded = space.page_up(length)
    if (length and not rounded) or address + rounded >= 1 << 64:
        raise Refused(errno.EINVAL, "the range wraps around")
    end = address + rounded
    if rounded == 0:
        return
    if advice in _POPULATES:
        _populate_advice(space, address, end, write=advice == MADV_POPULATE_WRITE)
        return
    holes = False
    while address < end:
        area = space.areas.following(address)
        if area is None or area.start >= end:
            holes = True
            break
        holes |= area.start > address
        address = max(address, area.start)
        upto = min(area.end, end)
        if area.flags & SEALED and advice in _CHANGES:
            _require_own_to_change(area, may_store)
        _advise(space, area, address, upto, advice)
        address = upto
    if holes:
        raise Refused(errno.ENOMEM, "part of the range is not mapped")


def _advise(space: AddressSpace, area: Area, start: int, end: int, advice: int) -> None:
    """Advice for a part of one area."""
    huge = area.backing.huge_size if area.backing is not None else 0
    if huge and advice in _NOT_OF_HUGE:
        raise Refused(errno.EINVAL, "the pages are those of a pool")
    if huge and advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED):
        if start & huge - 1:
            raise Refused(errno.EINVAL, "the address is not that of a huge page")
        end &= -huge
        if start == end:
            return
    if area.backing is not None and area.backing.in_device and advice in _NOT_OF_DEVICES:
        raise Refused(errno.EINVAL, "the pages are those of a device")
    if advice in _KEPT:
        _keep(space, area, start, end, advice)
    elif area.flags & LOCKED and advice in _TAKES_PAGES and not (huge and advice == MADV_DONTNEED):
        raise Refused(errno.EINVAL, "the memory is locked")
    elif advice == MADV_FREE and area.backing is not None:
        raise Refused(errno.EINVAL, "only private anonymous memory can be freed")
    elif advice == MADV_FREE:
        space.physical.with_reclaim().lazy.mark(space, start, end)
    elif advice in (MADV_DONTNEED, MADV_DONTNEED_LOCKED):
        space.discard(area, start, end)
    elif advice == MADV_COLD:
        cool(space, start, end)
    elif advice == MADV_PAGEOUT:
        page_out(space, start, end)
    elif advice == MADV_WILLNEED:
        page_in(space, area, start, end)
    elif advice == MADV_REMOVE:
        _remove(space, area, start, end)
    elif advice == MADV_GUARD_INSTALL:
        guards.install(space, area, start, end)
    elif advice == MADV_GUARD_REMOVE:
        guards.remove(space, area, start, end)
    elif advice == MADV_COLLAPSE:
        collapse_advised(space, area, start, end)


def _require_own_to_change(area: Area, may_store: MayStore | None) -> None:
    """Refuse (EPERM) what changes bytes of sealed private memory that the caller may not store to."""
    if area.backing is not None or area.shared:
        return
    by_key = not area.key or may_store is None or may_store(area.key)
    if not area.protection & Protection.WRITE or not by_key:
        raise Refused(errno.EPERM, "the memory is sealed")


def has_pool_pages(space: AddressSpace, start: int, end: int) -> bool:
    """Whether an area that meets `[start, end)` has huge pages of a pool."""
    areas = space.areas.overlapping(start, end)
    return any(area.backing is not None and area.backing.huge_size for area in areas)


def _keep(space: AddressSpace, area: Area, start: int, end: int, advice: int) -> None:
    """Advice that the area remembers, in parts of its own where only some of it was advised."""
    added, removed = _KEPT[advice]
    of_file = area.backing is not None or area.name == _ZERO_DEVICE
    if advice == MADV_WIPEONFORK and (area.shared or of_file):
        raise Refused(errno.EINVAL, "only private anonymous memory can be wiped")
    if advice == MADV_MERGEABLE and (area.shared or (area.backing is not None and area.backing.huge_size)):
        return  # Linux ignores it then
    if advice == MADV_UNMERGEABLE and area.flags & AreaFlags.MERGEABLE:
        unmerge_advised(space, start, end)
    try:
        space.mark(area, start, end, area.flags & ~int(removed) | int(added))
    except Refused as refused:
        if refused.errno != errno.ENOMEM:
            raise
        raise Refused(errno.EAGAIN, "no more areas") from refused


def _remove(space: AddressSpace, area: Area, start: int, end: int) -> None:
    """MADV_REMOVE on a piece of an area: the object itself loses the pages.

    What counts is whether the area may be made writable, not whether it is (Linux: vma_is_shared_maywrite).
    """
    backing, shift = area.backing, space.table.format.page_shift
    if backing is None or backing.whole:
        raise Refused(errno.EINVAL, "no file, and no shared memory")
    if not area.shared or not area.maximum & Protection.WRITE:
        raise Refused(errno.EACCES, "the area is not shared, or its file not open for writing")
    if backing.in_device:
        raise Refused(errno.ENODEV, "a device has no holes")
    first, count = area.offset + (start - area.start >> shift), end - start >> shift
    if isinstance(backing, HugeMemory):
        hugetlb.punch(backing, first, count)
        return
    rmap.unmap(backing, first, count)
    backing.remove(first, count)


def _populate_advice(space: AddressSpace, address: int, end: int, *, write: bool) -> None:
    while address < end:
        area = space.areas.find(address)
        if area is None:
            raise Refused(errno.ENOMEM, "part of the range is not mapped")
        if not area.protection & (Protection.WRITE if write else Protection.READ):
            raise Refused(errno.EINVAL, "the area does not permit the access")
        if area.backing is not None and area.backing.in_device:
            raise Refused(errno.EINVAL, "the pages are those of a device")
        upto = min(area.end, end)
        outcome = populate(space, address, upto, write=write)
        if isinstance(outcome, BusError | AccessError):
            raise Refused(errno.EFAULT, f"{outcome.address:#x} has no page behind it")
        if isinstance(outcome, OutOfMemory):
            raise Refused(errno.ENOMEM, "out of memory")
        address = upto


def sync_memory(space: AddressSpace, address: int, length: int, flags: int) -> None:
    """msync(2)."""
    if flags & ~(MS_ASYNC | MS_INVALIDATE | MS_SYNC) or (flags & MS_ASYNC and flags & MS_SYNC):
        raise Refused(errno.EINVAL, "bad flags")
    if address & space.page_size - 1:
        raise Refused(errno.EINVAL, "the address is not page aligned")
    rounded = space.page_up(length)  # a length that rounds to 2**64 is none at all, as in Linux
    if address + rounded >= 1 << 64:
        raise Refused(errno.ENOMEM, "the range wraps around")
    synced: list[Backing] = []
    for area in space.areas.overlapping(address, address + rounded):
        if flags & MS_INVALIDATE and area.flags & LOCKED:
            raise Refused(errno.EBUSY, "the memory is locked")
        if flags & MS_SYNC and area.shared and area.backing is not None and not area.backing.huge_size:
            _write_back(space, area, max(area.start, address), min(area.end, address + rounded))
            if area.backing not in synced:
                area.backing.sync()
                synced.append(area.backing)
    if not space.areas.covered(address, address + rounded):
        raise Refused(errno.ENOMEM, "part of the range is not mapped")


def _write_back(space: AddressSpace, area: Area, start: int, end: int) -> None:
    """The pages of `[start, end)` of a shared area go to its file: they become clean."""
    backing, files = area.backing, space.physical.files
    if files is None or not isinstance(backing, FileBacking) or backing.contents is not None:
        ageing.write_back(space, area, start, end)
        return
    shift = space.table.format.page_shift
    first = area.offset + (start - area.start >> shift)
    space.physical.counters.n[Event.WRITTEN_BACK] += files.write_back(backing, first, end - start >> shift)


def residency(space: AddressSpace, address: int, length: int) -> bytes:
    """mincore(2): a byte for each page from `address` on, 1 where it is in memory.

    It ends with the area that contains `address`, or earlier: the caller asks again for what follows. The
    object knows of its own pages, whoever brought them. In the table stand those of a private area's own.
    """
    if address & space.page_size - 1:
        raise Refused(errno.EINVAL, "the address is not page aligned")
    if address + length > space.limits.user_end:
        raise Refused(errno.ENOMEM, "the range leaves the user half")
    if not length:
        return b""
    area, shift = space.areas.find(address), space.table.format.page_shift
    if area is None:
        raise Refused(errno.ENOMEM, f"nothing is mapped at {address:#x}")
    end = min(address + space.page_up(length), area.end, address + (_MOST_RESIDENCY << shift))
    count = end - address >> shift
    resident = bytearray(count)
    pooled = area.backing is not None and area.backing.huge_size  # Linux looks at the entries alone
    if area.backing is not None and not pooled:
        resident[:] = area.backing.resident(area.offset + (address - area.start >> shift), count)
    if not area.shared or pooled:
        swap = space.physical.swap
        for found in space.table.cursor(address, end):
            marker = found.entry == space.guard or is_marker(space.table.format, found.entry)
            if marker or (swap is not None and swap.is_out(found.entry)):
                continue
            size = space.table.format.levels[found.level - 1].size
            first = max(found.start, address) - address >> shift
            last = min(found.start + size, end) - address >> shift
            resident[first:last] = b"\1" * (last - first)
    return bytes(resident)


def set_break(space: AddressSpace, address: int, *, executable: bool = False) -> int:
    """brk(2): move the end of the heap. Returns the new end, or the old one when that is refused.

    What it grows by is executable too for a program with READ_IMPLIES_EXEC.
    """
    old, most = space.heap_end, space.limits.data
    if address < space.heap_start or address > space.limits.user_end:
        return old
    if most is not None and address - space.heap_start + space.program_data > most:
        return old
    old_page, new_page = space.page_up(old), space.page_up(address)
    if new_page < old_page:
        if not space.areas.overlapping(new_page, old_page):
            return old
        try:
            unmap_memory(space, new_page, old_page - new_page)
        except (Refused, OutOfFrames):  # no frame for the table of a huge page that is cut
            return old
    elif new_page > old_page:
        following = space.areas.following(old_page)
        if following is not None and space.areas.lowest(following) < new_page + space.page_size:
            return old
        protection = Protection.READ | Protection.WRITE
        if executable:
            protection |= Protection.EXECUTE
        try:
            space.account.require_promise(new_page - old_page)
            space.account.require_lockable(new_page - old_page, space.new_flags)
            grown = space.new_area(old_page, new_page, protection, flags=space.new_flags, name="[heap]")
            space.insert(grown)
        except Refused:
            return old
    space.heap_end = address
    return address
