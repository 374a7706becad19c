"""What a memory object is: something that pages belong to, by index, and that areas show a window of.

    frame  --(owner, index)-->  object  --interval query-->  areas  -->  an address in a space

An area is linked to its objects while it stands in an area map (`mm.allocation` does both). An object lives
as long as an area shows it or somebody holds it; then it gives its pages back and leaves the registry.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, Protocol

from aether_emu.arch.paging import MemoryType
from aether_emu.errors import Refused
from aether_emu.mm.objects.intervals import Intervals
from aether_emu.mm.objects.registry import Registry
from aether_emu.mm.protection import Protection
from aether_emu.mm.tables.page import PageTable
from aether_emu.mm.tlb import Gather
from aether_emu.waiting import WaitQueue


class NotReady(Exception):
    """A page is on its way: whoever needs it waits on `on`, and asks again."""

    def __init__(self, on: WaitQueue) -> None:
        super().__init__("the page is on its way")
        self.on = on


class Space(Protocol):
    """An address space, as far as the way from a frame to its mappings needs one."""

    @property
    def table(self) -> PageTable:
        """Its page table."""

    def gather(self) -> Gather:
        """A collection for one operation's edits."""

    def finish(self, gather: Gather) -> None:
        """Flush what was gathered and let go of what it dropped."""

    def clear(
        self,
        gather: Gather,
        area: Window,
        start: int,
        end: int,
        *,
        own_pages: bool = True,
        guards: bool = True,
    ) -> None:
        """Remove the entries of a part of `area`: private pages with `own_pages`, guards with `guards`."""


class Window(Protocol):
    """An area as its objects see it."""

    start: int
    end: int
    offset: int  # page of the backing at `start`
    moved: int  # pages by which the area's own pages were moved: their index less their page number
    shared: bool
    maximum: Protection  # the most that mprotect may give
    space: Space | None
    backing: Backing | None

    @property
    def huge_size(self) -> int:
        """Bytes of its pages, if they are huge ones of a pool; else 0."""

    @property
    def keeps_markers(self) -> bool:
        """Whether what its entries say of absent pages (`mm.markers`) outlives the pages."""


class MemoryObject(ABC):
    """What pages belong to. `number` is the owner that the frame table names for them."""

    def __init__(self, registry: Registry[MemoryObject]) -> None:
        self._registry = registry
        self.number = registry.enter(self)
        self.windows: Intervals[Window] = Intervals()
        self._holds = 0

    def link(self, area: Window, first: int, count: int) -> None:
        """`area` shows pages `[first, first + count)` from now on."""
        self.windows.add(first, first + count, area)

    def unlink(self, area: Window) -> None:
        """`area` shows nothing of it any more."""
        self.windows.remove(area)
        self._release_if_unused()

    def hold(self) -> None:
        """Keep the object without an area; `let_go` ends it."""
        self._holds += 1

    def let_go(self) -> None:
        """One holder less."""
        assert self._holds, f"object {self.number} is let go more often than it was held"
        self._holds -= 1
        self._release_if_unused()

    def _release_if_unused(self) -> None:
        if not self._holds and not self.windows:
            self.release()
            self._registry.leave(self.number)

    def renumber(self, number: int) -> None:
        """Become the object that a snapshot knows by `number`."""
        self._registry.leave(self.number)
        self.number = number
        self._registry.put(number, self)

    @abstractmethod
    def release(self) -> None:
        """Nobody shows or holds the object: give back what it has."""


class Backing(MemoryObject):
    """An object with pages of its own to show: a file, or shared memory."""

    in_place: bool  # frames stand in the aperture and are never freed to the buddy allocator
    memory = MemoryType.WRITE_BACK  # of every entry that shows it shared
    in_device = False
    """Whether its pages are a device's: nobody executes them, makes an area of it longer, locks, drops or
    dumps them (Linux: VM_IO, VM_PFNMAP, VM_DONTEXPAND, VM_DONTDUMP).
    """
    huge_size = 0  # bytes of its pages, if they are huge ones that are never cut
    whole = False  # whether an area shows all of it or nothing, and is never cut or made longer

    @property
    def folios(self) -> Collection[int]:
        """The first page of each huge page that came as such (`mm.shared_huge`)."""
        return ()

    @property
    def length_in_pages(self) -> int:
        """How many whole pages it has, where that is known."""
        return 0

    @property
    @abstractmethod
    def name(self) -> str:
        """What /proc/self/maps shows."""

    @property
    @abstractmethod
    def writable(self) -> bool:
        """Whether any mapping may store into the pages."""

    @abstractmethod
    def frames(self, index: int, count: int, *, write: bool) -> tuple[int, int]:
        """Frame of page `index` and how many of up to `count` pages follow it in a row, ready to map.

        One page is a page that is touched. More are asked for because they may be there anyway
        (fault-around): an object whose pages cost memory brings none that is not. Raises BeyondEnd or
        BackingFailed when there is no such page, OutOfFrames, and NotReady while the page is on its way.
        """

    def require_window(self, first: int, count: int, *, shared: bool) -> None:
        """Raise Refused where mmap may not show `count` pages from `first` on, `shared` or as copies.

        Most objects do not mind: a page behind the end is SIGBUS when it is touched.
        """

    @abstractmethod
    def copy_page(self, index: int, into: memoryview) -> None:
        """Copy page `index` into a buffer of one page. Raises as `frames`."""

    def resident(self, first: int, count: int) -> bytes:
        """A byte for each of `count` pages from `first` on: 1 where the object has it in memory (mincore).

        All of them, where an object does not say which.
        """
        return b"\1" * count

    def remove(self, first: int, count: int) -> None:
        """Give up pages that no entry shows any more: the next touch finds zeroes (MADV_REMOVE).

        Raises Refused: EINVAL for an object that is no file, in Linux's sense.
        """
        raise Refused(errno.EINVAL, f"{self.name} is no file")

    @abstractmethod
    def capture(self) -> dict[str, Any]:
        """What it takes to have the object again, as plain data: its `kind`, its `number`, and more."""

    @abstractmethod
    def sync(self) -> None:
        """Write back what was stored (msync). Raises Refused."""
