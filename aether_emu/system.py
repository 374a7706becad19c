"""Assembly: one place wires a machine from a `Config`, runs a program on it, and takes it apart.

Machine
  Computer ---- Ram, Aperture, Buddy, Cpu, Physical, KernelHalf    (`computer`: what any system needs)
  Kernel ---- Entry, Scheduler                                     (Linux: what processes share, the way in)
  Process ---- AddressSpace, Files, Task                           (who is run)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aether_emu.arch.paging import PageTableFormat
from aether_emu.clock import VirtualClock
from aether_emu.computer import RAM_BASE, Computer, lowest_kernel_base, unicorn_cpus
from aether_emu.config import MIB, Config, format_size
from aether_emu.errors import ConfigError, EncodingError, OutOfFrames, ProgramError
from aether_emu.linux.abi import Abi
from aether_emu.linux.calls.mappable import connect_mappings
from aether_emu.linux.entry import Entry
from aether_emu.linux.exec.loader import load_program, program_image
from aether_emu.linux.files.files import Files
from aether_emu.linux.files.mounts import Bind
from aether_emu.linux.files.namespace import Namespace
from aether_emu.linux.files.streams import DescriptorStream, Stream
from aether_emu.linux.kernel import Kernel
from aether_emu.linux.proc.texts import ProcessTexts
from aether_emu.linux.task.process import Ended, Process, Program
from aether_emu.linux.task.scheduler import Scheduler
from aether_emu.linux.task.task import NAME_MAX, Task
from aether_emu.mm.kernel_half import TEXT
from aether_emu.mm.limits import Limits
from aether_emu.mm.space import AddressSpace
from aether_emu.ports import NO_TRACE, Trace
from aether_emu.random import Streams

ISAS = ("x86_64", "arm64")
_ARM_NARROW = {4 << 10: 39, 16 << 10: 47, 64 << 10: 42}  # the narrower addresses of Linux for each granule


@dataclass(frozen=True)
class _Isa:
    """What one instruction set brings: its page tables, Linux's rules for it, its instruction for chance."""

    format: PageTableFormat
    abi: Abi
    random: str


def _isa(name: str, config: Config) -> _Isa:
    """The parts of an ISA, imported when a machine of it is built: starting a program must stay quick.

    Raises ConfigError for a page size or a width of addresses that the ISA does not have.
    """
    page, bits = config.page_size, config.virtual_bits or 48
    if name == "x86_64":
        if page != 4096:
            raise ConfigError("page_size", page, "pages are 4K there", refusal="is not possible on x86_64")
        if bits not in (48, 57):
            allowed = "addresses have 48 or 57 bits there"
            raise ConfigError("virtual_bits", bits, allowed, refusal="is not possible on x86_64")
        from aether_emu.arch.x86_64.stage1 import X86Format  # noqa: PLC0415  # as said above
        from aether_emu.linux.abi.x86_64 import X86Abi  # noqa: PLC0415  # as said above

        return _Isa(X86Format(5 if bits == 57 else 4), X86Abi(bits), "rdrand")
    if name == "arm64":
        from aether_emu.arch.arm64.stage1 import ArmFormat  # noqa: PLC0415  # as said above
        from aether_emu.linux.abi.arm64 import ArmAbi  # noqa: PLC0415  # as said above

        try:
            return _Isa(ArmFormat(page, bits), ArmAbi(page, bits), "rndr")
        except EncodingError:
            allowed = f"addresses have 48 or {_ARM_NARROW[page]} bits there with pages of {format_size(page)}"
            raise ConfigError("virtual_bits", bits, allowed, refusal="is not possible on arm64") from None
    raise ConfigError("arch", name, " or ".join(ISAS))


def _kernel_base(config: Config, fmt: PageTableFormat) -> int:
    """Where the supervisor's half begins. ConfigError where RAM's direct map does not fit above it."""
    lowest = lowest_kernel_base(fmt)
    base = lowest if config.kernel_base is None else config.kernel_base
    if base < lowest:
        raise ConfigError(
            "kernel_base", hex(base), f"at least {lowest:#x} with {fmt.virtual_bits} virtual bits"
        )
    if base + RAM_BASE + config.ram > TEXT:
        if config.kernel_base is None:
            most = format_size(TEXT - base - RAM_BASE & -MIB)
            raise ConfigError("ram", format_size(config.ram), f"at most {most} with {fmt.virtual_bits} bits")
        lower = f"low enough for a direct map of {config.ram} bytes of RAM below {TEXT:#x}"
        raise ConfigError("kernel_base", hex(base), lower)
    return base


