"""The mmap family on an address space, with Linux's rules, refusals and order of checks.

Flag values are Linux's (asm-generic, the same on x86_64 and arm64). Each function raises
`Refused(errno)` exactly where Linux returns it. Sources: mmap(2), mremap(2), madvise(2), msync(2),
brk(2), mprotect(2), mincore(2).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Protocol

from aether_emu.arch.paging import Access
from aether_emu.errors import OutOfFrames, Refused
from aether_emu.mm import ageing, rmap
from aether_emu.mm.allocation import Area
from aether_emu.mm.fault import AccessError, Blocked, BusError, Faults, OutOfMemory
from aether_emu.mm.objects.protocol import Backing, NotReady
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.damage import Damaged, TableDamaged

MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE, MAP_TYPE = 1, 2, 3, 15
MAP_FIXED, MAP_ANONYMOUS, MAP_32BIT = 0x10, 0x20, 0x40
MAP_GROWSDOWN, MAP_LOCKED, MAP_NORESERVE, MAP_POPULATE = 0x100, 0x2000, 0x4000, 0x8000
MAP_NONBLOCK, MAP_STACK, MAP_HUGETLB = 0x10000, 0x20000, 0x40000
MAP_FIXED_NOREPLACE = 0x100000
_MAP_VALIDATED = (
    MAP_TYPE | MAP_FIXED | MAP_ANONYMOUS | MAP_32BIT | MAP_GROWSDOWN | 0x800 | 0x1000 | MAP_LOCKED
    | MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_STACK | MAP_HUGETLB | MAP_FIXED_NOREPLACE
)  # fmt: skip
_LOW = (0x4000_0000, 0x8000_0000)  # where MAP_32BIT searches

PROT_GROWSDOWN, PROT_GROWSUP, PROT_SEM = 0x0100_0000, 0x0200_0000, 8
_PROT = 7

MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
_MOVE_ROOM = 4  # areas that a move may add meanwhile: the new one, and cuts at both ends of source and target
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4

MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED, MADV_FREE = 0, 1, 2, 3, 4, 8
MADV_REMOVE = 9
MADV_DONTFORK, MADV_DOFORK, MADV_COLD, MADV_PAGEOUT = 10, 11, 20, 21
MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23
_HINTS = (
    MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_DONTFORK, MADV_DOFORK, MADV_COLD, MADV_PAGEOUT,
)  # fmt: skip
_DROPS = (MADV_DONTNEED, MADV_FREE)
_ADVICE = (*_HINTS, MADV_WILLNEED, *_DROPS, MADV_REMOVE, MADV_POPULATE_READ, MADV_POPULATE_WRITE)


class Mappable(Protocol):
    """An open file as mmap needs it. `open_backing` may refuse (ENODEV, EACCES of the host)."""

    readable: bool
    writable: bool

    def open_backing(self, *, shared_writable: bool) -> Backing: ...


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of one mmap call; `file` is None for anonymous memory."""

    address: int
    length: int
    protection: int
    flags: int
    file: Mappable | None
    offset: int  # bytes


