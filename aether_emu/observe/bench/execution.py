"""Execution speed through page tables, beside the same machine code on a bare engine.

A program runs twice, with little and with much of the work; the figure is the difference, so that
start, first touches and preparation of the data drop out on both sides.

The floor is an engine without paging. For stores that flatters the ratio: memory that could be
executed makes each of them slow (see `machine.floors`), and without paging all memory could. So
they have a second floor, the least page tables with data that cannot be executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aether_emu.machine.floors.bare import FREE, PAGE, Floor, Program
from aether_emu.observe.bench import guests
from aether_emu.observe.bench.figure import Figure, collector_off, now


@dataclass(frozen=True, slots=True)
class Work:
    """A program with arguments for little and for much of its work, and the memory it asks for, bytes.

    `paged` chooses the floor.
    """

    name: str
    what: str
    program: str
    little: tuple[int, ...]
    much: tuple[int, ...]
    memory: int = 0
    paged: bool = False


_STREAM = ("stores one after another, 16 MiB", "stream", (16, 1), (16, 9), 16 << 20)

WORKS: tuple[Work, ...] = (
    Work("alu", "integer work in registers", "alu", (1,), (60_000_000,)),
    Work("stream", *_STREAM),
    Work("stream-paged", *_STREAM, paged=True),
    Work("randload", "dependent loads at random, 64 MiB", "randload", (64, 1), (64, 3_000_000), 64 << 20),
)


def figure(isa: str, work: Work, goal: float, *, repetitions: int = 5) -> Figure:
    """The figure for one program."""
    program = guests.for_floor(isa, work.program)
    printed: dict[Sequence[int], bytes] = {}

    def on_machine(arguments: Sequence[int]) -> float:
        with guests.on_machine(isa, work.program, arguments) as loaded:
            with collector_off():
                start = now()
                loaded.run()
                spent = now() - start
            printed[arguments] = loaded.output
            return spent

    def bare(arguments: Sequence[int]) -> float:
        engine = _engine(isa, work, program, arguments)
        try:
            kernel = guests.LeastKernel(isa, guests.reader(engine))
            engine.on_system_call = kernel
            with collector_off():
                start = now()
                engine.run()
                spent = now() - start
            text = guests.command(work.program, arguments)
            guests.same_output(text, printed[arguments], bytes(kernel.output))
            return spent
        finally:
            engine.close()

    return Figure(
        name=f"exec-{work.name}",
        isa=isa,
        what=work.what,
        program=f"{guests.command(work.program, work.much)} less {guests.command(work.program, work.little)}",
        floor_is="the same code behind the least page tables"
        if work.paged
        else "the same code on the engine without paging",
        unit="run",
        ours=lambda: on_machine(work.much) - on_machine(work.little),
        floor=lambda: bare(work.much) - bare(work.little),
        repetitions=repetitions,
        goal=goal,
    )


def _engine(isa: str, work: Work, program: Program, arguments: Sequence[int]) -> Floor:
    """The bare engine that is the floor of `work`."""
    given = program, guests.encoded(work.program, arguments), 2 * FREE + work.memory
    if not work.paged:
        return guests.FLAT[isa](*given)
    paged = guests.PAGED[isa](*given)
    paged.serve_faults(FREE, work.memory // PAGE)
    return paged
