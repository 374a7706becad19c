"""Merged frames and the pages that show them, in columns, beside plain lists that keep the same."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.mm.objects import merged
from aether_emu.mm.objects.merged import MergedMemory, Page
from aether_emu.mm.objects.protocol import MemoryObject
from aether_emu.mm.objects.registry import Registry

FRAMES, BASE, MOST = 64, 1 << 30, 5
FAMILIES = (7, 8, 900)
CHECKSUMS = (0, 1, 0xFFFF_FFFE, 0xFFFF_FFFF)


class Node:
    """A merged frame of the model."""

    def __init__(self, frame: int, checksum: int, page: Page) -> None:
        self.frame, self.checksum, self.pages = frame, checksum, {page: None}


class Walk:
    """Frames that are merged, joined, freed and moved at random; `nodes` are the living, the oldest first."""

    def __init__(self, seed: int) -> None:
        self.random, self.table = Random(seed), FrameTable(BASE, FRAMES << 12, 12)
        self.merged, self.nodes = MergedMemory(Registry[MemoryObject](), self.table), list[Node]()

    def page(self) -> Page:
        high = self.random.choice((0, 1 << 32, 5 << 40))
        return self.random.choice(FAMILIES), high + self.random.randrange(6)

    def free(self) -> list[int]:
        return [frame for frame in range(FRAMES) if self.table.kind[frame] == Kind.FREE]

    def adopt(self) -> None:
        if not self.free():
            return
        frame, page, table = self.random.choice(self.free()), self.page(), self.table
        table.kind[frame], table.refs[frame], table.maps[frame] = int(Kind.ANON), 1, 1
        table.owner[frame], table.index[frame] = page
        checksum = self.random.choice(CHECKSUMS)
        self.merged.adopt(frame, checksum)
        self.nodes.append(Node(frame, checksum, page))

    def join(self) -> None:
        if self.nodes:
            node, page = self.random.choice(self.nodes), self.page()
            self.merged.join(node.frame, page)
            node.pages[page] = None
            self.table.maps[node.frame] += 1

    def die(self) -> None:
        if self.nodes:
            node = self.nodes.pop(self.random.randrange(len(self.nodes)))
            self.table.kind[node.frame] = int(Kind.FREE)
            self.table.refs[node.frame] = self.table.maps[node.frame] = 0

    def move(self) -> None:
        if self.nodes and self.free():
            node, new, table = self.random.choice(self.nodes), self.random.choice(self.free()), self.table
            for column in (table.kind, table.owner, table.index, table.refs, table.maps):
                column[new] = column[node.frame]
            table.kind[node.frame] = table.refs[node.frame] = table.maps[node.frame] = 0
            self.merged.moved([node.frame], [new])
            node.frame = new

    def tidy(self) -> None:
        asked = {node.frame: node for node in self.nodes if len(node.pages) > 1}

        def still(frame: int, pages: list[Page]) -> list[Page]:
            node = asked.pop(frame)
            assert pages == list(node.pages)
            node.pages = {page: None for page in pages if self.random.random() < 0.6}
            return list(node.pages)

        self.merged.tidy(still)
        assert not asked, "each with more than one page is asked for"

    def restore(self) -> None:
        state = self.merged.capture()
        self.merged = MergedMemory(Registry[MemoryObject](), self.table)
        self.merged.restore(state)
        assert self.merged.capture() == state

    def check(self) -> None:
        merged, nodes = self.merged, self.nodes
        for checksum in (*CHECKSUMS, 5):
            room = [n.frame for n in nodes if n.checksum == checksum and self.table.maps[n.frame] < MOST]
            assert list(merged.alike(checksum, MOST)) == room
        for node in nodes:
            assert merged.pages_of(node.frame) == list(node.pages)
        for frame in self.free():
            assert merged.pages_of(frame) == []
        self.check_pages()
        if self.random.random() < 0.2:
            self.check_all()

    def check_all(self) -> None:
        """What forgets the dead."""
        merged, nodes, page = self.merged, self.nodes, self.page()
        assert merged.living() == [node.frame for node in nodes]
        assert merged.frames_of(page) == [node.frame for node in nodes if page in node.pages]
        for family in (*FAMILIES, 5):
            known = [n.frame for n in nodes if any(owner == family for owner, _index in n.pages)]
            assert merged.frames_of_family(family) == known

    def check_pages(self) -> None:
        merged, nodes = self.merged, self.nodes
        frames, pages = np.arange(FRAMES), [self.page() for _ in range(FRAMES)]
        shown = {node.frame: node.pages for node in nodes}
        expected = [at in shown and page in shown[at] for at, page in enumerate(pages)]
        assert merged.shows(frames, pages).tolist() == expected


@pytest.mark.parametrize("seed", range(10))
def test_a_walk(seed: int) -> None:
    walk = Walk(seed)
    steps = [*[walk.adopt] * 4, *[walk.join] * 6, *[walk.die] * 2, walk.move, walk.tidy, walk.restore]
    for _ in range(400):
        walk.random.choice(steps)()
        walk.check()


def test_a_frame_takes_16_bytes_and_each_page_beyond_its_first_10() -> None:
    walk = Walk(0)
    for _ in range(10):
        walk.adopt()
    for node in walk.nodes:
        for number in range(3):
            walk.merged.join(node.frame, (7, 100 + number))
    own, beyond = walk.merged.kept()
    assert 10 * 16 < own <= 10 * 16 + 8 * len(FAMILIES) * 3
    assert beyond == 30 * 10
    while walk.nodes:
        walk.die()
    assert walk.merged.kept() == (0, 0), "the memory comes back"


def test_many_families_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their numbers get four bytes where two are too few."""
    walk = Walk(0)
    walk.adopt()
    frame, own = walk.nodes[0].frame, list(walk.nodes[0].pages)
    pages = [(1000 + number, number) for number in range(300)]
    monkeypatch.setattr(merged, "_MOST_SHORT", 200)
    for page in pages:
        walk.merged.join(frame, page)
    assert walk.merged.kept()[1] == 300 * 12
    assert walk.merged.pages_of(frame) == own + pages
    walk.restore()
    assert walk.merged.frames_of_family(1299) == [frame]
    walk.merged.tidy(lambda _frame, shown: shown[-40:])
    assert walk.merged.pages_of(frame) == pages[-40:]
    assert walk.merged.kept()[1] == 39 * 10
