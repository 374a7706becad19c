"""Random calls, loads, stores and forks of address spaces beside dicts of pages, on every kind of board.

Twice: as hypothesis chooses them, and as long walks of a seed, which take more steps in the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, settings

from tests.mm.board import FORMATS
from tests.mm.space_machine import OPTIONS, RIGHTS, SHORT, WAYS
from tests.mm.space_pair import ForkingMachine


class Walker(ForkingMachine):
    """The machine without hypothesis."""

    def walk(self, random: Random, steps: int) -> None:
        """`steps` rules with arguments of `random`, all invariants after each."""
        rules: list[Callable[[], None]] = [
            *[lambda: self._random_access(random)] * 8,
            *[lambda: self._random_mmap(random)] * 4,
            *[lambda: self.mprotect(random.randrange(4096), random.choice(SHORT), random.choice(RIGHTS))] * 3,
            *[lambda: self._random_mremap(random)] * 3,
            *[lambda: self.munmap(random.randrange(4096), random.choice(SHORT))] * 2,
            lambda: self.access_every_page_around(random.randrange(4096), random.random() < 0.5),
            lambda: self.fetch(random.randrange(4096)),
            lambda: self.discard(random.randrange(4096), random.choice(SHORT), random.random() < 0.5),
            lambda: self.populate(random.randrange(4096), random.choice(SHORT), random.random() < 0.5),
            *[lambda: self._random_scan(random)] * 2,
            lambda: self.msync(random.randrange(4096), random.choice(SHORT)),
            lambda: self.brk(random.randint(-2, 12), random.choice((0, 5))),
            lambda: self.somebody_else_writes_the_file(
                random.randrange(3), random.randrange(3000), random.randbytes(5)
            ),
            *[lambda: self.fork(random.choice((*[None] * 5, 0, 2, 4)))] * 2,
            *[self.switch] * 3,
            lambda: self.damage(
                random.randrange(4096), random.randint(2, 5), random.randrange(64), random.randrange(5)
            ),
            lambda: self.end_one(random.random() < 0.5),
        ]
        for _ in range(steps):
            random.choice(rules)()
            self.the_areas_are_the_models()
            self.every_entry_shows_the_models_bytes_and_permissions()
            self.every_reference_is_explained()
            self.every_frame_leads_to_the_entries_that_show_it()
            self.files_hold_what_was_stored()

    def _random_access(self, random: Random) -> None:
        byte = random.choice((None, random.randbytes(1)))
        fails = random.choice((*[None] * 9, 0, 1))
        self.load_or_store(random.randrange(4096), random.choice((0, 77)), byte, random.choice(WAYS), fails)

    def _random_scan(self, random: Random) -> None:
        touches = [(random.randrange(8), random.random() < 0.5) for _ in range(random.randrange(4))]
        self.scan(random.randrange(4096), random.choice(SHORT), random.random() < 0.5, touches)

    def _random_mmap(self, random: Random) -> None:
        self.mmap(
            random.randrange(4096),
            random.choice(SHORT),
            random.choice(RIGHTS),
            random.choice(("private", "private", "shared", 0, 1, 2)),
            random.random() < 0.5,
            random.randrange(4),
            random.choice(("hint", "fixed", "fixed", "noreplace")),
            {option for option in OPTIONS if random.random() < 0.25},
        )

    def _random_mremap(self, random: Random) -> None:
        old, grows = random.randrange(7), random.randint(-3, 4)
        places = random.randrange(4096), random.randrange(4096)
        flags, fails = random.choice((0, 1, 1, 3, 3, 5, 7)), random.choice((*[None] * 5, 0, 1))
        new = old if flags & 4 and random.random() < 0.8 else max(0, old + grows)
        self.mremap(places[0], old, new, places[1], flags, fails)


def machine(kind: str, *, examples: int, steps: int) -> Any:
    """The test case on one kind of board."""
    made: Any = type(f"On_{kind}", (ForkingMachine,), {"kind": kind})
    # Without shrinking, which takes minutes here: the same steps fail again, and name what they did.
    made.TestCase.settings = settings(
        max_examples=examples, stateful_step_count=steps, phases=(Phase.generate,)
    )
    return made.TestCase


globals().update((f"TestOn_{kind}", machine(kind, examples=12, steps=30)) for kind in FORMATS)
globals().update(
    (f"TestOn_{kind}_ForLong", pytest.mark.slow(machine(kind, examples=300, steps=60))) for kind in FORMATS
)


def take_a_walk(kind: str, *, seed: int, steps: int) -> None:
    machine: Any = type("Walking", (Walker,), {"kind": kind})()
    machine.build()
    try:
        machine.walk(Random(seed), steps)
    finally:
        machine.teardown()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("seed", range(2))
def test_a_long_walk(kind: str, seed: int) -> None:
    take_a_walk(kind, seed=seed, steps=300)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_long_walks(kind: str, seed: int) -> None:
    take_a_walk(kind, seed=seed, steps=1000)
