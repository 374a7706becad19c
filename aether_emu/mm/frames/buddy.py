"""The frame allocator: zones of buddy blocks, and in front of them each CPU's list of ready single frames.

Single frames are too frequent to walk the free lists (`mm.frames.free_lists`) for each of them. They come
from the ready list of the CPU that runs (`enter` says which), which is filled and drained in batches. To the
free lists a ready frame is a block in use; its kind, FREE, tells it from a frame that really is. In the
statistics it counts as free.

Popping a ready frame without a call: a fault handler may take a frame by `caches[cpu].pop()` while that list
is not empty (else it calls `alloc()`), under this contract.
  - Its CPU is the one that runs.
  - Before anything else is asked of the allocator, it sets `frames.kind[frame]` to a kind other than FREE.
  - It sets those of `owner`, `index`, `refs`, `maps` that it uses: the last two are 0, the others stale.
  - It looks at `flags`: a frame with Flags.DIRTY has to be zeroed before a guest sees it.
  - It only pops. A frame goes back through `free`.
The list objects stay the same for good, so they may be kept. While failure points are armed they are empty,
so that every allocation passes them; the frames handed out are the same ones in the same order.
"""

from __future__ import annotations

import io
import pickle
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from aether_emu.errors import FrameError, OutOfFrames
from aether_emu.mm.frames.free_lists import MAX_ORDER, SINGLE, FrameArray, FreeLists
from aether_emu.mm.frames.table import FrameTable, Kind
from aether_emu.ports import NEVER_FAILS, FailurePoints
from aether_emu.records import dataclass

__all__ = ["BATCH", "HIGH_WATER", "MAX_ORDER", "Buddy", "BuddyStats", "FrameArray", "Zone", "ZoneStats"]

BATCH: Final = 64
"""Frames that an empty ready list is filled with."""
HIGH_WATER: Final = 512
"""A ready list that has grown to this is drained to half of it."""

_FREE = int(Kind.FREE)
_KERNEL = int(Kind.KERNEL)
_OTHERS = ("on_short", "free", "free_bulk")  # functions that others have put here: they are no state


@dataclass(frozen=True)
class Zone:
    """The frames [first, first + count), which need not be aligned in any way."""

    name: str
    first: int
    count: int


@dataclass(frozen=True)
class ZoneStats:
    """One zone at one moment."""

    name: str
    total: int
    free: int
    """Frames that can be allocated, ready ones included."""
    ready: int
    """Frames on the ready list."""
    blocks: tuple[int, ...]
    """Free blocks of each order, as in /proc/buddyinfo; ready frames are not among them."""

    def unusable(self, order: int) -> float:
        """Share of the free memory that lies in blocks too small for an allocation of `order`, from 0 to 1.

        Linux's unusable free space index (extfrag/unusable_index, there in thousandths):
        (free - sum of blocks[o] * 2**o for o >= order) / free, and 1 when nothing is free. A ready frame is
        a block of order 0.
        """
        if not self.free:
            return 1.0
        small = sum(count << o for o, count in enumerate(self.blocks[:order]))
        return (small + (self.ready if order else 0)) / self.free


@dataclass(frozen=True)
class BuddyStats:
    """The allocator at one moment, and its history."""

    zones: tuple[ZoneStats, ...]
    total: int
    """Frames of all zones."""
    free: int
    """Frames that can be allocated."""
    lowest_free: int
    """The least `free` has ever been, so that total - lowest_free is the peak use."""
    splits: int
    """Blocks cut in halves; one turned into n single frames counts n - 1."""
    merges: int
    """Pairs of free buddies joined."""
    allocated: int
    """Frames handed out since the start."""
    freed: int
    """Frames given back since the start; allocated - freed are in use."""
    failures: int
    """Allocations refused, for want of frames or by an injected failure."""


