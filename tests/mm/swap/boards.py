"""Boards with a swap area, and what must be true of its slots."""

from __future__ import annotations

from collections import Counter

from aether_emu.config import Config
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.reclaim import Reclaim
from aether_emu.mm.swap.area import SwapArea
from aether_emu.mm.swap.entries import swap_entries
from aether_emu.policy.reclaim import connect
from tests.mm.board import Board


def with_swap(
    board: Board, slots: int, *, order: str = "mglru", pool: int | None = None, ahead: int = 1
) -> Board:
    """The board, from now on with a swap area of so many slots."""
    size = board.format.page_size
    config = Config.load(
        overrides={
            "ram": board.ram.size,
            "page_size": size if size in (4096, 16384, 65536) else 4096,
            "swap": slots * size,
            "swap_pool": pool,
            "swap_readahead": ahead,
            "reclaim": order,
        }
    )
    connect(board.physical, board.format, config)
    return board


def parts(board: Board) -> tuple[SwapArea, Reclaim]:
    """The area, and who takes pages there."""
    swap, reclaim = board.physical.swap, board.physical.reclaim
    assert swap is not None
    assert isinstance(reclaim, Reclaim)
    return swap, reclaim


def check_slots(board: Board, objects: list[SharedMemory]) -> None:
    """Every slot in use is explained: by entries and objects that name it, or by a frame cached for it."""
    swap, _reclaim = parts(board)
    codec, named = swap_entries(board.format), Counter[int]()
    for space in board.spaces:
        for found in space.table.cursor(0, space.limits.user_end):
            if codec.holds(found.entry):
                named[codec.slot(found.entry)] += 1
                if found.entry & codec.exclusive:
                    assert swap.users(codec.slot(found.entry)) == 1
    for memory in objects:
        named.update(memory.slots_by_page().values())
    assert {slot: swap.users(slot) for slot in named} == dict(named)
    cached = {slot: frame for frame in range(board.frames.count) if (slot := swap.slot_of(frame)) is not None}
    assert swap.used == len(named.keys() | cached.keys())
    assert (swap.cached, swap.idle) == (len(cached), len(cached.keys() - named.keys()))
    for slot, frame in cached.items():
        assert swap.frame_of(slot) == frame
        assert bytes(board.physical.page_bytes(frame)) == swap.look(slot) or slot not in named
        assert board.frames.refs[frame] > 0
