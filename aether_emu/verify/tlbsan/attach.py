"""Where the events of a machine come from: its CPUs, its allocator and its page tables, wrapped one by one.

Nothing of this is there while no sanitizer is: instances are wrapped, never classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from aether_emu.arch.paging import Access
from aether_emu.machine.cpu import Exit
from aether_emu.mm.fault import Outcome
from aether_emu.mm.percpu import PerCpu
from aether_emu.mm.tables.page import PageTable
from aether_emu.mm.tags import Tags
from aether_emu.system import Machine
from aether_emu.verify.tlbsan.rules import Rules
from aether_emu.verify.tlbsan.sanitizer import Entered, Sanitizer

_CALL = 1  # how long what the kernel was entered for is: a call's number


def attach(machine: Machine, **options: Any) -> Sanitizer:
    """A sanitizer that hears of all that happens in a machine from now on; `options` are its own.

    The machine has not run yet, or was just restored: the TLBs are empty.
    """
    rules = Rules(machine.format.name)
    sanitizer = Sanitizer(rules, machine.ram, machine.frames.count, len(machine.entries), **options)
    tags = machine.physical.tags
    if tags is not None:
        sanitizer.have_tags(tags.user_bit)
    _watch_allocator(machine, sanitizer)
    for entry in machine.entries:
        _watch_cpu(entry.percpu, sanitizer)
        entry.manager = entry.percpu.fault
        entry.watch = _way_back(entry.percpu, sanitizer)
        entry.ask(None, None)
    _name_places(machine, sanitizer)
    _know_the_way(machine, sanitizer)
    for entry in machine.entries:
        if entry.percpu.inside:
            _watch_root(entry.percpu, sanitizer, tags)
    return sanitizer


def _know_the_way(machine: Machine, sanitizer: Sanitizer) -> None:
    """What the machine's shootdown permits: memory that goes later, lazy CPUs, early acknowledgement.

    A lazy CPU is not asked and flushes when it gets a task. Where CPUs acknowledge early, the memory goes
    between the word of the last one and its flush.
    """
    tlb = machine.physical.tlb
    sanitizer.deferred = sanitizer.deferred or tlb.way.acknowledged == "deferred"

    def idles(cpu: int) -> bool:
        spared = tlb.way.lazy and not tlb.way.broadcast  # a broadcast reaches them too
        return spared and cpu != tlb.running and tlb.runner.idles(cpu)

    sanitizer.idles = idles
    if tlb.way.acknowledged == "early":
        acknowledge, acknowledging = tlb.acknowledge, sanitizer.acknowledging

        def watched_acknowledge(index: int) -> None:
            acknowledging.append(index)
            try:
                acknowledge(index)
            finally:
                acknowledging.pop()

        setattr(tlb, "acknowledge", watched_acknowledge)  # noqa: B010 - mypy knows it as a method


def _name_places(machine: Machine, sanitizer: Sanitizer) -> None:
    calls = machine.abi.system_calls

    def who(cpu: int) -> str:
        task = getattr(machine.entries[cpu], "task", None)
        if task is None:
            return "no task"
        return (
            f"{task.name.decode('utf-8', 'backslashreplace')} (process {task.process.pid}, task {task.tid})"
        )

    def what(cpu: int, entered: Entered) -> str:
        if len(entered) == _CALL:
            return f"system call {calls.get(entered[0], entered[0])}"
        if entered:
            access = Access(entered[1])
            kind = "store" if access & Access.WRITE else "fetch" if access & Access.EXECUTE else "load"
            return f"fault at {entered[0]:#x} ({kind})"
        task = getattr(machine.entries[cpu], "task", None)
        if task is not None and task.call is not None:
            return f"system call {calls.get(task.call[0], task.call[0])}, made again"
        return "work of the kernel between two turns"

    sanitizer.who, sanitizer.what, sanitizer.now = who, what, lambda: machine.clock.now_ns


def _watch_allocator(machine: Machine, sanitizer: Sanitizer) -> None:
    buddy: Any = machine.buddy
    free, free_bulk = buddy.free, buddy.free_bulk
    held, touched, roots = sanitizer.held, sanitizer.touched, sanitizer.root_frames

    def watched_free(frame: int, order: int = 0) -> None:
        if touched or order or held[frame] or frame in roots:
            sanitizer.freed(frame, 1 << order)
        free(frame, order)

    def watched_free_bulk(frames: Any) -> None:
        sanitizer.freed_many(np.asarray(frames, dtype=np.int64).reshape(-1))
        free_bulk(frames)

    buddy.free, buddy.free_bulk = watched_free, watched_free_bulk
    physical: Any = machine.physical
    free_all = physical.free

    def watched_free_all(unused: list[int]) -> None:
        sanitizer.freed_together(lambda: free_all(unused))

    physical.free = watched_free_all
    aperture = machine.aperture
    on_evict = aperture.on_evict

    def watched_on_evict(address: int, length: int) -> None:
        on_evict(address, length)
        sanitizer.slot_freed(address, length)  # another file's pages stand there next

    aperture.on_evict = watched_on_evict


def _watch_cpu(percpu: PerCpu, sanitizer: Sanitizer) -> None:
    cpu: Any = percpu.cpu
    number, before_run = percpu.index, percpu.before_run
    flush_page, flush_all, set_root, run = cpu.flush_page, cpu.flush_all, cpu.set_root, cpu.run
    flush_tag = cpu.flush_tag

    def watched_flush_page(va: int) -> None:
        flush_page(va)
        sanitizer.flush_page(number, va)

    def watched_flush_all() -> None:
        flush_all()
        sanitizer.flush_all(number)

    def watched_flush_tag(tag: int, va: int | None = None) -> None:
        sanitizer.flush_tag(number, tag, va, lambda: flush_tag(tag, va))

    def watched_set_root(address: int, tag: int = 0, *, keep: bool = False) -> None:
        sanitizer.set_root(number, address, lambda: set_root(address, tag, keep=keep), tag, keep=keep)
        if percpu.inside and percpu.space.table.root == address:
            _watch_table(percpu.space.table, sanitizer)

    def watched_before_run() -> None:
        sanitizer.works(number)
        before_run()

    def watched_run(budget: int | None = None) -> Exit:
        sanitizer.to_user(number)
        ended: Exit = run(budget)
        return ended

    cpu.flush_page, cpu.flush_all, cpu.set_root = watched_flush_page, watched_flush_all, watched_set_root
    cpu.flush_tag = watched_flush_tag
    cpu.run, percpu.before_run = watched_run, watched_before_run
    _watch_faults(percpu, sanitizer)


def _watch_root(percpu: PerCpu, sanitizer: Sanitizer, tags: Tags | None) -> None:
    """A CPU walks an address space already."""
    table, tag = percpu.space.table, 0
    if tags is not None:
        tag = tags.tag(percpu.index, percpu.space.context) | tags.user_bit
    sanitizer.set_root(percpu.index, table.root, lambda: None, tag, keep=tags is not None)
    _watch_table(table, sanitizer)


def _watch_faults(percpu: PerCpu, sanitizer: Sanitizer) -> None:
    """The quick path of a fault fills an absent entry and says nothing: its leaf table is noted here."""
    number, shift, keys = percpu.index, sanitizer.leaf_shift, sanitizer.keys
    at, fault = sanitizer.at, percpu.fault

    def watched_fault(va: int, access: int) -> Outcome:
        root = at[number]
        if root is not None:
            root.pending.add(va >> shift & keys)
        return fault(va, access)

    percpu.fault = watched_fault


def _way_back(percpu: PerCpu, sanitizer: Sanitizer) -> Any:
    """What wraps the callbacks of a CPU, whenever others have been plugged in.

    At the end of each the program goes on, unless the callback had the CPU stop.
    """
    cpu: Any = percpu.cpu
    number, stop, stopped = percpu.index, cpu.stop, [False]

    def watched_stop() -> None:
        stopped[0] = True
        stop()

    cpu.stop = watched_stop

    def watch(cpu: Any) -> None:
        on_fault, on_system_call, on_trap = cpu.on_fault, cpu.on_system_call, cpu.on_trap

        def watched_fault(va: int, access: int) -> None:
            stopped[0], sanitizer.entered = False, (va, access)
            on_fault(va, access)
            if not stopped[0]:
                sanitizer.to_user(number)

        def watched_call(call: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int | None:
            stopped[0], sanitizer.entered = False, (call & 0xFFFF_FFFF,)
            result: int | None = on_system_call(call, a, b, c, d, e, f)
            if not stopped[0]:
                sanitizer.to_user(number)
            return result

        def watched_trap(trap: Any) -> None:
            stopped[0] = False
            on_trap(trap)
            if not stopped[0]:
                sanitizer.to_user(number)

        cpu.on_fault, cpu.on_system_call, cpu.on_trap = watched_fault, watched_call, watched_trap

    return watch


def _watch_table(table: PageTable, sanitizer: Sanitizer) -> None:
    """Whoever edits a page table asks it for the way first, or has it write: that says where edits may be."""
    watched: Any = table
    if "visit" in watched.__dict__:
        return
    roots, hint, hint_page = sanitizer.roots, sanitizer.hint, sanitizer.hint_page
    hint_upper = sanitizer.hint_upper
    visit, find, leaf_slot, write = table.visit, table.find, table.leaf_slot, table.write

    def watched_visit(start: int, end: int, *, tables: bool = False) -> Any:
        root = roots.get(table.root)
        if root is not None and start < end:
            hint(root, start, end)
        return visit(start, end, tables=tables)

    def watched_find(va: int) -> Any:
        root = roots.get(table.root)
        if root is not None:
            hint_page(root, va)
        return find(va)

    def watched_leaf_slot(va: int) -> int:
        root = roots.get(table.root)
        if root is not None:
            hint_page(root, va)
        return leaf_slot(va)

    def watched_write(va: int, level: int, slot: int, entry: int) -> None:
        root = roots.get(table.root)
        if root is not None:
            if level > 1:
                hint_upper(root)
            else:
                hint_page(root, va)
        write(va, level, slot, entry)

    watched.visit, watched.find, watched.leaf_slot, watched.write = (
        watched_visit, watched_find, watched_leaf_slot, watched_write,
    )  # fmt: skip
    for name in ("add_leaf_tables", "salvage", "borrow_upper", "restore", "destroy", "fill"):
        setattr(watched, name, _with_upper(table, getattr(table, name), sanitizer, hint_upper))


def _with_upper(table: PageTable, method: Any, sanitizer: Sanitizer, hint_upper: Any) -> Any:
    """A method that edits entries above level 1."""

    def watched(*arguments: Any, **more: Any) -> Any:
        root = sanitizer.roots.get(table.root)
        if root is not None:
            hint_upper(root)
        return method(*arguments, **more)

    return watched
