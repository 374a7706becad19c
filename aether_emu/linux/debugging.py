"""Breakpoints, steps and watched memory of a program, and what a run returns when it stops for them.

While there is none of them the CPU calls the kernel directly; the first one puts a `Debugger` in between
(`Entry.debug`), which sees every fault, trap and call come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NoReturn

from aether_emu.arch.paging import Access
from aether_emu.errors import AddressError, MachineError
from aether_emu.linux.entry import Entry
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.observers import Attachment, require_callable
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.registers import Registers
from aether_emu.linux.task.scheduler import Pause
from aether_emu.linux.task.task import Task
from aether_emu.linux.watching import AccessSeen, Watch, Watching
from aether_emu.machine.cpu import Cpu, Exit, Trap
from aether_emu.machine.halting import Halting, Told
from aether_emu.records import dataclass

_MOST_PAGES = 4096
_NOWHERE = -1, -1


class Why(Enum):
    """Why a run stopped before the program's end."""

    BREAKPOINT = "a breakpoint"
    STEP = "the end of a step"
    ACCESS = "an access to watched memory"
    ASKED = "a call of stop()"


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run stopped before the program's end; another one goes on from there.

    `reason` is why, `task` the thread that ran, `pc` the virtual address of the instruction that is next.
    `access` is what was seen, if that is why. `cpu` is the number of the CPU that it ran on; None where there
    is only one.
    """

    reason: Why
    task: Task
    pc: int
    access: AccessSeen | None = None
    cpu: int | None = None

    @property
    def process(self) -> Process:
        """The program, which can be looked at and changed now."""
        return self.task.process

    def _refuse(self) -> NoReturn:
        raise MachineError(f"the program has not ended: {self}; another run goes on")

    @property
    def status(self) -> int:
        """An `Ended` has one. Raises MachineError, as `code`, `signal` and `why` do."""
        self._refuse()

    @property
    def code(self) -> int:
        self._refuse()

    @property
    def signal(self) -> int:
        self._refuse()

    @property
    def why(self) -> str:
        self._refuse()

    def __str__(self) -> str:
        seen = f" ({self.access})" if self.access is not None else ""
        where = "" if self.cpu is None else f", in task {self.task.tid} on CPU {self.cpu}"
        return f"stopped at {self.pc:#x} by {self.reason.value}{seen}{where}"


@dataclass(frozen=True, slots=True)
class Halt:
    """What a breakpoint's handler gets: the task, and the instruction that it is about to execute."""

    task: Task
    pc: int

    @property
    def process(self) -> Process:
        """Whose task it is."""
        return self.task.process

    @property
    def registers(self) -> Registers:
        """Its registers, to be read and set."""
        return Registers(self.process.abi.isa, self.task, self.process.kernel.require_open)


HaltHandler = Callable[[Halt], object]
AccessHandler = Callable[[AccessSeen], object]


