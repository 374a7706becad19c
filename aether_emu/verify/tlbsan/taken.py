"""What the edits of one table take away, and which CPUs may go on with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from aether_emu.verify.tlbsan.roots import Root
from aether_emu.verify.tlbsan.rules import Loss, Rules
from aether_emu.verify.tlbsan.stale import Stale

Edits = list[tuple[int, int, int]]
"""(number of the entry, old, new), each."""


class Taken(NamedTuple):
    """Entries that lost the same: their numbers, what they were, and the mask of the CPUs that may hold that.

    `absent`, `leaves` and `table` as those of `Stale`.
    """

    numbers: list[int]
    olds: list[int]
    loss: Loss
    cpus: int
    absent: bool
    leaves: bool = True
    table: int = 0


def taken(rules: Rules, root: Root, level: int, edits: Edits) -> Iterator[Taken]:
    """What CPUs that walk a root, or have, may hold: the entries as they were."""
    lost: dict[tuple[Loss, bool, bool], list[tuple[int, int]]] = {}
    for number, old, new in edits:
        loss = rules.loss(old, new, level)
        if loss is not Loss.NOTHING:
            leaf = level == 1 or rules.table(old, level) is None
            lost.setdefault((loss, not new & 1, leaf), []).append((number, old))
    for (loss, absent, leaf), items in lost.items():
        numbers, olds = [number for number, _old in items], [old for _number, old in items]
        yield Taken(numbers, olds, loss, root.cpus, absent, leaf)


def taken_from_before(
    rules: Rules, root: Root, behind: list[Stale], level: int, va: int, edits: Edits
) -> Iterator[Taken]:
    """What CPUs may still hold from before an entry lost its accessed flag.

    On ARM64 such an entry is not kept any more (R_XCLRD), so that to make it invalid takes nothing away. But
    whoever has not flushed since may hold it as it was with the flag.
    """
    shift = rules.format.shifts[level - 1]
    for stale in behind:
        if stale.root != root.address or stale.loss is not Loss.NOTICE or stale.table:
            continue
        for number, _old, new in edits:
            at = stale.position(va + (number << shift))
            if at is None or rules.loss(stale.olds[at], new, level) is not Loss.RIGHT:
                continue
            cpus = sum(1 << cpu for cpu in stale.holders(at))
            if cpus:
                yield Taken([number], [stale.olds[at]], Loss.RIGHT, cpus, not new & 1)
