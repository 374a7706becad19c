"""The demand-zero fault: `touch` on the machine beside a callback that only writes a prepared entry.

`touch PAGES 2` writes every page, then asks for the pages to be dropped (madvise), then writes
them again. Neither side drops them: the answer comes from here. So the second round is the same
loop without faults, and what the first round took beyond it is the price of the faults.

    mmap returns --[ PAGES faults + loop ]-- madvise --[ loop ]-- madvise

In `fault` each fault of either side is the first touch of its host page, which costs more than the
floor's callback and so flatters the ratio. In `fault-resident` the host pages are there before.
"""

from __future__ import annotations

from collections.abc import Callable

from aether_emu.machine.floors import bare as floors
from aether_emu.machine.memory.ram import Ram
from aether_emu.mm.counters import Event
from aether_emu.observe.bench import guests
from aether_emu.observe.bench.figure import BenchError, Figure, collector_off, now

_ROUNDS = 2
_BESIDE = 32 << 20  # RAM for everything but the pages written, in bytes


class Windows:
    """Wraps a system-call callback: notes the time at mmap and madvise, and lets madvise do nothing."""

    def __init__(self, isa: str, kernel: floors.SystemCall) -> None:
        self._kernel = kernel
        self._mmap, self._madvise = guests.numbers(isa, "mmap", "madvise")
        self.marks: list[float] = []

    def __call__(self, number: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int | None:
        if number == self._madvise:
            self.marks.append(now())
            return 0
        result = self._kernel(number, a, b, c, d, e, f)
        if number == self._mmap:
            self.marks.append(now())
        return result

    def per_fault(self, pages: int) -> float:
        """CPU seconds for each fault."""
        if len(self.marks) != 1 + _ROUNDS:
            raise BenchError(f"touch: {len(self.marks)} marks instead of {1 + _ROUNDS}")
        mapped, first, second = self.marks
        return (first - mapped - (second - first)) / pages


def figure(
    isa: str, goal: float, *, resident: bool = False, pages: int = 16_384, repetitions: int = 9
) -> Figure:
    """The figure for first writes to `pages` pages, of fresh or of `resident` host memory."""
    arguments = (pages, _ROUNDS)
    printed: dict[str, bytes] = {}
    program = guests.command("touch", arguments)

    def ours() -> float:
        ram = pages * floors.PAGE + _BESIDE
        with guests.on_machine(isa, "touch", arguments, ram=ram) as loaded:
            if resident:
                _touch(loaded.machine.ram)
            counts, cpu = loaded.machine.physical.counters.n, loaded.machine.cpu
            before = counts[Event.FAULT_DEMAND_ZERO]
            windows = Windows(isa, cpu.on_system_call)
            cpu.on_system_call = windows
            with collector_off():
                loaded.run()
            if counts[Event.FAULT_DEMAND_ZERO] - before < pages:
                raise BenchError(f"{program}: fewer faults than pages")
            printed["ours"] = loaded.output
            return windows.per_fault(pages)

    return Figure(
        name="fault-resident" if resident else "fault",
        isa=isa,
        what=f"demand-zero fault by a guest's write, {'resident' if resident else 'fresh'} host memory",
        program=program,
        floor_is="a bare interrupt hook that writes a prepared entry",
        unit="fault",
        ours=ours,
        floor=_floor(isa, pages, resident, printed),
        repetitions=repetitions,
        goal=goal,
    )


def _floor(isa: str, pages: int, resident: bool, printed: dict[str, bytes]) -> Callable[[], float]:
    arguments = (pages, _ROUNDS)
    program = guests.for_floor(isa, "touch")

    def run() -> float:
        floor = guests.PAGED[isa](
            program, guests.encoded("touch", arguments), floors.FREE + pages * floors.PAGE
        )
        try:
            if resident:
                _touch(floor.ram)
            kernel = guests.LeastKernel(isa, guests.reader(floor))
            windows = Windows(isa, kernel)
            floor.on_system_call = windows
            floor.serve_faults(floors.FREE, pages)
            with collector_off():
                floor.run()
            if floor.prepared:
                raise BenchError(f"touch: {len(floor.prepared)} of {pages} prepared entries are left")
            guests.same_output(guests.command("touch", arguments), printed["ours"], bytes(kernel.output))
            return windows.per_fault(pages)
        finally:
            floor.close()

    return run


def _touch(ram: Ram) -> None:
    """Make every host page of RAM resident, its content unchanged."""
    ram.array[:: floors.PAGE // 8] |= 0