class Debugger:
    """What the programs of a machine are to be stopped or looked at for, whichever CPU they come by on."""

    def __init__(self, kernel: Kernel, entries: Sequence[Entry]) -> None:
        self._kernel = kernel
        self.breaks: dict[int, tuple[HaltHandler | None, ...]] = {}
        self._watches: tuple[Watch, ...] = ()
        self.places: dict[Task, tuple[int, int]] = {}  # see `Halting.place`
        self.stepped: Task | None = None
        self.steps = 0  # instructions that it has left
        self._standings = [Standing(self, entry) for entry in entries]

    def _settle(self) -> None:
        """Stand before the CPUs as long as there is a reason."""
        needed = bool(self.breaks or self._watches or self.stepped)
        for standing in self._standings:
            standing.stand(needed)
        if not needed:
            self.places.clear()

    # ---- what to stop for

    def break_at(self, va: int, handler: HaltHandler | None) -> Attachment:
        """Stop in front of the instruction at `va`, or call `handler` there and go on."""
        if handler is not None:
            require_callable(handler)
        if not 0 <= va < 1 << 64:
            raise AddressError("address of an instruction", va, "it has 64 bits")
        if va not in self.breaks:
            for standing in self._standings:
                standing.halting.break_at(va)
        self.breaks[va] = (*self.breaks.get(va, ()), handler)
        self._settle()

        def detach() -> None:
            left = list(self.breaks[va])
            left.remove(handler)
            self.breaks[va] = tuple(left)
            if not left:
                del self.breaks[va]
                if not self._kernel.closed:
                    for standing in self._standings:
                        standing.halting.unbreak(va)
            self._settle()

        return Attachment(detach)

    def watch(self, start: int, length: int, handler: AccessHandler | None, kinds: Access) -> Attachment:
        """Tell `handler` of each access to a range, or stop behind it."""
        if handler is not None:
            require_callable(handler)
        mm = self._kernel.entry.task.process.mm
        if length <= 0 or not 0 <= start <= start + length <= mm.limits.user_end:
            raise AddressError("range of a program", start, f"{length} bytes from there")
        if (length + mm.page_size - 1) // mm.page_size >= _MOST_PAGES:
            raise MachineError(f"at most {_MOST_PAGES} pages can be watched, not {length} bytes")
        watch = Watch(start, start + length, kinds, handler or self._stop_for)
        self._watch_for((*self._watches, watch))

        def detach() -> None:
            left = list(self._watches)
            left.remove(watch)
            self._watch_for(tuple(left))

        return Attachment(detach)

    def _watch_for(self, watches: tuple[Watch, ...]) -> None:
        self._watches = watches
        for standing in self._standings:
            standing.watch_for(watches)
        self._settle()
        if self._kernel.observers.running:
            self._standings[self._kernel.entry.percpu.index].arm_soon()

    def begin_steps(self, count: int, task: Task) -> None:
        """Stop after `count` instructions of a task in the next run."""
        self.stepped, self.steps = task, count
        self._settle()

    def end_steps(self) -> None:
        """The run is over, for whatever reason."""
        self.stepped = None
        self._settle()

    def stop(self, why: Why = Why.ASKED, access: AccessSeen | None = None) -> None:
        """End the run as soon as the CPU is left."""
        self._kernel.observers.end_run(self._pause(why, access))

    def asked(self) -> Pause:
        """What ends a run that `stop` of another thread has ended already, with the CPU left."""
        return self._pause(Why.ASKED, None)

    def _pause(self, why: Why, access: AccessSeen | None) -> Pause:
        entry = self._kernel.entry
        task: Task = entry.task
        number = entry.percpu.index if len(self._standings) > 1 else None
        return Pause(Stopped(why, task, task.cpu.pc, access, number))

    def _stop_for(self, access: AccessSeen) -> None:
        self.stop(Why.ACCESS, access)


