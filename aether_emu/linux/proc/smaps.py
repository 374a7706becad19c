"""What /proc/self/smaps tells of the pages behind areas, and what clear_refs makes it forget.

Fields, their order and their meaning are those of Linux 6.6 (fs/proc/task_mmu.c, proc_pid_smaps(5)). A page
is shared when more than one page-table entry shows it; only a frame that a process owns is anonymous.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache

import numpy as np

from aether_emu.errors import Refused, shown
from aether_emu.mm import ageing, soft_dirty
from aether_emu.mm.allocation import LOCKED, Area, AreaFlags
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.hugepage import huge_size, leaves
from aether_emu.mm.objects.file import FileBacking
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.seen import swap_usage
from aether_emu.mm.tables.count import Frames

_PSS_SHIFT = 12  # a share of a page is kept in 4096ths of a byte
_SIZES = ("Size", "KernelPageSize", "MMUPageSize")
_COMMON = (
    *("Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Referenced", "Anonymous", "KSM"),
    *("LazyFree", "AnonHugePages", "ShmemPmdMapped", "FilePmdMapped", "Shared_Hugetlb", "Private_Hugetlb"),
    *("Swap", "SwapPss", "Locked"),
)
_AREA_FIELDS = (*_SIZES, "Rss", "Pss", "Pss_Dirty", *_COMMON)
_PROCESS_FIELDS = ("Rss", "Pss", "Pss_Dirty", "Pss_Anon", "Pss_File", "Pss_Shmem", *_COMMON)
_NONE = frozenset(("FilePmdMapped",))  # there are no huge pages of files on storage
_ALL, _ANONYMOUS, _MAPPED, _SOFT_DIRTY, _PEAK = 1, 2, 3, 4, 5
_MOST_TEXT = 12  # bytes of one write that are looked at (PROC_NUMBUF)
_BLANKS = b" \t\n\v\f\r"

Bytes = np.ndarray[tuple[int], np.dtype[np.int64]]


def usage(space: AddressSpace, starts: Sequence[int]) -> dict[str, Bytes]:
    """Bytes of memory by field of smaps, for each of the ranges that begin at `starts`.

    A range reaches up to the next one. `Anonymous`, `File` and `Shmem` are parts of `Rss`; `Locked` is what
    locked areas have of `Pss`. `Swap`, `SwapPss` and `Own` are what is in swap (`mm.swap.seen`). The
    zero page is nobody's memory and counts nowhere.
    """
    seen, table = ageing.look(space, 0, space.limits.user_end), space.physical.frames
    page_shift, size = space.table.format.page_shift, space.page_size
    kinds, maps = table.kind_array[seen.frames], table.maps_array[seen.frames]
    kinds = np.where(in_memory_files(space, seen.frames), Kind.SHARED, kinds)
    kinds = np.where(_of_kernel(space, seen.frames), Kind.FILE, kinds)
    pooled, anonymous, in_object = kinds == Kind.HUGETLB, kinds == Kind.ANON, kinds == Kind.SHARED
    counted = (kinds != Kind.ZERO) & (kinds != Kind.RESERVED) & ~pooled  # nor is a device's memory
    shared = maps > 1
    dirty = seen.dirty & counted | anonymous  # no storage has what an anonymous page holds
    shares = (size << _PSS_SHIFT) // np.maximum(maps, 1).astype(np.int64)
    group = np.searchsorted(np.array(starts, np.int64) >> page_shift, seen.pages, side="right") - 1
    locked = np.zeros(len(seen.pages), np.bool_)
    for area in space.areas if space.account.locked else ():
        if area.flags & LOCKED:
            first, end = np.searchsorted(seen.pages, (area.start >> page_shift, area.end >> page_shift))
            locked[first:end] = True

    def total(pages: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Bytes:
        return np.bincount(group[pages & counted], minlength=len(starts)) * size

    def in_pools(pages: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Bytes:
        return np.bincount(group[pages], minlength=len(starts)) * size

    def share(pages: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Bytes:
        chosen = pages & counted  # sums of integers far below 2**53: exact
        sums = np.bincount(group[chosen], shares[chosen].astype(np.float64), minlength=len(starts))
        return sums.astype(np.int64) >> _PSS_SHIFT

    return {
        "Rss": total(counted),
        "Pss": share(counted),
        "Pss_Dirty": share(dirty),
        "Pss_Anon": share(anonymous),
        "Pss_File": share(kinds == Kind.FILE),
        "Pss_Shmem": share(in_object),
        "Locked": share(locked),
        "Shared_Clean": total(shared & ~dirty),
        "Shared_Dirty": total(shared & dirty),
        "Private_Clean": total(~shared & ~dirty),
        "Private_Dirty": total(~shared & dirty),
        "Referenced": total(seen.accessed),
        "Shared_Hugetlb": in_pools(pooled & shared),
        "Private_Hugetlb": in_pools(pooled & ~shared),
        "KSM": total(_merged(space, seen.frames)),
        "LazyFree": total(_lazily_freed(space, seen)),
        "AnonHugePages": _in_huge_pages(space, starts, (Kind.ANON,)),
        "ShmemPmdMapped": _in_huge_pages(space, starts, (Kind.SHARED, Kind.FILE)),
        "Anonymous": total(anonymous),
        "File": total(kinds == Kind.FILE),
        "Shmem": total(in_object),
        **swap_usage(space, starts),
    }


def _merged(space: AddressSpace, frames: Frames) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which of the frames are merged ones."""
    merged = space.physical.merged
    return np.isin(space.physical.frames.owner_array[frames], [] if merged is None else [merged.number])


