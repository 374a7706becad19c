"""What `aether pt diff` prints: a line for each range that differs, and below it what it was and is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from aether_emu.verify.tables.diff import ALONE, USE, Change, Difference, State
from aether_emu.verify.tables.formats import Bits
from aether_emu.verify.tables.layout import Layout, finished, slices, wrapped
from aether_emu.verify.tables.text import Part, chosen, constant, distinct, size_text

WORDS = {
    Change.PROTECTION: "protection",
    Change.GLOBAL: "global",
    Change.CONTIGUOUS: "contiguous",
    Change.SIZE: "size",
    Change.MEMORY: "memory",
    Change.TARGET: "target",
    Change.ACCESSED_ON: "accessed on",
    Change.ACCESSED_OFF: "accessed off",
    Change.DIRTY_ON: "dirty on",
    Change.DIRTY_OFF: "dirty off",
}
"""How each change is told; a range that one side alone maps is told by its sign."""


def changes(found: int) -> list[str]:
    """The changes in words."""
    return [word for change, word in WORDS.items() if found & change]


def table(found: Difference, width: int | None = None) -> Iterator[bytes]:
    """Ranges as lines, some of them at once, and how many there are; nothing where nothing differs."""
    if not len(found):
        return
    layout = _layout(found, width)
    front = f"  {'start':16}{layout.gap}{'end':16}{layout.gap}size"
    yield layout.head(front, 2 + layout.spans_width, "physical").encode() + b"\n"
    for rows in slices(len(found)):
        yield finished(_rows(found, layout, rows))
    yield "".join(f"{line}\n" for line in wrapped([_counted(found)], width)).encode()


def _layout(found: Difference, width: int | None) -> Layout:
    for narrow in (False, True):
        layout = Layout(narrow, width)
        layout.measure(found.old.pages, found.new.pages)
        layout.measure_sizes(found.size)
        last = len(layout.prefix) + max(found.old.targets.width, found.new.targets.width, len("physical"))
        whole = 2 + layout.spans_width + layout.pages_width + last + 2 * len(layout.gap)
        if width is None or whole <= width:
            break
    return layout


def _rows(found: Difference, layout: Layout, rows: slice) -> list[Part]:
    change = found.change[rows]
    mapped, unmapped = (change == np.uint16(kind) for kind in (Change.MAPPED, Change.UNMAPPED))
    altered = ~(mapped | unmapped)
    told = altered & (change & ~np.uint16(USE) != 0)  # an access alone leaves the rest as it was
    signs = chosen(["~ ", "+ ", "- "], mapped + 2 * unmapped)
    kinds, which = distinct(change)
    words = chosen([", ".join(changes(kind)) for kind in kinds], which)
    old, new = (_state(layout, state, rows) for state in (found.old, found.new))
    tail = [*_in(unmapped, old), *_in(mapped, new), words.where(altered)]
    front = [signs, *layout.spans(found.start[rows], found.size[rows])]
    return [
        *layout.folded(front, 2 + layout.spans_width, tail),
        *_in(told, [constant("\n    was ", change.size), *old, constant("\n    is  ", change.size), *new]),
    ]


def _in(rows: Bits, parts: Sequence[Part]) -> list[Part]:
    return [part.where(rows) for part in parts] if rows.any() else []


def _state(layout: Layout, state: State, rows: slice) -> list[Part]:
    pages = layout.pages(state.pages[rows])
    gap = constant(layout.gap, pages.rows)
    return [pages, gap, *state.targets[rows].parts(layout.prefix)]


def _counted(found: Difference) -> str:
    texts = []
    for word, kinds in (
        ("mapped", Change.MAPPED),
        ("unmapped", Change.UNMAPPED),
        ("changed", ~ALONE),
    ):
        count, size = found.counted(kinds)
        if count:
            texts.append(f"{size_text(size)} {word} in {count:,} range{'' if count == 1 else 's'}")
    return ", ".join(texts)
