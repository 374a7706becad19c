"""Where long edits are cut: after so many tables and areas, and at no cost where an edit is short."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aether_emu.mm import cuts
from aether_emu.mm.space import AddressSpace
from tests.mm.board import FORMATS, Board


class _Counted(dict[int, int]):
    looks = 0

    def __iter__(self) -> Iterator[int]:
        self.looks += 1
        return super().__iter__()


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Iterator[AddressSpace]:
    board = Board(FORMATS["x86_64"])
    monkeypatch.setattr(cuts, "ENTRIES", 4 * 512)
    made = board.space()
    yield made
    board.close()


def test_a_range_is_cut_after_so_many_tables(space: AddressSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    shift = space.table.leaf_span_shift
    monkeypatch.setattr(space.table, "leaf_tables", _Counted({key: key for key in range(100, 120)}))
    assert cuts.cuts(space, 100 << shift, 120 << shift) == [key << shift for key in (105, 109, 113, 117)]
    assert cuts.cuts(space, 100 << shift, 105 << shift) == []
    assert cuts.cuts(space, 100 << shift, 106 << shift) == [105 << shift]


def test_a_short_range_looks_at_no_table_of_the_process(
    space: AddressSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that unmaps page by page would take a time that grows with all it has."""
    shift = space.table.leaf_span_shift
    tables = _Counted({key: key for key in range(1000)})
    monkeypatch.setattr(space.table, "leaf_tables", tables)
    assert cuts.cuts(space, 100 << shift, (100 << shift) + 4096) == []
    assert cuts.cuts(space, 100 << shift, 104 << shift) == []
    assert tables.looks == 0
