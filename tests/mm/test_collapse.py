"""Collapse: small pages become a huge one with the same bytes, or are left as they are."""

from __future__ import annotations

import errno

import pytest

from aether_emu.errors import Refused
from aether_emu.mm import ageing, mapping
from aether_emu.mm.collapse import Scan, collapse
from aether_emu.mm.collapse_terms import Ending, Terms
from aether_emu.mm.counters import Event
from aether_emu.mm.hugepage import leaves
from aether_emu.mm.mapping import MADV_COLLAPSE, MADV_HUGEPAGE, MADV_NOHUGEPAGE
from aether_emu.mm.protection import Protection
from aether_emu.mm.space import AddressSpace
from tests.mm.board import FORMATS, check_accounts
from tests.mm.test_hugepage import Huge


class Small(Huge):
    """Whose memory came in small pages: it was touched before huge pages were."""

    def __init__(self, name: str, *, cpus: int = 1) -> None:
        super().__init__(name, cpus=cpus)
        self.space.no_huge = True

    def fill(self, *numbers: int) -> None:
        """Store the number of each of these pages into it."""
        for number in numbers:
            self.write(number * self.page, bytes([number % 251 + 1]))
        self.space.no_huge = False

    def holds(self, *numbers: int, space: AddressSpace | None = None) -> bool:
        """Whether these pages have what `fill` stored, and the ones behind them nothing."""
        return all(
            self.read(number * self.page, 1, space) == bytes([number % 251 + 1])
            and self.read((number + 1) * self.page, 1, space) == b"\0"
            for number in numbers
        )

    def advise(self, advice: int, first: int = 0, pages: int = 0) -> int:
        """The errno of madvise, 0 for none."""
        start, length = self.base + first * self.page, (pages or 3 * self.count) * self.page
        try:
            mapping.advise_memory(self.space, start, length, advice)
        except Refused as refused:
            return refused.errno
        return 0

    def collapse(self, terms: Terms | None = None) -> Ending:
        area = self.space.areas.find(self.base)
        assert area is not None
        return collapse(self.space, area, self.base, terms or Terms(self.count, self.count))

    def done(self) -> None:
        check_accounts(self.board, [])
        self.board.close()


@pytest.fixture(params=FORMATS)
def kit(request: pytest.FixtureRequest) -> Small:
    return Small(request.param)


def test_pages_here_and_there_become_a_huge_page_with_their_bytes(kit: Small) -> None:
    kit.fill(0, 7, 100)
    tables, free = kit.space.table.tables, kit.board.buddy.free_frames
    assert kit.collapse() is Ending.DONE
    assert kit.levels() == [2, 0, 0]
    assert kit.holds(0, 7, 100)
    assert kit.space.table.tables == tables - 1
    assert free - kit.board.buddy.free_frames == kit.count - 3 - 1
    kit.write(kit.page, b"x")
    assert kit.events(Event.HUGE_COLLAPSE, Event.HUGE_SPLIT) == [1, 0]
    assert kit.collapse() is Ending.HUGE
    kit.done()


def test_every_page_of_a_full_table_is_copied() -> None:
    kit = Small("x86_64")
    for number in range(kit.count):
        kit.write(number * kit.page + 8, number.to_bytes(2, "little"))
    kit.space.no_huge = False
    assert kit.collapse() is Ending.DONE
    for number in range(kit.count):
        assert kit.read(number * kit.page + 8, 2) == number.to_bytes(2, "little")
    kit.done()


def test_shared_pages_are_copied_and_the_other_side_keeps_its_own(kit: Small) -> None:
    kit.fill(0, 7)
    child = kit.fork()
    assert kit.collapse(Terms(kit.count, 1)) is Ending.UNFIT
    assert kit.collapse(Terms(kit.count, 2)) is Ending.DONE
    kit.write(0, b"new")
    assert kit.holds(0, 7, space=child)
    assert kit.levels(child)[0] == 1
    kit.done()


@pytest.mark.parametrize("what", ["nothing", "zeros", "forbidden", "unused", "absent", "held by others"])
def test_what_does_not_fit_stays_as_it_is(kit: Small, what: str) -> None:
    terms, wanted = Terms(kit.count, kit.count), Ending.EMPTY
    if what == "zeros":
        kit.read(0)
    elif what != "nothing":
        kit.fill(0, 7)
    kit.space.no_huge = False
    if what == "forbidden":
        mapping.protect_memory(kit.space, kit.base, kit.page, Protection.NONE)
        wanted = Ending.UNFIT
    elif what == "unused":
        ageing.forget_accesses(kit.space, kit.base, kit.base + kit.size)
        terms, wanted = Terms(kit.count, kit.count, used=True), Ending.UNUSED
    elif what == "absent":
        terms, wanted = Terms(kit.count - 3, kit.count), Ending.UNFIT
    elif what == "held by others":
        kit.board.frames.refs[kit.board.frames.number(kit.space.table.walk(kit.base).address)] += 1  # type: ignore[union-attr]  # mapped
        wanted = Ending.BUSY
    assert kit.collapse(terms) is wanted
    assert kit.levels()[0] == int(what != "nothing")
    if what == "held by others":
        kit.board.frames.refs[kit.board.frames.number(kit.space.table.walk(kit.base).address)] -= 1  # type: ignore[union-attr]  # mapped
    kit.done()


