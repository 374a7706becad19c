"""Reclaim that can bring nothing finds that out soon: what cannot go is not looked at for each page again."""

from __future__ import annotations

import pytest

from aether_emu.mm import locking
from aether_emu.mm.allocation import LOCKED
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Flags
from tests.mm.swap.test_swap import PAGES, Away

each_order = pytest.mark.parametrize("order", ["mglru", "clock"])


@each_order
def test_locked_pages_are_looked_at_once_until_they_are_unlocked(order: str) -> None:
    made = Away(order=order)
    locking.lock_memory(made.space, made.at(0), PAGES * made.size, LOCKED)
    assert not made.reclaim.make_room(1)
    seen = made.n[Event.RECLAIM_SCANNED]
    assert seen >= PAGES
    assert not made.reclaim.make_room(1)
    assert made.n[Event.RECLAIM_SCANNED] == seen
    locking.unlock_memory(made.space, made.at(3), made.size)
    assert made.reclaim.make_room(1)
    assert made.n[Event.RECLAIM_TAKEN] == 1
    assert made.read(3) == made.right(3)
    assert (made.board.frames.flags_array & Flags.UNEVICTABLE).any()
    made.check()


@each_order
def test_what_a_locked_area_showed_may_go_when_the_area_is_gone(order: str) -> None:
    made = Away(order=order)
    child = made.fork()
    locking.lock_memory(made.space, made.at(0), PAGES * made.size, LOCKED)
    assert not made.reclaim.make_room(1)
    made.space.unmap(made.at(0), made.at(PAGES))
    assert made.reclaim.make_room(1)
    assert made.read(0, child) == made.right(0)
    made.check()


@each_order
def test_nothing_is_scanned_while_there_is_no_slot(order: str) -> None:
    made = Away(order=order)
    while made.swap.has_room:
        made.swap.take()
    assert not made.reclaim.make_room(1)
    assert made.n[Event.RECLAIM_SCANNED] == 0
