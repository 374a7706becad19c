"""The system call: `getppid` through the kernel beside a callback that reads and writes registers."""

from __future__ import annotations

from aether_emu.errors import shown
from aether_emu.machine.floors.bare import FREE
from aether_emu.observe.bench import guests
from aether_emu.observe.bench.figure import BenchError, Figure, collector_off, now

_ANSWER = 999


def figure(isa: str, goal: float, *, calls: int = 200_000, repetitions: int = 9) -> Figure:
    """The figure for `calls` system calls in a loop. Start and end of the program weigh nothing there."""
    arguments = (calls,)
    program = guests.for_floor(isa, "getppid")

    def ours() -> float:
        with guests.on_machine(isa, "getppid", arguments) as loaded:
            with collector_off():
                start = now()
                loaded.run()
                spent = now() - start
            if int(loaded.output, 16) != calls:
                raise BenchError(f"getppid: {shown(loaded.output)} of {calls} calls were answered alike")
            return spent / calls

    def floor() -> float:
        engine = guests.PAGED[isa](program, guests.encoded("getppid", arguments), 2 * FREE)
        try:
            engine.serve_calls(_ANSWER)
            with collector_off():
                start = now()
                engine.run()
                return (now() - start) / calls
        finally:
            engine.close()

    return Figure(
        name="syscall",
        isa=isa,
        what="system call that only returns a number",
        program=guests.command("getppid", arguments),
        floor_is="a bare hook that reads seven registers and writes one",
        unit="call",
        ours=ours,
        floor=floor,
        repetitions=repetitions,
        goal=goal,
    )
