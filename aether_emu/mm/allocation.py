"""Areas of an address space (Linux calls them VMAs), in an ordered map with gap search.

Invariants: areas are page aligned, never empty and never overlap; `starts` mirrors the areas'
start addresses in order; the count never exceeds the limit. Splitting and merging keep, for every
page, what it maps. Exactly the areas that stand in a map are linked to their memory objects, each with the
pages that it shows: the map links and unlinks them as they come, change and go.

Areas stand in one list in the order of their addresses: a look-up is a bisection, and an insertion moves
pointers, at the speed of memory. What a list does not answer is where a gap is long enough. For that the
addresses are divided into stretches of at most `STRETCH` areas, each of which knows a length that no gap in
it exceeds: a search looks at one number for each stretch, and into those that may hold the gap.

    stretch from 0: no gap over 3 pages    |    from 0x7000: none over 40    |    from 0x9f000: none over 0
"""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from enum import IntFlag
from operator import attrgetter
from typing import Any, Protocol

from aether_emu.arch.paging import Access
from aether_emu.errors import Refused
from aether_emu.mm.objects.anonymous import AnonymousMemory
from aether_emu.mm.objects.protocol import Backing, Space
from aether_emu.mm.protection import LeafBits, Protection

STRETCH = 256
"""Areas in a stretch of addresses before it is divided in two."""
_SLICE = 64


class AreaFlags(IntFlag):
    """What a program asked for an area by mlock, madvise, mseal and userfaultfd, and what a device's is.

    Values are Linux's (VM_*, linux/mm.h).
    """

    USER_MISSING = 0x200
    MAYBE_GUARDED = 0x800
    USER_WP = 0x1000
    LOCKED = 0x2000
    SEQUENTIAL = 0x8000
    RANDOM = 0x1_0000
    NO_FORK = 0x2_0000
    LOCK_ON_FAULT = 0x8_0000
    WIPE_ON_FORK = 0x200_0000
    NO_DUMP = 0x400_0000
    HUGE = 0x2000_0000
    NO_HUGE = 0x4000_0000
    MERGEABLE = 0x8000_0000
    USER_MINOR = 1 << 38
    SEALED = 1 << 63


# The operators of plain ints are many times faster than an enum's, so areas and what counts them use these.
LOCKED, LOCK_ON_FAULT = int(AreaFlags.LOCKED), int(AreaFlags.LOCK_ON_FAULT)
LOCKS = LOCKED | LOCK_ON_FAULT
SEALED = int(AreaFlags.SEALED)
MAYBE_GUARDED = int(AreaFlags.MAYBE_GUARDED)
"""Some of its pages were guarded once (`mm.guards`). It keeps no areas apart, and stays."""
USER_MISSING, USER_WP, USER_MINOR = map(
    int, (AreaFlags.USER_MISSING, AreaFlags.USER_WP, AreaFlags.USER_MINOR)
)
USER_FAULTS = USER_MISSING | USER_WP | USER_MINOR
"""Faults that a program answers itself: see `mm.userfault`."""
_WRITE = int(Access.WRITE)
_WX = Protection.WRITE | Protection.EXECUTE


class Watcher(Protocol):
    """Whoever answers faults of an area that the memory manager would answer else (userfaultfd).

    `asynchronous`: stores to protected pages are not told, they take the protection away. `unpopulated`:
    absent private pages are protected too. `follows`: it goes with memory that mremap moves.
    """

    @property
    def asynchronous(self) -> bool: ...
    @property
    def unpopulated(self) -> bool: ...
    @property
    def follows(self) -> bool: ...

    def ask(self, address: int, why: int, *, write: bool, size: int) -> Any:
        """What becomes of a fault (`mm.fault.Outcome`) of a page of `size` bytes.

        `why` is the flag of the area that says so.
        """

    def of_child(self, space: Any) -> Watcher | None:
        """Who watches the copy of the areas in `space`, a fork of theirs, while it is made; or nobody."""

    def tell(self, kind: int, *data: int) -> None:
        """Something becomes of the memory; `kind` and `data` are as in the program's message."""


