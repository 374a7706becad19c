"""The kernel's entry points: faults, traps and system calls of the running process.

    CPU --on_fault--> space.fault --Resolved--> guest goes on
                                  \\-AccessError, BusError, OutOfMemory--> signals
    CPU --on_system_call--> table[number](arguments)
    CPU --on_trap--> signals

`run` is the scheduler, the outermost loop: it enters the CPU, and looks at why it came back.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from aether_emu.clock import VirtualClock
from aether_emu.config import Config
from aether_emu.errors import AetherError, EngineError, Refused
from aether_emu.linux.abi import Abi
from aether_emu.linux.calls import build_table
from aether_emu.linux.task.process import Ended, Process
from aether_emu.linux.task.signals import (
    BUS_ADRERR,
    SEGV_ACCERR,
    SEGV_MAPERR,
    SIGBUS,
    SIGKILL,
    SIGSEGV,
    SignalInfo,
)
from aether_emu.machine.cpu import Cpu, ExitReason, Trap, UserFault
from aether_emu.machine.memory.aperture import BackingFailed, BeyondEnd
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, AccessError, BusError, OutOfMemory
from aether_emu.mm.objects.file import HostFiles
from aether_emu.mm.percpu import PerCpu
from aether_emu.mm.physical import Physical
from aether_emu.mm.rmap import lowest_address, unmap
from aether_emu.random import Streams

if TYPE_CHECKING:
    from aether_emu.linux.task.wait import Waiter

_MINOR = (
    Event.FAULT_ZERO_PAGE,
    Event.FAULT_DEMAND_ZERO,
    Event.FAULT_UPGRADE,
    Event.FAULT_FILE,
    Event.FAULT_SHARED,
    Event.FAULT_SPURIOUS,
    Event.FAULT_ACCESS_FLAG,
)
RESOLVED_FAULTS = (*_MINOR, Event.FAULT_COPY)
_UNKNOWN = 512  # slot of the counter for numbers without a call


class Interrupted(Exception):
    """The run was ended from outside (Ctrl-C, a timeout)."""


class Deadlock(AetherError):
    """The only process waits for something that nobody can bring about."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the program waits for {what} that nobody can change")


