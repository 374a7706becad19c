"""One CPU's way into the kernel: faults, traps and system calls of the task that runs there.

    CPU --on_fault--> fault --Resolved--> guest goes on
                                \\-AccessError, BusError--> signals
                                 \\-OutOfMemory, Damaged--> the process ends
                                  \\-Blocked--> the task waits, the instruction is made again
    CPU --on_system_call--> table[number](task, arguments)
                                \\-Wait--> the task waits, the call is made again
                                 \\-TableDamaged--> the process ends
                                  \\-the host's own refusal--> its errno
    CPU --on_trap--> signals

An entry point never runs another task. It lets its own wait and leaves the CPU; who runs next is the
scheduler's decision.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import ParamSpec, Protocol, TypeVar

from aether_emu.arch.paging import Access
from aether_emu.errors import OutOfFrames, Refused
from aether_emu.linux.abi.signal import (
    BUS_ADRERR,
    BUS_MCEERR_AR,
    SEGV_ACCERR,
    SEGV_MAPERR,
    SEGV_PKUERR,
    SI_KERNEL,
    SIGBUS,
    SIGKILL,
    SIGSEGV,
    SignalInfo,
)
from aether_emu.linux.calls import call_table, vsyscall
from aether_emu.linux.kernel import UNKNOWN, Kernel
from aether_emu.linux.observers import Answer, FaultSeen, SystemCall
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.task import Task
from aether_emu.linux.task.wait import PageWait, Restart, Sent, Wait
from aether_emu.machine.cpu import Cpu, Exit, Trap, UserFault
from aether_emu.machine.memory.host import HostMemoryError
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, AccessError, Blocked, BusError, Outcome, OutOfMemory
from aether_emu.mm.objects.protocol import NotReady
from aether_emu.mm.percpu import PerCpu
from aether_emu.mm.tables.damage import Damaged, TableDamaged
from aether_emu.rules import slab_checks

P = ParamSpec("P")
R = TypeVar("R")


class Debugged(Protocol):
    """Who stands between the CPU and the kernel, so that the kernel sees memory as it knows it."""

    def stand_before(self, cpu: Cpu) -> None:
        """Take the CPU's callbacks, and call those that were there."""

    def run(self, budget: int | None) -> Exit:
        """As `PerCpu.run`."""


