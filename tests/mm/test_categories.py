"""Categories of pages: huge pages, pages in swap, guards, and reservations that cost nothing."""

from __future__ import annotations

from typing import Any

from aether_emu.mm import mapping, markers, soft_dirty, userfault
from aether_emu.mm.allocation import USER_WP
from aether_emu.mm.categories import Category, Run, runs
from aether_emu.mm.fault import Faults
from tests.mm.calls import ANONYMOUS, RW
from tests.mm.swap.test_swap import PAGES, Away
from tests.mm.test_hugepage import Huge

_WRITTEN, _PRESENT, _SOFT_DIRTY = Category.WRITTEN, Category.PRESENT, Category.SOFT_DIRTY


class Nobody:
    """Asks for nothing but to hear of faults."""

    asynchronous = unpopulated = follows = False

    def ask(self, address: int, why: int, *, write: bool, size: int) -> Any:
        raise AssertionError("nobody faults")

    def of_child(self, space: Any) -> None:
        return None

    def tell(self, kind: int, *data: int) -> None:
        """No event is wanted."""


def test_a_huge_page_and_one_of_zeros() -> None:
    huge = Huge("x86_64")
    huge.write(0, b"x")
    huge.read(huge.size)
    found = list(runs(huge.space, huge.base + huge.page, huge.base + 3 * huge.size))
    first, second = huge.base + huge.size, huge.base + 2 * huge.size
    large = _WRITTEN | _PRESENT | Category.HUGE | _SOFT_DIRTY
    assert found == [
        Run(huge.base + huge.page, first, large),
        Run(first, second, large | Category.ZERO),
        Run(second, second + huge.size, _SOFT_DIRTY),
    ]
    soft_dirty.forget(huge.space)
    assert list(runs(huge.space, huge.base, first)) == [Run(huge.base, first, large & ~_SOFT_DIRTY)]


def test_what_is_in_swap_or_guarded() -> None:
    away = Away()
    away.send(0, 4)
    mapping.advise_memory(away.space, away.at(2), away.size, mapping.MADV_GUARD_INSTALL)
    swapped = Category.SWAPPED | _WRITTEN | _SOFT_DIRTY
    assert [(run.end - run.start, run.categories) for run in runs(away.space, 0, away.at(PAGES))] == [
        (2 * away.size, swapped),
        (away.size, swapped | Category.GUARD),
        (away.size, swapped),
        (12 * away.size, _PRESENT | _WRITTEN | _SOFT_DIRTY),
    ]


def test_what_a_program_protected_is_not_written() -> None:
    away = Away()
    userfault.watch(away.space, away.at(0), away.at(4), USER_WP, Nobody())
    userfault.protect(away.space, away.at(1), away.at(3), on=True)
    written = [bool(run.categories & _WRITTEN) for run in runs(away.space, away.at(0), away.at(4))]
    assert written == [True, False, True]


def test_a_reservation_is_one_run() -> None:
    huge = Huge("x86_64")
    at = huge.map(0, 1 << 44, RW, flags=mapping.MAP_NORESERVE | ANONYMOUS)
    assert list(runs(huge.space, at, at + (1 << 44))) == [Run(at, at + (1 << 44), _SOFT_DIRTY)]


def test_protection_goes_to_swap_and_comes_back() -> None:
    away = Away()
    userfault.watch(away.space, away.at(0), away.at(4), USER_WP, Nobody())
    userfault.protect(away.space, away.at(1), away.at(3), on=True)
    away.send(0, 4)
    told = markers.Marked(away.space.table, away.at(0), away.at(4)).told
    assert (told << away.size.bit_length() - 1).tolist() == [away.at(1), away.at(2)]
    found = list(runs(away.space, away.at(0), away.at(4)))
    assert [bool(run.categories & _WRITTEN) for run in found] == [True, False, True]
    assert all(run.categories & Category.SWAPPED for run in found)
    for page in range(4):
        Faults(away.space.physical).bring(away.space, away.at(page))
    written = [bool(run.categories & _WRITTEN) for run in runs(away.space, away.at(0), away.at(4))]
    assert written == [True, False, True]
