"""A table with pages in swap becomes a huge page: they come back before."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from aether_emu.errors import Refused
from aether_emu.mm import mapping
from aether_emu.mm.collapse import Scan
from aether_emu.mm.collapse_terms import Terms
from aether_emu.mm.hugepage import leaves
from aether_emu.mm.mapping import (
    MADV_COLLAPSE,
    MADV_HUGEPAGE,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
)
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.seen import in_swap
from aether_emu.mm.user import UserMemory
from aether_emu.system import Machine

BASE, PAGE, COUNT = 1 << 32, 4096, 512
SIZE = COUNT * PAGE


class Kit:
    """A machine with swap, and a space with a table of small pages, each of its own bytes."""

    def __init__(self, isa: str, **options: object) -> None:
        self.machine = Machine(isa, swap="16M", thp="madvise", khugepaged_sleep=0, **options)  # type: ignore[arg-type]
        self.space = self.machine.new_space()
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED
        mapping.map_memory(self.space, mapping.Request(BASE, SIZE, 3, flags, None, 0))
        UserMemory(self.space).write(BASE, self.content())
        self.advise(MADV_HUGEPAGE)

    @staticmethod
    def content() -> bytes:
        return b"".join(number.to_bytes(4, "little") * (PAGE // 4) for number in range(1, COUNT + 1))

    def advise(self, advice: int, first: int = 0, pages: int = COUNT) -> int:
        try:
            mapping.advise_memory(self.space, BASE + first * PAGE, pages * PAGE, advice)
        except Refused as refused:
            return refused.errno
        return 0

    @property
    def away(self) -> int:
        """How many pages of the table are in swap."""
        return in_swap(self.space, BASE, BASE + SIZE).pages.size

    def is_huge(self) -> bool:
        return len(leaves(self.space)) == 1

    def holds(self) -> bool:
        return UserMemory(self.space).read(BASE, SIZE) == self.content()

    def look(self, swapped: int) -> int:
        """What a scan does that takes so many pages in swap."""
        scan = Scan(self.machine.physical, Terms(COUNT, COUNT, swapped, used=True), COUNT)
        return scan.look([self.space])


@pytest.fixture(params=["x86_64", "arm64"])
def kit(request: pytest.FixtureRequest) -> Iterator[Kit]:
    kit = Kit(request.param, ram="64M")
    yield kit
    kit.space.destroy()
    kit.machine.close()


@pytest.mark.parametrize("gone", [1, 300, COUNT])
def test_who_asks_gets_a_huge_page_with_every_byte(kit: Kit, gone: int) -> None:
    assert kit.advise(MADV_PAGEOUT, COUNT - gone, gone) == 0
    assert kit.away == gone
    assert kit.advise(MADV_COLLAPSE) == 0
    assert kit.is_huge()
    assert kit.away == 0
    assert kit.holds()


def test_the_scan_takes_no_more_pages_in_swap_than_it_is_told(kit: Kit) -> None:
    kit.advise(MADV_PAGEOUT, 10, 20)
    assert kit.look(19) == 0
    assert (kit.away, kit.is_huge()) == (20, False), "nothing came back in vain"
    assert kit.look(20) == 1
    assert (kit.away, kit.is_huge(), kit.holds()) == (0, True, True)


def test_the_scan_leaves_a_table_alone_whose_pages_are_seldom_used(kit: Kit) -> None:
    kit.advise(MADV_PAGEOUT, 0, COUNT // 2 + 1)
    assert kit.look(COUNT) == 0
    assert not kit.is_huge()


def test_without_room_for_what_is_in_swap_nothing_is_lost(kit: Kit) -> None:
    kit.advise(MADV_PAGEOUT, 0, 200)
    buddy, reclaim, blocks = kit.machine.physical.buddy, kit.machine.physical.reclaim, list[int]()
    assert reclaim is not None
    while not reclaim.is_short:
        blocks.append(buddy.alloc(0))
    assert kit.advise(MADV_COLLAPSE) == errno.ENOMEM
    assert (kit.away, kit.is_huge()) == (200, False), "nothing came back in vain"
    for block in blocks:
        buddy.free(block)
    assert kit.advise(MADV_COLLAPSE) == 0
    assert kit.holds()


def test_a_child_that_shares_slots_keeps_its_pages(kit: Kit) -> None:
    kit.advise(MADV_PAGEOUT, 0, 100)
    child: AddressSpace = kit.space.fork()
    assert kit.advise(MADV_COLLAPSE) == 0
    assert kit.is_huge()
    UserMemory(kit.space).write(BASE, b"new")
    assert UserMemory(child).read(BASE, SIZE) == kit.content()
    child.destroy()