class Entry:
    """The entry points of one CPU. `task` is the one it runs, or ran last; there is none before `switch`.

    `manager` is the memory manager's own decision about a fault.
    """

    task: Task

    def __init__(self, kernel: Kernel, percpu: PerCpu) -> None:
        self.kernel, self.percpu = kernel, percpu
        cpu = self.cpu = percpu.cpu
        self.manager = percpu.fault
        self._fault_in: Callable[[int, int], Outcome] = percpu.fault  # what a fault of the program asks
        self._call_fault_in: Callable[[int, int], Outcome] = percpu.fault  # and one inside a call
        self._physical = kernel.physical
        self._calls = call_table(kernel.abi)
        if kernel.contention is not None:
            self._calls = kernel.contention.around_calls(
                self._calls, dict(kernel.abi.system_calls), percpu.index
            )
        self._made = kernel.calls_made
        self._vsyscall = vsyscall.PAGE if kernel.abi.has_vsyscalls else None
        cpu.on_rewrite = self._rewritten
        cpu.code_changes = kernel.physical.code.mutable
        self.debugger: Debugged | None = None
        self.run: Callable[[int | None], Exit] = percpu.run
        """Run the task, as `Cpu.run`."""
        self._notes_calls = "U" in slab_checks(kernel.config.slab_debug)[0]
        self.watch: Callable[[Cpu], None] | None = None  # wraps the CPU's callbacks when they are plugged in
        self.call_in: Callable[..., int | None] = self._system_call
        percpu.plug = self.plug
        self.plug()
        kernel.observers.plugs.append(self.plug)
        if percpu.index == 0:
            self.work()

    def work(self) -> None:
        """This CPU is the one that works from now on."""
        kernel = self.kernel
        kernel.entry = self
        kernel.current = lambda: self.task
        kernel.caller = lambda: (self.task.signals, self.task.process.arrived)

    def plug(self) -> None:
        """Let faults and calls come straight in, or by way of those who listen to them."""
        observers, cpu = self.kernel.observers, self.cpu
        cpu.on_fault = self._told_fault if observers.fault else self._fault
        cpu.resolve = self._told_resolve if observers.fault else self._resolve
        told = observers.call_entered or observers.call_answered
        cpu.on_system_call = self._told_system_call if told else self.call_in
        cpu.on_trap = self._trap
        if self._notes_calls:
            cpu.on_system_call = self._noting(cpu.on_system_call)
        if self.kernel.config.kpti:
            cpu.on_fault, cpu.on_trap = self._crossing(cpu.on_fault), self._crossing(cpu.on_trap)
            cpu.on_system_call = self._crossing(cpu.on_system_call)
        if self.percpu.aware:
            self.percpu.take_notice()
        if self.debugger is not None:
            self.debugger.stand_before(cpu)
        if self.watch is not None:
            self.watch(cpu)

    def _crossing(self, way_in: Callable[P, R]) -> Callable[P, R]:
        """A way in, and back, on which a CPU changes to the supervisor's own root, and back (KPTI).

        Only counted: the engine stays with the program's root, whatever Python does meanwhile.
        """
        counts = self._physical.counters.n

        def crossed(*arguments: P.args, **named: P.kwargs) -> R:
            counts[Event.ROOT_SWITCH] += 2
            return way_in(*arguments, **named)

        return crossed

    def _noting(self, way_in: Callable[..., int | None]) -> Callable[..., int | None]:
        """A way into calls that notes for the task which one it makes, for as long as that goes on."""

        def noted(number: int, *arguments: int) -> int | None:
            task = self.task
            task.called = number & 0xFFFF
            result = way_in(number, *arguments)
            if not task.is_over:
                task.called = -1
            return result

        return noted

    def debug(self, debugger: Debugged | None) -> None:
        """Let `debugger` stand between the CPU and the kernel, or nobody."""
        self.debugger = debugger
        self.run = self.percpu.run if debugger is None else debugger.run
        self.plug()

    def ask(
        self,
        fault: Callable[[int, int, bool], Outcome] | None,
        call: Callable[..., int | None] | None,
    ) -> None:
        """Let `fault(address, access, whether in a call)` decide faults, `call` answer calls; None: we do."""
        if fault is None:
            self._fault_in = self._call_fault_in = self.manager
        else:
            self._fault_in = lambda va, access: fault(va, access, False)
            self._call_fault_in = lambda va, access: fault(va, access, True)
        self.call_in = self._system_call if call is None else call
        self.plug()

    def goes_on(self, task: Task) -> bool:
        """Whether `task` is the one that this CPU ran last, with nothing for the kernel to do before it goes
        on in its program. Then no `switch` is due: `run` is next.
        """
        if not task.is_on(self.cpu) or task is not self.task:
            return False
        signals = task.signals
        if task.wait is not None or task.left or task.set_child_tid or signals.in_call or signals.ready():
            return False
        if self._physical.tlb.windows and self.percpu.goes_on_stale:
            self.percpu.come_back()
        self.kernel.actor.credentials = task.credentials
        return True

    def switch(self, task: Task) -> None:
        """Run `task` from now on: the one before keeps its registers, this one gets its own back."""
        before = getattr(self, "task", None)
        self.percpu.take_over()
        if before is task and task.is_on(self.cpu):
            self.kernel.actor.credentials = task.credentials
            return
        if before is not None and before.is_on(self.cpu):
            before.leave()
        if task.running:  # on another CPU
            task.leave()
        self.task = task
        self.percpu.enter(task.process.mm)
        task.enter(self.cpu, self.percpu.enter)

    # ---- faults

    def _fault(self, va: int, access: int) -> None:
        outcome = self._fault_in(va, access)
        if outcome is RESOLVED:
            return
        if not (isinstance(outcome, (AccessError, BusError)) and self.cpu.settle(va)):
            self._refuse(outcome, va, access)

    def _resolve(self, va: int, access: int) -> bool:
        """A fault of a call's own access. Raises Wait when the page is on its way: the call is made again."""
        return self._resolved(self._call_fault_in(va, access))

    def _resolved(self, outcome: Outcome) -> bool:
        match outcome:
            case Blocked(on) if not on.for_programs:
                raise PageWait(on, self.task.wait)
            case OutOfMemory():
                return self._out_of_memory()
            case Damaged():
                self.damaged(outcome)
        return outcome is RESOLVED

    # As the two above, but listeners are told.

    def _told_fault(self, va: int, access: int) -> None:
        before = self._physical.counters.n.copy()
        outcome = self._fault_in(va, access)
        if isinstance(outcome, (AccessError, BusError)) and self.cpu.settle(va):
            return
        if not self._is_vsyscall(va, access):
            self._tell_fault(va, access, outcome, before, in_call=False)
        if outcome is not RESOLVED:
            self._refuse(outcome, va, access)

    def _told_resolve(self, va: int, access: int) -> bool:
        before = self._physical.counters.n.copy()
        outcome = self._call_fault_in(va, access)
        self._tell_fault(va, access, outcome, before, in_call=True)
        return self._resolved(outcome)

    def _tell_fault(
        self, va: int, access: int, outcome: Outcome, before: list[int], *, in_call: bool
    ) -> None:
        did = tuple(event for event in Event if self._physical.counters.n[event] != before[event])
        observers = self.kernel.observers
        observers.tell(observers.fault, FaultSeen(self.task, va, Access(access), outcome, did, in_call))

    def _rewritten(self, va: int, length: int) -> None:
        """The kernel wrote user memory: code in it, under this or another address, must not run stale."""
        if self._physical.code.mutable:
            try:
                self.task.process.mm.written(va, length)
            except TableDamaged as error:
                self.damaged(error.damaged)

    def _refuse(self, outcome: object, va: int, access: int) -> None:
        signals, signal_of = self.task.signals, self.kernel.abi.fault_signal
        match outcome:
            case AccessError(_, mapped):
                if self._is_vsyscall(va, access):
                    self._call_vsyscall(va)
                    return
                code = SEGV_ACCERR if mapped else SEGV_MAPERR
                if access & Access.KEY:
                    area = self.task.process.mm.areas.find(va)
                    told = signal_of(self.cpu, SIGSEGV, SEGV_PKUERR, va, access)
                    signals.force(replace(told, key=0 if area is None else area.key))
                    return
                signals.force(signal_of(self.cpu, SIGSEGV, code, va, access))
            case BusError(_, failed):
                told = signal_of(self.cpu, SIGBUS, BUS_MCEERR_AR if failed else BUS_ADRERR, va, access)
                signals.force(replace(told, least_bit=failed.bit_length() - 1) if failed else told)
            case OutOfMemory():
                self._out_of_memory()
            case Damaged():
                self.damaged(outcome)
            case Blocked(on):
                self.task.start_waiting(PageWait(on, None), None)
                self.cpu.stop()
            case _:
                raise AssertionError(f"fault outcome {outcome!r}")

    def _is_vsyscall(self, va: int, access: int) -> bool:
        return va & -vsyscall.SIZE == self._vsyscall and bool(access & Access.EXECUTE)

    def _call_vsyscall(self, va: int) -> None:
        """The program called a function of its ISA's vsyscall page."""
        try:
            pointer = vsyscall.call(self.task, va)
        except UserFault:
            self.task.signals.force(SignalInfo(SIGSEGV, SI_KERNEL))
            return
        if pointer is not None:
            self._refuse(AccessError(pointer, False), pointer, int(Access.USER | Access.WRITE))

    def _out_of_memory(self) -> bool:
        """Whether whoever needs a page may try again: another process has gone, which had more."""
        from aether_emu.linux.task.oom import make_an_end  # noqa: PLC0415  # memory is rarely short

        return make_an_end(self.task.process)

    def damaged(self, damaged: Damaged) -> None:
        """The process's page table is damaged: it cannot go on. Linux: "Corrupted page table", SIGKILL."""
        self.task.process.mm.damages.append(damaged)
        self.task.process.end(Ended(signal=SIGKILL, why="a damaged page table"))

    def _trap(self, trap: Trap) -> None:
        self.task.signals.force(self.kernel.abi.trap_signal(self.cpu, trap))

    def lost(self, address: int) -> None:
        """Memory behind `address` is gone: the task's SIGBUS. Whether it read or wrote is not known."""
        self._physical.counters.n[Event.FAULT_BUS] += 1
        access = int(Access.USER | Access.READ)
        self.task.signals.force(self.kernel.abi.fault_signal(None, SIGBUS, BUS_ADRERR, address, access))

    # ---- system calls

    def _system_call(self, number: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int | None:
        number &= 0xFFFF_FFFF
        try:
            call = self._calls[number]
            self._made[number] += 1
            if call is None:
                return -errno.ENOSYS
            return call(self.task, a, b, c, d, e, f)
        except Refused as refused:
            return -refused.errno
        except UserFault:
            return -errno.EFAULT
        except OutOfFrames:  # for a page table: that of a huge page which is to be split
            return -errno.ENOMEM
        except (OSError, HostMemoryError) as refusal:
            return _errno_of(refusal)
        except Wait as wait:
            return self._must_wait(wait, number, (a, b, c, d, e, f))
        except TableDamaged as error:
            self.damaged(error.damaged)
            return -errno.EFAULT
        except NotReady as later:
            return self._must_wait(PageWait(later.on, self.task.wait), number, (a, b, c, d, e, f))
        except IndexError:
            if number < len(self._calls):
                raise
            self._made[UNKNOWN] += 1
            return -errno.ENOSYS

    def make_call(self, number: int, *arguments: int) -> int | None:
        """Make a call, as the program's instruction would have it made: its result, None as in `Cpu`."""
        return self._system_call(number, *arguments)

    def count_call(self, number: int) -> None:
        """A call of that number was answered by somebody else."""
        self._made[number if number < len(self._calls) else UNKNOWN] += 1

    def _told_system_call(self, number: int, *arguments: int) -> int | None:
        """As `_system_call`, but listeners are told."""
        observers, task, number = self.kernel.observers, self.task, number & 0xFFFF_FFFF
        call = SystemCall(task, number, self.kernel.abi.system_calls.get(number, ""), arguments)
        observers.tell(observers.call_entered, call)
        result = self.call_in(number, *arguments)
        shown = None if task.process.is_over else result
        observers.tell(observers.call_answered, Answer(call, shown, task.wait))
        return result

    def _must_wait(self, wait: Wait, number: int, arguments: tuple[int, ...]) -> int | None:
        """The answer if a signal ends the wait before it began, else None: the task waits."""
        if isinstance(wait, Sent) or (wait.ends_by_signal and self.task.signals.interrupts()):
            if wait.restart is not Restart.NEVER:
                self.task.signals.interrupted_call = (number, arguments[0], wait.restart)
            return wait.interrupted
        self.task.start_waiting(wait, (number, arguments))
        self.cpu.stop()
        return None

    def resume(self) -> None:
        """The task's wait is over: make its call again, with the same arguments. It may wait anew."""
        task = self.task
        task.leave_queues()
        if task.call is None:
            task.done_waiting()
            return
        number, arguments = task.call
        call = self._calls[number]
        assert call is not None, "a call that does not exist waits for nothing"
        wait, result = task.wait, None
        assert wait is not None, "it has waited"
        try:
            if wait.answer is not None:
                result = wait.answer
            else:
                result = call(task, *arguments) if task.waits_on else wait.interrupted
        except Refused as refused:
            result = -refused.errno
        except UserFault:
            result = -errno.EFAULT
        except (OSError, HostMemoryError) as refusal:
            result = _errno_of(refusal)
        except TableDamaged as error:
            self.damaged(error.damaged)
            result = -errno.EFAULT
        except (Wait, NotReady) as unfinished:
            wait = unfinished if isinstance(unfinished, Wait) else PageWait(unfinished.on, task.wait)
            result = self._must_wait(wait, number, arguments)
            if result is None:
                return
        task.done_waiting()
        observers = self.kernel.observers
        if observers.call_answered:
            made = SystemCall(task, number, self.kernel.abi.system_calls[number], arguments)
            observers.tell(observers.call_answered, Answer(made, result, None))
        if result != -errno.EINTR:
            task.signals.end_suspension()
        if result is not None:  # else the registers are right already: another program starts
            self.kernel.abi.finish_call(self.cpu, result)

    def before_user(self) -> None:
        """The task is about to go on in its program: signals that came meanwhile are delivered."""
        if self.task.left:
            self.task.abort_sequence()
        if self.task.set_child_tid:
            self._tell_number()
        if self.task.signals.ready() or self.task.signals.in_call:
            self.task.signals.deliver()

    def _tell_number(self) -> None:
        """CLONE_CHILD_SETTID: before its first instruction a task has its number in its memory."""
        address, self.task.set_child_tid = self.task.set_child_tid, 0
        with suppress(UserFault):  # as Linux, which tells nobody
            self.cpu.copy_to_user(address, self.task.tid.to_bytes(4, "little"))


def _errno_of(refusal: OSError | HostMemoryError) -> int:
    """What a call answers when the host failed it where no refusal is foreseen: the host's errno, negative.

    No descriptor left, no memory, a storage that is gone: it can come with any use of a file.
    """
    return -(refusal.errno or errno.EIO)
