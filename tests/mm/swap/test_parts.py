"""Several files in the swap area: which gives out the next slot, and how one of them goes off."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aether_emu.mm.counters import Event
from aether_emu.mm.fault import BusError
from aether_emu.mm.swap.area import SwapFull
from aether_emu.mm.swap.file import SwapFile
from aether_emu.mm.swap.off import switch_off
from aether_emu.mm.swap.part import MOST_PARTS, PLACE_BITS, Part
from aether_emu.mm.swap.store import Store
from tests.mm.board import FORMATS, fault_in
from tests.mm.swap.test_swap import PAGES, READ, Away


class Several(Away):
    """As `Away`, whose area can get other files."""

    def __init__(self, folder: Path, kind: str = "x86_64") -> None:
        super().__init__(kind)
        self._folder = folder

    def add(self, name: str, slots: int, priority: int | None = None) -> Part:
        own, path = self.swap.store, self._folder / name
        path.write_bytes(b"header" + bytes((slots + 1) * self.size - 6))
        file = SwapFile.of_program(os.open(path, os.O_RDWR), slots, self.size)
        store = Store(file, own.codec, 0, self.size, self.n)
        part = self.swap.add(str(path), slots, store, priority=priority, key=name)
        assert part is not None
        return part

    def numbers(self, count: int) -> list[int]:
        """Which parts give out the next slots; they get them back."""
        slots = [self.swap.take() for _ in range(count)]
        for slot in slots:
            self.swap.give_back(slot)
        return [slot >> PLACE_BITS for slot in slots]


@pytest.fixture
def several(tmp_path: Path) -> Iterator[Several]:
    made = Several(tmp_path)
    yield made
    made.board.close()
    assert not made.swap.used


def test_higher_priorities_come_first_and_equal_ones_take_turns(several: Several) -> None:
    late, high, equal = several.add("late", 4), several.add("high", 4, 7), several.add("equal", 4, 7)
    assert (several.swap.own.priority, late.priority) == (-2, -3)
    assert several.numbers(10) == [high.number, equal.number] * 4 + [0, 0]
    held = [several.swap.take() for _ in range(several.swap.slots)]
    assert held[-4:] == [late.number << PLACE_BITS | place for place in range(4)]
    with pytest.raises(SwapFull):
        several.swap.take()
    for slot in held:
        several.swap.give_back(slot)


def test_a_number_is_used_again_and_there_are_as_many_as_an_entry_can_name(several: Several) -> None:
    parts = [several.add(f"part {number}", 1) for number in range(1, MOST_PARTS)]
    assert several.swap.add("too many", 1, several.swap.store, priority=None, key=0) is None
    several.swap.remove(parts[4])
    assert several.add("another", 1).number == parts[4].number


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_in_one_file_comes_back_and_others_keep_theirs(kind: str, tmp_path: Path) -> None:
    away = Several(tmp_path, kind)
    part = away.add("part", PAGES // 2, 1)
    for number in range(PAGES):
        away.write(number, os.urandom(64))
    right = [away.read(number) for number in range(PAGES)]
    assert away.send() == PAGES
    assert (part.used, away.swap.own.used) == (PAGES // 2, PAGES // 2)
    assert (tmp_path / "part").read_bytes()[:6] == b"header"
    away.check()
    assert switch_off(away.board.physical, away.swap, part)
    assert (part.used, away.swap.own.used) == (0, PAGES // 2)
    away.swap.remove(part)
    away.check()
    assert [away.read(number) for number in range(PAGES)] == right
    away.board.close()


def test_a_file_may_go_off_when_others_have_room_for_what_memory_has_not(several: Several) -> None:
    part = several.add("part", PAGES, 1)
    several.send()
    held = [several.board.buddy.alloc() for _ in range(several.board.buddy.free_frames - 4)]
    assert part.used == PAGES
    brought = switch_off(several.board.physical, several.swap, part)
    for frame in held:
        several.board.buddy.free(frame)
    assert brought
    assert [several.read(number) for number in range(PAGES)] == list(map(several.right, range(PAGES)))


def test_a_page_that_is_lost_keeps_its_slot_in_a_file_that_is_off(several: Several, tmp_path: Path) -> None:
    part = several.add("part", PAGES, 1)
    for number in range(PAGES):
        several.write(number, os.urandom(64))
    several.send()
    os.truncate(tmp_path / "part", 3 * several.size)
    assert switch_off(several.board.physical, several.swap, part)
    assert part.used == PAGES - 2
    assert isinstance(fault_in(several.space, several.at(5), READ), BusError)
    assert several.n[Event.FAULT_BUS] == 1
    assert several.read(1)
