"""Faults that a program answers itself (userfaultfd): who asked to hear of which, and what answers do.

An area has a `watcher` and flags that say which faults it hears of:

    USER_MISSING   there is no page: not in the area, and not in what it shows
    USER_MINOR     what it shows has the page, but the area does not show it yet (shared memory)
    USER_WP        a write to a page that was protected for this; its entry has a mark, or is a marker

The watcher's answer is the fault's outcome: Blocked until somebody has resolved it, or a bus error. A page is
brought as an ordinary fault brings it, with the watcher out of the way. Linux: mm/userfaultfd.c.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from aether_emu.arch.paging import Access
from aether_emu.errors import OutOfFrames, Refused
from aether_emu.machine.memory.aperture import BackingFailed, BeyondEnd
from aether_emu.mm import hugetlb, markers
from aether_emu.mm.allocation import LOCKED, USER_FAULTS, USER_MINOR, USER_WP, Area, Watcher
from aether_emu.mm.fault import RESOLVED, Faults, OutOfMemory
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.hugepage import large_slot
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables import edits
from aether_emu.mm.tables.tree import Found
from aether_emu.mm.user import ForcedMemory, UserMemory

_READ = int(Access.USER | Access.READ)
_ANON, _ZERO = int(Kind.ANON), int(Kind.ZERO)


def watch(space: AddressSpace, start: int, end: int, flags: int, watcher: Watcher) -> None:
    """Let `watcher` hear of the faults of `flags` in all areas of a range.

    Raises Refused, changing nothing: EINVAL where nothing is mapped, for areas that cannot be watched, and
    for ranges that cut a huge page of a pool; EPERM for areas that nobody may write; EBUSY for those that
    somebody else watches.
    """
    areas = space.areas.overlapping(start, end)
    if not areas:
        raise Refused(errno.EINVAL, "nothing is mapped there")
    require_uncut(areas[0], start)
    for area in areas:
        if not watchable(area, flags, watcher):
            raise Refused(errno.EINVAL, "neither anonymous nor shared memory")
        if not area.maximum & Protection.WRITE:
            raise Refused(errno.EPERM, "nobody may write there")
        if end <= area.end:
            require_uncut(area, end)
        if area.watcher is not None and area.watcher is not watcher:
            raise Refused(errno.EBUSY, "somebody else watches it")
    space.watched = True
    for area in areas:
        low, high = max(area.start, start), min(area.end, end)
        if area.flags & USER_WP and not flags & USER_WP:
            protect(space, low, high, on=False)
        space.mark(area, low, high, area.flags & ~USER_FAULTS | flags, watcher)


def watchable(area: Area, flags: int, watcher: Watcher) -> bool:
    """Whether an area can be watched for such faults. Whoever is told of no stores may watch any memory."""
    if watcher.asynchronous and flags == USER_WP:
        return True
    if area.backing is None:
        return not flags & USER_MINOR
    return fillable(area)


def require_uncut(area: Area, *at: int) -> None:
    """Raise Refused(EINVAL) if a range with such ends cuts a huge page of an area of a pool's."""
    if area.huge_size and any(each & area.huge_size - 1 for each in at):
        raise Refused(errno.EINVAL, f"huge pages of {area.huge_size} bytes are answered whole")


def fillable(area: Area) -> bool:
    """Whether a program may answer faults of an area with pages.

    Private anonymous memory, shared memory, or huge pages of a pool.
    """
    return area.backing is None or bool(area.huge_size) or _in_memory(area)


def _in_memory(area: Area) -> bool:
    """Whether it shows shared memory, or a file that is nowhere but in memory."""
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
    """A fault is answered as everywhere else, but for one page: the program hears of all others itself."""
    watcher, area.watcher = area.watcher, None
    no_huge, space.no_huge = space.no_huge, True
    around, space.fault_around = space.fault_around, 1
    try:
        yield
    finally:
        area.watcher, space.no_huge, space.fault_around = watcher, no_huge, around


