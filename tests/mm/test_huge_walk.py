"""Random calls, stores, forks and collapses of memory in huge pages and runs, beside dicts of pages.

After each step every page that was stored to has its byte, in both processes; each reference is explained; no
large leaf lies over the border of two areas; and a run with the hint says one thing, in a row of frames.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from random import Random

import numpy as np
import pytest

from aether_emu.errors import OutOfFrames, Refused
from aether_emu.machine.cpu import UserFault
from aether_emu.mm import ageing, mapping
from aether_emu.mm.collapse import Scan
from aether_emu.mm.collapse_terms import Terms
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, OutOfMemory
from aether_emu.mm.mapping import MADV_COLLAPSE, MADV_DONTNEED, MADV_NORMAL, MADV_RANDOM
from aether_emu.mm.protection import Protection
from aether_emu.mm.remap import MREMAP_FIXED, MREMAP_MAYMOVE, Remap, remap_memory
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.tree import Found
from aether_emu.ports import NEVER_FAILS
from tests.mm.board import check_accounts, fault_in
from tests.mm.calls import RW
from tests.mm.tables.test_page import FailsAt
from tests.mm.test_hugepage import WRITE, Huge

SPANS = 4  # huge pages that all happens in


class Walk(Huge):
    """`bytes` is, for each space, the byte at the start of each page that was stored to."""

    def __init__(self, name: str, random: Random, orders: tuple[int, ...]) -> None:
        super().__init__(name, orders=orders)
        self.random = random
        self.space.unmap(self.base, self.base + 3 * self.size)
        self.map(self.base, SPANS * self.size)
        self.rights = dict.fromkeys(range(SPANS * self.count), RW)
        self.bytes: dict[int, int] = {}
        self.other: tuple[AddressSpace, dict[int, Protection], dict[int, int]] | None = None
        self.scan = Scan(self.board.physical, Terms(self.count - 1, self.count // 2), self.count)

    # ---- the steps

    def place(self) -> tuple[int, int]:
        """First page and number of pages: a few, a run, or whole huge pages."""
        kind = self.random.randrange(4)
        if kind == 0:
            first = self.random.randrange(SPANS) * self.count
            return first, self.random.randrange(1, SPANS - first // self.count + 1) * self.count
        if kind == 1:
            first = self.random.randrange(SPANS * self.count // 16) * 16
            return first, 16
        near = self.random.randrange(SPANS + 1) * self.count + self.random.randrange(-5, 6)
        first = min(max(near, 0), SPANS * self.count - 6)
        return first, self.random.randrange(1, 6)

    def store(self) -> None:
        first, count = self.place()
        for number in range(first, first + min(count, 3)):
            value = self.random.randrange(1, 256)
            try:
                self.write(number * self.page, bytes([value]))
            except UserFault:
                assert self.rights.get(number) != RW
            else:
                assert self.rights[number] == RW
                self.bytes[number] = value

    def load(self) -> None:
        first, count = self.place()
        for number in range(first, first + min(count, 3)):
            try:
                value = self.read(number * self.page)[0]
            except UserFault:
                assert not self.rights.get(number)
            else:
                assert self.rights[number]
                assert value == self.bytes.get(number, 0)

    def protect(self) -> None:
        first, count = self.place()
        wanted = self.random.choice((RW, RW, Protection.READ, Protection.NONE))
        if all(number in self.rights for number in range(first, first + count)):
            mapping.protect_memory(self.space, self.base + first * self.page, count * self.page, wanted)
            self.rights.update(dict.fromkeys(range(first, first + count), wanted))

    def unmap(self) -> None:
        first, count = self.place()
        self.space.unmap(self.base + first * self.page, self.base + (first + count) * self.page)
        for number in range(first, first + count):
            self.rights.pop(number, None)
            self.bytes.pop(number, None)

    def map_again(self) -> None:
        first, count = self.place()
        self.unmap_at(first, count)
        self.map(self.base + first * self.page, count * self.page)
        self.rights.update(dict.fromkeys(range(first, first + count), RW))

    def unmap_at(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self.bytes.pop(number, None)

    def advise(self) -> None:
        first, count = self.place()
        advice = self.random.choice((MADV_DONTNEED, MADV_RANDOM, MADV_NORMAL, MADV_COLLAPSE, MADV_COLLAPSE))
        if advice == MADV_COLLAPSE:
            first, count = self.random.randrange(SPANS) * self.count, self.count
        with suppress(Refused):
            mapping.advise_memory(self.space, self.base + first * self.page, count * self.page, advice)
        if advice == MADV_DONTNEED:
            self.unmap_at(first, count)

    def look(self) -> None:
        first, count = self.place()
        start = self.base + first * self.page
        ageing.forget_accesses(self.space, start, start + count * self.page)
        self.scan.look([self.space] if self.other is None else [self.space, self.other[0]])

    def move(self) -> None:
        first, count = self.place()
        to = self.random.randrange(SPANS) * self.count
        apart = first + count <= to or to + count <= first
        alike = len({self.rights.get(number) for number in range(first, first + count)}) == 1
        if not apart or not alike or first not in self.rights or to + count > SPANS * self.count:
            return
        size, at = count * self.page, self.base + first * self.page
        flags = MREMAP_MAYMOVE | MREMAP_FIXED
        try:
            remap_memory(self.space, Remap(at, size, size, flags, self.base + to * self.page))
        except Refused:  # the source is of areas that differ in advice: nothing has changed
            return
        for number in range(count):
            right = self.rights.pop(first + number)
            byte = self.bytes.pop(first + number, None)
            self.rights[to + number] = right
            self.bytes.pop(to + number, None)
            if byte is not None:
                self.bytes[to + number] = byte

    def fork_or_switch(self) -> None:
        if self.other is None:
            self.other = self.fork(), dict(self.rights), dict(self.bytes)
        elif self.random.randrange(8):
            self.space, self.rights, self.bytes, self.other = (
                *self.other,
                (self.space, self.rights, self.bytes),
            )
        else:
            self.end(self.other[0])
            self.other = None
        self.board.run_on(self.space)

    def without_memory(self) -> None:
        """A store, or an edit, for which a frame or a block is missing now and then."""
        self.board.buddy.failures = FailsAt(self.random.randrange(3))
        first, count = self.place()
        start = self.base + first * self.page
        try:
            if self.random.randrange(2) and self.rights.get(first) == RW:
                outcome = fault_in(self.space, start, WRITE)
                assert outcome is RESOLVED or isinstance(outcome, OutOfMemory)
            else:
                self.space.unmap(start, start + count * self.page)
                for number in range(first, first + count):
                    self.rights.pop(number, None)
                    self.bytes.pop(number, None)
        except OutOfFrames:
            pass
        finally:
            self.board.buddy.failures = NEVER_FAILS

    # ---- what is always so

    def check(self) -> None:
        check_accounts(self.board, [])
        self.check_bytes(self.space, self.rights, self.bytes)
        if self.other is not None:
            self.check_bytes(*self.other)

    def check_bytes(self, space: AddressSpace, rights: dict[int, Protection], stored: dict[int, int]) -> None:
        fmt, frames, ram = self.board.format, self.board.frames, self.board.ram
        seen = ageing.look(space, self.base, self.base + SPANS * self.size)
        shown = dict(zip(seen.pages.tolist(), seen.frames.tolist(), strict=True))
        assert all(number - self.base // self.page in rights for number in shown)
        for number, value in stored.items():
            frame = shown[self.base // self.page + number]
            assert ram.bytes[frames.address(frame) - ram.base] == value
        for number, frame in shown.items():
            if number - self.base // self.page not in stored and self.random.randrange(64) == 0:
                assert ram.bytes[frames.address(frame) - ram.base] == 0
        hint, contiguous = fmt.contiguous_bit, fmt.levels[0].contiguous
        for item in space.table.visit(self.base, self.base + SPANS * self.size):
            if isinstance(item, Found):
                area = space.areas.find(item.start)
                assert area is not None
                assert area.start <= item.start
                assert item.start + self.size <= area.end
                continue
            if not hint:
                continue
            entries = ram.array[item.slot : item.slot + item.count]
            hinted = entries & np.uint64(hint | fmt.present_mask) == np.uint64(hint | fmt.present_mask)
            runs = hinted.reshape(-1, contiguous)
            assert (runs.any(axis=1) == runs.all(axis=1)).all()
            for run in entries.reshape(-1, contiguous)[runs.any(axis=1)]:
                noted = fmt.touch(run)
                steps = np.arange(contiguous, dtype=np.uint64) * np.uint64(self.page)
                assert (noted == noted[0] + steps).all()


KINDS = [("invented", (4, 2)), ("x86_64", ()), ("arm64-4K", (4, 2)), ("arm64-4K", ())]


def take_a_walk(name: str, orders: tuple[int, ...], seed: int, steps: int) -> None:
    random = Random(seed)
    walk = Walk(name, random, orders)
    some: list[Callable[[], None]] = [
        *[walk.store] * 6,
        *[walk.load] * 3,
        *[walk.protect] * 3,
        walk.unmap,
        *[walk.map_again] * 3,
        *[walk.advise] * 3,
        *[walk.look] * 2,
        *[walk.move] * 2,
        *[walk.fork_or_switch] * 3,
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
    tried = Event.HUGE_FAULT, Event.HUGE_SPLIT
    assert all(walk.events(*tried)), "the walk has been everywhere"
    walk.board.close()


@pytest.mark.parametrize(("name", "orders"), KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_walk(name: str, orders: tuple[int, ...], seed: int) -> None:
    take_a_walk(name, orders, seed, 150)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "orders"), KINDS)
@pytest.mark.parametrize("seed", range(100, 110))
def test_many_walks(name: str, orders: tuple[int, ...], seed: int) -> None:
    take_a_walk(name, orders, seed, 1000)
