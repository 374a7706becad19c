"""Which slot a frame is cached for, beside a dict."""

from __future__ import annotations

import random

from aether_emu.mm.swap.cached import CachedSlots

FRAMES = 1000


def test_a_random_walk_is_that_of_a_dict() -> None:
    chance, slots, known = random.Random(4), CachedSlots(FRAMES), dict[int, int]()
    least = slots.kept
    for _ in range(5000):
        frame = chance.randrange(FRAMES)
        if frame in known:
            del known[frame]
            slots.clear(frame)
        else:
            slots.set(frame, known.setdefault(frame, chance.randrange(1, 1 << 32)))
        asked = chance.randrange(FRAMES)
        assert slots[asked] == known.get(asked, 0)
    assert slots.frames().tolist() == sorted(known)
    for frame in known:
        slots.clear(frame)
    assert slots.frames().size == 0
    assert slots.kept == least, "pieces without a cached frame are given back"


def test_a_frame_takes_a_piece_and_not_a_column() -> None:
    slots = CachedSlots(1 << 20)
    slots.set(12345, 7)
    assert slots.kept < 300_000
    assert slots[12344] == 0
    assert slots[12345] == 7
