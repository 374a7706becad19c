"""One process: its memory, files, signal actions and limits, its tasks, its family, and how it ended.

lives --end()--> over: its tasks are let go of --release()--> zombie --waited for--> gone
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aether_emu.clock import LAST_NS
from aether_emu.errors import AddressError, ConfigError, Refused, shown, whole
from aether_emu.linux.abi import signal as sig
from aether_emu.linux.abi.signal import Action, SignalInfo
from aether_emu.linux.credentials import IPC_LOCK, Credentials
from aether_emu.linux.exec.symbols import Symbols, symbols_of
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.inodes import FileKey
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.maps import Areas, record_of
from aether_emu.linux.task import job_control
from aether_emu.linux.task.children import Children
from aether_emu.linux.task.registers import Registers
from aether_emu.linux.task.registry import RAM_PER_TASK, Registry
from aether_emu.linux.task.signals import ProcessSignals, TaskSignals, enqueue, forget_opposite
from aether_emu.linux.task.timers import PROFILED, ProcessorTimers
from aether_emu.linux.task.usage import Usage
from aether_emu.machine.cpu import Cpu
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.user import ForcedMemory, UserFaulted
from aether_emu.records import dataclass
from aether_emu.waiting import WaitQueue

if TYPE_CHECKING:
    from aether_emu.linux.task.alarms import Alarms

T = TypeVar("T")
_PLAIN = (
    "outer_parent", "group", "session", "exit_signal", "stop_signal", "untold", "has_executed",
    "reaps_orphans", "released", "death_signal", "uses_parents_memory", "made_by", "ended",
    "dumpable", "oom_adjustment", "oom_least", "credentials", "personality", "barriers", "started",
    "name_left", "former_foreground",
)  # fmt: skip
"""What of a process is captured as it is."""

PARENT_PID = 999
"""The first process's parent, which is not of this machine."""
INIT = 1
"""The parent of orphans: nobody, who waits for each of them at once."""
RLIM_INFINITY = (1 << 64) - 1
RLIMITS = 16
RLIMIT_CPU, RLIMIT_DATA, RLIMIT_STACK, RLIMIT_CORE, RLIMIT_NPROC, RLIMIT_NOFILE = 0, 2, 3, 4, 6, 7
RLIMIT_MEMLOCK, RLIMIT_AS, RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE = 8, 9, 11, 12
RLIMIT_NICE, RLIMIT_RTPRIO = 13, 14
_LOCKED_BYTES, _QUEUE_BYTES = 8 << 20, 819_200  # Linux's MLOCK_LIMIT and MQ_BYTES_MAX
# Linux admits half as many signals as stacks of 16 KiB fit into an eighth of RAM.
_RAM_PER_SIGNAL = 2 * 8 * (16 << 10)
NAME_MAX = 15
"""Longest name of a thread, in bytes."""
_SECOND = 10**9  # ns
_TICKS = 100  # of siginfo's times, in a second
CLOCK_OF_THREAD = 4
"""Bit of a processor's clock whose owner is a thread (Linux: CPUCLOCK_PERTHREAD_MASK)."""
PER_MASK, PER_LINUX32 = 0xFF, 8  # of the personality
UNAME26, ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC, STICKY_TIMEOUTS = 0x2_0000, 0x4_0000, 0x40_0000, 0x400_0000


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: by `exit` with `code`, or by `signal` (0 is none).

    `why` says in words what brought the signal, such as "SIGSEGV at 0x10"; it is empty after an `exit`.
    """

    code: int = 0
    signal: int = 0
    why: str = ""

    @property
    def status(self) -> int:
        """The exit status as a shell shows it: 128+N for signal N."""
        return 128 + self.signal if self.signal else self.code & 0xFF

    def __str__(self) -> str:
        """In words: "exit status 3", "killed by SIGSEGV at 0x10"."""
        return f"killed by {self.why or self.signal}" if self.signal else f"exit status {self.status}"


@dataclass
class Program:
    """What was executed, as /proc/self and the auxiliary vector tell it.

    `code` and `data` are the addresses from the start of its own code and data to their ends, `strings` those
    of its arguments, their end and the environment's beginning, and its end.
    `executed` is what execve named, as it did: a script where `path` is its interpreter; empty for the first
    program.
    `file` is the identity of that file, which nobody can open for writing meanwhile.
    `vdso` is the number of the object that has the vDSO's image, `vdso_start` where the process has it or had
    it last, `signal_return` what handlers return to in it: an offset, 0 on an ISA without.
    """

    path: bytes
    arguments: list[bytes]
    environment: list[bytes]
    auxiliary: bytes = b""
    code: tuple[int, int] = (0, 0)
    data: tuple[int, int] = (0, 0)
    strings: tuple[int, int, int] = (0, 0, 0)
    entry: int = 0
    stack_pointer: int = 0
    vdso: int = 0
    vdso_start: int = 0
    signal_return: int = 0
    executed: bytes = b""
    file: FileKey | None = None


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
    ended: bool
    processor: ProcessorTimers | None

    def used(self) -> Usage: ...

    @property
    def running(self) -> bool: ...
    @property
    def cpu(self) -> Cpu: ...
    def stop(self) -> None: ...
    def hear(self, number: int) -> None: ...
    def stop_waiting(self, now: int) -> None: ...
    def go_on_waiting(self, now: int) -> None: ...


class ProcessorLimit:
    """RLIMIT_CPU: SIGXCPU at each second from the soft limit on, SIGKILL at the hard one.

    As on Linux the soft limit moves on by a second with each signal.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self.deadline: int | None = None

    def set(self) -> None:
        """The limit has changed."""
        process, (soft, _) = self._process, self._process.limits[RLIMIT_CPU]
        self.deadline = None if soft >= LAST_NS // _SECOND else soft * _SECOND
        timers = process.processor_timers(~process.pid << 3)
        if self.deadline is not None and timers is not None:
            process.kernel.observe_time()
            timers.add(self, self.deadline, PROFILED, self._expire)

    def _expire(self) -> None:
        process, (soft, hard) = self._process, self._process.limits[RLIMIT_CPU]
        if hard != RLIM_INFINITY and process.used().time >= hard * _SECOND:
            process.post(SignalInfo(sig.SIGKILL, sig.SI_KERNEL))
            return
        process.post(SignalInfo(sig.SIGXCPU, sig.SI_KERNEL))
        process.limits[RLIMIT_CPU] = (soft + 1, hard)
        self.set()


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
        self.parent, self.outer_parent = parent, PARENT_PID
        self.children: Children[Process] = Children()
        self._group = self._session = self.pid
        self.terminal: job_control.Controlling | None = None
        self.former_foreground = 0
        self.exit_signal, self.made_by = sig.SIGCHLD, 0
        self.stop_signal, self.untold = 0, ""
        self.has_executed = self._reaps_orphans = self.released = False
        self.death_signal = 0
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
        self._processor_limit = ProcessorLimit(self)
        self.tasks: list[Member] = []
        self.ended: Ended | None = None
        self.credentials: Credentials = kernel.first_user if parent is None else parent.credentials
        self.dumpable = 1
        self.oom_adjustment = self.oom_least = 0  # oom_score_adj, and how low its user may set it
        self.personality = 0
        self.barriers = 0  # what it has registered for with membarrier(2)
        self._symbols: Symbols | None = None
        self._executes: FileKey | None = None  # as the registry counts it
        self.limits = self._initial_limits()
        self.apply_limit(RLIMIT_MEMLOCK)

    def _initial_limits(self) -> dict[int, tuple[int, int]]:
        limits = dict.fromkeys(range(RLIMITS), (RLIM_INFINITY, RLIM_INFINITY))
        space = self.mm.limits
        limits[RLIMIT_STACK] = (space.stack, RLIM_INFINITY)
        limits[RLIMIT_NPROC] = (self.registry.most // 2,) * 2
        limits[RLIMIT_NOFILE] = (self.config.open_files, self.config.open_files)
        signals = max(self.config.ram // _RAM_PER_SIGNAL, 1)
        limits[RLIMIT_SIGPENDING] = (signals, signals)
        if space.address_space is not None:
            limits[RLIMIT_AS] = (space.address_space, space.address_space)
        limits[RLIMIT_MEMLOCK] = (_LOCKED_BYTES, _LOCKED_BYTES)
        limits[RLIMIT_CORE] = (0, RLIM_INFINITY)
        limits[RLIMIT_MSGQUEUE] = (_QUEUE_BYTES, _QUEUE_BYTES)
        return limits | dict.fromkeys((RLIMIT_NICE, RLIMIT_RTPRIO), (0, 0))

    def apply_limit(self, resource: int) -> None:
        """Let memory and files obey what `limits` says of a resource; with CAP_IPC_LOCK all may be locked."""
        soft, hard = (None if value == RLIM_INFINITY else value for value in self.limits[resource])
        space = self.mm.limits
        if resource == RLIMIT_STACK:
            space.stack = RLIM_INFINITY if soft is None else soft
        elif resource == RLIMIT_AS:
            space.address_space = soft
        elif resource == RLIMIT_DATA:
            space.data, space.data_most = soft, hard
        elif resource == RLIMIT_MEMLOCK:
            space.locked = None if self.credentials.has(IPC_LOCK) else soft
        elif resource == RLIMIT_CPU:
            self._processor_limit.set()
        elif resource == RLIMIT_NOFILE:
            self.files.table.limit = min(RLIM_INFINITY if soft is None else soft, self.config.open_files)

    @property
    def name(self) -> bytes:
        """What its first task is called, or was called at its end."""
        leader = self.leader
        return self.name_left if leader is None else leader.name

    # ---- its family

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
    def parent_pid(self) -> int:
        """getppid(2)."""
        return self.outer_parent if self.parent is None else self.parent.pid

    def fork(self, *, shares_memory: bool, number: int | None = None) -> Process:
        """A child, without tasks and files; `number` is its own, if it must be that one.

        Raises Refused(EAGAIN), OutOfFrames, TableDamaged.
        """
        mm = self.mm if shares_memory else self.mm.fork()
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
        child.limits = dict(self.limits)
        if self.limits[RLIMIT_CPU][0] != RLIM_INFINITY:
            child.apply_limit(RLIMIT_CPU)
        child.dumpable, child.personality = self.dumpable, self.personality
        child.barriers = self.barriers
        child.oom_adjustment, child.oom_least = self.oom_adjustment, self.oom_least
        child.executes(self.program.file)
        self.children.add(child)
        return child

    def tell_parent(self, code: int, status: int) -> None:
        """There is news for the parent: SIGCHLD, as far as it wants one, and it is woken."""
        parent = self.parent
        if parent is None:
            return
        number = self.exit_signal if self.is_over else sig.SIGCHLD
        action = parent.signals.actions[number] if 0 < number <= sig.SIGNALS else None
        if action is not None and (self.is_over or not action.flags & sig.SA_NOCLDSTOP):
            time, system = self.usage.time * _TICKS // _SECOND, self.usage.system * _TICKS // _SECOND
            used = (time - system, system)
            parent.post(
                SignalInfo(number, code, pid=self.pid, uid=self.credentials.uid, value=status, used=used)
            )
        parent.children.tell(self)
        parent.changed.wake()

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
        children = self._orphan_children()
        self.reaps_orphans = False
        job_control.has_ended(self.registry, self, children)
        parent = self.parent
        if parent is None:
            self.vanish()
            return
        self.tell_of_end(parent)

    def tell_of_end(self, parent: Process) -> None:
        """Its parent hears that it is a zombie; one that wants none is rid of it."""
        self.tell_parent(*self.how_it_ended())
        action = parent.signals.actions[self.exit_signal] if self.exit_signal == sig.SIGCHLD else None
        if action is not None and (action.handler == sig.SIG_IGN or action.flags & sig.SA_NOCLDWAIT):
            self.vanish()
            parent.changed.wake()

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

    def guard_proc(self) -> None:
        """Let nobody look into another user's processes by /proc."""
        namespace = self.files.namespace
        namespace.process_owner, namespace.may_inspect = self._owner_of, self._may_inspect

    def _of_number(self, number: int) -> tuple[Process, Credentials] | None:
        """The process of a number or a thread's, and who that is."""
        registry = self.registry
        task = registry.tasks.get(number)
        if task is not None:
            return task.process, task.credentials
        process = registry.processes.get(number)
        return None if process is None else (process, process.credentials)

    def _owner_of(self, number: int, folder: bool) -> tuple[int, int]:
        """See `Namespace.process_owner` (Linux: task_dump_owner)."""
        found = self._of_number(number)
        if found is None or not (folder or found[0].dumpable):
            return 0, 0
        return found[1].euid, found[1].egid

    def _may_inspect(self, number: int) -> bool:
        """See `Namespace.may_inspect`: those of the same process always."""
        found = self._of_number(number)
        if found is None or any(task.running for task in found[0].tasks):
            return True
        who = self.kernel.actor.credentials
        return who.may_inspect(found[1], dumpable=bool(found[0].dumpable))

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

    def how_it_ended(self) -> tuple[int, int]:
        """si_code and si_status of the end."""
        assert self.ended is not None, "it has ended"
        signal = self.ended.signal
        if not signal:
            return sig.CLD_EXITED, self.ended.code
        dumps = signal in sig.DUMPING and self.limits[RLIMIT_CORE][0] > 0
        return sig.CLD_DUMPED if dumps else sig.CLD_KILLED, signal

    def parent_takes_usage(self) -> None:
        """It was waited for: what it and its own children used counts as its parent's children's."""
        if self.parent is not None:
            self.parent.usage_of_children.add(self.usage.plus(self.usage_of_children))

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
        """What it has used until now. Only its own task may ask while one of it runs."""
        running = any(task.running for task in self.tasks)
        return (
            self.usage.plus(self.kernel.used()) if running and self.kernel.observers.running else self.usage
        )

    def leave_memory(self) -> None:
        """It needs its address space no longer, nor its parent's."""
        if self.uses_parents_memory:
            self.uses_parents_memory = False
            self.left_parent.wake()
        if self.parent is not None or self.outer_parent == INIT:  # the first one's is kept, to be looked at
            self.mm.let_go()

    def _orphan_children(self) -> list[Process]:
        """Their parent is gone: a near ancestor takes them (PR_SET_CHILD_SUBREAPER), or init."""
        children = list(self.children)
        ancestor = self.parent if children and self.registry.reapers else None
        while ancestor is not None and (not ancestor.reaps_orphans or ancestor.is_over):
            ancestor = ancestor.parent
        for child in children:
            self.children.remove(child)
            child.parent, child.outer_parent, child.exit_signal = ancestor, INIT, sig.SIGCHLD
            self._tell_of_death(child)
            if ancestor is not None:
                ancestor.adopt(child)
                ancestor.changed.wake()
                if child.released:
                    child.tell_of_end(ancestor)
            elif child.released:
                child.vanish()
        return children

    def adopt(self, child: Process) -> None:
        """Be the one who hears of `child` from now on."""
        child.parent = self
        self.children.add(child)
        if child.released or child.untold:
            self.children.tell(child)

    def _tell_of_death(self, child: Process) -> None:
        """PR_SET_PDEATHSIG of a child whose parent has ended, or the thread of it that made the child."""
        if child.death_signal and not child.is_over:
            child.post(SignalInfo(child.death_signal, sig.SI_USER, pid=self.pid, uid=self.credentials.uid))

    def thread_ended(self, tid: int) -> None:
        """A thread of it has ended, and it goes on: another is the parent of what that one made."""
        others = [task.tid for task in self.tasks if not task.is_over]
        for child in self.children:
            if child.made_by == tid and others:
                child.made_by = others[0]
                self._tell_of_death(child)

    def vanish(self) -> None:
        """Nobody waits for it any more: its number is free."""
        if self.parent is not None:
            self.parent.children.remove(self)
        if self.registry.leave(self):
            self.registry.zombies -= self.released

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
        in_call = self.kernel.observers.running and any(task.running for task in self.tasks)
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
            self.tell_parent(sig.CLD_STOPPED, signal)
            now = self.kernel.clock.now_ns
            for task in self.tasks:
                task.stop_waiting(now)
                task.stop()

    def go_on(self) -> None:
        """SIGCONT: it runs again, whatever becomes of the signal itself."""
        if self.stop_signal:
            self.stop_signal, self.untold = 0, "continued"
            self.tell_parent(sig.CLD_CONTINUED, sig.SIGCONT)
            for task in self.tasks:
                task.go_on_waiting(self.kernel.clock.now_ns)
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
            "parent": None if self.parent is None else self.parent.pid,
            "children": [child.pid for child in self.children],
            "has_terminal": self.terminal is not None,
            "program": copy.deepcopy(self.program),
            "limits": dict(self.limits),
            "signals": self.signals.capture(),
            "timers": None if self._timers is None else self._timers.capture(),
            "usage": (copy.copy(self.usage), copy.copy(self.usage_of_children)),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `capture` gave. The whole family is there already."""
        family = self.registry.processes
        self.parent = None if state["parent"] is None else family[state["parent"]]
        self.program = copy.deepcopy(state["program"])
        self.executes(None if state["released"] else self.program.file)
        self.limits = dict(state["limits"])
        self.signals.restore(state["signals"])
        self.usage, self.usage_of_children = map(copy.copy, state["usage"])
        for name in _PLAIN:
            setattr(self, name, state[name])
        self.registry.zombies += self.released

    def restore_timers(self, state: dict[str, Any]) -> None:
        """Its timers go on. The clock stands where it stood; all processes and tasks are there already."""
        if state["timers"] is not None:
            self.timers.restore(state["timers"])
        self.apply_limit(RLIMIT_CPU)

    def restore_children(self, state: dict[str, Any]) -> None:
        """Know them again, once all of the family are restored."""
        for pid in state["children"]:
            self.adopt(self.registry.processes[pid])
