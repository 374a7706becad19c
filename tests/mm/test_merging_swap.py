"""Merged pages in swap: they go as one, and each that comes back is its own process's again."""

from __future__ import annotations

import pytest

from aether_emu.mm.merging import figures
from aether_emu.mm.rmap import mappings
from tests.mm.board import FORMATS, check_accounts
from tests.mm.swap.boards import check_slots, parts, with_swap
from tests.mm.test_merging import BASE, EQUAL, Kit


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("write", [False, True])
def test_merged_pages_go_to_swap_as_one_and_come_back_apart(name: str, write: bool) -> None:
    kit = Kit(name)
    with_swap(kit.board, 64)
    swap, reclaim = parts(kit.board)
    one, other = kit.spaces
    kit.merge()
    merged = kit.frame(one, 0)
    assert reclaim.take([merged]) == 1
    assert swap.used == 1
    assert figures(kit.physical) == (0, 0)
    check_slots(kit.board, [])
    for space in kit.spaces:
        for number in range(2):
            if write:
                kit.write(space, number, b"%d" % number)
            else:
                assert kit.read(space, number) == EQUAL
    frames = kit.frames()
    assert len(frames) == 4
    for space in kit.spaces:
        for number in range(2):
            shown = list(mappings(kit.physical, kit.frame(space, number)))
            assert [(each.space, int(each.address)) for each in shown] == [(space, BASE + number * kit.page)]
    check_accounts(kit.board, [])
    check_slots(kit.board, [])
    if not write:
        assert kit.merge() == 3
        assert [kit.read(space, 1) for space in (one, other)] == [EQUAL, EQUAL]
        check_slots(kit.board, [])
    kit.board.close()


@pytest.mark.parametrize("name", FORMATS)
def test_a_page_whose_slot_is_kept_is_merged(name: str) -> None:
    """It came back by a read, so the slot still has its bytes; a fork's page names the slot, too."""
    kit = Kit(name)
    with_swap(kit.board, 64)
    _swap, reclaim = parts(kit.board)
    one, other = kit.spaces
    child = kit.fork(one)
    assert reclaim.take([kit.frame(one, 0), kit.frame(other, 0)]) == 2
    assert [kit.read(space, 0) for space in (one, other)] == [EQUAL, EQUAL]
    assert kit.merge() >= 2
    check_slots(kit.board, [])
    kit.write(one, 0, b"own")
    assert [kit.read(child, 0), kit.read(other, 0)] == [EQUAL, EQUAL]
    assert reclaim.take([kit.frame(other, 0)]) == 1
    kit.write(child, 0, b"child")
    assert [kit.read(other, 0), kit.read(one, 0, 3)] == [EQUAL, b"own"]
    check_accounts(kit.board, [])
    check_slots(kit.board, [])
    kit.board.close()
