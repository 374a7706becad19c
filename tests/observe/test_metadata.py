"""What the memory manager takes for itself: at most 32 bytes a frame, and tables that large leaves save."""

from __future__ import annotations

import array
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from aether_emu.mm import mapping
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, Request
from aether_emu.mm.populate import populate
from aether_emu.mm.reclaim import Reclaim
from aether_emu.mm.space import AddressSpace
from aether_emu.observe.metadata import of_frames, page_tables, per_frame, size_of
from aether_emu.rules import MIB
from aether_emu.system import Machine

MOST = 32.0
"""Bytes of metadata that a frame may cost, all included."""


def _full(machine: Machine, kind: int) -> AddressSpace:
    """An address space with most of the memory."""
    space = machine.new_space()
    at = 1 << 32
    mapping.map_memory(space, Request(at, 40 * MIB, 3, kind | MAP_ANONYMOUS | MAP_FIXED, None, 0))
    assert populate(space, at, at + 40 * MIB, write=True) is None
    return space


@pytest.fixture(params=["x86_64", "arm64"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine(request.param, ram="64M", swap="32M") as made:
        yield made


@pytest.mark.parametrize("kind", [MAP_PRIVATE, MAP_SHARED])
def test_a_frame_costs_at_most_32_bytes(machine: Machine, kind: int) -> None:
    assert per_frame(machine.physical)["bytes_a_frame"] <= MOST
    space = _full(machine, kind)
    told = per_frame(machine.physical)
    assert told["bytes_a_frame"] <= MOST
    assert told["bytes_a_frame"] > 23 + 1 + 4 + (4 if kind == MAP_SHARED else 0) - 2, "the parts are counted"
    space.destroy()


def test_pages_that_come_and_go_with_reclaim_keep_within_it(machine: Machine) -> None:
    space = _full(machine, MAP_PRIVATE)
    reclaim = machine.physical.reclaim
    assert isinstance(reclaim, Reclaim)
    frames = space.shown(0, space.limits.user_end).tolist()
    assert reclaim.take(frames[:2000]) == 2000
    told = per_frame(machine.physical)
    assert told["bytes_a_frame"] <= MOST
    assert told["swap_slot_bytes"] > 2000
    space.destroy()


def test_pages_of_files_that_count_cost_four_bytes_for_each_frame_of_the_aperture() -> None:
    with Machine("x86_64", ram="64M", aperture="16M", page_cache="counted") as counted:
        assert of_frames(counted.physical)["page_cache"] == 4 * (16 << 20) // 4096
        assert per_frame(counted.physical)["bytes_a_frame"] <= MOST
    with Machine("x86_64", ram="64M", aperture="16M") as outside:
        assert of_frames(outside.physical)["page_cache"] == 0


def test_each_part_is_measured_where_it_is(machine: Machine) -> None:
    before = of_frames(machine.physical)
    frames = machine.physical.frames
    assert before["frame_table"] == 23 * frames.count
    assert before["reclaim"] == (machine.physical.ram.size // machine.physical.ram.page_size)
    space = _full(machine, MAP_SHARED)
    grown = of_frames(machine.physical)
    assert grown["shared_memory"] - before["shared_memory"] > 4 * 10_000
    space.destroy()
    assert of_frames(machine.physical)["shared_memory"] == before["shared_memory"]


def test_a_hole_in_every_second_page_keeps_within_it(machine: Machine) -> None:
    """Memory in the smallest pieces is what takes most of the free lists."""
    space = _full(machine, MAP_PRIVATE)
    before = of_frames(machine.physical)["allocator"]
    area = space.areas.following(0)
    assert area is not None
    for at in range(area.start, area.end, 2 * space.page_size):
        space.discard(area, at, at + space.page_size)
    assert of_frames(machine.physical)["allocator"] - before > 4 * 5000
    assert per_frame(machine.physical)["bytes_a_frame"] <= MOST
    space.destroy()


def test_sizes_are_those_of_what_is_there() -> None:
    assert size_of(np.zeros(100, np.uint32)) == 400
    assert size_of(np.zeros(100, np.uint32)[:50]) == 0, "a view takes nothing"
    assert size_of({1000: 2000}) == sys.getsizeof({1000: 2000}) + 2 * sys.getsizeof(1000)
    assert size_of([7, None, True]) == sys.getsizeof([7, None, True])
    assert size_of({"a": array.array("I", [1, 2])}) > size_of({"a": array.array("I")}) + 7


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_large_leaves_save_the_tables_below_them(isa: str) -> None:
    with Machine(isa, ram="64M", aslr=False, thp="always") as machine:
        space = _full(machine, MAP_PRIVATE)
        told = page_tables(machine.physical, space)
        assert told["bytes_saved_by_large_leaves"] == 20 * 4096
        assert told["bytes_with_small_leaves"] == told["bytes"] + 20 * 4096
        assert told["tlb_entries_of_pages"] == 10 * 1024
        assert told["tlb_entries"] <= 20
        assert told["bytes_of_all"] > told["bytes"]
        space.destroy()
    with Machine(isa, ram="64M", aslr=False) as machine:
        space = _full(machine, MAP_PRIVATE)
        small = page_tables(machine.physical, space)
        assert small["bytes_saved_by_large_leaves"] == 0
        assert small["bytes"] == told["bytes_with_small_leaves"], "what was told of small leaves is so"
        assert small["tlb_entries"] == small["tlb_entries_of_pages"] == 10 * 1024
        space.destroy()
