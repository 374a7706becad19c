"""What belongs to one CPU: the address space it runs in, its ready frames, its fault function.

A change of address space goes by here; `Tags` says under which tag, and whether the CPU keeps what it holds.
What other CPUs ask it to drop from its TLB waits in its queue in `mm.tlb`. Everything else in `mm` is shared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from aether_emu.arch.paging import PageTableFormat
from aether_emu.machine.cpu import Cpu, Exit, ExitReason
from aether_emu.mm.fault import make_fault
from aether_emu.mm.physical import Physical
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tags import Retained


class PerCpu:
    """CPU `index` of a computer. `space` is where it runs; there is none until the first `enter`.

    Invariant: a space's `cpus` has this CPU's bit exactly while the CPU walks that space's table. What it may
    keep of a space that it has left is flushed before the CPU uses it: see `Tags`.
    """

    __slots__ = (
        "_bit",
        "_is_only",
        "_kernel_root",
        "_physical",
        "_tag",
        "_tags",
        "_was_aware",
        "aware",
        "before_run",
        "cpu",
        "fault",
        "goes_on",
        "index",
        "inside",
        "plug",
        "ready",
        "space",
    )

    space: AddressSpace

    def __init__(
        self,
        physical: Physical,
        index: int,
        fmt: PageTableFormat,
        kernel_root: int,
        before_run: Callable[[], None],
    ) -> None:
        self._physical, self._kernel_root, self._bit = physical, kernel_root, 1 << index
        self._tags, self._tag = physical.tags, 0
        self._is_only = len(physical.cpus) == 1
        self.before_run = before_run
        self.index = index
        self.cpu: Cpu = physical.cpus[index]
        self.ready = physical.buddy.caches[index]
        self.inside = False  # whether `space` is what the CPU walks now
        self.aware = False  # whether it takes notice of flushes on its way into the kernel: see `_run_aware`
        self.goes_on = False  # whether the next `run` is the rest of one that was left in its midst
        self._was_aware = False
        self.plug: Callable[[], None] = lambda: None  # puts the callbacks in place, after a change of `aware`
        self.fault = make_fault(self, physical, fmt)

    def enter(self, space: AddressSpace) -> None:
        """Walk `space`'s table from now on. Nothing happens when it does so already."""
        if self.inside:
            if self.space is space:
                return
            self._depart()
        self.space, self.inside = space, True
        space.cpus |= self._bit
        tags = self._tags
        if tags is None:
            self._switch(space.table.root, 0, keep=False)
            return
        tag, keep = tags.enter(self.index, space.context)
        self._tag = tag | tags.user_bit
        if tags.model is not None:
            tags.model.enter(self.index, tag, keep=keep, broadcast=tags.broadcast)
        self._switch(space.table.root, self._tag, keep=keep)

    def leave(self) -> None:
        """Walk no address space: only the kernel half is left."""
        if self.inside:
            self._depart()
            self._switch(self._kernel_root, 0, keep=self._tags is not None)

    def _depart(self) -> None:
        """Another table is walked from now on."""
        self.inside = False
        space, tags = self.space, self._tags
        space.cpus &= ~self._bit
        if tags is not None:
            tags.leave(self.index, space.context, owes=self._physical.tlb.owes(self.index))
            if tags.model is not None:
                tags.model.leave(self.index, self._tag & ~tags.user_bit, space.mapped_pages())

    def leave_space(self, space: AddressSpace) -> None:
        """Walk `space` no longer, if that is where the CPU is: it is about to be destroyed."""
        if self.inside and self.space is space:
            self.leave()

    @property
    def walked(self) -> int | None:
        """The number of the address space that it walks, None for none."""
        return self.space.number if self.inside else None

    def rejoin(self) -> None:
        """Go on under the tag that `Tags` says: they were restored."""
        if self.inside and self._tags is not None:
            self._tag = self._tags.tag(self.index, self.space.context) | self._tags.user_bit
            self._switch(self.space.table.root, self._tag, keep=True)

    def retained(self) -> list[Retained]:
        """What the CPU's TLB may hold by its tags, if it had any: those of spaces that it has left, too."""
        if self._tags is not None:
            return self._tags.retained(self.index)
        context = self.space.context if self.inside else None
        return [] if context is None else [Retained(0, context.root, context.generation)]

    def _switch(self, root: int, tag: int, *, keep: bool) -> None:
        """Walk another table.

        The CPU owes nothing any more: the engine has dropped everything, and a TLB with tags that has not
        carried out a flush of the space that it leaves does so when it comes back.
        """
        self.cpu.set_root(root, tag, keep=keep)
        self._physical.tlb.dropped(self.index)

    def take_over(self) -> None:
        """This CPU is the one that works from now on, with nothing left of what others asked it to drop.

        Due before it executes, and before its copies to and from user memory.
        """
        physical = self._physical
        physical.buddy.enter(self.index)
        if physical.tlb.running != self.index:
            physical.tlb.enter(self.index)
            if physical.code.mutable and self.cpu.misses_stores:
                self.cpu.forget_code()  # others may have stored to code meanwhile
        else:
            physical.tlb.acknowledge(self.index)
        self.before_run()

    @property
    def goes_on_stale(self) -> bool:
        """Whether it has been asked to drop translations, and may go on with its program for a while."""
        return self.index in self._physical.tlb.windows

    def run(self, budget: int | None = None) -> Exit:
        """Execute, as `Cpu.run`."""
        if self._is_only:  # it works always, and nobody asks it to drop anything
            self.before_run()
            return self.cpu.run(budget)
        tlb = self._physical.tlb
        if self.index in tlb.windows and tlb.running == self.index:
            return self._run_stale(budget)
        self.take_over()
        goes_on, self.goes_on = self.goes_on, False
        if not goes_on:
            self._was_aware = bool(tlb.unsettled & self._bit)
        if self._was_aware:
            return self._run_aware(budget)
        return self.cpu.run(budget)

    def come_back(self) -> None:
        """This CPU is the one that works from now on, where it was in its program; see `goes_on_stale`."""
        physical = self._physical
        physical.buddy.enter(self.index)
        physical.tlb.running = self.index
        if physical.code.mutable and self.cpu.misses_stores:
            self.cpu.forget_code()
        self.before_run()

    def _run_stale(self, budget: int | None) -> Exit:
        """Execute with translations that it has been asked to drop, until it takes notice of that: after so
        many blocks, or on its way into the kernel.
        """
        cpu, tlb = self.cpu, self._physical.tlb
        start = cpu.blocks
        left = tlb.windows[self.index] - start
        ended = self._run_aware(left if budget is None else min(left, budget))
        used = cpu.blocks - start
        tlb.way.stale_blocks += used
        if self.index in tlb.windows and used < left:
            return ended  # its turn is over before that
        tlb.acknowledge(self.index)
        if ended.reason is not ExitReason.BUDGET or (budget is not None and used >= budget):
            return ended
        return self.run(None if budget is None else budget - used)

    def _run_aware(self, budget: int | None) -> Exit:
        """Execute while CPUs have not flushed all that they were asked to. This one does on its way into the
        kernel. A fault edits the table, so it waits for all: Linux holds a lock until then.
        """
        self.aware = True
        self.plug()
        try:
            return self.cpu.run(budget)
        finally:
            self.aware = False
            self.plug()

    def take_notice(self) -> None:
        """Have the CPU's callbacks begin so, those that are in place now."""
        cpu, tlb = self.cpu, self._physical.tlb

        def first(do: Callable[[], object], action: Callable[..., Any]) -> Callable[..., Any]:
            def done(*arguments: Any) -> Any:
                do()
                return action(*arguments)

            return done

        notice = partial(tlb.acknowledge, self.index)
        cpu.on_fault, cpu.resolve = first(tlb.settle, cpu.on_fault), first(tlb.settle, cpu.resolve)
        cpu.on_system_call, cpu.on_trap = first(notice, cpu.on_system_call), first(notice, cpu.on_trap)
