"""Breakpoints, steps and watched memory of a program, and what a run returns when it stops for them.

While there is none of them the CPU calls the kernel directly; the first one puts a `Debugger` in between
(`Entry.debug`), which sees every fault, trap and call come and go.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NoReturn

from aether_emu.arch.paging import Access
from aether_emu.errors import AddressError, MachineError
from aether_emu.linux.entry import Entry
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
    `access` is what was seen, if that is why.
    """

    reason: Why
    task: Task
    pc: int
    access: AccessSeen | None = None

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
        return f"stopped at {self.pc:#x} by {self.reason.value}{seen}"


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
    """What one CPU's program is to be stopped or looked at for."""

    def __init__(self, entry: Entry) -> None:
        self._entry, self._cpu = entry, entry.cpu
        self._breaks: dict[int, tuple[HaltHandler | None, ...]] = {}
        self._watching = Watching(entry)
        self._stepping = False
        self._left_to_step: int | None = None  # what `look` interrupted

    @property
    def _halting(self) -> Halting:
        halting = self._cpu.halting
        if halting is None:
            raise MachineError(f"{self._cpu!r} cannot halt in front of instructions")
        return halting

    def _settle(self) -> None:
        """Stand before the CPU as long as there is a reason."""
        needed = bool(self._breaks or self._watching.watches or self._stepping)
        if needed and self._entry.debugger is None:
            self._halting.on_halt = self._halted
            self._entry.debug(self)
        elif not needed and self._entry.debugger is not None:
            self._watching.lift()
            self._entry.debug(None)

    # ---- what to stop for

    def break_at(self, va: int, handler: HaltHandler | None) -> Attachment:
        """Stop in front of the instruction at `va`, or call `handler` there and go on."""
        if handler is not None:
            require_callable(handler)
        if not 0 <= va < 1 << 64:
            raise AddressError("address of an instruction", va, "it has 64 bits")
        if va not in self._breaks:
            self._halting.break_at(va)
        self._breaks[va] = (*self._breaks.get(va, ()), handler)
        self._settle()

        def detach() -> None:
            left = list(self._breaks[va])
            left.remove(handler)
            self._breaks[va] = tuple(left)
            if not left:
                del self._breaks[va]
                if not self._entry.kernel.closed:
                    self._halting.unbreak(va)
            self._settle()

        return Attachment(detach)

    def watch(self, start: int, length: int, handler: AccessHandler | None, kinds: Access) -> Attachment:
        """Tell `handler` of each access to a range, or stop behind it."""
        if handler is not None:
            require_callable(handler)
        mm = self._entry.task.process.mm
        if length <= 0 or not 0 <= start <= start + length <= mm.limits.user_end:
            raise AddressError("range of a program", start, f"{length} bytes from there")
        if (length + mm.page_size - 1) // mm.page_size >= _MOST_PAGES:
            raise MachineError(f"at most {_MOST_PAGES} pages can be watched, not {length} bytes")
        watch = Watch(start, start + length, kinds, handler or self._stop_for)
        watching = self._watching
        assert self._halting is not None, "it raises"
        watching.lift()
        watching.watches = (*watching.watches, watch)
        self._settle()
        self._arm_if_running()

        def detach() -> None:
            watching.lift()
            left = list(watching.watches)
            left.remove(watch)
            watching.watches = tuple(left)
            self._arm_if_running()
            self._settle()

        return Attachment(detach)

    def _arm_if_running(self) -> None:
        """A handler changed what is watched: it is armed when the program goes on, behind the next halt."""
        if self._entry.kernel.observers.running and not self._watching.looking and self._watching.watches:
            self._halt_next()

    def _halt_next(self, *, begun: bool = True, told: Told | None = None) -> bool:
        """Halt behind the instruction at pc, which may not have begun; whether it executes at all before."""
        left = self._halting.steps_left
        if not begun and left == 0:
            return False
        if self._left_to_step is None:
            self._left_to_step = left if begun or left is None else left - 1
            self._halting.step(0 if begun else 1, told)
        return True

    def begin_steps(self, count: int) -> None:
        """Stop after `count` instructions of the next run."""
        self._stepping = True
        self._settle()
        self._halting.step(count)

    def end_steps(self) -> None:
        """The run is over, for whatever reason."""
        self._stepping = False
        self._halting.end_steps()
        self._settle()

    def stop(self, why: Why = Why.ASKED, access: AccessSeen | None = None) -> None:
        """End the run as soon as the CPU is left."""
        self._entry.kernel.observers.end_run(self._pause(why, access))

    def asked(self) -> Pause:
        """What ends a run that `stop` of another thread has ended already, with the CPU left."""
        return self._pause(Why.ASKED, None)

    def _pause(self, why: Why, access: AccessSeen | None) -> Pause:
        task = self._entry.task
        return Pause(Stopped(why, task, task.cpu.pc, access))

    def _stop_for(self, access: AccessSeen) -> None:
        self.stop(Why.ACCESS, access)

    # ---- between the CPU and the kernel

    def run(self, budget: int | None) -> Exit:
        """Run with watched pages armed; the kernel finds them as it left them."""
        self._watching.arm()
        try:
            return self._entry.percpu.run(budget)
        finally:
            self._watching.lift()

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
                self._halting.made_again(begun=begun, uncounted=ours and begun)  # a fetch enters no block
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
        watching, halting, task = self._watching, self._halting, self._entry.task
        watching.lift()
        left = halting.steps_left
        if left == 0 and (watching.looking or not self._stepping or self._left_to_step is not None):
            left, self._left_to_step = self._left_to_step, None
            halting.end_steps()
            if left is not None:
                halting.step(left)
        for watch, access in watching.done():
            self._call(lambda told=watch.told, seen=access: told(seen))  # type: ignore[misc]  # bound now
        pc = task.cpu.pc
        for handler in self._breaks.get(pc, ()):
            if handler is None:
                self.stop(Why.BREAKPOINT)
            else:
                self._call(lambda asked=handler: asked(Halt(task, pc)))  # type: ignore[misc]  # likewise
        if self._stepping and left == 0:
            self.stop(Why.STEP)
        watching.arm()

    def _call(self, handler: Callable[[], object]) -> None:
        try:
            handler()
        except BaseException as raised:
            self._entry.kernel.observers.end_run(raised)
