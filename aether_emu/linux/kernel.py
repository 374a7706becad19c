"""What all processes of a machine share: clock, chance, memory, mapped files, futexes, the run queue,
observers, accounts.

It knows no process. Who is running is the `Entry`'s business, one for each CPU; who runs next is the
`Scheduler`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from operator import itemgetter, mul, sub
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from aether_emu.clock import LAST_NS, VirtualClock
from aether_emu.config import Config
from aether_emu.errors import ClosedError
from aether_emu.linux.abi import Abi
from aether_emu.linux.credentials import SYS_ADMIN, Actor, of_user
from aether_emu.linux.files.proc import ProcSource
from aether_emu.linux.observers import Observers
from aether_emu.linux.pressure import Pressure
from aether_emu.linux.task.futex import Futexes
from aether_emu.linux.task.lines import Lines
from aether_emu.linux.task.run_queue import RunQueue
from aether_emu.linux.task.timers import Timers
from aether_emu.linux.task.usage import Usage
from aether_emu.linux.task.wait import Unfinished
from aether_emu.machine.cpu import Cpu
from aether_emu.mm.counters import Event
from aether_emu.mm.objects.file import HostFiles
from aether_emu.mm.percpu import PerCpu
from aether_emu.mm.physical import Physical
from aether_emu.mm.rmap import unmap
from aether_emu.mm.shootdown import Shootdown
from aether_emu.mm.space import AddressSpace
from aether_emu.random import Streams
from aether_emu.records import dataclass
from aether_emu.waiting import WaitQueue

if TYPE_CHECKING:
    from aether_emu.linux.ipc.posix_queues import PosixQueues
    from aether_emu.linux.ipc.system_v import SystemV
    from aether_emu.linux.task.contention import Contention
    from aether_emu.linux.task.khugepaged import Khugepaged
    from aether_emu.linux.task.ksm import Ksm
    from aether_emu.linux.task.kswapd import Kswapd

# Faults that were resolved without copying a page: each costs `fault_minor`.
_WITHOUT_COPY = (
    Event.FAULT_ZERO_PAGE,
    Event.FAULT_DEMAND_ZERO,
    Event.FAULT_UPGRADE,
    Event.FAULT_FILE,
    Event.FAULT_SHARED,
    Event.FAULT_SPURIOUS,
    Event.FAULT_ACCESS_FLAG,
    Event.FAULT_SWAP_CACHE,
    Event.HUGE_FAULT,
    Event.HUGE_ZERO_PAGE,
    Event.HUGE_RUN,
)
_STALLS = (Event.SWAP_OUT, Event.SWAP_IN, Event.SWAP_WRITTEN, Event.SWAP_READ, Event.FILE_WRITTEN)
RESOLVED_FAULTS = (*_WITHOUT_COPY, Event.FAULT_COPY)
MAJOR_FAULTS = (Event.FAULT_SWAP, Event.FAULT_FILE_READ)
_resolved_faults = itemgetter(*RESOLVED_FAULTS)
Moment = tuple[int, int, int, list[int], int]
"""Time as it was: what the clock has, and what is not in it yet (blocks, calls, events; what is charged)."""
UNKNOWN = 512
"""Slot of the counter for numbers without a call."""


class AccountedProcess(Protocol):
    """A process, as the accounts see it."""

    usage: Usage


class Accounted(Protocol):
    """A task, as the accounts see it."""

    tid: int
    usage: Usage

    @property
    def process(self) -> AccountedProcess: ...


@dataclass(slots=True)
class _Sums:
    """What so many `events` add up to: their costs in ns, and the minor faults among them."""

    events: list[int]
    costs: int = 0
    faults: int = 0


class Kernel:
    """The shared part of one machine's kernel.

    `calls_made` counts system calls by number, those made again after a wait once. `charged` is how much of
    the costs of all events is in the clock already, in ns.
    """

    def __init__(
        self,
        cpus: Sequence[Cpu],
        physical: Physical,
        abi: Abi,
        config: Config,
        clock: VirtualClock,
        streams: Streams,
    ) -> None:
        self.cpus, self.physical, self.abi, self.config = tuple(cpus), physical, abi, config
        self._first_cpu, self._other_cpus = self.cpus[0], self.cpus[1:]
        self.clock, self.streams = clock, streams
        self.file_backings = HostFiles(physical, unmap)
        self.futexes = Futexes()
        self.timers = Timers()
        self.run_queue: RunQueue[Any, Any] | Lines[Any, Any] = RunQueue()
        if len(self.cpus) > 1:
            lines: Lines[Any, Any] = Lines(len(self.cpus), self.time_now)
            self.run_queue = lines
            self._connect(lines)
        self._told = 0 if len(self.cpus) > 1 else None  # the last time that was told, of several CPUs
        self.observers = Observers(physical)
        self.contention: Contention | None = None  # where locks are modelled
        self.khugepaged: Khugepaged | None = None  # where huge pages are made by and by
        self.kswapd: Kswapd | None = None  # who makes room in the background; None: whoever needs it
        self.ksm: Ksm  # what merges equal pages, when it is told to
        self.user_faults_for_all = (
            False  # whether userfaultfd asks for no right (vm.unprivileged_userfaultfd)
        )
        self.calls_made: defaultdict[int, int] = defaultdict(int)
        self.waits_begun = 0
        self.charged = 0
        self._summed = _Sums([])
        self._books = (0, 0, 0, 0)  # the totals that were given to tasks
        self._accounted: Accounted | None = None  # whose is what was used since; None: the next one's
        self.new_space: Callable[[], AddressSpace]  # an empty address space; OutOfFrames
        self.show: Callable[[Any], ProcSource]  # what /proc shows of a process
        self.first_user = of_user(config.uid, config.gid)
        self.actor = Actor(self.first_user)  # whose rights count now
        physical.overcommit.is_admin = lambda: self.actor.credentials.has(SYS_ADMIN)
        self.compared: MutableMapping[object, int] = WeakKeyDictionary()  # what kcmp(2) was asked about
        self.system_v: SystemV | None = None  # once somebody asks for it
        self.entry: Any  # that of the CPU that works
        self.posix_queues: PosixQueues | None = None  # likewise
        self.current: Callable[[], Any]  # the task that makes the call that is served
        self.caller: Callable[[], tuple[Any, WaitQueue]]  # the signals of who makes the call that is served
        self.tell: Callable[[str], object] = lambda _lines: (
            None
        )  # what whoever started the machine should know
        self.task_list = 0  # the head of the list of processes in the machine's memory
        self.closed = False  # the memory and the engine are gone
        costs = clock.costs
        cost_of = {
            **dict.fromkeys(_WITHOUT_COPY, costs.fault_minor),
            Event.FAULT_COPY: costs.fault_copy,
            Event.FAULT_SWAP: costs.fault_minor,
            Event.FAULT_FILE_READ: costs.fault_minor,
            Event.FILE_READ: costs.file_page,
            Event.FILE_WRITTEN: costs.file_page,
            Event.SWAP_IN: costs.swap_page,
            Event.SWAP_OUT: costs.swap_page,
            Event.SWAP_READ: costs.swap_disk,
            Event.SWAP_WRITTEN: costs.swap_disk,
            Event.FAULT_ACCESS: costs.fault_denied,
            Event.FAULT_BUS: costs.fault_denied,
            Event.HUGE_PAGES: costs.huge_page,
            Event.MIGRATED_PAGES: costs.huge_page,
            Event.FLUSH_PAGE: costs.flush_page,
            Event.FLUSH_ALL: costs.flush_all,
            Event.INTERRUPT: costs.interrupt,
            Event.INTERRUPT_TAKEN: costs.interrupt_taken,
            Event.BROADCAST: costs.broadcast,
            # Without tags a change of roots drops everything: who comes there looks it up anew.
            Event.ROOT_SWITCH: costs.kpti_switch + (costs.flush_all if physical.tags is None else 0),
        }
        self._costs = [cost_of.get(event, 0) for event in Event]
        self.pressure = Pressure()
        self.attend_to_swap()

    def attend_to_swap(self) -> None:
        """Note how long tasks wait for pages, and tell what becomes of the swap area, if there is one."""
        physical = self.physical
        if physical.reclaim is not None and (physical.swap is not None or physical.cache is not None):
            physical.reclaim.on_stall = self.note_pressure
        if physical.reclaim is not None and physical.swap is not None:
            physical.swap.store.tell = lambda line: self.tell(line + "\n")

    def _connect(self, lines: Lines[Any, Any]) -> None:
        """Have shootdowns take the time, and the turns, that they take."""
        from aether_emu.linux.task.interrupts import Interrupts  # noqa: PLC0415  # one CPU has nobody to ask

        config, tlb, clock = self.config, self.physical.tlb, self.clock
        tlb.way = Shootdown(
            config.shootdown,
            config.shootdown_delay,
            config.lazy_tlb,
            self.abi.broadcasts,
        )
        tlb.runner = Interrupts(
            lines,
            self.cpus,
            self.time_now,
            clock.advance,
            clock.costs,
            tlb.way,
            self.streams.stream("shootdown").below,
        )

    def model_locks(self, percpus: Sequence[PerCpu]) -> None:
        """Have operations take locks by the scheme `locks`, on CPUs that have no entries yet."""
        from aether_emu.linux.task.contention import Contention  # noqa: PLC0415  # few runs want it

        lines = self.run_queue if isinstance(self.run_queue, Lines) else None
        self.contention = Contention(
            self.config.locks,
            lines,
            self.cpus,
            self.physical,
            self.time_now,
            self.clock.advance,
            self.clock.costs,
        )
        for percpu in percpus:
            percpu.fault = self.contention.around_fault(percpu)

    def require_open(self) -> None:
        """Raise ClosedError once the machine is closed."""
        if self.closed:
            raise ClosedError

    # ---- time

    def observe_time(self) -> int:
        """The guest reads a clock: virtual ns. From the first reading on, executed blocks count.

        What one CPU has told is over for all: one that has not come so far goes there.
        """
        now = self.time_now()
        if self._told is not None:
            if now < self._told:
                self.clock.go_to(self._told)
                now = self.clock.now_ns
            self._told = now
        return now

    def time_now(self) -> int:
        """Likewise, for the kernel's own use: how far the CPU that works has come."""
        for cpu in self.cpus:
            cpu.count_blocks()
        self.charge()
        return self.clock.observe(self.blocks)

    @property
    def blocks(self) -> int:
        """How many blocks the CPUs have executed. A block that was left in its midst, to be entered anew,
        counts once: a clock that was read in its first part stands still until the block is over.
        """
        executed, told = self._first_cpu.blocks, self.clock.blocks
        for cpu in self._other_cpus:
            executed += cpu.blocks
        return executed if executed > told else told

    def charge(self) -> None:
        """Add the costs of the events since the last call to virtual time."""
        total = self._costs_so_far()
        self.clock.advance(total - self.charged)
        self.charged = total

    def cost_of(self, event: Event) -> int:
        """What an event adds to virtual time, in ns."""
        return self._costs[event]

    def _costs_so_far(self) -> int:
        return self._sums().costs + sum(self.calls_made.values()) * self.clock.costs.system_call

    def _sums(self) -> _Sums:
        """Those of the events until now. Most turns have none, and then nothing is added up."""
        events = self.physical.counters.n
        if events != self._summed.events:
            self._summed = _Sums(
                events.copy(), sum(map(mul, events, self._costs)), sum(_resolved_faults(events))
            )
        return self._summed

    def _costs_of(self, calls: int, events: Sequence[int]) -> int:
        costs: int = sum(map(mul, events, self._costs))
        return costs + calls * self.clock.costs.system_call

    def moment(self) -> Moment:
        """Now, for a tool that looks at the time later: to note it costs little, changes nothing, and counts
        no blocks.
        """
        clock, blocks = self.clock, 0
        if clock.origin is not None:
            blocks = self.blocks - clock.blocks
        uncharged = sum(self.calls_made.values()), self.physical.counters.n.copy(), self.charged
        return clock.now_ns, blocks, *uncharged

    def time_of(self, moment: Moment) -> int:
        """The virtual time of a moment, in ns."""
        now, blocks, calls, events, charged = moment
        return min(now + blocks * self.clock.costs.block + self._costs_of(calls, events) - charged, LAST_NS)

    def time_seen(self) -> int:
        """Virtual time in ns, for a tool that looks at it: it changes nothing, and counts no blocks."""
        return self.time_of(self.moment())

    @property
    def accounted(self) -> Accounted | None:
        """The task whose is what was used since the books were last settled; None: the next one's."""
        return self._accounted

    def account_to(self, task: Accounted | None) -> None:
        """What is used from now on is that task's; None: that of the next one named."""
        self.settle_books()
        self._accounted = task

    def settle_books(self) -> None:
        """Give its user, and the process of that, what was used until now."""
        if self._accounted is None:
            return
        totals, books = self._totals(), self._books
        if totals != books:
            self._books = totals
            time, faults, system, major = map(sub, totals, books)
            for usage in (self._accounted.usage, self._accounted.process.usage):
                usage.time += time
                usage.faults += faults
                usage.system += system
                usage.major += major

    def _totals(self) -> tuple[int, int, int, int]:
        """Time, minor faults, costs of events and major faults until now, of all tasks."""
        sums = self._sums()
        costs = sums.costs + sum(self.calls_made.values()) * self.clock.costs.system_call
        return self._busy(costs), sums.faults, costs, sum(sums.events[event] for event in MAJOR_FAULTS)

    def _busy(self, costs: int) -> int:
        """The ns that tasks have run, where events have cost so much until now. To ask changes nothing: no
        time passes, and no counting begins.
        """
        clock, cost = self.clock, self.clock.costs.block
        pending = costs - self.charged
        if clock.origin is not None:
            pending += (self.blocks - clock.blocks) * cost
        return min(clock.busy_ns + pending, LAST_NS)

    # ---- the end of the run

    def checkpoint(self) -> None:
        """For long work of a call that changes nothing: if the run is to end, the call is made anew later."""
        if any(cpu.interrupted for cpu in self.cpus):
            raise Unfinished

    # ---- accounts

    def calls_by_name(self) -> dict[str, int]:
        """How often each system call was made, by name, in the order of their numbers."""
        names = self.abi.system_calls
        names = {**names, UNKNOWN: "unknown"}
        return {names.get(i, f"call {i}"): count for i, count in sorted(self.calls_made.items())}

    def peak_memory(self) -> int:
        """The most RAM in use at any time so far, in bytes."""
        return self.physical.peak_frames() << self.physical.frames.page_shift

    def minor_faults(self) -> int:
        """Minor faults, as getrusage has them: all that were resolved, with a copy or without."""
        return self._sums().faults

    def major_faults(self) -> int:
        """Faults for which a page had to be brought from somewhere: from swap, or from a file."""
        return sum(self.physical.counters.n[event] for event in MAJOR_FAULTS)

    def swap_bytes(self) -> tuple[int, int]:
        """Bytes of the swap files that are on, and how many of them are free."""
        swap, size = self.physical.swap, self.physical.ram.page_size
        if swap is None or not swap.on:
            return 0, 0
        on = [part for part in swap.parts if part.on]
        return swap.slots * size, sum(part.slots - part.used for part in on) * size

    def note_pressure(self) -> None:
        """Tasks have stood still for want of memory, or somebody wants to know how long they have."""
        self.pressure.note(self.time_seen(), self._stalled(), alone=not len(self.run_queue))

    def _stalled(self) -> int:
        """What pages that went and came back have cost so far."""
        n = self.physical.counters.n
        again = n[Event.FILE_REFAULT] * self._costs[Event.FILE_READ]
        return again + sum(n[event] * self._costs[event] for event in _STALLS)

    def interrupt_turn(self) -> None:
        """Whoever runs leaves the CPU when its current callback returns: the kernel has something to do."""
        self.entry.cpu.stop()

    def without_pressure(self, work: Callable[[], int]) -> None:
        """Work that takes time, but for which no task stands still."""
        self.note_pressure()
        before = self._stalled()
        work()
        self.pressure.excuse(self._stalled() - before)

    def with_system_v(self) -> SystemV:
        """What processes share by System V's numbers, made at the first use."""
        if self.system_v is None:
            from aether_emu.linux.ipc.system_v import SystemV  # noqa: PLC0415  # few programs use it

            self.system_v = SystemV(self.physical, self.actor, self.clock, self.config.ram)
        return self.system_v

    def with_posix_queues(self) -> PosixQueues:
        """The message queues that processes share by names, made at the first use."""
        if self.posix_queues is None:
            from aether_emu.linux.ipc.posix_queues import PosixQueues  # noqa: PLC0415  # few programs use it

            self.posix_queues = PosixQueues(self.actor, lambda: self.clock.realtime_ns, self.config.ram)
        return self.posix_queues

    # ---- state

    def capture(self) -> dict[str, Any]:
        """The accounts. What else is shared is captured by itself."""
        return {
            "calls_made": dict(self.calls_made),
            "charged": self.charged,
            "books": self._books,
            "accounted": None if self._accounted is None else self._accounted.tid,
            "told": self._told,
            "pressure": self.pressure.capture(),
            "khugepaged": None if self.khugepaged is None else self.khugepaged.capture(),
            "kswapd": self.kswapd is not None and self.kswapd.due,
            "ksm": self.ksm.capture(),
            "task_list": self.task_list,
            "user_faults_for_all": self.user_faults_for_all,
        }

    def restore(self, state: dict[str, Any], tasks: Mapping[int, Accounted]) -> None:
        """Take over what `capture` gave. `tasks` are all, by number."""
        self.calls_made.clear()
        self.calls_made.update(state["calls_made"])
        self.charged, self._books, self._told = state["charged"], state["books"], state["told"]
        self._accounted = tasks.get(state["accounted"])
        self.pressure.restore(state["pressure"])
        if self.khugepaged is not None:
            self.khugepaged.restore(state["khugepaged"])
        if self.kswapd is not None:
            self.kswapd.due = state["kswapd"]
        self.ksm.restore(state["ksm"])
        self.task_list = state["task_list"]
        self.user_faults_for_all = state["user_faults_for_all"]
