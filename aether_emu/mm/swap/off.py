"""The swap area goes off: everything that is in it comes back first (swapoff(2)).

No slot is given out meanwhile, so nothing can go out again. Where memory is short for it all it stays on.
"""

from __future__ import annotations

from collections.abc import Callable

from aether_emu.errors import OutOfFrames
from aether_emu.mm import ageing
from aether_emu.mm.fault import Faults
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.physical import Physical
from aether_emu.mm.swap.area import SwapArea
from aether_emu.mm.swap.file import SwapLost
from aether_emu.mm.swap.seen import in_swap

_LOOKS = 256  # pages between two looks


def switch_off(physical: Physical, swap: SwapArea, look: Callable[[], object] = lambda: None) -> bool:
    """Bring all pages back. False, with the area on, when they do not all fit into memory.

    A page whose bytes are lost keeps its slot: to touch it is SIGBUS, as before. `look` is called now and
    then, and may raise: then the area is on, and another call goes on with what is left.
    """
    free = physical.buddy.free_frames - physical.reclaim.spare if physical.reclaim is not None else 0
    if swap.used - swap.cached > free:
        return False
    swap.on = False
    try:
        _bring_all_back(physical, look)
    except OutOfFrames:
        swap.on = True
        return False
    except BaseException:
        swap.on = True
        raise
    swap.forget_cached()
    return True


def _bring_all_back(physical: Physical, look: Callable[[], object]) -> None:
    faults = Faults(physical)
    for space in ageing.spaces(physical):
        for number, page in enumerate(in_swap(space, 0, space.limits.user_end).pages.tolist()):
            if not number % _LOOKS:
                look()
            faults.bring(space, page << space.table.format.page_shift)
    for item in sorted(physical.objects, key=lambda item: item.number):
        if isinstance(item, SharedMemory):
            for number, index in enumerate(sorted(item.slots_by_page())):
                if not number % _LOOKS:
                    look()
                try:
                    item.frames(index, 1, write=False)
                except SwapLost:
                    continue
