"""Huge pages made of small ones and cut into them again, beside numpy that copies, or writes, the same.

collapse    whole, with the flush on the engine and the block that is taken   copies of the pages into a row
split       the leaf, its table, and what is remembered of it                 the entries of each table
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from aether_emu.arch.paging import Attributes, PageFlags
from aether_emu.machine.memory.ram import Ram
from aether_emu.mm import mapping
from aether_emu.mm.collapse import collapse
from aether_emu.mm.collapse_terms import Ending, Terms
from aether_emu.mm.frames.buddy import Buddy, Zone
from aether_emu.mm.frames.table import FrameTable
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, Request
from aether_emu.mm.populate import populate
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.page import PageTable
from aether_emu.mm.tables.split import split
from aether_emu.observe.bench.figure import BenchError, Figure, collector_off, now
from aether_emu.observe.bench.reserved import BESIDE, reserve
from aether_emu.observe.bench.tables import FORMATS
from aether_emu.rules import MIB
from aether_emu.system import Machine

_VA, _BASE = 1 << 32, 1 << 30
_HUGE, _PAGE = 2 * MIB, 4096
_EACH = _HUGE // _PAGE
_COLLAPSED, _SPLIT = 16, 512  # huge pages


@contextmanager
def _small_pages(isa: str, beside: int = 0) -> Iterator[AddressSpace]:
    """A space with the pages of some huge pages, each in a frame of its own and written; `beside` bytes are
    mapped besides, and not touched.
    """
    length = _COLLAPSED * _HUGE
    with Machine(isa, ram=f"{4 * length // MIB}M", aslr=False) as machine:
        space = machine.new_space()
        reserve(space, beside)
        protection = Protection.READ | Protection.WRITE
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        mapping.map_memory(space, Request(_VA, length, protection, flags, None, 0))
        populate(space, _VA, _VA + length, write=True)
        frames = space.shown(_VA, _VA + length)
        for frame in frames.tolist():
            machine.ram.words[frame * (_PAGE >> 3)] = frame
        yield space
        space.destroy()


def _collapsed(isa: str, beside: int = 0) -> float:
    with _small_pages(isa, beside) as space:
        area = space.areas.find(_VA)
        assert area is not None
        with collector_off():
            start = now()
            endings = [
                collapse(space, area, _VA + number * _HUGE, Terms(_EACH, _EACH))
                for number in range(_COLLAPSED)
            ]
            spent = now() - start
        if endings != [Ending.DONE] * _COLLAPSED:
            raise BenchError(f"collapse/{isa}: a range was not collapsed: {endings}")
        return spent


def _copied(isa: str) -> float:
    with _small_pages(isa) as space:
        physical = space.physical
        pages = physical.ram.array.reshape(-1, _PAGE >> 3)
        shown = space.shown(_VA, _VA + _COLLAPSED * _HUGE).reshape(_COLLAPSED, _EACH)
        order = _EACH.bit_length() - 1
        blocks = [physical.buddy.alloc(order) for _ in range(_COLLAPSED)]
        with collector_off():
            start = now()
            for frames, block in zip(shown, blocks, strict=True):
                np.take(pages, frames, axis=0, out=pages[block : block + _EACH], mode="clip")
            spent = now() - start
        for block in blocks:
            physical.buddy.free(block, order)
        return spent


@contextmanager
def _large_leaves(isa: str, beside: int = 0) -> Iterator[tuple[PageTable, FrameTable]]:
    """A table with the leaves that are split, and with leaves of `beside` bytes behind them."""
    fmt = FORMATS[isa]()
    tables = 2 * _SPLIT + 64 + (beside >> 30)
    ram = Ram(_BASE, tables * _PAGE, _PAGE)
    frames = FrameTable(_BASE, (tables * _PAGE + _HUGE & -_HUGE) + _SPLIT * _HUGE, fmt.page_shift)
    table = PageTable(fmt, ram, frames, Buddy(frames, [Zone("tables", 0, tables)]), 1)
    flags = PageFlags.READ | PageFlags.WRITE | PageFlags.USER | PageFlags.ACCESSED | PageFlags.DIRTY
    first = _BASE + (tables * _PAGE + _HUGE & -_HUGE)
    for start in range(_VA, _VA + _SPLIT * _HUGE + beside, _SPLIT * _HUGE):
        table.map(start, first, _SPLIT * _HUGE, Attributes(flags), largest=_HUGE)
    try:
        yield table, frames
    finally:
        ram.close()


def _was_split(isa: str, beside: int = 0) -> float:
    with _large_leaves(isa, beside) as (table, _frames):
        with collector_off():
            start = now()
            for number in range(_SPLIT):
                split(table, _VA + number * _HUGE, lambda: None)
            spent = now() - start
        if len(table.leaf_tables) != _SPLIT:
            raise BenchError(f"split/{isa}: a leaf was not split")
        return spent


def _written(isa: str) -> float:
    with _large_leaves(isa) as (table, frames):
        array, fmt = table.ram.array, table.format
        slots = [(table.new_table(1) - _BASE) >> 3 for _ in range(_SPLIT)]
        bits = fmt.leaf_bits(Attributes(PageFlags.READ | PageFlags.USER))
        first = frames.base + bits
        with collector_off():
            start = now()
            for number, slot in enumerate(slots):
                at = first + number * _HUGE
                array[slot : slot + _EACH] = np.arange(at, at + _HUGE, _PAGE, dtype=np.uint64)
            return now() - start


def figure(isa: str, name: str, goal: float, *, repetitions: int = 7) -> Figure:
    """The figure of `collapse` or `split` on one ISA, with pages of 4 KiB."""
    if name == "collapse":
        what = f"{_COLLAPSED} tables of small pages made huge pages, and flushed"
        program, floor_is = "mm.collapse.collapse", f"numpy copies of {_EACH} pages into a row each"
        ours, floor = _collapsed, _copied
    else:
        what = f"{_SPLIT} huge pages cut into small ones"
        program, floor_is = "mm.tables.split.split", f"numpy writes of {_EACH} entries each"
        ours, floor = _was_split, _written
    return Figure(
        name=name,
        isa=isa,
        what=what,
        program=program,
        floor_is=floor_is,
        unit="range",
        ours=lambda: ours(isa),
        floor=lambda: floor(isa),
        repetitions=repetitions,
        goal=goal,
    )


def growth(isa: str, name: str, goal: float, *, repetitions: int = 7) -> Figure:
    """`collapse` or `split` where 64 GiB more are mapped, and where they are not."""
    ours, others = (
        (_collapsed, "mapped that nobody touches") if name == "collapse" else (_was_split, "huge pages")
    )
    return Figure(
        name=f"growth-{name}",
        isa=isa,
        what=f"{name} of a huge page where 64 GiB more are {others}",
        program="mm.collapse.collapse" if name == "collapse" else "mm.tables.split.split",
        floor_is="the same without those",
        unit="range",
        ours=lambda: ours(isa, BESIDE),
        floor=lambda: ours(isa),
        repetitions=repetitions,
        goal=goal,
    )
