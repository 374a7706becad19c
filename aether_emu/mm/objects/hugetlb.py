"""Memory of huge pages from a pool (hugetlb): what MAP_HUGETLB, a memory file or a segment of such pages is.

A huge page is there from its first touch until the object ends or is cut. Who maps it shared has the pages
promised at once: the object keeps the promises, also when nobody shows it any more. What a private mapping
wrote is its own, and not here.
"""

from __future__ import annotations

from typing import Any, Protocol

from aether_emu.machine.memory.aperture import BackingFailed, BeyondEnd
from aether_emu.mm.objects.protocol import Backing
from aether_emu.mm.physical import Physical


class HugePool(Protocol):
    """The pool that the pages come from: `mm.huge_pools.Pool`."""

    level: int
    size: int
    count: int
    reserved: int

    @property
    def available(self) -> int: ...

    def reserve(self, count: int) -> None: ...
    def take(self, owner: int, index: int, *, promised: bool, copied: bool = False) -> int | None: ...
    def refer(self, page: int, by: int, *, mapped: bool) -> None: ...


class HugeMemory(Backing):
    """`pages` base pages of memory, whole huge pages. Huge pages are counted from 0 below."""

    in_place = False

    def __init__(self, physical: Physical, pool: HugePool, pages: int, name: str) -> None:
        super().__init__(physical.objects)
        self._physical, self.pool, self.pages, self._name = physical, pool, pages, name
        self.huge_size = pool.size
        self.blocks: dict[int, int] = {}  # the first frame of each huge page that is there
        self.promised: set[int] = set()

    @property
    def name(self) -> str:
        return self._name

    @property
    def writable(self) -> bool:
        return True

    def rename(self, name: str) -> None:
        """Be shown by another name."""
        self._name = name

    def frames_by_page(self) -> dict[int, int]:
        """The frame of each base page that has one."""
        count = self.pool.count
        return {
            huge * count + page: first + page for huge, first in self.blocks.items() for page in range(count)
        }

    def promise(self, first: int, count: int) -> None:
        """Have those huge pages promised that are neither there nor promised. Refused(ENOMEM) with none."""
        fresh = {huge for huge in range(first, first + count) if huge not in self.blocks} - self.promised
        self.pool.reserve(len(fresh))
        self.promised |= fresh

    def bring(self, huge: int) -> int:
        """The first frame of a huge page, which is there from now on. Raises BeyondEnd, BackingFailed."""
        if huge in self.blocks:
            return self.blocks[huge]
        count = self.pool.count
        if huge * count >= self.pages:
            raise BeyondEnd(huge * count, f"the object has {self.pages} pages")
        block = self.pool.take(self.number, huge * count, promised=huge in self.promised)
        if block is None:
            raise BackingFailed(huge * count, "the pool of huge pages is empty")
        self.promised.discard(huge)
        self.pool.refer(block, 1, mapped=False)
        self.blocks[huge] = block
        return block

    def frames(self, index: int, count: int, *, write: bool) -> tuple[int, int]:
        huge, page = divmod(index, self.pool.count)
        return self.bring(huge) + page, 1

    def copy_page(self, index: int, into: memoryview) -> None:
        frame, _count = self.frames(index, 1, write=False)
        into[:] = self._physical.page_bytes(frame)

    def resident(self, first: int, count: int) -> bytes:
        return bytes(index // self.pool.count in self.blocks for index in range(first, first + count))

    def remove(self, first: int, count: int) -> None:
        """See `Backing.remove`: of the huge pages that lie in the range whole."""
        low, high = -(-first // self.pool.count), (first + count) // self.pool.count
        self._drop([huge for huge in self.blocks if low <= huge < high])

    def zero(self, first: int, count: int) -> None:
        """Zero base pages that are there."""
        for index in range(first, first + count):
            huge, page = divmod(index, self.pool.count)
            if huge in self.blocks:
                ram = self._physical.ram
                ram.zero(self._physical.frames.address(self.blocks[huge] + page), ram.page_size)

    def resize(self, pages: int) -> None:
        """Have another length. No entry shows what is behind it any more, nothing there is promised."""
        self.pages = pages
        end = pages // self.pool.count
        self._break([huge for huge in self.promised if huge >= end])
        self._drop([huge for huge in self.blocks if huge >= end])

    def _break(self, promised: list[int]) -> None:
        self.promised -= set(promised)
        self.pool.reserved -= len(promised)

    def _drop(self, gone: list[int]) -> None:
        for huge in sorted(gone):
            self.pool.refer(self.blocks.pop(huge), -1, mapped=False)

    def sync(self) -> None:
        """Nothing stands behind it."""

    def release(self) -> None:
        self._break(sorted(self.promised))
        self._drop(list(self.blocks))

    def capture(self) -> dict[str, Any]:
        which = {"name": self._name, "pages": self.pages, "size": self.pool.size, **self.contents()}
        return {"kind": "hugetlb", "number": self.number} | which

    def contents(self) -> dict[str, Any]:
        """What is there, and what is promised, as plain data."""
        return {"blocks": dict(self.blocks), "promised": sorted(self.promised)}

    def go_on(self, number: int, contents: dict[str, Any]) -> None:
        """Be the captured object, whose pages and promises are counted already."""
        self.renumber(number)
        self.blocks, self.promised = dict(contents["blocks"]), set(contents["promised"])
