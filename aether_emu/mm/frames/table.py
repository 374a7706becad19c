"""The frame table: what each page frame of guest-physical memory holds, and who keeps it alive.

The table covers one range, [base, base + size): RAM, and behind it the aperture of host files. It is a
struct of arrays, 23 bytes a frame, and each column is reached in two ways, onto the same bytes:

    table.refs[f]            a memoryview: one element at a time, at half of numpy's cost
    table.refs_array[f:g]    a numpy array: many at once

    column   type   meaning
    kind     u8     a `Kind`; FREE (0) means that nobody uses the frame
    flags    u8     `Flags` of its content; neither allocation nor freeing changes them
    block    u8     the buddy allocator's own: which block begins here (see `aether_emu.mm.frames.buddy`)
    refs     u32    references that keep the frame alive
    maps     u32    page-table entries that point at it
    owner    u32    number of the backing object that the frame belongs to
    index    u64    the page of that object which it holds; with `owner`, the key of the reverse map

A fresh table is all zeros, which the host provides lazily: an untouched frame costs no host memory.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from aether_emu.errors import FrameError

BASE_ALIGNMENT: Final = 1 << 30
"""The base is a multiple of this: up to 1 GiB, what is aligned by frame number is aligned by address."""

_CENSUS_STEP = 1 << 20
_COLUMNS: Final = {
    "kind": np.uint8,
    "flags": np.uint8,
    "block": np.uint8,
    "refs": np.uint32,
    "maps": np.uint32,
    "owner": np.uint32,
    "index": np.uint64,
}


class Kind(IntEnum):
    """What a frame is used for."""

    FREE = 0
    """Nobody's. In RAM the allocator may hand it out; in the aperture no file is behind it."""
    RESERVED = 1
    """Never handed out: a hole, firmware, a device."""
    KERNEL = 2
    """The emulator's own, and whatever was allocated and not yet said to be something else."""
    TABLE = 3
    """A page-table page."""
    ANON = 4
    """Private anonymous memory: a page that belongs to a family of areas."""
    ZERO = 5
    """The zero page: shared by all, never written."""
    FILE = 6
    """A page of a file."""
    SHARED = 7
    """A page of shared memory: its object keeps it until it ends."""
    HUGETLB = 8
    """Part of a huge page of a pool (`mm.huge_pools`), which has a reference to it, also while it is free."""
    SLAB = 9
    """Part of a slab of kernel objects (`mm.slab`): its owner is the number of the cache."""
    STACK = 10
    """Part of a kernel stack."""
    CACHE = 11
    """Set aside for a page of a file that counts as memory: see `mm.page_cache`."""


class Flags(IntFlag):
    """What is known about a frame's content."""

    DIRTY = 1
    """Not known to be all zero. Whoever writes to the frame, or maps it writable, sets this; whoever zeroes
    it clears it. It survives freeing: a frame that comes without it needs no zeroing."""
    EXECUTABLE = 2
    """Was mapped executable, so that a CPU may hold translations of its bytes."""
    STALE = 4
    """Held code once, and is used for something else: see `CodeFrames`."""
    UNEVICTABLE = 8
    """Was found locked, and no area that showed it was unlocked since: `mm.reclaim` does not look at it."""
    TO_WRITE = 16
    """Of a file's page in the aperture: it may differ from what is on disk (`mm.page_cache`)."""
    SPARED = 32
    """Likewise: reclaim let it stay once, as it is code, and nobody has used it since."""


class Leak(NamedTuple):
    """A frame that somebody still holds when nobody should."""

    frame: int
    kind: Kind
    owner: int
    refs: int
    maps: int


