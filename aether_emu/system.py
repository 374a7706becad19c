"""Assembly: one place wires a machine from a `Config`, runs a program on it, and takes it apart.

Machine
  Ram, Aperture ---- FrameTable ---- Buddy          (what there is, who has it)
  Cpu                                               (who executes)
  Physical ---- KernelHalf                          (what all address spaces share)
  Kernel ---- Entry, Scheduler                      (what all processes share, the way in, who runs)
  Process ---- AddressSpace, Files, Task            (who is run)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from aether_emu.arch.paging import PageTableFormat
from aether_emu.clock import COUNTER_HZ, TSC_HZ, VirtualClock
from aether_emu.config import Config
from aether_emu.errors import AetherError, ConfigError, EncodingError, OutOfFrames, ProgramError
from aether_emu.linux.abi import Abi
from aether_emu.linux.calls.mappable import before_truncate
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
from aether_emu.machine.memory.aperture import Aperture, ApertureFile
from aether_emu.machine.memory.bus_guard import BusGuard
from aether_emu.machine.memory.ram import Ram
from aether_emu.machine.unicorn import engine
from aether_emu.mm.frames.buddy import Buddy, Zone
from aether_emu.mm.frames.table import FrameTable, Leak
from aether_emu.mm.kernel_half import TEXT, KernelHalf
from aether_emu.mm.physical import Physical
from aether_emu.mm.space import AddressSpace, Limits
from aether_emu.ports import NO_TRACE, Trace
from aether_emu.random import Streams

if TYPE_CHECKING:
    from aether_emu.machine.unicorn.arm64 import ArmCpu
    from aether_emu.machine.unicorn.x86_64 import X86Cpu

RAM_BASE = 1 << 30
_APERTURE_ALIGN = 1 << 30
_LOW_ZONE = 16 << 20


_Ranges = list[tuple[int, int, int]]
ISAS = ("x86_64", "arm64")


@dataclass(frozen=True)
class _Isa:
    """What one instruction set brings: its parts, and whether one root holds both halves."""

    format: PageTableFormat
    abi: Abi
    cpu: Callable[[Machine, _Ranges, bool], X86Cpu | ArmCpu]
    shared_root: bool


def _isa(name: str, config: Config) -> _Isa:
    """The parts of an ISA, imported when a machine of it is built: starting a program must stay quick.

    Raises ConfigError for a page size or a width of addresses that the ISA does not have.
    """
    page, bits = config.page_size, config.virtual_bits or 48
    if name == "x86_64":
        if page != 4096:
            raise ConfigError("page_size", page, "4096 on x86_64")
        if bits not in (48, 57):
            raise ConfigError("virtual_bits", bits, "48 or 57 on x86_64")
        from aether_emu.arch.x86_64.stage1 import X86Format  # noqa: PLC0415  # as said above
        from aether_emu.linux.abi.x86_64 import X86Abi  # noqa: PLC0415  # as said above

        return _Isa(X86Format(5 if bits == 57 else 4), X86Abi(bits), _x86_cpu, shared_root=True)
    if name == "arm64":
        from aether_emu.arch.arm64.stage1 import ArmFormat  # noqa: PLC0415  # as said above
        from aether_emu.linux.abi.arm64 import ArmAbi  # noqa: PLC0415  # as said above

        try:
            return _Isa(ArmFormat(page, bits), ArmAbi(page, bits), _arm_cpu, shared_root=False)
        except EncodingError:
            raise ConfigError(
                "virtual_bits", bits, f"48, or what pages of {page} bytes give on arm64"
            ) from None
    raise ConfigError("arch", name, " or ".join(ISAS))


def _x86_cpu(machine: Machine, ranges: _Ranges, live_state: bool) -> X86Cpu:
    from aether_emu.machine.unicorn.x86_64 import X86Cpu  # noqa: PLC0415  # as in `_isa`

    random = machine.streams.stream("rdrand").u64
    return X86Cpu(
        ranges,
        time_stamp=lambda: machine.ticks(TSC_HZ),
        random=random,
        levels=machine.format.top,
        live_state=live_state,
    )


def _arm_cpu(machine: Machine, ranges: _Ranges, live_state: bool) -> ArmCpu:
    from aether_emu.machine.unicorn.arm64 import ArmCpu  # noqa: PLC0415  # as in `_isa`

    return ArmCpu(
        ranges,
        time_stamp=lambda: machine.ticks(COUNTER_HZ),
        frequency=COUNTER_HZ,
        random=machine.streams.stream("rndr").u64,
        granule=machine.config.page_size,
        virtual_bits=machine.format.virtual_bits,
        live_state=live_state,
    )


def _kernel_base(config: Config, fmt: PageTableFormat) -> int:
    """Where the supervisor's half begins. ConfigError where RAM's direct map does not fit above it."""
    lowest = (1 << 64) - (1 << fmt.virtual_bits - 1)
    base = lowest if config.kernel_base is None else config.kernel_base
    if base < lowest:
        raise ConfigError(
            "kernel_base", hex(base), f"at least {lowest:#x} with {fmt.virtual_bits} virtual bits"
        )
    if base + RAM_BASE + config.ram > TEXT:
        lower = f"low enough for a direct map of {config.ram} bytes of RAM below {TEXT:#x}"
        raise ConfigError("kernel_base", hex(base), lower)
    return base


class LeakError(AetherError):
    """Frames were still held after everything was given back."""

    def __init__(self, leaks: list[Leak]) -> None:
        self.leaks = leaks
        first = ", ".join(f"frame {x.frame} ({x.kind.name}, owner {x.owner})" for x in leaks[:3])
        super().__init__(f"{len(leaks)} frame(s) leaked: {first}")


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
        page = self.config.page_size
        self.ram = Ram(RAM_BASE, self.config.ram, page)
        self.aperture = Aperture(
            RAM_BASE + (-(-self.config.ram // _APERTURE_ALIGN)) * _APERTURE_ALIGN, self.config.aperture, page
        )
        size = self.aperture.base + self.aperture.size - RAM_BASE
        self.frames = FrameTable(RAM_BASE, size, self.format.page_shift)
        self.buddy = Buddy(self.frames, _zones(self.config.ram, page))
        ranges = [
            (self.ram.base, self.ram.host_address, self.ram.size),
            (self.aperture.base, self.aperture.host_address, self.aperture.size),
        ]
        self.cpu: X86Cpu | ArmCpu = isa.cpu(self, ranges, live_state)
        self._guard = BusGuard.instance()
        self._guard_token = self._guard.register(
            self.aperture.host_address, self.aperture.size, engine.EMU_STOP_ADDRESS, self.cpu.handle
        )
        try:
            self.physical = Physical(
                self.ram, self.aperture, self.frames, self.buddy, [self.cpu], trace=trace
            )
            self.kernel_half = KernelHalf(
                self.physical, self.format, self.kernel_base, self.cpu.text_page(), self.cpu.data_page
            )
            self._shared_half = isa.shared_root
        except OutOfFrames as error:
            self.abandon()
            raise ConfigError("ram", self.config.ram, "enough for the page tables of the machine") from error
        self.cpu.boot(self.kernel_half.table.root, *self.kernel_half.pages)
        self.kernel = Kernel([self.cpu], self.physical, self.abi, self.config, self.clock, self.streams)
        self.entry = Entry(self.kernel, self.cpu)
        self.scheduler = Scheduler(self.kernel, self.entry, pause=pause, lost_pages=self._lost_pages)
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

    def close(self) -> None:
        """Give everything back, in the order that teardown has to work: LeakError when a frame is left.

        Safe twice. The engine and the host's memory are released in any case.
        """
        if self._guard_token < 0:
            return
        token, self._guard_token = self._guard_token, -1
        try:
            if self.process is not None:
                self.cpu.set_root(self.kernel_half.table.root)
                self.process.mm.destroy()
                if hasattr(self.process, "files"):
                    self.process.files.close_all()
            if self.namespace is not None:
                self.namespace.close()
            self.kernel_half.close()
            self.physical.close()
            leaks = self.frames.leaks()
        finally:
            self._release_host(token)
        if leaks:
            raise LeakError(leaks)

    def abandon(self) -> None:
        """Let go of the engine and the host's memory without accounts, after a failed start."""
        if self._guard_token >= 0:
            token, self._guard_token = self._guard_token, -1
            self._release_host(token)

    def _release_host(self, token: int) -> None:
        self.cpu.close()
        self._guard.unregister(token)
        self.aperture.close()
        self.ram.close()

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
        )
        namespace.on_truncate = lambda key, old, new: before_truncate(self.kernel, key, old, new)
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
        shared = (self.kernel_half.table, self.kernel_base) if self._shared_half else None
        try:
            space = AddressSpace(self.physical, self.format, limits, shared)
        except OutOfFrames as error:
            raise ProgramError(f"no page table fits into {config.ram} bytes of RAM") from error
        space.files = self.kernel.file_backings
        return space

    def ticks(self, frequency: int) -> int:
        """The guest reads a counter of `frequency` Hz."""
        self.kernel.observe_time()
        return self.clock.ticks(frequency)

    def _lost_pages(self) -> list[tuple[ApertureFile, int]]:
        return [self.aperture.lost(address) for address in self._guard.drain(self._guard_token)]


def _zones(ram: int, page: int) -> list[Zone]:
    """The general zone, falling back to the low one when there is enough memory for two."""
    count, low = ram // page, _LOW_ZONE // page
    if count < 2 * low:
        return [Zone("normal", 0, count)]
    return [Zone("normal", low, count - low), Zone("low", 0, low)]


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
