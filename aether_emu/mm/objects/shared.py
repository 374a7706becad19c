"""Shared anonymous memory (MAP_SHARED | MAP_ANONYMOUS): every area that shows a page shows the same one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aether_emu.machine.memory.aperture import BeyondEnd
from aether_emu.mm.frames.table import Kind
from aether_emu.mm.objects.pages import PageNumbers
from aether_emu.mm.objects.protocol import Backing
from aether_emu.mm.physical import Physical


class SharedMemory(Backing):
    """Memory of `pages` pages, each with a frame from its first touch until the object ends.

    An area that mremap made longer than the object shows nothing there: SIGBUS, as on Linux. The object
    holds one reference to each of its frames. A page that reclaim took has a slot of the swap area instead.
    Those of an object that `stays` are never taken.

    `folios` has the first page of each huge page: as many frames in a row as one has, which came together. A
    page that goes alone, by a hole or to swap, ends its huge page as such; the others stay where they are.
    """

    in_place = False

    def __init__(self, physical: Physical, pages: int) -> None:
        super().__init__(physical.objects)
        self._physical = physical
        self.pages = pages
        self._size = pages * physical.ram.page_size
        physical.overcommit.committed += self._size
        self._frames, self._slots = PageNumbers(), PageNumbers()
        self._folios: set[int] = set()
        self.folio_pages = 1  # of each

    @property
    def name(self) -> str:
        return "/dev/zero (deleted)"

    @property
    def writable(self) -> bool:
        return True

    @property
    def folios(self) -> set[int]:
        """See `Backing.folios`."""
        return self._folios

    @property
    def length_in_pages(self) -> int:
        """See `Backing.length_in_pages`."""
        return self.pages

    @property
    def stays(self) -> bool:
        """Whether its pages are kept in memory (Linux: SHM_LOCK)."""
        return False

    def kept(self) -> list[Any]:
        """What it keeps for its pages, to be measured."""
        return [self._frames.kept(), self._slots.kept()]

    def frames_by_page(self) -> dict[int, int]:
        """The frame of each page that has one."""
        return self._frames.as_dict()

    def slots_by_page(self) -> dict[int, int]:
        """The slot of each page that is in swap."""
        return self._slots.as_dict()

    def swapped(self, first: int, count: int) -> int:
        """How many of some pages are in swap."""
        return sum(1 for _ in self._slots.within(first, count))

    def slots_in(self, first: int, count: int) -> list[int]:
        """The pages of a range that are in swap."""
        return list(self._slots.within(first, count))

    def frames(self, index: int, count: int, *, write: bool) -> tuple[int, int]:
        frame = self._frames.get(index)
        if frame is None:
            if index >= self.pages:
                raise BeyondEnd(index, f"the object has {self.pages} pages")
            frame = self._physical.take(Kind.SHARED, self.number, index)
            if index in self._slots:
                self._bring_back(index, frame)
            self._frames[index] = frame
        return frame, 1

    def _bring_back(self, index: int, frame: int) -> None:
        """Fill a fresh frame with what a page's slot has. Raises SwapLost, with the frame given back."""
        physical, slot = self._physical, self._slots.get(index)
        assert physical.swap is not None, "who gave the slot?"
        assert slot is not None, "it is in swap"
        try:
            physical.swap.load(slot, physical.page_bytes(frame))
        except BaseException:
            physical.frames.refs[frame] = 0
            physical.give_back([frame])
            raise
        self._slots.pop(index)
        physical.swap.unnamed(slot)

    def went(self, index: int, slot: int) -> None:
        """The page is in a slot from now on: no entry shows its frame, whose last reference was the object's.

        Whoever took it frees the frame.
        """
        self._frames.pop(index)
        self._slots[index] = slot
        self._folios.discard(index & -self.folio_pages)

    def resident(self, first: int, count: int) -> bytes:
        resident = bytearray(count)
        for index in self._frames.within(first, count):
            resident[index - first] = 1
        return bytes(resident)

    # ---- frames in a row

    def frames_in(self, first: int, count: int) -> list[int]:
        """The pages of a range that have a frame."""
        return list(self._frames.within(first, count))

    def is_used(self, first: int, count: int) -> bool:
        """Whether some page of a range is in memory, or in swap."""
        return bool(self.frames_in(first, count)) or bool(self.swapped(first, count))

    def row(self, first: int, count: int) -> int | None:
        """The first frame of some pages, if they have frames in a row."""
        frames = self._frames
        start = frames.get(first)
        if start is None or frames.get(first + count - 1) != start + count - 1:
            return None
        in_row = all(frames.get(first + number) == start + number for number in range(count))
        return start if in_row else None

    def put(self, first: int, block: int, count: int, *, folio: bool) -> list[int]:
        """Have frames in a row for some pages, none of which is in swap, each with a reference of ours.

        A `folio` is a huge page. Returns those of the frames that the pages had before which nothing refers
        to any more, for the caller to give back.
        """
        frames = [self._frames.get(index) for index in range(first, first + count)]
        had = [frame for frame in frames if frame is not None]
        for number in range(count):
            self._frames[first + number] = block + number
        if folio:
            self.folio_pages = count
            self._folios.add(first)
        table = self._physical.frames
        return [frame for frame in had if table.put(frame)]

    def remove(self, first: int, count: int) -> None:
        if self._folios:
            whole = self.folio_pages
            self._folios -= {each for each in self._folios if each < first + count and first < each + whole}
        self._drop([self._frames.pop(index) for index in list(self._frames.within(first, count))])
        self._forget(list(self._slots.within(first, count)))

    def copy_page(self, index: int, into: memoryview) -> None:
        frame, _count = self.frames(index, 1, write=False)
        into[:] = self._physical.page_bytes(frame)

    def sync(self) -> None:
        """Nothing stands behind anonymous memory."""

    def release(self) -> None:
        self._physical.overcommit.committed -= self._size
        self._folios.clear()
        self._drop([self._frames.pop(index) for index in list(self._frames)])
        self._forget(list(self._slots))

    def _forget(self, pages: list[int]) -> None:
        """Give up what is in swap of some pages."""
        for index in pages:
            assert self._physical.swap is not None, "who gave the slot?"
            self._physical.swap.unnamed(self._slots.pop(index))

    def _drop(self, held: list[int]) -> None:
        table = self._physical.frames
        self._physical.give_back([frame for frame in held if table.put(frame)])

    def capture(self) -> dict[str, Any]:
        return {"kind": "shared", "number": self.number, "pages": self.pages, **self.capture_pages()}

    def capture_pages(self) -> dict[str, Any]:
        """Where its pages are, as plain data."""
        folios = (self.folio_pages, sorted(self._folios))
        return {"frames": self.frames_by_page(), "slots": self.slots_by_page(), "folios": folios}

    @classmethod
    def restored(cls, physical: Physical, state: dict[str, Any]) -> SharedMemory:
        """The captured object, whose references the frame table already counts."""
        memory = cls(physical, state["pages"])
        memory.go_on(state["number"], state)
        return memory

    def go_on(self, number: int, state: Mapping[str, Any]) -> None:
        """Be the object that had this number and these pages, all of them counted already."""
        self.renumber(number)
        self._frames, self._slots = PageNumbers(state["frames"]), PageNumbers(state["slots"])
        self.folio_pages, folios = state["folios"]
        self._folios = set(folios)