class FrameTable:
    """The columns, and the checked operations on them. Frame `f` is the page at `base + (f << page_shift)`.

    Hot paths index the memoryviews directly; then the index must be known to be in [0, count), since Python
    reads a negative one from the end.
    """

    kind: memoryview
    flags: memoryview
    block: memoryview
    refs: memoryview
    maps: memoryview
    owner: memoryview
    index: memoryview
    kind_array: npt.NDArray[np.uint8]
    flags_array: npt.NDArray[np.uint8]
    block_array: npt.NDArray[np.uint8]
    refs_array: npt.NDArray[np.uint32]
    maps_array: npt.NDArray[np.uint32]
    owner_array: npt.NDArray[np.uint32]
    index_array: npt.NDArray[np.uint64]

    def __init__(self, base: int, size: int, page_shift: int) -> None:
        """Cover guest-physical [base, base + size) with frames of 2**page_shift bytes, all FREE.

        Raises FrameError when the base is not a multiple of `BASE_ALIGNMENT`, or the size not whole pages.
        """
        if base < 0 or base % BASE_ALIGNMENT:
            raise FrameError(f"no frame table can begin at {base:#x}: not a multiple of {BASE_ALIGNMENT:#x}")
        if size <= 0 or size & ((1 << page_shift) - 1):
            raise FrameError(f"no frame table can cover {size:#x} bytes: not whole pages")
        self.base = base
        self.size = size
        self.page_shift = page_shift
        self.count = size >> page_shift
        self._bind({name: np.zeros(self.count, dtype) for name, dtype in _COLUMNS.items()})

    def _bind(self, columns: dict[str, npt.NDArray[Any]]) -> None:
        for name, array in columns.items():
            setattr(self, f"{name}_array", array)
            setattr(self, name, array.data)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays themselves, not copies, by column name: the whole state of the table."""
        return {name: getattr(self, f"{name}_array") for name in _COLUMNS}

    def capture(self) -> dict[str, npt.NDArray[Any]]:
        """A copy of every column."""
        return {name: column.copy() for name, column in self.columns().items()}

    def restore(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Take captured columns over, in place: others hold views of them."""
        for name, column in self.columns().items():
            column[:] = state[name]

    def __getstate__(self) -> dict[str, Any]:
        state = {"base": self.base, "size": self.size, "page_shift": self.page_shift, "count": self.count}
        return state | {"columns": self.columns()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.base, self.size = state["base"], state["size"]
        self.page_shift, self.count = state["page_shift"], state["count"]
        self._bind(state["columns"])

    # --- addresses

    def address(self, frame: int) -> int:
        """The guest-physical address of a frame. Raises FrameError when there is no such frame."""
        if not 0 <= frame < self.count:
            raise self._wild(frame)
        return self.base + (frame << self.page_shift)

    def number(self, address: int) -> int:
        """The frame that begins at a guest-physical address.

        Raises FrameError when the address is outside the table or not the first of its page.
        """
        offset = address - self.base
        if not 0 <= offset < self.size:
            end = self.base + self.size
            raise FrameError(f"address {address:#x} is outside the frame table, [{self.base:#x}, {end:#x})")
        if offset & ((1 << self.page_shift) - 1):
            raise FrameError(f"address {address:#x} is not that of a page of {1 << self.page_shift:#x} bytes")
        return offset >> self.page_shift

    def _wild(self, frame: int) -> FrameError:
        return FrameError(f"frame {frame} is outside the frame table of {self.count} frames")

    # --- references

    def get(self, frame: int) -> None:
        """Take one more reference. Raises FrameError for a free or wild frame."""
        if not 0 <= frame < self.count:
            raise self._wild(frame)
        if self.kind[frame] == Kind.FREE:
            raise FrameError(f"a reference is taken to frame {frame}, which is free")
        refs = self.refs[frame] + 1
        if refs >> 32:
            raise FrameError(f"the reference count of frame {frame} overflows")
        self.refs[frame] = refs

    def put(self, frame: int) -> bool:
        """Drop a reference. True when it was the last: the caller then frees the frame (after its flush).

        Raises FrameError when there was none, or for a wild frame.
        """
        if not 0 <= frame < self.count:
            raise self._wild(frame)
        refs = self.refs[frame]
        if not refs:
            raise FrameError(f"a reference to frame {frame} is dropped that nobody holds")
        self.refs[frame] = refs - 1
        return refs == 1

    # --- identity

    def claim(self, start: int, count: int, kind: Kind, owner: int = 0, first_index: int = 0) -> None:
        """Say what `count` frames from `start` are: pages first_index, first_index + 1, ... of `owner`.

        References, mappings and flags stay as they are. Frames of RAM must have been handed out by the
        allocator; frames of the aperture are FREE until they are claimed. Raises FrameError for a range
        outside the table, and for Kind.FREE: RAM is freed through the allocator, the aperture by `release`.
        """
        self._check_range(start, count)
        self._check_claim(kind)
        end = start + count
        self.kind_array[start:end] = kind
        self.owner_array[start:end] = owner
        self.index_array[start:end] = np.arange(first_index, first_index + count, dtype=np.uint64)

    def release(self, start: int, count: int) -> None:
        """Make frames that the allocator does not own (those of the aperture) FREE again.

        Raises FrameError, and changes nothing, when one is still referenced or mapped or is the allocator's.
        """
        self._check_range(start, count)
        end = start + count
        for column, why in (
            (self.refs_array, "is still referenced"),
            (self.maps_array, "is still mapped"),
            (self.block_array, "belongs to the allocator"),
        ):
            held = np.flatnonzero(column[start:end])
            if held.size:
                raise FrameError(f"frame {start + int(held[0])} cannot be released: it {why}")
        self.kind_array[start:end] = Kind.FREE
        self.owner_array[start:end] = 0
        self.index_array[start:end] = 0

    def _check_range(self, start: int, count: int) -> None:
        if start < 0 or count < 0 or start + count > self.count:
            end = start + count
            raise FrameError(f"frames [{start}, {end}) are outside the frame table of {self.count} frames")

    @staticmethod
    def _check_claim(kind: Kind) -> None:
        if kind == Kind.FREE:
            raise FrameError("a frame is claimed as free: it has to be freed instead")

    # --- accounts

    def census(self) -> dict[Kind, int]:
        """How many frames there are of each kind; all kinds are listed, and their sum is `count`."""
        totals = np.zeros(len(Kind), dtype=np.int64)
        for start in range(0, self.count, _CENSUS_STEP):  # bincount widens to 8 bytes a frame: in steps
            totals += np.bincount(self.kind_array[start : start + _CENSUS_STEP], minlength=len(Kind))
        return {kind: int(totals[kind]) for kind in Kind}

    def leaks(self) -> list[Leak]:
        """Every frame that is neither FREE nor RESERVED, or is FREE yet counts a reference or a mapping.

        Empty after a teardown that has given everything back.
        """
        counted = (self.refs_array != 0) | (self.maps_array != 0)
        held = (self.kind_array > Kind.RESERVED) | ((self.kind_array == Kind.FREE) & counted)
        return [
            Leak(frame, Kind(self.kind[frame]), self.owner[frame], self.refs[frame], self.maps[frame])
            for frame in np.flatnonzero(held).tolist()
        ]
