"""Cases of a verification, and the answers that the specification and an MMU give to them.

A `Chunk` holds many cases that share an operation, a privilege and the control bits, so that they can
be tried in few entries of a CPU. An answer has the same words whoever gives it: faults with the ISA's
own code, holes where an access translated to an address without memory, and the entries afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from aether_emu.machine.probe.prober import Operation

Words = np.ndarray[Any, np.dtype[np.uint64]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]
Bits = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Cases of one kind. `leaf` is the level where each case's page is meant to be.

    `words[k]` are the entries of level k+1 without the path's own address, which is laid over them by
    exclusive or: a bit set there is a bit of the address that is wrong on purpose. `features` names
    what is under test, `feature` is each case's index into it. `stray` is laid over the accessed
    addresses in the same way; None is nothing.
    """

    leaf: Numbers
    words: list[Words]
    operation: Operation
    user: bool
    controls: Mapping[str, int]
    features: tuple[str, ...]
    feature: Numbers
    stray: Words | None = None

    @property
    def size(self) -> int:
        return int(self.leaf.size)

    def kept(self, which: Bits) -> Chunk:
        """Those of its cases."""
        return replace(
            self,
            leaf=self.leaf[which],
            words=[word[which] for word in self.words],
            feature=self.feature[which],
            stray=None if self.stray is None else self.stray[which],
        )


@dataclass(slots=True)
class Answers:
    """One element a case. `code` and `where` (the fault address) are 0 without a fault.

    `physical` is where the access went, in a hole or not; `after[k]` the entries of level k+1 afterwards.
    `loose[k]` are bits of those that the architecture leaves open. `astray` marks cases whose altered
    entries led into the memory of other cases' tables: they say nothing. Who is `blind` cannot tell where
    an access that went through to memory went.
    """

    fault: Bits
    code: Words
    where: Words
    hole: Bits
    physical: Words
    after: list[Words]
    loose: list[Words] = field(default_factory=list)
    astray: Bits | None = None
    blind: bool = False


def differing(expected: Answers, observed: Answers) -> Bits:
    """The cases whose answers are not the same."""
    different = expected.fault != observed.fault
    different |= expected.fault & ((expected.code != observed.code) | (expected.where != observed.where))
    elsewhere = expected.physical != observed.physical
    if expected.blind or observed.blind:
        elsewhere &= expected.hole
    different |= ~expected.fault & ((expected.hole != observed.hole) | elsewhere)
    for one, other, loose in zip(expected.after, observed.after, expected.loose, strict=True):
        different |= (one ^ other) & ~loose != 0
    return np.asarray(different)


_BATCH = 250


class Setting(NamedTuple):
    """What the cases of a chunk share."""

    leaf: int
    operation: Operation
    user: bool
    controls: Mapping[str, int]


class Shapes(NamedTuple):
    """Combinations of entries for pages of one size, and what each is called: `Chunk`'s fields."""

    words: list[Words]
    feature: Numbers
    features: tuple[str, ...]


def in_settings(
    settings: list[Setting], shapes: Mapping[int, Shapes], count: int | None, seed: int
) -> Iterator[Chunk]:
    """Every combination of entries in every setting, or of that a seeded sample of about `count` cases.

    A sample takes settings from everywhere in their order, so many that each fills a batch.
    """
    rng = np.random.default_rng(seed)
    few = len(settings) if count is None else max(1, count // _BATCH)
    if few < len(settings):
        places = (np.arange(few) + rng.random(few)) * len(settings) / few
        settings = [settings[place] for place in places.astype(np.int64).tolist()]
    total = sum(shapes[setting.leaf].feature.size for setting in settings)
    share = 1.0 if count is None else min(1.0, count / total)
    for leaf, operation, user, controls in settings:
        words, feature, features = shapes[leaf]
        chosen: slice | Numbers = slice(None)
        if share < 1:
            wanted = int(rng.binomial(feature.size, share))
            if not wanted:
                continue
            chosen = rng.choice(feature.size, wanted, replace=False)
        picked = [word[chosen] for word in words]
        leaves = np.full(picked[0].size, leaf, np.int64)
        yield Chunk(leaves, picked, operation, user, controls, features, feature[chosen])


def only(chunks: Iterator[Chunk], text: str) -> Iterator[Chunk]:
    """The cases whose feature's name contains `text`."""
    for chunk in chunks:
        named = np.array([text in name for name in chunk.features])
        kept = named[chunk.feature]
        if kept.all():
            yield chunk
        elif kept.any():
            yield chunk.kept(kept)


def random_flips(rng: np.random.Generator, count: int) -> Words:
    """Up to three bits for each of `count` words, often none."""
    flips = np.zeros(count, np.uint64)
    for _ in range(3):
        flip = np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
        flips ^= np.where(rng.random(count) < 0.25, flip, np.uint64(0))
    return flips
