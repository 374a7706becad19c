"""The neutral vocabulary of paging, and what an ISA must say to describe its page tables.

One page table (`mm.tables.page.PageTable`) serves many formats. A format is data (levels, index widths,
leaf sizes, rules) plus an entry codec. Levels are numbered from the leaf up: level 1 holds the
smallest pages, and the root is the highest number. Intel's PT is level 1; Arm's "level 3" table
is level 1 here, and each format names its own levels for people (`level_name`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum, IntEnum, IntFlag
from typing import Any, TypeVar

import numpy as np

from aether_emu.errors import EncodingError
from aether_emu.records import dataclass

Entries = np.ndarray[tuple[int], np.dtype[np.uint64]]
"""A stretch of a table, as `ram.array` shows it."""

E = TypeVar("E", int, np.ndarray[Any, Any])
"""One entry, or many of them in an array of uint64: bit arithmetic without negative masks serves both."""

WORD = (1 << 64) - 1


class PageFlags(IntFlag):
    """What a mapping permits and what was observed of it, without any ISA's bits."""

    READ = 1
    WRITE = 2
    EXECUTE = 4  # by the privilege that USER names
    USER = 8  # reachable from the unprivileged level
    GLOBAL = 16  # survives an address-space switch
    ACCESSED = 32
    DIRTY = 64
    GUARDED = 128  # indirect branches may only land on landing pads


class MemoryType(IntEnum):
    """Cacheability of a mapping. Unicorn has no caches: encoded genuinely, modelled in effect."""

    WRITE_BACK = 0
    WRITE_THROUGH = 1
    UNCACHED_MINUS = 2
    UNCACHED = 3
    WRITE_COMBINING = 4
    WRITE_PROTECTED = 5


@dataclass(frozen=True, slots=True)
class Attributes:
    """Everything a leaf says besides its address."""

    flags: PageFlags
    memory: MemoryType = MemoryType.WRITE_BACK
    key: int = 0  # protection key; 0 where the format has none
    software: int = 0  # bits the MMU ignores
    contiguous: bool = False  # a hint: one of `Level.contiguous` like entries in a row


class Access(IntFlag):
    """One access as a fault reports it. Plain ints with these bits travel the fault path."""

    READ = 1
    WRITE = 2
    EXECUTE = 4
    USER = 8  # issued at the unprivileged level
    PRESENT = 16  # the translation existed and forbade the access
    MALFORMED = 32  # a reserved bit was set
    KEY = 64  # a protection key forbade the access


class HeldKind(Enum):
    """Why an entry is not present although its page is known."""

    SWAP = 1
    MIGRATION = 2  # value: frame number
    POISON = 3
    USERFAULT = 4
    NO_ACCESS = 5  # resident, but its area permits nothing (PROT_NONE); value: frame number, notes above it
    GUARD = 6  # every access is refused, whatever the area permits (MADV_GUARD_INSTALL); value: 0

    @property
    def has_frame(self) -> bool:
        """Whether the value names the first frame behind the entry, where a leaf keeps its address."""
        return self in (HeldKind.MIGRATION, HeldKind.NO_ACCESS)

    @property
    def counts_pages(self) -> bool:
        """Whether the value is the first page's, and a large entry's other pages follow it in a row.

        Otherwise it says the same of each page.
        """
        return self.has_frame or self is HeldKind.SWAP


@dataclass(frozen=True, slots=True)
class Leaf:
    """A present entry that ends the walk. `address` is the physical start of the page."""

    address: int
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Table:
    """A present entry that points at the next table.

    `flags` are what it leaves to user leaves below it, `supervisor` what to the others (None: the same).
    """

    address: int
    flags: PageFlags
    supervisor: PageFlags | None = None


class Reach(Enum):
    """Whom the leaves below a table may serve; the table's entry denies it to others, as the leaves do."""

    ANY = "everybody"
    USER = "user leaves: the supervisor does not execute below"
    SUPERVISOR = "supervisor leaves: users neither access nor execute below"


@dataclass(frozen=True, slots=True)
class Absent:
    """An entry that maps nothing."""


@dataclass(frozen=True, slots=True)
class Held:
    """A typed non-present entry: the MMU faults, software knows what stood there."""

    kind: HeldKind
    value: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """A present entry with reserved bits set; `bits` are the offending ones."""

    bits: int


Entry = Leaf | Table | Absent | Held | Malformed


