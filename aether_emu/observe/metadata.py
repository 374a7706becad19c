"""What the memory manager itself takes: bytes for each frame, and page tables, with what large leaves save.

Sizes are of what is there, arrays and Python's own containers with the numbers in them, and not of a layout
on paper. The frame table's are divided by the frames that it has, RAM's and those of the aperture of files;
all else by the frames of RAM, which is what it is kept for. What is kept for pages that have no frame of
their own is told apart: for each slot of the swap area, and for each page beyond the first that shows one
merged frame.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from aether_emu.mm.ageing import spaces
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.physical import Physical
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.count import entries_of

_SMALL = range(-5, 257)  # numbers that Python has anyway


def size_of(item: Any) -> int:
    """Bytes of an array, or of a container of numbers and bytes with all that is in it.

    A container counts as one that was just filled, so that a restored machine tells the same.
    """
    if isinstance(item, np.ndarray):
        return 0 if item.base is not None else int(item.nbytes)
    if isinstance(item, dict):
        inside = sum(size_of(key) + size_of(value) for key, value in item.items())
        return sys.getsizeof(dict.fromkeys(list(item))) + inside
    if isinstance(item, list | tuple | set | frozenset):
        return sys.getsizeof(list(item)) + sum(map(size_of, item))
    if item is None or isinstance(item, bool) or (isinstance(item, int) and item in _SMALL):
        return 0
    return sys.getsizeof(item)


def of_frames(physical: Physical) -> dict[str, int]:
    """Bytes of what is kept for frames, by what it is. Figures of a part that a machine has not are 0."""
    buddy, merged, swap, reclaim = physical.buddy, physical.merged, physical.swap, physical.reclaim
    shared = [item for item in physical.objects if isinstance(item, SharedMemory)]
    return {
        "frame_table": sum(column.nbytes for column in physical.frames.columns().values()),
        "allocator": size_of(buddy.kept()),
        "reclaim": 0 if reclaim is None else _of_parts(vars(getattr(reclaim, "order", reclaim)).values()),
        "swap_cache": 0 if swap is None else swap.kept_for_frames(),
        "shared_memory": sum(size_of(item.kept()) for item in shared),
        "merged": 0 if merged is None else merged.kept()[0],
        "merge_scan": 0 if physical.merge_scan is None else physical.merge_scan.kept(),
        "code": size_of(physical.code.capture()),
        "page_cache": 0 if physical.cache is None else physical.cache.kept().nbytes,
    }


def _of_parts(parts: Iterable[object]) -> int:
    return sum(size_of(part) for part in parts if isinstance(part, np.ndarray | dict | list | set))


def per_frame(physical: Physical) -> dict[str, Any]:
    """The same as one figure, `bytes_a_frame`, beside its parts and the number of frames."""
    parts, frames = of_frames(physical), physical.frames.count
    swap, merged, in_ram = physical.swap, physical.merged, physical.ram.size // physical.ram.page_size
    columns = parts["frame_table"] + parts["page_cache"]  # of frames of the aperture, too
    return {
        "bytes_a_frame": round(columns / frames + (sum(parts.values()) - columns) / in_ram, 2),
        "frames": frames,
        "frames_of_ram": in_ram,
        **{f"{name}_bytes": size for name, size in parts.items()},
        "merged_page_bytes": 0 if merged is None else merged.kept()[1],
        "swap_slot_bytes": 0 if swap is None else size_of(swap.kept_for_slots()),
    }


def page_tables(physical: Physical, space: AddressSpace) -> dict[str, int]:
    """Bytes of page tables of a program and of all, and what the program's would be with small leaves alone.

    `tlb_entries` is how many of a TLB's would hold all that it shows: one for a leaf, or for a run of them;
    `tlb_entries_of_pages` the same without large leaves and runs.
    """
    fmt, page = space.table.format, space.page_size
    below = [0]  # tables that a leaf of each level stands for
    for level in fmt.levels[:-1]:
        below.append(1 + level.entries * below[-1])
    alone, hinted = [0] * len(fmt.levels), [0] * len(fmt.levels)
    for item in space.table.visit(0, space.limits.user_end):
        entries, number = entries_of(space.table, item)
        present = entries[(entries & np.uint64(fmt.present_mask)) != 0]
        in_runs = int(np.count_nonzero(present & np.uint64(fmt.contiguous_bit)))
        hinted[number - 1] += in_runs
        alone[number - 1] += present.size - in_runs
    leaves = [one + other for one, other in zip(alone, hinted, strict=True)]
    more = sum(count * tables for count, tables in zip(leaves, below, strict=True))
    pages = sum(
        count * (level.size >> fmt.page_shift) for count, level in zip(leaves, fmt.levels, strict=True)
    )
    runs = sum(count // level.contiguous for count, level in zip(hinted, fmt.levels, strict=True))
    held = sum(alone) + runs
    own = space.table.tables * page
    everywhere = int(np.count_nonzero(physical.frames.kind_array == np.uint8(Kind.TABLE))) * page
    return {
        "bytes": own,
        "bytes_with_small_leaves": own + more * page,
        "bytes_saved_by_large_leaves": more * page,
        "bytes_of_all": everywhere,
        "address_spaces": len(spaces(physical)),
        "tlb_entries": held,
        "tlb_entries_of_pages": pages,
    }
