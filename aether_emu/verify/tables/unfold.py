"""Leaves at all addresses that lead to them: what repeats stand for, as far as two surveys differ in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aether_emu.errors import ConfigError
from aether_emu.verify.tables.formats import Bits, Bytes, Flags, Numbers, Words
from aether_emu.verify.tables.survey import Survey


@dataclass(frozen=True, slots=True)
class Flat:
    """Leaves in ascending order of `address`. `number` is each one's in the survey's leaves."""

    found: Survey
    address: Words
    number: Numbers

    def __getitem__(self, rows: Bits | Numbers) -> Flat:
        return Flat(self.found, self.address[rows], self.number[rows])

    @property
    def physical(self) -> Words:
        return self.found.leaves.physical[self.number]

    @property
    def level(self) -> Bytes:
        return self.found.leaves.level[self.number]

    @property
    def rights(self) -> Flags:
        return self.found.leaves.rights[self.number]

    @property
    def memory(self) -> Bytes:
        return self.found.leaves.memory[self.number]

    @property
    def size(self) -> Words:
        return self.found.page_sizes[self.level.astype(np.int64)]


class _Side:
    """One of the two, on its way to be unfolded."""

    def __init__(self, found: Survey) -> None:
        self.found = found
        leaves, again = found.leaves, found.again
        self.addresses = [leaves.address]
        self.numbers = [np.arange(leaves.count)]
        self.again, self.first, self.span = again.address, again.first, found.spans(again.level)

    def take(self, span: int) -> tuple[Words, Words]:
        """The repeats of that many bytes, which are forgotten: their addresses, and what each repeats."""
        here = self.span == np.uint64(span)
        taken = self.again[here], self.first[here]
        self.again, self.first, self.span = self.again[~here], self.first[~here], self.span[~here]
        return taken

    def unfold(self, again: Words, first: Words, span: int, room: int) -> int:
        """Put what repeats stand for in their places; how many leaves and smaller repeats that were."""
        leaves, repeats = self.found.leaves, self.found.again
        last = first + np.uint64(span - 1)
        added = 0
        for known in (leaves.address, repeats.address):
            low, high = np.searchsorted(known, first), np.searchsorted(known, last, "right")
            count = high - low
            added += int(count.sum())
            if added > room:
                return added
            which, inside = expanded(low, count)
            moved = known[inside] + (again[which] - first[which])
            if known is leaves.address:
                self.addresses.append(moved)
                self.numbers.append(inside)
            else:
                self.again = np.concatenate([self.again, moved])
                self.first = np.concatenate([self.first, repeats.first[inside]])
                self.span = np.concatenate([self.span, self.found.spans(repeats.level[inside])])
        return added

    def flat(self) -> Flat:
        address, number = np.concatenate(self.addresses), np.concatenate(self.numbers)
        if len(self.addresses) > 1:
            order = np.argsort(address, kind="stable")
            address, number = address[order], number[order]
        return Flat(self.found, address, number)


def unfolded(one: Survey, other: Survey, limit: int) -> tuple[Flat, Flat]:
    """The leaves of both at all addresses, but for those where both repeat what they have at one other place.

    There they differ as they do at that place. ConfigError where it were more than `limit` leaves.
    """
    sides = _Side(one), _Side(other)
    room = limit
    spans = {int(span) for side in sides for span in np.unique(side.found.every_span).tolist()}
    for span in sorted(spans, reverse=True):
        taken = [side.take(span) for side in sides]
        common = _common(*taken)
        for side, (again, first), same in zip(sides, taken, common, strict=True):
            room -= side.unfold(again[~same], first[~same], span, room)
            if room < 0:
                raise ConfigError(
                    "limit", limit, "shared tables unfold to more entries", refusal="is too low"
                )
    return sides[0].flat(), sides[1].flat()


def _common(one: tuple[Words, Words], other: tuple[Words, Words]) -> list[Bits]:
    """For each of both: whether the other has the same pair of numbers. No first number is there twice."""
    found = []
    for mine, theirs in ((one, other), (other, one)):
        order = np.argsort(theirs[0], kind="stable")
        again, first = theirs[0][order], theirs[1][order]
        if not again.size:
            found.append(np.zeros(mine[0].shape, bool))
            continue
        place = np.minimum(np.searchsorted(again, mine[0]), again.size - 1)
        found.append(np.asarray((again[place] == mine[0]) & (first[place] == mine[1])))
    return found


def expanded(low: Numbers, count: Numbers) -> tuple[Numbers, Numbers]:
    """For each of `count` things from `low` on: whose it is, and its number."""
    which = np.repeat(np.arange(low.size), count)
    return which, np.arange(which.size) - np.repeat(np.cumsum(count) - count, count) + low[which]
