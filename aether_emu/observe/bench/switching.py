"""Switching tasks, a process, a signal, a pipe: what the kernel does, beside what must be done for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from aether_emu.linux.abi.signal import SA_RESTORER, SA_SIGINFO, SIGUSR1, Action, SignalInfo
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import Cpu
from aether_emu.machine.floors.bare import FREE
from aether_emu.mm.tables.count import entries_of, frames_of
from aether_emu.observe.bench import guests
from aether_emu.observe.bench.figure import BenchError, Figure, collector_off, now
from aether_emu.system import Machine

_THREAD, _PROCESS = 0x5_0F00, 17  # flags of clone(2): as pthread_create has them; SIGCHLD alone
_CHUNK = 1 << 16
_PROGRAM = "hello"
_GROUPS, _AREAS, _PAGES = 5, 5, 16  # groups of areas that touch, areas of each, pages of each
_ONE = np.uint32(1)  # of the columns' type, or numpy takes the slow way
_FRAME = {"x86_64": 1000, "arm64": 4720}  # bytes that a signal frame has at least


@dataclass(frozen=True, slots=True)
class _Ready:
    """A machine that stands at the first instruction of its program."""

    machine: Machine
    task: Task
    cpu: Cpu
    isa: str
    at_end: ExitStack

    def call(self, name: str, *arguments: int) -> int:
        """Make a system call for the task. Raises BenchError when it fails."""
        (number,) = guests.numbers(self.isa, name)
        result = self.machine.entry.make_call(number, *arguments, *[0] * (6 - len(arguments)))
        if result is None or result < 0:
            raise BenchError(f"{name}: {result}")
        return result


@contextmanager
def _ready(isa: str) -> Iterator[_Ready]:
    with guests.on_machine(isa, _PROGRAM, ()) as loaded:
        task = loaded.machine.entry.task
        with ExitStack() as at_end:
            yield _Ready(loaded.machine, task, task.cpu, isa, at_end)


Work = Callable[[int], None]


def _switches(ready: _Ready, flags: int) -> tuple[Work, Work]:
    """To another task and back again."""
    ready.call("clone", flags)
    other = ready.task.process.registry.arrivals[0]
    assert isinstance(other, Task), "just made"
    entry, one, cpu = ready.machine.entry, ready.task, ready.cpu
    roots = [task.process.mm.table.root for task in (one, other)]
    apart = roots[0] != roots[1]
    program, arguments = guests.for_floor(ready.isa, _PROGRAM), guests.encoded(_PROGRAM, ())
    bare = guests.PAGED[ready.isa](program, arguments, 2 * FREE)
    ready.at_end.callback(bare.close)
    exchange = bare.exchange()

    def ours(times: int) -> None:
        for _ in range(times // 2):
            entry.switch(other)
            entry.switch(one)

    def floor(times: int) -> None:
        for _ in range(times // 2):
            for root in roots:
                exchange()
                if apart:
                    cpu.set_root(root)

    return ours, floor


def _processes(ready: _Ready) -> tuple[Work, Work]:
    """A child of a process with as many areas as a shell's: forked, ended and waited for."""
    process, registry = ready.task.process, ready.task.process.registry
    spans = [_written_areas(ready) for _group in range(_GROUPS)]
    settle = ready.machine.scheduler.settle

    def ours(times: int) -> None:
        for _ in range(times):
            pid = ready.call("clone", _PROCESS)
            settle()
            registry.processes[pid].end(Ended())
            settle()
            if ready.call("wait4", pid) != pid:
                raise BenchError(f"wait4: not {pid}")

    table, frames, cpu, context = process.mm.table, ready.machine.frames, ready.cpu, ready.cpu.save()
    views = [entries_of(table, item)[0] for start, end in spans for item in table.visit(start, end)]
    shown = [frames_of(table.format, frames, view) for view in views]
    locked, copied = ([np.zeros_like(view) for view in views] for _ in range(2))
    tables = np.zeros((table.tables, table.format.page_size >> 3), np.uint64)
    change = np.uint64(1)

    def floor(times: int) -> None:
        for _ in range(times):
            cpu.save(context)
            for view, mine, other, numbers in zip(views, locked, copied, shown, strict=True):
                np.bitwise_xor(view, change, out=mine)
                other[:] = mine
                np.add.at(frames.refs_array, numbers, _ONE)
                np.add.at(frames.maps_array, numbers, _ONE)
            for other, numbers in zip(copied, shown, strict=True):
                np.subtract.at(frames.refs_array, numbers, _ONE)
                np.subtract.at(frames.maps_array, numbers, _ONE)
                other[:] = 0
            for cleared in tables:
                cleared[:] = 0
            cpu.restore(context)

    return ours, floor


