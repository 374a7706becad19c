"""/proc/PID/numa_maps: how many pages of each area are on which node (numa(7)). The machine has one.

Fields and order are those of Linux 6.6 (fs/proc/task_mmu.c). A page counts as active if it was accessed since
that was last forgotten: Linux looks at its lists instead. The zero page is nobody's and counts nowhere.
"""

from __future__ import annotations

import numpy as np

from aether_emu.linux.maps import record_of
from aether_emu.linux.proc.smaps import in_memory_files
from aether_emu.linux.task.process import Process
from aether_emu.mm import ageing
from aether_emu.mm.allocation import Area
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.space import AddressSpace

_SPECIAL = {"[heap]": " heap", "[stack]": " stack"}
_ESCAPED = str.maketrans({char: f"\\{ord(char):03o}" for char in "\n\t= \\"})


def numa_maps(process: Process) -> bytes:
    """A line for each area."""
    space = process.mm
    lines = [f"{area.start:08x} default{_name(space, area)}{_pages(space, area)}\n" for area in space.areas]
    return "".join(lines).encode("utf-8", "surrogateescape")


def _name(space: AddressSpace, area: Area) -> str:
    name = record_of(space, area).name
    return f" file={name.translate(_ESCAPED)}" if name.startswith("/") else _SPECIAL.get(name, "")


def _pages(space: AddressSpace, area: Area) -> str:
    seen, table = ageing.look(space, area.start, area.end), space.physical.frames
    kinds = table.kind_array[seen.frames]
    counted = kinds != int(Kind.ZERO)
    pages = int(np.count_nonzero(counted))
    if not pages or (area.backing is not None and area.backing.whole):
        return ""
    anonymous = kinds == int(Kind.ANON)
    in_memory = (kinds == int(Kind.SHARED)) | in_memory_files(space, seen.frames)
    fields = {
        "anon": int(np.count_nonzero(anonymous)),
        "dirty": int(np.count_nonzero(counted & (seen.dirty | anonymous | in_memory))),
        "mapped": pages,
        "mapmax": int(table.maps_array[seen.frames[counted]].max()),
        "active": int(np.count_nonzero(counted & seen.accessed)),
        "N0": pages,
        "kernelpagesize_kB": space.page_size >> 10,
    }
    left_out = {name for name in ("anon", "dirty") if not fields[name]}
    left_out |= {"mapped"} if pages in (fields["anon"], fields["dirty"]) else set()
    left_out |= {"mapmax"} if fields["mapmax"] <= 1 else set()
    left_out |= {"active"} if fields["active"] >= pages else set()
    return "".join(f" {name}={value}" for name, value in fields.items() if name not in left_out)
