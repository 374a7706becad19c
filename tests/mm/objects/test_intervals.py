"""Intervals beside a plain list of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aether_emu.mm.objects.intervals import BLOCK, Intervals

SPANS = st.tuples(st.integers(0, 60), st.integers(1, 40))


def plain(rows: dict[int, tuple[int, int]], first: int, end: int) -> list[int]:
    """Items that meet the range, by first page and order of arrival (dicts keep it)."""
    met = [(span[0], item) for item, span in rows.items() if span[0] < end and span[1] > first]
    return [item for _first, item in sorted(met, key=lambda row: row[0])]


@given(
    spans=st.lists(SPANS, max_size=60),
    gone=st.lists(st.integers(0, 59), unique=True),
    asked=st.lists(SPANS, min_size=1, max_size=5),
)
def test_a_query_finds_exactly_what_meets_the_range(
    spans: list[tuple[int, int]], gone: list[int], asked: list[tuple[int, int]]
) -> None:
    intervals: Intervals[int] = Intervals()
    rows: dict[int, tuple[int, int]] = {}
    for item, (first, length) in enumerate(spans):
        intervals.add(first, first + length, item)
        rows[item] = (first, first + length)
    for item in gone:
        if item in rows:
            intervals.remove(item)
            del rows[item]
    assert sorted(intervals) == sorted(rows)
    for first, length in asked:
        assert intervals.over(first, first + length) == plain(rows, first, first + length)


def test_many_blocks_answer_as_one() -> None:
    intervals: Intervals[int] = Intervals()
    rows = {}
    for item in range(5 * BLOCK):
        first = item * 7919 % (3 * BLOCK)
        end = first + (10_000 if item % 97 == 0 else item % 5 + 1)
        intervals.add(first, end, item)
        rows[item] = (first, end)
    for item in range(0, 5 * BLOCK, 3):
        intervals.remove(item)
        del rows[item]
    for first in range(0, 4 * BLOCK, 37):
        assert intervals.over(first, first + 1) == plain(rows, first, first + 1)
    assert intervals.over(0, 1 << 60) == plain(rows, 0, 1 << 60)
    for item in list(rows):
        intervals.remove(item)
    assert len(intervals) == 0
    assert intervals.over(0, 1 << 60) == []