@dataclass
class Grants:
    """What of the host a guest may see.

    `root` becomes the guest's /, read-only, and the guest starts there. Without it the guest stands in
    `cwd`, granted read-only: None is the host's working directory, unless that is /, for standing
    there is no reason to show everything. `binds` are added to either.
    """

    root: Path | None = None
    binds: list[Bind] = field(default_factory=list)
    cwd: Path | None = None


def standard_streams() -> dict[str, Stream]:
    """The host's own stdin, stdout and stderr."""
    return {name: DescriptorStream(fd) for fd, name in enumerate(("stdin", "stdout", "stderr"))}


class Machine:
    """An emulated computer. Options are `Config` fields; sizes may be text such as "256M".

    >>> machine = Machine(arch="x86_64", ram="256M", seed=7)      # doctest: +SKIP
    >>> process = machine.load("guest/bin/x86_64/tour", ["tour"])
    >>> ended = machine.run()
    >>> machine.close()

    `pause` is called again and again while the guest waits for input; it may raise to end the run.
    """

    def __init__(
        self,
        arch: str = "x86_64",
        *,
        config: Config | None = None,
        trace: Trace = NO_TRACE,
        live_state: bool = True,
        pause: Callable[[], None] = lambda: None,
        **options: object,
    ) -> None:
        self.config = config if config is not None else Config.load(overrides=options)
        isa = _isa(arch, self.config)
        self.kernel_base = _kernel_base(self.config, isa.format)
        self.format, self.abi = isa.format, isa.abi
        self.streams = Streams(self.config.seed)
        self.clock = VirtualClock(self.config.clock)
        cpus = unicorn_cpus(
            arch,
            self.format,
            ticks=self.ticks,
            random=self.streams.stream(isa.random).u64,
            live_state=live_state,
        )
        ram, aperture = self.config.ram, self.config.aperture
        try:
            self.computer = Computer(
                self.format, cpus, ram=ram, aperture=aperture, kernel_base=self.kernel_base, trace=trace
            )
        except OutOfFrames as error:
            raise ConfigError("ram", ram, "enough for the page tables of the machine") from error
        self.ram, self.aperture = self.computer.ram, self.computer.aperture
        self.frames, self.buddy = self.computer.frames, self.computer.buddy
        self.physical, self.cpu = self.computer.physical, self.computer.cpus[0]
        assert self.computer.kernel_half is not None, "it has a base"
        self.kernel_half = self.computer.kernel_half
        self.kernel = Kernel([self.cpu], self.physical, self.abi, self.config, self.clock, self.streams)
        self.observers = self.kernel.observers
        self.entry = Entry(self.kernel, self.computer.percpu[0])
        self.scheduler = Scheduler(self.kernel, self.entry, pause=pause, lost_pages=self.computer.lost_pages)
        self.namespace: Namespace | None = None
        self.process: Process | None = None

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
        granted read-only under its own absolute path, links resolved. Raises ProgramError, ConfigError.
        """
        if self.process is not None:
            raise ProgramError(f"{os.fspath(program)}: the machine has a program already")
        grants = grants or Grants()
        path = _visible(os.fspath(program), grants)[0]
        arguments = [os.fsencode(a) for a in (argv if argv is not None else [os.fspath(program)])]
        environment = [os.fsencode(f"{key}={value}") for key, value in (env or {}).items()]
        space = self.new_space()
        process = Process(self.kernel, space, Program(os.fsencode(path), arguments, environment))
        self.process = process
        task = Task(process)
        task.name = os.fsencode(os.path.basename(program))[:NAME_MAX]
        self.namespace = self.new_namespace(os.fspath(program), grants)
        process.files = Files(self.namespace, ProcessTexts(process), limit=self.config.open_files)
        process.files.attach(streams if streams is not None else standard_streams())
        self.entry.switch(task)
        load_program(task)
        self.scheduler.add(task)
        return process

    def run(self) -> Ended:
        """Run the loaded program to its end. Raises `scheduler.Interrupted`, Deadlock, EngineError."""
        self.scheduler.run()
        assert self.process is not None and self.process.ended is not None, "nothing was loaded"
        return self.process.ended

    def run_for(self, blocks: int) -> Ended | None:
        """Run for a number of executed blocks; None when the program has not ended by then. As `run`."""
        return self.process.ended if self.scheduler.run(blocks) and self.process is not None else None

    def damages(self) -> list[str]:
        """A line for each page-table entry of the program that was found damaged; complete after `close`."""
        if self.process is None:
            return []
        mm = self.process.mm
        return [damaged.describe(mm.table.format) for damaged in dict.fromkeys(mm.damages)]

    def close(self) -> None:
        """Give everything back, in the order that teardown has to work: LeakError when a frame is left.

        Safe twice. The engine and the host's memory are released in any case.
        """
        if self.computer.closed:
            return
        self.observers.detach_all()
        try:
            if self.process is not None:
                self.computer.rest()
                self.process.mm.destroy()
                if hasattr(self.process, "files"):
                    self.process.files.close_all()
            if self.namespace is not None:
                self.namespace.close()
        except BaseException:
            self.abandon()
            raise
        self.computer.close()

    def abandon(self) -> None:
        """Let go of the engine and the host's memory without accounts, after a failed start."""
        self.computer.abandon()

    # ---- parts

    def new_namespace(self, program: str, grants: Grants) -> Namespace:
        """The guest's view of the host's files for one program, with the machine's clock and chance."""
        _path, binds, cwd = _visible(program, grants)
        namespace = Namespace(
            grants.root,
            binds,
            cwd,
            random=self.streams.stream("urandom").bytes,
            now=lambda: self.clock.realtime_ns,
            uid=self.config.uid,
            gid=self.config.gid,
            page_size=self.format.page_size,
            kernel_memory=self.config.ram,
        )
        connect_mappings(self.kernel, namespace)
        namespace.look = self.kernel.checkpoint
        return namespace

    def new_space(self) -> AddressSpace:
        """An empty address space on this machine. Raises ProgramError when RAM does not hold its table."""
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
        try:
            space = self.computer.new_space(limits)
        except OutOfFrames as error:
            raise ProgramError(f"no page table fits into {config.ram} bytes of RAM") from error
        space.files = self.kernel.file_backings
        return space

    def ticks(self, frequency: int) -> int:
        """The guest reads a counter of `frequency` Hz."""
        self.kernel.observe_time()
        return self.clock.ticks(frequency)


