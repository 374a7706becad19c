"""The cost of TLBSan: a program of faults on a machine that has one, beside the same machine without.

`touch PAGES ROUNDS` writes every page and asks for all of them to be dropped, ROUNDS times: faults, and edits
of whole tables at once. The time is that of the run, from the program's first instruction to its last.
"""

from __future__ import annotations

from aether_emu.observe.bench import guests
from aether_emu.observe.bench.figure import Figure, collector_off, now


def figure(isa: str, goal: float, *, pages: int = 4096, rounds: int = 4, repetitions: int = 9) -> Figure:
    """The figure for `touch`."""
    arguments = (pages, rounds)

    def run(*, tlbsan: bool) -> float:
        with guests.on_machine(isa, "touch", arguments, tlbsan=tlbsan) as loaded, collector_off():
            started = now()
            loaded.run()
            return (now() - started) / (pages * rounds)

    return Figure(
        name="tlbsan",
        isa=isa,
        what="page written and dropped, with TLBSan",
        program=guests.command("touch", arguments),
        floor_is="the same machine without TLBSan",
        unit="page",
        ours=lambda: run(tlbsan=True),
        floor=lambda: run(tlbsan=False),
        repetitions=repetitions,
        goal=goal,
    )
