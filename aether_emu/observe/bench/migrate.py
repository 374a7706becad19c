"""Pages that move to other frames, to make rows of free ones, beside numpy copies of the same pages.

Every second page of the memory is in use: compaction finds their entries by the reverse map, holds them,
flushes, copies, and shows the new frames. The floor copies the bytes alone.
"""

from __future__ import annotations

import numpy as np

from aether_emu.machine.memory.ram import Ram
from aether_emu.mm import mapping
from aether_emu.mm.compaction import Compaction
from aether_emu.mm.counters import Event
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, Request
from aether_emu.mm.populate import populate
from aether_emu.observe.bench.figure import BenchError, Figure, collector_off, now
from aether_emu.observe.bench.reserved import BESIDE, reserve
from aether_emu.rules import MIB
from aether_emu.system import Machine

_VA, _PAGE, _ORDER = 1 << 32, 4096, 9
_ROWS = 8
_MEMORY = 64 * MIB
_RW = 3


def _ours(isa: str, beside: int) -> float:
    """CPU seconds for each page that moved, with `beside` more bytes mapped that nobody touches."""
    with Machine(isa, ram=_MEMORY, aslr=False) as machine:
        space = machine.new_space()
        reserve(space, beside)
        length = (machine.buddy.free_frames - 512) * _PAGE
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        mapping.map_memory(space, Request(_VA, length, _RW, flags, None, 0))
        if populate(space, _VA, _VA + length, write=True) is not None:
            raise BenchError(f"migrate/{isa}: memory is out")
        area = space.areas.find(_VA)
        assert area is not None
        shown = space.shown(_VA, _VA + length)
        for number in np.flatnonzero(shown % 2).tolist():
            at = _VA + number * _PAGE
            space.discard(area, at, at + _PAGE)
        compaction, n = Compaction(machine.physical), machine.physical.counters.n
        with collector_off():
            start = now()
            rows = [compaction.make(_ORDER) for _ in range(_ROWS)]
            spent = now() - start
        moved = n[Event.MIGRATED_PAGES]
        if None in rows or moved < _ROWS << _ORDER - 2:
            raise BenchError(f"migrate/{isa}: {moved} pages moved, for the rows {rows}")
        for row in rows:
            assert row is not None, "looked at above"
            machine.buddy.free_bulk(np.arange(row, row + (1 << _ORDER)))
        space.destroy()
        return spent / moved


def _floor() -> float:
    count = _ROWS << _ORDER - 1
    ram = Ram(1 << 30, 4 * count * _PAGE, _PAGE)
    try:
        by_page = ram.array.reshape(-1, _PAGE >> 3)
        by_page[:] = 1
        old, new = np.arange(0, 2 * count, 2), np.arange(2 * count, 4 * count, 2)
        with collector_off():
            start = now()
            for first in range(0, count, 1 << _ORDER - 1):
                part = slice(first, first + (1 << _ORDER - 1))
                by_page[new[part]] = by_page[old[part]]
            spent = now() - start
        del by_page
        return spent / count
    finally:
        ram.close()


def figure(isa: str, goal: float, *, repetitions: int = 5) -> Figure:
    """The figure on one ISA, with pages of 4 KiB."""
    return Figure(
        name="migrate",
        isa=isa,
        what=f"make {_ROWS} rows of {1 << _ORDER} free frames, half of them in use: for each page that moves",
        program="mm.compaction.Compaction.make",
        floor_is="numpy copies of the pages",
        unit="page",
        ours=lambda: _ours(isa, 0),
        floor=_floor,
        repetitions=repetitions,
        goal=goal,
    )


def growth(isa: str, goal: float, *, repetitions: int = 5) -> Figure:
    """The same where 64 GiB more are mapped, which nobody touches, beside where they are not."""
    return Figure(
        name="growth-migrate",
        isa=isa,
        what="a page moves where 64 GiB more are mapped that nobody touches",
        program="mm.compaction.Compaction.make",
        floor_is="the same without those",
        unit="page",
        ours=lambda: _ours(isa, BESIDE),
        floor=lambda: _ours(isa, 0),
        repetitions=repetitions,
        goal=goal,
    )
