"""What madvise asks of reclaim: pages that go now, those that go first, those that come back (madvise(2))."""

from __future__ import annotations

from aether_emu.mm import ageing
from aether_emu.mm.allocation import Area
from aether_emu.mm.fault import Faults
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.seen import in_swap


def cool(space: AddressSpace, start: int, end: int) -> None:
    """MADV_COLD: what only this place shows goes first when memory is short."""
    seen, maps = ageing.look(space, start, end), space.physical.frames.maps_array
    ageing.forget_accesses(space, start, end)
    if space.physical.reclaim is not None:
        space.physical.reclaim.cool(seen.frames[maps[seen.frames] == 1].tolist())


def page_out(space: AddressSpace, start: int, end: int) -> None:
    """MADV_PAGEOUT: what only this place shows goes now, if there is somewhere to go."""
    seen, maps = ageing.look(space, start, end), space.physical.frames.maps_array
    reclaim = space.physical.reclaim
    if reclaim is None:
        ageing.forget_accesses(space, start, end)
    else:
        alone = seen.frames[maps[seen.frames] == 1].tolist()
        reclaim.lazy.drop_of(alone)
        reclaim.take(alone)


def page_in(space: AddressSpace, area: Area, start: int, end: int) -> None:
    """MADV_WILLNEED: what is in swap comes back, and a file is read, while memory is not short."""
    physical, faults = space.physical, Faults(space.physical)
    if isinstance(area.backing, FileBacking) and area.backing.cache is not None:
        assert physical.files is not None, "files count"
        shift = space.table.format.page_shift
        physical.files.read(area.backing, area.offset + (start - area.start >> shift), end - start >> shift)
        return
    if physical.reclaim is None or area.shared:
        return
    for page in in_swap(space, start, end).pages.tolist():
        if physical.reclaim.is_short:
            return
        faults.bring(space, page << space.table.format.page_shift)
