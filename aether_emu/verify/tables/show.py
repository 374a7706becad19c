"""What an address space looks like to a person: ranges of leaves that are alike, and totals.

Leaves become one range when their addresses follow each other and their rights, memory type, page size
and, on ARM64, contiguous hint are the same. Accessed and dirty flags don't part a range. A range whose
frames follow each other too has a physical start; another is told by how many pieces it lies in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from aether_emu.address import PhysAddr, VirtAddr
from aether_emu.verify.tables.formats import ALLOWED, Right
from aether_emu.verify.tables.survey import Survey, Walk

COLUMNS = ("start", "end", "size", "page", "user", "kernel", "flags", "memory", "physical")
_STAYS = np.uint16(ALLOWED | Right.GLOBAL | Right.CONTIGUOUS)
_UNITS = ("B", "K", "M", "G", "T", "P", "E")


@dataclass(frozen=True, slots=True)
class Range:
    """[start, end) of virtual addresses; `end` itself need not be one: it can be 2**64.

    `pieces` counts the runs of contiguous frames behind it.
    """

    start: VirtAddr
    end: int
    page: int
    rights: Right
    memory: str
    physical: PhysAddr
    pieces: int

    @property
    def size(self) -> int:
        return self.end - int(self.start)


def ranges(found: Survey) -> list[Range]:
    """All that is mapped, merged, in ascending order."""
    leaves, rules = found.leaves, found.tables.format
    if not leaves.count:
        return []
    sizes = found.sizes()
    rights = leaves.rights & _STAYS
    follows = leaves.address[1:] == leaves.address[:-1] + sizes[:-1]
    for column in (rights, leaves.memory, leaves.level):
        follows &= column[1:] == column[:-1]
    first = np.concatenate([[0], np.flatnonzero(~follows) + 1])
    last = np.concatenate([first[1:], [leaves.count]]) - 1
    breaks = leaves.physical[1:] != leaves.physical[:-1] + sizes[:-1]
    broken = np.concatenate([[0], np.cumsum(breaks)])
    columns = (
        leaves.address[first], leaves.address[last], sizes[first], rights[first], leaves.memory[first],
        leaves.physical[first], broken[last] - broken[first] + 1,
    )  # fmt: skip
    names = {kind: rules.memory_name(kind) for kind in np.unique(leaves.memory).tolist()}
    kinds = {word: Right(word) for word in np.unique(rights).tolist()}
    return [
        Range(VirtAddr(start, 64), end + page, page, kinds[right], names[memory], PhysAddr(physical), pieces)
        for start, end, page, right, memory, physical, pieces in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


def size_text(size: int) -> str:
    """Bytes in the largest unit that gives a whole number: 4K, 2M, 1536M."""
    unit = 0
    while size and size % 1024 == 0 and unit < len(_UNITS) - 1:
        size, unit = size // 1024, unit + 1
    return f"{size}{_UNITS[unit]}"


def letters(rights: Right) -> tuple[str, str]:
    """What users and the supervisor may do, as "r-x"."""
    user = (Right.USER_READ, Right.USER_WRITE, Right.USER_EXECUTE)
    own = (Right.READ, Right.WRITE, Right.EXECUTE)
    texts = (
        "".join(c if rights & right else "-" for c, right in zip("rwx", row, strict=True))
        for row in (user, own)
    )
    return next(texts), next(texts)


def row(item: Range) -> tuple[str, ...]:
    """A range in the words of COLUMNS."""
    user, own = letters(item.rights)
    marks = ("global", Right.GLOBAL), ("contiguous", Right.CONTIGUOUS)
    flags = ",".join(name for name, right in marks if item.rights & right) or "-"
    where = f"{item.physical:#x}" if item.pieces == 1 else f"{item.pieces} pieces"
    start, end = f"{item.start:016x}", f"{item.end & (1 << 64) - 1:016x}"
    return (start, end, size_text(item.size), size_text(item.page), user, own, flags, item.memory, where)


def totals(found: Survey) -> list[str]:
    """Lines below the ranges: pages by size, tables by level, how many entries are wrong."""
    rules, leaves = found.tables.format, found.leaves
    levels = np.bincount(leaves.level, minlength=rules.levels + 1).tolist()
    pages = [
        f"{levels[number]:,} of {size_text(1 << shift)}"
        for number, shift in enumerate(rules.shifts, 1)
        if levels[number]
    ]
    mapped = int(found.sizes().sum())
    used = [f"{count:,} {name}" for name, count in zip(rules.level_names, found.uses, strict=True) if count]
    lines = [
        f"{size_text(mapped)} mapped: " + (", ".join(pages) or "no pages"),
        "tables: " + ", ".join(reversed(used)),
    ]
    if found.odd:
        count = sum(item.address.size for item in found.odd)
        lines.append(f"{count:,} entries are wrong or lead nowhere: see aether pt lint")
    return lines


def columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Rows as lines with aligned columns, the first row on top."""
    widths = [max(len(cells[k]) for cells in rows) for k in range(len(rows[0]))]
    for cells in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def writable_executable(item: Range) -> bool:
    """Whether anybody may write a range that anybody may execute."""
    return bool(item.rights & Right.WRITE and item.rights & (Right.EXECUTE | Right.USER_EXECUTE))


def walk_lines(found: Walk, name: str) -> Iterator[str]:
    """A walk, a line for each level and one for what comes of it."""
    yield f"{found.address:#018x}  {name}"
    for step in found.steps:
        entry = "?" * 18 if step.entry is None else f"{step.entry:#018x}"
        yield f"  {step.level:<4} {step.index:>5}  at {step.at:#x}  {entry}  {step.fields}"
    if found.physical is not None:
        user, own = letters(found.rights)
        flags = " global" if found.rights & Right.GLOBAL else ""
        where = "" if found.backed else ", not in the image"
        yield (
            f"  = {found.physical:#x}  page of {size_text(found.page)}, user {user}, kernel {own}{flags}, "
            f"{found.memory}{where}"
        )
    if found.fault:
        yield f"  = {found.fault}"
