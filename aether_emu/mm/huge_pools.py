"""Pools of huge pages (hugetlb), one for each size: blocks of frames that nothing else gets, and who was
promised some.

    Pool        its pages; how many of the free ones are promised (Linux: HugePages_Rsvd)
    Promises    the huge pages of one address space's private mappings that a fault will not be refused

The pool itself has one reference to each frame of its pages, so that none ever goes back to the allocator by
itself: a page without another reference is free. Nobody is told when a page becomes free; it is looked for
when one is wanted. All frames of a page have the same counts, for its leaf is never split.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np

from aether_emu.arch.paging import PageTableFormat
from aether_emu.errors import Refused
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.buddy import MAX_ORDER
from aether_emu.mm.frames.table import Flags, Kind
from aether_emu.mm.hugepage import LEVEL, give_block, in_a_row
from aether_emu.mm.objects.hugetlb import HugePool
from aether_emu.mm.physical import Physical

_HUGETLB, _DIRTY = int(Kind.HUGETLB), int(Flags.DIRTY)  # plain: numpy is slow with an enum


class Pool:
    """The pages of one size. `size` is in bytes, `count` in frames, `level` that of their leaves.

    `pages` are the first frames, in the order in which they came. `surplus` of them are above what was asked
    for, and leave as soon as they are free: a smaller pool was wanted, or a program needed them, who may have
    up to `overcommit` such (Linux: nr_overcommit_hugepages).
    """

    def __init__(self, physical: Physical, level: int, size: int) -> None:
        self._physical, self.level, self.size = physical, level, size
        self.count = size >> physical.frames.page_shift
        self.pages: list[int] = []
        self.reserved = self.surplus = self.overcommit = 0

    def __len__(self) -> int:
        return len(self.pages)

    @property
    def _order(self) -> int:
        return self.count.bit_length() - 1

    def _unused(self) -> list[int]:
        refs = self._physical.frames.refs
        return [page for page in self.pages if refs[page] == 1]

    @property
    def free(self) -> int:
        """Pages that nobody has, promised ones included."""
        self._trim()
        return len(self._unused())

    @property
    def available(self) -> int:
        """Free pages that nobody was promised."""
        return self.free - self.reserved

    # ---- its size

    def resize(self, wanted: int) -> int:
        """Have `wanted` pages, as far as memory has room; fewer as soon as those above are free.

        Returns how many there are, the surplus not counted (Linux: nr_hugepages).
        """
        self._trim()
        self.surplus -= min(self.surplus, max(0, wanted - self.persistent))
        while self.persistent < wanted and self._add():
            pass
        self.surplus += max(0, self.persistent - wanted)
        self._trim()
        return self.persistent

    def _add(self) -> bool:
        """Have one page more, if memory has room for it."""
        block = in_a_row(self._physical, self._order, compacts=self.level == LEVEL)
        if block is None:
            return False
        span = slice(block, block + self.count)
        self._physical.frames.kind_array[span] = _HUGETLB
        self._physical.frames.refs_array[span] = 1
        self.pages.append(block)
        return True

    def _overcommit(self, wanted: int) -> bool:
        """Have so many pages more that nobody asked for by the pool's size. False: not all of them."""
        while wanted > 0 and self.surplus < self.overcommit and self._add():
            self.surplus += 1
            wanted -= 1
        return wanted <= 0

    @property
    def persistent(self) -> int:
        """Pages that were asked for."""
        return len(self.pages) - self.surplus

    def _trim(self) -> None:
        """Let surplus pages that are free go."""
        if not self.surplus:
            return
        unused = self._unused()
        while self.surplus and len(unused) > self.reserved:
            page = unused.pop()
            self.pages.remove(page)
            self.surplus -= 1
            give_block(self._physical, page, self._order)

    # ---- promises, and pages

    def reserve(self, count: int) -> None:
        """Promise `count` pages. Raises Refused(ENOMEM) with none promised."""
        if not self._overcommit(count - self.available):
            raise Refused(errno.ENOMEM, f"{self.available} huge pages of {self.size} bytes are left")
        self.reserved += count

    def take(self, owner: int, index: int, *, promised: bool, copied: bool = False) -> int | None:
        """The first frame of a page, zeroed unless it is to be `copied` to, for page `index` of an object.

        With `promised` a promise is kept by it. None if no page is free that nobody was promised. The caller
        refers to it (`refer`).
        """
        if not promised and self.available <= 0 and not self._overcommit(1 - self.available):
            return None
        physical, frames = self._physical, self._physical.frames
        page = self._unused()[0]
        self.reserved -= promised
        if physical.tlb.awaited:  # somebody may still go on with an entry that shows it
            physical.tlb.settle()
        physical.code.retire_range(page, self.count)
        flags = frames.flags_array[page : page + self.count]
        if not copied and (flags & np.uint8(_DIRTY)).any():
            physical.ram.zero(frames.address(page), self.size)
            physical.counters.n[Event.ZEROED_PAGES] += self.count
        flags |= np.uint8(_DIRTY)
        frames.claim(page, self.count, Kind.HUGETLB, owner, index)
        return page

    def refer(self, page: int, by: int, *, mapped: bool) -> None:
        """One more reference to a page (`by` 1), or one fewer (-1); of an entry, if `mapped`."""
        frames, span = self._physical.frames, slice(page, page + self.count)
        change = np.uint32(1)
        for column in (frames.refs_array, frames.maps_array) if mapped else (frames.refs_array,):
            if by > 0:
                column[span] += change
            else:
                column[span] -= change

    # ---- state

    def close(self) -> None:
        """Give every page back."""
        for page in self.pages:
            give_block(self._physical, page, self._order)
        self.pages.clear()

    def capture(self) -> tuple[list[int], int, int, int]:
        """What is to be known of it: the frame table knows the rest."""
        return list(self.pages), self.reserved, self.surplus, self.overcommit

    def restore(self, state: tuple[list[int], int, int, int]) -> None:
        """Become the captured one."""
        pages, self.reserved, self.surplus, self.overcommit = state
        self.pages = list(pages)


