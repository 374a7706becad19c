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

from aether_emu.interruption import Undisturbed
from aether_emu.verify.cases.cases import Answers, Bits, Chunk, Words, differing
from aether_emu.verify.cases.laboratory import Laboratory


@dataclass(frozen=True, slots=True)
class Case:
    """One case with two answers, in words."""

    feature: str
    access: str
    controls: dict[str, int]
    address: int
    leaf: int  # the level where the page is meant to be
    entries: tuple[int, ...]  # level 1 first
    expected: str
    observed: str


@dataclass(slots=True)
class Tally:
    """What a run found. `cells` counts cases by feature and access, `red` the different ones among them.

    `examples` has a case for each cell, a different one if there is one.
    """

    cases: int = 0
    set_aside: int = 0
    known: Counter[str] = field(default_factory=Counter)
    gone: Counter[str] = field(default_factory=Counter)
    differences: list[Case] = field(default_factory=list)
    different: int = 0
    cells: Counter[tuple[str, str]] = field(default_factory=Counter)
    red: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], Case] = field(default_factory=dict)

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
        if aside is not None and aside.any():  # clear their entries, so that they harm no other case
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
        record(tally, Asked(chunk, entries, addresses, expected, observed), different)
        yield chunk.size


def whole_steps(steps: Iterator[int]) -> Iterator[int]:
    """The same steps, undisturbed: signals are handled between two of them, and at checkpoints inside.

    What a handler raises elsewhere could be lost, for numpy too drops errors of what it asks.
    """
    while True:
        with Undisturbed():
            done = next(steps, None)
        if done is None:
            return
        yield done


@dataclass(frozen=True, slots=True)
class Asked:
    """A chunk, where it stood, and the answers to it. `also` is said of its accesses."""

    chunk: Chunk
    entries: list[Words]
    addresses: Words
    expected: Answers
    observed: Answers
    also: str = ""


def record(tally: Tally, asked: Asked, different: Bits) -> None:
    """Count the cases of a chunk by feature, and put the first different ones, and examples, into words."""
    chunk = asked.chunk
    access = access_of(chunk, asked.also)
    counts = np.bincount(chunk.feature, minlength=len(chunk.features))
    reds = np.bincount(chunk.feature[different], minlength=len(chunk.features))
    for number, (name, count, red) in enumerate(
        zip(chunk.features, counts.tolist(), reds.tolist(), strict=True)
    ):
        if not count:
            continue
        cell = (name, access)
        if cell not in tally.examples or (red and not tally.red[cell]):
            among = (chunk.feature == number) & (different if red else True)
            tally.examples[cell] = _case(asked, int(among.argmax()))
        tally.cells[cell] += count
        tally.red[cell] += red
    for index in different.nonzero()[0][: max(0, _KEPT - len(tally.differences))].tolist():
        tally.differences.append(_case(asked, index))
    tally.different += int(different.sum())
    tally.cases += chunk.size


def access_of(chunk: Chunk, also: str = "") -> str:
    """What the accesses of a chunk are called."""
    name = f"{chunk.operation.name.lower().replace('_', '-')} {'user' if chunk.user else 'supervisor'}"
    return f"{name}, {also}" if also else name


def _case(asked: Asked, index: int) -> Case:
    chunk = asked.chunk
    return Case(
        chunk.features[int(chunk.feature[index])],
        access_of(chunk, asked.also),
        dict(chunk.controls),
        int(asked.addresses[index]),
        int(chunk.leaf[index]),
        tuple(int(words[index]) for words in asked.entries),
        in_words(asked.expected, index),
        in_words(asked.observed, index),
    )


def in_words(answers: Answers, index: int) -> str:
    """One answer for a person."""
    after = " ".join(f"{int(words[index]):#x}" for words in answers.after)
    if answers.fault[index]:
        return f"fault {int(answers.code[index]):#x} at {int(answers.where[index]):#x}, entries {after}"
    what = "a hole at" if answers.hole[index] else "memory at"
    return f"{what} {int(answers.physical[index]):#x}, entries {after}"
