"""Pages that the kernel itself shows a program, its vDSO and the time data below (Linux: special mappings).

Their bytes are given when the object is made, and never change. A page takes a frame when it is first touched
and keeps it until no area shows the object; a program that may write gets its own copy. Where a page is
missing, touching it is SIGBUS. An area shows all of the object or nothing: it is neither cut nor lengthened.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from aether_emu.errors import Refused
from aether_emu.machine.memory.aperture import BeyondEnd
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.objects.protocol import Backing
from aether_emu.mm.physical import Physical


class SpecialMapping(Backing):
    """Such pages. `pages` are their bytes, at most a page each, or None for one that is missing."""

    in_place = False
    whole = True

    def __init__(self, physical: Physical, name: str, pages: Sequence[bytes | None]) -> None:
        super().__init__(physical.objects)
        self._physical, self._name = physical, name
        self.pages = tuple(pages)
        self._frames: dict[int, int] = {}

    @property
    def name(self) -> str:
        return self._name

    @property
    def writable(self) -> bool:
        return False

    def frames(self, index: int, count: int, *, write: bool) -> tuple[int, int]:
        frame = self._frames.get(index)
        if frame is None:
            data = self.pages[index] if index < len(self.pages) else None
            if data is None:
                raise BeyondEnd(index, "the kernel shows nothing there")
            frame = self._frames[index] = self._physical.take(Kind.SHARED, self.number, index)
            self._physical.page_bytes(frame)[: len(data)] = data
        return frame, 1

    def copy_page(self, index: int, into: memoryview) -> None:
        frame, _count = self.frames(index, 1, write=False)
        into[:] = self._physical.page_bytes(frame)

    def resident(self, first: int, count: int) -> bytes:
        """A byte for each page, as mincore has them: what is no file's is said to be there."""
        return b"\1" * count

    def remove(self, first: int, count: int) -> None:
        """The kernel's pages are not given up. Raises Refused(EINVAL)."""
        raise Refused(errno.EINVAL, "no program takes pages from the kernel")

    def sync(self) -> None:
        """Nobody can have stored anything."""

    def release(self) -> None:
        held = [self._frames.pop(index) for index in sorted(self._frames)]
        table = self._physical.frames
        self._physical.give_back([frame for frame in held if table.put(frame)])

    def capture(self) -> dict[str, Any]:
        """See `Backing.capture`."""
        which = {"name": self._name, "pages": self.pages, "frames": dict(self._frames)}
        return {"kind": "special", "number": self.number} | which

    @classmethod
    def restored(cls, physical: Physical, state: dict[str, Any]) -> SpecialMapping:
        """The captured object, whose references the frame table already counts."""
        mapping = cls(physical, state["name"], state["pages"])
        mapping.renumber(state["number"])
        mapping._frames = dict(state["frames"])
        return mapping