def map_memory(space: AddressSpace, request: Request) -> int:
    """mmap(2). Returns the address."""
    flags, length = request.flags, request.length
    if request.offset & space.page_size - 1:
        raise Refused(errno.EINVAL, "the offset is not page aligned")
    if length == 0:
        raise Refused(errno.EINVAL, "the length is zero")
    if flags & MAP_HUGETLB:
        raise Refused(errno.ENOMEM, "there is no pool of huge pages")
    length = space.page_up(length)
    if length == 0 or length > space.limits.user_end:
        raise Refused(errno.ENOMEM, "longer than the address space")
    if request.offset + length > 1 << 63:
        raise Refused(errno.EOVERFLOW, "the offset is too large")
    address = _choose_address(space, request, length)
    protection = Protection(request.protection & _PROT)
    shared, maximum = _check_kind(request)
    if not shared and not flags & MAP_NORESERVE and protection & Protection.WRITE:
        _check_commit(space, length)
    fixed = bool(flags & MAP_FIXED)
    space.require(length - (_mapped(space, address, address + length) if fixed else 0))
    backing: Backing | None = None
    if request.file is not None:
        backing = request.file.open_backing(shared_writable=shared and bool(maximum & Protection.WRITE))
    elif shared:
        backing = SharedMemory(space.physical, length >> space.table.format.page_shift)
    offset = request.offset >> space.table.format.page_shift if request.file is not None else 0
    area = space.new_area(
        address,
        address + length,
        protection,
        shared=shared,
        backing=backing,
        offset=offset,
        maximum=maximum,
        grows_down=bool(flags & MAP_GROWSDOWN),
        no_reserve=bool(flags & MAP_NORESERVE),
        name=backing.name if backing is not None else "",
    )
    space.replace(area)
    if (flags & MAP_LOCKED or flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE) and protection:
        populate(space, address, address + length, write=_prefers_write(area))
    return address


def _mapped(space: AddressSpace, start: int, end: int) -> int:
    """Bytes of `[start, end)` that lie in areas."""
    areas = space.areas.overlapping(start, end)
    return sum(min(area.end, end) - max(area.start, start) for area in areas)


def _prefers_write(area: Area) -> bool:
    """Whether populating an area faults for writing: a writable private one gets its own copies at once."""
    return bool(area.protection & Protection.WRITE) and not area.shared


def _choose_address(space: AddressSpace, request: Request, length: int) -> int:
    flags, address = request.flags, request.address
    limits = space.limits
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
        if address > limits.user_end - length:
            raise Refused(errno.ENOMEM, "beyond the user half")
        if address & space.page_size - 1:
            raise Refused(errno.EINVAL, "a fixed address is not page aligned")
        if address < limits.user_base:
            raise Refused(errno.EPERM, f"below the lowest address {limits.user_base:#x}")
        if flags & MAP_FIXED_NOREPLACE and space.areas.overlapping(address, address + length):
            raise Refused(errno.EEXIST, "something is mapped there")
        return address
    lowest = max(
        limits.user_base, space.page_size
    )  # the page at 0 is given only to those who ask with MAP_FIXED
    hint = address & -space.page_size
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
    if flags & MAP_32BIT:
        found = space.areas.gap_above(length, *_LOW)
    else:
        more = limits.user_end - limits.window if asks_for_more else 0
        found = space.areas.gap_below(length, lowest, space.mmap_base + more)
        if found is None:  # Linux then searches upwards from the bottom
            found = space.areas.gap_above(length, lowest, limits.window + more)
    if found is None:
        raise Refused(errno.ENOMEM, "no free range is long enough")
    return found


def _check_kind(request: Request) -> tuple[bool, Protection]:
    """(shared, the most protection mprotect may give later)."""
    kind, flags, file = request.flags & MAP_TYPE, request.flags, request.file
    everything = Protection.READ | Protection.WRITE | Protection.EXECUTE
    if file is None:
        if kind not in (MAP_SHARED, MAP_PRIVATE):
            raise Refused(errno.EINVAL, f"no mapping type {kind}")
        if kind == MAP_SHARED and flags & MAP_GROWSDOWN:
            raise Refused(errno.EINVAL, "shared memory does not grow")
        return kind == MAP_SHARED, everything
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
    if shared and not file.writable:
        return True, everything & ~Protection.WRITE
    return shared, everything


def _check_commit(space: AddressSpace, length: int) -> None:
    """Linux's heuristic overcommit: only what could never be had is refused."""
    if length > space.physical.ram.size:
        raise Refused(errno.ENOMEM, "more than all memory")


def unmap_memory(space: AddressSpace, address: int, length: int) -> None:
    """munmap(2)."""
    end = space.limits.user_end
    if address & space.page_size - 1 or address > end or length > end - address:
        raise Refused(errno.EINVAL, "the range is not page aligned or leaves the user half")
    length = space.page_up(length)
    if length == 0:
        raise Refused(errno.EINVAL, "the length is zero")
    space.unmap(address, address + length)


