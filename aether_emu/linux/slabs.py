"""The kernel's objects in the machine's memory: how they are kept, and who is at work when one is touched."""

from __future__ import annotations

from functools import partial

from aether_emu.linux.kernel import Kernel
from aether_emu.linux.task.body import TASK, make_head
from aether_emu.mm.slab.cache import Who
from aether_emu.mm.slab.geometry import debug_flags
from aether_emu.mm.slab.slabs import Terms
from aether_emu.rules import slab_checks


def open_slabs(kernel: Kernel, kernel_base: int) -> None:
    """From now on objects stand in RAM, as the parameters say. Raises OutOfFrames."""
    config, physical, streams = kernel.config, kernel.physical, kernel.streams
    if config.slab_fault != "none":
        from aether_emu.mm.slab.faults import FaultySlabs  # noqa: PLC0415  # few runs want any

        one_in, memory = streams.stream("slab_fault").one_in, physical.slabs.memory
        physical.slabs = FaultySlabs(
            config.slab_fault,
            config.slab_fault_one_in,
            one_in,
            memory,
            physical.ram.base,
            physical.frames,
            physical.buddy,
        )
    slabs, chance = physical.slabs, streams.stream("slab")
    slabs.cpu, slabs.who = lambda: physical.tlb.running, partial(_who, kernel)
    slabs.call_name = partial(_call_name, kernel)
    slabs.host_memory = physical.host_memory
    letters, names = slab_checks(config.slab_debug)
    flags = debug_flags(letters)
    slabs.open(kernel_base, Terms(flags, names, config.slab_merge, chance.u64, chance.below))
    physical.shrinkers.enter(slabs)
    if physical.swap is not None:
        physical.swap.slabs = slabs
    kernel.task_list = make_head(slabs)


def close_slabs(kernel: Kernel) -> None:
    """Give back what the kernel itself has."""
    head, kernel.task_list = kernel.task_list, 0
    kernel.physical.slabs.put(TASK, head)


def _who(kernel: Kernel) -> Who:
    """The task that works now, and in which call."""
    cpu, entry = kernel.physical.tlb.running, getattr(kernel, "entry", None)
    task = getattr(entry, "task", None)
    if task is None:
        return Who(0, cpu, -1, 0, b"")
    call = task.called
    if call < 0 and task.call is not None:  # it has waited in it
        call = task.call[0]
    return Who(task.tid, cpu, call, kernel.time_seen(), task.name)


def _call_name(kernel: Kernel, number: int) -> str:
    return "" if number < 0 else kernel.abi.system_calls.get(number, f"call {number}")