class Pools:
    """All pools of a machine: of each size above a page that its tables have a leaf for.

    Members of `segment_group` may have segments of such pages (Linux: vm.hugetlb_shm_group).
    """

    def __init__(self, physical: Physical, fmt: PageTableFormat) -> None:
        self.segment_group = 0
        shift = fmt.page_shift
        self._of = {
            spec.size: Pool(physical, level, spec.size)
            for level, spec in enumerate(fmt.levels, 1)
            if level > 1 and spec.leaf and (spec.size >> shift).bit_length() - 1 <= MAX_ORDER
        }

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._of.values())

    @property
    def default(self) -> Pool | None:
        """That of the size that is meant where none is named: the smallest."""
        return next(iter(self._of.values()), None)

    def chosen(self, shift: int) -> Pool:
        """The pool of pages of 2**shift bytes, 0 for the default. Raises Refused(EINVAL) if there is none."""
        pool = self._of.get(1 << shift) if shift else self.default
        if pool is None:
            raise Refused(errno.EINVAL, f"no huge page has {1 << shift} bytes")
        return pool

    def of_size(self, size: int) -> Pool | None:
        """The pool of pages of `size` bytes."""
        return self._of.get(size)

    def close(self) -> None:
        """Give every page back."""
        for pool in self:
            pool.close()

    def capture(self) -> dict[int, Any]:
        """All of them, by the size of their pages; the group in the place of none."""
        return {0: self.segment_group} | {size: pool.capture() for size, pool in self._of.items()}

    def restore(self, state: dict[int, Any]) -> None:
        """Become the captured ones."""
        self.segment_group = state[0]
        for size, pool in self._of.items():
            pool.restore(state[size])


class Promise(IntEnum):
    """What became of the promise of one huge page of a private mapping."""

    KEPT = 0  # a fault brought the page
    OPEN = 1  # it will
    BROKEN = 2  # the process is a fork's child, whose page its parent needed: SIGBUS


class Promises:
    """Those of one address space, by the addresses of the huge pages. A fork's child has none.

    The process that mapped the memory has a promise for each page; a page that it gives up (MADV_DONTNEED) is
    promised to it again.
    """

    def __init__(self) -> None:
        self._of: dict[int, tuple[HugePool, Promise]] = {}

    def _within(self, start: int, end: int) -> list[int]:
        return [address for address in self._of if start <= address < end]

    def add(self, pool: HugePool, start: int, end: int) -> None:
        """Promise what the pool has reserved already."""
        self._of.update(dict.fromkeys(range(start, end, pool.size), (pool, Promise.OPEN)))

    def keep(self, address: int) -> bool:
        """A page is about to be brought there: whether it was promised, and is not any more."""
        pool, state = self._of.get(address, (None, Promise.KEPT))
        if pool is None or state is not Promise.OPEN:
            return False
        self._of[address] = pool, Promise.KEPT
        return True

    def has(self, address: int) -> bool:
        """Whether the address space is who mapped the page there first, with a promise."""
        return self._of.get(address, (None, Promise.BROKEN))[1] is not Promise.BROKEN

    def broken(self, address: int) -> bool:
        """Whether the page there was taken away for good."""
        return self._of.get(address, (None, Promise.KEPT))[1] is Promise.BROKEN

    def take_away(self, pool: HugePool, address: int) -> None:
        """The page there went, and none comes again."""
        self._of[address] = pool, Promise.BROKEN

    def renew(self, start: int, end: int) -> None:
        """Pages were given up, of which those that are free now are promised again."""
        for address in self._within(start, end):
            pool, state = self._of[address]
            if state is Promise.KEPT and pool.available > 0:
                pool.reserved += 1
                self._of[address] = pool, Promise.OPEN

    def drop(self, start: int, end: int) -> None:
        """What lies there is mapped no more."""
        for address in self._within(start, end):
            pool, state = self._of.pop(address)
            pool.reserved -= state is Promise.OPEN

    def move(self, start: int, end: int, to: int) -> None:
        """What was there is at `to` now."""
        moved = {address: self._of.pop(address) for address in self._within(start, end)}
        self._of.update({address - start + to: each for address, each in moved.items()})

    def capture(self) -> list[tuple[int, int, int]]:
        """As plain data: address, bytes of the page, what became of the promise."""
        return [(address, pool.size, int(state)) for address, (pool, state) in self._of.items()]

    def restore(self, state: list[tuple[int, int, int]], pools: Pools) -> None:
        """Become the captured ones, which the pools count already."""
        for address, size, what in state:
            pool = pools.of_size(size)
            assert pool is not None, "the machine has the same sizes"
            self._of[address] = pool, Promise(what)
