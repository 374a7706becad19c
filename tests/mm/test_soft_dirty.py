"""Which pages were written since somebody asked: small and huge pages, forks, what clears and keeps it."""

from __future__ import annotations

import numpy as np
import pytest

from aether_emu.mm import ageing, mapping, soft_dirty
from aether_emu.mm.allocation import Area
from aether_emu.mm.remap import MREMAP_FIXED, MREMAP_MAYMOVE, Remap, remap_memory
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.seen import in_swap
from aether_emu.mm.user import ForcedMemory
from tests.mm.board import ENGINES, FORMATS
from tests.mm.swap.test_swap import PAGES, Away
from tests.mm.test_hugepage import NONE, Huge


def written(huge: Huge, space: AddressSpace | None = None, start: int = 0, count: int = 0) -> list[int]:
    """The numbers of the pages that count as written, from an offset on."""
    space, shift = space or huge.space, huge.page.bit_length() - 1
    first = huge.base + start >> shift
    last = first + (count or huge.count)
    seen = ageing.look(space, first << shift, last << shift)
    found: list[int] = np.flatnonzero(
        soft_dirty.written(space, first, last, seen, in_swap(space, first << shift, last << shift))
    ).tolist()
    return found


def area_of(huge: Huge) -> Area:
    area = huge.space.areas.find(huge.base)
    assert area is not None
    return area


@pytest.fixture(params=ENGINES)
def huge(request: pytest.FixtureRequest) -> Huge:
    return Huge(request.param)


def test_a_huge_page_counts_as_one(huge: Huge) -> None:
    huge.write(0, b"x")
    everything = list(range(huge.count))
    assert written(huge) == everything, "its area is new"
    soft_dirty.forget(huge.space)
    assert written(huge) == []
    assert huge.read(huge.page) == b"\0"
    assert written(huge) == []
    huge.write(5 * huge.page, b"y")
    assert written(huge) == everything, "there is one bit for all of it"
    huge.write(huge.size, b"z")
    assert written(huge, start=huge.size, count=huge.count) == everything


def test_a_page_that_is_only_read_is_clean(huge: Huge) -> None:
    soft_dirty.forget(huge.space)
    assert huge.read(0) == b"\0"
    assert written(huge) == [], "the huge page of zeros"
    mapping.protect_memory(huge.space, huge.base, huge.page, 1)
    assert written(huge) == []


def test_the_mark_goes_through_protections(huge: Huge) -> None:
    mapping.advise_memory(huge.space, huge.base, huge.size, mapping.MADV_NOHUGEPAGE)
    for page in range(4):
        huge.write(page * huge.page, b"x")
    soft_dirty.forget(huge.space)
    huge.write(huge.page, b"y")
    for protection in (NONE, 1, NONE, 3):
        mapping.protect_memory(huge.space, huge.base, 4 * huge.page, protection)
        assert written(huge) == [1]
    assert huge.read(huge.page) == b"y"
    huge.write(3 * huge.page, b"z")
    assert written(huge) == [1, 3]


def test_who_forgets_while_nobody_may_touch_it(huge: Huge) -> None:
    mapping.advise_memory(huge.space, huge.base, huge.size, mapping.MADV_NOHUGEPAGE)
    huge.write(0, b"x")
    mapping.protect_memory(huge.space, huge.base, huge.page, NONE)
    soft_dirty.forget(huge.space)
    assert written(huge) == []
    mapping.protect_memory(huge.space, huge.base, huge.page, 3)
    assert written(huge) == []
    assert huge.read(0) == b"x"


def test_what_a_debugger_writes_counts(huge: Huge) -> None:
    mapping.advise_memory(huge.space, huge.base, huge.size, mapping.MADV_NOHUGEPAGE)
    for page in range(3):
        huge.write(page * huge.page, b"x")
    mapping.protect_memory(huge.space, huge.base, huge.page, NONE)
    mapping.protect_memory(huge.space, huge.base + huge.page, 2 * huge.page, 1)
    soft_dirty.forget(huge.space)
    ForcedMemory(huge.space).read(huge.base, 3 * huge.page)
    assert written(huge) == []
    for page in range(2):
        ForcedMemory(huge.space).write(huge.base + page * huge.page, b"y")
    assert written(huge) == [0, 1]


def test_a_fork_and_its_parent_write_for_themselves(huge: Huge) -> None:
    mapping.advise_memory(huge.space, huge.base, huge.size, mapping.MADV_NOHUGEPAGE)
    for page in range(3):
        huge.write(page * huge.page, b"x")
    soft_dirty.forget(huge.space)
    huge.write(0, b"a")
    child = huge.fork()
    assert written(huge) == written(huge, child) == [0]
    huge.write(huge.page, b"b", child)
    assert (written(huge), written(huge, child)) == ([0], [0, 1])
    huge.write(2 * huge.page, b"c")
    assert (written(huge), written(huge, child)) == ([0, 2], [0, 1])
    child.let_go()


def test_what_moved_counts_as_written(huge: Huge) -> None:
    huge.write(0, b"x")
    soft_dirty.forget(huge.space)
    target = huge.base + 2 * huge.size
    flags = MREMAP_MAYMOVE | MREMAP_FIXED
    remap_memory(huge.space, Remap(huge.base, huge.page, huge.page, flags, target))
    assert written(huge, start=2 * huge.size, count=3) == [0]
    assert written(huge) == []


def test_a_new_area_in_an_old_ones_place_is_written(huge: Huge) -> None:
    huge.write(0, b"x")
    soft_dirty.forget(huge.space)
    areas = len(huge.space.areas)
    huge.map(huge.base + huge.page, huge.page)
    assert len(huge.space.areas) == areas, "it is one with its neighbours"
    assert area_of(huge).fresh
    soft_dirty.forget(huge.space)
    assert not area_of(huge).fresh
    assert written(huge) == []


def test_nothing_is_different_where_nobody_asks(huge: Huge) -> None:
    bits = area_of(huge).bits
    child = huge.fork()
    assert huge.space.bits_for(area_of(huge).protection) is bits
    assert not child.tracks_writes
    child.let_go()
    soft_dirty.forget(huge.space)
    child = huge.fork()
    assert child.tracks_writes
    child.let_go()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_mark_goes_to_swap_and_comes_back(kind: str) -> None:
    away = Away(kind)
    first = away.at(0) >> away.board.format.page_shift

    def pages() -> list[int]:
        seen = ageing.look(away.space, away.at(0), away.at(PAGES))
        out = in_swap(away.space, away.at(0), away.at(PAGES))
        assert len(seen.pages) + len(out.pages) == PAGES
        return list(np.flatnonzero(soft_dirty.written(away.space, first, first + PAGES, seen, out)))

    soft_dirty.forget(away.space)
    away.write(1)
    away.write(5)
    assert away.send() == PAGES
    assert pages() == [1, 5]
    assert [away.read(number) for number in (0, 1)] == [away.right(0), away.right(1)]
    assert pages() == [1, 5]
    away.write(2)
    assert pages() == [1, 2, 5]
    away.send()
    soft_dirty.forget(away.space)
    assert pages() == []
    away.read(5)
    away.write(6)
    mapping.protect_memory(away.space, away.at(0), PAGES * away.size, NONE)
    assert away.send() >= 2
    mapping.protect_memory(away.space, away.at(0), PAGES * away.size, 3)
    away.read(7)
    assert pages() == [6]
    away.check()