def _written_areas(ready: _Ready) -> tuple[int, int]:
    """Areas that touch each other, every second one read-only, all pages written. Returns their addresses."""
    page = ready.task.process.mm.page_size
    length = _AREAS * _PAGES * page
    start = ready.call("mmap", 0, length + page, 3, 0x22, (1 << 64) - 1)
    ready.call("munmap", start + length, page)  # a gap
    for at in range(start, start + length, page):
        ready.cpu.copy_to_user(at, b"x")
    for at in range(start, start + length, 2 * _PAGES * page):
        ready.call("mprotect", at, _PAGES * page, 1)
    return start, start + length


def _signals(ready: _Ready) -> tuple[Work, Work]:
    """Into a handler and out of it by sigreturn."""
    task, cpu = ready.task, ready.cpu
    handler = ready.cpu.pc
    action = Action(handler, SA_RESTORER | SA_SIGINFO, handler)
    task.process.set_action(SIGUSR1, action)
    contexts = [cpu.save(), cpu.save()]
    returned = 8 if ready.isa == "x86_64" else 0  # the handler's `ret` takes the address
    size, where = _FRAME[ready.isa], cpu.sp - 8192

    def ours(times: int) -> None:
        for _ in range(times):
            task.signals.post(SignalInfo(SIGUSR1))
            task.signals.deliver()
            cpu.sp = cpu.sp + returned
            task.signals.go_back()

    def floor(times: int) -> None:
        content = bytes(size)
        for _ in range(times):
            cpu.save(contexts[0])
            cpu.copy_to_user(where, content)
            cpu.copy_from_user(where, size)
            cpu.restore(contexts[0])

    return ours, floor


def _pipes(ready: _Ready) -> tuple[Work, Work]:
    """A chunk into a pipe and out of it."""
    cpu = ready.cpu
    memory = ready.call("mmap", 0, 3 * _CHUNK, 3, 0x22, (1 << 64) - 1)
    source, target = memory, memory + _CHUNK
    cpu.copy_to_user(source, bytes(range(256)) * (_CHUNK // 256))
    cpu.copy_to_user(target, bytes(_CHUNK))
    ready.call("pipe2", memory + 2 * _CHUNK)
    pair = cpu.copy_from_user(memory + 2 * _CHUNK, 8)
    reading, writing = (int.from_bytes(pair[at : at + 4], "little") for at in (0, 4))

    write, read = guests.numbers(ready.isa, "write", "read")
    make_call = ready.machine.entry.make_call

    def ours(times: int) -> None:
        for _ in range(times):
            passed = make_call(write, writing, source, _CHUNK, 0, 0, 0)
            if not passed == make_call(read, reading, target, _CHUNK, 0, 0, 0) == _CHUNK:
                raise BenchError(f"pipe: {passed} bytes of {_CHUNK}")

    def floor(times: int) -> None:
        for _ in range(times):
            cpu.copy_to_user(target, cpu.copy_from_user(source, _CHUNK))

    return ours, floor


@dataclass(frozen=True, slots=True)
class _Kind:
    what: str
    floor_is: str
    unit: str
    times: int
    works: Callable[[_Ready], tuple[Work, Work]]


_KINDS = {
    "switch-threads": _Kind(
        "switch from one thread to another of its process",
        "the engine's context saved and restored",
        "switch",
        4000,
        lambda ready: _switches(ready, _THREAD),
    ),
    "switch-processes": _Kind(
        "switch from one process to another",
        "the engine's context saved and restored, and the other's page table",
        "switch",
        4000,
        lambda ready: _switches(ready, _PROCESS),
    ),
    "process": _Kind(
        f"a process of {_GROUPS * _AREAS} areas, {_GROUPS * _AREAS * _PAGES} pages forked, ended, waited for",
        "a context saved and restored; entries locked and copied, frames counted up and down, tables cleared",
        "process",
        40,
        _processes,
    ),
    "signal": _Kind(
        "a signal delivered to a handler, and sigreturn",
        "a context saved and restored, and as many bytes as a frame to and from memory",
        "signal",
        400,
        _signals,
    ),
    "pipe": _Kind(
        "64 KiB through a pipe",
        "the same bytes from memory to memory",
        "chunk",
        400,
        _pipes,
    ),
}


def figure(isa: str, name: str, goal: float, *, times: int | None = None, repetitions: int = 9) -> Figure:
    """One of these figures."""
    kind = _KINDS[name]
    count = kind.times if times is None else times

    def measured(side: int) -> Callable[[], float]:
        def run() -> float:
            with _ready(isa) as ready:
                work = kind.works(ready)[side]
                work(2)  # what is only made once
                with collector_off():
                    start = now()
                    work(count)
                    return (now() - start) / count

        return run

    return Figure(
        name=name,
        isa=isa,
        what=kind.what,
        program=f"{count:,} in a row",
        floor_is=kind.floor_is,
        unit=kind.unit,
        ours=measured(0),
        floor=measured(1),
        repetitions=repetitions,
        goal=goal,
    )
