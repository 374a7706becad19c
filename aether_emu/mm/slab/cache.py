"""A cache: objects of one size in slabs of frames, at real bytes of emulated RAM.

    slab    2**order frames of the kind SLAB, their owner the cache's number, their index which of it they are
    free    objects of a slab hang on a list whose pointers stand in the free objects' own bytes

A pointer is stored as `next ^ secret ^ swapped(where it stands)` (Linux: SLAB_FREELIST_HARDENED), with a
secret for each cache. Whoever overwrites one without knowing that gives the allocator an address that is no
free object of the slab; that is found before it is used. A fresh slab's objects hang in an order of chance.

Addresses are the kernel's, those of the direct map. 0 is no object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn, Protocol

from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.mm.slab.checks import Checks
from aether_emu.mm.slab.finding import NOBODY_KNOWS, SlabCorruption, dump
from aether_emu.mm.slab.geometry import NOTHING, WORD, Debug, geometry, slab_order
from aether_emu.mm.slab.magazines import Magazines, rounds

KEPT = 2
"""Slabs without objects that a cache keeps until memory is short."""
_SLAB = int(Kind.SLAB)


class Who(NamedTuple):
    """Who is at work: a task, the CPU, the number of its system call (-1: none), the time, its name."""

    tid: int
    cpu: int
    call: int
    time: int
    name: bytes


class Home(Protocol):
    """What a cache needs of the machine. `memory[address - bias]` is the byte at a kernel address."""

    memory: memoryview
    bias: int
    frames: FrameTable
    cpus: int

    def take_pages(self, number: int, order: int) -> int: ...
    def give_pages(self, first: int, order: int) -> None: ...
    @property
    def cpu(self) -> Callable[[], int]: ...
    @property
    def who(self) -> Callable[[], Who]: ...
    @property
    def call_name(self) -> Callable[[int], str]: ...
    @property
    def secret(self) -> Callable[[], int]: ...
    @property
    def below(self) -> Callable[[int], int]: ...


class Slab:
    """`count` places from `base` on, of which `in_use` do not hang on the list that begins at `free`."""

    __slots__ = ("base", "count", "first", "free", "in_use")

    def __init__(self, first: int, base: int, count: int) -> None:
        self.first, self.base, self.count = first, base, count
        self.free = self.in_use = 0


class Cache:
    """One cache. An object that is in a magazine is in use for its slab, and free for everybody else."""

    def __init__(
        self, home: Home, number: int, name: str, size: int, *, align: int = WORD, debug: Debug = NOTHING
    ) -> None:
        self.home, self.number, self.name = home, number, name
        self.size, self.align, self.debug = size, align, debug
        self.shape = shape = geometry(size, align, debug)
        self.order = slab_order(shape.stride, 1 << home.frames.page_shift)
        self.length = 1 << home.frames.page_shift + self.order
        self.per_slab = self.length // shape.stride
        self.secret = home.secret()
        self.slabs: dict[int, Slab] = {}
        self._partial: dict[int, Slab] = {}
        self._empty: dict[int, Slab] = {}
        self.magazines = Magazines(home.cpus, rounds(size))
        self.allocated = self.freed = self.grown = self.reaped = 0
        self.checks = Checks[Slab](self, home) if debug else None

    # ---- objects

    def alloc(self) -> int:
        """An object, with whatever its last user left there. Raises OutOfFrames, SlabCorruption."""
        address = self.magazines.take(self.home.cpu()) or self._from_slab()
        self.allocated += 1
        if self.checks is not None:
            self.checks.taken(address)
        return address

    def free(self, address: int) -> None:
        """Take an object back. Raises SlabCorruption."""
        slab = self.slab_of(address)
        if self.checks is not None:
            self.checks.given(slab, address)
        self.freed += 1
        for each in self.magazines.put(self.home.cpu(), address):
            self._to_slab(each)

    def slab_of(self, address: int) -> Slab:
        """The slab that an address lies in. SlabCorruption if it is none of the cache's."""
        frames, at = self.home.frames, address - self.home.bias >> self.home.frames.page_shift
        if 0 <= at < frames.count and frames.kind[at] == _SLAB and frames.owner[at] == self.number:
            return self.slabs[at - frames.index[at]]
        raise SlabCorruption("wild pointer", f"{address:#x} is no object of cache {self.name}", [])

    def is_object(self, slab: Slab, address: int) -> bool:
        """Whether an address is that of an object, free or not."""
        number, rest = divmod(address - slab.base - self.shape.left, self.shape.stride)
        return not rest and 0 <= number < slab.count

    @property
    def in_use(self) -> int:
        """Objects that somebody has."""
        return sum(slab.in_use for slab in self.slabs.values()) - self.magazines.count

    # ---- slabs

    @property
    def next_slab(self) -> Slab | None:
        """The one that the next object comes from, when no magazine has one; None if all are full."""
        return next(iter(self._partial.values()), None) or next(iter(self._empty.values()), None)

    def _from_slab(self) -> int:
        slab = self.next_slab or self._grow()
        address = slab.free
        slab.free = self._next(slab, address)
        slab.in_use += 1
        self._empty.pop(slab.first, None)
        if slab.free:
            self._partial[slab.first] = slab
        else:
            self._partial.pop(slab.first, None)
        return address

    def _to_slab(self, address: int) -> None:
        slab = self.slab_of(address)
        if slab.free == address or not slab.in_use:
            self.find("double free", address, "it is free already")
        self._link(address, slab.free)
        slab.free = address
        slab.in_use -= 1
        if slab.in_use:
            self._partial[slab.first] = slab
            return
        self._partial.pop(slab.first, None)
        self._empty[slab.first] = slab
        if len(self._empty) > KEPT:
            self._release(next(iter(self._empty.values())))

    def _grow(self) -> Slab:
        first = self.home.take_pages(self.number, self.order)
        base = self.home.bias + (first << self.home.frames.page_shift)
        slab = self.slabs[first] = self._empty[first] = Slab(first, base, self.per_slab)
        order = list(range(slab.count))
        for at in range(slab.count - 1, 0, -1):
            other = self.home.below(at + 1)
            order[at], order[other] = order[other], order[at]
        for number in order:
            address = base + number * self.shape.stride + self.shape.left
            if self.checks is not None:
                self.checks.fresh(address)
            self._link(address, slab.free)
            slab.free = address
        self.grown += 1
        return slab

    def _release(self, slab: Slab) -> None:
        """Give back the frames of a slab without objects."""
        if self.checks is not None:
            self.check_slab(slab)
        del self.slabs[slab.first], self._empty[slab.first]
        self.home.give_pages(slab.first, self.order)
        self.reaped += 1

    def reap(self) -> tuple[int, int]:
        """Give up what is free: magazines, slabs without objects. (Objects looked at, frames given back.)"""
        free = self.magazines.empty()
        for address in free:
            self._to_slab(address)
        empty = list(self._empty.values())
        for slab in empty:
            self._release(slab)
        return len(free) + len(empty) * self.per_slab, len(empty) << self.order

    # ---- the list of free objects

    def _code(self, at: int, pointer: int) -> int:
        """What stands at `at` for a pointer, and the other way round."""
        return pointer ^ self.secret ^ int.from_bytes(at.to_bytes(WORD, "little"), "big")

    def _link(self, address: int, following: int) -> None:
        at = address - self.shape.left + self.shape.pointer
        offset = at - self.home.bias
        self.home.memory[offset : offset + WORD] = self._code(at, following).to_bytes(WORD, "little")

    def _next(self, slab: Slab, address: int) -> int:
        """The free object behind this one, 0 behind the last. SlabCorruption if that can't be."""
        at = address - self.shape.left + self.shape.pointer
        offset = at - self.home.bias
        stored = int.from_bytes(self.home.memory[offset : offset + WORD], "little")
        following = self._code(at, stored)
        if following and not self.is_object(slab, following):
            what = f"its pointer to the next free object leads to {following:#x}"
            self.find("free list overwritten", address, what)
        return following

    def free_objects(self, slab: Slab) -> Iterator[int]:
        """Those on a slab's list. SlabCorruption if it leads astray, or in a circle."""
        address, left = slab.free, slab.count - slab.in_use
        while address:
            if not left:
                self.find("free list overwritten", address, "more objects are free than should be")
            yield address
            address, left = self._next(slab, address), left - 1
        if left:
            self.find("free list overwritten", slab.base, f"{left} free objects are missing")

    # ---- accounts

    def check(self) -> None:
        """Look at every object. Raises SlabCorruption."""
        for slab in self.slabs.values():
            self.check_slab(slab)

    def check_slab(self, slab: Slab) -> None:
        """Likewise, of one slab."""
        free = list(self.free_objects(slab))
        if self.checks is not None:
            at_hand = set(free)
            for number in range(slab.count):
                address = slab.base + number * self.shape.stride + self.shape.left
                self.checks.look(address, free=address in at_hand or address in self.magazines)

    def find(self, kind: str, address: int, what: str, *more: str) -> NoReturn:
        """Raise what was found, with all that is known of the object."""
        checks = self.checks
        offset = address - self.home.bias
        data = bytes(self.home.memory[offset : offset + self.size])
        found = "" if checks is None else f"found by     {checks.now()}"
        both = NOBODY_KNOWS if checks is None else checks.sides(address)
        lines = [*both, *([found] if found else []), *more, *dump("object", address, data)]
        raise SlabCorruption(kind, f"object {address:#x} of cache {self.name}: {what}", lines)

    def capture(self) -> dict[str, Any]:
        """What is not in RAM, as plain data."""
        return {
            "secret": self.secret,
            "slabs": [(one.first, one.base, one.free, one.in_use) for one in self.slabs.values()],
            "partial": list(self._partial),
            "empty": list(self._empty),
            "magazines": self.magazines.capture(),
            "n": (self.allocated, self.freed, self.grown, self.reaped),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured one; RAM and the frame table have come back already."""
        self.secret = state["secret"]
        self.slabs = {}
        for first, base, free, in_use in state["slabs"]:
            slab = self.slabs[first] = Slab(first, base, self.per_slab)
            slab.free, slab.in_use = free, in_use
        self._partial = {first: self.slabs[first] for first in state["partial"]}
        self._empty = {first: self.slabs[first] for first in state["empty"]}
        self.magazines.restore(state["magazines"])
        self.allocated, self.freed, self.grown, self.reaped = state["n"]