TOLD_REMAP, TOLD_REMOVE, TOLD_UNMAP = 0x14, 0x15, 0x16
"""What a watcher is told (UFFD_EVENT_*): memory moves (from, to, length), loses pages, goes (start, end)."""


class Area:
    """A stretch of addresses of one space, with one protection and one backing.

    `backing` is the object that it shows, None for zeros; `offset` is the page of the backing at `start`.
    Pages of its own (what a private area was written to) belong to `family`, where their index is the number
    of the page plus `moved`. Shared areas have no family.
    `maximum` is the most protection that mprotect may give (a read-only file shared: no WRITE).
    `flags` (`AreaFlags`, as a plain int) are what was asked beyond the protection; they move with the area,
    and areas that differ in them stay apart. `key` is the protection key of its pages (pkeys(7)).
    `charged` ones count for what programs were promised (`mm.overcommit`), even if nobody may write any more.
    `fresh` areas came since a program last asked who writes (`mm.soft_dirty`): all their pages count as
    written. It keeps no areas apart.
    The fault path reads what follows from these: `denied` and `bits` from the protection; `owner`, the number
    of the family; `simple`, that the area is private, anonymous and not executable, and nobody its `watcher`.
    """

    __slots__ = (
        "backing",
        "bits",
        "charged",
        "denied",
        "end",
        "family",
        "flags",
        "fresh",
        "grows_down",
        "key",
        "maximum",
        "moved",
        "name",
        "no_reserve",
        "offset",
        "owner",
        "protection",
        "shared",
        "simple",
        "space",
        "start",
        "was_writable_executable",
        "watcher",
    )

    def __init__(
        self,
        start: int,
        end: int,
        protection: Protection,
        *,
        denied: int,
        bits: LeafBits,
        space: Space | None = None,
        shared: bool = False,
        backing: Backing | None = None,
        offset: int = 0,
        family: AnonymousMemory | None = None,
        moved: int = 0,
        maximum: Protection = Protection.READ | Protection.WRITE | Protection.EXECUTE,
        grows_down: bool = False,
        no_reserve: bool = False,
        flags: int = 0,
        key: int = 0,
        name: str = "",
        fresh: bool = True,
        charged: bool | None = None,
    ) -> None:
        self.start, self.end, self.space = start, end, space
        self.backing, self.moved = backing, moved
        self.watcher: Watcher | None = None
        self.set_family(family)
        self.set_protection(protection, denied, bits)
        self.shared, self.offset = shared, offset
        self.maximum, self.grows_down, self.no_reserve, self.name = maximum, grows_down, no_reserve, name
        self.flags, self.key, self.fresh = flags, key, fresh
        self.charged = self.asks_for_charge if charged is None else charged
        self.was_writable_executable = False

    @property
    def asks_for_charge(self) -> bool:
        """Whether its pages may be written and are its own, and somebody is to have room for them.

        Huge pages of a pool are promised by the pool.
        """
        pooled = self.backing is not None and self.backing.huge_size
        return not (self.denied & _WRITE or self.shared or self.no_reserve or pooled)

    def set_protection(self, protection: Protection, denied: int, bits: LeafBits) -> None:
        """Change the protection and what follows from it."""
        self.protection, self.denied, self.bits = protection, denied, bits
        self.set_watcher(self.watcher)

    def set_watcher(self, watcher: Watcher | None) -> None:
        """Let somebody hear of faults, or nobody any more."""
        self.watcher = watcher
        self.simple = self.backing is None and watcher is None and not self.protection & Protection.EXECUTE

    def set_family(self, family: AnonymousMemory | None) -> None:
        """Let pages of its own belong to `family`. The area is in no map, and has no such page yet."""
        self.family, self.owner = family, 0 if family is None else family.number

    def __repr__(self) -> str:
        flags = "".join(c if self.protection & p else "-" for c, p in (("r", 1), ("w", 2), ("x", 4)))
        return f"Area({self.start:#x}-{self.end:#x} {flags}{'s' if self.shared else 'p'} {self.name})"

    def capture(self) -> dict[str, Any]:
        """Everything about the area as plain data; its objects by their numbers."""
        plain = (
            "start",
            "end",
            "protection",
            "shared",
            "offset",
            "moved",
            "maximum",
            "grows_down",
            "charged",
        )
        more = ("no_reserve", "flags", "key", "name", "fresh", "charged")
        fields = {name: getattr(self, name) for name in (*plain, *more)}
        objects = {
            "backing": None if self.backing is None else self.backing.number,
            "family": None if self.family is None else self.family.number,
        }
        return fields | objects | {"was_writable_executable": self.was_writable_executable}

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def huge_size(self) -> int:
        """Bytes of its pages, if they are huge ones of a pool; else 0."""
        return 0 if self.backing is None else self.backing.huge_size

    @property
    def keeps_markers(self) -> bool:
        """Whether its pages come back from an object, and a program is to hear of stores even then."""
        return self.watcher is not None and self.backing is not None and bool(self.flags & USER_WP)

    @property
    def is_code(self) -> bool:
        """Whether Linux counts it as code: executable and not writable, and no stack."""
        return self.protection & _WX == Protection.EXECUTE and not self.grows_down

    @property
    def is_data(self) -> bool:
        """Whether RLIMIT_DATA counts it: private and writable, and no stack."""
        return not (self.denied & _WRITE or self.shared or self.grows_down)

    def require_cuttable(self, *at: int) -> None:
        """Raise Refused(EINVAL) if the area is never cut, because it shows all of its object or nothing.

        Or if one of the addresses at which it is to be cut lies in a huge page of a pool.
        """
        backing = self.backing
        if backing is None:
            return
        if backing.whole:
            raise Refused(errno.EINVAL, f"{self.name} is not cut")
        if backing.huge_size and any(each & backing.huge_size - 1 for each in at):
            raise Refused(errno.EINVAL, f"huge pages of {backing.huge_size} bytes are not cut")

    def piece(self, start: int, end: int, page_shift: int) -> Area:
        """A copy that covers only `[start, end)`."""
        part = Area.__new__(Area)
        for put, value in zip(_PUTS, _ALL(self), strict=True):
            put(part, value)
        part.start, part.end = start, end
        if self.backing is not None:
            part.offset = self.offset + (start - self.start >> page_shift)
        return part

    def piece_after(self, end: int, page_shift: int) -> Area:
        """A copy for what follows this area, up to `end`."""
        more = self.piece(self.start, self.end, page_shift)
        more.start, more.end = self.end, end
        if self.backing is not None:
            more.offset = self.offset + (self.length >> page_shift)
        return more

    def has_flags_of(self, other: Area) -> bool:
        """Whether both have the same flags, but for what keeps no areas apart."""
        return not (self.flags ^ other.flags) & ~MAYBE_GUARDED

    def absorb(self, other: Area) -> None:
        """Take over what keeps no areas apart from `other`, which is a part of this one now."""
        self.fresh |= other.fresh
        self.flags |= other.flags & MAYBE_GUARDED

    def continues(self, other: Area, page_shift: int) -> bool:
        """Whether `other`, which begins where this area ends, can become part of it."""
        return self.continues_at(self.end, other, page_shift)

    def continues_at(self, end: int, other: Area, page_shift: int) -> bool:
        """As `continues`, if this area reached to `end`."""
        return (
            end == other.start
            and self.protection == other.protection
            and self.shared == other.shared
            and self.backing is other.backing
            and self.maximum == other.maximum
            and self.no_reserve == other.no_reserve
            and self.charged == other.charged
            and self.has_flags_of(other)
            and self.key == other.key
            and self.name == other.name
            and self.grows_down == other.grows_down
            and self.was_writable_executable == other.was_writable_executable
            and self.family is other.family
            and self.moved == other.moved
            and self.watcher is other.watcher
            and (self.backing is None or self.offset + (end - self.start >> page_shift) == other.offset)
        )


