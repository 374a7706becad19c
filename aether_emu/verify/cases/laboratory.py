"""One format under verification: cases placed in memory, tried on an MMU, judged by the specification.

What ISAs share is here: where the entries of a chunk stand, how a batch is tried, and how one tells
where an access went. A format's own laboratory says what its manual expects and how its CPU is set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aether_emu.interruption import checkpoint
from aether_emu.machine.probe.prober import CROSSING, LANDING, Attempts, Happened, Operation
from aether_emu.verify.cases.cases import Answers, Bits, Chunk, Numbers, Words
from aether_emu.verify.cases.paths import Paths

MEMORY = 32 << 20
"""Bytes of physical memory in which cases stand."""

CROSSES = (Operation.CROSS_READ, Operation.CROSS_WRITE)
READS = (Operation.READ, Operation.CROSS_READ, Operation.UNPRIVILEGED_READ)

_ONES = (1 << 64) - 1


class Prober(Protocol):
    """A CPU that tries accesses (`machine.probe`)."""

    own_entries: dict[int, int]

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Predicted:
    """A known difference (its name in `known`), and the answers with it and all in front of it."""

    name: str
    answers: Answers


class Laboratory(ABC):
    """A format, paths in memory, and a prober over them."""

    isa: str
    name: str
    operations: tuple[Operation, ...]
    paths: Paths
    neighbour: int  # the bits of an entry for the page in front: everything is permitted

    # ---- what all are asked

    def place(self, chunk: Chunk) -> tuple[list[Words], Words]:
        """The entries as they stand in memory (level 1 first), and the address that each case accesses."""
        paths = self.paths
        which = np.arange(chunk.size) % paths.count
        every = np.ones(paths.count, bool)
        entries = []
        for level, words in enumerate(chunk.words, 1):
            leaf, table = paths.address_bits(level, every), paths.address_bits(level, ~every)
            entries.append(np.where(chunk.leaf == level, leaf[which], table[which]) ^ words)
        addresses = paths.addresses[which]
        if chunk.stray is not None:
            addresses = addresses ^ chunk.stray
        if chunk.operation is Operation.FETCH:
            return entries, addresses + np.uint64(LANDING)
        if chunk.operation in CROSSES:
            return entries, addresses - np.uint64(CROSSING)
        return entries, addresses

    @abstractmethod
    def expected(self, chunk: Chunk, entries: list[Words], addresses: Words) -> Answers:
        """What the manual says."""

    @abstractmethod
    def predicted(self, chunk: Chunk, entries: list[Words], addresses: Words) -> list[Predicted]:
        """What the engine is known to do instead, one known difference laid over the other."""

    # ---- the engine

    @abstractmethod
    def attempt(self, chunk: Chunk, addresses: Words, *, flush: bool = True) -> Attempts:
        """Try a batch of accesses, whose entries are in place; with a cold TLB unless `flush` is False."""

    @property
    @abstractmethod
    def prober(self) -> Prober:
        """Who tries."""

    @abstractmethod
    def invalidate(self, addresses: Words) -> None:
        """Drop what the TLB holds for single pages, by the supervisor's instruction for it."""

    def other_page(self, leaf: int) -> int:
        """The address bit to another page than a leaf's: the one in front, or for a large leaf a hole."""
        return self.paths.geometry.page if leaf == 1 else 1 << 30

    def observed(self, chunk: Chunk, entries: list[Words], addresses: Words) -> Answers:
        """What happens on the emulated CPU."""
        step = self.paths.count
        parts = []
        for start in range(0, chunk.size, step):
            checkpoint()
            part = slice(start, start + step)
            self.paths.install([words[part] for words in entries], self.neighbour, self.prober.own_entries)
            tried = self.attempt(chunk, addresses[part])
            parts.append(self.answers(chunk.operation, tried, addresses[part]))
        return joined(parts)

    def answers(self, operation: Operation, tried: Attempts, addresses: Words) -> Answers:
        """What one batch that was tried says. Words that it stored to get their old contents back."""
        fault = (tried.happened == Happened.FAULT) | (tried.happened == Happened.OTHER)
        hole, done = tried.happened == Happened.HOLE, tried.happened == Happened.DONE
        # The engine stores the bytes of a crossing access one by one: a hole shows at one of eight.
        in_hole = tried.address & np.uint64(_ONES ^ 7)
        landed = self._landed(operation, tried.value, addresses)
        return Answers(
            fault,
            tried.code,
            np.where(fault, tried.address, np.uint64(0)),
            hole,
            np.where(hole, in_hole, np.where(done, landed, np.uint64(0))),
            self.paths.read_back(addresses.size),
            blind=operation
            is Operation.FETCH,  # a fetch that comes back does not tell which page's landing it ran
        )

    def _landed(self, operation: Operation, values: Words, addresses: Words) -> Words:
        """Where accesses that went through went to, as memory and registers tell it."""
        pages = self.paths.pages[: addresses.size]
        if operation in READS:
            # Every word holds its own address; a crossing load has the low half of the page's first one.
            return values >> np.uint64(32) if operation is Operation.CROSS_READ else values
        if operation is Operation.FETCH:
            return pages + np.uint64(LANDING)
        if operation is Operation.MODIFY:
            self.paths.restore(values)
            return values
        memory = self.paths.memory
        stored = memory[pages >> np.uint64(3)]
        if operation is Operation.CROSS_WRITE:
            before = memory[(pages >> np.uint64(3)) - np.uint64(1)]
            stored = before >> np.uint64(32) | stored << np.uint64(32)
            self.paths.restore(pages - np.uint64(8))
        self.paths.restore(pages)
        in_front = pages - np.uint64(self.paths.geometry.page)  # where an edit may have moved the page
        moved = memory[in_front >> np.uint64(3)] == addresses
        self.paths.restore(in_front)
        return np.where(stored == addresses, pages, np.where(moved, in_front, np.uint64(0)))

    # ---- for the walkers

    def homes(self, count: int) -> list[Words]:
        """By level, the number of the page that holds the table of each of `count` cases."""
        which = np.arange(count) % self.paths.count
        shift = np.uint64(self.paths.geometry.shifts[0] - 3)
        return [slots[which] >> shift for slots in self.paths.slots]

    def read(
        self, homes: list[Words], entries: list[Words], level: int, at: Words, cases: Numbers, astray: Bits
    ) -> Words:
        """What a walk reads at `at`: a case's own entry in its own table, elsewhere what memory holds.

        Walks that come by tables of other cases are marked in `astray`.
        """
        at_home = at >> np.uint64(self.paths.geometry.shifts[0]) == homes[level - 1][cases]
        astray[cases] |= ~at_home & (at < np.uint64(self.paths.data))
        return np.where(at_home, entries[level - 1][cases], self.paths.elsewhere(at))

    def close(self) -> None:
        """Let go of the engine."""
        self.prober.close()