def _lazily_freed(space: AddressSpace, seen: ageing.Seen) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which of the pages go first when memory is short: nobody has stored to them since MADV_FREE."""
    reclaim = space.physical.reclaim
    if reclaim is None or not len(reclaim.lazy):
        return np.zeros(len(seen.pages), np.bool_)
    lazy: np.ndarray[tuple[int], np.dtype[np.bool_]] = reclaim.lazy.among(seen.frames) & ~seen.dirty
    return lazy


def _in_huge_pages(space: AddressSpace, starts: Sequence[int], kinds: Collection[Kind]) -> Bytes:
    """Bytes of some kinds of memory in large leaves, for each of the ranges that begin at `starts`."""
    addresses = np.array([address for address, _frame in leaves(space, kinds)], np.int64)
    group = np.searchsorted(np.array(starts, np.int64), addresses, side="right") - 1
    counted = np.bincount(group, minlength=len(starts)) * huge_size(space.table.format)
    return counted.astype(np.int64)


def _of_kernel(space: AddressSpace, frames: Frames) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which of the frames are the kernel's own pages, such as the vDSO: to Linux they count as a file's."""
    owners = [area.backing.number for area in space.areas if area.backing is not None and area.backing.whole]
    return np.isin(space.physical.frames.owner_array[frames], owners)


def in_memory_files(space: AddressSpace, frames: Frames) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which of the frames show pages of memory files: to Linux those are shared memory, not a file's."""
    objects, owners = space.physical.objects, space.physical.frames.owner_array
    files = [item.number for item in objects if isinstance(item, FileBacking) and item.contents is not None]
    return np.isin(owners[frames], files)


def area_texts(space: AddressSpace) -> Iterator[bytes]:
    """What stands below the line of each area in /proc/self/smaps, in their order."""
    areas = list(space.areas)
    counts = usage(space, [area.start for area in areas])
    huge, shared = space.physical.huge, space.physical.shared_huge
    page_size = space.page_size
    counts["Size"] = np.array([area.end - area.start for area in areas], np.int64)
    counts["KernelPageSize"] = counts["MMUPageSize"] = np.array(
        [(area.backing is not None and area.backing.huge_size) or page_size for area in areas], np.int64
    )
    template, known = _template(_AREA_FIELDS), dict[tuple[object, ...], bytes]()
    for area, sizes in zip(areas, _kib(_AREA_FIELDS, counts), strict=True):
        decides = huge if area.backing is None else shared
        eligible = int(decides is not None and decides.eligible(space, area))
        kind = (*sizes, eligible, _flags(area))
        text = known.get(kind)
        if text is None:  # most of thousands of areas are small, and alike in all this
            text = (
                f"{template % tuple(sizes)}THPeligible:           {eligible}\nVmFlags: {kind[-1]}\n".encode()
            )
            known[kind] = text
        yield text


def gate_text(area: Area) -> bytes:
    """What stands below the line of an area without page-table entries, one page long."""
    sizes = [area.length >> 10 if name in _SIZES else 0 for name in _AREA_FIELDS if name not in _NONE]
    text = _template(_AREA_FIELDS) % tuple(sizes)
    return f"{text}THPeligible:           0\nVmFlags: {_flags(area)}\n".encode()


def rollup_text(space: AddressSpace) -> bytes:
    """What stands below the line of /proc/self/smaps_rollup: the sums over all areas."""
    (sizes,) = _kib(_PROCESS_FIELDS, usage(space, [0]))
    return (_template(_PROCESS_FIELDS) % tuple(sizes)).encode()