@dataclass(frozen=True, slots=True)
class BitField:
    """One named field of an entry: `width` bits from bit `low` up."""

    name: str
    low: int
    width: int
    meaning: str

    @property
    def mask(self) -> int:
        return ((1 << self.width) - 1) << self.low

    def get(self, word: int) -> int:
        return (word >> self.low) & ((1 << self.width) - 1)

    def put(self, value: int) -> int:
        """The field's bits holding `value`. Raises ValueError when it does not fit."""
        if value >> self.width:
            raise ValueError(f"{self.name} has {self.width} bit(s); {value:#x} does not fit")
        return value << self.low


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a page table: `1 << bits` entries, each covering `1 << shift` bytes."""

    shift: int
    bits: int
    leaf: bool  # a leaf may stand here
    name: str
    contiguous: int = 1  # how many adjacent, aligned, like leaves the contiguous hint joins; 1: no hint

    @property
    def entries(self) -> int:
        return 1 << self.bits

    @property
    def size(self) -> int:
        """Bytes that one entry of this level covers."""
        return 1 << self.shift


class PageTableFormat(ABC):
    """An ISA's page-table format: data, and a codec for single entries.

    `levels[0]` is level 1 (the smallest page). Entries are 8 bytes, little endian.
    """

    name: str
    levels: tuple[Level, ...]
    address_mask: int  # where a level-1 leaf keeps its physical address
    present_mask: int  # an entry with one of these bits set takes part in a walk
    physical_bits: int
    frozen_bits: int  # where a present entry must not change into another one at once; 0: no such rule
    no_execute_table: int = 0  # bits of a table entry below which nothing is executed; 0: there are none
    contiguous_bit: int  # the bit of a leaf that is the contiguous hint; 0: none
    hardware_accessed: bool  # the MMU sets ACCESSED itself; else it faults where that is clear
    hardware_dirty: bool  # the MMU sets DIRTY itself; else it faults on a write where that is clear

    @property
    def top(self) -> int:
        """The root's level number."""
        return len(self.levels)

    @property
    def page_shift(self) -> int:
        return self.levels[0].shift

    @property
    def page_size(self) -> int:
        return 1 << self.levels[0].shift

    @property
    def virtual_bits(self) -> int:
        root = self.levels[-1]
        return root.shift + root.bits

    def canonical(self, va: int) -> bool:
        """Whether an address of 64 bits can be translated: its bits above `virtual_bits` are all alike."""
        return va >> self.virtual_bits in (0, (1 << 64 - self.virtual_bits) - 1)

    def leaf_sizes(self) -> tuple[int, ...]:
        """Bytes of each leaf the format allows, smallest first."""
        return tuple(level.size for level in self.levels if level.leaf)

    def level_name(self, level: int) -> str:
        return self.levels[level - 1].name

    @abstractmethod
    def leaf_bits(self, attributes: Attributes, level: int = 1) -> int:
        """The bits of a leaf except its address: `address | leaf_bits` is the entry.

        Raises EncodingError when the format cannot express the attributes.
        """

    @abstractmethod
    def table_entry(self, address: int, reach: Reach = Reach.ANY) -> int:
        """An entry that points at the table at physical `address`, restricting nothing but its reach."""

    @abstractmethod
    def held_entry(self, held: Held) -> int:
        """A non-present entry that keeps `held`. Raises EncodingError when the value does not fit."""

    @abstractmethod
    def decode(self, entry: int, level: int) -> Entry:
        """What the MMU makes of `entry` at `level`."""

    def next_table(self, entry: int, level: int) -> int | None:
        """Physical address of the table that `entry` points at; None for a leaf or anything else.

        What `decode` says, without making an object: descents ask it for every entry.
        """
        decoded = self.decode(entry, level)
        return decoded.address if isinstance(decoded, Table) else None

    @abstractmethod
    def fields(self, entry: int, level: int) -> tuple[BitField, ...]:
        """The layout of a present `entry` (a leaf's, or a table's) at `level`, for printing it."""

    # ---- what a leaf remembers of accesses (for one leaf, or an array of them)

    @abstractmethod
    def writable(self, entry: E) -> E:
        """1 where the leaf permits writing, be it only after a fault that notes DIRTY; else 0."""

    @abstractmethod
    def accessed(self, entry: E) -> E:
        """1 where the leaf was accessed since that was last cleared; else 0."""

    @abstractmethod
    def dirty(self, entry: E) -> E:
        """1 where the page was written since that was last cleared; else 0."""

    @abstractmethod
    def touch(self, entry: E) -> E:
        """The leaf with ACCESSED set."""

    @abstractmethod
    def soil(self, entry: E) -> E:
        """The leaf with DIRTY set; its permissions stay."""

    @abstractmethod
    def age(self, entry: E) -> E:
        """The leaf with ACCESSED clear. What the TLB keeps of it must go, or nothing is noticed."""

    @abstractmethod
    def clean(self, entry: E) -> E:
        """The leaf with DIRTY clear, as writable as before. As for `age`, the TLB must forget it."""

    @abstractmethod
    def write_protect(self, entry: E) -> E:
        """The leaf without permission to write, as dirty as before."""

    # ----

    @abstractmethod
    def leaf_address(self, entry: int, level: int) -> int:
        """The physical address a present leaf points at."""

    def leaf_entry(self, address: int, attributes: Attributes, level: int = 1) -> int:
        """A leaf at `level`. Raises EncodingError for a misaligned or too wide address."""
        size = self.levels[level - 1].size
        if address & (size - 1) or address >> self.physical_bits:
            raise EncodingError(
                f"{self.name}: {address:#x} is no address of a {size:#x} byte leaf "
                f"within {self.physical_bits} physical bits"
            )
        return address | self.leaf_bits(attributes, level)

    def describe(self, entry: int, level: int) -> str:
        """One line for people: the level, the entry, `meaning` of it."""
        return f"{self.level_name(level)} {entry:#018x} {self.meaning(entry, level)}"

    def meaning(self, entry: int, level: int) -> str:
        """What `entry` says, in the manual's names: "P RW US A D XD -> 0x7000".

        A field of one bit is named where it is 1, a wider one with its value. Then the address that the entry
        points at, or what software keeps where there is no page, or the reserved bits that are set.
        """
        decoded = self.decode(entry, level)
        match decoded:
            case Absent():
                return "absent"
            case Held(kind, value):
                return f"{kind.name} {value:#x}"
        words = []
        for field in sorted(self.fields(entry, level), key=lambda field: field.low):
            value = field.get(entry)
            if value and field.name != "ADDR":
                words.append(field.name if field.width == 1 else f"{field.name}={value:#x}")
        if isinstance(decoded, Malformed):
            return " ".join([*words, f"reserved {decoded.bits:#x}"])
        assert isinstance(decoded, (Leaf, Table)), "an entry that is present and well formed"
        return " ".join([*words, f"-> {decoded.address:#x}"])
