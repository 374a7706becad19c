"""Mappings of huge pages from a pool (hugetlb): how they come about, and their faults.

A fault brings one leaf of the pool's level over an aligned block, never a smaller one, and no leaf is ever
split: whoever edits a part of such a page is refused (EINVAL). What mmap promised, a fault keeps; where
nothing was and the pool is empty, it is SIGBUS. A store to a page that others show too copies it as a
whole; if there is none to copy to, the process that mapped the memory takes it away from its children.
"""

from __future__ import annotations

import errno
from typing import Any

import numpy as np

from aether_emu.arch.paging import Access
from aether_emu.errors import OutOfFrames, Refused
from aether_emu.machine.memory.aperture import BackingFailed, BeyondEnd
from aether_emu.mm import markers
from aether_emu.mm.allocation import Area
from aether_emu.mm.counters import Event
from aether_emu.mm.huge_pools import Pools, Promises
from aether_emu.mm.hugepage import large_slot
from aether_emu.mm.objects.hugetlb import HugeMemory, HugePool
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import Protection
from aether_emu.mm.rmap import address_in, unmap
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.tree import Found

_WRITE = int(Access.WRITE)  # plain: an enum's operators are slow


class AnonymousHuge:
    """What mmap maps with MAP_HUGETLB and without a file (`mm.mapping.Mappable`)."""

    readable = writable = True
    in_memory = False

    def __init__(self, physical: Physical, pool: HugePool, length: int) -> None:
        self._physical, self._pool, self.huge_size = physical, pool, pool.size
        self._pages = -(-length // pool.size) * pool.count

    def may_store(self, protection: int) -> bool:
        """Anonymous memory may always be written."""
        return True

    def open_backing(self, *, shared_writable: bool) -> HugeMemory:
        """Memory of its own."""
        return HugeMemory(self._physical, self._pool, self._pages, "/anon_hugepage (deleted)")


def chosen_pool(physical: Physical, shift: int) -> HugePool:
    """The pool of pages of 2**shift bytes, 0 for the default size. Refused(EINVAL) if there is none."""
    if not isinstance(physical.pools, Pools):
        raise Refused(errno.EINVAL, "no huge pages")
    return physical.pools.chosen(shift)


def pool_of_size(physical: Physical, size: int) -> HugePool:
    """The pool of pages of `size` bytes, as on the machine that was captured."""
    assert isinstance(physical.pools, Pools), "a machine with Linux has them"
    pool = physical.pools.of_size(size)
    assert pool is not None, "the same sizes"
    return pool


def restored_memory(physical: Physical, state: dict[str, Any]) -> HugeMemory:
    """The captured memory, whose pages the pool and the frame table know."""
    pool = pool_of_size(physical, state["size"])
    memory = HugeMemory(physical, pool, state["pages"], state["name"])
    memory.go_on(state["number"], state)
    return memory


def place(space: AddressSpace, area: Area) -> None:
    """Let an area of huge pages stand, in the place of what is there, with the promises that it asks for.

    Raises Refused(ENOMEM) if the pool has too few pages that nobody was promised, with nothing changed.
    """
    backing, start, end, reserved = _memory(area), area.start, area.end, 0
    count = area.length // backing.huge_size
    backing.hold()
    try:
        if area.shared and not area.no_reserve:
            backing.promise(area.offset // backing.pool.count, count)
        elif not area.no_reserve:
            backing.pool.reserve(count)
            reserved = count
        last = area.offset + count * backing.pool.count
        space.replace(area)
        if area.protection & Protection.WRITE:  # Linux has the file reach there (`hugetlbfs_file_mmap`)
            backing.pages = max(backing.pages, last)
        if reserved:
            _promises(space).add(backing.pool, start, end)
            reserved = 0
    finally:
        backing.pool.reserved -= reserved
        backing.let_go()


def punch(backing: HugeMemory, first: int, count: int) -> None:
    """Make a hole of base pages: huge pages that lie in it go, of others what lies in it is zeroed."""
    whole, end = backing.pool.count, first + count
    low, high = -(-first // whole) * whole, end // whole * whole
    edges = [(first, min(low, end)), (max(high, low), end)] if low <= high else [(first, end)]
    for start, stop in edges:
        backing.zero(start, stop - start)
    if low < high:
        unmap(backing, low, high - low, copies=True)
        backing.remove(low, high - low)


def truncate(backing: HugeMemory, pages: int) -> None:
    """Give the object another length, in base pages: what is behind goes from all mappings."""
    if pages < backing.pages:
        unmap(backing, pages, backing.pages - pages, copies=True, keeps_markers=False)
    backing.resize(pages)


def _promises(space: AddressSpace) -> Promises:
    if space.promises is None:
        space.promises = Promises()
    assert isinstance(space.promises, Promises)
    return space.promises


def _memory(area: Area) -> HugeMemory:
    assert isinstance(area.backing, HugeMemory), "an area of huge pages from a pool"
    return area.backing


# ---- faults


def _index(area: Area, start: int) -> int:
    """The huge page of its memory that an area shows at `start`."""
    pool = _memory(area).pool
    return (area.offset + (start - area.start) // (pool.size // pool.count)) // pool.count


def may_come(space: AddressSpace, area: Area, va: int) -> bool:
    """Whether an absent page may ever come: not behind the end, nor where it was taken from a child."""
    backing = _memory(area)
    start = va & -backing.huge_size
    behind = _index(area, start) * backing.pool.count >= backing.pages
    return not behind and not (space.promises is not None and _promises(space).broken(start))


def has_page(area: Area, start: int) -> bool:
    """Whether the memory itself has the page that an area shows at `start`."""
    return _index(area, start) in _memory(area).blocks


def bring(physical: Physical, space: AddressSpace, area: Area, page: int, *, write: bool) -> None:
    """Have the huge page over `page`, where nothing stands.

    Raises BeyondEnd, BackingFailed (the pool is empty), and OutOfFrames for a table on the way.
    """
    backing = _memory(area)
    pool, start = backing.pool, page & -backing.huge_size
    huge = _index(area, start)
    if huge * pool.count >= backing.pages:
        raise BeyondEnd(huge * pool.count, "behind the end of the object")
    large_slot(space, start, pool.level)  # OutOfFrames, before a page is taken
    own = not area.shared and (write or huge not in backing.blocks)
    block = _own(physical, space, area, start, backing.blocks.get(huge)) if own else backing.bring(huge)
    _show(physical, space, area, start, block, write=write)


def put(physical: Physical, space: AddressSpace, area: Area, start: int, data: bytes) -> None:
    """Have a huge page of `data`, where nothing stands and a shared area's memory has no page.

    Raises BackingFailed (the pool is empty), BeyondEnd of shared memory, and OutOfFrames.
    """
    backing = _memory(area)
    large_slot(space, start, backing.pool.level)
    shared = area.shared
    block = backing.bring(_index(area, start)) if shared else _own(physical, space, area, start, None)
    ram = physical.ram
    at = physical.frames.address(block) - ram.base
    ram.bytes[at : at + len(data)] = data
    _show(physical, space, area, start, block, write=True)


def _show(
    physical: Physical, space: AddressSpace, area: Area, start: int, block: int, *, write: bool
) -> None:
    """Let the leaf of a page that was taken stand at `start`."""
    pool = _memory(area).pool
    pool.refer(block, 1, mapped=True)
    bits = area.bits.write_at(pool.level) if write else area.bits.read_at(pool.level)
    slot = space.table.slot(start, pool.level)
    space.table.write(start, pool.level, slot, physical.frames.address(block) | bits)
    physical.counters.n[Event.FAULT_SHARED if area.shared else Event.FAULT_DEMAND_ZERO] += 1
    if area.protection & Protection.EXECUTE:
        physical.code.executable(block, pool.count, mutable=True, shared=area.shared)


def watch_absent(space: AddressSpace, area: Area, start: int, end: int) -> None:
    """`mm.markers.watch_absent` of huge pages. Raises Refused(ENOMEM), and TableDamaged."""
    table, pool = space.table, _memory(area).pool
    for at in range(start, end, pool.size):
        if table.find(at) is None:
            try:
                slot = large_slot(space, at, pool.level)
            except OutOfFrames:
                raise Refused(errno.ENOMEM, "no memory for page tables") from None
            table.write(at, pool.level, slot, markers.watched(table.format))


def _own(
    physical: Physical,
    space: AddressSpace,
    area: Area,
    start: int,
    source: int | None,
    *,
    again: bool = False,
) -> int:
    """A page of the area's own, with the bytes of `source`. BackingFailed if there is none.

    `again`: the area had one, and what was promised is used up.
    """
    pool, promises = _memory(area).pool, _promises(space)
    index = (start >> physical.frames.page_shift) + area.moved
    if promises.broken(start):
        raise BackingFailed(index, "the parent took the page away")
    kept = not again and promises.keep(start)
    block = pool.take(area.owner, index, promised=kept, copied=source is not None)
    if block is None:
        raise BackingFailed(index, "the pool of huge pages is empty")
    if source is not None:
        ram, frames, n = physical.ram, physical.frames, physical.counters.n
        at, to = frames.address(source) - ram.base, frames.address(block) - ram.base
        ram.bytes[to : to + pool.size] = ram.bytes[at : at + pool.size]
        n[Event.FAULT_COPY] += 1
        n[Event.COPIED_PAGES] += pool.count
    return block


def whole(
    physical: Physical, space: AddressSpace, area: Area, page: int, access: int, found: Found, *, forced: bool
) -> Found | None:
    """As `mm.hugepage.whole_or_base`: `found` itself if others decide, None if it permits the access now.

    Raises BackingFailed as `store`.
    """
    fmt = space.table.format
    if markers.is_marker(fmt, found.entry):
        return found
    present, write = found.entry & fmt.present_mask, access & _WRITE
    if write and (forced if not present else not fmt.writable(found.entry)):
        store(physical, space, area, found)
        return None
    return None if forced and not present else found


def store(physical: Physical, space: AddressSpace, area: Area, found: Found) -> None:
    """A store where a leaf stands that does not permit it, or that is held: afterwards it is the area's own.

    Raises BackingFailed where it would have to be copied and the pool is empty.
    """
    fmt, frames, start = space.table.format, physical.frames, found.start
    pool = _memory(area).pool
    address = found.entry & fmt.address_mask & -pool.size
    block = frames.number(address)
    own = frames.owner[block] == area.owner
    bits = area.bits.write_at(pool.level)
    if area.shared or (own and frames.maps[block] == 1):  # whoever pins it goes on with the same page
        _permit(physical, space, found, address | bits)
        return
    try:
        fresh = _own(physical, space, area, start, block, again=own)
    except BackingFailed:
        if not own or not _promises(space).has(start):
            raise
        _take_from_children(physical, space, area, start, block)
        _permit(physical, space, found, address | bits)
        return
    pool.refer(fresh, 1, mapped=True)
    gather = space.gather()
    gather.page(start, pool.size)
    gather.drop_many(np.arange(block, block + pool.count))
    entry = frames.address(fresh) | bits
    if found.entry & fmt.present_mask:
        space.table.exchange(found, entry, gather.flush)
    else:
        space.table.write(start, found.level, found.slot, entry)
    gather.finish()


def _permit(physical: Physical, space: AddressSpace, found: Found, entry: int) -> None:
    if found.entry & space.table.format.present_mask:
        space.table.replace(found.start, found, entry)
        physical.counters.n[Event.FAULT_UPGRADE] += 1


def _take_from_children(physical: Physical, space: AddressSpace, area: Area, start: int, block: int) -> None:
    """Remove the page from every other address space that shows it; a touch there is SIGBUS from now on."""
    frames, family, pool = physical.frames, area.family, _memory(area).pool
    assert family is not None, "a private area has one"
    index = frames.index[block]
    for window in list(family.windows.over(index, index + 1)):
        other = window.space
        if other is space:
            continue
        assert isinstance(other, AddressSpace)
        address = address_in(window, family, index, frames.page_shift)
        found = other.table.find(address)
        if found is None or markers.is_marker(other.table.format, found.entry):
            continue
        if frames.number(found.entry & other.table.format.address_mask & -pool.size) != block:
            continue
        gather = other.gather()
        other.clear(gather, window, address, address + pool.size)
        gather.finish()
        _promises(other).take_away(pool, address)
