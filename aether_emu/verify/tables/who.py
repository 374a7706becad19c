"""Who uses a physical page: all virtual addresses that lead to it, and the page tables that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from aether_emu.address import PhysAddr, VirtAddr
from aether_emu.verify.tables.formats import Numbers, Right, Words
from aether_emu.verify.tables.layout import Layout, Pages, finished, slices, wrapped
from aether_emu.verify.tables.listing import STAYS
from aether_emu.verify.tables.survey import Survey
from aether_emu.verify.tables.text import Part, addresses, constant, hexadecimal
from aether_emu.verify.tables.unfold import expanded

MOST = 1 << 20
"""Virtual addresses of one physical one that are told. Shared tables can make any number of them."""

_NO_ENTRY = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class TableUse:
    """A page table in which the address is; it translates the virtual addresses [start, end).

    `entry` is the one that the physical address is in, `translates` the first address that goes through it.
    `at` is where the entry stands that leads to the table first; None for a root.
    """

    level: str
    table: PhysAddr
    start: VirtAddr
    end: int
    entry: int
    translates: VirtAddr
    at: PhysAddr | None


@dataclass(frozen=True, slots=True)
class Owners:
    """Who uses `physical`: `address` are its virtual addresses, ascending, `leaf` is the leaf of each.

    `complete` is False where there are more than `MOST`. `backed`: the image has the byte.
    """

    found: Survey
    physical: PhysAddr
    address: Words
    leaf: Numbers
    complete: bool
    tables: list[TableUse]
    backed: bool

    def pages(self, rows: slice) -> Pages:
        """What maps it at some of `address`. On ARM64 what can be written is dirty: no word of it."""
        leaves, rules = self.found.leaves, self.found.tables.format
        told = STAYS | np.uint16(Right.ACCESSED)
        if rules.isa == "x86_64":
            told |= np.uint16(Right.DIRTY)
        leaf = self.leaf[rows]
        return Pages(rules, leaves.level[leaf], leaves.rights[leaf] & told, leaves.memory[leaf])


def who(found: Survey, physical: int, most: int = MOST) -> Owners:
    """Everybody who uses a physical address. Raises AddressError when it has more than 64 bits."""
    frame = PhysAddr(physical)
    leaves, byte = found.leaves, np.uint64(physical)
    hit = (leaves.physical <= byte) & (byte - leaves.physical < found.sizes())
    leaf = np.flatnonzero(hit)
    address, leaf, complete = _everywhere(
        found, leaves.address[leaf] + (byte - leaves.physical[leaf]), leaf, most
    )
    image = found.tables.image
    backed = bool(image.existing(np.array([byte]), np.ones(1, np.uint64))[0])
    return Owners(found, frame, address, leaf, complete, _tables(found, physical), backed)


def _everywhere(found: Survey, address: Words, leaf: Numbers, most: int) -> tuple[Words, Numbers, bool]:
    """The same leaves by all ways: from the lowest tables that are reached again up to the highest."""
    again = found.again
    for level in range(1, found.tables.format.levels):
        here = np.flatnonzero(again.level == level)
        if not here.size or not address.size:
            continue
        order = np.argsort(address, kind="stable")
        address, leaf = address[order], leaf[order]
        first = again.first[here]
        low = np.searchsorted(address, first)
        high = np.searchsorted(address, first + (found.spans(again.level[here]) - np.uint64(1)), "right")
        count = high - low
        enough = np.cumsum(count) <= most - address.size
        which, inside = expanded(low[enough], count[enough])
        place = again.address[here][enough][which] - first[enough][which]
        address, leaf = (
            np.concatenate([address, address[inside] + place]),
            np.concatenate([leaf, leaf[inside]]),
        )
        if not enough.all():
            order = np.argsort(address, kind="stable")
            return address[order], leaf[order], False
    order = np.argsort(address, kind="stable")[:most]
    return address[order], leaf[order], address.size <= most


def _tables(found: Survey, physical: int) -> list[TableUse]:
    places, rules = found.places, found.tables.format
    sizes = np.array([rules.table_size(level + 1) for level in range(rules.levels)], np.uint64)
    inside = np.uint64(physical) - places.table
    hit = np.flatnonzero(
        (places.table <= np.uint64(physical)) & (inside < sizes[places.level.astype(np.int64) - 1])
    )
    uses = []
    for table, level, start, at in zip(
        *(getattr(places, column)[hit].tolist() for column in ("table", "level", "address", "at")),
        strict=True,
    ):
        entry = (physical - table) // 8
        span = int(found.spans(np.array([level], np.uint8))[0])
        translates = start + (entry << rules.shifts[level - 1])
        if rules.isa == "x86_64" and level == rules.levels and entry >> rules.widths[-1] - 1:
            translates += (1 << 64) - span
        uses.append(
            TableUse(
                rules.level_names[level - 1], PhysAddr(table), VirtAddr(start, 64), start + span, entry,
                VirtAddr(translates, 64), None if at == _NO_ENTRY else PhysAddr(at),
            )
        )  # fmt: skip
    return sorted(uses, key=lambda use: (-rules.level_names.index(use.level), int(use.start)))


def lines(owners: Owners, width: int | None = None) -> Iterator[bytes]:
    """For people: the address, a line for each virtual one, and one for each table."""
    count = owners.address.size
    what = ["not mapped" if not count else f"mapped at {count:,} address{'' if count == 1 else 'es'}"]
    if owners.tables:
        what.append("a page table")
    if not owners.backed:
        what.append("no memory of the image")
    yield _text([f"{owners.physical:#x}: {', '.join(what)}"], width)
    yield from _mappings(owners, width)
    if not owners.complete:
        yield b"  and more: shared tables lead there in other ways\n"
    yield _text([_table_line(use) for use in owners.tables], width)


def _text(texts: list[str], width: int | None) -> bytes:
    return "".join(f"{line}\n" for line in wrapped(texts, width)).encode()


def _table_line(use: TableUse) -> str:
    span = f"{use.start:016x}-{use.end & _NO_ENTRY:016x}"
    by = "a root" if use.at is None else f"of {span}, by the entry at {use.at:#x}"
    return (
        f"  {use.level} table at {use.table:#x}, {by}; in it entry {use.entry}, "
        f"which translates {use.translates:016x}"
    )


def _mappings(owners: Owners, width: int | None) -> Iterator[bytes]:
    if not owners.address.size:
        return
    pages = owners.pages(slice(None))
    at = owners.found.leaves.at[owners.leaf]
    last = len(f"entry at 0x{int(at.max()):x}")
    for narrow in (False, True):
        layout = Layout(narrow, width)
        layout.measure(pages)
        if width is None or 18 + layout.pages_width + 2 * len(layout.gap) + last <= width:
            break
    front = f"  {'virtual':16}"
    yield layout.head(front, 18, "entry at").encode() + b"\n"
    for rows in slices(owners.address.size):
        size = at[rows].size
        parts: list[Part] = [constant("  ", size), addresses(owners.address[rows])]
        tail = [layout.pages(pages[rows]), constant(f"{layout.gap}0x", size), hexadecimal(at[rows])]
        yield finished(layout.folded(parts, 18, tail))
