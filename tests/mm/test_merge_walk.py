"""Random stores, forks, merges, moves and trips to swap of pages with few different contents, beside dicts.

After each step every page of every process has the bytes that the model says; each reference, entry and slot
is explained; no entry that shows a merged frame permits a write; the way back from each frame finds them all.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from aether_emu.errors import Refused
from aether_emu.mm import mapping
from aether_emu.mm.compaction import migrate
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.mapping import MADV_DONTNEED, MADV_MERGEABLE, MADV_UNMERGEABLE
from aether_emu.mm.merging import figures, set_merge_any
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import MREMAP_FIXED, MREMAP_MAYMOVE, Remap, remap_memory
from aether_emu.mm.rmap import mappings
from aether_emu.mm.space import AddressSpace
from tests.mm.board import check_accounts
from tests.mm.calls import RW
from tests.mm.swap.boards import check_slots, parts, with_swap
from tests.mm.test_merging import BASE, Kit

PAGES, LETTERS, MOST = 12, b"ab\0", 4
Bytes = dict[int, tuple[int, int]]


class Walk(Kit):
    """`model` is, for each space, the first and the last byte of each of its pages."""

    def __init__(self, name: str, random: Random, *, swap: bool) -> None:
        super().__init__(name, cpus=2, zero_pages=random.random() < 0.3)
        if swap:
            with_swap(self.board, 256)
        self.swaps, self.random = swap, random
        self.scan.pages = random.choice((3, 10, 100))
        self.model: dict[int, Bytes] = {}
        for space in self.spaces:
            self.map(space, pages=PAGES)
            self.model[space.number] = dict.fromkeys(range(PAGES), (0, 0))

    def pick(self) -> AddressSpace:
        return self.random.choice(self.board.spaces)

    def place(self) -> tuple[int, int]:
        first = self.random.randrange(PAGES)
        return first, self.random.randrange(1, min(4, PAGES - first) + 1)

    # ---- the steps

    def store(self) -> None:
        space, (first, count) = self.pick(), self.place()
        letter, pages = self.random.choice(LETTERS), self.model[space.number]
        for number in range(first, first + count):
            self.write(space, number, bytes([letter]))
            pages[number] = letter, pages[number][1]
            if self.random.random() < 0.3:
                self.board.cpu.copy_to_user(BASE + (number + 1) * self.page - 1, bytes([letter]))
                pages[number] = letter, letter

    def look(self) -> None:
        for _ in range(self.random.randrange(1, 8)):
            self.scan.look(self.board.spaces)

    def fork_or_end(self) -> None:
        space = self.pick()
        if len(self.board.spaces) < MOST:
            child = self.fork(space)
            self.model[child.number] = dict(self.model[space.number])
        elif self.random.random() < 0.5:
            self.end(space)
            del self.model[space.number]

    def advise_some(self) -> None:
        space, (first, count) = self.pick(), self.place()
        advice = self.random.choice((MADV_MERGEABLE, MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_DONTNEED))
        mapping.advise_memory(space, BASE + first * self.page, count * self.page, advice)
        if advice == MADV_DONTNEED:
            self.model[space.number].update(dict.fromkeys(range(first, first + count), (0, 0)))

    def merge_any(self) -> None:
        set_merge_any(self.pick(), on=self.random.random() < 0.7)

    def protect(self) -> None:
        space, (first, count) = self.pick(), self.place()
        for wanted in (self.random.choice((Protection.NONE, Protection.READ)), RW):
            mapping.protect_memory(space, BASE + first * self.page, count * self.page, int(wanted))
            if self.random.random() < 0.3:
                self.look()

    def move(self) -> None:
        """To the place of other pages, whose own is mapped anew."""
        space, (first, count) = self.pick(), self.place()
        to = self.random.randrange(PAGES - count + 1)
        if first < to + count and to < first + count:
            return
        size, pages = count * self.page, self.model[space.number]
        at, flags = BASE + first * self.page, MREMAP_MAYMOVE | MREMAP_FIXED
        try:
            remap_memory(space, Remap(at, size, size, flags, BASE + to * self.page))
        except Refused:  # areas that differ in advice: nothing has changed
            return
        self.map(space, at, count)
        for number in range(count):
            pages[to + number] = pages[first + number]
            pages[first + number] = (0, 0)

    def own_frames(self) -> list[int]:
        found: list[int] = np.flatnonzero(self.board.frames.kind_array == Kind.ANON).tolist()
        return found

    def migrate(self) -> None:
        frame = self.random.choice(self.own_frames() or [0])
        shown = list(mappings(self.physical, frame))
        fmt = self.board.format
        if not shown or not all(each.found.entry & fmt.present_mask for each in shown):
            return
        new = self.board.buddy.alloc_bulk(1)
        migrate(self.physical, np.array([frame]), new, [shown])
        self.physical.give_back([frame])

    def send_away(self) -> None:
        if self.swaps and (own := self.own_frames()):
            parts(self.board)[1].take(self.random.sample(own, min(len(own), 5)))

    # ---- what is always so

    def check(self) -> None:
        self.board.rest()
        check_accounts(self.board, [])
        if self.swaps:
            check_slots(self.board, [])
        fmt, frames = self.board.format, self.board.frames
        for frame in self.own_frames():
            shown = list(mappings(self.physical, frame))
            assert len(shown) == frames.maps[frame]
            if self.physical.is_merged(frame):
                present = [each.found.entry for each in shown if each.found.entry & fmt.present_mask]
                assert not any(fmt.writable(entry) for entry in present)
        shared, sharing = figures(self.physical)
        assert shared + sharing == sum(
            int(frames.maps[f]) for f in self.own_frames() if self.physical.is_merged(f)
        )
        some = self.random.random() < 0.3  # to read brings pages back
        for space in self.board.spaces if some or not self.swaps else []:
            self.board.run_on(space)
            for number, ends in self.model[space.number].items():
                page = bytes(self.board.cpu.copy_from_user(BASE + number * self.page, self.page))
                assert (page[0], page[-1]) == ends
                assert not any(page[1:-1])


def take_a_walk(name: str, seed: int, steps: int, *, swap: bool) -> None:
    random = Random(seed)
    walk = Walk(name, random, swap=swap)
    some: list[Callable[[], None]] = [
        *[walk.store] * 5,
        *[walk.look] * 6,
        *[walk.fork_or_end] * 2,
        *[walk.advise_some] * 2,
        walk.merge_any,
        walk.protect,
        *[walk.move] * 2,
        walk.migrate,
        *[walk.send_away] * 2,
    ]
    done: list[str] = []
    try:
        for _ in range(steps):
            step = random.choice(some)
            done.append(step.__name__)
            step()
            walk.check()
    except BaseException as error:
        error.add_note(f"seed {seed}, step {len(done)}: {', '.join(done[-6:])}")
        raise
    n = walk.physical.counters.n
    assert n[Event.MERGED_PAGES] + n[Event.MERGED_ZEROS] > 5, "the walk has been everywhere"
    walk.board.close()


@pytest.mark.parametrize("swap", [False, True], ids=["alone", "swap"])
@pytest.mark.parametrize("name", ["x86_64", "arm64-4K", "invented"])
@pytest.mark.parametrize("seed", range(3))
def test_a_walk(name: str, seed: int, swap: bool) -> None:
    take_a_walk(name, seed, 150, swap=swap)


@pytest.mark.slow
@pytest.mark.parametrize("swap", [False, True], ids=["alone", "swap"])
@pytest.mark.parametrize("name", ["x86_64", "arm64-4K", "invented"])
@pytest.mark.parametrize("seed", range(100, 110))
def test_many_walks(name: str, seed: int, swap: bool) -> None:
    take_a_walk(name, seed, 1000, swap=swap)
