"""Steps that once went wrong, as few as show it, on every kind of machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mm.whole.boards import KINDS, play_of
from tests.mm.whole.model import GUARD_INSTALL
from tests.mm.whole.stage import Step

FOUND: dict[str, list[Step]] = {
    "a guard stays where a file is truncated": [
        ("mmap", 0, 40, 4, 3, 6, 1),
        ("madvise", 0, 40, 2, GUARD_INSTALL),
        ("truncate", 0, 0, 1),
        ("load", 0, 41, 0),
        ("store", 0, 42, 0, 1),
    ],
    "a huge page of zeros is guarded": [
        ("mmap", 0, 0, 1280, 3, 0, 1),
        ("load", 1, 42, 0),
        ("madvise", 0, 0, 512, GUARD_INSTALL),
    ],
    "another process stores behind the end of a file, in its last page": [
        ("mmap", 0, 512, 8, 3, 5, 68),
        ("fork", 0),
        ("pwrite", 1, 512, 1, 7),
        ("remote", 3, 517, 2),
    ],
    "a page that is in swap is protected against stores": [
        ("answered", 0, 3, 1, 0),
        ("answered", 0, 1, 1, 1),
        ("away", 0, 1),
        ("answered", 0, 5, 1, 0),
        ("answered", 0, 1, 1, 2),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", FOUND.values(), ids=FOUND)
def test_it_goes_right_now(kind: str, steps: list[Step], tmp_path: Path) -> None:
    play = play_of(kind, tmp_path, seed=0, checks_every=1)
    play.run(steps)
    play.end()
