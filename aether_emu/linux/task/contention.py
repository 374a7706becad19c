"""Which operations take which locks, and how CPUs wait for them in virtual time. Modelled: see `mm.locks`.

Faults and the calls that change an address space are wrapped when a machine is made with `locks`; without
it nothing of this is there. An operation is performed at once. Whether it would have had to wait is known
when no CPU can ask for a lock at an earlier time any more: until then its CPU is held, as by a shootdown, and
others work. So locks are asked for in the order of virtual time, whatever turns the scheduler draws.

A call that has others drop translations holds its locks until they have acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aether_emu.config import ClockCosts
from aether_emu.linux.task.lines import Lines
from aether_emu.machine.cpu import Cpu
from aether_emu.mm.allocation import Area
from aether_emu.mm.frames.locked import CountedBuddy
from aether_emu.mm.locks import Locks, Step
from aether_emu.mm.percpu import PerCpu
from aether_emu.mm.physical import Physical
from aether_emu.mm.space import AddressSpace
from aether_emu.records import dataclass

Call = Callable[..., int | None]
_EDITS = ("brk", "mlock", "mlock2", "mmap", "mprotect", "mremap", "munlock", "munmap", "shmat", "shmdt")
_FORKS = ("clone", "clone3", "fork")
_ZAPS = (4, 8, 9, 14, 15, 20, 21)  # advice that leaves areas as they are (madvise(2)): DONTNEED, FREE, ...
_FIXED = 0x10 | 0x100000  # MAP_FIXED, MAP_FIXED_NOREPLACE
_MANY = 64  # leaf tables: of a longer range only those count that somebody has locked before


@dataclass(slots=True)
class _Request:
    """An operation whose locks are not decided yet. Times in ns, without waiting for locks."""

    cpu: int
    number: int
    begun: int
    ended: int
    steps: Sequence[Step]


class Contention:
    """Between memory management and the lines of tasks: `lines` is None where there is one CPU.

    `now` is the time of the CPU that works, and `advance` lets time pass for it. `scheme` is one of
    `mm.locks`.
    """

    def __init__(
        self,
        scheme: str,
        lines: Lines[Any, Any] | None,
        cpus: Sequence[Cpu],
        physical: Physical,
        now: Callable[[], int],
        advance: Callable[[int], None],
        costs: ClockCosts,
    ) -> None:
        assert isinstance(physical.buddy, CountedBuddy), "nothing counts its lock"
        self.scheme, self.locks = scheme, Locks(costs)
        self._lines, self._cpus, self._buddy = lines, cpus, physical.buddy
        self._now, self._advance, self._costs = now, advance, costs
        self._requests: list[_Request] = []
        self._asked = 0
        self._inside = False  # an operation is on its way: what it does itself is part of it
        self._leave, physical.leave = physical.leave, self._left
        if lines is not None:
            lines.grant = self.grant

    def _left(self, space: AddressSpace) -> None:
        """An address space is about to be destroyed."""
        self._leave(space)
        self.locks.forget(space.number)

    # ---- operations

    def around_fault(self, percpu: PerCpu) -> Callable[[int, int], Any]:
        """The fault function of a CPU, with the locks around it."""
        decide, buddy = percpu.fault, self._buddy

        def fault(va: int, access: int) -> Any:
            if self._inside:
                return decide(va, access)
            space = percpu.space
            begun, tables, touched = self._now(), space.table.tables, buddy.touched
            outcome = decide(va, access)
            touched = buddy.touched - touched
            self._over(percpu.index, begun, self._of_fault(space, va, touched, space.table.tables - tables))
            return outcome

        return fault

    def around_calls(self, table: list[Call | None], names: dict[int, str], index: int) -> list[Call | None]:
        """The table of system calls for CPU `index`, with the locks around those that take any."""
        wrapped = list(table)
        for number, name in names.items():
            if name in (*_EDITS, *_FORKS, "madvise") and table[number] is not None:
                wrapped[number] = self._around(table, number, name, index)
        return wrapped

    def _around(self, table: list[Call | None], number: int, name: str, index: int) -> Call:
        def call(task: Any, *arguments: int) -> int | None:
            made = table[number]
            assert made is not None, "it has been there"
            if self._inside:
                return made(task, *arguments)
            space, before = task.process.mm, task.process.mm.heap_end
            begun, touched = self._now(), self._buddy.touched
            self._inside = True
            try:
                result = made(task, *arguments)
            finally:
                self._inside = False
            touched = self._buddy.touched - touched
            if name in _FORKS:
                steps = self._of_fork(task, space, result)
            else:
                steps = self._of_edit(space, name, arguments, before, result)
            if steps:
                self._over(index, begun, [*steps, *self._frames(touched)])
            return result

        return call

    def _frames(self, touched: int) -> list[Step]:
        return [Step("frames", 0, self._costs.frame_list)] * touched

    def _of_fault(self, space: AddressSpace, va: int, touched: int, tables: int) -> list[Step]:
        frames, number = self._frames(touched), space.number
        if self.scheme == "space":
            return [Step("space", number), *frames]
        area: Area = space.last_area
        inner = [Step("table", (number, va >> self._span(space)), self._costs.table_edit)]
        if tables:
            inner.insert(0, Step("upper", number, self._costs.table_edit))
        return [Step("area", (number, area.start), shared=True), *frames, *inner]

    def _of_edit(
        self, space: AddressSpace, name: str, arguments: Sequence[int], heap: int, result: int | None
    ) -> list[Step]:
        """Those of a call that changes areas, or takes pages away."""
        number, first, second, third = space.number, *arguments[:3]
        zaps = name == "madvise" and third in _ZAPS
        self._advance(self._costs.table_edit if zaps else self._costs.area_edit)
        if self.scheme == "space":
            return [Step("space", number)]
        ranges = [(first, first + second)]
        if name == "brk":
            ranges = [(min(heap, space.heap_end), max(heap, space.heap_end))]
        elif name in ("mmap", "mremap", "shmat"):
            where, length = result or 0, third if name == "mremap" else second
            ranges = [(first, first + second)] if name == "mremap" else []
            if where > 0:
                ranges.append((where, where + length))
        tables = sorted({each for start, end in ranges for each in self._tables(space, start, end)})
        if self.scheme == "area":
            gone = name in ("munmap", "mremap", "mprotect", "madvise")
            inner = [Step("table", (number, each), self._costs.table_edit) for each in tables] if gone else []
            return [Step("space", number, shared=zaps), *inner]
        placed = name in ("mremap", "shmat") or (name == "mmap" and not arguments[3] & _FIXED)
        chosen = [Step("space", number, self._costs.area_find)] if placed else []
        return [*chosen, *(Step("table", (number, each)) for each in tables)]

    def _of_fork(self, task: Any, space: AddressSpace, result: int | None) -> list[Step]:
        """Those of a call that has copied the address space; none where the new task shares it."""
        child = task.process.registry.processes.get(result)
        if child is None or child.released or child.mm is space:
            return []  # released: the call had waited for its end (CLONE_VFORK)
        pages = sum(child.mm.resident().values())
        self._advance(self._costs.area_edit + pages * self._costs.fork_page)
        if self.scheme != "leaf":
            return [Step("space", space.number)]
        tables = self.locks.known("table", space.number)
        share = pages * self._costs.fork_page // max(1, len(tables))
        return [Step("table", (space.number, each), share) for each in tables]

    @staticmethod
    def _span(space: AddressSpace) -> int:
        """The bits of an address below those that choose a leaf table."""
        fmt = space.table.format
        return fmt.page_shift + fmt.levels[0].bits

    def _tables(self, space: AddressSpace, start: int, end: int) -> Sequence[int]:
        """The leaf tables of a range, by number."""
        first, last = start >> self._span(space), max(start, end - 1) >> self._span(space)
        if last - first < _MANY:
            return range(first, last + 1)
        return [each for each in self.locks.known("table", space.number) if first <= each <= last]

    # ---- time

    def _over(self, index: int, begun: int, steps: Sequence[Step]) -> None:
        """An operation of the CPU that works is over, but for the locks."""
        ended, lines = self._now(), self._lines
        self._asked += 1
        request = _Request(index, self._asked, begun, ended, steps)
        if lines is None:
            self._advance(self.locks.perform(index, begun, ended - begun, steps) - ended)
            return
        self._requests.append(request)
        lines.held[index] += 1
        lines.holding += 1
        if lines.held[index] == 1 and self._is_next(request, lines, working=index):
            self._decide(request, lines)
        else:
            self._cpus[index].stop()

    def _is_next(self, request: _Request, lines: Lines[Any, Any], working: int | None = None) -> bool:
        """Whether nobody can ask for a lock at an earlier time any more."""
        first = min(self._requests, key=lambda each: (each.begun, each.number))
        if request is not first:
            return False
        return all(
            lines.times[index] >= request.begun
            for index, line in enumerate(lines.lines)
            if len(line) and not lines.held[index] and index != working
        )

    def grant(self) -> None:
        """Decide the requests whose turn has come: the CPU that works does not execute now."""
        lines = self._lines
        assert lines is not None, "one CPU waits for nobody"
        while self._requests:
            request = min(self._requests, key=lambda each: (each.begun, each.number))
            own = sum(each.cpu == request.cpu for each in self._requests)
            if lines.held[request.cpu] > own or not self._is_next(request, lines):
                return  # others acknowledge its shootdown first, or may ask earlier
            self._decide(request, lines)

    def _decide(self, request: _Request, lines: Lines[Any, Any]) -> None:
        """Let its CPU go on when it has had its locks."""
        index = request.cpu
        self._requests.remove(request)
        later = [each for each in self._requests if each.cpu == index]
        here = self._now() if index == lines.at else lines.times[index]
        ended = request.ended if later else here  # a shootdown may have taken time since
        waited = self.locks.perform(index, request.begun, ended - request.begun, request.steps) - ended
        for each in later:
            each.begun += waited
            each.ended += waited
        lines.held[index] -= 1
        lines.holding -= 1
        if index == lines.at:
            self._advance(waited)
        lines.times[index] = here + waited