class _Nobody:
    """What /proc shows of a process before there is one."""

    pid = 0
    texts: Mapping[str, Callable[[], bytes]] = {}  # never written


def program_isa(program: str | os.PathLike[str], grants: Grants | None = None) -> str:
    """The ISA that a program's header names; it is found where `Machine.load` will find it.

    Raises ProgramError, ConfigError as that.
    """
    grants = grants or Grants()
    path, binds, cwd = _visible(os.fspath(program), grants)
    namespace = Namespace(grants.root, binds, cwd, random=bytes)
    try:
        files = Files(namespace, _Nobody())
        try:
            return program_image(files, os.fsencode(path)).isa
        finally:
            files.close_all()
    finally:
        namespace.close()


def _visible(program: str, grants: Grants) -> tuple[str, list[Bind], str]:
    """(guest path of the program, binds, guest working directory)."""
    if grants.root is not None:
        return program, list(grants.binds), "/"
    try:
        host = Path(program).resolve(strict=True)
        if host.is_dir():
            raise ProgramError(f"{program}: is a directory")
    except FileNotFoundError:
        raise ProgramError(f"{program}: no such file", 127) from None
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL
        raise ProgramError(f"{program}: {getattr(error, 'strerror', None) or error}") from None
    try:
        cwd = (grants.cwd or Path.cwd()).resolve()
    except OSError as error:
        raise ConfigError("cwd", str(grants.cwd or "."), f"the host says {error.strerror}") from None
    granted = grants.cwd is not None or cwd != Path("/")
    binds = [Bind(cwd, str(cwd))] if granted else []
    if not (granted and host.is_relative_to(cwd)):
        binds.append(Bind(host, str(host)))
    return str(host), [*binds, *grants.binds], str(cwd)
