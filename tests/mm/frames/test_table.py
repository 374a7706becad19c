"""The frame table: its size, addresses, references, identities and accounts."""

from __future__ import annotations

import copy
import pickle
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from aether_emu.errors import FrameError
from aether_emu.mm.frames.table import BASE_ALIGNMENT, Flags, FrameTable, Kind, Leak

BASE = 1 << 30
SIZE = 1 << 20
COUNT = SIZE >> 12


@pytest.fixture
def table() -> FrameTable:
    return FrameTable(BASE, SIZE, 12)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def snapshot(table: FrameTable) -> dict[str, bytes]:
    return {name: column.tobytes() for name, column in table.columns().items()}


class TestColumns:
    def test_a_frame_costs_at_most_24_bytes(self, table: FrameTable) -> None:
        assert sum(column.itemsize for column in table.columns().values()) == 23
        assert sum(column.nbytes for column in table.columns().values()) <= 24 * table.count

    @pytest.mark.parametrize("name", ["kind", "flags", "block", "refs", "maps", "owner", "index"])
    def test_view_and_array_are_the_same_memory(self, table: FrameTable, name: str) -> None:
        view, array = getattr(table, name), getattr(table, f"{name}_array")
        view[3] = 200
        assert array[3] == 200
        array[5:7] = 77
        assert (view[4], view[5], view[6], view[7]) == (0, 77, 77, 0)
        assert table.columns()[name] is array
        assert len(view) == len(array) == COUNT

    def test_columns_hold_their_full_range(self, table: FrameTable) -> None:
        table.refs[0] = table.maps[0] = table.owner[0] = 2**32 - 1
        table.index[0] = 2**64 - 1
        assert (table.refs[0], table.index[0]) == (2**32 - 1, 2**64 - 1)

    def test_untouched_frames_cost_no_host_memory(self) -> None:
        before = resident_bytes()
        table = FrameTable(0, 64 << 30, 12)
        assert sum(column.nbytes for column in table.columns().values()) > 300 << 20
        assert resident_bytes() - before < 16 << 20

    def test_a_fresh_table_is_free_throughout(self, table: FrameTable) -> None:
        assert table.census()[Kind.FREE] == COUNT
        assert table.leaks() == []
        assert not table.flags_array.any()

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
    def test_a_captured_table_is_equal_and_separate(
        self, table: FrameTable, clone: Callable[[FrameTable], FrameTable]
    ) -> None:
        table.claim(10, 5, Kind.ANON, owner=7, first_index=100)
        table.get(12)
        table.flags[12] = Flags.DIRTY
        other = clone(table)
        assert snapshot(other) == snapshot(table)
        assert (other.base, other.size, other.page_shift, other.count) == (BASE, SIZE, 12, COUNT)
        other.refs[12] += 1
        assert (other.refs_array[12], table.refs[12]) == (2, 1)

    @pytest.mark.parametrize(
        ("base", "size"),
        [(-BASE_ALIGNMENT, SIZE), (4096, SIZE), (BASE >> 1, SIZE), (BASE, 0), (BASE, -4096), (BASE, 4097)],
    )
    def test_a_range_that_cannot_be_covered_is_refused(self, base: int, size: int) -> None:
        with pytest.raises(FrameError):
            FrameTable(base, size, 12)


class TestAddresses:
    @pytest.mark.parametrize("shift", [12, 14, 16])
    def test_number_and_address_are_inverse(self, shift: int) -> None:
        table = FrameTable(BASE, SIZE, shift)
        for frame in range(table.count):
            assert table.number(table.address(frame)) == frame
        assert table.address(0) == BASE
        assert table.address(table.count - 1) == BASE + SIZE - (1 << shift)

    @pytest.mark.parametrize("address", [0, BASE - 4096, BASE + SIZE, BASE + SIZE + 4096, -1, 1 << 60])
    def test_an_address_outside_is_wild(self, table: FrameTable, address: int) -> None:
        with pytest.raises(FrameError, match="outside"):
            table.number(address)

    @pytest.mark.parametrize("offset", [1, 8, 4095, SIZE - 1])
    def test_an_address_inside_a_page_is_refused(self, table: FrameTable, offset: int) -> None:
        with pytest.raises(FrameError, match="not that of a page"):
            table.number(BASE + offset)

    @pytest.mark.parametrize("frame", [-1, COUNT, 1 << 40])
    def test_a_frame_outside_has_no_address(self, table: FrameTable, frame: int) -> None:
        with pytest.raises(FrameError, match="outside"):
            table.address(frame)


