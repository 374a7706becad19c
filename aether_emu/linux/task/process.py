"""One process: its memory, files, signal actions and limits, its tasks, its family, and how it ended.

lives --end()--> over: its tasks are let go of --release()--> zombie --waited for--> gone
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aether_emu.errors import AddressError, ConfigError, Refused, shown, whole
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import Action, SignalInfo
from aether_emu.linux.credentials import Credentials
from aether_emu.linux.exec.symbols import Symbols, symbols_of
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.inodes import FileKey
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.maps import Areas, record_of
from aether_emu.linux.task import family, job_control
from aether_emu.linux.task.body import RUNNING, SLEEPS, STOPPED, ZOMBIE, Body
from aether_emu.linux.task.children import Children
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.file_sizes import RLIMIT_FSIZE
from aether_emu.linux.task.program import Program
from aether_emu.linux.task.real_time import RLIMIT_RTTIME
from aether_emu.linux.task.registers import Registers
from aether_emu.linux.task.registry import RAM_PER_TASK, Registry
from aether_emu.linux.task.resource_limits import (
    RLIM_INFINITY,
    RLIMIT_CPU,
    RLIMIT_MEMLOCK,
    RLIMIT_SIGPENDING,
    ResourceLimits,
)
from aether_emu.linux.task.signals import ProcessSignals, TaskSignals, enqueue, forget_opposite
from aether_emu.linux.task.timers import ProcessorTimers
from aether_emu.linux.task.usage import Usage
from aether_emu.linux.task.wait import Wait
from aether_emu.machine.cpu import Cpu
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.user import ForcedMemory, UserFaulted
from aether_emu.waiting import WaitQueue

if TYPE_CHECKING:
    from aether_emu.linux.task.alarms import Alarms

T = TypeVar("T")
_PLAIN = (
    "outer_parent", "group", "session", "exit_signal", "stop_signal", "untold", "has_executed",
    "reaps_orphans", "released", "uses_parents_memory", "made_by", "ended",
    "dumpable", "oom_adjustment", "oom_least", "credentials", "personality", "barriers", "started",
    "name_left", "former_foreground",
)  # fmt: skip
"""What of a process is captured as it is."""

PARENT_PID = 999
"""The first process's parent, which is not of this machine."""
NAME_MAX = 15
"""Longest name of a thread, in bytes."""
CLOCK_OF_THREAD = 4
"""Bit of a processor's clock whose owner is a thread (Linux: CPUCLOCK_PERTHREAD_MASK)."""
PER_MASK, PER_LINUX32 = 0xFF, 8  # of the personality
UNAME26, ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC, STICKY_TIMEOUTS = 0x2_0000, 0x4_0000, 0x40_0000, 0x400_0000


class Member(Protocol):
    """A task, as its process sees it."""

    @property
    def tid(self) -> int: ...
    @property
    def name(self) -> bytes: ...
    @property
    def signals(self) -> TaskSignals: ...
    @property
    def waits(self) -> int: ...
    @property
    def files(self) -> Files: ...
    @property
    def process(self) -> Process: ...
    @property
    def credentials(self) -> Credentials: ...
    @property
    def is_over(self) -> bool: ...

    registers: dict[str, int]
    usage: Usage
    ended: bool
    death_signal: int
    memory_policy: int
    processor: ProcessorTimers | None
    body: Body
    wait: Wait | None

    def used(self) -> Usage: ...

    @property
    def working(self) -> bool: ...

    @property
    def running(self) -> bool: ...
    @property
    def cpu(self) -> Cpu: ...
    def stop(self) -> None: ...
    def hear(self, number: int) -> None: ...
    def stop_waiting(self, now: int) -> None: ...
    def go_on_waiting(self, now: int) -> None: ...


