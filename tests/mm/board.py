"""One small machine for tests of `mm`: RAM, aperture, frames, CPUs and what all address spaces share.

`WatchedBuddy` takes a frame back only when no CPU can reach it any more: nothing is freed before its flush.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.arch.paging import PageTableFormat
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.machine.memory.aperture import Aperture
from aether_emu.machine.memory.ram import Ram
from aether_emu.machine.unicorn.arm64 import ArmCpu
from aether_emu.machine.unicorn.x86_64 import X86Cpu
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, Faults, Outcome
from aether_emu.mm.frames.buddy import Buddy, Zone
from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.mm.kernel_half import KernelHalf
from aether_emu.mm.objects.file import FileBacking, HostFiles
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.percpu import PerCpu
from aether_emu.mm.physical import Physical
from aether_emu.mm.rmap import unmap
from aether_emu.mm.space import AddressSpace, Limits
from aether_emu.mm.tables.page import PageTable
from tests.mm.instructions import ArmInstructions, Instructions, X86Instructions
from tests.mm.invented_format import InventedFormat
from tests.mm.reference_cpu import ReferenceCpu

RAM_BASE = 1 << 30
MIB = 1 << 20
FRAMES = 4096  # of RAM, unless a test says otherwise

ENGINES: dict[str, PageTableFormat] = {
    "x86_64": X86Format(),
    "arm64-4K": ArmFormat(4 << 10),
    "arm64-16K": ArmFormat(16 << 10),
    "arm64-64K": ArmFormat(64 << 10),
}
"""The formats that a CPU executes with."""

FORMATS: dict[str, PageTableFormat] = ENGINES | {"invented": InventedFormat()}


def kernel_base(fmt: PageTableFormat) -> int:
    """The lowest address that the supervisor's half can begin at."""
    return (1 << 64) - (1 << fmt.virtual_bits - 1)


def user_end(fmt: PageTableFormat) -> int:
    """Where the user's half ends: all of its own root's, or half of a root that is shared, less a page."""
    if isinstance(fmt, ArmFormat):
        return 1 << fmt.virtual_bits
    return (1 << fmt.virtual_bits - 1) - fmt.page_size


class WatchedBuddy(Buddy):
    """Checks each frame that comes back. `reachable` says who could still get at a physical address."""

    reachable: Callable[[int], str] = staticmethod(lambda _physical: "")

    def free(self, frame: int, order: int = 0) -> None:
        self._check([frame])
        super().free(frame, order)

    def free_bulk(self, frames: npt.ArrayLike) -> None:
        self._check(np.asarray(frames).tolist())
        super().free_bulk(frames)

    def _check(self, frames: list[int]) -> None:
        for frame in frames:
            who = self.reachable(self.frames.address(frame))
            assert not who, f"frame {frame} is freed while {who} can reach it"


@dataclass
class GrantedFile:
    """An open file as mmap needs it."""

    board: Board
    path: Path
    readable: bool = True
    writable: bool = True

    def open_backing(self, *, shared_writable: bool) -> FileBacking:
        fd = os.open(self.path, os.O_RDWR if shared_writable else os.O_RDONLY)
        try:
            status = os.fstat(fd)
            key = (status.st_dev, status.st_ino)
            return self.board.files.open(fd, key, str(self.path), writable=shared_writable)
        finally:
            os.close(fd)