@cache
def _template(fields: tuple[str, ...]) -> str:
    return "".join(f"{name + ':':<16}{'       0' if name in _NONE else '%8d'} kB\n" for name in fields)


def _kib(fields: tuple[str, ...], counts: dict[str, Bytes]) -> list[list[int]]:
    """A row of values for the template from each range."""
    rows: list[list[int]] = np.stack([counts[name] >> 10 for name in fields if name not in _NONE], 1).tolist()
    return rows


def _flags(area: Area) -> str:
    """The letters for what an area has, in the order of their bits (include/linux/mm.h)."""
    whole = area.backing is not None and area.backing.whole
    pooled = area.backing is not None and bool(area.backing.huge_size)
    protections = int(area.protection), int(area.maximum)
    in_device = area.backing is not None and area.backing.in_device
    rest = area.shared, area.grows_down, whole, area.no_reserve, pooled, in_device, area.fresh, area.charged
    return _letters(*protections, area.flags, *rest)


@cache  # a process may have a hundred thousand areas, which are of a few kinds
def _letters(
    now: int,
    ever: int,
    flags: int,
    shared: bool,
    grows_down: bool,
    whole: bool,
    no_reserve: bool,
    pooled: bool,
    in_device: bool,
    fresh: bool,
    charged: bool,
) -> str:
    letters = (
        ("rd", now & Protection.READ),
        ("wr", now & Protection.WRITE),
        ("ex", now & Protection.EXECUTE),
        ("sh", shared and ever & Protection.WRITE),
        ("mr", ever & Protection.READ),
        ("mw", ever & Protection.WRITE),
        ("me", ever & Protection.EXECUTE),
        ("ms", shared),
        ("gd", grows_down),
        ("um", flags & AreaFlags.USER_MISSING),
        ("pf", in_device),
        ("gu", flags & AreaFlags.MAYBE_GUARDED),
        ("uw", flags & AreaFlags.USER_WP),
        ("lo", flags & AreaFlags.LOCKED),
        ("io", in_device),
        ("sr", flags & AreaFlags.SEQUENTIAL),
        ("rr", flags & AreaFlags.RANDOM),
        ("dc", flags & AreaFlags.NO_FORK),
        ("de", whole or pooled or in_device),
        ("lf", flags & AreaFlags.LOCK_ON_FAULT),
        ("ac", charged),
        ("nr", no_reserve),
        ("ht", pooled),
        ("wf", flags & AreaFlags.WIPE_ON_FORK),
        ("dd", flags & AreaFlags.NO_DUMP),
        ("sd", fresh),
        ("hg", flags & AreaFlags.HUGE),
        ("nh", flags & AreaFlags.NO_HUGE),
        ("mg", flags & AreaFlags.MERGEABLE),
        ("ui", flags & AreaFlags.USER_MINOR),
        ("sl", flags & AreaFlags.SEALED),
    )
    return "".join(f"{letter} " for letter, has in letters if has)


def clear_refs(space: AddressSpace, areas: Iterable[Area], data: bytes) -> int:
    """A write to /proc/self/clear_refs: the pages of some of `areas` count as not referenced from now on.

    1 means all areas, 2 the anonymous ones, 3 those of files. With 4 no page counts as written from now on.
    With 5 the peak of its resident memory (VmHWM) begins anew. Raises Refused(EINVAL) for any other number
    and for what is no number, ERANGE for one of more than 32 bits.
    """
    text = data[:_MOST_TEXT].split(b"\0")[0].strip(_BLANKS)
    if not re.fullmatch(rb"[+-]?[0-9]+", text):
        raise Refused(errno.EINVAL, f"clear_refs takes a number, not {shown(text)}")
    what = int(text)
    if not -(1 << 31) <= what < 1 << 31:
        raise Refused(errno.ERANGE, f"clear_refs knows no {what}")
    if what not in (_ALL, _ANONYMOUS, _MAPPED, _SOFT_DIRTY, _PEAK):
        raise Refused(errno.EINVAL, f"clear_refs knows no {what}")
    if what == _PEAK:
        buddy = space.physical.buddy
        space.peak_from = int(usage(space, [0])["Rss"][0]), buddy.total - buddy.free_frames
        buddy.peak_from_now()
        return min(len(data), _MOST_TEXT)
    if what == _SOFT_DIRTY:
        soft_dirty.forget(space)
        return min(len(data), _MOST_TEXT)
    for area in areas:
        if what in (_ALL, _ANONYMOUS if area.backing is None else _MAPPED):
            ageing.forget_accesses(space, area.start, area.end)
    return min(len(data), _MOST_TEXT)
