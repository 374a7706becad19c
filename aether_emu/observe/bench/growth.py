"""How costs grow: with the pages that are touched, and not with those that are merely mapped.

growth-*    an edit of a large range, beside as many edits of a small one that make as many pages
page        edits of 4 KiB each where 64 GiB are mapped and there, beside where 2 MiB are
sparse      a mapping of 16 TiB of which little is touched, beside one of just what is touched
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from aether_emu.mm import mapping
from aether_emu.mm.mapping import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, Request
from aether_emu.mm.populate import populate
from aether_emu.mm.space import AddressSpace
from aether_emu.observe.bench import edits, guests
from aether_emu.observe.bench.figure import BenchError, Figure, collector_off, now

SMALL, LARGE = 64 << 20, 64 << 30
_RESERVED, _TOUCHED = 16 << 40, 2 << 20
_RW = 3
_TIMES = 20
_PAGES = 400


def figure(isa: str, name: str, goal: float, *, large: int = LARGE, repetitions: int = 3) -> Figure:
    """The edit `name`, as in `edits`, of `large` bytes beside that of 64 MiB, both for each 64 MiB."""
    work = edits.WORKS[name]

    def measured(length: int) -> Callable[[], float]:
        def run() -> float:
            with edits.mapped(isa, length) as there:
                with collector_off():
                    start = now()
                    work.ours(there)
                    spent = now() - start
                return spent * SMALL / length

        return run

    small, count = measured(SMALL), 16
    return Figure(
        name=f"growth-{name}",
        isa=isa,
        what=f"{work.what.format(f'{large >> 30} GiB of')}, for each {SMALL >> 20} MiB",
        program=work.program,
        floor_is=f"the same of {SMALL >> 20} MiB",
        unit="range",
        ours=measured(large),
        floor=lambda: sum(small() for _ in range(count)) / count,
        repetitions=repetitions,
        goal=goal,
    )


def page(isa: str, goal: float, *, large: int = LARGE, repetitions: int = 3) -> Figure:
    """Protect, copy, move and clear one page at a time, in a large mapping and in one of a leaf table."""

    def measured(length: int) -> Callable[[], float]:
        def run() -> float:
            with edits.mapped(isa, length) as there, collector_off():
                size = there.table.format.page_size
                pages = [
                    replace(there, start=there.start + number * size, length=size) for number in range(_PAGES)
                ]
                began = now()
                for one in pages:
                    for name in ("protect", "fork", "move"):
                        edits.WORKS[name].ours(one)
                return (now() - began) / _PAGES

        return run

    return Figure(
        name="growth-page",
        isa=isa,
        what=f"protect, copy for a child and move one page, where {large >> 30} GiB are mapped and there",
        program="mm.tables.edits, mm.tables.transfer",
        floor_is="the same where 2 MiB are",
        unit="page",
        ours=measured(large),
        floor=measured(_TOUCHED),
        repetitions=repetitions,
        goal=goal,
    )


def sparse(isa: str, goal: float, *, repetitions: int = 7) -> Figure:
    """mmap, touch 2 MiB, mprotect, fork, munmap: of 16 TiB, and of just those 2 MiB."""

    def once(space: AddressSpace, length: int) -> None:
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        at = mapping.map_memory(space, Request(0, length, _RW, flags, None, 0))
        if populate(space, at, at + _TOUCHED, write=True) is not None:
            raise BenchError("a page could not be had")
        mapping.protect_memory(space, at, length, 1)
        space.fork().let_go()
        mapping.unmap_memory(space, at, length)

    def measured(length: int) -> Callable[[], float]:
        def run() -> float:
            with guests.on_machine(isa, "hello", ()) as loaded, collector_off():
                assert loaded.machine.process is not None, "it was loaded"
                space = loaded.machine.process.mm
                once(space, length)  # its tables' frames are there from then on
                start = now()
                for _ in range(_TIMES):
                    once(space, length)
                return (now() - start) / _TIMES

        return run

    return Figure(
        name="sparse",
        isa=isa,
        what=f"map {_RESERVED >> 40} TiB, touch {_TOUCHED >> 20} MiB, protect, fork, unmap",
        program="mm.mapping",
        floor_is="the same of a mapping of what is touched",
        unit="mapping",
        ours=measured(_RESERVED),
        floor=measured(_TOUCHED),
        repetitions=repetitions,
        goal=goal,
    )
