"""Assembly: one place wires a machine from a `Config`, runs a program on it, and takes it apart.

Machine
  Computer ---- Ram, Aperture, Buddy, Cpu, Physical, KernelHalf    (`computer`: what any system needs)
  Kernel ---- Entry, Scheduler                                     (Linux: what processes share, the way in)
  Process ---- AddressSpace, Files, Task                           (who is run)
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Unpack, cast, overload

from aether_emu import equipment
from aether_emu.arch.paging import Access
from aether_emu.clock import VirtualClock, host_clock
from aether_emu.computer import Computer, unicorn_cpus
from aether_emu.config import Config, Options
from aether_emu.errors import (
    ConfigError,
    MachineError,
    OutOfFrames,
    ProgramError,
    TimedOut,
    shown,
    suggestion,
    whole,
)
from aether_emu.grants import (
    Grants,
    call_names,
    checked_grants,
    complete_streams,
    host_path,
    program_texts,
    program_variables,
    run_seconds,
    visible,
)
from aether_emu.interruption import Undisturbed
from aether_emu.isas import kernel_base_of, parts_of
from aether_emu.linux.entry import Entry
from aether_emu.linux.exec.loader import load_program
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.hugetlbfs import mount_pools
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.streams import Stream
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.mappable import connect_mappings
from aether_emu.linux.observers import Attachment, require_callable
from aether_emu.linux.proc.texts import ProcessTexts
from aether_emu.linux.slabs import close_slabs
from aether_emu.linux.task import job_control
from aether_emu.linux.task.body import Body
from aether_emu.linux.task.ended import Ended
from aether_emu.linux.task.process import NAME_MAX, Process
from aether_emu.linux.task.program import Program
from aether_emu.linux.task.scheduler import Interrupted, Pause, Scheduler
from aether_emu.linux.task.task import Task
from aether_emu.mm.huge_pools import Pools
from aether_emu.mm.limits import Limits
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.area import SlotLeak
from aether_emu.ports import NO_TRACE, Checker, Trace, checker
from aether_emu.random import Streams
from aether_emu.rules import device_names, format_size, pool_sizes

if TYPE_CHECKING:
    from aether_emu.linux.debugging import AccessHandler, Debugger, HaltHandler, Stopped
    from aether_emu.linux.handlers import CallHandler, FaultHandler, Handlers
    from aether_emu.linux.tty.console import Console
    from aether_emu.linux.tty.terminal import Terminal
    from aether_emu.machine.unicorn.arm64 import ArmCpu
    from aether_emu.machine.unicorn.x86_64 import X86Cpu

_MOST_BLOCKS = 1 << 61  # that the CPU's counter holds, with what it has counted


class Machine:
    """An emulated computer that runs one Linux program. Options are the fields of `Config`.

        with Machine("x86_64", ram="256M", seed=7) as machine:
            process = machine.load("guest/bin/x86_64/tour", ["tour"])
            ended = machine.run()
            print(process.mm.walk(process.program.entry))

    What can be looked at and changed while the program stands still: `process.read`, `write`, `registers`,
    `areas`, `mm`. What can be asked to happen on the way: `on_fault`, `on_system_call`, `observers.attach`.
    A machine is used by one thread at a time, but for `stop`. `arch` is "x86_64" or "arm64". `pause` is
    called again and again while the guest waits for input; it may raise to end the run. `live_state=False`
    reads and sets the CPU's state by the engine's API alone, which is slower. `scheduler` and `chance` make
    the scheduler and the streams of the seed: `explore` has others. Raises ConfigError.
    """

    def __init__(
        self,
        arch: str = "x86_64",
        *,
        config: Config | None = None,
        trace: Trace = NO_TRACE,
        live_state: bool = True,
        pause: Callable[[], None] = lambda: None,
        scheduler: Callable[..., Scheduler] = Scheduler,
        chance: Callable[[int], Streams] = Streams,
        **options: Unpack[Options],
    ) -> None:
        if config is not None and not isinstance(config, Config):
            raise ConfigError("config", config, "a Config, such as Config.load() makes")
        require_callable(pause)
        if config is not None and options:
            raise ConfigError(
                *next(iter(options.items())), "put it into `config`, which stands for all options"
            )
        self.config = (
            config if config is not None else Config.load(overrides=cast("dict[str, object]", options))
        )
        isa = parts_of(arch, self.config)
        self.kernel_base = kernel_base_of(self.config, isa.format)
        self.format, self.abi = isa.format, isa.abi
        self.streams = chance(self.config.seed)
        self.clock = host_clock() if self.config.real_time else VirtualClock(self.config.clock)
        cpus = unicorn_cpus(
            arch,
            self.format,
            ticks=self.ticks,
            random=self.streams.stream(isa.random).u64,
            live_state=live_state,
            tag_bits=isa.tag_bits,
        )
        ram, aperture = self.config.ram, self.config.aperture
        try:
            self.computer = Computer(
                self.format,
                cpus,
                ram=ram,
                aperture=aperture,
                cpus=self.config.cpus,
                kernel_base=self.kernel_base,
                flush_ceiling=self.config.shootdown_pages,
                host_step=self.config.host_step,
                allocator=equipment.allocator(self.config),
                tlb=equipment.flusher(self.config, self.streams),
                trace=trace,
                tags=isa.tags,
                split=self.config.kpti,
                register_pages=len(device_names(self.config.devices)),
            )
        except OutOfFrames as error:
            raise ConfigError("ram", ram, "enough for the page tables of the machine") from error
        self.ram, self.aperture = self.computer.ram, self.computer.aperture
        self.frames, self.buddy = self.computer.frames, self.computer.buddy
        self.physical = self.computer.physical
        equipment.equip_memory(self.computer, self.config)
        assert self.computer.kernel_half is not None, "it has a base"
        self.kernel_half = self.computer.kernel_half
        self.kernel = Kernel(
            self.computer.cpus, self.physical, self.abi, self.config, self.clock, self.streams
        )
        self.kernel.new_space, self.kernel.show = self._empty_space, ProcessTexts
        self.board = equipment.equip_kernel(self.kernel, self.computer, self.kernel_base)
        self.combining: object = None  # who counts bursts of stores: `observe.combining`
        self.observers = self.kernel.observers
        self.entries = [Entry(self.kernel, percpu) for percpu in self.computer.percpu]
        self.scheduler = scheduler(
            self.kernel, self.entries, pause=pause, lost_pages=self.computer.lost_pages
        )
        self.namespace: Namespace | None = None
        self.process: Process | None = None
        equipment.begin_scans(self.kernel, self.computer, self._spaces)
        self.tlbsan: Checker | None = None
        if self.config.tlbsan:
            self.sanitize()
        self._end_told = False  # a run has returned the end
        self._runner, self._block, self._stop_asked = 0, cast("Undisturbed | None", None), False

    def _spaces(self) -> list[AddressSpace]:
        """Those of all living processes."""
        living = [] if self.process is None else self.process.registry.processes.values()
        return list({id(each.mm): each.mm for each in living if not each.released}.values())

    def sanitize(self) -> None:
        """Have TLBSan look on from now on. Before the first run, or the first one of a restored machine."""
        self.config = replace(self.config, tlbsan=True)
        self.tlbsan = checker("tlbsan", self)

    @property
    def entry(self) -> Entry:
        """The way into the kernel of the CPU that works now."""
        return self.scheduler.entry

    @property
    def cpu(self) -> X86Cpu | ArmCpu:
        """The CPU that works now."""
        return self.computer.cpus[self.entry.percpu.index]

    def interrupt(self) -> None:
        """From any thread: let the run end with `scheduler.Interrupted`, as soon as the program is left."""
        for cpu in self.computer.cpus:
            cpu.interrupt()

    @functools.cached_property
    def handlers(self) -> Handlers:
        """Those who decide in the kernel's stead: see `on_fault` and `on_system_call`."""
        from aether_emu.linux.handlers import Handlers  # noqa: PLC0415  # few runs have any

        return Handlers(self.entries)

    @functools.cached_property
    def debugger(self) -> Debugger:
        """What a run stops for before the program's end."""
        from aether_emu.linux.debugging import Debugger  # noqa: PLC0415  # few runs do

        return Debugger(self.kernel, self.entries)

    def load(
        self,
        program: str | os.PathLike[str],
        argv: Sequence[str | bytes] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        grants: Grants | None = None,
        streams: Mapping[str, Stream] | None = None,
    ) -> Process:
        """Load a program of the host, ready to run. `argv[0]` is its name.

        With `grants.root` the program is looked up in the guest, as the guest would; otherwise it is
        granted read-only under its own absolute path, links resolved. `streams` are its "stdin", "stdout" and
        "stderr"; those that are missing are the host's. Raises ProgramError, ConfigError, MachineError.
        """
        self.kernel.require_open()
        if self.process is not None:
            had = (
                "has a program already"
                if self.scheduler.tasks or self.process.ended
                else "failed to load one"
            )
            raise ProgramError(f"{shown(os.fspath(program))}: the machine {had}; a new machine takes another")
        program, grants = host_path("program", program), checked_grants(grants)
        path = visible(os.fspath(program), grants)[0]
        arguments = [os.fsencode(os.fspath(program))] if argv is None else program_texts("argv", argv)
        environment = program_variables({} if env is None else env)
        opened = complete_streams({} if streams is None else streams)
        space, body = self.new_space(), self._body()
        process = Process(self.kernel, space, Program(os.fsencode(path), arguments, environment))
        self.process = process
        self.namespace = self.new_namespace(os.fspath(program), grants)
        process.files = Files(self.namespace, ProcessTexts(process), limit=self.config.open_files)
        task = Task(process, body=body)
        task.name = os.fsencode(os.path.basename(program))[:NAME_MAX]
        process.files.attach(opened)
        console = self.namespace.terminals.console
        if console is not None:
            job_control.take_terminal(process, console)
        self.entry.switch(task)
        load_program(task)
        self.scheduler.add(task)
        return process

    def run(self, timeout: float | None = None) -> Ended | Stopped:
        """Run the loaded program to its end, or until it is stopped: by a breakpoint, an access, `stop`.

        In any thread. An `Ended` has `status`, `code` and `signal`; asking a `Stopped` for them raises
        MachineError. Raises TimedOut after `timeout` seconds of the host's time; what a signal handler of the
        caller raises, such as the KeyboardInterrupt of Ctrl-C; `scheduler.Interrupted` when another thread
        called `cpu.interrupt`; Deadlock, EngineError, MachineError, and what a listener or a handler raised.
        After any of them but EngineError another `run` goes on.
        """
        process, timeout = self._runnable(), run_seconds(timeout)
        try:
            self._run(None, timeout)
        except Pause as pause:
            return cast("Stopped", pause.stopped)
        return self._end_of(process)

    def run_for(self, blocks: int, timeout: float | None = None) -> Ended | Stopped | None:
        """Run for a number of executed blocks; None when the program has not ended by then. As `run`."""
        process, timeout = self._runnable(), run_seconds(timeout)
        blocks = whole("blocks", blocks, "a whole number of blocks")
        if not 0 <= blocks <= _MOST_BLOCKS:
            raise MachineError(f"a run has 0 to {_MOST_BLOCKS} blocks, not {blocks}")
        try:
            return self._end_of(process) if self._run(blocks, timeout) else None
        except Pause as pause:
            return cast("Stopped", pause.stopped)

    def step(self, count: int = 1, timeout: float | None = None) -> Ended | Stopped:
        """Execute `count` instructions of the task that stopped last, or ran last. As `run`.

        One that faults and is made again is one instruction. Other tasks take their turns as without, and may
        stop the run at a breakpoint; where the task ends first, it stops before another one goes on.
        """
        count, timeout = whole("count", count, "a whole number of instructions"), run_seconds(timeout)
        if not 1 <= count <= _MOST_BLOCKS:
            raise MachineError(f"a step has 1 to {_MOST_BLOCKS} instructions, not {count}")
        self._runnable()
        self.debugger.begin_steps(count, self._stepped())
        try:
            return self.run(timeout)
        finally:
            self.debugger.end_steps()

    def _stepped(self) -> Task:
        """Whom a step is about."""
        task = self.scheduler.stopped or self.entry.task
        return task if not task.is_over else next(iter(self.scheduler.tasks), task)

    def stop(self) -> None:
        """Let the run return a `Stopped` at once: from a handler, a listener, or another thread.

        A run that ends meanwhile returns its `Ended`. Raises MachineError where nothing runs.
        """
        self.kernel.require_open()
        block = self._block
        if not self.observers.running or block is None:
            raise MachineError("nothing runs: stop() is for handlers, listeners and other threads")
        if self._runner == threading.get_ident():
            self.debugger.stop()
        else:
            self._stop_asked = True
            block.ask()

    def _run(self, blocks: int | None, timeout: float | None) -> bool:
        """Whether the program has ended, rather than executed so many blocks.

        Handlers of the caller that raise nothing let the run go on.
        """
        console = self.console
        if console is None:
            return self._run_undisturbed(blocks, timeout)
        console.enter()
        try:
            return self._run_undisturbed(blocks, timeout)
        finally:
            console.leave()

    def _run_undisturbed(self, blocks: int | None, timeout: float | None) -> bool:
        end = None if blocks is None else self.kernel.blocks + blocks
        deadline = None if timeout is None else time.monotonic() + timeout
        self._runner, self._stop_asked = threading.get_ident(), False
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            block = self._block = Undisturbed(self.interrupt, left)
            if self._stop_asked:  # it came between two blocks
                block.ask()
            try:
                with block:
                    return self.scheduler.run(None if end is None else max(0, end - self.kernel.blocks))
            except Interrupted:
                if not block.asked:
                    raise
            finally:
                if block.asked:
                    for cpu in self.computer.cpus:
                        cpu.take_interrupt()
            if block.program_ends:
                raise SystemExit
            if self._stop_asked:
                raise self.debugger.asked()
            if block.timed_out:
                assert timeout is not None
                raise TimedOut(timeout)

    @property
    def console(self) -> Console | None:
        """The terminal at which the program was started, if one of its streams is one."""
        return None if self.namespace is None else self.namespace.terminals.console

    def takes_key(self, number: int) -> bool:
        """Whether the signal that a key of its terminal sends is the program's own business.

        It is where a shell has put another process group in front, or where somebody in front handles,
        ignores or blocks it, or has made the key a character.
        """
        console = self.console
        if console is None or self.process is None or self.process.is_over:
            return False
        return console.is_typed(number) or job_control.takes_key(self._family, console, number)

    def press(self, number: int) -> None:
        """Hand it the signal of a key. For handlers of the host's signals, which stop the machine first."""
        console = self.console
        if console is not None:
            console.press(number)

    def _end_of(self, process: Process) -> Ended:
        assert process.ended is not None, "every task has ended"
        self._end_told = True
        return process.ended

    def _runnable(self) -> Process:
        """The program, if there is anything of it to run. Raises MachineError."""
        self.kernel.require_open()
        self._require_rest()
        process = self.process
        if process is None:
            raise MachineError("there is no program to run: load() one first")
        if self._end_told:
            raise MachineError(f"the program has ended ({process.ended}): a new machine runs it again")
        if process.ended is None and not self.scheduler.tasks:
            raise MachineError("the program was not loaded to its end: a new machine can try another")
        return process

    def _require_rest(self) -> None:
        """Raises MachineError inside a run: from a handler, a listener, or another thread."""
        if self.observers.running:
            raise MachineError("the machine runs already: let that run return first, as stop() in it does")

    # ---- stopping and watching

    def breakpoint(self, where: int | str, handler: HaltHandler | None = None) -> Attachment:
        """Stop in front of the instruction at an address, or at a symbol of the program: `run` returns.

        Whatever process comes there, as with `on_access`, `on_fault` and `on_system_call`: what is told says
        by its `process` whose it is, and `Stopped` likewise.
        With a handler the run goes on after it: it gets a `Halt`, whose registers it may change, and may call
        `stop`. The program cannot see a breakpoint: its bytes stay, and so does its virtual time. Raises
        AddressError, and MachineError for a symbol that the program has not.
        """
        if not isinstance(where, str):
            where = whole("where", where, "an address, or a symbol's name")
        process = self._loaded("breakpoint()")
        if isinstance(where, str):
            symbols = process.symbols
            if where not in symbols:
                raise MachineError(f"the program has no symbol {where!r}{suggestion(where, symbols)}")
            where = symbols[where]
        return self.debugger.break_at(whole("where", where, "an address, or a symbol's name"), handler)

    def on_access(
        self, start: int, length: int, handler: AccessHandler | None = None, kinds: str = "rw"
    ) -> Attachment:
        """Tell `handler` of each access of the program to `length` bytes from `start`; without one, stop.

        `kinds` are letters: r, w, x. The handler gets an `AccessSeen` when the instruction is done: address,
        bytes, value, pc. Accesses to other pages are as quick as ever, those to the same pages are slow.
        Accesses by system calls are not told (`on_system_call` hears of the calls).
        """
        self._loaded("on_access()")
        letters = {"r": Access.READ, "w": Access.WRITE, "x": Access.EXECUTE}
        if not isinstance(kinds, str) or not kinds or set(kinds) - set(letters):
            raise ConfigError("kinds", kinds, "letters of r, w and x")
        wanted = Access(0)
        for letter in kinds:
            wanted |= letters[letter]
        return self.debugger.watch(whole("start", start), whole("length", length), handler, wanted)

    def _loaded(self, what: str) -> Process:
        """The program, for `what`, which needs one. Raises MachineError."""
        self.kernel.require_open()
        if self.process is None:
            raise MachineError(f"{what} needs a program: load() one first")
        return self.process

    # ---- deciding in the kernel's stead

    def on_fault(self, handler: FaultHandler) -> Attachment:
        """Ask `handler` about each page fault from now on; works as a decorator.

            @machine.on_fault
            def fill(fault):
                if fault.area is not None and fault.area.name == "[heap]":
                    return fault.map(b"hello")          # this page, with these bytes
                return None                             # the manager decides

        It gets a `Fault` and returns None, or an outcome: of `fault.map`, `deny`, `bus_error`, `decide`, or
        RESOLVED where it has changed the process's memory itself. The kernel's own touches are asked about
        too: of system calls on the page, MAP_POPULATE, mlock (`fault.in_call`). The last that was attached is
        asked first. What it raises ends the run. `detach()` on the result ends it. Raises HandlerError for
        what cannot be called.
        """
        self.kernel.require_open()
        return self.handlers.on_fault(handler)

    @overload
    def on_system_call(self, handler: CallHandler, names: Collection[str] = ()) -> Attachment: ...
    @overload
    def on_system_call(
        self, handler: None = None, names: Collection[str] = ()
    ) -> Callable[[CallHandler], Attachment]: ...
    def on_system_call(
        self, handler: CallHandler | None = None, names: Collection[str] = ()
    ) -> Attachment | Callable[[CallHandler], Attachment]:
        """Ask `handler` before each system call of these names (all without any); works as a decorator.

            @machine.on_system_call(names=["getpid"])
            def answer(call):
                return 42                               # instead of the call; None has it made

        It gets a `Call`: `call.make()` makes the call at once, for a handler that looks at the result.
        As for `on_fault` else. Raises HandlerError for a name that the ISA has not.
        """
        self.kernel.require_open()
        names = call_names(names)
        if handler is None:
            return lambda decorated: self.handlers.on_system_call(decorated, names)
        return self.handlers.on_system_call(handler, names)

    @property
    def processes(self) -> list[Process]:
        """Every process in the order of making, the first one first, zombies among them: see `released`.

        One that was waited for is no longer there; the first stays until the machine is closed.
        """
        if self.process is None:
            return []
        others = self.process.registry.processes.values()
        return [self.process, *(each for each in others if each is not self.process)]

    def damages(self) -> list[str]:
        """A line for each page-table entry of the program that was found damaged; complete after `close`."""
        if self.process is None:
            return []
        mm = self.process.mm
        return [damaged.describe(mm.table.format) for damaged in dict.fromkeys(mm.damages)]

    def close(self) -> None:
        """Give everything back, in the order that teardown has to work: LeakError when a frame is left.

        Safe twice. The engine and the host's memory are released in any case; but not inside a run of it:
        MachineError.
        """
        if self.computer.closed:
            return
        self._require_rest()
        self.observers.detach_all()
        self.kernel.closed = True
        try:
            if self.tlbsan is not None:
                self.tlbsan.check()
            if self.process is not None:
                self.computer.rest()
                self._end_processes(self.process)
            if self.kernel.system_v is not None:
                self.kernel.system_v.close()
            if self.namespace is not None:
                self.namespace.close()
            if self.board is not None:
                self.board.close()
            close_slabs(self.kernel)
            if self.tlbsan is not None:
                self.tlbsan.finish()
        except BaseException:
            self.abandon()
            raise
        self.computer.close()
        swap = self.physical.swap
        if swap is not None and swap.used and not self.physical.lost_entries:
            raise SlotLeak(swap.used)

    @staticmethod
    def _end_processes(first: Process) -> None:
        """Give back the memory and the files of every process, and of the first, which kept its memory."""
        for process in [*first.registry.processes.values(), first]:
            process.leave_bodies()
            if not process.released:
                process.released = True
                if hasattr(process, "files"):
                    process.close_files()
                if process is not first:
                    process.mm.let_go()
        first.mm.let_go()

    def abandon(self) -> None:
        """Let go of the engine and the host's memory without accounts, after a failed start."""
        self._require_rest()
        self.kernel.closed = True
        if self.namespace is not None:
            self.namespace.abandon()
        self.computer.abandon()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Close it. An error on the way out of the block is the one that is raised."""
        try:
            self.close()
        except Exception as failed:
            if error is None:
                raise
            error.add_note(f"closing the machine failed too: {failed}")

    def __repr__(self) -> str:
        parts = f"{self.format.name}, {format_size(self.config.ram)} of RAM, seed {self.config.seed}"
        if self.kernel.closed:
            return f"<Machine {parts}: closed>"
        return f"<Machine {parts}: {'no program' if self.process is None else self.process}>"

    # ---- parts

    def new_namespace(self, program: str, grants: Grants) -> Namespace:
        """The guest's view of the host's files for one program, with the machine's clock and chance."""
        _path, binds, cwd = visible(program, grants)
        namespace = Namespace(
            grants.root,
            binds,
            cwd,
            random=self.streams.stream("urandom").bytes,
            now=lambda: self.clock.realtime_ns,
            start=self.clock.epoch_ns,
            uid=self.config.uid,
            gid=self.config.gid,
            page_size=self.format.page_size,
            kernel_memory=self.config.ram,
            actor=self.kernel.actor,
            devices=None if self.board is None else self.board.nodes(),
        )
        if self.config.hugepages != "none":
            self._mount_pools(namespace)
        connect_mappings(self.kernel, namespace)
        terminals = namespace.terminals
        terminals.post = lambda group, number: job_control.post_to_group(self._family, group, number)
        terminals.hang_up = lambda terminal: job_control.hang_up(self._family, terminal)
        terminals.of_caller = lambda: cast("Terminal | None", self.entry.task.process.terminal)
        namespace.look = self.kernel.checkpoint
        return namespace

    def _mount_pools(self, namespace: Namespace) -> None:
        """Have a file system for each pool that there was one at the start."""
        pools = self.physical.pools
        assert isinstance(pools, Pools), "a machine with Linux has them"
        assert pools.default is not None, "its format has large leaves"
        asked = [pool for pool in map(pools.of_size, pool_sizes(self.config.hugepages)) if pool is not None]
        mount_pools(namespace, self.physical, asked, pools.default.size)

    @property
    def _family(self) -> job_control.Family:
        assert self.process is not None, "who asks is of it"
        return self.process.registry

    def new_space(self) -> AddressSpace:
        """An empty address space on this machine. Raises ProgramError when RAM does not hold its table."""
        try:
            return self._empty_space()
        except OutOfFrames as error:
            raise ProgramError(f"no page table fits into {self.config.ram} bytes of RAM") from error

    def _empty_space(self) -> AddressSpace:
        """Likewise. Raises OutOfFrames when memory has no room for its table, nor can be made to."""
        config = self.config
        limits = Limits(
            user_base=config.user_base,
            user_end=self.abi.user_end,
            areas=config.max_mmap_areas,
            stack=config.stack_limit,
            address_space=config.memory_limit,
            fault_around=config.fault_around,
            window=self.abi.window,
        )
        space = self.physical.with_room(lambda: self.computer.new_space(limits))
        space.files = self.kernel.file_backings
        return space

    def _body(self) -> Body:
        """What the first task is in RAM. Raises ProgramError when there is no room."""
        try:
            return self.physical.with_room(lambda: Body(self.physical.slabs))
        except OutOfFrames as error:
            raise ProgramError(f"no task fits into {self.config.ram} bytes of RAM") from error

    def ticks(self, frequency: int) -> int:
        """The guest reads a counter of `frequency` Hz."""
        self.kernel.observe_time()
        return self.clock.ticks(frequency)
