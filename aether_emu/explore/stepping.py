"""A scheduler that runs one step of a task at a time, and tells what each step touched.

A step is a system call, or one instruction that accesses memory with those before it that do not: what is in
registers concerns nobody else. While there is one task it runs freely. Memory is known by the object that a
page belongs to and the place in it, not by its frame, which depends on who touched what first.

A task that goes round a loop that stores nothing and finds nothing new (same registers at the same place)
waits until another one stores to what it read: going round again would change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from aether_emu.errors import AetherError, MachineError
from aether_emu.explore.schedule import Schedule, Steps
from aether_emu.linux.entry import Entry
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.task.scheduler import Interrupted, Scheduler
from aether_emu.linux.task.task import Task
from aether_emu.machine.cpu import ExitReason, UserFault
from aether_emu.machine.memory.aperture import ApertureFile

_ENDLESS = 1 << 40
_UNIT_SHIFT = 2  # memory is told in units of 4 bytes
_PRETOUCHED = 512  # pages
_OF_ITSELF = {"sched_yield", "getpid", "gettid", "getppid", "getuid", "geteuid", "getgid", "getegid"}
MOST_STEPS = 20_000
"""Steps of one run while there are several tasks."""

Unit = tuple[int, int, int]
"""Memory: the owner of a page (an object's number), the page in it, and the unit in that."""


class Livelock(AetherError):
    """Every task that can run goes round a loop, waiting for what another one would have to store."""


class TooLong(AetherError):
    """A run has more steps than are looked at."""


class Abandoned(Exception):
    """The run is no use any more: what it would show is known."""


@dataclass(slots=True)
class Event:
    """What one step of a task did. `calls`: it made a system call that others may notice. `unknown`: it
    touched memory that no object owns. `ends`: its process ended with it, before what others of it would have
    done. `enabled_by` is the step that let the task go on, if one did.
    """

    task: int
    reads: set[Unit] = field(default_factory=set)
    writes: set[Unit] = field(default_factory=set)
    calls: bool = False
    unknown: bool = False
    ends: bool = False
    enabled_by: int | None = None

    def depends(self, other: Event) -> bool:
        """Whether the order of the two may matter. All calls that others may notice depend on each other."""
        if self.ends or other.ends:
            return True
        if (
            (self.calls and other.calls)
            or (self.unknown and other.touches)
            or (other.unknown and self.touches)
        ):
            return True
        mine, theirs = self.writes, other.writes
        return not (
            mine.isdisjoint(other.reads) and mine.isdisjoint(theirs) and theirs.isdisjoint(self.reads)
        )

    @property
    def touches(self) -> bool:
        """Whether it touched any memory, or made a call."""
        return bool(self.calls or self.unknown or self.reads or self.writes)


@dataclass(slots=True)
class _Loop:
    """What a task has seen since it last stored: places with its registers there, and what it has read."""

    seen: dict[int, Any] = field(default_factory=dict)
    reads: set[Unit] = field(default_factory=set)
    spins: bool = False


Choose = Callable[[Sequence[int], list[Event]], int]
"""Which task makes the next step: of these, which can, after those steps."""


class Followed:
    """Chooses as a schedule says; behind its end, and where it cannot, as `by_itself`."""

    def __init__(self, steps: Iterable[Steps]) -> None:
        self._tasks = [one.task for one in steps for _ in range(min(one.count, MOST_STEPS))]

    def __call__(self, ready: Sequence[int], events: list[Event]) -> int:
        """See `Choose`."""
        at = len(events)
        wanted = self._tasks[at] if at < len(self._tasks) else -1
        return wanted if wanted in ready else by_itself(ready, events)


def by_itself(ready: Sequence[int], events: list[Event]) -> int:
    """The task that made the last step, as long as it can go on; else that with the lowest number."""
    last = events[-1].task if events else -1
    return last if last in ready else ready[0]


def in_steps(events: Iterable[Event]) -> Schedule:
    """The schedule that makes these steps again."""
    return Schedule(tuple(Steps(task, len(list(run))) for task, run in groupby(one.task for one in events)))


class SteppingScheduler(Scheduler):
    """As `Scheduler`, but `choose` says whose step is next. `events` has the steps so far."""

    def __init__(
        self,
        kernel: Kernel,
        entries: Sequence[Entry],
        *,
        choose: Choose,
        pause: Callable[[], None],
        lost_pages: Callable[[], list[tuple[ApertureFile, int]]],
    ) -> None:
        if len(entries) > 1:
            raise MachineError("--exhaustive interleaves the tasks of one CPU: leave --cpus out")
        super().__init__(kernel, entries, pause=pause, lost_pages=lost_pages)
        self._choose = choose
        self.events: list[Event] = []
        self._event = Event(0)
        self._enabled: set[int] = set()
        self._enabled_by: dict[int, int] = {}
        self._loops: dict[int, _Loop] = {}
        self._reservations: dict[int, tuple[tuple[int, ...], Unit | None]] = {}
        self._shared: set[Unit] | None = None  # what others have touched, of whom none is left
        self._ready = False
        cpu = entries[0].cpu
        self._cpu, halting = cpu, cpu.halting
        assert halting is not None, "this CPU has one"
        self._halting = halting
        self._frames = kernel.physical.frames
        self._watch_copies()
        kernel.observers.attach(call_entered=self._called)

    # ---- who is next

    def _next(self) -> Task | None:
        first = super()._next()
        if first is None:
            return None
        self._line.put_first(first)
        can = {task.tid: task for task in self._queue if not task.is_over and task.can_go_on()}
        if len(self._tasks) == 1 and not self.events:
            chosen = first
        else:
            self._prepare()
            ready = sorted(tid for tid in can if not (tid in self._loops and self._loops[tid].spins))
            if not ready:
                if self._sleepers.heap or self._of_host:
                    return None
                raise Livelock(f"livelock: {len(can)} tasks only wait in loops for what none of them stores")
            for tid in ready:
                if tid not in self._enabled and self.events:
                    self._enabled_by[tid] = len(self.events) - 1
            self._enabled = set(ready)
            if len(self.events) >= MOST_STEPS:
                raise TooLong(f"a run has more than {MOST_STEPS:,} steps while there are several tasks")
            chosen = can[self._choose(ready, self.events)]
        self._queue.remove(chosen)
        return chosen

    def _prepare(self) -> None:
        """There is a second task: give pages frames of their own, so that it is known which they are."""
        if self._ready:
            return
        self._ready = True
        task, left = self.entry.task, _PRETOUCHED
        size = task.process.mm.page_size
        for area in task.process.areas:
            if "w" not in area.permissions:
                continue
            for page in range(area.start, area.end, size):
                left -= 1
                if left < 0:
                    return
                with suppress(UserFault):
                    self._cpu.copy_to_user(page, self._cpu.copy_from_user(page, 1))

    # ---- a step

    def _let_run(self, task: Task, limit: int | None) -> bool:
        if len(self._tasks) == 1 and not self.events:
            return super()._let_run(task, limit)
        event = self._event = Event(task.tid, enabled_by=self._enabled_by.pop(task.tid, None))
        waited = task.wait is not None
        event.calls = waited
        try:
            reached = super()._let_run(task, limit)
        finally:
            event.ends = task.process.is_over
            if event.touches or len(self._tasks) > 1:
                self.events.append(event)
        self._learn(task, event)
        return reached

    def _is_alone(self, _task: Task) -> bool:
        return False  # each turn is looked at

    def _turn(self, task: Task, limit: int | None) -> bool:
        if len(self._tasks) == 1 and not self.events:
            return super()._turn(task, limit)
        if self._event.calls:  # the call that it waited in is its step
            return False
        held = self._reservations.pop(task.tid, None)
        if held is not None:
            self._cpu.reserve(held[0])
        if len(self._tasks) > 1:
            self._shared = None
        elif self._shared is None:
            self._shared = set[Unit]().union(
                *(one.reads | one.writes for one in self.events if one.task != task.tid)
            )
        self._halting.step(_ENDLESS, self._told)
        ended = self.entry.run(None)
        reservation = self._cpu.reservation()
        if reservation and not reservation[0] >> 56 and task.wait is None and not task.is_over:
            self._reservations[task.tid] = reservation, self._unit_of(reservation[0])
        if ended.reason is ExitReason.INTERRUPTED:
            raise Interrupted
        if ended.reason is not ExitReason.STOPPED:
            raise MachineError(f"a step ended by {ended.reason.value}: --exhaustive cannot go on from there")
        return False

    def _told(self, store: bool, physical: int, size: int, _value: int) -> None:
        """An instruction is about to access memory: the step ends behind it.

        Of who is left alone only what others have touched before is a step.
        """
        if self._note(store, physical, size):
            self._halting.step(0, self._told)

    def _called(self, call: Any) -> None:
        self._event.calls = self._event.calls or call.name not in _OF_ITSELF
        if len(self._tasks) > 1 or self.events:
            self._cpu.stop()

    def _note(self, store: bool, physical: int, size: int) -> bool:
        """An access of the step at hand. Whether it concerns others."""
        units, concerns = self._event.writes if store else self._event.reads, self._shared is None
        for unit in range(physical >> _UNIT_SHIFT, (physical + max(size, 1) - 1 >> _UNIT_SHIFT) + 1):
            known = self._unit(unit << _UNIT_SHIFT)
            if known is not None and (self._shared is None or known in self._shared):
                units.add(known)
                concerns = True
            elif known is None and self._shared is None:
                self._event.unknown = True
        return concerns

    def _unit(self, physical: int) -> Unit | None:
        frames = self._frames
        inside = (physical & (1 << frames.page_shift) - 1) >> _UNIT_SHIFT
        frame = physical - frames.base >> frames.page_shift
        if not 0 <= frame < frames.count:
            return -1, physical >> frames.page_shift, inside  # of a host's file
        owner = frames.owner[frame]
        return (owner, frames.index[frame], inside) if owner else None

    def _unit_of(self, va: int) -> Unit | None:
        physical = self._physical_of(va)
        return None if physical is None else self._unit(physical)

    def _physical_of(self, va: int) -> int | None:
        table = self.entry.task.process.mm.table
        found = table.find(va)
        if found is None or not found.entry & table.format.present_mask:
            return None
        return table.format.leaf_address(found.entry, found.level) + va - found.start

    def _watch_copies(self) -> None:
        """The kernel's own accesses, inside calls, are the step's too."""
        cpu = self._cpu
        read, write = cpu.copy_from_user, cpu.copy_to_user

        def noted(va: int, length: int, store: bool) -> None:
            if len(self._tasks) > 1 or self.events:
                for at in range(va & -4, va + length, 4):
                    physical = self._physical_of(at)
                    if physical is not None:
                        self._note(store, physical, 1)

        def copy_from_user(va: int, length: int) -> bytes:
            found = read(va, length)
            noted(va, length, False)
            return found

        def copy_to_user(va: int, data: bytes | bytearray | memoryview) -> None:
            write(va, data)
            noted(va, len(data), True)

        cpu.copy_from_user = copy_from_user  # type: ignore[method-assign]  # of this one object
        cpu.copy_to_user = copy_to_user  # type: ignore[method-assign]  # likewise

    # ---- loops, and reservations of exclusive stores

    def _learn(self, task: Task, event: Event) -> None:
        for tid, (_held, unit) in list(self._reservations.items()):
            if tid != task.tid and (event.unknown or unit is None or unit in event.writes):
                del self._reservations[tid]
        for tid, loop in self._loops.items():
            if tid != task.tid and (event.unknown or not event.writes.isdisjoint(loop.reads)):
                self._loops[tid] = _Loop()
        if event.writes or event.calls or event.unknown or task.is_over or not task.running:
            self._loops.pop(task.tid, None)
            return
        loop = self._loops.setdefault(task.tid, _Loop())
        loop.reads |= event.reads
        pc = self._cpu.pc
        if pc not in loop.seen:
            loop.seen[pc] = None
            return
        registers = self._cpu.registers()
        loop.spins = loop.seen[pc] == registers
        loop.seen[pc] = registers
