"""Areas and the gaps between them: rules one by one, and random sequences beside a plain list."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aether_emu.errors import Refused
from aether_emu.mm.allocation import STRETCH, Area, AreaFlags, AreaMap
from aether_emu.mm.objects.protocol import Backing, MemoryObject
from aether_emu.mm.objects.registry import Registry
from aether_emu.mm.protection import LeafBits, Protection

PAGE = 4096
GUARD = 3 * PAGE
BITS = LeafBits(1, 3, 2, True)


class File(Backing):
    """An object without pages: only who shows which of them counts here."""

    in_place = True
    name = "file"
    writable = False

    def frames(self, index: int, count: int, *, write: bool) -> tuple[int, int]:
        raise AssertionError("nobody touches a page")

    def copy_page(self, index: int, into: memoryview) -> None:
        raise AssertionError("nobody touches a page")

    def sync(self) -> None:
        raise AssertionError("nobody writes to it")

    def capture(self) -> dict[str, Any]:
        raise AssertionError("nobody captures it")

    def release(self) -> None:
        """The last area is gone."""


REGISTRY: Registry[MemoryObject] = Registry()
FILE, OTHER = File(REGISTRY), File(REGISTRY)
for item in (FILE, OTHER):
    item.hold()  # they outlive their areas
READ, WRITE = Protection.READ, Protection.WRITE


def make(first: int, last: int, protection: Protection = READ, **more: Any) -> Area:
    """An area of the pages [first, last)."""
    return Area(first * PAGE, last * PAGE, protection, denied=0, bits=BITS, **more)


def pages(areas: Any) -> list[tuple[int, int]]:
    return [(area.start // PAGE, area.end // PAGE) for area in areas]


def filled(*areas: Area, limit: int = 100, guard: int = GUARD) -> AreaMap:
    made = AreaMap(12, limit, guard)
    for area in areas:
        made.insert(area)
    return made


# ---- merging


def test_neighbours_that_say_the_same_become_one_area() -> None:
    areas = filled(make(1, 3), make(5, 7))
    placed = areas.insert(make(3, 5))
    assert pages(areas) == [(1, 7)]
    assert areas.find(2 * PAGE) is placed


@pytest.mark.parametrize("where", [(1, 3), (5, 7)])
def test_one_neighbour_absorbs_an_area_that_continues_it(where: tuple[int, int]) -> None:
    areas = filled(make(3, 5))
    areas.insert(make(*where))
    assert len(areas) == 1
    assert pages(areas) == [(min(where[0], 3), max(where[1], 5))]


DIFFERENT: list[dict[str, Any]] = [
    {"protection": READ | WRITE},
    {"shared": True},
    {"backing": FILE},
    {"maximum": READ},
    {"no_reserve": True},
    {"flags": AreaFlags.LOCKED},
    {"grows_down": True},
    {"name": "[heap]"},
]


@pytest.mark.parametrize("difference", DIFFERENT, ids=lambda d: next(iter(d)))
def test_neighbours_that_differ_stay_apart(difference: dict[str, Any]) -> None:
    for first, second in (({}, difference), (difference, {})):
        areas = filled(make(1, 3, **{"protection": READ} | first))
        areas.insert(make(3, 5, **{"protection": READ} | second))
        assert pages(areas) == [(1, 3), (3, 5)]


@pytest.mark.parametrize("same", DIFFERENT, ids=lambda d: next(iter(d)))
def test_neighbours_that_share_a_peculiarity_merge(same: dict[str, Any]) -> None:
    """Parts of a stack that mprotect changed back become one again, for example."""
    offset = {"offset": 7} if "backing" in same else {}
    areas = filled(make(1, 3, **{"protection": READ} | same))
    more = {"offset": 2} if offset else {}
    areas.insert(make(3, 5, **{"protection": READ} | same | more))
    assert pages(areas) == [(1, 5)]


@pytest.mark.parametrize(
    ("backing", "offset", "merges"), [(FILE, 12, True), (FILE, 11, False), (OTHER, 12, False)]
)
def test_file_areas_merge_only_where_the_file_goes_on(backing: Backing, offset: int, merges: bool) -> None:
    areas = filled(make(1, 3, backing=FILE, offset=10))
    areas.insert(make(3, 5, backing=backing, offset=offset))
    assert (len(areas) == 1) is merges
    lower = filled(make(3, 5, backing=backing, offset=offset))
    placed = lower.insert(make(1, 3, backing=FILE, offset=10))
    assert (len(lower) == 1) is merges
    assert placed.offset == 10


def test_areas_do_not_merge_over_a_hole() -> None:
    assert pages(filled(make(1, 3), make(4, 5))) == [(1, 3), (4, 5)]


# ---- removing


def test_a_hole_in_the_middle_leaves_both_ends_with_their_offsets() -> None:
    areas = filled(make(10, 20, backing=FILE, offset=100))
    (piece,) = areas.remove(13 * PAGE, 15 * PAGE)
    assert (pages([piece]), piece.offset) == ([(13, 15)], 103)
    assert [(p, a.offset) for p, a in zip(pages(areas), areas, strict=True)] == [
        ((10, 13), 100),
        ((15, 20), 105),
    ]


def test_removing_returns_the_pieces_in_order_and_leaves_the_rest() -> None:
    areas = filled(make(1, 4), make(5, 6, WRITE), make(8, 12, backing=FILE, offset=3))
    pieces = areas.remove(2 * PAGE, 10 * PAGE)
    assert pages(pieces) == [(2, 4), (5, 6), (8, 10)]
    assert [piece.offset for piece in pieces] == [0, 0, 3]
    assert pages(areas) == [(1, 2), (10, 12)]
    assert areas.remove(2 * PAGE, 10 * PAGE) == []


def test_an_empty_range_meets_nothing_and_removes_nothing() -> None:
    areas = filled(make(1, 4))
    assert areas.overlapping(2 * PAGE, 2 * PAGE) == []
    assert areas.remove(2 * PAGE, 2 * PAGE) == []
    assert pages(areas) == [(1, 4)]
    assert areas.covered(9 * PAGE, 9 * PAGE)


# ---- the limit


def test_the_area_over_the_limit_is_refused_and_changes_nothing() -> None:
    areas = filled(make(1, 2), make(3, 4), limit=2)
    with pytest.raises(Refused) as refused:
        areas.insert(make(8, 9))
    assert refused.value.errno == errno.ENOMEM
    assert pages(areas) == [(1, 2), (3, 4)]
    areas.insert(make(2, 3))  # merges: the number goes down
    assert pages(areas) == [(1, 4)]


def test_cutting_a_hole_at_the_limit_is_refused_but_cutting_an_end_is_not() -> None:
    areas = filled(make(1, 9), limit=1)
    with pytest.raises(Refused):
        areas.remove(3 * PAGE, 4 * PAGE)
    assert pages(areas) == [(1, 9)]
    areas.remove(7 * PAGE, 9 * PAGE)
    areas.remove(0, 2 * PAGE)
    assert pages(areas) == [(2, 7)]


@pytest.mark.parametrize(
    ("part", "protection", "growth"),
    [
        ((2, 8), WRITE, 0),  # all of it
        ((2, 4), WRITE, 1),
        ((6, 8), WRITE, 1),
        ((4, 6), WRITE, 2),
        ((2, 4), READ | WRITE, 0),  # goes over to the area below
        ((6, 8), READ | WRITE, 0),  # or above
        ((2, 8), READ | WRITE, -2),  # joins both
    ],
)
def test_growth_counts_what_a_changed_part_adds(
    part: tuple[int, int], protection: Protection, growth: int
) -> None:
    areas = filled(make(0, 2, READ | WRITE), make(2, 8), make(8, 10, READ | WRITE))
    area = areas.find(2 * PAGE)
    assert area is not None
    changed = area.piece(part[0] * PAGE, part[1] * PAGE, 12)
    changed.set_protection(protection, 0, BITS)
    before, expected = len(areas), areas.growth(area, changed)
    assert expected == growth
    areas.remove(changed.start, changed.end)
    areas.insert(changed)
    assert len(areas) == before + growth


# ---- gaps


def test_the_highest_gap_below_and_the_lowest_above() -> None:
    areas = filled(make(2, 4), make(6, 8), make(10, 12))
    for length, below, above in ((1, 12, 0), (2, 12, 0), (4, 12, 12), (5, None, None)):
        ceiling = 16 * PAGE
        found = (areas.gap_below(length * PAGE, 0, ceiling), areas.gap_above(length * PAGE, 0, ceiling))
        if length == 2:
            assert found == (14 * PAGE, 0)
        elif length == 1:
            assert found == (15 * PAGE, 0)
        else:
            assert found == tuple(None if at is None else at * PAGE for at in (below, above))


def test_a_gap_ends_at_floor_and_ceiling_even_inside_an_area() -> None:
    areas = filled(make(2, 6), make(9, 12))
    assert areas.gap_below(2 * PAGE, 4 * PAGE, 10 * PAGE) == 7 * PAGE
    assert areas.gap_above(2 * PAGE, 4 * PAGE, 10 * PAGE) == 6 * PAGE
    assert areas.gap_below(4 * PAGE, 4 * PAGE, 10 * PAGE) is None
    assert areas.gap_above(4 * PAGE, 4 * PAGE, 10 * PAGE) is None


def test_an_area_that_grows_down_keeps_its_guard_free() -> None:
    areas = filled(make(10, 12, grows_down=True))
    assert areas.gap_below(PAGE, 0, 12 * PAGE) == 6 * PAGE
    assert areas.gap_above(8 * PAGE, 0, 12 * PAGE) is None
    assert areas.gap_above(7 * PAGE, 0, 12 * PAGE) == 0


def test_a_guard_binds_the_gap_next_to_its_area_only() -> None:
    """What was put into a guard on purpose has free space right below itself, as in Linux."""
    areas = filled(make(10, 12, grows_down=True), make(8, 9))
    assert areas.gap_below(PAGE, 0, 12 * PAGE) == 7 * PAGE
    assert areas.gap_above(8 * PAGE, 0, 12 * PAGE) == 0
    assert areas.gap_above(9 * PAGE, 0, 12 * PAGE) is None


@pytest.mark.parametrize("start", [10, 11, 12])
def test_the_guard_of_an_area_above_the_ceiling_reaches_below_it(start: int) -> None:
    """A search that ends at 10 pages must leave free what the area at `start` may grow into."""
    areas = filled(make(start, start + 2, grows_down=True))
    highest = min(10, start - 3)
    assert areas.gap_below(2 * PAGE, 0, 10 * PAGE) == (highest - 2) * PAGE
    assert areas.gap_above(highest * PAGE, 0, 10 * PAGE) == 0
    assert areas.gap_above((highest + 1) * PAGE, 0, 10 * PAGE) is None


class Counted(list[Any]):
    """A list that counts how often an item of it is looked at from Python."""

    looks = 0

    def __getitem__(self, key: Any) -> Any:
        self.looks += 1
        return super().__getitem__(key)


@pytest.mark.parametrize("order", [1, -1], ids=["from below", "from above"])
def test_a_search_looks_at_few_of_many_areas(order: int) -> None:
    """Each area keeps a gap of one page below itself, too small for what is searched, but for one."""
    count, stretch = 4000, 64
    areas = AreaMap(12, count, GUARD, stretch)
    for number in range(1, count)[::order]:
        areas.insert(make(10 * number, 10 * number + 9, READ | number % 2 * WRITE))
    areas.remove(20000 * PAGE, 20004 * PAGE)
    areas.gap_below(9 * PAGE, 10 * PAGE, 10 * count * PAGE)  # a search in vain leaves exact bounds behind
    areas._areas = Counted(areas._areas)
    areas._starts = Counted(areas._starts)
    assert areas.gap_below(5 * PAGE, 10 * PAGE, 10 * count * PAGE) == 19999 * PAGE
    assert areas.gap_above(5 * PAGE, 10 * PAGE, 10 * count * PAGE) == 19999 * PAGE
    assert areas.gap_below(12 * PAGE, 10 * PAGE, 10 * count * PAGE) is None
    assert areas._areas.looks + areas._starts.looks < 10 * stretch


def test_stretches_that_lost_their_areas_are_gone() -> None:
    areas = AreaMap(12, 1000, GUARD, 4)
    for _ in range(3):
        for number in range(1, 500):
            areas.insert(make(10 * number, 10 * number + 1))
        many = len(areas._firsts)
        assert many == len(areas._bounds) > 100
        areas.remove(20 * PAGE, 4000 * PAGE)
        assert len(areas._firsts) < 60
        areas.remove(0, 10000 * PAGE)
        assert (areas._firsts, len(areas)) == ([0], 0)


# ---- the model

SPACE = 48  # pages


@dataclass(frozen=True)
class Plain:
    """An area of the model."""

    first: int
    last: int
    protection: Protection
    backing: Backing | None
    offset: int
    grows_down: bool

    def continued_by(self, other: Plain) -> bool:
        moved = other.first - self.first if self.backing else 0
        return (
            self.last == other.first
            and replace(self, first=other.first, last=other.last, offset=self.offset + moved) == other
        )


class AreaMapMachine(RuleBasedStateMachine):
    """`plain` is the list of areas, in order, with nothing clever about it."""

    @initialize(limit=st.sampled_from([3, 6, 100]), stretch=st.sampled_from([1, 2, 3, STRETCH]))
    def build(self, limit: int, stretch: int) -> None:
        self.limit = limit
        self.areas = AreaMap(12, limit, GUARD, stretch)
        self.plain: list[Plain] = []

    def owner(self, page: int) -> Plain | None:
        return next((p for p in self.plain if p.first <= page < p.last), None)

    @rule(
        first=st.integers(0, SPACE - 1),
        length=st.integers(1, 4),
        protection=st.sampled_from([READ, READ | WRITE]),
        backing=st.sampled_from([None, None, FILE]),
        offset=st.integers(0, 2),
        grows_down=st.booleans(),
    )
    def insert(
        self,
        first: int,
        length: int,
        protection: Protection,
        backing: Backing | None,
        offset: int,
        grows_down: bool,
    ) -> None:
        """File offsets follow the address, more or less, so that neighbours often continue each other."""
        if any(self.owner(page) for page in range(first, first + length)):
            return
        offset = first + offset if backing else 0
        new = Plain(first, first + length, protection, backing, offset, grows_down)
        before = next((p for p in self.plain if p.continued_by(new)), None)
        after = next((p for p in self.plain if new.continued_by(p)), None)
        area = make(first, first + length, protection, backing=backing, offset=offset, grows_down=grows_down)
        kept = [p for p in self.plain if p not in (before, after)]
        if len(kept) + 1 > self.limit:
            with pytest.raises(Refused):
                self.areas.insert(area)
            return
        placed = self.areas.insert(area)
        merged = replace(before or new, last=(after or new).last)
        self.plain = sorted([*kept, merged], key=lambda p: p.first)
        assert pages([placed]) == [(merged.first, merged.last)]

    @rule(first=st.integers(0, SPACE), length=st.integers(0, 20))
    def remove(self, first: int, length: int) -> None:
        last = first + length
        pieces: list[Plain] = []
        left: list[Plain] = []
        for p in self.plain:
            for low, high, into in (
                (p.first, min(p.last, first), left),
                (max(p.first, first), min(p.last, last), pieces),
                (max(p.first, last), p.last, left),
            ):
                if low < high:
                    offset = p.offset + (low - p.first if p.backing else 0)
                    into.append(replace(p, first=low, last=high, offset=offset))
        if not length:
            left, pieces = self.plain, []
        if len(left) > self.limit:
            with pytest.raises(Refused):
                self.areas.remove(first * PAGE, last * PAGE)
            return
        assert [self.plainly(a) for a in self.areas.remove(first * PAGE, last * PAGE)] == pieces
        self.plain = left

    @rule(which=st.integers(0, 9), by=st.integers(1, 4))
    def grow_down(self, which: int, by: int) -> None:
        """An area may come to touch another one by growing, and does not merge with it."""
        growing = [p for p in self.plain if p.grows_down and not p.backing]
        if not growing:
            return
        p = growing[which % len(growing)]
        if p.first - by < 0 or any(self.owner(page) for page in range(p.first - by, p.first)):
            return
        area = self.areas.find(p.first * PAGE)
        assert area is not None
        self.areas.grow_down(area, (p.first - by) * PAGE)
        self.plain[self.plain.index(p)] = replace(p, first=p.first - by)

    @rule(first=st.integers(0, SPACE), length=st.integers(0, 20))
    def look(self, first: int, length: int) -> None:
        last = first + length
        meets = [p for p in self.plain if p.first < last and first < p.last] if length else []
        assert [self.plainly(a) for a in self.areas.overlapping(first * PAGE, last * PAGE)] == meets
        whole = all(self.owner(page) for page in range(first, last))
        assert self.areas.covered(first * PAGE, last * PAGE) is whole

    @rule(floor=st.integers(0, 10), ceiling=st.integers(20, SPACE))
    def search(self, floor: int, ceiling: int) -> None:
        for length in range(1, 8):
            self.search_for(length, floor, ceiling)

    def search_for(self, length: int, floor: int, ceiling: int) -> None:
        """A place is free when no page of it has an area, and the next area's guard is not touched."""

        def free(at: int) -> bool:
            if any(self.owner(page) for page in range(at, at + length)):
                return False
            above = next((p for p in self.plain if p.first >= at + length), None)
            return above is None or not above.grows_down or at + length <= above.first - GUARD // PAGE

        places = [at for at in range(floor, ceiling - length + 1) if free(at)]
        bounds = (length * PAGE, floor * PAGE, ceiling * PAGE)
        assert self.areas.gap_below(*bounds) == (places[-1] * PAGE if places else None)
        assert self.areas.gap_above(*bounds) == (places[0] * PAGE if places else None)

    @staticmethod
    def plainly(area: Area) -> Plain:
        return Plain(
            area.start // PAGE, area.end // PAGE, area.protection, area.backing, area.offset, area.grows_down
        )

    @invariant()
    def the_same_areas_in_the_same_order(self) -> None:
        if hasattr(self, "areas"):
            assert [self.plainly(area) for area in self.areas] == self.plain
            assert len(self.areas) == len(self.plain)

    @invariant()
    def bounds_are_bounds(self) -> None:
        if not hasattr(self, "areas"):
            return
        areas = self.areas
        for at, bound in enumerate(areas._bounds):
            low, high = areas._members(at)
            assert low < high or at == 0, "a stretch without areas"
            assert all(areas._gap(number) <= bound for number in range(low, high))

    @invariant()
    def every_page_is_found(self) -> None:
        if not hasattr(self, "areas"):
            return
        for page in range(-1, SPACE + 8):
            va = page * PAGE + 5
            found, following = self.areas.find(va), self.areas.following(va)
            preceding = self.areas.preceding(page * PAGE)
            above = next((p for p in self.plain if p.last > page), None)
            below = next((p for p in reversed(self.plain) if p.last <= page), None)
            assert (self.plainly(found) if found else None) == self.owner(page)
            assert (self.plainly(following) if following else None) == above
            assert (self.plainly(preceding) if preceding else None) == below


TestAreaMapModel = AreaMapMachine.TestCase
TestAreaMapModel.settings = settings(max_examples=40, stateful_step_count=40)
