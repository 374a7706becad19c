"""The same cases put to the specification and to an MMU; known differences are taken off and counted.

expected   what the manual says              predicted   what the engine is known to do instead
observed   what an instruction met

observed == expected == predicted    agreed
observed == predicted != expected    a known difference, counted apart
observed == expected != predicted    a known difference is gone: the list is wrong, which is a failure
else                                 a difference
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from aether_emu.verify.cases import Answers, Bits, Chunk, Words, differing
from aether_emu.verify.laboratory import Laboratory


@dataclass(frozen=True, slots=True)
class Difference:
    """One case on which answers differ. Each answer is given in words."""

    feature: str
    operation: str
    user: bool
    controls: dict[str, int]
    address: int
    entries: tuple[int, ...]  # level 1 first
    expected: str
    observed: str


@dataclass(slots=True)
class Tally:
    """What a run found. `cells` counts cases by feature and kind of access."""

    cases: int = 0
    set_aside: int = 0
    known: Counter[str] = field(default_factory=Counter)
    gone: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    different: int = 0
    cells: Counter[tuple[str, str]] = field(default_factory=Counter)
    red: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        """Whether nothing is left to explain."""
        return not self.different and not self.gone.total()


_KEPT = 100
"""Differences that are kept in words; all are counted."""


def run(laboratory: Laboratory, chunks: Iterable[Chunk], tally: Tally) -> Iterator[int]:
    """Put chunks to specification and engine, adding to `tally`; yields how many cases as they are done."""
    for chunk in chunks:
        entries, addresses = laboratory.place(chunk)
        expected = laboratory.expected(chunk, entries, addresses)
        aside = expected.astray
        if aside is not None and aside.any():  # they get no entry at all
            entries[-1] = np.where(aside, np.uint64(0), entries[-1])
            expected = laboratory.expected(chunk, entries, addresses)
            tally.set_aside += int(aside.sum())
        predicted = laboratory.predicted(chunk, entries, addresses)
        observed = laboratory.observed(chunk, entries, addresses)
        different = differing(predicted[-1].answers if predicted else expected, observed)
        before = expected
        for known in predicted:
            apart = differing(before, known.answers)
            tally.known[known.name] += int((apart & ~different).sum())
            tally.gone[known.name] += int((apart & different & ~differing(before, observed)).sum())
            before = known.answers
        note(tally, chunk, different)
        keep(tally, chunk, entries, addresses, different, expected, observed)
        tally.cases += chunk.size
        yield chunk.size


def keep(
    tally: Tally,
    chunk: Chunk,
    entries: list[Words],
    addresses: Words,
    different: Bits,
    expected: Answers,
    observed: Answers,
) -> None:
    """Count differences, and put the first of all into words."""
    tally.different += int(different.sum())
    for index in different.nonzero()[0][: max(0, _KEPT - len(tally.differences))].tolist():
        tally.differences.append(_difference(chunk, entries, addresses, expected, observed, index))


def note(tally: Tally, chunk: Chunk, different: Bits, also: str = "") -> None:
    """Count the cases of a chunk by feature and access, and the different ones among them."""
    access = f"{chunk.operation.name.lower().replace('_', '-')} {'user' if chunk.user else 'supervisor'}"
    access += f", {also}" if also else ""
    counts = np.bincount(chunk.feature, minlength=len(chunk.features))
    reds = np.bincount(chunk.feature[different], minlength=len(chunk.features))
    for name, count, red in zip(chunk.features, counts.tolist(), reds.tolist(), strict=True):
        if count:
            tally.cells[name, access] += count
            tally.red[name, access] += red


def _difference(
    chunk: Chunk, entries: list[Words], addresses: Words, expected: Answers, observed: Answers, index: int
) -> Difference:
    return Difference(
        chunk.features[int(chunk.feature[index])],
        chunk.operation.name.lower(),
        chunk.user,
        dict(chunk.controls),
        int(addresses[index]),
        tuple(int(words[index]) for words in entries),
        in_words(expected, index),
        in_words(observed, index),
    )


def in_words(answers: Answers, index: int) -> str:
    """One answer for a person."""
    after = " ".join(f"{int(words[index]):#x}" for words in answers.after)
    if answers.fault[index]:
        return f"fault {int(answers.code[index]):#x} at {int(answers.where[index]):#x}, entries {after}"
    what = "a hole at" if answers.hole[index] else "memory at"
    return f"{what} {int(answers.physical[index]):#x}, entries {after}"
