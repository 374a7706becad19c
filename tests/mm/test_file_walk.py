"""Everything that can happen to a file whose pages count, beside what each page must read."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from aether_emu.mm import mapping
from aether_emu.mm.counters import Event
from aether_emu.mm.mapping import MAP_PRIVATE
from aether_emu.mm.rmap import unmap
from aether_emu.mm.space import AddressSpace
from tests.mm.board import FORMATS, discard
from tests.mm.counted import AT, OWN, SECOND, Counted, every_order


class Mixed:
    """Two spaces that show a file, the second one's private pages too, beside what each must read."""

    def __init__(self, counted: Counted, seed: int) -> None:
        self.counted, self.chance = counted, random.Random(seed)
        self.other = counted.board.space()
        counted.map()
        counted.map(at=SECOND, space=self.other)
        counted.map(flags=MAP_PRIVATE, at=OWN, space=self.other)
        self.file = [counted.right(n) for n in range(counted.pages)]
        self.copies = dict[int, bytes]()
        self.size = counted.pages

    def step(self) -> None:
        often = [self.read, self.read, self.write, self.write]
        others = [self.copy, self.take, self.make_room, self.cut, self.punch, self.sync]
        chosen = self.chance.choice([*often, *others, self.drop, self.fork, self.unused])
        chosen(self.chance.randrange(self.size))

    def shown(self) -> tuple[AddressSpace, int]:
        return self.chance.choice([(self.counted.space, AT), (self.other, SECOND)])

    def read(self, number: int) -> None:
        space, at = self.shown()
        assert self.counted.read(number, at=at, space=space) == self.file[number]
        right = self.copies.get(number, self.file[number])
        assert self.counted.read(number, at=OWN, space=self.other) == right

    def write(self, number: int) -> None:
        space, at = self.shown()
        self.file[number] = self.chance.randbytes(4)
        self.counted.write(number, self.file[number], at=at, space=space)

    def copy(self, number: int) -> None:
        self.copies[number] = self.chance.randbytes(4)
        self.counted.write(number, self.copies[number], at=OWN, space=self.other)

    def take(self, number: int) -> None:
        pages = self.counted.cache.all_pages()
        self.counted.reclaim.take([int(page) for page in pages[number % 3 :: 3]])

    def make_room(self, number: int) -> None:
        held = self.counted.fill(number % 8 + 4)
        self.counted.reclaim.make_room(1)
        self.counted.board.buddy.free_bulk(held)

    def cut(self, number: int) -> None:
        """Cut the file off, and let it grow again."""
        counted, everything = self.counted, 1 << 40
        new = max(number, 8)
        unmap(counted.backing, new, everything, copies=True)
        counted.backing.leave_memory(new, everything)
        for size in (new, self.size):
            os.truncate(counted.path, size * counted.page)
            counted.backing.file.resized()
        self.file[new:] = [bytes(4)] * (self.size - new)
        self.copies = {page: data for page, data in self.copies.items() if page < new}

    def punch(self, number: int) -> None:
        count = min(4, self.size - number)
        mapping.advise_memory(
            self.counted.space,
            AT + number * self.counted.page,
            count * self.counted.page,
            mapping.MADV_REMOVE,
        )
        self.file[number : number + count] = [bytes(4)] * count

    def sync(self, number: int) -> None:
        page, space, at = self.counted.page, *self.shown()
        mapping.sync_memory(space, at, (number + 1) * page, mapping.MS_SYNC)
        assert not any(self.counted.cache.is_dirty(self.counted.frame(n)) for n in range(number + 1))

    def drop(self, number: int) -> None:
        space, at = self.shown()
        discard(space, at + number * self.counted.page, at + self.size * self.counted.page)

    def fork(self, _number: int) -> None:
        """A child takes the place of the second one."""
        child = self.other.fork()
        self.counted.board.spaces.append(child)
        self.counted.board.run_on(self.counted.space)
        self.counted.board.spaces.remove(self.other)
        self.other.destroy()
        self.other = child

    def unused(self, _number: int) -> None:
        assert self.counted.physical.files is not None
        self.counted.physical.files.drop_unused(self.counted.cache.all_pages().tolist())


@every_order
@pytest.mark.parametrize("kind", FORMATS)
def test_whatever_happens_to_a_file_every_byte_is_right(kind: str, order: str, path: Path) -> None:
    counted = Counted(path, kind, order=order, swap=64)
    mixed = Mixed(counted, seed=len(kind))
    for number in range(250):
        mixed.step()
        if number % 10 == 0:
            counted.check()
    assert counted.n[Event.FILE_TAKEN] > 0
    for number in range(counted.pages):
        mixed.read(number)
        assert counted.in_file(number) == mixed.file[number]
    counted.check()
    counted.board.close()
