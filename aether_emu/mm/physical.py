"""The physical side that all address spaces of a computer share: RAM, aperture, frames, zero page, TLBs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from aether_emu.errors import OutOfFrames
from aether_emu.machine.cpu import Cpu
from aether_emu.machine.memory.aperture import Aperture
from aether_emu.machine.memory.ram import Ram
from aether_emu.mm.balance import DEFAULT
from aether_emu.mm.changes import Change
from aether_emu.mm.counters import Counters, Event
from aether_emu.mm.frames.buddy import Buddy
from aether_emu.mm.frames.code import CodeFrames
from aether_emu.mm.frames.host_memory import HostMemory
from aether_emu.mm.frames.table import Flags, FrameTable, Kind
from aether_emu.mm.memory_types import MemoryTypes
from aether_emu.mm.objects.merged import MergedMemory
from aether_emu.mm.objects.protocol import MemoryObject
from aether_emu.mm.objects.registry import Registry
from aether_emu.mm.overcommit import Overcommit
from aether_emu.mm.page_cache import PageCache
from aether_emu.mm.slab.shrinkers import Shrinkers
from aether_emu.mm.slab.slabs import Slabs
from aether_emu.mm.swap.area import SwapArea
from aether_emu.mm.tags import Tags
from aether_emu.mm.tlb import Tlb
from aether_emu.ports import NO_TRACE, Trace

T = TypeVar("T")
_LARGE = (
    *(Event.HUGE_FAULT, Event.HUGE_ZERO_PAGE, Event.HUGE_RUN, Event.HUGE_COLLAPSE),
    Event.SHARED_HUGE_MAPPED,
)
_DIRTY = int(Flags.DIRTY)  # plain: asked for each frame that is taken


class Reclaiming(Protocol):
    """Who makes room where memory is short: `mm.room`. Asked only where no operation is in its midst."""

    on_stall: Callable[[], None]
    lazy: Any  # `mm.lazyfree.LazyPages`

    @property
    def is_short(self) -> bool:
        """Whether fewer frames are free than there should be."""

    @property
    def spare(self) -> int:
        """Free frames that are kept for those who cannot wait."""

    def balance(self) -> None:
        """Take pages that were not used lately, if memory is short."""

    def make_room(self, wanted: int) -> bool:
        """An operation has met OutOfFrames, and left all as it was. True: it may succeed now."""

    def take(self, frames: Sequence[int]) -> int:
        """Take those of the frames that may be taken. Returns how many."""

    def cool(self, frames: Sequence[int]) -> None:
        """These are not expected to be used soon."""

    def freed(self, frames: Sequence[int]) -> None:
        """These frames hold no page any more."""

    def unlocked(self, frames: NDArray[np.int64]) -> None:
        """An area that showed these frames locks them no longer."""

    def capture(self) -> dict[str, Any]:
        """All that goes on, as plain data."""

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one."""


class FilesInMemory(Protocol):
    """What is done with files' pages that count as memory: `mm.file_reclaim.FilePages`. Pages by number."""

    def write_back(self, backing: Any, first: int, count: int) -> int: ...
    def read(self, backing: Any, first: int, count: int) -> None: ...
    def drop_unused(self, frames: Iterable[int]) -> int: ...
    def drop_unused_of(self, backing: Any, first: int, count: int) -> int: ...


class HugeWords(Protocol):
    """What says where huge pages come by themselves: `mm.huge_settings.HugeSettings`."""

    WORDS: ClassVar[tuple[str, ...]]
    MODES: ClassVar[tuple[str, ...]]
    setting: str
    modes: dict[int, str]
    compacts: str

    def change(self, setting: str) -> None: ...
    def change_mode(self, order: int, mode: str) -> None: ...
    def capture_settings(self) -> tuple[str, dict[int, str], str]: ...
    def restore_settings(self, state: tuple[str, dict[int, str], str]) -> None: ...


