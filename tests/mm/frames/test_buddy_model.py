"""Random sequences of allocator operations beside a plain model: which frames are allocated, in which blocks.

The model has no free lists. Since free buddies are always joined, it can say exactly which requests must be
granted: a block is there if and only if some aligned range of its size is free within one zone.
"""

from __future__ import annotations

import copy
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aether_emu.errors import FrameError, OutOfFrames
from aether_emu.mm.frames.buddy import MAX_ORDER, Buddy, Zone
from aether_emu.mm.frames.table import Flags, FrameTable, Kind
from aether_emu.ports import NEVER_FAILS

FRAMES = 2000
LAYOUTS = (
    (Zone("normal", 0, FRAMES),),
    (Zone("normal", 37, 1500), Zone("dma", 0, 33)),
    (Zone("hbm", 1001, 100), Zone("dram", 0, 1001), Zone("pmem", 1101, 777)),
)


class Scheduled:
    """Failure points: fails when the next of the given answers says so; never once they are used up."""

    def __init__(self, answers: list[bool]) -> None:
        self.answers = answers
        self.failed = 0

    def fails(self, point: str) -> bool:
        fails = bool(self.answers) and self.answers.pop(0)
        self.failed += fails
        return fails


class BuddyMachine(RuleBasedStateMachine):
    """`used` maps each allocated block's first frame to its order; `flags` is what owners left on frames."""

    @initialize(layout=st.sampled_from(LAYOUTS))
    def build(self, layout: tuple[Zone, ...]) -> None:
        self.zones = layout
        self.buddy = Buddy(FrameTable(0, FRAMES << 12, 12), layout)
        self.free = {frame for zone in layout for frame in range(zone.first, zone.first + zone.count)}
        self.total = self.lowest = len(self.free)
        self.used: dict[int, int] = {}
        self.flags: dict[int, int] = {}
        self.allocated = self.refusals = 0
        self.failures: Scheduled | None = None

    # --- the model

    def zones_from(self, name: str | None) -> tuple[Zone, ...]:
        names = [zone.name for zone in self.zones]
        return self.zones[names.index(name) :] if name else self.zones

    def free_in(self, zones: tuple[Zone, ...]) -> int:
        return sum(frame in self.free for z in zones for frame in range(z.first, z.first + z.count))

    def has_block(self, zones: tuple[Zone, ...], order: int) -> bool:
        size = 1 << order
        return any(
            all(frame in self.free for frame in range(start, start + size))
            for zone in zones
            for start in range(-(-zone.first // size) * size, zone.first + zone.count - size + 1, size)
        )

    def take(self, first: int, order: int, zones: tuple[Zone, ...]) -> None:
        block = range(first, first + (1 << order))
        assert first % len(block) == 0
        assert any(z.first <= first and block.stop <= z.first + z.count for z in zones)
        assert self.free.issuperset(block)
        self.free.difference_update(block)
        self.used[first] = order
        self.allocated += len(block)
        self.lowest = min(self.lowest, len(self.free))

    def give(self, first: int) -> None:
        self.free.update(range(first, first + (1 << self.used.pop(first))))

    def must_be_refused(self, why_not: bool) -> bool:
        """Whether the request that is about to be made has to fail; `why_not` is the model's own reason."""
        injected = self.failures is not None and self.failures.answers[:1] == [True]
        self.refusals += injected or why_not
        return injected or why_not

    # --- allocation

    @rule(data=st.data(), order=st.integers(0, 11), times=st.sampled_from([1, 1, 3]))
    def alloc(self, data: st.DataObject, order: int, times: int) -> None:
        name = data.draw(st.sampled_from([None, *(zone.name for zone in self.zones)]))
        zones = self.zones_from(name)
        for _ in range(times):
            if self.must_be_refused(not self.has_block(zones, order)):
                with pytest.raises(OutOfFrames):
                    self.buddy.alloc(order, name)
                continue
            preferred = next(zone for zone in zones if self.free_in((zone,)))
            first = self.buddy.alloc(order, name)
            self.take(first, order, (preferred,) if order == 0 else zones)

    @rule(count=st.integers(1, 700))
    def alloc_singles(self, count: int) -> None:
        for _ in range(count):
            if self.must_be_refused(not self.free):
                with pytest.raises(OutOfFrames):
                    self.buddy.alloc()
            else:
                self.take(self.buddy.alloc(), 0, self.zones)

    @rule(count=st.integers(1, 700))
    def pop_from_the_cache(self, count: int) -> None:
        for _ in range(min(count, len(self.buddy.cache))):
            frame = self.buddy.cache.pop()
            self.buddy.frames.kind[frame] = Kind.ANON
            self.take(frame, 0, self.zones[:1])

    @rule(data=st.data(), count=st.integers(0, 900))
    def alloc_bulk(self, data: st.DataObject, count: int) -> None:
        name = data.draw(st.sampled_from([None, *(zone.name for zone in self.zones)]))
        zones = self.zones_from(name)
        if self.must_be_refused(count > self.free_in(zones)):
            with pytest.raises(OutOfFrames):
                self.buddy.alloc_bulk(count, name)
            return
        taken = self.buddy.alloc_bulk(count, name).tolist()
        assert taken == sorted(set(taken))
        assert len(taken) == count
        first_zone = range(zones[0].first, zones[0].first + zones[0].count)
        assert sum(frame in first_zone for frame in taken) == min(count, self.free_in(zones[:1]))
        for frame in taken:
            self.take(frame, 0, zones)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def split(self, data: st.DataObject) -> None:
        first = data.draw(st.sampled_from(sorted(self.used)))
        order = self.used[first]
        self.buddy.split(first, order)
        self.used |= dict.fromkeys(range(first, first + (1 << order)), 0)

    # --- freeing

    @precondition(lambda self: self.used)
    @rule(data=st.data(), flags=st.sampled_from([Flags(0), Flags.DIRTY, Flags.DIRTY | Flags.EXECUTABLE]))
    def free_block(self, data: st.DataObject, flags: Flags) -> None:
        first = data.draw(st.sampled_from(sorted(self.used)))
        self.buddy.frames.flags[first] = self.flags[first] = int(flags)
        self.buddy.free(first, self.used[first])
        self.give(first)

    @rule(
        random=st.randoms(use_true_random=False), share=st.sampled_from([0.1, 0.5, 1.0]), bulk=st.booleans()
    )
    def free_singles(self, random: Random, share: float, bulk: bool) -> None:
        singles = [frame for frame, order in sorted(self.used.items()) if order == 0]
        chosen = random.sample(singles, int(len(singles) * share))
        if bulk:
            self.buddy.free_bulk(chosen)
        else:
            for frame in chosen:
                self.buddy.free(frame)
        for frame in chosen:
            self.give(frame)

    @rule(frame=st.integers(-5, FRAMES + 5), order=st.integers(0, 11))
    def free_wrongly(self, frame: int, order: int) -> None:
        if self.used.get(frame) == order:
            return
        with pytest.raises(FrameError):
            self.buddy.free(frame, order)
        with pytest.raises(FrameError):
            self.buddy.free_bulk([frame] if self.used.get(frame) != 0 else [frame, frame])

    @precondition(lambda self: self.used)
    @rule(data=st.data(), column=st.sampled_from(["refs", "maps"]))
    def free_held(self, data: st.DataObject, column: str) -> None:
        first = data.draw(st.sampled_from(sorted(self.used)))
        inside = data.draw(st.integers(first, first + (1 << self.used[first]) - 1))
        getattr(self.buddy.frames, column)[inside] = 1
        with pytest.raises(FrameError, match=f"frame {inside} is still"):
            self.buddy.free(first, self.used[first])
        getattr(self.buddy.frames, column)[inside] = 0

    # --- around it

    @rule(answers=st.lists(st.booleans(), max_size=4))
    def arm(self, answers: list[bool]) -> None:
        self.failures = Scheduled(answers)
        self.buddy.failures = self.failures

    @rule()
    def disarm(self) -> None:
        self.failures = None
        self.buddy.failures = NEVER_FAILS

    @rule()
    def capture_and_restore(self) -> None:
        self.buddy, self.failures = copy.deepcopy((self.buddy, self.failures))

    @invariant()
    def agrees_with_the_model(self) -> None:
        buddy = self.buddy
        buddy.check()
        assert buddy.free_frames == len(self.free)
        in_use = sorted(f for first, order in self.used.items() for f in range(first, first + (1 << order)))
        assert [leak.frame for leak in buddy.frames.leaks()] == in_use
        assert all(buddy.frames.flags[frame] == flags for frame, flags in self.flags.items())

    @rule()  # not after each step: asking brings the low-water mark up to date
    def counts_exactly(self) -> None:
        stats = self.buddy.stats()
        assert (stats.total, stats.free, stats.lowest_free) == (self.total, len(self.free), self.lowest)
        assert (stats.allocated, stats.failures) == (self.allocated, self.refusals)
        assert stats.freed == self.allocated - (self.total - len(self.free))
        assert [zone.free for zone in stats.zones] == [self.free_in((zone,)) for zone in self.zones]
        for zone in stats.zones:
            assert zone.free == zone.ready + sum(n << order for order, n in enumerate(zone.blocks))
            assert len(zone.blocks) == MAX_ORDER + 1

    def teardown(self) -> None:
        """Whatever happened: once all is given back, the zones are whole again."""
        self.counts_exactly()
        self.buddy.failures = NEVER_FAILS
        for first, order in self.used.items():
            self.buddy.free(first, order)
        self.buddy.check()
        assert self.buddy.frames.leaks() == []
        for zone in self.zones:
            assert self.buddy.alloc_bulk(zone.count, zone.name).size == zone.count
        assert self.buddy.free_frames == 0


BuddyMachine.TestCase.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)
TestBuddyAgainstItsModel = BuddyMachine.TestCase
