"""mremap(2) on an address space, with Linux's refusals and order of checks.

What takes long is done in parts: to unmap what the mapping shrinks by or what stands at the target, to move
the entries, and to unmap the old place. Between two parts the call can be left, and taken up again later.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.mm.allocation import LOCKED, LOCKS, TOLD_REMAP, USER_FAULTS, USER_WP, Area
from aether_emu.mm.cuts import cuts
from aether_emu.mm.mapping import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_PRIVATE,
    MAP_SHARED,
    Request,
    choose_address,
    map_memory,
    require_unsealed,
    unmap_memory,
)
from aether_emu.mm.markers import watch_writes
from aether_emu.mm.objects.protocol import Backing
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.records import dataclass

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


class Stage(IntEnum):
    """What a call that is left in between was about to go on with."""

    SHRINK = 0  # to unmap the end that is given up
    CLEAR = 1  # to unmap what stands at the target
    MOVE = 2  # to move the entries
    LEAVE = 3  # to unmap the old place


def remap_pages(
    space: AddressSpace, address: int, length: int, protection: int, page: int, flags: int
) -> bool:
    """remap_file_pages(2): show other pages of the same object, from `page` on, in a part of shared memory.

    As in Linux since 4.0 the part is mapped anew. Returns whether its pages are to be there at once. Raises
    Refused(EINVAL), and what mmap refuses.
    """
    shift = space.page_size.bit_length() - 1
    start, size = address & -space.page_size, length & -space.page_size
    if protection or not 0 < start + size & _MASK > start or page + (size >> shift) > _MASK:
        raise Refused(errno.EINVAL, "a protection, no length, or a range that wraps around")
    area, end = space.areas.find(start), start + size
    if area is None or not area.shared or area.backing is None or area.backing.whole:
        raise Refused(errno.EINVAL, "no shared memory")
    if not area.maximum & Protection.WRITE:
        raise Refused(errno.EINVAL, "nobody may ever write there")  # Linux: no VM_SHARED
    alike = [
        each.backing is area.backing and each.protection == area.protection and each.has_flags_of(area)
        for each in space.areas.overlapping(start, end)
    ]
    if not all(alike) or not space.areas.covered(start, end):
        raise Refused(errno.EINVAL, "more than one mapping, or a hole")
    how = MAP_SHARED | MAP_FIXED | (MAP_LOCKED if area.flags & LOCKED else 0)
    wanted = Request(start, size, int(area.protection), how, _Shown(area), page << shift & _MASK)
    map_memory(space, wanted, populate_now=False)
    return not flags & MAP_NONBLOCK


class _Shown:
    """What an area shows already, as mmap takes it (`mm.mapping.Mappable`)."""

    readable, in_memory = True, False  # it has its place

    def __init__(self, area: Area) -> None:
        assert area.backing is not None, "it was looked at"
        self._backing, self.huge_size = area.backing, area.backing.huge_size
        self.writable = bool(area.maximum & Protection.WRITE)

    def may_store(self, protection: int) -> bool:
        """Whether stores may ever be permitted."""
        return self.writable

    def open_backing(self, *, shared_writable: bool) -> Backing:
        """The object itself."""
        return self._backing


Look = Callable[[int, int, int], None]
"""Told (stage, target, position) before each part. Whoever raises there takes the call up again with them."""


def remap_memory(
    space: AddressSpace, request: Remap, look: Look | None = None, left: tuple[int, ...] = ()
) -> int:
    """mremap(2). Returns the address of the mapping.

    `left` is what `look` was told when the call was left, to take it up again.
    """
    call = _Call(space, request, look or (lambda *_: None))
    stage, target, position = left or (Stage.SHRINK, 0, 0)
    if not left:
        call.check()
    return call.go_on(Stage(stage), target, position)


class _Call:
    """One call. `old` and `new` are bytes in whole pages."""

    def __init__(self, space: AddressSpace, request: Remap, look: Look) -> None:
        self.space, self.request, self.look = space, request, look
        self.address = request.address
        self.old, self.new = space.page_up(request.old_length), space.page_up(request.new_length)
        area = space.areas.find(self.address)
        self.huge = area.backing.huge_size if area is not None and area.backing is not None else 0
        if self.huge:
            self.old, self.new = (each + self.huge - 1 & -self.huge & _MASK for each in (self.old, self.new))
        self.fixed = bool(request.flags & MREMAP_FIXED)
        self.keep = bool(request.flags & MREMAP_DONTUNMAP)
        self.moves = self.fixed or self.keep

    def check(self) -> None:
        """Refuse what Linux refuses before it changes anything, in the order of 6.17 and later."""
        space, flags, address = self.space, self.request.flags, self.address
        if flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP):
            raise Refused(errno.EINVAL, "unknown flags")
        if self.fixed and not flags & MREMAP_MAYMOVE:
            raise Refused(errno.EINVAL, "MREMAP_FIXED needs MREMAP_MAYMOVE")
        if self.keep and (not flags & MREMAP_MAYMOVE or self.request.old_length != self.request.new_length):
            raise Refused(errno.EINVAL, "MREMAP_DONTUNMAP moves without resizing")
        if address & space.page_size - 1:
            raise Refused(errno.EINVAL, "the address is not page aligned")
        if self.new == 0 or self.new > space.limits.user_end:
            raise Refused(errno.EINVAL, "the new length is zero, or longer than the address space")
        if self.moves:
            _check_target(space, self.request, self.old, self.new)
        area = space.areas.find(address)
        if area is None:
            raise Refused(errno.EFAULT, "nothing is mapped there")
        if self.huge:
            self._check_huge()
        require_unsealed(space, address, address + 1)
        if self.fixed and self.request.new_address < space.limits.user_base:
            raise Refused(errno.EPERM, f"below the lowest address {space.limits.user_base:#x}")
        if self.moves:
            space.areas.require_room(_PLACED_ROOM)
        if self.new < self.old and self.old > space.limits.user_end - address:
            raise Refused(errno.EINVAL, "the range leaves the user half")
        if self.fixed and min(self.old, self.new) <= area.end - address:  # else it is refused for that
            require_unsealed(space, self.request.new_address, self.request.new_address + self.new)

    def _check_huge(self) -> None:
        """Huge pages of a pool: moved and shortened in whole ones, and never lengthened."""
        if self.keep or self.new > self.old or not self.old:
            raise Refused(errno.EINVAL, "huge pages of a pool are not lengthened, and not kept")
        if (self.address | (self.request.new_address if self.fixed else 0)) & self.huge - 1:
            raise Refused(errno.EINVAL, "the address is not that of a huge page")

    def go_on(self, stage: Stage, target: int, position: int) -> int:
        """Carry the call out from a stage on; `position` is where that stage had come to, 0 at its start."""
        address = self.address
        if self.new < self.old:
            if stage == Stage.SHRINK:
                self._unmap(stage, 0, address + self.new, address + self.old, position)
                position = 0
            self.old = self.new
        if stage <= Stage.CLEAR:
            if self.new == self.old and not self.moves:
                return address
            if stage == Stage.SHRINK and not self._prepare():
                return address
            if self.fixed:
                target = self.request.new_address
                self._unmap(Stage.CLEAR, target, target, target + self.new, position)
            target, position = self._place(target), 0
        if stage <= Stage.MOVE:
            self._move(target, position)
            position = 0
        self._leave(target, position)
        return target

    def _unmap(self, stage: Stage, target: int, start: int, end: int, position: int) -> None:
        for low, high in self._parts(stage, target, start, end, position):
            unmap_memory(self.space, low, high - low)

    def _parts(
        self, stage: Stage, target: int, start: int, end: int, position: int
    ) -> Iterator[tuple[int, int]]:
        """The parts of a range from `position` (0: from its start) on."""
        low = position or start
        for high in (*cuts(self.space, low, end), end) if low < end else ():
            self.look(stage, target, low)
            yield low, high
            low = high

    def _source(self) -> Area:
        area = self.space.areas.find(self.address)
        if area is None:
            raise Refused(errno.EFAULT, "the target replaced the source")
        return area

    def _grows_by(self) -> int:
        return self.new if self.keep else self.new - self.old

    def _prepare(self) -> bool:
        """The checks before anything moves. False when it need not, because the area could grow in place."""
        space, area = self.space, self._source()
        _check_resize(space, area, self.address, self.old, self.new)
        _check_whole(area, self.request, self.old, self.new)
        if self.keep and area.charged:
            space.account.require_promise(self.new)
        if self._grows_by():
            space.account.require(self._grows_by(), data=area.is_data)
        if not self.moves and self.old and _grow_in_place(space, area, self.address, self.old, self.new):
            return False
        if not self.request.flags & MREMAP_MAYMOVE:
            raise Refused(errno.ENOMEM, "no room to grow in place")
        space.areas.require_room(_MOVE_ROOM)
        return True

    def _place(self, target: int) -> int:
        """Have an area at the target that shows what the source shows. Returns where that is."""
        space, source = self.space, self._source()
        if not self.fixed:
            hint = self.request.new_address if self.moves else 0
            wanted = Request(hint, self.new, 0, MAP_PRIVATE | MAP_ANONYMOUS, None, 0)
            target = choose_address(space, wanted, self.new, self.huge)
        shift, end = space.table.format.page_shift, self.address + self.old
        own_pages = space.has_own_pages(self.address, end)
        moved = source.piece(self.address, end, shift)
        moved.moved = moved.moved + (self.address - target >> shift) if own_pages else 0
        moved.start, moved.end = target, target + self.new
        if moved.watcher is not None and not moved.watcher.follows:
            moved.flags &= ~USER_FAULTS
            moved.set_watcher(None)
        moved.name = moved.backing.name if moved.backing is not None else ""  # not the heap, not the stack
        space.insert(moved, self._grows_by(), own_pages=own_pages)
        return target

    def _move(self, target: int, position: int) -> None:
        """Bring the entries to the target.

        Raises Refused(ENOMEM), with nothing moved, when there is no room for the target's page tables.
        """
        space, address = self.space, self.address
        there = space.areas.find(target)
        forget = self._source().flags & USER_WP and there is not None and there.watcher is None
        for low, high in self._parts(Stage.MOVE, target, address, address + self.old, position):
            try:
                move = partial(space.move_entries, low, high, target + low - address)
                space.physical.with_room(move)
            except OutOfFrames:
                space.move_entries(target, target + low - address, address)  # whose tables are still there
                space.unmap(target, target + self.new)
                raise Refused(errno.ENOMEM, "no memory for page tables") from None
            if forget:
                to = target + low - address
                watch_writes(space.table, None, to, to + high - low, on=False)

    def _leave(self, target: int, position: int) -> None:
        """Take the old place away, if it is not to be kept."""
        space, end = self.space, self.address + self.old
        there = space.areas.find(target)
        if there is not None and there.watcher is not None and not position:
            there.watcher.tell(TOLD_REMAP, self.address, target, self.old)
        if not self.keep:
            self._unmap(Stage.LEAVE, target, self.address, end, position)
        else:  # what is left is not locked any more: the lock has moved with the pages
            source = self._source()
            space.mark(source, self.address, end, source.flags & ~LOCKS)


def _check_target(space: AddressSpace, request: Remap, old: int, new: int) -> None:
    """The checks of an address to move to; without MREMAP_FIXED it is a hint, but checked as well."""
    address, target = request.address, request.new_address
    if target & space.page_size - 1:
        raise Refused(errno.EINVAL, "the new address is not page aligned")
    if target > space.limits.user_end - new:
        raise Refused(errno.EINVAL, "the target leaves the user half")
    if address + old & _MASK > target and target + new > address:
        raise Refused(errno.EINVAL, "source and target overlap")


def _check_resize(space: AddressSpace, area: Area, address: int, old: int, new: int) -> None:
    if old == 0 and not area.shared:
        raise Refused(errno.EINVAL, "only a shared mapping can be duplicated")
    if old > area.end - address:
        raise Refused(errno.EFAULT, "the range crosses areas")
    space.account.require_lockable(new - old, area.flags)
    if new > old and area.charged:
        space.account.require_promise(new - old)


def _check_whole(area: Area, request: Remap, old: int, new: int) -> None:
    """What is refused of an area that stays whole: to lengthen it, or to leave any of it behind.

    A device's may be cut and moved, but not lengthened (Linux: VM_DONTEXPAND).
    """
    if area.backing is None or not (area.backing.whole or area.backing.in_device):
        return
    if request.flags & MREMAP_DONTUNMAP:
        raise Refused(errno.EINVAL, f"{area.name} is in one place")
    if new > old:
        raise Refused(errno.EFAULT, f"{area.name} does not grow")
    if not area.backing.whole:
        return
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
