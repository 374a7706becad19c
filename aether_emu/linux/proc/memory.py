"""/proc/self/mem and /proc/self/pagemap: a process's memory by address, and what stands behind each page.

Meaning and order of refusals are those of Linux 6.6 (fs/proc/base.c, fs/proc/task_mmu.c, proc_pid_mem(5),
proc_pid_pagemap(5)).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np

from aether_emu.errors import Refused
from aether_emu.linux.credentials import SYS_ADMIN
from aether_emu.linux.task.process import Process
from aether_emu.machine.cpu import UserFault
from aether_emu.mm import ageing, guards, markers, soft_dirty
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.seen import in_swap
from aether_emu.mm.user import ForcedMemory

_ENTRY = 8  # bytes of pagemap for each page
_MOST_PAGES = 1 << 17  # that one look answers for
PM_PRESENT, PM_SWAP, PM_FILE, PM_EXCLUSIVE = 1 << 63, 1 << 62, 1 << 61, 1 << 56
PM_GUARD_REGION, PM_UFFD_WP, PM_SOFT_DIRTY = 1 << 58, 1 << 57, 1 << 55
"""A page has a frame, or is in swap; is a file's or shared memory's; nothing else shows it; is guarded; is
protected by a userfaultfd; was written since clear_refs 4 (`mm.soft_dirty`). The other bits are 0.
"""
_SWAP_TYPE_BITS = 5  # below the slot; the machine's area is of type 0


def read_memory(process: Process, position: int, count: int) -> bytes:
    """Read /proc/self/mem: memory from address `position` on, up to the first page that is none. EIO there.

    The program's own permissions do not count, as for a debugger: PROT_NONE is read too.
    """
    out = bytearray()

    def load(memory: ForcedMemory, address: int, length: int) -> None:
        out.extend(memory.read(address, length))

    return bytes(out) if _each_page(process.mm, position, count, load) else b""


def write_memory(process: Process, position: int, data: bytes) -> int:
    """Write /proc/self/mem; how many bytes were. EIO where not even the first can be.

    A private page becomes the process's own although the program may not write to it; shared memory is
    written only where it may.
    """

    def store(memory: ForcedMemory, address: int, length: int) -> None:
        memory.write(address, data[address - position :][:length])

    return _each_page(process.mm, position, len(data), store)


def _each_page(
    space: AddressSpace, start: int, count: int, move: Callable[[ForcedMemory, int, int], None]
) -> int:
    """Bytes moved, in pieces that cross no page."""
    memory, done = ForcedMemory(space), 0
    while done < count:
        address = start + done
        length = min(space.page_size - address % space.page_size, count - done)
        try:
            move(memory, address, length)
        except UserFault:
            if not done:
                raise Refused(errno.EIO, f"there is no memory at {address:#x}") from None
            break
        done += length
    return done


def _families(space: AddressSpace) -> list[int]:
    """The numbers that pages of the process's own have as their owner."""
    return sorted({area.owner for area in space.areas if area.owner})


def read_pagemap(process: Process, position: int, count: int) -> bytes:
    """Read /proc/self/pagemap: eight bytes for each page, up to the end of the user half.

    Numbers of frames and slots are shown to who has CAP_SYS_ADMIN. Raises Refused(EINVAL) unless both are
    multiples of 8.
    """
    if position % _ENTRY or count % _ENTRY:
        raise Refused(errno.EINVAL, f"{count} bytes at {position} are not whole entries")
    space, table = process.mm, process.mm.physical.frames
    shift = space.table.format.page_shift
    first = position // _ENTRY
    last = min(first + min(count // _ENTRY, _MOST_PAGES), space.limits.user_end >> shift)
    if first >= last:
        return b""
    seen = ageing.look(space, first << shift, last << shift)
    entries = np.zeros(last - first, np.uint64)
    kinds, maps = table.kind_array[seen.frames], table.maps_array[seen.frames]
    bits = np.full(len(seen.frames), PM_PRESENT, np.uint64)
    bits[(kinds == Kind.FILE) | (kinds == Kind.SHARED)] |= np.uint64(PM_FILE)
    pooled = kinds == Kind.HUGETLB
    if pooled.any():  # a page of the object, or one of the process's own, whose areas may be thousands
        bits[pooled & ~np.isin(table.owner_array[seen.frames], _families(space))] |= np.uint64(PM_FILE)
    bits[(maps == 1) & (kinds != Kind.ZERO)] |= np.uint64(PM_EXCLUSIVE)
    if process.kernel.actor.credentials.has(SYS_ADMIN):
        bits |= (table.base >> shift) + seen.frames.astype(np.uint64)
    entries[seen.pages - first] = bits
    out = in_swap(space, first << shift, last << shift)
    shown = out.slots.astype(np.uint64) << np.uint64(_SWAP_TYPE_BITS)
    if not process.kernel.actor.credentials.has(SYS_ADMIN):
        shown[:] = 0
    entries[out.pages - first] = shown | np.uint64(PM_SWAP)
    entries[guards.guarded(space, first << shift, last << shift) - first] = PM_SWAP | PM_GUARD_REGION
    marked = markers.Marked(space.table, first << shift, last << shift)
    entries[np.concatenate([marked.absent, marked.failed]) - first] = PM_SWAP
    entries[marked.pooled - first] = 0  # as Linux tells it
    entries[np.concatenate([marked.told, marked.absent]) - first] |= np.uint64(PM_UFFD_WP)
    entries[soft_dirty.written(space, first, last, seen, out)] |= np.uint64(PM_SOFT_DIRTY)
    return entries.astype("<u8").tobytes()
