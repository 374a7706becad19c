"""One process's memory: its areas and its page table. The face of `mm`.

    areas        what the program asked for           (`mm.allocation`)
    table        what the MMU is told about it        (`mm.tables`)

`mm.fault` lets the second follow the first, `mm.mapping` holds the mmap family on top of the operations here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from copy import copy
from functools import partial
from types import EllipsisType
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from aether_emu.address import VirtAddr
from aether_emu.arch.paging import Held, HeldKind, MemoryType, PageTableFormat, Reach
from aether_emu.errors import AddressError, ClosedError, OutOfFrames, whole
from aether_emu.mm import clearing, forking, markers
from aether_emu.mm.allocation import LOCKS, Area, AreaFlags, AreaMap, Watcher
from aether_emu.mm.audit import reclaim
from aether_emu.mm.batch import Batch
from aether_emu.mm.changes import Change
from aether_emu.mm.counters import Event
from aether_emu.mm.file_mapping import part_of_file
from aether_emu.mm.frames.table import Flags, Kind
from aether_emu.mm.limits import GUARD_PAGES, Account, Limits
from aether_emu.mm.objects.anonymous import AnonymousMemory
from aether_emu.mm.objects.file import HostFiles
from aether_emu.mm.objects.protocol import MemoryObject, Window
from aether_emu.mm.physical import Physical
from aether_emu.mm.protection import LeafBits, Protection, denied_accesses, leaf_bits, tracked
from aether_emu.mm.slab.layouts import MM
from aether_emu.mm.tables import edits, split, transfer
from aether_emu.mm.tables.count import Frames, entries_of, frames_of, has_frame, kinds, of_kind
from aether_emu.mm.tables.damage import Damaged
from aether_emu.mm.tables.page import Found, PageTable
from aether_emu.mm.tables.walk import NotMapped, Origin, Walk
from aether_emu.mm.tags import Context
from aether_emu.mm.tlb import Gather
from aether_emu.rules import format_size

if TYPE_CHECKING:
    from aether_emu.mm.joint import Joint
    from aether_emu.mm.objects.device import DeviceMemory

_WX = Protection.WRITE | Protection.EXECUTE
_EVERYTHING = Protection.READ | _WX
_LOCKED = int(AreaFlags.LOCKED)
_NO_FORK, _WIPE_ON_FORK = int(AreaFlags.NO_FORK), int(AreaFlags.WIPE_ON_FORK)  # an enum's `&` is slow
_MANY = 4  # areas: for fewer, one by one is quicker
# Plain: numpy compares with a number a hundred times faster than with an enum.
_OWN = np.isin(np.arange(1 << 8), (int(Kind.ANON), int(Kind.HUGETLB)))  # by kind: `isin` for few takes long

EXEC_GAIN_REFUSED, EXEC_GAIN_NOT_INHERITED = 1, 2  # PR_MDWE_REFUSE_EXEC_GAIN, PR_MDWE_NO_INHERIT


class Shared(NamedTuple):
    """What every address space has of the supervisor's half, on an ISA where one root translates both halves.

    The upper half of `table`, which begins at `start`. Where the halves are split (KPTI) that is only what is
    needed to get in and out, and `whole` the table of all of it, which each space's second root shows.
    """

    table: PageTable
    start: int
    whole: PageTable | None = None


class Promised(Protocol):
    """What pools of huge pages have promised an address space: `mm.huge_pools.Promises`."""

    def capture(self) -> list[tuple[int, int, int]]: ...
    def renew(self, start: int, end: int) -> None: ...
    def drop(self, start: int, end: int) -> None: ...
    def move(self, start: int, end: int, to: int) -> None: ...


class AddressSpace:
    """The memory of one process, on the machine `physical`, in page-table format `fmt`.

    `kernel` is what every process shares (None on an ISA with a root of its own for the kernel).
    `mmap_base` is where the search for free addresses starts, downwards.
    """

    def __init__(
        self, physical: Physical, fmt: PageTableFormat, limits: Limits, kernel: Shared | None
    ) -> None:
        self.physical, self.limits = physical, limits
        self.number = physical.objects.number()
        self.table = PageTable(fmt, physical.ram, physical.frames, physical.buddy, self.number, Reach.USER)
        try:
            self.object = self._new_object()
        except OutOfFrames:
            self.table.destroy()
            raise
        self.leaf_tables = self.table.leaf_tables  # where the fault path looks for a leaf table
        self.table.noted_split = physical.noted_split
        self._kernel = kernel
        if kernel is not None:
            self.table.borrow_upper(kernel.table, kernel.start)
            if kernel.whole is not None:
                self.table.split_off(kernel.whole, kernel.start)
        self.context = Context(self.number, self.table.root, self.kernel_root, physical.tags)
        guard = GUARD_PAGES << fmt.page_shift
        self.areas = AreaMap(fmt.page_shift, limits.areas, guard)
        self._bits: dict[tuple[Protection, int, MemoryType], LeafBits] = {}
        self.tracks_writes = False  # whether somebody asked which pages are written: see `mm.soft_dirty`
        self.nowhere = Area(0, 0, Protection.NONE, denied=0, bits=self.bits_for(Protection.NONE))
        self.last_area = self.nowhere
        self.users = 1  # processes that hold it
        self.outlives = False  # one of them has ended, and holds it to be looked at
        self.cpus = 0  # those that walk this table: a bit each. Others flush what they hold before they do
        self.family = AnonymousMemory(physical.objects)  # what new areas' own pages belong to
        self.family.hold()
        self.joint: Joint | None = None  # what operations gather in that are done together
        self.guard = fmt.held_entry(Held(HeldKind.GUARD, 0))
        """The entry of a page that refuses every access: see `mm.guards`."""
        self.fault_around = limits.fault_around
        self.mmap_base = limits.window
        self.heap_start = self.heap_end = 0
        self.files: HostFiles | None = None  # the computer's files, for `map_file`
        self.account = Account(limits, fmt.page_size, physical.overcommit)
        self.keys = 1  # protection keys in use, a bit each; number 0 is everybody's
        self.new_flags = 0  # what areas that a program makes begin with (mlockall's MCL_FUTURE)
        self.program_data = 0  # bytes of the program's own data, which count for the heap's limit (brk)
        self.no_huge = False  # whether the process wants no huge pages (PR_SET_THP_DISABLE)
        self.promises: Promised | None = None  # huge pages of pools that faults here will not be refused
        self.exec_gain = 0
        """How memory that is not executed is kept from becoming so (PR_SET_MDWE): `EXEC_GAIN_*`."""
        self.merge_any = False  # whether all private memory may be merged (PR_SET_MEMORY_MERGE)
        self.peak_from: tuple[int, int] | None = None
        """Bytes of its pages, and frames in use, when somebody had its peak begin anew."""
        self.watched = False  # whether a program ever asked to answer faults itself (`mm.userfault`)
        self.untold: list[Any] = []  # what became of watched memory in the call in progress
        self.damages: list[Damaged] = []  # entries found damaged; put right at once, or by `destroy`

    def _new_object(self) -> int:
        """The kernel's object for it, at a kernel address. Raises OutOfFrames."""
        fmt, root = self.table.format, self.table.root
        what = {"pgd": root, "number": self.number, "page_shift": fmt.page_shift}
        return self.physical.slabs.take(MM, **what, task_size=self.limits.user_end)

    def __repr__(self) -> str:
        return (
            f"<AddressSpace {self.number}: {len(self.areas)} areas, "
            f"{format_size(self.account.reserved)} reserved, {self.table}>"
        )

    # ---- looking

    @property
    def kernel_root(self) -> int:
        """The root that the supervisor runs with here: the program's own, or the second one (KPTI)."""
        return self.table.second_root or self.table.root

    def mapped_pages(self) -> int:
        """How many pages of the user's half the MMU can translate now, those in large leaves not counted."""
        entries, fmt = self.physical.ram.array, self.table.format
        size, present = fmt.levels[0].entries, np.uint64(fmt.present_mask)
        leaves = self.leaf_tables.values()
        return sum(int(np.count_nonzero(entries[at : at + size] & present)) for at in leaves)

    @property
    def page_size(self) -> int:
        return self.table.format.page_size

    def page_up(self, value: int) -> int:
        """`value` rounded up to a page, in 64 bits: the last page's worth of values gives 0."""
        return value + self.page_size - 1 & -self.page_size & (1 << 64) - 1

    def walk(self, va: int) -> Walk:
        """Translate `va` in Python; `print` the answer for every level's entry, decoded.

        The CPU is not involved, and no page is brought. Raises AddressError for no address of the format.
        """
        self._require_open()
        va, fmt = whole("va", va), self.table.format
        if not 0 <= va < 1 << 64 or not fmt.canonical(va):
            raise AddressError("virtual address", va, f"{fmt.name} has {fmt.virtual_bits} bits of one")
        if va >> 63 and self._kernel is None and self.table.reach is Reach.USER:
            return NotMapped((), Origin(va, fmt), fmt.top)  # the supervisor's half has a root of its own
        return self.table.walk(va)

    def _require_open(self) -> None:
        if self.physical.ram.closed:
            raise ClosedError

    def bits_for(
        self, protection: Protection, key: int = 0, memory: MemoryType = MemoryType.WRITE_BACK
    ) -> LeafBits:
        """The entry bits of a protection, a protection key and a memory type, computed once."""
        bits = self._bits.get((protection, key, memory))
        if bits is None:
            bits = leaf_bits(self.table.format, protection, key, memory)
            if self.tracks_writes:
                bits = tracked(self.table.format, bits)
            self._bits[protection, key, memory] = bits
        return bits

    def track_writes(self) -> None:
        """From now on an entry that is not writable has the clean mark, if it comes from here."""
        self.tracks_writes = True
        self._bits.clear()
        for area in self.areas:
            shown = area.backing if area.shared else None
            memory = MemoryType.WRITE_BACK if shown is None else shown.memory
            area.bits = self.bits_for(area.protection, area.key, memory)

    def resident(self) -> dict[Kind, int]:
        """Pages of the user half by the kind of frame they show."""
        kinds = np.bincount(self.physical.frames.kind_array[self.shown(0, self.limits.user_end)])
        return {kind: int(kinds[kind]) if kind < kinds.size else 0 for kind in Kind}

    # ---- areas

    def new_area(self, start: int, end: int, protection: Protection, **more: Any) -> Area:
        """An area that is not in the map yet; keywords as `Area`."""
        backing = more.get("backing") if more.get("shared") else None
        memory = MemoryType.WRITE_BACK if backing is None else backing.memory
        bits, denied = self.bits_for(protection, more.get("key", 0), memory), denied_accesses(protection)
        if backing is not None and backing.in_device:  # Linux: VM_IO, VM_DONTDUMP
            more["flags"] = more.get("flags", 0) & ~LOCKS | AreaFlags.NO_DUMP
        if not more.get("shared"):
            more.setdefault("family", self.family)
            backing = more.get("backing")
            if self.merge_any and (backing is None or not backing.whole):
                more["flags"] = more.get("flags", 0) | AreaFlags.MERGEABLE
        return Area(start, end, protection, denied=denied, bits=bits, space=self, **more)

    def insert(self, area: Area, grows_by: int | None = None, *, own_pages: bool = False) -> None:
        """Add an area to free addresses. Raises Refused(ENOMEM) for each limit, changing nothing.

        `grows_by` is what the address space grows by in the end, when that is not the area's length. An area
        that brings no `own_pages` takes its family, and how they are numbered, from a neighbour that it
        continues otherwise, so that the two become one.
        """
        if grows_by != 0:
            self.account.require(area.length if grows_by is None else grows_by, data=area.is_data)
        self._add(area, own_pages=own_pages)

    def _add(self, area: Area, *, own_pages: bool = False) -> None:
        self._note_writable_executable(area)
        if not own_pages and area.family is not None:
            self._join_neighbour(area)
        start, end = area.start, area.end
        self.place(area)
        self.tell(Change.MAPPED, start, end)

    def _join_neighbour(self, area: Area) -> None:
        shift, chosen = self.table.format.page_shift, (area.family, area.moved)
        before, after = self.areas.find(area.start - 1), self.areas.find(area.end)
        for neighbour, in_order in ((before, True), (after, False)):
            if neighbour is None or neighbour.family is None:
                continue
            area.set_family(neighbour.family)
            area.moved = neighbour.moved
            first, second = (neighbour, area) if in_order else (area, neighbour)
            if first.continues(second, shift):
                return
        area.set_family(chosen[0])
        area.moved = chosen[1]

    def replace(self, area: Area) -> None:
        """As `insert`, after what stands in the way is unmapped. A backing nobody shows then is let go.

        As Linux counts it, what is replaced makes room for the limits, of whatever kind it is.
        """
        backing = area.backing
        if backing is not None:  # the last area that shows it may be among those that go
            backing.hold()
        try:
            replaced = self.areas.overlapping(area.start, area.end)
            taken = sum(min(old.end, area.end) - max(old.start, area.start) for old in replaced)
            self.account.require(area.length - taken, data=area.is_data)
            self.unmap(area.start, area.end)
            if replaced:  # new entries come where others may still use old ones
                if self.joint is None:
                    self.physical.tlb.settle()
                else:
                    self.joint.finish_at_once()
            self._add(area)
        finally:
            if backing is not None:
                backing.let_go()

    def map_file(
        self,
        file: IO[bytes] | str | os.PathLike[str],
        address: int,
        size: int,
        protection: Protection,
        offset: int = 0,
    ) -> VirtAddr:
        """Show `size` bytes of a host file at `address`, without copying; returns the address.

        The mapping is shared: what the program stores is in the file at once. A path is opened for that if
        `protection` has WRITE, else to read; an open file must be open for it, and may be closed afterwards.
        What was at `address` is replaced, as by mmap with MAP_FIXED. All in bytes: `size` is rounded up to
        pages, `address` and `offset` must be page aligned (EINVAL). Raises Refused(EINVAL, ENOMEM, EACCES,
        ENODEV), and the host's errno for a path that cannot be opened.
        """
        self._require_open()
        assert self.files is not None, "this address space belongs to no machine"
        address = whole("address", address)
        place, shift = (address, size, offset), self.table.format.page_shift
        length, what = part_of_file(self.files, self.limits, shift, file, place, protection)
        self.replace(self.new_area(address, address + length, protection, **what))
        return VirtAddr(address, self.table.format.virtual_bits + 1)  # a user half of all virtual bits fits

    def map_device(
        self,
        device: DeviceMemory | int,
        address: int,
        size: int,
        memory: MemoryType | None = None,
        protection: Protection = Protection.READ | Protection.WRITE,
    ) -> VirtAddr:
        """Show `size` bytes of a device at `address`, with its memory type; returns the address.

        `device` is a device's memory (`machine.board.memories()`), or a guest-physical address in one, page
        aligned. `memory` is the type that the entries are to have, where the caller minds: frames that have
        another are refused. What was at `address` is replaced, as by mmap with MAP_FIXED. Raises
        Refused(EINVAL) for another type, for RAM, behind the device's end or out of alignment; ENOMEM.
        """
        self._require_open()
        from aether_emu.mm.device_mapping import part_of_device  # noqa: PLC0415  # few runs have devices

        address = whole("address", address)
        physical, place = self.physical, (address, size)
        shown, first, length = part_of_device(physical, self.limits, device, place, memory, protection)
        what: dict[str, Any] = {"shared": True, "backing": shown, "offset": first, "name": shown.name}
        maximum = Protection.READ | Protection.WRITE
        self.replace(self.new_area(address, address + length, protection, maximum=maximum, **what))
        return VirtAddr(address, self.table.format.virtual_bits + 1)

    def batch(self) -> Batch:
        """A context manager that takes operations, and does them at its end: see `mm.batch`."""
        self._require_open()
        return Batch(self.page_size, partial(self.physical.perform, self))

    def unmap(self, start: int, end: int) -> None:
        """Remove every area and entry of `[start, end)`.

        Raises Refused(ENOMEM) as `AreaMap.remove`, and TableDamaged; then all areas are still there.
        """
        self.areas.require_room_to_cut(start, end)
        areas = self.areas.overlapping(start, end)
        if not areas:
            return
        if self.account.locked:
            for area in areas:
                self._unlock(area, max(area.start, start), min(area.end, end))
        held, gather = hold_objects(areas), self.gather()
        try:
            if len(areas) < _MANY:
                for area in areas:
                    self.clear(gather, area, max(area.start, start), min(area.end, end))
            else:
                clearing.clear_all(self, gather, areas, start, end)
            pieces = self._take_out(start, end)
            if self.promises is not None:
                self.promises.drop(start, end)
            clearing.prune(self, gather, pieces[0].start, pieces[-1].end)
        finally:
            gather.finish(may_defer=True)
            for item in held:
                gather.then(item.let_go)
        self.tell(Change.UNMAPPED, start, end)

    def _unlock(self, area: Area, start: int, end: int) -> None:
        """What a part of an area shows is about to be locked no longer, at least not by that."""
        reclaim = self.physical.reclaim
        if reclaim is not None and area.flags & _LOCKED:
            reclaim.unlocked(self.shown(start, end))

    def tell(self, change: Change, start: int, end: int) -> None:
        """Whoever watches mappings hears of it, once it is done."""
        told = self.physical.on_mapping
        if told is None:
            return
        if self.joint is not None:
            self.joint.then(partial(told, self.number, change, start, end))
        else:
            told(self.number, change, start, end)

    def _take_out(self, start: int, end: int) -> list[Area]:
        """Remove areas but not entries. The caller holds their objects until the entries are gone."""
        pieces = self.areas.remove(start, end)
        self.last_area = self.nowhere
        for piece in pieces:
            self.account.count(piece, -piece.length)
        return pieces

    def protect(
        self, area: Area, start: int, end: int, protection: Protection, key: int | None = None
    ) -> None:
        """Change `[start, end)` of one area, entries included; with a `key` that, too.

        Raises Refused(ENOMEM, EINVAL) and TableDamaged, changing nothing.
        """
        if (start, end) != (area.start, area.end):
            area.require_cuttable(start, end)
        piece = area.piece(start, end, self.table.format.page_shift)
        piece.key = area.key if key is None else key
        shown = piece.backing if piece.shared else None
        memory = MemoryType.WRITE_BACK if shown is None else shown.memory
        bits = self.bits_for(protection, piece.key, memory)
        piece.set_protection(protection, denied_accesses(protection), bits)
        piece.charged = area.charged or piece.asks_for_charge
        newly = protection & _WX == _WX and not piece.was_writable_executable
        piece.was_writable_executable |= newly
        self.areas.require_room(self.areas.growth(area, piece))
        gather = self.gather()
        try:
            code = edits.protect(self.table, gather, start, end, piece.bits)
        finally:
            if protection & Protection.EXECUTE:
                gather.finish_at_once()  # nobody stores to what may be code from now on
            else:
                gather.finish()
        shared = piece.backing is not None and piece.backing.writable
        self.physical.code.executable_each(code, mutable=True, shared=shared)
        if newly:
            self._count_writable_executable(piece)
        self._put_back(area, piece)
        self.tell(Change.PROTECTED, start, end)

    def mark(
        self, area: Area, start: int, end: int, flags: int, watcher: Watcher | EllipsisType | None = ...
    ) -> None:
        """Let a range of one area have these flags, and this watcher if one is named.

        Raises Refused(ENOMEM, EINVAL), changing nothing. OutOfFrames, if a large leaf over its ends cannot be
        split; and TableDamaged.
        """
        watcher = area.watcher if isinstance(watcher, EllipsisType) else watcher
        if flags == area.flags and watcher is area.watcher:
            return
        if (start, end) != (area.start, area.end):
            area.require_cuttable(start, end)
        piece = area.piece(start, end, self.table.format.page_shift)
        piece.flags = flags
        piece.set_watcher(watcher)
        self.areas.require_room(self.areas.growth(area, piece))
        if not flags & _LOCKED:
            self._unlock(area, start, end)
        if self.physical.gave_large:
            self._split_around(area, start, end)
        self._put_back(area, piece)
        self.tell(Change.MARKED, start, end)

    def _split_around(self, area: Area, start: int, end: int) -> None:
        """Split the large leaves, and end the runs, that lie over an end of a part of `area`."""
        inside, hint = (
            [at for at in (start, end) if area.start < at < area.end],
            self.table.format.contiguous_bit,
        )
        found = [self.table.find(at) for at in inside]
        if any(each is not None and (each.level > 1 or each.entry & hint) for each in found):
            gather = self.gather()
            try:
                for at in inside:
                    split.cut(self.table, gather, at)
            finally:
                gather.finish()

    def _put_back(self, area: Area, piece: Area) -> None:
        """Let `piece`, a part of `area` with something changed, stand in its place."""
        held = hold_objects([area])
        self._take_out(piece.start, piece.end)
        self.place(piece)
        for item in held:
            item.let_go()

    def place(self, area: Area) -> None:
        """Let an area stand at addresses that are free, as it is: no limit is asked, and nobody told."""
        length = area.length  # an area that its neighbour takes in changes
        if self.physical.huge is not None and self.physical.huge.orders:
            area.simple = False  # each fault decides whether it brings a run of pages
        self.areas.insert(area)
        self.account.count(area, length)
        self.last_area = self.nowhere

    # ---- entries

    def gather(self) -> Gather:
        """A collection for one operation's edits. Those before it are over: Linux holds a lock until then.

        Operations that are joined (`mm.joint`) have one for all.
        """
        physical = self.physical
        if self.joint is not None:
            return self.joint
        if self.cpus & physical.tlb.unsettled:
            physical.tlb.settle()
        return Gather(physical.tlb, self.cpus, self.table, physical.frames, physical.free, self.context)

    def finish(self, gather: Gather) -> None:
        """Flush what was gathered, and give back what nothing references any more."""
        gather.finish()

    def discard(self, area: Area, start: int, end: int) -> None:
        """Drop the pages of `[start, end)`, a part of `area`; the next touch starts over. Guards stay."""
        gather = self.gather()
        try:
            level = markers.level_of(self.table.format, area.huge_size)
            with markers.kept(self.table, start, end, level) if area.keeps_markers else nullcontext():
                self.clear(gather, area, start, end, guards=False)
        finally:
            gather.finish(may_defer=True)
        if self.promises is not None:
            self.promises.renew(start, end)

    def written(self, va: int, length: int) -> None:
        """Bytes changed without the engine's notice: drop translations if a page of them held code."""
        fmt, frames = self.table.format, self.physical.frames
        for page in range(va & -fmt.page_size, va + length, fmt.page_size):
            found = self.table.find(page)
            if found is not None and found.entry & fmt.present_mask:
                frame = frames.number(fmt.leaf_address(found.entry, found.level) & -fmt.page_size)
                if frames.flags[frame] & Flags.EXECUTABLE:
                    self.physical.code.flush()
                    return

    def replace_entry(self, page: int, slot: int, entry: int, old_frame: int | None) -> None:
        """Point a live entry at another frame: break first where the architecture demands it.

        `old_frame` loses the entry's reference; None for the zero page, which counts none.
        """
        gather = self.gather()
        gather.page(page)
        if old_frame is not None:
            gather.drop(old_frame)
        if self.table.format.frozen_bits and not self.physical.tlb.skips_break():
            found = Found(page, 1, slot, self.physical.ram.words[slot])
            self.table.exchange(found, entry, gather.flush)
        else:
            self.table.write(page, 1, slot, entry)
        self.finish(gather)

    def move_entries(self, start: int, end: int, to: int) -> None:
        """Move every entry of `[start, end)` to the range at `to`, which has none; flush the old place.

        Raises OutOfFrames, with nothing moved, when a table for the target cannot be had.
        """
        gather = self.gather()
        try:
            transfer.move(self.table, gather, start, end, to)
            if self.tracks_writes:  # the pages are new where they are now
                edits.count_as_written(self.table, to, to + end - start)
        finally:
            self.finish(gather)
        if self.promises is not None:
            self.promises.move(start, end, to)

    def fork(self) -> AddressSpace:
        """A new address space that shows what this one shows; whoever asked destroys it.

        Private pages are shared until one side writes to them, by entries that let neither side write. The
        copies belong to the same families, under the same indexes. Shared areas come without entries: a fault
        finds their pages in the object again. Areas come as madvise asked: not at all (MADV_DONTFORK), or
        without their pages (MADV_WIPEONFORK). None is locked. Raises OutOfFrames and TableDamaged, with no
        entry changed.
        """
        child = AddressSpace(self.physical, self.table.format, copy(self.limits), self._kernel)
        child.fault_around, child.files, child.mmap_base = self.fault_around, self.files, self.mmap_base
        child.heap_start, child.heap_end = self.heap_start, self.heap_end
        child.program_data, child.keys = self.program_data, self.keys
        child.no_huge, child.merge_any = self.no_huge, self.merge_any
        child.exec_gain = self.exec_gain_of_others
        if self.tracks_writes:
            child.track_writes()
        try:
            forking.copy_memory(self, child)
        except BaseException:
            child.destroy()
            raise
        return child

    @property
    def exec_gain_of_others(self) -> int:
        """`exec_gain` of a fork, and of the program that this one becomes."""
        return 0 if self.exec_gain & EXEC_GAIN_NOT_INHERITED else self.exec_gain

    def let_go(self) -> None:
        """One process less has it; the last one destroys it."""
        self.users -= 1
        if not self.users:
            self.destroy()
        elif self.users == 1 and self.outlives:
            self.empty()

    def outlive(self) -> None:
        """Its process has ended, and looks into it all the same: without pages, once nobody else has it."""
        self.outlives = True
        if self.users == 1:
            self.empty()

    def destroy(self) -> None:
        """Give back every page, table and backing, damaged or not. No CPU walks the table any more."""
        if self.cpus:
            self.physical.leave(self)
        self.empty()
        self.family.let_go()
        self.table.destroy()
        self.physical.slabs.put(MM, self.object)

    def empty(self) -> None:
        """Give back every page and backing, damaged or not: nothing is mapped any more."""
        self.damages += self.table.salvage()
        held = hold_objects(self.areas)
        self.unmap(0, self.limits.user_end)
        if self.damages:
            for item in held:
                reclaim(self.physical, item)
        for item in held:
            item.let_go()
        self.physical.tlb.settle()

    def has_own_pages(self, start: int, end: int) -> bool:
        """Whether an entry of `[start, end)` shows a page that belongs to a family, or names one in swap."""
        kinds, swap = self.physical.frames.kind_array, self.physical.swap
        if any(_OWN[kinds[frames]].any() for frames in self._shown_each(start, end)):
            return True
        if swap is None:
            return False
        return any(
            swap.entries.which(entries_of(self.table, item)[0]).any() for item in self.table.visit(start, end)
        )

    # ---- inside

    def shown(self, start: int, end: int) -> Frames:
        """The frames behind the entries of `[start, end)`, a frame once for each page that shows it."""
        return np.concatenate([np.zeros(0, np.int64), *self._shown_each(start, end)])

    def _shown_each(self, start: int, end: int) -> Iterator[Frames]:
        """`shown`, in the pieces in which the table holds them."""
        fmt, frames = self.table.format, self.physical.frames
        for item in self.table.visit(start, end):
            entries, level = entries_of(self.table, item)
            for kind, chosen in kinds(fmt, entries, level):
                if has_frame(fmt, kind, level):
                    yield frames_of(fmt, frames, of_kind(entries, chosen), level)

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
        """Remove the entries of `[start, end)`, a part of `area`; `gather` lets go of what they show.

        Private pages go only with `own_pages`, guards (`mm.guards`) with `guards`. Entries that show what
        does not belong there are damaged: they are put right first, and noted in `damages`. Raises
        TableDamaged for damage above level 1.
        """
        assert isinstance(area, Area)
        clearing.clear(self, gather, area, (start, end), None if own_pages else Kind.ANON, guards=guards)

    def _note_writable_executable(self, area: Area) -> None:
        """Count an area that is writable and executable, now or over time (W^X in the small)."""
        if area.protection & _WX == _WX and not area.was_writable_executable:
            area.was_writable_executable = True
            self._count_writable_executable(area)

    def _count_writable_executable(self, area: Area) -> None:
        self.physical.counters.n[Event.WRITABLE_EXECUTABLE] += 1
        if self.physical.trace.enabled:
            self.physical.trace.event("area.writable_executable", start=area.start, end=area.end)


def hold_objects(areas: Iterable[Area]) -> list[MemoryObject]:
    """Hold every object of some areas once; the caller lets go of what is returned."""
    objects = [item for area in areas for item in (area.backing, area.family) if item is not None]
    held: list[MemoryObject] = list(dict.fromkeys(objects))
    for item in held:
        item.hold()
    return held