class Process:
    """A process.

    `mm` is its address space, which it holds until it is released. `tasks` are its living threads, the first
    one first; a task enters itself when it is made. `personality` has the bits of personality(2). `ended` is
    None while it lives, and never changes afterwards. `limits` are resource -> (soft, hard), as getrlimit
    shows them. `files` is set by whoever makes the process, before it runs. `registry` is given where a
    process without a parent is not the first. `started` is when it was made, in ns of virtual time,
    `name_left` what its first thread was called at its end.

    Its family: `parent` is None for the first one and orphans, `outer_parent` then says who is. `children`
    are those that it has not waited for, the oldest first; `exit_signal` is what its parent gets at its end,
    `made_by` the parent's task that made it.
    `terminal` is its controlling terminal; `former_foreground` is of `job_control`.
    `credentials` are those of its first thread, or were; `dumpable` is what PR_SET_DUMPABLE set.

    `stop_signal` stopped it, 0 is none; `untold` is what of that its parent has not been told: a stop
    ("stopped"), or that it goes on ("continued"). `changed` is woken whenever there is news of a child,
    `left_parent` once a process that was made by vfork needs its parent's memory no longer. `released` says
    that it is a zombie. `arrived` is woken by each signal for it or a task of it, `gone`
    once it is a zombie.
    """

    files: Files

    def __init__(
        self,
        kernel: Kernel,
        mm: AddressSpace,
        program: Program,
        *,
        pid: int | None = None,
        parent: Process | None = None,
        registry: Registry[Process, Member] | None = None,
    ) -> None:
        self.kernel, self.config, self.abi = kernel, kernel.config, kernel.abi
        self.mm = mm
        self.program = program
        if registry is None and parent is not None:
            registry = parent.registry
        self.registry: Registry[Process, Member] = registry or Registry(
            max(kernel.config.ram // RAM_PER_TASK, 2)
        )
        self.pid = self.registry.number() if pid is None else pid
        self.body: Body | None = None  # its first thread's, until nobody waits for it any more
        self._parent, self.outer_parent = parent, PARENT_PID
        self.children: Children[Process] = Children()
        self._group = self._session = self.pid
        self.terminal: job_control.Controlling | None = None
        self.former_foreground = 0
        self.exit_signal, self.made_by = sig.SIGCHLD, 0
        self.stop_signal, self.untold = 0, ""
        self.has_executed = self._reaps_orphans = self.released = False
        self.changed, self.left_parent, self.arrived = WaitQueue(), WaitQueue(), WaitQueue()
        self.gone = WaitQueue()
        self.uses_parents_memory = False
        self.registry.enter(self)
        self.usage, self.usage_of_children = Usage(), Usage()
        self.started = kernel.clock.now_ns
        self.name_left = program.path.rsplit(b"/", 1)[-1][:NAME_MAX]
        self.signals = ProcessSignals()
        self._timers: Alarms | None = None
        self.processor: ProcessorTimers | None = None  # once somebody set a timer by its time
        self.tasks: list[Member] = []
        self.ended: Ended | None = None
        self.credentials: Credentials = kernel.first_user if parent is None else parent.credentials
        self.dumpable = 1
        self.oom_adjustment = self.oom_least = 0  # oom_score_adj, and how low its user may set it
        self.personality = 0
        self.barriers = 0  # what it has registered for with membarrier(2)
        self._symbols: Symbols | None = None
        self._executes: FileKey | None = None  # as the registry counts it
        self.limits = ResourceLimits(self)
        self.limits.apply(RLIMIT_MEMLOCK)

    @property
    def name(self) -> bytes:
        """What its first task is called, or was called at its end."""
        leader = self.leader
        return self.name_left if leader is None else leader.name

    # ---- what it is in the machine's memory

    def embody(self, task: Member) -> None:
        """A new task's body says what it is."""
        body, who = task.body, task.credentials
        if self.body is None and task.tid == self.pid:
            self.body = body
            body.enlist(self.kernel.task_list)
        body.note(
            pid=task.tid,
            tgid=self.pid,
            uid=who.uid,
            gid=who.gid,
            mm=self.mm.object,
            real_parent=self._address_of_parent,
            group_leader=0 if self.body is None else self.body.address,
            start_time=self.kernel.clock.now_ns,
            comm=task.name,
        )

    def lead(self, task: Member) -> None:
        """A thread has become the first one, for it executes another program."""
        before, self.body = self.body, task.body
        if before is None or before is task.body:
            return
        task.body.note(pid=self.pid, group_leader=task.body.address)
        task.body.enlist(self.kernel.task_list)
        if not before.stack:
            before.free()

    def disembody(self, task: Member) -> None:
        """A thread is gone; what the first one was stays, until nobody waits for the process."""
        body = task.body
        if body is not self.body:
            body.free()
        elif body.stack:
            body.leave_stack()
            body.note(exit_state=ZOMBIE)

    def forget_body(self) -> None:
        """Nobody knows it any more."""
        if self.body is not None:
            self.body.free()
            self.body = None

    def leave_bodies(self) -> None:
        """The machine ends: nothing of it and its threads is left in memory."""
        for task in self.tasks:
            task.body.free()
        self.forget_body()

    @property
    def _address_of_parent(self) -> int:
        body = None if self._parent is None else self._parent.body
        return self.kernel.task_list if body is None else body.address

    # ---- its family

    @property
    def parent(self) -> Process | None:
        """Its parent."""
        return self._parent

    @parent.setter
    def parent(self, parent: Process | None) -> None:
        self._parent = parent
        for body in dict.fromkeys([self.body, *(task.body for task in self.tasks)]):
            if body is not None:
                body.note(real_parent=self._address_of_parent)

    @property
    def group(self) -> int:
        """Its process group (getpgrp(2))."""
        return self._group

    @group.setter
    def group(self, number: int) -> None:
        before, self._group = self._group, number
        self.registry.regroup(self, before)

    @property
    def session(self) -> int:
        """Its session (getsid(2))."""
        return self._session

    @session.setter
    def session(self, number: int) -> None:
        before, self._session = self._session, number
        self.registry.change_session(self, before)

    @property
    def reaps_orphans(self) -> bool:
        """Whether orphans among its descendants become its children (PR_SET_CHILD_SUBREAPER)."""
        return self._reaps_orphans

    @reaps_orphans.setter
    def reaps_orphans(self, wanted: bool) -> None:
        self.registry.reapers += wanted - self._reaps_orphans
        self._reaps_orphans = wanted

    @property
    def is_first(self) -> bool:
        """Whether no process of the machine has made it."""
        return self.parent is None and self.outer_parent != family.INIT

    @property
    def parent_pid(self) -> int:
        """getppid(2)."""
        return self.outer_parent if self.parent is None else self.parent.pid

    def fork(self, *, shares_memory: bool, number: int | None = None) -> Process:
        """A child, without tasks and files; `number` is its own, if it must be that one.

        Raises Refused(EAGAIN, ENOMEM), OutOfFrames, TableDamaged.
        """
        if not shares_memory:
            self.mm.account.require_fork()
        mm = self.mm if shares_memory else self.kernel.physical.with_room(self.mm.fork)
        try:
            child = Process(self.kernel, mm, copy.copy(self.program), pid=number, parent=self)
        except Refused:
            if not shares_memory:
                mm.destroy()
            raise
        if shares_memory:
            mm.users += 1
        child.group, child.session, child.terminal = self.group, self.session, self.terminal
        child.signals.actions = list(self.signals.actions)
        child.limits.update(self.limits)
        if self.limits[RLIMIT_CPU][0] != RLIM_INFINITY:
            child.limits.apply(RLIMIT_CPU)
        child.dumpable, child.personality = self.dumpable, self.personality
        child.barriers = self.barriers
        child.oom_adjustment, child.oom_least = self.oom_adjustment, self.oom_least
        child.executes(self.program.file)
        self.children.add(child)
        return child

    def release(self) -> None:
        """Its last task is gone: it gives back files and memory, and is a zombie until it is waited for."""
        assert self.ended is not None, "it has ended"
        self.released = True
        self.gone.wake()
        self.registry.zombies += 1
        if self.terminal is not None or self.former_foreground:
            job_control.leave_terminal(self.registry, self, ends=True)
        self.close_files()
        self.leave_memory()
        self.executes(None)
        children = family.orphan_children(self)
        self.reaps_orphans = False
        job_control.has_ended(self.registry, self, children)
        if self.parent is None:
            family.vanish(self)
            return
        family.tell_of_end(self, self.parent)

    @property
    def leader(self) -> Member | None:
        """Its first thread; None once that has ended, though others live on."""
        return next((task for task in self.tasks if task.tid == self.pid), None)

    def close_files(self) -> None:
        """It has ended: its files, and those that threads have by themselves."""
        for files in {self.files: None, **{task.files: None for task in self.tasks}}:
            files.close_all()

    def leave_files(self, files: Files) -> None:
        """A thread with these has ended: they are closed unless others have them."""
        if files is not self.files and all(task.files is not files for task in self.tasks):
            files.close_all()

    def keep_files(self, task: Member) -> None:
        """The files of `task` are the process's from now on: it is its only thread."""
        for other in {self.files: None, **{each.files: None for each in self.tasks}}:
            if other is not task.files:
                other.close_all()
        self.files = task.files

    def executes(self, key: FileKey | None) -> None:
        """It executes that file now, which nobody may open for writing meanwhile (ETXTBSY); None: nothing."""
        executed = self.registry.executed
        if self._executes is not None:
            executed[self._executes] -= 1
            if not executed[self._executes]:
                del executed[self._executes]
        if key is not None:
            executed[key] += 1
        self._executes = key

    @property
    def timers(self) -> Alarms:
        """Its timers that send signals: most programs have none."""
        if self._timers is None:
            from aether_emu.linux.task.alarms import Alarms  # noqa: PLC0415  # as said

            self._timers = Alarms(self)
        return self._timers

    def taken(self, info: SignalInfo) -> SignalInfo:
        """A signal of it is taken: what its receiver is told."""
        return info if self._timers is None else self._timers.taken(info)

    def clear_timers(self, *, keeps_intervals: bool) -> None:
        """It has ended, or another program begins, which keeps the interval timers."""
        if self._timers is not None:
            self._timers.clear(keeps_intervals=keeps_intervals)

    def processor_timers(self, clock: int) -> ProcessorTimers | None:
        """The timers that run by a processor's clock, as it names its owner; None if that has ended."""
        owner: Process | Member | None
        if clock & CLOCK_OF_THREAD:
            owner = self.registry.tasks.get(~(clock >> 3))
        else:
            owner = self.registry.processes.get(~(clock >> 3))
        if owner is None:
            return None
        if owner.processor is None:
            owner.processor = ProcessorTimers(owner.used)
        return owner.processor

    def used(self) -> Usage:
        """What it has used until now."""
        self.kernel.settle_books()
        return self.usage

    def leave_memory(self) -> None:
        """It needs its address space no longer, nor its parent's."""
        if self.uses_parents_memory:
            self.uses_parents_memory = False
            self.left_parent.wake()
        if not self.is_first:
            self.mm.let_go()
            if self.body is not None:
                self.body.note(mm=0)
        elif any(not (each.released or each.is_first) for each in self.registry.processes.values()):
            self.mm.outlive()  # it is kept to be looked at; its pages only while nobody else may need them

    # ---- to look at it from outside

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes of its memory, as a debugger reads them: PROT_NONE too, and pages not yet there.

        Raises AddressError at the first address that is not mapped.
        """
        address, length = whole("address", address), whole("length", length)
        memory = ForcedMemory(self.mm)
        return self._accessed(lambda: memory.read(address, length), address, length)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store `data`, as a debugger does: read-only private memory is copied first. Code never runs stale.

        Raises AddressError at the first address that cannot be written so; what is before it is written.
        """
        address = whole("address", address)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ConfigError("data", data, "bytes, a bytearray or a memoryview")
        memory, raw = ForcedMemory(self.mm), bytes(data)
        self._accessed(lambda: memory.write(address, raw), address, len(raw))

    def _accessed(self, access: Callable[[], T], address: int, length: int) -> T:
        self.kernel.require_open()
        if not 0 <= address <= address + length <= 1 << 64:
            raise AddressError("range of memory", address, f"{length} bytes from there are not in 64 bits")
        try:
            return access()
        except UserFaulted as fault:
            area = self.mm.areas.find(fault.va)
            why = "nothing is mapped there" if area is None else f"{area} does not have it"
            raise AddressError("address of the process", fault.va, why) from None

    @property
    def areas(self) -> Areas:
        """Its areas at this moment, as records; `print` them for the lines of /proc/PID/maps."""
        self.kernel.require_open()
        return Areas(record_of(self.mm, area) for area in self.mm.areas)

    @property
    def registers(self) -> Registers:
        """The registers of its first task: read at any time, set while the program stands still."""
        self.kernel.require_open()
        return Registers(self.abi.isa, self.tasks[0], self.kernel.require_open)

    @property
    def symbols(self) -> Symbols:
        """Names of the program's own functions and data, read from its file once: `symbols["main"]` is the
        address, `symbols.at(pc)` what stands there. Empty for a stripped program.
        """
        self.kernel.require_open()
        if self._symbols is None:
            self._symbols = symbols_of(self.files, self.program)
        return self._symbols

    def __repr__(self) -> str:
        name = shown(self.program.path)
        if self.kernel.closed:
            return f"<Process {self.pid} {name}: {self.ended or 'lived'}, the machine is closed>"
        state = "lives" if self.ended is None else repr(self.ended)
        return f"<Process {self.pid} {name}: {len(self.mm.areas)} areas, {state}>"

    # ---- signals

    def post(self, info: SignalInfo) -> bool:
        """Send a signal to the process: the first task that does not block it takes it.

        Whether it waits: one that is ignored does not. Raises Refused(EAGAIN), see `signals.enqueue`.
        """
        forget_opposite(info.number, self)
        if info.number in (sig.SIGCONT, sig.SIGKILL):
            self.go_on()
        takers = [task for task in self.tasks if not task.signals.blocks(info.number) and not task.is_over]
        if takers and self.signals.is_ignored(info.number):
            return False
        enqueue(self.signals.pending, info, self)
        if takers:
            takers[0].signals.update()
        self.signalled(info.number)
        return True

    def signalled(self, number: int) -> None:
        """A signal is pending. Who waits for it hears of it, and none of its tasks needs to run to be
        stopped or killed.
        """
        self.arrived.wake()
        for task in self.tasks:
            task.hear(number)
        in_call = self.kernel.observers.running and any(task.working for task in self.tasks)
        if in_call or self.is_over:
            return  # when its call returns
        if number == sig.SIGKILL:
            self.die(sig.SIGKILL, sig.name_of(sig.SIGKILL))
        elif self.signals.stops(number):
            for task in self.tasks:
                if task.signals.ready() >> number - 1 & 1:
                    self.forget(number)
                    if self.can_stop(number):
                        self.stop(number)
                    break

    def can_stop(self, number: int) -> bool:
        """Whether a signal that stops by default does so: those of a terminal not in an orphaned group."""
        return number == sig.SIGSTOP or not job_control.is_orphaned(self.registry, self.group)

    def notices(self, number: int) -> bool:
        """Whether it handles, ignores or blocks a signal, and does not let it do what it does by default."""
        handled = self.signals.actions[number].handler != sig.SIG_DFL
        return handled or all(task.signals.blocks(number) for task in self.tasks)

    @property
    def queued_signals(self) -> int:
        """How many are queued for all processes of its user (`SigQ`): that is what the limit counts."""
        user, processes = self.credentials.uid, self.registry.processes.values()
        return sum(other.own_signals for other in processes if other.credentials.uid == user)

    @property
    def own_signals(self) -> int:
        """How many signals are queued for it and its tasks, or set aside by its timers."""
        of_tasks = sum(task.signals.pending.queued for task in self.tasks)
        aside = 0 if self._timers is None else self._timers.idle_records
        return self.signals.pending.queued + of_tasks + aside

    @property
    def signal_limit(self) -> int:
        """How many may be (RLIMIT_SIGPENDING)."""
        return self.limits[RLIMIT_SIGPENDING][0]

    def has_memory_above(self, address: int) -> bool:
        """Whether an area lies at `address` or above it."""
        return self.mm.areas.following(address) is not None

    def set_action(self, number: int, action: Action) -> None:
        """sigaction(2). What is ignored from now on is not pending either."""
        self.signals.actions[number] = action
        if self.signals.is_ignored(number):
            self.forget(number)

    def forget(self, number: int) -> None:
        """Drop what waits of a signal, for the process and for each task."""
        self.signals.pending.drop(number)
        if self._timers is not None:
            self._timers.forget(number)
        for task in self.tasks:
            task.signals.pending.drop(number)
            task.signals.update()

    def signal_return(self) -> int:
        """Where handlers return to that name no other place: in the vDSO, which mremap may have moved.

        Where it was, if it has been unmapped. 0 on an ISA without such a place.
        """
        program = self.program
        shown = (area.start for area in self.mm.areas if area.backing and area.backing.number == program.vdso)
        area = self.mm.areas.find(program.vdso_start)
        if area is None or area.backing is None or area.backing.number != program.vdso:
            program.vdso_start = next(shown, program.vdso_start)
        return program.vdso_start + program.signal_return if program.signal_return else 0

    # ---- the end

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.ended is not None

    def stop(self, signal: int) -> None:
        """It is stopped by a signal: no task of it runs until SIGCONT or SIGKILL."""
        if not self.stop_signal:
            self.stop_signal, self.untold = signal, "stopped"
            family.tell_parent(self, sig.CLD_STOPPED, signal)
            now = self.kernel.clock.now_ns
            for task in self.tasks:
                task.stop_waiting(now)
                task.stop()
                task.body.note(state=STOPPED)

    def go_on(self) -> None:
        """SIGCONT: it runs again, whatever becomes of the signal itself."""
        if self.stop_signal:
            self.stop_signal, self.untold = 0, "continued"
            family.tell_parent(self, sig.CLD_CONTINUED, sig.SIGCONT)
            for task in self.tasks:
                task.go_on_waiting(self.kernel.clock.now_ns)
                task.body.note(state=RUNNING if task.wait is None else SLEEPS)
            self.kernel.run_queue.look_at(self)

    def end(self, ended: Ended) -> None:
        """The process is over. A CPU that runs one of its tasks stops when its current callback returns."""
        if self.ended is None:
            self.ended, self.stop_signal = ended, 0
            self.clear_timers(keeps_intervals=False)
        self.kernel.run_queue.look_at(self)
        for task in self.tasks:
            task.stop()

    def die(self, signal: int, why: str) -> None:
        """It is killed by a signal; `why` is for people."""
        self.end(Ended(signal=signal, why=why))

    # ---- state

    def capture(self) -> dict[str, Any]:
        """What is the process's own; its memory and files are captured by themselves."""
        return {
            "pid": self.pid,
            "body": None if self.body is None or self.body.stack else self.body.capture(),
            "parent": None if self.parent is None else self.parent.pid,
            "children": [child.pid for child in self.children],
            "tasks": [task.tid for task in self.tasks],
            "terminal": None if self.terminal is None else self.terminal.number,
            "program": copy.deepcopy(self.program),
            "limits": dict(self.limits),
            "signals": self.signals.capture(),
            "timers": None if self._timers is None else self._timers.capture(),
            "usage": (copy.copy(self.usage), copy.copy(self.usage_of_children)),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `capture` gave. The whole family is there already."""
        everybody = self.registry.processes
        if state["body"] is not None:
            self.body = Body(self.kernel.physical.slabs)
            self.body.restore(state["body"])
        self.parent = None if state["parent"] is None else everybody[state["parent"]]
        self.program = copy.deepcopy(state["program"])
        self.executes(None if state["released"] else self.program.file)
        self.limits.update(state["limits"])
        self.signals.restore(state["signals"])
        self.usage, self.usage_of_children = map(copy.copy, state["usage"])
        for name in _PLAIN:
            setattr(self, name, state[name])
        self.registry.zombies += self.released

    def restore_timers(self, state: dict[str, Any]) -> None:
        """Its timers go on. The clock stands where it stood; all processes and tasks are there already."""
        if state["timers"] is not None:
            self.timers.restore(state["timers"])
        self.limits.apply(RLIMIT_CPU)
        self.limits.apply(RLIMIT_RTTIME)
        if not self.released:
            self.limits.apply(RLIMIT_FSIZE)

    def restore_children(self, state: dict[str, Any]) -> None:
        """Know them again, once all of the family are restored."""
        for pid in state["children"]:
            family.adopt(self, self.registry.processes[pid])
