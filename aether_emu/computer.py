"""A computer without a personality: memory, CPUs and the supervisor's half, wired in one place.

    Ram, Aperture ---- FrameTable ---- Buddy      what memory there is, and who has it
    Cpu, Cpu, ...                                 who executes: one at a time, on one host thread
    Physical                                      what all address spaces share; it flushes the CPUs
    KernelHalf                                    what a supervisor sees beside each address space

Linux (`system.Machine`), tests, guest kernels and hypervisors start from here. Whoever uses a computer
plugs itself into the CPUs (`machine.cpu`), makes address spaces and lets CPUs enter them:

    computer = Computer(fmt, unicorn_cpus("arm64", fmt, ticks=..., random=...), ram=64 << 20, cpus=2)
    space = computer.new_space(limits)
    computer.enter(space, 1)
    computer.run(1, budget=1000)
    computer.rest()
    space.destroy()
    computer.close()                              # LeakError when a frame is still held
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from aether_emu.arch.paging import PageTableFormat
from aether_emu.clock import COUNTER_HZ, TSC_HZ
from aether_emu.errors import AddressError, AetherError, ConfigError
from aether_emu.machine.cpu import Cpu, Exit
from aether_emu.machine.memory.aperture import Aperture, ApertureFile
from aether_emu.machine.memory.bus_guard import BusGuard
from aether_emu.machine.memory.host import HostMemoryError
from aether_emu.machine.memory.ram import Ram
from aether_emu.mm.frames.buddy import Buddy, Zone
from aether_emu.mm.frames.table import FrameTable, Leak
from aether_emu.mm.kernel_half import KernelHalf
from aether_emu.mm.limits import Limits
from aether_emu.mm.percpu import PerCpu
from aether_emu.mm.perform import perform
from aether_emu.mm.physical import Physical
from aether_emu.mm.room import Room
from aether_emu.mm.space import AddressSpace, Shared
from aether_emu.mm.tags import Tags
from aether_emu.mm.tlb import Tlb
from aether_emu.ports import NO_TRACE, Trace
from aether_emu.rules import format_size

if TYPE_CHECKING:
    from aether_emu.machine.unicorn.arm64 import ArmCpu
    from aether_emu.machine.unicorn.x86_64 import X86Cpu

RAM_BASE = 1 << 30
MAX_CPUS = 64
_APERTURE_ALIGN = 2 << 20  # the size of the aperture's slots
_LOW_ZONE = 16 << 20

C = TypeVar("C", bound=Cpu)
M = TypeVar("M")
CpuFactory = Callable[[Ram, Aperture], C]
"""Makes one CPU that reaches the RAM and the aperture at their guest-physical addresses."""


def unicorn_cpus(
    isa: str,
    fmt: PageTableFormat,
    *,
    ticks: Callable[[int], int],
    random: Callable[[], int],
    live_state: bool = True,
    tag_bits: int = 0,
) -> CpuFactory[X86Cpu | ArmCpu]:
    """Makes CPUs of `isa` ("x86_64" or "arm64") that Unicorn executes, and that walk tables of `fmt`.

    `ticks(hz)` is what a counter of that frequency shows now; `random` gives 64 bits to the
    instructions that ask for chance. Without `live_state` the CPUs use nothing but the engine's API.
    `tag_bits` is how wide the tags of address spaces are: 12 on x86_64 (PCID), 8 or 16 on arm64 (ASID); 0
    where there are none.
    """

    def make(ram: Ram, aperture: Aperture) -> X86Cpu | ArmCpu:
        ranges = [(part.base, part.host_address, part.size) for part in (ram, aperture)]
        # Imported when a CPU is built: starting a program must stay quick.
        if isa == "x86_64":
            from aether_emu.machine.unicorn.x86_64 import X86Cpu  # noqa: PLC0415  # as said above

            return X86Cpu(
                ranges,
                time_stamp=lambda: ticks(TSC_HZ),
                random=random,
                levels=fmt.top,
                live_state=live_state,
                pcids=bool(tag_bits),
            )
        from aether_emu.machine.unicorn.arm64 import ArmCpu  # noqa: PLC0415  # as said above

        return ArmCpu(
            ranges,
            time_stamp=lambda: ticks(COUNTER_HZ),
            frequency=COUNTER_HZ,
            random=random,
            granule=fmt.page_size,
            virtual_bits=fmt.virtual_bits,
            live_state=live_state,
            asid_bits=tag_bits or 8,
        )

    return make


def lowest_kernel_base(fmt: PageTableFormat) -> int:
    """The lowest address at which the supervisor's half can begin."""
    return (1 << 64) - (1 << fmt.virtual_bits - 1)


