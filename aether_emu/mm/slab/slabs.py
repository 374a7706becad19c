"""All caches of a machine, and the memory that they take: the kernel's own allocator of objects.

    take, put        an object of a `Layout`, from the cache of that name
    take_bytes       so many bytes from the caches kmalloc-8 ... kmalloc-4k, a page at a time at most
    take_stack       a kernel stack
    store, load      the fields of an object

Until `open` nothing is taken: `take` gives 0, and what is done to 0 does nothing. So whoever has objects asks
nobody whether there are any: a computer without Linux has none, nor a machine that is being restored, whose
objects come back with the RAM that they stand in. Addresses are the kernel's, in the direct map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from aether_emu.errors import OutOfFrames
from aether_emu.mm.frames.buddy import Buddy
from aether_emu.mm.frames.host_memory import HostMemory
from aether_emu.mm.frames.table import Flags, FrameTable, Kind
from aether_emu.mm.slab.cache import Cache, Who
from aether_emu.mm.slab.finding import SlabCorruption
from aether_emu.mm.slab.geometry import NOTHING, WORD, Debug, geometry
from aether_emu.mm.slab.layout import Layout

CLASSES = (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096)
"""Sizes of the caches that give bytes (Linux: kmalloc)."""
STACK = 16 << 10
"""Bytes of a kernel stack (Linux: THREAD_SIZE)."""
STACK_END = 0x57AC6E9D
"""What stands at the end of a kernel stack, which grows down to it (Linux: STACK_END_MAGIC)."""
LINE = 64
"""Bytes of a line of a CPU's caches, to which objects of a layout are aligned (Linux: SLAB_HWCACHE_ALIGN)."""
_DIRTY = int(Flags.DIRTY)
_NOBODY = Who(0, 0, -1, 0, b"")


class Terms(NamedTuple):
    """How objects are kept. `secret` gives 64 bits of chance, `below` a number of chance."""

    debug: Debug
    only: tuple[str, ...]  # the caches that are checked; none named: all
    merge: bool
    secret: Callable[[], int]
    below: Callable[[int], int]


class Row(NamedTuple):
    """A cache, as /proc/slabinfo tells of it."""

    name: str
    active: int
    objects: int
    size: int
    per_slab: int
    frames_per_slab: int
    active_slabs: int
    slabs: int


