"""The binary buddy system: alignment, splitting, joining, and a check that sees every kind of corruption."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_emu.errors import FrameError
from aether_emu.mm.frames.free_list import FREE_BLOCK
from aether_emu.mm.frames.free_lists import MAX_ORDER, FreeLists
from aether_emu.mm.frames.table import FrameTable


def make(first: int, end: int) -> FreeLists:
    return FreeLists(FrameTable(0, 4096 << 12, 12), "zone", first, end)


def blocks(lists: FreeLists) -> list[tuple[int, int]]:
    """All free blocks as (first frame, order), ascending."""
    return sorted((frame, order) for order, those in enumerate(lists.blocks) for frame in those)


class TestEntriesLeftBehind:
    def test_a_block_that_is_free_again_is_given_out_once(self) -> None:
        lists = make(0, 8)
        frames = [lists.take(0) for _ in range(8)]
        for frame in (0, 1, 0, 1):  # joined, and cut again: each leaves an entry behind
            lists.give(frame, 0)
            if frame == 1:
                assert [lists.take(0), lists.take(0)] == [0, 1]
        for frame in range(0, 8, 2):
            lists.give(frame, 0)
        lists.check()
        assert sorted(lists.blocks[0]) == [0, 2, 4, 6]
        assert {lists.take(0) for _ in range(4)} == {0, 2, 4, 6}
        assert lists.take(0) is None
        assert frames == list(range(8))

    def test_they_are_thrown_away_when_they_are_too_many(self) -> None:
        lists = make(0, 2)
        for _ in range(1000):
            pair = [lists.take(0), lists.take(0)]
            for frame in pair:
                assert frame is not None
                lists.give(frame, 0)
        assert max(blocks.kept.size for blocks in lists.blocks) < 100
        lists.check()


class TestInitialBlocks:
    def test_an_aligned_range_is_one_block(self) -> None:
        assert blocks(make(1024, 2048)) == [(1024, 10)]

    def test_an_unaligned_range_is_the_largest_aligned_blocks(self) -> None:
        assert blocks(make(5, 27)) == [(5, 0), (6, 1), (8, 3), (16, 3), (24, 1), (26, 0)]

    @given(st.integers(0, 4095), st.integers(1, 4096))
    @settings(deadline=None)
    def test_any_range_is_tiled_with_no_buddies_apart(self, first: int, length: int) -> None:
        lists = make(first, min(first + length, 4096))
        assert lists.check().all()
        assert lists.free == lists.end - lists.first

    def test_no_block_is_larger_than_the_largest_order(self) -> None:
        frames = FrameTable(1 << 30, 5 << 30, 12)
        lists = FreeLists(frames, "zone", 0, frames.count)
        assert blocks(lists) == [(i << MAX_ORDER, MAX_ORDER) for i in range(5)]
        lists.check()
        assert [lists.take(MAX_ORDER) for _ in range(6)] == [*(i << MAX_ORDER for i in range(5)), None]
        lists.give(1 << MAX_ORDER, MAX_ORDER)
        lists.give(0, MAX_ORDER)
        assert blocks(lists) == [(0, MAX_ORDER), (1 << MAX_ORDER, MAX_ORDER)]
        lists.check()


class TestBlocks:
    def test_a_cut_leaves_one_half_of_each_order(self) -> None:
        lists = make(0, 16)
        assert lists.take(1) == 0
        assert blocks(lists) == [(2, 1), (4, 2), (8, 3)]
        assert (lists.splits, lists.merges, lists.free) == (3, 0, 14)
        lists.check()

    def test_the_smallest_block_that_fits_is_cut(self) -> None:
        lists = make(4, 32)
        assert blocks(lists) == [(4, 2), (8, 3), (16, 4)]
        assert lists.take(1) == 4
        assert lists.take(3) == 8
        assert blocks(lists) == [(6, 1), (16, 4)]

    def test_giving_back_joins_up_to_the_original_block(self) -> None:
        lists = make(0, 16)
        frames = [lists.take(0) for _ in range(16)]
        assert frames == list(range(16))
        assert lists.take(0) is None
        for frame in (3, 0, 2, 1):
            lists.give(frame, 0)
            lists.check()
        assert blocks(lists) == [(0, 2)]
        for frame in range(15, 3, -1):
            lists.give(frame, 0)
            lists.check()
        assert blocks(lists) == [(0, 4)]
        assert lists.splits == lists.merges == 15

    def test_neighbours_that_are_no_buddies_stay_apart(self) -> None:
        lists = make(0, 8)
        for _ in range(8):
            lists.take(0)
        lists.give(1, 0)
        lists.give(2, 0)
        assert blocks(lists) == [(1, 0), (2, 0)]

    def test_a_buddy_of_another_order_is_not_joined(self) -> None:
        lists = make(0, 8)
        assert (lists.take(2), lists.take(1), lists.take(0), lists.take(0)) == (0, 4, 6, 7)
        lists.give(6, 0)
        lists.give(4, 1)
        assert blocks(lists) == [(4, 1), (6, 0)]
        lists.check()

    def test_the_newest_block_is_taken_first(self) -> None:
        lists = make(0, 8)
        for _ in range(8):
            lists.take(0)
        for frame in (0, 4, 2, 6):
            lists.give(frame, 0)
        assert [lists.take(0) for _ in range(4)] == [6, 2, 4, 0]


class TestSingles:
    def test_many_come_off_the_largest_blocks(self) -> None:
        lists = make(8, 64)
        assert blocks(lists) == [(8, 3), (16, 4), (32, 5)]
        taken = [frames.tolist() for frames in lists.take_singles(41)]
        assert taken == [list(range(32, 64)), list(range(8, 16)), [16]]
        lists.check()

    def test_a_batch_comes_off_the_smallest_blocks(self) -> None:
        lists = make(8, 64)
        assert lists.take_smallest(13) == list(range(8, 21))
        assert blocks(lists) == [(21, 0), (22, 1), (24, 3), (32, 5)]
        lists.check()

    def test_a_batch_is_all_there_is_if_that_is_less(self) -> None:
        lists = make(3, 21)
        assert sorted(lists.take_smallest(64)) == list(range(3, 21))
        assert lists.take_smallest(64) == []
        assert lists.free == 0
        lists.check()

    @given(st.integers(0, 300), st.integers(1, 900), st.integers(0, 10**6), st.integers(1, 40))
    @settings(deadline=None, max_examples=60)
    def test_giving_many_is_giving_each(self, first: int, length: int, seed: int, run: int) -> None:
        """Whatever the pattern: both ways end with the same blocks, column and counts."""
        chance = random.Random(seed)
        one = make(first, first + length)
        one.take_smallest(length)
        order = list(range(first, first + length))
        for frame in order[::run]:
            if chance.random() < 0.3:
                one.give(frame, 0)
        rest = [f for f in order if one.frames.block[f] == 1 and (f // run + chance.random()) % 3 > 1]
        many = copy.deepcopy(one)
        for frame in chance.sample(rest, len(rest)):
            one.give(frame, 0)
        many.give_singles(np.array(rest, dtype=np.int64))
        many.check()
        assert blocks(many) == blocks(one)
        assert (many.free, many.merges) == (one.free, one.merges)
        assert many.frames.block_array.tolist() == one.frames.block_array.tolist()

    def test_what_was_given_together_is_taken_in_ascending_order(self) -> None:
        lists = make(0, 256)
        lists.take_smallest(256)
        for frames in (np.arange(0, 256, 2), np.arange(1, 12, 2)):
            lists.give_singles(frames)
            lists.check()
            assert [lists.take(0) for _ in frames] == frames.tolist()

    def test_many_given_are_not_joined_across_the_end_of_the_range(self) -> None:
        frames = FrameTable(0, 4096 << 12, 12)
        low, high = FreeLists(frames, "low", 0, 201), FreeLists(frames, "high", 201, 301)
        low.take_smallest(201)
        low.give_singles(np.arange(0, 201, 2))
        high.take_smallest(100)
        low.give_singles(np.arange(1, 200, 2))
        high.give_singles(np.arange(201, 301, 2))
        for lists in (low, high):
            lists.check()


def overlap(lists: FreeLists) -> None:
    lists.frames.block[1] = 1


def gap(lists: FreeLists) -> None:
    lists.frames.block[0] = 1


def no_order(lists: FreeLists) -> None:
    lists.frames.block[0] = MAX_ORDER + 2


def misalign(lists: FreeLists) -> None:
    lists.frames.block[:4] = bytes([1, 2, 0, 1])


def unlist(lists: FreeLists) -> None:
    lists.blocks[2]._entries.pop()


def list_twice(lists: FreeLists) -> None:
    lists.blocks[3].count += 1


def list_used(lists: FreeLists) -> None:
    lists.blocks[2].add(0)


def miscount(lists: FreeLists) -> None:
    lists.free += 1


def forget_split(lists: FreeLists) -> None:
    lists.splits -= 1


def leave_apart(lists: FreeLists) -> None:
    lists.frames.block[0] = FREE_BLOCK | 3
    lists.blocks[2].add(0)
    lists.free += 4


@pytest.mark.parametrize(
    ("corrupt", "what"),
    [
        (overlap, "overlap"),
        (gap, "gap"),
        (no_order, "no valid order"),
        (misalign, "not aligned"),
        (unlist, "list of order 2"),
        (list_twice, "list of order 3"),
        (list_used, "list of order 2"),
        (miscount, "count of free"),
        (forget_split, "splits and merges"),
        (leave_apart, "apart"),
    ],
)
def test_check_sees_corruption(corrupt: Callable[[FreeLists], None], what: str) -> None:
    lists = make(0, 16)
    assert lists.take(2) == 0
    lists.check()
    corrupt(lists)
    with pytest.raises(FrameError, match=what):
        lists.check()


def test_what_is_free_of_a_range_is_taken_and_the_rest_left() -> None:
    lists = make(0, 1024)
    assert lists.take(10) == 0
    lists.make_single(0, 1024)
    lists.frames.block_array[64:72] = lists.frames.block_array[96] = lists.frames.block_array[200] = 1
    for frame in (*range(64, 72), 96, 200):
        lists.give(frame, 0)
    assert lists.take_within(64, 64).tolist() == [*range(64, 72), 96]
    assert blocks(lists) == [(200, 0)]
    assert lists.free == 1
    lists.check()
    assert lists.take_within(0, 64).size == 0
