"""What the memory manager takes for itself: at most 32 bytes a frame, and tables that large leaves save."""

from __future__ import annotations

import array
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from aether_emu.mm import mapping
from aether_emu.mm.mapping import MADV_MERGEABLE, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, Request
from aether_emu.mm.merging import MergeScan, figures, unmerge
from aether_emu.mm.populate import populate
from aether_emu.mm.reclaim import Reclaim
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.user import UserMemory
from aether_emu.observe.metadata import of_frames, page_tables, per_frame, size_of
from aether_emu.rules import MIB
from aether_emu.system import Machine

_AT = 1 << 32
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
    assert told["bytes_a_frame"] > 23 + 1 + (4 if kind == MAP_SHARED else 0) - 1, "the parts are counted"
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


_PAGES = 20_000
_EXTREMES: dict[str, Callable[[int], int]] = {
    "equal": lambda _number: 7,
    "pairs": lambda number: number % (_PAGES // 2),
    "neighbours": lambda number: number // 2,
    "distinct": lambda number: number,
    "groups": lambda number: number % 97 if number % 3 else -number,
}
"""By name which content each page has."""


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
@pytest.mark.parametrize("extreme", _EXTREMES)
def test_merging_keeps_within_it_whatever_is_equal(isa: str, extreme: str) -> None:
    content = _EXTREMES[extreme]
    frames_of = len({content(number) for number in range(_PAGES)})
    with Machine(isa, ram="128M") as machine:
        physical, spaces = machine.physical, [machine.new_space() for _ in range(2)]
        scan = physical.merge_scan = MergeScan(physical, 1000)
        size, at = _PAGES // 2 * 4096, 1 << 32
        for number, space in enumerate(spaces):
            mapping.map_memory(space, Request(at, size, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, None, 0))
            mapping.advise_memory(space, at, size, MADV_MERGEABLE)
            first = number * _PAGES // 2
            pages = (b"%016d" % content(page) * 256 for page in range(first, first + _PAGES // 2))
            UserMemory(space).write(at, b"".join(pages))
        before = of_frames(physical)["merge_scan"]
        while scan.passes < 3:
            scan.look(spaces)
            assert per_frame(physical)["bytes_a_frame"] <= MOST
        shared, sharing = figures(physical)
        assert extreme in {"equal", "groups"} or shared + (sharing == 0) * _PAGES == frames_of
        told = per_frame(physical)
        assert told["merged_bytes"] == pytest.approx(16 * shared, abs=100)
        assert told["merged_page_bytes"] == 10 * sharing
        assert told["merge_scan_bytes"] > before + _PAGES // 8, "what the scan knows of pages is counted"
        for space in spaces:
            unmerge(space, at, at + size)
        back = per_frame(physical)
        assert (back["merged_bytes"], back["merged_page_bytes"]) == (0, 0), "the memory comes back"
        for space in spaces:
            space.destroy()


@pytest.mark.parametrize("isa", ["x86_64", "arm64"])
def test_little_memory_keeps_within_it(isa: str) -> None:
    """Frames that come back stand ready for the next, as many as in large memory."""
    with Machine(isa, ram="4M", swap="32M") as machine:
        space = machine.new_space()
        length = machine.buddy.free_frames * 3 // 4 * 4096
        mapping.map_memory(space, Request(_AT, length, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, None, 0))
        assert populate(space, _AT, _AT + length, write=True) is None
        area = space.areas.find(_AT)
        assert area is not None
        for at in range(_AT, _AT + length, 4096):
            space.discard(area, at, at + 4096)
        assert machine.buddy.stats().zones[0].ready > 200
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
