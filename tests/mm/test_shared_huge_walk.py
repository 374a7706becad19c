"""Random calls and stores of shared memory in huge pages, beside a plain dict of the object's bytes.

Two address spaces show one object, the second at an odd address too, where no leaf fits. Pages are stored to
and read, areas cut, holes made, pages taken to swap, tables collapsed. After each step every page has its
byte, each reference is explained, and what the object calls a huge page is frames in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import NamedTuple

import pytest

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.machine.cpu import UserFault
from aether_emu.mm import mapping
from aether_emu.mm.collapse import Scan
from aether_emu.mm.collapse_terms import Terms
from aether_emu.mm.counters import Event
from aether_emu.mm.hugepage import huge_size
from aether_emu.mm.mapping import MADV_COLLAPSE, MADV_DONTNEED, MADV_REMOVE
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.protection import Protection
from aether_emu.mm.rmap import mappings
from aether_emu.mm.shared_huge import SharedHugePages
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.tree import Found
from aether_emu.ports import NEVER_FAILS
from tests.mm.board import ENGINES, FORMATS, Board, check_accounts
from tests.mm.calls import RW
from tests.mm.swap.boards import check_slots, parts, with_swap
from tests.mm.tables.test_page import FailsAt

SPANS = 3  # huge pages of the object


class Window(NamedTuple):
    """A place where a space shows the object whole, page 0 at `base`."""

    space: AddressSpace
    base: int


class Walk:
    """`bytes` has the byte at the start of each page of the object; `rights` what each window permits."""

    def __init__(self, name: str, random: Random, orders: tuple[int, ...], slots: int) -> None:
        fmt = FORMATS[name]
        self.random, self.page, self.size = random, fmt.page_size, huge_size(fmt)
        self.count = self.size // self.page
        self.pages = SPANS * self.count
        self.board = Board(fmt, ram=8 * self.size, execute=name in ENGINES)
        self.physical = self.board.physical
        self.physical.shared_huge = SharedHugePages(self.physical, fmt, setting="always", orders=orders)
        if slots:
            with_swap(self.board, slots)
        self.memory = SharedMemory(self.physical, self.pages)
        self.memory.hold()
        one, other = self.board.space(), self.board.space()
        self.windows = [
            Window(one, 8 * self.size),
            Window(other, 16 * self.size),
            Window(other, 24 * self.size + 4 * self.page),
        ]
        self.rights = [dict.fromkeys(range(self.pages), RW) for _ in self.windows]
        for window in self.windows:
            self.map(window, 0, self.pages)
        self.bytes: dict[int, int] = {}
        terms = Terms(self.count - 1, self.count)
        self.scan = Scan(self.physical, terms, self.count)

    def map(self, window: Window, first: int, count: int) -> None:
        start, end = window.base + first * self.page, window.base + (first + count) * self.page
        window.space.replace(
            window.space.new_area(start, end, RW, shared=True, backing=self.memory, offset=first)
        )

    def choose(self) -> tuple[int, Window]:
        number = self.random.randrange(len(self.windows))
        return number, self.windows[number]

    def place(self) -> tuple[int, int]:
        """First page and number of pages: whole huge pages, or a few near a border of some."""
        if self.random.randrange(3) == 0:
            first = self.random.randrange(SPANS)
            return first * self.count, self.random.randrange(1, SPANS - first + 1) * self.count
        near = self.random.randrange(SPANS + 1) * self.count + self.random.randrange(-8, 9)
        first = min(max(near, 0), self.pages - 6)
        return first, self.random.randrange(1, 6)

    # ---- the steps

    def store(self) -> None:
        number, window = self.choose()
        first, count = self.place()
        self.board.run_on(window.space)
        for index in range(first, first + min(count, 3)):
            value, right = self.random.randrange(1, 256), self.rights[number].get(index)
            try:
                self.board.cpu.copy_to_user(window.base + index * self.page, bytes([value]))
            except UserFault:
                assert right != RW
            else:
                assert right == RW
                self.bytes[index] = value

    def load(self) -> None:
        number, window = self.choose()
        first, count = self.place()
        self.board.run_on(window.space)
        for index in range(first, first + min(count, 3)):
            right = self.rights[number].get(index)
            try:
                value = self.board.cpu.copy_from_user(window.base + index * self.page, 1)[0]
            except UserFault:
                assert not right
            else:
                assert right
                assert value == self.bytes.get(index, 0)

    def protect(self) -> None:
        number, window = self.choose()
        first, count = self.place()
        wanted = self.random.choice((RW, RW, Protection.READ, Protection.NONE))
        rights = self.rights[number]
        if all(index in rights for index in range(first, first + count)):
            start = window.base + first * self.page
            mapping.protect_memory(window.space, start, count * self.page, wanted)
            rights.update(dict.fromkeys(range(first, first + count), wanted))

    def unmap(self) -> None:
        number, window = self.choose()
        first, count = self.place()
        start = window.base + first * self.page
        window.space.unmap(start, start + count * self.page)
        for index in range(first, first + count):
            self.rights[number].pop(index, None)

    def map_again(self) -> None:
        number, window = self.choose()
        first, count = self.place() if self.random.randrange(2) else (0, self.pages)
        self.map(window, first, count)
        self.rights[number].update(dict.fromkeys(range(first, first + count), RW))

    def advise(self) -> None:
        number, window = self.choose()
        first, count = self.place()
        advice = self.random.choice((MADV_DONTNEED, MADV_REMOVE, MADV_REMOVE, MADV_COLLAPSE, MADV_COLLAPSE))
        if advice == MADV_COLLAPSE:
            first, count = self.random.randrange(SPANS) * self.count, self.count
        writable = all(self.rights[number].get(index) == RW for index in range(first, first + count))
        if advice == MADV_REMOVE and not writable:
            return
        with suppress(Refused):
            start = window.base + first * self.page
            mapping.advise_memory(window.space, start, count * self.page, advice)
        if advice == MADV_REMOVE:
            for index in range(first, first + count):
                self.bytes.pop(index, None)

    def take(self) -> None:
        """To swap, where there is some."""
        first, count = self.place()
        if self.physical.swap is not None:
            known = self.memory.frames_by_page()
            some = [known[index] for index in range(first, first + min(count, 40)) if index in known]
            parts(self.board)[1].take(some)

    def look(self) -> None:
        self.scan.look([window.space for window in self.windows[:2]])

    def without_memory(self) -> None:
        """A store, or a collapse, for which a block or a table is missing."""
        self.board.buddy.failures = FailsAt(self.random.randrange(3))
        try:
            self.random.choice((self.store_or_not, self.advise))()
        except OutOfFrames:
            pass
        finally:
            self.board.buddy.failures = NEVER_FAILS

    def store_or_not(self) -> None:
        _number, window = self.choose()
        first, _count = self.place()
        self.board.run_on(window.space)
        with suppress(UserFault):
            self.board.cpu.copy_to_user(window.base + first * self.page, b"\x05")
            self.bytes[first] = 5

    # ---- what is always so

    def check(self) -> None:
        check_accounts(self.board, [self.memory])
        if self.physical.swap is not None:
            check_slots(self.board, [self.memory])
        frames, ram = self.board.frames, self.board.ram
        known = self.memory.frames_by_page()
        for index, value in self.bytes.items():
            if index in known:
                assert ram.bytes[frames.address(known[index]) - ram.base] == value
            else:
                data = parts(self.board)[0].look(self.memory.slots_by_page()[index])
                assert data is not None
                assert data[0] == value
        for index, frame in known.items():
            assert (frames.owner[frame], frames.index[frame]) == (self.memory.number, index)
            if index not in self.bytes and self.random.randrange(64) == 0:
                assert ram.bytes[frames.address(frame) - ram.base] == 0
        for first in self.memory.folios:
            block = self.memory.row(first, self.count)
            assert block is not None
            assert not (block | first) & self.count - 1
        for space in {window.space for window in self.windows}:
            for item in space.table.visit(0, space.limits.user_end):
                if isinstance(item, Found):
                    area = space.areas.find(item.start)
                    assert area is not None
                    assert area.start <= item.start <= item.start + self.size <= area.end
        some = self.random.choice(sorted(known.values())) if known else None
        if some is not None:
            assert len(list(mappings(self.physical, some))) == frames.maps[some]


KINDS = [("invented", (4, 2)), ("x86_64", ()), ("arm64-4K", (4, 2)), ("arm64-16K", ()), ("arm64-4K", ())]


def take_a_walk(name: str, orders: tuple[int, ...], seed: int, steps: int, slots: int = 4096) -> None:
    random = Random(seed)
    walk = Walk(name, random, orders, slots)
    some: list[Callable[[], None]] = [
        *[walk.store] * 6,
        *[walk.load] * 4,
        *[walk.protect] * 2,
        walk.unmap,
        *[walk.map_again] * 3,
        *[walk.advise] * 5,
        *[walk.take] * 2,
        *[walk.look] * 2,
        walk.without_memory,
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
    tried = Event.SHARED_HUGE, Event.SHARED_HUGE_MAPPED, Event.HUGE_SPLIT, Event.HUGE_COLLAPSE
    assert all(n[event] for event in tried), "the walk has been everywhere"
    walk.memory.let_go()
    walk.board.close()


@pytest.mark.parametrize(("name", "orders"), KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_a_walk(name: str, orders: tuple[int, ...], seed: int) -> None:
    take_a_walk(name, orders, seed, 100)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "orders"), KINDS)
@pytest.mark.parametrize("seed", range(100, 110))
def test_many_walks(name: str, orders: tuple[int, ...], seed: int) -> None:
    take_a_walk(name, orders, seed, 1000)
