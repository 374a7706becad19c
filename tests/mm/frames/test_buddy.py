"""The frame allocator: what it hands out, what it refuses, what it counts, and that it forgets nothing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest

from aether_emu.errors import FrameError, OutOfFrames
from aether_emu.mm.frames.buddy import BATCH, HIGH_WATER, MAX_ORDER, Buddy, Zone
from aether_emu.mm.frames.table import Flags, FrameTable, Kind
from aether_emu.ports import NEVER_FAILS

PAGES = 4096


class FailsWhenTold:
    """Failure points: the next operation fails while `armed`; remembers what passed."""

    def __init__(self) -> None:
        self.armed = False
        self.passed: list[str] = []

    def fails(self, point: str) -> bool:
        self.passed.append(point)
        return self.armed


def make(*zones: Zone, pages: int = PAGES) -> Buddy:
    return Buddy(FrameTable(0, pages << 12, 12), zones or (Zone("normal", 0, pages),))


def snapshot(buddy: Buddy) -> bytes:
    """All that a failed operation must leave alone: the table, and every field but the count of failures."""
    lists = [(z.free, z.splits, z.merges, [list(b) for b in z.blocks]) for z in buddy._zones]
    columns = {name: column.tobytes() for name, column in buddy.frames.columns().items()}
    stats = buddy.stats()
    return pickle.dumps((columns, lists, buddy._ready, buddy.cache, stats.allocated, stats.lowest_free))


@pytest.fixture
def buddy() -> Buddy:
    return make()


class TestSingleFrames:
    def test_a_fresh_allocator_hands_out_ascending_frames(self, buddy: Buddy) -> None:
        assert [buddy.alloc() for _ in range(300)] == list(range(300))

    def test_the_frame_freed_last_comes_first(self, buddy: Buddy) -> None:
        frames = [buddy.alloc() for _ in range(10)]
        for frame in (frames[2], frames[7], frames[4]):
            buddy.free(frame)
        assert [buddy.alloc() for _ in range(3)] == [frames[4], frames[7], frames[2]]

    def test_a_frame_is_the_kernels_until_it_is_claimed(self, buddy: Buddy) -> None:
        frame = buddy.alloc()
        assert buddy.frames.kind[frame] == Kind.KERNEL
        assert (buddy.frames.refs[frame], buddy.frames.maps[frame]) == (0, 0)
        assert [leak.frame for leak in buddy.frames.leaks()] == [frame]
        buddy.free(frame)
        assert buddy.frames.leaks() == []

    def test_flags_survive_freeing_and_allocation(self, buddy: Buddy) -> None:
        frame = buddy.alloc()
        buddy.frames.flags[frame] = Flags.DIRTY | Flags.EXECUTABLE
        buddy.free(frame)
        assert buddy.alloc() == frame
        assert buddy.frames.flags[frame] == Flags.DIRTY | Flags.EXECUTABLE
        assert buddy.frames.flags[buddy.alloc()] == 0

    def test_every_frame_can_be_handed_out_once(self, buddy: Buddy) -> None:
        frames = [buddy.alloc() for _ in range(PAGES)]
        assert sorted(frames) == list(range(PAGES))
        with pytest.raises(OutOfFrames) as refused:
            buddy.alloc()
        assert refused.value.wanted == 1
        assert (buddy.free_frames, buddy.stats().lowest_free, buddy.stats().failures) == (0, 0, 1)
        buddy.check()
        for frame in frames:
            buddy.free(frame)
        buddy.check()
        assert buddy.free_frames == PAGES

    def test_the_ready_list_is_bounded(self, buddy: Buddy) -> None:
        frames = [buddy.alloc() for _ in range(3 * HIGH_WATER)]
        longest = 0
        for frame in frames:
            buddy.free(frame)
            longest = max(longest, len(buddy.cache))
        assert longest == HIGH_WATER
        buddy.check()

    def test_a_batch_prefers_fragments_to_large_blocks(self, buddy: Buddy) -> None:
        taken = buddy.alloc_bulk(PAGES)
        buddy.free_bulk(taken[1024:])
        fragments = taken[:1024:4]
        buddy.free_bulk(fragments)
        assert [buddy.alloc() for _ in range(len(fragments))] == fragments.tolist()
        assert buddy.stats().zones[0].blocks[10:12] == (1, 1)


class TestBlocks:
    @pytest.mark.parametrize("order", range(13))
    def test_a_block_is_aligned_to_its_size(self, buddy: Buddy, order: int) -> None:
        buddy.alloc()
        blocks = []
        with pytest.raises(OutOfFrames) as refused:
            for _ in range(PAGES + 1):
                blocks.append(buddy.alloc(order))
        assert refused.value.wanted == 1 << order
        assert len(blocks) == PAGES - 1 >> order
        assert all(block % (1 << order) == 0 for block in blocks)
        buddy.check()

    def test_the_largest_block_is_a_gibibyte_on_a_gibibyte(self) -> None:
        table = FrameTable(3 << 30, 3 << 30, 12)
        buddy = Buddy(table, [Zone("normal", 1, table.count - 1)])
        addresses = [table.address(buddy.alloc(MAX_ORDER)) for _ in range(2)]
        assert addresses == [4 << 30, 5 << 30]
        with pytest.raises(OutOfFrames):
            buddy.alloc(MAX_ORDER)

    def test_all_frames_of_a_block_are_in_use(self, buddy: Buddy) -> None:
        block = buddy.alloc(4)
        assert buddy.frames.kind_array[block : block + 16].tolist() == [Kind.KERNEL] * 16
        buddy.free(block, 4)
        assert not buddy.frames.kind_array.any()

    def test_ready_frames_are_given_up_for_a_block(self, buddy: Buddy) -> None:
        buddy.free(buddy.alloc())
        assert buddy.stats().zones[0].ready == BATCH
        assert buddy.alloc(12) == 0
        assert buddy.stats().zones[0].ready == 0
        buddy.check()

    @pytest.mark.parametrize("order", [-1, MAX_ORDER + 1, 64])
    def test_an_order_that_does_not_exist_is_an_error(self, buddy: Buddy, order: int) -> None:
        with pytest.raises(FrameError, match="outside 0"):
            buddy.alloc(order)
        frame = buddy.alloc()
        with pytest.raises(FrameError, match="outside 0"):
            buddy.free(frame, order)
        with pytest.raises(FrameError, match="outside 0"):
            buddy.split(frame, order)

    def test_a_split_block_is_freed_frame_by_frame(self, buddy: Buddy) -> None:
        block = buddy.alloc(9)
        buddy.split(block, 9)
        buddy.check()
        with pytest.raises(FrameError, match="order 0"):
            buddy.free(block, 9)
        buddy.free(block + 5)
        buddy.free_bulk([f for f in range(block, block + 512) if f != block + 5])
        buddy.check()
        assert buddy.alloc(12) == 0

    def test_only_a_block_in_use_is_split(self, buddy: Buddy) -> None:
        block = buddy.alloc(3)
        before = snapshot(buddy)
        for frame, order in ((block, 2), (block + 1, 0), (block + 8, 3), (-1, 0), (PAGES, 0)):
            with pytest.raises(FrameError, match="cannot be split"):
                buddy.split(frame, order)
        assert snapshot(buddy) == before


class TestBulk:
    @pytest.mark.parametrize("count", [0, 1, 63, 64, 1000, PAGES])
    def test_bulk_is_ascending_single_frames(self, buddy: Buddy, count: int) -> None:
        taken = buddy.alloc_bulk(count)
        assert taken.dtype == np.int64
        assert taken.tolist() == list(range(count))
        buddy.check()
        for frame in taken.tolist():
            buddy.free(frame)
        buddy.check()
        assert buddy.free_frames == PAGES

    def test_the_largest_blocks_are_taken(self, buddy: Buddy) -> None:
        taken = buddy.alloc_bulk(PAGES)
        buddy.free_bulk(taken[:1024:2])
        buddy.free_bulk(taken[2048:3072])
        buddy.free_bulk(taken[3100:3104])
        assert buddy.alloc_bulk(1030).tolist() == [0, 2, *range(2048, 3072), *range(3100, 3104)]

    def test_bulk_uses_fragments_and_ready_frames(self, buddy: Buddy) -> None:
        taken = buddy.alloc_bulk(PAGES)
        buddy.free_bulk(taken[::2])
        buddy.free(1)
        assert buddy.alloc_bulk(PAGES // 2 + 1).tolist() == sorted([1, *range(0, PAGES, 2)])
        buddy.check()

    def test_bulk_is_all_or_nothing(self, buddy: Buddy) -> None:
        buddy.alloc()
        buddy.alloc(3)
        with pytest.raises(OutOfFrames) as refused:
            buddy.alloc_bulk(PAGES - 8)
        assert refused.value.wanted == PAGES - 8
        assert buddy.free_frames == PAGES - 9
        assert buddy.frames.census()[Kind.KERNEL] == 9
        buddy.check()
        assert buddy.alloc_bulk(PAGES - 9).size == PAGES - 9

    def test_a_negative_count_is_an_error(self, buddy: Buddy) -> None:
        with pytest.raises(FrameError):
            buddy.alloc_bulk(-1)

    @pytest.mark.parametrize("step", [1, 2, 3, 64])
    def test_bulk_freeing_takes_any_order(self, buddy: Buddy, step: int) -> None:
        taken = buddy.alloc_bulk(PAGES)
        for i in range(step):
            buddy.free_bulk(taken[i::step][::-1])
            buddy.check()
        assert buddy.alloc(12) == 0

    def test_freeing_nothing_is_allowed(self, buddy: Buddy) -> None:
        before = snapshot(buddy)
        buddy.free_bulk([])
        assert snapshot(buddy) == before


def free_ready(buddy: Buddy) -> int:
    frame = buddy.alloc()
    buddy.free(frame)
    return frame


def free_in_bulk(buddy: Buddy) -> int:
    frame = int(buddy.alloc_bulk(5)[2])
    buddy.free_bulk([frame])
    return frame


def free_head(buddy: Buddy) -> int:
    frame = buddy.alloc(3)
    buddy.free(frame, 3)
    return frame


def free_and_give_up(buddy: Buddy) -> int:
    frame = free_ready(buddy)
    buddy.free(buddy.alloc(12), 12)
    return frame


class TestRefusedFrees:
    """A free that would corrupt is an error, and changes nothing."""

    @pytest.mark.parametrize("prepare", [free_ready, free_in_bulk, free_head, free_and_give_up])
    def test_a_double_free(self, buddy: Buddy, prepare: Callable[[Buddy], int]) -> None:
        frame = prepare(buddy)
        before = snapshot(buddy)
        for order in (0, 3):
            with pytest.raises(FrameError, match="it is free"):
                buddy.free(frame, order)
        with pytest.raises(FrameError, match="it is free"):
            buddy.free_bulk([frame])
        assert snapshot(buddy) == before
        buddy.check()

    @pytest.mark.parametrize("frame", [0, 1, 63, 100, PAGES - 1])
    def test_a_frame_never_allocated(self, buddy: Buddy, frame: int) -> None:
        buddy.alloc(12)
        buddy.free(0, 12)
        before = snapshot(buddy)
        with pytest.raises(FrameError, match="it is free"):
            buddy.free(frame)
        with pytest.raises(FrameError, match="it is free"):
            buddy.free_bulk([frame])
        assert snapshot(buddy) == before

    @pytest.mark.parametrize("frame", [-1, -PAGES, PAGES, 1 << 40])
    def test_a_wild_frame(self, buddy: Buddy, frame: int) -> None:
        buddy.alloc_bulk(PAGES)
        before = snapshot(buddy)
        with pytest.raises(FrameError, match="in no zone"):
            buddy.free(frame)
        with pytest.raises(FrameError, match="in no zone"):
            buddy.free_bulk([5, frame])
        assert snapshot(buddy) == before

    def test_a_frame_of_the_aperture(self) -> None:
        buddy = make(Zone("normal", 0, 1000))
        buddy.frames.claim(1000, 5, Kind.FILE, owner=1)
        with pytest.raises(FrameError, match="in no zone"):
            buddy.free(1000)
        with pytest.raises(FrameError, match="in no zone"):
            buddy.free_bulk([1001])

    @pytest.mark.parametrize(("allocated", "freed"), [(0, 1), (3, 0), (3, 2), (3, 4), (9, 10)])
    def test_the_wrong_order(self, buddy: Buddy, allocated: int, freed: int) -> None:
        block = buddy.alloc(allocated)
        before = snapshot(buddy)
        with pytest.raises(FrameError, match=f"order {allocated}"):
            buddy.free(block, freed)
        assert snapshot(buddy) == before
        buddy.free(block, allocated)

    def test_the_inside_of_a_block(self, buddy: Buddy) -> None:
        block = buddy.alloc(3)
        before = snapshot(buddy)
        for frame in range(block + 1, block + 8):
            with pytest.raises(FrameError, match="inside a block"):
                buddy.free(frame)
            with pytest.raises(FrameError, match="inside a block"):
                buddy.free_bulk([frame])
        assert snapshot(buddy) == before

    @pytest.mark.parametrize(("column", "how"), [("refs", "referenced"), ("maps", "mapped")])
    def test_a_frame_still_held(self, buddy: Buddy, column: str, how: str) -> None:
        frame, block = buddy.alloc(), buddy.alloc(3)
        counts = getattr(buddy.frames, column)
        counts[frame] = counts[block + 6] = 1
        before = snapshot(buddy)
        with pytest.raises(FrameError, match=how):
            buddy.free(frame)
        with pytest.raises(FrameError, match=how):
            buddy.free_bulk([frame])
        with pytest.raises(FrameError, match=f"frame {block + 6} is still {how}"):
            buddy.free(block, 3)
        assert snapshot(buddy) == before
        counts[frame] = counts[block + 6] = 0
        buddy.free(frame)
        buddy.free(block, 3)

    @pytest.mark.parametrize("twice", [0, 1, 99])
    def test_a_frame_listed_twice(self, buddy: Buddy, twice: int) -> None:
        taken = buddy.alloc_bulk(100)
        before = snapshot(buddy)
        with pytest.raises(FrameError, match=f"frame {twice} cannot be freed: it is listed twice"):
            buddy.free_bulk([*taken, twice])
        assert snapshot(buddy) == before

    def test_one_bad_frame_keeps_all_of_a_bulk(self, buddy: Buddy) -> None:
        taken = buddy.alloc_bulk(100)
        buddy.free(50)
        before = snapshot(buddy)
        with pytest.raises(FrameError, match="frame 50 cannot be freed: it is free"):
            buddy.free_bulk(taken)
        assert snapshot(buddy) == before
        buddy.free_bulk(np.delete(taken, 50))
        assert buddy.free_frames == PAGES


class TestZones:
    NORMAL, DMA = Zone("normal", 300, 200), Zone("dma", 100, 50)

    def test_an_allocation_falls_back_in_the_order_given(self) -> None:
        buddy = make(self.NORMAL, self.DMA)
        frames = [buddy.alloc() for _ in range(250)]
        assert sorted(frames[:200]) == list(range(300, 500))
        assert sorted(frames[200:]) == list(range(100, 150))
        with pytest.raises(OutOfFrames):
            buddy.alloc()
        buddy.check()
        for frame in frames:
            buddy.free(frame)
        buddy.check()
        assert 300 <= buddy.alloc() < 500

    def test_a_named_zone_never_falls_back_upwards(self) -> None:
        buddy = make(self.NORMAL, self.DMA)
        assert {buddy.alloc(zone="dma") for _ in range(50)} == set(range(100, 150))
        with pytest.raises(OutOfFrames):
            buddy.alloc(zone="dma")
        with pytest.raises(OutOfFrames):
            buddy.alloc_bulk(1, "dma")
        assert buddy.free_frames == 200
        buddy.check()

    def test_the_first_zone_by_name_is_the_default(self) -> None:
        one, other = make(self.NORMAL, self.DMA), make(self.NORMAL, self.DMA)
        assert [one.alloc() for _ in range(220)] == [other.alloc(zone="normal") for _ in range(220)]

    def test_blocks_and_bulk_fall_back(self) -> None:
        buddy = make(self.NORMAL, self.DMA)
        buddy.alloc_bulk(190)
        assert 100 <= buddy.alloc(4) < 150
        taken = buddy.alloc_bulk(20)
        assert (taken[:10] < 150).all()
        assert (taken[10:] >= 300).all()
        buddy.check()
        buddy.free_bulk(taken)
        buddy.check()

    def test_bulk_uses_up_the_ready_frames_before_it_falls_back(self) -> None:
        buddy = make(self.NORMAL, self.DMA)
        buddy.free(buddy.alloc())
        assert (buddy.alloc_bulk(200) >= 300).all()

    def test_blocks_do_not_cross_from_zone_to_zone(self) -> None:
        buddy = make(Zone("high", 64, 64), Zone("low", 0, 64))
        taken = [buddy.alloc() for _ in range(128)]
        buddy.free_bulk(taken)
        buddy.check()
        assert [zone.blocks[6] for zone in buddy.stats().zones] == [1, 1]
        with pytest.raises(OutOfFrames):
            buddy.alloc(7)

    def test_a_zone_that_does_not_exist_is_an_error(self, buddy: Buddy) -> None:
        with pytest.raises(FrameError, match="no zone 'hbm' among normal"):
            buddy.alloc(zone="hbm")
        with pytest.raises(FrameError, match="no zone 'hbm' among normal"):
            buddy.alloc_bulk(1, "hbm")

    @pytest.mark.parametrize(
        ("zones", "why"),
        [
            ([], "needs a zone"),
            ([Zone("a", 0, 10), Zone("a", 10, 10)], "same name"),
            ([Zone("a", 0, 10), Zone("b", 9, 10)], "overlaps"),
            ([Zone("a", 0, 0)], "not in"),
            ([Zone("a", -1, 10)], "not in"),
            ([Zone("a", PAGES - 5, 6)], "not in"),
            ([Zone("a", 20, 10), Zone("b", 60, 10)], "in use"),
        ],
    )
    def test_zones_that_cannot_be_taken_over_are_refused(self, zones: list[Zone], why: str) -> None:
        table = FrameTable(0, PAGES << 12, 12)
        table.claim(65, 1, Kind.RESERVED)
        with pytest.raises(FrameError, match=why):
            Buddy(table, zones)
        assert not table.block_array.any()

    def test_frames_have_one_allocator(self, buddy: Buddy) -> None:
        with pytest.raises(FrameError, match="in use"):
            Buddy(buddy.frames, [Zone("other", 0, 16)])


class TestCache:
    def test_a_popped_frame_is_allocated_once_it_has_a_kind(self, buddy: Buddy) -> None:
        buddy.free(buddy.alloc())
        cache = buddy.cache
        frame = cache.pop()
        buddy.frames.kind[frame] = Kind.ANON
        buddy.check()
        assert (buddy.frames.refs[frame], buddy.frames.maps[frame]) == (0, 0)
        assert buddy.free_frames == PAGES - 1
        assert buddy.stats().allocated == 2
        buddy.free(frame)
        with pytest.raises(FrameError, match="it is free"):
            buddy.free(frame)
        assert buddy.cache is cache

    def test_check_sees_a_popped_frame_without_a_kind(self, buddy: Buddy) -> None:
        buddy.free(buddy.alloc())
        buddy.cache.pop()
        with pytest.raises(FrameError, match="FREE contradicts"):
            buddy.check()

    def test_the_low_water_mark_sees_pops(self, buddy: Buddy) -> None:
        buddy.free(buddy.alloc())
        frames = [buddy.cache.pop() for _ in range(20)]
        for frame in frames:
            buddy.frames.kind[frame] = Kind.ANON
        for frame in frames:
            buddy.free(frame)
        assert buddy.stats().lowest_free == PAGES - 20
        buddy.free_bulk(buddy.alloc_bulk(30))
        assert buddy.stats().lowest_free == PAGES - 30

    def test_a_low_of_the_ready_list_is_not_added_to_a_later_low_of_the_blocks(self, buddy: Buddy) -> None:
        frames = [buddy.alloc() for _ in range(40)]
        for frame in frames:
            buddy.free(frame)
        block = buddy.alloc(5)
        buddy.free(block, 5)
        assert buddy.stats().lowest_free == PAGES - 40

    def test_the_low_water_mark_sees_blocks(self, buddy: Buddy) -> None:
        blocks = [buddy.alloc(5) for _ in range(3)]
        for block in blocks:
            buddy.free(block, 5)
        assert buddy.stats().lowest_free == PAGES - 96


class TestInjectedFailures:
    def test_each_allocation_passes_its_point(self) -> None:
        failures = FailsWhenTold()
        buddy = Buddy(FrameTable(0, PAGES << 12, 12), [Zone("normal", 0, PAGES)], failures=failures)
        frame = buddy.alloc()
        buddy.free(frame)
        buddy.free(buddy.alloc())
        buddy.alloc(4)
        buddy.alloc_bulk(5)
        singles = ["buddy.alloc"] * 3
        assert failures.passed == [*singles, "buddy.alloc_bulk"]

    @pytest.mark.parametrize(
        "allocate",
        [lambda b: b.alloc(), lambda b: b.alloc(4), lambda b: b.alloc_bulk(5)],
    )
    def test_a_failed_allocation_takes_nothing(
        self, buddy: Buddy, allocate: Callable[[Buddy], object]
    ) -> None:
        buddy.free(buddy.alloc())
        failures = FailsWhenTold()
        buddy.failures = failures
        failures.armed = True
        before = snapshot(buddy)
        with pytest.raises(OutOfFrames):
            allocate(buddy)
        assert snapshot(buddy) == before
        assert buddy.stats().failures == 1
        failures.armed = False
        allocate(buddy)
        buddy.check()

    def test_no_frame_is_popped_past_armed_points(self, buddy: Buddy) -> None:
        cache = buddy.cache
        frame = buddy.alloc()
        assert cache
        buddy.failures = FailsWhenTold()
        assert not cache
        assert buddy.free_frames == PAGES - 1
        buddy.free(frame)
        assert not cache
        buddy.check()
        buddy.failures = NEVER_FAILS
        assert buddy.cache is cache
        assert cache[-1] == frame
        buddy.check()

    def test_armed_points_do_not_change_the_frames(self, buddy: Buddy) -> None:
        def work(buddy: Buddy) -> list[int]:
            frames = [buddy.alloc() for _ in range(700)]
            for frame in frames[::2] + frames[1::2]:
                buddy.free(frame)
            return [
                *frames,
                buddy.alloc(9),
                *(buddy.alloc() for _ in range(300)),
                *buddy.alloc_bulk(100).tolist(),
            ]

        armed = make()
        armed.failures = FailsWhenTold()
        assert work(armed) == work(buddy)


class TestState:
    @staticmethod
    def work(buddy: Buddy) -> list[int]:
        frames = [buddy.alloc() for _ in range(200)]
        frames += buddy.alloc_bulk(300).tolist()
        for frame in frames[::3]:
            buddy.free(frame)
        buddy.free_bulk(frames[1::3])
        return [*frames, buddy.alloc(5), *buddy.alloc_bulk(77).tolist(), *(buddy.alloc() for _ in range(90))]

    def test_the_same_requests_get_the_same_frames(self) -> None:
        one, other = make(), make()
        for _ in range(3):
            assert self.work(one) == self.work(other)
        assert one.stats() == other.stats()

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda buddy: pickle.loads(pickle.dumps(buddy))])
    def test_a_captured_allocator_goes_on_as_the_original(
        self, buddy: Buddy, clone: Callable[[Buddy], Buddy]
    ) -> None:
        self.work(buddy)
        other = clone(buddy)
        other.check()
        assert other.stats() == buddy.stats()
        before = snapshot(buddy)
        frames = self.work(other)
        other.check()
        assert snapshot(buddy) == before
        assert self.work(buddy) == frames
        assert snapshot(other) == snapshot(buddy)

    def test_a_captured_cache_still_serves(self, buddy: Buddy) -> None:
        buddy.free(buddy.alloc())
        other = copy.deepcopy(buddy)
        frame = other.cache.pop()
        other.frames.kind[frame] = Kind.ANON
        other.check()
        assert other.alloc() == frame + 1
        assert other.failures is NEVER_FAILS


class TestStats:
    def test_the_ledger_balances(self, buddy: Buddy) -> None:
        taken = buddy.alloc_bulk(100)
        block, more, frame = buddy.alloc(5), buddy.alloc_bulk(7), buddy.alloc()
        stats = buddy.stats()
        assert (stats.total, stats.free) == (PAGES, PAGES - 140)
        assert (stats.allocated, stats.freed, stats.lowest_free) == (140, 0, PAGES - 140)
        buddy.free_bulk(taken)
        buddy.free(block, 5)
        buddy.free(frame)
        stats = buddy.stats()
        assert (stats.free, stats.allocated, stats.freed) == (PAGES - 7, 140, 133)
        assert stats.lowest_free == PAGES - 140
        buddy.free_bulk(more)
        buddy.alloc(12)
        assert buddy.stats().splits == buddy.stats().merges > 0

    def test_a_zone_counts_its_blocks_by_order(self) -> None:
        buddy = make(Zone("normal", 5, 22), Zone("dma", 64, 96))
        normal, dma = buddy.stats().zones
        assert (normal.name, normal.total, normal.free, normal.ready) == ("normal", 22, 22, 0)
        assert normal.blocks == (2, 2, 0, 2) + (0,) * (MAX_ORDER - 3)
        assert dma.blocks == (0, 0, 0, 0, 0, 1, 1) + (0,) * (MAX_ORDER - 6)
        buddy.alloc()
        normal = buddy.stats().zones[0]
        assert (normal.free, normal.ready, sum(normal.blocks)) == (21, 21, 0)

    def test_the_unusable_index_is_the_share_in_smaller_blocks(self) -> None:
        buddy = make(Zone("normal", 0, 64))
        taken = buddy.alloc_bulk(64)
        assert [buddy.stats().zones[0].unusable(order) for order in (0, 1)] == [1.0, 1.0]
        buddy.free_bulk([*taken[0:16], *taken[18:20], 21, 41])
        zone = buddy.stats().zones[0]
        assert [zone.unusable(order) for order in range(6)] == [0.0, 0.1, 0.2, 0.2, 0.2, 1.0]
        buddy.free(50)
        buddy.free(53)
        zone = buddy.stats().zones[0]
        assert [zone.unusable(order) for order in (0, 1)] == [0.0, 4 / 22]


def ready_twice(buddy: Buddy) -> None:
    buddy.cache.append(buddy.cache[0])


def ready_outside(buddy: Buddy) -> None:
    buddy.cache.append(PAGES - 1)


def ready_block(buddy: Buddy) -> None:
    buddy.frames.block_array[2:4] = 2, 0
    buddy._zones[0].splits -= 1


def filled_while_armed(buddy: Buddy) -> None:
    buddy.failures = FailsWhenTold()
    buddy.cache.append(63)


def used_frame_is_free(buddy: Buddy) -> None:
    buddy.frames.kind[0] = Kind.FREE


def free_frame_has_a_kind(buddy: Buddy) -> None:
    buddy.frames.kind[500] = Kind.ANON


def free_frame_is_referenced(buddy: Buddy) -> None:
    buddy.frames.refs[5] = 1


def free_frame_is_mapped(buddy: Buddy) -> None:
    buddy.frames.maps[500] = 1


def block_outside(buddy: Buddy) -> None:
    buddy.frames.block[PAGES - 1] = 1


@pytest.mark.parametrize(
    ("corrupt", "what"),
    [
        (ready_twice, "ready twice"),
        (ready_outside, "outside the first zone"),
        (ready_block, "not a single one"),
        (filled_while_armed, "failures are armed"),
        (used_frame_is_free, "FREE contradicts"),
        (free_frame_has_a_kind, "FREE contradicts"),
        (free_frame_is_referenced, "referenced or mapped"),
        (free_frame_is_mapped, "referenced or mapped"),
        (block_outside, "outside the zones"),
    ],
)
def test_check_sees_corruption(corrupt: Callable[[Buddy], None], what: str) -> None:
    buddy = make(Zone("normal", 0, 1024))
    assert buddy.alloc() == 0
    buddy.check()
    corrupt(buddy)
    with pytest.raises(FrameError, match=what):
        buddy.check()
