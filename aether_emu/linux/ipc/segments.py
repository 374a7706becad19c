"""System V shared memory (shmget(2)): segments that processes attach by number, until somebody removes them.

    Segments --by number--> Segment, which is the memory object that areas show

A segment that is removed lives on while it is attached, without its key.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from aether_emu.errors import Refused
from aether_emu.linux.credentials import Actor
from aether_emu.linux.ipc.identifiers import Identifiers, Shared
from aether_emu.mm.objects.protocol import Window
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.physical import Physical

MOST_SEGMENTS = 4096
"""Linux's SHMMNI."""
LARGEST = (1 << 64) - 1 - (1 << 24)
"""Most bytes of a segment, and pages of all (SHMMAX, SHMALL)."""
REMOVED, LOCKED = 0o1000, 0o2000
"""Bits of a segment's mode."""


class Segment(Shared, SharedMemory):
    """One segment. `maker` made it, `user` attached or detached it last. Times are in s since 1970."""

    def __init__(self, segments: Segments, physical: Physical, number: int, key: int, size: int) -> None:
        Shared.__init__(self, segments.actor, key, number, 0)
        SharedMemory.__init__(self, physical, -(-size >> physical.frames.page_shift))
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

    def link(self, area: Window, first: int, count: int) -> None:
        """See `MemoryObject.link`."""
        self.attach_time = self._segments.now()
        super().link(area, first, count)

    def unlink(self, area: Window) -> None:
        """See `MemoryObject.unlink`."""
        self.detach_time = self._segments.now()
        super().unlink(area)

    def release(self) -> None:
        """See `MemoryObject.release`."""
        self._segments.forget(self)
        super().release()

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


class Segments(Identifiers[Segment]):
    """All segments of a machine."""

    def __init__(self, physical: Physical, actor: Actor, now: Callable[[], int]) -> None:
        super().__init__(actor, now, MOST_SEGMENTS)
        self._physical = physical

    def make(self, key: int, size: int, mode: int, maker: int) -> Segment:
        """A new one. EINVAL, ENOSPC, ENOMEM."""
        if not 0 < size <= LARGEST:
            raise Refused(errno.EINVAL, f"{size} bytes")
        self._physical.overcommit.require(size, 0)
        made = self.new(self.take_number(), key, size)
        made.mode, made.maker = mode & 0o777, maker
        return self.add(made)

    def new(self, number: int, key: int, size: int) -> Segment:
        """One of that number, which cannot be found yet."""
        return Segment(self, self._physical, number, key, size)