class Board:
    """The machine. With `execute` set the CPU is Unicorn's of the format's ISA; else the reference CPU."""

    def __init__(
        self,
        fmt: PageTableFormat,
        *,
        ram: int | None = None,
        aperture: int = 8 * MIB,
        cpus: int = 1,
        execute: bool = False,
        flush_ceiling: int = 8,
    ) -> None:
        self.format = fmt
        ram = FRAMES * fmt.page_size if ram is None else ram
        self.ram = Ram(RAM_BASE, ram, fmt.page_size)
        self.aperture = Aperture(RAM_BASE + -(-ram // (2 * MIB)) * 2 * MIB, aperture, fmt.page_size)
        self.frames = FrameTable(RAM_BASE, self.aperture.base + aperture - RAM_BASE, fmt.page_shift)
        self.buddy = WatchedBuddy(self.frames, [Zone("normal", 0, ram >> fmt.page_shift)], cpus=cpus)
        self.execute = execute
        self.instructions: Instructions = (
            ArmInstructions() if isinstance(fmt, ArmFormat) else X86Instructions()
        )
        self.cpus: list[Any] = [self._new_cpu() for _ in range(cpus)]
        self.physical = Physical(
            self.ram, self.aperture, self.frames, self.buddy, self.cpus, flush_ceiling=flush_ceiling
        )
        self.files = HostFiles(self.physical, unmap)
        self.spaces: list[AddressSpace] = []
        self.kernel: KernelHalf | None = None
        self.outcome: Outcome | None = None
        if execute:
            cpu = self.cpus[0]
            self.kernel = KernelHalf(self.physical, fmt, kernel_base(fmt), cpu.text_page(), cpu.data_page)
            cpu.boot(self.kernel.table.root, *self.kernel.pages)
        else:
            self.buddy.reachable = self._reachable
        root = self.kernel.table.root if self.kernel is not None else 0
        self.percpu = [PerCpu(self.physical, index, fmt, root) for index in range(cpus)]

    def _new_cpu(self) -> ReferenceCpu | X86Cpu | ArmCpu:
        fmt, ram, aperture = self.format, self.ram, self.aperture
        if not self.execute:
            return ReferenceCpu(fmt, ram, aperture)
        ranges = [
            (ram.base, ram.host_address, ram.size),
            (aperture.base, aperture.host_address, aperture.size),
        ]
        if not isinstance(fmt, ArmFormat):
            return X86Cpu(ranges, time_stamp=lambda: 0, random=lambda: 0)
        return ArmCpu(
            ranges,
            time_stamp=lambda: 0,
            frequency=1,
            random=lambda: 0,
            granule=fmt.page_size,
            virtual_bits=fmt.virtual_bits,
        )

    def _reachable(self, physical: int) -> str:
        pending = self.physical.tlb.pending
        holders = [i for i, cpu in enumerate(self.cpus) if not pending >> i & 1 and cpu.holds(physical)]
        return f"CPU {holders[0]}" if holders else ""

    @property
    def cpu(self) -> Any:
        """The CPU that runs: a ReferenceCpu, or the engine's when this board executes."""
        return self.cpus[self.physical.tlb.running]

    def space(self, **limits: Any) -> AddressSpace:
        """A new address space. Keywords as `Limits`."""
        fmt = self.format
        chosen = {"user_base": 0x1_0000, "user_end": user_end(fmt), "areas": 65_530}
        chosen |= {"stack": 8 * MIB} | limits
        shared_root = self.kernel is not None and not isinstance(fmt, ArmFormat)
        kernel = (self.kernel.table, kernel_base(fmt)) if self.kernel is not None and shared_root else None
        space = AddressSpace(self.physical, self.format, Limits(**chosen), kernel)
        self.spaces.append(space)
        return space

    def run_on(self, space: AddressSpace) -> None:
        """Let the running CPU use `space`. `outcome` becomes what each fault ended in."""
        percpu = self.percpu[self.physical.tlb.running]
        percpu.enter(space)

        def resolve(va: int, access: int) -> bool:
            self.outcome = percpu.fault(va, access)
            return self.outcome is RESOLVED

        percpu.cpu.resolve = resolve

    def events(self) -> Counter[Event]:
        """All counters, to subtract an earlier reading from."""
        return Counter({event: self.physical.counters.n[event] for event in Event})

    def close(self) -> None:
        """Take everything apart. AssertionError when a frame is left over or a format's rule was broken."""
        for percpu in self.percpu:
            percpu.leave()
        try:
            for space in self.spaces:
                space.destroy()
            if self.kernel is not None:
                self.kernel.close()
            self.physical.close()
            assert self.frames.leaks() == []
            assert self.buddy.free_frames == self.buddy.total
            for cpu in self.cpus:
                assert self.execute or cpu.broken_rules == []
        finally:
            for cpu in self.cpus:
                cpu.close()
            self.aperture.close()
            self.ram.close()


def fault_in(space: AddressSpace, va: int, access: int) -> Outcome:
    """A fault of a space, whichever CPU runs in it."""
    return Faults(space.physical).resolve(space, va, access)


def entries_of(table: PageTable, start: int, end: int, zero_frame: int, frames: FrameTable) -> Counter[int]:
    """How many entries of `[start, end)` name each frame, the zero frame aside."""
    fmt = table.format
    shown: Counter[int] = Counter()
    for found in table.cursor(start, end):
        assert found.level == 1
        shown[frames.number(found.entry & fmt.address_mask)] += 1
    shown.pop(zero_frame, None)
    return shown


def check_accounts(board: Board, objects: list[SharedMemory]) -> None:
    """Every reference and map count is explained by an entry, an object, a table or the machine itself."""
    frames = board.frames
    refs: Counter[int] = Counter({board.physical.zero_frame: 1})
    maps: Counter[int] = Counter()
    tables = 0
    for space in board.spaces:
        shown = entries_of(space.table, 0, space.limits.user_end, board.physical.zero_frame, frames)
        refs.update(shown)
        maps.update(shown)
        tables += space.table.tables
        owned = (frames.kind_array == Kind.TABLE) & (frames.owner_array == space.number)
        assert int(owned.sum()) == space.table.tables
    if board.kernel is not None:
        tables += board.kernel.table.tables
    for memory in objects:
        refs.update(memory.frames_by_page().values())
    in_tables = np.flatnonzero(frames.kind_array == Kind.TABLE).tolist()
    assert len(in_tables) == tables
    refs.update(in_tables)
    if board.kernel is not None:
        kernel = np.flatnonzero(frames.kind_array == Kind.KERNEL).tolist()
        refs.update(kernel)
        maps.update(kernel)
    assert {f: frames.refs[f] for f in np.flatnonzero(frames.refs_array).tolist()} == dict(refs)
    assert {f: frames.maps[f] for f in np.flatnonzero(frames.maps_array).tolist()} == dict(maps)
