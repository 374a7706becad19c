"""Virtual time is events plus observed blocks, whoever else counts blocks and whenever they began."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_emu.clock import COUNTER_HZ, EPOCH_NS, LAST_NS, TSC_HZ, VirtualClock
from aether_emu.config import ClockCosts

COSTS = ClockCosts(block=3)


def test_before_the_first_read_only_events_count() -> None:
    clock = VirtualClock(COSTS)
    clock.advance(500)
    clock.blocks = 1_000
    assert clock.now_ns == 500
    assert clock.observe(1_000) == 500


def test_after_the_first_read_blocks_count_too() -> None:
    clock = VirtualClock(COSTS)
    clock.observe(1_000)
    clock.advance(50)
    assert clock.observe(1_010) == 50 + 10 * 3
    assert clock.now_ns == 80


# What happens between two steps of a program: blocks executed, an event's cost, and perhaps a clock read.
steps = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 10_000), st.booleans()), max_size=20)


@given(steps)
def test_the_guest_cannot_tell_when_counting_began(program: list[tuple[int, int, bool]]) -> None:
    """One engine counts from the start (for statistics), the other from the guest's first read on."""
    from_start, from_first_read = VirtualClock(COSTS), VirtualClock(COSTS)
    executed, skipped = 0, None
    for blocks, cost, reads in program:
        executed += blocks
        for clock in (from_start, from_first_read):
            clock.advance(cost)
        if reads:
            skipped = executed if skipped is None else skipped
            assert from_start.observe(executed) == from_first_read.observe(executed - skipped)
            assert from_start.realtime_ns == from_first_read.realtime_ns
            assert from_start.ticks(TSC_HZ) == from_first_read.ticks(TSC_HZ)


@given(steps)
def test_time_never_goes_back(program: list[tuple[int, int, bool]]) -> None:
    clock, executed, seen = VirtualClock(COSTS), 0, 0
    for blocks, cost, reads in program:
        executed += blocks
        clock.advance(cost)
        if reads:
            now = clock.observe(executed)
            assert now >= seen
            seen = now


def test_statistics_count_the_blocks_before_the_first_read_too() -> None:
    clock = VirtualClock(COSTS)
    clock.advance(7)
    clock.observe(1_000)
    clock.observe(1_100)
    assert clock.total_ns == 7 + 1_100 * 3
    assert clock.now_ns == 7 + 100 * 3


def test_the_machine_starts_in_2030() -> None:
    assert datetime.fromtimestamp(EPOCH_NS / 1e9, UTC) == datetime(2030, 1, 1, tzinfo=UTC)
    clock = VirtualClock(COSTS)
    clock.advance(5)
    assert clock.realtime_ns == EPOCH_NS + 5


def test_counters_tick_at_their_frequency() -> None:
    clock = VirtualClock(COSTS)
    clock.advance(10**9 - 1)
    assert (clock.ticks(TSC_HZ), clock.ticks(COUNTER_HZ)) == (10**9 - 1, COUNTER_HZ - 1)
    clock.advance(1)
    assert (clock.ticks(TSC_HZ), clock.ticks(COUNTER_HZ), clock.ticks(1)) == (10**9, COUNTER_HZ, 1)


def test_time_cannot_be_turned_back() -> None:
    clock = VirtualClock(COSTS)
    clock.observe(100)
    with pytest.raises(ValueError, match="went back from 100 to 99"):
        clock.observe(99)
    with pytest.raises(ValueError, match="cannot go back by 1 ns"):
        clock.advance(-1)
    assert clock == VirtualClock(COSTS, blocks=100, origin=100)


def test_a_copied_clock_goes_on_alike() -> None:
    clock = VirtualClock(COSTS)
    clock.advance(9)
    clock.observe(4)
    for twin in (pickle.loads(pickle.dumps(clock)), copy.copy(clock)):
        assert twin == clock
        assert twin.observe(8) == 9 + 4 * 3
    assert clock.now_ns == 9


def test_time_ends_where_linux_s_does_and_stands_still_then() -> None:
    clock = VirtualClock(COSTS)
    clock.advance(1 << 70)
    assert clock.now_ns == LAST_NS
    clock = VirtualClock(COSTS)
    clock.observe(0)
    clock.idle_until(1 << 70)
    assert clock.now_ns == LAST_NS
    clock.advance(5)
    assert clock.observe(1_000) == LAST_NS and clock.ticks(TSC_HZ) == LAST_NS
    assert clock.busy_ns == 0


def test_idle_time_is_no_processor_time() -> None:
    clock = VirtualClock(COSTS)
    clock.advance(500)
    clock.idle_until(2_000)
    clock.idle_until(1_000)
    clock.advance(7)
    assert (clock.now_ns, clock.busy_ns) == (2_007, 507)
    again = VirtualClock(COSTS)
    again.restore(clock.capture())
    assert again.busy_ns == 507
