"""Counts the events of a run, and injects what is due at them.

    machine ──fault, call, allocation──▶ Injector ──due?──▶ sites: bits flip, a call or allocation fails
            ──so many blocks──────────▶    (`run` ends the turn there, and goes on)

It listens, as `observers` has it: while nothing is to be injected nobody asks. Chance comes from the stream
"injector" of the machine's seed, so that a seed injects the same again.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import errorcode
from time import monotonic
from typing import TYPE_CHECKING, cast

from aether_emu.errors import ConfigError, suggestion
from aether_emu.inject.places import draw
from aether_emu.inject.plan import ALLOCATION, BLOCK, CALL, FAULT, Injection, parse
from aether_emu.inject.sites import flip_data, flip_pte, flip_register
from aether_emu.linux.handlers import Call
from aether_emu.linux.observers import Attachment, FaultSeen, SystemCall
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.ports import NEVER_FAILS
from aether_emu.records import dataclass

if TYPE_CHECKING:
    from aether_emu.linux.debugging import Stopped
    from aether_emu.linux.task.ended import Ended
    from aether_emu.system import Machine


@dataclass(frozen=True, slots=True)
class Injected:
    """What was injected: the site, the count of its event then, virtual time in ns, and what it was."""

    site: str
    event: str
    count: int
    time: int
    what: str

    def record(self) -> dict[str, str | int]:
        """For JSON."""
        return {field: getattr(self, field) for field in ("site", "event", "count", "time", "what")}

    def __str__(self) -> str:
        return f"{self.site} at {self.event}#{self.count}, {self.time:,} ns: {self.what}"


class _Armed:
    """An injection, how many of its events there were, and how often it was made."""

    def __init__(self, wanted: Injection) -> None:
        self.wanted, self.count, self.made = wanted, 0, 0


class Injector:
    """What is injected into one machine. `done` has what was, in order; `missed` counts what hit nothing."""

    def __init__(self, machine: Machine, wanted: Sequence[Injection]) -> None:
        """Raises ConfigError for a call, register, level or CPU that the machine has not."""
        self.machine = machine
        self.done: list[Injected] = []
        self.missed = 0
        self._chance = machine.streams.stream("injector")
        for each in wanted:
            _check(machine, each)
        armed = [_Armed(each) for each in wanted]
        self._faults = [each for each in armed if each.wanted.event == FAULT]
        self._failing = [each for each in armed if each.wanted.site == CALL]
        self._calls = [each for each in armed if each.wanted.event == CALL and each.wanted.site != CALL]
        self._allocations = [each for each in armed if each.wanted.site == ALLOCATION]
        self._blocks = sorted(
            (each for each in armed if each.wanted.event == BLOCK), key=lambda each: each.wanted.nth
        )
        self._attached: list[Attachment] = []
        if self._faults:
            self._attached.append(machine.observers.attach(fault=self._fault))
        if self._calls:
            self._attached.append(machine.observers.attach(call_entered=self._call))
        if self._failing:
            self._attached.append(machine.on_system_call(self._answer))
        if self._allocations:
            machine.physical.buddy.failures = self

    def detach(self) -> None:
        """Inject nothing any more."""
        for each in self._attached:
            each.detach()
        self._blocks = []
        if self.machine.physical.buddy.failures is self:
            self.machine.physical.buddy.failures = NEVER_FAILS

    def run(self, timeout: float | None = None) -> Ended | Stopped:
        """As `Machine.run`, which is left for a moment wherever something is due after so many blocks."""
        machine = self.machine
        deadline = None if timeout is None else monotonic() + timeout
        while self._blocks:
            left = None if deadline is None else max(0.0, deadline - monotonic())
            wait = max(0, self._blocks[0].wanted.nth - machine.kernel.blocks)
            ended = machine.run_for(wait, left)
            if ended is not None:
                return ended
            armed = self._blocks.pop(0)
            task = machine.scheduler.stopped or machine.entry.task
            if self._concerns(armed.wanted, task):
                self._inject(armed, task, None)
        return machine.run(None if deadline is None else max(0.0, deadline - monotonic()))

    # ---- events

    def _fault(self, seen: FaultSeen) -> None:
        task = cast("Task", seen.task)
        for armed in self._faults:
            wanted = armed.wanted
            if wanted.allows(seen.address) and self._concerns(wanted, task) and self._is_due(armed):
                self._inject(armed, task, None if wanted.area else seen.address)

    def _call(self, seen: SystemCall) -> None:
        task = cast("Task", seen.task)
        for armed in self._calls:
            wanted = armed.wanted
            if wanted.call in ("", seen.name) and self._concerns(wanted, task) and self._is_due(armed):
                self._inject(armed, task, None)

    def _answer(self, call: Call) -> int | None:
        for armed in self._failing:
            wanted = armed.wanted
            if wanted.call in ("", call.name) and self._concerns(wanted, call.task) and self._is_due(armed):
                self._note(
                    armed, f"{call.name} of process {call.process.pid} answers {errorcode[wanted.error]}"
                )
                return -wanted.error
        return None

    def fails(self, point: str) -> bool:
        """See `ports.FailurePoints`."""
        refused = False
        for armed in self._allocations:
            if self._is_due(armed):
                self._note(armed, f"{point} refused")
                refused = True
        return refused

    def _concerns(self, wanted: Injection, task: Task) -> bool:
        if wanted.process and wanted.process.encode() not in (task.name, task.process.name):
            return False
        return wanted.cpu is None or wanted.cpu == self.machine.entry.percpu.index

    def _is_due(self, armed: _Armed) -> bool:
        """An event of its kind happened: whether it is made now."""
        armed.count += 1
        wanted = armed.wanted
        if (wanted.times and armed.made >= wanted.times) or not wanted.is_due(armed.count):
            return False
        if wanted.probability < 1 and self._chance.u64() >= int(wanted.probability * (1 << 64)):
            return False
        armed.made += 1
        return True

    # ---- what is done

    def _inject(self, armed: _Armed, task: Task, address: int | None) -> None:
        """Flip a bit, at `address` or where the injection says."""
        wanted, process = armed.wanted, task.process
        if wanted.site == "register":
            bit = self._chance.u64() % 64 if wanted.bit is None else wanted.bit
            self._note(armed, flip_register(task, wanted.name, bit))
            return
        if address is None:
            address = draw(process, wanted, self._chance)
        what = "" if address is None else self._flip(wanted, process, address)
        if what:
            self._note(armed, f"process {process.pid}, {what}")
        else:
            self.missed += 1

    def _flip(self, wanted: Injection, process: Process, address: int) -> str:
        if wanted.site == "pte":
            bit = self._chance.u64() % 64 if wanted.bit is None else wanted.bit
            return flip_pte(process, address, bit, wanted.level)
        bits = process.mm.page_size << 3
        bit = self._chance.u64() % bits if wanted.bit is None else wanted.bit % bits
        return flip_data(process, address, bit)

    def _note(self, armed: _Armed, what: str) -> None:
        kernel = self.machine.kernel
        count = kernel.blocks if armed.wanted.event == BLOCK else armed.count
        self.done.append(Injected(armed.wanted.site, armed.wanted.event, count, kernel.time_seen(), what))


def _check(machine: Machine, wanted: Injection) -> None:
    """Raises ConfigError for what this machine has not."""
    calls = set(machine.kernel.abi.system_calls.values())
    if wanted.call and wanted.call not in calls:
        allowed = f"a system call of {machine.kernel.abi.isa}{suggestion(wanted.call, sorted(calls))}"
        raise ConfigError("inject call", wanted.call, allowed)
    levels = machine.format.top
    if wanted.level > levels:
        raise ConfigError(
            "inject pte:level", wanted.level, f"1 to {levels}, the levels of {machine.format.name}"
        )
    if wanted.cpu is not None and wanted.cpu >= len(machine.computer.cpus):
        raise ConfigError(
            "inject cpu", wanted.cpu, f"a CPU of this machine, 0 to {len(machine.computer.cpus) - 1}"
        )
    if wanted.name and wanted.site == "register":
        try:
            machine.cpu.read(wanted.name)
        except KeyError:
            raise ConfigError(
                "inject register:name", wanted.name, f"a register of {machine.cpu.isa}"
            ) from None


def attach(machine: Machine, *wanted: Injection | str) -> Injector:
    """Inject these into a machine's run, texts as in `plan`. Raises ConfigError for what is wrong in one."""
    return Injector(machine, [parse(each) if isinstance(each, str) else each for each in wanted])