class Buddy:
    """Hands out the frames of some zones, singly, in blocks of 2**order, or in bulk.

    A frame is handed out as Kind.KERNEL, until its new owner says what it is; its references and mappings
    are 0 and its flags what its last owner left. It comes back without references and mappings. Frames are
    plain ints: what is passed to `free` may be handed out again as the same object.

    A block is freed as it was allocated, by `free` with its order. The frames of `alloc_bulk` and of a
    `split` block are single ones: each is freed alone, or any number of them by `free_bulk`.
    """

    def __init__(
        self,
        frames: FrameTable,
        zones: Sequence[Zone],
        *,
        cpus: int = 1,
        failures: FailurePoints = NEVER_FAILS,
    ) -> None:
        """Take over `zones`, which must be disjoint and FREE in the table.

        Their order is the order of falling back: an allocation starts at the first zone, or at the one it
        names, and goes on to those after it. No block crosses a zone's bounds. `failures` is asked at
        "buddy.alloc" and "buddy.alloc_bulk". `cpus` is how many ready lists there are.
        Raises FrameError for unusable zones.
        """
        _check_zones(frames, zones)
        self.frames = frames
        self.total = sum(zone.count for zone in zones)
        self.caches: tuple[array[int], ...] = tuple(array("I") for _ in range(cpus))
        self.cache = self.caches[0]
        """The cache of the CPU that runs."""
        self._lists = list(self.caches)
        """The ready lists: the caches, unless failure points are armed. Frames of the first zone only."""
        self._running = 0
        self._ready = self._lists[0]
        """The ready list of the CPU that runs."""
        self.on_short: Callable[[], bool] = _nothing_more
        """Asked before an allocation fails. True: frames came back, and a second try is due."""
        self._zones = [FreeLists(frames, zone.name, zone.first, zone.first + zone.count) for zone in zones]
        self._fallback = {lists.name: self._zones[i:] for i, lists in enumerate(self._zones)}
        self._first, self._end = self._zones[0].first, self._zones[0].end
        self._freed = self._refused = 0
        self._lowest = self._lowest_before = self.total  # since `peak_from_now`, and before it
        self._ready_low = 0
        """Least length of the ready list since `_note`. Pops are not seen: each free looks first."""
        self._bind()
        self._failures: FailurePoints = NEVER_FAILS
        self.failures = failures

    def _bind(self) -> None:
        table = self.frames
        self._kind, self._block, self._refs, self._maps = table.kind, table.block, table.refs, table.maps

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not isinstance(value, memoryview)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()

    @property
    def failures(self) -> FailurePoints:
        """The failure points that allocations pass. Any but NEVER_FAILS keep `cache` empty."""
        return self._failures

    @failures.setter
    def failures(self, failures: FailurePoints) -> None:
        self._failures = failures
        for cpu, cache in enumerate(self.caches):
            ready = self._lists[cpu][:]
            cache[:] = ready if failures is NEVER_FAILS else ready[:0]
            self._lists[cpu] = cache if failures is NEVER_FAILS else ready
        self._ready = self._lists[self._running]

    def enter(self, cpu: int) -> None:
        """`cpu` runs from now on: single frames come from its ready list, and go back to it."""
        if cpu == self._running:
            return
        self._note()
        self._running, self.cache, self._ready = cpu, self.caches[cpu], self._lists[cpu]
        self._ready_low = len(self._ready)

    @property
    def _elsewhere(self) -> int:
        """Frames on the other CPUs' ready lists."""
        return sum(map(len, self._lists)) - len(self._ready)

    @property
    def free_frames(self) -> int:
        """Frames that can be allocated, in all zones."""
        free = sum(map(len, self._lists))
        for lists in self._zones:
            free += lists.free
        return free

    # --- allocation

    def alloc(self, order: int = 0, zone: str | None = None) -> int:
        """The first frame of a block of 2**order frames, aligned to its size.

        Raises OutOfFrames when neither `zone` nor one after it has such a block, and FrameError for an
        unknown zone or an order outside 0..MAX_ORDER.
        """
        if order == 0 and zone is None and self.cache:
            frame = self.cache.pop()
            self._kind[frame] = _KERNEL
            return frame
        if not 0 <= order <= MAX_ORDER:
            raise FrameError(f"order {order} is outside 0..{MAX_ORDER}")
        zones = self._begin("buddy.alloc", 1 << order, zone)
        if order == 0 and zones[0] is self._zones[0] and (self._ready or zones[0].free):
            if not self._ready:
                self._refill()
            frame = self._ready.pop()
            self._kind[frame] = _KERNEL
            return frame
        for lists in self._twice(zones):
            block = lists.take(order)
            if block is not None:
                self._set_kind(block, order, _KERNEL)
                return block
        if self.on_short():
            return self.alloc(order, zone)
        self._refuse(1 << order)

    def alloc_bulk(self, count: int, zone: str | None = None) -> FrameArray:
        """`count` single frames in ascending order, from the largest blocks that there are.

        All or nothing: raises OutOfFrames, with nothing taken, when `zone` and those after it have fewer.
        """
        if count < 0:
            raise FrameError(f"{count} frames are asked for")
        zones = self._begin("buddy.alloc_bulk", count, zone)
        if zones[0] is self._zones[0] and zones[0].free < count:
            self._drain_all()
        if sum(lists.free for lists in zones) < count:
            if self.on_short():
                return self.alloc_bulk(count, zone)
            self._refuse(count)
        parts: list[FrameArray] = [np.empty(0, np.int64)]
        wanted = count
        for lists in zones:
            share = min(wanted, lists.free)
            parts.extend(lists.take_singles(share))
            wanted -= share
        taken = np.concatenate(parts)
        taken.sort()
        self.frames.kind_array[taken] = _KERNEL
        return taken

    def gather_ready(self) -> None:
        """Give all ready frames back to the free lists, which join them."""
        self._note()
        self._drain_all()

    def take_within(self, first: int, count: int) -> FrameArray:
        """The frames of an aligned range of one zone that are free, taken as single ones: for compaction.

        None may be ready (`gather_ready`), and no free block longer than the range.
        """
        lists = self._zone_of(first)
        assert lists is not None, "a range lies in a zone"
        self._note()
        taken = lists.take_within(first, count)
        self.frames.kind_array[taken] = _KERNEL
        return taken

    @property
    def zones(self) -> list[tuple[int, int]]:
        """The first frame of each zone, and the one behind its last."""
        return [(lists.first, lists.end) for lists in self._zones]

    def split(self, frame: int, order: int) -> None:
        """Turn a block in use into 2**order single frames. Raises FrameError unless this block is in use."""
        lists = self._zone_of(frame)
        why = self._why_not_in_use(frame, order)
        if lists is None or why:
            raise FrameError(f"frame {frame} cannot be split from order {order}: {why}")
        lists.make_single(frame, 1 << order)

    def _begin(self, point: str, count: int, zone: str | None) -> list[FreeLists]:
        """Pass the failure point; the zones that the allocation may use, the preferred one first."""
        zones = self._zones if zone is None else self._fallback.get(zone)
        if zones is None:
            raise FrameError(f"there is no zone {zone!r} among {', '.join(self._fallback)}")
        self._note()
        if self._failures.fails(point):
            self._refuse(count)
        return zones

    def _twice(self, zones: list[FreeLists]) -> Iterator[FreeLists]:
        """The zones, and once more when the ready frames have been given up to form larger blocks."""
        yield from zones
        if (self._ready or self._elsewhere) and zones[0] is self._zones[0]:
            self._drain_all()
            yield from zones

    def _set_kind(self, block: int, order: int, kind: int) -> None:
        if order:
            self.frames.kind_array[block : block + (1 << order)] = kind
        else:
            self._kind[block] = kind

    def _refuse(self, count: int) -> NoReturn:
        self._refused += 1
        raise OutOfFrames(count)

    # --- freeing

    def free(self, frame: int, order: int = 0) -> None:
        """Give back a block.

        Raises FrameError, and changes nothing, unless exactly this block is in use and none of its frames
        is referenced or mapped.
        """
        ready = self._ready
        length = len(ready)
        if length < self._ready_low:  # noqa: PLR1730  # min() would be a sixth of this function's time
            self._ready_low = length
        if (
            order == 0
            and self._first <= frame < self._end
            and self._block[frame] == SINGLE
            and self._kind[frame]
            and not self._refs[frame]
            and not self._maps[frame]
            and length < HIGH_WATER
        ):
            self._kind[frame] = _FREE
            ready.append(frame)
            self._freed += 1
        else:
            self._free_slowly(frame, order)

    def _free_slowly(self, frame: int, order: int) -> None:
        lists = self._zone_of(frame)
        why = self._why_not_in_use(frame, order) or self._why_held(frame, 1 << order)
        if lists is None or why:
            raise FrameError(f"frame {frame} cannot be freed with order {order}: {why}")
        self._note()
        self._freed += 1 << order
        self._set_kind(frame, order, _FREE)
        if order == 0 and lists is self._zones[0]:
            self._drain(HIGH_WATER // 2)
            self._ready.append(frame)
        else:
            lists.give(frame, order)

    def free_bulk(self, frames: npt.ArrayLike) -> None:
        """Give back single frames, listed in any order.

        Raises FrameError, and changes nothing, unless each could be freed alone and none is listed twice.
        """
        given: FrameArray = np.sort(np.asarray(frames, dtype=np.int64).reshape(-1))
        if not given.size:
            return
        if given[0] < 0 or given[-1] >= self.frames.count:
            wild = given[0] if given[0] < 0 else given[-1]
            raise FrameError(f"frame {wild} cannot be freed: it is in no zone")
        table = self.frames
        bad = (table.block_array[given] != SINGLE) | (table.kind_array[given] == _FREE)
        bad |= (table.refs_array[given] != 0) | (table.maps_array[given] != 0)
        bad[1:] |= given[1:] == given[:-1]
        if bad.any():
            frame = int(given[int(bad.argmax())])
            why = self._why_not_in_use(frame, 0) or self._why_held(frame, 1) or "it is listed twice"
            raise FrameError(f"frame {frame} cannot be freed: {why}")
        self._note()
        self._freed += given.size
        table.kind_array[given] = _FREE
        self._give_singles(given)

    def _why_not_in_use(self, frame: int, order: int) -> str:
        """Why no block of this order is in use at `frame`; empty when one is."""
        if not 0 <= order <= MAX_ORDER:
            return f"the order is outside 0..{MAX_ORDER}"
        if self._zone_of(frame) is None:
            return "it is in no zone"
        if self._kind[frame] == _FREE:
            return "it is free"
        if not self._block[frame]:
            return "it is inside a block"
        if self._block[frame] != order + 1:
            return f"its block has order {self._block[frame] - 1}"
        return ""

    def _why_held(self, first: int, count: int) -> str:
        if count == 1 and not self._refs[first] and not self._maps[first]:
            return ""
        for column, how in ((self.frames.refs_array, "referenced"), (self.frames.maps_array, "mapped")):
            held = np.flatnonzero(column[first : first + count])
            if held.size:
                return f"frame {first + int(held[0])} is still {how}"
        return ""

    def _zone_of(self, frame: int) -> FreeLists | None:
        for lists in self._zones:
            if lists.first <= frame < lists.end:
                return lists
        return None

    def _give_singles(self, frames: FrameArray) -> None:
        for lists in self._zones:
            start, end = np.searchsorted(frames, (lists.first, lists.end))
            lists.give_singles(frames[start:end])

    # --- the ready list

    def _refill(self) -> None:
        """Fill the empty ready list from the first zone, to be popped in ascending order."""
        self._ready.extend(sorted(self._zones[0].take_smallest(BATCH), reverse=True))
        self._ready_low = len(self._ready)

    def _drain(self, keep: int) -> None:
        """Return the oldest ready frames to the free lists, until `keep` are left."""
        surplus = len(self._ready) - keep
        if surplus > 0:
            self._give_singles(np.sort(np.array(self._ready[:surplus], dtype=np.int64)))
            del self._ready[:surplus]

    def _drain_all(self) -> None:
        """Return every CPU's ready frames to the free lists."""
        self._drain(0)
        if self._elsewhere:
            for ready in self._lists:
                self._give_singles(np.sort(np.array(ready, dtype=np.int64)))
                del ready[:]

    def _note(self) -> None:
        """Bring the low-water mark up to date with the least since the last call.

        Due before the free lists change: until then only the ready list's length changes what is free.
        """
        length = len(self._ready)
        lowest = min(self._ready_low, length) + self._elsewhere
        for lists in self._zones:
            lowest += lists.free
        self._lowest = min(self._lowest, lowest)
        self._ready_low = length

    # --- accounts

    def peak_from_now(self) -> None:
        """What `peak_since` counts begins anew."""
        self._note()
        self._lowest_before = min(self._lowest, self._lowest_before)
        self._lowest = self.free_frames

    def peak_since(self) -> int:
        """The most frames that were in use at once, since `peak_from_now` or ever."""
        self._note()
        return self.total - self._lowest

    def free_blocks(self, order: int) -> Iterator[tuple[int, int]]:
        """(first frame, frames) of each free block of at least 2**order frames; ready frames are in none."""
        for lists in self._zones:
            for larger in range(max(order, 0), MAX_ORDER + 1):
                for first in lists.blocks[larger]:
                    yield first, 1 << larger

    def stats(self) -> BuddyStats:
        """All counters, and the free blocks of each zone."""
        self._note()
        zones = []
        for lists in self._zones:
            ready = len(self._ready) + self._elsewhere if lists is self._zones[0] else 0
            blocks = tuple(blocks.count for blocks in lists.blocks)
            zones.append(ZoneStats(lists.name, lists.end - lists.first, lists.free + ready, ready, blocks))
        free = self.free_frames
        return BuddyStats(
            zones=tuple(zones),
            total=self.total,
            free=free,
            lowest_free=min(self._lowest, self._lowest_before),
            splits=sum(lists.splits for lists in self._zones),
            merges=sum(lists.merges for lists in self._zones),
            allocated=self._freed + self.total - free,
            freed=self._freed,
            failures=self._refused,
        )

    def kept(self) -> list[Any]:
        """What it keeps beside the frame table, to be measured: the free lists, and the ready ones."""
        ready = (np.array(cache) for cache in self.caches)
        return [*(blocks.kept for lists in self._zones for blocks in lists.blocks), *ready]

    def capture(self) -> bytes:
        """The whole state, the frame table and others' functions aside, to be given to `restore`."""
        out = io.BytesIO()
        state = self.__getstate__()
        _Pickler(out, self.frames).dump({name: state[name] for name in state if name not in _OTHERS})
        return out.getvalue()

    def restore(self, data: bytes) -> None:
        """Take a captured state over. The ready lists stay the objects that they are."""
        fields = _Unpickler(data, self.frames).load()
        for cache, loaded in zip(self.caches, fields["caches"], strict=True):
            cache[:] = loaded
        running = fields["_running"]
        kept = {"caches": self.caches, "cache": self.caches[running]}
        lists = list(self.caches) if fields["_failures"] is NEVER_FAILS else fields["_lists"]
        self.__dict__.update(fields | kept | {"_lists": lists, "_ready": lists[running]})
        self._bind()

    def check(self) -> None:
        """Verify every invariant of the allocator and its part of the table, in time linear in the frames.

        Raises FrameError: about the free lists (see `FreeLists.check`), the ready list, a kind that
        contradicts them, or a free frame that is referenced or mapped.
        """
        table = self.frames
        free = np.zeros(table.count, dtype=np.bool_)
        managed = np.zeros(table.count, dtype=np.bool_)
        for lists in self._zones:
            free[lists.first : lists.end] = lists.check()
            managed[lists.first : lists.end] = True
        ready = np.array([frame for ready in self._lists for frame in ready], dtype=np.int64)
        _demand(np.unique(ready).size == ready.size, "a frame is ready twice")
        inside = (ready >= self._first) & (ready < self._end)
        _demand(bool(inside.all()), "a ready frame is outside the first zone")
        _demand(bool((table.block_array[ready] == SINGLE).all()), "a ready frame is not a single one")
        armed = self._failures is not NEVER_FAILS
        _demand(not (armed and any(self.caches)), "a cache is filled though failures are armed")
        free[ready] = True
        kinds = table.kind_array == _FREE
        _demand(np.array_equal(kinds[managed], free[managed]), "the kind FREE contradicts the free lists")
        held = (table.refs_array != 0) | (table.maps_array != 0)
        _demand(not (held & free).any(), "a free frame is referenced or mapped")
        _demand(not table.block_array[~managed].any(), "a block begins outside the zones")


class _Pickler(pickle.Pickler):
    """The frame table is named, not copied: it is captured by itself."""

    def __init__(self, out: io.BytesIO, frames: FrameTable) -> None:
        super().__init__(out)
        self._frames = frames

    def persistent_id(self, item: object) -> str | None:
        return "frames" if item is self._frames else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, frames: FrameTable) -> None:
        super().__init__(io.BytesIO(data))
        self._frames = frames

    def persistent_load(self, name: object) -> FrameTable:
        assert name == "frames", f"unknown object {name!r} in a snapshot"
        return self._frames


def _nothing_more() -> bool:
    return False


def _demand(true: bool, otherwise: str) -> None:
    if not true:
        raise FrameError(f"the frame allocator is corrupt: {otherwise}")


def _check_zones(frames: FrameTable, zones: Sequence[Zone]) -> None:
    if not zones:
        raise FrameError("a frame allocator needs a zone")
    if len({zone.name for zone in zones}) < len(zones):
        raise FrameError(f"two zones have the same name: {', '.join(zone.name for zone in zones)}")
    taken = np.zeros(frames.count, dtype=np.bool_)
    for zone in zones:
        first, end = zone.first, zone.first + zone.count
        if zone.count < 1 or first < 0 or end > frames.count:
            raise FrameError(f"zone {zone.name}, frames [{first}, {end}), is not in [0, {frames.count})")
        if taken[first:end].any():
            raise FrameError(f"zone {zone.name}, frames [{first}, {end}), overlaps another zone")
        if frames.kind_array[first:end].any() or frames.block_array[first:end].any():
            raise FrameError(f"zone {zone.name}, frames [{first}, {end}), has frames that are in use")
        taken[first:end] = True
