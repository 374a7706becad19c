"""A small computer for tests of `mm`, on the engine of an ISA or on the reference CPU, with accounts.

`WatchedBuddy` takes a frame back only when no CPU can reach it any more: nothing is freed before its flush.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aether_emu.arch.arm64.stage1 import ArmFormat
from aether_emu.arch.paging import PageTableFormat
from aether_emu.arch.x86_64.stage1 import X86Format
from aether_emu.computer import Computer, CpuFactory, lowest_kernel_base, unicorn_cpus
from aether_emu.mm.counters import Event
from aether_emu.mm.fault import RESOLVED, Faults, Outcome
from aether_emu.mm.frames.buddy import Buddy
from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.mm.huge_pools import Pools
from aether_emu.mm.limits import Limits
from aether_emu.mm.objects.file import FileBacking, HostFiles
from aether_emu.mm.objects.hugetlb import HugeMemory
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.rmap import unmap
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.entries import swap_entries
from aether_emu.mm.tables.page import PageTable
from aether_emu.mm.tags import Tags
from tests.mm.instructions import ArmInstructions, Instructions, X86Instructions
from tests.mm.invented_format import InventedFormat
from tests.mm.reference_cpu import ReferenceCpu

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


def user_end(fmt: PageTableFormat) -> int:
    """Where the user's half ends: all of its own root's, or half of a root that is shared, less a page."""
    if isinstance(fmt, ArmFormat):
        return 1 << fmt.virtual_bits
    return (1 << fmt.virtual_bits - 1) - fmt.page_size


def engine_cpus(fmt: PageTableFormat) -> CpuFactory[Any]:
    """Unicorn's CPUs of the format's ISA, for which no time passes and chance is 0."""
    isa = "arm64" if isinstance(fmt, ArmFormat) else "x86_64"
    return unicorn_cpus(isa, fmt, ticks=lambda _hz: 0, random=lambda: 0)


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
    huge_size: int = 0
    in_memory: bool = False

    def may_store(self, protection: int) -> bool:
        return self.writable

    def open_backing(self, *, shared_writable: bool) -> FileBacking:
        fd = os.open(self.path, os.O_RDWR if shared_writable else os.O_RDONLY)
        try:
            status = os.fstat(fd)
            key = (status.st_dev, status.st_ino)
            return self.board.files.open(fd, key, str(self.path), writable=shared_writable)
        finally:
            os.close(fd)


class Board(Computer[Any]):
    """A computer that watches its frames. With `execute` Unicorn executes; else it has reference CPUs.

    With `tags` those keep what they hold of other spaces, too.
    """

    def __init__(
        self,
        fmt: PageTableFormat,
        *,
        ram: int | None = None,
        aperture: int = 8 * MIB,
        cpus: int = 1,
        execute: bool = False,
        flush_ceiling: int = 8,
        tags: Tags | None = None,
    ) -> None:
        self.execute = execute
        self.instructions: Instructions = (
            ArmInstructions() if isinstance(fmt, ArmFormat) else X86Instructions()
        )
        super().__init__(
            fmt,
            engine_cpus(fmt) if execute else partial(ReferenceCpu, fmt),
            ram=FRAMES * fmt.page_size if ram is None else ram,
            aperture=aperture,
            cpus=cpus,
            kernel_base=lowest_kernel_base(fmt) if execute else None,
            flush_ceiling=flush_ceiling,
            allocator=WatchedBuddy,
            tags=tags,
        )
        if tags is not None:
            for cpu in self.cpus:
                cpu.tags = "asids" if tags.broadcast else "pcids"
        self.files = HostFiles(self.physical, unmap)
        self.spaces: list[AddressSpace] = []
        self.outcome: Outcome | None = None
        if not execute:
            assert isinstance(self.buddy, WatchedBuddy)
            self.buddy.reachable = self._reachable

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
        space = self.new_space(Limits(**chosen))
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
        """Take everything apart. LeakError when a frame is left over, AssertionError for a broken rule."""
        try:
            self.rest()
            for space in self.spaces:
                space.destroy()
            for cpu in self.cpus:
                assert self.execute or cpu.broken_rules == []
        except BaseException:
            self.abandon()
            raise
        super().close()
        assert self.buddy.free_frames == self.buddy.total


def fault_in(space: AddressSpace, va: int, access: int) -> Outcome:
    """A fault of a space, whichever CPU runs in it."""
    return Faults(space.physical).resolve(space, va, access)


def discard(space: AddressSpace, start: int, end: int) -> None:
    """Drop the pages of a range that lies in one area."""
    area = space.areas.find(start)
    assert area is not None
    space.discard(area, start, end)


def entries_of(table: PageTable, start: int, end: int, frames: FrameTable) -> Counter[int]:
    """How many entries of `[start, end)` name each frame, zero pages and those in swap aside."""
    fmt = table.format
    shown: Counter[int] = Counter()
    for found in table.cursor(start, end):
        if swap_entries(fmt).holds(found.entry):
            continue
        size = fmt.levels[found.level - 1].size
        first = frames.number(found.entry & fmt.address_mask & -size)
        shown.update(range(first, first + (size >> fmt.page_shift)))
    for frame in [frame for frame in shown if frames.kind[frame] == Kind.ZERO]:
        del shown[frame]
    return shown


def stand_ins(board: Board) -> list[int]:
    """The frames of RAM that stand for pages of files: one for each that is in memory, all mapped ones."""
    frames, cache = board.frames, board.physical.cache
    found: list[int] = np.flatnonzero(frames.kind_array == Kind.CACHE).tolist()
    if cache is None:
        assert not found
        return found
    pages = cache.all_pages().tolist()
    assert sorted(frames.index[stand_in] for stand_in in found) == pages
    assert sorted(cache.stand_ins(np.array(pages, np.int64)).tolist()) == found
    assert cache.pages == len(pages)
    assert cache.dirty == sum(cache.is_dirty(page) for page in range(cache.base, frames.count))
    for page in np.flatnonzero((frames.kind_array == Kind.FILE) & (frames.maps_array > 0)).tolist():
        item = board.physical.objects.find(frames.owner[page])
        assert not isinstance(item, FileBacking) or item.cache is None or cache.has(page)
    return found


def check_accounts(board: Board, objects: Iterable[SharedMemory | HugeMemory]) -> None:
    """Every reference and map count is explained by an entry, an object, a table or the machine itself."""
    frames = board.frames
    refs: Counter[int] = Counter({board.physical.zero_frame: 1})
    maps: Counter[int] = Counter()
    huge = board.physical.huge
    if huge is not None and huge.zero_block >= 0:
        refs.update(range(huge.zero_block, huge.zero_block + (1 << huge.order)))
    pools = board.physical.pools
    if isinstance(pools, Pools):
        for pool in pools:
            for page in pool.pages:
                refs.update(range(page, page + pool.count))
    tables = 0
    for space in board.spaces:
        shown = entries_of(space.table, 0, space.limits.user_end, frames)
        refs.update(shown)
        maps.update(shown)
        tables += space.table.tables
        owned = (frames.kind_array == Kind.TABLE) & (frames.owner_array == space.number)
        assert int(owned.sum()) == space.table.tables
    if board.kernel_half is not None:
        tables += board.kernel_half.table.tables
    for memory in objects:
        refs.update(memory.frames_by_page().values())
    refs.update(stand_ins(board))
    in_tables = np.flatnonzero(frames.kind_array == Kind.TABLE).tolist()
    assert len(in_tables) == tables
    refs.update(in_tables)
    if board.kernel_half is not None:
        kernel = np.flatnonzero(frames.kind_array == Kind.KERNEL).tolist()
        refs.update(kernel)
        maps.update(kernel)
    assert {f: frames.refs[f] for f in np.flatnonzero(frames.refs_array).tolist()} == dict(refs)
    assert {f: frames.maps[f] for f in np.flatnonzero(frames.maps_array).tolist()} == dict(maps)
