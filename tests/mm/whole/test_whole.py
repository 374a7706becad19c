"""All of memory management at once, on the executing CPU, beside a model: nothing may differ.

Two processes of two threads map, unmap, protect, move, advise, lock, share, fork and store, on two CPUs
with little RAM, while pages go to swap, equal ones are merged and huge ones are made. As hypothesis chooses
the steps, and as longer walks of a seed. What differs is told as a list of steps, as few as were found to
show it:

    Play.run([...])                    # takes such a list again
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.mm.whole.boards import KINDS, play_of
from tests.mm.whole.model import KEPT, NEUTRAL
from tests.mm.whole.shrink import shrunk
from tests.mm.whole.stage import FILES, SEGMENTS, Step
from tests.mm.whole.steps import Chance

_WHO, _PLACES, _WORDS = st.integers(0, 3), st.integers(0, 255), st.integers(0, 3)
_OFFSETS = st.sampled_from([0, 8, 2048, 4088])
_COUNTS = st.sampled_from([1, 2, 3, 5, 8, 16, 64])
_RIGHTS = st.sampled_from([0, 1, 3, 3, 3, 5, 7])
_ADVICE = st.sampled_from(sorted({4, 8, 9, 22, 23, 24, 102, 103, *NEUTRAL, *KEPT}))


class WholeMachine(RuleBasedStateMachine):
    """Steps as hypothesis chooses them, on one kind of machine, everything looked at after each fifth."""

    kind: str

    @initialize(seed=st.integers(0, 3))
    def build(self, seed: int) -> None:
        self.folder = TemporaryDirectory(prefix="aether-whole-")
        self.play = play_of(self.kind, Path(self.folder.name), seed, checks_every=5)
        self.take("mmap", 0, 0, 200, 3, 0, 1)
        self.take("madvise", 0, 0, 128, 12)
        self.take("stamp", 0, 0, 64, 1, 0)

    def take(self, *step: Any) -> None:
        self.play.run([step])

    @rule(who=_WHO, at=_PLACES, offset=_OFFSETS)
    def load(self, who: int, at: int, offset: int) -> None:
        self.take("load", who, at, offset)

    @rule(who=_WHO, at=_PLACES, offset=_OFFSETS, word=_WORDS)
    def store(self, who: int, at: int, offset: int, word: int) -> None:
        self.take("store", who, at, offset, word)

    @rule(who=_WHO, at=_PLACES, offset=_OFFSETS)
    def add(self, who: int, at: int, offset: int) -> None:
        self.take("add", who, at, offset)

    @rule(who=_WHO, at=_PLACES, count=_COUNTS, word=_WORDS, adds=st.integers(0, 1))
    def stamp(self, who: int, at: int, count: int, word: int, adds: int) -> None:
        self.take("stamp", who, at, count, word, adds)

    @rule(who=_WHO, at=_PLACES, count=_COUNTS)
    def sum(self, who: int, at: int, count: int) -> None:
        self.take("sum", who, at, count)

    @rule(
        who=_WHO,
        at=_PLACES,
        count=_COUNTS,
        rights=_RIGHTS,
        source=st.integers(0, 6),
        more=st.integers(0, 127),
    )
    def mmap(self, who: int, at: int, count: int, rights: int, source: int, more: int) -> None:
        self.take("mmap", who, at, count, rights, source, more)

    @rule(who=_WHO, at=_PLACES, count=_COUNTS)
    def munmap(self, who: int, at: int, count: int) -> None:
        self.take("munmap", who, at, count)

    @rule(who=_WHO, at=_PLACES, count=_COUNTS, rights=_RIGHTS)
    def mprotect(self, who: int, at: int, count: int, rights: int) -> None:
        self.take("mprotect", who, at, count, rights)

    @rule(who=_WHO, at=_PLACES, count=_COUNTS, advice=_ADVICE)
    def madvise(self, who: int, at: int, count: int, advice: int) -> None:
        self.take("madvise", who, at, count, advice)

    @rule(who=_WHO, at=_PLACES, old=_COUNTS, new=_COUNTS, to=_PLACES, how=st.integers(0, 2))
    def mremap(self, who: int, at: int, old: int, new: int, to: int, how: int) -> None:
        self.take("mremap", who, at, old, new, to, how)

    @rule(who=_WHO, at=_PLACES, count=st.integers(1, 8), how=st.integers(0, 2))
    def mlock(self, who: int, at: int, count: int, how: int) -> None:
        self.take("mlock", who, at, count, how)

    @rule(who=_WHO, at=_PLACES, which=st.integers(0, SEGMENTS - 1), replaces=st.booleans())
    def attach(self, who: int, at: int, which: int, replaces: bool) -> None:
        self.take("shmat", who, at, which, replaces)

    @rule(who=_WHO, at=_PLACES)
    def detach(self, who: int, at: int) -> None:
        self.take("shmdt", who, at)

    @rule(
        who=_WHO,
        which=st.integers(0, FILES - 1),
        at=_PLACES,
        index=st.integers(0, 6),
        how=st.sampled_from(["truncate", "punch", "pwrite", "pread"]),
    )
    def file(self, who: int, which: int, at: int, index: int, how: str) -> None:
        steps: dict[str, Step] = {
            "truncate": ("truncate", who, which, index + 1),
            "punch": ("punch", who, which, index, 2),
            "pwrite": ("pwrite", who, at, which, index),
            "pread": ("pread", who, at, which, index),
        }
        self.take(*steps[how])

    @rule(who=_WHO, at=_PLACES, word=_WORDS)
    def remote(self, who: int, at: int, word: int) -> None:
        self.take("remote", who, at, word)

    @rule(who=_WHO, how=st.sampled_from(["fork", "fork", "exit", "look", "forget"]))
    def process(self, who: int, how: str) -> None:
        self.take(how, who)

    @rule(who=_WHO, milliseconds=st.sampled_from([1, 5]))
    def rest(self, who: int, milliseconds: int) -> None:
        self.take("rest", who, milliseconds)

    def teardown(self) -> None:
        if hasattr(self, "play"):
            self.play.end()
            self.folder.cleanup()


def machine(kind: str, *, examples: int, steps: int) -> Any:
    """The test case on one kind of machine."""
    made: Any = type(f"On_{kind}", (WholeMachine,), {"kind": kind})
    made.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return made.TestCase


_NAMES = {kind: kind.replace("-", "_") for kind in KINDS}
globals().update((f"TestOn_{_NAMES[kind]}", machine(kind, examples=3, steps=40)) for kind in KINDS)
globals().update(
    (f"TestOn_{_NAMES[kind]}_ForLong", pytest.mark.slow(machine(kind, examples=50, steps=100)))
    for kind in KINDS
)


def _goes_wrong(kind: str, folder: Path, seed: int, steps: list[Step]) -> BaseException | None:
    """What comes of some steps that is not as it must be."""
    play = play_of(kind, folder, seed, checks_every=1 if len(steps) < 60 else 10)
    try:
        play.run(steps)
        play.end()
    except Exception as error:
        play.crew.machine.abandon()
        return error
    return None


def take_a_walk(kind: str, folder: Path, seed: int, steps: int) -> None:
    """A walk of a seed. One that goes wrong is told as the fewest steps that go wrong so."""
    play = play_of(kind, folder, seed)
    try:
        play.run(Chance(play, seed).steps(steps))
        play.end()
    except Exception as error:
        play.crew.machine.abandon()
        shown = type(error), str(error)[:25]

        def fails(fewer: list[Step]) -> bool:
            found = _goes_wrong(kind, folder, seed, fewer)
            return found is not None and (type(found), str(found)[:25]) == shown

        few = shrunk(play.done, fails)
        listed = "\n".join(f"    {step}," for step in few)
        error.add_note(f"on {kind}, with seed {seed}, this goes wrong so:\n{listed}")
        raise


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("kind", KINDS)
def test_a_walk(kind: str, seed: int, tmp_path: Path) -> None:
    take_a_walk(kind, tmp_path, seed, steps=100)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 300))
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in ("x86_64", "arm64")])
def test_many_walks(kind: str, seed: int, tmp_path: Path) -> None:
    take_a_walk(kind, tmp_path, seed, steps=1000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("x86_64", "arm64")])
def test_many_walks_with_larger_pages(kind: str, seed: int, tmp_path: Path) -> None:
    take_a_walk(kind, tmp_path, seed, steps=1000)
