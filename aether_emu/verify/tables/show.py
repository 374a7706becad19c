"""What an address space looks like to a person: ranges of leaves that are alike, and totals.

Leaves become one range when their addresses follow each other and their rights, memory type, page size
and, on ARM64, contiguous hint are the same. Accessed and dirty flags don't part a range. A range whose
frames follow each other too has a physical start; another is told by how many pieces it lies in.
What a table maps is listed once: where it is reached again, one line says what it is the same as.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from aether_emu.address import PhysAddr, VirtAddr
from aether_emu.verify.tables.formats import ALLOWED, Right
from aether_emu.verify.tables.survey import Survey
from aether_emu.verify.tables.walking import Walk

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


@dataclass(frozen=True, slots=True)
class Repeat:
    """[start, end) is what [first, ...) is: entries lead to the same table, of the level of that name.

    Where there are several, each of them leads to the whole table.
    """

    start: VirtAddr
    end: int
    level: str
    table: PhysAddr
    first: VirtAddr

    @property
    def size(self) -> int:
        return self.end - int(self.start)


def listed(found: Survey) -> list[Range | Repeat]:
    """All that is mapped, in ascending order."""
    return sorted((*ranges(found), *repeats(found)), key=lambda item: int(item.start))


def repeats(found: Survey) -> list[Repeat]:
    """Where tables are reached again, in ascending order."""
    again, rules = found.again, found.tables.format
    if not again.address.size:
        return []
    span = np.uint64(1) << np.array([*rules.shifts, rules.shifts[-1]], np.uint64)[again.level]
    follows = again.address[1:] == again.address[:-1] + span[:-1]
    for column in (again.level, again.table, again.first):
        follows &= column[1:] == column[:-1]
    first = np.concatenate([[0], np.flatnonzero(~follows) + 1])
    last = np.concatenate([first[1:], [again.address.size]]) - 1
    columns = (
        again.address[first], again.address[last], span[first], again.level[first], again.table[first],
        again.first[first],
    )  # fmt: skip
    return [
        Repeat(
            VirtAddr(start, 64), end + size, rules.level_names[level - 1], PhysAddr(table), VirtAddr(same, 64)
        )
        for start, end, size, level, table, same in zip(*(column.tolist() for column in columns), strict=True)
    ]


def ranges(found: Survey) -> list[Range]:
    """All leaves of the tables that were read, merged, in ascending order."""
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


@cache
def size_text(size: int) -> str:
    """Bytes in the largest unit that gives a whole number: 4K, 2M, 1536M."""
    unit = 0
    while size and size % 1024 == 0 and unit < len(_UNITS) - 1:
        size, unit = size // 1024, unit + 1
    return f"{size}{_UNITS[unit]}"


@cache
def letters(rights: Right) -> tuple[str, str]:
    """What users and the supervisor may do, as "r-x"."""
    user = (Right.USER_READ, Right.USER_WRITE, Right.USER_EXECUTE)
    own = (Right.READ, Right.WRITE, Right.EXECUTE)
    texts = (
        "".join(c if rights & right else "-" for c, right in zip("rwx", row, strict=True))
        for row in (user, own)
    )
    return next(texts), next(texts)


def row(item: Range | Repeat) -> tuple[str, ...]:
    """A range in the words of COLUMNS."""
    start, end = f"{item.start:016x}", f"{item.end & (1 << 64) - 1:016x}"
    if isinstance(item, Repeat):
        same = f"as at {item.first:016x}, by the {item.level} table at {item.table:#x}"
        return (start, end, size_text(item.size), *("-",) * 5, same)
    user, own = letters(item.rights)
    marks = ("global", Right.GLOBAL), ("contiguous", Right.CONTIGUOUS)
    flags = ",".join(name for name, right in marks if item.rights & right) or "-"
    where = f"{item.physical:#x}" if item.pieces == 1 else f"{item.pieces} pieces"
    return (start, end, size_text(item.size), size_text(item.page), user, own, flags, item.memory, where)


def totals(found: Survey) -> list[str]:
    """Lines below the ranges: pages by size, tables by level, how many entries are wrong."""
    rules = found.tables.format
    pages = [
        f"{count:,} of {size_text(1 << shift)}"
        for count, shift in zip(found.pages, rules.shifts, strict=True)
        if count
    ]
    mapped = sum(count << shift for count, shift in zip(found.pages, rules.shifts, strict=True))
    used = [f"{count:,} {name}" for name, count in zip(rules.level_names, found.uses, strict=True) if count]
    lines = [
        f"{size_text(mapped)} mapped: " + (", ".join(pages) or "no pages"),
        "tables: " + ", ".join(reversed(used)),
    ]
    if rules.registers.encryption_bit is not None:
        lines.append(found.tables.title)
    if found.odd:
        count = sum(item.address.size for item in found.odd)
        what = "entry is wrong or leads" if count == 1 else "entries are wrong or lead"
        lines.append(f"{count:,} {what} nowhere: see aether pt lint")
    return lines


def columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Rows as lines with aligned columns, the first row on top."""
    widths = [max(len(cells[k]) for cells in rows) for k in range(len(rows[0]))]
    for cells in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def writable_executable(item: Range | Repeat) -> bool:
    """Whether anybody may write a range that anybody may execute; of a repeat, its first place tells."""
    if isinstance(item, Repeat):
        return False
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
