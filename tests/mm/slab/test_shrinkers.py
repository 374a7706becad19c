"""Who keeps memory is asked for it when it is short, and what they looked at is counted."""

from __future__ import annotations

from aether_emu.mm.counters import Counters, Event
from aether_emu.mm.slab.layout import Layout
from aether_emu.mm.slab.shrinkers import Shrinkers
from tests.mm.slab.board import Board

THING = Layout("thing", ("number", "Q"))


class Keeper:
    """Keeps `things`, and gives a frame for each."""

    def __init__(self, things: int, also: Shrinkers | None = None) -> None:
        self.things, self.also = things, also

    def count(self) -> int:
        return self.things

    def scan(self, wanted: int) -> tuple[int, int]:
        if self.also is not None:
            assert self.also.shrink(1) == 0, "it is at work already"
        given = min(wanted, self.things)
        self.things -= given
        return given + 1, given


def test_they_are_asked_in_turn_until_there_is_enough() -> None:
    counters = Counters()
    shrinkers = Shrinkers(counters.n)
    keepers = [Keeper(2, shrinkers), Keeper(0), Keeper(9)]
    for each in keepers:
        shrinkers.enter(each)
    assert shrinkers.shrink(5) == 5
    assert [each.things for each in keepers] == [0, 0, 6]
    assert counters.n[Event.SLABS_SCANNED] == 3 + 4
    assert shrinkers.shrink(100) == 6 and shrinkers.shrink(1) == 0


def test_slabs_give_back_magazines_and_empty_slabs() -> None:
    board = Board()
    counters = Counters()
    shrinkers = Shrinkers(counters.n)
    shrinkers.enter(board.slabs)
    taken = [board.slabs.take(THING) for _ in range(130)]
    for at in taken[1:]:
        board.slabs.put(THING, at)
    assert board.used == 3
    assert shrinkers.shrink(1) == 2
    assert board.used == 1 and counters.n[Event.SLABS_SCANNED] > 64
    board.slabs.check()
