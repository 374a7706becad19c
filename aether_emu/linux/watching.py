"""Watching accesses to ranges of memory: by page protection, so that nothing else becomes slower.

    between kernel and program    the entries of watched pages lose what is watched for ("armed")
    the program touches one       a fault: armed no more, the instruction is made again, alone, and looked at
    in front of the next one      handlers are told, armed again

The kernel never sees an armed entry: they are put right whenever the program is left. The program sees no
difference either: these faults are counted nowhere, and cost no virtual time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from aether_emu.arch.paging import Access, Leaf, PageFlags, PageTableFormat
from aether_emu.errors import MachineError, OutOfFrames
from aether_emu.linux.entry import Entry
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.mm.hugepage import split_at
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.page import Found
from aether_emu.records import dataclass

_SINGLE_FLUSHES = 8  # more pages than this are dropped from the TLB all at once
_KINDS = Access.READ | Access.WRITE | Access.EXECUTE


@dataclass(frozen=True, slots=True)
class AccessSeen:
    """An instruction of `task` at `pc` has touched a watched range, and is done.

    `address`, `size` (bytes) and `value` are exactly what it loaded or stored, as a little-endian number.
    Where the CPU did the instruction's work in another way, `size` is 0 and `value` None. `kind` is READ,
    WRITE or EXECUTE; an instruction that reads and writes is told twice.
    """

    task: Task
    pc: int
    address: int
    size: int
    kind: Access
    value: int | None

    @property
    def process(self) -> Process:
        """Whose access it was."""
        return self.task.process

    def __str__(self) -> str:
        shown = "" if self.value is None else f" {self.value:#x}"
        size = f" of {self.size} bytes" if self.size else ""
        return f"{(self.kind.name or '').lower()}{size} at {self.address:#x} by {self.pc:#x}:{shown}"


class Watch(NamedTuple):
    """`[start, end)` and what is watched for. `told` gets each access that overlaps it."""

    start: int
    end: int
    kinds: Access
    told: Callable[[AccessSeen], object]


class _Armed(NamedTuple):
    """An entry that lost something: where it stands, what it was and what it is."""

    slot: int
    entry: int
    armed: int


class _Piece(NamedTuple):
    """What the CPU told of one access."""

    store: bool
    address: int
    size: int
    value: int


class Watching:
    """The watches of one CPU's program."""

    def __init__(self, entry: Entry) -> None:
        self._entry, self._cpu = entry, entry.cpu
        self._watches: tuple[Watch, ...] = ()
        self._pages: dict[int, Access] = {}  # what each watched page is watched for
        self._armed: list[_Armed] = []
        self._touched: tuple[int, int, int] | None = None  # pc, address, access of the one that is looked at
        self._pieces: list[_Piece] = []
        self._frames: dict[int, int] = {}  # physical page -> virtual page of what is watched

    @property
    def _space(self) -> AddressSpace:
        return self._entry.task.process.mm

    @property
    def watches(self) -> tuple[Watch, ...]:
        """What is watched."""
        return self._watches

    @watches.setter
    def watches(self, watches: tuple[Watch, ...]) -> None:
        self._watches, self._pages = watches, {}
        size = self._entry.kernel.physical.ram.page_size
        for watch in watches:
            for page in range(watch.start & -size, watch.end, size):
                self._pages[page] = self._pages.get(page, Access(0)) | watch.kinds

    # ---- armed or not

    def arm(self) -> None:
        """Take from the entries of watched pages what is watched for."""
        table, words = self._space.table, self._space.physical.ram.words
        changed = []
        for page, kinds in self._pages.items():
            found = self._small(page)
            if found is None:
                continue
            armed = _without(table.format, found.entry, kinds)
            if armed != found.entry:
                words[found.slot] = armed
                self._armed.append(_Armed(found.slot, found.entry, armed))
                changed.append(page)
        # One that goes on stale keeps what it holds of all other pages.
        if len(changed) > _SINGLE_FLUSHES and not self._entry.percpu.goes_on_stale:
            self._cpu.flush_all()
        else:
            for page in changed:
                self._cpu.flush_page(page)

    def _small(self, page: int) -> Found | None:
        """The entry of one page: a huge page that is watched is split, and watched runs of pages end."""
        table = self._space.table
        found = table.find(page)
        if found is None or not found.entry & table.format.present_mask:
            return found if found is None or found.level == 1 else None
        if found.level == 1 and not found.entry & table.format.contiguous_bit:
            return found
        try:
            return split_at(self._space, page, found)
        except OutOfFrames as error:
            raise MachineError(f"no frame is left for a table: {page:#x} cannot be watched") from error

    def lift(self) -> None:
        """Put the entries right, with what the MMU noted in them meanwhile."""
        if not self._armed:
            return
        physical, fmt = self._entry.kernel.physical, self._space.table.format
        for slot, entry, armed in self._armed:
            now = physical.ram.words[slot]
            if fmt.touch(now) == fmt.touch(armed):
                physical.ram.words[slot] = fmt.touch(entry) if fmt.accessed(now) else entry
        self._armed.clear()

    # ---- a fault

    def watches_page(self, va: int) -> bool:
        """Whether a page with something watched contains `va`."""
        return va & -self._space.page_size in self._pages

    def permitted(self, va: int, access: int) -> bool:
        """With the entries put right: whether the MMU lets this access pass, and we alone were in its way."""
        table = self._space.table
        found = table.find(va)
        return found is not None and bool(
            access & _KINDS & _permitted(table.format, found.entry, found.level)
        )

    def look(self, va: int, access: int) -> None:
        """The instruction at pc is made again, alone: note what it does to watched pages."""
        self._touched = self._cpu.pc, va, access
        self.begin_again()

    def begin_again(self) -> None:
        """It begins, perhaps after one more fault, which may have brought other frames."""
        self._pieces.clear()
        table, self._frames = self._space.table, {}
        for page in self._pages:
            found = table.find(page)
            if found is not None and found.entry & table.format.present_mask:
                address = table.format.leaf_address(found.entry, found.level) + page - found.start
                self._frames[address & -self._space.page_size] = page

    def give_up(self) -> None:
        """The instruction will not be made again: a signal has come of it."""
        self._touched = None

    def note(self, store: bool, physical: int, size: int, value: int) -> None:
        """See `machine.halting.Told`."""
        page = self._frames.get(physical & -self._space.page_size)
        if page is None:
            return
        address = page | physical & self._space.page_size - 1
        if not store:
            ram = self._entry.kernel.physical.ram
            at = physical - ram.base
            inside = at >= 0 and at + size <= ram.size
            value = int.from_bytes(ram.bytes[at : at + size], "little") if inside else -1
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.store == store and last.address + last.size == address:
            joined = last.value | value << 8 * last.size if min(last.value, value) >= 0 else -1
            self._pieces[-1] = _Piece(store, last.address, last.size + size, joined)
        else:
            self._pieces.append(_Piece(store, address, size, value & (1 << 8 * size) - 1 if store else value))

    @property
    def looking(self) -> bool:
        """Whether an instruction is being looked at."""
        return self._touched is not None

    def done(self) -> list[tuple[Watch, AccessSeen]]:
        """The instruction is over: who is to be told of what."""
        if self._touched is None:
            return []
        (pc, va, access), self._touched = self._touched, None
        task, told = self._entry.task, []
        seen = [
            AccessSeen(
                task,
                pc,
                one.address,
                one.size,
                Access.WRITE if one.store else Access.READ,
                one.value if one.value >= 0 else None,
            )
            for one in self._pieces
        ]
        kind = Access(access) & _KINDS
        if kind & Access.EXECUTE or not seen:
            seen.insert(0, AccessSeen(task, pc, va, 0, kind, None))
        for one in seen:
            end = one.address + max(one.size, 1)
            told += [
                (watch, one)
                for watch in self.watches
                if watch.start < end and one.address < watch.end and watch.kinds & one.kind
            ]
        return told


