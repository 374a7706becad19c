"""Two address spaces beside their models: one forks, either goes on, either ends; and tables take damage."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from aether_emu.arch.paging import Access
from aether_emu.errors import OutOfFrames
from aether_emu.mm import ageing, mapping
from aether_emu.mm.tables.damage import TableDamaged, same
from aether_emu.ports import NEVER_FAILS
from tests.mm.board import fault_in
from tests.mm.space_machine import FAILURES, PLACES, AddressSpaceMachine
from tests.mm.space_model import READ
from tests.mm.tables.test_page import FailsAt


class ForkingMachine(AddressSpaceMachine):
    """At most one child at a time; it may outlive its parent, and fork in its turn."""

    @rule(fails=FAILURES)
    def fork(self, fails: int | None) -> None:
        if self.other is not None:
            return
        self.board.buddy.failures = NEVER_FAILS if fails is None else FailsAt(fails)
        before = self.entries(self.space)
        try:
            child = self.space.fork()
        except OutOfFrames:
            assert fails is not None
            assert self.entries(self.space) == before
        else:
            self.board.spaces.append(child)
            self.other = child, self.model.fork(child.family.number)
        finally:
            self.board.buddy.failures = NEVER_FAILS

    @rule()
    def switch(self) -> None:
        """The CPU runs the other space from now on."""
        if self.other is not None:
            (self.space, self.model), self.other = self.other, (self.space, self.model)
            self.board.run_on(self.space)

    @rule(other=st.booleans())
    def end_one(self, other: bool) -> None:
        if self.other is None:
            return
        if not other:
            self.switch()
        ended, _model = self.other
        self.other = None
        self.board.spaces.remove(ended)
        ended.destroy()

    @rule(place=PLACES, level=st.integers(2, 5), bit=st.integers(0, 63), which=st.integers(0, 4))
    def damage(self, place: int, level: int, bit: int, which: int) -> None:
        """One bit of a table entry is flipped while no CPU runs: it is named, and nothing is edited."""
        board, space, va = self.board, self.space, self.page_at(place) * self.size
        fmt, words = board.format, board.ram.words
        steps = [step for step in space.walk(va).steps if 1 < step.level <= max(2, min(level, fmt.top))]
        if va // self.size not in self.model.pages or not steps:
            return
        step = steps[0]
        slot, seen = int(step.address) - board.ram.base >> 3, step.entry ^ 1 << bit
        before = self.entries(space)
        words[slot] = seen
        damaged = space.table.judge(va)
        if same(fmt, step.level, seen, step.entry):  # the MMU itself may flip it
            assert damaged is None
            words[slot] = step.entry
            return
        assert damaged is not None
        assert (damaged.level, damaged.slot, damaged.seen) == (step.level, slot, seen)
        assert same(fmt, step.level, damaged.expected, step.entry)
        leads = fmt.next_table(seen, step.level), fmt.next_table(step.entry, step.level)
        if self.model.pages[va // self.size].protection and leads[0] != leads[1]:
            assert fault_in(space, va, int(Access.USER | Access.READ)) == damaged
        calls = self.edits_of(va)
        with pytest.raises(TableDamaged) as raised:
            calls[which % len(calls)]()
        assert raised.value.damaged == damaged
        assert space.table.salvage() == [damaged]
        assert self.entries(space) == before

    def edits_of(self, va: int) -> list[Callable[[], object]]:
        """Calls that would change the page at `va`."""
        space, size = self.space, self.size
        page = self.model.pages[va // size]
        protection = 0 if page.protection else READ
        calls: list[Callable[[], object]] = [
            lambda: mapping.advise_memory(space, va, size, mapping.MADV_DONTNEED),
            lambda: mapping.unmap_memory(space, va, size),
            lambda: mapping.protect_memory(space, va, size, protection),
            lambda: ageing.forget_accesses(space, va, va + size),
        ]
        if not page.shared:
            calls.append(space.fork)
        return calls
