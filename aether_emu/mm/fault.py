"""The decision about a page fault: one straight line for the common case, everything else behind it.

    fault(va, access) -> RESOLVED | AccessError | BusError | OutOfMemory | Blocked | Damaged
                                                       in the space that a CPU runs in
    Faults.resolve(space, va, access) -> the same      in any space

`access` is an int of `arch.paging.Access` bits. The straight line serves a first write to private
anonymous memory: find the area, take a ready frame off this CPU's list, write `frame | bits`, count,
return. It never calls the allocator and makes no table: where no frame is ready or the leaf table is
missing, and in every other case, `Faults` decides. That asks in Linux's order: is there an area, does it
permit the access, is an entry there already, where does the page come from. A write to a read-only
entry of a private area is copy-on-write (`Faults._present`).

An entry's bits come precomputed from the area. An entry that gains a page or a permission owes no
flush; one that gets another frame is flushed through a gather.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aether_emu.arch.paging import Access, PageTableFormat
from aether_emu.errors import OutOfFrames
from aether_emu.machine.memory.aperture import BackingFailed, BeyondEnd
from aether_emu.mm import hugetlb, markers, stack
from aether_emu.mm.allocation import USER_MINOR, USER_MISSING, USER_WP, Area
from aether_emu.mm.audit import judge_leaf
from aether_emu.mm.counters import Event
from aether_emu.mm.frames.table import Flags, Kind
from aether_emu.mm.hugepage import whole_or_base
from aether_emu.mm.objects.protocol import Backing, NotReady
from aether_emu.mm.objects.shared import SharedMemory
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import Protection, noted, user_mark
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.swap.bring import bring, bring_back
from aether_emu.mm.swap.file import SwapLost
from aether_emu.mm.tables.count import has_frame
from aether_emu.mm.tables.damage import Damaged, TableDamaged
from aether_emu.mm.tables.page import Found
from aether_emu.mm.underused import shrink
from aether_emu.records import dataclass
from aether_emu.waiting import WaitQueue


@dataclass(frozen=True, slots=True)
class Resolved:
    """Make the access again. It succeeds, or faults anew and is judged by what the tables say then."""


@dataclass(frozen=True, slots=True)
class AccessError:
    """No area (`mapped` false), or the area does not permit it. Linux: SIGSEGV."""

    address: int
    mapped: bool


@dataclass(frozen=True, slots=True)
class BusError:
    """The area permits the access, but there is no page behind it. Linux: SIGBUS.

    `failed` are the bytes of the page around it, if that counts as failed memory (SIGBUS with BUS_MCEERR_AR).
    """

    address: int
    failed: int = 0


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """No frame is left for it. Linux: the out-of-memory killer."""

    address: int


@dataclass(frozen=True, slots=True)
class Blocked:
    """The page is on its way: wait until `on` is woken, then make the access again."""

    on: WaitQueue


def shown_bits(area: Area, backing: Backing, *, write: bool) -> int:
    """The bits of the entry by which an area shows a page of `backing` that a load, or a store, has met."""
    if not area.shared:
        return area.bits.read
    if write:
        return area.bits.write
    return area.bits.clean if backing.takes_stores else area.bits.read


Outcome = Resolved | AccessError | BusError | OutOfMemory | Blocked | Damaged
RESOLVED = Resolved()

# Pages in use at which a CPU is first told of them (`Cpu.working_set`), so that it may grow its TLB. The
# engine's starts with 256 entries: fewer pages than twice that are not worth a flush.
_FIRST_REPORT = 512
_WRITE, _MALFORMED = int(Access.WRITE), int(Access.MALFORMED)
_ANON, _DIRTY, _EXECUTE = int(Kind.ANON), int(Flags.DIRTY), int(Protection.EXECUTE)


class Current(Protocol):
    """What a CPU runs in: the address space whose faults it brings, and its own ready frames."""

    space: AddressSpace
    ready: array[int]


def make_fault(current: Current, physical: Physical, fmt: PageTableFormat) -> Callable[[int, int], Outcome]:
    """The fault function of one CPU, made once: it reads at each fault which space is current.

    It closes over views and tables, not over state: everything it changes lives in them.
    """
    slow = Faults(physical)
    words, frames, ready = physical.ram.words, physical.frames, current.ready
    kind, owner, index = frames.kind, frames.owner, frames.index
    refs, maps, flags = frames.refs, frames.maps, frames.flags
    n = physical.counters.n
    page_shift = fmt.page_shift
    span_shift = page_shift + fmt.levels[0].bits
    entry_mask = fmt.levels[0].entries - 1
    base = frames.base
    demand_zero = int(Event.FAULT_DEMAND_ZERO)

    def fault(va: int, access: int) -> Outcome:
        space = current.space
        area = space.last_area
        if not area.start <= va < area.end:
            found = space.areas.find(va)
            if found is None:
                return slow.outside(space, va, access)
            area = space.last_area = found
        if access & area.denied:
            return slow.refused(space, area, va, access)
        if access & _WRITE and area.simple:
            table = space.leaf_tables.get(va >> span_shift)
            if table is not None and ready:
                slot = table + (va >> page_shift & entry_mask)
                if not words[slot]:
                    # What a frame taken like this must be given: the contract in `mm.frames.buddy`.
                    frame = ready.pop()
                    kind[frame] = _ANON
                    owner[frame] = area.owner
                    index[frame] = (va >> page_shift) + area.moved
                    refs[frame] = maps[frame] = 1
                    if flags[frame]:
                        physical.prepare(frame)
                    else:
                        flags[frame] = _DIRTY
                    words[slot] = base + (frame << page_shift) | area.bits.write
                    n[demand_zero] += 1
                    return RESOLVED
        return slow.present_or_absent(space, area, va, access)

    return fault


class Faults:
    """Every fault, without the short cut of the running CPU: for any address space, running or not."""

    def __init__(self, physical: Physical) -> None:
        self._physical = physical
        self._n = physical.counters.n
        self._report_at = _FIRST_REPORT
        self._suspected = -1  # the page of the last fault that was spurious

    def resolve(self, space: AddressSpace, va: int, access: int) -> Outcome:
        """As the fault function of a CPU whose current space is `space`."""
        area = space.areas.find(va)
        if area is None:
            return self.outside(space, va, access)
        if access & area.denied:
            return self.refused(space, area, va, access)
        return self.present_or_absent(space, area, va, access)

    def force(self, space: AddressSpace, va: int, access: int) -> Outcome:
        """As `resolve`, whether or not the area permits the access: for a debugger (Linux: FOLL_FORCE).

        The page is brought, and for a store made the area's own. Its entry grants no more than the area does,
        so the caller goes to the frame. A store into a shared area that does not permit it is denied.
        """
        area = space.areas.find(va)
        if area is None or not access & area.denied:
            return self.resolve(space, va, access)
        if access & _WRITE and area.shared:
            return self.denied(va)
        return self.present_or_absent(space, area, va, access, forced=True)

    def bring(self, space: AddressSpace, va: int) -> None:
        """Bring the page of `va` back, if it is in swap, whatever its area permits. Raises OutOfFrames.

        Bytes that are lost stay so.
        """
        area, found = space.areas.find(va), space.table.find(va)
        if area is not None and found is not None and self._is_in_swap(found):
            with contextlib.suppress(SwapLost):
                bring(space, area, found)

    # ---- refusals

    def outside(self, space: AddressSpace, va: int, access: int) -> Outcome:
        """No area contains `va`: the stack may grow down to it."""
        area = stack.grow(space, va)
        if area is None:
            return self.denied(va, mapped=False)
        self._n[Event.FAULT_STACK] += 1
        if access & area.denied:
            return self.refused(space, area, va, access)
        return self.present_or_absent(space, area, va, access)

    def refused(self, space: AddressSpace, area: Area, va: int, access: int) -> Outcome:
        """The area does not permit the access, or the MMU met a reserved bit, which nobody writes."""
        if access & _MALFORMED:
            damaged = self._judge(space, area, va)
            if damaged is not None:
                return damaged
        return self.denied(va)

    def _judge(self, space: AddressSpace, area: Area, va: int) -> Damaged | None:
        """The damage on the way to `va`, if the bytes there are not what was written."""
        try:
            found = space.table.find(va)
        except TableDamaged as error:
            return error.damaged
        damaged = space.table.judge(va)
        return damaged if damaged is not None or found is None else judge_leaf(space, area, found)

    def denied(self, va: int, *, mapped: bool = True) -> Outcome:
        self._n[Event.FAULT_ACCESS] += 1
        return AccessError(va, mapped)

    # ---- an area that permits the access

    def present_or_absent(
        self, space: AddressSpace, area: Area, va: int, access: int, *, forced: bool = False
    ) -> Outcome:
        page, physical = va & -space.table.format.page_size, self._physical
        if physical.reclaim is not None:
            physical.reclaim.balance()
        try:
            found = space.table.find(page)
            if area.watcher is not None:
                answer = self._watched(space, area, va, access, found)
                if answer is not None:
                    return answer
                access = self._told_before(space, area, access, found)
            if found is None:
                return self._absent(space, area, page, access)
            if found.level > 1 or found.entry & space.table.format.contiguous_bit:
                pooled = area.backing is not None and area.backing.huge_size
                decide = hugetlb.whole if pooled else whole_or_base
                found = decide(self._physical, space, area, page, access, found, forced=forced)
                if found is None:
                    return RESOLVED
            if not found.entry & space.table.format.present_mask:
                if physical.swap is not None and self._is_in_swap(found):
                    bring_back(space, area, found, write=bool(access & _WRITE))
                    return RESOLVED
                if found.entry == space.guard:
                    return self.denied(va, mapped=False)
                if markers.is_marker(space.table.format, found.entry):
                    return self._at_marker(space, area, va, access, found)
                if forced and has_frame(space.table.format, found.entry, found.level):
                    return self._held(space, area, page, access, found)
                return self._judge(space, area, va) or self.denied(va)  # held, by damage or without a right
            return self._present(space, area, page, access, found)
        except TableDamaged as error:
            return error.damaged
        except (BeyondEnd, BackingFailed):
            self._n[Event.FAULT_BUS] += 1
            return BusError(va)
        except NotReady as later:
            return Blocked(later.on)
        except OutOfFrames as short:
            shrunk = physical.gave_large and shrink(physical)
            if shrunk or (physical.reclaim is not None and physical.reclaim.make_room(short.wanted)):
                return self.present_or_absent(space, area, va, access, forced=forced)
            self._n[Event.FAULT_OUT_OF_MEMORY] += 1
            return OutOfMemory(va)

    def _is_in_swap(self, found: Found) -> bool:
        """Whether an entry names a slot that is in use."""
        swap = self._physical.swap
        assert swap is not None
        return swap.entries.holds(found.entry) and bool(swap.users(swap.entries.slot(found.entry)))

    def _watched(
        self, space: AddressSpace, area: Area, va: int, access: int, found: Found | None
    ) -> Outcome | None:
        """What the area's watcher makes of a fault; None where it did not ask for such."""
        write, fmt = bool(access & _WRITE), space.table.format
        if found is None or found.entry == markers.watched(fmt):
            index = self._index(area, va & -fmt.page_size)
            if area.huge_size and not hugetlb.may_come(space, area, va):
                return None  # SIGBUS
            if isinstance(area.backing, SharedMemory) and area.backing.swapped(index, 1):
                return None  # it is neither missing nor in memory
            why = USER_MISSING
            if area.backing is not None and area.backing.resident(index, 1)[0]:
                why = USER_MINOR
        elif write and found.entry & fmt.present_mask and found.entry & user_mark(fmt):
            why = USER_WP
        else:
            return None
        assert area.watcher is not None, "the caller looked"
        if why == USER_WP and area.watcher.asynchronous:
            return None  # an ordinary store, which takes the mark away
        if not area.flags & why:
            return None
        size = area.huge_size or fmt.page_size
        answer: Outcome = area.watcher.ask(va, why, write=write, size=size)
        return answer

    def _told_before(self, space: AddressSpace, area: Area, access: int, found: Found | None) -> int:
        """The access to be made now: a store to a page in swap whose watcher hears of it comes twice."""
        swap = self._physical.swap
        if found is None or swap is None or not access & _WRITE or not swap.entries.holds(found.entry):
            return access
        hears = found.entry & swap.entries.told and area.flags & USER_WP
        assert area.watcher is not None, "the caller looked"
        return access & ~_WRITE if hears and not area.watcher.asynchronous else access

    def _at_marker(self, space: AddressSpace, area: Area, va: int, access: int, found: Found) -> Outcome:
        """The page is not there, and its entry says something of it: see `mm.markers`."""
        fmt, table = space.table.format, space.table
        if found.entry == markers.poisoned(fmt):
            self._n[Event.FAULT_BUS] += 1
            return BusError(va, failed=fmt.levels[found.level - 1].size)
        told = area.watcher is not None and not (access & _WRITE and area.watcher.asynchronous)
        told = told and bool(area.flags & USER_WP)
        if told and area.huge_size:
            access &= ~_WRITE  # it is copied when the store is let through
        with markers.away(table, found):
            outcome = self._absent(space, area, va & -fmt.page_size, access)
        if told:  # no TLB knows of the entry yet
            entry = self._physical.ram.words[found.slot]
            table.write(found.start, found.level, found.slot, fmt.write_protect(entry) | user_mark(fmt))
        return outcome

    def _absent(self, space: AddressSpace, area: Area, page: int, access: int) -> Outcome:
        backing = area.backing
        write = bool(access & _WRITE)
        if backing is None:
            physical = self._physical
            if physical.huge is not None and physical.huge.bring(space, area, page, write=write):
                return RESOLVED
            slot = space.table.leaf_slot(page)
            if write:
                if self._n[Event.FAULT_DEMAND_ZERO] >= self._report_at:
                    self._report_growth()
                fresh = physical.frames.address(self._fresh(area, page))
                physical.ram.words[slot] = fresh | area.bits.write
                self._n[Event.FAULT_DEMAND_ZERO] += 1
            else:
                zero = physical.frames.address(physical.zero_frame)
                physical.ram.words[slot] = zero | area.bits.read
                self._n[Event.FAULT_ZERO_PAGE] += 1
            return RESOLVED
        if backing.huge_size:
            hugetlb.bring(self._physical, space, area, page, write=write)
            return RESOLVED
        if write and not area.shared:
            self._copy_from_backing(space, area, page)
            return RESOLVED
        shared = self._physical.shared_huge
        some = shared is not None and (shared.on or backing.folios) and shared.fits(area)
        if shared is not None and some and shared.bring(space, area, page, write=write):
            return RESOLVED
        if backing.in_place:
            self._map_around(space, area, page, access)
        else:
            loaded = self._n[Event.SWAP_IN]
            frame, _count = backing.frames(self._index(area, page), 1, write=write)
            self._install(space, area, page, frame, shown_bits(area, backing, write=write))
            self._n[Event.FAULT_SHARED if loaded == self._n[Event.SWAP_IN] else Event.FAULT_SWAP] += 1
        return RESOLVED

    def _permitted(self, space: AddressSpace, area: Area, page: int, access: int, found: Found) -> Outcome:
        """The entry permits the access: note it, where the MMU leaves that to software.

        Where there is nothing to note the MMU went by a stale translation, or by a damaged table.
        """
        fmt, entry = space.table.format, found.entry
        noted = fmt.soil(fmt.touch(entry)) if access & _WRITE else fmt.touch(entry)
        if noted != entry:
            space.table.replace(page, found, noted)
            self._n[Event.FAULT_ACCESS_FLAG] += 1
            return RESOLVED
        if self._suspected == page:  # the flush brought no progress
            damaged = self._judge(space, area, page)
            if damaged is not None:
                return damaged
        self._suspected = page
        self._n[Event.FAULT_SPURIOUS] += 1
        tlb = self._physical.tlb
        tlb.flush_pages(1 << tlb.running, [page])
        return RESOLVED

    def _report_growth(self) -> None:
        """Tell the CPU that the pages in use have doubled since it was told last."""
        self._physical.cpus[self._physical.tlb.running].working_set(self._report_at)
        self._report_at *= 2

    def _present(self, space: AddressSpace, area: Area, page: int, access: int, found: Found) -> Outcome:
        """A translation exists. Only a write to a read-only entry asks for another one."""
        table, physical = space.table, self._physical
        fmt = table.format
        if not access & _WRITE or fmt.writable(found.entry):
            return self._permitted(space, area, page, access, found)
        address = fmt.leaf_address(found.entry, found.level)
        frame = physical.frames.number(address)
        if area.shared:
            if area.backing is not None and area.backing.in_place:
                area.backing.frames(self._index(area, page), 1, write=True)
            table.replace(page, found, address | area.bits.write)
            self._n[Event.FAULT_UPGRADE] += 1
            return RESOLVED
        if self._is_others(frame):
            self._copy_frame(space, area, page, found, frame)
            return RESOLVED
        if physical.frames.kind[frame] == Kind.ZERO:
            fresh = physical.frames.address(self._fresh(area, page))
            space.replace_entry(page, found.slot, fresh | area.bits.write, None)
        else:
            if physical.swap is not None:
                physical.swap.frame_goes(frame)
            table.replace(page, found, address | area.bits.write)
        self._n[Event.FAULT_UPGRADE] += 1
        return RESOLVED

    def _held(self, space: AddressSpace, area: Area, page: int, access: int, found: Found) -> Outcome:
        """A page that nobody may touch has a frame, but a forced store needs one of the area's own."""
        physical = self._physical
        frame = physical.frames.number(found.entry & space.table.format.address_mask)
        if access & _WRITE and physical.frames.kind[frame] == Kind.ZERO:
            fresh = physical.frames.address(self._fresh(area, page))
            space.replace_entry(page, found.slot, fresh | area.bits.write, None)
        elif access & _WRITE and self._is_others(frame):
            self._copy_frame(space, area, page, found, frame)
        elif access & _WRITE:
            space.table.write(page, 1, found.slot, found.entry & ~noted(space.table.format)[2])
        return RESOLVED

    def _is_others(self, frame: int) -> bool:
        """Whether a private area may show a frame but not write to it: a file's, a shared, a merged one.

        A pin of a page that is its own is no reason.
        """
        frames, kind = self._physical.frames, self._physical.frames.kind[frame]
        if kind == Kind.FILE or self._physical.is_merged(frame):
            return True
        return frames.refs[frame] > 1 and (kind != Kind.ANON or frames.maps[frame] > 1)

    # ---- pages

    def _index(self, area: Area, page: int) -> int:
        return area.offset + (page - area.start >> self._physical.frames.page_shift)

    def _fresh(self, area: Area, page: int) -> int:
        """A zeroed frame of the area's family that is about to be mapped at `page`."""
        number = page >> self._physical.frames.page_shift
        frame = self._physical.take(Kind.ANON, area.owner, number + area.moved)
        self._physical.frames.maps[frame] = 1
        self._mark_code(area, frame)
        return frame

    def _copy_from_backing(self, space: AddressSpace, area: Area, page: int) -> None:
        """A write is the first access to a private page of a file or object: straight to a copy."""
        slot = space.table.leaf_slot(page)
        frame = self._private_copy(area, page, None)
        physical = self._physical
        physical.ram.words[slot] = physical.frames.address(frame) | area.bits.write

    def _copy_frame(self, space: AddressSpace, area: Area, page: int, found: Found, old: int) -> None:
        """Copy-on-write: replace the entry's frame by a private copy, flush, let the old one go."""
        in_file = self._physical.frames.kind[old] == Kind.FILE
        frame = self._private_copy(area, page, None if in_file else old)
        entry = self._physical.frames.address(frame) | area.bits.write
        space.replace_entry(page, found.slot, entry, old)

    def _private_copy(self, area: Area, page: int, source: int | None) -> int:
        """A frame for `page` with the bytes of RAM frame `source`, or of the area's backing.

        Raises what the backing raises, and OutOfFrames, with nothing taken.
        """
        physical, read = self._physical, self._n[Event.FILE_READ]
        frame = self._fresh(area, page)
        try:
            if source is not None:
                physical.page_bytes(frame)[:] = physical.page_bytes(source)
            else:
                assert area.backing is not None
                area.backing.copy_page(self._index(area, page), physical.page_bytes(frame))
        except BaseException:
            physical.frames.maps[frame] = physical.frames.refs[frame] = 0
            physical.give_back([frame])
            raise
        self._n[Event.FAULT_COPY if read == self._n[Event.FILE_READ] else Event.FAULT_FILE_READ] += 1
        self._n[Event.COPIED_PAGES] += 1
        return frame

    def _install(self, space: AddressSpace, area: Area, page: int, frame: int, bits: int) -> None:
        slot = space.table.leaf_slot(page)
        frames = self._physical.frames
        frames.refs[frame] += 1
        frames.maps[frame] += 1
        writable = area.backing is not None and area.backing.writable
        self._mark_code(area, frame, mutable=area.backing is None or writable, shared=writable)
        self._physical.ram.words[slot] = frames.address(frame) | bits

    def _mark_code(self, area: Area, frame: int, *, mutable: bool = True, shared: bool = False) -> None:
        """A RAM frame that will be executable: its translations must follow its bytes."""
        if int(area.protection) & _EXECUTE:
            self._physical.code.executable(frame, mutable=mutable, shared=shared)

    def _map_around(self, space: AddressSpace, area: Area, page: int, access: int) -> None:
        """Map a page of a file in place, and its neighbours that are there anyway (fault-around)."""
        backing = area.backing
        assert backing is not None
        table, physical, fmt = space.table, self._physical, space.table.format
        write = bool(access & _WRITE)
        shift = fmt.page_shift
        first, last = page, page + fmt.page_size
        if not write and area.watcher is None:  # never over the end of a leaf table
            window = min(space.fault_around, fmt.levels[0].entries) << shift
            first = max(page & -window, area.start)
            last = min((page & -window) + window, area.end)
        read = self._n[Event.FILE_READ]
        frame, count = self._frames_around(space, area, first, last, page, write)
        if count == 1:
            first = page
        base = table.leaf_slot(first)
        table_words = physical.ram.array
        entries = table_words[base : base + count]
        size = fmt.page_size
        start = physical.frames.address(frame) | shown_bits(area, backing, write=write)
        fresh = np.arange(start, start + count * size, size, dtype=np.uint64)
        mapped: slice | NDArray[np.int64] = slice(frame, frame + count)
        present = int(np.count_nonzero(entries))
        if present:  # the absent ones alone; without any, slices are much quicker
            absent = np.flatnonzero(entries == 0)
            entries[absent] = fresh[absent]
            mapped = absent + frame
        else:
            entries[:] = fresh
        physical.frames.refs_array[mapped] += 1
        physical.frames.maps_array[mapped] += 1
        if int(area.protection) & _EXECUTE:
            physical.code.executable(frame, count, mutable=backing.writable, shared=backing.writable)
        self._n[Event.FAULT_FILE if read == self._n[Event.FILE_READ] else Event.FAULT_FILE_READ] += 1
        self._n[Event.FILE_AROUND] += count - present - 1

    def _frames_around(
        self, space: AddressSpace, area: Area, first: int, last: int, page: int, write: bool
    ) -> tuple[int, int]:
        """Frames for `[first, last)`, or for `page` alone when the file does not reach that far in a row."""
        backing = area.backing
        assert backing is not None
        shift = space.table.format.page_shift
        if last - first >> shift > 1:
            try:
                frame, count = backing.frames(self._index(area, first), last - first >> shift, write=write)
                if first + (count << shift) > page:
                    return frame, count
            except (BeyondEnd, BackingFailed):
                pass
        frame, _count = backing.frames(self._index(area, page), 1, write=write)
        return frame, 1