class Standing:
    """Stands between one CPU and the kernel."""

    def __init__(self, debugger: Debugger, entry: Entry) -> None:
        self._debugger, self._entry, self._cpu = debugger, entry, entry.cpu
        self._watching = Watching(entry)
        self._counting = False  # whether the steps are counted that the debugger asks for
        self._left_to_step: int | None = None  # what `look` interrupted
        self._unbegun = 0  # instructions in it that have not begun

    @property
    def halting(self) -> Halting:
        """Raises MachineError."""
        halting = self._cpu.halting
        if halting is None:
            raise MachineError(f"{self._cpu!r} cannot halt in front of instructions")
        return halting

    def stand(self, needed: bool) -> None:
        """Stand there, or no more."""
        if needed and self._entry.debugger is None:
            self.halting.on_halt = self._halted
            self._entry.debug(self)
        elif not needed and self._entry.debugger is not None:
            self._watching.lift()
            self._entry.debug(None)

    def watch_for(self, watches: tuple[Watch, ...]) -> None:
        """These are watched from now on."""
        assert self.halting is not None, "it raises"
        self._watching.lift()
        self._watching.watches = watches

    def arm_soon(self) -> None:
        """A handler changed what is watched: it is armed when the program goes on, behind the next halt."""
        if not self._watching.looking and self._watching.watches:
            self._halt_next()

    def _halt_next(self, *, begun: bool = True, told: Told | None = None) -> bool:
        """Halt behind the instruction at pc, which may not have begun; whether it executes at all before."""
        left = self.halting.steps_left
        if not begun and left == 0:
            return False
        if self._left_to_step is None:
            self._unbegun = int(not begun and left is not None)
            self._left_to_step = None if left is None else left - self._unbegun
            self.halting.step(0 if begun else 1, told)
        return True

    # ---- between the CPU and the kernel

    def run(self, budget: int | None) -> Exit:
        """Run with watched pages armed; the kernel finds them as it left them.

        What the CPU knows of the task that runs goes with that, since others run here too.
        """
        debugger, halting, task = self._debugger, self.halting, self._entry.task
        halting.place = debugger.places.pop(task, _NOWHERE)
        self._begin_counting(task)
        self._watching.arm()
        try:
            return self._entry.percpu.run(budget)
        finally:
            self._watching.lift()
            self._watching.give_up()
            self._end_counting(task)
            if halting.place != _NOWHERE and not task.is_over:
                debugger.places[task] = halting.place

    def _begin_counting(self, task: Task) -> None:
        """If it is the one that is stepped. Where that one has ended, the run stops at once."""
        stepped = self._debugger.stepped
        self._counting = stepped is not None and (stepped is task or stepped.is_over)
        if self._counting:
            self.halting.step(self._debugger.steps if stepped is task else 0)

    def _end_counting(self, task: Task) -> None:
        left, interrupted = self.halting.steps_left, self._left_to_step
        if self._counting and task is self._debugger.stepped:
            if interrupted is not None:
                self._debugger.steps = interrupted + self._unbegun
            elif left is not None:
                self._debugger.steps = left
        self._left_to_step, self._counting = None, False
        self.halting.end_steps()

    def stand_before(self, cpu: Cpu) -> None:
        """Take the CPU's callbacks."""
        fault, resolve, call, trap = cpu.on_fault, cpu.resolve, cpu.on_system_call, cpu.on_trap
        watching = self._watching

        def debugged_fault(va: int, access: int) -> None:
            pc = cpu.pc
            watching.lift()
            watched = watching.watches_page(va)
            ours = watched and watching.permitted(va, access)
            if not ours:
                fault(va, access)
            if cpu.pc == pc:
                begun = not access & Access.EXECUTE
                self.halting.made_again(begun=begun, uncounted=ours and begun)  # a fetch enters no block
                if watching.looking:
                    watching.begin_again()
                    return
                if watched:
                    if self._halt_next(begun=begun, told=watching.note):
                        watching.look(va, access)
                    return
            watching.give_up()
            watching.arm()

        def debugged_resolve(va: int, access: int) -> bool:
            watching.lift()
            if watching.watches_page(va):
                self._halt_next()
                if watching.permitted(va, access):
                    return True
            return resolve(va, access)

        def debugged_call(number: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int | None:
            watching.lift()
            result = call(number, a, b, c, d, e, f)
            if not watching.looking:
                watching.arm()
            return result

        def debugged_trap(what: Trap) -> None:
            watching.lift()
            trap(what)
            if not watching.looking:
                watching.arm()

        cpu.on_fault, cpu.resolve = debugged_fault, debugged_resolve
        cpu.on_system_call, cpu.on_trap = debugged_call, debugged_trap

    def _halted(self) -> None:
        """The CPU has halted in front of the instruction at pc."""
        watching, halting, task = self._watching, self.halting, self._entry.task
        debugger = self._debugger
        watching.lift()
        left = halting.steps_left
        if left == 0 and (watching.looking or not self._counting or self._left_to_step is not None):
            left, self._left_to_step = self._left_to_step, None
            halting.end_steps()
            if left is not None:
                halting.step(left)
        for watch, access in watching.done():
            self._call(lambda told=watch.told, seen=access: told(seen))  # type: ignore[misc]  # bound now
        pc = task.cpu.pc
        for handler in debugger.breaks.get(pc, ()):
            if handler is None:
                debugger.stop(Why.BREAKPOINT)
            else:
                self._call(lambda asked=handler: asked(Halt(task, pc)))  # type: ignore[misc]  # likewise
        if self._counting and left == 0:
            debugger.stop(Why.STEP)
        watching.arm()

    def _call(self, handler: Callable[[], object]) -> None:
        try:
            handler()
        except BaseException as raised:
            self._entry.kernel.observers.end_run(raised)
