"""What a child's address space gets of its parent's: `AddressSpace.fork`.

areas           as madvise asked                          MADV_DONTFORK: none, MADV_WIPEONFORK: no pages
private pages   entries that let neither side write       the first store copies, see `mm.fault`
shared pages    none, a fault finds them in the object    but where a watcher is asked about stores, or
                                                          some are guarded
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from aether_emu.mm import markers
from aether_emu.mm.allocation import (
    LOCKS,
    MAYBE_GUARDED,
    USER_FAULTS,
    USER_WP,
    Area,
    AreaFlags,
    AreaMap,
    Watcher,
)
from aether_emu.mm.audit import Audited
from aether_emu.mm.limits import Account
from aether_emu.mm.tables import transfer
from aether_emu.mm.tlb import Gather

_NO_FORK, _WIPE_ON_FORK = int(AreaFlags.NO_FORK), int(AreaFlags.WIPE_ON_FORK)  # an enum's `&` is slow


class Forked(Audited, Protocol):
    """An address space that is copied, or is the copy."""

    areas: AreaMap
    account: Account
    untold: list[Any]

    def gather(self) -> Gather:
        """For one operation's edits."""

    def place(self, area: Area) -> None:
        """Let an area stand at addresses that are free."""


def copy_memory(parent: Forked, child: Forked) -> None:
    """Areas and pages. Raises OutOfFrames and TableDamaged, with no entry of the parent changed."""
    gather, swap, known = parent.gather(), parent.physical.swap, len(parent.untold)
    try:
        kept = [area for area in parent.areas if not area.flags & _NO_FORK]
        watched = _copy_areas(parent, child, kept)
        with_pages = [area for area in kept if not area.flags & _WIPE_ON_FORK]
        private = [(area.start, area.end) for area in with_pages if not area.shared]
        copied = transfer.copy(
            parent.table,
            child.table,
            gather,
            private,
            private=True,
            shared=None if swap is None else swap.entries.shared,
        )
        if swap is not None:
            swap.shared(copied)
        if watched or any(area.flags & MAYBE_GUARDED and area.shared for area in with_pages):
            _copy_entries(parent, child, gather, with_pages)
    except BaseException:
        del parent.untold[known:]
        raise
    finally:
        gather.finish_at_once()  # the child runs before this program goes on


def _copy_areas(parent: Forked, child: Forked, kept: list[Area]) -> bool:
    """The child's areas, none of them locked. Whether somebody watches one of the parent's."""
    watchers = dict[Watcher, Watcher | None]()
    same = [area.piece(area.start, area.end, parent.table.format.page_shift) for area in kept]
    for area in same:
        area.space = child
        if area.watcher is not None:
            if area.watcher not in watchers:
                watchers[area.watcher] = area.watcher.of_child(child)
            area.set_watcher(watchers[area.watcher])
        if area.watcher is None:
            area.flags &= ~USER_FAULTS
    if len(same) == len(parent.areas) and not any(area.flags & LOCKS for area in same):
        child.areas.fill(same, parent.areas)
        child.account.take_over(parent.account)
    else:
        for area in same:
            area.flags &= ~LOCKS
            child.place(area)
    return bool(watchers)


def _copy_entries(parent: Forked, child: Forked, gather: Gather, areas: Iterable[Area]) -> None:
    """What was asked about stores holds in the child where it has a watcher.

    Shared memory that is watched for them, or has guards, comes with its entries.
    """
    for area in areas:
        there = child.areas.find(area.start)
        if not area.flags & (USER_WP | MAYBE_GUARDED) or there is None:
            continue
        told = there.flags & USER_WP
        if area.shared and (told or area.flags & MAYBE_GUARDED):
            transfer.copy(parent.table, child.table, gather, [(area.start, area.end)], private=False)
        if area.flags & USER_WP and not told:
            markers.watch_writes(child.table, None, area.start, area.end, on=False)
