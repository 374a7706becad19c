"""Rule (d), ARM64's break before make: which edit skips the invalid entry, or its flush."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from aether_emu.verify.tlbsan.finding import Place, Where
from aether_emu.verify.tlbsan.roots import Root, lowest
from aether_emu.verify.tlbsan.rules import Rules
from aether_emu.verify.tlbsan.stale import Stale


class Skipped(NamedTuple):
    """A CPU that may hold `old` while a valid entry that needed a break stands there.

    `where` is where `old` was made invalid; None where it never was.
    """

    va: int
    old: int
    cpu: int
    where: Where | None


def skipped(
    rules: Rules,
    root: Root,
    behind: list[Stale],
    place: Place | None,
    level: int,
    va: int,
    edits: list[tuple[int, int, int]],
) -> Iterator[Skipped]:
    """What `edits` of one table skip. `place` is the operation under way: what others broke is not its."""
    shift = rules.format.shifts[level - 1]
    for number, old, new in edits:
        if not new & 1:
            continue
        address = va + (number << shift)
        if old & 1:
            if rules.needs_break(old, new, level):
                yield Skipped(address, old, _somebody(root), None)
            continue
        for (cpu, _tag), kept in root.kept.items():
            lost = kept.pages.get(address)
            if lost is not None and lost.where.place is place and rules.needs_break(lost.old, new, level):
                yield Skipped(address, lost.old, cpu, lost.where)
        for stale in behind:
            if stale.root != root.address or stale.table or stale.where.place is not place:
                continue
            at = stale.position(address)
            if at is not None and rules.needs_break(stale.olds[at], new, level):
                for cpu in stale.holders(at):
                    yield Skipped(address, stale.olds[at], cpu, stale.where)


def _somebody(root: Root) -> int:
    """A CPU that walks a root, or keeps something of it."""
    return lowest(root.cpus) if root.cpus else next(iter(root.kept))[0]
