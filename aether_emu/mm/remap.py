"""mremap(2) on an address space, with Linux's refusals and order of checks."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.mm.allocation import LOCKS, Area
from aether_emu.mm.mapping import (
    MAP_ANONYMOUS,
    MAP_PRIVATE,
    Request,
    check_commit,
    choose_address,
    unmap_memory,
)
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace

MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
_MOVE_ROOM = 4  # areas that a move may add meanwhile: the new one, and cuts at both ends of source and target
_PLACED_ROOM = 6  # and where what stands at the target is unmapped before
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Remap:
    """The arguments of one mremap call."""

    address: int
    old_length: int
    new_length: int
    flags: int
    new_address: int


def remap_memory(space: AddressSpace, request: Remap) -> int:
    """mremap(2). Returns the address of the mapping."""
    flags, address = request.flags, request.address
    if flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP):
        raise Refused(errno.EINVAL, "unknown flags")
    if flags & MREMAP_FIXED and not flags & MREMAP_MAYMOVE:
        raise Refused(errno.EINVAL, "MREMAP_FIXED needs MREMAP_MAYMOVE")
    old, new = space.page_up(request.old_length), space.page_up(request.new_length)
    keep = bool(flags & MREMAP_DONTUNMAP)
    if keep and (not flags & MREMAP_MAYMOVE or request.old_length != request.new_length):
        raise Refused(errno.EINVAL, "MREMAP_DONTUNMAP moves without resizing")
    if address & space.page_size - 1:
        raise Refused(errno.EINVAL, "the address is not page aligned")
    if new == 0:
        raise Refused(errno.EINVAL, "the new length is zero")
    area = space.areas.find(address)
    if area is None:
        raise Refused(errno.EFAULT, "nothing is mapped there")
    moves = bool(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))
    if moves:
        _check_target(space, request, old, new)
        space.areas.require_room(_PLACED_ROOM)
    if new < old:
        unmap_memory(space, address + new, old - new)
        old = new
        area = space.areas.find(address)
        assert area is not None, "the part that stays is never empty"
    if new == old and not moves:
        return address
    _check_resize(space, area, address, old, new)
    _check_whole(area, request, old, new)
    grows_by = new if keep else new - old
    if grows_by:
        space.require(grows_by, data=area.is_data)
    if not moves and old and _grow_in_place(space, area, address, old, new):
        return address
    if not flags & MREMAP_MAYMOVE:
        raise Refused(errno.ENOMEM, "no room to grow in place")
    space.areas.require_room(_MOVE_ROOM)
    hint = request.new_address if moves else 0
    if flags & MREMAP_FIXED:
        target = hint
        space.unmap(target, target + new)
        if space.areas.find(address) is None:  # MREMAP_FIXED onto itself: the unmap took the source away
            raise Refused(errno.EFAULT, "the target replaced the source")
    else:
        wanted = Request(hint, new, 0, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)
        target = choose_address(space, wanted, new)
    _move(space, area.piece(address, address + old, space.table.format.page_shift), target, new, grows_by)
    if old and not keep:
        space.unmap(address, address + old)
    elif keep:  # what is left is not locked any more: the lock has moved with the pages
        left = space.areas.find(address)
        assert left is not None, "the source stays"
        space.mark(left, address, address + old, left.flags & ~LOCKS)
    return target


def _check_target(space: AddressSpace, request: Remap, old: int, new: int) -> None:
    """The checks of an address to move to; without MREMAP_FIXED it is a hint, but checked as well."""
    address, target = request.address, request.new_address
    if target & space.page_size - 1:
        raise Refused(errno.EINVAL, "the new address is not page aligned")
    if new > space.limits.user_end or target > space.limits.user_end - new:
        raise Refused(errno.EINVAL, "the target leaves the user half")
    if address + old & _MASK > target and target + new > address:
        raise Refused(errno.EINVAL, "source and target overlap")
    if request.flags & MREMAP_FIXED and target < space.limits.user_base:
        raise Refused(errno.EPERM, f"below the lowest address {space.limits.user_base:#x}")


def _check_resize(space: AddressSpace, area: Area, address: int, old: int, new: int) -> None:
    if old == 0 and not area.shared:
        raise Refused(errno.EINVAL, "only a shared mapping can be duplicated")
    if old > area.end - address:
        raise Refused(errno.EFAULT, "the range crosses areas")
    space.require_lockable(new - old, area.flags)
    if new > old and not area.shared and area.protection & Protection.WRITE and not area.no_reserve:
        check_commit(space, new - old)


def _check_whole(area: Area, request: Remap, old: int, new: int) -> None:
    """What is refused of an area that stays whole: to lengthen it, or to leave any of it behind."""
    if area.backing is None or not area.backing.whole:
        return
    if request.flags & MREMAP_DONTUNMAP:
        raise Refused(errno.EINVAL, f"{area.name} is in one place")
    if new > old:
        raise Refused(errno.EFAULT, f"{area.name} does not grow")
    if (request.address, old) != (area.start, area.length):
        area.require_cuttable()


def _grow_in_place(space: AddressSpace, area: Area, address: int, old: int, new: int) -> bool:
    if old != area.end - address:
        return False
    end = address + new
    following = space.areas.following(area.end)
    if end > space.limits.user_end or (following is not None and following.start < end):
        return False
    space.insert(area.piece_after(end, space.table.format.page_shift), own_pages=True)
    return True


def _move(space: AddressSpace, source: Area, target: int, new: int, grows_by: int) -> None:
    """Show what `source` (a copy of the area, cut to the old range) shows at `target`, `new` bytes long.

    Raises Refused(ENOMEM), with nothing moved, when there is no room for the target's page tables.
    """
    shift = space.table.format.page_shift
    own_pages = space.has_own_pages(source.start, source.end)
    moved = source.piece(source.start, source.end, shift)
    moved.start, moved.end = target, target + new
    moved.name = moved.backing.name if moved.backing is not None else ""  # not the heap, not the stack
    moved.moved = source.moved + (source.start - target >> shift) if own_pages else 0
    space.insert(moved, grows_by, own_pages=own_pages)
    try:
        space.move_entries(source.start, source.end, target)
    except OutOfFrames:
        space.unmap(target, target + new)
        raise Refused(errno.ENOMEM, "no memory for page tables") from None
