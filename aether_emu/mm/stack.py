"""The stack's area, which grows down to whatever is touched below it."""

from __future__ import annotations

from aether_emu.errors import Refused
from aether_emu.mm.allocation import Area
from aether_emu.mm.changes import Change
from aether_emu.mm.limits import GUARD_PAGES
from aether_emu.mm.space import AddressSpace


def grow(space: AddressSpace, va: int) -> Area | None:
    """Extend the growing area above `va` down to it, or None when no rule allows that.

    Linux: within RLIMIT_STACK, and never closer than the guard gap to what lies below.
    """
    above = space.areas.following(va)
    if above is None or not above.grows_down or va < space.limits.user_base:
        return None
    start = va & -space.page_size
    if above.end - start > space.limits.stack:
        return None
    below = space.areas.preceding(above.start)
    guard = GUARD_PAGES * space.page_size
    if below is not None and start - below.end < guard and below.protection and not below.grows_down:
        return None
    if below is not None and below.end > start:
        return None
    account = space.account
    try:
        account.require(above.start - start, data=above.is_data)
        account.require_lockable(above.start - start, above.flags)
        if above.charged:
            account.require_promise(above.start - start)
    except Refused:
        return None
    end = above.start
    account.count(above, end - start)
    space.areas.grow_down(above, start)
    space.last_area = space.nowhere
    space.tell(Change.GROWN, start, end)
    return above
