"""Modelled locks: who waits for whom and how long; and how often the allocator's lock is taken."""

from __future__ import annotations

from aether_emu.config import ClockCosts
from aether_emu.mm.frames.buddy import BATCH, Zone
from aether_emu.mm.frames.locked import CountedBuddy, SharedBuddy
from aether_emu.mm.frames.table import FrameTable
from aether_emu.mm.locks import Locks, Step

_COSTS = ClockCosts(lock=1, lock_transfer=10)
_ALONE, _SHARED = [Step("space", 1)], [Step("area", (1, 0), shared=True)]


def test_a_lock_is_waited_for_until_its_holder_is_done() -> None:
    locks = Locks(_COSTS)
    assert locks.perform(0, 100, 500, _ALONE) == 100 + 10 + 500
    assert locks.perform(1, 200, 500, _ALONE) == 610 + 10 + 500, "the first has it until 610"
    assert locks.perform(1, 2000, 500, _ALONE) == 2000 + 1 + 500, "the cache line is there already"
    assert locks.perform(2, 2000, 500, [Step("space", 2)]) == 2000 + 10 + 500, "another space's"
    assert locks.counted["space"].as_dict() == {"taken": 4, "contended": 1, "waited_ns": 410}


def test_who_shares_a_lock_waits_for_its_cache_line_alone() -> None:
    locks = Locks(_COSTS)
    ends = [locks.perform(cpu, 0, 500, _SHARED) for cpu in range(3)]
    assert ends == [510, 520, 530]
    alone = [Step("area", (1, 0))]
    assert locks.perform(3, 0, 5, alone) == 530 + 10 + 5, "all that share it are waited for"
    assert locks.perform(0, 0, 500, _SHARED) == 545 + 10 + 500


def test_a_lock_inside_an_operation_is_free_before_that_is_over() -> None:
    locks = Locks(_COSTS)
    steps = [*_SHARED, Step("table", (1, 7), 50)]
    assert locks.perform(0, 0, 500, steps) == 10 + 10 + 500
    assert locks.perform(1, 0, 500, steps) == 10 + 10 + 50 + 10 + 500, "the table's is free at 70, not at 520"


def test_an_address_space_that_is_gone_leaves_no_lock() -> None:
    locks = Locks(_COSTS)
    locks.perform(0, 0, 5, [Step("space", 1), Step("table", (1, 7), 1), Step("table", (1, 3), 1)])
    locks.perform(0, 0, 5, [Step("table", (2, 9), 1)])
    assert locks.known("table", 1) == [3, 7]
    locks.forget(1)
    assert (locks.known("table", 1), locks.known("table", 2)) == ([], [9])
    assert locks.perform(1, 0, 5, _ALONE) == 10 + 5


def _touches(kind: type[CountedBuddy]) -> tuple[int, int, list[int]]:
    """Of twice a batch of allocations on each of two CPUs, and of their frees; and the frames."""
    buddy = kind(FrameTable(0, 4096 << 12, 12), [Zone("normal", 0, 4096)], cpus=2)
    taken = []
    for cpu in (0, 1):
        buddy.enter(cpu)
        taken += [buddy.alloc() for _ in range(2 * BATCH)]
    after = buddy.touched
    for frame in taken:
        buddy.free(frame)
    buddy.check()
    assert buddy.free_frames == buddy.total
    return after, buddy.touched - after, taken


def test_lists_of_each_cpu_take_the_allocators_lock_once_for_a_batch() -> None:
    assert _touches(CountedBuddy)[:2] == (4, 0)
    assert _touches(SharedBuddy)[:2] == (4 * BATCH, 4 * BATCH)
