"""Files that shrink under the guest: what becomes of their pages that programs show."""

from __future__ import annotations

from collections.abc import Iterable

from aether_emu.linux.entry import Entry
from aether_emu.machine.memory.aperture import ApertureFile, BackingFailed, BeyondEnd
from aether_emu.mm.protection import Protection
from aether_emu.mm.rmap import lowest_address
from aether_emu.mm.tables.damage import TableDamaged


def lose_pages(entry: Entry, lost: Iterable[tuple[ApertureFile, int]]) -> None:
    """Pages that the host took away: unmap them, SIGBUS for the task of `entry` for those that are gone.

    A page that is larger than the host's may have lost a part only. It goes on from there, with zeros.
    """
    kernel = entry.kernel
    files = kernel.file_backings
    for file, page in lost:
        backing = files.showing(file)
        if backing is None:
            continue
        try:
            files.unmap_pages(backing, page, 1)
        except TableDamaged as error:
            entry.damaged(error.damaged)
            return
        try:
            backing.frames(page, 1, write=False)
            continue
        except (BeyondEnd, BackingFailed):
            backing.leave_memory(page, 1)
        space = entry.task.process.mm
        address = lowest_address(backing, page, space)
        area = None if address is None else space.areas.find(address)
        if address is None or area is None:
            continue
        if area.protection & Protection.EXECUTE:
            # Perhaps it was only translated, ahead of its turn: forget that, its fault comes in time.
            kernel.physical.code.flush()
        else:
            entry.lost(address)