def test_an_advice_collapses_what_the_range_holds_whole(kit: Small) -> None:
    for number in range(3):
        kit.fill(number * kit.count, number * kit.count + 5)
        kit.space.no_huge = True
    kit.space.no_huge = False
    assert kit.advise(MADV_COLLAPSE, 1, 3 * kit.count - 1) == 0
    assert kit.levels() == [1, 2, 2]
    assert kit.advise(MADV_COLLAPSE, kit.count - 1, 2) == 0  # the range holds none, but a border
    assert kit.advise(MADV_COLLAPSE, 1, 1) == errno.EINVAL  # not even that
    assert kit.advise(MADV_COLLAPSE) == 0
    assert kit.levels() == [2, 2, 2]
    assert kit.holds(0, 5, kit.count, kit.count + 5)
    kit.done()


def test_an_advice_needs_no_setting_but_what_forbids_huge_pages_forbids_it(kit: Small) -> None:
    kit.fill(0)
    kit.board.physical.huge = None
    kit.space.no_huge = True
    assert kit.advise(MADV_COLLAPSE) == errno.EINVAL
    kit.space.no_huge = False
    kit.advise(MADV_NOHUGEPAGE)
    assert kit.advise(MADV_COLLAPSE) == errno.EINVAL
    kit.advise(MADV_HUGEPAGE)
    assert kit.advise(MADV_COLLAPSE, 0, kit.count) == 0
    assert len(leaves(kit.space)) == 1
    kit.done()


def test_without_a_block_an_advice_is_out_of_memory(kit: Small) -> None:
    kit.fill(0, 7)
    taken = kit.take_blocks()
    assert kit.advise(MADV_COLLAPSE) == errno.ENOMEM
    assert kit.events(Event.HUGE_COLLAPSE_FAILED) == [1]
    assert kit.levels()[0] == 1
    assert kit.holds(0, 7)
    kit.give(taken)
    kit.done()


def test_no_cpu_translates_by_the_old_table_any_more(kit: Small) -> None:
    kit.done()
    kit = Small(next(name for name, fmt in FORMATS.items() if fmt is kit.board.format), cpus=2)
    kit.fill(0, 7)
    kit.board.physical.buddy.enter(1)
    kit.board.physical.tlb.enter(1)
    assert kit.holds(0, 7)
    assert kit.collapse() is Ending.DONE
    kit.write(0, b"x")
    kit.board.physical.buddy.enter(0)
    kit.board.physical.tlb.enter(0)
    assert kit.read(0) == b"x"
    kit.done()


# ---- the scan


def test_a_scan_comes_by_all_spaces_in_turn(kit: Small) -> None:
    for number in range(3):
        kit.fill(number * kit.count)
        kit.space.no_huge = True
    kit.space.no_huge = False
    child = kit.fork()
    scan = Scan(kit.board.physical, Terms(kit.count - 1, kit.count, used=True), kit.count)
    spaces = [child, kit.space]
    done = [scan.look(spaces) for _ in range(3)]
    assert done == [1, 1, 1]
    assert kit.levels() == [2, 2, 2]
    assert kit.levels(child) == [1, 1, 1]
    other = Scan(kit.board.physical, Terms(kit.count - 1, kit.count, used=True), kit.count)
    other.restore(scan.capture())
    assert [other.look(spaces) for _ in range(3)] == [1, 1, 1]
    assert kit.levels(child) == [2, 2, 2]
    assert other.look(spaces) == 0  # the end of a pass
    assert (other.passes, other.position) == (1, (0, 0))
    kit.done()


def test_a_scan_leaves_alone_what_is_not_to_have_huge_pages(kit: Small) -> None:
    kit.fill(0, 7)
    kit.huge.change("madvise")
    scan = Scan(kit.board.physical, Terms(kit.count - 1, kit.count, used=True), 8 * kit.count)
    assert scan.look([kit.space]) == 0
    kit.advise(MADV_HUGEPAGE)
    assert scan.look([kit.space]) == 1
    kit.done()
