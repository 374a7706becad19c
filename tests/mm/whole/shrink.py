"""The fewest steps that still go wrong, by delta debugging (Zeller and Hildebrandt 2002)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.mm.whole.stage import Step


def shrunk(steps: Sequence[Step], fails: Callable[[list[Step]], bool], tries: int = 60) -> list[Step]:
    """Steps of which none can be left out, or as few as were found in so many tries.

    Steps behind the one that went wrong are not among `steps`.
    """
    left, pieces = list(steps), 2
    while len(left) > 1 and tries:
        size = max(1, len(left) // pieces)
        for first in range(0, len(left), size):
            rest = left[:first] + left[first + size :]
            tries -= 1
            if fails(rest):
                left, pieces = rest, max(2, pieces - 1)
                break
            if not tries:
                break
        else:
            if size == 1:
                break
            pieces = min(len(left), pieces * 2)
    return left
