"""mlock and its kin on an address space: areas whose pages stay in memory, and how many may (mlock(2)).

Nothing leaves memory here, so a lock brings pages in, refuses what would take them away (`mm.mapping`), and
counts for RLIMIT_MEMLOCK. Whoever calls brings the pages, after the areas are marked.
"""

from __future__ import annotations

import errno

from aether_emu.errors import Refused
from aether_emu.mm.allocation import LOCKED, LOCKS, Area
from aether_emu.mm.space import AddressSpace

MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
_WORD = 1 << 64


def lock_memory(space: AddressSpace, address: int, length: int, flags: int) -> tuple[int, int]:
    """mlock(2), mlock2(2) with the flags of the areas. Returns the range whose pages are to be there.

    On a hole, what came before it is locked. Raises Refused(EPERM, EINVAL, ENOMEM).
    """
    _require_right(space)
    start, length = _range(space, address, length)
    limit = space.limits.locked
    if limit is not None:
        more = length
        if (
            space.account.locked + more > limit & -space.page_size
        ):  # what is locked already is not counted twice
            more -= _locked(space, start, min(start + length, _WORD))
        if space.account.locked + more > limit & -space.page_size:
            raise Refused(errno.ENOMEM, f"locked memory is limited to {limit} bytes")
    _mark(space, start, length, flags)
    return start, start + length


def unlock_memory(space: AddressSpace, address: int, length: int) -> None:
    """munlock(2). Raises Refused(EINVAL, ENOMEM)."""
    _mark(space, *_range(space, address, length), 0)


def lock_all(space: AddressSpace, flags: int) -> None:
    """mlockall(2). With MCL_CURRENT the pages of all areas are to be there.

    Raises Refused(EINVAL, EPERM, ENOMEM).
    """
    if flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags in (0, MCL_ONFAULT):
        raise Refused(errno.EINVAL, f"bad flags {flags:#x}")
    _require_right(space)
    limit = space.limits.locked
    if limit is not None and flags & MCL_CURRENT and space.account.reserved > limit & -space.page_size:
        raise Refused(errno.ENOMEM, f"locked memory is limited to {limit} bytes")
    wanted = LOCKS if flags & MCL_ONFAULT else LOCKED
    space.new_flags = wanted if flags & MCL_FUTURE else 0
    if flags & MCL_CURRENT:
        _mark_all(space, wanted)
    elif not flags & MCL_FUTURE:
        _mark_all(space, 0)


def unlock_all(space: AddressSpace) -> None:
    """munlockall(2): of what is mapped, and of what will be."""
    space.new_flags = 0
    _mark_all(space, 0)


def _require_right(space: AddressSpace) -> None:
    if space.limits.locked == 0:
        raise Refused(errno.EPERM, "nothing may be locked")


def _range(space: AddressSpace, address: int, length: int) -> tuple[int, int]:
    """(start, length in whole pages) as Linux rounds them: a length that exceeds 64 bits begins anew at 0."""
    offset = address & space.page_size - 1
    return address - offset, space.page_up(length + offset)


def _locked(space: AddressSpace, start: int, end: int) -> int:
    """Bytes of `[start, end)` that are locked."""
    areas = (area for area in space.areas.overlapping(start, end) if area.flags & LOCKED)
    return sum(min(area.end, end) - max(area.start, start) for area in areas)


def _mark(space: AddressSpace, start: int, length: int, flags: int) -> None:
    """Let each area of a range be locked as `flags` say."""
    end = start + length
    if end >= _WORD:
        raise Refused(errno.EINVAL, "the range wraps around")
    while start < end:
        area = space.areas.find(start)
        if area is None:
            raise Refused(errno.ENOMEM, f"nothing is mapped at {start:#x}")
        upto = min(area.end, end)
        _mark_part(space, area, start, upto, flags)
        start = upto


def _mark_all(space: AddressSpace, flags: int) -> None:
    """Let every area be locked as `flags` say."""
    area = space.areas.following(0)
    while area is not None:
        end = area.end
        _mark_part(space, area, area.start, end, flags)
        area = space.areas.following(end)


def _mark_part(space: AddressSpace, area: Area, start: int, end: int, flags: int) -> None:
    """The kernel's own pages and a device's are never locked; nobody is refused for it (Linux: VM_SPECIAL).

    Nor are huge pages of a pool, which never leave memory anyway.
    """
    backing = area.backing
    if backing is None or not (backing.whole or backing.in_device or backing.huge_size):
        space.mark(area, start, end, area.flags & ~LOCKS | flags)
