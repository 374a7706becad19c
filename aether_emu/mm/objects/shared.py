"""Shared anonymous memory (MAP_SHARED | MAP_ANONYMOUS): every area that shows a page shows the same one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aether_emu.machine.memory.aperture import BeyondEnd
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.objects.protocol import Backing
from aether_emu.mm.physical import Physical


class SharedMemory(Backing):
    """Memory of `pages` pages, each with a frame from its first touch until the object ends.

    An area that mremap made longer than the object shows nothing there: SIGBUS, as on Linux. The object
    holds one reference to each of its frames.
    """

    in_place = False

    def __init__(self, physical: Physical, pages: int) -> None:
        super().__init__(physical.objects)
        self._physical = physical
        self.pages = pages
        self._frames: dict[int, int] = {}

    @property
    def name(self) -> str:
        return "/dev/zero (deleted)"

    @property
    def writable(self) -> bool:
        return True

    def frames_by_page(self) -> dict[int, int]:
        """The frame of each page that has one."""
        return dict(self._frames)

    def frames(self, index: int, count: int, *, write: bool) -> tuple[int, int]:
        frame = self._frames.get(index)
        if frame is None:
            if index >= self.pages:
                raise BeyondEnd(index, f"the object has {self.pages} pages")
            frame = self._frames[index] = self._physical.take(Kind.SHARED, self.number, index)
        return frame, 1

    def resident(self, first: int, count: int) -> bytes:
        return bytes(index in self._frames for index in range(first, first + count))

    def remove(self, first: int, count: int) -> None:
        gone = sorted(index for index in self._frames if first <= index < first + count)
        self._drop([self._frames.pop(index) for index in gone])

    def copy_page(self, index: int, into: memoryview) -> None:
        frame, _count = self.frames(index, 1, write=False)
        into[:] = self._physical.page_bytes(frame)

    def sync(self) -> None:
        """Nothing stands behind anonymous memory."""

    def release(self) -> None:
        held = [self._frames.pop(index) for index in sorted(self._frames)]
        self._drop(held)

    def _drop(self, held: list[int]) -> None:
        table = self._physical.frames
        self._physical.give_back([frame for frame in held if table.put(frame)])

    def capture(self) -> dict[str, Any]:
        return {"kind": "shared", "number": self.number, "pages": self.pages, "frames": self.frames_by_page()}

    @classmethod
    def restored(cls, physical: Physical, state: dict[str, Any]) -> SharedMemory:
        """The captured object, whose references the frame table already counts."""
        memory = cls(physical, state["pages"])
        memory.go_on(state["number"], state["frames"])
        return memory

    def go_on(self, number: int, frames: Mapping[int, int]) -> None:
        """Be the object that had this number and these frames, whose references are counted already."""
        self.renumber(number)
        self._frames = dict(frames)
