"""/proc/PID/numa_maps: how many pages of each area are on which node (numa(7)). The machine has one.

Fields and order are those of Linux 6.6 (fs/proc/task_mmu.c). A page counts as active if it was accessed since
that was last forgotten: Linux looks at its lists instead. The zero page is nobody's and counts nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from aether_emu.linux.memory_policy import text
from aether_emu.linux.proc.smaps import in_memory_files
from aether_emu.mm import ageing
from aether_emu.mm.allocation import POLICY_SHIFT, Area
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.space import AddressSpace

_SPECIAL = {"[heap]": " heap", "[stack]": " stack"}
_ESCAPED = str.maketrans({char: f"\\{ord(char):03o}" for char in "\n\t= \\"})


def numa_maps(space: AddressSpace, areas: Iterable[Area], policy: int = 0) -> bytes:
    """A line for each of the areas of a space: all of them, by address. `policy` is that of its process."""
    shown, lines = list(areas), list[str]()
    words = {0: "default", policy: text(policy)}  # areas may be thousands
    for area, pages in zip(shown, _pages(space, shown), strict=True):
        told = area.flags >> POLICY_SHIFT or policy
        lines.append(
            f"{area.start:08x} {words[told] if told in words else text(told)}{_name(area.name)}{pages}\n"
        )
    return "".join(lines).encode("utf-8", "surrogateescape")


def _name(name: str) -> str:
    return f" file={name.translate(_ESCAPED)}" if name.startswith("/") else _SPECIAL.get(name, "")


def _pages(space: AddressSpace, areas: list[Area]) -> Iterator[str]:
    """What each area's line tells of its pages. The tables are walked once: areas may be thousands."""
    seen, table = ageing.look(space, 0, space.limits.user_end), space.physical.frames
    kinds = table.kind_array[seen.frames]
    counted = kinds != int(Kind.ZERO)
    anonymous = kinds == int(Kind.ANON)
    in_memory = (kinds == int(Kind.SHARED)) | in_memory_files(space, seen.frames)
    dirty = counted & (seen.dirty | anonymous | in_memory)
    starts = np.array([area.start for area in areas], np.int64) >> space.table.format.page_shift
    group = np.searchsorted(starts, seen.pages, side="right") - 1

    def total(pages: NDArray[np.bool_]) -> list[int]:
        counts: list[int] = np.bincount(group[pages], minlength=len(areas)).tolist()
        return counts

    most = np.zeros(len(areas), np.int64)
    np.maximum.at(most, group[counted], table.maps_array[seen.frames[counted]])
    rows = zip(
        *(areas, total(counted), total(anonymous), total(dirty), total(counted & seen.accessed)),
        most.tolist(),
        strict=True,
    )
    for area, pages, anon, written, active, maps in rows:
        if not pages or (area.backing is not None and area.backing.whole):
            yield ""
        else:
            yield _fields(pages, anon, written, active, maps, space.page_size >> 10)


def _fields(pages: int, anonymous: int, dirty: int, active: int, most: int, page_kib: int) -> str:
    """Of an area with so many pages, of which one is mapped `most` times."""
    fields = {
        "anon": anonymous,
        "dirty": dirty,
        "mapped": pages,
        "mapmax": most,
        "active": active,
        "N0": pages,
        "kernelpagesize_kB": page_kib,
    }
    left_out = {name for name in ("anon", "dirty") if not fields[name]}
    left_out |= {"mapped"} if pages in (anonymous, dirty) else set()
    left_out |= {"mapmax"} if most <= 1 else set()
    left_out |= {"active"} if active >= pages else set()
    return "".join(f" {name}={value}" for name, value in fields.items() if name not in left_out)
