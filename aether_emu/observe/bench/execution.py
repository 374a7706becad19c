"""Execution speed through page tables, beside the same machine code on an engine without paging.

A program runs twice, with little and with much of the work; the figure is the difference, so that
start, first touches and preparation of the data drop out on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aether_emu.machine import floors
from aether_emu.observe.bench import guests
from aether_emu.observe.bench.figure import Figure, collector_off, now


@dataclass(frozen=True, slots=True)
class Work:
    """A program with arguments for little and for much of its work, and the memory it asks for, bytes."""

    name: str
    what: str
    little: tuple[int, ...]
    much: tuple[int, ...]
    memory: int = 0


WORKS: tuple[Work, ...] = (
    Work("alu", "integer work in registers", (1,), (60_000_000,)),
    Work("stream", "stores one after another, 16 MiB", (16, 1), (16, 9), 16 << 20),
    Work("randload", "dependent loads at random, 64 MiB", (64, 1), (64, 3_000_000), 64 << 20),
)


def figure(isa: str, work: Work, goal: float, *, repetitions: int = 5) -> Figure:
    """The figure for one program."""
    program = guests.for_floor(isa, work.name)
    printed: dict[Sequence[int], bytes] = {}

    def on_machine(arguments: Sequence[int]) -> float:
        with guests.on_machine(isa, work.name, arguments) as loaded:
            with collector_off():
                start = now()
                loaded.run()
                spent = now() - start
            printed[arguments] = loaded.output
            return spent

    def flat(arguments: Sequence[int]) -> float:
        size = 2 * floors.FREE + work.memory
        engine = floors.FlatFloor(program, guests.encoded(work.name, arguments), size)
        try:
            kernel = guests.LeastKernel(isa, guests.reader(engine))
            engine.on_system_call = kernel
            with collector_off():
                start = now()
                engine.run()
                spent = now() - start
            guests.same_output(guests.command(work.name, arguments), printed[arguments], bytes(kernel.output))
            return spent
        finally:
            engine.close()

    return Figure(
        name=f"exec-{work.name}",
        isa=isa,
        what=work.what,
        program=f"{guests.command(work.name, work.much)} less {guests.command(work.name, work.little)}",
        floor_is="the same code on the engine without paging",
        unit="run",
        ours=lambda: on_machine(work.much) - on_machine(work.little),
        floor=lambda: flat(work.much) - flat(work.little),
        repetitions=repetitions,
        goal=goal,
    )
