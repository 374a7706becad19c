"""Bulk table edits: 4K pages by `PageTable.map`, its tables included, beside bare numpy stores.

The floor stores as many leaf tables as the mapping has, from an array made before, into memory as
fresh as that which the tables go to: for both, most of the time is the host's first touch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.arch.paging import Attributes, PageFlags, PageTableFormat
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.machine.memory.ram import Ram
from aether_emu.mm.frames.buddy import Buddy, Zone
from aether_emu.mm.frames.table import FrameTable
from aether_emu.mm.tables.page import PageTable
from aether_emu.mm.tables.walk import Mapped
from aether_emu.observe.bench.figure import BenchError, Figure, collector_off, now

FORMATS: Mapping[str, Callable[[], PageTableFormat]] = {"x86_64": X86Format, "arm64": ArmFormat}
_BASE = 1 << 30
_VA = 1 << 40
_ATTRIBUTES = Attributes(PageFlags.READ | PageFlags.WRITE | PageFlags.USER)


def figure(isa: str, goal: float, *, length: int = 1 << 30, repetitions: int = 25) -> Figure:
    """The figure for `length` bytes, a multiple of what a leaf table covers."""
    make_format = FORMATS[isa]
    fmt = make_format()
    page, entries = fmt.page_size, fmt.levels[0].entries
    tables = length // (page * entries)
    size = (tables + 64) * page

    def ours() -> float:
        ram = Ram(_BASE, size, page)
        frames = FrameTable(_BASE, size, fmt.page_shift)
        table = PageTable(fmt, ram, frames, Buddy(frames, [Zone("all", 0, frames.count)]), 1)
        try:
            with collector_off():
                start = now()
                table.map(_VA, _BASE, length, _ATTRIBUTES)
                spent = now() - start
            if not isinstance(table.walk(_VA + length - 1), Mapped):
                raise BenchError("the last page is not mapped")
            return spent
        finally:
            ram.close()

    contents = np.arange(_BASE, _BASE + length, page, dtype=np.uint64)
    contents |= np.uint64(fmt.leaf_bits(_ATTRIBUTES))

    def floor() -> float:
        ram = Ram(_BASE, size, page)
        try:
            words = ram.array
            with collector_off():
                start = now()
                for first in range(0, tables * entries, entries):
                    words[first : first + entries] = contents[first : first + entries]
                return now() - start
        finally:
            del words
            ram.close()

    return Figure(
        name="map",
        isa=isa,
        what=f"map {length >> 20} MiB as {page >> 10}K pages: {length // page:,} entries, tables included",
        program="mm.page.PageTable.map",
        floor_is=f"{tables} numpy stores of {entries * 8 >> 10} KiB",
        unit="mapping",
        ours=ours,
        floor=floor,
        repetitions=repetitions,
        goal=goal,
    )