def joined(parts: list[Answers]) -> Answers:
    """The answers to one batch after the other."""
    return Answers(
        np.concatenate([part.fault for part in parts]),
        np.concatenate([part.code for part in parts]),
        np.concatenate([part.where for part in parts]),
        np.concatenate([part.hole for part in parts]),
        np.concatenate([part.physical for part in parts]),
        [np.concatenate(words) for words in zip(*(part.after for part in parts), strict=True)],
        blind=parts[0].blind,
    )


def first_of(one: Answers, other: Answers) -> Answers:
    """Of two accesses in a row: the first where it does not go through, else the second."""
    chosen = chosen_from(one.fault | one.hole, one, other)
    chosen.loose = [np.where(one.fault | one.hole, a, b) for a, b in zip(one.loose, other.loose, strict=True)]
    chosen.astray = one.astray
    return chosen


def chosen_from(first: Bits, one: Answers, other: Answers) -> Answers:
    """The answers of `one` where `first` says so, and of `other` elsewhere."""
    return Answers(
        np.where(first, one.fault, other.fault),
        np.where(first, one.code, other.code),
        np.where(first, one.where, other.where),
        np.where(first, one.hole, other.hole),
        np.where(first, one.physical, other.physical),
        [np.where(first, a, b) for a, b in zip(one.after, other.after, strict=True)],
        blind=other.blind,
    )
