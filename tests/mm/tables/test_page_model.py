"""Random edits of a page table beside a dict of leaves, on every format, with allocations that fail."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aether_emu.arch.paging import Attributes, MemoryType, PageFlags, PageTableFormat
from aether_emu.errors import MappingError, OutOfFrames
from aether_emu.mm.tables.live import BreakBeforeMake
from aether_emu.mm.tables.tree import Stretch
from aether_emu.mm.tables.walk import Mapped, NotMapped
from aether_emu.ports import NEVER_FAILS
from tests.arch.formats import EVERY_FORMAT
from tests.mm.tables.test_page import Bench, FailsAt

ATTRIBUTES = st.builds(
    Attributes,
    st.sampled_from(
        [
            PageFlags.READ | extra
            for extra in (PageFlags(0), PageFlags.WRITE, PageFlags.USER, PageFlags.EXECUTE)
        ]
    ),
    st.sampled_from(MemoryType),
)


class PageTableMachine(RuleBasedStateMachine):
    """`leaves` maps the start of each leaf to (size, physical address, attributes)."""

    format: PageTableFormat

    @initialize()
    def build(self) -> None:
        self.bench = Bench(self.format)
        self.leaves: dict[int, tuple[int, int, Attributes]] = {}

    def place(self, corner: int, offset: int) -> int:
        """An address `offset` pages from where two leaf tables, large leaves or second tables meet."""
        bench, fmt = self.bench, self.format
        second = max(fmt.levels[-2].size * 2, bench.leaf_span * 8)
        corners = (bench.leaf_span * 3, second, 1 << fmt.virtual_bits - 1)
        return corners[corner] + offset * bench.page

    def overlaps(self, start: int, end: int) -> list[int]:
        """Starts of the leaves that meet a range, in order."""
        return sorted(s for s, (size, _a, _b) in self.leaves.items() if s < end and start < s + size)

    def cut_by(self, start: int, end: int) -> bool:
        """Whether a leaf reaches over an end of the range."""
        return any(s < start or s + self.leaves[s][0] > end for s in self.overlaps(start, end))

    @rule(
        corner=st.integers(0, 2),
        offset=st.integers(-6, 6),
        pages=st.integers(1, 9),
        spans=st.integers(0, 2),
        shift=st.sampled_from([0, 0, 1]),
        attributes=ATTRIBUTES,
        largest=st.sampled_from([None, 1, 2]),
        fails=st.none() | st.integers(0, 4),
    )
    def map(
        self,
        corner: int,
        offset: int,
        pages: int,
        spans: int,
        shift: int,
        attributes: Attributes,
        largest: int | None,
        fails: int | None,
    ) -> None:
        """`shift` pages between virtual and physical decide whether large leaves can be used."""
        bench = self.bench
        start = self.place(corner, offset) - spans // 2 * bench.leaf_span
        length = pages * bench.page + spans * bench.leaf_span
        physical = start % (1 << self.format.physical_bits - 1) + shift * bench.page
        sizes = self.format.leaf_sizes()
        limit = None if largest is None else sizes[min(largest, len(sizes) - 1)]
        taken = bool(self.overlaps(start, start + length))
        bench.buddy.failures = NEVER_FAILS if fails is None else FailsAt(fails)
        try:
            bench.table.map(start, physical, length, attributes, largest=limit)
        except MappingError:
            assert taken
            return
        except OutOfFrames:
            assert fails is not None
            return
        finally:
            bench.buddy.failures = NEVER_FAILS
        assert not taken
        for found in bench.table.cursor(start, start + length):
            size = self.format.levels[found.level - 1].size
            assert size <= (limit or bench.page)
            self.leaves[found.start] = (size, physical + found.start - start, attributes)
        assert sum(self.leaves[s][0] for s in self.overlaps(start, start + length)) == length

    @rule(
        corner=st.integers(0, 2), offset=st.integers(-6, 6), pages=st.integers(1, 9), spans=st.integers(0, 2)
    )
    def unmap(self, corner: int, offset: int, pages: int, spans: int) -> None:
        start = self.place(corner, offset)
        end = start + pages * self.bench.page + spans * self.bench.leaf_span
        if self.cut_by(start, end):
            with pytest.raises(MappingError):
                self.bench.table.unmap(start, end - start)
            return
        gone = self.bench.table.unmap(start, end - start)
        assert [found.start for found in gone] == self.overlaps(start, end)
        for found in gone:
            size, address, _attributes = self.leaves.pop(found.start)
            assert self.format.leaf_address(found.entry, found.level) == address
            assert self.format.levels[found.level - 1].size == size

    @rule(corner=st.integers(0, 2), offset=st.integers(-6, 6), pages=st.integers(1, 9), attributes=ATTRIBUTES)
    def protect(self, corner: int, offset: int, pages: int, attributes: Attributes) -> None:
        start = self.place(corner, offset)
        end = start + pages * self.bench.page
        if self.cut_by(start, end):
            with pytest.raises(MappingError):
                self.bench.table.protect(start, end - start, attributes)
            return
        frozen = self.format.frozen_bits
        if frozen and any(self.leaves[at][2].memory != attributes.memory for at in self.overlaps(start, end)):
            with pytest.raises(BreakBeforeMake):
                self.bench.table.protect(start, end - start, attributes)
            return
        self.bench.table.protect(start, end - start, attributes)
        for at in self.overlaps(start, end):
            size, address, _old = self.leaves[at]
            self.leaves[at] = (size, address, attributes)

    @rule(corner=st.integers(0, 2), offset=st.integers(-6, 6))
    def prune(self, corner: int, offset: int) -> None:
        """Give back the tables of the free range around an address."""
        at = self.place(corner, offset)
        if self.overlaps(at, at + 1):
            return
        below = max((s + leaf[0] for s, leaf in self.leaves.items() if s < at), default=0)
        above = min((s for s in self.leaves if s > at), default=1 << self.format.virtual_bits)
        self.bench.table.free_tables(self.bench.table.prune(below, above, below, above))

    @invariant()
    def every_leaf_is_where_the_model_has_it(self) -> None:
        table = self.bench.table
        seen = {
            f.start: (self.format.levels[f.level - 1].size, self.format.leaf_address(f.entry, f.level))
            for f in self.bench.mapped()
        }
        assert seen == {start: leaf[:2] for start, leaf in self.leaves.items()}
        slots = {
            item.slot + used
            for item in table.visit(0, 1 << self.format.virtual_bits)
            if isinstance(item, Stretch)
            for used in self.bench.ram.array[item.slot : item.slot + item.count].nonzero()[0].tolist()
        }
        small = [start for start, leaf in self.leaves.items() if leaf[0] == self.bench.page]
        assert slots == {table.leaf_slot(start) for start in small}

    @invariant()
    def walks_agree_at_the_edges(self) -> None:
        starts = sorted(self.leaves)
        for start in (*starts[:3], *starts[-3:]):
            size, address, attributes = self.leaves[start]
            last = start + size - 1
            for va, physical in ((start, address), (last, address + size - 1)):
                walk = self.bench.table.walk(va)
                assert isinstance(walk, Mapped)
                assert (walk.address, walk.size, walk.attributes) == (physical, size, attributes)
            for beside in (start - 1, last + 1):
                inside = bool(self.overlaps(beside, beside + 1))
                assert isinstance(self.bench.table.walk(beside), Mapped if inside else NotMapped)

    @invariant()
    def every_table_is_accounted_for(self) -> None:
        self.bench.check_tables()

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self.bench.close()


def machine(fmt: PageTableFormat) -> Any:
    """The test case of one format."""
    name = f"PageTable_{fmt.name}"
    made = type(name, (PageTableMachine,), {"format": fmt}).TestCase  # type: ignore[attr-defined]  # hypothesis's
    # Without shrinking, which takes minutes here: the same steps fail again, and name what they did.
    examples = 20 if fmt.levels[0].entries < 4096 else 4  # a walk over long tables takes its time
    made.settings = settings(max_examples=examples, stateful_step_count=20, phases=(Phase.generate,))
    return made


# One of each geometry in every run; what tells the rest apart are widths.
FAST = ("x86_64-5level", "arm64-4K", "arm64-16K-36bit", "arm64-64K", "invented")
CASES = {fmt.name: machine(fmt) for fmt in EVERY_FORMAT}
globals().update(
    (f"Test_{name}", case if name in FAST else pytest.mark.slow(case)) for name, case in CASES.items()
)