class Huge(HugeWords, Protocol):
    """What gives programs huge pages, and runs of pages of some `orders`: `mm.hugepage.HugePages`.

    `zero_block` is the first frame of the huge page of zeros, -1 while there is none.
    """

    size: int
    order: int
    orders: tuple[int, ...]
    zero_page: bool
    zero_block: int

    def permits(self, space: Any, area: Any, size: int = 0) -> bool: ...
    def eligible(self, space: Any, area: Any) -> bool: ...
    def bring(self, space: Any, area: Any, page: int, *, write: bool) -> bool: ...
    def close(self) -> None: ...
    def capture(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


class SharedHuge(HugeWords, Protocol):
    """What gives shared memory huge pages: `mm.shared_huge.SharedHugePages`. `on`: at faults."""

    size: int
    order: int
    orders: tuple[int, ...]

    @property
    def on(self) -> bool: ...
    def possible(self, space: Any, area: Any) -> bool: ...
    def fits(self, area: Any) -> bool: ...
    def first_page(self, space: Any, area: Any, page: int) -> int | None: ...
    def permits(self, space: Any, area: Any, start: int) -> bool: ...
    def eligible(self, space: Any, area: Any) -> bool: ...
    def bring(self, space: Any, area: Any, page: int, *, write: bool) -> bool: ...
    def show(self, space: Any, area: Any, start: int, block: int, *, write: bool) -> None: ...


class HugePools(Protocol):
    """The pools of huge pages that programs ask for: `mm.huge_pools.Pools`."""

    def close(self) -> None: ...
    def capture(self) -> dict[int, Any]: ...
    def restore(self, state: dict[int, Any]) -> None: ...


class Compacts(Protocol):
    """What makes rows of free frames by moving pages: `mm.compaction.Compaction`."""

    def make(self, order: int) -> int | None: ...
    def capture(self) -> tuple[int, int]: ...
    def restore(self, state: tuple[int, int]) -> None: ...


class Measured(Protocol):
    """What keeps something in mind for pages."""

    def kept(self) -> int: ...


class Physical:
    """One computer's memory. `zero_frame` backs every untouched page that was only read.

    `objects` finds the memory object that the frame table names as a frame's owner. When the allocator has
    no frame left it asks `tlb.settle` first, for frames may wait for a CPU that has not acknowledged their
    flush, and then the `shrinkers`. `slabs` are the kernel's own objects.
    `on_mapping(space's number, change, start, end)` is told of each change of the areas of any space, when it
    is done (None: nobody listens). `decide(space, address, access)` is asked instead of `Faults.resolve` for
    an outcome, where a page is brought without the CPU (None: nobody decides). `tags` gives address
    spaces their PCIDs or ASIDs (None: they have none). `swap` is where pages go that `reclaim` takes, and
    `read_ahead` how many come back together (None: there is neither). `cache` counts the pages of files as
    memory (None: they stand outside it). Each `host_step` bytes that were freed, free frames are given back
    to the host (0: never).
    """

    def __init__(
        self,
        ram: Ram,
        aperture: Aperture,
        frames: FrameTable,
        buddy: Buddy,
        cpus: Sequence[Cpu],
        *,
        trace: Trace = NO_TRACE,
        flush_ceiling: int = 8,
        host_step: int = 0,
        tlb: Callable[..., Tlb] = Tlb,
        tags: Tags | None = None,
    ) -> None:
        self.ram, self.aperture, self.frames, self.buddy, self.cpus = ram, aperture, frames, buddy, cpus
        self.counters, self.tags = Counters(), tags
        self.trace = trace
        self.swap: SwapArea | None = None
        self.overcommit = Overcommit(buddy.total * ram.page_size, lambda: self.most_memory - ram.size)
        self.cache: PageCache | None = None
        self.files: FilesInMemory | None = None  # whoever drops and writes what that counts
        self.reclaim: Reclaiming | None = None
        self.new_room: Callable[[Physical], Reclaiming]  # a `mm.room.Room`
        self.new_swap: Callable[[], SwapArea]
        self.read_ahead = 1
        self.swappiness = DEFAULT  # see `mm.balance`
        self.lost_entries = False  # damaged ones were found: what they named in swap keeps its slot
        self.decide: Callable[..., Any] | None = None  # an Outcome, of `mm.fault`, which imports this module
        self.on_mapping: Callable[[int, Change, int, int], None] | None = None
        self.perform: Callable[[Any, Any], None]  # a batch of operations on an address space: `mm.perform`
        self.leave: Callable[[Any], None]  # no CPU walks an address space any more
        self.objects: Registry[MemoryObject] = Registry()
        self.memory_types = MemoryTypes(frames, ram.size >> frames.page_shift)
        self.tlb = tlb(cpus, self.counters, trace, flush_ceiling)
        if tags is not None:
            tags.cpus, tags.reuses = cpus, self.tlb.reuses_tag
        self.code = CodeFrames(frames, cpus, self.counters)
        self.shrinkers = Shrinkers(self.counters.n)
        self.slabs = Slabs(ram.bytes, ram.base, frames, buddy)  # of nothing, until somebody opens them
        buddy.on_short = self._find_more
        self.host_memory = HostMemory(ram, buddy, host_step)
        self.compaction: Compacts | None = None  # what makes rows of frames by moving pages; None: nobody
        self.thp: Huge | None = None  # where programs get large leaves by themselves; None: no such thing
        self.huge: Huge | None = None  # that, while they get some anywhere
        self.shared_huge: SharedHuge | None = None  # what shared memory gets in large leaves; None: nothing
        self.pools: HugePools | None = None  # huge pages that programs ask for; None: no such thing
        self.merged: MergedMemory | None = None  # what merged frames belong to, once there was one
        self.merge_scan: Measured | None = None  # what looks for equal pages; None: nobody
        self.zero_frame = buddy.alloc()
        self.prepare(self.zero_frame)
        frames.kind[self.zero_frame] = Kind.ZERO
        frames.refs[self.zero_frame] = 1

    def _find_more(self) -> bool:
        """The allocator has no frame left. Whether some came back."""
        return self.tlb.settle() or self.shrinkers.shrink(1) > 0

    def take(self, kind: Kind, owner: int, index: int) -> int:
        """A zeroed frame with one reference and no mapping. Raises OutOfFrames."""
        frame = self.take_to_fill(kind, owner, index)
        self.prepare(frame)
        return frame

    def take_to_fill(self, kind: Kind, owner: int, index: int) -> int:
        """As `take`, with whatever the frame's last owner left: who takes it fills all of it."""
        frame = self.buddy.alloc()
        frames = self.frames
        frames.kind[frame] = kind
        frames.owner[frame] = owner
        frames.index[frame] = index
        frames.refs[frame] = 1
        return frame

    def with_merged(self) -> MergedMemory:
        """What merged frames belong to; made when it is wanted first."""
        if self.merged is None:
            self.merged = MergedMemory(self.objects, self.frames)
        return self.merged

    def with_reclaim(self) -> Reclaiming:
        """Who makes room; where there is no swap area, made when a program first frees memory lazily."""
        if self.reclaim is None:
            self.reclaim = self.new_room(self)
        return self.reclaim

    def with_swap(self) -> SwapArea:
        """The swap area; where the machine has none it is made, without a file, for those of programs."""
        return self.new_swap() if self.swap is None else self.swap

    def is_merged(self, frame: int) -> bool:
        """Whether a frame that is in use is a merged one: nobody writes to it, not even its only user."""
        return self.merged is not None and self.frames.owner[frame] == self.merged.number

    def prepare(self, frame: int) -> None:
        """Make a frame fresh from the allocator read as zero; it counts as written from now on."""
        flags = self.frames.flags
        if flags[frame] & _DIRTY:
            self.ram.zero(self.frames.address(frame), self.ram.page_size)
            self.counters.n[Event.ZEROED_PAGES] += 1
        flags[frame] |= _DIRTY

    def with_room(self, attempt: Callable[[], T]) -> T:
        """What `attempt` returns, which is tried again while room can be made for it.

        When it raises OutOfFrames it has changed nothing. No operation is in its midst.
        """
        reclaim = self.reclaim
        if reclaim is None:
            return attempt()
        reclaim.balance()
        while True:
            try:
                return attempt()
            except OutOfFrames as short:
                if not reclaim.make_room(short.wanted):
                    raise

    @property
    def most_memory(self) -> int:
        """Bytes of RAM and of the swap area, if that is on."""
        swap = self.swap
        return self.ram.size + (0 if swap is None or not swap.on else swap.slots * self.ram.page_size)

    def page_bytes(self, frame: int) -> memoryview:
        """The bytes of a RAM frame, writable in place."""
        start = self.frames.address(frame) - self.ram.base
        return self.ram.bytes[start : start + self.ram.page_size]

    def give_back(self, unused: list[int]) -> None:
        """Free RAM frames that nothing references any more.

        Another CPU may go on with an entry that was taken away, and shows one of them, until it takes notice
        of that: here it does.
        """
        if unused and self.tlb.awaited:
            self.tlb.settle()
        self.free(unused)

    def free(self, unused: list[int]) -> None:
        """As `give_back`, of frames that no CPU uses any more."""
        if not unused:
            return
        if self.reclaim is not None:
            self.reclaim.freed(unused)
        self.code.retire(unused)
        if len(unused) > 32:
            self.buddy.free_bulk(unused)
        else:
            for frame in unused:
                self.buddy.free(frame)
        self.host_memory.freed(len(unused))

    @property
    def gave_large(self) -> bool:
        """Whether a program ever had a huge page or a run of pages: else nobody needs to look for some."""
        n = self.counters.n
        return any(n[event] for event in _LARGE)

    def noted_split(self, level: int) -> None:
        """A leaf of this level was split in an address space; 0: a contiguous run ended."""
        self.counters.n[Event.HUGE_SPLIT if level else Event.RUN_BROKEN] += 1

    def close(self) -> None:
        """Give back what the computer itself held, so that the frame table must now be empty."""
        self.tlb.settle()
        if self.cache is not None:
            self.cache.close()
        if self.thp is not None:
            self.thp.close()
        if self.pools is not None:
            self.pools.close()
        if self.merged is not None:
            self.merged.let_go()
        self.slabs.close()
        self.frames.refs[self.zero_frame] = 0
        self.frames.maps[self.zero_frame] = 0
        self.buddy.free(self.zero_frame)

    def peak_frames(self) -> int:
        """The most RAM frames that were in use at once."""
        stats = self.buddy.stats()
        return stats.total - stats.lowest_free

    def capture(self) -> dict[str, object]:
        """What this object knows beyond RAM, frame table, allocator and aperture, as plain data."""
        return {
            "last_owner": self.objects.last,
            "zero_frame": self.zero_frame,
            "counters": list(self.counters.n),
            "code": self.code.capture(),
            "overcommit": self.overcommit.capture(),
            "swap": None if self.swap is None else self.swap.capture(),
            "swappiness": self.swappiness,
            "cache": None if self.cache is None else self.cache.capture(),
            "reclaim": None if self.reclaim is None else self.reclaim.capture(),
            "host_memory": self.host_memory.capture(),
            "compaction": None if self.compaction is None else self.compaction.capture(),
            "huge": None if self.thp is None else self.thp.capture(),
            "shared_huge": None if self.shared_huge is None else self.shared_huge.capture_settings(),
            "pools": None if self.pools is None else self.pools.capture(),
            "merged": None if self.merged is None else self.merged.capture(),
            "slabs": self.slabs.capture(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one. Objects enter under their old numbers afterwards."""
        last, zero, counts = state["last_owner"], state["zero_frame"], state["counters"]
        code, host = state["code"], state["host_memory"]
        huge, learnt, pools = state["huge"], state["compaction"], state["pools"]
        assert isinstance(last, int)
        assert isinstance(zero, int)
        assert isinstance(counts, list)
        assert isinstance(code, tuple)
        assert isinstance(host, tuple)
        self.objects.last, self.zero_frame = last, zero
        self.counters.n[:] = counts
        self.code.restore(code)
        self.overcommit.restore(state["overcommit"])
        if state["swap"] is not None:
            self.with_swap().restore(state["swap"])
        self.swappiness = state["swappiness"]
        if self.cache is not None:
            self.cache.restore(state["cache"])
        if state["reclaim"] is not None:
            self.with_reclaim().restore(state["reclaim"])
        self.host_memory.restore(host)
        if self.compaction is not None:
            assert isinstance(learnt, tuple)
            self.compaction.restore(learnt)
        if self.thp is not None:
            assert isinstance(huge, dict)
            self.thp.restore(huge)
        if self.shared_huge is not None:
            self.shared_huge.restore_settings(state["shared_huge"])
        if self.pools is not None:
            assert isinstance(pools, dict)
            self.pools.restore(pools)
        self.slabs.restore(state["slabs"])
        merged = state["merged"]
        if merged is not None:
            assert isinstance(merged, dict)
            self.with_merged().restore(merged)
