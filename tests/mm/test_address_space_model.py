"""Random calls, loads and stores on an address space beside a dict of pages, on both kinds of CPU.

Twice: as hypothesis chooses them, and as long walks of a seed, which take more steps in the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, settings

from tests.mm.space_machine import OPTIONS, RIGHTS, SHORT, AddressSpaceMachine


class Walker(AddressSpaceMachine):
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
            lambda: self.brk(random.randint(-2, 12), random.choice((0, 5))),
            lambda: self.somebody_else_writes_the_file(
                random.randrange(3), random.randrange(3000), random.randbytes(5)
            ),
        ]
        for _ in range(steps):
            random.choice(rules)()
            self.the_areas_are_the_models()
            self.every_entry_shows_the_models_bytes_and_permissions()
            self.every_reference_is_explained()
            self.files_hold_what_was_stored()

    def _random_access(self, random: Random) -> None:
        byte = random.choice((None, random.randbytes(1)))
        fails = random.choice((*[None] * 9, 0, 1))
        self.load_or_store(random.randrange(4096), random.choice((0, 77)), byte, random.random() < 0.5, fails)

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


def machine(*, executes: bool, examples: int, steps: int) -> Any:
    """The test case on one of the two CPUs."""
    name = "OnTheEngine" if executes else "OnTheReferenceCpu"
    made: Any = type(name, (AddressSpaceMachine,), {"executes": executes})
    # Without shrinking, which takes minutes here: the same steps fail again, and name what they did.
    made.TestCase.settings = settings(
        max_examples=examples, stateful_step_count=steps, phases=(Phase.generate,)
    )
    return made.TestCase


TestOnTheEngine = machine(executes=True, examples=15, steps=30)
TestOnTheReferenceCpu = machine(executes=False, examples=15, steps=30)
TestOnTheEngineForLong = pytest.mark.slow(machine(executes=True, examples=300, steps=60))
TestOnTheReferenceCpuForLong = pytest.mark.slow(machine(executes=False, examples=300, steps=60))


def take_a_walk(*, executes: bool, seed: int, steps: int) -> None:
    machine: Any = type("Walking", (Walker,), {"executes": executes})()
    machine.build()
    try:
        machine.walk(Random(seed), steps)
    finally:
        machine.teardown()


@pytest.mark.parametrize("executes", [True, False], ids=["engine", "reference"])
@pytest.mark.parametrize("seed", range(4))
def test_a_long_walk(executes: bool, seed: int) -> None:
    take_a_walk(executes=executes, seed=seed, steps=300)


@pytest.mark.slow
@pytest.mark.parametrize("executes", [True, False], ids=["engine", "reference"])
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_long_walks(executes: bool, seed: int) -> None:
    take_a_walk(executes=executes, seed=seed, steps=1000)
