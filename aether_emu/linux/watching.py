"""Watching accesses to ranges of memory: by page protection, so that nothing else becomes slower.

    between kernel and program    the entries of watched pages lose what is watched for ("armed")
    the program touches one       a fault: armed no more, the instruction is made again, alone, and looked at
    in front of the next one      handlers are told, armed again

The kernel never sees an armed entry: they are put right whenever the program is left. The program sees no
difference either: these faults are counted nowhere, and cost no virtual time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from aether_emu.arch.paging import Access, Leaf, PageFlags
from aether_emu.linux.entry import Entry
from aether_emu.linux.task.process import Process
from aether_emu.linux.task.task import Task
from aether_emu.mm.space import AddressSpace
from aether_emu.mm.tables.walk import Mapped

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
        self.watches: tuple[Watch, ...] = ()
        self._armed: list[_Armed] = []
        self._touched: tuple[int, int, int] | None = None  # pc, address, access of the one that is looked at
        self._pieces: list[_Piece] = []
        self._frames: dict[int, int] = {}  # physical page -> virtual page of what is watched

    @property
    def _space(self) -> AddressSpace:
        return self._entry.task.process.mm

    def _pages(self) -> dict[int, Access]:
        """What each watched page is watched for."""
        pages: dict[int, Access] = {}
        size = self._space.page_size
        for watch in self.watches:
            for page in range(watch.start & -size, watch.end, size):
                pages[page] = pages.get(page, Access(0)) | watch.kinds
        return pages

    # ---- armed or not

    def arm(self) -> None:
        """Take from the entries of watched pages what is watched for."""
        space, pages = self._space, self._pages()
        fmt, words = space.table.format, space.physical.ram.words
        changed = []
        for page, kinds in pages.items():
            found = space.table.find(page)
            if found is None or found.level != 1:
                continue
            armed = self._without(space, found.entry, kinds)
            if armed != found.entry:
                words[found.slot] = armed
                self._armed.append(_Armed(found.slot, found.entry, armed))
                changed.append(page & -fmt.page_size)
        if len(changed) > _SINGLE_FLUSHES:
            self._cpu.flush_all()
        else:
            for page in changed:
                self._cpu.flush_page(page)

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

    @staticmethod
    def _without(space: AddressSpace, entry: int, kinds: Access) -> int:
        """An entry that does not permit `kinds`."""
        fmt = space.table.format
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

    # ---- a fault

    def watches_page(self, va: int) -> bool:
        """Whether a page with something watched contains `va`."""
        return va & -self._space.page_size in self._pages()

    def permitted(self, va: int, access: int) -> bool:
        """With the entries put right: whether the MMU lets this access pass, and we alone were in its way."""
        space = self._space
        found = space.walk(va)
        if not isinstance(found, Mapped) or not found.attributes.flags & PageFlags.USER:
            return False
        flags, fmt = found.attributes.flags, space.table.format
        if not fmt.hardware_accessed and not flags & PageFlags.ACCESSED:
            return False
        if access & Access.WRITE:
            return bool(flags & PageFlags.WRITE) and (fmt.hardware_dirty or bool(flags & PageFlags.DIRTY))
        return bool(flags & (PageFlags.EXECUTE if access & Access.EXECUTE else PageFlags.READ))

    def look(self, va: int, access: int) -> None:
        """The instruction at pc is made again, alone: note what it does to watched pages."""
        self._touched = self._cpu.pc, va, access
        self.begin_again()
        assert self._cpu.halting is not None, "it halts already"
        self._cpu.halting.tell_accesses(self._note)

    def begin_again(self) -> None:
        """It begins, perhaps after one more fault, which may have brought other frames."""
        self._pieces.clear()
        walks = {page: self._space.walk(page) for page in self._pages()}
        self._frames = {int(to.address): page for page, to in walks.items() if isinstance(to, Mapped)}

    def give_up(self) -> None:
        """The instruction will not be made again: a signal has come of it."""
        self._touched = None

    def _note(self, store: bool, physical: int, size: int, value: int) -> None:
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
