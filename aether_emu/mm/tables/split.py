"""Large leaves that are live: splitting one into smaller ones that translate alike.

    before   [ leaf of 1G ]                     after   [ table ] -> 512 leaves of 2M
    where the architecture demands break before make:   leaf -> absent, flush -> table

Which leaf a range gets when it is mapped, `PageTable.map` decides.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aether_emu.arch.paging import Leaf
from aether_emu.errors import MappingError
from aether_emu.machine.memory.ram import Ram
from aether_emu.mm.tables.page import Found, PageTable


def split(table: PageTable, ram: Ram, va: int, flush: Callable[[], object]) -> None:
    """Put a table of the next smaller leaves in the place of the large leaf over `va`.

    `flush` must drop all that any TLB holds of it; it is called once or, if the leaf is one of a
    contiguous run (which ends), twice. Nobody may need the range while it runs. Raises MappingError
    where there is no large leaf, and OutOfFrames, with nothing changed.
    """
    found, leaf = _large(table, va)
    below = found.level - 1
    fresh = table.new_table(below)
    if leaf.attributes.contiguous:
        _end_run(table, ram, found, flush)
        found, leaf = _large(table, va)
    spec = table.format.levels[below - 1]
    first = table.format.leaf_entry(leaf.address, leaf.attributes, below)
    slot = fresh - ram.base >> 3
    ram.array[slot : slot + spec.entries] = np.arange(
        first, first + spec.entries * spec.size, spec.size, dtype=np.uint64
    )
    table.exchange(found, table.format.table_entry(fresh, table.reach), flush)
    table.note_leaf_table(va, below, slot)


def split_down(table: PageTable, ram: Ram, va: int, flush: Callable[[], object]) -> None:
    """Split until `va` is mapped by a leaf of one page. Raises as `split`; what was split stays so."""
    while _present(table, va).level > 1:
        split(table, ram, va, flush)


def _end_run(table: PageTable, ram: Ram, found: Found, flush: Callable[[], object]) -> None:
    """Take the hint from a whole run: a change that is itself forbidden on live entries."""
    fmt = table.format
    run = fmt.levels[found.level - 1].contiguous
    first = found.slot & -run
    entries = ram.array[first : first + run].copy()
    ram.array[first : first + run] = 0
    flush()
    ram.array[first : first + run] = entries & np.uint64((1 << 64) - 1 ^ fmt.contiguous_bit)


def _present(table: PageTable, va: int) -> Found:
    found = table.find(va)
    if found is None or not found.entry & table.format.present_mask:
        raise MappingError(f"nothing is mapped at {va:#x}")
    return found


def _large(table: PageTable, va: int) -> tuple[Found, Leaf]:
    found = _present(table, va)
    leaf = table.format.decode(found.entry, found.level)
    if found.level == 1 or not isinstance(leaf, Leaf):
        raise MappingError(f"there is no large leaf at {va:#x}")
    return found, leaf