def copy(space: AddressSpace, area: Area, page: int, read: Callable[[], bytes]) -> None:
    """Have a page of what `read` gives at `page`, where there is none. Raises Refused(EEXIST, ENOMEM)."""
    if area.huge_size:
        _copy_huge(space, area, page, read)
        return
    data = read()
    if in_object(area, page, space.table.format.page_shift):
        raise Refused(errno.EEXIST, "there is a page already")
    memory = UserMemory(space) if area.shared or area.protection & Protection.WRITE else ForcedMemory(space)
    with _unwatched(space, area), _without_marker(space, page):
        outcome = Faults(space.physical).force(space, page, int(Access.USER | Access.WRITE))
        if isinstance(outcome, OutOfMemory):
            raise Refused(errno.ENOMEM, "no memory for the page")
        memory.write(page, data)


def _copy_huge(space: AddressSpace, area: Area, start: int, read: Callable[[], bytes]) -> None:
    """`copy` of a huge page. Behind the end of the memory it is EFAULT, an empty pool as on Linux EEXIST too.

    But ENOMEM for pages larger than those of level 2, of which its test sees no table.
    """

    def require_absent() -> None:
        found = space.table.find(start)
        if found is not None and not markers.is_marker(space.table.format, found.entry):
            raise Refused(errno.EEXIST, "there is a page already")
        if area.shared and hugetlb.has_page(area, start):
            raise Refused(errno.EEXIST, "the memory has the page")

    require_absent()
    data = read()
    require_absent()
    try:
        with _without_marker(space, start):
            physical = space.physical
            physical.with_room(lambda: hugetlb.put(physical, space, area, start, data))
    except BackingFailed:
        empty = errno.EEXIST if area.huge_size == space.table.format.levels[1].size else errno.ENOMEM
        raise Refused(empty, "the pool is empty") from None
    except BeyondEnd:
        raise Refused(errno.EFAULT, "behind the end of the memory") from None
    except OutOfFrames:
        raise Refused(errno.ENOMEM, "no memory for page tables") from None


def zero(space: AddressSpace, area: Area, page: int) -> None:
    """Have a page of zeros at `page`, where nothing was. EEXIST, ENOMEM."""
    if space.table.find(page) is not None or in_object(area, page, space.table.format.page_shift):
        raise Refused(errno.EEXIST, "there is a page already")
    show(space, area, page)


def show(space: AddressSpace, area: Area, page: int) -> None:
    """Show what is there: zeroes in a page of its own accord, a page that the object has. EEXIST, ENOMEM.

    A huge page of shared memory can be written at once.
    """
    writes = area.huge_size and area.shared and area.protection & Protection.WRITE
    with _unwatched(space, area), _without_marker(space, page):
        outcome = Faults(space.physical).force(
            space, page, int(Access.USER | Access.WRITE) if writes else _READ
        )
        if isinstance(outcome, OutOfMemory):
            raise Refused(errno.ENOMEM, "no memory for the page")
        if outcome is not RESOLVED:
            raise Refused(errno.EFAULT, "there is no such page")


@contextmanager
def _without_marker(space: AddressSpace, page: int) -> Iterator[None]:
    """A page comes where there is none; what was said of the absent one is over. EEXIST if there is one."""
    found = space.table.find(page)
    if found is not None and not markers.is_marker(space.table.format, found.entry):
        raise Refused(errno.EEXIST, "there is a page already")
    with nullcontext() if found is None else markers.away(space.table, found):
        yield


def poison(space: AddressSpace, area: Area, page: int) -> None:
    """Every access to the page, which is not there, fails from now on. Raises Refused(EEXIST, ENOMEM)."""
    if space.table.find(page) is not None:
        raise Refused(errno.EEXIST, "there is a page, or something is said of it")
    try:
        level = markers.level_of(space.table.format, area.huge_size)
        slot = space.physical.with_room(lambda: large_slot(space, page, level))
    except OutOfFrames:
        raise Refused(errno.ENOMEM, "no memory for page tables") from None
    space.table.write(page, level, slot, markers.poisoned(space.table.format))


def in_object(area: Area, page: int, page_shift: int) -> bool:
    """Whether the object that an area shows has the page at this address."""
    if area.backing is None:
        return False
    return bool(area.backing.resident(area.offset + (page - area.start >> page_shift), 1)[0])


