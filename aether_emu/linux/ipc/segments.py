"""System V shared memory (shmget(2)): segments that processes attach by number, until somebody removes them.

    Segments --by number--> Segment, which is the memory object that areas show

A segment that is removed lives on while it is attached, without its key.
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from aether_emu.errors import Refused
from aether_emu.linux.credentials import Actor
from aether_emu.linux.ipc.identifiers import Identifiers, Shared
from aether_emu.mm.objects.hugetlb import HugeMemory, HugePool
from aether_emu.mm.objects.protocol import Backing, Window
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.physical import Physical

MOST_SEGMENTS = 4096
"""Linux's SHMMNI."""
LARGEST = (1 << 64) - 1 - (1 << 24)
"""Most bytes of a segment, and pages of all (SHMMAX, SHMALL)."""
NO_RESERVE = 0o10000
"""Of shmget: nothing is promised (SHM_NORESERVE)."""
REMOVED, LOCKED = 0o1000, 0o2000
"""Bits of a segment's mode."""


class Segment(Shared, Backing):
    """One segment. `maker` made it, `user` attached or detached it last. Times are in s since 1970.

    `pages` are base pages; what they are is a kind's: `SmallSegment`, `HugeSegment`.
    """

    pages: int

    def _begin(self, segments: Segments, size: int) -> None:
        self._segments, self.size = segments, size
        self.maker = self.user = 0
        self.attach_time = self.detach_time = 0
        self.hold()

    @property
    def name(self) -> str:
        """See `Backing.name`."""
        return f"/SYSV{self.key & 0xFFFF_FFFF:08x} (deleted)"

    @property
    def stays(self) -> bool:
        """See `SharedMemory.stays`."""
        return bool(self.mode & LOCKED)

    @property
    def attached(self) -> int:
        """How many areas show it."""
        return len(self.windows)

    @abstractmethod
    def present(self) -> int:
        """How many of its pages are in memory."""

    def in_swap(self) -> int:
        """How many of its pages are in swap."""
        return 0

    @abstractmethod
    def contents(self) -> dict[str, Any]:
        """What it has, as plain data."""

    @abstractmethod
    def take_over(self, number: int, contents: dict[str, Any]) -> None:
        """Be the captured object of that number, whose references are counted already."""

    def link(self, area: Window, first: int, count: int) -> None:
        """See `MemoryObject.link`."""
        self.attach_time = self._segments.now()
        super().link(area, first, count)

    def unlink(self, area: Window) -> None:
        """See `MemoryObject.unlink`."""
        self.detach_time = self._segments.now()
        super().unlink(area)

    def destroy(self) -> None:
        """Nobody finds it any more: it ends when nobody has it attached."""
        if not self.removed:
            self.removed = True
            self.mode |= REMOVED
            self.key = 0
            self.let_go()

    def capture(self) -> dict[str, Any]:
        """See `Backing.capture`: which segment an area shows. The segment itself is in `ipc.capture`."""
        return {"kind": "segment", "number": self.number}


class SmallSegment(Segment, SharedMemory):
    """One of pages that come when they are touched."""

    def __init__(self, segments: Segments, physical: Physical, number: int, key: int, size: int) -> None:
        Shared.__init__(self, segments.actor, key, number, 0)
        SharedMemory.__init__(self, physical, -(-size >> physical.frames.page_shift))
        self._begin(segments, size)

    def contents(self) -> dict[str, Any]:
        """See `Segment.contents`."""
        return self.capture_pages()

    def in_swap(self) -> int:
        """See `Segment.in_swap`."""
        return len(self.slots_by_page())

    def present(self) -> int:
        """See `Segment.present`."""
        return len(self.frames_by_page())

    def take_over(self, number: int, contents: dict[str, Any]) -> None:
        """See `Segment.take_over`."""
        SharedMemory.go_on(self, number, contents)

    def release(self) -> None:
        """See `MemoryObject.release`."""
        self._segments.forget(self)
        SharedMemory.release(self)


class HugeSegment(Segment, HugeMemory):
    """One of huge pages (SHM_HUGETLB), promised when it is made."""

    def __init__(
        self, segments: Segments, physical: Physical, number: int, key: int, size: int, pool: HugePool
    ) -> None:
        Shared.__init__(self, segments.actor, key, number, 0)
        HugeMemory.__init__(self, physical, pool, -(-size // pool.size) * pool.count, "")
        self._begin(segments, size)

    def contents(self) -> dict[str, Any]:
        """See `Segment.contents`."""
        return {"huge": self.pool.size, **HugeMemory.contents(self)}

    def present(self) -> int:
        """See `Segment.present`."""
        return len(self.blocks) * self.pool.count

    def take_over(self, number: int, contents: dict[str, Any]) -> None:
        """See `Segment.take_over`."""
        self.go_on(number, contents)

    def release(self) -> None:
        """See `MemoryObject.release`."""
        self._segments.forget(self)
        HugeMemory.release(self)


class Segments(Identifiers[Segment]):
    """All segments of a machine."""

    def __init__(self, physical: Physical, actor: Actor, now: Callable[[], int]) -> None:
        super().__init__(actor, now, MOST_SEGMENTS)
        self._physical = physical

    def make(self, key: int, size: int, mode: int, maker: int, pool: HugePool | None = None) -> Segment:
        """A new one, of huge pages if there is a pool. EINVAL, ENOSPC, ENOMEM."""
        if not 0 < size <= LARGEST:
            raise Refused(errno.EINVAL, f"{size} bytes")
        huge = 0 if pool is None or mode & NO_RESERVE else -(-size // pool.size)
        if pool is None:
            self._physical.overcommit.require(size, 0)
        elif huge > pool.available:
            raise Refused(errno.ENOMEM, f"{pool.available} huge pages are left")
        made = self.new(self.take_number(), key, size, pool)
        if isinstance(made, HugeSegment):
            made.promise(0, huge)
        made.mode, made.maker = mode & 0o777, maker
        return self.add(made)

    def new(self, number: int, key: int, size: int, pool: HugePool | None = None) -> Segment:
        """One of that number, which cannot be found yet."""
        if pool is not None:
            return HugeSegment(self, self._physical, number, key, size, pool)
        return SmallSegment(self, self._physical, number, key, size)