class Kernel:
    """One machine's kernel, with the one process it runs."""

    def __init__(
        self,
        percpu: PerCpu,
        physical: Physical,
        abi: Abi,
        config: Config,
        clock: VirtualClock,
        streams: Streams,
        waiter: Waiter,
    ) -> None:
        self.percpu, self.physical, self.abi, self.config = percpu, physical, abi, config
        self.cpu: Cpu = percpu.cpu
        self.clock, self.streams, self.waiter = clock, streams, waiter
        self.process: Process
        self.file_backings = HostFiles(physical, unmap)
        self.calls_made = [0] * (_UNKNOWN + 1)
        self.calls_by_number: list[Callable[..., int | None] | None] = []
        self.charged = 0
        self._deadlock = ""
        costs = config.clock
        self._costs = {
            **dict.fromkeys(_MINOR, costs.fault_minor),
            Event.FAULT_COPY: costs.fault_copy,
            Event.FAULT_ACCESS: costs.fault_denied,
            Event.FAULT_BUS: costs.fault_denied,
            Event.FLUSH_PAGE: costs.flush_page,
            Event.FLUSH_ALL: costs.flush_all,
        }
        self._space_fault = percpu.fault
        cpu = self.cpu
        cpu.on_fault = self._fault
        cpu.resolve = self._resolve
        cpu.on_rewrite = self._rewritten
        cpu.code_changes = lambda: physical.code.mutable
        cpu.on_trap = self._trap
        cpu.on_system_call = self._system_call

    def adopt(self, process: Process) -> None:
        """Run `process` from now on."""
        self.process = process
        self.calls_by_number = build_table(process)
        self.percpu.enter(process.space)

    # ---- entry points

    def _fault(self, va: int, access: int) -> None:
        outcome = self._space_fault(va, access)
        if outcome is not RESOLVED:
            self._refuse(outcome, va, access)

    def _resolve(self, va: int, access: int) -> bool:
        outcome = self._space_fault(va, access)
        if isinstance(outcome, OutOfMemory):
            self._out_of_memory()
        return outcome is RESOLVED

    def _rewritten(self, va: int, length: int) -> None:
        """The kernel wrote user memory: code in it, under this or another address, must not run stale."""
        code = self.physical.code
        if code.mutable:
            self.process.space.written(va, length)

    def _refuse(self, outcome: object, va: int, access: int) -> None:
        signals = self.process.signals
        match outcome:
            case AccessError(_, mapped):
                code = SEGV_ACCERR if mapped else SEGV_MAPERR
                signals.force(SignalInfo(SIGSEGV, code, va, access=access))
            case BusError():
                signals.force(SignalInfo(SIGBUS, BUS_ADRERR, va, access=access))
            case OutOfMemory():
                self._out_of_memory()
            case _:
                raise AssertionError(f"fault outcome {outcome!r}")

    def _out_of_memory(self) -> None:
        self.process.end(Ended(signal=SIGKILL, why="out of memory"))

    def _trap(self, trap: Trap) -> None:
        self.process.signals.force(self.abi.trap_signal(self.cpu, trap))

    def _system_call(self, number: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int | None:
        number &= 0xFFFF_FFFF
        try:
            call = self.calls_by_number[number]
            self.calls_made[number] += 1
            if call is None:
                return -errno.ENOSYS
            return call(a, b, c, d, e, f)
        except Refused as refused:
            return -refused.errno
        except UserFault:
            return -errno.EFAULT
        except IndexError:
            if number < len(self.calls_by_number):
                raise
            self.calls_made[_UNKNOWN] += 1
            return -errno.ENOSYS

    # ---- time and accounts

    def observe_time(self) -> int:
        """The guest reads a clock: virtual ns. From the first reading on, executed blocks count."""
        self.cpu.count_blocks()
        self.charge()
        return self.clock.observe(self.cpu.blocks)

    def charge(self) -> None:
        """Add the costs of the events since the last call to virtual time."""
        n, costs = self.physical.counters.n, self.config.clock
        total = (
            sum(n[event] * cost for event, cost in self._costs.items())
            + sum(self.calls_made) * costs.system_call
        )
        self.clock.advance(total - self.charged)
        self.charged = total

    def calls_by_name(self) -> dict[str, int]:
        """How often each system call was made, by name, in the order of their numbers."""
        names = self.abi.system_calls
        counts = {names.get(i, f"call {i}"): c for i, c in enumerate(self.calls_made[:_UNKNOWN]) if c}
        if self.calls_made[_UNKNOWN]:
            counts["unknown"] = self.calls_made[_UNKNOWN]
        return counts

    def peak_memory(self) -> int:
        """The most RAM in use at any time so far, in bytes."""
        return self.physical.peak_frames() << self.physical.frames.page_shift

    def minor_faults(self) -> int:
        """Faults that were resolved."""
        return sum(self.physical.counters.n[event] for event in RESOLVED_FAULTS)

    def deadlock(self, what: str) -> None:
        """The process waits for something that nobody can bring about: the run ends."""
        self._deadlock = what
        self.cpu.stop()

    # ---- the scheduler

    def run(self, budget: int | None = None) -> Ended | None:
        """Run the process to its end, or for `budget` blocks (then None).

        Raises Interrupted, Deadlock, EngineError.
        """
        limit = None if budget is None else self.cpu.blocks + budget
        process = self.process
        while process.ended is None:
            if process.blocked is not None:
                self._wait(process)
            ended = self.percpu.run(None if limit is None else limit - self.cpu.blocks)
            match ended.reason:
                case ExitReason.STOPPED:
                    if self._deadlock:
                        raise Deadlock(self._deadlock)
                case ExitReason.BUDGET:
                    return None
                case ExitReason.INTERRUPTED:
                    raise Interrupted
                case ExitReason.BUS:  # an entry points at no memory: the engine does not say which
                    self._bus(self.cpu.pc)
                case ExitReason.STRAY:
                    self._lose_pages()
                case _:
                    raise EngineError(f"at {self.cpu.pc:#x}: {ended.detail}")
        return process.ended

    def _wait(self, process: Process) -> None:
        reason, process.blocked = process.blocked, None
        assert reason is not None
        if not self.waiter.wait(reason):
            raise Deadlock(f"a {reason.file.kind}")

    def _lose_pages(self) -> None:
        """Pages of files that the host took away under the guest: unmap them, SIGBUS for those that are gone.

        A page that is larger than the host's may have lost a part only. It goes on from there, with zeros.
        """
        for file, page in self.waiter.lost_pages():
            backing = self.file_backings.showing(file)
            if backing is None:
                continue
            self.file_backings.unmap_pages(backing, page, 1)
            try:
                backing.frames(page, 1, write=False)
                continue
            except (BeyondEnd, BackingFailed):
                pass
            address = lowest_address(backing, page, self.process.space)
            if address is not None:
                self._bus(address)

    def _bus(self, address: int) -> None:
        self.physical.counters.n[Event.FAULT_BUS] += 1
        self.process.signals.force(SignalInfo(SIGBUS, BUS_ADRERR, address))