class Slabs:
    """The caches of one machine, in the order of their making. `who` tells who is at work."""

    def __init__(self, memory: memoryview, base: int, frames: FrameTable, buddy: Buddy) -> None:
        self.memory, self.frames, self._buddy, self._base = memory, frames, buddy, base
        self.bias, self.cpus, self.opened = 0, len(buddy.caches), False
        self.cpu: Callable[[], int] = lambda: 0
        self.who: Callable[[], Who] = lambda: _NOBODY
        self.call_name: Callable[[int], str] = lambda number: "" if number < 0 else f"call {number}"
        self.host_memory: HostMemory | None = None
        self._terms: Terms
        self.caches: list[Cache] = []
        self._named: dict[str, Cache] = {}
        self._stacks = 0
        self.asked = self.scanned = 0  # how often memory was short, and objects looked at then

    def open(self, kernel_base: int, terms: Terms) -> None:
        """From now on objects are taken. RAM is shown from `kernel_base` + its first address on."""
        self.bias, self._terms, self.opened = kernel_base + self._base, terms, True

    @property
    def secret(self) -> Callable[[], int]:
        """See `Terms`."""
        return self._terms.secret

    @property
    def below(self) -> Callable[[int], int]:
        """See `Terms`."""
        return self._terms.below

    # ---- caches

    def cache(self, name: str, size: int, align: int = WORD) -> Cache:
        """The cache of that name, made at the first use. With merging it may be an older one's."""
        found = self._named.get(name)
        if found is None:
            terms = self._terms
            debug = terms.debug if not terms.only or name in terms.only else NOTHING
            merged = self._alike(size, align) if terms.merge and not debug else None
            found = self._named[name] = merged or self._make(name, size, align, debug)
        return found

    def _make(self, name: str, size: int, align: int, debug: Debug) -> Cache:
        cache = Cache(self, len(self.caches) + 1, name, size, align=align, debug=debug)
        self.caches.append(cache)
        return cache

    def _alike(self, size: int, align: int) -> Cache | None:
        """A cache whose objects have room for these, with less than a word to spare."""
        stride = geometry(size, align, NOTHING).stride
        fitting = (
            each
            for each in self.caches
            if not each.debug and 0 <= each.shape.stride - stride < WORD and not each.shape.stride % align
        )
        return next((each for each in fitting if each.size >= size), None)

    def find(self, address: int) -> Cache | None:
        """The cache whose object stands there; None for what is no object."""
        frames, at = self.frames, address - self.bias >> self.frames.page_shift
        if 0 <= at < frames.count and frames.kind[at] == Kind.SLAB:
            return self.caches[frames.owner[at] - 1]
        return None

    # ---- objects

    def take(self, layout: Layout, **fields: Any) -> int:
        """An object with these fields, the others 0. Raises OutOfFrames, SlabCorruption."""
        if not self.opened:
            return 0
        address = self.cache(layout.name, layout.size, LINE).alloc()
        at = address - self.bias
        self.memory[at : at + layout.size] = bytes(layout.size)
        self.store(layout, address, **fields)
        return address

    def put(self, layout: Layout, address: int) -> None:
        """Give an object back. Raises SlabCorruption."""
        if address and self.opened:
            self.cache(layout.name, layout.size, LINE).free(address)

    def store(self, layout: Layout, address: int, **fields: Any) -> None:
        """Write fields of an object. Raises SlabCorruption for an address outside RAM."""
        if address and self.opened:
            layout.pack(self.memory, self._at(layout, address), fields)

    def load(self, layout: Layout, address: int) -> dict[str, Any]:
        """What the fields of an object say. Raises SlabCorruption for an address outside RAM."""
        return layout.unpack(self.memory, self._at(layout, address))

    def _at(self, layout: Layout, address: int) -> int:
        at = address - self.bias
        if not 0 <= at <= len(self.memory) - layout.size:
            raise SlabCorruption("wild pointer", f"no {layout.name} can be at {address:#x}", [])
        return at

    # ---- bytes

    def take_bytes(self, size: int) -> tuple[int, ...]:
        """So many bytes, in pieces of `CLASSES[-1]` and a rest. Raises OutOfFrames, with nothing taken."""
        if not self.opened or not size:
            return ()
        taken: list[int] = []
        try:
            for length in _pieces(size):
                taken.append(self._sized(length).alloc())
        except OutOfFrames:
            self.put_bytes(tuple(taken), size)
            raise
        return tuple(taken)

    def put_bytes(self, pieces: tuple[int, ...], size: int) -> None:
        """Give them back, as they were taken: the first ones, if not all were."""
        if self.opened:
            for address, length in zip(pieces, _pieces(size), strict=False):
                self._sized(length).free(address)

    def _sized(self, size: int) -> Cache:
        fits = next(each for each in CLASSES if each >= size)
        name = f"kmalloc-{fits}" if fits < 1024 else f"kmalloc-{fits >> 10}k"
        return self.cache(name, fits, min(fits & -fits, LINE))

    def write(self, pieces: tuple[int, ...], data: bytes, at: int = 0) -> None:
        """Write into what `take_bytes` gave, from its byte `at` on."""
        for place, part in self._places(pieces, at, len(data)):
            self.memory[place : place + part.stop - part.start] = data[part]

    def read(self, pieces: tuple[int, ...], length: int, at: int = 0) -> bytes:
        """Read there."""
        parts = self._places(pieces, at, length)
        return b"".join(bytes(self.memory[place : place + part.stop - part.start]) for place, part in parts)

    def _places(self, pieces: tuple[int, ...], at: int, length: int) -> Iterator[tuple[int, slice]]:
        """Where in `memory` each part of so many bytes stands, and which part that is."""
        done, most = 0, CLASSES[-1]
        while done < length and pieces:
            number, inside = divmod(at + done, most)
            count = min(length - done, most - inside)
            yield pieces[number] - self.bias + inside, slice(done, done + count)
            done += count

    # ---- stacks

    def take_stack(self) -> int:
        """A kernel stack: the address of its lowest byte. Raises OutOfFrames.

        Its frames lie anywhere, as Linux's do (VMAP_STACK), so that a split memory has room for it too.
        """
        if not self.opened:
            return 0
        if self._stack_order < 0:  # a frame has room for several
            address = self.cache("thread_stack", STACK, STACK).alloc()
        else:
            address = self.bias + (self._take_stack() << self.frames.page_shift)
        self._stacks += 1
        at = address - self.bias
        self.memory[at : at + WORD] = STACK_END.to_bytes(WORD, "little")
        return address

    def put_stack(self, address: int) -> None:
        """Give it back. SlabCorruption if somebody has written to its end."""
        if not address or not self.opened:
            return
        at = address - self.bias
        if bytes(self.memory[at : at + WORD]) != STACK_END.to_bytes(WORD, "little"):
            raise SlabCorruption("stack overrun", f"the end of the kernel stack at {address:#x} is gone", [])
        self._stacks -= 1
        if self._stack_order < 0:
            self.cache("thread_stack", STACK, STACK).free(address)
        else:
            self._give_stack(at >> self.frames.page_shift)

    def _take_stack(self) -> int:
        """Frames for a stack, wherever they are: the index of each says which follows, plus 1; 0 is none."""
        following = 0
        try:
            for _ in range(1 << self._stack_order):
                frame = self._take(0, Kind.STACK, 0)
                self.frames.index[frame] = following
                following = frame + 1
        except OutOfFrames:
            if following:
                self._give_stack(following - 1)
            raise
        return following - 1

    def _give_stack(self, frame: int) -> None:
        following = frame + 1
        while following:
            frame = following - 1
            following = self.frames.index[frame]
            self._give(frame, 0)

    @property
    def _stack_order(self) -> int:
        return (STACK >> self.frames.page_shift).bit_length() - 1

    @property
    def stack_bytes(self) -> int:
        """Bytes of all kernel stacks."""
        return self._stacks * STACK

    # ---- frames

    def take_pages(self, number: int, order: int) -> int:
        """Frames for a slab of the cache of that number."""
        return self._take(order, Kind.SLAB, number)

    def give_pages(self, first: int, order: int) -> None:
        """They hold no object any more."""
        self._give(first, order)

    def _take(self, order: int, kind: Kind, owner: int) -> int:
        first, frames = self._buddy.alloc(order), self.frames
        for at in range(1 << order):
            frame = first + at
            frames.kind[frame], frames.owner[frame], frames.index[frame] = kind, owner, at
            frames.refs[frame] = 1
            frames.flags[frame] |= _DIRTY
        return first

    def _give(self, first: int, order: int) -> None:
        for frame in range(first, first + (1 << order)):
            self.frames.refs[frame] = 0
        self._buddy.free(first, order)
        if self.host_memory is not None:
            self.host_memory.freed(1 << order)

    # ---- what others ask

    def rows(self) -> list[Row]:
        """A row for each cache."""
        return [
            Row(
                cache.name,
                in_use := cache.in_use,
                len(cache.slabs) * cache.per_slab,
                cache.shape.stride,
                cache.per_slab,
                1 << cache.order,
                sum(slab.in_use > 0 for slab in cache.slabs.values()) if in_use else 0,
                len(cache.slabs),
            )
            for cache in self.caches
        ]

    @property
    def used_frames(self) -> int:
        """Frames of all slabs."""
        return sum(len(cache.slabs) << cache.order for cache in self.caches)

    def count(self) -> int:
        """Objects that nobody has, and whose frames may come free: see `Shrinker`."""
        return sum(
            sum(slab.count - slab.in_use for slab in cache.slabs.values()) + cache.magazines.count
            for cache in self.caches
        )

    def scan(self, _wanted: int) -> tuple[int, int]:
        """Give back what is free: see `Shrinker`."""
        looked = given = 0
        for cache in self.caches:
            objects, frames = cache.reap()
            looked, given = looked + objects, given + frames
        return looked, given

    def check(self) -> None:
        """Look at every object of every cache. Raises SlabCorruption."""
        for cache in self.caches:
            cache.check()

    def close(self) -> None:
        """Give back all frames but those of objects that somebody still has. Raises SlabCorruption."""
        if not self.opened:
            return
        self.check()
        self.scan(0)
        self.opened = False

    def kept(self) -> str:
        """What somebody still has: how many objects of which caches."""
        kept = [f"{cache.in_use} of {cache.name}" for cache in self.caches if cache.in_use]
        return ", ".join(kept + ([f"{self._stacks} stacks"] if self._stacks else []))

    def capture(self) -> dict[str, Any]:
        """What is not in RAM, as plain data."""
        caches = [(one.name, one.size, one.shape.left, one.capture()) for one in self.caches]
        named = {name: cache.number for name, cache in self._named.items()}
        aligned = [cache.align for cache in self.caches]
        return {"caches": caches, "aligned": aligned, "named": named, "stacks": self._stacks}

    def restore(self, state: dict[str, Any]) -> None:
        """Become the captured ones; RAM and the frame table have come back already."""
        self.caches, self._stacks = [], state["stacks"]
        for (name, size, left, captured), align in zip(state["caches"], state["aligned"], strict=True):
            debug = self._terms.debug if not self._terms.only or name in self._terms.only else NOTHING
            cache = self._make(name, size, align, debug)
            assert cache.shape.left == left, "it is checked as it was"
            cache.restore(captured)
        self._named = {name: self.caches[number - 1] for name, number in state["named"].items()}


def _pieces(size: int) -> Iterator[int]:
    """The lengths of the pieces that so many bytes are taken in."""
    most = CLASSES[-1]
    for at in range(0, size, most):
        yield min(most, size - at)
