"""What `aether pt show` and `walk` print: ranges of pages, totals below them, the levels of a walk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aether_emu.verify.tables.formats import Bits, Numbers, Right
from aether_emu.verify.tables.layout import Layout, Pages, Targets, finished, letters, slices
from aether_emu.verify.tables.listing import Listing
from aether_emu.verify.tables.survey import Survey
from aether_emu.verify.tables.text import Part, addresses, chosen, constant, hexadecimal, size_text
from aether_emu.verify.tables.walking import Walk


def table(items: Listing, *, width: int | None = None, colour: bool = False) -> Iterator[bytes]:
    """Ranges and repeats as lines, some of them at once, the titles first. Without a width each is one line.

    In colour, what somebody may write and somebody may execute stands out.
    """
    layout = _layout(items, width)
    front = f"{'start':16}{layout.gap}{'end':16}{layout.gap}size"
    yield layout.head(front, layout.spans_width, "physical").encode() + b"\n"
    hot = writable_executable(items) if colour else None
    for rows in slices(len(items)):
        parts = layout.spans(items.start[rows], items.size[rows])
        parts = layout.folded(parts, layout.spans_width, _tail(items, layout, rows))
        yield finished(parts, None if hot is None else hot[rows])


def writable_executable(items: Listing) -> Bits:
    """Which ranges somebody may write and somebody may execute; of a repeat, its first place tells."""
    execute = items.rights & np.uint16(Right.EXECUTE | Right.USER_EXECUTE) != 0
    return np.asarray((items.rights & np.uint16(Right.WRITE) != 0) & execute)


def _layout(items: Listing, width: int | None) -> Layout:
    """The wide one, if it fits the width."""
    for narrow in (False, True):
        layout = Layout(narrow, width)
        layout.measure(_pages(items))
        layout.measure_sizes(items.size)
        if width is None:
            break
        again = items.repeats != 0
        targets = Targets(items.physical[~again], items.pieces[~again])
        last = len(layout.prefix) + max(targets.width, len("physical"))
        if again.any():
            one = _repeats(items, layout, np.flatnonzero(again)[:1])
            last = max(last, sum(part.characters.shape[1] for part in one))
        if layout.spans_width + layout.pages_width + last + 2 * len(layout.gap) <= width:
            break
    return layout


def _pages(items: Listing) -> Pages:
    return Pages(items.found.tables.format, items.level, items.rights, items.memory)


def _tail(items: Listing, layout: Layout, rows: slice) -> list[Part]:
    """What is behind the span of each row."""
    again = items.repeats[rows] != 0
    pages = layout.pages(_pages(items)[rows])
    gap = constant(layout.gap, again.size)
    target = Targets(items.physical, items.pieces)[rows].parts(layout.prefix)
    if not again.any():
        return [pages, gap, *target]
    if layout.narrow:
        pages, gap = pages.where(~again), gap.where(~again)
    repeat = _repeats(items, layout, np.arange(rows.start, rows.stop))
    return [
        pages, gap, *(part.where(~again) for part in target), *(part.where(again) for part in repeat)
    ]  # fmt: skip


def _repeats(items: Listing, layout: Layout, rows: Numbers) -> list[Part]:
    """What repeats are the same as."""
    names = ["", *items.found.tables.format.level_names]
    if layout.narrow:
        before, levels, between = "= ", [f" by {name} " for name in names], ""
    else:
        before, levels, between = "as at ", [f", by the {name} table at " for name in names], "0x"
    return [
        constant(before, rows.size), addresses(items.first[rows]), chosen(levels, items.repeats[rows]),
        constant(between, rows.size), hexadecimal(items.physical[rows]),
    ]  # fmt: skip


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
    if found.wrong:
        what = "entry is wrong or leads" if found.wrong == 1 else "entries are wrong or lead"
        lines.append(f"{found.wrong:,} {what} nowhere: aether pt lint tells them")
    if found.skipped:
        tables = "table was" if found.skipped == 1 else "tables were"
        lines.append(f"{found.skipped:,} {tables} not looked at, beyond --limit: this is not all")
    return lines


def counted(items: Listing) -> str:
    """One line: how much of it filters let through."""
    again = items.repeats != 0
    size = sum(items.size[~again].tolist())
    count = int(np.count_nonzero(~again))
    text = f"shown: {size_text(size)} in {count:,} range{'' if count == 1 else 's'}"
    more = int(np.count_nonzero(again))
    return text + (f", {more:,} place{'' if more == 1 else 's'} that are as others" if more else "")


def walk_lines(found: Walk, name: str) -> Iterator[str]:
    """A walk, a line for each level and one for what comes of it."""
    yield f"{found.address:#018x}  {name}"
    for step in found.steps:
        entry = "?" * 18 if step.entry is None else f"{step.entry:#018x}"
        yield (f"  {step.level:<4} {step.index:>5}  at {step.at:#x}  {entry}  {step.fields}")
    if found.physical is not None:
        user, own = letters(found.rights)
        flags = " global" if found.rights & Right.GLOBAL else ""
        where = "" if found.backed else ", not in the image"
        page = f"page of {size_text(found.page)}, user {user}, kernel {own}{flags}"
        yield (f"  = {found.physical:#x}  {page}, {found.memory}{where}")
    if found.fault:
        yield f"  = {found.fault}"