def protect_memory(space: AddressSpace, address: int, length: int, protection: int) -> None:
    """mprotect(2). On a hole or a forbidden permission, what came before it stays changed."""
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
        upto = min(area.end, end)
        if wanted != area.protection:
            space.protect(area, address, upto, wanted)
        address = upto


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
    if flags & MREMAP_DONTUNMAP and (not flags & MREMAP_MAYMOVE or old != new):
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
        space.areas.require_room(_MOVE_ROOM)
    if new < old:
        unmap_memory(space, address + new, old - new)
        old = new
        area = space.areas.find(address)
        assert area is not None, "the part that stays is never empty"
    if new == old and not moves:
        return address
    _check_resize(space, area, address, old, new)
    keep = bool(flags & MREMAP_DONTUNMAP)
    _check_whole(area, request, old, new)
    grows_by = new if keep else new - old
    space.require(grows_by)
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
        target = _choose_address(space, wanted, new)
    _move(space, area.piece(address, address + old, space.table.format.page_shift), target, new, grows_by)
    if old and not keep:
        space.unmap(address, address + old)
    return target


def _check_target(space: AddressSpace, request: Remap, old: int, new: int) -> None:
    """The checks of an address to move to; without MREMAP_FIXED it is a hint, but checked as well."""
    address, target = request.address, request.new_address
    if target & space.page_size - 1:
        raise Refused(errno.EINVAL, "the new address is not page aligned")
    if new > space.limits.user_end or target > space.limits.user_end - new:
        raise Refused(errno.EINVAL, "the target leaves the user half")
    if address + old > target and target + new > address:
        raise Refused(errno.EINVAL, "source and target overlap")
    if request.flags & MREMAP_FIXED and target < space.limits.user_base:
        raise Refused(errno.EPERM, f"below the lowest address {space.limits.user_base:#x}")


def _check_resize(space: AddressSpace, area: Area, address: int, old: int, new: int) -> None:
    if old == 0 and not area.shared:
        raise Refused(errno.EINVAL, "only a shared mapping can be duplicated")
    if old > area.end - address:
        raise Refused(errno.EFAULT, "the range crosses areas")
    if new > old and not area.shared and area.protection & Protection.WRITE and not area.no_reserve:
        _check_commit(space, new - old)


def _check_whole(area: Area, request: Remap, old: int, new: int) -> None:
    """What mremap refuses of an area that stays whole: to lengthen it, or to leave any of it behind."""
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


def advise_memory(space: AddressSpace, address: int, length: int, advice: int) -> None:
    """madvise(2), the advice that has a meaning here; all other gets EINVAL."""
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
    if advice in (MADV_POPULATE_READ, MADV_POPULATE_WRITE):
        _populate_advice(space, address, end, write=advice == MADV_POPULATE_WRITE)
        return
    for area in space.areas.overlapping(address, end):
        if advice == MADV_FREE and area.backing is not None:
            raise Refused(errno.EINVAL, "only private anonymous memory can be freed")
        if advice in _DROPS:
            space.discard(area, max(area.start, address), min(area.end, end))
        elif advice == MADV_REMOVE:
            _remove(space, area, max(area.start, address), min(area.end, end))
    if not space.areas.covered(address, end):
        raise Refused(errno.ENOMEM, "part of the range is not mapped")


def _remove(space: AddressSpace, area: Area, start: int, end: int) -> None:
    """MADV_REMOVE on a piece of an area: the object itself loses the pages."""
    backing, shift = area.backing, space.table.format.page_shift
    if backing is None:
        raise Refused(errno.EINVAL, "private memory has no object behind it")
    if not area.shared or not area.maximum & Protection.WRITE:
        raise Refused(errno.EACCES, "the area is not shared, or never writable")
    if not isinstance(backing, SharedMemory):
        raise Refused(errno.EOPNOTSUPP, "files here have no holes")
    first, count = area.offset + (start - area.start >> shift), end - start >> shift
    rmap.unmap(backing, first, count, copies=True)
    backing.remove(first, count)


