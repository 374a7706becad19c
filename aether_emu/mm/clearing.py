"""Entries that go: those of a range are removed, damaged ones put right first, and tables that serve nobody
are detached. `gather` lets go of what they showed, after the flush.
"""

from __future__ import annotations

from typing import Protocol

from aether_emu.mm.allocation import Area, AreaMap
from aether_emu.mm.audit import Audited, mend, mend_all
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.limits import Limits
from aether_emu.mm.tables import edits
from aether_emu.mm.tables.damage import Damaged
from aether_emu.mm.tables.page import Found
from aether_emu.mm.tlb import Gather


class Cleared(Audited, Protocol):
    """An address space whose entries go."""

    damages: list[Damaged]
    guard: int
    areas: AreaMap
    limits: Limits


def clear(
    space: Cleared,
    gather: Gather,
    area: Area,
    span: tuple[int, int],
    but: Kind | None,
    *,
    guards: bool,
) -> None:
    """The entries of `span`, a part of `area`, but for those of frames of one kind: `AddressSpace.clear`."""
    known, (start, end) = len(space.damages), span
    frameless = edits.zap(
        space.table,
        gather,
        start,
        end,
        but,
        lambda stretch: space.damages.extend(mend(space, area, stretch)),
        0 if guards else space.guard,
    )
    _finish(space, gather, frameless, known, span)


def clear_all(space: Cleared, gather: Gather, areas: list[Area], start: int, end: int) -> None:
    """Likewise, of what lies of many areas in `[start, end)`, at once."""
    known = len(space.damages)
    frameless = edits.zap_all(
        space.table,
        gather,
        [(max(area.start, start), min(area.end, end)) for area in areas],
        lambda used: space.damages.extend(mend_all(space, areas, used)),
    )
    _finish(space, gather, frameless, known, (start, end))


def _finish(
    space: Cleared, gather: Gather, frameless: list[Found], known: int, span: tuple[int, int]
) -> None:
    """Slots of swap lose a user for each entry that named one; where something was damaged all is flushed."""
    if frameless and space.physical.swap is not None:
        space.physical.swap.dropped(frameless)
    if len(space.damages) > known:
        gather.page(span[0], span[1] - span[0])
        space.physical.lost_entries = True


def prune(space: Cleared, gather: Gather, start: int, end: int) -> None:
    """Detach tables between the neighbours of a freed range."""
    below, above = space.areas.preceding(end), space.areas.following(start)
    floor = below.end if below is not None else 0
    ceiling = above.start if above is not None else space.limits.user_end
    span = 1 << space.table.leaf_span_shift
    first, last = start & -span, (end - 1 & -span) + span
    if max(first, floor + span - 1 & -span) >= min(last, ceiling & -span):
        return  # every table of the range, leaf tables included, serves a neighbour too
    gather.detach(space.table.prune(start, end, floor, ceiling))
