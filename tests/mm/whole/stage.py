"""Who is on stage, and how what comes of an order is judged."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from tests.mm.whole.crew import Crew, Orders, Worker
from tests.mm.whole.guest import Outcome
from tests.mm.whole.model import ANY, Thing, World

Step = tuple[Any, ...]
Taking = Generator[Orders, dict[Worker, Outcome], None]
BASE = 0x20_0000_0000
FILES, SEGMENTS, FILE_PAGES, SEGMENT_PAGES = 2, 2, 6, 5
MOST_LOCKED = 24
SEALABLE = 4
"""Pages at the end of the window that are sealed now and then; nothing else is."""
MASK = (1 << 64) - 1


class Diverged(AssertionError):
    """The machine did something else than the model."""


class Stage:
    """The workers and the model, for those who make steps of them."""

    crew: Crew
    world: World
    size: int
    words: tuple[int, ...]
    files: list[Thing]
    segments: list[Thing]
    refused = 0

    def worker(self, who: int) -> Worker:
        """The one of four that is meant, or one of the first process while there is no other."""
        names = ("a1", "a2", "b1", "b2")
        name = names[who % 4]
        return self.crew.workers[name if name[0] in self.world.spaces else names[who % 2]]

    def space(self, worker: Worker) -> str:
        """The model's name of its process."""
        return worker.name[0]

    def address(self, number: int) -> int:
        """Of a page of the window."""
        return BASE + number * self.size

    def agree(self, outcome: Outcome, expected: object) -> None:
        """`expected` is a result, (signal, code, address), or nothing that is foreseen."""
        if isinstance(expected, tuple):
            got: object = (outcome.signal, outcome.code, outcome.address)
            if got != expected:
                raise Diverged(f"{outcome}, not the signal {expected}")
        elif expected is not ANY and (outcome.signal or outcome.result != expected):
            raise Diverged(f"{outcome}, not {expected}")
        elif outcome.signal:
            raise Diverged(f"{outcome} of a system call")

    def call(self, worker: Worker, expected: int | None, name: str, *arguments: int) -> Taking:
        """A system call whose answer 0 the model has given for whatever is no error."""
        outcome = (yield {worker: self.crew.call(name, *(each & MASK for each in arguments))})[worker]
        if expected is not ANY and expected < 0:
            self.refused += 1
        self.agree(outcome, expected)

    def fits(self, at: int, count: int) -> int:
        """As much of a range as is in the window."""
        return max(0, min(count, self.world.end - at))

    def free_to_change(self, name: str, at: int, count: int) -> bool:
        """Whether what happens there is foreseen as to sealed pages: none, or all."""
        pages = self.world.spaces[name]
        sealed = [n in pages and pages[n].sealed for n in range(at, at + count)]
        return all(sealed) or not any(sealed)


def is_segment(thing: Thing | None) -> bool:
    """Whether it is a System V segment."""
    return thing is not None and thing.kind == "segment"