def _populate_advice(space: AddressSpace, address: int, end: int, *, write: bool) -> None:
    while address < end:
        area = space.areas.find(address)
        if area is None:
            raise Refused(errno.ENOMEM, "part of the range is not mapped")
        if not area.protection & (Protection.WRITE if write else Protection.READ):
            raise Refused(errno.EINVAL, "the area does not permit the access")
        upto = min(area.end, end)
        outcome = populate(space, address, upto, write=write)
        if isinstance(outcome, BusError | AccessError):
            raise Refused(errno.EFAULT, f"{outcome.address:#x} has no page behind it")
        if isinstance(outcome, OutOfMemory):
            raise Refused(errno.ENOMEM, "out of memory")
        address = upto


def populate(
    space: AddressSpace, start: int, end: int, *, write: bool
) -> BusError | AccessError | OutOfMemory | None:
    """Fault every absent page of a range in. Returns the first outcome that is not success.

    Raises NotReady at a page that is on its way, and TableDamaged: what came before it is there.
    """
    access = int(Access.USER | (Access.WRITE if write else Access.READ))
    fmt, faults = space.table.format, Faults(space.physical)
    for va in range(start, end, space.page_size):
        found = space.table.find(va)
        present = found is not None and found.entry & fmt.present_mask
        if found is not None and present and (not write or fmt.writable(found.entry)):
            continue
        outcome = faults.resolve(space, va, access)
        if isinstance(outcome, BusError | AccessError | OutOfMemory):
            return outcome
        if isinstance(outcome, Blocked):
            raise NotReady(outcome.on)
        if isinstance(outcome, Damaged):
            raise TableDamaged(va, outcome, outcome.describe(fmt))
    return None


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
        if flags & MS_SYNC and area.shared and area.backing is not None:
            ageing.write_back(space, area, max(area.start, address), min(area.end, address + rounded))
            if area.backing not in synced:
                area.backing.sync()
                synced.append(area.backing)
    if not space.areas.covered(address, address + rounded):
        raise Refused(errno.ENOMEM, "part of the range is not mapped")


def residency(space: AddressSpace, address: int, length: int) -> bytes:
    """mincore(2): a byte for each page, 1 where it is in memory."""
    if address & space.page_size - 1:
        raise Refused(errno.EINVAL, "the address is not page aligned")
    end = address + space.page_up(length)
    if address + length > space.limits.user_end or not space.areas.covered(address, end):
        raise Refused(errno.ENOMEM, "part of the range is not mapped")
    shift = space.table.format.page_shift
    if end - address >> shift > space.physical.ram.size:
        raise Refused(errno.EFAULT, "no vector is that long")
    resident = bytearray(end - address >> shift)
    for found in space.table.cursor(address, end):
        size = space.table.format.levels[found.level - 1].size
        first = max(found.start, address) - address >> shift
        last = min(found.start + size, end) - address >> shift
        resident[first:last] = b"\1" * (last - first)
    return bytes(resident)


def set_break(space: AddressSpace, address: int) -> int:
    """brk(2): move the end of the heap. Returns the new end, or the old one when that is refused."""
    old = space.heap_end
    if address < space.heap_start or address > space.limits.user_end:
        return old
    old_page, new_page = space.page_up(old), space.page_up(address)
    if new_page < old_page:
        if not space.areas.overlapping(new_page, old_page):
            return old
        try:
            space.unmap(new_page, old_page)
        except Refused:
            return old
    elif new_page > old_page:
        following = space.areas.following(old_page)
        if following is not None and space.areas.lowest(following) < new_page + space.page_size:
            return old
        try:
            _check_commit(space, new_page - old_page)
            protection = Protection.READ | Protection.WRITE
            space.insert(space.new_area(old_page, new_page, protection, name="[heap]"))
        except Refused:
            return old
    space.heap_end = address
    return address