@lru_cache(1024)
def _without(fmt: PageTableFormat, entry: int, kinds: Access) -> int:
    """A leaf of level 1 that does not permit `kinds`; another entry as it is."""
    decoded = fmt.decode(entry, 1)
    if not isinstance(decoded, Leaf):
        return entry
    lost = PageFlags(0)
    if kinds & Access.READ:
        lost = PageFlags.USER | PageFlags.EXECUTE
    elif kinds & Access.WRITE:
        lost = PageFlags.WRITE
    if kinds & Access.EXECUTE:
        lost |= PageFlags.EXECUTE
    attributes = replace(decoded.attributes, flags=decoded.attributes.flags & ~lost)
    return fmt.leaf_entry(decoded.address, attributes)


@lru_cache(1024)
def _permitted(fmt: PageTableFormat, entry: int, level: int) -> Access:
    """What the MMU lets a user do by this entry without a fault."""
    decoded = fmt.decode(entry, level)
    return permitted_by(fmt, decoded.attributes.flags) if isinstance(decoded, Leaf) else Access(0)


def permitted_by(fmt: PageTableFormat, flags: PageFlags) -> Access:
    """What the MMU lets a user do in a page with these flags, without a fault."""
    if not flags & PageFlags.USER or not (fmt.hardware_accessed or flags & PageFlags.ACCESSED):
        return Access(0)
    permitted = Access.READ if flags & PageFlags.READ else Access(0)
    if flags & PageFlags.WRITE and (fmt.hardware_dirty or flags & PageFlags.DIRTY):
        permitted |= Access.WRITE
    return permitted | (Access.EXECUTE if flags & PageFlags.EXECUTE else Access(0))
