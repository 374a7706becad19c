"""Page tables at random, some of them shared, small enough to be walked address by address."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from aether_emu.verify.tables.formats import Half
from tests.verify.crafted_images import LARGE, TABLE, Crafted

FORMATS = ("x86_64-4level", "x86_64-5level", "arm64-4K", "arm64-16K-47bit", "arm64-64K-lpa")
SLOTS = 3
"""The entries of each table that are used: the first ones."""
_TABLES = 2  # of each level


def random_tables(name: str, seed: int) -> Crafted:
    """Each entry is absent, a leaf of memory of its own, or leads to one of the tables of the next level."""
    crafted = Crafted(name, 32)
    rules, rng = crafted.format, np.random.default_rng(seed)
    tables = {
        level: [crafted.root]
        if level == rules.levels
        else [(4 + 2 * level + k) * rules.page for k in range(_TABLES)]
        for level in range(1, rules.levels + 1)
    }
    frame = 0
    for level, places in tables.items():
        for place, slot in product(places, range(SLOTS)):
            choice = rng.integers(0, 4)
            at = place // 8 + slot
            if level > 1 and choice >= 1 + (level == 2):
                locks = (
                    int(rng.choice([0, 0, 2]))
                    if crafted.isa == "x86_64"
                    else int(rng.choice([0, 0, 1 << 62]))
                )
                crafted.words[at] = (int(rng.choice(tables[level - 1])) | TABLE[crafted.isa]) ^ locks
            elif level <= 2 and choice:
                frame += 1
                crafted.words[at] = frame << rules.shifts[level - 1] | _leaf(crafted, rng, level)
    return crafted


def _leaf(crafted: Crafted, rng: np.random.Generator, level: int) -> int:
    bits = crafted.page_bits
    for flip in (1, 2, 6, 63) if crafted.isa == "x86_64" else (6, 7, 11, 54):
        bits ^= (
            int(rng.integers(0, 2)) << flip
            if flip != 1 or crafted.isa != "x86_64"
            else int(rng.integers(0, 2)) << 1
        )
    if level == 1:
        return bits
    return bits | LARGE["x86_64"] if crafted.isa == "x86_64" else bits & ~2


def altered(crafted: Crafted, seed: int, words: int = 3) -> Crafted:
    """The same, but some entries are those of other tables at random, or gone."""
    other = Crafted(crafted.format.name, 32)
    other.words[:] = crafted.words
    rng = np.random.default_rng(seed)
    for slot in rng.choice(np.flatnonzero(crafted.words), words, replace=False).tolist():
        word = int(crafted.words[slot])
        other.words[slot] = rng.choice(np.array([0, word ^ 0x40, word ^ 1 << 55, word ^ 1 << 11], np.uint64))
    return other


def addresses(crafted: Crafted) -> Iterator[int]:
    """One address below each way that uses the first entries of tables alone."""
    rules = crafted.format
    base: Half = rules.halves[0]
    for slots in product(range(SLOTS), repeat=rules.levels):
        yield base.base + sum(slot << shift for slot, shift in zip(slots, rules.shifts, strict=True)) + 0x18