def protect(space: AddressSpace, start: int, end: int, *, on: bool) -> None:
    """Take the pages of a range from who writes, with a mark, or take the mark away.

    With `on` absent pages get a marker where the area's watcher wants that, or an object may have them.
    """
    gather = space.gather()
    try:
        markers.watch_writes(space.table, gather, start, end, on=on)
    finally:
        gather.finish_at_once()  # the caller goes by what it was told: nobody writes from now on
    for area in space.areas.overlapping(start, end) if on else ():
        if area.keeps_markers or (area.watcher is not None and area.watcher.unpopulated):
            low, high = max(area.start, start), min(area.end, end)
            if area.huge_size:
                hugetlb.watch_absent(space, area, low, high)
            else:
                markers.watch_absent(space.table, low, high)


# ---- pages that move from one place to another (UFFDIO_MOVE)


def require_movable(space: AddressSpace, to: int, source: int, length: int, watcher: Watcher) -> None:
    """Raise what UFFDIO_MOVE refuses before it moves anything: ENOENT, EINVAL."""
    there, here = space.areas.find(to), space.areas.find(source)
    if there is None or here is None:
        raise Refused(errno.ENOENT, "nothing is mapped there")
    if here.shared or there.shared or source + length > here.end or to + length > there.end:
        raise Refused(errno.EINVAL, "shared memory, or more than one area")
    if here.protection != there.protection or here.key != there.key:
        raise Refused(errno.EINVAL, "the areas permit different accesses")
    if (here.flags ^ there.flags) & LOCKED or not here.protection & Protection.WRITE:
        raise Refused(errno.EINVAL, "one of the areas is locked, or nobody may write there")
    if there.watcher is not watcher or here.backing is not None or there.backing is not None:
        raise Refused(errno.EINVAL, "the target is not watched, or not anonymous")


def move(space: AddressSpace, to: int, source: int, *, holes: bool) -> None:
    """Move one page from `source` to `to`, where nothing is. `holes`: to find none is no mistake.

    Raises Refused: EEXIST, ENOENT, EBUSY for a page that others share, EFAULT for what is no page, ENOMEM.
    """
    table, physical = space.table, space.physical
    words, size = physical.ram.words, table.format.page_size
    if table.find(to) is not None:
        raise Refused(errno.EEXIST, "there is a page already")
    if table.find(source) is None:
        if holes:
            return
        raise Refused(errno.ENOENT, "there is no page to move")
    gather = space.gather()
    try:
        edits.whole(table, gather, source, source + size)
        slot = table.leaf_slot(to)
        found = table.find(source)
        assert found is not None, "a page was cut out"
        entry = _moved_entry(space, found, to)
        words[found.slot] = 0
        words[slot] = entry
        gather.page(source)
    except OutOfFrames:
        raise Refused(errno.ENOMEM, "no memory for page tables") from None
    finally:
        gather.finish_at_once()


def _moved_entry(space: AddressSpace, found: Found, to: int) -> int:
    """What stands at `to` once the page of an entry has moved there; its frame belongs there already."""
    physical, fmt = space.physical, space.table.format
    area, swap = space.areas.find(to), physical.swap
    assert area is not None, "it was found movable"
    if not found.entry & fmt.present_mask:
        if swap is None or not swap.entries.holds(found.entry):
            raise Refused(errno.EFAULT, "something is said of the page, and it is not there")
        if not found.entry & swap.entries.exclusive:
            raise Refused(errno.EBUSY, "others share the page in swap")
        return found.entry & ~(swap.entries.told | swap.entries.clean)
    frames = physical.frames
    frame = frames.number(fmt.leaf_address(found.entry, 1))
    if frames.kind[frame] == _ZERO:
        return frames.address(frame) | area.bits.read
    alone = frames.refs[frame] == frames.maps[frame] == 1
    if frames.kind[frame] != _ANON or not alone or physical.is_merged(frame):
        raise Refused(errno.EBUSY, "others share the page")
    if physical.swap is not None:
        physical.swap.frame_goes(frame)
    frames.owner[frame], frames.index[frame] = area.owner, (to >> frames.page_shift) + area.moved
    return frames.address(frame) | area.bits.write