_ALL = attrgetter(*Area.__slots__)
_PUTS = [getattr(Area, slot).__set__ for slot in Area.__slots__]


class AreaMap:
    """The areas of one address space, ordered by address. Raises Refused(ENOMEM) over `limit`.

    Gap search keeps `guard` bytes free below an area that grows down.
    """

    def __init__(self, page_shift: int, limit: int, guard: int = 0, stretch: int = STRETCH) -> None:
        self._shift, self._limit, self._guard, self._most = page_shift, limit, guard, stretch
        self._starts: list[int] = []
        self._areas: list[Area] = []
        # The first address of each stretch, and a length that no gap below an area of the stretch exceeds.
        self._firsts: list[int] = [0]
        self._bounds: list[int] = [0]

    def __len__(self) -> int:
        return len(self._areas)

    def __iter__(self) -> Iterator[Area]:
        return iter(self._areas)

    def find(self, va: int) -> Area | None:
        """The area that contains `va`."""
        index = bisect_right(self._starts, va) - 1
        if index >= 0 and va < (area := self._areas[index]).end:
            return area
        return None

    def following(self, va: int) -> Area | None:
        """The first area that ends above `va`: the one that contains it, or the next."""
        index = bisect_right(self._starts, va) - 1
        if index >= 0 and va < self._areas[index].end:
            return self._areas[index]
        return self._areas[index + 1] if index + 1 < len(self._areas) else None

    def preceding(self, va: int) -> Area | None:
        """The last area that ends at or below `va`."""
        index = bisect_left(self._starts, va) - 1
        while index >= 0 and self._areas[index].end > va:
            index -= 1
        return self._areas[index] if index >= 0 else None

    def overlapping(self, start: int, end: int) -> list[Area]:
        """The areas that meet `[start, end)`, in order; an empty range meets none."""
        if start >= end:
            return []
        index = bisect_right(self._starts, start) - 1
        if index < 0 or self._areas[index].end <= start:
            index += 1
        return self._areas[index : bisect_left(self._starts, end)]

    def covered(self, start: int, end: int) -> bool:
        """Whether every address of `[start, end)` lies in an area."""
        for area in self.overlapping(start, end):
            if area.start > start:
                return False
            start = area.end
        return start >= end

    def insert(self, area: Area) -> Area:
        """Add `area`, merged with neighbours that it continues. Returns the area that covers it now.

        The range must be free. Raises Refused(ENOMEM) over the limit, with nothing changed.
        """
        index = bisect_left(self._starts, area.start)
        before = self._areas[index - 1] if index else None
        after = self._areas[index] if index < len(self._areas) else None
        assert before is None or before.end <= area.start, f"{area} overlaps {before}"
        assert after is None or area.end <= after.start, f"{area} overlaps {after}"
        if before is not None and before.continues(area, self._shift):
            end = area.end
            if after is not None and before.continues_at(area.end, after, self._shift):
                end = after.end
                self._unlink(after)
                del self._starts[index], self._areas[index]
                self._drop_empty(after.start, after.start)
                before.absorb(after)
            before.absorb(area)
            self._resize(before, before.start, end)
            return before
        if after is not None and area.continues(after, self._shift):
            after.absorb(area)
            self._begin(index, area.start)
            return after
        self.require_room(1)
        self._starts.insert(index, area.start)
        self._areas.insert(index, area)
        self._note_gap(index)
        self._link(area)
        return area

    def fill(self, areas: list[Area], like: AreaMap) -> None:
        """Have these areas, in an empty map: each covers what the one in its place in `like` covers."""
        assert not self._areas and len(areas) == len(like), "a copy"
        self._areas, self._starts = areas, list(like._starts)
        self._firsts, self._bounds = list(like._firsts), list(like._bounds)
        for area in areas:
            self._link(area)

    def growth(self, area: Area, part: Area) -> int:
        """How many more areas there are once `part`, cut out of `area` and changed, is back in its place."""
        more = (area.start < part.start) + (area.end > part.end)
        before, after = self.find(part.start - 1), self.find(part.end)
        if before is not None and before is not area and before.continues(part, self._shift):
            more -= 1
        if after is not None and after is not area and part.continues(after, self._shift):
            more -= 1
        return more

    def require_room(self, more: int) -> None:
        """Raise Refused(ENOMEM) unless `more` areas still fit the limit."""
        if len(self._areas) + more > self._limit:
            raise Refused(errno.ENOMEM, f"an address space holds at most {self._limit} areas")

    def require_room_to_cut(self, start: int, end: int) -> None:
        """Raise Refused(ENOMEM) if cutting `[start, end)` out would leave too many areas.

        EINVAL if it would leave a part of an area that stays whole.
        """
        area = self.find(start)
        if area is not None and area.start < start:
            area.require_cuttable(start)
            if area.end > end > start:
                self.require_room(1)
        area = self.find(end)
        if area is not None and area.start < end:
            area.require_cuttable(end)

    def remove(self, start: int, end: int) -> list[Area]:
        """Cut `[start, end)` out; areas that reach over its ends are split. Returns what was cut out.

        Raises Refused(ENOMEM) when splitting would exceed the limit, with nothing changed.
        """
        self.require_room_to_cut(start, end)
        touched = self.overlapping(start, end)
        if not touched:
            return []
        index = bisect_left(self._starts, touched[0].start)
        pieces: list[Area] = []
        kept: list[Area] = []
        for area in touched:
            low, high = max(area.start, start), min(area.end, end)
            whole = (low, high) == (area.start, area.end)
            pieces.append(area if whole else area.piece(low, high, self._shift))
            if area.start < start:
                kept.append(area.piece(area.start, start, self._shift))
            if area.end > end:
                kept.append(area.piece(end, area.end, self._shift))
        for area in kept:  # before the whole ones go, or an object could seem to be shown by nobody
            self._link(area)
        for area in touched:
            self._unlink(area)
        self._areas[index : index + len(touched)] = kept
        self._starts[index : index + len(touched)] = [area.start for area in kept]
        self._drop_empty(touched[0].start, touched[-1].start)
        for following in range(index, index + len(kept) + 1):
            self._note_gap(following)
        return pieces

    def grow_down(self, area: Area, start: int) -> None:
        """Move the start of `area` down to `start`; the space must be free."""
        self._begin(bisect_left(self._starts, area.start), start)

    def _begin(self, index: int, start: int) -> None:
        """Area `index` begins at a lower address from now on."""
        before, area = self._starts[index], self._areas[index]
        self._resize(area, start, area.end)
        self._starts[index] = start
        self._drop_empty(before, before)
        self._note_gap(index)

    def _link(self, area: Area) -> None:
        """Let the objects of an area find it."""
        count = area.length >> self._shift
        if area.backing is not None:
            area.backing.link(area, area.offset, count)
        if area.family is not None:
            area.family.link(area, (area.start >> self._shift) + area.moved, count)

    def _unlink(self, area: Area) -> None:
        if area.backing is not None:
            area.backing.unlink(area)
        if area.family is not None:
            area.family.unlink(area)

    def _resize(self, area: Area, start: int, end: int) -> None:
        """Let an area of the map cover `[start, end)`, showing at each address what it showed."""
        held = [item for item in (area.backing, area.family) if item is not None]
        for item in held:
            item.hold()
        self._unlink(area)
        if area.backing is not None:
            area.offset += start - area.start >> self._shift
        area.start, area.end = start, end
        self._link(area)
        for item in held:
            item.let_go()

    # ---- gaps

    def gap_below(self, length: int, floor: int, ceiling: int) -> int | None:
        """The highest start of a free gap of `length` bytes inside `[floor, ceiling)`."""
        index = bisect_left(self._starts, ceiling)
        high = self._highest(ceiling)
        while True:
            low = self._areas[index - 1].end if index else 0
            if high - max(low, floor) >= length:
                return high - length
            if low <= floor:
                return None
            index = self._last_with_gap(length, index - 1)
            if index < 0:
                return None
            high = min(ceiling, self.lowest(self._areas[index]))

    def gap_above(self, length: int, floor: int, ceiling: int) -> int | None:
        """The lowest start of a free gap of `length` bytes inside `[floor, ceiling)`."""
        index = bisect_right(self._starts, floor)
        low = max(floor, self._areas[index - 1].end) if index else floor
        while index < len(self._areas) and self._starts[index] < ceiling:
            if self.lowest(self._areas[index]) - low >= length:
                return low
            index = self._first_with_gap(length, index + 1)
            low = max(floor, self._areas[index - 1].end)
        return low if self._highest(ceiling) - low >= length else None

    def _highest(self, ceiling: int) -> int:
        """Where free addresses below `ceiling` end for the guard of the first area from there on."""
        index = bisect_left(self._starts, ceiling)
        return min(ceiling, self.lowest(self._areas[index])) if index < len(self._areas) else ceiling

    def lowest(self, area: Area) -> int:
        """The lowest address that belongs to an area or to the guard it keeps below itself."""
        return area.start - self._guard if area.grows_down else area.start

    def _gap(self, index: int) -> int:
        """The free bytes below area `index`, down to the area before it or to address 0."""
        return self.lowest(self._areas[index]) - (self._areas[index - 1].end if index else 0)

    def _note_gap(self, index: int) -> None:
        """Area `index`, if there is one, has come, or begins elsewhere, or has lost what lay below it."""
        if index >= len(self._areas):
            return
        at = bisect_right(self._firsts, self._starts[index]) - 1
        self._bounds[at] = max(self._bounds[at], self._gap(index))
        low, high = self._members(at)
        if high - low > self._most:
            self._firsts.insert(at + 1, self._starts[(low + high) // 2])
            self._bounds.insert(at + 1, self._bounds[at])

    def _drop_empty(self, first: int, last: int) -> None:
        """Areas that began at addresses from `first` to `last` are gone: a stretch may have no other."""
        lowest = bisect_right(self._firsts, first) - 1
        for at in range(bisect_right(self._firsts, last) - 1, max(lowest, 1) - 1, -1):
            low, high = self._members(at)
            if low == high:
                del self._firsts[at], self._bounds[at]

    def _members(self, at: int) -> tuple[int, int]:
        """The numbers of the first area of a stretch and of the first one behind it."""
        low = bisect_left(self._starts, self._firsts[at])
        if at + 1 == len(self._firsts):
            return low, len(self._starts)
        return low, bisect_left(self._starts, self._firsts[at + 1], low)

    def _last_with_gap(self, length: int, index: int) -> int:
        """The last area up to number `index` that has `length` free bytes below it; -1 for none."""
        areas, starts = self._areas, self._starts
        at = bisect_right(self._firsts, starts[index]) - 1 if index >= 0 else -1
        while (at := self._last_bound(length, at)) >= 0:
            low, high = self._members(at)
            for number in range(min(index, high - 1), max(low, 1) - 1, -1):
                if starts[number] - areas[number - 1].end >= length and self._gap(number) >= length:
                    return number
            if low == 0 and self._gap(0) >= length:
                return 0
            if index >= high - 1:
                self._bounds[at] = max(map(self._gap, range(low, high)))
            at -= 1
        return -1

    def _first_with_gap(self, length: int, index: int) -> int:
        """The first area from number `index` on, which is not 0, with `length` free bytes below it.

        How many areas there are, if none has.
        """
        areas, starts = self._areas, self._starts
        at = bisect_right(self._firsts, starts[index]) - 1 if index < len(areas) else len(self._bounds)
        while (at := self._first_bound(length, at)) < len(self._bounds):
            low, high = self._members(at)
            for number in range(max(index, low), high):
                if starts[number] - areas[number - 1].end >= length and self._gap(number) >= length:
                    return number
            if index <= low:
                self._bounds[at] = max(map(self._gap, range(low, high)))
            at += 1
        return len(areas)

    # Bounds are looked at in slices: `max` is several times faster than a loop.

    def _last_bound(self, length: int, at: int) -> int:
        """The last stretch up to number `at` whose bound is at least `length`; -1 for none."""
        bounds = self._bounds
        while at >= 0:
            first = max(0, at - _SLICE + 1)
            if max(bounds[first : at + 1]) >= length:
                while bounds[at] < length:
                    at -= 1
                return at
            at = first - 1
        return -1

    def _first_bound(self, length: int, at: int) -> int:
        """The first stretch from number `at` on whose bound is at least `length`; their count for none."""
        bounds = self._bounds
        while at < len(bounds):
            if max(bounds[at : at + _SLICE]) >= length:
                while bounds[at] < length:
                    at += 1
                return at
            at = min(at + _SLICE, len(bounds))
        return at
