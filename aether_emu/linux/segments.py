"""System V shared memory (shmget(2)): segments that processes attach by number, until somebody removes them.

    Segments ──by number──▶ Segment, which is the memory object that areas show

A segment that is removed lives on while it is attached, without its key. There is one IPC namespace.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from aether_emu.errors import Refused
from aether_emu.linux.credentials import IPC_OWNER, Actor
from aether_emu.mm.objects.protocol import Window
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.physical import Physical

MOST_SEGMENTS = 4096
"""Linux's SHMMNI."""
LARGEST = (1 << 64) - 1 - (1 << 24)
"""Most bytes of a segment, and pages of all (SHMMAX, SHMALL)."""
_SEQUENCES = 1 << 16
_INDEX_BITS = 15
REMOVED, LOCKED = 0o1000, 0o2000
"""Bits of a segment's mode."""


class Segment(SharedMemory):
    """One segment. `maker` made it, `user` attached or detached it last. Times are in s since 1970."""

    def __init__(
        self, segments: Segments, physical: Physical, number: int, key: int, size: int, mode: int, maker: int
    ) -> None:
        super().__init__(physical, -(-size >> physical.frames.page_shift))
        who = segments.actor.credentials
        self._segments, self.identifier, self.key, self.size, self.mode = segments, number, key, size, mode
        self.uid = self.creator_uid = who.euid
        self.gid = self.creator_gid = who.egid
        self.maker, self.user = maker, 0
        self.attach_time = self.detach_time = 0
        self.change_time = segments.now()
        self.hold()

    @property
    def name(self) -> str:
        """See `Backing.name`."""
        return f"/SYSV{self.key & 0xFFFF_FFFF:08x} (deleted)"

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

    def permits(self, wanted: int) -> bool:
        """Whether who acts may use it so: bits of a mode, whoever they are meant for (Linux: ipcperms)."""
        who = self._segments.actor.credentials
        granted = self.mode
        if who.euid in (self.uid, self.creator_uid):
            granted >>= 6
        elif who.in_group(self.gid) or who.in_group(self.creator_gid):
            granted >>= 3
        wanted = (wanted >> 6 | wanted >> 3 | wanted) & 7
        return not wanted & ~granted or who.has(IPC_OWNER)

    def destroy(self) -> None:
        """Nobody finds it any more: it ends when nobody has it attached."""
        if not self.mode & REMOVED:
            self.mode |= REMOVED
            self.key = 0
            self.let_go()

    def capture(self) -> dict[str, Any]:
        """See `Backing.capture`: `state` refuses to capture a machine that has one."""
        return super().capture() | {"kind": "segment"}


class Segments:
    """All segments of a machine. `now` is the wall-clock time in seconds."""

    def __init__(self, physical: Physical, actor: Actor, now: Callable[[], int]) -> None:
        self._physical, self.actor, self.now = physical, actor, now
        self._at: dict[int, Segment] = {}  # by index
        self._last, self._sequence = -1, 0

    def __len__(self) -> int:
        return len(self._at)

    @property
    def highest(self) -> int:
        """The highest index in use; 0 if there is none."""
        return max(self._at, default=0)

    def all(self) -> list[Segment]:
        """In the order of their indices."""
        return [self._at[index] for index in sorted(self._at)]

    def with_key(self, key: int) -> Segment | None:
        """The segment that is found by a key."""
        return next((each for each in self._at.values() if each.key == key and not each.mode & REMOVED), None)

    def make(self, key: int, size: int, mode: int, maker: int) -> Segment:
        """A new one. EINVAL, ENOSPC."""
        if not 0 < size <= LARGEST:
            raise Refused(errno.EINVAL, f"{size} bytes")
        if len(self._at) >= MOST_SEGMENTS:
            raise Refused(errno.ENOSPC, f"there are {MOST_SEGMENTS} segments")
        if size > self._physical.ram.size:
            raise Refused(errno.ENOMEM, "more than all memory")
        index = next(index for index in range(MOST_SEGMENTS) if index not in self._at)
        if index <= self._last:
            self._sequence = (self._sequence + 1) % _SEQUENCES
        self._last = index
        number = self._sequence << _INDEX_BITS | index
        made = self._at[index] = Segment(self, self._physical, number, key, size, mode & 0o777, maker)
        return made

    def numbered(self, number: int) -> Segment:
        """The segment of a number. EINVAL."""
        found = self.at(number & (1 << _INDEX_BITS) - 1) if number >= 0 else None
        if found is None or found.identifier != number:
            raise Refused(errno.EINVAL, f"no segment {number}")
        return found

    def at(self, index: int) -> Segment | None:
        """The segment of an index."""
        return self._at.get(index)

    def forget(self, segment: Segment) -> None:
        """It has ended."""
        self._at.pop(segment.identifier & (1 << _INDEX_BITS) - 1, None)