class LeakError(AetherError):
    """Frames were still held after everything was given back."""

    def __init__(self, leaks: list[Leak], objects: str = "") -> None:
        """`objects` are those of the kernel that somebody still has, for people."""
        self.leaks = leaks
        first = ", ".join(f"frame {x.frame} ({x.kind.name}, owner {x.owner})" for x in leaks[:3])
        more = f"; kernel objects: {objects}" if objects else ""
        super().__init__(f"{len(leaks)} frame(s) leaked: {first}{more}")


class Computer(Generic[C]):
    """RAM and aperture of so many bytes and up to 64 CPUs, which translate by tables of format `fmt`.

    The supervisor's half begins at `kernel_base`. Where that is None there is none, and the CPUs are not
    booted: for CPUs without a supervisor, and for guests that bring tables of their own.
    `allocator` makes what hands out frames, as `Buddy`, and `tlb` what flushes, as `Tlb`. `tags` gives
    address spaces their PCIDs or ASIDs (None: they have none). `split`: a program runs without the
    supervisor's half, but for what leads into it (KPTI). `register_pages` is how many pages of devices'
    registers have frames, from `register_base` on (`Cpu.show_registers`). Raises ConfigError for a number of
    CPUs, OutOfFrames when RAM does not hold the tables of the supervisor's half, and MappingError when RAM
    does not fit above its base.

    `cpus` are driven by `run` (or their `percpu`, which is what belongs to each) alone, one at a time.
    `physical` and `kernel_half` hold frames until `close`.
    """

    def __init__(
        self,
        fmt: PageTableFormat,
        cpu_factory: CpuFactory[C],
        *,
        ram: int,
        aperture: int,
        cpus: int = 1,
        kernel_base: int | None,
        flush_ceiling: int = 8,
        host_step: int = 0,
        allocator: Callable[..., Buddy] = Buddy,
        tlb: Callable[..., Tlb] = Tlb,
        trace: Trace = NO_TRACE,
        tags: Tags | None = None,
        split: bool = False,
        register_pages: int = 0,
    ) -> None:
        if not 1 <= cpus <= MAX_CPUS:
            raise ConfigError("cpus", cpus, f"1 to {MAX_CPUS}")
        page = fmt.page_size
        self.format, self.kernel_base = fmt, kernel_base
        above = RAM_BASE + -(-ram // _APERTURE_ALIGN) * _APERTURE_ALIGN
        self.ram = _reserved("ram", ram, lambda: Ram(RAM_BASE, ram, page))
        try:
            self.aperture = _reserved("aperture", aperture, lambda: Aperture(above, aperture, page))
        except BaseException:
            self.ram.close()
            raise
        self.cpus: list[C] = []
        self._guard = BusGuard.instance()
        self._guard_token = self._guard.register(self.aperture.host_address, self.aperture.size)
        self._aimed: C | None = None
        # The memory goes with a computer that nobody closes: another one may come to stand there.
        self._unguard = weakref.finalize(self, self._guard.unregister, self._guard_token)
        self._unguard.atexit = False
        self.kernel_half: KernelHalf | None = None
        try:
            self.register_base = self.aperture.base + self.aperture.size
            covered = self.register_base + register_pages * page - RAM_BASE
            self.frames = FrameTable(RAM_BASE, covered, fmt.page_shift)
            self.buddy = allocator(self.frames, _zones(ram, page), cpus=cpus)
            self.cpus += [cpu_factory(self.ram, self.aperture) for _ in range(cpus)]
            self.physical = Physical(
                self.ram,
                self.aperture,
                self.frames,
                self.buddy,
                self.cpus,
                trace=trace,
                flush_ceiling=flush_ceiling,
                host_step=host_step,
                tlb=tlb,
                tags=tags,
            )
            self.physical.new_room = Room
            root = 0 if kernel_base is None else self._boot(kernel_base, split)
            self.percpu = [
                PerCpu(self.physical, index, fmt, root, self._aim(cpu)) for index, cpu in enumerate(self.cpus)
            ]
            self.physical.leave, self.physical.perform = self._leave, perform
        except BaseException:
            self.abandon()
            raise

    def _leave(self, space: AddressSpace) -> None:
        """No CPU walks `space` any more."""
        for percpu in self.percpu:
            percpu.leave_space(space)

    def _boot(self, kernel_base: int, split: bool) -> int:
        """Build the supervisor's half and bring every CPU up in it.

        The CPUs share the page of code; each has its own for tables and stack. Where the half has a root of
        its own and is split, that root is from now on the one that programs run with. Returns the root that
        a CPU without an address space walks.
        """
        first = self.cpus[0]
        text, data = first.text_page(), first.data_page
        count = len(self.cpus)
        self.kernel_half = half = KernelHalf(
            self.physical, self.format, kernel_base, text, data, count, split=split
        )
        root = half.table.root if first.one_root else half.entry_table.root
        for number, (cpu, pages) in enumerate(zip(self.cpus, self.kernel_half.pages, strict=True)):
            cpu.number, cpu.peers = number, [other for other in self.cpus if other is not cpu]
            cpu.boot(root, *pages)
        return root

    # ---- address spaces

    def new_space(self, limits: Limits) -> AddressSpace:
        """An empty address space. Whoever asked destroys it. Raises OutOfFrames."""
        half, shared = self.kernel_half, None
        if half is not None and self.cpus[0].one_root:
            whole = None if half.entry_table is half.table else half.table
            shared = Shared(half.entry_table, half.base, whole)
        return AddressSpace(self.physical, self.format, limits, shared)

    def enter(self, space: AddressSpace, index: int = 0) -> None:
        """Let CPU `index` walk the tables of `space` from now on. It keeps no translation of before."""
        self.percpu[index].enter(space)

    def rest(self) -> None:
        """Let every CPU walk the supervisor's half alone, so that address spaces can be destroyed."""
        for percpu in self.percpu:
            percpu.leave()

    # ---- running

    def run(self, index: int = 0, budget: int | None = None) -> Exit:
        """Run CPU `index` as `Cpu.run` does, once it has dropped what the others flushed for it."""
        return self.percpu[index].run(budget)

    def _aim(self, cpu: C) -> Callable[[], None]:
        """What makes the bus guard stop `cpu`, should it meet a lost page."""

        def aim() -> None:
            if self._aimed is not cpu:
                self._aimed = cpu
                self._guard.aim(self._guard_token, *cpu.stop_call)

        return aim

    def lost_pages(self) -> list[tuple[ApertureFile, int]]:
        """(file, page) of what the host took away while a CPU used it, since the last call.

        They are why a run ended as STRAY. Asking shows the file again where it still has the page. Where the
        host refuses that, the slot is given up with all its entries: its other lost pages need no answer.
        """
        lost = []
        for address in self._guard.drain(self._guard_token):
            with contextlib.suppress(AddressError):
                lost.append(self.aperture.lost(address))
        return lost

    # ---- the end

    @property
    def closed(self) -> bool:
        """Whether `close` or `abandon` was called."""
        return self._guard_token < 0

    def close(self) -> None:
        """Give back what the computer itself held: LeakError when a frame is left after that. Safe twice.

        Address spaces and objects must be gone by now. The engines and the host's memory are
        released in any case.
        """
        if self.closed:
            return
        try:
            if self.kernel_half is not None:
                self.kernel_half.close()
            self.physical.close()
            leaks = self.frames.leaks()
        finally:
            self.abandon()
        if leaks:
            raise LeakError(leaks, self.physical.slabs.kept())

    def abandon(self) -> None:
        """Let go of the engines and the host's memory without accounts. Safe twice."""
        if self.closed:
            return
        self._guard_token = -1
        for cpu in self.cpus:
            cpu.close()
        if hasattr(self, "physical") and self.physical.swap is not None:
            self.physical.swap.close()
        self._unguard()
        self.aperture.close()
        self.ram.close()


def _reserved(name: str, size: int, reserve: Callable[[], M]) -> M:
    """Memory of the host, or a ConfigError for the parameter that wants more than there is."""
    try:
        return reserve()
    except HostMemoryError as error:
        why = f"no more than the host has address space for ({os.strerror(error.errno)}; see ulimit -v)"
        raise ConfigError(name, format_size(size), why) from None


def _zones(ram: int, page: int) -> list[Zone]:
    """The general zone, falling back to the low one when there is enough memory for two."""
    count, low = ram // page, _LOW_ZONE // page
    if count < 2 * low:
        return [Zone("normal", 0, count)]
    return [Zone("normal", low, count - low), Zone("low", 0, low)]
