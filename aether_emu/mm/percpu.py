"""What belongs to one CPU: the address space it runs in, its ready frames, its fault function.

What other CPUs ask it to drop from its TLB waits in its queue in `mm.tlb`. Everything else in `mm` is shared.
"""

from __future__ import annotations

from collections.abc import Callable

from aether_emu.arch.paging import PageTableFormat
from aether_emu.machine.cpu import Cpu, Exit
from aether_emu.mm.fault import make_fault
from aether_emu.mm.physical import Physical
from aether_emu.mm.space import AddressSpace


class PerCpu:
    """CPU `index` of a computer. `space` is where it runs; there is none until the first `enter`.

    Invariant: a space's `cpus` has this CPU's bit exactly while the CPU walks that space's table.
    """

    __slots__ = (
        "_bit",
        "_kernel_root",
        "_physical",
        "before_run",
        "cpu",
        "fault",
        "index",
        "inside",
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
        self.before_run = before_run
        self.index = index
        self.cpu: Cpu = physical.cpus[index]
        self.ready = physical.buddy.caches[index]
        self.inside = False  # whether `space` is what the CPU walks now
        self.fault = make_fault(self, physical, fmt)

    def enter(self, space: AddressSpace) -> None:
        """Walk `space`'s table from now on. Nothing happens when it does so already."""
        if self.inside and self.space is space:
            return
        self.leave()
        self.space, self.inside = space, True
        space.cpus |= self._bit
        self._switch(space.table.root)

    def leave(self) -> None:
        """Walk no address space: only the kernel half is left."""
        if self.inside:
            self.inside = False
            self.space.cpus &= ~self._bit
            self._switch(self._kernel_root)

    def leave_space(self, space: AddressSpace) -> None:
        """Walk `space` no longer, if that is where the CPU is: it is about to be destroyed."""
        if self.inside and self.space is space:
            self.leave()

    def _switch(self, root: int) -> None:
        """Another root drops the whole TLB, and with it all that the CPU was asked to drop."""
        self.cpu.set_root(root)
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

    def run(self, budget: int | None = None) -> Exit:
        """Execute, as `Cpu.run`."""
        self.take_over()
        return self.cpu.run(budget)
