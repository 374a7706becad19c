"""CPUs over one RAM that execute a litmus test's operations, each with the translation that is asked for.

What is in memory, all of it below 32 MiB:

    root - .. - pd -+- table of x - x's physical page      a 2 MiB region for each virtual page, so that
                    +- table of y - y's physical page      each has a leaf table of its own
                    +- supervisor's map of all tables      by which entries are loaded and stored

A page's offset in its region is the same everywhere, virtual and physical. So every table has one entry in
use, every table fits under every page, and a 2 MiB block shows any page where the table would.

The engine's TLB holds what it walked last. A stale translation is brought into it: the old entries stand in
memory for a moment, a load walks them, and the present ones come back. Then the access is made, and goes by
what the TLB holds. Where a stale translation forbids the access the old entries stay until it was made, for
this engine walks again before it faults.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from aether_emu.arch.arm64.stage1 import READ_ONLY_TABLE, ArmFormat
from aether_emu.arch.paging import Attributes, PageFlags, PageTableFormat, Reach
from aether_emu.arch.x86_64.stage1 import A, W, X86Format
from aether_emu.errors import EngineError
from aether_emu.litmus.program import Entry, Kind, Litmus, Slot
from aether_emu.litmus.text import MOST_PAGES, MOST_TABLES
from aether_emu.machine.probe.arm64 import ArmProber
from aether_emu.machine.probe.prober import Attempts, Happened, Operation, Words
from aether_emu.machine.probe.x86_64 import X86Prober

_PAGE, _REGION = 4096, 2 << 20
_SIZE = (MOST_PAGES + 1) * _REGION
_TABLES = 1  # page numbers of tables: the one that maps them all; a space's three; a test's own
_ROOTS = 2
_ROOT, _UPPER, _DIRECTORY = range(3)
_OWN = 16
_COUNT = _OWN + MOST_TABLES
_PLACE = (
    100  # which page of its region everything is: not one whose place in the TLB a prober's own page takes
)
_BASE = 1 << 39  # virtual address of the regions: the root's second entry
_SUPERVISOR = _BASE + 511 * _REGION
_WORD = 16  # offset of a page's word


class Prober(Protocol):
    """A CPU that tries accesses (`machine.probe`)."""

    own_entries: dict[int, int]

    def run(
        self, root: int, addresses: Words, operation: Operation, *, user: bool, flush: bool = True,
        values: Words | None = None,
    ) -> Attempts: ...  # fmt: skip

    def close(self) -> None: ...


class Path(tuple[tuple[Slot, Entry], ...]):
    """The entries that one translation goes by, from the region's on."""

    __slots__ = ()

    def permits(self, *, user: bool, write: bool) -> bool:
        """Whether an access goes through: every entry has to permit it."""
        return all(
            entry.kind is not Kind.INVALID and entry.accessed and (entry.user or not user)
            and (entry.write or not write) for _, entry in self
        )  # fmt: skip


