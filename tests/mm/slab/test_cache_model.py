"""Caches on several CPUs against a plain reference: who has which object, and what it says."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aether_emu.errors import OutOfFrames
from aether_emu.mm.slab.layout import Layout
from tests.mm.slab.board import Board

LAYOUTS = [Layout(f"thing-{size}", ("number", "Q"), ("rest", f"{size}s")) for size in (8, 200, 1500, 5000)]


class Caches(RuleBasedStateMachine):
    """Objects are taken, stored to and given back by up to three CPUs, while memory is short now and then."""

    @initialize(debug=st.sampled_from(["", "F", "Z", "P", "FZPU"]), shift=st.sampled_from([12, 14]))
    def begin(self, debug: str, shift: int) -> None:
        self.board = Board(debug, cpus=3, page_shift=shift)
        self.held: dict[int, tuple[Layout, int]] = {}  # by address
        self.held_frames: list[int] = []
        self.next = 1

    @rule(cpu=st.integers(0, 2))
    def work_on(self, cpu: int) -> None:
        self.board.cpu = cpu
        self.board.buddy.enter(cpu)

    @rule(layout=st.sampled_from(LAYOUTS), count=st.integers(1, 60))
    def take(self, layout: Layout, count: int) -> None:
        for _ in range(count):
            try:
                at = self.board.slabs.take(layout, number=self.next)
            except OutOfFrames:
                return
            assert at not in self.held, "it is another's"
            self.held[at] = layout, self.next
            self.next += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data(), count=st.integers(1, 60))
    def put(self, data: st.DataObject, count: int) -> None:
        for at in data.draw(st.permutations(sorted(self.held)), "who")[:count]:
            layout, number = self.held.pop(at)
            assert self.board.slabs.load(layout, at)["number"] == number
            self.board.slabs.put(layout, at)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from(sorted(self.held)), "who")
        layout, _number = self.held[at]
        self.board.slabs.store(layout, at, number=self.next, rest=b"\xff" * 5000)
        self.held[at] = layout, self.next
        self.next += 1

    @rule()
    def shrink(self) -> None:
        self.board.slabs.scan(1)

    @rule()
    def take_all_frames(self) -> None:
        self.held_frames += self.board.buddy.alloc_bulk(self.board.buddy.free_frames).tolist()

    @rule()
    def give_frames_back(self) -> None:
        for frame in self.held_frames:
            self.board.buddy.free(frame)
        self.held_frames.clear()

    @invariant()
    def says_what_is_so(self) -> None:
        if not hasattr(self, "board"):
            return
        board = self.board
        for at, (layout, number) in self.held.items():
            assert board.slabs.load(layout, at)["number"] == number
        rows = {row.name: row.active for row in board.slabs.rows()}
        for layout in LAYOUTS:
            assert rows.get(layout.name, 0) == sum(one is layout for one, _ in self.held.values())
        assert board.used == board.slabs.used_frames + len(self.held_frames)
        board.slabs.check()
        board.buddy.check()

    def teardown(self) -> None:
        if hasattr(self, "board"):
            self.give_frames_back()
            for at, (layout, _number) in self.held.items():
                self.board.slabs.put(layout, at)
            self.board.slabs.close()
            assert not self.board.used and not self.board.frames.leaks()


TestCaches = Caches.TestCase
TestCaches.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
