"""Faults that a program answers itself (userfaultfd): who asked to hear of which, and what answers do.

An area has a `watcher` and flags that say which faults it hears of:

    USER_MISSING   there is no page: not in the area, and not in what it shows
    USER_MINOR     what it shows has the page, but the area does not show it yet (shared memory)
    USER_WP        a write to a page that was protected for this; its entry has a mark

The watcher's answer is the fault's outcome: Blocked until somebody has resolved it, or a bus error. A page is
brought as an ordinary fault brings it, with the watcher out of the way. Linux: mm/userfaultfd.c.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from aether_emu.arch.paging import Access
from aether_emu.errors import OutOfFrames, Refused
from aether_emu.mm.allocation import USER_FAULTS, USER_MINOR, USER_WP, Area, Watcher
from aether_emu.mm.fault import RESOLVED, Faults, OutOfMemory
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.protection import Protection, user_mark
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.seen import in_swap
from aether_emu.mm.tables import edits
from aether_emu.mm.user import ForcedMemory, UserMemory

_READ = int(Access.USER | Access.READ)


def watch(space: AddressSpace, start: int, end: int, flags: int, watcher: Watcher) -> bool:
    """Let `watcher` hear of the faults of `flags` in all areas of a range. Returns whether all are anonymous.

    Raises Refused, changing nothing: EINVAL where nothing is mapped, and for areas that cannot be watched;
    EPERM for those that nobody may write; EBUSY for those that somebody else watches.
    """
    areas = space.areas.overlapping(start, end)
    if not areas:
        raise Refused(errno.EINVAL, "nothing is mapped there")
    for area in areas:
        if not _watchable(area, flags):
            raise Refused(errno.EINVAL, "neither anonymous nor shared memory")
        if not area.maximum & Protection.WRITE:
            raise Refused(errno.EPERM, "nobody may write there")
        if area.watcher is not None and area.watcher is not watcher:
            raise Refused(errno.EBUSY, "somebody else watches it")
    for area in areas:
        low, high = max(area.start, start), min(area.end, end)
        if flags & USER_WP and not area.flags & USER_WP:
            protect(space, low, high, on=False)
        space.mark(area, low, high, area.flags & ~USER_FAULTS | flags, watcher)
    return all(area.backing is None for area in areas)


def _watchable(area: Area, flags: int) -> bool:
    if area.backing is None:
        return not flags & USER_MINOR
    in_memory = isinstance(area.backing, SharedMemory) or getattr(area.backing, "contents", None) is not None
    return in_memory and area.shared


def unwatch(space: AddressSpace, start: int, end: int, watcher: Watcher | None = None) -> None:
    """Nobody hears of faults in a range any more: in what `watcher` watches, or all. No page is protected."""
    for area in space.areas.overlapping(start, end):
        if area.watcher is None or watcher not in (None, area.watcher):
            continue
        low, high = max(area.start, start), min(area.end, end)
        if area.flags & USER_WP:
            protect(space, low, high, on=False)
        space.mark(area, low, high, area.flags & ~USER_FAULTS, None)


@contextmanager
def _unwatched(space: AddressSpace, area: Area) -> Iterator[None]:
    """A fault is one of a single page as everywhere else."""
    watcher, area.watcher = area.watcher, None
    no_huge, space.no_huge = space.no_huge, True
    try:
        yield
    finally:
        area.watcher, space.no_huge = watcher, no_huge


def copy(space: AddressSpace, area: Area, page: int, data: bytes) -> None:
    """Have a page of `data` at `page`, where there is none. Raises Refused(EEXIST, ENOMEM)."""
    _require_absent(space, area, page)
    memory = UserMemory(space) if area.shared or area.protection & Protection.WRITE else ForcedMemory(space)
    with _unwatched(space, area):
        outcome = Faults(space.physical).force(space, page, int(Access.USER | Access.WRITE))
        if isinstance(outcome, OutOfMemory):
            raise Refused(errno.ENOMEM, "no memory for the page")
        memory.write(page, data)


def show(space: AddressSpace, area: Area, page: int) -> None:
    """Show what is there: zeroes in a page of its own accord, a page that the object has. EEXIST, ENOMEM."""
    if space.table.find(page) is not None:
        raise Refused(errno.EEXIST, "there is a page already")
    with _unwatched(space, area):
        outcome = Faults(space.physical).force(space, page, _READ)
    if isinstance(outcome, OutOfMemory):
        raise Refused(errno.ENOMEM, "no memory for the page")
    if outcome is not RESOLVED:
        raise Refused(errno.EFAULT, "there is no such page")


def _require_absent(space: AddressSpace, area: Area, page: int) -> None:
    if space.table.find(page) is not None or in_object(area, page, space.table.format.page_shift):
        raise Refused(errno.EEXIST, "there is a page already")


def in_object(area: Area, page: int, page_shift: int) -> bool:
    """Whether the object that an area shows has the page at this address."""
    if area.backing is None:
        return False
    return bool(area.backing.resident(area.offset + (page - area.start >> page_shift), 1)[0])


def protect(space: AddressSpace, start: int, end: int, *, on: bool) -> None:
    """Take the pages of a range from who writes, with a mark, or take the mark away.

    An entry that names a slot has no room for the mark: what is in swap comes back, and stays while it is
    marked. Raises Refused(ENOMEM) where there is no memory for that.
    """
    if on and space.physical.swap is not None:
        for page in in_swap(space, start, end).pages.tolist():
            va = page << space.table.format.page_shift
            try:
                space.physical.with_room(partial(Faults(space.physical).bring, space, va))
            except OutOfFrames:
                raise Refused(errno.ENOMEM, "no memory for a page that is in swap") from None
            _mark(space, va, va + space.page_size, on=True)
    _mark(space, start, end, on=on)


def _mark(space: AddressSpace, start: int, end: int, *, on: bool) -> None:
    """The entries that are present."""
    fmt, mark = space.table.format, user_mark(space.table.format)

    def change(entry: int, _level: int) -> int:
        if not entry & fmt.present_mask:
            return entry
        return fmt.write_protect(entry) | mark if on else entry & ~mark

    gather = space.gather()
    try:
        edits.rewrite(space.table, edits.whole(space.table, gather, start, end), change, gather)
    finally:
        gather.finish_at_once()  # the caller goes by what it was told: nobody writes from now on