class Laboratory:
    """The engines of one ISA and what they translate by. One test at a time: `place` is called first.

    `executed` counts instructions of tests that were executed, `planted` the stale translations among them.
    """

    def __init__(self, isa: str, *, live_state: bool = True) -> None:
        self.isa = isa
        self.executed = self.planted = 0
        self._live = live_state
        self._arm = isa == "arm64"
        self._format: PageTableFormat = ArmFormat(_PAGE, 48, 48) if self._arm else X86Format(4)
        self._buffer = mmap.mmap(-1, _SIZE)
        self._memory = np.frombuffer(self._buffer, np.uint64)
        self._words = memoryview(self._buffer).cast("Q")
        self._probers: list[Prober] = []
        self._test: Litmus
        self._slots: dict[Slot, int] = {}
        self._data: list[int] = []
        self._physical: dict[str, int] = {}
        self._tables: dict[str, int] = {}
        self._pages: dict[str, int] = {}
        self._meaning: dict[tuple[int, int], Entry] = {}
        self._encoded: dict[tuple[Entry, int], int] = {}

    def place(self, test: Litmus) -> None:
        """Lay out the tables and pages of a test, and have a CPU for each thread."""
        while len(self._probers) < len(test.threads):
            self._probers.append(self._opened())
        self._words[: _COUNT * 512] = memoryview(bytes(_COUNT * _PAGE)).cast("Q")
        self._meaning.clear()
        self._encoded.clear()
        self._physical = {name: (number + 1) * _REGION for number, name in enumerate(test.memory)}
        names = [slot.name for slot in test.entries if slot.level == 1]
        self._tables = {name: (_OWN + number) * _PAGE for number, name in enumerate(names)}
        self._pages = {name: number for number, name in enumerate(test.pages)}
        self._slots = {Slot(1, name): (at >> 3) + _PLACE for name, at in self._tables.items()}
        for space in range(len(test.spaces)):
            for name, number in self._pages.items():
                self._slots[test.upper(name, space)] = _table(space, _DIRECTORY) * 512 + number
        self._data = [(at + _PLACE * _PAGE + _WORD) >> 3 for at in self._physical.values()]
        self._test = test
        for space in range(len(test.spaces)):
            self._build(space)
        flags = PageFlags.READ | PageFlags.WRITE | PageFlags.ACCESSED | PageFlags.DIRTY
        for number in range(_COUNT):
            leaf = self._format.leaf_entry(number * _PAGE, Attributes(flags))
            self._words[_TABLES * 512 + number] = leaf
        first = np.array([_SUPERVISOR], np.uint64)
        for cpu in range(len(self._probers)):  # by these tables it finds its own pages from now on
            self._run(cpu, first, Operation.READ, 0, user=False)

    def _opened(self) -> Prober:
        if self._arm:
            return ArmProber(self._memory, live_state=self._live)
        prober = X86Prober(self._memory, live_state=self._live)
        prober.configure(wp=True, smep=False, smap=False, pke=False, nxe=True)
        return prober

    def _build(self, space: int) -> None:
        words, accessed = self._words, 0 if self._arm else A
        root, upper, directory = (_table(space, which) for which in (_ROOT, _UPPER, _DIRECTORY))
        for slot, entry in self._probers[0].own_entries.items():
            words[root * 512 + slot] = entry
        words[root * 512 + 1] = self._format.table_entry(upper * _PAGE) | accessed
        words[upper * 512] = self._format.table_entry(directory * _PAGE) | accessed
        words[directory * 512 + 511] = self._format.table_entry(_TABLES * _PAGE) | accessed

    # ---- entries and their bits

    def encode(self, entry: Entry, level: int) -> int:
        """The bits of an entry in this ISA."""
        word = self._encoded.get((entry, level))
        if word is None:
            for accessed in (True, False):
                for dirty in (True, False):
                    variant = entry._replace(accessed=accessed, dirty=dirty)
                    bits = self._bits(variant, level)
                    self._encoded[variant, level] = bits
                    self._meaning.setdefault((bits, level), variant)
            word = self._encoded[entry, level]
            self._meaning[word, level] = entry
        return word

    def _bits(self, entry: Entry, level: int) -> int:
        if entry.kind is Kind.INVALID:
            return 0
        if entry.kind is Kind.TABLE:
            return self._table_bits(entry)
        address = self._physical[entry.target] + (_PLACE * _PAGE if level == 1 else 0)
        flags = PageFlags.READ
        for flag, wanted in (
            (PageFlags.WRITE, entry.write),
            (PageFlags.USER, entry.user),
            (PageFlags.GLOBAL, entry.everywhere),
            (PageFlags.ACCESSED, entry.accessed),
            (PageFlags.DIRTY, entry.dirty),
        ):
            flags |= flag if wanted else PageFlags(0)
        return self._format.leaf_entry(address, Attributes(flags), level)

    def _table_bits(self, entry: Entry) -> int:
        reach = Reach.ANY if entry.user else Reach.SUPERVISOR
        word = self._format.table_entry(self._tables[entry.target], reach)
        if self._arm:
            return word | (0 if entry.write else READ_ONLY_TABLE)
        return word & (-1 if entry.write else ~W) | (A if entry.accessed else 0)

    def decode(self, word: int, level: int) -> Entry:
        """What a word in memory means. EngineError for one that no operation of the test can have left."""
        found = self._meaning.get((word, level))
        if found is None:
            raise EngineError(f"an entry of level {level} holds {word:#x}, which nothing stored")
        return found

    # ---- memory

    def put(self, entries: Mapping[Slot, Entry], data: Sequence[int]) -> None:
        """Make memory what a state says it is."""
        words = self._words
        for slot, entry in entries.items():
            words[self._slots[slot]] = self.encode(entry, slot.level)
        for at, value in zip(self._data, data, strict=True):
            words[at] = value

    def entry(self, slot: Slot) -> Entry:
        """An entry as memory has it."""
        return self.decode(self._words[self._slots[slot]], slot.level)

    def data(self) -> tuple[int, ...]:
        """The words of the physical pages."""
        return tuple(self._words[at] for at in self._data)

    # ---- what CPUs execute

    def access(
        self, cpu: int, page: str, value: int | None, by: Path, *, stale: bool, space: int = 0
    ) -> int | None:
        """A user's load, or store of `value`, by the entries of `by`. None: it faulted. A store gives 0.

        `stale`: these are not what memory holds. The CPU is in `space`, whatever space's tables `by` are.
        """
        address = self._address(page)
        if not stale:
            return self._user(cpu, address, value, space, flush=True)
        # The engine has no tags: what another space's tables gave is brought in by this one's.
        here = [(self._slots[self._test.upper(page, space)], self.encode(by[0][1], 2))]
        here += [(self._slots[slot], self.encode(entry, 1)) for slot, entry in by[1:]]
        before = [(at, self._words[at]) for at, _ in here]
        self._restore(here)
        if not by.permits(user=True, write=value is not None):
            found = self._user(cpu, address, value, space, flush=True)
            self._restore(before)
            return found
        self._run(cpu, address, Operation.READ, space, user=True)
        self._restore(before)
        self.planted += 1
        return self._user(cpu, address, value, space, flush=False)

    def access_warm(self, cpu: int, page: str) -> int | None:
        """A user's load by what the CPU's TLB holds, or memory where it holds nothing. None: it faulted."""
        return self._user(cpu, self._address(page), None, 0, flush=False)

    def _address(self, page: str) -> Words:
        return np.array([_BASE + self._pages[page] * _REGION + _PLACE * _PAGE + _WORD], np.uint64)

    def _restore(self, words: list[tuple[int, int]]) -> None:
        for at, word in words:
            self._words[at] = word

    def _user(self, cpu: int, address: Words, value: int | None, space: int, *, flush: bool) -> int | None:
        self.executed += 1
        if value is None:
            tried = self._run(cpu, address, Operation.READ, space, user=True, flush=flush)
        else:
            values = np.array([value], np.uint64)
            tried = self._run(cpu, address, Operation.STORE, space, user=True, flush=flush, values=values)
        if tried.happened[0] == Happened.FAULT:
            return None
        if tried.happened[0] != Happened.DONE:
            raise EngineError(f"an access of a litmus test ended as {Happened(int(tried.happened[0])).name}")
        return int(tried.value[0]) if value is None else 0

    def write_entry(self, cpu: int, slot: Slot, entry: Entry) -> None:
        """The supervisor's store of an entry."""
        values = np.array([self.encode(entry, slot.level)], np.uint64)
        self._supervisor(cpu, slot, Operation.STORE, values)

    def read_entry(self, cpu: int, slot: Slot) -> Entry:
        """The supervisor's load of an entry."""
        return self.decode(int(self._supervisor(cpu, slot, Operation.READ, None).value[0]), slot.level)

    def _supervisor(self, cpu: int, slot: Slot, operation: Operation, values: Words | None) -> Attempts:
        self.executed += 1
        address = np.array([_SUPERVISOR + self._slots[slot] * 8], np.uint64)
        tried = self._run(cpu, address, operation, 0, user=False, values=values)
        if tried.happened[0] != Happened.DONE:
            raise EngineError(f"the supervisor cannot reach {slot}")
        return tried

    def invalidate(self, cpus: Sequence[int], page: str) -> None:
        """Execute the invalidation of a page, or of all where `page` is empty, on each of the CPUs."""
        operation = Operation.INVALIDATE if page else Operation.INVALIDATE_ALL
        at = self._address(page) if page else np.array([_BASE], np.uint64)
        for cpu in cpus:
            self.executed += 1
            self._run(cpu, at, operation, 0, user=False, flush=False)

    def _run(
        self, cpu: int, address: Words, operation: Operation, space: int, *, user: bool, flush: bool = True,
        values: Words | None = None,
    ) -> Attempts:  # fmt: skip
        prober = self._probers[cpu]
        root = _table(space, _ROOT) * _PAGE
        return prober.run(root, address, operation, user=user, flush=flush, values=values)

    def close(self) -> None:
        """Let go of the engines."""
        for prober in self._probers:
            prober.close()
        self._probers.clear()


def _table(space: int, which: int) -> int:
    """The page number of a space's table."""
    return _ROOTS + 3 * space + which
