"""Random calls, loads, stores and forks beside dicts of pages, while pages go to swap in between.

The machine is that of `tests.mm.test_address_space_model`, with an area of few slots: what a page holds, who
shares it and what is permitted must not depend on whether it was away.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from aether_emu.mm import ageing, mapping
from aether_emu.mm.allocation import Area
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.off import switch_off
from aether_emu.mm.tables.page import Found
from tests.mm.board import FORMATS
from tests.mm.space_model import SpaceModel
from tests.mm.swap.boards import check_slots, parts, with_swap
from tests.mm.test_address_space_model import Walker

ORDERS = ("mglru", "clock")


class SwappingWalker(Walker):
    """Pages may be in swap at any time."""

    order = "mglru"
    slots = 24

    def build(self) -> None:
        super().build()
        with_swap(self.board, self.slots, order=self.order, pool=200, ahead=4)

    def entries(self, space: AddressSpace) -> list[Found]:
        """Those that show a frame."""
        swap, _reclaim = parts(self.board)
        return [found for found in super().entries(space) if not swap.entries.holds(found.entry)]

    def every_entry_shows_the_models_bytes_and_permissions(self) -> None:
        """And what is in swap is as the model has it, too."""
        swap, _reclaim = parts(self.board)
        for space, model in self.sides():
            out = {}
            for found in super().entries(space):
                if swap.entries.holds(found.entry):
                    out[found.start // self.size] = swap.look(swap.entries.slot(found.entry))
            assert out == {number: bytes(model.content(number)) for number in out}
            assert out.keys() <= model.copies.keys() | self.unwritten(model)
            here = self.entries(space)
            for found in here:
                self.check_entry(model, found)
            assert model.copies.keys() <= {found.start // self.size for found in here} | out.keys()

    def unwritten(self, model: SpaceModel) -> set[int]:
        return {number for number, page in model.pages.items() if not page.shared}

    def every_reference_is_explained(self) -> None:
        super().every_reference_is_explained()
        check_slots(self.board, [memory for memory in self.memories.values() if len(memory.windows)])

    def scan(self, place: int, count: int, cleans: bool, touches: list[tuple[int, bool]]) -> None:
        """What comes back beside a page that is touched was not accessed: not here."""
        physical = self.board.physical
        physical.read_ahead, before = 1, physical.read_ahead
        try:
            super().scan(place, count, cleans, touches)
        finally:
            physical.read_ahead = before

    def mremap(self, place: int, old: int, new: int, to: int, flags: int, fails: int | None) -> None:
        """An allocation that fails is made again once there is room, so none is made to fail."""
        super().mremap(place, old, new, to, flags, None)

    # ---- what takes pages

    def page_out(self, random: Random) -> None:
        at, count = self.page_at(random.randrange(4096)), random.randrange(1, 9)
        for area in self.space.areas.overlapping(at * self.size, (at + count) * self.size):
            self.take(area, max(area.start, at * self.size), min(area.end, (at + count) * self.size))

    def take(self, area: Area, start: int, end: int) -> None:
        """By the advice, or whoever shows the pages."""
        if self.steps % 2:
            mapping.advise_memory(self.space, start, end - start, mapping.MADV_PAGEOUT)
        else:
            parts(self.board)[1].take(ageing.look(self.space, start, end).frames.tolist())

    def reclaim(self, _random: Random) -> None:
        """Some pages, of whichever space, in the order of the policy."""
        parts(self.board)[1].make_room(1)

    def off_and_on(self, _random: Random) -> None:
        swap, _reclaim = parts(self.board)
        assert switch_off(self.board.physical, swap, swap.own)
        assert not swap.used
        for memory in self.memories.values():
            assert isinstance(memory, SharedMemory)
            assert not memory.slots_by_page()
        swap.own.on = True

    steps = 0

    def walk(self, random: Random, steps: int) -> None:
        """As without, and in every second step pages go."""
        takers: list[Callable[[Random], None]]
        takers = [*[self.page_out] * 8, *[self.reclaim] * 2, self.off_and_on]
        for self.steps in range(steps):
            random.choice(takers)(random)
            self.every_entry_shows_the_models_bytes_and_permissions()
            self.every_reference_is_explained()
            super().walk(random, 1)


def take_a_walk(kind: str, order: str, *, seed: int, steps: int) -> Any:
    machine: Any = type("Walking", (SwappingWalker,), {"kind": kind, "order": order})()
    machine.build()
    try:
        machine.walk(Random(seed), steps)
    finally:
        machine.teardown()
    assert not parts(machine.board)[0].used
    return machine


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_long_walk_with_pages_away(kind: str, order: str) -> None:
    take_a_walk(kind, order, seed=1, steps=150)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("seed", range(100, 110))
def test_many_long_walks_with_pages_away(kind: str, seed: int) -> None:
    take_a_walk(kind, ORDERS[seed % 2], seed=seed, steps=600)
