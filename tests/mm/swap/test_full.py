"""A swap area that is full: who needs memory learns that soon, and not from each page of the machine."""

from __future__ import annotations

import pytest

from aether_emu.mm.counters import Event
from aether_emu.mm.mapping import MAP_FIXED
from aether_emu.mm.swap.area import SwapFull
from tests.mm.board import FORMATS
from tests.mm.calls import ANONYMOUS, RW, mmap
from tests.mm.swap.test_swap import ELSEWHERE, PAGES, Away

_MORE = 200  # pages; a batch of those that are tried has fewer


def _fill(away: Away) -> list[int]:
    """Take every slot that there is, or that the cache gives up."""
    taken = list[int]()
    with pytest.raises(SwapFull):
        while True:
            taken.append(away.swap.take())
    return taken


def _end(away: Away, taken: list[int]) -> None:
    for slot in taken:
        away.swap.give_back(slot)
    away.check()
    away.board.close()
    assert not away.swap.used


@pytest.mark.parametrize("kind", FORMATS)
def test_without_a_slot_only_pages_that_need_none_are_looked_at(kind: str) -> None:
    """Pages that one side of a fork has read are cached, but the other side names their slots."""
    away = Away(kind)
    child = away.fork()
    assert away.send() == PAGES
    for number in range(PAGES):
        assert away.read(number) == away.right(number)
    mmap(away.space, ELSEWHERE, _MORE, RW, ANONYMOUS | MAP_FIXED)
    for number in range(_MORE):
        away.board.cpu.copy_to_user(ELSEWHERE + number * away.size, b"x")
    taken = _fill(away)
    assert (away.swap.cached, away.swap.idle, away.swap.has_room) == (PAGES, 0, False)
    assert away.reclaim.make_room(8)
    assert away.swap.cached == 0 and away.n[Event.RECLAIM_SCANNED] == PAGES
    assert not away.reclaim.make_room(8)
    assert away.n[Event.RECLAIM_SCANNED] == PAGES, "nothing is cached any more"
    assert [away.read(3), away.read(3, child)] == [away.right(3)] * 2
    _end(away, taken)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_first_page_that_finds_no_slot_ends_the_search(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(kind)
    mmap(away.space, ELSEWHERE, _MORE, RW, ANONYMOUS | MAP_FIXED)
    for number in range(_MORE):
        away.board.cpu.copy_to_user(ELSEWHERE + number * away.size, b"x")

    def refused(*_arguments: object) -> int:
        raise SwapFull("the host has no room for the bytes")

    monkeypatch.setattr(away.swap, "take", refused)
    assert away.swap.has_room and not away.reclaim.make_room(8)
    assert 0 < away.n[Event.RECLAIM_SCANNED] < _MORE // 2
    _end(away, [])


def test_slots_become_idle_and_are_named_again() -> None:
    away = Away()
    child = away.fork()
    assert away.send() == PAGES
    for number in range(PAGES):
        away.read(number)
    assert (away.swap.cached, away.swap.idle) == (PAGES, 0)
    for number in (3, 1, 2):
        away.read(number, child)  # the other side needs the slot no more
    assert away.swap.idle == 3
    away.check()
    state = away.swap.capture()
    assert away.send(1, 2) == 2
    assert away.swap.idle == 1
    away.check()
    for number in (1, 2):
        away.read(number)
        away.read(number, child)
    away.swap.restore(state)
    assert away.swap.idle == 3
    taken = _fill(away)
    assert (len(taken), away.swap.cached, away.swap.idle) == (64 - PAGES + 3, PAGES - 3, 0)
    _end(away, taken)
