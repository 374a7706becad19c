"""Several CPUs: what it costs to take a right away on all of them, and to run in short slices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aether_emu.interruption import Undisturbed
from aether_emu.linux.files.streams import BufferStream
from aether_emu.mm.protection import Protection
from aether_emu.observe.bench import guests
from aether_emu.observe.bench.figure import BenchError, Figure, collector_off, now
from aether_emu.system import Machine

SLICE = 10_000
_FLUSHES = 2_000  # of engines, in one measurement
_ANONYMOUS = 0x22  # MAP_PRIVATE | MAP_ANONYMOUS
_READ, _WRITE = int(Protection.READ), int(Protection.WRITE)


def figure(isa: str, cpus: int, goal: float, *, flushes: int = _FLUSHES, repetitions: int = 7) -> Figure:
    """An mprotect of one written page while `cpus` CPUs are in the address space.

    None of the others is lazy or delays: each is interrupted, flushes and acknowledges within the call.
    """
    times = max(10, flushes // cpus)
    place: list[int] = []

    def ours() -> float:
        with _on_all(isa, cpus) as machine:
            protect, mmap = guests.numbers(isa, "mprotect", "mmap")
            call, page = machine.entry.make_call, machine.format.page_size
            address = call(mmap, 0, page, _READ | _WRITE, _ANONYMOUS, -1 & (1 << 64) - 1, 0) or 0
            task, way = machine.entry.task, machine.physical.tlb.way
            spent = 0.0
            with collector_off():
                for _ in range(times):
                    task.process.write(address, b"x")  # the right is back, with a page behind it
                    start = now()
                    call(protect, address, page, _READ, 0, 0, 0)
                    spent += now() - start
                    call(protect, address, page, _READ | _WRITE, 0, 0, 0)
            reached = way.broadcasts if way.broadcast else way.sent
            if reached < times * (1 if way.broadcast else cpus - 1) and cpus > 1:
                raise BenchError(f"mprotect: {reached} requests reached other CPUs in {times} calls")
            place[:] = [address]
            return spent / times

    def floor() -> float:
        with _on_all(isa, cpus) as machine:
            flush = [cpu.flush_page for cpu in machine.computer.cpus]
            (address,) = place
            with collector_off():
                start = now()
                for _ in range(times):
                    for each in flush:
                        each(address)
                return (now() - start) / times

    return Figure(
        name=f"shootdown-{cpus}",
        isa=isa,
        what=f"mprotect of a page on {cpus} CPUs" if cpus > 1 else "mprotect of a page on one CPU",
        program=f"mprotect, {times} times",
        floor_is="the engines' own invalidations of the page, one after another",
        unit="call",
        ours=ours,
        floor=floor,
        repetitions=repetitions,
        goal=goal,
    )


@contextmanager
def _on_all(isa: str, cpus: int) -> Iterator[Machine]:
    """A machine whose CPUs are all in the address space of its program."""
    with Machine(isa, cpus=cpus, ram="64M", lazy_tlb=False, shootdown_delay=0, aslr=False) as machine:
        streams = {"stdin": BufferStream(), "stdout": BufferStream(), "stderr": BufferStream()}
        process = machine.load(guests.path_of(isa, "hello"), ["hello"], streams=streams)
        for index in range(1, cpus):
            machine.computer.enter(process.mm, index)
        yield machine


_ENDLESS = 1 << 40  # blocks: more than any of these programs has
_SLICED = {
    "slices-loads": ("loads at random", "randload", (16, 1_000_000)),
    "slices-loop": ("a loop of one block, the worst case", "alu", (20_000_000,)),
    "slices-counted": ("the same loop", "alu", (20_000_000,)),
}


def slices(isa: str, name: str, goal: float, *, share: int = 1, repetitions: int = 7) -> Figure:
    """A program in slices of 10,000 blocks: 1/`share` of its full length.

    The floor is the same in one go; that of `slices-counted` counts blocks too, as runs of several tasks do.
    """
    what, program, full = _SLICED[name]
    arguments = (*full[:-1], full[-1] // share)
    printed: dict[str, bytes] = {}

    def run(side: str, budget: int | None) -> float:
        with guests.on_machine(isa, program, arguments) as loaded, Undisturbed(loaded.machine.interrupt):
            scheduler, slices = loaded.machine.scheduler, 1
            with collector_off():
                start = now()
                while not scheduler.run(budget):
                    slices += 1
                spent = now() - start
            printed[side] = loaded.output
        if budget == SLICE and slices < 2:
            raise BenchError(f"{program}: it ended in its first slice")
        return spent

    counted = name == "slices-counted"

    def floor() -> float:
        spent = run("floor", _ENDLESS if counted else None)
        guests.same_output(program, printed["ours"], printed["floor"])
        return spent

    return Figure(
        name=name,
        isa=isa,
        what=f"slices of {SLICE:,} blocks: {what}",
        program=guests.command(program, arguments),
        floor_is="the same in one go, where blocks are counted too"
        if counted
        else "the same in one go, where no blocks are counted",
        unit="run",
        ours=lambda: run("ours", SLICE),
        floor=floor,
        repetitions=repetitions,
        goal=goal,
    )
