"""A file of the swap area goes off: everything that is in it comes back first (swapoff(2)).

None of its slots is given out meanwhile. What memory has no room for may go to other files; where there is
none it stays on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from aether_emu.errors import OutOfFrames
from aether_emu.mm import ageing
from aether_emu.mm.fault import Faults
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.physical import Physical
from aether_emu.mm.swap.area import SwapArea
from aether_emu.mm.swap.file import SwapLost
from aether_emu.mm.swap.part import PLACE_BITS, Part
from aether_emu.mm.swap.seen import in_swap

_LOOKS = 256  # pages between two looks


def switch_off(
    physical: Physical, swap: SwapArea, part: Part, look: Callable[[], object] = lambda: None
) -> bool:
    """Bring all pages back. False, with the area on, when they do not all fit into memory.

    A page whose bytes are lost keeps its slot: to touch it is SIGBUS, as before. `look` is called now and
    then, and may raise: then the area is on, and another call goes on with what is left.
    """
    spare = 0 if physical.reclaim is None else physical.reclaim.spare
    free = max(0, physical.buddy.free_frames - spare)
    others = swap.slots - swap.used - (part.slots - part.used)
    if part.used - swap.cached_of(part) > free + others:
        return False
    part.on = False
    try:
        _bring_all_back(physical, swap, part, look)
    except OutOfFrames:
        part.on = True
        return False
    except BaseException:
        part.on = True
        raise
    swap.forget_cached(part)
    return True


def _bring_all_back(physical: Physical, swap: SwapArea, part: Part, look: Callable[[], object]) -> None:
    faults = Faults(physical)
    for space in ageing.spaces(physical):
        out = in_swap(space, 0, space.limits.user_end)
        pages = out.pages[out.slots >> PLACE_BITS == part.number]
        for number, page in enumerate(pages.tolist()):
            if not number % _LOOKS:
                look()
            va = page << space.table.format.page_shift
            physical.with_room(partial(faults.bring, space, va))
    for item in sorted(physical.objects, key=lambda item: item.number):
        if isinstance(item, SharedMemory):
            slots = item.slots_by_page()
            there = sorted(index for index, slot in slots.items() if swap.is_of(slot, part))
            for number, index in enumerate(there):
                if not number % _LOOKS:
                    look()
                try:
                    physical.with_room(partial(item.frames, index, 1, write=False))
                except SwapLost:
                    continue