class TestReferences:
    def test_only_the_last_put_says_so(self, table: FrameTable) -> None:
        table.kind[4] = Kind.ANON
        for _ in range(3):
            table.get(4)
        assert [table.put(4) for _ in range(3)] == [False, False, True]
        assert table.refs[4] == 0

    def test_a_put_without_a_get_is_an_error_and_changes_nothing(self, table: FrameTable) -> None:
        table.kind[4] = Kind.ANON
        before = snapshot(table)
        with pytest.raises(FrameError, match="nobody holds"):
            table.put(4)
        assert snapshot(table) == before

    def test_a_reference_to_a_free_frame_is_an_error(self, table: FrameTable) -> None:
        with pytest.raises(FrameError, match="free"):
            table.get(4)
        assert table.refs[4] == 0

    @pytest.mark.parametrize("frame", [-1, -COUNT, COUNT])
    def test_a_wild_frame_is_an_error(self, table: FrameTable, frame: int) -> None:
        table.kind_array[:] = Kind.ANON
        table.refs_array[:] = 1
        before = snapshot(table)
        with pytest.raises(FrameError, match="outside"):
            table.get(frame)
        with pytest.raises(FrameError, match="outside"):
            table.put(frame)
        assert snapshot(table) == before

    def test_an_overflow_is_an_error_and_changes_nothing(self, table: FrameTable) -> None:
        table.kind[4] = Kind.ZERO
        table.refs[4] = 2**32 - 1
        with pytest.raises(FrameError, match="overflows"):
            table.get(4)
        assert table.refs[4] == 2**32 - 1


class TestIdentity:
    def test_claim_numbers_a_range_by_frame(self, table: FrameTable) -> None:
        table.claim(8, 3, Kind.FILE, owner=5, first_index=1 << 40)
        assert table.kind_array[7:12].tolist() == [Kind.FREE, Kind.FILE, Kind.FILE, Kind.FILE, Kind.FREE]
        assert table.owner_array[7:12].tolist() == [0, 5, 5, 5, 0]
        assert table.index_array[7:12].tolist() == [0, 1 << 40, (1 << 40) + 1, (1 << 40) + 2, 0]

    def test_claim_leaves_references_mappings_and_flags(self, table: FrameTable) -> None:
        table.refs[8], table.maps[8], table.flags[8] = 2, 1, Flags.DIRTY
        table.claim(8, 1, Kind.ANON)
        assert (table.refs[8], table.maps[8], table.flags[8]) == (2, 1, Flags.DIRTY)

    def test_claiming_nothing_is_allowed(self, table: FrameTable) -> None:
        before = snapshot(table)
        table.claim(8, 0, Kind.ANON, owner=1)
        assert snapshot(table) == before

    @pytest.mark.parametrize(("start", "count"), [(-1, 2), (COUNT - 1, 2), (COUNT + 1, 0), (3, -1)])
    def test_a_wild_range_is_refused(self, table: FrameTable, start: int, count: int) -> None:
        before = snapshot(table)
        with pytest.raises(FrameError, match="outside"):
            table.claim(start, count, Kind.ANON)
        with pytest.raises(FrameError, match="outside"):
            table.release(start, count)
        assert snapshot(table) == before

    def test_nothing_is_claimed_as_free(self, table: FrameTable) -> None:
        table.claim(1, 1, Kind.ANON)
        with pytest.raises(FrameError, match="claimed as free"):
            table.claim(1, 1, Kind.FREE)
        assert table.kind[1] == Kind.ANON

    def test_release_forgets_the_identity_and_keeps_the_flags(self, table: FrameTable) -> None:
        table.claim(8, 4, Kind.FILE, owner=5, first_index=1)
        table.flags[9] = Flags.DIRTY
        table.release(8, 4)
        assert table.census()[Kind.FREE] == COUNT
        assert (table.owner[9], table.index[9], table.flags[9]) == (0, 0, Flags.DIRTY)

    @pytest.mark.parametrize(
        ("column", "why"), [("refs", "referenced"), ("maps", "mapped"), ("block", "allocator")]
    )
    def test_release_refuses_what_is_still_held(self, table: FrameTable, column: str, why: str) -> None:
        table.claim(8, 4, Kind.FILE, owner=5)
        getattr(table, column)[10] = 1
        before = snapshot(table)
        with pytest.raises(FrameError, match=f"frame 10 .*{why}"):
            table.release(8, 4)
        assert snapshot(table) == before


class TestAccounts:
    def test_census_lists_every_kind_and_adds_up(self, table: FrameTable) -> None:
        for i, kind in enumerate(kind for kind in Kind if kind != Kind.FREE):
            table.claim(i * 10, i + 1, kind)
        census = table.census()
        assert list(census) == list(Kind)
        assert [census[kind] for kind in Kind] == [COUNT - 66, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]

    def test_census_counts_a_table_of_millions(self) -> None:
        table = FrameTable(0, (2 << 32) + (5 << 12), 12)
        table.claim(table.count - 3, 3, Kind.FILE)
        table.claim((1 << 20) - 1, 2, Kind.ANON)
        census = table.census()
        assert (census[Kind.FILE], census[Kind.ANON]) == (3, 2)
        assert sum(census.values()) == table.count

    def test_leaks_are_what_somebody_still_holds(self, table: FrameTable) -> None:
        table.claim(0, 4, Kind.RESERVED)
        table.claim(9, 1, Kind.TABLE, owner=3)
        table.claim(7, 1, Kind.ANON, owner=8)
        table.refs[7], table.maps[7] = 2, 1
        assert table.leaks() == [Leak(7, Kind.ANON, 8, 2, 1), Leak(9, Kind.TABLE, 3, 0, 0)]

    @pytest.mark.parametrize("column", ["refs", "maps"])
    def test_a_count_left_on_a_free_frame_is_a_leak(self, table: FrameTable, column: str) -> None:
        getattr(table, column)[6] = 1
        assert [(leak.frame, leak.kind) for leak in table.leaks()] == [(6, Kind.FREE)]
