"""An encoder under judgement, and the account of its cases: how many of each feature, how many differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aether_emu.arch.paging import PageTableFormat
from aether_emu.interruption import checkpoint
from aether_emu.verify.cases.cases import Bits, Words
from aether_emu.verify.cases.comparison import Case, Tally
from aether_emu.verify.judging.readings import Meaning, Path, Shape

_ONES = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Judged:
    """Who is judged, how its CPU is set, and where cases are counted."""

    fmt: PageTableFormat
    shape: Shape
    rng: np.random.Generator
    tally: Tally
    only: str
    prefix: str = ""  # of each feature's name: what the CPU is like, if it is not the usual one

    def path(self, count: int) -> Path:
        """Tables anywhere in physical memory, linked by the format's entries; addresses of the lower half."""
        homes = self.addresses(self.shape.top, self.shape.page).tolist()
        above = [0, *(self.fmt.table_entry(home) for home in homes[:-1])]
        bits = min(self.shape.virtual_bits, 62) - (self.shape.isa == "x86_64")
        return Path(homes, above, self.rng.integers(0, 1 << bits, count, dtype=np.uint64))

    def addresses(self, count: int, size: int) -> Words:
        """Physical addresses, multiples of `size`: random ones, and such as differ from 0 or all in a bit."""
        bits = self.shape.physical_bits
        inside = np.uint64((1 << bits) - 1)
        random = self.rng.integers(0, 1 << bits, count, dtype=np.uint64)
        single = np.uint64(1) << self.rng.integers(0, bits, count).astype(np.uint64)
        which = self.rng.integers(0, 4, count)
        chosen = np.where(which == 0, single, np.where(which == 1, ~single & inside, random))
        addresses: Words = chosen & np.uint64(-size & _ONES)
        return addresses


def compare(
    judged: Judged,
    feature: str,
    level: int,
    words: Words,
    wanted: Meaning,
    found: Meaning,
    *,
    without: tuple[str, ...] | list[str] = (),
) -> int:
    """Count cases of a feature by what they mean, but for the fields `without`."""
    same = wanted.agrees(found, without=without)
    return tell(judged, feature, level, words, same, wanted.in_words, found.in_words)


def tell(
    judged: Judged,
    feature: str,
    level: int,
    words: Words,
    same: Bits,
    wanted: str | Callable[[int], str],
    found: str | Callable[[int], str],
) -> int:
    """Count cases of a feature; the first different ones, or else an example, are put into words."""
    checkpoint()
    feature = judged.prefix + feature
    tally, n = judged.tally, int(words.size)
    if judged.only not in feature or not n:
        return 0
    cell, wrong = (feature, "format"), (~same).nonzero()[0].tolist()

    def case(at: int) -> Case:
        expected, observed = (text if isinstance(text, str) else text(at) for text in (wanted, found))
        return Case(
            feature, "format", {}, 0, level, (0,) * (level - 1) + (int(words[at]),), expected, observed
        )

    if cell not in tally.examples or (wrong and not tally.red[cell]):
        tally.examples[cell] = case(wrong[0] if wrong else 0)
    if tally.red[cell] == 0:
        tally.differences += [case(at) for at in wrong[:3]]
    tally.cells[cell] += n
    tally.red[cell] += len(wrong)
    tally.different += len(wrong)
    tally.cases += n
    return n
